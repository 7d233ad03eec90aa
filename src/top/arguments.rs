//! The command line of `kube-ipvs top`.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use desired::parse_duration;

use super::sample::SortBy;
use crate::cli::CONTROL_SOCKET;

#[derive(Args, Debug)]
#[command(
    after_help = "Keys are those of top; h shows them. Without a terminal, and in one that cannot move its cursor (TERM=dumb), the same comes as plain \
                  text, again and again. NO_COLOR switches colours off.

Examples:
  kube-ipvs top
  kube-ipvs top --sort bytes -d 5s
  kube-ipvs top -n 1 | head -20                    # once, as text"
)]
pub(crate) struct Top {
    /// How long to wait before looking again. The kernel sums up what it has counted every 2s: with less, looks in between see no traffic
    #[arg(short, long, default_value = "2s", value_name = "DURATION", value_parser = delay)]
    pub(crate) delay: Duration,

    /// By what to sort at first
    #[arg(short, long, default_value = "active", value_name = "COLUMN")]
    pub(crate) sort: SortBy,

    /// Show only Services whose name has this in it, at first
    #[arg(short, long, default_value = "", value_name = "TEXT", hide_default_value = true)]
    pub(crate) filter: String,

    /// End after looking so many times; unless given, go on until told to stop
    #[arg(short = 'n', long, value_name = "NUMBER", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) iterations: Option<u64>,

    /// Print plain text although this is a terminal
    #[arg(short, long)]
    pub(crate) batch: bool,

    /// The running agent's socket, which knows Services, pods and what is desired
    #[arg(long, default_value = CONTROL_SOCKET, value_name = "PATH")]
    pub(crate) control_socket: PathBuf,
}

/// Reads how long to wait: a duration, or a number of seconds as top takes it.
pub(super) fn delay(text: &str) -> Result<Duration, String> {
    let seconds = || text.parse().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    parse_duration(text)
        .or_else(seconds)
        .filter(|delay| (MIN_DELAY..=MAX_DELAY).contains(delay))
        .ok_or_else(|| "expected 100ms to 1h, such as 2s, 500ms or 0.5".to_owned())
}

/// Nobody reads faster, and to read the table of a large node takes as long.
const MIN_DELAY: Duration = Duration::from_millis(100);
const MAX_DELAY: Duration = Duration::from_secs(3600);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_delay_is_a_duration_or_seconds_as_top_takes_them() {
        assert_eq!(
            (delay("2s"), delay("0.5"), delay("3")),
            (Ok(Duration::from_secs(2)), Ok(Duration::from_millis(500)), Ok(Duration::from_secs(3)))
        );
        for wrong in ["", "0", "-1", "1ms", "2h", "NaN", "inf", "x"] {
            assert!(delay(wrong).is_err(), "{wrong:?}");
        }
    }
}
