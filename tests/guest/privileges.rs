//! What an agent may do besides its work: next to nothing.

use std::fs;
use std::process::Output;

use anyhow::ensure;
use testkit::manifest::{EndpointSlice, Service};
use testkit::{Family, Netns, On, Pod, Protocol, Result, World, answers, eventually};

use crate::support::{PATIENCE, members, node, serving, target, vip, virtual_servers};

/// The command that runs the rest of its line with these capabilities and no way to get others, as a container does that may not escalate.
fn with_only(capabilities: &[&str]) -> [String; 4] {
    let set = capabilities.iter().fold("-all".to_owned(), |set, capability| format!("{set},+{capability}"));
    ["setpriv".to_owned(), "--no-new-privs".to_owned(), format!("--bounding-set={set}"), format!("--inh-caps={set}")]
}

/// Runs the agent once with these capabilities.
fn run_with(world: &World, node: &Netns, capabilities: &[&str]) -> Result<Output> {
    let (with, manifests) = (with_only(capabilities), world.manifests().display().to_string());
    let run = ["kube-ipvs", "run", "--once", "--node-name", "node", "--manifests", &manifests];
    node.try_exec(&[&with.each_ref().map(String::as_str)[..], &run].concat())
}

#[test]
fn two_capabilities_are_enough_and_each_is_needed() {
    World::test(|world| {
        let (pod, _serve) = serving(world, "a", On::Node)?;
        world.write("node.yaml", &node().to_string())?;
        let address = vip(Family::V4, 10);
        world.write(
            "web.yaml",
            &Service::new("web").cluster_ip(&address.to_string()).port("http", Protocol::Tcp, 80, 8080).to_string(),
        )?;
        world.write("endpoints.yaml", &EndpointSlice::ipv4("web").port("http", Protocol::Tcp, 8080).pod(&pod).to_string())?;
        for (capabilities, lacking) in [(&["net_admin"][..], "CAP_NET_RAW"), (&["net_raw"], "CAP_NET_ADMIN")] {
            let output = run_with(world, world.node(), capabilities)?;
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            ensure!(output.status.code() == Some(4), "{}: {said}", output.status);
            ensure!(said.contains(&format!("{lacking}: this process lacks the capability")), "{said}");
        }
        let output = run_with(world, world.node(), &["net_admin", "net_raw"])?;
        ensure!(output.status.success(), "{}: {}", output.status, String::from_utf8_lossy(&output.stderr));
        let replies = world.node().call(Protocol::Tcp, &target(address, 80), 2)?;
        ensure!(replies.iter().all(|reply| reply.outcome.is_ok()), "{replies:?}");
        Ok(())
    });
}

/// The reason for the second: the set match of iptables opens a raw socket in either flavour, be it to load a rule or to print one (`get_version`,
/// extensions/libxt_set.h), and iptables-legacy opens one for whatever it does. Of the agent's rules most ask sets.
#[test]
fn iptables_reads_and_loads_rules_that_ask_sets_through_a_raw_socket_in_either_flavour() {
    World::test(|world| {
        const PLAIN: &str = "*filter\n:PLAIN - [0:0]\n-A PLAIN -j RETURN\nCOMMIT\n";
        const ASKING: &str = "*filter\n:ASKING - [0:0]\n-A ASKING -m set --match-set ASKED dst -j RETURN\nCOMMIT\n";
        let works = |node: &Netns, capabilities: &[&str], program: &str, input: &str| -> Result<bool> {
            let with = with_only(capabilities).join(" ");
            let output = node.try_exec(&["sh", "-c", &format!("printf '%s' \"$0\" | {with} {program}"), input])?;
            Ok(output.status.success())
        };
        let both = ["net_admin", "net_raw"];
        // A node for each: the flavours see each other's tables.
        for (node, flavour, plain) in [(world.node(), "nft", true), (world.node2(), "legacy", false)] {
            node.exec(&["ipset", "create", "ASKED", "hash:ip"])?;
            let restore = format!("iptables-{flavour}-restore --noflush -w");
            for (capabilities, input, wanted) in
                [(&both[..], PLAIN, true), (&both[..1], PLAIN, plain), (&both[..1], ASKING, false), (&both[..], ASKING, true)]
            {
                let works = works(node, capabilities, &restore, input)?;
                ensure!(works == wanted, "{flavour} with {capabilities:?}: {works}, {input}");
            }
            for (capabilities, wanted) in [(&both[..], true), (&both[..1], false)] {
                let works = works(node, capabilities, &format!("iptables-{flavour}-save"), "")?;
                ensure!(works == wanted, "{flavour} reads with {capabilities:?}: {works}");
            }
        }
        Ok(())
    });
}

