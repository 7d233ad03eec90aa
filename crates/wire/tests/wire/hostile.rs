//! Whatever arrives, reading it ends in a value or a sentence: truncated, corrupted or made up.

use model::Family;
use proptest::prelude::*;
use wire::{Batch, Body, Decoded, Messages, conntrack, ipvs, rtnl};

use crate::capture::Recording;
use crate::reading::{read_all, read_payload};

fn recordings() -> [Recording; 5] {
    [
        include_str!("../golden/ipvs.txt"),
        include_str!("../golden/ipset.txt"),
        include_str!("../golden/ipset-networks-and-marks.txt"),
        include_str!("../golden/rtnl.txt"),
        include_str!("../golden/conntrack.txt"),
    ]
    .map(Recording::parse)
}

#[test]
fn truncated_at_every_byte() {
    let mut cuts = 0;
    for recording in &recordings() {
        for datagram in recording.all() {
            for len in 0..datagram.len() {
                read_all(&datagram[..len]);
                // The message header intact, so that what is inside it is short.
                if len > 16 {
                    read_payload(&datagram[16..len]);
                }
                cuts += 1;
            }
        }
    }
    assert!(cuts > 30_000, "{cuts} cuts");
}

#[test]
fn a_whole_datagram_reads_and_a_cut_one_complains() {
    for recording in &recordings() {
        for datagram in recording.all_received() {
            assert!(read_all(datagram) > 0);
            // Not more than padding can be missing unnoticed.
            let cut = &datagram[..datagram.len() - 4];
            assert!(Messages::new(cut).last().is_none_or(|last| last.is_err()), "{cut:?}");
        }
    }
}

#[test]
fn what_the_fuzzer_begins_with_and_has_found() {
    for (_, bytes) in testkit::fuzz_inputs("netlink").unwrap() {
        for len in 0..=bytes.len() {
            read_all(&bytes[..len]);
            read_payload(&bytes[..len]);
        }
    }
}

proptest! {
    #[test]
    fn corrupted(which: prop::sample::Index, changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..12)) {
        let recordings = recordings();
        let datagrams: Vec<&[u8]> = recordings.iter().flat_map(Recording::all).collect();
        let mut bytes = which.get(&datagrams).to_vec();
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        read_all(&bytes);
        read_payload(&bytes[16..]);
    }
}

proptest! {
    #[test]
    fn made_up(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        read_all(&bytes);
        read_payload(&bytes);
    }

    /// Small numbers look like lengths and attribute numbers, and get further in.
    #[test]
    fn made_up_of_small_numbers(words in prop::collection::vec(0u16..24, 0..100), kind: u16, flags: u16) {
        let payload: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        read_payload(&payload);
        let mut batch = Batch::default();
        batch.message(kind, flags, 1, |message| message.raw(&payload)).unwrap();
        batch.message(2, flags, 1, |message| message.raw(&payload)).unwrap();
        batch.message(3, flags, 1, |message| message.raw(&payload)).unwrap();
        read_all(batch.as_bytes());
    }
}

/// A message with these attributes inside the one that a service or dest is.
fn ipvs_object(command: u8, object: u16, attributes: &[(u16, &[u8])]) -> Vec<u8> {
    let mut batch = Batch::default();
    let write = |message: &mut wire::Writer<'_>| {
        message.raw(&[command, 1, 0, 0]);
        message.nested(object, |inside| attributes.iter().for_each(|(kind, value)| inside.bytes(*kind, value)));
    };
    batch.message(32, 0, 1, write).unwrap();
    batch.as_bytes()[16..].to_vec()
}

#[test]
fn what_the_model_has_no_words_for_is_foreign_and_no_error() {
    let (af, tcp, port) = (2u16.to_ne_bytes(), 6u16.to_ne_bytes(), 80u16.to_be_bytes());
    let (flags, zero, mask) = ([0, 0, 0, 0, 255, 255, 255, 255], [0; 4], [255; 4]);
    let esp = 50u16.to_ne_bytes();
    let service = |af: &[u8], protocol: &[u8], scheduler: &[u8]| {
        let attributes: [(u16, &[u8]); 9] = [
            (1, af),
            (2, protocol),
            (3, &[10, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
            (4, &port),
            (6, scheduler),
            (7, &flags),
            (8, &zero),
            (9, &mask),
            (999, b"an attribute of a later kernel"),
        ];
        match ipvs::parse_service(&ipvs_object(1, 1, &attributes)).unwrap() {
            Decoded::Foreign(foreign) => foreign.to_string(),
            Decoded::Known(known) => known.key.to_string(),
        }
    };
    assert_eq!(service(&af, &tcp, b"rr\0"), "TCP 10.0.0.1:80");
    assert_eq!(service(&af, &esp, b"rr\0"), "the IPVS service 10.0.0.1 port 80 of protocol 50");
    assert_eq!(service(&16u16.to_ne_bytes(), &tcp, b"rr\0"), "an IPVS service of address family 16");
    assert!(service(&af, &tcp, b"r r\0").contains("scheduler"));

    let tunnel = 7u32.to_ne_bytes();
    let dest: [(u16, &[u8]); 4] = [(1, &[10, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]), (2, &port), (3, &tunnel), (4, &zero)];
    let Decoded::Foreign(foreign) = ipvs::parse_dest(&ipvs_object(5, 2, &dest), Family::V4).unwrap() else { unreachable!() };
    assert_eq!(foreign.to_string(), "the IPVS dest 10.0.0.2:80 of forwarding method 7");
}

#[test]
fn a_conntrack_entry_without_ports_is_foreign_and_one_without_a_tuple_is_malformed() {
    let entry = |protocol: u8, replied: bool| {
        let mut batch = Batch::default();
        let tuple = |tuple: &mut wire::Writer<'_>| {
            tuple.nested(1, |addresses| {
                addresses.bytes(1, &[10, 0, 0, 1]);
                addresses.bytes(2, &[10, 0, 0, 2]);
            });
            tuple.nested(2, |proto| proto.u8(1, protocol));
        };
        let write = |message: &mut wire::Writer<'_>| {
            message.raw(&[2, 0, 0, 0]);
            message.nested(1, tuple);
            if replied {
                message.nested(2, tuple);
            }
        };
        batch.message(0x100, 0, 1, write).unwrap();
        conntrack::parse_entry(&batch.as_bytes()[16..]).map_err(|malformed| malformed.to_string())
    };
    let Ok(Decoded::Foreign(foreign)) = entry(1, true) else { unreachable!() };
    assert_eq!(foreign.to_string(), "a conntrack entry of protocol 1");
    assert_eq!(entry(17, true), Err("a tuple of a conntrack entry comes without a port".to_owned()));
    assert_eq!(entry(17, false), Err("a conntrack entry comes without its reply tuple".to_owned()));
}

