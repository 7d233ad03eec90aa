//! What other people's tools print of a node's kernel, taken apart.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use anyhow::{Context as _, bail};

use crate::conformance::case;
use crate::{Family, Result};

/// Prints everything that is compared, each part after a line with `@@`.
pub(super) const SCRIPT: &str = "echo @@ipvs; ipvsadm -Sn; echo @@sets; ipset save
echo @@bound; ip route show table local proto 71; ip -6 route show table local proto 71
ip -o address show dev kube-ipvs0 2>/dev/null | while read -r _ _ _ address _; do echo \"local $address\"; done
";
/// Those parts that only some cases speak of, since each program costs time.
pub(super) const RULES_SCRIPT: &str = "echo @@rules-IPv4; iptables-save; echo @@rules-IPv6; ip6tables-save\n";
pub(super) const FLOWS_SCRIPT: &str = "echo @@flows; conntrack -L -f ipv4 2>/dev/null; conntrack -L -f ipv6 2>/dev/null\n";

/// A node's kernel.
#[derive(Debug, Default)]
pub(super) struct Observed {
    /// Those by address, then those by packet mark.
    pub(super) virtual_servers: BTreeMap<String, Service>,
    pub(super) marked: BTreeMap<(Family, u32), Service>,
    /// Members by the set's name.
    pub(super) sets: BTreeMap<String, BTreeSet<String>>,
    /// The mark of each member that has one.
    pub(super) marks: BTreeMap<String, u32>,
    pub(super) bound: BTreeSet<String>,
    pub(super) rules: BTreeMap<Family, Vec<Rule>>,
    /// The source ports of the first packets of all flows.
    pub(super) flows: BTreeSet<u16>,
}

/// A virtual server but for its key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Service {
    /// Scheduler, flags and persistence, comparable as text.
    pub(super) config: String,
    /// `ADDRESS#PORT weight WEIGHT`, and what else a real server says.
    pub(super) real_servers: BTreeSet<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rule {
    pub(super) table: String,
    pub(super) chain: String,
    pub(super) text: String,
}

impl Observed {
    /// # Errors
    /// When a tool says something that is not understood.
    pub(super) fn read(text: &str) -> Result<Self> {
        let mut observed = Self::default();
        let mut part = "";
        let mut table = "";
        for line in text.lines() {
            if let Some(name) = line.strip_prefix("@@") {
                part = name;
                continue;
            }
            match part {
                "ipvs" => observed.read_ipvs(line).with_context(|| format!("ipvsadm says {line:?}"))?,
                "sets" => observed.read_set(line).with_context(|| format!("ipset says {line:?}"))?,
                "bound" => {
                    let address = line.split_whitespace().nth(1).context("a route without address")?;
                    observed.bound.insert(plain_address(address)?);
                }
                "rules-IPv4" | "rules-IPv6" => {
                    let family = if part.ends_with('4') { Family::V4 } else { Family::V6 };
                    let rules = observed.rules.entry(family).or_default();
                    if let Some(name) = line.strip_prefix('*') {
                        table = name;
                    } else if let Some((chain, text)) = line.strip_prefix("-A ").and_then(|rule| rule.split_once(' ')) {
                        rules.push(Rule { table: table.to_owned(), chain: chain.to_owned(), text: text.trim_end().to_owned() });
                    }
                }
                "flows" => {
                    observed.flows.extend(line.split("sport=").nth(1).and_then(|rest| rest.split(' ').next()?.parse::<u16>().ok()));
                }
                _ => bail!("there is output before the first part: {line}"),
            }
        }
        Ok(observed)
    }

