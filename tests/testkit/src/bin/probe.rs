//! A server that says who called whom, and a client that says what became of each call; over TCP, UDP and SCTP.
//!
//! The server answers each connection (or datagram) with one line, `NAME LOCAL-ADDRESS PEER-ADDRESS:PORT`, so that a test sees which pod took the
//! call and under which address the caller arrived. The client makes every call from a socket of its own and prints one JSON object a line.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a command-line program for tests: its output is its interface")]

use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, UdpSocket};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use clap::{Args, Parser, Subcommand};
use serde_json::{Value, json};
use socket2::{Domain, SockAddr, Socket, TcpKeepalive, Type};
use testkit::Protocol;

/// A caller that connects and then stays silent must not hold its thread for ever.
const PATIENCE: Duration = Duration::from_secs(60);

/// Who holds a connection waits as long as the kernel needs to send a packet again that was lost some times over, on a machine so busy that it has
/// learned to wait ten seconds before the first.
const HOLDING: Duration = Duration::from_secs(150);

/// A caller that waits for an answer and has nothing to send asks now and then whether somebody is there, as those do that are written in Go: from a real
/// server that is gone no answer comes, and what tells a client so is the kernel's answer to its next packet.
const KEEPALIVE: Duration = Duration::from_secs(15);

const EPROTONOSUPPORT: i32 = 93;
const ESOCKTNOSUPPORT: i32 = 94;
const EAFNOSUPPORT: i32 = 97;
const EADDRNOTAVAIL: i32 = 99;

#[derive(Parser)]
#[command(name = "probe", about = "Answers and makes the calls of kube-ipvs' tests")]
enum Command {
    /// Answer every call with one line `NAME LOCAL-ADDRESS PEER-ADDRESS:PORT`; prints "ready" once all sockets listen
    Serve(Serve),
    /// Make calls and print a JSON object for each; exits with 1 when one failed
    Call(Call),
    /// Make series of calls side by side and print a JSON object for each call, with the number of its series, from 0. Each line of the input is a
    /// series: PROTOCOL ADDRESS:PORT COUNT MILLISECONDS SOURCE FIRST-PORT. SOURCE is the address to call from, or `-` for the kernel's choice; each call
    /// comes from a port of its own, from FIRST-PORT on. A series ends with its first call that has no answer
    Series,
    /// Keep connections to a server that echoes, and send a line over each now and then until it is lost. Prints "connected" when all are, "lost: WHY
    /// after MILLISECONDS" for each that is lost, which is since it sent its last line, and "held: COUNT" about twice a second, which is how many lines
    /// have come back over each of the others at the least
    Hold(Hold),
}

#[derive(Args)]
struct Serve {
    /// Who answers
    #[arg(long)]
    name: String,
    #[arg(long)]
    port: u16,
    /// Serve TCP (with none of --tcp, --udp, --sctp: all that the kernel has)
    #[arg(long)]
    tcp: bool,
    /// Serve UDP
    #[arg(long)]
    udp: bool,
    /// Serve SCTP
    #[arg(long)]
    sctp: bool,
    /// Send connections back what they say, instead of answering with a line
    #[arg(long)]
    echo: bool,
    /// Milliseconds that each datagram waits for its answer, and each line before it is sent back
    #[arg(long, default_value_t = 0)]
    delay_ms: u64,
}

#[derive(Args)]
struct Hold {
    /// TCP or SCTP
    protocol: Protocol,
    /// Address and port, such as 10.96.0.10:80 or [fd00:96::10]:80
    target: SocketAddr,
    /// How many connections
    #[arg(long, default_value_t = 1)]
    connections: usize,
    /// The source port of the first connection; the others have the ports after it
    #[arg(long)]
    first_port: u16,
    /// Milliseconds between a line that came back and the next
    #[arg(long, default_value_t = 100)]
    interval_ms: u64,
    /// Send so many lines at once and say that they are the last, and hold the connection until all have come back
    #[arg(long)]
    last: Option<usize>,
    /// End the connections by resets when the process is killed, and not by saying goodbye
    #[arg(long)]
    reset: bool,
}

