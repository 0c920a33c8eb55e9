//! Between our words and the guest's: what is lent to it, and what its answers are cut to.
//!
//! A rejection is never turned into something else: whatever a policy wrote into it, it meant to
//! keep the request out, so its texts are mended. A plan that cannot be meant is a failure.

use std::time::Duration;

use interlock_admission::{
    Decision, Facts, FailureKind, Load, PlanProposal, PolicyFailure, Reason, Rejection, Summary,
};
use interlock_request::{
    CancelCause, Deadline, Deadlines, DisconnectAction, DrainLimits, Endpoint, Finish, Outcome,
    Priority,
};

use crate::limits::{
    PLAN_TIME_MAX, REASON_CODE_BYTES_MAX, REASON_DETAIL_BYTES_MAX, RETRY_AFTER_MAX,
};
use crate::wit::exports::interlock::policy::admit;
use crate::wit::interlock::policy::types;

/// Facts in the shape that a call borrows.
pub(crate) struct LentFacts<'a> {
    facts: &'a Facts,
    headers: Vec<(&'a str, &'a str)>,
}

impl<'a> LentFacts<'a> {
    pub(crate) fn new(facts: &'a Facts) -> Self {
        let headers = facts.headers.iter().map(|(name, value)| (&**name, &**value)).collect();
        Self { facts, headers }
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

pub(crate) fn load_facts(load: &Load) -> types::LoadFacts {
    types::LoadFacts { waiting: load.waiting, max_waiting: load.waiting_max, running: load.running }
}

pub(crate) fn summary(summary: &Summary) -> types::Summary {
    types::Summary {
        outcome: outcome(&summary.outcome),
        usage: types::Usage {
            prompt_tokens: summary.usage.prompt_tokens,
            generated_tokens: summary.usage.generated_tokens,
        },
        queue_time: summary.queue_time.map(micros),
        time_to_first_token: summary.time_to_first_token.map(micros),
        total_time: micros(summary.total),
    }
}

fn outcome(outcome: &Outcome) -> types::Outcome {
    match outcome {
        Outcome::Completed(Finish::Stop) => types::Outcome::Completed(types::Finish::Stop),
        Outcome::Completed(Finish::Length) => types::Outcome::Completed(types::Finish::Length),
        Outcome::Cancelled(CancelCause::Disconnect) => types::Outcome::Disconnected,
        Outcome::Cancelled(CancelCause::Deadline(deadline)) => {
            types::Outcome::TimedOut(match deadline {
                Deadline::Queue => types::Timeout::Queue,
                Deadline::FirstToken => types::Timeout::FirstToken,
                Deadline::InterToken => types::Timeout::InterToken,
                Deadline::Total => types::Timeout::Total,
            })
        }
        Outcome::Cancelled(CancelCause::Operator) => {
            types::Outcome::Cancelled(types::Canceller::Operator)
        }
        Outcome::Cancelled(CancelCause::Shutdown) => {
            types::Outcome::Cancelled(types::Canceller::Shutdown)
        }
        // The text is for our log: it may tell of paths and addresses.
        Outcome::Failed(_) => types::Outcome::Failed,
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// # Errors
///
/// `BadOutput` when a plan has a timeout of 0, which would end every request as it begins:
/// whoever means that has `reject`, so it is a sum gone wrong.
pub(crate) fn decision(answer: admit::Decision) -> Result<Decision, PolicyFailure> {
    match answer {
        admit::Decision::Admit(plan) => Ok(Decision::Admit(proposal(&plan)?)),
        admit::Decision::Reject(rejection) => Ok(Decision::Reject(mended(rejection))),
    }
}

fn proposal(plan: &types::Plan) -> Result<PlanProposal, PolicyFailure> {
    let time = |name: &str, micros: Option<u64>| match micros {
        Some(0) => Err(PolicyFailure {
            kind: FailureKind::BadOutput,
            message: format!("timeouts.{name} must exceed 0"),
        }),
        micros => Ok(micros.map(|n| Duration::from_micros(n).min(PLAN_TIME_MAX))),
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
                    time_max: Duration::from_micros(limits.max_time).min(PLAN_TIME_MAX),
                    tokens_max: limits.max_tokens,
                })
            }
            types::DisconnectAction::Drain(_) | types::DisconnectAction::Cancel => {
                DisconnectAction::Cancel
            }
        }),
    })
}

