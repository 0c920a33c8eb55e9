//! The simulated device: a pass takes simulated time, and may stall or fail.

use std::time::Duration;

use corosensei::Yielder;
use interlock_engine::PassFailed;
use interlock_sim::{Device, RowKind, RowSeen};

use super::engine_step::{EngineStep, Resume};
use crate::rng::Rng;
use crate::workload::{Stall, WorkloadModel};

/// Tells the driver how long a pass takes, and goes on when that time has passed.
pub(super) struct SimDevice<'a> {
    driver: &'a Yielder<Resume, EngineStep>,
    rng: Rng,
    stall: Option<Stall>,
    fail: f64,
}

impl<'a> SimDevice<'a> {
    pub(super) fn new(
        model: &WorkloadModel,
        seed: u64,
        driver: &'a Yielder<Resume, EngineStep>,
    ) -> Self {
        let rng = Rng::new(seed, &format!("device {}", model.name));
        Self { driver, rng, stall: model.stall, fail: model.fail }
    }
}

impl Device for SimDevice<'_> {
    fn pass(&mut self, rows: &[RowSeen], time: Duration) -> Result<(), PassFailed> {
        // Drawn always, so that a workload without faults differs from one with them in them only.
        let (stalls, fails) = (self.rng.share(), self.rng.share());
        let stall = self.stall.filter(|stall| stalls < stall.chance);
        let time = time + stall.map_or(Duration::ZERO, |stall| stall.time);
        let decoded = rows.iter().filter(|row| row.kind == RowKind::Decode).count();
        let failed = fails < self.fail;
        self.driver.suspend(EngineStep::Pass { time, decoded, stalled: stall.is_some(), failed });
        if failed { Err(PassFailed::new("the workload says that this pass fails")) } else { Ok(()) }
    }
}
