//! What netlink does not tell of connections: their states.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, BufRead as _, BufReader};
use std::net::{IpAddr, Ipv4Addr};

use model::{Protocol, RealServerKey, VirtualServerKey};

use crate::Error;

/// Of this thread's network namespace; the mere `/proc/net` is that of the process' first thread.
pub(crate) const CONNECTIONS: &str = "/proc/thread-self/net/ip_vs_conn";

/// Frontends and real servers between which connections are half closed.
pub type HalfClosed = BTreeSet<(VirtualServerKey, RealServerKey)>;

/// Reads which frontends and real servers have connections of which one side has said that it sends no more, and the other has not. IPVS
/// counts those with the ones that are over, and keeps both for minutes.
///
/// This costs what there are of connections on the node.
///
/// # Errors
/// When they cannot be read in full.
pub(crate) fn half_closed() -> Result<HalfClosed, Error> {
    let failed = |error: io::Error| Error::io(format!("reading {CONNECTIONS}"), error);
    let mut reader = BufReader::new(File::open(CONNECTIONS).map_err(failed)?);
    let (mut found, mut line) = (HalfClosed::new(), Vec::new());
    loop {
        line.clear();
        if reader.read_until(b'\n', &mut line).map_err(failed)? == 0 {
            return Ok(found);
        }
        let text = String::from_utf8_lossy(&line);
        found.extend(parse(&text).map_err(|()| Error::malformed(CONNECTIONS, format_args!("the line {:?}", text.trim_end())))?);
    }
}

/// What a line says of a connection that is half closed; nothing for all others. `ip_vs_conn_seq_show`, net/netfilter/ipvs/ip_vs_conn.c:
/// `Pro FromIP FPrt ToIP TPrt DestIP DPrt State Expires …`, numbers in hexadecimal.
fn parse(line: &str) -> Result<Option<(VirtualServerKey, RealServerKey)>, ()> {
    let mut words = line.split_ascii_whitespace();
    let mut next = || words.next();
    let (protocol, _client) = (next(), (next(), next()));
    let (frontend, real) = ((next(), next()), (next(), next()));
    // SCTP knows no half of an association.
    if protocol != Some("TCP") || !matches!(next(), Some("FIN_WAIT" | "CLOSE_WAIT")) {
        return Ok(None);
    }
    let ((address, port), (real_address, real_port)) = (end(frontend)?, end(real)?);
    Ok(Some((VirtualServerKey::address(address, Protocol::Tcp, port), RealServerKey::new(real_address, real_port))))
}

pub(crate) fn end((address, port): (Option<&str>, Option<&str>)) -> Result<(IpAddr, u16), ()> {
    let (address, port) = (address.ok_or(())?, port.ok_or(())?);
    let address = match address.contains(':') {
        true => address.parse().map_err(|_| ())?,
        false => Ipv4Addr::from(u32::from_str_radix(address, 16).map_err(|_| ())?).into(),
    };
    Ok((address, u16::from_str_radix(port, 16).map_err(|_| ())?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a5_who_may_still_send_is_told_from_who_has_done() {
        let line = |state: &str| format!("TCP 0AF40103 C350 0A60000A 0050 0AF40102 1F90 {state:<11}     119");
        let frontend = VirtualServerKey::address("10.96.0.10".parse().unwrap(), Protocol::Tcp, 80);
        let real = RealServerKey::new("10.244.1.2".parse().unwrap(), 8080);
        for state in ["FIN_WAIT", "CLOSE_WAIT"] {
            assert_eq!(parse(&line(state)), Ok(Some((frontend, real))), "{state}");
        }
        for state in ["ESTABLISHED", "SYN_RECV", "TIME_WAIT", "CLOSE", "LAST_ACK"] {
            assert_eq!(parse(&line(state)), Ok(None), "{state}");
        }
        let v6 = "TCP fd00:0244:0000:0001:0000:0000:0000:0003 C350 fd00:0096:0000:0000:0000:0000:0000:0010 0050 \
                  fd00:0244:0000:0001:0000:0000:0000:0002 1F90 FIN_WAIT        119 sip callid";
        let frontend = VirtualServerKey::address("fd00:96::10".parse().unwrap(), Protocol::Tcp, 80);
        assert_eq!(parse(v6), Ok(Some((frontend, RealServerKey::new("fd00:244:0:1::2".parse().unwrap(), 8080)))));
    }

    #[test]
    fn other_lines_are_no_connections_and_odd_ones_are_errors() {
        for other in [
            "",
            "Pro FromIP   FPrt ToIP     TPrt DestIP   DPrt State       Expires PEName PEData",
            "UDP 0AF40103 C350 0A60000A 0035 0AF40102 1F90 UDP             299",
            "TCP 0AF40103",
        ] {
            assert_eq!(parse(other), Ok(None), "{other}");
        }
        for odd in [
            "TCP 0AF40103 C350 1A60000A0 0050 0AF40102 1F90 FIN_WAIT",
            "TCP 0 0 0:0 50 0 0 CLOSE_WAIT",
            "TCP 0 0 0 10050 0 0 FIN_WAIT",
        ] {
            assert_eq!(parse(odd), Err(()), "{odd}");
        }
    }
}
