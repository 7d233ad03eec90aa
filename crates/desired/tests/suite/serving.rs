//! From bytes to desired state.

use desired::object::{EndpointSlice, Node, Service};
use desired::{Config, Index, Ledger};

/// Serves what lines of JSON say, each after a letter for its kind: `S`, `E` and `N`, in lower case for an object that goes. How many of them
/// were objects.
pub(crate) fn serve(bytes: &[u8]) -> usize {
    let mut index = Index::new(Config::new("node-1"));
    let mut ledger = Ledger::new(index.config());
    let mut read = 0;
    for line in bytes.split(|byte| *byte == b'\n') {
        let Some((kind, json)) = line.split_first() else { continue };
        let service = || serde_json::from_slice::<Service>(json).ok();
        let slice = || serde_json::from_slice::<EndpointSlice>(json).ok();
        let node = || serde_json::from_slice::<Node>(json).ok();
        let done = match kind {
            // That an object is refused as a whole is an answer like others.
            b'S' => service().map(|service| drop(index.apply_service(&service))),
            b'E' => slice().map(|slice| drop(index.apply_slice(&slice))),
            b'N' => node().map(|node| index.apply_node(&node)),
            b's' => service().map(|service| index.delete_service(&service.metadata)),
            b'e' => slice().map(|slice| index.delete_slice(&slice.metadata)),
            b'n' => node().map(|node| index.delete_node(&node.metadata)),
            _ => None,
        };
        read += usize::from(done.is_some());
        for name in index.take_dirty() {
            ledger.set(&name, index.fragment(&name));
        }
    }
    // It is worked out anew from the fragments, and has to be whatever they are.
    drop(ledger.complete());
    read
}
