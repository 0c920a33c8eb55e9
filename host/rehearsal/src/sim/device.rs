//! The simulated device: a pass takes simulated time, and may stall or fail.

use std::rc::Rc;
use std::sync::mpsc::{Receiver, SyncSender};
use std::time::Duration;

use interlock_engine::PassFailed;
use interlock_sim::{Device, RowKind, RowSeen};

use super::driver::{Go, Told};
use crate::dice::Dice;
use crate::workload::Model;

/// Asks the driver for the time that a pass takes, and waits until it has passed.
pub(super) struct Patient {
    pub(super) told: SyncSender<Told>,
    pub(super) go: Rc<Receiver<Go>>,
    pub(super) dice: Dice,
    pub(super) stall: Option<crate::workload::Stall>,
    pub(super) fail: f64,
}

impl Patient {
    pub(super) fn new(
        model: &Model,
        seed: u64,
        told: SyncSender<Told>,
        go: Rc<Receiver<Go>>,
    ) -> Self {
        let dice = Dice::new(seed, &format!("device {}", model.name));
        Self { told, go, dice, stall: model.stall, fail: model.fail }
    }
}

impl Device for Patient {
    fn pass(&mut self, rows: &[RowSeen], time: Duration) -> Result<(), PassFailed> {
        // Drawn always, so that a workload without faults differs from one with them in them only.
        let (stalls, fails) = (self.dice.share(), self.dice.share());
        let stall = self.stall.filter(|stall| stalls < stall.chance);
        let time = time + stall.map_or(Duration::ZERO, |stall| stall.time);
        let decoded = rows.iter().filter(|row| row.kind == RowKind::Decode).count();
        let failed = fails < self.fail;
        let pass = Told::Passing { time, decoded, stalled: stall.is_some(), failed };
        // A driver that is gone waits for nobody.
        let _ = self.told.send(pass);
        let _ = self.go.recv();
        if failed { Err(PassFailed::new("the workload says that this pass fails")) } else { Ok(()) }
    }
}