#[derive(Args)]
struct Call {
    #[command(subcommand)]
    protocol: CallProtocol,
}

#[derive(Subcommand)]
enum CallProtocol {
    Tcp(CallOptions),
    Udp(CallOptions),
    Sctp(CallOptions),
}

#[derive(Args)]
struct CallOptions {
    /// Address and port, such as 10.96.0.10:80 or [fd00:96::10]:80
    target: SocketAddr,
    /// How many calls
    #[arg(long, default_value_t = 1)]
    count: u64,
    /// Milliseconds that a call may take
    #[arg(long, default_value_t = 15_000)]
    timeout_ms: u64,
    /// Call from this address (otherwise the kernel chooses one)
    #[arg(long)]
    source: Option<IpAddr>,
    /// Call from this port (otherwise each call gets one from the kernel)
    #[arg(long, default_value_t = 0)]
    source_port: u16,
    /// Call from so many ports in turn, --source-port being the first
    #[arg(long, default_value_t = 1, requires = "source_port")]
    ports: u16,
    /// Milliseconds between the ends and the starts of calls
    #[arg(long, default_value_t = 0)]
    interval_ms: u64,
    /// Call until the process is killed
    #[arg(long, conflicts_with = "count")]
    until_killed: bool,
}

fn main() -> ExitCode {
    let result = match Command::parse() {
        Command::Serve(serve) => serve.run().map(|()| true),
        Command::Call(call) => call.run(),
        Command::Series => series().map(|()| true),
        Command::Hold(hold) => hold.run().map(|()| true),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("probe: {error:#}");
            ExitCode::from(2)
        }
    }
}

impl Serve {
    fn run(&self) -> Result<()> {
        let named: Vec<Protocol> = [(self.tcp, Protocol::Tcp), (self.udp, Protocol::Udp), (self.sctp, Protocol::Sctp)]
            .into_iter()
            .filter_map(|(wanted, protocol)| wanted.then_some(protocol))
            .collect();
        let protocols = if named.is_empty() { Protocol::ALL.to_vec() } else { named.clone() };
        let delay = Duration::from_millis(self.delay_ms);
        let mut listening = 0;
        for protocol in protocols {
            // A socket for each family: an SCTP socket for both would offer its peer the addresses of both, past the virtual server.
            for address in [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)] {
                match listen(protocol, SocketAddr::new(address, self.port)) {
                    Ok(socket) => {
                        listening += 1;
                        let name = self.name.clone();
                        let answer: Answer = if self.echo { echo_connection } else { answer_connection };
                        match protocol {
                            Protocol::Udp => thread::spawn(move || answer_datagrams(&Arc::new(socket.into()), &name, delay)),
                            Protocol::Tcp | Protocol::Sctp => {
                                thread::spawn(move || answer_connections(&socket, &name, delay, answer))
                            }
                        };
                    }
                    Err(error) if named.is_empty() && is_missing_in_kernel(&error) => {}
                    Err(error) => {
                        return Err(error).with_context(|| format!("cannot listen on {protocol} {address} port {}", self.port));
                    }
                }
            }
        }
        if listening == 0 {
            bail!("the kernel has none of the protocols");
        }
        println!("ready");
        loop {
            thread::park();
        }
    }
}

fn listen(protocol: Protocol, address: SocketAddr) -> io::Result<Socket> {
    let socket = open(protocol, address)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    if protocol != Protocol::Udp {
        socket.listen(1024)?;
    }
    Ok(socket)
}

fn open(protocol: Protocol, address: SocketAddr) -> io::Result<Socket> {
    let (kind, number) = match protocol {
        Protocol::Tcp => (Type::STREAM, socket2::Protocol::TCP),
        Protocol::Udp => (Type::DGRAM, socket2::Protocol::UDP),
        Protocol::Sctp => (Type::STREAM, socket2::Protocol::SCTP),
    };
    Socket::new(Domain::for_address(address), kind, Some(number))
}

