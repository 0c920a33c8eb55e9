//! Two models on one thread: whoever streams from one waits for the other's passes too.

use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use interlock_engine::{
    CacheConfig, Clock, Company, Door, Engine, EngineConfig, EngineHandle, Event, PassFailed,
    Running, Turn, WaitingConfig, by_hand_beside,
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
struct Served {
    engine: Engine<SimModel>,
    handle: EngineHandle,
    chain: Arc<PolicyChain>,
    clock: VirtualClock,
    asked: Vec<(Running, Vec<Duration>, bool)>,
    _door: Door,
}

impl Served {
    fn new(lab: &Lab, company: &Company, clock: &VirtualClock, settings: &str) -> Self {
        let settings: SimSettings = settings.parse().expect("settings");
        let (handle, door, engine) = by_hand_beside(
            company,
            SimModel::on(settings, Box::new(Timed(clock.clone()))),
            &EngineConfig::default(),
            &CacheConfig::default(),
            &WaitingConfig::default(),
            lab.engine.clone(),
            Box::new(clock.clone()),
        );
        let chain = Arc::new(PolicyChain::new(vec![], ceilings(), lab.policies.clone()));
        Self { engine, handle, chain, clock: clock.clone(), asked: vec![], _door: door }
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
        let consent =
            interlock_tests::admit(&self.chain, serial, &serial.to_string(), prompt, generation)
                .expect("no policies");
        let running = self.handle.seat().expect("a seat").submit(consent.admitted);
        self.asked.push((running, vec![], false));
    }

    fn turn(&mut self) -> Turn {
        let turn = self.engine.turn();
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
        turn
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

/// As the thread does it: a turn of each, as long as there is something to do.
fn turns(served: &mut [&mut Served], until: impl Fn(&[&mut Served]) -> bool) {
    for _ in 0..100_000 {
        if until(served) {
            return;
        }
        for one in &mut *served {
            one.turn();
        }
    }
    panic!("it did not come to that");
}

fn two(lab: &Lab) -> (Served, Served, VirtualClock) {
    let (company, clock) = (Company::default(), VirtualClock::default());
    let one = Served::new(lab, &company, &clock, "decode=20ms,prefill=1ms,stop=0,context=8192");
    let other = Served::new(lab, &company, &clock, "decode=20ms,prefill=1ms,stop=0,context=8192");
    (one, other, clock)
}

#[test]
fn a_lone_prompt_of_one_model_holds_up_the_streams_of_another_by_no_more_than_its_own_would() {
    let lab = Lab::new();
    let (mut one, mut other, _clock) = two(&lab);
    one.ask(40, 600);
    turns(&mut [&mut one, &mut other], |served| served[0].tokens(0).len() > 20);
    // Alone, each would take a second at a time.
    other.ask(3000, 1);
    other.ask(3000, 1);
    turns(&mut [&mut one, &mut other], |served| served.iter().all(|one| one.has_ended()));
    let config = EngineConfig::default();
    let gaps = gaps(one.tokens(0));
    let longest = gaps.iter().max().expect("gaps");
    assert!(*longest <= 20 * MS + config.decode_pause_max + MS, "{longest:?}");
    let took: Duration = gaps.iter().sum();
    let most = config.decode_stretch_max.get() * 20 * MS * gaps.len() as u32;
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
    turns(&mut [&mut one, &mut other], |served| served.iter().all(|one| one.has_ended()));
    other.ask(2000, 1);
    let began = clock.now();
    turns(&mut [&mut one, &mut other], |served| served[1].has_ended());
    assert_eq!(clock.now() - began, 2000 * MS, "no pass in between");
    // Its engine is gone, with a stream that flowed.
    one.ask(40, 30);
    turns(&mut [&mut one, &mut other], |served| served[0].tokens(1).len() > 3);
    drop(one);
    other.ask(2001, 1);
    let began = clock.now();
    turns(&mut [&mut other], |served| served[0].has_ended());
    assert_eq!(clock.now() - began, 2001 * MS, "nobody waits for it");
}

#[test]
fn prompts_of_two_models_are_on_one_account() {
    let lab = Lab::new();
    let (mut one, mut other, _clock) = two(&lab);
    one.ask(40, 300);
    other.ask(40, 300);
    turns(&mut [&mut one, &mut other], |served| served[1].tokens(0).len() > 20);
    for served in [&mut one, &mut other] {
        for _ in 0..40 {
            served.ask(500, 1);
        }
    }
    turns(&mut [&mut one, &mut other], |served| {
        served.iter().all(|served| served.tokens(0).len() == 300)
    });
    let config = EngineConfig::default();
    for served in [&one, &other] {
        let gaps = gaps(served.tokens(0));
        let took: Duration = gaps.iter().sum();
        // Each waits for a pass of the other too.
        let most = config.decode_stretch_max.get() * 40 * MS * gaps.len() as u32;
        assert!(took <= (most + config.decode_pause_max).mul_f64(1.02), "{took:?} of {most:?}");
    }
}
