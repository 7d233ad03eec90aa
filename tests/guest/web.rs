//! A Service in both families with two pods, and those who hold connections to it.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use testkit::manifest::{EndpointSlice, Service};
use testkit::{Family, On, Pod, Process, Protocol, Result, World, eventually};

use crate::held::Held;
use crate::support::{PATIENCE, POD_PORT, lines, node, target, vip, virtual_servers};

const PORT: u16 = 80;

/// Connections that are held in each family.
pub(crate) const CONNECTIONS: u32 = 100;

/// Between a line that came back and the next.
const INTERVAL: Duration = Duration::from_secs(1);

/// What becomes of a pod's endpoint.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Is {
    Ready,
    Unready,
    Terminating,
    /// In no slice.
    Gone,
}

/// What makes a pod with its server.
type Serve = fn(&World, &str, On) -> Result<(Pod, Process)>;

/// The Service and its pods: the first on the node, the second on the other one.
pub(crate) struct Web<'a> {
    world: &'a World,
    protocol: Protocol,
    pub(crate) pods: [Pod; 2],
    pub(crate) client: Pod,
    _servers: [Process; 2],
}

impl<'a> Web<'a> {
    /// Writes the Service, its endpoints and the node.
    pub(crate) fn new(world: &'a World, serve: Serve, protocol: Protocol, are: [Is; 2]) -> Result<Self> {
        let [(a, serve_a), (b, serve_b)] = [serve(world, "a", On::Node)?, serve(world, "b", On::Node2)?];
        let web = Self { world, protocol, pods: [a, b], client: world.pod("client", On::Node)?, _servers: [serve_a, serve_b] };
        world.write("node.yaml", &node().to_string())?;
        web.write(&web.service())?;
        web.endpoints(are)?;
        Ok(web)
    }

    pub(crate) fn service(&self) -> Service {
        let addresses = Family::ALL.map(|family| vip(family, 10).to_string());
        let service = addresses.iter().fold(Service::new("web"), |service, address| service.cluster_ip(address));
        service.port("http", self.protocol, PORT, POD_PORT)
    }

    pub(crate) fn write(&self, service: &Service) -> Result {
        self.world.write("web.yaml", &service.to_string())
    }

    /// Deletes the Service; its endpoints stay for a while, as in a cluster.
    pub(crate) fn delete(&self) -> Result {
        self.world.remove("web.yaml")
    }

    /// Says what the pods' endpoints are from now on.
    pub(crate) fn endpoints(&self, are: [Is; 2]) -> Result {
        let slice = |family| {
            let slice = EndpointSlice::of("web", family).port("http", self.protocol, POD_PORT);
            let with = |slice: EndpointSlice, (pod, is): (&Pod, Is)| match is {
                Is::Ready => slice.pod(pod),
                Is::Unready => slice.pod(pod).unready(),
                Is::Terminating => slice.pod(pod).terminating(),
                Is::Gone => slice,
            };
            self.pods.iter().zip(are).fold(slice, with).to_string()
        };
        self.world.write("endpoints.yaml", &Family::ALL.map(slice).concat())
    }

    /// Waits until the pods have these weights in both families; `None` is for one that is no real server.
    pub(crate) fn becomes(&self, weights: [Option<u32>; 2]) -> Result {
        eventually(PATIENCE, || {
            let table = virtual_servers(self.world.node())?;
            for (pod, wanted) in self.pods.iter().zip(weights) {
                for family in Family::ALL {
                    let real = format!(" -r {} ", target(pod.address(family), POD_PORT));
                    let weight = table.iter().find(|line| line.contains(&real)).and_then(|line| line.rsplit_once("-w "));
                    let weight = weight.map(|(_, weight)| weight.parse().context(weight.to_owned())).transpose()?;
                    ensure!(weight == wanted, "{}, {family}: {weight:?} instead of {wanted:?}", pod.name());
                }
            }
            Ok(())
        })
    }

    /// The real servers in the kernel's own order, each with its weight, its active and its other connections.
    pub(crate) fn real_servers(&self) -> Result<Vec<String>> {
        let table = self.world.node().ipvsadm(&["-Ln"])?;
        let reals = lines(&table).filter(|line| line.contains(&format!(":{POD_PORT} ")));
        Ok(reals.map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect())
    }

    pub(crate) fn target(family: Family) -> String {
        target(vip(family, 10), PORT)
    }

    /// Opens connections in each family.
    pub(crate) fn hold(&self, connections: u32) -> Result<Vec<Held>> {
        self.hold_every(INTERVAL, connections)
    }

    /// The same with another interval between lines.
    pub(crate) fn hold_every(&self, interval: Duration, connections: u32) -> Result<Vec<Held>> {
        self.hold_with(connections, &["--interval-ms", &interval.as_millis().to_string()])
    }

    /// The same with options of `probe hold`.
    pub(crate) fn hold_with(&self, connections: u32, options: &[&str]) -> Result<Vec<Held>> {
        let open = |family| Held::open_with(&self.client, self.protocol, &Self::target(family), connections, options);
        Family::ALL.into_iter().map(open).collect()
    }
}
