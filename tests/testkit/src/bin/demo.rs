//! The agent at work, in a minute: `cargo xtask demo` runs this in a guest. Every step checks what it shows, and the first that does not hold ends
//! the demo with exit code 1.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a command-line program: its output is its interface")]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use clap::Parser;
use testkit::manifest::{EndpointSlice, Node, Service};
use testkit::{Answer, EXT_V4, Family, NODE_V4, NODE_V6, Netns, On, Pod, Protocol, Result, World, answers, eventually, shares};

const VIP: &str = "10.96.0.10";
const PORT: u16 = 80;
const NODE_PORT: u16 = 30080;
const POD_PORT: u16 = 8080;

/// The agent starts and syncs in well under a second; an emulated guest needs some.
const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Parser)]
#[command(about = "Shows kube-ipvs at work in network namespaces")]
struct Arguments {
    /// Start a shell in the finished world
    #[arg(long)]
    shell: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let world = match World::new() {
        Ok(world) => world,
        Err(error) => {
            eprintln!("demo: {error:#}");
            return ExitCode::FAILURE;
        }
    };
    let start = Instant::now();
    match show(&world, &arguments) {
        Ok(()) => {
            println!("\nEverything held ({:.0} s).", start.elapsed().as_secs_f32());
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("\n{}\ndemo: this step did not hold: {error:#}", world.diagnosis());
            ExitCode::FAILURE
        }
    }
}

fn show(world: &World, arguments: &Arguments) -> Result {
    heading("A node with two pods and a client pod, a third pod on another node, and a client outside of the cluster");
    let pods = [("a", On::Node), ("b", On::Node), ("c", On::Node2)].map(|(name, on)| world.pod(name, on));
    let pods = pods.into_iter().collect::<Result<Vec<_>>>()?;
    let client = world.pod("client", On::Node)?;
    let mut servers = pods.iter().map(|pod| pod.serve(POD_PORT)).collect::<Result<Vec<_>>>()?;
    println!("node    {NODE_V4}  (pods 10.244.1.0/24)");
    for pod in pods.iter().chain([&client]) {
        println!("{:<7} {:<11} on {}", pod.name(), pod.address(Family::V4), pod.on().name());
    }
    println!("ext     {EXT_V4}, which knows no way to pods");

    heading("The Service `web` and its endpoints, as files");
    let node = Node::new("node").internal_ip(NODE_V4).internal_ip(NODE_V6);
    let service = Service::new("web").cluster_ip(VIP).port("http", Protocol::Tcp, PORT, POD_PORT).node_port(NODE_PORT);
    world.write("node.yaml", &node.to_string())?;
    world.write("service.yaml", &service.to_string())?;
    world.write("endpoints.yaml", &slice(&pods).to_string())?;
    command("cat service.yaml endpoints.yaml");
    print!("{service}{}", slice(&pods));

    heading("The agent");
    command("kube-ipvs run --manifests manifests/ --node-name node --cluster-cidr 10.244.0.0/16,fd00:244::/56 &");
    let _agent = world.agent(&[])?;
    let table = table_with(world, &pods, &[])?;
    command("kube-ipvs status");
    print!("{table}");

    heading("Twelve requests from a pod to the ClusterIP, spread over three pods");
    let replies = call(&client, "client", &format!("{VIP}:{PORT}"), 12)?;
    ensure!(
        shares(&replies) == BTreeMap::from([("a", 4), ("b", 4), ("c", 4)]),
        "the requests are not spread evenly: {:?}",
        shares(&replies)
    );
    ensure!(
        replies.iter().all(|answer| answer.peer.ip() == client.address(Family::V4)),
        "a pod's own address was translated on the way to a pod"
    );

    heading("A NodePort from outside");
    let replies = call(world.ext(), "ext", &format!("{NODE_V4}:{NODE_PORT}"), 3)?;
    ensure!(shares(&replies).len() == 3, "the requests are not spread: {:?}", shares(&replies));
    ensure!(replies.iter().all(|answer| answer.peer.ip() != EXT_V4), "a request from outside came to a pod without masquerade");
    println!("The pods see the node as the caller: their answers go back through it.");

    heading("A pod that reaches itself through its own Service");
    let [first, ..] = pods.as_slice() else { anyhow::bail!("there are no pods") };
    let replies = call(first, first.name(), &format!("{VIP}:{PORT}"), 3)?;
    let own = replies.iter().find(|answer| answer.name == first.name()).context("no request came back to the pod itself")?;
    ensure!(
        own.peer.ip() != first.address(Family::V4),
        "the pod saw itself as the caller: its answer would not have gone through the node"
    );
    println!("It answered itself, and saw {} as the caller.", own.peer.ip());

    heading("Scaling: pod d joins and pod b leaves (weight 0 until its connections end), by editing endpoints.yaml");
    let joining = world.pod("d", On::Node)?;
    servers.push(joining.serve(POD_PORT)?);
    let mut scaled = pods;
    let leaving = scaled.remove(1);
    scaled.push(joining);
    let edit = Instant::now();
    world.write("endpoints.yaml", &slice(&scaled).to_string())?;
    let table = table_with(world, &scaled, &[&leaving])?;
    println!("In the kernel after {} ms at most.", edit.elapsed().as_millis());
    command("kube-ipvs status");
    print!("{table}");
    let replies = call(&client, "client", &format!("{VIP}:{PORT}"), 12)?;
    ensure!(
        shares(&replies) == BTreeMap::from([("a", 4), ("c", 4), ("d", 4)]),
        "the requests are not spread evenly: {:?}",
        shares(&replies)
    );

    if arguments.shell {
        let hosts = [("node", world.node()), ("node2", world.node2()), ("ext", world.ext()), ("client", &*client)];
        shell(world, hosts.into_iter().chain(scaled.iter().map(|pod| (pod.name(), &**pod))).collect())?;
    }
    Ok(())
}

