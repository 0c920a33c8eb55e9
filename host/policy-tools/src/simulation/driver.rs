//! Runs the engines, one step at a time, and lets the time of a pass go by.

use std::sync::Arc;
use std::time::Duration;

use corosensei::{Coroutine, CoroutineResult, Yielder};
use interlock_engine::{
    CacheConfig, Clock, Engine, EngineConfig, EngineHandle, EngineMetrics, ManualEngine,
    StepOutcome, WaitingConfig, manual,
};
use interlock_sim::{SimModel, SimSettings};
use tokio::time::Instant;

use super::client::ClientActivity;
use super::device::SimDevice;
use super::engine_step::{EngineStep, Resume};
use crate::clock::ManualClock;
use crate::workload::WorkloadModel;

/// The engines, with a stack of their own: in the middle of a step, when a pass begins, everyone
/// else goes on until its time has passed. A thread would do the same, at two changes of thread a
/// pass, which take far longer than the pass.
type EngineStack = Coroutine<Resume, EngineStep, Vec<String>>;

/// What engines are made of.
pub(super) struct EngineParts {
    pub(super) seed: u64,
    pub(super) engine: EngineConfig,
    pub(super) cache: CacheConfig,
    pub(super) waiting: WaitingConfig,
    pub(super) metrics: EngineMetrics,
    pub(super) clock: ManualClock,
}

/// Resumes the engines, and takes simulated time for their passes.
pub(super) struct SimDriver {
    engines: EngineStack,
    clock: ManualClock,
    handles: Vec<EngineHandle>,
    began: Instant,
    /// The exact time at which the device is free: timers know whole milliseconds only.
    free_at: Duration,
    work: DeviceWork,
}

/// What the device did.
#[derive(Debug, Clone, Default)]
pub(super) struct DeviceWork {
    pub(super) passes: u64,
    pub(super) stalled: u64,
    pub(super) failed: u64,
    pub(super) decoded: u64,
    pub(super) longest: Duration,
    pub(super) busy: Duration,
}

/// What was left when all clients had gone.
#[derive(Debug, Clone, Default)]
pub(super) struct SimulationRest {
    pub(super) work: DeviceWork,
    /// What the engines' books say that should not be there.
    pub(super) left: Vec<String>,
}

struct EngineClock(ManualClock);

impl Clock for EngineClock {
    fn now(&self) -> Duration {
        interlock_state::StateClock::now(&self.0)
    }
}

impl SimDriver {
    pub(super) fn start(
        build: EngineParts,
        plans: &[(&WorkloadModel, SimSettings)],
    ) -> (Self, Vec<EngineHandle>) {
        let clock = build.clock.clone();
        let plans: Vec<(WorkloadModel, SimSettings)> =
            plans.iter().map(|(model, settings)| ((*model).clone(), settings.clone())).collect();
        let mut engines: EngineStack =
            Coroutine::new(move |driver, _open| run(&build, plans, driver));
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
            work: DeviceWork::default(),
        };
        (driver, handles)
    }

    /// Until all clients have gone and nothing is left to compute.
    pub(super) async fn drive(mut self, activity: Arc<ClientActivity>) -> SimulationRest {
        loop {
            let mut idle = true;
            for engine in 0..self.handles.len() {
                idle &= self.step(engine).await == StepOutcome::Idle;
            }
            if !idle {
                continue;
            }
            if self.busy() {
                // Someone is on the way in; the others go first.
                tokio::task::yield_now().await;
                continue;
            }
            if activity.gone() {
                break;
            }
            self.rest(&activity).await;
        }
        self.end()
    }

    /// Nothing to compute: sleeps until someone asks, and gives them time to get here.
    async fn rest(&self, activity: &ClientActivity) {
        /// More than any request needs to get from its client to the engine. One that needs
        /// longer (its body is still coming) is found with the next look.
        const STEPS: usize = 64;
        const LOOK_AGAIN: Duration = Duration::from_millis(10);

        let asked = activity.asked.notified();
        let came = match activity.inside() {
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

    async fn step(&mut self, engine: usize) -> StepOutcome {
        self.free_at = self.free_at.max(self.elapsed_exactly());
        self.clock.set(self.free_at);
        let mut resume = Resume::Step(engine);
        loop {
            match self.engines.resume(resume) {
                CoroutineResult::Yield(EngineStep::StepOver(outcome)) => return outcome,
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
                    unreachable!("a step is asked for, and a step is taken")
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

    fn end(mut self) -> SimulationRest {
        let left = match self.engines.resume(Resume::End) {
            CoroutineResult::Return(left) => left,
            CoroutineResult::Yield(_) => unreachable!("the engines end when they are told to"),
        };
        SimulationRest { work: self.work, left }
    }
}

/// The engines' own stack, from the first to the last.
fn run(
    build: &EngineParts,
    plans: Vec<(WorkloadModel, SimSettings)>,
    driver: &Yielder<Resume, EngineStep>,
) -> Vec<String> {
    let (mut engines, mut inboxes, mut handles) = (vec![], vec![], vec![]);
    for (model, settings) in plans {
        let device = SimDevice::new(&model, build.seed, driver);
        let settings = SimSettings { load: Duration::ZERO, ..settings };
        let ManualEngine { handle, engine, inbox } = manual(
            SimModel::with(settings, device),
            &build.engine,
            &build.cache,
            &build.waiting,
            build.metrics.clone(),
            Box::new(EngineClock(build.clock.clone())),
        );
        handles.push(handle);
        inboxes.push(inbox);
        engines.push((model.name, engine));
    }
    let mut resume = driver.suspend(EngineStep::Opened(handles));
    while let Resume::Step(which) = resume {
        let outcome = engines[which].1.step();
        resume = driver.suspend(EngineStep::StepOver(outcome));
    }
    drop(inboxes);
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
