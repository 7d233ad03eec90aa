//! `kube-ipvs top` in a real terminal.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use testkit::manifest::Service;
use testkit::{Netns, On, Protocol, Result, World, eventually};

use crate::support::{PATIENCE, POD_PORT, node, serving, slices, started};

/// What shows that the terminal was put back: canonical mode is off while keys are read one by one.
const AFTERWARDS: &str = "; echo ended with $?; stty -a | tr ' ;' '\\n\\n' | grep icanon; sleep 600";

/// A terminal of 80 columns and 24 lines, which is tmux. It ends with this value.
struct Terminal<'a> {
    netns: &'a Netns,
    socket: String,
}

impl<'a> Terminal<'a> {
    /// Runs a shell line in it.
    fn start(netns: &'a Netns, name: &str, line: &str) -> Result<Self> {
        // Nodes of other tests have the same name.
        let terminal = Self { netns, socket: format!("/tmp/tmux-{}-{name}", netns.holder()) };
        terminal.tmux(&["-f", "/dev/null", "new-session", "-d", "-x", "80", "-y", "24", line])?;
        Ok(terminal)
    }

    fn tmux(&self, arguments: &[&str]) -> Result<String> {
        self.netns.exec(&[&["tmux", "-S", &self.socket], arguments].concat())
    }

    fn press(&self, keys: &[&str]) -> Result {
        self.tmux(&[&["send-keys"], keys].concat()).map(drop)
    }

    /// What is on the screen, once all of these words are.
    fn wait_for(&self, words: &[&str]) -> Result<String> {
        eventually(PATIENCE, || {
            let screen = self.tmux(&["capture-pane", "-p"])?;
            ensure!(words.iter().all(|word| screen.contains(word)), "not all of {words:?} are on the screen:\n{screen}");
            Ok(screen)
        })
    }

    /// The same with colours, as a terminal gets them.
    fn colours(&self) -> Result<String> {
        self.tmux(&["capture-pane", "-p", "-e"])
    }
}

impl Drop for Terminal<'_> {
    fn drop(&mut self) {
        let _ = self.tmux(&["kill-server"]);
    }
}

fn services(world: &World, pods: [&testkit::Pod; 2]) -> Result {
    let web = Service::new("web")
        .cluster_ip("10.96.0.10")
        .cluster_ip("fd00:96::10")
        .port("tcp", Protocol::Tcp, 80, POD_PORT)
        .node_port(30080);
    let plain = Service::new("plain").cluster_ip("10.96.0.20").port("tcp", Protocol::Tcp, 80, POD_PORT);
    let empty = Service::new("empty").cluster_ip("10.96.0.30").port("tcp", Protocol::Tcp, 80, POD_PORT);
    world
        .write("services.yaml", &format!("{}{web}{}{plain}{}{empty}", node(), slices("web", &pods), slices("plain", &[pods[0]])))?;
    world.node().exec(&["ipvsadm", "-A", "-t", "192.0.2.1:443", "-s", "rr"]).map(drop)
}

