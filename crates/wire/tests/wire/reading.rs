//! Everything that is read from netlink sockets.

use model::Family;
use wire::{Attributes, Body, Messages, conntrack, genl, ipset, ipvs, nftables, rtnl};

/// Reads bytes in every way there is, and counts what came out.
pub(crate) fn read_all(bytes: &[u8]) -> usize {
    let mut read = 0;
    for message in Messages::new(bytes) {
        match message.map(|message| message.body) {
            Ok(Body::Data(payload)) => read += 1 + read_payload(payload),
            Ok(Body::Error { errno, request, .. }) => {
                assert_ne!(errno, 0);
                read += 1 + request.map_or(0, read_payload);
            }
            Ok(_) => read += 1,
            Err(malformed) => assert!(!malformed.to_string().is_empty()),
        }
    }
    read
}

pub(crate) fn read_payload(payload: &[u8]) -> usize {
    let known = [
        genl::parse_family(payload).is_ok(),
        ipvs::parse_info(payload).is_ok(),
        ipvs::parse_timeouts(payload).is_ok(),
        ipvs::parse_service(payload).is_ok(),
        ipvs::parse_dest(payload, Family::V4).is_ok(),
        ipvs::parse_dest(payload, Family::V6).is_ok(),
        ipset::parse_protocol(payload).is_ok(),
        ipset::parse_type(payload).is_ok(),
        ipset::parse_member(payload).is_ok(),
        ipset::failed_entry(payload).is_some(),
        ipset::parse_set(payload).is_ok_and(|set| set.members().all(|member| member.is_ok())),
        rtnl::parse_link(payload).is_ok(),
        rtnl::parse_address(payload).is_ok(),
        rtnl::parse_route(payload).is_ok(),
        rtnl::parse_default_gateways(payload).is_ok(),
        conntrack::parse_entry(payload).is_ok(),
        nftables::parse_removal(0x0a02, payload).is_ok(),
        nftables::parse_removal(0x0a05, payload).is_ok(),
        nftables::parse_removal(0x0a08, payload).is_ok(),
        Attributes::new(payload, "anything").all(|attribute| attribute.is_ok()),
    ];
    known.into_iter().filter(|known| *known).count()
}