fn is_missing_in_kernel(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(EPROTONOSUPPORT | ESOCKTNOSUPPORT | EAFNOSUPPORT | EADDRNOTAVAIL))
}

type Answer = fn(&Socket, &SockAddr, &str, Duration) -> io::Result<()>;

fn answer_connections(socket: &Socket, name: &str, delay: Duration, answer: Answer) {
    loop {
        match socket.accept() {
            Ok((connection, peer)) => {
                let name = name.to_owned();
                thread::spawn(move || {
                    if let Err(error) = answer(&connection, &peer, &name, delay) {
                        eprintln!("probe: {name}: {error}");
                    }
                });
            }
            Err(error) => eprintln!("probe: {name}: cannot accept: {error}"),
        }
    }
}

/// Answers, closes the own half and waits for the caller's, so that neither side sees a reset.
fn answer_connection(mut connection: &Socket, peer: &SockAddr, name: &str, _: Duration) -> io::Result<()> {
    connection.set_read_timeout(Some(PATIENCE))?;
    let local = connection.local_addr()?.as_socket().ok_or(ErrorKind::InvalidData)?.ip();
    let peer = peer.as_socket().ok_or(ErrorKind::InvalidData)?;
    connection.write_all(format!("{name} {local} {peer}\n").as_bytes())?;
    connection.shutdown(Shutdown::Write)?;
    connection.read_to_end(&mut Vec::new())?;
    Ok(())
}

/// Sends back what comes, for as long as it comes.
fn echo_connection(mut connection: &Socket, _: &SockAddr, _: &str, delay: Duration) -> io::Result<()> {
    let mut buffer = [0; 2048];
    loop {
        let length = connection.read(&mut buffer)?;
        if length == 0 {
            return Ok(());
        }
        for line in buffer.get(..length).unwrap_or_default().split_inclusive(|byte| *byte == b'\n') {
            thread::sleep(delay);
            connection.write_all(line)?;
        }
    }
}

fn answer_datagrams(socket: &Arc<UdpSocket>, name: &str, delay: Duration) {
    let mut buffer = [0; 2048];
    loop {
        match socket.recv_from(&mut buffer) {
            Ok((_, peer)) => {
                let (socket, name) = (Arc::clone(socket), name.to_owned());
                let answer = move || {
                    thread::sleep(delay);
                    if let Err(error) = answer_datagram(&socket, peer, &name) {
                        eprintln!("probe: {name}: cannot answer {peer}: {error}");
                    }
                };
                if delay.is_zero() {
                    answer();
                } else {
                    thread::spawn(answer);
                }
            }
            Err(error) => eprintln!("probe: {name}: cannot receive: {error}"),
        }
    }
}

/// The local address in the answer is the one that the route to the peer prefers, which is also the answer's source: a pod has one of each family.
fn answer_datagram(socket: &UdpSocket, peer: SocketAddr, name: &str) -> io::Result<()> {
    let route = UdpSocket::bind(SocketAddr::new(unspecified(peer), 0))?;
    route.connect(peer)?;
    let local = route.local_addr()?.ip();
    socket.send_to(format!("{name} {local} {peer}\n").as_bytes(), peer).map(drop)
}

fn unspecified(like: SocketAddr) -> IpAddr {
    if like.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() }
}

/// In place of the number of lines of a connection that is lost.
const LOST: u64 = u64::MAX;

impl Hold {
    fn run(&self) -> Result<()> {
        let ports = (self.first_port..).take(self.connections);
        let connections = ports.map(|port| Ok((self.connect(port)?, AtomicU64::new(0)))).collect::<Result<Vec<_>>>()?;
        println!("connected");
        thread::scope(|scope| {
            for (connection, lines) in &connections {
                scope.spawn(move || self.keep(connection, lines));
            }
            loop {
                thread::sleep(Duration::from_millis(500));
                let lines = connections.iter().map(|(_, lines)| lines.load(Ordering::Relaxed));
                println!("held: {}", lines.filter(|lines| *lines != LOST).min().unwrap_or_default());
            }
        })
    }

