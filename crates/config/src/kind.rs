//! What a field takes, and how that is written on a command line.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ipnetwork::IpNetwork;

use crate::duration::{format_duration, parse_duration};
use crate::tree::{Node, Value};

/// What a field of a `KubeProxyConfiguration` takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Any text.
    Text,
    /// One of these words.
    OneOf(&'static [&'static str]),
    /// `true` or `false`.
    Switch,
    /// A whole number from the first to the second.
    Integer(i64, i64),
    /// A number that may have a fraction.
    Number,
    /// A duration of zero or more.
    Duration,
    /// The same, or a number of nanoseconds.
    Nanoseconds,
    /// A number of bytes, as `5Mi`.
    Quantity,
    /// An IP address.
    Address,
    /// An address and port to listen on; this port if none is given.
    Bind(u16),
    /// A list of networks.
    Networks,
    /// Networks in one text, with commas between.
    JoinedNetworks,
    /// A list of networks, or the word `primary` by itself.
    NodePortAddresses,
    /// Names, each with `true` or `false`.
    Gates,
    /// A list of `filePattern` and `verbosity`.
    Patterns,
}

impl Kind {
    /// Which values there are, to be read after "expected".
    pub(crate) fn expected(self) -> String {
        match self {
            Self::Text => "a text".to_owned(),
            Self::OneOf(words) => format!("one of {}", words.join(", ")),
            Self::Switch => "true or false".to_owned(),
            Self::Integer(least, most) if most >= i64::from(i32::MAX) => format!("a whole number, at least {least}"),
            Self::Integer(least, most) => format!("a whole number from {least} to {most}"),
            Self::Number => "a number".to_owned(),
            Self::Duration | Self::Nanoseconds => "a duration such as 30s, 1m30s or 0s".to_owned(),
            Self::Quantity => "a number of bytes such as 1048576 or 5Mi".to_owned(),
            Self::Address => "an IP address such as 0.0.0.0 or ::".to_owned(),
            Self::Bind(port) => format!("IP:PORT such as 127.0.0.1:{port} or [::]:{port}"),
            Self::Networks => "a list of networks such as [10.0.0.0/8, \"fd00::/8\"]".to_owned(),
            Self::JoinedNetworks => "networks with a comma between them, such as 10.244.0.0/16,fd00:10:244::/56".to_owned(),
            Self::NodePortAddresses => "a list of networks such as [192.0.2.0/24], or [primary]".to_owned(),
            Self::Gates => "names, each with true or false".to_owned(),
            Self::Patterns => "a list whose items have a filePattern and a verbosity".to_owned(),
        }
    }

    /// The value in the words of a command line, and on which line it is; `None` for no value. An error is a sentence.
    pub(crate) fn read(self, node: &Node) -> Result<Option<Vec<String>>, (usize, String)> {
        let wrong = |node: &Node| (node.line, format!("is {}; expected {}", node.value.describe(), self.expected()));
        let one = |text: String| Ok(Some(vec![text]));
        match (self, &node.value) {
            (_, Value::Null) => Ok(None),
            (Self::Switch, Value::Bool(value)) => one(value.to_string()),
            (Self::Switch, Value::Text(text)) => switch(text).map_or_else(|| Err(wrong(node)), |value| one(value.to_string())),
            (Self::Integer(least, most), Value::Integer(value)) if (least..=most).contains(value) => one(value.to_string()),
            (Self::Number, Value::Integer(value)) => one(value.to_string()),
            (Self::Number, Value::Number(value)) if value.is_finite() => one(value.to_string()),
            (Self::Nanoseconds, Value::Integer(value)) if *value >= 0 => {
                one(format_duration(Duration::from_nanos(value.unsigned_abs())))
            }
            (Self::Quantity, Value::Integer(value)) if *value >= 0 => one(value.to_string()),
            (Self::Networks | Self::NodePortAddresses, Value::List(items)) => {
                let mut values = Vec::with_capacity(items.len());
                for item in items {
                    match &item.value {
                        Value::Text(text) if self.is_item(text, items.len()) => values.push(text.clone()),
                        _ => return Err(wrong(item)),
                    }
                }
                Ok((!values.is_empty()).then_some(values))
            }
            (Self::Gates, Value::Map(entries)) => {
                // The last one counts of those that are there twice.
                let mut names = BTreeSet::new();
                let mut values = Vec::new();
                for entry in entries.iter().rev() {
                    match &entry.node.value {
                        Value::Bool(value) if is_gate(&entry.key) => {
                            if names.insert(&entry.key) {
                                values.push(format!("{}={value}", entry.key));
                            }
                        }
                        _ => return Err(wrong(&entry.node)),
                    }
                }
                values.reverse();
                Ok((!values.is_empty()).then_some(values))
            }
            (Self::Patterns, Value::List(items)) => {
                let patterns = items.iter().map(|item| pattern(item).ok_or_else(|| wrong(item))).collect::<Result<Vec<_>, _>>()?;
                Ok((!patterns.is_empty()).then_some(patterns))
            }
            (_, Value::Text(text)) => self.read_text(text).map_err(|()| wrong(node)),
            _ => Err(wrong(node)),
        }
    }

