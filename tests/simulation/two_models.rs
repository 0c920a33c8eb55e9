//! Two models on one thread: streams of one model wait for the other's forward passes too.

use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use interlock_engine::{
    CacheConfig, Clock, Engine, EngineConfig, EngineGroup, EngineHandle, Event, InboxGuard,
    ManualEngine, PassFailed, RequestHandle, StepOutcome, WaitingConfig, manual_in_group,
};
use interlock_policy_chain::PolicyChain;
use interlock_request::{Generation, Priority, Sampling};
use interlock_sim::{Device, RowSeen, SimModel, SimSettings};

use crate::device::VirtualClock;
use crate::outside::ceilings;
use crate::world::Lab;

const MS: Duration = Duration::from_millis(1);

/// A device that takes its time by the clock of the test.
struct Timed(VirtualClock);

impl Device for Timed {
    fn pass(&mut self, _: &[RowSeen], time: Duration) -> Result<(), PassFailed> {
        self.0.advance(time);
        Ok(())
    }
}

/// A model of the thread, and who asked it what.
struct ServedModel {
    engine: Engine<SimModel>,
    handle: EngineHandle,
    chain: Arc<PolicyChain>,
    clock: VirtualClock,
    asked: Vec<(RequestHandle, Vec<Duration>, bool)>,
    _inbox: InboxGuard,
}

impl ServedModel {
    fn new(lab: &Lab, group: &EngineGroup, clock: &VirtualClock, settings: &str) -> Self {
        let settings: SimSettings = settings.parse().expect("settings");
        let ManualEngine { handle, engine, inbox } = manual_in_group(
            group,
            SimModel::on(settings, Box::new(Timed(clock.clone()))),
            &EngineConfig::default(),
            &CacheConfig::default(),
            &WaitingConfig::default(),
            lab.engine.clone(),
            Box::new(clock.clone()),
        );
        let chain = Arc::new(PolicyChain::new(vec![], ceilings(), lab.policies.clone()));
        Self { engine, handle, chain, clock: clock.clone(), asked: vec![], _inbox: inbox }
    }

    fn ask(&mut self, prompt: u32, tokens_max: u32) {
        let serial = self.asked.len() as u64;
        let generation = Generation {
            sampling: Sampling::greedy(),
            tokens_max,
            tokens_min: 0,
            stop_tokens: vec![],
            logprobs: None,
            priority: Priority::Standard,
        };
        let prompt = (0..prompt).map(|n| (n + serial as u32) % 200).collect();
        let outcome =
            interlock_tests::admit(&self.chain, serial, &serial.to_string(), prompt, generation)
                .expect("no policies");
        let running = self.handle.queue_permit().expect("a permit").submit(outcome.admitted);
        self.asked.push((running, vec![], false));
    }

    fn step(&mut self) -> StepOutcome {
        let step = self.engine.step();
        let mut context = Context::from_waker(Waker::noop());
        for (running, tokens, ended) in &mut self.asked {
            while let Poll::Ready(Some(event)) = pin!(running.events.next()).poll(&mut context) {
                match event {
                    Event::Token(_) => tokens.push(self.clock.now()),
                    Event::Ended(_) => *ended = true,
                    Event::Started | Event::Preempted => {}
                }
            }
        }
        step
    }

    /// Of the request with this number, when its tokens came.
    fn tokens(&self, who: usize) -> &[Duration] {
        &self.asked[who].1
    }

    fn has_ended(&self) -> bool {
        self.asked.iter().all(|(_, _, ended)| *ended)
    }
}

fn gaps(tokens: &[Duration]) -> Vec<Duration> {
    tokens.windows(2).map(|two| two[1] - two[0]).collect()
}

/// As the thread does it: a step of each, as long as there is something to do.
fn steps(served: &mut [&mut ServedModel], until: impl Fn(&[&mut ServedModel]) -> bool) {
    for _ in 0..100_000 {
        if until(served) {
            return;
        }
        for one in &mut *served {
            one.step();
        }
    }
    panic!("it did not come to that");
}

fn two(lab: &Lab) -> (ServedModel, ServedModel, VirtualClock) {
    let (group, clock) = (EngineGroup::default(), VirtualClock::default());
    let one = ServedModel::new(lab, &group, &clock, "decode=20ms,prefill=1ms,stop=0,context=8192");
    let other =
        ServedModel::new(lab, &group, &clock, "decode=20ms,prefill=1ms,stop=0,context=8192");
    (one, other, clock)
}

#[test]
fn a_lone_prompt_of_one_model_holds_up_the_streams_of_another_by_no_more_than_its_own_would() {
    let lab = Lab::new();
    let (mut one, mut other, _clock) = two(&lab);
    one.ask(40, 600);
    steps(&mut [&mut one, &mut other], |served| served[0].tokens(0).len() > 20);
    // Alone, each would take a second at a time.
    other.ask(3000, 1);
    other.ask(3000, 1);
    steps(&mut [&mut one, &mut other], |served| served.iter().all(|one| one.has_ended()));
    let config = EngineConfig::default();
    let gaps = gaps(one.tokens(0));
    let longest = gaps.iter().max().expect("gaps");
    assert!(*longest <= 20 * MS + config.decode_pause_max + MS, "{longest:?}");
    let took: Duration = gaps.iter().sum();
    let most = config.decode_slowdown_max.get() * 20 * MS * gaps.len() as u32;
    assert!(took <= most + config.decode_pause_max, "{took:?} for {} tokens", gaps.len());
    // Nor did the prompts wait until the stream had ended.
    let (first, last) = (other.tokens(1)[0], *one.tokens(0).last().expect("tokens"));
    assert!(first + 1000 * MS < last, "{first:?}, and the stream ended at {last:?}");
}

#[test]
fn when_the_other_models_streams_have_ended_a_prompt_takes_what_it_takes_alone() {
    let lab = Lab::new();
    let (mut one, mut other, clock) = two(&lab);
    one.ask(40, 30);
    other.ask(400, 1);
    steps(&mut [&mut one, &mut other], |served| served.iter().all(|one| one.has_ended()));
    other.ask(2000, 1);
    let began = clock.now();
    steps(&mut [&mut one, &mut other], |served| served[1].has_ended());
    assert_eq!(clock.now() - began, 2000 * MS, "no pass in between");
    // Its engine is gone, with a stream that flowed.
    one.ask(40, 30);
    steps(&mut [&mut one, &mut other], |served| served[0].tokens(1).len() > 3);
    drop(one);
    other.ask(2001, 1);
    let began = clock.now();
    steps(&mut [&mut other], |served| served[0].has_ended());
    assert_eq!(clock.now() - began, 2001 * MS, "nobody waits for it");
}

#[test]
fn prompts_of_two_models_are_on_one_account() {
    let lab = Lab::new();
    let (mut one, mut other, _clock) = two(&lab);
    one.ask(40, 300);
    other.ask(40, 300);
    steps(&mut [&mut one, &mut other], |served| served[1].tokens(0).len() > 20);
    for served in [&mut one, &mut other] {
        for _ in 0..40 {
            served.ask(500, 1);
        }
    }
    steps(&mut [&mut one, &mut other], |served| {
        served.iter().all(|served| served.tokens(0).len() == 300)
    });
    let config = EngineConfig::default();
    for served in [&one, &other] {
        let gaps = gaps(served.tokens(0));
        let took: Duration = gaps.iter().sum();
        // Each waits for a pass of the other too.
        let most = config.decode_slowdown_max.get() * 40 * MS * gaps.len() as u32;
        assert!(took <= (most + config.decode_pause_max).mul_f64(1.02), "{took:?} of {most:?}");
    }
}