fn heading(text: &str) {
    println!("\n== {text}\n");
}

fn command(text: &str) {
    println!("$ {text}");
}

fn slice(pods: &[Pod]) -> EndpointSlice {
    pods.iter().fold(EndpointSlice::ipv4("web").port("http", Protocol::Tcp, POD_PORT), EndpointSlice::pod)
}

/// The agent's table once it has both virtual servers with exactly these pods (of those named) as real servers that take calls.
fn table_with(world: &World, present: &[Pod], absent: &[&Pod]) -> Result<String> {
    let real_server = |pod: &Pod| format!("{}:{POD_PORT} ", pod.address(Family::V4));
    eventually(PATIENCE, || {
        let table = world.kube_ipvs(&["status"])?;
        for virtual_server in [format!("{VIP}:{PORT} "), format!("{NODE_V4}:{NODE_PORT} ")] {
            ensure!(table.contains(&virtual_server), "no virtual server {virtual_server}in the table:\n{table}");
        }
        for pod in present {
            // One below the ClusterIP, one below the node port.
            ensure!(
                table.matches(&real_server(pod)).count() == 2,
                "pod {} is not below both virtual servers:\n{table}",
                pod.name()
            );
        }
        for pod in absent {
            // It may stay with weight 0 until its last connections are forgotten.
            let mut lines = table.lines().filter(|line| line.contains(&real_server(pod)));
            let is_leaving = |line: &str| line.split_whitespace().nth(3) == Some("0");
            ensure!(lines.all(is_leaving), "pod {} still gets connections:\n{table}", pod.name());
        }
        Ok(table)
    })
}

/// Makes calls that must all be answered, and shows who answered.
fn call(from: &Netns, name: &str, target: &str, count: u16) -> Result<Vec<Answer>> {
    command(&format!("[{name}] probe call tcp {target} --count {count}"));
    let answers = answers(from.call(Protocol::Tcp, target, count)?)?;
    for answer in &answers {
        println!("pod {} ({}) answered; it saw {}", answer.name, answer.local, answer.peer);
    }
    let shares: Vec<String> = shares(&answers).into_iter().map(|(name, count)| format!("{name} {count}")).collect();
    println!("=> {}", shares.join(", "));
    Ok(answers)
}

/// A shell in which the names of hosts and pods are commands that run others there.
fn shell(world: &World, hosts: Vec<(&str, &Netns)>) -> Result {
    let directory = world.manifests().with_file_name("bin");
    fs::create_dir_all(&directory).context("cannot create the directory of the commands")?;
    let mut names = Vec::new();
    for (name, netns) in hosts {
        let path = directory.join(name);
        fs::write(&path, format!("#!/bin/sh\n[ $# -gt 0 ] || set -- bash\n{} \"$@\"\n", netns.shell_prefix()))
            .with_context(|| format!("cannot write {}", path.display()))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))
            .with_context(|| format!("cannot make {} a program", path.display()))?;
        names.push(name);
    }
    heading("A shell");
    println!("Run something on a host or in a pod by its name: {}. For example:", names.join(", "));
    println!(
        "  node kube-ipvs status\n  node ipvsadm -Ln\n  client probe call tcp {VIP}:{PORT} --count 3\n  vi {}/endpoints.yaml",
        world.manifests().display()
    );
    println!("The world goes when you leave the shell.\n");
    let path = std::env::var("PATH").unwrap_or_default();
    Command::new("bash")
        .args(["--norc", "-i"])
        .env("PATH", format!("{}:{path}", directory.display()))
        .env("PS1", "demo:\\w# ")
        .status()
        .context("cannot start a shell")?;
    Ok(())
}