#[test]
fn top_shows_services_and_their_servers_in_a_terminal() {
    World::test(|world| {
        let (a, _serve_a) = serving(world, "a", On::Node)?;
        let (b, _serve_b) = serving(world, "b", On::Node2)?;
        let client = world.pod("client", On::Node)?;
        services(world, [&a, &b])?;
        let _agent = started(world, &[])?;
        let terminal = Terminal::start(world.node(), "colours", &format!("LC_ALL=C.UTF-8 kube-ipvs top -d 500ms{AFTERWARDS}"))?;
        let screen = terminal.wait_for(&[
            "default/web:tcp",
            "default/plain:tcp",
            "default/empty:tcp",
            "TCP 192.0.2.1:443",
            "node, agent",
        ])?;
        ensure!(screen.lines().all(|line| line.chars().count() <= 80), "{screen}");
        let line = |screen: &str, name: &str| {
            screen.lines().find(|line| line.contains(name)).map(str::to_owned).context(screen.to_owned())
        };
        ensure!(
            line(&screen, "default/empty:tcp")?.contains("0/0") && line(&screen, "default/web:tcp")?.contains("4/4"),
            "{screen}"
        );
        ensure!(line(&screen, "192.0.2.1:443")?.trim_end().ends_with("EF"), "{screen}");
        // Bright black, as terminals of 16 colours say it and as those of 256 do.
        let coloured = terminal.colours()?;
        ensure!(coloured.contains("\x1b[90m") || coloured.contains("\x1b[38;5;8m"), "what is foreign is not grey: {coloured:?}");

        let _calls = client.keep_calling(Protocol::Tcp, "10.96.0.10:80", Duration::from_millis(40))?;
        terminal.press(&["c"])?;
        // Whoever is called comes first, and traffic leaves a trace.
        eventually(PATIENCE, || {
            let screen = terminal.wait_for(&["by new connections a second"])?;
            let first = screen.lines().nth(5).context(screen.clone())?;
            ensure!(first.contains(">default/web:tcp") || first.contains(" default/web:tcp"), "{screen}");
            ensure!(screen.lines().nth(2).is_some_and(|busy| busy.contains(['▁', '▄', '█'])), "{screen}");
            Ok(())
        })?;
        // The kernel adds up what it counts every two seconds: between two looks in that time nobody is called, and others come first.
        let servers = eventually(PATIENCE, || {
            terminal.press(&["Escape"])?;
            std::thread::sleep(Duration::from_millis(300));
            terminal.press(&["Home", "Enter"])?;
            std::thread::sleep(Duration::from_millis(300));
            let screen = terminal.tmux(&["capture-pane", "-p"])?;
            let words = ["default/web:tcp", "TCP 10.96.0.10:80 rr", "SHARE", "10.244.1."];
            ensure!(
                words.iter().all(|word| screen.contains(word)),
                "these are not the servers of the Service that is called:\n{screen}"
            );
            Ok(screen)
        })?;
        ensure!(servers.lines().any(|line| line.contains(" a ")) && servers.lines().any(|line| line.contains(" b ")), "{servers}");
        terminal.press(&["Escape"])?;
        terminal.press(&["/"])?;
        terminal.wait_for(&["Show Services with: _"])?;
        terminal.press(&["p", "l", "a", "i", "n", "Enter"])?;
        let filtered = terminal.wait_for(&["default/plain:tcp", "0 drifted, only \"p"])?;
        ensure!(!filtered.contains("default/web:tcp"), "{filtered}");
        terminal.press(&["h"])?;
        terminal.wait_for(&["Ctrl-C", "SHARE is of active connections"])?;
        terminal.press(&["q", "q"])?;
        let ended = terminal.wait_for(&["ended with 0", "icanon"])?;
        ensure!(!ended.contains("-icanon") && !ended.contains("default/plain:tcp"), "{ended}");
        Ok(())
    });
}

#[test]
fn top_does_without_colour_agent_or_terminal_and_gives_the_terminal_back() {
    World::test(|world| {
        let (a, _serve_a) = serving(world, "a", On::Node)?;
        let (b, _serve_b) = serving(world, "b", On::Node2)?;
        services(world, [&a, &b])?;
        let agent = started(world, &[])?;
        let plain = world.kube_ipvs(&["top", "-n", "1"])?;
        ensure!(plain.contains("default/web:tcp") && !plain.contains('\x1b'), "{plain}");
        ensure!(plain.lines().all(|line| line.chars().count() <= 80), "{plain}");
        {
            let terminal = Terminal::start(world.node(), "dumb", &format!("TERM=dumb kube-ipvs top -n 2 -d 200ms{AFTERWARDS}"))?;
            let screen = terminal.wait_for(&["ended with 0", "default/web:tcp"])?;
            ensure!(screen.matches("default/web:tcp").count() >= 2, "two looks are not one below the other:\n{screen}");
        }
        agent.kill()?;
        let id = format!("/tmp/top-{}", world.node().holder());
        let terminal =
            Terminal::start(world.node(), "plain", &format!("NO_COLOR=1 sh -c 'echo $$ >{id}; exec kube-ipvs top'{AFTERWARDS}"))?;
        terminal.wait_for(&["no agent", "TCP 10.96.0.10:80", "TCP 192.0.2.1:443"])?;
        let coloured = terminal.colours()?;
        // The terminal's own colours are none.
        let other = coloured.replace("\x1b[39m", "").replace("\x1b[49m", "");
        ensure!(["\x1b[3", "\x1b[4", "\x1b[9"].iter().all(|colour| !other.contains(colour)), "{coloured:?}");
        // In a locale without more than letters there are no more than letters.
        ensure!(coloured.is_ascii(), "{coloured}");
        world.node().exec(&["sh", "-c", &format!("kill -TERM $(cat {id})")])?;
        let ended = terminal.wait_for(&["ended with 0", "icanon"])?;
        ensure!(!ended.contains("-icanon"), "{ended}");
        Ok(())
    });
}
