//! Batched equals alone, with real models in the real engine: whatever shares the batch, whatever is
//! cancelled, preempted or found in the prefix cache, a request gets the tokens it gets alone.
//!
//! On the CPU this holds to the bit, so it is asserted for every token, greedy and seeded. What a
//! request gets alone is computed in `simple` mode, with room for everyone and no prefix cache.

use std::collections::BTreeMap;
use std::num::{NonZeroU32, NonZeroUsize};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use fastrand::Rng;
use interlock_engine::{
    CacheConfig, EngineConfig, EngineHandle, EngineMetrics, Event, ManualEngine, Mode,
    RequestHandle, StepOutcome, SystemClock, WaitingConfig, manual,
};
use interlock_metrics::Registry;
use interlock_models::{LoadOptions, Model, OnUnknown, inspect, load};
use interlock_policy_api::{Body, Facts, Headers, Identity, Load, Prompt};
use interlock_policy_chain::{LimitsConfig, PolicyChain, PolicyMetrics, at_once};
use interlock_request::{
    CancelCause, Endpoint, Generation, ModelId, Outcome, Penalties, Priority, RequestId, Sampling,
    TokenId,
};

/// A request, and when what happens to it: counted in steps of the engine.
#[derive(Debug, Clone)]
struct Wish {
    prompt: Vec<TokenId>,
    generation: Generation,
    arrives: usize,
    cancelled: Option<usize>,
}

/// Half of the prompts begin with these many tokens, the same for all: more than a page.
const SHARED: usize = 40;

/// The rest of a prompt is shorter than this.
const TAIL_MAX: usize = 24;

/// What is served, and how tightly.
struct Scene {
    path: PathBuf,
    vocabulary: u32,
    /// The context, and so the cache: the least that a model gets is room for one sequence.
    context: u32,
    requests: usize,
    tokens_max: u32,
}

impl Scene {
    /// What the keys and values of one sequence take in f32.
    fn one_sequence(&self) -> u64 {
        let described = inspect(&self.path, OnUnknown::Refuse);
        let described = described.unwrap_or_else(|error| panic!("{error}"));
        2 * described.kv_bytes_per_token * u64::from(self.context.next_multiple_of(32))
    }

    fn load(&self, roomy: bool) -> Model {
        let options = LoadOptions {
            context_max: Some(self.context),
            cache_max: Some(if roomy { 1 << 30 } else { self.one_sequence() }),
            ..LoadOptions::default()
        };
        load(&self.path, &options, &mut |_| {}).unwrap_or_else(|error| panic!("{error}")).model
    }

    fn wishes(&self, rng: &mut Rng) -> Vec<Wish> {
        let word = |rng: &mut Rng| rng.u32(3..self.vocabulary);
        let shared: Vec<TokenId> = (0..SHARED).map(|_| word(rng)).collect();
        (0..self.requests)
            .map(|number| {
                let mut prompt = if rng.bool() { shared.clone() } else { Vec::new() };
                prompt.extend((0..rng.usize(1..TAIL_MAX)).map(|_| word(rng)));
                let tokens_max = rng.u32(1..self.tokens_max);
                Wish {
                    prompt,
                    generation: Generation {
                        sampling: sampling(rng, number as u64),
                        tokens_max,
                        tokens_min: if rng.bool() { rng.u32(0..=tokens_max) } else { 0 },
                        stop_tokens: if rng.bool() { vec![word(rng), 2] } else { vec![] },
                        logprobs: rng.bool().then_some(2),
                        priority: *rng
                            .choice(&[Priority::Interactive, Priority::Standard, Priority::Batch])
                            .expect("there are some"),
                    },
                    arrives: rng.usize(0..20),
                    cancelled: (rng.u8(0..4) == 0).then(|| rng.usize(5..40)),
                }
            })
            .collect()
    }
}

