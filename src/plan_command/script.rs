//! For other people's tools: a shell script that makes the same changes with `ipset restore`, `iptables-restore`, `ipvsadm -R` and `ip`.
//!
//! It does what an agent does when it starts, in the same order. What an agent does afterwards it cannot: real servers that leave keep weight 0, and
//! nothing follows the next change.

use std::fmt;
use std::io::{self, Write};
use std::net::{IpAddr, SocketAddr};

use kernel::{Flavour, Timeouts};
use model::{
    DEVICE, Family, Flags, ForwardingMethod, Member, Protocol, RealServer, RealServerKey, Set, SetKind, Via, Vip,
    VirtualServerConfig, VirtualServerKey,
};
use plan::{RulesChange, Stage, Step};

use crate::cli::Proxy;
use crate::survey::{Setting, Survey};

/// A set that grows is filled under this name, as by an agent.
const GROWING: &str = "KUBE-IPVS-GROWING";
/// `RTPROT_` number of the agent's routes.
const PROTOCOL: u8 = 71;

/// A line of input for one of the tools, or a command by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Tool {
    Ipset,
    Ipvsadm,
    /// Lines of one of the programs that restore packet rules.
    Iptables(&'static str),
    Shell,
}

pub(super) fn print(out: &mut impl Write, survey: &Survey, proxy: &Proxy) -> io::Result<()> {
    writeln!(
        out,
        "#!/bin/sh\n# What kube-ipvs would change on node {}: run it as root, as long as nothing else changes the node.\nset -eu",
        survey.index.config().node_name
    )?;
    let mut lines = Vec::new();
    survey.settings.iter().for_each(|setting| lines.push(set(setting)));
    for (stage, steps) in survey.adoption.stages().chain(survey.plan.stages()) {
        steps.iter().for_each(|step| write_step(&mut lines, survey.kernel.flavour(), step));
        if stage == Stage::UnbindVips && steps.iter().any(unbinds_ipv4_address) {
            // With the last IPv4 address of a device Linux takes all IPv4 routes of the device along.
            let routes = survey.desired.vips.iter().filter(|(vip, _)| vip.via == Via::Route && vip.family() == Family::V4);
            lines.extend(routes.map(|(vip, source)| (Tool::Shell, bind("replace", *vip, *source))));
        }
    }
    if survey.removes_leftovers(proxy) {
        for (flavour, family, removal) in survey.leftovers.rules() {
            lines.push((Tool::Iptables(flavour.restoring_program(family)), removal.trim_end().to_owned()));
        }
        lines.extend(survey.leftovers.sets().iter().map(|set| (Tool::Shell, destroy_unused(set))));
    }
    for lines in lines.chunk_by(|(one, _), (two, _)| one == two) {
        let Some((tool, _)) = lines.first() else { continue };
        let command = match tool {
            Tool::Ipset => Some("ipset -exist restore".to_owned()),
            Tool::Ipvsadm => Some("ipvsadm -R".to_owned()),
            Tool::Iptables(program) => Some(format!("{program} --noflush -w 5")),
            Tool::Shell => None,
        };
        if let Some(command) = &command {
            writeln!(out, "{command} <<'EOF'")?;
        }
        lines.iter().try_for_each(|(_, line)| writeln!(out, "{line}"))?;
        if command.is_some() {
            writeln!(out, "EOF")?;
        }
    }
    Ok(())
}

fn unbinds_ipv4_address(step: &Step) -> bool {
    matches!(step, Step::UnbindVip(vip) if vip.via == Via::Address && vip.family() == Family::V4)
}

fn set(setting: &Setting) -> (Tool, String) {
    let command = match setting {
        Setting::Sysctl { sysctl, .. } => format!("echo {} >/proc/sys/{}", sysctl.value, sysctl.name.replace('.', "/")),
        Setting::Timeouts { to: Timeouts { tcp, tcp_fin, udp }, .. } => format!("ipvsadm --set {tcp} {tcp_fin} {udp}"),
    };
    (Tool::Shell, command)
}

