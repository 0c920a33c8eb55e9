//! The settings of the engine.

use std::num::{NonZeroU32, NonZeroUsize};
use std::time::Duration;

use interlock_request::ByteSize;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::PrefixSharing;

/// `[engine]`: how the thread that owns the model works.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct EngineConfig {
    /// How requests share the model. `batched` computes the next token of every running request
    /// in one forward pass, with prompts beside them; requests join and leave between passes. `simple`
    /// serves one at a time while the others wait: the reference that batching is compared with.
    pub mode: Mode,
    /// Most requests that run at once in `batched` mode; the others wait. Turn this up on a large
    /// GPU, where more rows cost little more time; down when each stream should be faster.
    pub running_max: NonZeroU32,
    /// Most prompt tokens that one forward pass computes, not counting the last token of each prompt;
    /// fewer where so many would take more than about a second, since a cancelled prompt stops between passes. Turn this down when memory is short
    /// or cancelling must act sooner still, up when long prompts should compute faster on a large
    /// GPU.
    pub prefill_chunk: NonZeroU32,
    /// How many times as long as alone a stream may take, over its life, because prompts are computed
    /// beside it. Time that a stream is not held up now is saved for later prompts, at most
    /// `decode_pause_max` at once; so a single prompt goes in one piece, and a flood of prompts slows
    /// streams by no more than this. At 1 prompts still get a quarter of the streams' time, or they
    /// would never end. Turn this down when streams must stay fast under load, up when first tokens
    /// must come sooner.
    pub decode_slowdown_max: NonZeroU32,
    /// Longest pause between two tokens of a stream, beyond the time of a decoding pass, that a prompt
    /// beside it may cause at once. The pause may be longer where one pass's share of
    /// `decode_slowdown_max` is more than this, or the smallest piece of a prompt whose computing costs
    /// as much as the fixed cost of its pass. Turn this up when prompts
    /// are long and first tokens must come sooner, down when streams must flow evenly.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String")]
    pub decode_pause_max: Duration,
}

/// How requests share the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// One forward pass computes the next token of every running request.
    Batched,
    /// One request runs at a time.
    Simple,
}

impl Default for EngineConfig {
    fn default() -> Self {
        let number = |n| NonZeroU32::new(n).expect("no default is 0");
        Self {
            mode: Mode::Batched,
            running_max: number(64),
            prefill_chunk: number(2048),
            decode_slowdown_max: number(5),
            decode_pause_max: Duration::from_millis(200),
        }
    }
}

impl EngineConfig {
    /// All problems, each as key, relation and value.
    pub fn problems(&self) -> Vec<String> {
        let bounds = [
            ("running_max", self.running_max, Self::RUNNING_MAX_MAX),
            ("prefill_chunk", self.prefill_chunk, Self::PREFILL_CHUNK_MAX),
            ("decode_slowdown_max", self.decode_slowdown_max, Self::DECODE_SLOWDOWN_MAX_MAX),
        ];
        let mut problems: Vec<_> = bounds
            .iter()
            .filter(|(_, value, most)| value.get() > *most)
            .map(|(key, value, most)| format!("engine.{key} must be at most {most}, got {value}"))
            .collect();
        if self.decode_pause_max > Self::DECODE_PAUSE_MAX_MAX {
            problems.push(format!(
                "engine.decode_pause_max must be at most {}, got {}",
                humantime::format_duration(Self::DECODE_PAUSE_MAX_MAX),
                humantime::format_duration(self.decode_pause_max)
            ));
        }
        problems
    }

    /// More rows than this are more than any device computes at once.
    pub const RUNNING_MAX_MAX: u32 = 16_384;
    /// A chunk beyond this no longer computes faster and only delays cancelling.
    pub const PREFILL_CHUNK_MAX: u32 = 8192;
    /// A stream that is slowed down by more than this is no stream.
    pub const DECODE_SLOWDOWN_MAX_MAX: u32 = 1000;
    /// A stream that pauses for longer than this is no stream.
    pub const DECODE_PAUSE_MAX_MAX: Duration = Duration::from_secs(60);
}

/// `[cache]`: the memory for the keys and values of running requests.
///
/// Keys and values lie in pages of a few tokens each. A request takes pages as it grows. When no page is
/// left, the last request in rank gives its pages back and computes them again later.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct CacheConfig {
    /// Most memory for keys and values. Turn this up when `interlock_preemptions_total` grows,
    /// down when the machine has other work; unset, a quarter of the memory that is free at start.
    /// Several models share it, each its equal part. A model whose part holds fewer than 4096 tokens
    /// (or its context, if that is less) is refused; one whose part holds less than its context is
    /// served with as much as it holds, and the log says so. Pages stay taken when their requests are
    /// gone: `interlock_cache_pages_idle` of them keep prefixes for the next.
    pub memory_max: Option<ByteSize>,
    /// Whether requests that begin with the same tokens (a system prompt, a conversation that goes on)
    /// share the pages that were computed for them. Pages kept for that are given up first when pages
    /// run out, so there is rarely a reason to turn it off: to measure, or where not even requests of
    /// one tenant (`prefix_sharing`) may learn of each other.
    pub prefix: bool,
    /// Which requests share pages. `tenant`: those of one tenant, as the policies' `identify` names it;
    /// requests without a tenant count as one tenant, so a host without such a policy shares among all.
    /// `all`: all requests of a model. Requests that share pages can find out by guessing what others
    /// have asked: a right guess has its first token sooner, and shows in `cached_tokens`. So set it to
    /// `all` only when tenants may know of each other's prompts and the same long one comes from many of
    /// them.
    pub prefix_sharing: PrefixSharing,
}

impl Default for CacheConfig {
    fn default() -> Self {
        Self { memory_max: None, prefix: true, prefix_sharing: PrefixSharing::Tenant }
    }
}

impl CacheConfig {
    /// All problems, each as key, relation and value.
    pub fn problems(&self) -> Vec<String> {
        let least = ByteSize(Self::MEMORY_MAX_MIN);
        let too_small = self.memory_max.filter(|size| size.0 < Self::MEMORY_MAX_MIN);
        let problem = |size| {
            let plain = "a number without a unit counts bytes";
            format!("cache.memory_max must be at least {least}, got {size} ({plain})")
        };
        too_small.map(problem).into_iter().collect()
    }

    /// With less than this no model of use serves a single request.
    pub const MEMORY_MAX_MIN: u64 = 1 << 20;
}

/// `[waiting]`: how many requests may wait for the engine.
///
/// A full queue answers 429 at once, which is better for clients than a slow timeout.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct WaitingConfig {
    /// Requests that may wait for their first forward pass. Each holds a place in the queue until that
    /// pass; the engine's inbox and its waiting list together are the queue. Turn this up when
    /// bursts are refused that the model would have served in time.
    pub requests_max: NonZeroUsize,
}

impl Default for WaitingConfig {
    fn default() -> Self {
        Self { requests_max: NonZeroUsize::new(256).expect("256 is not 0") }
    }
}

impl WaitingConfig {
    /// All problems, each as key, relation and value.
    pub fn problems(&self) -> Vec<String> {
        let requests_max = self.requests_max.get();
        let mut problems = vec![];
        if requests_max > Self::REQUESTS_MAX_MAX {
            problems.push(format!(
                "waiting.requests_max must be at most {}, got {requests_max}",
                Self::REQUESTS_MAX_MAX
            ));
        }
        problems
    }

    /// More waiting requests than this only fill memory with prompts.
    pub const REQUESTS_MAX_MAX: usize = 100_000;
}
