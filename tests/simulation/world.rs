//! Runs a world to its end, step by step, and says which seed to replay if something is wrong.

use std::cell::{OnceCell, RefCell};
use std::fmt::Write;
use std::num::NonZeroUsize;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use fastrand::Rng;
use interlock_engine::{
    CacheConfig, Clock, Ended, Engine, EngineConfig, EngineHandle, EngineMetrics, EngineState,
    Event, ManualEngine, Mode, ModelShape, StepOutcome, WaitingConfig, manual,
};
use interlock_metrics::Registry;
use interlock_policy_chain::{ChainShared, PolicyChain, PolicyMetrics};
use interlock_request::{Drawn, Outcome};
use interlock_sim::{SimModel, SimSettings};
use interlock_tests::metric;

use crate::checker::{Checker, EventCounts};
use crate::device::{CallLog, ModelCall, VirtualClock, Watched};
use crate::outside::{ClientFate, Outside, admit, ceilings};
use crate::scenario::{Scenario, SimRequest};

/// What worlds of one test share: families are declared once. Each world finds the gauges at zero
/// and leaves them so.
pub(crate) struct Lab {
    registry: Registry,
    pub engine: EngineMetrics,
    pub policies: PolicyMetrics,
}

/// A step, for whoever must find out what went wrong.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct StepRecord {
    pub began_at: Duration,
    pub ended_at: Duration,
    pub step: StepOutcome,
    pub seen: Vec<ModelCall>,
    pub heard: Vec<(usize, Event)>,
}

/// A world that has come to its end.
pub(crate) struct Ran {
    pub trace: Vec<StepRecord>,
    pub counts: EventCounts,
}

impl Ran {
    /// What a client heard, and when.
    pub(crate) fn heard(&self, who: usize) -> impl Iterator<Item = (Duration, &Event)> {
        self.trace.iter().flat_map(move |step| {
            let its = step.heard.iter().filter(move |(of, _)| *of == who);
            its.map(|(_, event)| (step.ended_at, event))
        })
    }

    /// How it ended.
    pub(crate) fn ended(&self, who: usize) -> &Ended {
        let ended = self.heard(who).find_map(|(_, event)| match event {
            Event::Ended(ended) => Some(ended),
            Event::Started | Event::Token(_) | Event::Preempted => None,
        });
        ended.expect("who stays hears of the end")
    }

    /// When its tokens came.
    pub(crate) fn tokens_at(&self, who: usize) -> Vec<Duration> {
        let tokens = self.heard(who).filter(|(_, event)| matches!(event, Event::Token(_)));
        tokens.map(|(at, _)| at).collect()
    }

    /// All that the model saw, in order.
    pub(crate) fn seen(&self) -> impl Iterator<Item = &ModelCall> {
        self.trace.iter().flat_map(|step| &step.seen)
    }
}

/// More steps than any world here takes: beyond it, it would go on for ever.
const STEPS_MAX: usize = 20_000;

/// Steps that a failure shows.
const STEPS_SHOWN: usize = 12;

impl Lab {
    pub(crate) fn new() -> Self {
        let registry = Registry::new();
        let engine = EngineMetrics::register(&registry);
        let policies = PolicyMetrics::register(&registry);
        Self { registry, engine, policies }
    }

    /// Runs the world of this seed.
    ///
    /// # Panics
    ///
    /// When a rule is broken, with the seed, the world and its last steps.
    pub(crate) fn world(&self, scenario: &Scenario) -> Ran {
        let trace = RefCell::new(vec![]);
        // What is looked at after a panic is the trace alone.
        let ran = catch_unwind(AssertUnwindSafe(|| self.run(scenario, &trace)));
        match ran {
            Ok(counts) => Ran { trace: trace.into_inner(), counts },
            Err(panic) => {
                let why = panic
                    .downcast_ref::<String>()
                    .map(String::as_str)
                    .or_else(|| panic.downcast_ref::<&str>().copied())
                    .unwrap_or("a panic without a message");
                panic!("{}", report(scenario, &trace.borrow(), why));
            }
        }
    }

