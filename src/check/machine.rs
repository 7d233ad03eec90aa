//! The machine: its kernel and modules, what this process may do, which other proxies run, and how large its packets may be.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use desired::{Config, DetectLocal, NodeFacts};
use kernel::modules::{self, Module, Presence};
use kernel::{Capability, Ipset, Kernel, Link, Vips};
use model::DEVICE;

use super::finding::Finding;

/// Programs that do what an agent does. Names of processes are cut at 15 bytes.
const RIVALS: [(&str, &str); 2] = [
    ("kube-proxy", "stop it: docs/migrating-from-kube-proxy.md has the way from it"),
    ("kube-router", "stop it, or start it with --run-service-proxy=false"),
];

/// Modules without which nothing is served.
const VITAL: [&str; 4] = ["ip_vs", "ip_set", "dummy", "nf_conntrack"];

pub(super) fn inspect(config: &Config, host_root: &Path, findings: &mut Vec<Finding>) {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned();
    findings.push(kernel_release(&release));
    for capability in Capability::ALL {
        let check = format!("capability CAP_{}", capability.name());
        findings.push(match capability.check() {
            Ok(()) => Finding::ok(check, "this process has it"),
            Err(error) => Finding::error(check, error.to_string().trim_start_matches(&format!("CAP_{}: ", capability.name()))),
        });
    }
    for module in &modules::NEEDED {
        findings.push(of_module(module, modules::presence_on(host_root, module.name, &release)));
    }
    match Kernel::open(&config.families) {
        Ok(mut kernel) => {
            findings.push(Finding::ok("IPVS, ipset and iptables", "the kernel has them, and this process may use them"));
            let (check, scheduler) = (format!("scheduler {}", config.scheduler), config.scheduler);
            findings.push(match kernel.offers(scheduler) {
                Ok(true) => Finding::ok(check, "the kernel has it"),
                Ok(false) => Finding::warn(
                    check,
                    "the kernel does not have it, and rr serves in its place",
                    format!("load its module with `modprobe ip_vs_{scheduler}`, or choose another with --scheduler"),
                ),
                Err(error) => Finding::error(check, error),
            });
        }
        Err(error) => {
            findings.push(Finding::error("IPVS, ipset and iptables", error));
            // Only the first that is missing is in that error.
            findings.extend(Ipset::open().err().map(|error| Finding::error("ipset", error)));
        }
    }
    findings.push(match config.masquerade.detect_local {
        DetectLocal::None if !config.masquerade.all => Finding::warn(
            "pod networks",
            "nothing tells pods from callers outside the cluster, who are not masqueraded and may get no answers",
            "give --cluster-cidr, or another --detect-local-mode",
        ),
        _ => Finding::ok("pod networks", "pods are told from other callers"),
    });
    findings.extend(rivals());
    findings.push(device());
}

fn kernel_release(release: &str) -> Finding {
    let mut numbers = release.split(['.', '-']).map_while(|part| part.parse::<u32>().ok());
    let version = (numbers.next().unwrap_or_default(), numbers.next().unwrap_or_default());
    if version == (0, 0) {
        return Finding::warn("kernel", "its version cannot be read", "mount /proc");
    }
    // "ipvs: allow connection reuse for unconfirmed conntrack", in 5.9 and late updates of those before.
    if version < (5, 9) {
        return Finding::warn(
            "kernel",
            format_args!(
                "{release}: before 5.9, a client that reuses its port within two minutes may wait a second for its connection"
            ),
            "update the kernel to 5.9 or newer",
        );
    }
    Finding::ok("kernel", release)
}

fn of_module(Module { name, effect }: &Module, presence: Presence) -> Finding {
    let check = format!("module {name}");
    match presence {
        Presence::Loaded => Finding::ok(check, "it is there"),
        Presence::Loadable => Finding::ok(check, "it is loaded when it is first asked for, or by `kube-ipvs init`"),
        Presence::Missing => {
            let text = format!("this kernel has none of that name: {effect}");
            let remedy = "install the kernel's package with all modules, or one that was built with it";
            if VITAL.contains(name) { Finding::fail(check, text, remedy) } else { Finding::warn(check, text, remedy) }
        }
        Presence::Unknown => Finding::warn(
            check,
            format!("it is not loaded, and there is no list of modules to look it up in; without it {effect}"),
            "run `kube-ipvs init`, or give --host-root where the host's /lib/modules is to be seen",
        ),
    }
}

