//! A policy that takes part in no phase, which is all that `lifecycle` asks of one.

use interlock_policy_sdk::{NoReasons, NoSettings, Policy};

struct Mute;

impl Policy for Mute {
    type Settings = NoSettings;
    type Reason = NoReasons;

    fn new(_: NoSettings) -> Result<Self, String> {
        Ok(Self)
    }
}

interlock_policy_sdk::export!(Mute:);
