//! Notifications of links and addresses that come and go.

use std::net::IpAddr;
use std::thread;
use std::time::Duration;

use model::DEVICE;
use neli::consts::socket::NlFamily;
use neli::utils::Groups;
use wire::rtnl::{GROUP_IPV4_ADDRESS, GROUP_IPV6_ADDRESS, GROUP_LINK, RTM_DELLINK, RTM_NEWLINK, parse_link};
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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Notice {
    /// The device that VIPs are bound to has gone or is down, and with it what was bound to it.
    pub device: bool,
}

impl Monitor {
    /// Subscribes. What changes from now on leads to a notice, so addresses read afterwards are never missed out on.
    ///
    /// # Errors
    /// When the sockets cannot be opened.
    pub fn open() -> Result<Self, Error> {
        let groups = Groups::new_groups(&[GROUP_LINK, GROUP_IPV4_ADDRESS, GROUP_IPV6_ADDRESS]);
        let notifications = Socket::subscribed(NlFamily::Route, "notification", BUFFER, groups)?;
        Ok(Self { notifications, vips: Vips::open()? })
    }

    /// Waits until something happens, then for `settle`, and takes in whatever else has happened by then.
    ///
    /// # Errors
    /// When notifications were lost. What they would have said is for a reading to find out.
    pub fn wait(&mut self, settle: Duration) -> Result<Notice, Error> {
        let mut notice = Notice::default();
        self.notifications.wait_for_answers()?;
        read(self.notifications.receive()?, &mut notice)?;
        thread::sleep(settle);
        self.notifications.do_not_wait()?;
        while let Some(received) = self.notifications.receive_if_any()? {
            read(received, &mut notice)?;
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
}

fn read(received: &[u8], notice: &mut Notice) -> Result<(), Error> {
    for message in Messages::new(received) {
        let message = message.map_err(|error| Error::malformed("a notification", error))?;
        let Body::Data(payload) = message.body else { continue };
        if matches!(message.kind, RTM_NEWLINK | RTM_DELLINK) {
            let link = parse_link(payload).map_err(|error| Error::malformed("a notification", error))?;
            notice.device |= link.name == DEVICE && (message.kind == RTM_DELLINK || !link.is_up());
        }
    }
    Ok(())
}
