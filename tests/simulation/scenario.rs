//! A world, made of one number: who comes when, wants what, leaves how, and what goes wrong.

use std::num::{NonZeroU32, NonZeroU64};
use std::time::Duration;

use fastrand::Rng;
use interlock_engine::{CacheConfig, EngineConfig, Mode, PrefixSharing};
use interlock_request::{Deadlines, Generation, Priority, Sampling, TokenId};
use interlock_sim::{SimModel, SimSettings};

/// What a world is mostly about. A seed is of the theme that its remainder says, so that one
/// number says all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Theme {
    /// A bit of everything.
    General,
    /// Too few pages for all, so that some must give way.
    SmallCache,
    /// Passes that fail.
    Failures,
    /// Passes that are too large, for a while or for good, and a device that may be lost.
    Memory,
    /// Everyone at once, and most leave.
    Storm,
    /// Passes that cost mostly for being one, as on a GPU.
    Costs,
}

impl Theme {
    pub(crate) const COUNT: u64 = 6;

    pub(crate) fn of(seed: u64) -> Self {
        [Self::General, Self::SmallCache, Self::Failures, Self::Storm, Self::Costs, Self::Memory]
            [(seed % Self::COUNT) as usize]
    }
}

/// All that happens in a world, but for what the engine makes of it.
#[derive(Debug, Clone)]
pub(crate) struct Scenario {
    /// What it was made of; a story was made by hand.
    pub seed: Option<u64>,
    pub engine: EngineConfig,
    pub cache: CacheConfig,
    pub queue_max: usize,
    pub sim: SimSettings,
    /// By when they arrive.
    pub requests: Vec<SimRequest>,
    pub faults: Faults,
    /// When the engine is told to stop.
    pub closes_at: Option<Duration>,
}

#[derive(Debug, Clone)]
pub(crate) struct SimRequest {
    pub at: Duration,
    pub tenant: &'static str,
    pub prompt: Vec<TokenId>,
    /// Its priority is the policy's to say.
    pub generation: Generation,
    pub verdict: PolicyVerdict,
    pub stops: Vec<StopAttempt>,
    /// Does the model refuse to take it?
    pub unwelcome: bool,
    /// Has the model no memory for what it keeps of it?
    pub oversized: bool,
}

/// What the policy says of a request.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum PolicyVerdict {
    Admit(Priority, Deadlines),
    Reject,
    /// It traps; the chain goes on without it.
    Trap,
}

