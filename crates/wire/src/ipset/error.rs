//! ipset's own error numbers.

/// What an error number of ipset's own means; `None` for the numbers that every subsystem has.
///
/// The numbers are those of `enum ipset_errno` and, from 4352 on, of the hash types (ip_set_hash.h).
#[must_use]
pub const fn error_text(errno: i32) -> Option<&'static str> {
    Some(match errno {
        // Also the answer to a member with an address of the other family, which is the wrong attribute for the set.
        4097 => {
            "the kernel does not understand the message: wrong protocol version, or attributes the set has no use for (IPSET_ERR_PROTOCOL)"
        }
        4098 => "the kernel has no such set type or revision of it (IPSET_ERR_FIND_TYPE)",
        4099 => "the kernel has no room for another set (IPSET_ERR_MAX_SETS)",
        4100 => "the set is in use (IPSET_ERR_BUSY)",
        4101 => "a set with the second name exists (IPSET_ERR_EXIST_SETNAME2)",
        4102 => "the two sets are of different types or families (IPSET_ERR_TYPE_MISMATCH)",
        4103 => "the member is there already, or the one to remove is not (IPSET_ERR_EXIST)",
        4104 => "the prefix length is out of range (IPSET_ERR_INVALID_CIDR)",
        4105 => "the netmask is out of range (IPSET_ERR_INVALID_NETMASK)",
        4106 => "the set is not of this address family (IPSET_ERR_INVALID_FAMILY)",
        4107 => "the set was made without timeouts (IPSET_ERR_TIMEOUT)",
        4108 => "the set is referred to by packet rules or other sets (IPSET_ERR_REFERENCED)",
        4109 => "an IPv4 address is needed (IPSET_ERR_IPADDR_IPV4)",
        4110 => "an IPv6 address is needed (IPSET_ERR_IPADDR_IPV6)",
        4111 => "the set was made without counters (IPSET_ERR_COUNTER)",
        4112 => "the set was made without comments (IPSET_ERR_COMMENT)",
        4113 => "the mark mask must not be zero (IPSET_ERR_INVALID_MARKMASK)",
        4114 => "the set was made without skbinfo (IPSET_ERR_SKBINFO)",
        4115 => "netmask and bitmask exclude each other (IPSET_ERR_BITMASK_NETMASK_EXCL)",
        4352 => "the set is full: it has as many members as maxelem allows (IPSET_ERR_HASH_FULL)",
        4353 => "the zero address cannot be a member (IPSET_ERR_HASH_ELEM)",
        4354 => "the protocol number is not valid (IPSET_ERR_INVALID_PROTO)",
        4355 => "the member needs a protocol (IPSET_ERR_MISSING_PROTO)",
        4356 => "the set type does not take ranges (IPSET_ERR_HASH_RANGE_UNSUPPORTED)",
        4357 => "the range is not valid (IPSET_ERR_HASH_RANGE)",
        _ => return None,
    })
}
