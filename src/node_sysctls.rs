//! The sysctls that the operator may decide on, as kube-proxy sets them: how connections are tracked, and who answers ARP for VIPs.

use std::fs;
use std::thread;
use std::time::Duration;

use kernel::sysctl::Sysctl;

use crate::settings::KubeProxy;

/// kube-proxy scales by processors only up to here.
const MOST_BY_CORES: u64 = 1 << 20;

/// What `flags` ask for. A kernel without one of them has no connection tracking yet, or none in this network namespace.
pub(crate) fn of(flags: &KubeProxy) -> Vec<Sysctl> {
    let timeout = |name, timeout: Duration, effect| (!timeout.is_zero()).then(|| exactly(name, timeout.as_secs(), effect));
    let tracked = most_tracked(flags.conntrack_max_per_core.into(), flags.conntrack_min.into(), cores());
    let full = "new connections are dropped when the table is full";
    let (early, late) = ("idle connections are forgotten sooner or later than asked for", "connections that are over take up room");
    [
        tracked.map(|most| at_least("net.netfilter.nf_conntrack_max", most, full)),
        // One bucket for four connections, as kube-proxy has it: the table is searched by lists.
        tracked.map(|most| {
            at_least("net.netfilter.nf_conntrack_buckets", most / 4, "connections take long to find when there are many")
        }),
        timeout("net.netfilter.nf_conntrack_tcp_timeout_established", flags.conntrack_tcp_timeout_established, early),
        timeout("net.netfilter.nf_conntrack_tcp_timeout_close_wait", flags.conntrack_tcp_timeout_close_wait, late),
        flags
            .conntrack_tcp_be_liberal
            .then(|| exactly("net.netfilter.nf_conntrack_tcp_be_liberal", 1, "packets out of their window are not translated")),
        timeout("net.netfilter.nf_conntrack_udp_timeout", flags.conntrack_udp_timeout, early),
        timeout("net.netfilter.nf_conntrack_udp_timeout_stream", flags.conntrack_udp_timeout_stream, early),
        flags
            .ipvs_strict_arp
            .then(|| exactly("net.ipv4.conf.all.arp_ignore", 1, "every node answers ARP for VIPs in its own networks")),
        flags.ipvs_strict_arp.then(|| exactly("net.ipv4.conf.all.arp_announce", 2, "ARP requests of this node may come from VIPs")),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn exactly(name: &'static str, value: u64, effect: &'static str) -> Sysctl {
    Sysctl { name, value: value.to_string().into(), effect, optional: true, or_more: false }
}

fn at_least(name: &'static str, value: u64, effect: &'static str) -> Sysctl {
    Sysctl { or_more: true, ..exactly(name, value, effect) }
}

/// How many connections are to be tracked; `None` for as many as there are.
fn most_tracked(per_core: u64, least: u64, cores: u64) -> Option<u64> {
    let scaled = per_core * cores;
    (per_core > 0).then_some(if scaled > MOST_BY_CORES { MOST_BY_CORES } else { scaled.max(least) })
}

/// The processors of the node, of which this process may have been given but a part.
fn cores() -> u64 {
    let online = fs::read_to_string("/sys/devices/system/cpu/online").ok().and_then(|list| count(list.trim()));
    online.unwrap_or_else(|| thread::available_parallelism().map_or(1, |cores| cores.get() as u64))
}

/// How many numbers there are in a list such as `0-3,6`.
fn count(list: &str) -> Option<u64> {
    list.split(',').try_fold(0, |sum: u64, range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (u64, u64) = (first.parse().ok()?, last.parse().ok()?);
        sum.checked_add(last.checked_sub(first)?.checked_add(1)?)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_connections_are_tracked_as_kube_proxy_would() {
        assert_eq!(most_tracked(0, 131_072, 4), None, "0 leaves what there is");
        assert_eq!(most_tracked(32_768, 131_072, 2), Some(131_072));
        assert_eq!(most_tracked(32_768, 131_072, 16), Some(524_288));
        assert_eq!(most_tracked(32_768, 131_072, 256), Some(1_048_576));
        assert_eq!(most_tracked(1, 4_000_000, 1), Some(4_000_000));
    }

    #[test]
    fn processors_are_counted() {
        assert_eq!(count("0"), Some(1));
        assert_eq!(count("0-3,6"), Some(5));
        for wrong in ["", "a", "3-1", "0-18446744073709551615"] {
            assert_eq!(count(wrong), None, "{wrong:?}");
        }
        assert!(cores() >= 1);
    }
}
