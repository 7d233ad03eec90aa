//! The real servers of a virtual server.

use std::slice;
use std::vec;

use crate::{RealServer, RealServerKey};

/// The real servers of one virtual server, by key and in its order.
///
/// A sorted list: most virtual servers have a handful, a node holds tens of thousands of such lists, and a tree would take twice the memory. To
/// add one in the middle moves those behind it, which for the thousands that the largest Services have is still less than the message to the
/// kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RealServers(Vec<Entry>);

type Entry = (RealServerKey, RealServer);

impl RealServers {
    /// None.
    #[must_use]
    pub const fn new() -> Self {
        Self(Vec::new())
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The settings of `key`, if it is among them.
    #[must_use]
    pub fn get(&self, key: &RealServerKey) -> Option<&RealServer> {
        self.0.get(self.find(key).ok()?).map(|(_, server)| server)
    }

    /// The settings of `key` to change, if it is among them.
    pub fn get_mut(&mut self, key: &RealServerKey) -> Option<&mut RealServer> {
        let index = self.find(key).ok()?;
        self.0.get_mut(index).map(|(_, server)| server)
    }

    /// Whether `key` is among them.
    #[must_use]
    pub fn contains_key(&self, key: &RealServerKey) -> bool {
        self.find(key).is_ok()
    }

    /// Adds `key`, or gives it these settings.
    pub fn insert(&mut self, key: RealServerKey, server: RealServer) {
        match self.find(&key) {
            Ok(index) => self.0.splice(index..=index, [(key, server)]).for_each(drop),
            Err(index) => self.0.insert(index, (key, server)),
        }
    }

    /// Takes `key` away.
    pub fn remove(&mut self, key: &RealServerKey) {
        if let Ok(index) = self.find(key) {
            self.0.remove(index);
        }
    }

    /// Takes away those for which `keep` does not hold.
    pub fn retain(&mut self, mut keep: impl FnMut(&RealServerKey) -> bool) {
        self.0.retain(|(key, _)| keep(key));
    }

    /// The keys, in order.
    pub fn keys(&self) -> impl Iterator<Item = &RealServerKey> {
        self.0.iter().map(|(key, _)| key)
    }

    /// The settings, in the order of their keys.
    pub fn values(&self) -> impl Iterator<Item = &RealServer> {
        self.0.iter().map(|(_, server)| server)
    }

    /// The settings to change, in the order of their keys.
    pub fn values_mut(&mut self) -> impl Iterator<Item = &mut RealServer> {
        self.0.iter_mut().map(|(_, server)| server)
    }

    /// Keys and settings, in order.
    pub fn iter(&self) -> Iter<'_> {
        self.into_iter()
    }

    fn find(&self, key: &RealServerKey) -> Result<usize, usize> {
        self.0.binary_search_by(|(other, _)| other.cmp(key))
    }
}

/// Keys and settings, in order.
pub type Iter<'a> = std::iter::Map<slice::Iter<'a, Entry>, fn(&Entry) -> (&RealServerKey, &RealServer)>;

impl<'a> IntoIterator for &'a RealServers {
    type Item = (&'a RealServerKey, &'a RealServer);
    type IntoIter = Iter<'a>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.iter().map(|(key, server)| (key, server))
    }
}

impl IntoIterator for RealServers {
    type Item = Entry;
    type IntoIter = vec::IntoIter<Entry>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

impl From<Vec<Entry>> for RealServers {
    /// Of those with the same key the last one counts.
    fn from(mut entries: Vec<Entry>) -> Self {
        if !entries.is_sorted_by(|(one, _), (two, _)| one < two) {
            entries.sort_by_key(|(key, _)| *key);
            entries.dedup_by(|later, earlier| {
                let same = later.0 == earlier.0;
                if same {
                    earlier.1 = later.1;
                }
                same
            });
        }
        entries.shrink_to_fit();
        Self(entries)
    }
}

impl FromIterator<Entry> for RealServers {
    fn from_iter<I: IntoIterator<Item = Entry>>(entries: I) -> Self {
        entries.into_iter().collect::<Vec<_>>().into()
    }
}

impl Extend<Entry> for RealServers {
    fn extend<I: IntoIterator<Item = Entry>>(&mut self, entries: I) {
        for (key, server) in entries {
            self.insert(key, server);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(host: u8) -> RealServerKey {
        RealServerKey::new([10, 244, 0, host].into(), 8080)
    }

    fn of(weight: u32) -> RealServer {
        RealServer { weight, ..RealServer::default() }
    }

    #[test]
    fn they_are_in_order_and_the_last_of_a_key_counts() {
        let mut servers: RealServers =
            [(key(3), of(1)), (key(1), of(1)), (key(3), of(2)), (key(2), of(1)), (key(3), of(3))].into_iter().collect();
        assert_eq!(servers.keys().copied().collect::<Vec<_>>(), [key(1), key(2), key(3)]);
        assert_eq!((servers.get(&key(3)), servers.get(&key(4))), (Some(&of(3)), None));
        servers.insert(key(2), of(7));
        servers.insert(key(0), of(8));
        servers.extend([(key(5), of(9))]);
        servers.remove(&key(1));
        servers.remove(&key(9));
        assert_eq!(servers, RealServers::from(vec![(key(5), of(9)), (key(3), of(3)), (key(2), of(7)), (key(0), of(8))]));
        servers.retain(|real| *real != key(3));
        assert_eq!(
            servers.iter().map(|(real, server)| (*real, server.weight)).collect::<Vec<_>>(),
            [(key(0), 8), (key(2), 7), (key(5), 9)]
        );
    }
}
