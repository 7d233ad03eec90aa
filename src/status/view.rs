//! What there is to show: the kernel's table, row by row, with what a running agent knows of each.

use std::fmt;
use std::time::Duration;

use model::{RealServer, RealServerCounters, RealServerKey, TrafficCounters, TrafficRates, VirtualServerConfig, VirtualServerKey};

use crate::control::Stage;

/// The table with what is known of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct View {
    /// The version of IPVS.
    pub(crate) version: String,
    /// Buckets of the connection hash table.
    pub(crate) connection_table_size: u32,
    /// `None` where no agent answers: then there is what the kernel knows, and no more.
    pub(crate) agent: Option<Agent>,
    /// By key, unless sorted otherwise.
    pub(crate) virtual_servers: Vec<VirtualRow>,
}

/// Who has told what the kernel does not know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Agent {
    pub(crate) version: String,
    pub(crate) node: String,
    pub(crate) stage: Stage,
}

/// A virtual server, with its real servers by key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct VirtualRow {
    pub(crate) key: VirtualServerKey,
    pub(crate) config: VirtualServerConfig,
    pub(crate) traffic: TrafficCounters,
    pub(crate) rates: TrafficRates,
    pub(crate) behind: Behind,
    pub(crate) drift: Option<Drift>,
    pub(crate) real_servers: Vec<RealRow>,
}

/// Who is behind a virtual server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Behind {
    /// A port of a Service.
    Service(ServicePort),
    /// A Service or port that is gone; its connections are being drained.
    Leaving,
    /// Somebody whom only an agent could name: the virtual server is one of those that our sets list.
    Unnamed,
    /// Another program: the virtual server is none of ours.
    Foreign,
    /// Nobody knows: neither is there an agent, nor could our sets be read.
    Unknown,
}

/// A port of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ServicePort {
    /// `namespace/name`.
    pub(crate) service: String,
    /// Empty where the port has no name.
    pub(crate) port: String,
    /// What clients call, where that is not the virtual server's own key: behind a firewall mark.
    pub(crate) frontend: Option<VirtualServerKey>,
}

/// A real server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RealRow {
    pub(crate) key: RealServerKey,
    pub(crate) server: RealServer,
    pub(crate) connections: RealServerCounters,
    pub(crate) traffic: TrafficCounters,
    pub(crate) rates: TrafficRates,
    /// The pod, which is in the namespace of its Service.
    pub(crate) pod: Option<String>,
    pub(crate) node: Option<String>,
    /// For how long it may stay, at most, if it is leaving.
    pub(crate) draining: Option<Duration>,
    pub(crate) drift: Option<Drift>,
}

/// How the kernel is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Drift {
    /// It lacks this.
    Missing,
    /// It has this, and nobody asks for it.
    Unwanted,
    /// It has this otherwise; what would be right, in words.
    Otherwise(String),
}

impl VirtualRow {
    /// The Service's port, if that is known.
    pub(crate) const fn service(&self) -> Option<&ServicePort> {
        match &self.behind {
            Behind::Service(port) => Some(port),
            Behind::Leaving | Behind::Unnamed | Behind::Foreign | Behind::Unknown => None,
        }
    }

    /// Whether the kernel has it.
    pub(crate) fn is_there(&self) -> bool {
        self.drift != Some(Drift::Missing)
    }

    /// Whether it or one of its real servers is not as it should be.
    pub(crate) fn has_drifted(&self) -> bool {
        self.drift.is_some() || self.real_servers.iter().any(|real| real.drift.is_some())
    }

    /// Whether a real server is leaving.
    pub(crate) fn drains(&self) -> bool {
        self.real_servers.iter().any(|real| real.draining.is_some())
    }

    /// Whether none of its real servers takes new connections.
    pub(crate) fn has_no_servers(&self) -> bool {
        self.real_servers.iter().all(|real| real.server.weight == 0 || !real.is_there())
    }

    /// The connections of all of its real servers.
    pub(crate) fn connections(&self) -> RealServerCounters {
        self.real_servers.iter().fold(RealServerCounters::default(), |sum, real| RealServerCounters {
            active: sum.active.saturating_add(real.connections.active),
            inactive: sum.inactive.saturating_add(real.connections.inactive),
            persistent: sum.persistent.saturating_add(real.connections.persistent),
        })
    }

    /// What clients call.
    pub(crate) fn frontend(&self) -> VirtualServerKey {
        self.service().and_then(|service| service.frontend).unwrap_or(self.key)
    }
}

impl RealRow {
    /// Whether the kernel has it.
    pub(crate) fn is_there(&self) -> bool {
        self.drift != Some(Drift::Missing)
    }
}

impl ServicePort {
    /// The namespace of the Service.
    pub(crate) fn namespace(&self) -> &str {
        self.service.split_once('/').map_or("", |(namespace, _)| namespace)
    }
}

impl fmt::Display for ServicePort {
    /// `namespace/name:port`, or `namespace/name` where the port has no name.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.port.as_str() {
            "" => f.write_str(&self.service),
            port => write!(f, "{}:{port}", self.service),
        }
    }
}

impl fmt::Display for Drift {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing => f.write_str("not in the kernel"),
            Self::Unwanted => f.write_str("nobody asks for it"),
            Self::Otherwise(desired) => write!(f, "desired: {desired}"),
        }
    }
}

/// A duration as people write it, to the second: `14m12s`.
pub(crate) fn in_words(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    match (hours, minutes) {
        (0, 0) => format!("{seconds}s"),
        (0, _) => format!("{minutes}m{seconds:02}s"),
        _ => format!("{hours}h{minutes:02}m{seconds:02}s"),
    }
}
