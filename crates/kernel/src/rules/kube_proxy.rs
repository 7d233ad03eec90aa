//! Which of the packet rules that `iptables-save` printed are kube-proxy's of IPVS mode, and what removes them.

use std::collections::BTreeSet;
use std::fmt::Write;

use model::Table;

use super::saved::{self, Line};
use crate::kube_proxy::Mode;

/// The chains of kube-proxy in IPVS mode.
const CHAINS: [(Table, &str); 11] = [
    (Table::Nat, "KUBE-SERVICES"),
    (Table::Nat, "KUBE-POSTROUTING"),
    (Table::Nat, "KUBE-NODE-PORT"),
    (Table::Nat, "KUBE-LOAD-BALANCER"),
    (Table::Nat, "KUBE-MARK-MASQ"),
    (Table::Filter, "KUBE-FORWARD"),
    (Table::Filter, "KUBE-NODE-PORT"),
    (Table::Filter, "KUBE-PROXY-FIREWALL"),
    (Table::Filter, "KUBE-SOURCE-RANGES-FIREWALL"),
    (Table::Filter, "KUBE-IPVS-FILTER"),
    (Table::Filter, "KUBE-IPVS-OUT-FILTER"),
];

/// What the comments of its jumps from built-in chains say. A jump without one of them is somebody else's.
const COMMENTS: [&str; 6] = [
    "kubernetes service portals",
    "kubernetes postrouting rules",
    "kubernetes ipvs access filter",
    "kube-proxy firewall rules",
    "kubernetes health check rules",
    "kubernetes forwarding rules",
];

/// Chains that only its other mode for iptables makes: by name, and by the beginning of their names.
const OF_IPTABLES_MODE: [&str; 2] = ["KUBE-PROXY-CANARY", "KUBE-EXTERNAL-SERVICES"];
const BEGIN_OF_IPTABLES_MODE: [&str; 5] = ["KUBE-SVC-", "KUBE-SVL-", "KUBE-SEP-", "KUBE-EXT-", "KUBE-FW-"];

struct Rule<'a> {
    table: Table,
    chain: &'a str,
    /// All of it after the chain.
    text: &'a str,
}

impl<'a> Rule<'a> {
    /// The chain it leads to.
    fn target(&self) -> Option<&'a str> {
        let words = words(self.text);
        let at = words.iter().rposition(|word| matches!(*word, "-j" | "-g"))?;
        words.get(at + 1).copied()
    }

    /// Whether kube-proxy has put it into a built-in chain.
    fn is_its_jump(&self) -> bool {
        words(self.text).windows(2).any(|pair| matches!(pair, ["--comment", comment] if COMMENTS.contains(comment)))
    }
}

/// Which mode of kube-proxy has left rules in what `iptables-save` printed.
pub(crate) fn mode(saved: &str) -> Mode {
    let chains = || saved.lines().filter_map(|line| line.strip_prefix(':')?.split(' ').next());
    let is_iptables =
        |name: &str| OF_IPTABLES_MODE.contains(&name) || BEGIN_OF_IPTABLES_MODE.iter().any(|begin| name.starts_with(begin));
    if chains().any(is_iptables) {
        return Mode::Iptables;
    }
    // Chains of the other names are also the kubelet's, or those of kube-proxy's iptables mode.
    let asks_sets = |line: &str| line.starts_with("-A KUBE-SERVICES ") && line.contains("--match-set KUBE-");
    let is_ipvs = chains().any(|name| matches!(name, "KUBE-IPVS-FILTER" | "KUBE-IPVS-OUT-FILTER")) || saved.lines().any(asks_sets);
    if is_ipvs { Mode::Ipvs } else { Mode::None }
}

/// The input that makes `iptables-restore --noflush` remove the chains of IPVS mode, with the jumps to them; `None` if there are none.
/// A chain to which rules of others lead stays, with the chains to which its own rules lead.
pub(crate) fn removal(saved: &str) -> Option<String> {
    let (present, rules) = read(saved);
    let mut going: BTreeSet<_> = CHAINS.into_iter().filter(|chain| present.contains(chain)).collect();
    loop {
        let stays = rules.iter().find_map(|rule| {
            let target = (rule.table, rule.target()?);
            let is_others = !going.contains(&(rule.table, rule.chain)) && !rule.is_its_jump();
            going.get(&target).filter(|_| is_others).copied()
        });
        match stays {
            Some(chain) => going.remove(&chain),
            None => break,
        };
    }
    let jumps = |table| {
        let leads_there = move |rule: &&&Rule<'_>| rule.table == table;
        rules
            .iter()
            .filter(|rule| !going.contains(&(rule.table, rule.chain)))
            .filter(|rule| rule.target().is_some_and(|target| going.contains(&(rule.table, target))))
            .collect::<Vec<_>>()
            .iter()
            .filter(leads_there)
            .map(|rule| format!("-D {} {}\n", rule.chain, rule.text))
            .collect::<String>()
    };
    let mut text = String::new();
    for table in Table::ALL {
        let names = || going.iter().filter(|(of, _)| *of == table).map(|(_, name)| name);
        if names().next().is_none() {
            continue;
        }
        // Writing to a String does not fail. A chain that is named is emptied.
        let _ = writeln!(text, "*{table}");
        names().for_each(|name| {
            let _ = writeln!(text, ":{name} - [0:0]");
        });
        text.push_str(&jumps(table));
        names().for_each(|name| {
            let _ = writeln!(text, "-X {name}");
        });
        text.push_str("COMMIT\n");
    }
    (!text.is_empty()).then_some(text)
}