fn sampling(rng: &mut Rng, seed: u64) -> Sampling {
    if rng.bool() {
        return Sampling::greedy();
    }
    Sampling {
        temperature: rng.f32() * 1.5,
        top_p: if rng.bool() { 0.5 + rng.f32() / 2.0 } else { 1.0 },
        top_k: if rng.bool() { rng.u32(1..50) } else { 0 },
        min_p: if rng.bool() { rng.f32() / 10.0 } else { 0.0 },
        seed: Some(seed),
        penalties: Penalties {
            repetition: if rng.bool() { 1.2 } else { 1.0 },
            presence: if rng.bool() { 0.5 } else { 0.0 },
            frequency: if rng.bool() { 0.5 } else { 0.0 },
        },
        logit_bias: BTreeMap::from([(rng.u32(3..40), rng.f32() * 4.0)]),
    }
}

/// What a request was told: each token with its log probabilities' bits, and how it ended.
#[derive(Debug, PartialEq, Clone)]
struct Told {
    tokens: Vec<(TokenId, Option<u32>)>,
    outcome: Outcome,
}

/// How much of what the test is about has happened.
#[derive(Debug, Default)]
struct Seen {
    preempted: f64,
    cached_tokens: u32,
    cancelled: usize,
    rows_max: usize,
}

/// An engine that is run by hand, until all wishes have come to their end.
fn serve(model: Model, mode: Mode, wishes: &[Wish], rng: &mut Rng) -> (Vec<Told>, Seen) {
    let registry = Registry::new();
    let config = EngineConfig {
        mode,
        running_max: NonZeroU32::new(6).expect("not 0"),
        // Prompts are cut in another way in each run.
        prefill_chunk: NonZeroU32::new(rng.u32(1..40)).expect("not 0"),
        ..EngineConfig::default()
    };
    let cache = CacheConfig { prefix: mode == Mode::Batched, ..CacheConfig::default() };
    let waiting = WaitingConfig { requests_max: NonZeroUsize::new(1000).expect("not 0") };
    let metrics = EngineMetrics::register(&registry);
    let clock = Box::new(SystemClock::start());
    let ManualEngine { handle, mut engine, inbox: _inbox } =
        manual(model, &config, &cache, &waiting, metrics, clock);
    let limits = LimitsConfig::default().ceilings();
    let chain = Arc::new(PolicyChain::new(vec![], limits, PolicyMetrics::register(&registry)));
    let mut running: Vec<Option<RequestHandle>> = wishes.iter().map(|_| None).collect();
    let mut told: Vec<Option<Told>> = wishes.iter().map(|_| None).collect();
    let mut tokens: Vec<Vec<_>> = wishes.iter().map(|_| Vec::new()).collect();
    let mut seen = Seen::default();
    for step in 0.. {
        assert!(step < 100_000, "it does not come to an end: {:?}", engine.audit());
        for (number, wish) in wishes.iter().enumerate() {
            if wish.arrives == step {
                running[number] = Some(submit(&handle, &chain, number, wish));
            }
            if let (true, Some(running)) = (wish.cancelled == Some(step), &running[number])
                && mode == Mode::Batched
            {
                running.control.cancel(CancelCause::Operator);
            }
        }
        let idle = engine.step() == StepOutcome::Idle;
        seen.rows_max = seen.rows_max.max(engine.audit().running);
        for (number, running) in running.iter_mut().enumerate() {
            let Some(running) = running else { continue };
            while let Poll::Ready(Some(event)) = poll(running) {
                match event {
                    Event::Started | Event::Preempted => {}
                    Event::Token(drawn) => {
                        let bits = drawn.logprobs.map(|logprobs| logprobs.drawn.to_bits());
                        tokens[number].push((drawn.token, bits));
                    }
                    Event::Ended(ended) => {
                        seen.cached_tokens += ended.usage.cached_tokens;
                        seen.cancelled +=
                            usize::from(matches!(ended.outcome, Outcome::Cancelled(_)));
                        let tokens = std::mem::take(&mut tokens[number]);
                        told[number] = Some(Told { tokens, outcome: ended.outcome });
                    }
                }
            }
        }
        if idle && told.iter().all(Option::is_some) {
            break;
        }
    }
    let text = registry.expose().expect("exposes");
    seen.preempted = text
        .lines()
        .find_map(|line| line.strip_prefix("interlock_preemptions_total "))
        .map_or(0.0, |value| value.parse().expect("a number"));
    assert_eq!(engine.audit().pages.leased, 0, "all pages are given back");
    (told.into_iter().flatten().collect(), seen)
}

