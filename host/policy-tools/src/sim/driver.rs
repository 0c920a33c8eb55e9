//! Runs the engines, one turn at a time, and lets the time of a pass go by.

use std::sync::Arc;
use std::time::Duration;

use corosensei::{Coroutine, CoroutineResult, Yielder};
use interlock_engine::{
    CacheConfig, Clock, Engine, EngineConfig, EngineHandle, EngineMetrics, Turn, WaitingConfig,
    by_hand,
};
use interlock_sim::{SimModel, SimSettings};
use tokio::time::Instant;

use super::client::Awake;
use super::device::SimDevice;
use crate::clock::HandClock;
use crate::workload::Model;

/// What the engines are resumed with.
pub(super) enum Resume {
    /// Make yourselves.
    Open,
    /// Let this engine take a turn.
    Turn(usize),
    /// The time of the pass has gone by.
    PassDone,
    /// No more turns.
    End,
}

/// Where the engines stopped.
pub(super) enum EngineStep {
    /// They are there.
    Opened(Vec<EngineHandle>),
    /// A pass begins that takes so long.
    Pass { time: Duration, decoded: usize, stalled: bool, failed: bool },
    /// The turn is over.
    TurnOver(Turn),
}

/// The engines, with a stack of their own: in the middle of a turn, when a pass begins, everyone
/// else goes on until its time has passed. A thread would do the same, at two changes of thread a
/// pass, which take far longer than the pass.
type Engines = Coroutine<Resume, EngineStep, Vec<String>>;

/// What engines are made of.
pub(super) struct Build {
    pub(super) seed: u64,
    pub(super) engine: EngineConfig,
    pub(super) cache: CacheConfig,
    pub(super) waiting: WaitingConfig,
    pub(super) metrics: EngineMetrics,
    pub(super) clock: HandClock,
}

/// Resumes the engines, and takes simulated time for their passes.
pub(super) struct Driver {
    engines: Engines,
    clock: HandClock,
    handles: Vec<EngineHandle>,
    began: Instant,
    /// The exact time at which the device is free: timers know whole milliseconds only.
    free_at: Duration,
    work: Work,
}

/// What the device did.
#[derive(Debug, Clone, Default)]
pub(super) struct Work {
    pub(super) passes: u64,
    pub(super) stalled: u64,
    pub(super) failed: u64,
    pub(super) decoded: u64,
    pub(super) longest: Duration,
    pub(super) busy: Duration,
}

/// What was left when all clients had gone.
#[derive(Debug, Clone, Default)]
pub(super) struct Rested {
    pub(super) work: Work,
    /// What the engines' books say that should not be there.
    pub(super) left: Vec<String>,
}

struct EngineClock(HandClock);

impl Clock for EngineClock {
    fn now(&self) -> Duration {
        interlock_state::StateClock::now(&self.0)
    }
}

impl Driver {
    pub(super) fn start(
        build: Build,
        plans: &[(&Model, SimSettings)],
    ) -> (Self, Vec<EngineHandle>) {
        let clock = build.clock.clone();
        let plans: Vec<(Model, SimSettings)> =
            plans.iter().map(|(model, settings)| ((*model).clone(), settings.clone())).collect();
        let mut engines: Engines = Coroutine::new(move |driver, _open| run(&build, plans, driver));
        let handles = match engines.resume(Resume::Open) {
            CoroutineResult::Yield(EngineStep::Opened(handles)) => handles,
            _ => unreachable!("the engines open first"),
        };
        let driver = Self {
            engines,
            clock,
            handles: handles.clone(),
            began: Instant::now(),
            free_at: Duration::ZERO,
            work: Work::default(),
        };
        (driver, handles)
    }

    /// Until all clients have gone and nothing is left to compute.
    pub(super) async fn drive(mut self, awake: Arc<Awake>) -> Rested {
        loop {
            let mut idle = true;
            for engine in 0..self.handles.len() {
                idle &= self.turn(engine).await == Turn::Idle;
            }
            if !idle {
                continue;
            }
            if self.busy() {
                // Someone is on the way in; the others go first.
                tokio::task::yield_now().await;
                continue;
            }
            if awake.gone() {
                break;
            }
            self.rest(&awake).await;
        }
        self.end()
    }

