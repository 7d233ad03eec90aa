//! Misbehaviour that goes on: what a client has to live with that follows a server which is never quite well.

use crate::ApiServer;
use crate::fault::{Fault, Interruption, Verb};
use crate::resource::Resource;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// What can happen to all watches at once, and to the request by which each is opened again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mishap {
    /// They end, as after their timeouts.
    End,
    /// Their connections are lost in the middle of a line.
    Cut,
    /// They are told that an error has happened within the server (500).
    Failure,
    /// They are told that the history which they go on with is gone (410).
    Expired,
    /// The same, and then the connections of the lists are lost in the middle of a line.
    CutList,
    /// They end, and are refused with 500.
    Broken,
    /// They end, and are refused with 429.
    Busy,
    /// They end, and the connection is closed when they are asked for.
    Disconnect,
    /// They end, and the connection is lost in the middle of what they are told first.
    HalfLine,
    /// They end, and are opened again late.
    Late,
    /// They end, and are silent until the next mishap.
    Silent,
}

impl Mishap {
    /// All there are.
    pub const ALL: [Self; 11] = [
        Self::End,
        Self::Cut,
        Self::Failure,
        Self::Expired,
        Self::CutList,
        Self::Broken,
        Self::Busy,
        Self::Disconnect,
        Self::HalfLine,
        Self::Late,
        Self::Silent,
    ];

    /// The name by which it is asked for.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::End => "end",
            Self::Cut => "cut",
            Self::Failure => "failure",
            Self::Expired => "expired",
            Self::CutList => "cut-list",
            Self::Broken => "broken",
            Self::Busy => "busy",
            Self::Disconnect => "disconnect",
            Self::HalfLine => "half-line",
            Self::Late => "late",
            Self::Silent => "silent",
        }
    }

    fn interruption(self) -> Interruption {
        match self {
            Self::Cut => Interruption::Cut,
            Self::Failure => Interruption::ErrorLine(500),
            Self::Expired | Self::CutList => Interruption::ErrorLine(410),
            Self::End | Self::Broken | Self::Busy | Self::Disconnect | Self::HalfLine | Self::Late | Self::Silent => {
                Interruption::End
            }
        }
    }

    fn fault(self) -> Option<Fault> {
        match self {
            Self::End | Self::Cut | Self::Failure | Self::Expired => None,
            // The second line: a list begins before it breaks off.
            Self::CutList => Some(Fault::CutLine(1)),
            Self::Broken => Some(Fault::Status(500)),
            Self::Busy => Some(Fault::Status(429)),
            Self::Disconnect => Some(Fault::Disconnect),
            Self::HalfLine => Some(Fault::CutLine(0)),
            Self::Late => Some(Fault::Delay(Duration::from_millis(500))),
            Self::Silent => Some(Fault::Silent),
        }
    }
}

impl fmt::Display for Mishap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Mishap {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|mishap| mishap.name() == text);
        found.ok_or_else(|| format!("expected one of {}", Self::ALL.map(Self::name).join(", ")))
    }
}

impl ApiServer {
    /// Has this happen now to Services, EndpointSlices and Nodes. Of an earlier mishap what has not happened yet does not happen any more.
    pub fn befall(&self, mishap: Mishap) {
        self.clear_faults();
        for resource in [Resource::Services, Resource::EndpointSlices, Resource::Nodes] {
            if let Some(fault) = mishap.fault() {
                self.fail_next(Verb::Watch, resource, 1, fault.clone());
                if mishap == Mishap::CutList {
                    self.fail_next(Verb::List, resource, 1, fault);
                }
            }
            self.interrupt(resource, mishap.interruption());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_mishap_is_known_by_its_name() {
        for mishap in Mishap::ALL {
            assert_eq!(mishap.to_string().parse(), Ok(mishap));
        }
        let error = "cutlist".parse::<Mishap>().unwrap_err();
        assert!(error.starts_with("expected one of end, cut, failure, "), "{error}");
    }
}
