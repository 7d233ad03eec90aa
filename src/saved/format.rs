//! The bytes of the files: a header and records, each with its length and its checksum.
//!
//! ```text
//! file    "KIPVSAVE", version (4 bytes), record…
//! record  length of the payload (4 bytes), CRC-32 of the payload (4 bytes), payload
//! payload operation (1 byte), kind (1 byte), the rest
//! ```
//!
//! Numbers are little-endian. The first record of each file says what it belongs to. A base without its last record is not whole; a journal
//! that ends early, as one does when the machine loses its power, is as good as one of an earlier time.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::batch::{Batch, Name};
use crate::source::{Kind, Object};

const MAGIC: &[u8; 8] = b"KIPVSAVE";
/// Changes with any change of what is above, or of what is read of an object.
const VERSION: u32 = 2;

const BELONGS: u8 = b'h';
const PUT: u8 = b'p';
const DELETE: u8 = b'd';
const LISTED: u8 = b'l';
const END: u8 = b'e';

/// What a file belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Belongs {
    /// A journal belongs to the base with the same number.
    pub(super) generation: u64,
    /// Whose objects these are: those of another node, or those that another proxy is to serve, are of no use.
    pub(super) selection: String,
}

/// All that files hold.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Contents {
    /// The objects as JSON.
    pub(super) objects: BTreeMap<(Kind, Name), Vec<u8>>,
    /// The kinds that have been listed completely.
    pub(super) listed: BTreeSet<Kind>,
}

/// Why a file cannot be used, or from some place on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Damage {
    NotOurs,
    Version(u32),
    Cut { at: usize },
    Checksum { at: usize },
    Meaningless { at: usize },
    NoEnd,
    OtherSelection(String),
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotOurs => f.write_str("it is not a file of saved state"),
            Self::Version(version) => write!(f, "it has version {version}, and this agent reads version {VERSION}"),
            Self::Cut { at } => write!(f, "it ends in the middle of a record, which begins at byte {at}"),
            Self::Checksum { at } => write!(f, "the checksum of the record at byte {at} is wrong"),
            Self::Meaningless { at } => write!(f, "the record at byte {at} has no meaning"),
            Self::NoEnd => f.write_str("its end is missing"),
            Self::OtherSelection(selection) => write!(f, "it was saved for other objects ({selection})"),
        }
    }
}

/// Whether there is all that there was when it was saved, these kinds having been listed.
pub(super) fn is_complete(listed: &BTreeSet<Kind>) -> bool {
    Kind::ALL.iter().all(|kind| listed.contains(kind))
}

impl Contents {
    /// Does what `batch` says.
    pub(super) fn apply(&mut self, batch: &Batch) {
        for (kind, names) in &batch.listed {
            self.list(*kind, |name| names.contains(name));
        }
        for (key, object) in &batch.changes {
            match object.as_ref().and_then(json) {
                Some(json) => drop(self.objects.insert(key.clone(), json)),
                None => drop(self.objects.remove(key)),
            }
        }
    }

    fn list(&mut self, kind: Kind, named: impl Fn(&str) -> bool) {
        self.objects.retain(|(of, name), _| *of != kind || named(name));
        self.listed.insert(kind);
    }

    /// All bytes of a base.
    pub(super) fn base(&self, belongs: &Belongs) -> Vec<u8> {
        let mut bytes = header(belongs);
        for ((kind, name), json) in &self.objects {
            record(&mut bytes, PUT, code(*kind), &[name.as_bytes(), b"\n", json]);
        }
        let listed: Vec<u8> = self.listed.iter().map(|kind| code(*kind)).collect();
        record(&mut bytes, END, 0, &[&listed]);
        bytes
    }

    /// Reads a base.
    pub(super) fn read_base(bytes: &[u8]) -> Result<(Belongs, Self), Damage> {
        let (belongs, mut records) = open(bytes)?;
        let mut contents = Self::default();
        while let Some(Record { at, operation, kind, fields }) = records.next()? {
            if operation == END {
                contents.listed =
                    fields.iter().map(|code| kind_of(*code).ok_or(Damage::Meaningless { at })).collect::<Result<_, _>>()?;
                // Nothing is written behind the end.
                return records.rest.is_empty().then_some((belongs, contents)).ok_or(Damage::Meaningless { at });
            }
            contents.replay(operation, kind, fields).ok_or(Damage::Meaningless { at })?;
        }
        Err(Damage::NoEnd)
    }