/// The chains there are, and all rules, of the tables that kube-proxy uses.
fn read(saved: &str) -> (BTreeSet<(Table, &str)>, Vec<Rule<'_>>) {
    let (mut chains, mut rules) = (BTreeSet::new(), Vec::new());
    for line in saved::lines(saved) {
        match line {
            Line::Chain { table, name } => {
                chains.insert((table, name));
            }
            Line::Rule { table, chain, text } => rules.push(Rule { table, chain, text }),
        }
    }
    (chains, rules)
}

/// The words of a rule; what is quoted is one, without its quotes.
fn words(rule: &str) -> Vec<&str> {
    let mut words = Vec::new();
    let mut rest = rule.trim_start();
    while !rest.is_empty() {
        let (word, after) = match rest.strip_prefix('"') {
            Some(quoted) => {
                let mut escaped = false;
                let end = quoted.find(|c| {
                    let ends = c == '"' && !escaped;
                    escaped = c == '\\' && !escaped;
                    ends
                });
                let (word, after) = quoted.split_at(end.unwrap_or(quoted.len()));
                (word, after.strip_prefix('"').unwrap_or(after))
            }
            None => rest.split_at(rest.find(' ').unwrap_or(rest.len())),
        };
        words.push(word);
        rest = after.trim_start();
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAVED: &str = r#"*nat
:PREROUTING ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:CNI-HOSTPORT-SETMARK - [0:0]
:KUBE-MARK-MASQ - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-SERVICES - [0:0]
-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A PREROUTING -m comment --comment "not kube-proxy's: -j KUBE-SERVICES" -j RETURN
-A POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING
-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-SERVICES -m comment --comment "Kubernetes service cluster ip" -m set --match-set KUBE-CLUSTER-IP dst,dst -j KUBE-MARK-MASQ
COMMIT
*filter
:INPUT ACCEPT [0:0]
:KUBE-IPVS-FILTER - [0:0]
-A INPUT -m comment --comment "kubernetes ipvs access filter" -j KUBE-IPVS-FILTER
COMMIT
"#;

    #[test]
    fn k2_its_chains_and_jumps_go_and_nothing_else() {
        assert_eq!(mode(SAVED), Mode::Ipvs);
        insta::assert_snapshot!(removal(SAVED).unwrap(), @r#"
        *nat
        :KUBE-MARK-MASQ - [0:0]
        :KUBE-POSTROUTING - [0:0]
        :KUBE-SERVICES - [0:0]
        -D PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
        -D POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING
        -X KUBE-MARK-MASQ
        -X KUBE-POSTROUTING
        -X KUBE-SERVICES
        COMMIT
        *filter
        :KUBE-IPVS-FILTER - [0:0]
        -D INPUT -m comment --comment "kubernetes ipvs access filter" -j KUBE-IPVS-FILTER
        -X KUBE-IPVS-FILTER
        COMMIT
        "#);
        let gone = SAVED.lines().filter(|line| !line.contains("KUBE-")).collect::<Vec<_>>().join("\n");
        assert_eq!((mode(&gone), removal(&gone)), (Mode::None, None));
    }

    #[test]
    fn k2_a_chain_that_others_use_stays_with_what_it_leads_to() {
        let used = SAVED.replace("COMMIT\n*filter", "-A CNI-HOSTPORT-SETMARK -j KUBE-MARK-MASQ\nCOMMIT\n*filter");
        let text = removal(&used).unwrap();
        assert!(!text.contains("KUBE-MARK-MASQ") && text.contains("-X KUBE-SERVICES"), "{text}");
        let used = SAVED.replace("COMMIT\n*filter", "-A PREROUTING -j KUBE-SERVICES\nCOMMIT\n*filter");
        let text = removal(&used).unwrap();
        assert!(!text.contains("KUBE-MARK-MASQ") && !text.contains("KUBE-SERVICES"), "{text}");
        assert!(text.contains("-X KUBE-POSTROUTING") && text.contains("-X KUBE-IPVS-FILTER"), "{text}");
    }

    #[test]
    fn the_mode_for_iptables_is_told_apart_and_so_are_empty_chains() {
        for chain in ["KUBE-SVC-ABC", "KUBE-SEP-ABC", "KUBE-PROXY-CANARY"] {
            assert_eq!(mode(&SAVED.replace(":KUBE-MARK-MASQ", &format!(":{chain} - [0:0]\n:KUBE-MARK-MASQ"))), Mode::Iptables);
        }
        assert_eq!(
            mode("*nat\n:KUBE-SERVICES - [0:0]\n:KUBE-POSTROUTING - [0:0]\nCOMMIT\n"),
            Mode::None,
            "the kubelet has such chains"
        );
    }

    #[test]
    fn odd_lines_are_no_rules() {
        for odd in ["", "*nat\n-A\n-A X \"\n-A X \"\\\n-A X -j\n-A X -j \n:\n", "*nat\n-A X \"a\\\"b\" -j KUBE-SERVICES"] {
            assert_eq!((mode(odd), removal(odd)), (Mode::None, None), "{odd:?}");
        }
        assert_eq!(words(r#"-m x --comment "a \"b\" c" -j D"#), ["-m", "x", "--comment", r#"a \"b\" c"#, "-j", "D"]);
    }
}