fn submit(
    engine: &EngineHandle,
    chain: &Arc<PolicyChain>,
    number: usize,
    wish: &Wish,
) -> RequestHandle {
    let permit = engine.queue_permit().expect("a permit");
    let tokens_max = wish.generation.tokens_max;
    let facts = Facts {
        serial: number as u64,
        request_id: RequestId::parse(&format!("wish-{number}")).expect("an id"),
        arrived_at_micros: 0,
        endpoint: Endpoint::Completions,
        model: ModelId::new("model"),
        streaming: true,
        prompt_tokens: wish.prompt.len() as u32,
        tokens_max,
        tokens_max_asked: true,
        background: false,
        body_bytes: 0,
        prefix_key: 0,
        identity: Identity::default(),
        headers: Headers::default(),
    };
    let prompt = Prompt::new(wish.prompt.clone()).expect("a prompt");
    let review = chain.review(facts.serial, facts.request_id.clone());
    let (load, body) = (Load::default(), Arc::new(Body::new(vec![])));
    let outcome = at_once(review.admit(facts, &load, prompt, wish.generation.clone(), &body));
    permit.submit(outcome.expect("there are no policies").admitted)
}

fn poll(running: &mut RequestHandle) -> Poll<Option<Event>> {
    let mut next = std::pin::pin!(running.events.next());
    next.as_mut().poll(&mut Context::from_waker(Waker::noop()))
}

/// Everyone at once, and each alone: the same, or a beginning of it where it was cancelled.
fn compare(scene: &Scene, seeds: std::ops::Range<u64>) {
    let mut all = Seen::default();
    for seed in seeds {
        let mut rng = Rng::with_seed(seed);
        let wishes = scene.wishes(&mut rng);
        let (together, seen) = serve(scene.load(false), Mode::Batched, &wishes, &mut rng);
        let (alone, _) = serve(scene.load(true), Mode::Simple, &wishes, &mut rng);
        for (number, (together, alone)) in together.iter().zip(&alone).enumerate() {
            let what = format!("seed {seed}, request {number}, {:?}", wishes[number]);
            if matches!(together.outcome, Outcome::Cancelled(_)) {
                assert!(alone.tokens.starts_with(&together.tokens), "{what}");
            } else {
                assert_eq!(together, alone, "{what}");
            }
        }
        all.preempted += seen.preempted;
        all.cached_tokens += seen.cached_tokens;
        all.cancelled += seen.cancelled;
        all.rows_max = all.rows_max.max(seen.rows_max);
    }
    let happened = all.preempted > 0.0 && all.cached_tokens > 0 && all.cancelled > 0;
    assert!(happened && all.rows_max > 2, "the test has not seen what it is about: {all:?}");
}

/// Asked when it runs, so that a moved checkout finds its own files.
fn root() -> PathBuf {
    let here = std::env::var_os("CARGO_MANIFEST_DIR");
    here.map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from).join("../..")
}

fn tiny(case: &str) -> Scene {
    let folder = root().join("tests/golden/data").join(case);
    let path = if case.starts_with("gguf") { folder.join("model.gguf") } else { folder };
    Scene { path, vocabulary: 96, context: 256, requests: 12, tokens_max: 90 }
}

#[test]
fn a_tiny_llama_gives_each_request_in_company_what_it_gets_alone() {
    compare(&tiny("llama-bias-linear-f16"), 0..10);
}

#[test]
fn a_tiny_qwen3_gives_each_request_in_company_what_it_gets_alone() {
    compare(&tiny("qwen3-f32"), 100..110);
}

#[test]
fn a_tiny_quantized_gguf_gives_each_request_in_company_what_it_gets_alone() {
    compare(&tiny("gguf-qwen2-q8_0"), 200..210);
}

#[test]
fn the_default_model_gives_each_request_in_company_what_it_gets_alone() {
    let path = std::env::var_os("INTERLOCK_TEST_MODEL")
        .map_or_else(|| root().join("target/models/smollm2-135m-instruct.gguf"), PathBuf::from);
    assert!(Path::new(&path).is_file(), "{} is missing: run `make model`", path.display());
    let scene = Scene { path, vocabulary: 49_152, context: 224, requests: 8, tokens_max: 60 };
    compare(&scene, 300..301);
}
