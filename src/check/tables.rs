//! The tables of connections: how large they are, and how full.

use std::fs;

use kernel::{Table, read_table};

use super::finding::Finding;

/// Percent of connection tracking at which there is not much time left, and at which packets are about to be dropped.
const WARN: u64 = 75;
const FAIL: u64 = 95;
/// Connections for each bucket of IPVS' hash table, which is never full but is walked for every packet.
const LONG_CHAIN: u64 = 4;

pub(super) fn inspect(findings: &mut Vec<Finding>) {
    let read = |name: &str| {
        let path = format!("/proc/sys/net/netfilter/{name}");
        fs::read_to_string(path).ok().and_then(|text| text.trim().parse::<u64>().ok())
    };
    findings.push(conntrack(read("nf_conntrack_count").zip(read("nf_conntrack_max"))));
    findings.push(match read_table() {
        Ok(table) => ipvs(u64::from(table.connection_table_size), connections(&table)),
        Err(error) => Finding::error("IPVS table", error),
    });
}

fn connections(table: &Table) -> u64 {
    let servers = table.virtual_servers.iter().flat_map(|listing| &listing.real_servers);
    servers.map(|real| u64::from(real.connections.active) + u64::from(real.connections.inactive)).sum()
}

fn conntrack(table: Option<(u64, u64)>) -> Finding {
    const CHECK: &str = "conntrack table";
    let Some((count, max)) = table else {
        return Finding::warn(
            CHECK,
            "it is not there: nothing is masqueraded",
            "load the module with `modprobe nf_conntrack`, or run `kube-ipvs init`",
        );
    };
    // 0 is for no limit.
    let percent = (count * 100).checked_div(max).unwrap_or_default();
    let text = format!("{count} of {max} connections ({percent} %)");
    let remedy = "raise net.netfilter.nf_conntrack_max in /etc/sysctl.d: when it is full, new connections are dropped";
    match percent {
        FAIL.. => Finding::fail(CHECK, text, remedy),
        WARN.. => Finding::warn(CHECK, text, remedy),
        _ => Finding::ok(CHECK, text),
    }
}

fn ipvs(buckets: u64, connections: u64) -> Finding {
    const CHECK: &str = "IPVS table";
    let text = format!("{connections} connections in {buckets} buckets");
    let per_bucket = connections.checked_div(buckets).unwrap_or_default();
    if per_bucket < LONG_CHAIN {
        return Finding::ok(CHECK, text);
    }
    Finding::warn(
        CHECK,
        format_args!("{text}: each packet is compared with about {per_bucket} of them"),
        "put `options ip_vs conn_tab_bits=20` into /etc/modprobe.d and load the module anew, which takes a reboot on a node in use",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_judged_by_their_load() {
        assert_eq!(conntrack(Some((10, 100))).to_string(), "ok    conntrack table: 10 of 100 connections (10 %)");
        assert!(conntrack(Some((75, 100))).to_string().starts_with("warn"));
        assert!(conntrack(Some((96, 100))).to_string().starts_with("fail"));
        assert!(conntrack(Some((96, 0))).to_string().starts_with("ok"), "no limit");
        assert!(conntrack(None).to_string().contains("modprobe nf_conntrack"));
        assert!(ipvs(4096, 16_000).to_string().starts_with("ok"));
        assert!(ipvs(4096, 17_000).to_string().contains("about 4 of them; put `options ip_vs"));
    }
}
