//! The settings of the pool.

use std::num::NonZeroUsize;
use std::time::Duration;

use interlock_request::ByteSize;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// `[work]`: the thread pool for work before requests are admitted, and for writing out long
/// answers.
///
/// Bodies are read, chats rendered and prompts tokenized on threads of their own. In the queue
/// before them small requests go first, and tenants take turns.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct WorkConfig {
    /// Threads of the pool; unset, a quarter of the machine's cores, 2 to 8. One of them never
    /// takes long requests. Turn this up when `interlock_work_items_queued` stays above 0 while
    /// cores are idle.
    #[schemars(example = &4)]
    pub threads: Option<NonZeroUsize>,
    /// Requests that may wait for one of these threads, and as many again for memory (503 over
    /// either). Turn this up when bursts are refused with `work_queue_full` that would have been
    /// served in time.
    pub requests_max: NonZeroUsize,
    /// Most memory that requests may hold before they are admitted, all together: their bodies, what
    /// was read of them, their prompts. They wait where there is none; one request may hold half of
    /// it (413 over it). Turn this up together with `server.body_max`.
    pub memory_max: ByteSize,
    /// Longest time that a model's chat template and tokenizer may take for one request (500 after
    /// it). The thread is stuck then: it is counted in `interlock_work_threads_stuck` and replaced.
    /// Turn this up when very long prompts are refused with `prompt_timeout` on a busy machine.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String")]
    pub time_max: Duration,
}

impl Default for WorkConfig {
    fn default() -> Self {
        Self {
            threads: None,
            requests_max: NonZeroUsize::new(256).expect("256 is not 0"),
            memory_max: ByteSize(512 << 20),
            time_max: Duration::from_secs(10),
        }
    }
}

impl WorkConfig {
    /// One that is left for small requests, and one for the others.
    pub const THREADS_MIN: usize = 2;
    /// Each is a thread with a stack of its own, and takes a core from the model.
    pub const THREADS_MAX: usize = 64;
    /// More waiting requests than this only fill memory with bodies.
    pub const REQUESTS_MAX_MAX: usize = 100_000;
    /// Below this hardly anything is ever read.
    pub const MEMORY_MAX_MIN: ByteSize = ByteSize(16 << 20);

    /// How many threads there are.
    pub fn threads(&self) -> usize {
        /// More would take the cores from the model on large machines.
        const MOST: usize = 8;

        let cores = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
        self.threads.map_or((cores / 4).clamp(Self::THREADS_MIN, MOST), NonZeroUsize::get)
    }

    /// Every problem, as key, relation, value.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let (least, most) = (Self::THREADS_MIN, Self::THREADS_MAX);
        if let Some(threads) = self.threads.filter(|n| !(least..=most).contains(&n.get())) {
            problems.push(format!("work.threads must be {least} to {most}, got {threads}"));
        }
        let (most, requests) = (Self::REQUESTS_MAX_MAX, self.requests_max);
        if requests.get() > most {
            problems.push(format!("work.requests_max must be at most {most}, got {requests}"));
        }
        let (least, memory) = (Self::MEMORY_MAX_MIN, self.memory_max);
        if memory < least {
            problems.push(format!("work.memory_max must be at least {least}, got {memory}"));
        }
        if self.time_max.is_zero() {
            problems.push("work.time_max must exceed 0s, got 0s".into());
        }
        problems
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_problem_is_reported_with_key_relation_and_value() {
        assert_eq!(WorkConfig::default().problems(), Vec::<String>::new());
        let config = WorkConfig {
            threads: NonZeroUsize::new(1),
            memory_max: ByteSize(1 << 20),
            time_max: Duration::ZERO,
            ..WorkConfig::default()
        };
        assert_eq!(
            config.problems(),
            [
                "work.threads must be 2 to 64, got 1",
                "work.memory_max must be at least 16MiB, got 1MiB",
                "work.time_max must exceed 0s, got 0s",
            ]
        );
    }
}