#[test]
fn what_takes_more_privilege_is_done_by_init() {
    World::test(|world| {
        let node = world.node();
        node.exec(&["sh", "-c", "echo 0 >/proc/sys/net/ipv4/vs/conntrack; echo 0 >/proc/sys/net/ipv4/ip_forward"])?;
        let said = world.kube_ipvs(&["init"])?;
        ensure!(said.contains("module ip_vs is there") && said.contains("set net.ipv4.vs.conntrack from 0 to 1"), "{said}");
        let values = node.exec(&["cat", "/proc/sys/net/ipv4/vs/conntrack", "/proc/sys/net/ipv4/ip_forward"])?;
        ensure!(values == "1\n1\n", "{values}");

        // In a container that is not privileged.
        node.exec(&["sh", "-c", "echo 0 >/proc/sys/net/ipv4/vs/conntrack"])?;
        let read_only = "mount --bind /proc/sys /proc/sys && mount -o remount,ro,bind /proc/sys && kube-ipvs init";
        let output = node.try_exec(&["unshare", "-m", "sh", "-c", read_only])?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(output.status.code() == Some(4), "{}: {said}{}", output.status, String::from_utf8_lossy(&output.stderr));
        ensure!(
            said.contains("cannot set net.ipv4.vs.conntrack from 0 to 1 (/proc/sys is read-only here; run `kube-ipvs init`"),
            "{said}"
        );
        Ok(())
    });
}

/// With nothing to write to but /run, and with the two capabilities, as in the container that the manifests have. It lives for longer than a start: it
/// follows what changes, and is asked.
#[test]
fn a_read_only_root_file_system_is_enough() {
    World::test(|world| {
        let [(a, _serve_a), (b, _serve_b)] = [serving(world, "a", On::Node)?, serving(world, "b", On::Node2)?];
        let service = |name: &str, number| {
            let service = Service::new(name).port("http", Protocol::Tcp, 80, 8080);
            Family::ALL.iter().fold(service, |service, family| service.cluster_ip(&vip(*family, number).to_string()))
        };
        let slices = |name: &str, pods: &[&Pod]| {
            let slice = |family| EndpointSlice::of(name, family).port("http", Protocol::Tcp, 8080);
            Family::ALL.map(|family| pods.iter().fold(slice(family), |slice, pod| slice.pod(pod)).to_string()).concat()
        };
        world.write("web.yaml", &format!("{}{}{}", node(), service("web", 10), slices("web", &[&a])))?;
        let read_only = "for mount in / /tmp /dev; do mount -o remount,ro,bind $mount || exit 1; done
            for place in / /tmp /dev /root; do ! touch $place/x 2>/dev/null || exit 1; done
            exec \"$@\" kube-ipvs run --node-name node --manifests $0 --audit-period 1s --cluster-cidr 10.244.0.0/16,fd00:244::/56";
        let (with, manifests) = (with_only(&["net_admin", "net_raw"]), world.manifests().display().to_string());
        let command = ["unshare", "-m", "sh", "-c", read_only, &manifests];
        let mut agent = world.node().start(&[&command[..], &with.each_ref().map(String::as_str)].concat())?;
        agent.wait_for("changed the kernel's state", PATIENCE)?;
        let effective = fs::read_to_string(format!("/proc/{}/status", agent.id()))?;
        ensure!(effective.contains("\nCapEff:\t0000000000003000\n"), "{effective}");
        let answered_by = |number, pod: &Pod| {
            eventually(PATIENCE, || {
                for family in Family::ALL {
                    let answers = answers(world.node().call(Protocol::Tcp, &target(vip(family, number), 80), 2)?)?;
                    ensure!(answers.iter().all(|answer| answer.name == pod.name()), "{answers:?}");
                }
                Ok(())
            })
        };
        answered_by(10, &a)?;
        world.write("web.yaml", &format!("{}{}{}", node(), service("web", 10), slices("web", &[&b])))?;
        world.write("more.yaml", &format!("{}{}", service("more", 11), slices("more", &[&a])))?;
        answered_by(10, &b)?;
        answered_by(11, &a)?;
        // What others take away it puts back, which takes all that it has: rules, sets and virtual servers.
        for damage in ["iptables -w -t nat -F KUBE-IPVS-SERVICES", "ipset flush KUBE-CLUSTER-IP", "ipvsadm -C"] {
            world.node().exec(&damage.split(' ').collect::<Vec<_>>())?;
        }
        let is_asked = || {
            let rules = world.node().exec(&["iptables", "-w", "-t", "nat", "-S", "KUBE-IPVS-SERVICES"])?;
            ensure!(rules.contains("--match-set KUBE-CLUSTER-IP"), "{rules}");
            ensure!(members(world.node(), "KUBE-CLUSTER-IP")?.len() == 2);
            Ok(())
        };
        eventually(PATIENCE, is_asked)?;
        answered_by(10, &b)?;
        world.remove("more.yaml")?;
        eventually(PATIENCE, || {
            let left = virtual_servers(world.node())?.into_iter().filter(|line| line.contains("10.96.0.11")).count();
            ensure!(left == 0);
            Ok(())
        })?;
        let health = || world.node().exec(&["wget", "-q", "-O", "-", "http://127.0.0.1:10256/healthz"]);
        let health = eventually(PATIENCE, health)?;
        ensure!(health.contains("\"healthy\":true"), "{health}");
        let status = world.kube_ipvs(&["status"])?;
        ensure!(status.contains("default/web:http") && !status.contains("default/more:http"), "{status}");
        ensure!(!agent.output()?.contains("Read-only file system"), "{}", agent.output()?);
        agent.signal("TERM")?;
        ensure!(agent.wait(PATIENCE)?.success(), "it did not end well");
        Ok(())
    });
}

