//! What `iptables-save` prints, a line at a time.

use model::Table;

/// A line that says something of the tables that we use.
pub(super) enum Line<'a> {
    Chain {
        table: Table,
        name: &'a str,
    },
    Rule {
        table: Table,
        chain: &'a str,
        /// All of it after the chain.
        text: &'a str,
    },
}

/// The lines that name chains and rules. What is of other tables, or of no form that is known, is passed over.
pub(super) fn lines(saved: &str) -> impl Iterator<Item = Line<'_>> {
    let mut table = None;
    saved.lines().filter_map(move |line| {
        if let Some(name) = line.strip_prefix('*') {
            table = Table::from_name(name);
            return None;
        }
        let table = table?;
        if let Some(chain) = line.strip_prefix(':') {
            return Some(Line::Chain { table, name: chain.split(' ').next()? });
        }
        let (chain, text) = line.strip_prefix("-A ")?.split_once(' ')?;
        Some(Line::Rule { table, chain, text })
    })
}
