//! The real servers of a virtual server.

use std::slice;
use std::sync::Arc;
use std::vec;

use crate::{RealServer, RealServerKey};

/// The real servers of one virtual server, by key and in its order.
///
/// A sorted list: most virtual servers have a handful, a node holds tens of thousands of such lists, and a tree would take twice the memory. To
/// add one in the middle moves those behind it, which for the thousands that the largest Services have is still less than the message to the
/// kernel.
#[derive(Clone, Debug)]
pub struct RealServers(List);

/// Nearly all lists are of real servers that have the same settings, and those are most of what a list takes.
#[derive(Clone, Debug)]
enum List {
    /// All have [`RealServer::DEFAULT`].
    Alike(Arc<[RealServerKey]>),
    /// As they say.
    Various(Vec<Entry>),
}

type Entry = (RealServerKey, RealServer);

const FEW: usize = 8;

impl RealServers {
    /// None.
    #[must_use]
    pub const fn new() -> Self {
        Self(List::Various(Vec::new()))
    }

    /// Those with `keys`, which have to be in order and without duplicates, all with [`RealServer::DEFAULT`].
    #[must_use]
    pub fn alike(keys: Arc<[RealServerKey]>) -> Self {
        debug_assert!(keys.is_sorted_by(|one, two| one < two), "real servers are not in order");
        Self(List::Alike(keys))
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        match &self.0 {
            List::Alike(keys) => keys.len(),
            List::Various(entries) => entries.len(),
        }
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The settings of `key`, if it is among them.
    #[must_use]
    pub fn get(&self, key: &RealServerKey) -> Option<&RealServer> {
        match &self.0 {
            // To look at a few is cheaper than to order them.
            List::Alike(keys) if keys.len() <= FEW => keys.contains(key).then_some(&RealServer::DEFAULT),
            List::Alike(keys) => keys.binary_search(key).is_ok().then_some(&RealServer::DEFAULT),
            List::Various(entries) => entries.get(find(entries, key).ok()?).map(|(_, server)| server),
        }
    }

    /// The settings of `key` to change, if it is among them.
    pub fn get_mut(&mut self, key: &RealServerKey) -> Option<&mut RealServer> {
        let entries = self.various();
        let index = find(entries, key).ok()?;
        entries.get_mut(index).map(|(_, server)| server)
    }

    /// Whether `key` is among them.
    #[must_use]
    pub fn contains_key(&self, key: &RealServerKey) -> bool {
        self.get(key).is_some()
    }

    /// Adds `key`, or gives it these settings.
    pub fn insert(&mut self, key: RealServerKey, server: RealServer) {
        if self.get(&key) == Some(&server) {
            return;
        }
        let entries = self.various();
        match find(entries, &key) {
            Ok(index) => entries.splice(index..=index, [(key, server)]).for_each(drop),
            Err(index) => entries.insert(index, (key, server)),
        }
    }

    /// Takes `key` away.
    pub fn remove(&mut self, key: &RealServerKey) {
        let entries = self.various();
        if let Ok(index) = find(entries, key) {
            entries.remove(index);
        }
        self.settle();
    }

    /// Takes away those for which `keep` does not hold.
    pub fn retain(&mut self, mut keep: impl FnMut(&RealServerKey) -> bool) {
        self.various().retain(|(key, _)| keep(key));
        self.settle();
    }

    /// The keys, in order.
    pub fn keys(&self) -> impl Iterator<Item = &RealServerKey> {
        self.iter().map(|(key, _)| key)
    }

    /// The settings, in the order of their keys.
    pub fn values(&self) -> impl Iterator<Item = &RealServer> {
        self.iter().map(|(_, server)| server)
    }

    /// The settings to change, in the order of their keys.
    pub fn values_mut(&mut self) -> impl Iterator<Item = &mut RealServer> {
        self.various().iter_mut().map(|(_, server)| server)
    }

    /// Keys and settings, in order.
    pub fn iter(&self) -> Iter<'_> {
        self.into_iter()
    }

    /// Shares the memory of `other`, if that is the same list.
    pub(crate) fn share(&mut self, other: &Self) {
        if let (List::Alike(own), List::Alike(others)) = (&mut self.0, &other.0)
            && own == others
        {
            *own = Arc::clone(others);
        }
    }

