//! Which observed virtual servers are ours to touch.

use ipnetwork::IpNetwork;
use model::{Family, Member, Role, Set, State, Via, Vip, VirtualServerKey};

/// The one predicate over observed virtual servers.
///
/// What makes a virtual server ours is in the kernel itself, not in a file: before it is made, its frontend is put into one of our
/// sets, and it is taken out only after the virtual server is gone. So a process that dies at any moment leaves a trace that the next
/// one finds. An address that is bound to our device and is about to lose that binding takes its virtual servers along, because
/// nothing could reach them any more.
#[derive(Clone, Copy, Debug)]
pub enum Ownership<'a> {
    /// Both states are restricted to keys that desired objects claim or claimed, so every virtual server in them is ours.
    Scope,
    /// The observed state is a whole node's, and may hold virtual servers of other tools.
    Node {
        /// Networks in which no virtual server is ever removed, whoever made it.
        excluded: &'a [IpNetwork],
    },
    /// The observed state is a whole node's, and nothing else than what our sets list is to go: not even a virtual server of another
    /// tool on one of our VIPs.
    Listed {
        /// Networks in which no virtual server is ever removed, whoever made it.
        excluded: &'a [IpNetwork],
    },
}

impl Ownership<'_> {
    /// Whether the virtual server `key`, which `observed` holds and `desired` does not, may be removed.
    #[must_use]
    pub fn covers(&self, key: &VirtualServerKey, desired: &State, observed: &State) -> bool {
        let (Self::Node { excluded } | Self::Listed { excluded }) = self else { return true };
        let is_excluded = |address| excluded.iter().any(|network| network.contains(address));
        let (address, port, protocol) = match *key {
            VirtualServerKey::Address { address, port, protocol } => (address, port, protocol),
            VirtualServerKey::Mark { family, mark: ours } => {
                let set = observed.sets.get(&Set::new(Role::InCluster, family));
                let leads_here = |member: &Member| matches!(member, Member::IpPortMark(address, _, _, mark) if *mark == ours && !is_excluded(*address));
                return set.is_some_and(|set| set.members.iter().any(leads_here));
            }
        };
        if is_excluded(address) {
            return false;
        }
        let family = Family::of(address);
        let frontend = Member::IpPort(address, protocol, port);
        let listed = [Role::ClusterIp, Role::ExternalIp, Role::ExternalIpLocal, Role::LoadBalancer, Role::NodePort]
            .into_iter()
            .filter_map(|role| observed.sets.get(&Set::new(role, family)))
            .any(|set| set.members.contains(&frontend));
        let bound =
            |state: &State| [Via::Route, Via::Address].into_iter().any(|via| state.vips.contains_key(&Vip::new(address, via)));
        listed || (matches!(self, Self::Node { .. }) && bound(observed) && !bound(desired))
    }
}
