//! Notifications of links and addresses that come and go.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::thread;
use std::time::Duration;

use model::DEVICE;
use neli::consts::socket::NlFamily;
use wire::rtnl::{
    GROUP_IPV4_ADDRESS, GROUP_IPV6_ADDRESS, GROUP_LINK, RTM_DELADDR, RTM_DELLINK, RTM_NEWLINK, parse_address, parse_link,
};
use wire::{Body, Messages};

use crate::Error;
use crate::socket::Socket;
use crate::vips::Vips;

/// More than any notification of a link takes.
const BUFFER: usize = 32 * 1024;

/// Follows the addresses of this network namespace's interfaces.
pub struct Monitor {
    notifications: Socket,
    vips: Vips,
}

/// What happened. A notice says that something may be different, never what is: that is for a reading to say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Notice {
    /// The device that VIPs are bound to has gone, is down or has lost its last IPv4 address, and with it what was bound to it.
    pub device: bool,
    /// Addresses that this device has lost, whoever took them away.
    pub unbound: BTreeSet<IpAddr>,
}

impl Monitor {
    /// Subscribes. What changes from now on leads to a notice, so addresses read afterwards are never missed out on.
    ///
    /// # Errors
    /// When the sockets cannot be opened.
    pub fn open() -> Result<Self, Error> {
        const GROUPS: &[u32] = &[GROUP_LINK, GROUP_IPV4_ADDRESS, GROUP_IPV6_ADDRESS];
        let notifications = Socket::subscribed(NlFamily::Route, "notification", BUFFER, GROUPS)?;
        Ok(Self { notifications, vips: Vips::open()? })
    }

    /// Waits until something happens, then for `settle`, and takes in whatever else has happened by then.
    ///
    /// # Errors
    /// When notifications were lost. What they would have said is for a reading to find out.
    pub fn wait(&mut self, settle: Duration) -> Result<Notice, Error> {
        let mut seen = Seen::default();
        self.notifications.wait_for_answers()?;
        seen.read(self.notifications.receive()?)?;
        thread::sleep(settle);
        self.notifications.do_not_wait()?;
        while let Some(received) = self.notifications.receive_if_any()? {
            seen.read(received)?;
        }
        let mut notice = Notice { device: seen.device, unbound: BTreeSet::new() };
        if !seen.removed.is_empty()
            && let Some(device) = self.vips.device_index()?
        {
            let of_device = seen.removed.into_iter().filter(|(link, _)| *link == device);
            notice.unbound = of_device.map(|(_, address)| address).collect();
            // Linux takes all IPv4 routes of a device along with its last IPv4 address (`fib_disable_ip`).
            notice.device |= notice.unbound.iter().any(IpAddr::is_ipv4) && self.vips.is_bare(device)?;
        }
        Ok(notice)
    }

    /// The addresses of all interfaces as they are now, each with its interface's name. IPv6 addresses that the node cannot speak from
    /// yet are left out; there will be a notice when it can.
    ///
    /// # Errors
    /// When they cannot be read in full.
    pub fn addresses(&mut self) -> Result<Vec<(String, IpAddr)>, Error> {
        self.vips.interfaces()
    }

    /// The gateways of the node's default routes as they are now. There is no notice of routes: VIPs are routes too, and a node has
    /// thousands of those. Whatever changes a default route mostly changes an address along with it.
    ///
    /// # Errors
    /// When they cannot be read in full.
    pub fn gateways(&mut self) -> Result<BTreeSet<IpAddr>, Error> {
        self.vips.gateways()
    }
}

/// What notifications have said.
#[derive(Default)]
struct Seen {
    /// Our device has gone or is down.
    device: bool,
    /// The addresses that links have lost.
    removed: BTreeSet<(u32, IpAddr)>,
}

impl Seen {
    fn read(&mut self, received: &[u8]) -> Result<(), Error> {
        let malformed = |error| Error::malformed("a notification", error);
        for message in Messages::new(received) {
            let message = message.map_err(malformed)?;
            let Body::Data(payload) = message.body else { continue };
            match message.kind {
                RTM_NEWLINK | RTM_DELLINK => {
                    let link = parse_link(payload).map_err(malformed)?;
                    self.device |= link.name == DEVICE && (message.kind == RTM_DELLINK || !link.is_up());
                }
                RTM_DELADDR => {
                    let address = parse_address(payload).map_err(malformed)?.known();
                    self.removed.extend(address.map(|address| (address.link, address.address)));
                }
                _ => {}
            }
        }
        Ok(())
    }
}
