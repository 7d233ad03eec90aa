//! `docs/defects.md` beside what there is: each id that the name of a test begins with is in it, and each test that it names exists.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test stops where it fails")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use serde_json::Value;

const DOCUMENT: &str = include_str!("../docs/defects.md");
const INTENDED: &str = include_str!("conformance/intended.json");

/// The directories in which there are tests.
const SOURCES: [&str; 3] = ["src", "crates", "tests"];

/// `a2`, `j10`: an id as names of tests have it.
fn is_id(part: &str) -> bool {
    let number = part.strip_prefix(|letter: char| letter.is_ascii_lowercase());
    number.is_some_and(|number| matches!(number.len(), 1 | 2) && number.bytes().all(|digit| digit.is_ascii_digit()))
}

/// The ids that the name of a test begins with.
fn ids(test: &str) -> impl Iterator<Item = &str> {
    test.split('_').take_while(|part| is_id(part))
}

/// The tests that the document names for each id.
fn documented() -> BTreeMap<String, BTreeSet<&'static str>> {
    let mut documented = BTreeMap::new();
    for line in DOCUMENT.lines().filter(|line| line.starts_with("| ")) {
        let cells: Vec<_> = line.trim_matches('|').split(" | ").map(str::trim).collect();
        let [id, _, _, tests] = cells.as_slice() else { panic!("not four cells: {line}") };
        if is_id(&id.to_lowercase()) {
            let named: BTreeSet<_> = tests.split(", ").filter(|test| *test != "none").map(|test| test.trim_matches('`')).collect();
            assert!(documented.insert(id.to_lowercase(), named).is_none(), "{id} is there twice");
        }
    }
    documented
}

/// The names of the functions in a Rust file that are tests.
fn tests_in(text: &str) -> impl Iterator<Item = &str> {
    let mut is_test = false;
    text.lines().map(str::trim_start).filter_map(move |line| {
        if line.starts_with("#[") {
            is_test |= line.contains("test]") || line.contains("::test(");
            return None;
        }
        let (_, function) = line.split_once("fn ").filter(|_| is_test)?;
        is_test = false;
        function.split(['(', '<']).next()
    })
}

/// The names of all tests.
fn tests() -> BTreeSet<String> {
    let mut tests = BTreeSet::new();
    let mut directories: Vec<_> = SOURCES.map(|name| Path::new(env!("CARGO_MANIFEST_DIR")).join(name)).into();
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display())) {
            let path = entry.unwrap().path();
            if path.is_dir() {
                directories.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                tests.extend(tests_in(&fs::read_to_string(&path).unwrap()).map(str::to_owned));
            }
        }
    }
    tests
}

#[test]
fn every_id_is_that_of_a_known_defect() {
    let documented = documented();
    let tests = tests();
    for test in &tests {
        for id in ids(test) {
            assert!(documented.contains_key(id), "{test}: docs/defects.md has no {id}");
        }
    }
    assert!(tests.iter().filter(|test| ids(test).next().is_some()).count() > 100, "{tests:?}");

    let intended: BTreeMap<String, Value> = serde_json::from_str(INTENDED).unwrap();
    for (case, difference) in &intended {
        let id = difference.get("defect").and_then(Value::as_str).unwrap();
        assert!(documented.contains_key(&id.to_lowercase()), "intended.json, {case}: docs/defects.md has no {id}");
    }
    assert!(!intended.is_empty());
}

#[test]
fn every_test_that_is_named_exists_and_each_id_names_one_of_its_own() {
    let tests = tests();
    for (id, named) in documented() {
        for test in &named {
            assert!(tests.contains(*test), "{id}: there is no test {test}");
        }
        let own: BTreeSet<_> = tests.iter().map(String::as_str).filter(|test| ids(test).any(|part| part == id)).collect();
        assert!(own.is_empty() || !own.is_disjoint(&named), "{id} names none of {own:?}");
    }
}

#[test]
fn ids_and_tests_are_told_from_what_looks_like_them() {
    let of = |name| ids(name).collect::<Vec<_>>();
    assert_eq!(of("j7_f2_in_guest"), ["j7", "f2"]);
    assert_eq!(of("a3_500_flips"), ["a3"]);
    assert_eq!(of("j10_outage"), ["j10"]);
    assert!(of("ipvs_by_hand").is_empty() && of("a_pod_a2").is_empty() && of("x100_times").is_empty());
    let text = "#[cfg(test)]\nfn helper() {}\n#[test]\n#[ignore = \"a guest\"]\nfn one() {\n}\n#[tokio::test(start_paused = true)]\nasync fn two() {\n";
    assert_eq!(tests_in(text).collect::<Vec<_>>(), ["one", "two"]);
}
