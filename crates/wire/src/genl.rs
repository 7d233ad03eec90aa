//! Generic netlink: the header that its families share, and how to learn the number the kernel gave a family.

use crate::flags::NLM_F_REQUEST;
use crate::reader::{Attributes, required, split_header};
use crate::writer::Writer;
use crate::{Batch, Malformed};

/// `GENL_ID_CTRL`: the one family whose number is fixed.
const CONTROLLER: u16 = 0x10;
const CTRL_VERSION: u8 = 1;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;
/// `GENL_NAMSIZ` is 16 with the terminating NUL.
const NAME_MAX: usize = 15;

const OWNER: &str = "a generic netlink family";

/// Asks for the number of the family called `name`. A family that no loaded module provides is answered with `ENOENT`.
///
/// # Errors
/// When `name` cannot be the name of a family.
pub fn get_family(batch: &mut Batch, seq: u32, name: &str) -> Result<(), Malformed> {
    crate::error::check_name(OWNER, name, NAME_MAX)?;
    batch.message(CONTROLLER, NLM_F_REQUEST, seq, |message| {
        write_header(message, CTRL_CMD_GETFAMILY, CTRL_VERSION);
        message.text(CTRL_ATTR_FAMILY_NAME, name);
    })
}

/// Reads the answer to [`get_family`]: the message type that the family's messages have.
///
/// # Errors
/// When it is malformed or has no number in it.
pub fn parse_family(payload: &[u8]) -> Result<u16, Malformed> {
    let (_, attributes) = split(payload, OWNER)?;
    let mut id = None;
    for attribute in Attributes::new(attributes, OWNER) {
        let attribute = attribute?;
        if attribute.kind == CTRL_ATTR_FAMILY_ID {
            id = Some(attribute.u16()?);
        }
    }
    required(id, OWNER, "its number")
}

/// Appends a `struct genlmsghdr`.
pub(crate) fn write_header(message: &mut Writer<'_>, command: u8, version: u8) {
    message.raw(&[command, version, 0, 0]);
}

/// Splits the `struct genlmsghdr` off: the command and the attributes.
pub(crate) fn split<'a>(payload: &'a [u8], owner: &str) -> Result<(u8, &'a [u8]), Malformed> {
    let ([command, ..], attributes) = split_header::<4>(payload, owner)?;
    Ok((command, attributes))
}
