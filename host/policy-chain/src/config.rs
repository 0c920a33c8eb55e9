//! The settings that the chain reads.

mod limits;
mod mode;
mod on_failure;
mod policies;

pub use limits::LimitsConfig;
pub use mode::{BadPolicyMode, PolicyMode};
pub use on_failure::{BadFailureAction, FailureAction, OnFailure};
pub use policies::{PoliciesConfig, RECORD_BYTES_MAX, RecordBounds};
