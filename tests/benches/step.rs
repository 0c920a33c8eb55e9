//! What a step costs beside the model, with many requests running: `cargo bench -p interlock-tests`.
//! Printed and kept in the notes, never asserted.

#![expect(clippy::print_stdout, reason = "a bench tells its figures to whoever runs it")]

use std::cell::Cell;
use std::num::{NonZeroU32, NonZeroUsize};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use interlock_engine::{
    CacheConfig, EngineConfig, EngineMetrics, Forward, ManualEngine, ModelShape, Opening,
    PassFailed, Row, StepOutcome, SystemClock, WaitingConfig, manual,
};
use interlock_metrics::Registry;
use interlock_policy_chain::{LimitsConfig, PolicyChain, PolicyMetrics};
use interlock_request::{Drawn, Generation, Priority, Sampling, TokenId};
use interlock_tests::admit;

const ROWS: u32 = 2000;
const PROMPT: u32 = 512;
const STEPS: usize = 200;

/// A model that costs nothing, and says how long it was asked for.
struct Free(Rc<Cell<Duration>>);

impl Forward for Free {
    type Sequence = ();

    fn shape(&self) -> ModelShape {
        ModelShape { context: 1 << 16, vocabulary: 1 << 16, page_tokens: 16, pages: 1 << 18 }
    }

    fn open(&mut self, _: &Opening<'_>) -> Result<(), PassFailed> {
        Ok(())
    }

    fn pass(&mut self, rows: &mut [Row<'_, ()>]) -> Result<Vec<Option<Drawn>>, PassFailed> {
        let began = Instant::now();
        let drawn = rows.iter().map(|row| row.draw.then(|| Drawn::from(7))).collect();
        self.0.set(self.0.get() + began.elapsed());
        Ok(drawn)
    }
}

fn main() {
    let registry = Registry::new();
    let in_model = Rc::new(Cell::new(Duration::ZERO));
    let config = EngineConfig {
        running_max: NonZeroU32::new(ROWS).expect("not 0"),
        prefill_chunk: NonZeroU32::new(8192).expect("not 0"),
        ..EngineConfig::default()
    };
    let waiting = WaitingConfig { requests_max: NonZeroUsize::new(10_000).expect("not 0") };
    let ManualEngine { handle, mut engine, inbox: _inbox } = manual(
        Free(Rc::clone(&in_model)),
        &config,
        &CacheConfig::default(),
        &waiting,
        EngineMetrics::register(&registry),
        Box::new(SystemClock::start()),
    );
    let chain = PolicyChain::new(
        vec![],
        LimitsConfig::default().ceilings(),
        PolicyMetrics::register(&registry),
    );
    let chain = Arc::new(chain);
    let submit = |number: u32| {
        let generation = Generation {
            sampling: Sampling::greedy(),
            tokens_max: 2000,
            tokens_min: 0,
            stop_tokens: vec![],
            logprobs: None,
            priority: Priority::Standard,
        };
        // The first half is everyone's system prompt.
        let own = |n: TokenId| if n < PROMPT / 2 { n } else { n + number };
        let prompt = (0..PROMPT).map(own).collect();
        let serial = u64::from(number);
        let outcome = admit(&chain, serial, &number.to_string(), prompt, generation);
        let admitted = outcome.expect("no policies").admitted;
        handle.queue_permit().expect("a permit").submit(admitted)
    };
    let mut step = |what: &str, steps: usize| {
        let mut times: Vec<_> = (0..steps)
            .map(|_| {
                in_model.set(Duration::ZERO);
                let began = Instant::now();
                assert_eq!(engine.step(), StepOutcome::Ran);
                began.elapsed() - in_model.get()
            })
            .collect();
        times.sort_unstable();
        let (median, most) = (times[steps / 2], times[steps - 1]);
        println!("{what}: median {median:?}, at most {most:?} in {steps} steps");
    };
    let mut running: Vec<_> = (0..ROWS).map(submit).collect();
    step("2,000 arrive and start at once", 1);
    step("their prompts are computed", 200);
    step("2,000 decode", STEPS);
    running.extend((ROWS..2 * ROWS).map(submit));
    step("2,000 more arrive", 1);
    step("2,000 decode and 2,000 wait", STEPS);
    drop(running.split_off(ROWS as usize));
    step("those who wait leave", 1);
    drop(running.split_off(ROWS as usize / 2));
    step("half of those who run leave", 1);
}
