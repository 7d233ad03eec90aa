//! Node ports on loopback addresses: IPVS sends nothing that comes from a loopback address off the loopback device, so connections to
//! `127.0.0.1:nodePort` and `[::1]:nodePort` are taken in user space and made again to the node's own address.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use desired::{Fragment, FrontendKind, ServiceName};
use model::{Family, Protocol, VirtualServerKey};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::{AbortHandle, spawn_local};
use tracing::{debug, info, warn};

/// Connections and UDP clients that one node port serves at a time. Those beyond it wait, or are not answered.
const CLIENTS: usize = 256;
/// After so long without a datagram in either direction a UDP client is forgotten: the kernel's own default for a stream of them.
const UDP_IDLE: Duration = Duration::from_secs(120);
/// The largest datagram there can be.
const DATAGRAM: usize = 65_535;
/// Datagrams that may wait for a client's socket.
const BACKLOG: usize = 64;
/// How long to wait before trying again to listen on a port that is taken.
const RETRY: Duration = Duration::from_secs(5);

/// One of them: where it listens follows from the family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct NodePort {
    protocol: Protocol,
    family: Family,
    port: u16,
}

/// The relays of all Services with node ports. To be used inside a `LocalSet`.
#[derive(Default)]
pub(crate) struct Relays {
    /// By Service, the node ports that it has.
    wanted: BTreeMap<ServiceName, BTreeSet<NodePort>>,
    /// Where connections to a node port go; two Services may claim the same for a moment, and the first by name has it.
    targets: BTreeMap<NodePort, BTreeMap<ServiceName, SocketAddr>>,
    running: BTreeMap<NodePort, (SocketAddr, Task)>,
}

struct Task(AbortHandle);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Relays {
    /// Starts and stops what the fragment of `service` asks for; `None` for a Service that is gone.
    pub(crate) fn set(&mut self, service: &ServiceName, fragment: Option<&Fragment>) {
        let after = fragment.map(node_ports).unwrap_or_default();
        let mut touched = self.wanted.remove(service).unwrap_or_default();
        for node_port in &touched {
            if let Some(targets) = self.targets.get_mut(node_port) {
                targets.remove(service);
            }
        }
        if !after.is_empty() {
            self.wanted.insert(service.clone(), after.keys().copied().collect());
        }
        for (node_port, target) in after {
            self.targets.entry(node_port).or_default().insert(service.clone(), target);
            touched.insert(node_port);
        }
        for node_port in touched {
            let target = self.targets.get(&node_port).and_then(|targets| targets.values().next()).copied();
            if target.is_none() {
                self.targets.remove(&node_port);
            }
            match (target, self.running.get(&node_port)) {
                (Some(target), Some((running, _))) if *running == target => {}
                (Some(target), _) => {
                    // The one that runs has the address, so it ends first.
                    self.running.remove(&node_port);
                    let task = Task(spawn_local(relay(node_port, target)).abort_handle());
                    self.running.insert(node_port, (target, task));
                }
                (None, _) => {
                    self.running.remove(&node_port);
                }
            }
        }
    }
}

/// The node ports in a fragment, each with the first of the node's addresses that serves it. SCTP has no sockets in every kernel, and
/// nobody who speaks it to themselves.
fn node_ports(fragment: &Fragment) -> BTreeMap<NodePort, SocketAddr> {
    let mut ports = BTreeMap::new();
    for frontend in fragment.frontends().iter().filter(|frontend| frontend.kind == FrontendKind::NodePort) {
        if let VirtualServerKey::Address { address, port, protocol: protocol @ (Protocol::Tcp | Protocol::Udp) } = frontend.key() {
            ports.entry(NodePort { protocol, family: Family::of(address), port }).or_insert(SocketAddr::new(address, port));
        }
    }
    ports
}

async fn relay(node_port: NodePort, target: SocketAddr) {
    let loopback: IpAddr = match node_port.family {
        Family::V4 => Ipv4Addr::LOCALHOST.into(),
        Family::V6 => Ipv6Addr::LOCALHOST.into(),
    };
    let address = SocketAddr::new(loopback, node_port.port);
    info!(protocol = %node_port.protocol, %address, %target, "relaying a node port");
    loop {
        let ended = match node_port.protocol {
            Protocol::Udp => datagrams(address, target).await,
            Protocol::Tcp | Protocol::Sctp => connections(address, target).await,
        };
        if let Err(error) = ended {
            warn!(protocol = %node_port.protocol, %address, %error, "cannot relay a node port; trying again every {} s", RETRY.as_secs());
        }
        tokio::time::sleep(RETRY).await;
    }
}

async fn connections(address: SocketAddr, target: SocketAddr) -> io::Result<()> {
    let listener = TcpListener::bind(address).await?;
    let slots = Arc::new(Semaphore::new(CLIENTS));
    loop {
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return Ok(()) };
        let (mut client, _) = listener.accept().await?;
        spawn_local(async move {
            let relayed = async {
                let mut server = TcpStream::connect(target).await?;
                tokio::io::copy_bidirectional(&mut client, &mut server).await
            };
            if let Err(error) = relayed.await {
                debug!(%target, %error, "a relayed connection ended early");
            }
            drop(slot);
        });
    }
}

async fn datagrams(address: SocketAddr, target: SocketAddr) -> io::Result<()> {
    let socket = Arc::new(UdpSocket::bind(address).await?);
    let mut clients: BTreeMap<SocketAddr, mpsc::Sender<Vec<u8>>> = BTreeMap::new();
    let mut buffer = vec![0; DATAGRAM];
    loop {
        let (len, client) = socket.recv_from(&mut buffer).await?;
        let datagram = buffer.get(..len).unwrap_or_default().to_vec();
        clients.retain(|_, sender| !sender.is_closed());
        if !clients.contains_key(&client) && clients.len() >= CLIENTS {
            continue;
        }
        let sender = clients.entry(client).or_insert_with(|| {
            let (sender, receiver) = mpsc::channel(BACKLOG);
            spawn_local(datagrams_of(Arc::clone(&socket), client, target, receiver));
            sender
        });
        // A client that sends faster than it is served loses datagrams, as everywhere.
        let _ = sender.try_send(datagram);
    }
}

/// Relays the datagrams of one client until neither side has sent one for a while.
async fn datagrams_of(socket: Arc<UdpSocket>, client: SocketAddr, target: SocketAddr, mut from_client: mpsc::Receiver<Vec<u8>>) {
    let any: IpAddr = if target.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let relayed = async {
        let server = UdpSocket::bind((any, 0)).await?;
        server.connect(target).await?;
        let mut buffer = vec![0; DATAGRAM];
        loop {
            tokio::select! {
                datagram = from_client.recv() => match datagram {
                    Some(datagram) => server.send(&datagram).await?,
                    None => return io::Result::Ok(()),
                },
                received = server.recv(&mut buffer) => {
                    let len = received?;
                    socket.send_to(buffer.get(..len).unwrap_or_default(), client).await?
                }
                () = tokio::time::sleep(UDP_IDLE) => return Ok(()),
            };
        }
    };
    if let Err(error) = relayed.await {
        debug!(%target, %error, "a relayed UDP client is given up");
    }
}
