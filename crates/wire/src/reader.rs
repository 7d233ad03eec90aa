//! Bytes to messages.

use std::borrow::Cow;

use crate::Malformed;
use crate::flags::{NLM_F_ACK_TLVS, NLM_F_CAPPED, NLM_F_DUMP_INTR};

/// `NLA_F_NESTED` and `NLA_F_NET_BYTEORDER` are not part of an attribute's number.
const KIND_MASK: u16 = 0x3fff;
/// `struct nlmsghdr`.
const MESSAGE_HEADER: usize = 16;
/// `struct nlattr`.
const ATTRIBUTE_HEADER: usize = 4;
const ALIGN: usize = 4;

const NLMSG_NOOP: u16 = 1;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLMSG_OVERRUN: u16 = 4;

/// `NLMSGERR_ATTR_MSG`: the kernel's explanation, a NUL-terminated text.
const NLMSGERR_ATTR_MSG: u16 = 1;

/// The messages in what one `recv` returned. After the first malformed one there are no more: its end is unknown.
#[derive(Debug, Clone)]
pub struct Messages<'a> {
    rest: &'a [u8],
}

impl<'a> Messages<'a> {
    /// Reads `bytes`, one datagram or several.
    #[must_use]
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }
}

impl<'a> Iterator for Messages<'a> {
    type Item = Result<Message<'a>, Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let bytes = std::mem::take(&mut self.rest);
        let Some(message_len) = array(bytes).map(u32::from_ne_bytes).and_then(|len| usize::try_from(len).ok()) else {
            return Some(Err(Malformed::new(format!("{} bytes are too few for a message header", bytes.len()))));
        };
        let Some(message) = bytes.get(..message_len).filter(|message| message.len() >= MESSAGE_HEADER) else {
            let have = bytes.len();
            return Some(Err(Malformed::new(format!("a message says that it has {message_len} bytes, and {have} are there"))));
        };
        // The last message may come without its padding.
        self.rest = bytes.get(message_len.next_multiple_of(ALIGN)..).unwrap_or_default();
        Some(Message::parse(message))
    }
}

/// One message from the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message<'a> {
    /// `nlmsg_type`: which kind of object [`Body::Data`] describes.
    pub kind: u16,
    /// `nlmsg_flags`.
    pub flags: u16,
    /// The sequence number of the request this answers; 0 for notifications.
    pub seq: u32,
    /// What it says.
    pub body: Body<'a>,
}

/// What a message says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Body<'a> {
    /// An object, in the words of the family that the message's `kind` belongs to.
    Data(&'a [u8]),
    /// The request succeeded. A text is a warning.
    Ack {
        /// What the kernel has to say about it.
        text: Option<Cow<'a, str>>,
    },
    /// The request failed.
    Error {
        /// The error number, positive and as the kernel gave it: ipset has numbers of its own from 4096 on.
        errno: i32,
        /// The kernel's explanation, if it has one and the socket asked for it (`NETLINK_EXT_ACK`).
        text: Option<Cow<'a, str>>,
        /// The payload of the request, unless the socket asked to be spared (`NETLINK_CAP_ACK`).
        request: Option<&'a [u8]>,
    },
    /// A dump is over.
    Done {
        /// 0 when it is complete. Otherwise the error that ended it, positive: the list is no observation.
        errno: i32,
        /// The kernel's explanation.
        text: Option<Cow<'a, str>>,
    },
    /// Nothing.
    Noop,
    /// Messages were lost. Nothing can be concluded about them.
    Overrun,
}

impl<'a> Message<'a> {
    /// Reads a whole message, header included, of at least that length.
    fn parse(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let short = || Malformed::new("a message header is cut short");
        let (_, rest) = split::<4>(bytes).ok_or_else(short)?;
        let (kind, rest) = split(rest).ok_or_else(short)?;
        let (flags, rest) = split(rest).ok_or_else(short)?;
        let (seq, rest) = split(rest).ok_or_else(short)?;
        let (_, payload) = split::<4>(rest).ok_or_else(short)?;
        let (kind, flags) = (u16::from_ne_bytes(kind), u16::from_ne_bytes(flags));
        let body = match kind {
            NLMSG_NOOP => Body::Noop,
            NLMSG_OVERRUN => Body::Overrun,
            NLMSG_ERROR => Self::parse_error(payload, flags)?,
            NLMSG_DONE => Self::parse_done(payload, flags),
            _ => Body::Data(payload),
        };
        Ok(Self { kind, flags, seq: u32::from_ne_bytes(seq), body })
    }