    /// Does what a journal says, as far as it is whole. What is wrong with it from there on.
    pub(super) fn read_journal(&mut self, bytes: &[u8], base: &Belongs) -> Result<(), Damage> {
        let (belongs, mut records) = open(bytes)?;
        if belongs != *base {
            // What an earlier base was followed by is in this one.
            return Ok(());
        }
        while let Some(Record { at, operation, kind, fields }) = records.next()? {
            self.replay(operation, kind, fields).ok_or(Damage::Meaningless { at })?;
        }
        Ok(())
    }

    fn replay(&mut self, operation: u8, kind: u8, fields: &[u8]) -> Option<()> {
        let kind = kind_of(kind)?;
        match operation {
            PUT => {
                let end = fields.iter().position(|byte| *byte == b'\n')?;
                let (name, json) = fields.split_at_checked(end)?;
                self.objects.insert((kind, str::from_utf8(name).ok()?.into()), json.get(1..)?.to_vec());
            }
            DELETE => drop(self.objects.remove(&(kind, str::from_utf8(fields).ok()?.into()))),
            LISTED => {
                let names: BTreeSet<&str> = str::from_utf8(fields).ok()?.split('\n').collect();
                self.list(kind, |name| names.contains(name));
            }
            _ => return None,
        }
        Some(())
    }

    /// The objects themselves.
    ///
    /// # Errors
    /// When one of them cannot be read; its name, and what is wrong.
    pub(super) fn objects(&self) -> Result<Vec<Object>, String> {
        let read = |((kind, name), json): (&(Kind, Name), &Vec<u8>)| {
            let object = match kind {
                Kind::Service => serde_json::from_slice(json).map(Object::Service),
                Kind::EndpointSlice => serde_json::from_slice(json).map(Object::EndpointSlice),
                Kind::Node => serde_json::from_slice(json).map(Object::Node),
            };
            object.map_err(|error| format!("{kind} {name} cannot be read: {error}"))
        };
        self.objects.iter().map(read).collect()
    }
}

/// The beginning of a base or a journal.
pub(super) fn header(belongs: &Belongs) -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    bytes.extend(VERSION.to_le_bytes());
    record(&mut bytes, BELONGS, 0, &[&belongs.generation.to_le_bytes(), belongs.selection.as_bytes()]);
    bytes
}

/// What a batch adds to a journal.
pub(super) fn journal(batch: &Batch) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (kind, names) in &batch.listed {
        let names: Vec<&str> = names.iter().map(|name| &**name).collect();
        record(&mut bytes, LISTED, code(*kind), &[names.join("\n").as_bytes()]);
    }
    for ((kind, name), object) in &batch.changes {
        match object.as_ref().and_then(json) {
            Some(json) => record(&mut bytes, PUT, code(*kind), &[name.as_bytes(), b"\n", &json]),
            None => record(&mut bytes, DELETE, code(*kind), &[name.as_bytes()]),
        }
    }
    bytes
}

/// Maps with keys other than texts would have none, and objects have no such.
fn json(object: &Object) -> Option<Vec<u8>> {
    match object {
        Object::Service(service) => serde_json::to_vec(service),
        Object::EndpointSlice(slice) => serde_json::to_vec(slice),
        Object::Node(node) => serde_json::to_vec(node),
    }
    .ok()
}

const fn code(kind: Kind) -> u8 {
    match kind {
        Kind::Service => b'S',
        Kind::EndpointSlice => b'E',
        Kind::Node => b'N',
    }
}

fn kind_of(byte: u8) -> Option<Kind> {
    Kind::ALL.into_iter().find(|kind| code(*kind) == byte)
}

fn record(bytes: &mut Vec<u8>, operation: u8, kind: u8, rest: &[&[u8]]) {
    let payload = [&[operation, kind][..], &rest.concat()].concat();
    // An object that the API server has taken is a few megabytes at most.
    let Ok(length) = u32::try_from(payload.len()) else { return };
    bytes.extend(length.to_le_bytes());
    bytes.extend(crc32(&payload).to_le_bytes());
    bytes.extend(payload);
}

/// What a file belongs to, and its other records.
pub(super) fn open(bytes: &[u8]) -> Result<(Belongs, Records<'_>), Damage> {
    let rest = bytes.strip_prefix(MAGIC).ok_or(Damage::NotOurs)?;
    let (version, rest) = number(rest).ok_or(Damage::Cut { at: MAGIC.len() })?;
    if version != VERSION {
        return Err(Damage::Version(version));
    }
    let mut records = Records { length: bytes.len(), rest };
    let Record { at, operation, fields, .. } = records.next()?.ok_or(Damage::NoEnd)?;
    let belongs = || {
        let (generation, selection) = fields.split_first_chunk()?;
        let selection = str::from_utf8(selection).ok()?.to_owned();
        Some(Belongs { generation: u64::from_le_bytes(*generation), selection })
    };
    (operation == BELONGS).then(belongs).flatten().map(|belongs| (belongs, records)).ok_or(Damage::Meaningless { at })
}

