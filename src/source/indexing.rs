//! How what a source tells gets into the index.

use desired::{Index, Problem};

use super::{Event, Kind, Object};

/// Takes `event` in. Returns whether it is a slice that is news.
///
/// # Errors
/// When an object has no name to know it by; it is left out.
pub(crate) fn take(index: &mut Index, event: &Event) -> Result<bool, Problem> {
    match event {
        Event::Listing(kind) => index.begin_listing(known(*kind)),
        Event::Listed(kind) => index.end_listing(known(*kind)),
        Event::Applied(Object::Service(service)) => return index.apply_service(service).map(|()| false),
        Event::Applied(Object::EndpointSlice(slice)) => return index.apply_slice_and_tell(slice),
        Event::Applied(Object::Node(node)) => index.apply_node(node),
        Event::Deleted(Object::Service(service)) => index.delete_service(&service.metadata),
        Event::Deleted(Object::EndpointSlice(slice)) => index.delete_slice(&slice.metadata),
        Event::Deleted(Object::Node(node)) => index.delete_node(&node.metadata),
        Event::Trouble { .. } => {}
    }
    Ok(false)
}

const fn known(kind: Kind) -> desired::Kind {
    match kind {
        Kind::Service => desired::Kind::Service,
        Kind::EndpointSlice => desired::Kind::EndpointSlice,
        Kind::Node => desired::Kind::Node,
    }
}
