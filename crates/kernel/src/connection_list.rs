//! The connections that IPVS keeps, one by one.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::net::SocketAddr;

use crate::Error;
use crate::connections::{CONNECTIONS, end};

/// A line of the kernel's list is some hundred bytes; what persistence engines add to it has a limit as well. More than this is none.
const LINE_LIMIT: u64 = 4096;

/// One connection, or a template that persistence makes connections from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connection {
    /// The protocol as the kernel writes it: `TCP`, `UDP`, `SCTP`, or `IP` for templates of virtual servers by firewall mark.
    pub protocol: String,
    /// Where packets come from.
    pub client: SocketAddr,
    /// What the client calls.
    pub virtual_server: SocketAddr,
    /// Who answers.
    pub real_server: SocketAddr,
    /// The state as the kernel writes it: `ESTABLISHED`, `FIN_WAIT`, `UDP`, `NONE`, ….
    pub state: String,
    /// For how many seconds it is kept without packets.
    pub expires: u32,
    /// The persistence engine that made it, and by what.
    pub engine: Option<(String, String)>,
}

/// All connections there are, read as they are asked for: of millions no more is in memory than one.
///
/// The kernel goes on while they are read, so that one that comes or goes meanwhile may be among them or not.
pub struct Connections<R = BufReader<File>> {
    lines: R,
    /// Set by an error, after which nothing makes sense.
    ended: bool,
}

impl Connections {
    /// Those of this thread's network namespace.
    ///
    /// # Errors
    /// When the kernel has no such list: it has no IPVS, or its module is not loaded, and the process lacks the right to read it.
    pub fn open() -> Result<Self, Error> {
        let file = File::open(CONNECTIONS).map_err(|error| Error::io(format!("opening {CONNECTIONS}"), error))?;
        Ok(Self::of(BufReader::new(file)))
    }
}

impl<R: BufRead> Connections<R> {
    /// Those in `lines`, which are what the kernel writes.
    pub const fn of(lines: R) -> Self {
        Self { lines, ended: false }
    }

    fn read_line(&mut self) -> Result<Option<Connection>, Error> {
        loop {
            let mut line = Vec::new();
            let read = io::Read::take(&mut self.lines, LINE_LIMIT).read_until(b'\n', &mut line);
            if read.map_err(|error| Error::io(format!("reading {CONNECTIONS}"), error))? == 0 {
                return Ok(None);
            }
            let text = String::from_utf8_lossy(&line);
            if text.starts_with("Pro ") || text.trim().is_empty() {
                continue;
            }
            let odd = || Error::malformed(CONNECTIONS, format_args!("the line {:?}", text.trim_end()));
            return parse(&text).map(Some).ok_or_else(odd);
        }
    }
}

impl<R: BufRead> Iterator for Connections<R> {
    type Item = Result<Connection, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let read = self.read_line();
        self.ended = !matches!(read, Ok(Some(_)));
        read.transpose()
    }
}

/// `ip_vs_conn_seq_show`, net/netfilter/ipvs/ip_vs_conn.c: `Pro FromIP FPrt ToIP TPrt DestIP DPrt State Expires PEName PEData`, addresses and
/// ports in hexadecimal.
fn parse(line: &str) -> Option<Connection> {
    let mut words = line.split_ascii_whitespace();
    let protocol = words.next()?.to_owned();
    let mut address = || end((words.next(), words.next())).ok().map(SocketAddr::from);
    let (client, virtual_server, real_server) = (address()?, address()?, address()?);
    let state = words.next()?.to_owned();
    let expires = words.next()?.parse().ok()?;
    let engine = words.next().zip(words.next()).map(|(name, data)| (name.to_owned(), data.to_owned()));
    Some(Connection { protocol, client, virtual_server, real_server, state, expires, engine })
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &str = "\
Pro FromIP   FPrt ToIP     TPrt DestIP   DPrt State       Expires PEName PEData
TCP 0AF40103 C350 0A60000A 0050 0AF40102 1F90 ESTABLISHED    8099
UDP fd00:0244:0000:0001:0000:0000:0000:0003 C350 fd00:0096:0000:0000:0000:0000:0000:0010 0035 fd00:0244:0000:0001:0000:0000:0000:0002 14E9 UDP             299
IP  0AF40103 0000 00000007 0000 0AF40102 0000 NONE             59 sip callid@example
";

    #[test]
    fn connections_are_read_one_by_one() {
        let all: Vec<_> = Connections::of(LIST.as_bytes()).collect::<Result<_, _>>().unwrap();
        let ends = |connection: &Connection| {
            [connection.client, connection.virtual_server, connection.real_server].map(|end| end.to_string())
        };
        assert_eq!(ends(&all[0]), ["10.244.1.3:50000", "10.96.0.10:80", "10.244.1.2:8080"]);
        assert_eq!((all[0].protocol.as_str(), all[0].state.as_str(), all[0].expires), ("TCP", "ESTABLISHED", 8_099));
        assert_eq!(ends(&all[1]), ["[fd00:244:0:1::3]:50000", "[fd00:96::10]:53", "[fd00:244:0:1::2]:5353"]);
        assert_eq!((all[2].protocol.as_str(), all[2].engine.as_ref().unwrap().1.as_str()), ("IP", "callid@example"));
        assert_eq!((all.len(), &all[1].engine), (3, &None));
    }

    #[test]
    fn a_list_that_makes_no_sense_ends_with_an_error() {
        let line = "TCP 0AF40103 C350 0A60000A 0050 0AF40102 1F90 ESTABLISHED    8099";
        for end in 1..line.len() - "    8099".len() {
            let mut cut = Connections::of(&line.as_bytes()[..end]);
            assert!(cut.next().is_some_and(|first| first.is_err()), "{end}");
            assert!(cut.next().is_none(), "nothing makes sense after an error");
        }
        let endless = vec![b'x'; 1 << 20];
        assert_eq!(Connections::of(endless.as_slice()).count(), 1);
    }
}
