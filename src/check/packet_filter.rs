//! iptables: in which flavour the agent's rules go, who else has rules and where, and what of them is in the way.

use desired::Config;
use kernel::{Flavour, Inventory, Kernel, Mode};
use model::Family;

use super::finding::Finding;
use crate::survey::OTHER_MODE;

pub(super) fn inspect(config: &Config, findings: &mut Vec<Finding>) {
    let flavour = match Flavour::detect() {
        Ok(flavour) => flavour,
        Err(error) => return findings.push(Finding::error("iptables flavour", error)),
    };
    findings.push(flavours(flavour));
    for family in &config.families {
        findings.push(input_policy(flavour, *family, config.open_input));
    }
    findings.push(match Kernel::open(&config.families).and_then(|mut kernel| kernel.find_kube_proxy()) {
        Err(error) => Finding::error("leftovers of kube-proxy", error),
        Ok(found) => match found.mode() {
            Mode::None => Finding::ok("leftovers of kube-proxy", "there are none"),
            Mode::Ipvs => Finding::warn(
                "leftovers of kube-proxy",
                "its IPVS mode has packet rules here",
                "`kube-ipvs run` takes over what they serve and removes them; `kube-ipvs plan` shows it beforehand",
            ),
            Mode::Iptables => Finding { remedy: None, ..Finding::fail("leftovers of kube-proxy", OTHER_MODE, "") },
        },
    });
}

fn flavours(used: Flavour) -> Finding {
    const CHECK: &str = "iptables flavour";
    let installed = match Flavour::installed() {
        Ok(installed) => installed,
        Err(error) => return Finding::error(CHECK, error),
    };
    match installed
        .into_iter()
        .map(|flavour| Ok((flavour, flavour.inventory(Family::V4)?)))
        .collect::<Result<Vec<_>, kernel::Error>>()
    {
        Ok(inventories) => compare(used, &inventories),
        Err(error) => Finding::error(CHECK, error),
    }
}

fn compare(used: Flavour, inventories: &[(Flavour, Inventory)]) -> Finding {
    const CHECK: &str = "iptables flavour";
    let describe = |(flavour, Inventory { rules, makers }): &(Flavour, Inventory)| {
        let makers: Vec<_> = makers.iter().copied().collect();
        let makers = if makers.is_empty() { String::new() } else { format!(" ({})", makers.join(", ")) };
        format!("{flavour} has {rules} rules{makers}")
    };
    let described: Vec<_> = inventories.iter().map(describe).collect();
    let text = format!("an agent uses {used}; {}", described.join(", "));
    if inventories.iter().filter(|(_, inventory)| inventory.rules > 0).count() > 1 {
        return Finding::warn(
            CHECK,
            text,
            "all of these rules are in force, and tools of one flavour do not see those of the other: have all tools use the same",
        );
    }
    Finding::ok(CHECK, text)
}

fn input_policy(flavour: Flavour, family: Family, open_input: bool) -> Finding {
    let check = format!("INPUT policy ({family})");
    match flavour.input_drops(family) {
        Ok(false) => Finding::ok(check, "ACCEPT"),
        Ok(true) if open_input => Finding::ok(check, "DROP, and --open-input accepts VIPs and node ports ahead of it"),
        Ok(true) => Finding::warn(
            check,
            "DROP: unless rules accept VIPs and node ports, nobody can call them",
            "give --open-input, or have the host's firewall accept them",
        ),
        Err(error) => Finding::error(check, error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_in_two_flavours_are_warned_of_with_their_makers() {
        let inventory = |rules, makers: &[&'static str]| Inventory { rules, makers: makers.iter().copied().collect() };
        let one = [(Flavour::Nft, inventory(12, &["kubelet", "Calico"])), (Flavour::Legacy, inventory(0, &[]))];
        assert_eq!(
            compare(Flavour::Nft, &one).to_string(),
            "ok    iptables flavour: an agent uses iptables-nft; iptables-nft has 12 rules (Calico, kubelet), iptables-legacy has 0 rules"
        );
        let both = [(Flavour::Nft, inventory(12, &["kubelet"])), (Flavour::Legacy, inventory(3, &["Docker"]))];
        let said = compare(Flavour::Nft, &both).to_string();
        assert!(said.starts_with("warn") && said.contains("iptables-legacy has 3 rules (Docker); all of these"), "{said}");
    }
}