fn mended(rejection: types::Rejection) -> Rejection {
    let code: String = cut(&rejection.code, REASON_CODE_BYTES_MAX)
        .chars()
        .map(|c| match c {
            'a'..='z' | '0'..='9' | '_' => c,
            _ => '_',
        })
        .collect();
    let detail = rejection.detail.map(|detail| {
        let spaced = |c: char| if c.is_control() { ' ' } else { c };
        cut(&detail, REASON_DETAIL_BYTES_MAX).chars().map(spaced).collect()
    });
    Rejection {
        // The chain's business, for policies of every kind.
        status: rejection.status,
        reason: Reason { code: if code.is_empty() { "rejected".into() } else { code }, detail },
        retry_after: rejection.retry_after.map(|n| Duration::from_micros(n).min(RETRY_AFTER_MAX)),
    }
}

/// The longest beginning of a text that has at most this many bytes.
pub(crate) fn cut(text: &str, bytes_max: usize) -> &str {
    &text[..text.floor_char_boundary(bytes_max)]
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    fn plan(timeouts: types::Timeouts, drain: types::DrainLimits) -> admit::Decision {
        admit::Decision::Admit(types::Plan {
            priority: None,
            timeouts,
            on_disconnect: Some(types::DisconnectAction::Drain(drain)),
        })
    }

    const NO_TIMEOUTS: types::Timeouts =
        types::Timeouts { queue: None, first_token: None, inter_token: None, total: None };

    #[test]
    fn a_rejection_stays_one_whatever_is_written_in_it() {
        let rejection = types::Rejection {
            status: 7,
            code: format!("Quota-Überschritten{}", "x".repeat(100)),
            detail: Some(format!("line\nline\u{1b}[31m{}", "ß".repeat(600))),
            retry_after: Some(u64::MAX),
        };
        let Ok(Decision::Reject(mended)) = decision(admit::Decision::Reject(rejection)) else {
            panic!("the rejection became something else");
        };
        expect![[r#"
            7 "_uota__berschrittenxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx" 86400s
            512 bytes, "line line [31m""#]]
        .assert_eq(&{
            let detail = mended.reason.detail.unwrap();
            format!(
                "{} {:?} {:?}\n{} bytes, {:?}",
                mended.status,
                mended.reason.code,
                mended.retry_after.unwrap(),
                detail.len(),
                &detail[..14],
            )
        });
    }

    #[test]
    fn a_timeout_of_zero_is_no_decision() {
        let timeouts = types::Timeouts { inter_token: Some(0), ..NO_TIMEOUTS };
        let drain = types::DrainLimits { max_time: 1, max_tokens: 1 };
        let failure = decision(plan(timeouts, drain)).expect_err("nobody means that");
        assert_eq!(failure.to_string(), "bad_output: timeouts.inter-token must exceed 0");
    }

    #[test]
    fn absurd_times_are_cut_and_an_empty_drain_is_a_cancel() {
        let timeouts = types::Timeouts { total: Some(u64::MAX), ..NO_TIMEOUTS };
        let drain = types::DrainLimits { max_time: u64::MAX, max_tokens: 0 };
        let Ok(Decision::Admit(proposal)) = decision(plan(timeouts, drain)) else {
            panic!("this is a plan");
        };
        assert_eq!(proposal.deadlines.total, Some(PLAN_TIME_MAX));
        assert_eq!(proposal.on_disconnect, Some(DisconnectAction::Cancel));
    }
}
