//! Sysctls: what they are, what they should be, and who sets them.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use desired::Config;
use kernel::Vips;
use kernel::sysctl::{self, Outcome, Sysctl};
use model::{DEVICE, Family, Via};

use super::finding::Finding;
use super::origin::{self, Origin};

/// What else to look at, which is for the administrator to set.
const BRIDGED: [(Family, &str); 2] =
    [(Family::V4, "net.bridge.bridge-nf-call-iptables"), (Family::V6, "net.bridge.bridge-nf-call-ip6tables")];

const fn bridged(name: &'static str) -> Sysctl {
    Sysctl {
        name,
        value: Cow::Borrowed("1"),
        effect: "a pod on a bridge that is given another one on the same bridge gets its answers past this node, and does not know them",
        optional: true,
        or_more: false,
    }
}

pub(super) fn inspect(config: &Config, more: &[Sysctl], host_root: &Path, findings: &mut Vec<Finding>) {
    let origins = origin::read(host_root);
    for sysctl in sysctl::NEEDED.iter().chain(more) {
        let remedy = "`kube-ipvs run` sets it where it may write /proc/sys, and `kube-ipvs init` where that may not";
        findings.push(judge(sysctl, &sysctl.check(), origins.get(sysctl.name), remedy));
    }
    let mut checked = Vec::new();
    checked.extend(config.families.contains(&Family::V6).then(|| sysctl::CHECKED_IPV6.clone()));
    checked.extend(BRIDGED.iter().filter(|(family, _)| config.families.contains(family)).map(|(_, name)| bridged(name)));
    for sysctl in &checked {
        let outcome = sysctl.check();
        // Without a bridge's module there is no such sysctl, and no such trouble.
        if !matches!(outcome, Outcome::Absent) {
            let remedy = format!("set it in /etc/sysctl.d, and now with `sysctl -w {}={}`", sysctl.name, sysctl.value);
            findings.push(judge(sysctl, &outcome, origins.get(sysctl.name), &remedy));
        }
    }
    findings.push(strict_arp(config, &origins));
}

fn judge(sysctl: &Sysctl, outcome: &Outcome, origin: Option<&Origin>, remedy: &str) -> Finding {
    let Sysctl { name, value, effect, optional, or_more } = sysctl;
    let check = format!("sysctl {name}");
    let set_otherwise = origin.filter(|origin| origin.value != *value && !or_more);
    match (outcome, set_otherwise) {
        (Outcome::Absent, _) if *optional => Finding::ok(check, "this kernel does not have it, and does without"),
        (Outcome::Absent, _) => Finding::warn(
            check,
            format_args!("it is not there: the kernel has no IPVS yet, or {effect}"),
            "load the module with `modprobe ip_vs`, or run `kube-ipvs init`",
        ),
        (Outcome::Wrong { is, .. }, _) => {
            let by = origin.map_or(String::new(), |origin| format!(", and {}", by_file(origin)));
            Finding::warn(check, format_args!("it is {is}, not {value}{by}: {effect}"), remedy)
        }
        (Outcome::AsNeeded | Outcome::Set { .. }, Some(origin)) => Finding::warn(
            check,
            format_args!("it is {value}, and {} when the host boots or its sysctls are loaded: then {effect}", by_file(origin)),
            "change it there",
        ),
        (Outcome::AsNeeded | Outcome::Set { .. }, None) => match origin {
            Some(origin) => Finding::ok(check, format_args!("{value}, set by {}", origin.file.display())),
            None => Finding::ok(check, format_args!("{value}, set by no file: at run time, or by default")),
        },
    }
}

fn by_file(origin: &Origin) -> String {
    format!("{} sets it to {}", origin.file.display(), origin.value)
}

/// Whether this node says of every VIP, to whoever asks on its networks, that it has it. Load balancers that announce an address by ARP want just one
/// node to.
fn strict_arp(config: &Config, origins: &BTreeMap<String, Origin>) -> Finding {
    const CHECK: &str = "strict ARP";
    if !config.families.contains(&Family::V4) {
        return Finding::ok(CHECK, "IPv4 is not served");
    }
    let links = match Vips::open().and_then(|mut vips| vips.links()) {
        Ok(links) => links,
        Err(error) => return Finding::error(CHECK, error),
    };
    let read = |interface: &str, name: &str| {
        let text = fs::read_to_string(format!("/proc/sys/net/ipv4/conf/{interface}/{name}")).ok()?;
        text.trim().parse::<u32>().ok()
    };
    // The larger of the two values holds (Documentation/networking/ip-sysctl.rst).
    let effective = |interface: &str, name: &str| read("all", name).max(read(interface, name)).unwrap_or_default();
    let asked = links.iter().filter(|link| link.is_up() && !link.is_loopback() && link.name != DEVICE);
    let answering: Vec<_> = asked.map(|link| link.name.as_str()).filter(|name| effective(name, "arp_ignore") == 0).collect();
    match answering.as_slice() {
        [] => {
            let by = origins
                .get("net.ipv4.conf.all.arp_ignore")
                .map_or(String::new(), |origin| format!(", as {} has it", origin.file.display()));
            Finding::ok(CHECK, format_args!("no interface answers for VIPs{by}"))
        }
        [first, others @ ..] => {
            let more = if others.is_empty() { String::new() } else { format!(" and {} more", others.len()) };
            let by = if config.via == Via::Address { "addresses" } else { "local routes" };
            Finding::warn(
                CHECK,
                format_args!(
                    "{first}{more} answers ARP for VIPs, which are {by} of the node: where a load balancer announces its address by ARP, connections may go to the wrong node"
                ),
                "where MetalLB or kube-vip do so, set net.ipv4.conf.all.arp_ignore=1 and net.ipv4.conf.all.arp_announce=2 in /etc/sysctl.d",
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    static FORWARD: Sysctl = Sysctl {
        name: "net.ipv4.ip_forward",
        value: Cow::Borrowed("1"),
        effect: "nothing is forwarded",
        optional: false,
        or_more: false,
    };

    fn said(outcome: &Outcome, file: Option<&str>) -> String {
        let origin = file.map(|value| Origin { file: "/etc/sysctl.d/9.conf".into(), value: value.to_owned() });
        judge(&FORWARD, outcome, origin.as_ref(), "set it").to_string()
    }

    #[test]
    fn who_sets_a_sysctl_is_said_and_who_will_set_it_otherwise() {
        let wrong = Outcome::Wrong { is: "0".to_owned(), error: None };
        assert_eq!(
            said(&Outcome::AsNeeded, None),
            "ok    sysctl net.ipv4.ip_forward: 1, set by no file: at run time, or by default"
        );
        assert_eq!(said(&Outcome::AsNeeded, Some("1")), "ok    sysctl net.ipv4.ip_forward: 1, set by /etc/sysctl.d/9.conf");
        assert_eq!(
            said(&Outcome::AsNeeded, Some("0")),
            "warn  sysctl net.ipv4.ip_forward: it is 1, and /etc/sysctl.d/9.conf sets it to 0 when the host boots or its sysctls are loaded: \
             then nothing is forwarded; change it there"
        );
        assert_eq!(
            said(&wrong, Some("0")),
            "warn  sysctl net.ipv4.ip_forward: it is 0, not 1, and /etc/sysctl.d/9.conf sets it to 0: nothing is forwarded; set it"
        );
        assert_eq!(said(&wrong, None), "warn  sysctl net.ipv4.ip_forward: it is 0, not 1: nothing is forwarded; set it");
        assert!(said(&Outcome::Absent, None).contains("modprobe ip_vs"));
    }
}