/// nf_tables lets go of a set some time after the rules that asked it are gone.
fn destroy_unused(set: &str) -> String {
    format!("ipset destroy {set} || {{ sleep 5; ipset destroy {set}; }}")
}

fn write_step(lines: &mut Vec<(Tool, String)>, flavour: Flavour, step: &Step) {
    let mut ipset = |line: String| lines.push((Tool::Ipset, line));
    match step {
        Step::CreateSet { set, capacity, .. } => ipset(create(set.name(), *set, *capacity)),
        Step::GrowSet { set, capacity, members } => {
            ipset(create(GROWING, *set, *capacity));
            members.iter().for_each(|member| ipset(format!("add {GROWING} {member}")));
            ipset(format!("swap {GROWING} {set}"));
            ipset(format!("destroy {GROWING}"));
        }
        Step::AddMembers(set, members) => members.iter().for_each(|member| ipset(format!("add {set} {member}"))),
        Step::RemoveMembers(set, members) => members.iter().for_each(|member| ipset(format!("del {set} {}", unmarked(*member)))),
        Step::DestroySet(set) => lines.push((Tool::Shell, destroy_unused(set.name()))),
        Step::ChangeRules(family, change) => lines.push(restore(flavour, *family, change)),
        Step::AddVirtualServer { key, config, real_servers } => {
            lines.push((Tool::Ipvsadm, format!("-A {}{}", Key(*key), Settings(config, key.family()))));
            let servers = real_servers.iter().map(|(real, server)| real_server("-a", key, real, server));
            lines.extend(servers.map(|line| (Tool::Ipvsadm, line)));
        }
        Step::SetVirtualServer { key, config } => {
            lines.push((Tool::Ipvsadm, format!("-E {}{}", Key(*key), Settings(config, key.family()))));
        }
        Step::AddRealServer { key, real, server } => lines.push((Tool::Ipvsadm, real_server("-a", key, real, server))),
        Step::SetRealServer { key, real, server } => lines.push((Tool::Ipvsadm, real_server("-e", key, real, server))),
        Step::RemoveRealServer { key, real } => lines.push((Tool::Ipvsadm, format!("-d {} -r {}", Key(*key), real))),
        Step::RemoveVirtualServer(key) => lines.push((Tool::Ipvsadm, format!("-D {}", Key(*key)))),
        Step::BindVip { vip, source } => {
            let device = format!(
                "ip link show {DEVICE} >/dev/null 2>&1 || ip link add {DEVICE} type dummy; ip link set {DEVICE} up; {}",
                // In IPv4 the kernel's own route to an address is in the way of another that is added.
                bind(if vip.via == Via::Route { "prepend" } else { "add" }, *vip, *source)
            );
            lines.push((Tool::Shell, device));
        }
        // The kernel makes the routes of an address when it is bound.
        Step::RebindVip { vip, source } if vip.via == Via::Address => {
            let again = ["del", "add"].map(|verb| (Tool::Shell, bind(verb, *vip, *source)));
            lines.extend(again);
        }
        Step::RebindVip { vip, source } => lines.push((Tool::Shell, bind("replace", *vip, *source))),
        Step::UnbindVip(vip) => lines.push((Tool::Shell, bind("del", *vip, None))),
    }
}

fn create(name: &str, set: Set, capacity: u32) -> String {
    let family = match set.family {
        Family::V4 => "inet",
        Family::V6 => "inet6",
    };
    let marks = if set.kind() == SetKind::HashIpPortMark { " skbinfo" } else { "" };
    format!("create {name} {} family {family} maxelem {capacity}{marks}", set.kind().name())
}

/// The kernel knows a member without its mark.
fn unmarked(member: Member) -> String {
    match member {
        Member::IpPortMark(address, protocol, port, _) => Member::IpPort(address, protocol, port).to_string(),
        member => member.to_string(),
    }
}

