//! Carrying a plan out, stage by stage.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Instant;

use model::{Family, Member, VirtualServerKey};
use plan::{Plan, Stage, Step};

use crate::{Error, Kernel, Report};

/// What failed so far, as far as later steps depend on it.
#[derive(Default)]
struct Setbacks {
    /// Families whose sets or packet rules are not as they should be.
    rules: BTreeSet<Family>,
    /// Virtual servers that are not as they should be.
    servers: BTreeSet<VirtualServerKey>,
    /// Virtual servers that are to be restricted, and may not be.
    unrestricted: BTreeSet<VirtualServerKey>,
    /// Addresses that are not bound as they should be.
    vips: BTreeSet<IpAddr>,
    /// It is not known what a socket that failed has done.
    unknown: bool,
}

impl Kernel {
    /// Carries `plan` out. A step that fails does not stop the others, with one exception: nothing is taken away, and no VIP is bound,
    /// where that which was to be there before it is not.
    pub fn apply(&mut self, plan: &Plan) -> Report {
        let mut report = Report::default();
        let mut setbacks = Setbacks::default();
        let mut index = 0;
        for (stage, steps) in plan.stages() {
            let mut due = Vec::with_capacity(steps.len());
            for step in steps {
                if setbacks.forbid(stage, step) {
                    report.leave(index);
                } else {
                    due.push((index, step));
                }
                index += 1;
            }
            let failed_before = report.failures.len();
            self.apply_stage(stage, &due, &mut report);
            for failure in report.failures.iter().skip(failed_before) {
                setbacks.note(&failure.step, &failure.error);
            }
        }
        report.in_kernel += self.ipset.take_time_in_kernel() + self.ipvs.take_time_in_kernel() + self.vips.take_time_in_kernel();
        report
    }

    fn apply_stage(&mut self, stage: Stage, steps: &[(usize, &Step)], report: &mut Report) {
        match stage {
            Stage::Sets
            | Stage::Members
            | Stage::Restrictions
            | Stage::LiftRestrictions
            | Stage::RemoveMembers
            | Stage::DestroySets => self.ipset.apply(steps, report),
            Stage::VirtualServers | Stage::RealServers | Stage::RemoveVirtualServers => self.ipvs.apply(steps, report),
            Stage::Vips | Stage::UnbindVips => self.vips.apply(steps, report),
            Stage::Rules | Stage::RemoveRules => {
                let begun = Instant::now();
                for (index, step) in steps {
                    let Step::ChangeRules(family, change) = step else { continue };
                    if let Err(error) = self.flavour.apply(*family, change) {
                        report.fail(*index, (*step).clone(), error);
                    }
                    self.pulse.beat();
                }
                report.in_kernel += begun.elapsed();
            }
        }
    }
}

impl Setbacks {
    fn note(&mut self, step: &Step, error: &Error) {
        match step {
            Step::AddMembers(set, members) | Step::GrowSet { set, members, .. } if set.role.is_restriction() => {
                let key = |member: &Member| match *member {
                    Member::IpPort(address, protocol, port) => Some(VirtualServerKey::address(address, protocol, port)),
                    _ => None,
                };
                self.unrestricted.extend(members.iter().filter_map(key));
            }
            Step::CreateSet { set, .. } | Step::GrowSet { set, .. } => self.rules.extend([set.family]),
            Step::ChangeRules(family, _) => self.rules.extend([*family]),
            Step::BindVip { vip, .. } => self.vips.extend([vip.address]),
            _ => self.servers.extend(step.virtual_server()),
        }
        self.unknown |= error.is_breakdown();
    }

    /// Whether `step` removes a member that names a virtual server which is not as it should be.
    fn names_one_that_stays(&self, step: &Step) -> bool {
        let Step::RemoveMembers(set, members) = step else { return false };
        let key = |member: &Member| match *member {
            Member::IpPort(address, protocol, port) => Some(VirtualServerKey::address(address, protocol, port)),
            Member::IpPortMark(.., mark) => Some(VirtualServerKey::Mark { family: set.family, mark }),
            _ => None,
        };
        !self.servers.is_empty() && members.iter().filter_map(key).any(|key| self.servers.contains(&key))
    }

