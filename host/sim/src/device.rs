//! What the simulated model runs on: something that takes its time, and may fail.

use std::time::Duration;

use interlock_engine::PassFailed;

/// A simulated device.
pub trait Device {
    /// A pass of these rows begins, takes this long, and ends.
    ///
    /// # Errors
    ///
    /// When the device is told to fail it.
    fn pass(&mut self, rows: &[RowSeen], time: Duration) -> Result<(), PassFailed>;
}

impl<D: Device + ?Sized> Device for Box<D> {
    fn pass(&mut self, rows: &[RowSeen], time: Duration) -> Result<(), PassFailed> {
        (**self).pass(rows, time)
    }
}

/// A row of a pass, as the device saw it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RowSeen {
    /// Which request it computed for: 0 for the first that the model opened, and so on.
    pub request: usize,
    /// What it computed.
    pub kind: RowKind,
}

/// What a row of a pass computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RowKind {
    /// A chunk of a prompt.
    Prefill,
    /// The next token.
    Decode,
}

/// The engine thread is the device, and being busy is sleeping.
#[derive(Debug)]
pub(crate) struct Sleeper;

impl Device for Sleeper {
    fn pass(&mut self, _: &[RowSeen], time: Duration) -> Result<(), PassFailed> {
        take(time);
        Ok(())
    }
}

pub(crate) fn take(time: Duration) {
    if !time.is_zero() {
        std::thread::sleep(time);
    }
}
