//! Whatever an API server may send, serving it ends in a state: objects cut, corrupted, mixed up.

use proptest::prelude::*;

use crate::serving::serve;

const SEEDS: [&[u8]; 3] = [
    include_bytes!("../../../../fuzz/seeds/objects/all"),
    include_bytes!("../../../../fuzz/seeds/objects/conflict"),
    include_bytes!("../../../../fuzz/seeds/objects/gone"),
];

/// Values that fields have limits for.
const VALUES: [&str; 12] =
    ["0", "-1", "65536", "2147483647", "null", "\"\"", "\"10.96.0.10\"", "\"::\"", "\"IPv6\"", "[]", "{}", "\"192.0.2.0/33\""];

#[test]
fn seeds_are_served_and_cut_ones_as_far_as_they_go() {
    assert_eq!(SEEDS.map(serve), [4, 5, 7]);
    for seed in SEEDS {
        for length in (0..seed.len()).step_by(7) {
            assert!(serve(&seed[..length]) <= serve(seed));
        }
    }
}

#[test]
fn what_the_fuzzer_has_found_is_survived() {
    for (_, bytes) in testkit::fuzz_inputs("objects").unwrap() {
        serve(&bytes);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn corrupted_bytes_are_survived(seed in 0..SEEDS.len(), changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8)) {
        let mut bytes = SEEDS[seed].to_vec();
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        serve(&bytes);
    }

    #[test]
    fn other_values_are_survived(seed in 0..SEEDS.len(), changes in prop::collection::vec((any::<prop::sample::Index>(), 0..VALUES.len()), 1..6)) {
        let mut text = String::from_utf8(SEEDS[seed].to_vec()).unwrap();
        for (which, value) in changes {
            let colons: Vec<_> = text.match_indices("\":").map(|(at, _)| at + 2).collect();
            let at = *which.get(&colons);
            // Up to where a plain value ends; of a list or an object the rest is left behind, and often makes the line unreadable.
            let end = text[at..].find([',', '}', ']']).map_or(text.len(), |end| at + end);
            text.replace_range(at..end, VALUES[value]);
        }
        serve(text.as_bytes());
    }
}
