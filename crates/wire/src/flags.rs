//! Flags of message headers (include/uapi/linux/netlink.h).

/// Every message to the kernel has it.
pub const NLM_F_REQUEST: u16 = 0x1;
/// Answer even when there is nothing to complain about.
pub const NLM_F_ACK: u16 = 0x4;
/// In a dump: the objects changed while they were listed, so the list is no observation.
pub const NLM_F_DUMP_INTR: u16 = 0x10;
/// List every object: `NLM_F_ROOT | NLM_F_MATCH`.
pub const NLM_F_DUMP: u16 = 0x300;
/// Take the place of an object with the same key.
pub const NLM_F_REPLACE: u16 = 0x100;
/// Refuse when an object with the same key exists.
pub const NLM_F_EXCL: u16 = 0x200;
/// Make the object.
pub const NLM_F_CREATE: u16 = 0x400;
/// In an answer: of the request, only its header is repeated.
pub const NLM_F_CAPPED: u16 = 0x100;
/// In an answer: attributes with the kernel's explanation follow.
pub const NLM_F_ACK_TLVS: u16 = 0x200;
