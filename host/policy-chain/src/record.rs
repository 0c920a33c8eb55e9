//! What policies were asked about one request and what they said, to be asked again.
//!
//! A record is one line of JSON. `interlock policy replay` puts its questions to another policy
//! and shows where that decides otherwise.
//!
//! # Invariants
//!
//! - Nothing is recorded unless a sink is there, and then each request once, when its review ends.
//! - No body, no prompt, no answer, nor a hash of one: [`Facts::prefix_key`] is 0 here, since
//!   beside those of other requests it would tell which prompts begin alike. Of headers only those
//!   that some policy was granted, and never [`SECRET`] ones, whoever was granted them. A
//!   credential is in there as the hash that `identify` sees.
//! - No request waits for a sink: what does not fit is dropped and counted.

mod file;
mod rotation;

use std::sync::Arc;

use serde::{Deserialize, Serialize};

pub use file::RecordFile;

use crate::panics::guarded;
use crate::{AnyAnswer, DecisionRecord, PolicyRefusal};
use interlock_policy_api::{
    Body, Caller, Candidate, Choice, Facts, Load, Phase, Plan, Policy, PolicyFailure, Transformed,
};

/// Headers that are never recorded, beside those whose name says that they are secrets.
pub(crate) const SECRET: [&str; 5] =
    ["authorization", "proxy-authorization", "cookie", "set-cookie", "x-api-key"];

/// The review of one request: every question and answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// What this format is called: [`Record::VERSION`].
    pub version: u32,
    /// The generation of its policies.
    pub generation: u64,
    /// The questions, in order, each with what was said to it.
    pub steps: Vec<RecordedPhase>,
    /// How the review ended.
    pub verdict: Ruling,
}

/// One question of a phase, and its answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RecordedPhase {
    /// What was asked.
    pub asked: PhaseQuestion,
    /// What each policy answered, in order.
    #[serde(rename = "said")]
    pub decisions: Vec<DecisionRecord>,
}

/// The question that a phase puts to policies.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PhaseQuestion {
    /// The question of `identify`.
    Identify(Caller),
    /// The question of `transform`, with the facts before the first policy.
    Transform(Facts),
    /// The question of `route`.
    Route {
        /// What is known of the request.
        facts: Facts,
        /// The models that the request could run on.
        candidates: Vec<Candidate>,
    },
    /// The question of `admit`.
    Admit {
        /// What is known of the request.
        facts: Facts,
        /// How busy the chosen model is.
        load: Load,
        /// How many other requests of the tenant were under way.
        tenant_in_flight: u32,
    },
}

/// How the review of a request ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ruling {
    /// The request may run, under this plan.
    Admitted {
        /// What the host enforces.
        plan: Plan,
        /// Most tokens it may generate.
        tokens_max: u32,
    },
    /// The request was turned away.
    Refused {
        /// The policy that refused.
        policy: String,
        /// The phase in which it was refused.
        phase: Phase,
        /// The reason code that the client was given.
        code: String,
        /// The HTTP status that the client was given.
        status: u16,
    },
    /// It ended before the policies had decided: its client left, it made no sense, there was no
    /// room.
    Open,
}

impl Record {
    /// The format that this host writes.
    pub const VERSION: u32 = 1;
}

impl PhaseQuestion {
    /// The phase that the question belongs to.
    pub fn phase(&self) -> Phase {
        match self {
            Self::Identify(_) => Phase::Identify,
            Self::Transform(_) => Phase::Transform,
            Self::Route { .. } => Phase::Route,
            Self::Admit { .. } => Phase::Admit,
        }
    }

    /// Puts the question again; `None`: the policy takes no part in that phase. There is no body
    /// any more: to one that reads it, it is `null`.
    pub fn ask(&self, policy: &dyn Policy) -> Option<Result<AnyAnswer, PolicyFailure>> {
        if !policy.takes(self.phase()) {
            return None;
        }
        let body = Body::new(b"null".to_vec());
        Some(guarded(|| match self {
            Self::Identify(caller) => policy.identify(caller).map(AnyAnswer::Identify),
            Self::Transform(facts) => policy.transform(facts, &body).map(AnyAnswer::Transform),
            Self::Route { facts, candidates } => {
                policy.route(facts, candidates, &body).map(AnyAnswer::Route)
            }
            Self::Admit { facts, load, tenant_in_flight } => {
                policy.admit(facts, load, *tenant_in_flight, &body).map(AnyAnswer::Admit)
            }
        }))
    }
}

/// Where records go.
pub trait RecordSink: Send + Sync {
    /// Takes one, without waiting.
    fn take(&self, record: Record);
}

/// A record in the making, that goes to its sink when it is dropped.
pub(crate) struct RecordDraft {
    record: Record,
    sink: Arc<dyn RecordSink>,
}

impl RecordDraft {
    pub(crate) fn new(generation: u64, sink: Arc<dyn RecordSink>) -> Self {
        let version = Record::VERSION;
        let record = Record { version, generation, steps: vec![], verdict: Ruling::Open };
        Self { record, sink }
    }

    pub(crate) fn step(&mut self, mut asked: PhaseQuestion, decisions: &[DecisionRecord]) {
        let headers = match &mut asked {
            PhaseQuestion::Identify(caller) => &mut caller.headers,
            PhaseQuestion::Transform(facts)
            | PhaseQuestion::Route { facts, .. }
            | PhaseQuestion::Admit { facts, .. } => {
                facts.prefix_key = 0;
                &mut facts.headers
            }
        };
        hide(&mut headers.0);
        let mut decisions = decisions.to_vec();
        for record in &mut decisions {
            match &mut record.decision {
                Ok(AnyAnswer::Transform(Transformed::Edit(edits))) => hide(&mut edits.set_headers),
                // JSON knows no NaN; this is what it counted for.
                Ok(AnyAnswer::Route(Choice::Scores(scores, _))) => {
                    scores.iter_mut().for_each(|(_, score)| *score = Choice::clamped(*score));
                }
                _ => {}
            }
        }
        self.record.steps.push(RecordedPhase { asked, decisions });
    }

    pub(crate) fn admitted(&mut self, plan: Plan, tokens_max: u32) {
        self.record.verdict = Ruling::Admitted { plan, tokens_max };
    }

    pub(crate) fn refused(&mut self, refused: &PolicyRefusal) {
        let PolicyRefusal { policy, phase, rejection, .. } = refused;
        let (policy, phase, status) = (policy.to_string(), *phase, rejection.status);
        let code = rejection.reason.code.0.as_ref().to_owned();
        self.record.verdict = Ruling::Refused { policy, phase, code, status };
    }
}

impl Drop for RecordDraft {
    fn drop(&mut self) {
        if self.record.steps.is_empty() {
            return;
        }
        let steps = std::mem::take(&mut self.record.steps);
        let verdict = std::mem::replace(&mut self.record.verdict, Ruling::Open);
        let Record { version, generation, .. } = self.record;
        self.sink.take(Record { version, generation, steps, verdict });
    }
}

fn hide(headers: &mut Vec<(String, String)>) {
    let is_hidden = |name: &str| SECRET.contains(&name.to_ascii_lowercase().as_str());
    headers.retain(|(name, _)| !is_hidden(name) && !interlock_request::is_secret(name));
}

#[cfg(test)]
mod tests;
