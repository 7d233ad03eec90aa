//! The node this process runs on: its name, and the addresses of its interfaces as they change.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::net::IpAddr;
use std::thread;
use std::time::Duration;

use anyhow::Context;
use desired::InterfaceAddress;
use kernel::{Monitor, Notice, Part};
use tokio::sync::watch;
use tracing::{debug, error, warn};

use crate::exit::{Ending, Exit};
use crate::mailbox::Mailbox;

/// Changes of interfaces come in bursts: a pod that starts is a dozen of them. One reading after this long serves them all.
const SETTLE: Duration = Duration::from_millis(50);

/// Where the node is in its network.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Network {
    /// The addresses of its interfaces.
    pub(crate) addresses: Vec<InterfaceAddress>,
    /// Its default gateways.
    pub(crate) gateways: BTreeSet<IpAddr>,
}

/// The name of this node's Node object: `given`, or the host name. In lower case, as the kubelet registers it.
///
/// # Errors
/// When there is no name.
pub(crate) fn name(given: Option<&str>) -> anyhow::Result<String> {
    let name = match given {
        Some(name) => name.to_owned(),
        None => fs::read_to_string("/proc/sys/kernel/hostname").context("cannot read the host name")?,
    };
    let name = name.trim().to_lowercase();
    if name.is_empty() {
        return Err(Ending::error(Exit::Usage, "this node has no name: give --node-name or set NODE_NAME"));
    }
    Ok(name)
}

/// What tells of the node's interfaces.
trait Interfaces {
    type Error: fmt::Display;

    /// Waits until something happens to them.
    fn wait(&mut self) -> Result<Notice, Self::Error>;

    /// Where the node is in its network now.
    fn read(&mut self) -> Result<Network, Self::Error>;
}

impl Interfaces for Monitor {
    type Error = kernel::Error;

    fn wait(&mut self) -> Result<Notice, kernel::Error> {
        Self::wait(self, SETTLE)
    }

    fn read(&mut self) -> Result<Network, kernel::Error> {
        let mut addresses: Vec<_> =
            self.addresses()?.into_iter().map(|(interface, address)| InterfaceAddress::new(&interface, address)).collect();
        addresses.sort_unstable();
        Ok(Network { addresses, gateways: self.gateways()? })
    }
}

/// Follows the addresses of this node's interfaces, and with them its gateways. The receiver has those of now, and is told when they change; the reconciler is told
/// when the device with the VIPs is touched.
///
/// # Errors
/// When the addresses cannot be read, or not be followed.
pub(crate) fn follow(mailbox: Mailbox) -> anyhow::Result<watch::Receiver<Network>> {
    let mut monitor = Monitor::open().context("cannot follow this node's addresses")?;
    let network = monitor.read().context("cannot read this node's addresses")?;
    let (sender, receiver) = watch::channel(network);
    let follow = move || keep_up(monitor, &sender, &mailbox);
    thread::Builder::new().name("addresses".to_owned()).spawn(follow).context("cannot start the thread that follows addresses")?;
    Ok(receiver)
}

/// Tells what `interfaces` have, whenever it changes, for as long as somebody wants to know.
fn keep_up(mut interfaces: impl Interfaces, sender: &watch::Sender<Network>, mailbox: &Mailbox) {
    while !sender.is_closed() {
        match interfaces.wait() {
            Ok(notice) => {
                if notice != Notice::default() {
                    mailbox.post(|letter| {
                        letter.disturbed.extend(notice.device.then_some(Part::Vips));
                        letter.unbound.extend(notice.unbound);
                    });
                }
            }
            Err(error) => {
                warn!(%error, "notifications of address changes were lost; reading all addresses again");
                thread::sleep(SETTLE);
            }
        }
        match interfaces.read() {
            Ok(network) => {
                let changed = sender.send_if_modified(|current| {
                    let changed = *current != network;
                    *current = network;
                    changed
                });
                debug!(changed, "read the addresses of all interfaces");
            }
            // Unknown is not absent: the last known addresses stay.
            Err(error) => error!(%error, "cannot read this node's addresses; keeping those known before"),
        }
    }
}

/// Where the node is in its network now.
///
/// # Errors
/// When its addresses cannot be read.
pub(crate) fn network() -> anyhow::Result<Network> {
    Monitor::open().and_then(|mut monitor| monitor.read()).context("cannot read this node's addresses")
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::sync::mpsc;

    use super::*;

    /// What an interface has, or that it cannot be read.
    type Reading = Result<Network, &'static str>;

    /// Interfaces of which readings come out as they are told to, and what was known before each.
    struct Told {
        receiver: Option<watch::Receiver<Network>>,
        readings: VecDeque<(Result<Notice, &'static str>, Reading)>,
        known: mpsc::Sender<(bool, Network)>,
    }

    impl Interfaces for Told {
        type Error = &'static str;

        fn wait(&mut self) -> Result<Notice, &'static str> {
            let Some(receiver) = &mut self.receiver else { panic!("it goes on though nobody wants to know") };
            let changed = receiver.has_changed().unwrap();
            self.known.send((changed, receiver.borrow_and_update().clone())).unwrap();
            self.readings.front().map_or(Ok(Notice::default()), |(notice, _)| notice.clone())
        }

        fn read(&mut self) -> Reading {
            match self.readings.pop_front() {
                Some((_, reading)) => reading,
                None => {
                    self.receiver = None;
                    Err("the end")
                }
            }
        }
    }

    fn at(address: &str) -> Network {
        let gateways = [address.parse().unwrap()].into();
        Network { addresses: vec![InterfaceAddress::new("eth0", address.parse().unwrap())], gateways }
    }

    #[test]
    fn f2_addresses_that_cannot_be_read_stay_as_they_were() {
        let (first, second) = (at("192.0.2.1"), at("192.0.2.2"));
        let (sender, receiver) = watch::channel(first.clone());
        let (known, knew) = mpsc::channel();
        let quiet = || Ok(Notice::default());
        let readings = [
            (quiet(), Err("no answer")),
            (Err("overrun"), Err("no answer")),
            (quiet(), Ok(second.clone())),
            (quiet(), Err("no answer")),
            (Err("overrun"), Ok(second.clone())),
            (quiet(), Ok(Network::default())),
        ];
        keep_up(Told { receiver: Some(receiver), readings: readings.into(), known }, &sender, &Mailbox::default());
        let knew: Vec<_> = knew.iter().collect();
        let nothing = Network::default();
        let expected = [
            (false, &first),
            (false, &first),
            (false, &first),
            (true, &second),
            (false, &second),
            (false, &second),
            // That there are none can be read as well.
            (true, &nothing),
        ];
        assert_eq!(knew.iter().map(|(changed, network)| (*changed, network)).collect::<Vec<_>>(), expected);
    }
}
