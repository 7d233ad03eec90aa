//! What kube-proxy leaves on a node: what it has for the same purpose is adopted like our own, and this is the rest.

use std::collections::BTreeSet;
use std::net::IpAddr;

use model::{DEVICE, Family, Member, Protocol, State, VirtualServerKey};

use crate::rules::kube_proxy as text;
use crate::{Error, Flavour, Kernel};

/// Which of kube-proxy's modes has left packet rules on a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mode {
    /// None that is known here. nftables has tables of its own, which are in nobody's way.
    None,
    /// IPVS.
    Ipvs,
    /// iptables, perhaps beside IPVS. It translates addresses itself, and its chains have the same names.
    Iptables,
}

/// What kube-proxy has left and nothing here has a use for. What it has under our names (sets of the same layout, VIPs, virtual
/// servers) is not part of it.
#[derive(Debug)]
pub struct Leftovers {
    mode: Mode,
    rules: Vec<(Flavour, Family, String)>,
    sets: Vec<&'static str>,
    node_ports: BTreeSet<(Family, Protocol, u16)>,
    /// Node ports that come with their address.
    frontends: BTreeSet<VirtualServerKey>,
    /// The addresses that node ports can be on.
    addresses: BTreeSet<IpAddr>,
}

/// The sets of kube-proxy that are not ours too, with their names for both families (IPv4, IPv6), and what they tell.
const SETS: [([&str; 2], Content); 8] = [
    (["KUBE-LOAD-BALANCER-SOURCE-IP", "KUBE-6-LOAD-BALANCER-SOURCE-IP"], Content::Nothing),
    (["KUBE-NODE-PORT-TCP", "KUBE-6-NODE-PORT-TCP"], Content::NodePorts(Protocol::Tcp)),
    (["KUBE-NODE-PORT-LOCAL-TCP", "KUBE-6-NODE-PORT-LOCAL-TCP"], Content::Nothing),
    (["KUBE-NODE-PORT-UDP", "KUBE-6-NODE-PORT-UDP"], Content::NodePorts(Protocol::Udp)),
    (["KUBE-NODE-PORT-LOCAL-UDP", "KUBE-6-NODE-PORT-LOCAL-UDP"], Content::Nothing),
    (["KUBE-NODE-PORT-SCTP-HASH", "KUBE-6-NODE-PORT-SCTP-HASH"], Content::Frontends),
    (["KUBE-NODE-PORT-LOCAL-SCTP-HASH", "KUBE-6-NODE-PORT-LOCAL-SCTP-HAS"], Content::Nothing),
    (["KUBE-HEALTH-CHECK-NODE-PORT", "KUBE-6-HEALTH-CHECK-NODE-PORT"], Content::Nothing),
];

#[derive(Clone, Copy)]
enum Content {
    Nothing,
    /// Ports that are served on addresses of the node.
    NodePorts(Protocol),
    /// Frontends as they are.
    Frontends,
}

impl Leftovers {
    /// Which mode has left packet rules.
    #[must_use]
    pub const fn mode(&self) -> Mode {
        self.mode
    }

