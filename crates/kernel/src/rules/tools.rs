//! Whose rules there are in a flavour of iptables, by what their makers call their chains.

use std::collections::BTreeSet;

/// What the names of chains begin with, and who calls them that.
const MAKERS: [(&str, &str); 14] = [
    ("KUBE-IPVS-", "kube-ipvs"),
    ("KUBE-KUBELET-CANARY", "kubelet"),
    ("KUBE-IPTABLES-HINT", "kubelet"),
    ("KUBE-ROUTER-", "kube-router"),
    ("KUBE-POD-FW-", "kube-router"),
    ("KUBE-NWPLCY-", "kube-router"),
    ("cali-", "Calico"),
    ("CILIUM_", "Cilium"),
    ("OLD_CILIUM_", "Cilium"),
    ("FLANNEL-", "Flannel"),
    ("CNI-", "CNI plugins"),
    ("DOCKER", "Docker"),
    ("ufw", "ufw"),
    ("WEAVE-", "Weave Net"),
];

/// What is in a flavour of iptables.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inventory {
    /// The number of rules.
    pub rules: usize,
    /// Who is known by the names of chains.
    pub makers: BTreeSet<&'static str>,
}

/// Takes stock of what `iptables-save` printed.
pub(super) fn inventory(saved: &str) -> Inventory {
    let chains = saved.lines().filter_map(|line| line.strip_prefix(':')?.split(' ').next());
    // Two of kube-proxy's chains begin as ours do.
    let of_kube_proxy = |chain: &str| model::Chain::KUBE_PROXY.contains(&chain);
    let maker = |chain: &str| match of_kube_proxy(chain) {
        true => Some("kube-proxy"),
        false => MAKERS.iter().find(|(begin, _)| chain.starts_with(begin)).map(|(_, maker)| *maker),
    };
    Inventory { rules: saved.lines().filter(|line| line.starts_with("-A ")).count(), makers: chains.filter_map(maker).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn makers_are_known_by_their_chains_and_rules_are_counted() {
        let saved = "*nat\n:PREROUTING ACCEPT [0:0]\n:KUBE-IPVS-SERVICES - [0:0]\n:cali-PREROUTING - [0:0]\n-A PREROUTING -j X\nCOMMIT\n\
                     *filter\n:KUBE-IPVS-FILTER - [0:0]\n-A INPUT -j DROP\nCOMMIT\n";
        let found = inventory(saved);
        assert_eq!((found.rules, found.makers), (2, ["Calico", "kube-ipvs", "kube-proxy"].into()));
        assert_eq!(inventory("# nothing\n"), Inventory::default());
    }
}