    fn connect(&self, port: u16) -> Result<Socket> {
        let connection = open(self.protocol, self.target)?;
        connection.bind(&SocketAddr::new(unspecified(self.target), port).into()).with_context(|| format!("port {port}"))?;
        connection.connect_timeout(&self.target.into(), PATIENCE).with_context(|| format!("cannot connect to {}", self.target))?;
        connection.set_read_timeout(Some(HOLDING))?;
        if self.protocol == Protocol::Tcp {
            connection.set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE))?;
        }
        if self.reset {
            connection.set_linger(Some(Duration::ZERO))?;
        }
        Ok(connection)
    }

    fn keep(&self, connection: &Socket, lines: &AtomicU64) {
        loop {
            let sent = Instant::now();
            if let Err(error) = self.exchange(connection, lines) {
                lines.store(LOST, Ordering::Relaxed);
                println!("lost: {} after {}", describe(&error), sent.elapsed().as_millis());
                return;
            }
            if self.last.is_some() {
                return;
            }
            thread::sleep(Duration::from_millis(self.interval_ms));
        }
    }

    /// Sends what is to be sent at once, and counts the lines that come back.
    fn exchange(&self, mut connection: &Socket, lines: &AtomicU64) -> io::Result<()> {
        const LINE: &[u8] = b"still here\n";
        let count = self.last.unwrap_or(1);
        connection.write_all(&LINE.repeat(count))?;
        if self.last.is_some() {
            connection.shutdown(Shutdown::Write)?;
        }
        for _ in 0..count {
            connection.read_exact(&mut [0; LINE.len()])?;
            lines.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }
}

impl Call {
    /// Whether all calls were answered.
    fn run(&self) -> Result<bool> {
        let (protocol, options) = match &self.protocol {
            CallProtocol::Tcp(options) => (Protocol::Tcp, options),
            CallProtocol::Udp(options) => (Protocol::Udp, options),
            CallProtocol::Sctp(options) => (Protocol::Sctp, options),
        };
        let mut all = true;
        let mut output = io::stdout().lock();
        let mut made = 0;
        while options.until_killed || made < options.count {
            if made > 0 {
                thread::sleep(Duration::from_millis(options.interval_ms));
            }
            let turn = u16::try_from(made % u64::from(options.ports.max(1))).unwrap_or_default();
            made += 1;
            let reply = reply(protocol, &CallOptions { source_port: options.source_port + turn, ..*options });
            all &= reply.is_ok();
            let line = reply.unwrap_or_else(|error| error);
            // One write a line: a reader sees whole lines, whenever this process is killed.
            output.write_all(format!("{line}\n").as_bytes()).context("cannot print")?;
            output.flush().context("cannot print")?;
        }
        Ok(all)
    }
}

/// Makes a call; what became of it, answered or not.
fn reply(protocol: Protocol, options: &CallOptions) -> std::result::Result<Value, Value> {
    let start = Instant::now();
    let result = call(protocol, options, start + Duration::from_millis(options.timeout_ms)).and_then(|answer| parse(&answer));
    let ms = start.elapsed().as_secs_f64() * 1000.0;
    match result {
        Ok([name, local, peer]) => Ok(json!({"ok": true, "name": name, "local": local, "peer": peer, "ms": ms})),
        Err(error) => Err(json!({"ok": false, "error": describe(&error), "ms": ms})),
    }
}

