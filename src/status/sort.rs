//! In which order rows come.

use std::cmp::Reverse;

use super::arguments::SortBy;
use super::view::VirtualRow;

/// Sorts `rows`; those that are alike stay as they are.
pub(crate) fn sort(rows: &mut [VirtualRow], by: SortBy) {
    match by {
        SortBy::Address => rows.sort_by_key(|row| row.key),
        SortBy::Name => rows.sort_by_cached_key(|row| {
            let name = row.service().map(ToString::to_string);
            (name.is_none(), name, row.key)
        }),
        SortBy::Connections => rows.sort_by_cached_key(|row| Reverse(row.connections().active)),
        SortBy::Rate => rows.sort_by_key(|row| Reverse(row.rates.connections)),
        SortBy::Packets => rows.sort_by_key(|row| Reverse(row.rates.packets_in.saturating_add(row.rates.packets_out))),
        SortBy::Bytes => rows.sort_by_key(|row| Reverse(row.rates.bytes_in.saturating_add(row.rates.bytes_out))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::join::join;
    use crate::status::tests::{kernel_table, told};

    #[test]
    fn numbers_are_largest_first_and_names_before_none() {
        let sorted = |by| -> Vec<_> {
            let mut rows = join(kernel_table(), Some(&told()), None).virtual_servers;
            sort(&mut rows, by);
            rows.iter().map(|row| row.key.to_string()).collect()
        };
        assert_eq!(sorted(SortBy::Address)[0], "TCP 10.96.0.10:80");
        assert_eq!(sorted(SortBy::Name)[..3], ["UDP [fd00:96::a]:53", "TCP 10.96.0.10:80", "FWM 16384"]);
        assert_eq!(sorted(SortBy::Connections)[0], "TCP 10.96.0.10:80");
        assert_eq!(sorted(SortBy::Rate)[0], "UDP [fd00:96::a]:53");
        assert_eq!(sorted(SortBy::Bytes)[0], "TCP 192.0.2.1:443");
    }
}
