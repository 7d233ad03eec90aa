//! What sources tell, and of what.

use desired::object::{EndpointSlice, Node, ObjectMeta, Service};
use std::fmt;

/// The kinds of objects the agent watches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Kind {
    Service,
    EndpointSlice,
    Node,
}

/// An object of one of these kinds.
///
/// A source brings its objects already selected: no Service of another proxy, nothing headless, no Node but the own one unless all are
/// asked for.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Object {
    Service(Box<Service>),
    EndpointSlice(Box<EndpointSlice>),
    Node(Box<Node>),
}

/// What a source tells.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Event {
    /// A complete listing of `kind` begins: the objects applied until the matching `Listed` are all there are. One that is
    /// followed by another `Listing` of its kind has been given up, and says nothing about what is missing from it.
    Listing(Kind),
    /// An object is there, new or changed.
    Applied(Object),
    /// An object has gone, or has left the selection.
    Deleted(Object),
    /// The listing of `kind` is complete: what it did not name is not there.
    Listed(Kind),
    /// The source cannot see `kind` (or anything, if `None`) as it should; what was told before stays in force.
    Trouble { kind: Option<Kind>, message: String },
}

impl Kind {
    pub(crate) const ALL: [Kind; 3] = [Kind::Service, Kind::EndpointSlice, Kind::Node];

    /// The name in API paths and in RBAC rules.
    pub(crate) fn resource(self) -> &'static str {
        match self {
            Kind::Service => "services",
            Kind::EndpointSlice => "endpointslices",
            Kind::Node => "nodes",
        }
    }

    /// The API group in RBAC rules, where the core group is empty.
    pub(crate) fn group(self) -> &'static str {
        match self {
            Kind::Service | Kind::Node => "",
            Kind::EndpointSlice => "discovery.k8s.io",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Service => "Service",
            Kind::EndpointSlice => "EndpointSlice",
            Kind::Node => "Node",
        })
    }
}

impl Object {
    pub(crate) fn kind(&self) -> Kind {
        match self {
            Object::Service(_) => Kind::Service,
            Object::EndpointSlice(_) => Kind::EndpointSlice,
            Object::Node(_) => Kind::Node,
        }
    }

    pub(crate) fn metadata(&self) -> &ObjectMeta {
        match self {
            Object::Service(object) => &object.metadata,
            Object::EndpointSlice(object) => &object.metadata,
            Object::Node(object) => &object.metadata,
        }
    }
}

impl From<Service> for Object {
    fn from(object: Service) -> Self {
        Object::Service(Box::new(object))
    }
}

impl From<EndpointSlice> for Object {
    fn from(object: EndpointSlice) -> Self {
        Object::EndpointSlice(Box::new(object))
    }
}

impl From<Node> for Object {
    fn from(object: Node) -> Self {
        Object::Node(Box::new(object))
    }
}

/// `Service shop/web`, `Node node-1`.
impl fmt::Display for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let metadata = self.metadata();
        write!(f, "{} ", self.kind())?;
        if let Some(namespace) = &metadata.namespace {
            write!(f, "{namespace}/")?;
        }
        f.write_str(metadata.name.as_deref().unwrap_or("without a name"))
    }
}
