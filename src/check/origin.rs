//! Who sets a sysctl: the files from which it is set when the host boots (sysctl.d(5)).

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// In order of precedence: a file hides those of its name in the directories after its own.
const DIRECTORIES: [&str; 5] = ["etc/sysctl.d", "run/sysctl.d", "usr/local/lib/sysctl.d", "usr/lib/sysctl.d", "lib/sysctl.d"];
/// What `sysctl --system` reads last of all.
const LAST: &str = "etc/sysctl.conf";

/// A file that sets a sysctl, and to what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Origin {
    pub(super) file: PathBuf,
    pub(super) value: String,
}

/// What the files below a host's root set: for each sysctl, by its name with dots, the one that is in force in the end.
pub(super) fn read(root: &Path) -> BTreeMap<String, Origin> {
    let mut files = BTreeMap::new();
    for directory in DIRECTORIES.iter().rev() {
        let entries = fs::read_dir(root.join(directory)).into_iter().flatten().flatten();
        for path in entries.map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|extension| extension == "conf")) {
            files.insert(path.file_name().map(ToOwned::to_owned), path);
        }
    }
    let mut origins = BTreeMap::new();
    for path in files.into_values().chain([root.join(LAST)]) {
        let Ok(text) = fs::read_to_string(&path) else { continue };
        let set = |(name, value)| (name, Origin { file: path.clone(), value });
        origins.extend(text.lines().filter_map(parse).map(set));
    }
    origins
}

/// `net.ipv4.ip_forward = 1`, with slashes for dots perhaps, and a dash before it where a failure is no matter.
fn parse(line: &str) -> Option<(String, String)> {
    let line = line.trim();
    let (name, value) = line.split_once('=').filter(|_| !line.starts_with(['#', ';']))?;
    let name = name.trim().trim_start_matches('-').trim();
    // The first separator says which it is: the other one is then part of a name, as of an interface's.
    let is_path = name.find(['.', '/']).is_some_and(|at| name.get(at..).is_some_and(|rest| rest.starts_with('/')));
    let swapped = |letter| match letter {
        '/' => '.',
        '.' => '/',
        other => other,
    };
    let name = if is_path { name.chars().map(swapped).collect() } else { name.to_owned() };
    Some((name, value.trim().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_file_by_name_wins_and_one_in_etc_hides_its_namesakes() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write("etc/sysctl.d/10-k8s.conf", "net.ipv4.ip_forward=0\nnet.ipv4.vs.conntrack = 1\n");
        write(
            "usr/lib/sysctl.d/50-default.conf",
            "# net.ipv4.ip_forward = 7\n-net/ipv4/ip_forward = 1\nnet/ipv4/conf/eth0.1/rp_filter=2\n",
        );
        write("usr/lib/sysctl.d/10-k8s.conf", "net.ipv4.vs.conntrack = 0\n");
        write("usr/lib/sysctl.d/README", "net.ipv4.vs.conntrack = 0\n");
        let origins = read(root.path());
        let of = |name: &str| {
            let origin = &origins[name];
            (origin.file.strip_prefix(root.path()).unwrap().to_str().unwrap().to_owned(), origin.value.clone())
        };
        assert_eq!(of("net.ipv4.ip_forward"), ("usr/lib/sysctl.d/50-default.conf".to_owned(), "1".to_owned()));
        assert_eq!(of("net.ipv4.vs.conntrack"), ("etc/sysctl.d/10-k8s.conf".to_owned(), "1".to_owned()));
        assert_eq!(of("net.ipv4.conf.eth0/1.rp_filter").1, "2");
        write("etc/sysctl.conf", "net.ipv4.ip_forward = 0");
        assert_eq!(read(root.path())["net.ipv4.ip_forward"].value, "0");
    }
}