pub(super) struct Records<'a> {
    /// Of the whole file.
    length: usize,
    rest: &'a [u8],
}

/// A record with the right checksum.
struct Record<'a> {
    /// Where it begins.
    at: usize,
    operation: u8,
    kind: u8,
    fields: &'a [u8],
}

impl<'a> Records<'a> {
    fn next(&mut self) -> Result<Option<Record<'a>>, Damage> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let at = self.length.saturating_sub(self.rest.len());
        let whole = || {
            let (length, rest) = number(self.rest)?;
            let (checksum, rest) = number(rest)?;
            let (payload, rest) = rest.split_at_checked(usize::try_from(length).ok()?)?;
            Some((checksum, payload, rest))
        };
        let (checksum, payload, rest) = whole().ok_or(Damage::Cut { at })?;
        if crc32(payload) != checksum {
            return Err(Damage::Checksum { at });
        }
        let ([operation, kind], fields) = payload.split_first_chunk().ok_or(Damage::Meaningless { at })?;
        self.rest = rest;
        Ok(Some(Record { at, operation: *operation, kind: *kind, fields }))
    }
}

fn number(bytes: &[u8]) -> Option<(u32, &[u8])> {
    bytes.split_first_chunk().map(|(number, rest)| (u32::from_le_bytes(*number), rest))
}

/// CRC-32 as Ethernet and gzip have it: the reflected polynomial 0xEDB88320.
pub(super) fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, byte| {
        let index = usize::from(crc.to_le_bytes()[0] ^ byte);
        CRC32.get(index).copied().unwrap_or_default() ^ (crc >> 8)
    })
}