    /// `-A -t 10.0.0.1:80 -s rr -p 75`, `-a -t 10.0.0.1:80 -r 10.0.1.1:8080 -m -w 1`; with `-f MARK [-6]` in place of an address.
    fn read_ipvs(&mut self, line: &str) -> Result<()> {
        let mut words = line.split_whitespace();
        let verb = words.next().context("an empty line")?;
        let protocol = words.next().context("no protocol")?;
        let place = words.next().context("no address")?;
        let mut rest: Vec<&str> = words.collect();
        let service = match protocol {
            "-f" => {
                let mark = place.parse().context("the mark is no number")?;
                // Real servers do not repeat the family: their addresses tell it.
                let is_ipv6 = rest.contains(&"-6") || rest.iter().any(|word| word.starts_with('['));
                rest.retain(|word| *word != "-6");
                self.marked.entry((if is_ipv6 { Family::V6 } else { Family::V4 }, mark)).or_default()
            }
            _ => {
                let protocol = match protocol {
                    "-t" => "tcp",
                    "-u" => "udp",
                    "--sctp-service" => "sctp",
                    other => bail!("{other} is no protocol"),
                };
                let (address, port) = split_place(place)?;
                self.virtual_servers.entry(key(address, protocol, port)).or_default()
            }
        };
        match verb {
            "-A" => service.config = config_of(&rest)?,
            "-a" => {
                let [_, place, method, _, weight, surplus @ ..] = rest.as_slice() else {
                    bail!("a real server that is not understood")
                };
                let (address, port) = split_place(place)?;
                let (mut text, surplus) = (real_server(address, port, weight.parse()?), surplus.join(" "));
                if *method != "-m" || !surplus.is_empty() {
                    text.push_str(&format!(" {method} {surplus}"));
                }
                service.real_servers.insert(text);
            }
            other => bail!("{other} is no verb"),
        }
        Ok(())
    }

    fn read_set(&mut self, line: &str) -> Result<()> {
        let mut words = line.split_whitespace();
        let (verb, name) = (words.next(), words.next().context("no set")?);
        let members = self.sets.entry(name.to_owned()).or_default();
        if verb == Some("add") {
            let member = plain_member(words.next().context("no member")?);
            if let (Some("skbmark"), Some(mark)) = (words.next(), words.next()) {
                let digits = mark.split('/').next().unwrap_or(mark).trim_start_matches("0x");
                self.marks.insert(member.clone(), u32::from_str_radix(digits, 16).context("a mark that is no number")?);
            }
            members.insert(member);
        }
        Ok(())
    }

    /// The members of a set, none if there is no such set.
    pub(super) fn members(&self, name: &str) -> impl Iterator<Item = &String> {
        self.sets.get(name).into_iter().flatten()
    }
}

/// The key of a virtual server, comparable as text and the same as its member in a set.
pub(super) fn key(address: IpAddr, protocol: &str, port: u16) -> String {
    format!("{address},{protocol}:{port}")
}

pub(super) fn config(scheduler: &str, flags: u32, persistence: u64) -> String {
    let persistence = if persistence > 0 { format!(", persistent for {persistence} s") } else { String::new() };
    let flags = if flags > 0 { format!(", flags {flags:#x}") } else { String::new() };
    format!("{scheduler}{flags}{persistence}")
}

pub(super) fn real_server(address: IpAddr, port: u16, weight: u64) -> String {
    format!("{address}#{port} weight {weight}")
}

/// A member with its addresses as Rust prints them and networks of one address without their length, as `ipset` does.
pub(super) fn plain_member(text: &str) -> String {
    let part = |part: &str| match part.split_once('/') {
        Some((address, "32" | "128")) => plain_address(address),
        Some((address, length)) => plain_address(address).map(|address| format!("{address}/{length}")),
        None => plain_address(part),
    };
    text.split(',').map(|text| part(text).unwrap_or_else(|_| text.to_owned())).collect::<Vec<_>>().join(",")
}

fn plain_address(text: &str) -> Result<String> {
    Ok(case::address(text.split('/').next().unwrap_or(text))?.to_string())
}

fn split_place(text: &str) -> Result<(IpAddr, u16)> {
    let (address, port) = text.rsplit_once(':').with_context(|| format!("{text:?} has no port"))?;
    Ok((case::address(address.trim_matches(['[', ']']))?, port.parse()?))
}

