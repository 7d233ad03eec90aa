//! Messages to bytes.

use crate::Malformed;
use crate::flags::NLM_F_ACK;

/// `NLA_F_NESTED`: the attribute holds attributes.
const NESTED: u16 = 1 << 15;
/// `NLA_F_NET_BYTEORDER`: the attribute's value is big-endian.
const NET_BYTEORDER: u16 = 1 << 14;
/// Both netlink messages and attributes start at multiples of this (`NLMSG_ALIGNTO`, `NLA_ALIGNTO`).
const ALIGN: usize = 4;
/// The length of `struct nlattr`, which an attribute's own length includes.
const ATTRIBUTE_HEADER: u16 = 4;
/// Where `nlmsg_flags` is in a message header.
const FLAGS_OFFSET: usize = 6;

/// Messages back to back, ready for one `send`. Clear and reuse it: once its buffer has grown, nothing here allocates.
///
/// The kernel works through the messages in order and answers each failing one by its sequence number, with or without
/// [`NLM_F_ACK`]. So it is enough to [acknowledge the last](Self::acknowledge_last): when that answer is in, every message that has not
/// been complained about has succeeded.
#[derive(Debug, Clone, Default)]
pub struct Batch {
    bytes: Vec<u8>,
    /// Where the last message starts; meaningless while there is none.
    last: usize,
    messages: usize,
}

impl Batch {
    /// An empty batch with room for `bytes` before it has to allocate.
    #[must_use]
    pub fn with_capacity(bytes: usize) -> Self {
        Self { bytes: Vec::with_capacity(bytes), last: 0, messages: 0 }
    }

    /// Appends a message of type `kind` (`nlmsg_type`), whose payload `write` fills in. The sender's port is left 0 for the kernel
    /// to fill in.
    ///
    /// # Errors
    /// When an attribute is longer than its 16-bit length can say. The batch is then as it was before.
    pub fn message(&mut self, kind: u16, flags: u16, seq: u32, write: impl FnOnce(&mut Writer<'_>)) -> Result<(), Malformed> {
        let start = self.bytes.len();
        let ([k1, k2], [f1, f2], [s1, s2, s3, s4]) = (kind.to_ne_bytes(), flags.to_ne_bytes(), seq.to_ne_bytes());
        self.bytes.extend_from_slice(&[0, 0, 0, 0, k1, k2, f1, f2, s1, s2, s3, s4, 0, 0, 0, 0]);
        let mut writer = Writer::new(&mut self.bytes);
        write(&mut writer);
        let written = writer.finish();
        let len = u32::try_from(self.bytes.len() - start).map_err(|_| Malformed::new("a message has more than 4 GiB"));
        match written.and(len) {
            Ok(len) => {
                patch(&mut self.bytes, start, &len.to_ne_bytes());
                self.last = start;
                self.messages += 1;
                Ok(())
            }
            Err(malformed) => {
                self.bytes.truncate(start);
                Err(malformed)
            }
        }
    }

    /// Asks the kernel to answer the last message even when it succeeds. Does nothing to an empty batch.
    pub fn acknowledge_last(&mut self) {
        if self.messages == 0 {
            return;
        }
        let at = self.last + FLAGS_OFFSET;
        if let Some(flags) = self.bytes.get(at..at + 2).and_then(|flags| flags.try_into().ok()) {
            let flags = u16::from_ne_bytes(flags) | NLM_F_ACK;
            patch(&mut self.bytes, at, &flags.to_ne_bytes());
        }
    }

    /// The bytes to send.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The number of bytes. One `send` takes at most the socket's send buffer less 32 bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether there is no message.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.messages == 0
    }

    /// The number of messages: at worst as many answers, for which the socket's receive buffer must have room.
    #[must_use]
    pub fn messages(&self) -> usize {
        self.messages
    }

    /// Forgets the messages and keeps the buffer.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.last = 0;
        self.messages = 0;
    }
}

/// The payload of one message under construction: a fixed header, then attributes.
#[derive(Debug)]
pub struct Writer<'a> {
    bytes: &'a mut Vec<u8>,
    // The first attribute that came out too long. Kept until the end so that writing reads as a list of attributes.
    failure: Option<Malformed>,
}

impl<'a> Writer<'a> {
    /// Appends to `bytes`, whose length must be a multiple of 4.
    pub(crate) fn new(bytes: &'a mut Vec<u8>) -> Self {
        Self { bytes, failure: None }
    }

    /// The first attribute that did not fit, if any.
    pub(crate) fn finish(self) -> Result<(), Malformed> {
        self.failure.map_or(Ok(()), Err)
    }

    /// Appends bytes that are no attribute, such as a family's fixed header, and pads them.
    pub fn raw(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        self.pad();
    }

    /// An attribute with these bytes as its value.
    pub fn bytes(&mut self, kind: u16, value: &[u8]) {
        let start = self.open(kind);
        self.bytes.extend_from_slice(value);
        self.close(start, kind);
    }

    /// An attribute with a number of 8 bits.
    pub fn u8(&mut self, kind: u16, value: u8) {
        self.short(kind, 1, [value, 0, 0, 0]);
    }

