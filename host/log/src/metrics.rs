//! What the log tells the outside. Registered as `interlock_log_*`.

use interlock_metrics::{IntCounter, Registry};

/// How the log fares.
#[derive(Debug, Clone)]
pub struct LogMetrics {
    /// Lines that nobody will read.
    pub lines_dropped: IntCounter,
}

impl LogMetrics {
    /// Declares the families.
    pub fn register(registry: &Registry) -> Self {
        Self {
            lines_dropped: registry.counter(
                "log_lines_dropped_total",
                "Lines of the log that were lost because stderr was not read or took no more.",
            ),
        }
    }
}
