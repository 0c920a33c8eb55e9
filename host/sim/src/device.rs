//! The simulated device: a forward pass on it takes time and may fail.

use std::time::Duration;

use interlock_engine::PassFailed;

/// A simulated device.
pub trait Device {
    /// Runs a forward pass of these rows, which takes this long.
    ///
    /// # Errors
    ///
    /// When the device is set to fail this pass.
    fn pass(&mut self, rows: &[RowSeen], time: Duration) -> Result<(), PassFailed>;
}

impl<D: Device + ?Sized> Device for Box<D> {
    fn pass(&mut self, rows: &[RowSeen], time: Duration) -> Result<(), PassFailed> {
        (**self).pass(rows, time)
    }
}

/// A row of a forward pass, as the device saw it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RowSeen {
    /// The request of the row: 0 for the first that the model opened, and so on.
    pub request: usize,
    /// What the row computed.
    pub kind: RowKind,
}

/// What a row of a forward pass computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RowKind {
    /// A chunk of a prompt.
    Prefill,
    /// The next token.
    Decode,
}

/// A device that sleeps on the engine thread while it is busy.
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
