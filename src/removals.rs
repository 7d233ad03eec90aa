//! Follows what others take away of what is ours, where the kernel tells, and has it read again.

use std::thread;
use std::time::Duration;

use anyhow::Context;
use kernel::{Kernel, Part, Removals};
use tracing::warn;

use crate::mailbox::Mailbox;

/// A flush is a burst of notifications. One reading after this long serves them all.
const SETTLE: Duration = Duration::from_millis(50);
/// The wait after a failure of a socket, which is not known to happen.
const RETRY: Duration = Duration::from_secs(1);

/// Follows routes that bind VIPs, and packet rules. The reconciler is told which part may have changed.
///
/// # Errors
/// When the threads cannot be started, or VIPs not be followed. Packet rules of which the kernel tells nothing are left to the audit.
pub(crate) fn follow(kernel: &Kernel, mailbox: &Mailbox) -> anyhow::Result<()> {
    let vip_routes = kernel.follow_vip_routes().context("cannot follow the routes of VIPs")?;
    spawn("routes", vip_routes, Part::Vips, mailbox.clone())?;
    match kernel.follow_packet_rules() {
        Ok(Some(packet_rules)) => spawn("packet-rules", packet_rules, Part::Rules, mailbox.clone())?,
        Ok(None) => {}
        Err(error) => warn!(%error, "cannot follow packet rules; those that others remove come back with the next audit"),
    }
    Ok(())
}

fn spawn(name: &'static str, mut removals: Removals, part: Part, mailbox: Mailbox) -> anyhow::Result<()> {
    let follow = move || {
        loop {
            match removals.wait(SETTLE) {
                Ok(()) => {}
                Err(error) => {
                    warn!(%error, "notifications may be lost");
                    thread::sleep(RETRY);
                }
            }
            mailbox.post(|letter| {
                letter.disturbed.insert(part);
            });
        }
    };
    thread::Builder::new().name(name.to_owned()).spawn(follow).with_context(|| format!("cannot start the thread {name}"))?;
    Ok(())
}
