//! Links, addresses and routes over rtnetlink (include/uapi/linux/rtnetlink.h, if_link.h, if_addr.h).
//!
//! Addresses are in network byte order, everything else in the host's. The same messages come as notifications from the
//! [groups](GROUP_LINK), with a sequence number that answers no request.

mod address;
mod link;
mod route;

pub use address::{Address, parse_address};
pub use address::{del_address, get_addresses, new_address};
pub use link::{Link, parse_link};
pub use link::{del_link, get_link, get_links, new_dummy, set_up};
pub use route::{BY_KERNEL, LocalRoute, Route, RouteFilter, parse_default_gateways, parse_route};
pub use route::{
    add_local_route, del_local_route, get_main_routes, get_route_to, get_routes, get_routes_of_link, prepend_local_route,
    replace_local_route,
};

/// Message type: a link that exists, or that came or changed.
pub const RTM_NEWLINK: u16 = 16;
/// Message type: a link that went.
pub const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;
/// Message type: an address that exists, or that came or changed.
pub const RTM_NEWADDR: u16 = 20;
/// Message type: an address that went.
pub const RTM_DELADDR: u16 = 21;
const RTM_GETADDR: u16 = 22;
/// Message type: a route that exists, or that came or changed.
pub const RTM_NEWROUTE: u16 = 24;
/// Message type: a route that went. IPv4 sends none for routes that go with their device: watch the link as well.
pub const RTM_DELROUTE: u16 = 25;
const RTM_GETROUTE: u16 = 26;

/// Notification group (`RTNLGRP_LINK`): links.
pub const GROUP_LINK: u32 = 1;
/// Notification group (`RTNLGRP_IPV4_IFADDR`): IPv4 addresses.
pub const GROUP_IPV4_ADDRESS: u32 = 5;
/// Notification group (`RTNLGRP_IPV4_ROUTE`): IPv4 routes.
pub const GROUP_IPV4_ROUTE: u32 = 7;
/// Notification group (`RTNLGRP_IPV6_IFADDR`): IPv6 addresses.
pub const GROUP_IPV6_ADDRESS: u32 = 9;
/// Notification group (`RTNLGRP_IPV6_ROUTE`): IPv6 routes.
pub const GROUP_IPV6_ROUTE: u32 = 11;

/// The routing protocol number (`rtm_protocol`) that marks a route as made by kube-ipvs.
///
/// The kernel does not interpret protocol numbers from 4 on; they say who made a route, so that its maker can find it again and
/// leave all others alone. 71 is not among those that include/uapi/linux/rtnetlink.h and iproute2's rt_protos give to others.
pub const PROTOCOL: u8 = 71;

/// `RT_TABLE_LOCAL`: the table that says which addresses are the node's own.
pub const TABLE_LOCAL: u32 = 255;
/// `RT_TABLE_MAIN`: the table that says how everything else is reached.
pub const TABLE_MAIN: u32 = 254;
/// `RTN_UNICAST`: the type of a route to somewhere else.
pub const ROUTE_UNICAST: u8 = 1;
/// `RTN_LOCAL`: the type of a route that delivers to the node itself.
pub const ROUTE_LOCAL: u8 = 2;