    fn read_text(self, text: &str) -> Result<Option<Vec<String>>, ()> {
        let plain = || text.to_owned();
        let value = match self {
            Self::Text => Some(plain()),
            // An empty text is what Go has where nothing was given.
            _ if text.is_empty() => return if self.takes_text() { Ok(None) } else { Err(()) },
            Self::OneOf(words) => words.contains(&text).then(plain),
            Self::Duration | Self::Nanoseconds => parse_duration(text).map(format_duration),
            Self::Quantity => {
                let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
                (!digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()) && text.len() - digits.len() <= 2)
                    .then(plain)
            }
            Self::Address => text.parse::<IpAddr>().ok().map(|address| address.to_string()),
            Self::Bind(port) => bind(text, port).map(|address| address.to_string()),
            Self::JoinedNetworks => {
                let networks: Vec<_> = text.split(',').map(|network| network.trim().to_owned()).collect();
                return if networks.iter().all(|network| is_network(network)) { Ok(Some(networks)) } else { Err(()) };
            }
            _ => None,
        };
        match value {
            Some(text) if text.is_empty() => Ok(None),
            Some(text) => Ok(Some(vec![text])),
            None => Err(()),
        }
    }

    const fn takes_text(self) -> bool {
        !matches!(
            self,
            Self::Switch
                | Self::Integer(..)
                | Self::Number
                | Self::Networks
                | Self::NodePortAddresses
                | Self::Gates
                | Self::Patterns
        )
    }

    fn is_item(self, text: &str, items: usize) -> bool {
        is_network(text) || (self == Self::NodePortAddresses && text == "primary" && items == 1)
    }

    /// The words of a command line as a value of this kind; `None` where they are none.
    pub(crate) fn write(self, values: &[String]) -> Option<serde_json::Value> {
        let one = values.first().filter(|_| values.len() == 1).map(String::as_str);
        Some(match self {
            Self::Text | Self::Quantity | Self::Address | Self::OneOf(_) | Self::Bind(_) => one.unwrap_or_default().into(),
            Self::Switch => one?.parse::<bool>().ok()?.into(),
            Self::Integer(..) => one?.parse::<i64>().ok()?.into(),
            Self::Number => one?.parse::<f64>().ok()?.into(),
            Self::Duration | Self::Nanoseconds => format_duration(parse_duration(one?)?).into(),
            Self::JoinedNetworks => values.join(",").into(),
            Self::Networks | Self::NodePortAddresses => {
                if !values.iter().all(|value| self.is_item(value, values.len())) {
                    return None;
                }
                values.into()
            }
            Self::Gates => {
                let gate = |value: &String| {
                    let (name, switch) = value.split_once('=')?;
                    Some((name.to_owned(), serde_json::Value::Bool(switch.parse().ok()?)))
                };
                values.iter().map(gate).collect::<Option<serde_json::Map<_, _>>>()?.into()
            }
            Self::Patterns => {
                let pattern = |value: &String| {
                    let (pattern, verbosity) = value.rsplit_once('=')?;
                    Some(serde_json::json!({"filePattern": pattern, "verbosity": verbosity.parse::<u32>().ok()?}))
                };
                values.iter().map(pattern).collect::<Option<Vec<_>>>()?.into()
            }
        })
    }
}

/// An address with a port, or without one.
///
/// ```
/// assert_eq!(config::parse_bind("::1", 10249).unwrap().to_string(), "[::1]:10249");
/// assert_eq!(config::parse_bind("0.0.0.0:80", 10256).unwrap().to_string(), "0.0.0.0:80");
/// assert!(config::parse_bind("localhost:80", 10256).is_none());
/// ```
#[must_use]
pub fn bind(text: &str, default_port: u16) -> Option<SocketAddr> {
    let address = match text.parse::<SocketAddr>() {
        Ok(address) => address,
        Err(_) => SocketAddr::new(text.parse().ok()?, default_port),
    };
    (address.port() != 0).then_some(address)
}

/// What YAML 1.1, as Kubernetes reads it, has for booleans beside `true` and `false`.
fn switch(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "yes" | "on" => Some(true),
        "no" | "off" => Some(false),
        _ => None,
    }
}

/// With its prefix length: a bare address is none.
fn is_network(text: &str) -> bool {
    text.contains('/') && text.parse::<IpNetwork>().is_ok()
}

fn is_gate(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric())
}

fn pattern(item: &Node) -> Option<String> {
    let Value::Map(entries) = &item.value else { return None };
    let value = |key: &str| entries.iter().rev().find(|entry| entry.key == key).map(|entry| &entry.node.value);
    match (value("filePattern"), value("verbosity")) {
        (Some(Value::Text(pattern)), Some(Value::Integer(verbosity)))
            if *verbosity >= 0 && !pattern.is_empty() && !pattern.contains(',') =>
        {
            Some(format!("{pattern}={verbosity}"))
        }
        _ => None,
    }
}
