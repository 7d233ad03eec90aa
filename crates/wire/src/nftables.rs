//! What nf_tables tells of packet rules that went (include/uapi/linux/netfilter/nf_tables.h). `iptables-nft` has its tables and chains
//! there under the names that they have in iptables.
//!
//! Nothing is asked of nf_tables here: rules are read and written by iptables' own programs, which know how theirs look.

use crate::Malformed;
use crate::reader::{Attributes, split_header};

/// Notification group (`NFNLGRP_NFTABLES`): whatever changes in nf_tables.
pub const GROUP: u32 = 7;

/// `NFNL_SUBSYS_NFTABLES`, the upper half of the message type.
const SUBSYSTEM: u16 = 10;

const NFT_MSG_DELTABLE: u16 = 2;
const NFT_MSG_DELCHAIN: u16 = 5;
const NFT_MSG_DELRULE: u16 = 8;

const NFTA_CHAIN_NAME: u16 = 3;
const NFTA_RULE_CHAIN: u16 = 2;

const OWNER: &str = "a notification of nf_tables";

/// Something that went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Removal<'a> {
    /// A table with all that was in it.
    Table,
    /// A chain, or a rule of it.
    Chain(&'a str),
}

/// Reads a notification of this [kind](crate::Message::kind); `None` when it is not about something that went.
///
/// # Errors
/// When it is malformed.
pub fn parse_removal(kind: u16, payload: &[u8]) -> Result<Option<Removal<'_>>, Malformed> {
    let name_in = match kind.checked_sub(SUBSYSTEM << 8) {
        Some(NFT_MSG_DELTABLE) => return Ok(Some(Removal::Table)),
        Some(NFT_MSG_DELCHAIN) => NFTA_CHAIN_NAME,
        Some(NFT_MSG_DELRULE) => NFTA_RULE_CHAIN,
        _ => return Ok(None),
    };
    // struct nfgenmsg
    let (_, attributes) = split_header::<4>(payload, OWNER)?;
    for attribute in Attributes::new(attributes, OWNER) {
        let attribute = attribute?;
        if attribute.kind == name_in {
            return attribute.text().map(|name| Some(Removal::Chain(name)));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The bytes after the message header: `struct nfgenmsg` and texts as attributes.
    fn payload(attributes: &[(u16, &str)]) -> Vec<u8> {
        let mut batch = crate::Batch::default();
        let written = batch.message(0, 0, 0, |message| {
            message.raw(&[2, 0, 0, 0]);
            attributes.iter().for_each(|(kind, text)| message.text(*kind, text));
        });
        written.unwrap();
        batch.as_bytes()[16..].to_vec()
    }

    #[test]
    fn what_went_is_known_by_its_chain() {
        let rule = payload(&[(1, "nat"), (2, "POSTROUTING")]);
        assert_eq!(parse_removal(0x0a08, &rule), Ok(Some(Removal::Chain("POSTROUTING"))));
        let chain = payload(&[(1, "nat"), (3, "KUBE-IPVS-POSTROUTING")]);
        assert_eq!(parse_removal(0x0a05, &chain), Ok(Some(Removal::Chain("KUBE-IPVS-POSTROUTING"))));
        assert_eq!(parse_removal(0x0a02, &payload(&[(1, "nat")])), Ok(Some(Removal::Table)));
        for kind in [0x0a06, 0x0608, 0x0b08, 8] {
            assert_eq!(parse_removal(kind, &rule), Ok(None), "a new rule, or another subsystem's: {kind:#x}");
        }
        assert_eq!(parse_removal(0x0a05, &payload(&[(1, "nat")])), Ok(None), "a chain without a name");
    }

    #[test]
    fn a_lie_is_an_error() {
        let lie = [2, 0, 0, 0, 200, 0, 2, 0, b'n'];
        assert!(parse_removal(0x0a08, &lie).is_err());
        assert!(parse_removal(0x0a08, &lie[..3]).is_err());
    }
}
