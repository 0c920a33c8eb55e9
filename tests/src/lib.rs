//! What the tests share: an engine on a simulated model behind a gate, the server in front of it,
//! and a record of what was logged.

mod admitted;
mod http;
mod logs;
mod rig;

pub use admitted::{admit, admit_of};
pub use http::{Call, Leaving, Served};
pub use logs::Logs;
pub use rig::{PREFILL_CHUNK, Rig, metric, to_the_end, within};
