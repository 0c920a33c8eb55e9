//! A policy that takes part in no phase, which is all that `lifecycle` asks of one.

use interlock_policy_sdk::{NoSettings, Policy};

struct Mute;

impl Policy for Mute {
    const NAME: &'static str = "mute";
    const VERSION: &'static str = "1.0.0";
    type Settings = NoSettings;

    fn new(_: NoSettings) -> Result<Self, String> {
        Ok(Self)
    }
}

interlock_policy_sdk::export!(Mute:);
