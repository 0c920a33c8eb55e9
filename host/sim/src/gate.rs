//! A simulated device that holds forward passes until a test lets them go, and records them.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use interlock_engine::PassFailed;

use crate::device::{Device, RowSeen, take};

/// A device in which every pass stops at a gate until a test lets it through.
///
/// The device keeps the record, not the engine. So the record would show two passes in the device at once
/// even if the engine's own counter were wrong.
#[derive(Debug, Clone, Default)]
pub struct Gate(Arc<GateShared>);

#[derive(Debug, Default)]
struct GateShared {
    state: Mutex<GateState>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct GateState {
    begun: Vec<Vec<RowSeen>>,
    ended: usize,
    in_flight: usize,
    in_flight_max: usize,
    let_through: usize,
    open: bool,
    failures_due: usize,
    failing_request: Option<usize>,
}

impl Gate {
    /// Longest time that a wait here takes, so that a test that is stuck fails instead of hanging.
    const WAIT_MAX: Duration = Duration::from_secs(20);
    /// More passes than any test has before the one that it looks for.
    const STEPS_MAX: usize = 1000;

    /// A closed gate.
    pub fn closed() -> Self {
        Self::default()
    }

    /// Lets `n` passes through: those at the gate first, then those to come.
    pub fn let_through(&self, n: usize) {
        self.state().let_through += n;
        self.0.changed.notify_all();
    }

    /// Lets all passes through from now on.
    pub fn open(&self) {
        self.state().open = true;
        self.0.changed.notify_all();
    }

    /// Makes the next pass that is let through fail.
    pub fn fail_next(&self) {
        self.state().failures_due += 1;
    }

    /// Makes every pass fail from now on that computes for this request.
    pub fn fail_whenever(&self, request: usize) {
        self.state().failing_request = Some(request);
    }

    /// Lets passes through, one at a time, until one that is `wanted` is in the device. Returns how many
    /// passes have begun by then.
    ///
    /// # Panics
    ///
    /// When no such pass comes in time.
    pub fn step_until(&self, wanted: impl Fn(&[RowSeen]) -> bool) -> usize {
        loop {
            let ended = self.ended();
            self.wait_begun(ended + 1);
            let begun = self.begun();
            if wanted(&begun[ended]) {
                return begun.len();
            }
            assert!(ended < Self::STEPS_MAX, "{ended} passes, and none was it");
            self.let_through(1);
            self.wait_ended(ended + 1);
        }
    }

    /// Waits until `n` passes have begun in all.
    ///
    /// # Panics
    ///
    /// When that does not happen in time.
    pub fn wait_begun(&self, n: usize) {
        self.wait(|state| state.begun.len() >= n, || format!("{n} passes begun"));
    }

    /// Waits until `n` passes have ended in all.
    ///
    /// # Panics
    ///
    /// When that does not happen in time.
    pub fn wait_ended(&self, n: usize) {
        self.wait(|state| state.ended >= n, || format!("{n} passes ended"));
    }

    /// Checks that no further pass begins while the gate stays as it is. It waits long enough that an engine
    /// which would begin one has done so.
    ///
    /// # Panics
    ///
    /// When one begins.
    pub fn watch_none_begin(&self) {
        const LONG_ENOUGH: Duration = Duration::from_millis(150);
        let state = self.state();
        let before = state.begun.len();
        let (state, _) = self
            .0
            .changed
            .wait_timeout_while(state, LONG_ENOUGH, |state| state.begun.len() == before)
            .unwrap_or_else(PoisonError::into_inner);
        assert_eq!(state.begun.len(), before, "a pass began that must not have: {state:?}");
    }

    /// The passes that have begun, in order: the rows of each.
    pub fn begun(&self) -> Vec<Vec<RowSeen>> {
        self.state().begun.clone()
    }

    /// How many passes have ended.
    pub fn ended(&self) -> usize {
        self.state().ended
    }

    /// Most passes that were ever in the device at once.
    pub fn in_flight_max(&self) -> usize {
        self.state().in_flight_max
    }

    fn wait(&self, done: impl Fn(&GateState) -> bool, what: impl Fn() -> String) {
        let until = Instant::now() + Self::WAIT_MAX;
        let mut state = self.state();
        while !done(&state) {
            let left = until.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "waited {:?} for {}, got {state:?}", Self::WAIT_MAX, what());
            let waited = self.0.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn state(&self) -> MutexGuard<'_, GateState> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Device for Gate {
    /// Holds the pass at the gate until it is let through.
    fn pass(&mut self, rows: &[RowSeen], time: Duration) -> Result<(), PassFailed> {
        let mut state = self.state();
        state.begun.push(rows.to_vec());
        state.in_flight += 1;
        state.in_flight_max = state.in_flight_max.max(state.in_flight);
        self.0.changed.notify_all();
        while !state.open && state.let_through == 0 {
            state = self.0.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.let_through = state.let_through.saturating_sub(1);
        state.in_flight -= 1;
        state.ended += 1;
        let its_fault = |row: &RowSeen| Some(row.request) == state.failing_request;
        let fails = state.failures_due > 0 || rows.iter().any(its_fault);
        state.failures_due = state.failures_due.saturating_sub(1);
        self.0.changed.notify_all();
        drop(state);
        take(time);
        if fails { Err(PassFailed::new("the gate was told to fail this pass")) } else { Ok(()) }
    }
}
