//! All that a node's kernel holds in the places where an agent works, byte by byte and whoever has made it; and strangers' things in all of these
//! places, some of them close to ours.

use anyhow::ensure;
use testkit::{Netns, Result};

use crate::foreign::make_foreign;

const SHOWN: [&[&str]; 13] = [
    &["ipvsadm", "-Sn"],
    &["ipset", "save"],
    &["iptables-legacy-save"],
    &["ip6tables-legacy-save"],
    &["iptables-nft-save"],
    &["ip6tables-nft-save"],
    &["nft", "list", "ruleset"],
    &["ip", "-o", "link", "show"],
    &["ip", "-o", "address", "show"],
    &["ip", "-4", "rule", "show"],
    &["ip", "-6", "rule", "show"],
    &["ip", "-4", "route", "show", "table", "all"],
    &["ip", "-6", "route", "show", "table", "all"],
];

/// A table of nf_tables' own, beside those of iptables.
const TABLE: &str = "\
table inet strangers {
    set blocked { type ipv4_addr; flags interval; elements = { 203.0.113.64/26, 203.0.113.192/26 }; }
    map ports { type inet_service : verdict; elements = { 2049 : drop, 6000 : accept }; }
    chain early { type filter hook prerouting priority -310; policy accept; counter; }
    chain input { type filter hook input priority 10; policy accept; ip saddr @blocked drop; tcp dport vmap @ports; }
}
";

/// A rule in every built-in chain where the agent has one, in front of which it comes.
const NFT_RULES: &str = "*mangle\n:FOREIGN - [0:0]\n-A PREROUTING -d @ -j FOREIGN\n-A OUTPUT -d @ -j FOREIGN\n-A FOREIGN -j RETURN\nCOMMIT\n\
    *nat\n-A OUTPUT -d @ -j FOREIGN\nCOMMIT\n*filter\n-A FORWARD -d @ -j FOREIGN\nCOMMIT\n";

/// Fewer, so that it is not this flavour which the agent takes for the node's.
const LEGACY_RULES: &str = "*mangle\n:BESIDE - [0:0]\n-A PREROUTING -d @ -j BESIDE\nCOMMIT\n*nat\n:BESIDE - [0:0]\n-A BESIDE -d @ -j RETURN\nCOMMIT\n\
    *filter\n:BESIDE - [0:0]\n-A FORWARD -d @ -j BESIDE\nCOMMIT\n";

/// What others have made on a node: virtual servers by address and by mark, sets, rules in both flavours of iptables and in a table beside them,
/// addresses, routes and rules of routing.
pub(crate) fn make_strangers(node: &Netns) -> Result {
    make_foreign(node)?;
    node.exec_with_input(&["nft", "-f", "-"], TABLE)?;
    for (program, address) in [("iptables", "192.0.2.1/32"), ("ip6tables", "2001:db8::1/128")] {
        for (flavour, rules) in [("nft", NFT_RULES), ("legacy", LEGACY_RULES)] {
            node.exec_with_input(&[&format!("{program}-{flavour}-restore"), "--noflush", "-w"], &rules.replace('@', address))?;
        }
    }
    for line in [
        "address add 2001:db8:5::1/64 dev foreign0 nodad",
        "-4 route add 198.51.100.64/26 dev foreign0 table 100",
        "-6 route add 2001:db8:6::/64 via 2001:db8:5::2 dev foreign0 table 100",
        // The number of our protocol, in a table that is not ours.
        "-4 route add 198.51.100.128/26 dev foreign0 table 100 proto 71",
        "-4 rule add from 192.0.2.0/24 lookup 100 priority 1000",
        "-6 rule add fwmark 0x7 lookup 100 priority 1000",
    ] {
        node.exec(&[&["ip"], &line.split(' ').collect::<Vec<_>>()[..]].concat())?;
    }
    for line in [
        "create FOREIGN-NET hash:net,iface",
        "add FOREIGN-NET 192.0.2.0/25,foreign0",
        "create FOREIGN-MARK hash:ip,mark family inet6",
    ] {
        node.exec(&[&["ipset"], &line.split(' ').collect::<Vec<_>>()[..]].concat())?;
    }
    Ok(())
}

/// Everything, without the counters of packet rules and what the kernel gives devices by itself some time after they came up.
pub(crate) fn everything(node: &Netns) -> Result<String> {
    let mut text = String::new();
    for command in SHOWN {
        text += &format!("--- {}\n", command.join(" "));
        let shown = match command {
            ["ipvsadm", arguments @ ..] => node.ipvsadm(arguments)?,
            _ => node.exec(command)?,
        };
        // Comments have the time.
        for line in shown.lines().filter(|line| !line.starts_with('#')) {
            if !line.contains("fe80:") && !line.contains("ff00::") {
                text += &without_counters(line);
                text.push('\n');
            }
        }
    }
    Ok(text)
}

pub(crate) fn ensure_everything(before: &str, after: &str, when: &str) -> Result {
    let only = |of: &str, beside: &str, sign: char| {
        of.lines()
            .filter(|line| !beside.lines().any(|other| other == *line))
            .map(|line| format!("{sign} {line}\n"))
            .collect::<String>()
    };
    ensure!(before == after, "{when} all is not as before:\n{}{}", only(before, after, '-'), only(after, before, '+'));
    Ok(())
}

/// A line of `iptables-save` without `[packets:bytes]`, one of nft without `packets 1 bytes 60`.
fn without_counters(line: &str) -> String {
    let line = if line.starts_with(':') { line.split(" [").next().unwrap_or(line) } else { line };
    let mut words: Vec<_> = line.split(' ').collect();
    while let Some(at) = words.windows(3).position(|words| matches!(words, ["packets", _, "bytes"])) {
        words.drain(at..(at + 4).min(words.len()));
    }
    words.join(" ")
}