    /// An attribute with a number of 16 bits in the host's byte order.
    pub fn u16(&mut self, kind: u16, value: u16) {
        let [a, b] = value.to_ne_bytes();
        self.short(kind, 2, [a, b, 0, 0]);
    }

    /// An attribute with a number of 32 bits in the host's byte order.
    pub fn u32(&mut self, kind: u16, value: u32) {
        self.short(kind, 4, value.to_ne_bytes());
    }

    /// An attribute with a number of 16 bits in network byte order, marked so.
    pub fn u16_network(&mut self, kind: u16, value: u16) {
        let [a, b] = value.to_be_bytes();
        self.short(kind | NET_BYTEORDER, 2, [a, b, 0, 0]);
    }

    /// An attribute with a number of 32 bits in network byte order, marked so.
    pub fn u32_network(&mut self, kind: u16, value: u32) {
        self.short(kind | NET_BYTEORDER, 4, value.to_be_bytes());
    }

    /// An attribute with bytes in network byte order, marked so.
    pub fn bytes_network(&mut self, kind: u16, value: &[u8]) {
        self.bytes(kind | NET_BYTEORDER, value);
    }

    /// An attribute with a text and a terminating NUL.
    pub fn text(&mut self, kind: u16, text: &str) {
        let start = self.open(kind);
        self.bytes.extend_from_slice(text.as_bytes());
        self.bytes.push(0);
        self.close(start, kind);
    }

    /// An attribute that holds the attributes `write` appends, marked as nested.
    pub fn nested(&mut self, kind: u16, write: impl FnOnce(&mut Self)) {
        let start = self.open(kind | NESTED);
        write(self);
        self.close(start, kind);
    }

    /// An attribute whose value is the first `len` of 4 bytes, the others being its padding. Most of what is said to the kernel is numbers, so
    /// these are written in one go.
    fn short(&mut self, kind: u16, len: u16, value: [u8; ALIGN]) {
        let [len_low, len_high] = (ATTRIBUTE_HEADER + len).to_ne_bytes();
        let [kind_low, kind_high] = kind.to_ne_bytes();
        let [a, b, c, d] = value;
        self.bytes.extend_from_slice(&[len_low, len_high, kind_low, kind_high, a, b, c, d]);
    }

    fn open(&mut self, kind: u16) -> usize {
        let start = self.bytes.len();
        let [kind_low, kind_high] = kind.to_ne_bytes();
        self.bytes.extend_from_slice(&[0, 0, kind_low, kind_high]);
        start
    }

    fn close(&mut self, start: usize, kind: u16) {
        let len = self.bytes.len() - start;
        match u16::try_from(len) {
            Ok(len) => patch(self.bytes, start, &len.to_ne_bytes()),
            Err(_) if self.failure.is_none() => {
                let kind = kind & !(NESTED | NET_BYTEORDER);
                self.failure = Some(Malformed::new(format!("attribute {kind} has {len} bytes where at most 65535 can be said")));
            }
            Err(_) => {}
        }
        // The length does not count the padding of the attribute itself, only that of attributes inside.
        self.pad();
    }

    fn pad(&mut self) {
        let padding = self.bytes.len().next_multiple_of(ALIGN) - self.bytes.len();
        if padding > 0 {
            self.bytes.extend(std::iter::repeat_n(0, padding));
        }
    }
}

fn patch(bytes: &mut [u8], at: usize, value: &[u8]) {
    if let Some(place) = bytes.get_mut(at..at + value.len()) {
        place.copy_from_slice(value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attribute_that_is_too_long_leaves_the_batch_as_it_was() {
        let mut batch = Batch::default();
        batch.message(16, 1, 7, |message| message.u32(1, 5)).unwrap();
        let before = batch.as_bytes().to_vec();
        let fits = vec![0; 65_531];
        let too_long = vec![0; 65_532];
        let error = batch.message(16, 1, 8, |message| message.bytes(3, &too_long)).unwrap_err();
        assert_eq!(error.to_string(), "attribute 3 has 65536 bytes where at most 65535 can be said");
        batch.message(16, 1, 8, |message| message.nested(4, |nested| nested.bytes(3, &fits))).unwrap_err();
        assert_eq!((batch.as_bytes(), batch.messages()), (before.as_slice(), 1));
        batch.message(16, 1, 8, |message| message.bytes(3, &fits)).unwrap();
        assert_eq!(batch.len(), before.len() + 16 + 65_536);
    }

    #[test]
    fn only_the_last_message_is_acknowledged() {
        let mut batch = Batch::default();
        batch.acknowledge_last();
        assert!(batch.is_empty() && batch.as_bytes().is_empty());
        for seq in 1..=3 {
            batch.message(16, 1, seq, |message| message.text(2, "ab")).unwrap();
        }
        batch.acknowledge_last();
        let flags: Vec<_> = crate::Messages::new(batch.as_bytes()).map(|message| message.unwrap().flags).collect();
        assert_eq!(flags, [1, 1, 1 | NLM_F_ACK]);
        batch.clear();
        batch.acknowledge_last();
        assert_eq!((batch.len(), batch.messages()), (0, 0));
    }
}
