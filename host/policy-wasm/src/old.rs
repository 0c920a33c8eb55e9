//! What was built for `interlock:policy@0.1`: its types at the edge, ours behind it.
//!
//! 0.1 had two phases and one import. What it could not say is left at its default: no watch, no
//! note, no reason for an admission.

use interlock_policy_api::{
    Admission, Closing, Code, Decision, Facts, Load, PlanProposal, PolicyFailure, Reason,
    Rejection, Summary,
};
use interlock_request::{
    CancelCause, Deadline, Deadlines, DisconnectAction, DrainLimits, Endpoint, Finish, Outcome,
    Priority,
};

use crate::from_wit::{bad, cut, plan_time};
use crate::limits::{REASON_CODE_BYTES_MAX, REASON_DETAIL_BYTES_MAX, RETRY_AFTER_MAX};
use crate::to_wit::micros;
use crate::wit::v0_1::exports::interlock::policy::admit;
use crate::wit::v0_1::interlock::policy::types;

/// Facts in the shape that a call borrows.
pub(crate) struct WitFactsV0_1<'a> {
    facts: &'a Facts,
    headers: Vec<(&'a str, &'a str)>,
}

impl<'a> WitFactsV0_1<'a> {
    pub(crate) fn new(facts: &'a Facts, seen: &[String]) -> Self {
        let shown = facts.headers.0.iter().filter(|(name, _)| seen.contains(name));
        Self { facts, headers: shown.map(|(name, value)| (&**name, &**value)).collect() }
    }

    pub(crate) fn as_wit(&self) -> types::RequestFacts<'_> {
        let facts = self.facts;
        types::RequestFacts {
            request_id: facts.request_id.as_str(),
            arrived_at: facts.arrived_at_micros,
            endpoint: match facts.endpoint {
                Endpoint::Chat => types::Endpoint::Chat,
                Endpoint::Completions => types::Endpoint::Completions,
                Endpoint::Responses => types::Endpoint::Responses,
            },
            model: facts.model.as_str(),
            streaming: facts.streaming,
            prompt_tokens: facts.prompt_tokens,
            max_tokens: facts.tokens_max,
            max_tokens_asked: facts.tokens_max_asked,
            body_bytes: facts.body_bytes,
            headers: &self.headers,
        }
    }
}

pub(crate) fn load(load: &Load) -> types::LoadFacts {
    types::LoadFacts { waiting: load.waiting, max_waiting: load.waiting_max, running: load.running }
}

/// `None`: it was turned away, which 0.1 is not told.
pub(crate) fn summary(summary: &Summary) -> Option<types::Summary> {
    let Closing::Ended(ended) = &summary.closing else { return None };
    Some(types::Summary {
        outcome: outcome(ended),
        usage: types::Usage {
            prompt_tokens: summary.usage.prompt_tokens,
            generated_tokens: summary.usage.generated_tokens,
        },
        queue_time: summary.queue_time.map(micros),
        time_to_first_token: summary.time_to_first_token.map(micros),
        total_time: micros(summary.total),
    })
}

fn outcome(outcome: &Outcome) -> types::Outcome {
    use types::{Canceller, Outcome as O, Timeout};
    match outcome {
        // A text that a policy cut short came to an end as if by a stop string.
        Outcome::Completed(Finish::Stop | Finish::Filtered) => O::Completed(types::Finish::Stop),
        Outcome::Completed(Finish::Length) => O::Completed(types::Finish::Length),
        Outcome::Cancelled(CancelCause::Disconnect) => O::Disconnected,
        Outcome::Cancelled(CancelCause::Deadline(deadline)) => O::TimedOut(match deadline {
            Deadline::Queue => Timeout::Queue,
            Deadline::FirstToken => Timeout::FirstToken,
            Deadline::InterToken => Timeout::InterToken,
            Deadline::Total => Timeout::Total,
        }),
        // 0.1 knows no policy that cancels; it acts for the operator who put it there.
        Outcome::Cancelled(CancelCause::Operator | CancelCause::Policy) => {
            O::Cancelled(Canceller::Operator)
        }
        Outcome::Cancelled(CancelCause::Shutdown) => O::Cancelled(Canceller::Shutdown),
        // The text is for our log: it may tell of paths and addresses.
        Outcome::Failed(_) => O::Failed,
    }
}

/// # Errors
///
/// As for an answer of today: see `from_wit`.
pub(crate) fn decision(answer: admit::Decision) -> Result<Decision, PolicyFailure> {
    Ok(match answer {
        admit::Decision::Admit(plan) => {
            Decision::Admit(Admission { proposal: proposal(&plan)?, ..Admission::default() })
        }
        admit::Decision::Reject(rejection) => Decision::Reject(sanitized(rejection)),
    })
}

fn proposal(plan: &types::Plan) -> Result<PlanProposal, PolicyFailure> {
    let time = |name: &str, micros: Option<u64>| match micros {
        Some(0) => Err(bad(format!("timeouts.{name} must exceed 0"))),
        micros => Ok(micros.map(plan_time)),
    };
    Ok(PlanProposal {
        priority: plan.priority.map(|priority| match priority {
            types::Priority::Critical => Priority::Critical,
            types::Priority::Interactive => Priority::Interactive,
            types::Priority::Standard => Priority::Standard,
            types::Priority::Batch => Priority::Batch,
            types::Priority::Sheddable => Priority::Sheddable,
        }),
        deadlines: Deadlines {
            queue: time("queue", plan.timeouts.queue)?,
            first_token: time("first-token", plan.timeouts.first_token)?,
            inter_token: time("inter-token", plan.timeouts.inter_token)?,
            total: time("total", plan.timeouts.total)?,
        },
        on_disconnect: plan.on_disconnect.map(|action| match action {
            types::DisconnectAction::Drain(limits)
                if limits.max_time > 0 && limits.max_tokens > 0 =>
            {
                DisconnectAction::Drain(DrainLimits {
                    time_max: plan_time(limits.max_time),
                    tokens_max: limits.max_tokens,
                })
            }
            types::DisconnectAction::Drain(_) | types::DisconnectAction::Cancel => {
                DisconnectAction::Cancel
            }
        }),
        tokens_max: None,
    })
}

/// A rejection stays one, whatever is written in it. Its code is not of a closed set: 0.1 had none.
fn sanitized(rejection: types::Rejection) -> Rejection {
    let code: String = cut(&rejection.code, REASON_CODE_BYTES_MAX)
        .chars()
        .map(|c| match c {
            'a'..='z' | '0'..='9' | '_' => c,
            _ => '_',
        })
        .collect();
    let spaced = |c: char| if c.is_control() { ' ' } else { c };
    let detail = |text: String| cut(&text, REASON_DETAIL_BYTES_MAX).chars().map(spaced).collect();
    Rejection {
        status: rejection.status,
        reason: Reason {
            code: Code::from(if code.is_empty() { "rejected" } else { &code }),
            detail: rejection.detail.map(detail),
        },
        retry_after: rejection
            .retry_after
            .map(|n| std::time::Duration::from_micros(n).min(RETRY_AFTER_MAX)),
        headers: Vec::new(),
    }
}
