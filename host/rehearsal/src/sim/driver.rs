//! Runs the engines on their thread, one turn at a time, and lets the time of a pass go by.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use interlock_engine::{
    CacheConfig, Clock, Engine, EngineConfig, EngineHandle, EngineMetrics, Turn, WaitingConfig,
    by_hand,
};
use interlock_sim::{SimModel, SimSettings};
use tokio::time::Instant;

use super::SimFailed;
use super::client::Awake;
use super::device::Patient;
use crate::clock::HandClock;
use crate::workload::Model;

/// To the engines' thread.
pub(super) enum Go {
    /// Let this engine take a turn.
    Turn(usize),
    /// The time of the pass has gone by.
    PassDone,
}

/// From the engines' thread.
pub(super) enum Told {
    /// A pass begins that takes so long.
    Passing { time: Duration, decoded: usize, stalled: bool, failed: bool },
    /// The turn is over.
    Turned(Turn),
}

/// What engines are made of.
pub(super) struct Build {
    pub(super) seed: u64,
    pub(super) engine: EngineConfig,
    pub(super) cache: CacheConfig,
    pub(super) waiting: WaitingConfig,
    pub(super) metrics: EngineMetrics,
    pub(super) clock: HandClock,
}

/// The engines' thread, and the way to it.
pub(super) struct Driver {
    // The sender is taken to end the thread.
    go: Option<SyncSender<Go>>,
    told: Receiver<Told>,
    clock: HandClock,
    handles: Vec<EngineHandle>,
    thread: Option<JoinHandle<Vec<String>>>,
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
    ) -> Result<(Self, Vec<EngineHandle>), SimFailed> {
        // They take turns: there is never more than one word on its way.
        let (go, going) = sync_channel(1);
        let (tell, told) = sync_channel(1);
        let (here, handles) = sync_channel(1);
        let clock = build.clock.clone();
        let plans: Vec<(Model, SimSettings)> =
            plans.iter().map(|(model, settings)| ((*model).clone(), settings.clone())).collect();
        let thread = std::thread::Builder::new().name("sim-engine".into()).spawn(move || {
            let going = Rc::new(going);
            let mut engines = vec![];
            let mut doors = vec![];
            let mut made = vec![];
            for (model, settings) in plans {
                let device = Patient::new(&model, build.seed, tell.clone(), Rc::clone(&going));
                let settings = SimSettings { load: Duration::ZERO, ..settings };
                let (handle, door, engine) = by_hand(
                    SimModel::on(settings, Box::new(device)),
                    &build.engine,
                    &build.cache,
                    &build.waiting,
                    build.metrics.clone(),
                    Box::new(EngineClock(build.clock.clone())),
                );
                made.push(handle);
                doors.push(door);
                engines.push((model.name, engine));
            }
            let _ = here.send(made);
            work(&mut engines, &going, &tell);
            drop(doors);
            left(&engines)
        })?;
        let handles = handles.recv().unwrap_or_default();
        let driver = Self {
            go: Some(go),
            told,
            clock,
            handles: handles.clone(),
            thread: Some(thread),
            began: Instant::now(),
            free_at: Duration::ZERO,
            work: Work::default(),
        };
        Ok((driver, handles))
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
        self.say(Go::Turn(engine));
        loop {
            match self.told.recv() {
                Ok(Told::Turned(turn)) => return turn,
                Ok(Told::Passing { time, decoded, stalled, failed }) => {
                    self.work.passes += 1;
                    self.work.stalled += u64::from(stalled);
                    self.work.failed += u64::from(failed);
                    self.work.decoded += if failed { 0 } else { decoded as u64 };
                    self.work.longest = self.work.longest.max(time);
                    self.work.busy += time;
                    self.free_at += time;
                    tokio::time::sleep_until(self.began + self.free_at).await;
                    self.clock.set(self.free_at);
                    self.say(Go::PassDone);
                }
                // The thread has panicked: its engines are gone, and so is the simulation.
                Err(_) => panic!("the simulated engine's thread is gone"),
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

    fn say(&self, go: Go) {
        if let Some(sender) = &self.go {
            let _ = sender.send(go);
        }
    }

    fn end(mut self) -> Rested {
        self.go = None;
        let left = self.thread.take().map(JoinHandle::join);
        let left = match left {
            Some(Ok(left)) => left,
            _ => vec!["the engine's thread panicked".to_owned()],
        };
        Rested { work: self.work.clone(), left }
    }
}

fn work(engines: &mut [(String, Engine<SimModel>)], going: &Receiver<Go>, tell: &SyncSender<Told>) {
    while let Ok(go) = going.recv() {
        if let Go::Turn(which) = go {
            let turn = engines[which].1.turn();
            if tell.send(Told::Turned(turn)).is_err() {
                return;
            }
        }
    }
}

fn left(engines: &[(String, Engine<SimModel>)]) -> Vec<String> {
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