    fn run(&self, scenario: &Scenario, trace: &RefCell<Vec<StepRecord>>) -> EventCounts {
        let clock = VirtualClock::default();
        let requests: Rc<[SimRequest]> = scenario.requests.clone().into();
        let unset = Rc::new(OnceCell::new());
        let rng = Rng::with_seed(!scenario.seed.unwrap_or(0));
        let (model, log) = Watched::new(
            scenario.sim.clone(),
            Rc::clone(&requests),
            scenario.faults.clone(),
            rng,
            &clock,
            &unset,
        );
        let queue_max = NonZeroUsize::new(scenario.queue_max).expect("not 0");
        let ManualEngine { handle, mut engine, inbox } = manual(
            model,
            &scenario.engine,
            &scenario.cache,
            &WaitingConfig { requests_max: queue_max },
            self.engine.clone(),
            Box::new(clock.clone()),
        );
        let shape = shape(&handle);
        let mut checker =
            Checker::new(Rc::clone(&requests), shape, &scenario.engine, &scenario.cache);
        let outside = Rc::new(RefCell::new(Outside::new(
            handle.clone(),
            inbox,
            scenario.closes_at,
            clock.clone(),
            Rc::clone(&requests),
            self.policies.clone(),
        )));
        assert!(unset.set(Rc::clone(&outside)).is_ok(), "set once");
        for _ in 0..STEPS_MAX {
            outside.borrow_mut().deliver();
            checker.before(&outside.borrow());
            let began_at = clock.now();
            let step = engine.step();
            let mut world = outside.borrow_mut();
            world.listen();
            let seen = std::mem::take(&mut *log.borrow_mut());
            let heard = std::mem::take(&mut world.heard);
            let ended_at = clock.now();
            trace.borrow_mut().push(StepRecord { began_at, ended_at, step, seen, heard });
            let last = trace.borrow();
            let last = last.last().expect("there is this step");
            checker.after(last, engine.audit(), handle.view(), &world);
            if step == StepOutcome::Ran {
                continue;
            }
            if world.is_quiet() && step == StepOutcome::Closed {
                break;
            }
            match world.next_due() {
                Some(due) if due > clock.now() => clock.advance(due - clock.now()),
                Some(_) => {}
                None => world.close(),
            }
        }
        self.at_the_end(&mut checker, &outside.borrow(), &engine, &log);
        let ended_at = clock.now();
        assert!(ended_at < Duration::from_secs(3600), "it took {ended_at:?}");
        drop(engine);
        self.alone(&requests, shape, scenario, &outside.borrow());
        checker.counts
    }

    fn at_the_end(
        &self,
        checker: &mut Checker,
        outside: &Outside,
        engine: &Engine<Watched>,
        log: &CallLog,
    ) {
        assert!(outside.is_quiet(), "it goes on for more than {STEPS_MAX} steps");
        assert_eq!(*log.borrow(), [], "the model was asked between steps");
        checker.at_the_end(outside);
        let audit = engine.audit();
        assert_eq!((audit.waiting, audit.running, audit.pages.leased), (0, 0, 0));
        outside.accounts_are_settled();
        self.nothing_is_left();
    }

    /// All gauges of the engine are back where they began.
    pub(crate) fn nothing_is_left(&self) {
        let exposed = self.registry.expose().expect("exposes");
        for gauge in ["requests_waiting", "requests_running", "engine_passes_in_flight"] {
            assert_eq!(metric(&exposed, gauge), 0.0, "{gauge}");
        }
        assert!(metric(&exposed, "engine_passes_in_flight_max") <= 1.0);
    }