fn restore(flavour: Flavour, family: Family, change: &RulesChange) -> (Tool, String) {
    let input = Flavour::restoring_input(change);
    (Tool::Iptables(flavour.restoring_program(family)), input.trim_end().to_owned())
}

fn bind(verb: &str, vip: Vip, source: Option<IpAddr>) -> String {
    let (family, bits) = match vip.family() {
        Family::V4 => ("-4", 32),
        Family::V6 => ("-6", 128),
    };
    let address = vip.address;
    match vip.via {
        Via::Route => {
            let source = source.map(|source| format!(" src {source}")).unwrap_or_default();
            // IPv6 has no scopes.
            let scope = if vip.family() == Family::V4 && verb != "del" { " scope host" } else { "" };
            format!("ip {family} route {verb} local {address} dev {DEVICE} table local proto {PROTOCOL}{scope}{source}")
        }
        Via::Address => {
            // A VIP is on every node by design, so asking who else has it is no use.
            let flags = if vip.family() == Family::V6 && verb != "del" { " nodad" } else { "" };
            format!("ip {family} address {verb} {address}/{bits} dev {DEVICE}{flags}")
        }
    }
}

/// A virtual server as ipvsadm is given it.
struct Key(VirtualServerKey);

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            VirtualServerKey::Address { address, port, protocol } => {
                let option = match protocol {
                    Protocol::Tcp => "-t",
                    Protocol::Udp => "-u",
                    Protocol::Sctp => "--sctp-service",
                };
                write!(f, "{option} {}", SocketAddr::new(address, port))
            }
            VirtualServerKey::Mark { family: Family::V4, mark } => write!(f, "-f {mark}"),
            VirtualServerKey::Mark { family: Family::V6, mark } => write!(f, "-f {mark} -6"),
        }
    }
}

/// The settings of a virtual server as ipvsadm is given them, with a space before each.
struct Settings<'a>(&'a VirtualServerConfig, Family);

impl fmt::Display for Settings<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(config, family) = self;
        write!(f, " -s {}", config.scheduler)?;
        if let Some(seconds) = config.persistence {
            write!(f, " -p {seconds}")?;
            if config.granularity != family.bits() {
                write!(f, " -M {}", family.mask(config.granularity))?;
            }
        }
        if config.flags.contains(Flags::ONE_PACKET) {
            write!(f, " -o")?;
        }
        let flags: Vec<_> = [(Flags::SCHED_1, "flag-1"), (Flags::SCHED_2, "flag-2"), (Flags::SCHED_3, "flag-3")]
            .into_iter()
            .filter(|(flag, _)| config.flags.contains(*flag))
            .map(|(_, name)| name)
            .collect();
        if !flags.is_empty() {
            write!(f, " -b {}", flags.join(","))?;
        }
        Ok(())
    }
}

