//! What processes of this node listen on, from the text files below /proc/net.
//!
//! `sock_diag` would say the same in a more compact form, but takes kernel modules (`tcp_diag`, `udp_diag`) that not every node has.
//! These files list every socket of the network namespace, so they are read on a thread of their own: at the start, when there is a
//! node port that was not there before, and now and then.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::mpsc::{RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::time::Duration;
use std::{fs, io, thread};

use anyhow::Context;
use desired::Listener;
use model::Protocol;
use tokio::sync::watch;
use tracing::{debug, warn};

/// What each file is about, and the state (include/net/tcp_states.h) of a socket that everybody can send to: `TCP_LISTEN`, and for UDP
/// `TCP_CLOSE`, which is not connected.
const FILES: [(&str, Protocol, &str); 4] = [
    ("/proc/self/net/tcp", Protocol::Tcp, "0A"),
    ("/proc/self/net/tcp6", Protocol::Tcp, "0A"),
    ("/proc/self/net/udp", Protocol::Udp, "07"),
    ("/proc/self/net/udp6", Protocol::Udp, "07"),
];

/// What is listened on, as it was last read.
pub(crate) struct Sockets {
    pub(crate) listeners: watch::Receiver<BTreeSet<Listener>>,
    /// Asks for another reading. One that is waiting already serves all who ask.
    ask: SyncSender<()>,
}

impl Sockets {
    /// Reads them now, and again whenever asked and after each `period`.
    ///
    /// # Errors
    /// When there is no thread to be had.
    pub(crate) fn follow(period: Duration) -> anyhow::Result<Self> {
        let (ask, asked) = sync_channel(1);
        let (sender, listeners) = watch::channel(BTreeSet::new());
        let tell = move || match read() {
            Ok(listeners) => _ = sender.send_if_modified(|known| std::mem::replace(known, listeners) != *known),
            // Unknown is not absent: those known before stay.
            Err(error) => warn!(%error, "cannot read what this node's processes listen on; node ports may be occupied"),
        };
        tell();
        let follow = move || {
            while let Ok(()) | Err(RecvTimeoutError::Timeout) = asked.recv_timeout(period) {
                tell();
            }
        };
        thread::Builder::new().name("sockets".to_owned()).spawn(follow).context("cannot start the thread that reads sockets")?;
        Ok(Self { listeners, ask })
    }

    /// Asks for a reading.
    pub(crate) fn read_again(&self) {
        if let Err(TrySendError::Disconnected(())) = self.ask.try_send(()) {
            debug!("nobody reads sockets any more");
        }
    }
}

/// What processes other than this one listen on now.
///
/// # Errors
/// When a list of sockets, or of what this process has open, cannot be read.
pub(crate) fn read() -> io::Result<BTreeSet<Listener>> {
    // What this process opens or closes while the files are read is its own nonetheless.
    let mut own = own_inodes()?;
    let mut sockets = Vec::new();
    for (path, protocol, state) in FILES {
        match fs::read_to_string(path) {
            Ok(text) => sockets.extend(text.lines().skip(1).filter_map(|line| parse(line, protocol, state))),
            // A kernel without IPv6.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    own.extend(own_inodes()?);
    Ok(sockets.into_iter().filter(|(_, inode)| !own.contains(inode)).map(|(listener, _)| listener).collect())
}

/// The sockets of this process: relays and health checks are no strangers.
fn own_inodes() -> io::Result<BTreeSet<u64>> {
    let links = fs::read_dir("/proc/self/fd")?.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
    Ok(links.filter_map(|link| link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()).collect())
}

/// The socket that a line tells of, if it is in `state`, and its inode:
/// `0: 0100007F:0035 00000000:0000 0A 00000000:00000000 00:00000000 00000000 101 0 20456 …`
fn parse(line: &str, protocol: Protocol, state: &str) -> Option<(Listener, u64)> {
    let mut fields = line.split_ascii_whitespace();
    let (address, port) = fields.nth(1)?.split_once(':')?;
    if fields.nth(1)? != state {
        return None;
    }
    let inode = fields.nth(5)?.parse().ok()?;
    let listener = Listener { protocol, port: u16::from_str_radix(port, 16).ok()?, address: parse_address(address)? };
    Some((listener, inode))
}

/// Each four bytes of the address are a number in the host's byte order.
fn parse_address(hex: &str) -> Option<IpAddr> {
    let word = |at: usize| -> Option<[u8; 4]> {
        let digits = hex.get(at * 8..at * 8 + 8).filter(|digits| digits.bytes().all(|byte| byte.is_ascii_hexdigit()))?;
        Some(u32::from_str_radix(digits, 16).ok()?.to_ne_bytes())
    };
    match hex.len() {
        8 => Some(Ipv4Addr::from(word(0)?).into()),
        32 => {
            let mut octets = [0; 16];
            for (at, four) in octets.chunks_exact_mut(4).enumerate() {
                four.copy_from_slice(&word(at)?);
            }
            Some(IpAddr::from(Ipv6Addr::from(octets)).to_canonical())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, UdpSocket};
    use std::process::{Command, Stdio};

    const LINE: &str =
        "   0: 0100007F:0035 00000000:0000 0A 00000000:00000000 00:00000000 00000000   101        0 20456 1 00000000 100 0 0 10 5";

    #[test]
    #[cfg(target_endian = "little")]
    fn f4_a_line_is_read_as_the_kernel_writes_it() {
        let (listener, inode) = parse(LINE, Protocol::Tcp, "0A").unwrap();
        assert_eq!((listener.address.to_string(), listener.port, inode), ("127.0.0.1".to_owned(), 53, 20456));
        assert_eq!(parse(LINE, Protocol::Udp, "07"), None, "another state");
        let address = |hex| parse_address(hex).map(|address| address.to_string());
        assert_eq!(address("B80D0120000000000000000001000000").as_deref(), Some("2001:db8::1"));
        assert_eq!(address("0000000000000000FFFF0000010200C0").as_deref(), Some("192.0.2.1"));
    }

    #[test]
    fn nonsense_is_passed_over() {
        for line in ["", "0:", "0: :", "0: 0:0 0 0A", "0: +100007F:0035 0:0 0A a b c d e 1", "0: 0100007F:10035 0:0 0A a b c d e 1"]
        {
            assert_eq!(parse(line, Protocol::Tcp, "0A"), None, "{line:?}");
        }
        let cut = LINE.find("20456").unwrap();
        assert!((0..cut).all(|end| parse(&LINE[..end], Protocol::Tcp, "0A").is_none()), "a line that ends early");
        assert_eq!(parse_address("ééééhhhh"), None);
    }

    #[test]
    fn f4_own_sockets_do_not_count() {
        let (tcp, udp) = (TcpListener::bind("127.0.0.1:0").unwrap(), UdpSocket::bind("127.0.0.1:0").unwrap());
        let ports = [tcp.local_addr().unwrap().port(), udp.local_addr().unwrap().port()];
        let seen = |port: u16| read().unwrap().iter().any(|listener| listener.port == port);
        assert!(!ports.into_iter().any(seen));

        // A child has them as well, and another process's fds are not looked at: what counts is that this one has closed them.
        let mut child = Command::new("sleep").arg("60").stdin(Stdio::from(std::os::fd::OwnedFd::from(tcp))).spawn().unwrap();
        let found = seen(ports[0]);
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(found);
    }
}
