//! What the driver and the engines' stack tell each other.

use std::time::Duration;

use interlock_engine::{EngineHandle, StepOutcome};

/// What the engines are resumed with.
pub(super) enum Resume {
    /// Make the engines.
    Open,
    /// Let this engine take a step.
    Step(usize),
    /// The time of the pass has gone by.
    PassDone,
    /// No more steps.
    End,
}

/// Where the engines stopped.
pub(super) enum EngineStep {
    /// They are there.
    Opened(Vec<EngineHandle>),
    /// A pass begins that takes so long.
    Pass { time: Duration, decoded: usize, stalled: bool, failed: bool },
    /// The step is over.
    StepOver(StepOutcome),
}