static CRC32: [u32; 256] = {
    let mut table = [0; 256];
    let mut rest: &mut [u32] = &mut table;
    let mut index = 0;
    while let [entry, others @ ..] = rest {
        let mut crc: u32 = index;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 == 1 { 0xEDB8_8320 ^ (crc >> 1) } else { crc >> 1 };
            bit += 1;
        }
        *entry = crc;
        rest = others;
        index += 1;
    }
    table
};

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::source::Event;
    use serde_json::json;

    pub(crate) fn service(name: &str, port: u16) -> Object {
        let service =
            json!({"metadata": {"namespace": "shop", "name": name}, "spec": {"clusterIP": "10.96.0.1", "ports": [{"port": port}]}});
        Object::Service(serde_json::from_value(service).unwrap())
    }

    pub(crate) fn slice(name: &str) -> Object {
        let slice = json!({"metadata": {"namespace": "shop", "name": name, "labels": {"kubernetes.io/service-name": "web"}},
            "addressType": "IPv4", "endpoints": [{"addresses": ["10.244.1.2"], "conditions": {"ready": true}}], "ports": [{"port": 8080}]});
        Object::EndpointSlice(serde_json::from_value(slice).unwrap())
    }

    pub(crate) fn node(name: &str) -> Object {
        let node = json!({"metadata": {"name": name}, "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}]}});
        Object::Node(serde_json::from_value(node).unwrap())
    }

    /// All that there is of three kinds.
    pub(crate) fn listing(objects: impl IntoIterator<Item = Object>) -> Vec<Event> {
        let begun = Kind::ALL.into_iter().map(Event::Listing);
        begun.chain(objects.into_iter().map(Event::Applied)).chain(Kind::ALL.into_iter().map(Event::Listed)).collect()
    }

    fn batch(events: impl IntoIterator<Item = Event>) -> Batch {
        let mut collector = super::super::batch::Collector::default();
        events.into_iter().for_each(|event| collector.note(event));
        collector.take()
    }

    fn belongs() -> Belongs {
        Belongs { generation: 7, selection: "node-1".to_owned() }
    }

    /// A base with an object of each kind.
    fn contents() -> Contents {
        let mut contents = Contents::default();
        contents.apply(&batch(listing([service("web", 80), slice("web-1"), node("node-1")])));
        contents
    }

    #[test]
    fn the_checksum_is_the_known_one() {
        assert_eq!((crc32(b"123456789"), crc32(b"")), (0xCBF4_3926, 0));
    }

    #[test]
    fn what_is_written_is_read() {
        let contents = contents();
        assert!(is_complete(&contents.listed));
        let (of, mut read) = Contents::read_base(&contents.base(&belongs())).unwrap();
        assert_eq!((&of, &read), (&belongs(), &contents));
        assert_eq!(read.objects().unwrap(), [service("web", 80), slice("web-1"), node("node-1")]);

        let changes = batch([Event::Applied(service("web", 81)), Event::Applied(service("db", 1)), Event::Deleted(slice("web-1"))]);
        let relisted = batch([Event::Listing(Kind::Service), Event::Applied(service("db", 2)), Event::Listed(Kind::Service)]);
        let bytes = [header(&belongs()), journal(&changes), journal(&relisted)].concat();
        read.read_journal(&bytes, &belongs()).unwrap();
        assert_eq!(read.objects().unwrap(), [service("db", 2), node("node-1")]);
        let mut same = contents;
        same.apply(&changes);
        same.apply(&relisted);
        assert_eq!(read, same, "a batch means the same wherever it goes");
    }

    #[test]
    fn an_empty_listing_leaves_nothing() {
        let mut contents = contents();
        let none = batch([Event::Listing(Kind::Service), Event::Listed(Kind::Service)]);
        contents.read_journal(&[header(&belongs()), journal(&none)].concat(), &belongs()).unwrap();
        assert_eq!(contents.objects().unwrap(), [slice("web-1"), node("node-1")]);
    }

    #[test]
    fn a_base_that_is_cut_anywhere_is_not_used() {
        let bytes = contents().base(&belongs());
        for length in 0..bytes.len() {
            assert!(Contents::read_base(&bytes[..length]).is_err(), "{length} bytes of {}", bytes.len());
        }
        assert!(Contents::read_base(&[&bytes[..], &bytes[12..]].concat()).is_err(), "nothing belongs behind the end");
    }

    #[test]
    fn a_base_with_any_bit_flipped_is_not_used() {
        let bytes = contents().base(&belongs());
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(Contents::read_base(&flipped).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn a_journal_that_is_damaged_is_used_up_to_there() {
        let batches = [batch([Event::Applied(service("web", 81))]), batch([Event::Applied(service("web", 82))])];
        let pieces = [header(&belongs()), journal(&batches[0]), journal(&batches[1])];
        let bytes = pieces.concat();
        let (first, second) = (pieces[0].len(), pieces[0].len() + pieces[1].len());
        let port = |contents: &Contents| match &contents.objects().unwrap()[0] {
            Object::Service(service) => service.spec.as_ref().unwrap().ports.as_ref().unwrap()[0].port,
            other => panic!("{other}"),
        };
        let read = |bytes: &[u8]| {
            let mut contents = contents();
            let outcome = contents.read_journal(bytes, &belongs());
            (port(&contents), outcome.is_ok())
        };
        let intact_of = |length: usize| {
            if length < second {
                80
            } else if length < bytes.len() {
                81
            } else {
                82
            }
        };
        for length in 0..=bytes.len() {
            let whole = [first, second, bytes.len()].contains(&length);
            assert_eq!(read(&bytes[..length]), (intact_of(length), whole), "{length} bytes of {}", bytes.len());
        }
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            let (port, whole) = read(&flipped);
            assert_eq!((port, whole), (if bit / 8 < second { 80 } else { 81 }, false), "bit {bit}");
        }
    }

    #[test]
    fn damage_is_said_in_words() {
        let bytes = contents().base(&belongs());
        let damage = |bytes: &[u8]| Contents::read_base(bytes).unwrap_err().to_string();
        assert_eq!(damage(b"[]"), "it is not a file of saved state");
        let mut newer = bytes.clone();
        newer[8] = 3;
        assert_eq!(damage(&newer), "it has version 3, and this agent reads version 2");
        assert!(damage(&bytes[..bytes.len() - 1]).starts_with("it ends in the middle of a record, which begins at byte "));
        let mut odd = header(&belongs());
        record(&mut odd, b'?', b'S', &[b"web"]);
        assert_eq!(damage(&odd), format!("the record at byte {} has no meaning", header(&belongs()).len()));
        assert_eq!(damage(&header(&belongs())), "its end is missing");
    }

    #[test]
    fn a_journal_of_another_base_says_nothing_of_this_one() {
        let mut read = contents();
        let other = Belongs { generation: 6, ..belongs() };
        let bytes = [header(&other), journal(&batch([Event::Deleted(service("web", 80))]))].concat();
        read.read_journal(&bytes, &belongs()).unwrap();
        assert_eq!(read, contents());
    }
}
