//! The policy that every host starts with: deadlines that grow with the work, and what to do
//! when a client leaves. README.md says what it decides and which settings it has.
//!
//! # Not here
//!
//! No rejections: what does not fit is the host's own affair (a full house, a context that is
//! too short). No memory of requests, so nothing to account for.

mod rules;
mod settings;

use interlock_policy_sdk::{Admit, Decision, LoadFacts, Policy, RequestFacts};

use crate::settings::Settings;

struct Guard {
    settings: Settings,
}

impl Policy for Guard {
    const NAME: &'static str = "guard";
    const VERSION: &'static str = env!("CARGO_PKG_VERSION");
    type Settings = Settings;

    fn new(settings: Settings) -> Result<Self, String> {
        match settings.problems() {
            problems if problems.is_empty() => Ok(Self { settings }),
            problems => Err(problems.join("; ")),
        }
    }
}

impl Admit for Guard {
    fn admit(&self, request: &RequestFacts, _: &LoadFacts) -> Decision {
        Decision::Admit(rules::plan(&self.settings, request))
    }
}

interlock_policy_sdk::export!(Guard: admit);
