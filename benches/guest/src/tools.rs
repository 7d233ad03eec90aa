//! The reference: the same state by the usual tools, `ipvsadm --restore`, `ipset restore` and `ip -batch`.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use model::{DEVICE, Family, State};

use crate::floor::{Floor, ensure_equal};
use crate::namespace::run;

/// A node's state in the words of the tools.
pub(crate) struct Saved {
    ipvs: String,
    sets: String,
    routes: String,
}

impl Saved {
    /// What the namespace of this thread holds.
    pub(crate) fn take() -> Result<Self> {
        let routes = run("ip", &["route", "show", "table", "local", "proto", "71", "dev", DEVICE], None)?;
        let mut batch = String::new();
        for line in routes.lines() {
            let route = line.strip_prefix("local ").with_context(|| format!("a route that is not local: {line}"))?;
            writeln!(batch, "route add local {route} dev {DEVICE} table local proto 71")?;
        }
        Ok(Self { ipvs: run("ipvsadm", &["-Sn"], None)?, sets: run("ipset", &["save"], None)?, routes: batch })
    }

    /// Restores it in the namespace of this thread, which has to be fresh and then holds `state`.
    pub(crate) fn restore(&self, state: &State) -> Result<[(&'static str, Duration); 3]> {
        // It makes the device for VIPs.
        Floor::open()?;
        let begun = Instant::now();
        run("ipset", &["restore"], Some(&self.sets))?;
        let sets = begun.elapsed();
        let begun = Instant::now();
        run("ipvsadm", &["--restore"], Some(&self.ipvs))?;
        let ipvs = begun.elapsed();
        let begun = Instant::now();
        run("ip", &["-batch", "-"], Some(&self.routes))?;
        let routes = begun.elapsed();
        let observed = kernel::Kernel::open(&Family::ALL.into())?.observe()?;
        ensure_equal(state, &observed)?;
        Ok([("ipset restore", sets), ("ipvsadm --restore", ipvs), ("ip -batch", routes)])
    }
}
