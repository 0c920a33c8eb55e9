//! Says which of many failed forward passes are logged.

/// Counts the failures of late, so that a device that fails all the time does not fill the log.
#[derive(Debug, Default)]
pub(crate) struct FailureLog {
    failed: u64,
    passed: u32,
}

impl FailureLog {
    /// After so many good passes in a row, the next failure is logged again.
    const FORGET_AFTER: u32 = 100;

    pub(crate) fn passed(&mut self) {
        self.passed = self.passed.saturating_add(1);
        if self.passed >= Self::FORGET_AFTER {
            self.failed = 0;
        }
    }

    /// Counts a failure. True if it is to be logged: the first, the second, the fourth and so on.
    pub(crate) fn failed(&mut self) -> bool {
        self.passed = 0;
        self.failed += 1;
        self.failed.is_power_of_two()
    }

    /// Failures since the last good run of passes.
    pub(crate) fn count(&self) -> u64 {
        self.failed
    }
}
