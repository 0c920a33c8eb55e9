//! What the tests share: an engine on a simulated model, and a record of what was logged.

mod logs;
mod rig;

pub use logs::Logs;
pub use rig::{PREFILL_CHUNK, Rig, metric, to_the_end, within};
