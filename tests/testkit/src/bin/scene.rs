//! A node at work, as `kube-ipvs top` shows it in a terminal: `cargo xtask picture` runs this in a guest and draws what it says.
//!
//! Every line of the screen is printed as a JSON string after `screen: `, with colours as a terminal gets them.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a command-line program: its output is its interface")]

use std::process::ExitCode;
use std::time::Duration;

use anyhow::ensure;
use serde_json::Value;
use testkit::manifest::{EndpointSlice, Node, Service};
use testkit::{Calls, Family, NODE_V4, On, Pod, Process, Protocol, Result, World, eventually};

const PORT: u16 = 8080;
/// Where servers keep their connections open.
const CHAT: u16 = 8081;
/// An emulated guest needs some.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long bursts of traffic last, one after the other, before the picture is taken: a trend has as many looks as there is room for.
const BURSTS: [u64; 6] = [4, 9, 3, 11, 5, 8];
const PAUSE: Duration = Duration::from_secs(5);
const WIDTH: &str = "108";
const HEIGHT: &str = "15";

fn main() -> ExitCode {
    match World::new().and_then(|world| screen(&world)) {
        Ok(screen) => {
            screen.lines().for_each(|line| println!("screen: {}", Value::from(line)));
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("scene: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn screen(world: &World) -> Result<String> {
    let pods: Vec<_> = [
        ("web-6d8f7c9b5-4kx2p", On::Node),
        ("web-6d8f7c9b5-9zq7d", On::Node2),
        ("cart-58b9f7d4c-8xk2m", On::Node2),
        ("coredns-7c65d6cfc9-j4l8v", On::Node),
    ]
    .into_iter()
    .map(|(name, on)| world.pod(name, on))
    .collect::<Result<_>>()?;
    let [web_a, web_b, cart, dns] = pods.as_slice() else { anyhow::bail!("other pods than were asked for") };
    let _serving = pods.iter().map(|pod| pod.serve(PORT)).collect::<Result<Vec<_>>>()?;
    let keeping = |pod: &Pod| pod.start(&["busybox", "nc", "-ll", "-p", &CHAT.to_string(), "-e", "cat"]);
    let _keeping = [web_a, web_b].map(keeping).into_iter().collect::<Result<Vec<_>>>()?;
    let client = world.pod("client", On::Node)?;

    let web = Service::new("web").cluster_ip("10.96.0.10").port("http", Protocol::Tcp, 80, PORT).node_port(30080);
    let chat = Service::new("chat").cluster_ip("10.96.0.40").port("ws", Protocol::Tcp, 80, CHAT);
    let carts = Service::new("cart").cluster_ip("10.96.0.21").port("http", Protocol::Tcp, 80, PORT);
    let names = Service::new("dns").cluster_ip("10.96.0.2").port("dns", Protocol::Udp, 53, PORT);
    let billing = Service::new("billing").cluster_ip("10.96.0.30").port("http", Protocol::Tcp, 80, PORT);
    world.write("node.yaml", &Node::new("node").internal_ip(NODE_V4).to_string())?;
    world.write("services.yaml", &format!("{web}{chat}{carts}{names}{billing}"))?;
    let slice = |service: &str, port: &str, protocol, number, pods: &[&Pod]| {
        let slice = EndpointSlice::ipv4(service).port(port, protocol, number);
        pods.iter().fold(slice, |slice, pod| slice.pod(pod)).to_string()
    };
    world.write("web.yaml", &slice("web", "http", Protocol::Tcp, PORT, &[web_a, web_b]))?;
    world.write("cart.yaml", &slice("cart", "http", Protocol::Tcp, PORT, &[cart]))?;
    world.write("dns.yaml", &slice("dns", "dns", Protocol::Udp, PORT, &[dns]))?;
    world.write("chat.yaml", &slice("chat", "ws", Protocol::Tcp, CHAT, &[web_a, web_b]))?;
    // Another program's, and later its hand in one of ours.
    world.node().exec(&["ipvsadm", "-A", "-t", "192.0.2.1:443", "-s", "wlc"])?;
    world.node().exec(&["ipvsadm", "-a", "-t", "192.0.2.1:443", "-r", "192.0.2.10:443", "-g"])?;
    let _agent = world.agent(&["--audit-period", "1h"])?;
    eventually(PATIENCE, || {
        let table = world.node().exec(&["ipvsadm", "-Sn"])?;
        ensure!(table.contains("-a -t 10.96.0.40:http -r") || table.contains("-a -t 10.96.0.40:80 -r"), "{table}");
        Ok(())
    })?;

    let _traffic = traffic(&client)?;
    let socket = format!("/tmp/tmux-{}", world.node().holder());
    let tmux = |arguments: &[&str]| world.node().exec(&[&["tmux", "-u", "-S", &socket, "-f", "/dev/null"], arguments].concat());
    let top = "LC_ALL=C.UTF-8 kube-ipvs top";
    tmux(&["new-session", "-d", "-x", WIDTH, "-y", HEIGHT, top])?;
    for (burst, seconds) in BURSTS.into_iter().enumerate() {
        let (protocol, target) = if burst % 2 == 0 { (Protocol::Tcp, "10.96.0.10:80") } else { (Protocol::Udp, "10.96.0.2:53") };
        let calls = client.keep_calling(protocol, target, Duration::from_millis(25))?;
        std::thread::sleep(Duration::from_secs(seconds));
        calls.stop()?;
        std::thread::sleep(PAUSE);
    }
    world.write("chat.yaml", &slice("chat", "ws", Protocol::Tcp, CHAT, &[web_a]))?;
    let real = format!("{}:{PORT}", cart.address(Family::V4));
    world.node().exec(&["ipvsadm", "-e", "-t", "10.96.0.21:80", "-r", &real, "-m", "-w", "3"])?;
    let screen = eventually(PATIENCE, || {
        let screen = tmux(&["capture-pane", "-p", "-e", "-N"])?;
        // Both names stand with their flags.
        let has = |name: &str, flag: char| {
            screen.lines().any(|line| line.contains(name) && line.get(60..).is_some_and(|rest| rest.contains(flag)))
        };
        ensure!(has("default/chat", 'D') && has("default/cart", '!'), "{screen}");
        Ok(screen)
    });
    let _ = tmux(&["kill-server"]);
    screen
}

/// Connections that stay, and requests that come and go.
fn traffic(client: &Pod) -> Result<(Process, [Calls; 3])> {
    let staying = client.start(&["sh", "-c", "for i in 1 2 3 4 5 6 7; do sleep 1000 | busybox nc 10.96.0.40 80 & done; wait"])?;
    let calls = |protocol, target, milliseconds| client.keep_calling(protocol, target, Duration::from_millis(milliseconds));
    let calls = [
        calls(Protocol::Tcp, "10.96.0.10:80", 150)?,
        calls(Protocol::Udp, "10.96.0.2:53", 60)?,
        calls(Protocol::Tcp, "10.96.0.21:80", 400)?,
    ];
    Ok((staying, calls))
}
