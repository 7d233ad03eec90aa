//! This crate turns a [`plan::Plan`] into the kernel's state, and the kernel's state into a [`model::State`].
//!
//! [`Kernel`] is the one thing that needs privileges: it owns the netlink sockets and runs the two iptables programs. Everything in it
//! blocks, and none of it waits: netlink does its work inside the system call. `plan` says what to do, `wire` knows the bytes, and
//! the agent around it decides when. A [`Monitor`] follows the node's addresses, [`Removals`] what others take away, and [`sysctl`] has
//! the settings that IPVS needs.
//!
//! Three rules hold throughout. What could not be read is an error, never an empty result. What the kernel refuses is data in a
//! [`Report`], and does not stop the rest. And what is removed is what a plan names, nothing else.
//!
//! ```no_run
//! use kernel::{Kernel, supported_families};
//! use plan::{Ownership, plan};
//!
//! let mut kernel = Kernel::open(&supported_families())?;
//! let observed = kernel.observe()?;
//! let nothing = plan(&observed, &observed, &Ownership::Node { excluded: &[] });
//! assert!(kernel.apply(&nothing).failures.is_empty());
//! # Ok::<(), kernel::Error>(())
//! ```

mod apply;
mod connection_list;
mod connections;
mod conntrack;
mod error;
mod ipset;
mod ipvs;
mod kube_proxy;
mod meter;
pub mod modules;
mod monitor;
mod observe;
mod pipeline;
mod preflight;
mod processor;
mod program;
mod pulse;
mod removals;
mod report;
mod rules;
mod socket;
pub mod sysctl;
mod vips;

use std::collections::{BTreeMap, BTreeSet};

use model::{Family, Flow, Protocol, RealServerCounters, RealServerKey, Scheduler, Set, SetState, State, VirtualServerKey};

pub use connection_list::{Connection, Connections};
pub use connections::HalfClosed;
pub use conntrack::Conntrack;
pub use error::Error;
pub use ipset::Ipset;
pub use ipvs::{Listing, RealListing, RealServerTraffic, Table};
pub use kube_proxy::{Leftovers, Mode};
pub use meter::Meter;
pub use monitor::{Monitor, Notice};
pub use observe::Part;
pub use preflight::{Capability, known_families, supported_families};
pub use processor::processor_time;
pub use pulse::Pulse;
pub use removals::Removals;
pub use report::{Failure, Report};
pub use rules::{Flavour, Inventory};
pub use socket::Interference;
pub use vips::{Bound, Vips};
pub use wire::ipvs::Timeouts;
pub use wire::rtnl::Link;

use ipvs::Ipvs;
use socket::Socket;

/// The kernel of this network namespace: its IPVS table, ipsets, VIPs, packet rules and flows.
pub struct Kernel {
    families: BTreeSet<Family>,
    flavour: Flavour,
    ipvs: Ipvs,
    ipset: Ipset,
    vips: Vips,
    conntrack: Conntrack,
    pulse: Pulse,
}

impl Kernel {
    /// Opens the kernel for `families`. Changes nothing, apart from having the IPVS module loaded.
    ///
    /// # Errors
    /// When the process lacks `CAP_NET_ADMIN` or `CAP_NET_RAW`, or the node lacks IPVS, ipset or iptables; the error says which, and the remedy.
    pub fn open(families: &BTreeSet<Family>) -> Result<Self, Error> {
        Capability::NetAdmin.check()?;
        Capability::NetRaw.check()?;
        let mut kernel = Self {
            ipvs: Ipvs::open()?,
            ipset: Ipset::open()?,
            vips: Vips::open()?,
            conntrack: Conntrack::open()?,
            flavour: Flavour::detect()?,
            families: families.clone(),
            pulse: Pulse::default(),
        };
        let pulse = kernel.pulse.clone();
        kernel.sockets().for_each(|socket| socket.beat(pulse.clone()));
        Ok(kernel)
    }