/// In the agent's mount namespace: settings that are there and cannot be set, and settings that an older kernel does not have.
#[test]
fn l3_settings_that_cannot_be_set_or_are_not_there_are_said_and_done_without() {
    const READ_ONLY: &str = "mount --bind /proc/sys /proc/sys && mount -o remount,ro,bind /proc/sys";
    const ABSENT: &str = "mount -t tmpfs tmpfs /proc/sys/net/ipv4/vs";
    for (mount, said) in [
        (READ_ONLY, "cannot set net.ipv4.vs.expire_nodest_conn from 0 to 1 (/proc/sys is read-only here; run `kube-ipvs init`"),
        (ABSENT, "this kernel has no net.ipv4.vs.expire_nodest_conn: "),
    ] {
        World::test(|world| {
            let (pod, _serve) = serving(world, "a", On::Node2)?;
            let service = Service::new("web").port("http", Protocol::Tcp, 80, 8080);
            let service = Family::ALL.iter().fold(service, |service, family| service.cluster_ip(&vip(*family, 10).to_string()));
            let slice = |family| EndpointSlice::of("web", family).port("http", Protocol::Tcp, 8080).pod(&pod).to_string();
            world.write("web.yaml", &format!("{}{service}{}", node(), Family::ALL.map(slice).concat()))?;
            let vs = "cd /proc/sys/net/ipv4/vs && echo 1 >conntrack && echo 0 >expire_nodest_conn";
            world.node().exec(&["sh", "-c", vs])?;
            let run =
                "exec kube-ipvs run --node-name node --audit-period 1s --cluster-cidr 10.244.0.0/16,fd00:244::/56 --manifests $0";
            let run = format!("{mount} && {run}");
            let manifests = world.manifests().display().to_string();
            let mut agent = world.node().start(&["unshare", "-m", "sh", "-c", &run, &manifests])?;
            agent.wait_for(said, PATIENCE)?;
            for caller in [world.node(), world.ext()] {
                for family in Family::ALL {
                    eventually(PATIENCE, || answers(caller.call(Protocol::Tcp, &target(vip(family, 10), 80), 2)?).map(drop))?;
                }
            }
            let once = |output: &str| output.matches(said).count() == 1;
            std::thread::sleep(std::time::Duration::from_secs(3));
            ensure!(once(&agent.output()?), "said once, and not with every audit: {}", agent.output()?);
            let is = world.node().exec(&["cat", "/proc/sys/net/ipv4/vs/expire_nodest_conn"])?;
            ensure!(is == "0\n", "who has set it to {is}?");
            agent.signal("TERM")?;
            ensure!(agent.wait(PATIENCE)?.success(), "it did not end well");
            Ok(())
        });
    }
}