    /// Batched equals alone: what each client got is what it would have got alone.
    fn alone(
        &self,
        requests: &[SimRequest],
        shape: ModelShape,
        scenario: &Scenario,
        outside: &Outside,
    ) {
        for (who, client) in outside.clients.iter().enumerate() {
            let natural = match &client.ended {
                Some(Ended { outcome: Outcome::Completed(_), .. }) => client.asked.is_none(),
                _ => false,
            };
            if client.tokens.is_empty() && !natural {
                continue;
            }
            assert!(matches!(client.fate, ClientFate::Submitted | ClientFate::Left));
            let (tokens, ended) = self.one_alone(&requests[who], shape.context, scenario.sim.stop);
            if natural {
                let together = client.ended.as_ref().expect("it has ended");
                assert_eq!(client.tokens, tokens, "{who}, together and alone");
                assert_eq!(together.outcome, ended.outcome, "{who}, together and alone");
                let generated = |ended: &Ended| ended.usage.generated_tokens;
                assert_eq!(generated(together), generated(&ended), "{who}, together and alone");
            } else {
                let begins_so = tokens.starts_with(&client.tokens);
                assert!(begins_so, "{who} together: {:?}; alone: {tokens:?}", client.tokens);
            }
        }
    }

    /// The tokens of a request that has an engine in `simple` mode to itself, with all the cache
    /// that it could want.
    pub(crate) fn one_alone(
        &self,
        request: &SimRequest,
        context: u32,
        stop: u32,
    ) -> (Vec<Drawn>, Ended) {
        let settings = SimSettings { context, cache: context + 16, stop, ..SimSettings::default() };
        let ManualEngine { handle, mut engine, inbox: _inbox } = manual(
            SimModel::load(settings),
            &EngineConfig { mode: Mode::Simple, ..EngineConfig::default() },
            &CacheConfig { prefix: false, ..CacheConfig::default() },
            &WaitingConfig::default(),
            self.engine.clone(),
            Box::new(VirtualClock::default()),
        );
        let chain =
            PolicyChain::new(vec![], ceilings(), ChainShared::in_line(self.policies.clone()));
        let (admitted, _account) = admit(&Arc::new(chain), 0, request).expect("no policies");
        let mut running = handle.queue_permit().expect("a permit").submit(admitted);
        while engine.step() == StepOutcome::Ran {}
        let mut tokens = vec![];
        let mut context = Context::from_waker(Waker::noop());
        loop {
            match pin!(running.events.next()).poll(&mut context) {
                Poll::Ready(Some(Event::Started | Event::Preempted)) => {}
                Poll::Ready(Some(Event::Token(drawn))) => tokens.push(drawn),
                Poll::Ready(Some(Event::Ended(ended))) => return (tokens, ended),
                end => panic!("alone, it did not end: {end:?}"),
            }
        }
    }
}

fn shape(handle: &EngineHandle) -> ModelShape {
    match handle.state() {
        EngineState::Ready(shape) => shape,
        other => panic!("{other:?}"),
    }
}

fn report(scenario: &Scenario, trace: &[StepRecord], why: &str) -> String {
    let name = scenario.seed.map_or("a story".to_owned(), |seed| format!("seed {seed}"));
    let mut text = format!("{name}, step {}: {why}\n\n", trace.len());
    let mut world = scenario.clone();
    let requests = std::mem::take(&mut world.requests);
    let written = "a string takes what is written";
    writeln!(text, "{world:?}").expect(written);
    for (who, request) in requests.iter().enumerate() {
        let SimRequest { at, tenant, prompt, generation, verdict, stops, unwelcome, oversized } =
            request;
        writeln!(
            text,
            "{who}: at {at:?}, of {tenant:?}, {} tokens, wants {}, {verdict:?} {stops:?} unwelcome {unwelcome} \
             oversized {oversized}",
            prompt.len(),
            generation.tokens_max
        )
        .expect(written);
    }
    let skipped = trace.len().saturating_sub(STEPS_SHOWN);
    for (number, step) in trace.iter().enumerate().skip(skipped) {
        let StepRecord { began_at, ended_at, step, seen, heard } = step;
        writeln!(text, "step {}, {began_at:?} to {ended_at:?}: {step:?}", number + 1)
            .expect(written);
        for seen in seen {
            writeln!(text, "    {seen:?}").expect(written);
        }
        for (who, event) in heard {
            writeln!(text, "    {who} hears {event:?}").expect(written);
        }
    }
    if let Some(seed) = scenario.seed {
        let again = "cargo test -p interlock-tests --test simulation";
        writeln!(text, "\nagain: SIMULATION_SEED={seed} {again}").expect(written);
    }
    text
}