    /// When the kernel last did something that it was asked for. Whoever uses it may add beats for what else there is to do.
    #[must_use]
    pub const fn pulse(&self) -> &Pulse {
        &self.pulse
    }

    fn sockets(&mut self) -> impl Iterator<Item = &mut Socket> {
        let Self { ipvs, ipset, vips, conntrack, .. } = self;
        ipvs.sockets().into_iter().chain(ipset.sockets()).chain(vips.sockets()).chain(conntrack.sockets())
    }

    /// Has all that is said to the kernel from now on, and all it answers, go by somebody who spoils some of it; each socket has one of
    /// its own. For tests.
    pub fn interfere(&mut self, mut with: impl FnMut() -> Box<dyn Interference>) {
        self.sockets().for_each(|socket| socket.interfere(with()));
    }

    /// Which iptables the packet rules are in.
    #[must_use]
    pub const fn flavour(&self) -> Flavour {
        self.flavour
    }

    /// Whether MASQUERADE takes `--random-fully` on this node. Rules of ours that are there already tell; only where there are none is
    /// it tried, so that a restart writes nothing.
    ///
    /// # Errors
    /// When packet rules cannot be read, or not be installed at all.
    pub fn has_random_fully(&self) -> Result<bool, Error> {
        self.random_fully_or(Flavour::probe_random_fully)
    }

    /// The same, without trying anything: where there are no rules of ours, what the program says of itself has to do.
    ///
    /// # Errors
    /// When packet rules cannot be read, or a program does not say anything.
    pub fn claims_random_fully(&self) -> Result<bool, Error> {
        self.random_fully_or(Flavour::claims_random_fully)
    }

