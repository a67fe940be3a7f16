//! The two clocks: the wall's, for timestamps, and one that never goes back, for time-outs.

use std::{
    sync::LazyLock,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

static START: LazyLock<Instant> = LazyLock::new(Instant::now);

#[cfg(test)]
thread_local! {
    /// What the wall's clock shows to a test that sets it for its thread.
    pub(crate) static SET: std::cell::Cell<Option<i64>> = const { std::cell::Cell::new(None) };
}

/// Milliseconds since the Unix epoch.
pub(crate) fn wall_ms() -> i64 {
    #[cfg(test)]
    if let Some(set) = SET.get() {
        return set;
    }
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as i64)
}

/// Milliseconds since the process began to ask.
pub(crate) fn mono_ms() -> u64 {
    START.elapsed().as_millis() as u64
}

/// When [`mono_ms`] will reach a value.
pub(crate) fn instant(mono_ms: u64) -> tokio::time::Instant {
    tokio::time::Instant::from_std(*START + Duration::from_millis(mono_ms))
}
