//! This process, under the names that all clients of Prometheus have for it; from the text files below /proc.

use std::fs;
use std::io;

use prometheus::{Counter, Gauge, Opts, Result};

use super::group::{Group, Registered};

/// Of utime and stime in /proc/PID/stat: the kernel's `USER_HZ`, which is 100 on every architecture that has Kubernetes.
const TICKS_PER_SECOND: f64 = 100.0;

/// Memory, time and files. Cloning shares them.
#[derive(Clone)]
pub(super) struct Process {
    pub(super) group: Registered,
    cpu: Counter,
    resident: Gauge,
    resident_peak: Gauge,
    virtual_memory: Gauge,
    threads: Gauge,
    open_files: Gauge,
    max_files: Gauge,
    started: Gauge,
}

impl Process {
    pub(super) fn new() -> Result<Self> {
        let mut group = Group::new(Some("process"))?;
        let mut gauge = |name: &str, help: &str| group.add(Gauge::new(name, help));
        Ok(Self {
            resident: gauge("resident_memory_bytes", "Resident memory size in bytes.")?,
            resident_peak: gauge("resident_memory_peak_bytes", "The largest resident memory size there was, in bytes.")?,
            virtual_memory: gauge("virtual_memory_bytes", "Virtual memory size in bytes.")?,
            threads: gauge("threads", "Number of threads.")?,
            open_files: gauge("open_fds", "Number of open file descriptors.")?,
            max_files: gauge("max_fds", "Maximum number of open file descriptors.")?,
            started: gauge("start_time_seconds", "Start time of the process since unix epoch in seconds.")?,
            cpu: group
                .add(Counter::with_opts(Opts::new("cpu_seconds_total", "Total user and system CPU time spent in seconds.")))?,
            group: group.finish(),
        })
    }

    /// Reads them all. What cannot be read stays as it was.
    pub(super) fn update(&self) {
        if let Ok(text) = fs::read_to_string("/proc/self/status") {
            for (gauge, name, factor) in [
                (&self.resident, "VmRSS", 1024.0),
                (&self.resident_peak, "VmHWM", 1024.0),
                (&self.virtual_memory, "VmSize", 1024.0),
                (&self.threads, "Threads", 1.0),
            ] {
                if let Some(value) = status_field(&text, name) {
                    gauge.set(value * factor);
                }
            }
        }
        if let Ok(text) = fs::read_to_string("/proc/self/stat")
            && let Some(Stat { cpu_ticks, start_ticks }) = Stat::parse(&text)
        {
            // It never goes backwards, and neither does a counter.
            self.cpu.inc_by((cpu_ticks / TICKS_PER_SECOND - self.cpu.get()).max(0.0));
            if let Some(booted) = fs::read_to_string("/proc/stat").ok().and_then(|text| boot_time(&text)) {
                self.started.set(booted + start_ticks / TICKS_PER_SECOND);
            }
        }
        if let Ok(number) = open_files() {
            self.open_files.set(number);
        }
        if let Some(limit) = fs::read_to_string("/proc/self/limits").ok().and_then(|text| max_open_files(&text)) {
            self.max_files.set(limit);
        }
    }
}

/// What is of interest in /proc/PID/stat (proc_pid_stat(5)).
#[derive(Debug, PartialEq)]
struct Stat {
    cpu_ticks: f64,
    /// After the machine came up.
    start_ticks: f64,
}

impl Stat {
    fn parse(text: &str) -> Option<Self> {
        // The program's name comes second, in parentheses, and may have anything in it.
        let mut fields = text.rsplit_once(") ")?.1.split_ascii_whitespace();
        let mut next = |skipped: usize| fields.nth(skipped)?.parse::<f64>().ok();
        // The third field (the state) is the first here: utime is the 14th, stime the 15th and starttime the 22nd.
        let (user, system) = (next(11)?, next(0)?);
        Some(Self { cpu_ticks: user + system, start_ticks: next(6)? })
    }
}

/// The number in a line such as `VmRSS:      1234 kB`.
fn status_field(text: &str, name: &str) -> Option<f64> {
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    value.split_ascii_whitespace().next()?.parse().ok()
}

/// In Unix seconds, from /proc/stat.
fn boot_time(text: &str) -> Option<f64> {
    text.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()
}

fn open_files() -> io::Result<f64> {
    let number = fs::read_dir("/proc/self/fd")?.count();
    // One of them is the directory itself.
    Ok(f64::from(u32::try_from(number.saturating_sub(1)).unwrap_or(u32::MAX)))
}

/// The soft limit in a line such as `Max open files            1024                 524288               files`.
fn max_open_files(text: &str) -> Option<f64> {
    text.lines().find_map(|line| line.strip_prefix("Max open files"))?.split_ascii_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_files_are_read_as_the_manual_has_them() {
        let stat = "77 (a) b) c) S 1 77 77 0 -1 4194304 100 0 3 0 250 50 0 0 20 0 5 0 123400 1000000 300";
        assert_eq!(Stat::parse(stat), Some(Stat { cpu_ticks: 300.0, start_ticks: 123_400.0 }));
        assert_eq!(Stat::parse("77 (x) S 1 2"), None);
        assert_eq!(status_field("Name:\tx\nVmRSS:\t    1234 kB\nThreads:\t3\n", "VmRSS"), Some(1234.0));
        assert_eq!(status_field("VmRSSX:\t1\n", "VmRSS"), None);
        assert_eq!(boot_time("cpu 1 2\nbtime 1760000000\n"), Some(1_760_000_000.0));
        let limits =
            "Limit  Soft Limit  Hard Limit  Units\nMax open files            1024                 524288               files\n";
        assert_eq!(max_open_files(limits), Some(1024.0));
        assert_eq!(max_open_files("Max open files            unlimited            unlimited            files\n"), None);
    }

    #[test]
    fn this_process_has_all_of_it() {
        let process = Process::new().unwrap();
        process.update();
        for family in process.group.registry.gather() {
            let metric = &family.get_metric()[0];
            let value =
                if family.name().ends_with("_total") { metric.get_counter().get_value() } else { metric.get_gauge().get_value() };
            assert!(value > 0.0 || family.name() == "process_cpu_seconds_total", "{}", family.name());
        }
        let age = super::super::unix_seconds() - process.started.get();
        assert!((-1.0..3600.0).contains(&age), "{age}");
    }
}