    /// Reads `struct nlmsgerr`: the negated error number, the header of the request, its payload unless capped, explanations.
    fn parse_error(payload: &'a [u8], flags: u16) -> Result<Body<'a>, Malformed> {
        let (errno, request) = split(payload)
            .ok_or_else(|| Malformed::new(format!("an error answer has {} bytes of the 20 it needs", payload.len())))?;
        let errno = i32::from_ne_bytes(errno).saturating_neg();
        let (copy, explanation) = if flags & NLM_F_CAPPED != 0 {
            (None, request.get(MESSAGE_HEADER..))
        } else {
            let len = array(request).map(u32::from_ne_bytes).and_then(|len| usize::try_from(len).ok());
            (
                len.and_then(|len| request.get(MESSAGE_HEADER..len)),
                len.and_then(|len| request.get(len.checked_next_multiple_of(ALIGN)?..)),
            )
        };
        let text = explanation.filter(|_| flags & NLM_F_ACK_TLVS != 0).and_then(explanation_text);
        Ok(if errno == 0 { Body::Ack { text } } else { Body::Error { errno, text, request: copy } })
    }

    /// The error number is missing from the end of a dump by some families of older kernels.
    fn parse_done(payload: &'a [u8], flags: u16) -> Body<'a> {
        let Some((errno, rest)) = split(payload) else { return Body::Done { errno: 0, text: None } };
        let text = Some(rest).filter(|_| flags & NLM_F_ACK_TLVS != 0).and_then(explanation_text);
        Body::Done { errno: i32::from_ne_bytes(errno).saturating_neg(), text }
    }

    /// Whether the objects changed while they were listed. Set on any message of a dump, its end included.
    #[must_use]
    pub const fn is_interrupted(&self) -> bool {
        self.flags & NLM_F_DUMP_INTR != 0
    }
}

/// The explanation among the attributes of an answer. An answer counts without it, so nothing wrong here is an error.
fn explanation_text(attributes: &[u8]) -> Option<Cow<'_, str>> {
    let text =
        Attributes::new(attributes, "an answer").map_while(Result::ok).find(|attribute| attribute.kind == NLMSGERR_ATTR_MSG)?;
    Some(String::from_utf8_lossy(until_nul(text.value)))
}

/// The attributes in a payload or in a nested attribute. After the first malformed one there are no more.
#[derive(Debug, Clone)]
pub struct Attributes<'a> {
    rest: &'a [u8],
    owner: &'static str,
}

impl<'a> Attributes<'a> {
    /// Reads `bytes` as the attributes of `owner`, which errors name: "a service".
    #[must_use]
    pub fn new(bytes: &'a [u8], owner: &'static str) -> Self {
        Self { rest: bytes, owner }
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = Result<Attribute<'a>, Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        let Self { rest: bytes, owner } = *self;
        if bytes.is_empty() {
            return None;
        }
        let Some((len, kind)) = array(bytes).zip(bytes.get(2..).and_then(array)) else {
            self.rest = &[];
            return Some(Err(stray_bytes(bytes.len(), owner)));
        };
        let len = usize::from(u16::from_ne_bytes(len));
        let kind = u16::from_ne_bytes(kind) & KIND_MASK;
        let Some(value) = bytes.get(ATTRIBUTE_HEADER..len) else {
            self.rest = &[];
            return Some(Err(wrong_attribute_length(kind, owner, len, bytes.len())));
        };
        // The last attribute may come without its padding.
        self.rest = bytes.get(len.next_multiple_of(ALIGN)..).unwrap_or_default();
        Some(Ok(Attribute { kind, value, owner }))
    }
}

// Apart from the loop that they end, which is run for every number the kernel says.
#[cold]
fn stray_bytes(count: usize, owner: &str) -> Malformed {
    Malformed::new(format!("{count} stray bytes after the attributes of {owner}"))
}

#[cold]
fn wrong_attribute_length(kind: u16, owner: &str, len: usize, have: usize) -> Malformed {
    Malformed::new(format!("attribute {kind} of {owner} says that it has {len} bytes, and {have} are there"))
}

