//! What every instance of a policy is made from.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::sync::Arc;
use std::time::Duration;

use crate::descriptor::Descriptor;
use crate::host_functions::HostFunctions;
use crate::instance::{Instance, InstantiateError};
use crate::interfaces::Version;
use crate::limits::CALLS_MAX;
use crate::linked::LinkedComponent;
use crate::runtime::Runtime;

/// All that another instance is made from.
pub(super) struct InstanceFactory {
    pub(super) shared: Arc<Runtime>,
    pub(super) linked: LinkedComponent,
    pub(super) version: Version,
    pub(super) functions: Arc<HostFunctions>,
    pub(super) memory_max: usize,
    pub(super) settings: String,
    // One second at first; then what the first one took, or what one may take where everyone is
    // served, and the deadline on top.
    pub(super) init_time_max: Duration,
}

impl InstanceFactory {
    pub(super) fn make(&self) -> Result<(Instance, Descriptor), InstantiateError> {
        let (mut instance, descriptor) = Instance::new(
            &self.shared,
            &self.linked,
            &self.functions,
            self.memory_max,
            &self.settings,
            self.init_time_max,
        )?;
        instance.calls_left = calls_max();
        Ok((instance, descriptor))
    }
}

/// [`CALLS_MAX`] give or take a quarter, so that instances made together do not end together.
fn calls_max() -> u32 {
    // A fresh hasher's keys are the standard library's only randomness, and enough for this.
    let random = RandomState::new().hash_one(0_u8);
    let spread = CALLS_MAX / 2;
    CALLS_MAX - spread / 2 + u32::try_from(random % u64::from(spread)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instances_live_a_quarter_more_or_less() {
        let lives: Vec<_> = (0..200).map(|_| calls_max()).collect();
        let (least, most) = (CALLS_MAX - CALLS_MAX / 4, CALLS_MAX + CALLS_MAX / 4);
        assert!(lives.iter().all(|life| (least..=most).contains(life)), "{lives:?}");
        assert!(lives.iter().any(|life| life != &lives[0]), "all live equally long");
    }
}