    fn random_fully_or(&self, otherwise: impl Fn(Flavour, Family) -> Result<bool, Error>) -> Result<bool, Error> {
        for family in &self.families {
            let installed = self.flavour.observe(*family)?;
            let mut masquerade = installed.chains.values().flatten().filter(|rule| rule.contains("-j MASQUERADE")).peekable();
            let supported = match masquerade.peek() {
                Some(_) => masquerade.any(|rule| rule.contains("--random-fully")),
                None => otherwise(self.flavour, *family)?,
            };
            if !supported {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Whether IPVS has `scheduler`. If it is a module that is not loaded, the kernel loads it.
    ///
    /// # Errors
    /// When the kernel does not answer.
    pub fn offers(&mut self, scheduler: Scheduler) -> Result<bool, Error> {
        self.ipvs.offers(scheduler)
    }

    /// Has idle connections kept as `desired` says, where 0 is to leave it as it is. Returns what the kernel had where that was not so.
    ///
    /// # Errors
    /// When the time-outs cannot be read, or the kernel refuses.
    pub fn keep_timeouts(&mut self, desired: Timeouts) -> Result<Option<Timeouts>, Error> {
        let Some((held, chosen)) = self.differing_timeouts(desired)? else { return Ok(None) };
        self.ipvs.set_timeouts(chosen)?;
        Ok(Some(held))
    }

    /// What the kernel has, and what it is to have, where it does not keep idle connections as `desired` says.
    ///
    /// # Errors
    /// When the time-outs cannot be read.
    pub fn differing_timeouts(&mut self, desired: Timeouts) -> Result<Option<(Timeouts, Timeouts)>, Error> {
        let held = self.ipvs.timeouts()?;
        // A kernel without one of the protocols has 0 for it, whatever it is given.
        let choose = |desired: u32, held: u32| if desired == 0 || held == 0 { held } else { desired };
        let chosen = Timeouts {
            tcp: choose(desired.tcp, held.tcp),
            tcp_fin: choose(desired.tcp_fin, held.tcp_fin),
            udp: choose(desired.udp, held.udp),
        };
        Ok((chosen != held).then_some((held, chosen)))
    }

    /// The connections of each real server of the virtual server `key`. There are none when there is no such virtual server.
    ///
    /// # Errors
    /// When they cannot be read in full.
    pub fn connections(&mut self, key: &VirtualServerKey) -> Result<BTreeMap<RealServerKey, RealServerCounters>, Error> {
        self.ipvs.connections(key)
    }

    /// Which frontends and real servers have connections that one side has closed and the other has not. To read that costs what there are
    /// of connections on the node.
    ///
    /// # Errors
    /// When they cannot be read in full.
    pub fn half_closed(&self) -> Result<HalfClosed, Error> {
        connections::half_closed()
    }

    /// The flows of `family` and `protocol` for which `wanted` holds.
    ///
    /// # Errors
    /// As [`Conntrack::flows`].
    pub fn flows(&mut self, family: Family, protocol: Protocol, wanted: impl Fn(&Flow) -> bool) -> Result<Vec<Flow>, Error> {
        self.conntrack.flows(family, protocol, wanted)
    }

    /// Has the kernel forget the UDP flows of `family` for which `stale` holds, and returns how many there were.
    ///
    /// # Errors
    /// As [`Conntrack::flush_udp`].
    pub fn flush_udp(&mut self, family: Family, stale: impl Fn(&Flow) -> bool) -> Result<usize, Error> {
        self.conntrack.flush_udp(family, stale)
    }

    /// Removes what a process has left that was killed while it made a set larger.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn remove_remains(&mut self) -> Result<(), Error> {
        self.ipset.destroy(ipset::TEMPORARY)
    }

    /// Removes the device of the VIPs, unless something is on it that is not ours. Returns whether it was there and is gone.
    ///
    /// # Errors
    /// As [`Vips::remove_device`].
    pub fn remove_device(&mut self) -> Result<bool, Error> {
        self.vips.remove_device()
    }

    /// Everything there is: packet rules, sets and VIPs that are ours, and all virtual servers.
    ///
    /// # Errors
    /// When any of it cannot be read in full. Unknown is not absent: there is no partial observation.
    pub fn observe(&mut self) -> Result<State, Error> {
        let mut state = State::default();
        for part in Part::ALL {
            self.observe_part(part, &mut state)?;
        }
        Ok(state)
    }

    /// Follows routes that bind VIPs and that others take away.
    ///
    /// # Errors
    /// When there is no socket to be had.
    pub fn follow_vip_routes(&self) -> Result<Removals, Error> {
        Removals::of_vip_routes(self.vips.port()?)
    }

    /// Follows packet rules that others take away; `None` where the kernel does not tell, which it does of nf_tables alone.
    ///
    /// # Errors
    /// When there is no socket to be had.
    pub fn follow_packet_rules(&self) -> Result<Option<Removals>, Error> {
        match self.flavour {
            Flavour::Nft | Flavour::Default => Removals::of_packet_rules().map(Some),
            Flavour::Legacy => Ok(None),
        }
    }
}

/// Reads the IPVS table with its counters, as `ipvsadm -Ln` does.
///
/// # Errors
/// When the process lacks `CAP_NET_ADMIN`, or the kernel has no IPVS, or the table cannot be read in full.
pub fn read_table() -> Result<Table, Error> {
    Capability::NetAdmin.check()?;
    Ipvs::open()?.table()
}

/// Reads how long idle connections are kept, as `ipvsadm -L --timeout` does.
///
/// # Errors
/// When the process lacks `CAP_NET_ADMIN`, or the kernel has no IPVS.
pub fn read_timeouts() -> Result<Timeouts, Error> {
    Capability::NetAdmin.check()?;
    Ipvs::open()?.timeouts()
}

/// Reads the sets that are ours: what they list is ours, whoever runs.
///
/// # Errors
/// When the process lacks `CAP_NET_ADMIN`, the kernel has no ipset, or the sets cannot be read in full.
pub fn read_sets() -> Result<BTreeMap<Set, SetState>, Error> {
    Capability::NetAdmin.check()?;
    Ipset::open()?.observe()
}
