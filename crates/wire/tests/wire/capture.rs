//! The recordings in `tests/golden`, and comparison of our messages with theirs.

use std::collections::BTreeMap;

use wire::{Batch, Body, Decoded, Message, Messages};

/// Who said it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    Sent,
    Received,
}

/// What a command said and was told, datagram by datagram.
type Datagrams = Vec<(Direction, Vec<u8>)>;

/// What one recording holds, by command line.
pub(crate) struct Recording {
    commands: Vec<(String, Datagrams)>,
}

impl Recording {
    pub(crate) fn parse(text: &str) -> Self {
        let mut commands: Vec<(String, Datagrams)> = Vec::new();
        for line in text.lines().filter(|line| !line.is_empty()) {
            let (mark, rest) = line.split_at(2);
            match mark {
                "$ " => commands.push((rest.to_owned(), Vec::new())),
                "> " => commands.last_mut().unwrap().1.push((Direction::Sent, bytes(rest))),
                "< " => commands.last_mut().unwrap().1.push((Direction::Received, bytes(rest))),
                "  " => commands.last_mut().unwrap().1.last_mut().unwrap().1.extend(bytes(rest)),
                other => panic!("a line cannot begin with {other:?}"),
            }
        }
        Self { commands }
    }

    /// Every datagram that the kernel sent.
    pub(crate) fn all_received(&self) -> impl Iterator<Item = &[u8]> {
        self.commands
            .iter()
            .flat_map(|(_, datagrams)| datagrams)
            .filter(|(from, _)| *from == Direction::Received)
            .map(|(_, bytes)| &bytes[..])
    }

    /// Every datagram in either direction.
    pub(crate) fn all(&self) -> impl Iterator<Item = &[u8]> {
        self.commands.iter().flat_map(|(_, datagrams)| datagrams).map(|(_, bytes)| &bytes[..])
    }

    /// The one message that `command` sent and `which` picks by message type and payload.
    pub(crate) fn sent(&self, command: &str, which: impl Fn(u16, &[u8]) -> bool) -> &[u8] {
        let mut sent = self.datagrams(command).iter().filter(|(from, bytes)| {
            *from == Direction::Sent && which(u16::from_le_bytes(bytes[4..6].try_into().unwrap()), &bytes[16..])
        });
        let (_, found) = sent.next().unwrap_or_else(|| panic!("nothing such sent by {command}"));
        assert!(sent.next().is_none(), "several such sent by {command}");
        found
    }

    /// The messages that `command` received.
    pub(crate) fn received(&self, command: &str) -> Vec<Message<'_>> {
        self.datagrams(command)
            .iter()
            .filter(|(from, _)| *from == Direction::Received)
            .flat_map(|(_, bytes)| Messages::new(bytes))
            .collect::<Result<_, _>>()
            .unwrap()
    }

    fn datagrams(&self, command: &str) -> &[(Direction, Vec<u8>)] {
        let (_, datagrams) =
            self.commands.iter().find(|(name, _)| name == command).unwrap_or_else(|| panic!("no recording of {command}"));
        datagrams
    }
}

/// The payloads of the objects of this type among `messages`.
pub(crate) fn objects<'a>(messages: &[Message<'a>], kind: u16) -> Vec<&'a [u8]> {
    messages
        .iter()
        .filter(|message| message.kind == kind)
        .map(|message| match message.body {
            Body::Data(payload) => payload,
            ref other => panic!("not an object: {other:?}"),
        })
        .collect()
}

pub(crate) fn known<T>(decoded: Decoded<T>) -> T {
    match decoded {
        Decoded::Known(value) => value,
        Decoded::Foreign(foreign) => panic!("foreign: {foreign}"),
    }
}

/// The payload of the only message in a batch.
pub(crate) fn payload(batch: &Batch) -> &[u8] {
    assert_eq!(batch.messages(), 1);
    &batch.as_bytes()[16..]
}

/// Asserts that our only message is theirs byte for byte, but for sequence number, port and these flags.
pub(crate) fn assert_same(ours: &Batch, theirs: &[u8], flags_differ: u16) {
    assert_eq!(hex(payload(ours)), hex(&theirs[16..]));
    assert_headers(ours, theirs, flags_differ);
}

/// Asserts that our only message, whose fixed header is that long, has the attributes of theirs byte for byte, except that theirs has
/// these besides. An attribute is named by its number and those of the ones that it is nested in.
pub(crate) fn assert_same_but(ours: &Batch, theirs: &[u8], flags_differ: u16, fixed: usize, extra: &[&[u16]]) {
    assert_headers(ours, theirs, flags_differ);
    let (ours, theirs) = (payload(ours), &theirs[16..]);
    assert_eq!(hex(&ours[..fixed]), hex(&theirs[..fixed]));
    let ours = leaves(&ours[fixed..]);
    let mut theirs = leaves(&theirs[fixed..]);
    for path in extra {
        assert!(theirs.remove(*path).is_some(), "theirs has no {path:?}");
    }
    assert_eq!(ours, theirs);
}

/// Asserts that our only message has the attributes of theirs byte for byte, and this one besides.
pub(crate) fn assert_has_more(ours: &Batch, theirs: &[u8], flags_differ: u16, fixed: usize, extra: &[u16]) {
    let bytes = ours.as_bytes();
    let flags = |bytes: &[u8]| u16::from_le_bytes([bytes[6], bytes[7]]);
    assert_eq!(bytes[4..6], theirs[4..6], "message type");
    assert_eq!(flags(bytes) ^ flags(theirs), flags_differ, "flags {:#x} and {:#x}", flags(bytes), flags(theirs));
    let (ours, theirs) = (payload(ours), &theirs[16..]);
    assert_eq!(hex(&ours[..fixed]), hex(&theirs[..fixed]));
    let mut ours = leaves(&ours[fixed..]);
    assert!(ours.remove(extra).is_some(), "ours has no {extra:?}");
    assert_eq!(ours, leaves(&theirs[fixed..]));
}

fn assert_headers(ours: &Batch, theirs: &[u8], flags_differ: u16) {
    let ours = ours.as_bytes();
    let flags = |bytes: &[u8]| u16::from_le_bytes([bytes[6], bytes[7]]);
    assert_eq!(ours[4..6], theirs[4..6], "message type");
    assert_eq!(flags(ours) ^ flags(theirs), flags_differ, "flags {:#x} and {:#x}", flags(ours), flags(theirs));
    assert_eq!(u32::from_le_bytes(ours[..4].try_into().unwrap()), u32::try_from(ours.len()).unwrap(), "message length");
}

/// The attributes that hold no others, by path. Flag bits are part of the last number, so that they are compared as well.
fn leaves(mut bytes: &[u8]) -> BTreeMap<Vec<u16>, String> {
    let mut found = BTreeMap::new();
    while !bytes.is_empty() {
        let len = usize::from(u16::from_le_bytes([bytes[0], bytes[1]]));
        let kind = u16::from_le_bytes([bytes[2], bytes[3]]);
        let value = &bytes[4..len];
        if kind & 0x8000 != 0 {
            for (mut path, value) in leaves(value) {
                path.insert(0, kind & 0x3fff);
                assert!(found.insert(path, value).is_none(), "an attribute comes twice");
            }
        } else {
            assert!(found.insert(vec![kind], hex(value)).is_none(), "an attribute comes twice");
        }
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
    found
}

fn bytes(text: &str) -> Vec<u8> {
    let digits: Vec<char> = text.chars().filter(|digit| !digit.is_whitespace()).collect();
    digits.chunks(2).map(|pair| u8::from_str_radix(&pair.iter().collect::<String>(), 16).unwrap()).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
