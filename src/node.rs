//! The node this process runs on: its name, and the addresses of its interfaces as they change.

use std::collections::BTreeSet;
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

/// Follows the addresses of this node's interfaces, and with them its gateways. The receiver has those of now, and is told when they change; the reconciler is told
/// when the device with the VIPs is touched.
///
/// # Errors
/// When the addresses cannot be read, or not be followed.
pub(crate) fn follow(mailbox: Mailbox) -> anyhow::Result<watch::Receiver<Network>> {
    let mut monitor = Monitor::open().context("cannot follow this node's addresses")?;
    let network = read(&mut monitor).context("cannot read this node's addresses")?;
    let (sender, receiver) = watch::channel(network);
    let follow = move || {
        loop {
            match monitor.wait(SETTLE) {
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
            match read(&mut monitor) {
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
            if sender.is_closed() {
                return;
            }
        }
    };
    thread::Builder::new().name("addresses".to_owned()).spawn(follow).context("cannot start the thread that follows addresses")?;
    Ok(receiver)
}

/// Where the node is in its network now.
///
/// # Errors
/// When its addresses cannot be read.
pub(crate) fn network() -> anyhow::Result<Network> {
    Monitor::open().and_then(|mut monitor| read(&mut monitor)).context("cannot read this node's addresses")
}

fn read(monitor: &mut Monitor) -> Result<Network, kernel::Error> {
    let mut addresses: Vec<_> =
        monitor.addresses()?.into_iter().map(|(interface, address)| InterfaceAddress::new(&interface, address)).collect();
    addresses.sort_unstable();
    Ok(Network { addresses, gateways: monitor.gateways()? })
}
