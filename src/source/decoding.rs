//! How long objects take to be decoded. The client library does that out of sight, so the decoders count for themselves.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Nanoseconds; there is no value that decoders and whoever asks could share.
static SPENT: AtomicU64 = AtomicU64::new(0);

/// Runs `decode` on the account of decoding.
pub(super) fn counted<T>(decode: impl FnOnce() -> T) -> T {
    let begun = Instant::now();
    let decoded = decode();
    SPENT.fetch_add(u64::try_from(begun.elapsed().as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
    decoded
}

/// How long decoding has taken since this was last asked.
pub(crate) fn take_time() -> Duration {
    Duration::from_nanos(SPENT.swap(0, Ordering::Relaxed))
}
