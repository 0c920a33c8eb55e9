//! What time it is, as the system says or a simulation.

use std::sync::Arc;
use std::time::Duration;

/// The time since the Unix epoch, as somebody tells it: the system, or a simulation.
pub type WallClock = Arc<dyn Fn() -> Duration + Send + Sync>;

/// A time in whole microseconds.
pub(crate) fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// The system's time since the Unix epoch; 0 for a clock that is set before it.
pub fn system_time() -> Duration {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default()
}