fn config_of(words: &[&str]) -> Result<String> {
    let (mut scheduler, mut flags, mut persistence, mut surplus) = ("", 0, 0, String::new());
    let mut words = words.iter();
    while let Some(word) = words.next() {
        let mut value = || words.next().copied().with_context(|| format!("{word} has no value"));
        match *word {
            "-s" => scheduler = value()?,
            "-p" => persistence = value()?.parse()?,
            "-o" => flags |= 0x4,
            "-b" => {
                for flag in value()?.split(',') {
                    flags |= match flag {
                        "flag-1" | "mh-fallback" | "sh-fallback" => 0x8,
                        "flag-2" | "mh-port" | "sh-port" => 0x10,
                        "flag-3" => 0x20,
                        other => bail!("{other} is no flag"),
                    };
                }
            }
            other => surplus.push_str(&format!(" {other}")),
        }
    }
    Ok(config(scheduler, flags, persistence) + &surplus)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PRINTED: &str = "@@ipvs
-A -t 10.96.0.10:80 -s rr -p 75
-a -t 10.96.0.10:80 -r 10.244.1.2:8080 -m -w 0
-A --sctp-service [fd00::1]:2905 -s mh -b mh-fallback,mh-port
-A -f 16385 -s rr
-a -f 16385 -r 10.244.1.2:8080 -m -w 1
-A -f 16386 -s rr -6
-a -f 16386 -r [fd00::2]:8080 -m -w 1
@@sets
create KUBE-IPVS-IPS hash:ip family inet hashsize 1024 maxelem 65536 bucketsize 12 initval 0x1
add KUBE-IPVS-IPS 10.96.0.10
create KUBE-IN-CLUSTER-MARK hash:ip,port family inet hashsize 1024 maxelem 65536 skbinfo bucketsize 12 initval 0x1
add KUBE-IN-CLUSTER-MARK 192.0.2.1,tcp:80 skbmark 0x4001
@@bound
local 10.96.0.10 dev kube-ipvs0 src 172.18.0.2
local fd00::1 dev kube-ipvs0 metric 1024 pref medium
@@rules-IPv4
*nat
:KUBE-IPVS-SERVICES - [0:0]
-A KUBE-IPVS-SERVICES -s 127.0.0.0/8 -j RETURN
COMMIT
@@flows
udp      17 597 src=10.44.7.90 dst=10.117.13.1 sport=40001 dport=4443 [UNREPLIED] src=10.44.3.231 dst=10.44.7.90 sport=5443 dport=40009 mark=0 use=1
";

    #[test]
    fn the_tools_output_is_understood() {
        let observed = Observed::read(PRINTED).unwrap();
        let web = &observed.virtual_servers["10.96.0.10,tcp:80"];
        assert_eq!(web.config, "rr, persistent for 75 s");
        assert_eq!(web.real_servers, BTreeSet::from(["10.244.1.2#8080 weight 0".to_owned()]));
        assert_eq!(observed.virtual_servers["fd00::1,sctp:2905"].config, "mh, flags 0x18");
        assert_eq!(observed.marked[&(Family::V4, 16385)].real_servers.len(), 1);
        assert_eq!(observed.marked[&(Family::V6, 16386)].config, "rr");
        assert_eq!(observed.marks["192.0.2.1,tcp:80"], 0x4001);
        assert_eq!(observed.bound, BTreeSet::from(["10.96.0.10".to_owned(), "fd00::1".to_owned()]));
        assert_eq!(observed.rules[&Family::V4][0].text, "-s 127.0.0.0/8 -j RETURN");
        assert_eq!(observed.flows, BTreeSet::from([40001]));
    }

    #[test]
    fn another_forwarding_method_is_seen() {
        let observed = Observed::read("@@ipvs\n-A -t 10.0.0.1:80 -s rr\n-a -t 10.0.0.1:80 -r 10.0.1.1:80 -g -w 1\n").unwrap();
        assert!(observed.virtual_servers["10.0.0.1,tcp:80"].real_servers.iter().all(|real| real.contains("-g")));
    }
}