    /// The list as one in which each may have settings of its own.
    fn various(&mut self) -> &mut Vec<Entry> {
        if let List::Alike(keys) = &self.0 {
            self.0 = List::Various(keys.iter().map(|key| (*key, RealServer::DEFAULT)).collect());
        }
        match &mut self.0 {
            List::Various(entries) => entries,
            List::Alike(_) => unreachable!("has just been replaced"),
        }
    }

    /// Takes no more memory than is needed.
    fn settle(&mut self) {
        if let List::Various(entries) = &self.0
            && entries.iter().all(|(_, server)| *server == RealServer::DEFAULT)
        {
            self.0 = List::Alike(entries.iter().map(|(key, _)| *key).collect());
        }
    }
}

fn find(entries: &[Entry], key: &RealServerKey) -> Result<usize, usize> {
    entries.binary_search_by(|(other, _)| other.cmp(key))
}

impl Default for RealServers {
    fn default() -> Self {
        Self::new()
    }
}

impl PartialEq for RealServers {
    fn eq(&self, other: &Self) -> bool {
        self.len() == other.len() && self.iter().eq(other)
    }
}

impl Eq for RealServers {}

/// Keys and settings, in order.
#[derive(Clone, Debug)]
pub struct Iter<'a>(Items<'a>);

#[derive(Clone, Debug)]
enum Items<'a> {
    Alike(slice::Iter<'a, RealServerKey>),
    Various(slice::Iter<'a, Entry>),
}

impl<'a> Iterator for Iter<'a> {
    type Item = (&'a RealServerKey, &'a RealServer);

    fn next(&mut self) -> Option<Self::Item> {
        match &mut self.0 {
            Items::Alike(keys) => keys.next().map(|key| (key, &RealServer::DEFAULT)),
            Items::Various(entries) => entries.next().map(|(key, server)| (key, server)),
        }
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        match &self.0 {
            Items::Alike(keys) => keys.size_hint(),
            Items::Various(entries) => entries.size_hint(),
        }
    }
}

impl<'a> IntoIterator for &'a RealServers {
    type Item = (&'a RealServerKey, &'a RealServer);
    type IntoIter = Iter<'a>;

    fn into_iter(self) -> Self::IntoIter {
        Iter(match &self.0 {
            List::Alike(keys) => Items::Alike(keys.iter()),
            List::Various(entries) => Items::Various(entries.iter()),
        })
    }
}

impl IntoIterator for RealServers {
    type Item = Entry;
    type IntoIter = vec::IntoIter<Entry>;

    fn into_iter(mut self) -> Self::IntoIter {
        std::mem::take(self.various()).into_iter()
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
        let mut servers = Self(List::Various(entries));
        servers.settle();
        servers
    }
}

impl FromIterator<Entry> for RealServers {
    fn from_iter<I: IntoIterator<Item = Entry>>(entries: I) -> Self {
        entries.into_iter().collect::<Vec<_>>().into()
    }
}

impl Extend<Entry> for RealServers {
    /// Of those with the same key the last one counts.
    fn extend<I: IntoIterator<Item = Entry>>(&mut self, entries: I) {
        let mut more = entries.into_iter().peekable();
        if more.peek().is_some() {
            let mut all = std::mem::take(self.various());
            all.extend(more);
            *self = all.into();
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
    fn lists_are_equal_whatever_they_went_through() {
        let keys: Vec<_> = (1..=5).map(key).collect();
        let alike = RealServers::alike(keys.as_slice().into());
        assert_eq!(alike, keys.iter().map(|key| (*key, RealServer::DEFAULT)).collect());
        assert!(
            matches!(alike.iter().map(|(key, server)| (*key, *server)).collect::<RealServers>().0, List::Alike(_)),
            "as it is read from a kernel"
        );
        let mut changed = alike.clone();
        changed.insert(key(6), of(0));
        changed.insert(key(2), RealServer::DEFAULT);
        assert_eq!((changed.len(), changed.get(&key(6)), changed.get(&key(2))), (6, Some(&of(0)), Some(&RealServer::DEFAULT)));
        assert_ne!(changed, alike);
        changed.remove(&key(6));
        assert_eq!(changed, alike);
        assert!(matches!(changed.0, List::Alike(_)), "nothing is left of the one that was drained");
        changed.values_mut().for_each(|server| server.weight = 3);
        assert_ne!(changed, alike);
        assert!(changed.get_mut(&key(9)).is_none() && alike.get(&key(9)).is_none());
        assert_eq!(alike.into_iter().map(|(key, _)| key).collect::<Vec<_>>(), keys);
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
