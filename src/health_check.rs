//! Health check node ports: the HTTP servers by which a load balancer learns whether this node has endpoints of a Service.
//!
//! Bodies, codes and headers are kube-proxy's, since load balancers are set up for them.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::rc::Rc;
use std::time::Instant;

use desired::{Fragment, ServiceName};
use hyper::StatusCode;
use hyper::header::{HeaderName, HeaderValue};
use model::Family;
use tokio::task::{AbortHandle, spawn_local};

use crate::events::{Events, Happening};
use crate::http::{self, Answer};
use crate::register::Subject;
use crate::reliance::Reliance;

/// By which some load balancers weigh the nodes.
const WEIGHT: HeaderName = HeaderName::from_static("x-load-balancing-endpoint-weight");

/// The servers of all Services that have a health check node port. To be used inside a `LocalSet`.
pub(crate) struct HealthChecks {
    servers: BTreeMap<ServiceName, Server>,
    reliance: Reliance,
    /// `None` where nobody takes Events.
    events: Option<Events>,
}

struct Server {
    port: u16,
    local_endpoints: Rc<Cell<LocalEndpoints>>,
    task: AbortHandle,
}

/// The ready endpoints on this node. A load balancer that calls over one family sends traffic of that family.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct LocalEndpoints {
    v4: usize,
    v6: usize,
}

impl LocalEndpoints {
    fn of(fragment: &Fragment) -> Self {
        let count = |family| fragment.health_check_of(family).map_or(0, |check| check.local_endpoints);
        Self { v4: count(Family::V4), v6: count(Family::V6) }
    }

    /// What there is for who has called the node on `address`.
    const fn for_caller_of(self, address: IpAddr) -> usize {
        match address {
            IpAddr::V4(_) => self.v4,
            IpAddr::V6(_) => self.v6,
        }
    }
}

impl HealthChecks {
    /// No servers. What they answer depends on `reliance` as well; ports that are taken are told to `events`.
    pub(crate) const fn new(reliance: Reliance, events: Option<Events>) -> Self {
        Self { servers: BTreeMap::new(), reliance, events }
    }

    /// Starts, changes or stops the server of `service`, as its fragment asks; `None` for a Service that is gone.
    pub(crate) fn set(&mut self, service: &ServiceName, fragment: Option<&Fragment>) {
        let Some((fragment, port)) = fragment.and_then(|fragment| Some((fragment, fragment.health_check_port()?))) else {
            self.servers.remove(service);
            return;
        };
        let local_endpoints = LocalEndpoints::of(fragment);
        match self.servers.get(service) {
            Some(server) if server.port == port => server.local_endpoints.set(local_endpoints),
            _ => {
                let server = self.start(service, port, local_endpoints);
                self.servers.insert(service.clone(), server);
            }
        }
    }

    fn start(&self, service: &ServiceName, port: u16, local_endpoints: LocalEndpoints) -> Server {
        let count = Rc::new(Cell::new(local_endpoints));
        let answer = {
            let (service, count, reliance) = (service.clone(), count.clone(), self.reliance.clone());
            move |_path, called| {
                let healthy = reliance.against(Instant::now()).is_none();
                std::future::ready(answer(&service, count.get().for_caller_of(called), healthy))
            }
        };
        let (service, events) = (service.clone(), self.events.clone());
        let report = move |note| {
            if let Some(events) = events {
                events.tell_of(Subject::Service(service), Happening::FailedToStartServiceHealthcheck, note);
            }
        };
        let served = http::serve(any_address(port), "a health check node port", None, report, answer);
        let task = spawn_local(served).abort_handle();
        Server { port, local_endpoints: count, task }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Every address of the node. Packet rules keep the VIPs of other Services out.
fn any_address(port: u16) -> SocketAddr {
    if Path::new("/proc/net/if_inet6").exists() {
        SocketAddr::from((Ipv6Addr::UNSPECIFIED, port))
    } else {
        SocketAddr::from((Ipv4Addr::UNSPECIFIED, port))
    }
}

fn answer(service: &ServiceName, local_endpoints: usize, healthy: bool) -> Answer {
    let status = if local_endpoints > 0 && healthy { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let quoted = |name: &str| serde_json::Value::from(name).to_string();
    let body = format!(
        "{{\n\t\"service\": {{\n\t\t\"namespace\": {},\n\t\t\"name\": {}\n\t}},\n\t\"localEndpoints\": {local_endpoints},\n\t\"serviceProxyHealthy\": {healthy}\n}}",
        quoted(service.namespace()),
        quoted(service.name()),
    );
    Answer {
        status,
        content_type: "application/json",
        body: body.into_bytes(),
        header: Some((WEIGHT, HeaderValue::from(local_endpoints))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn c4_a_caller_is_told_of_endpoints_of_its_own_family() {
        let endpoints = LocalEndpoints { v4: 2, v6: 0 };
        assert_eq!(endpoints.for_caller_of(Ipv4Addr::LOCALHOST.into()), 2);
        assert_eq!(endpoints.for_caller_of(Ipv6Addr::LOCALHOST.into()), 0);
    }

    #[test]
    fn c4_the_answer_is_kube_proxys() {
        let service = ServiceName::new("shop", "web");
        let healthy = answer(&service, 2, true);
        assert_eq!(healthy.status, StatusCode::OK);
        assert_eq!(
            String::from_utf8(healthy.body).unwrap(),
            "{\n\t\"service\": {\n\t\t\"namespace\": \"shop\",\n\t\t\"name\": \"web\"\n\t},\n\t\"localEndpoints\": 2,\n\t\"serviceProxyHealthy\": true\n}"
        );
        assert_eq!(healthy.header.unwrap().1, "2");
        assert_eq!(answer(&service, 0, true).status, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(answer(&service, 2, false).status, StatusCode::SERVICE_UNAVAILABLE);
    }
}
