//! The policy that every host starts with: deadlines that grow with the work, and what to do
//! when a client leaves. README.md says what it decides and which settings it has.
//!
//! # Not here
//!
//! No rejections: what does not fit is the host's own affair (a full house, a context that is
//! too short). No memory of requests, so nothing to account for.

mod rules;
mod settings;

use interlock_policy_sdk as sdk;
use sdk::{
    Admit, Decision, Event, EventSet, Events, Load, Policy, Progress, Reaction, RequestFacts, Watch,
};

use crate::settings::Settings;

sdk::reasons! {
    /// Why guard decides.
    enum Reason {
        /// It lets everyone in, under a plan.
        Planned,
        /// Its time was up and it goes on: tokens still flow.
        Extended,
    }
}

struct Guard {
    settings: Settings,
}

impl Policy for Guard {
    type Settings = Settings;
    type Reason = Reason;

    fn new(settings: Settings) -> Result<Self, String> {
        match settings.problems() {
            problems if problems.is_empty() => Ok(Self { settings }),
            problems => Err(problems.join("; ")),
        }
    }

    fn watch(&self) -> Watch {
        let extend = &self.settings.extend;
        let extends = extend.total.is_some() || extend.first_token.is_some();
        let events = if extends { EventSet::TIMED_OUT } else { EventSet::empty() };
        Watch { events, ..Watch::default() }
    }
}

impl Admit for Guard {
    fn admit(&self, request: &RequestFacts, _: &Load) -> Decision {
        sdk::admit(Reason::Planned).plan(rules::plan(&self.settings, request)).into()
    }
}

impl Events for Guard {
    fn on_event(&self, request: &RequestFacts, event: &Event, progress: &Progress) -> Reaction {
        let Event::TimedOut(timeout) = event else { return Reaction::Keep };
        match rules::extended(&self.settings, request, *timeout, progress) {
            Some(plan) => sdk::amend(plan, Reason::Extended),
            None => Reaction::Keep,
        }
    }
}

sdk::export!(Guard: admit, events; schema "settings.schema.json");