#[test]
fn statistics_of_64_bits_are_preferred_and_those_of_32_do() {
    let stats = |value: [u8; 4]| [&[8, 0, 1, 0][..], &value].concat();
    let (narrow, wide) = (stats(7u32.to_ne_bytes()), [&[12, 0, 1, 0][..], &(1u64 << 40).to_ne_bytes()].concat());
    let (port, zero) = (80u16.to_be_bytes(), [0; 4]);
    let key: [(u16, &[u8]); 4] = [(1, &[10, 0, 0, 2]), (2, &port), (3, &zero), (4, &zero)];
    let connections = |attributes: &[(u16, &[u8])]| {
        let object = ipvs_object(5, 2, attributes);
        let decoded = ipvs::parse_dest(&object, Family::V4).unwrap();
        decoded.known().unwrap().statistics.traffic().unwrap().connections
    };
    let both = [&key[..], &[(12, &wide[..]), (10, &narrow[..])]].concat();
    let old = [&key[..], &[(10, &narrow[..])]].concat();
    assert_eq!((connections(&both), connections(&old), connections(&key)), (1 << 40, 7, 0));
}

#[test]
fn sentences_name_the_attribute_and_its_length() {
    let payload = ipvs_object(1, 1, &[(1, &[2])]);
    assert_eq!(
        ipvs::parse_service(&payload).unwrap_err().to_string(),
        "attribute 1 of an IPVS service has 1 bytes where 2 are needed"
    );
    assert_eq!(
        ipvs::parse_service(&[1, 1]).unwrap_err().to_string(),
        "the header of an IPVS service has 2 bytes where 4 are needed"
    );
    let error = rtnl::parse_route(&[2, 32, 0, 0, 255, 71, 254, 2, 0, 0, 0, 0, 200, 0, 1, 0]).unwrap_err();
    assert_eq!(error.to_string(), "attribute 1 of a route says that it has 200 bytes, and 4 are there");
    let error = Messages::new(&[1, 2, 3]).next().unwrap().unwrap_err();
    assert_eq!(error.to_string(), "3 bytes are too few for a message header");
}

#[test]
fn an_interrupted_dump_and_a_failed_one_can_be_told() {
    let mut batch = Batch::default();
    batch.message(3, wire::flags::NLM_F_DUMP_INTR, 5, |message| message.raw(&0i32.to_ne_bytes())).unwrap();
    batch.message(3, 0, 5, |message| message.raw(&(-105i32).to_ne_bytes())).unwrap();
    batch.message(3, 0, 5, |_| ()).unwrap();
    batch.message(4, 0, 5, |_| ()).unwrap();
    let messages: Vec<_> = Messages::new(batch.as_bytes()).map(Result::unwrap).collect();
    assert!(messages[0].is_interrupted() && !messages[1].is_interrupted());
    assert_eq!(messages[1].body, Body::Done { errno: 105, text: None });
    assert_eq!(messages[2].body, Body::Done { errno: 0, text: None });
    assert_eq!(messages[3].body, Body::Overrun);
}

#[test]
fn a_capped_answer_has_its_text_and_no_request() {
    let answer = |errno: i32, flags| {
        let mut batch = Batch::default();
        let write = |message: &mut wire::Writer<'_>| {
            message.raw(&errno.to_ne_bytes());
            message.raw(&[0; 16]);
            message.text(1, "not so");
        };
        batch.message(2, flags, 5, write).unwrap();
        batch
    };
    let (refused, warned) = (answer(-4103, 0x300), answer(0, 0x300));
    let body = |batch: &Batch| format!("{:?}", Messages::new(batch.as_bytes()).next().unwrap().unwrap().body);
    assert_eq!(body(&refused), "Error { errno: 4103, text: Some(\"not so\"), request: None }");
    assert_eq!(body(&warned), "Ack { text: Some(\"not so\") }");
}
