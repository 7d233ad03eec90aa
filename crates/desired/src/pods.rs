//! The names of pods, as many of which begin alike.

use std::fmt;

/// The names of the pods that the endpoints of one slice are, in the order of the endpoints.
///
/// A text for each would be the larger part of a slice. The pods of a slice mostly come from one ReplicaSet, with whose name theirs begin.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Pods {
    /// What all names begin with, then for each endpoint a line: a mark and the rest of its pod's name, or nothing where it is no pod.
    text: Box<str>,
}

/// Ahead of the rest of a name, which may be empty.
const MARK: char = '=';

/// The name of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PodName<'a> {
    begin: &'a str,
    rest: &'a str,
}

impl fmt::Display for PodName<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.begin)?;
        f.write_str(self.rest)
    }
}

impl Pods {
    /// Pods with `names`. A name of more than one line is none that a pod can have.
    pub(crate) fn new(names: &[Option<&str>]) -> Self {
        let plain = |name: &&str| !name.contains('\n');
        let named = || names.iter().flatten().copied().filter(plain);
        let begin = named().reduce(common).unwrap_or_default();
        let lines = names.iter().map(|name| name.filter(plain).map_or(0, str::len) + 2).sum::<usize>();
        let mut text = String::with_capacity(begin.len() + lines);
        text.push_str(begin);
        for name in names {
            text.push('\n');
            if let Some(rest) = name.filter(plain).and_then(|name| name.strip_prefix(begin)) {
                text.push(MARK);
                text.push_str(rest);
            }
        }
        Self { text: text.into() }
    }

    /// The pods, one for each endpoint.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Option<PodName<'_>>> {
        let mut lines = self.text.split('\n');
        let begin = lines.next().unwrap_or_default();
        lines.map(move |line| line.strip_prefix(MARK).map(|rest| PodName { begin, rest }))
    }
}

/// What both begin with.
fn common<'a>(one: &'a str, other: &str) -> &'a str {
    let same = one.char_indices().zip(other.chars()).find(|((_, one), other)| one != other);
    let end = same.map_or(one.len().min(other.len()), |((at, _), _)| at);
    one.get(..end).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn through(names: &[Option<&str>]) -> Vec<Option<String>> {
        Pods::new(names).iter().map(|name| name.map(|name| name.to_string())).collect()
    }

    #[test]
    fn names_come_back_in_order() {
        for names in [
            &[][..],
            &[None],
            &[None, None],
            &[Some("web-6c8b4f7d9c-2xkqp"), Some("web-6c8b4f7d9c-9v7wl"), None, Some("web-6c8b4f7d9c-2xkqq")],
            &[Some("db-0")],
            &[Some("db"), Some("db-0")],
            &[Some("db-0"), Some("db")],
            &[Some("one"), Some("two")],
            &[Some("="), Some("==")],
            &[Some("z\u{fc}rich"), Some("z\u{fb}g"), Some("")],
        ] {
            let expected: Vec<_> = names.iter().map(|name| name.map(str::to_owned)).collect();
            assert_eq!(through(names), expected);
        }
    }

    #[test]
    fn what_pods_have_in_common_is_kept_once() {
        let pods = Pods::new(&[Some("web-6c8b4f7d9c-2xkqp"), None, Some("web-6c8b4f7d9c-9v7wl")]);
        assert_eq!(&*pods.text, "web-6c8b4f7d9c-\n=2xkqp\n\n=9v7wl");
    }

    #[test]
    fn a_name_of_two_lines_moves_no_other() {
        assert_eq!(through(&[Some("a-1"), Some("a\n=b"), Some("a-2")]), [Some("a-1".to_owned()), None, Some("a-2".to_owned())]);
    }
}
