//! Notifications of what others take away: routes that bind VIPs, and packet rules.

use std::os::fd::OwnedFd;
use std::thread;
use std::time::Duration;

use model::Chain;
use rustix::io::Errno;
use rustix::net::netlink::{self, SocketAddrNetlink};
use rustix::net::{AddressFamily, Protocol, RecvFlags, SocketFlags, SocketType, bind, recv, socket_with};
use socket2::{SockFilter, SockRef};
use wire::nftables::{self, Removal, parse_removal};
use wire::rtnl::{BY_KERNEL, GROUP_IPV4_ROUTE, GROUP_IPV6_ROUTE, PROTOCOL, RTM_DELROUTE, Route, TABLE_LOCAL, parse_route};
use wire::{Body, Message, Messages};

use crate::Error;

/// More than any notification takes: nf_tables gathers those of a transaction in parts of a page or two.
const BUFFER: usize = 32 * 1024;

/// `NETLINK_ROUTE` is protocol 0, which is what goes without saying.
const ROUTE: Option<Protocol> = None;

/// The chains in which jumps to ours are. A notification need not say which of their rules went.
const BUILT_IN_CHAINS: [&str; 5] = ["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"];

/// Follows what others take away of ours.
#[derive(Debug)]
pub struct Removals {
    socket: OwnedFd,
    buffer: Vec<u8>,
    what: &'static str,
    is_ours: fn(&Message<'_>) -> bool,
}

impl Removals {
    /// Of routes that bind VIPs, unless the socket with the number `own` takes them away.
    pub(crate) fn of_vip_routes(own: u32) -> Result<Self, Error> {
        let groups = group(GROUP_IPV4_ROUTE) | group(GROUP_IPV6_ROUTE);
        let removals = Self::follow(ROUTE, groups, "route notification", is_vip_route)?;
        // A node may learn thousands of routes a second, none of which is to wake anybody here; nor are the thousands of our own.
        let filter = SockRef::from(&removals.socket).attach_filter(&vip_routes_of_others(own));
        filter.map_err(|error| Error::io(format!("filtering the {} socket", removals.what), error))?;
        Ok(removals)
    }

    /// Of packet rules in nf_tables.
    pub(crate) fn of_packet_rules() -> Result<Self, Error> {
        Self::follow(Some(netlink::NETFILTER), group(nftables::GROUP), "packet rule notification", is_packet_rule)
    }

    fn follow(
        protocol: Option<Protocol>,
        groups: u32,
        what: &'static str,
        is_ours: fn(&Message<'_>) -> bool,
    ) -> Result<Self, Error> {
        let failed = |error: Errno| Error::io(format!("opening the {what} socket"), error.into());
        let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, protocol).map_err(failed)?;
        bind(&socket, &SocketAddrNetlink::new(0, groups)).map_err(failed)?;
        Ok(Self { socket, buffer: vec![0; BUFFER], what, is_ours })
    }

    /// Waits until something of ours may have been taken away, then for `settle`, and takes in whatever else goes by then. It says that
    /// something may be missing, never what: that is for a reading to say.
    ///
    /// # Errors
    /// When the socket fails.
    pub fn wait(&mut self, settle: Duration) -> Result<(), Error> {
        loop {
            let mut found = self.receive(RecvFlags::empty())?.unwrap_or_default();
            thread::sleep(settle);
            while let Some(more) = self.receive(RecvFlags::DONTWAIT)? {
                found |= more;
            }
            if found {
                return Ok(());
            }
        }
    }

    /// Whether the next notification is about something of ours; `None` when there is none.
    fn receive(&mut self, flags: RecvFlags) -> Result<Option<bool>, Error> {
        match recv(&self.socket, self.buffer.as_mut_slice(), flags | RecvFlags::TRUNC) {
            Ok((_, len)) => Ok(Some(match self.buffer.get(..len) {
                Some(received) => Messages::new(received).any(|message| message.map_or(true, |message| (self.is_ours)(&message))),
                None => true,
            })),
            Err(Errno::AGAIN) => Ok(None),
            Err(Errno::INTR) => Ok(Some(false)),
            // Some were lost, and might have been about anything.
            Err(Errno::NOBUFS) => Ok(Some(true)),
            Err(error) => Err(Error::io(format!("the {} socket", self.what), error.into())),
        }
    }
}

/// The bit of a notification group.
const fn group(number: u32) -> u32 {
    1 << (number - 1)
}

// What cannot be read counts as ours: a reading tells.

fn is_vip_route(message: &Message<'_>) -> bool {
    match message.body {
        Body::Data(payload) if message.kind == RTM_DELROUTE => {
            let binds = |route: &Route| route.ours().is_some() || route.of_own_address().is_some();
            parse_route(payload).map_or(true, |route| route.known().as_ref().is_some_and(binds))
        }
        _ => false,
    }
}

fn is_packet_rule(message: &Message<'_>) -> bool {
    let Body::Data(payload) = message.body else { return false };
    match parse_removal(message.kind, payload) {
        Ok(Some(Removal::Chain(chain))) => chain.starts_with(Chain::PREFIX) || BUILT_IN_CHAINS.contains(&chain),
        Ok(Some(Removal::Table)) | Err(_) => true,
        Ok(None) => false,
    }
}

/// A classic BPF program (Documentation/networking/filter.rst) for the kernel to run over each notification: it lets through routes that are taken
/// out of table `local`, those with our protocol number unless the socket `own` does it, and those of addresses unless the kernel does, along with
/// the address.
fn vip_routes_of_others(own: u32) -> [SockFilter; 13] {
    // BPF_LD | BPF_ABS of 4, 2 and 1 bytes, BPF_JMP | BPF_JEQ | BPF_K, BPF_RET | BPF_K (include/uapi/linux/bpf_common.h).
    const WORD: u16 = 0x20;
    const HALF: u16 = 0x28;
    const BYTE: u16 = 0x30;
    const EQUAL: u16 = 0x15;
    const RETURN: u16 = 0x06;
    // `nlmsg_type` and `nlmsg_pid` of struct nlmsghdr; `rtm_table` and `rtm_protocol` of the struct rtmsg behind it.
    const KIND: u32 = 4;
    const SENDER: u32 = 12;
    const ROUTE_TABLE: u32 = 20;
    const ROUTE_PROTOCOL: u32 = 21;
    /// What `nlmsg_pid` is where nobody has asked for it.
    const KERNEL: u32 = 0;
    let load = |width, at| SockFilter::new(width, 0, 0, at);
    let equal = |value, then, otherwise| SockFilter::new(EQUAL, then, otherwise, value);
    let answer = |bytes| SockFilter::new(RETURN, 0, 0, bytes);
    [
        // BPF loads in network byte order what is in the host's.
        load(HALF, KIND),
        equal(u32::from(RTM_DELROUTE.to_be()), 0, 10),
        load(BYTE, ROUTE_TABLE),
        equal(TABLE_LOCAL, 0, 8),
        load(BYTE, ROUTE_PROTOCOL),
        equal(u32::from(PROTOCOL), 3, 0),
        equal(u32::from(BY_KERNEL), 0, 5),
        load(WORD, SENDER),
        equal(KERNEL, 3, 2),
        load(WORD, SENDER),
        equal(own.to_be(), 1, 0),
        answer(u32::MAX),
        answer(0),
    ]
}
