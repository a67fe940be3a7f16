//! What time it is, by this node. The log's own time is what decides; this only stamps it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::{SystemTime, UNIX_EPOCH},
};

use dibs_model::Timestamp;

/// A node's clock: the system's, or one that is set by hand. Clones show the same time.
#[derive(Clone, Debug, Default)]
pub struct Clock(Option<Arc<AtomicI64>>);

impl Clock {
    /// A clock that stands still until [`Clock::set`].
    pub fn by_hand(at: Timestamp) -> Clock {
        Clock(Some(Arc::new(AtomicI64::new(at.0))))
    }

    /// Moves a clock by hand, forward or back. The system's clock takes no notice.
    pub fn set(&self, to: Timestamp) {
        if let Some(hand) = &self.0 {
            hand.store(to.0, Ordering::Relaxed);
        }
    }

    /// The time.
    pub fn now(&self) -> Timestamp {
        match &self.0 {
            None => now(),
            Some(hand) => Timestamp(hand.load(Ordering::Relaxed)),
        }
    }
}

/// The system's clock.
pub fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(since.as_millis() as i64)
}