    /// Whether there is nothing to remove.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty() && self.sets.is_empty()
    }

    /// Whether there is anything to remove of kube-proxy in IPVS mode. Chains alone say nothing, unless they are those of that mode: the kubelet has
    /// some of the same names.
    #[must_use]
    pub fn is_there(&self) -> bool {
        match self.mode {
            Mode::None => !self.sets.is_empty(),
            Mode::Ipvs => !self.is_empty(),
            Mode::Iptables => false,
        }
    }

    /// Whether packet rules of IPVS mode can be removed of which `left` has nothing: they have come since.
    #[must_use]
    pub fn has_more_rules_than(&self, left: &Self) -> bool {
        self.mode == Mode::Ipvs && self.rules.iter().any(|rule| !left.rules.contains(rule))
    }

    /// What removes its packet rules: where, and as what input for the program that restores them.
    pub fn rules(&self) -> impl Iterator<Item = (Flavour, Family, &str)> {
        self.rules.iter().map(|(flavour, family, removal)| (*flavour, *family, removal.as_str()))
    }

    /// The names of the sets that only its packet rules ask.
    #[must_use]
    pub fn sets(&self) -> &[&'static str] {
        &self.sets
    }

    /// Those of the virtual servers in `observed` that serve a node port of kube-proxy, which it lists by their ports alone.
    pub fn node_ports<'a>(&'a self, observed: &'a State) -> impl Iterator<Item = VirtualServerKey> + 'a {
        observed.virtual_servers.keys().copied().filter(|key| match *key {
            VirtualServerKey::Address { address, port, protocol } => {
                let listed = self.node_ports.contains(&(Family::of(address), protocol, port)) && self.addresses.contains(&address);
                listed || self.frontends.contains(key)
            }
            VirtualServerKey::Mark { .. } => false,
        })
    }
}

impl Kernel {
    /// Looks for what kube-proxy has left, in every flavour of iptables there is.
    ///
    /// # Errors
    /// When packet rules, sets or addresses cannot be read in full.
    pub fn find_kube_proxy(&mut self) -> Result<Leftovers, Error> {
        let on_device = |(interface, _): &(String, IpAddr)| interface == DEVICE;
        let addresses = self.vips.interfaces()?.into_iter().filter(|entry| !on_device(entry)).map(|(_, address)| address).collect();
        let mut found = Leftovers {
            mode: Mode::None,
            rules: Vec::new(),
            sets: Vec::new(),
            node_ports: BTreeSet::new(),
            frontends: BTreeSet::new(),
            addresses,
        };
        for flavour in Flavour::installed()? {
            for family in &self.families {
                let saved = flavour.save(*family)?;
                self.pulse.beat();
                let mode = text::mode(&saved);
                found.mode = found.mode.max(mode);
                if mode != Mode::Iptables {
                    found.rules.extend(text::removal(&saved).map(|removal| (flavour, *family, removal)));
                }
            }
        }
        for (names, content) in SETS {
            for (name, family) in names.into_iter().zip(Family::ALL).filter(|(_, family)| self.families.contains(family)) {
                let exists = match content {
                    Content::Nothing => self.ipset.exists(name)?,
                    Content::NodePorts(protocol) => self
                        .ipset
                        .ports(name)?
                        .map(|ports| {
                            found.node_ports.extend(ports.into_iter().map(|port| (family, protocol, port)));
                        })
                        .is_some(),
                    Content::Frontends => self
                        .ipset
                        .members(name)?
                        .map(|members| {
                            found.frontends.extend(members.into_iter().filter_map(Member::frontend));
                        })
                        .is_some(),
                };
                found.sets.extend(exists.then_some(name));
            }
        }
        Ok(found)
    }

    /// Removes what was found, packet rules before the sets that they ask, and takes it out of `found`.
    ///
    /// # Errors
    /// When the kernel refuses; what is in `found` then is left for another time. A set that is [in use](Error::is_in_use) may be let go
    /// a moment later: nf_tables does so some time after the rules that asked it are gone (`nf_tables_trans_destroy_work`,
    /// net/netfilter/nf_tables_api.c).
    pub fn remove_kube_proxy(&mut self, found: &mut Leftovers) -> Result<(), Error> {
        while let Some((flavour, family, removal)) = found.rules.last() {
            flavour.restore(*family, removal)?;
            self.pulse.beat();
            found.rules.pop();
        }
        let mut in_use = None;
        let mut staying = Vec::new();
        while let Some(name) = found.sets.last() {
            match self.ipset.destroy(name) {
                Err(error) if error.is_in_use() => {
                    staying.push(*name);
                    in_use.get_or_insert(error);
                }
                done => done?,
            }
            found.sets.pop();
        }
        found.sets = staying;
        in_use.map_or(Ok(()), Err)
    }
}
