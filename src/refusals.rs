//! What the kernel did not take, and of which Services that is to be said.

use std::collections::{BTreeMap, BTreeSet};

use desired::{Problem, Reason, ServiceName};
use model::VirtualServerKey;

/// What was refused since it was last clear, by virtual server if it is about one, then by step.
#[derive(Debug, Default)]
pub(crate) struct Refusals {
    errors: BTreeMap<Option<VirtualServerKey>, BTreeMap<String, String>>,
    /// The Services that were last said to have problems with this.
    told: BTreeMap<ServiceName, BTreeSet<Problem>>,
}

impl Refusals {
    /// Forgets what was refused, but not what was told of it.
    pub(crate) fn clear(&mut self) {
        self.errors.clear();
    }

    /// Forgets what was refused of the virtual server `key`.
    pub(crate) fn forget(&mut self, key: VirtualServerKey) {
        self.errors.remove(&Some(key));
    }

    pub(crate) fn add(&mut self, key: Option<VirtualServerKey>, step: String, error: String) {
        self.errors.entry(key).or_default().insert(step, error);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.errors.is_empty()
    }

    /// How many steps were refused.
    pub(crate) fn len(&self) -> usize {
        self.errors.values().map(BTreeMap::len).sum()
    }

    /// One of them, in words.
    pub(crate) fn first(&self) -> Option<String> {
        self.errors.values().flatten().next().map(|(step, error)| format!("could not {step}: {error}"))
    }

    /// The Services of which there is something else to say than the last time, each with all of it; nothing for one that is served
    /// again. `owner` tells whose a virtual server is.
    pub(crate) fn news<'a>(
        &mut self,
        owner: impl Fn(&VirtualServerKey) -> Option<&'a ServiceName>,
    ) -> Vec<(ServiceName, Box<[Problem]>)> {
        let mut problems: BTreeMap<ServiceName, BTreeSet<Problem>> = BTreeMap::new();
        for (key, steps) in &self.errors {
            // The steps of one virtual server fail for one reason.
            if let (Some(key), Some(error)) = (key, steps.values().next())
                && let Some(service) = owner(key)
            {
                let message = format!("is not in the kernel as it should be, and is tried again with every audit ({error})");
                let problem = Problem::new(Reason::KernelRefused, &format!("Service {service}"), &key.to_string(), &message);
                problems.entry(service.clone()).or_default().insert(problem);
            }
        }
        let over =
            self.told.keys().filter(|service| !problems.contains_key(*service)).map(|service| (service.clone(), Box::default()));
        let changed = problems.iter().filter(|(service, problems)| self.told.get(*service) != Some(*problems));
        let news = over.chain(changed.map(|(service, problems)| (service.clone(), problems.iter().cloned().collect()))).collect();
        self.told = problems;
        news
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::Protocol;

    #[test]
    fn a_service_is_told_of_once_per_error_and_once_when_it_is_over() {
        let key = |port| VirtualServerKey::address([10, 96, 0, 10].into(), Protocol::Tcp, port);
        let web = ServiceName::new("shop", "web");
        let owner = |key: &VirtualServerKey| matches!(key, VirtualServerKey::Address { port: 80 | 81, .. }).then_some(&web);
        let mut refusals = Refusals::default();
        let refuse = |refusals: &mut Refusals, error: &str| {
            refusals.clear();
            refusals.add(None, "create set".into(), "no memory".into());
            for port in [80, 81, 443] {
                refusals.add(Some(key(port)), "add a real server".into(), error.into());
                refusals.add(Some(key(port)), "add another real server".into(), error.into());
            }
        };
        refuse(&mut refusals, "no such scheduler");
        assert_eq!((refusals.len(), refusals.first().unwrap().as_str()), (7, "could not create set: no memory"));
        let texts = |refusals: &mut Refusals| -> Vec<Vec<String>> {
            refusals.news(owner).iter().map(|(_, problems)| problems.iter().map(ToString::to_string).collect()).collect()
        };
        let text = |port: u16, error: &str| {
            format!(
                "Service shop/web: TCP 10.96.0.10:{port} is not in the kernel as it should be, and is tried again with every audit ({error})"
            )
        };
        assert_eq!(texts(&mut refusals), [[text(80, "no such scheduler"), text(81, "no such scheduler")]]);

        // An audit that has the same refused is no news.
        refuse(&mut refusals, "no such scheduler");
        assert_eq!(texts(&mut refusals), Vec::<Vec<String>>::new());
        refuse(&mut refusals, "no memory");
        refusals.forget(key(80));
        assert_eq!(texts(&mut refusals), [[text(81, "no memory")]]);
        refusals.clear();
        assert!(refusals.is_empty());
        assert_eq!(texts(&mut refusals), [Vec::<String>::new()]);
        assert_eq!(texts(&mut refusals), Vec::<Vec<String>>::new());
    }
}
