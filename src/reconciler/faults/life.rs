//! Services that change at random, some of which are there all the time.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use desired::{Config, Index, Ledger, RuleOptions, ServiceName};
use model::{Family, Protocol, RealServerKey, State, VirtualServerKey};
use serde_json::{Value, json};
use testkit::Random;

use crate::mailbox::{Mailbox, NodeSettings};

/// Services that are there all the time; each has a real server that is, too.
const LASTING: u64 = 12;
/// Services that come and go.
const PASSING: u64 = 12;

fn name(number: u64) -> String {
    format!("service-{number}")
}

/// The Services of a life, as an index has them.
pub(in crate::reconciler) struct Life {
    index: Index,
    random: Random,
    fragments: BTreeMap<ServiceName, Option<desired::Fragment>>,
}

impl Life {
    /// With the Services that last, of which each has the one real server that lasts.
    pub(in crate::reconciler) fn new(config: Config, seed: u64) -> Self {
        let mut life = Self { index: Index::new(config), random: Random::new(seed), fragments: BTreeMap::new() };
        for number in 0..LASTING {
            life.add(number, |_| false);
        }
        life
    }

    /// Adds a Service, or gives it other endpoints: one that is always there, and those of which `has` says so.
    fn add(&mut self, number: u64, mut has: impl FnMut(&mut Random) -> bool) {
        let (ip, ip6) = (format!("10.96.0.{}", 10 + number), format!("fd00:96::{}", 10 + number));
        let service = json!({"metadata": {"namespace": "default", "name": name(number)},
            "spec": {"type": "ClusterIP", "clusterIP": ip, "clusterIPs": [ip, ip6], "ipFamilies": ["IPv4", "IPv6"],
                "ports": [{"name": "http", "protocol": "TCP", "port": 80, "targetPort": 8080}]}});
        self.index.apply_service(&serde_json::from_value(service).unwrap()).unwrap();
        for (family, net) in [("IPv4", "10.244.1."), ("IPv6", "fd00:244::1:")] {
            let hosts = std::iter::once(1).chain((2..8).filter(|_| has(&mut self.random)));
            let endpoints: Vec<Value> = hosts
                .map(|host| json!({"addresses": [format!("{net}{}", 10 * number + host)], "conditions": {"ready": true, "serving": true}}))
                .collect();
            let slice = json!({"addressType": family, "ports": [{"name": "http", "protocol": "TCP", "port": 8080}], "endpoints": endpoints,
                "metadata": {"namespace": "default", "name": format!("{}-{family}", name(number)),
                    "labels": {"kubernetes.io/service-name": name(number)}}});
            self.index.apply_slice(&serde_json::from_value(slice).unwrap()).unwrap();
        }
    }

    /// Something changes: the endpoints of a Service, or one that passes is gone.
    pub(super) fn change(&mut self) {
        let number = self.random.below(LASTING + PASSING);
        if number >= LASTING && self.random.below(3) == 0 {
            let metadata = |name: String| serde_json::from_value(json!({"namespace": "default", "name": name})).unwrap();
            self.index.delete_service(&metadata(name(number)));
        } else {
            self.add(number, |random| random.one_in(2));
        }
    }

    /// How long it is until the next one.
    pub(super) fn pause(&mut self) -> Duration {
        Duration::from_millis(self.random.below(60))
    }

    /// What has changed since the last time, for the reconciler.
    pub(in crate::reconciler) fn post(&mut self, mailbox: &Mailbox) {
        let dirty = self.index.take_dirty();
        let fragments: Vec<_> = dirty.into_iter().map(|name| (self.index.fragment(&name), name)).collect();
        self.fragments.extend(fragments.iter().map(|(fragment, name)| (name.clone(), fragment.clone())));
        let settings = self.settings();
        mailbox.post(|letter| {
            letter.services.extend(fragments.into_iter().map(|(fragment, name)| (name, fragment)));
            letter.node = Some(settings);
            letter.complete = true;
        });
    }

    fn settings(&self) -> NodeSettings {
        let (config, facts) = (self.index.config(), self.index.facts());
        let rules = |family| desired::rules(family, config, facts, RuleOptions { random_fully: true });
        NodeSettings { rules: config.families.iter().map(|family| (*family, rules(*family))).collect(), ..NodeSettings::default() }
    }

    /// What the kernel is to hold now.
    pub(super) fn desired(&self) -> State {
        let mut ledger = Ledger::new(self.index.config());
        for (name, fragment) in &self.fragments {
            ledger.set(name, fragment.clone());
        }
        State { rules: self.settings().rules, ..ledger.complete() }
    }
}

/// The virtual servers that must have a live real server at any time, and that real server.
pub(super) fn lasting(families: &BTreeSet<Family>) -> Vec<(VirtualServerKey, RealServerKey)> {
    let keys = |number: u64| {
        let all: [(String, String); 2] = [
            (format!("10.96.0.{}", 10 + number), format!("10.244.1.{}", 10 * number + 1)),
            (format!("fd00:96::{}", 10 + number), format!("fd00:244::1:{}", 10 * number + 1)),
        ];
        all.map(|(vip, real)| {
            let key = VirtualServerKey::address(vip.parse().unwrap(), Protocol::Tcp, 80);
            (key, RealServerKey { address: real.parse().unwrap(), port: 8080 })
        })
    };
    (0..LASTING).flat_map(keys).filter(|(key, _)| families.contains(&key.family())).collect()
}