    /// Nothing to compute: sleeps until someone asks, and gives them time to get here.
    async fn rest(&self, awake: &Awake) {
        /// More than any request needs to get from its client to the engine. One that needs
        /// longer (its body is still coming) is found with the next look.
        const STEPS: usize = 64;
        const LOOK_AGAIN: Duration = Duration::from_millis(10);

        let asked = awake.asked.notified();
        let came = match awake.inside() {
            0 => {
                asked.await;
                true
            }
            _ => tokio::time::timeout(LOOK_AGAIN, asked).await.is_ok(),
        };
        if came {
            for _ in 0..STEPS {
                if self.busy() {
                    return;
                }
                tokio::task::yield_now().await;
            }
        }
    }

    fn busy(&self) -> bool {
        self.handles.iter().any(|handle| handle.view().waiting > 0)
    }

    async fn turn(&mut self, engine: usize) -> Turn {
        self.free_at = self.free_at.max(self.elapsed_exactly());
        self.clock.set(self.free_at);
        let mut resume = Resume::Turn(engine);
        loop {
            match self.engines.resume(resume) {
                CoroutineResult::Yield(EngineStep::TurnOver(turn)) => return turn,
                CoroutineResult::Yield(EngineStep::Pass { time, decoded, stalled, failed }) => {
                    self.work.passes += 1;
                    self.work.stalled += u64::from(stalled);
                    self.work.failed += u64::from(failed);
                    self.work.decoded += if failed { 0 } else { decoded as u64 };
                    self.work.longest = self.work.longest.max(time);
                    self.work.busy += time;
                    self.free_at += time;
                    tokio::time::sleep_until(self.began + self.free_at).await;
                    self.clock.set(self.free_at);
                    resume = Resume::PassDone;
                }
                CoroutineResult::Yield(EngineStep::Opened(_)) | CoroutineResult::Return(_) => {
                    unreachable!("a turn is asked for, and a turn is taken")
                }
            }
        }
    }

    /// The time by tokio's clock, unless that is only what a timer rounded the end of the last
    /// pass up to.
    fn elapsed_exactly(&self) -> Duration {
        let now = self.began.elapsed();
        let rounded = now.saturating_sub(self.free_at) < Duration::from_millis(1);
        if rounded { self.free_at } else { now }
    }

    fn end(mut self) -> Rested {
        let left = match self.engines.resume(Resume::End) {
            CoroutineResult::Return(left) => left,
            CoroutineResult::Yield(_) => unreachable!("the engines end when they are told to"),
        };
        Rested { work: self.work, left }
    }
}

/// The engines' own stack, from the first to the last.
fn run(
    build: &Build,
    plans: Vec<(Model, SimSettings)>,
    driver: &Yielder<Resume, EngineStep>,
) -> Vec<String> {
    let (mut engines, mut doors, mut handles) = (vec![], vec![], vec![]);
    for (model, settings) in plans {
        let device = SimDevice::new(&model, build.seed, driver);
        let settings = SimSettings { load: Duration::ZERO, ..settings };
        let (handle, door, engine) = by_hand(
            SimModel::with(settings, device),
            &build.engine,
            &build.cache,
            &build.waiting,
            build.metrics.clone(),
            Box::new(EngineClock(build.clock.clone())),
        );
        handles.push(handle);
        doors.push(door);
        engines.push((model.name, engine));
    }
    let mut resume = driver.suspend(EngineStep::Opened(handles));
    while let Resume::Turn(which) = resume {
        let turn = engines[which].1.turn();
        resume = driver.suspend(EngineStep::TurnOver(turn));
    }
    drop(doors);
    left(&engines)
}

fn left(engines: &[(String, Engine<SimModel<SimDevice<'_>>>)]) -> Vec<String> {
    let mut left = vec![];
    for (name, engine) in engines {
        let audit = engine.audit();
        if audit.waiting + audit.running > 0 {
            let (waiting, running) = (audit.waiting, audit.running);
            left.push(format!("{waiting} requests still wait and {running} run on {name:?}"));
        }
    }
    left
}