/// Other programs that run. Those in other containers are seen with the host's processes (`hostPID`) alone.
fn rivals() -> Vec<Finding> {
    let mut running: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(id) = entry.file_name().to_str().filter(|name| name.bytes().all(|byte| byte.is_ascii_digit())).map(str::to_owned)
        else {
            continue;
        };
        let name = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
        if let Some((rival, _)) = RIVALS.iter().find(|(rival, _)| *rival == name.trim()) {
            running.entry(rival).or_default().push(id);
        }
    }
    let finding = |(rival, remedy): &(&str, &str)| {
        let check = format!("process {rival}");
        match running.get(rival) {
            None => Finding::ok(check, "none is to be seen from here"),
            Some(ids) => {
                Finding::fail(check, format!("it runs (process {}), and would undo what an agent does", ids.join(", ")), *remedy)
            }
        }
    };
    RIVALS.iter().map(finding).collect()
}

fn device() -> Finding {
    let links = match Vips::open().and_then(|mut vips| vips.links()) {
        Ok(links) => links,
        Err(error) => return Finding::error("interfaces", error),
    };
    match links.iter().find(|link| link.name == DEVICE) {
        None => Finding::ok(format!("device {DEVICE}"), "it is not there, and an agent makes it"),
        Some(link) if link.kind.as_deref() != Some("dummy") => {
            Finding::fail(format!("device {DEVICE}"), "it is no dummy device", "rename or remove it: an agent needs the name")
        }
        Some(link) if !link.is_up() => {
            Finding::warn(format!("device {DEVICE}"), "it is down: IPv6 VIPs are not local", format!("`ip link set {DEVICE} up`"))
        }
        Some(_) => Finding::ok(format!("device {DEVICE}"), "it is up"),
    }
}

/// Whether what comes from pods fits through the interface with the node's own address.
pub(super) fn mtu(facts: &NodeFacts) -> Finding {
    let links = match Vips::open().and_then(|mut vips| vips.links()) {
        Ok(links) => links,
        Err(error) => return Finding::error("MTU", error),
    };
    let own = facts.ips.iter().find_map(|ip| facts.interfaces.iter().find(|entry| entry.address == *ip));
    let uplink = own.and_then(|own| links.iter().find(|link| *link.name == *own.interface));
    compare_mtu(uplink, &links)
}

fn compare_mtu(uplink: Option<&Link>, links: &[Link]) -> Finding {
    let Some((uplink, limit)) = uplink.and_then(|link| Some((link, link.mtu?))) else {
        return Finding::warn(
            "MTU",
            "no interface has an address of this Node, so it is not known what packets have to fit through",
            "see --node-name, and the Node's status.addresses",
        );
    };
    let is_larger = |link: &&Link| link.is_up() && !link.is_loopback() && link.name != DEVICE && link.mtu > Some(limit);
    let larger: Vec<_> = links.iter().filter(is_larger).map(|link| link.name.as_str()).collect();
    match larger.as_slice() {
        [] => Finding::ok("MTU", format_args!("{limit} on {}, and nowhere more", uplink.name)),
        [first, others @ ..] => {
            let more = if others.is_empty() { String::new() } else { format!(" and {} more", others.len()) };
            Finding::warn(
                "MTU",
                format_args!(
                    "{first}{more} takes larger packets than {} with its {limit} bytes: answers of pods may get lost where ICMP is",
                    uplink.name
                ),
                "give the pods' network an MTU that fits, in the CNI plugin's configuration",
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(name: &str, mtu: u32) -> Link {
        Link { index: 1, name: name.to_owned(), kind: None, flags: 1, mtu: Some(mtu) }
    }

    #[test]
    fn old_kernels_are_told_apart() {
        assert_eq!(kernel_release("6.12.1-cloud-amd64"), Finding::ok("kernel", "6.12.1-cloud-amd64"));
        assert!(kernel_release("5.8.0").to_string().starts_with("warn  kernel: 5.8.0: before 5.9"));
        assert!(kernel_release("").to_string().contains("cannot be read"));
    }

    #[test]
    fn a_module_that_is_missing_says_what_does_not_work() {
        let dummy = Module { name: "dummy", effect: "there is no device" };
        assert!(
            of_module(&dummy, Presence::Missing)
                .to_string()
                .starts_with("fail  module dummy: this kernel has none of that name: there is no")
        );
        let rr = Module { name: "ip_vs_rr", effect: "x" };
        assert!(of_module(&rr, Presence::Missing).to_string().starts_with("warn"));
        assert!(of_module(&rr, Presence::Unknown).to_string().contains("--host-root"));
    }

    #[test]
    fn larger_packets_than_the_uplinks_are_named() {
        let links = [link("eth0", 1400), link("cni0", 1500), link("veth1", 1500), link(DEVICE, 9000)];
        let finding = compare_mtu(links.first(), &links);
        assert!(
            finding.to_string().starts_with("warn  MTU: cni0 and 1 more takes larger packets than eth0 with its 1400 bytes"),
            "{finding}"
        );
        let fitting = [link("eth0", 1500), link("cni0", 1450), link(DEVICE, 9000)];
        assert_eq!(compare_mtu(fitting.first(), &fitting), Finding::ok("MTU", "1500 on eth0, and nowhere more"));
    }
}