fn series() -> Result<()> {
    let lines = io::stdin().lines().collect::<io::Result<Vec<_>>>().context("cannot read the series")?;
    let series =
        lines.iter().map(|line| read_series(line).with_context(|| format!("the series {line:?}"))).collect::<Result<Vec<_>>>()?;
    thread::scope(|scope| {
        for (number, (protocol, options)) in series.iter().enumerate() {
            scope.spawn(move || {
                let ports = options.source_port..;
                for (source_port, _) in ports.zip(0..options.count) {
                    let reply = reply(*protocol, &CallOptions { source_port, ..*options });
                    let is_last = reply.is_err();
                    let (Ok(mut line) | Err(mut line)) = reply;
                    if let Some(fields) = line.as_object_mut() {
                        fields.insert("series".to_owned(), number.into());
                    }
                    println!("{line}");
                    if is_last {
                        break;
                    }
                }
            });
        }
    });
    Ok(())
}

fn read_series(line: &str) -> Result<(Protocol, CallOptions)> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let [protocol, target, count, timeout_ms, source, first_port] = words[..] else { bail!("has another number of words than 6") };
    let source = (source != "-").then(|| source.parse()).transpose().context("SOURCE is no address")?;
    let options = CallOptions {
        target: target.parse().context("ADDRESS:PORT is not that")?,
        count: count.parse().context("COUNT is no number")?,
        timeout_ms: timeout_ms.parse().context("MILLISECONDS is no number")?,
        source,
        source_port: first_port.parse().context("FIRST-PORT is no port")?,
        ports: 1,
        interval_ms: 0,
        until_killed: false,
    };
    Ok((protocol.parse()?, options))
}

/// A socket that has called. Where the port is given, it may still belong to the last call for a moment, whose end is on its way.
fn connect(protocol: Protocol, options: &CallOptions, deadline: Instant) -> io::Result<Socket> {
    let target = options.target;
    loop {
        let socket = open(protocol, target)?;
        if options.source_port != 0 || options.source.is_some() {
            socket.set_reuse_address(options.source_port != 0)?;
            socket.bind(&SocketAddr::new(options.source.unwrap_or(unspecified(target)), options.source_port).into())?;
        }
        match socket.connect_timeout(&target.into(), left(deadline)?) {
            Err(error) if options.source_port != 0 && error.raw_os_error() == Some(EADDRNOTAVAIL) => {
                thread::sleep(Duration::from_millis(20));
            }
            connected => return connected.map(|()| socket),
        }
    }
}

fn call(protocol: Protocol, options: &CallOptions, deadline: Instant) -> io::Result<String> {
    let mut socket = connect(protocol, options, deadline)?;
    let mut answer = Vec::new();
    if protocol == Protocol::Udp {
        socket.set_read_timeout(Some(left(deadline)?))?;
        socket.send(b"?\n")?;
        let mut buffer = [0; 2048];
        let length = socket.read(&mut buffer)?;
        answer.extend_from_slice(buffer.get(..length).unwrap_or_default());
    } else {
        let mut buffer = [0; 2048];
        loop {
            socket.set_read_timeout(Some(left(deadline)?))?;
            let length = socket.read(&mut buffer)?;
            if length == 0 {
                break;
            }
            answer.extend_from_slice(buffer.get(..length).unwrap_or_default());
        }
    }
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

fn left(deadline: Instant) -> io::Result<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    // A time-out of zero would mean none.
    if left.is_zero() { Err(ErrorKind::TimedOut.into()) } else { Ok(left) }
}

fn parse(answer: &str) -> io::Result<[String; 3]> {
    let words: Vec<String> = answer.split_whitespace().map(str::to_owned).collect();
    words.try_into().map_err(|_| io::Error::new(ErrorKind::UnexpectedEof, format!("closed with an incomplete answer {answer:?}")))
}

fn describe(error: &io::Error) -> String {
    match error.kind() {
        ErrorKind::ConnectionRefused => "refused".into(),
        ErrorKind::ConnectionReset | ErrorKind::BrokenPipe | ErrorKind::ConnectionAborted => "reset".into(),
        ErrorKind::TimedOut | ErrorKind::WouldBlock => "timeout".into(),
        ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable => "unreachable".into(),
        _ => error.to_string(),
    }
}