    /// Whether a step must not be taken after what failed.
    fn forbid(&self, stage: Stage, step: &Step) -> bool {
        match stage {
            Stage::Sets | Stage::Rules | Stage::Members | Stage::Restrictions => false,
            // It would serve those whom it is not for.
            Stage::VirtualServers => {
                matches!(step, Step::AddVirtualServer { key, .. } if self.unrestricted.contains(key))
            }
            // Traffic to it would go out with the wrong source address.
            Stage::Vips => match step {
                Step::BindVip { vip, .. } => self.rules.contains(&vip.family()),
                _ => false,
            },
            // Those that were to take over may not be there.
            Stage::RealServers => self.unknown || step.virtual_server().is_some_and(|key| self.servers.contains(&key)),
            // It may be bound by other means until then, and is better off so than not at all.
            Stage::UnbindVips => self.unknown || matches!(step, Step::UnbindVip(vip) if self.vips.contains(&vip.address)),
            // A virtual server is known to be ours by the set that names it. One that could not be removed would be taken for somebody else's.
            Stage::RemoveMembers | Stage::LiftRestrictions => self.unknown || self.names_one_that_stays(step),
            Stage::RemoveVirtualServers | Stage::RemoveRules | Stage::DestroySets => self.unknown,
        }
    }
}

/// The step with this place in the plan, among some of a plan's steps in order.
pub(crate) fn step_at<'a>(steps: &[(usize, &'a Step)], index: usize) -> Option<&'a Step> {
    let at = steps.binary_search_by_key(&index, |(at, _)| *at).ok()?;
    steps.get(at).map(|(_, step)| *step)
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use model::{Protocol, Role, Scheduler, Set, VirtualServerConfig};

    use super::*;

    #[test]
    fn k1_what_names_a_virtual_server_that_could_not_be_removed_stays() {
        let address: IpAddr = "10.96.0.10".parse().unwrap();
        let key = VirtualServerKey::address(address, Protocol::Tcp, 80);
        let mark = std::num::NonZeroU32::new(0x4001).unwrap();
        let marked = VirtualServerKey::Mark { family: Family::V4, mark };
        let by_port = |port| {
            let members = [Member::IpPort(address, Protocol::Tcp, port)];
            Step::RemoveMembers(Set::new(Role::ClusterIp, Family::V4), members.into())
        };
        let by_mark = Step::RemoveMembers(
            Set::new(Role::InCluster, Family::V4),
            [Member::IpPortMark("192.0.2.1".parse().unwrap(), Protocol::Tcp, 80, mark)].into(),
        );
        let mut setbacks = Setbacks::default();
        assert!(!setbacks.forbid(Stage::RemoveMembers, &by_port(80)) && !setbacks.forbid(Stage::RemoveMembers, &by_mark));
        for key in [key, marked] {
            setbacks.note(&Step::RemoveVirtualServer(key), &Error::refused("IPVS", 16, None));
        }
        assert!(setbacks.forbid(Stage::RemoveMembers, &by_port(80)) && setbacks.forbid(Stage::RemoveMembers, &by_mark));
        assert!(!setbacks.forbid(Stage::RemoveMembers, &by_port(81)), "others go");
    }

    #[test]
    fn d2_what_cannot_be_restricted_is_not_made() {
        let address: IpAddr = "192.0.2.1".parse().unwrap();
        let add = |port| {
            let key = VirtualServerKey::address(address, Protocol::Tcp, port);
            let config = VirtualServerConfig::new(Scheduler::RR, Family::V4);
            Step::AddVirtualServer { key, config, real_servers: Vec::new() }
        };
        let members = [Member::IpPort(address, Protocol::Tcp, 80)];
        let restricted = Set::new(Role::Restricted, Family::V4);
        let refusal = || Error::refused_by_ipset("adding to a set".to_owned(), 12);
        let grow = Step::GrowSet { set: restricted, capacity: 8, members: members.into() };
        for step in [Step::AddMembers(restricted, members.into()), grow] {
            let mut setbacks = Setbacks::default();
            assert!(!setbacks.forbid(Stage::VirtualServers, &add(80)));
            setbacks.note(&step, &refusal());
            assert!(setbacks.forbid(Stage::VirtualServers, &add(80)));
            assert!(!setbacks.forbid(Stage::VirtualServers, &add(81)), "others are served");
        }
        let mut setbacks = Setbacks::default();
        setbacks.note(&Step::AddMembers(Set::new(Role::SourceRange, Family::V4), members.into()), &refusal());
        assert!(!setbacks.forbid(Stage::VirtualServers, &add(80)), "whom a range is missing for stays out");
    }
}