fn real_server(verb: &str, key: &VirtualServerKey, real: &RealServerKey, server: &RealServer) -> String {
    let method = match server.forwarding {
        ForwardingMethod::Masquerade => "-m",
        ForwardingMethod::Tunnel => "-i",
        // ipvsadm makes local servers of those whose address the node has.
        ForwardingMethod::DirectRouting | ForwardingMethod::Local | ForwardingMethod::Bypass => "-g",
    };
    let RealServer { weight, upper_threshold, lower_threshold, .. } = server;
    let mut line = format!("{verb} {} -r {real} {method} -w {weight}", Key(*key));
    if *upper_threshold > 0 {
        line.push_str(&format!(" -x {upper_threshold}"));
    }
    if *lower_threshold > 0 {
        line.push_str(&format!(" -y {lower_threshold}"));
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use std::num::NonZeroU32;

    use model::{Role, Scheduler};

    fn lines(step: &Step) -> Vec<String> {
        let mut lines = Vec::new();
        write_step(&mut lines, Flavour::Nft, step);
        lines.into_iter().map(|(tool, line)| format!("{tool:?}: {line}")).collect()
    }

    #[test]
    fn virtual_servers_are_in_the_words_of_ipvsadm() {
        let key = VirtualServerKey::address("fd00:96::a".parse().unwrap(), Protocol::Sctp, 80);
        let mut config = VirtualServerConfig::new(Scheduler::new("mh").unwrap(), Family::V6);
        config.persistence = NonZeroU32::new(10_800);
        config.granularity = 64;
        config.flags = Flags::SCHED_1.with(Flags::SCHED_2).with(Flags::ONE_PACKET);
        let real = RealServerKey::new("fd00:244::2".parse().unwrap(), 8080);
        let server = RealServer { upper_threshold: 9, ..RealServer::default() };
        assert_eq!(
            lines(&Step::AddVirtualServer { key, config, real_servers: vec![(real, server)] }),
            [
                "Ipvsadm: -A --sctp-service [fd00:96::a]:80 -s mh -p 10800 -M 64 -o -b flag-1,flag-2",
                "Ipvsadm: -a --sctp-service [fd00:96::a]:80 -r [fd00:244::2]:8080 -m -w 1 -x 9",
            ]
        );
        let mark = VirtualServerKey::Mark { family: Family::V6, mark: NonZeroU32::new(7).unwrap() };
        assert_eq!(lines(&Step::RemoveVirtualServer(mark)), ["Ipvsadm: -D -f 7 -6"]);
        assert_eq!(
            lines(&Step::RemoveRealServer { key, real }),
            ["Ipvsadm: -d --sctp-service [fd00:96::a]:80 -r [fd00:244::2]:8080"]
        );
    }

    #[test]
    fn a_member_with_a_mark_goes_by_what_the_kernel_knows_it_by() {
        let set = Set::new(Role::InCluster, Family::V4);
        let member = Member::IpPortMark("192.0.2.1".parse().unwrap(), Protocol::Tcp, 80, NonZeroU32::new(0x4001).unwrap());
        let members = BTreeSet::from([member]);
        assert_eq!(
            lines(&Step::AddMembers(set, members.clone())),
            ["Ipset: add KUBE-IN-CLUSTER-MARK 192.0.2.1,tcp:80 skbmark 0x4001"]
        );
        assert_eq!(lines(&Step::RemoveMembers(set, members)), ["Ipset: del KUBE-IN-CLUSTER-MARK 192.0.2.1,tcp:80"]);
        assert_eq!(
            lines(&Step::CreateSet { set, capacity: 65_536, expected: 1 }),
            ["Ipset: create KUBE-IN-CLUSTER-MARK hash:ip,port family inet maxelem 65536 skbinfo"]
        );
    }

    #[test]
    fn vips_are_bound_in_both_ways() {
        let vip = |address: &str, via| Vip::new(address.parse().unwrap(), via);
        let source = Some("192.0.2.7".parse().unwrap());
        assert_eq!(
            bind("prepend", vip("10.96.0.10", Via::Route), source),
            "ip -4 route prepend local 10.96.0.10 dev kube-ipvs0 table local proto 71 scope host src 192.0.2.7"
        );
        assert_eq!(bind("add", vip("fd00:96::a", Via::Address), None), "ip -6 address add fd00:96::a/128 dev kube-ipvs0 nodad");
        assert_eq!(
            lines(&Step::UnbindVip(vip("fd00:96::a", Via::Route))),
            ["Shell: ip -6 route del local fd00:96::a dev kube-ipvs0 table local proto 71"]
        );
        let again = lines(&Step::RebindVip { vip: vip("10.96.0.10", Via::Address), source: None });
        assert_eq!(
            again,
            ["Shell: ip -4 address del 10.96.0.10/32 dev kube-ipvs0", "Shell: ip -4 address add 10.96.0.10/32 dev kube-ipvs0"],
            "an address that is there gets no routes by being replaced"
        );
    }
}