/// One attribute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attribute<'a> {
    /// Its number, without the flag bits.
    pub kind: u16,
    /// Its value, without padding.
    pub value: &'a [u8],
    owner: &'static str,
}

impl<'a> Attribute<'a> {
    /// The attributes inside, those of `owner`.
    #[must_use]
    pub fn nested(&self, owner: &'static str) -> Attributes<'a> {
        Attributes::new(self.value, owner)
    }

    /// The value as exactly `N` bytes.
    ///
    /// # Errors
    /// When it has another length.
    pub fn array<const N: usize>(&self) -> Result<[u8; N], Malformed> {
        self.value.try_into().map_err(|_| self.wrong_length(N))
    }

    /// The value as a number of 8 bits.
    ///
    /// # Errors
    /// When it has another length.
    pub fn u8(&self) -> Result<u8, Malformed> {
        self.array().map(u8::from_ne_bytes)
    }

    /// The value as a number of 16 bits in the host's byte order.
    ///
    /// # Errors
    /// When it has another length.
    pub fn u16(&self) -> Result<u16, Malformed> {
        self.array().map(u16::from_ne_bytes)
    }

    /// The value as a number of 16 bits in network byte order.
    ///
    /// # Errors
    /// When it has another length.
    pub fn u16_network(&self) -> Result<u16, Malformed> {
        self.array().map(u16::from_be_bytes)
    }

    /// The value as a number of 32 bits in the host's byte order.
    ///
    /// # Errors
    /// When it has another length.
    pub fn u32(&self) -> Result<u32, Malformed> {
        self.array().map(u32::from_ne_bytes)
    }

    /// The value as a number of 32 bits in network byte order.
    ///
    /// # Errors
    /// When it has another length.
    pub fn u32_network(&self) -> Result<u32, Malformed> {
        self.array().map(u32::from_be_bytes)
    }

    /// The value as a number of 32 or 64 bits in the host's byte order.
    ///
    /// # Errors
    /// When it has another length.
    pub fn counter(&self) -> Result<u64, Malformed> {
        // Told apart by its length and not by an error, whose sentence would be put together for each of the ten counters of an object.
        match <[u8; 4]>::try_from(self.value) {
            Ok(narrow) => Ok(u32::from_ne_bytes(narrow).into()),
            Err(_) => self.array().map(u64::from_ne_bytes),
        }
    }

    /// The value as a text, up to its NUL if it has one.
    ///
    /// # Errors
    /// When it is not UTF-8.
    pub fn text(&self) -> Result<&'a str, Malformed> {
        str::from_utf8(until_nul(self.value))
            .map_err(|_| Malformed::new(format!("attribute {} of {} is not a UTF-8 text", self.kind, self.owner)))
    }

    /// The first `N` bytes of a value that may be longer.
    pub(crate) fn prefix<const N: usize>(&self) -> Result<[u8; N], Malformed> {
        array(self.value).ok_or_else(|| self.wrong_length(N))
    }

    #[cold]
    fn wrong_length(&self, wanted: usize) -> Malformed {
        let Self { kind, value, owner } = self;
        Malformed::new(format!("attribute {kind} of {owner} has {} bytes where {wanted} are needed", value.len()))
    }
}

/// Splits a fixed header of `N` bytes off a payload; `owner` is whose header it is.
pub(crate) fn split_header<'a, const N: usize>(payload: &'a [u8], owner: &str) -> Result<([u8; N], &'a [u8]), Malformed> {
    split(payload).ok_or_else(|| Malformed::new(format!("the header of {owner} has {} bytes where {N} are needed", payload.len())))
}

/// What an object cannot be understood without.
pub(crate) fn required<T>(value: Option<T>, owner: &str, what: &str) -> Result<T, Malformed> {
    value.ok_or_else(|| Malformed::new(format!("{owner} comes without {what}")))
}

fn split<const N: usize>(bytes: &[u8]) -> Option<([u8; N], &[u8])> {
    let (head, rest) = bytes.split_at_checked(N)?;
    Some((head.try_into().ok()?, rest))
}

fn array<const N: usize>(bytes: &[u8]) -> Option<[u8; N]> {
    split(bytes).map(|(head, _)| head)
}

fn until_nul(bytes: &[u8]) -> &[u8] {
    bytes.split(|byte| *byte == 0).next().unwrap_or_default()
}