/// Somebody wants a request to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct StopAttempt {
    pub when: StopTime,
    pub how: StopWay,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StopTime {
    /// This long after it was submitted.
    After(Duration),
    /// When its client has seen so many tokens.
    Tokens(usize),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StopWay {
    /// The client drops all it holds.
    Leave,
    /// An operator cancels it.
    Operator,
    /// Its text is complete.
    Finish,
}

/// What goes wrong in the device.
#[derive(Debug, Clone, Default)]
pub(crate) struct Faults {
    /// One pass in so many fails; 0 is none.
    pub one_in: u32,
    /// Requests whose every pass fails.
    pub poisoned: Vec<usize>,
    /// Of those failures, one in so many names its row, and so many percent of them wrongly.
    pub naming: u32,
    pub naming_wrongly: u32,
    /// One in so many loses the caches; 0 is none.
    pub losing: u32,
    /// A pass of more rows fails, and does not say that it was too large.
    pub together: Option<usize>,
    /// A pass of more rows has a result too few.
    pub miscounts: Option<usize>,
}

/// One in `n`.
pub(crate) fn one_in(rng: &mut Rng, n: u32) -> bool {
    n > 0 && rng.u32(0..n) == 0
}

fn of<T: Copy>(rng: &mut Rng, choices: &[T]) -> T {
    choices[rng.usize(0..choices.len())]
}

fn number(n: u32) -> NonZeroU32 {
    NonZeroU32::new(n).expect("not 0")
}

const fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

impl Scenario {
    pub(crate) fn of(seed: u64) -> Self {
        let theme = Theme::of(seed);
        let rng = &mut Rng::with_seed(seed);
        let mode = if one_in(rng, 8) { Mode::Simple } else { Mode::Batched };
        let page = of(rng, &[1, 2, 3, 4, 8, 16]);
        let tokens = match theme {
            Theme::SmallCache => rng.u32(20..100),
            _ if one_in(rng, 4) => rng.u32(40..200),
            _ => 4096,
        };
        let still = one_in(rng, 16);
        let mut time = |max| if still { Duration::ZERO } else { ms(rng.u64(0..max)) };
        let (pass, mixed) = match theme {
            Theme::Costs => (time(30), time(60)),
            _ => Default::default(),
        };
        let mut sim = SimSettings {
            pass,
            mixed,
            prefill: time(3) / if theme == Theme::Costs { 40 } else { 4 },
            decode: time(20),
            row: time(3) / 2,
            page: number(page),
            cache: tokens,
            context: 1024,
            stop: of(rng, &[0, 3, 12, 60]),
            ..SimSettings::default()
        };
        let count = match theme {
            Theme::Storm => rng.usize(12..40),
            Theme::Memory => rng.usize(6..24),
            _ => rng.usize(2..12),
        };
        let faults = match theme {
            Theme::Failures => Faults::of(rng, count),
            Theme::Memory if one_in(rng, 4) => Faults::of(rng, count),
            _ => Faults::default(),
        };
        if theme == Theme::Memory {
            memory(rng, &mut sim);
        }
        let spread = of(rng, &[0, 20, 100, 400]);
        let prefixes: Vec<Vec<TokenId>> =
            (0..3).map(|_| (0..rng.usize(0..40)).map(|_| rng.u32(0..8)).collect()).collect();
        let mut requests: Vec<_> =
            (0..count).map(|_| SimRequest::of(rng, theme, &prefixes, ms(spread), tokens)).collect();
        requests.sort_by_key(|request| request.at);
        for (number, request) in requests.iter_mut().enumerate() {
            request.generation.sampling.top_k = number as u32;
        }
        let prefix_sharing = tenants(seed, &mut requests);
        Self {
            seed: Some(seed),
            engine: EngineConfig {
                mode,
                running_max: number(match theme {
                    Theme::SmallCache | Theme::Failures => of(rng, &[2, 3, 5, 64, 64]),
                    Theme::Memory => of(rng, &[3, 5, 16, 64, 64]),
                    Theme::General | Theme::Storm | Theme::Costs => of(rng, &[1, 2, 3, 5, 64]),
                }),
                prefill_chunk: number(of(rng, &[1, 4, 16, 64, 256])),
                decode_slowdown_max: number(of(rng, &[1, 2, 3, 10])),
                decode_pause_max: ms([0, 20, 200][(seed / Theme::COUNT % 3) as usize]),
            },
            cache: CacheConfig {
                prefix: !one_in(rng, 4),
                prefix_sharing,
                ..CacheConfig::default()
            },
            queue_max: of(rng, &[1, 4, 100, 100, 100, 100]),
            sim,
            requests,
            faults,
            closes_at: one_in(rng, 8).then(|| ms(rng.u64(0..spread + 100))),
        }
    }
}

/// Whose each request is, and who shares what was computed. Drawn apart from all else, so that a
/// world is the same but for this.
fn tenants(seed: u64, requests: &mut [SimRequest]) -> PrefixSharing {
    let rng = &mut Rng::with_seed(seed ^ 0x7e4a_4175);
    let all = ["", "acme", "globex"];
    let count = of(rng, &[1, 1, 2, 3]);
    for request in requests {
        request.tenant = all[rng.usize(0..count)];
    }
    if one_in(rng, 4) { PrefixSharing::All } else { PrefixSharing::Tenant }
}

/// So much fits, from when and until when; and does the device come through it?
fn memory(rng: &mut Rng, sim: &mut SimSettings) {
    if !one_in(rng, 4) {
        sim.fail_above_rows = Some(of(rng, &[0, 1, 2, 3, 5, 8]));
    }
    if !one_in(rng, 3) {
        sim.fail_above_tokens = Some(of(rng, &[0, 1, 2, 7, 20, 60]));
    }
    sim.fail_from = of(rng, &[0, 0, 10, 50]);
    sim.fail_until = of(rng, &[None, None, Some(20), Some(100)]);
    sim.fail_loses_caches = rng.bool();
    sim.device_lost_at = one_in(rng, 12).then(|| of(rng, &[1, 10, 60])).and_then(NonZeroU64::new);
}

impl Faults {
    fn of(rng: &mut Rng, count: usize) -> Self {
        Self {
            one_in: of(rng, &[0, 5, 12, 30]),
            poisoned: (0..count).filter(|_| one_in(rng, 10)).collect(),
            naming: of(rng, &[0, 0, 2, 4]),
            naming_wrongly: of(rng, &[0, 0, 20]),
            losing: of(rng, &[0, 2, 4]),
            together: of(rng, &[None, None, None, Some(1), Some(3)]),
            miscounts: of(rng, &[None, None, None, None, Some(0), Some(2)]),
        }
    }
}

impl SimRequest {
    fn of(
        rng: &mut Rng,
        theme: Theme,
        prefixes: &[Vec<TokenId>],
        spread: Duration,
        cache: u32,
    ) -> Self {
        let mut prompt = prefixes[rng.usize(0..prefixes.len())].clone();
        let tail = if one_in(rng, 6) { rng.usize(30..120) } else { rng.usize(1..12) };
        // Few different tokens, so that prompts are often alike, and sometimes the same.
        prompt.extend((0..tail).map(|_| rng.u32(0..3)));
        // Most, but not all, would have got past a server that knows the context.
        if !one_in(rng, 16) {
            prompt.truncate((cache as usize / 2).max(1));
        }
        let tokens_max = if one_in(rng, 8) { 1 } else { rng.u32(1..24) };
        let ignores_eos = one_in(rng, 5);
        let generation = Generation {
            sampling: Sampling {
                temperature: if one_in(rng, 3) { 1.0 } else { 0.0 },
                seed: one_in(rng, 2).then(|| rng.u64(0..3)),
                ..Sampling::greedy()
            },
            tokens_max,
            tokens_min: if one_in(rng, 4) { rng.u32(0..=tokens_max) } else { 0 },
            stop_tokens: if ignores_eos { vec![] } else { vec![SimModel::EOS] },
            logprobs: one_in(rng, 8).then(|| rng.u32(0..3)),
            priority: Priority::Standard,
        };
        let leaving = if theme == Theme::Storm { 90 } else { 25 };
        let stops = if rng.u32(0..100) < leaving {
            (0..of(rng, &[1, 1, 1, 2, 3])).map(|_| StopAttempt::of(rng)).collect()
        } else {
            vec![]
        };
        // One that does not fit is refused, and its client is there to hear it.
        let fits = prompt.len() <= cache as usize;
        Self {
            at: spread.mul_f64(rng.f64()),
            tenant: "",
            prompt,
            generation,
            verdict: PolicyVerdict::of(rng),
            stops: if fits { stops } else { vec![] },
            unwelcome: one_in(rng, 40),
            oversized: theme == Theme::Memory && one_in(rng, 40),
        }
    }
}

impl PolicyVerdict {
    fn of(rng: &mut Rng) -> Self {
        if one_in(rng, 20) {
            return Self::Reject;
        }
        if one_in(rng, 20) {
            return Self::Trap;
        }
        let priority = of(
            rng,
            &[
                Priority::Standard,
                Priority::Standard,
                Priority::Standard,
                Priority::Critical,
                Priority::Interactive,
                Priority::Batch,
                Priority::Sheddable,
            ],
        );
        let mut deadline = |max| one_in(rng, 10).then(|| ms(rng.u64(1..max)));
        let deadlines = Deadlines {
            queue: deadline(300),
            first_token: deadline(300),
            inter_token: deadline(60),
            total: deadline(800),
        };
        Self::Admit(priority, deadlines)
    }
}

impl StopAttempt {
    fn of(rng: &mut Rng) -> Self {
        let when = if rng.bool() {
            StopTime::After(Duration::from_micros(rng.u64(0..400_000)))
        } else {
            StopTime::Tokens(rng.usize(0..12))
        };
        Self {
            when,
            how: of(rng, &[StopWay::Leave, StopWay::Leave, StopWay::Operator, StopWay::Finish]),
        }
    }
}
