//! Decides where requests run: by model, tenant, length of the prompt, shared beginnings, weight
//! and load. README.md says how, and which settings it has.
//!
//! # Not here
//!
//! No memory: a split goes by a hash of the request, and what ran where the host knows. No
//! rejections: a model that nobody serves is for the host to say.

mod rules;
mod settings;

use interlock_policy_sdk as sdk;
use sdk::{Candidate, Choice, Policy, RequestFacts, Route};

use crate::settings::Settings;

sdk::reasons! {
    /// Why router decides.
    enum Reason {
        /// A rule named this model first.
        Rule,
        /// A rule's split fell on this model.
        Split,
        /// The client's name for a model stands for this one.
        Alias,
        /// The models before it were too busy, not ready or too small.
        Fallback,
        /// Nothing was said of this request: the emptier and the one with its prefix count for more.
        Weighed,
    }
}

struct Router {
    settings: Settings,
}

impl Policy for Router {
    type Settings = Settings;
    type Reason = Reason;

    fn new(settings: Settings) -> Result<Self, String> {
        match settings.problems() {
            problems if problems.is_empty() => Ok(Self { settings }),
            problems => Err(problems.join("; ")),
        }
    }
}

impl Route for Router {
    fn route(&self, request: &RequestFacts, candidates: &[Candidate]) -> Choice {
        match rules::wanted(&self.settings, request) {
            Some((models, reason)) => {
                rules::pick(&self.settings, request, candidates, &models, reason)
            }
            None => rules::score(&self.settings, candidates),
        }
    }
}

sdk::export!(Router: route; schema "settings.schema.json");
