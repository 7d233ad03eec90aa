//! What others do to what is ours in the kernel.

use testkit::Random;

/// What damage may cost before it is repaired. What is worse includes what is not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Harm {
    /// Nothing that clients notice.
    #[default]
    None,
    /// Calls: a new connection meets what is missing.
    Calls,
    /// Connections, too: the kernel forgets them with their servers.
    Connections,
}

/// A shell command, and what it may cost.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Damage {
    pub(crate) command: &'static str,
    pub(crate) harm: Harm,
}

const fn costs(harm: Harm, command: &'static str) -> Damage {
    Damage { command, harm }
}

/// About the Service `busy`, as [`super::busy`] makes it, and the pod `a` that always is an endpoint of it.
const DAMAGES: [Damage; 27] = [
    costs(Harm::Connections, "ipvsadm -C"),
    costs(Harm::Connections, "ipvsadm -D -t 10.96.0.90:80"),
    costs(Harm::Connections, "ipvsadm -D -t [fd00:96::90]:80"),
    costs(Harm::Connections, "ipvsadm -d -t 10.96.0.90:80 -r 10.244.1.2:8080"),
    costs(Harm::Connections, "ipvsadm -D -t 10.96.0.90:81; ipvsadm -D -t [fd00:96::90]:81; ipvsadm -D -t 172.18.0.2:30490"),
    costs(Harm::Calls, "ipvsadm -a -t 10.96.0.90:81 -r 203.0.113.9:80 -m -w 1"),
    costs(Harm::None, "ipvsadm -e -t 10.96.0.90:81 -r 10.244.1.2:8081 -m -w 0"),
    costs(Harm::None, "ipvsadm -e -t [fd00:96::90]:80 -r [fd00:244:0:1::2]:8080 -m -w 7"),
    costs(Harm::None, "ipvsadm -E -t 10.96.0.90:80 -s wlc -p 10"),
    costs(Harm::Calls, "ipset flush"),
    costs(Harm::Calls, "ipset flush KUBE-CLUSTER-IP"),
    costs(Harm::None, "ipset add KUBE-6-IPVS-IPS fd00:96::99"),
    costs(Harm::Calls, "nft flush ruleset; ipset destroy"),
    costs(Harm::Calls, "nft flush ruleset"),
    costs(Harm::Calls, "iptables -w -F; ip6tables -w -F"),
    costs(Harm::Calls, "iptables -w -t nat -F"),
    costs(Harm::Calls, "ip6tables -w -t nat -D POSTROUTING -j KUBE-IPVS-POSTROUTING"),
    costs(Harm::Calls, "ip link del kube-ipvs0"),
    costs(Harm::Calls, "ip link set kube-ipvs0 down"),
    costs(Harm::Calls, "ip route flush table local dev kube-ipvs0"),
    costs(Harm::Calls, "ip -6 route flush table local dev kube-ipvs0"),
    costs(Harm::Calls, "ip route del local 10.96.0.90 dev kube-ipvs0 table local"),
    costs(Harm::Calls, "ip address flush dev kube-ipvs0"),
    costs(Harm::None, "ip address add 203.0.113.10/32 dev kube-ipvs0"),
    costs(Harm::Calls, "echo 0 >/proc/sys/net/ipv4/vs/conntrack"),
    costs(Harm::None, "echo 0 >/proc/sys/net/ipv4/vs/expire_nodest_conn"),
    costs(Harm::Connections, "ipvsadm -C; ipset flush; nft flush ruleset; ip link del kube-ipvs0"),
];

impl Damage {
    pub(crate) fn random(random: &mut Random) -> Self {
        random.of(&DAMAGES)
    }
}
