//! What a model did lately, for whoever chooses among several.
//!
//! Not a metric: it forgets, and what it remembers is bounded.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// The last requests of one model.
#[derive(Debug, Default)]
pub(crate) struct ModelStats {
    // Every driver writes here and every routed request reads: there is no single owner. The lock
    // is held for a few comparisons and never across an await.
    seen: Mutex<StatsState>,
}

#[derive(Debug, Default)]
struct StatsState {
    first_token: LastValues<Duration>,
    inter_token: LastValues<Duration>,
    prefixes: LastValues<u64>,
}

/// The last few of something, oldest first.
#[derive(Debug)]
struct LastValues<T>(VecDeque<T>);

impl<T> Default for LastValues<T> {
    fn default() -> Self {
        Self(VecDeque::new())
    }
}

impl<T: Copy + Ord> LastValues<T> {
    fn push(&mut self, one: T, most: usize) {
        if self.0.len() == most {
            self.0.pop_front();
        }
        self.0.push_back(one);
    }

    fn median(&self) -> Option<T> {
        let mut sorted: Vec<T> = self.0.iter().copied().collect();
        sorted.sort_unstable();
        sorted.get(sorted.len() / 2).copied()
    }
}

impl ModelStats {
    /// Requests whose times count.
    const REQUESTS: usize = 64;
    /// Beginnings of prompts that are remembered: more than any cache keeps the pages of.
    const PREFIXES: usize = 1024;

    /// A request's first token came.
    pub(crate) fn first_token(&self, time: Duration) {
        self.lock().first_token.push(time, Self::REQUESTS);
    }

    /// A request has ended, whose tokens came at this pace.
    pub(crate) fn inter_token(&self, mean: Duration) {
        self.lock().inter_token.push(mean, Self::REQUESTS);
    }

    /// A request of a prompt that begins so runs here.
    pub(crate) fn prefix(&self, key: u64) {
        if key != 0 {
            let mut seen = self.lock();
            // Said again it is as young as any.
            seen.prefixes.0.retain(|&other| other != key);
            seen.prefixes.push(key, Self::PREFIXES);
        }
    }

    /// Did one lately?
    pub(crate) fn has_prefix(&self, key: u64) -> bool {
        key != 0 && self.lock().prefixes.0.contains(&key)
    }

    /// Medians: to the first token, and between tokens.
    pub(crate) fn medians(&self) -> (Option<Duration>, Option<Duration>) {
        let seen = self.lock();
        (seen.first_token.median(), seen.inter_token.median())
    }

    fn lock(&self) -> MutexGuard<'_, StatsState> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_of_the_last_requests() {
        let stats = ModelStats::default();
        assert_eq!(stats.medians(), (None, None));
        for n in 0..1000 {
            stats.first_token(Duration::from_millis(n));
        }
        assert_eq!(stats.medians().0, Some(Duration::from_millis(1000 - 32)));
    }

    #[test]
    fn prefixes_are_forgotten_the_oldest_first() {
        let stats = ModelStats::default();
        for key in 0..=ModelStats::PREFIXES as u64 + 1 {
            stats.prefix(key);
            stats.prefix(1);
        }
        assert!(stats.has_prefix(1) && !stats.has_prefix(2) && stats.has_prefix(3));
        assert!(!stats.has_prefix(0), "0 is no prefix");
    }
}
