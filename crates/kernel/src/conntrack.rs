//! The table of connection tracking.

use model::{Family, Flow, Protocol};
use neli::consts::socket::NlFamily;
use wire::conntrack::{Entry, delete_entry, get_entries, parse_entry};

use crate::Error;
use crate::pipeline::{Outcome, Pipeline};
use crate::socket::{Refusal, Socket};

/// The connection tracking of this network namespace. A [`Kernel`](crate::Kernel) has one; by itself it does without IPVS.
pub struct Conntrack {
    socket: Socket,
}

const EINVAL: i32 = 22;

impl Conntrack {
    /// Opens a socket.
    ///
    /// # Errors
    /// When that fails.
    pub fn open() -> Result<Self, Error> {
        Ok(Self { socket: Socket::for_requests(NlFamily::Netfilter, "conntrack")? })
    }

    pub(crate) const fn sockets(&mut self) -> [&mut Socket; 1] {
        [&mut self.socket]
    }

    /// The flows of `family` and `protocol` for which `wanted` holds.
    ///
    /// # Errors
    /// When they cannot be listed in full, which a kernel without this interface cannot at all (`is_missing_module`).
    pub fn flows(&mut self, family: Family, protocol: Protocol, wanted: impl Fn(&Flow) -> bool) -> Result<Vec<Flow>, Error> {
        Ok(self.entries(family, protocol, wanted)?.into_iter().map(|entry| entry.flow).collect())
    }

    /// Has the kernel forget the UDP flows of `family` for which `stale` holds, and returns how many there were. The next packet of such
    /// a flow begins it anew.
    ///
    /// # Errors
    /// When the flows cannot be listed in full, which a kernel without this interface cannot at all (`is_missing_module`); then nothing is
    /// removed. Or when one could not be removed; then the others are.
    pub fn flush_udp(&mut self, family: Family, stale: impl Fn(&Flow) -> bool) -> Result<usize, Error> {
        let entries = self.entries(family, Protocol::Udp, stale)?;
        let mut pipeline = Pipeline::new(&mut self.socket, refused);
        for entry in &entries {
            pipeline.push((), |batch, seq| delete_entry(batch, seq, entry));
        }
        let Outcome { failures, broken } = pipeline.finish();
        if let Some(error) = broken {
            return Err(error);
        }
        let mut removed = entries.len();
        let mut failed = None;
        for ((), error) in failures {
            removed -= 1;
            // One that is gone has timed out, or the kernel has dropped it together with its real server.
            if !error.is_gone() {
                failed.get_or_insert(error);
            }
        }
        failed.map_or(Ok(removed), Err)
    }

    fn entries(&mut self, family: Family, protocol: Protocol, wanted: impl Fn(&Flow) -> bool) -> Result<Vec<Entry>, Error> {
        let entries = self.socket.dump(
            "listing flows",
            |batch, seq| get_entries(batch, seq, family, protocol),
            |entries: &mut Vec<Entry>, _, payload| {
                let entry = parse_entry(payload)?.known();
                // Kernels before 5.8 list every protocol.
                entries.extend(entry.filter(|entry| entry.flow.protocol == protocol && wanted(&entry.flow)));
                Ok(())
            },
        );
        match entries {
            // What nfnetlink answers when it has no such subsystem.
            Err(error) if error.errno() == Some(EINVAL) => Err(Error::missing_feature(
                "connection tracking",
                "this kernel cannot list it: load the module with `modprobe nf_conntrack_netlink`, or install a kernel built with CONFIG_NF_CT_NETLINK",
            )),
            entries => entries,
        }
    }
}

fn refused(refusal: &Refusal) -> Error {
    Error::refused("connection tracking", refusal.errno, refusal.text.as_deref())
}
