//! From the types of the WIT to those of the policy API: an answer is converted and checked here,
//! once.
//!
//! A rejection is never turned into something else: whatever a policy wrote into it, it meant to
//! keep the request out, so its texts are mended. What cannot be meant is a failure. What headers
//! may be and how a status is cut is the chain's business, for policies of every kind.

use std::sync::Arc;
use std::time::Duration;

use interlock_policy_api::{
    Admission, Answer, Candidate, Choice, Code, Decision, Edits, EventSet, FailureKind, Guarding,
    Identified, Identity, PlanProposal, PolicyFailure, Reaction, Reason, Rejection, Transformed,
    Verdict, Watch, WindowSize,
};
use interlock_request::{Deadlines, DisconnectAction, DrainLimits, Priority};

use crate::limits::{
    ATTRIBUTE_BYTES_MAX, ATTRIBUTES_MAX, HEADER_BYTES_MAX, HEADERS_MAX, MODEL_BYTES_MAX,
    NOTE_BYTES_MAX, PLAN_TIME_MAX, REASON_DETAIL_BYTES_MAX, RETRY_AFTER_MAX, TENANT_BYTES_MAX,
};
use crate::wit::imports::types;
use crate::wit::v0_2::exports::interlock::policy::{
    admit, events, identify, route, stream_guard, transform,
};

/// A policy's reasons, by index.
#[derive(Debug, Default)]
pub(crate) struct Codes(Vec<Code>);

impl Codes {
    pub(crate) fn new(reasons: &[String]) -> Self {
        Self(reasons.iter().map(|reason| Code(Arc::from(reason.as_str()))).collect())
    }

    fn code(&self, index: types::Reason) -> Answer<Code> {
        let found = usize::try_from(index).ok().and_then(|index| self.0.get(index));
        found.cloned().ok_or_else(|| {
            bad(format!("reason {index} is none of the {} that it declared", self.0.len()))
        })
    }

    fn reason(&self, index: types::Reason) -> Answer<Reason> {
        Ok(Reason { code: self.code(index)?, detail: None })
    }

    pub(crate) fn identified(&self, answer: identify::Answer) -> Answer<Identified> {
        Ok(match answer {
            identify::Answer::Known(identity) => {
                let code = self.code(identity.reason)?;
                Identified::Known(self::identity(identity)?, code)
            }
            identify::Answer::Unknown => Identified::Unknown,
            identify::Answer::Reject(rejection) => Identified::Reject(self.sanitized(rejection)),
        })
    }

    pub(crate) fn transformed(&self, answer: transform::Answer) -> Answer<Transformed> {
        Ok(match answer {
            transform::Answer::Keep => Transformed::Keep,
            transform::Answer::Edit(edits) => Transformed::Edit(self.edits(edits)?),
            transform::Answer::Reject(rejection) => Transformed::Reject(self.sanitized(rejection)),
        })
    }

    fn edits(&self, edits: transform::Edits) -> Answer<Edits> {
        let set_headers = pairs(edits.set_headers);
        let names = set_headers.iter().map(|(name, _)| name).chain(&edits.remove_headers);
        for name in names.clone() {
            let token = |byte: u8| {
                byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_.".contains(&byte)
            };
            if name.is_empty() || name.len() > HEADER_BYTES_MAX || !name.bytes().all(token) {
                let name = cut(name, 64);
                return Err(bad(format!("{name:?} is not the name of a header in lower case")));
            }
        }
        if names.count() > HEADERS_MAX {
            return Err(bad(format!("more than {HEADERS_MAX} headers are changed")));
        }
        if let Some((name, _)) = set_headers.iter().find(|(_, value)| {
            value.len() > HEADER_VALUE_BYTES_MAX || value.chars().any(char::is_control)
        }) {
            return Err(bad(format!("the value of header {name:?} cannot be one")));
        }
        if let Some(model) = &edits.model
            && !(1..=MODEL_BYTES_MAX).contains(&model.len())
        {
            return Err(bad(format!(
                "a model's name has 1 to {MODEL_BYTES_MAX} bytes, got {}",
                model.len()
            )));
        }
        Ok(Edits {
            set_headers,
            remove_headers: edits.remove_headers,
            answer_headers: pairs(edits.answer_headers),
            model: edits.model,
            code: self.code(edits.reason)?,
        })
    }

    pub(crate) fn choice(&self, answer: route::Choice, candidates: &[Candidate]) -> Answer<Choice> {
        let known = |id: u32| candidates.iter().any(|candidate| candidate.id == id);
        Ok(match answer {
            route::Choice::Abstain => Choice::Abstain,
            route::Choice::Scores(ranking) => {
                let scores = &ranking.scores;
                if let Some(score) = scores.iter().find(|score| !known(score.id)) {
                    return Err(bad(format!("it scored {}, which is no candidate", score.id)));
                }
                if scores.len() > candidates.len() {
                    return Err(bad("it scored a candidate twice".into()));
                }
                let scores = scores.iter().map(|s| (s.id, Choice::clamped(s.score))).collect();
                Choice::Scores(scores, self.code(ranking.reason)?)
            }
            route::Choice::Pick(pick) if known(pick.id) => {
                Choice::Pick(pick.id, self.code(pick.reason)?)
            }
            route::Choice::Pick(pick) => {
                return Err(bad(format!("it picked {}, which is no candidate", pick.id)));
            }
            route::Choice::Reject(rejection) => Choice::Reject(self.sanitized(rejection)),
        })
    }

    pub(crate) fn decision(&self, answer: admit::Decision) -> Answer<Decision> {
        Ok(match answer {
            admit::Decision::Admit(admission) => Decision::Admit(self.admission(admission)?),
            admit::Decision::Reject(rejection) => Decision::Reject(self.sanitized(rejection)),
        })
    }

    fn admission(&self, admission: admit::Admission) -> Answer<Admission> {
        if admission.note.len() > NOTE_BYTES_MAX {
            return Err(bad(format!(
                "a note has at most {NOTE_BYTES_MAX} bytes, got {}",
                admission.note.len()
            )));
        }
        Ok(Admission {
            proposal: proposal(&admission.plan)?,
            watch: admission.watch.map(|watch| self::watch(&watch)),
            note: admission.note,
            headers: pairs(admission.headers),
            code: self.code(admission.reason)?,
        })
    }

    pub(crate) fn verdict(&self, answer: stream_guard::Verdict) -> Answer<Verdict> {
        Ok(match answer {
            stream_guard::Verdict::Pass => Verdict::Pass,
            stream_guard::Verdict::Hold(bytes) => Verdict::Hold(bytes),
            stream_guard::Verdict::Replace(replacement) => Verdict::Replace {
                text: replacement.text,
                hold: replacement.hold,
                reason: self.reason(replacement.reason)?,
            },
            stream_guard::Verdict::Stop(ending) => {
                Verdict::Stop { text: ending.text, reason: self.reason(ending.reason)? }
            }
            stream_guard::Verdict::Abort(reason) => Verdict::Abort(self.reason(reason)?),
        })
    }

    pub(crate) fn reaction(&self, answer: events::Reaction) -> Answer<Reaction> {
        Ok(match answer {
            events::Reaction::Keep => Reaction::Keep,
            events::Reaction::Cancel(reason) => Reaction::Cancel(self.reason(reason)?),
            events::Reaction::Amend(said) => {
                Reaction::Amend(proposal(&said.plan)?, self.code(said.reason)?)
            }
            events::Reaction::Disconnect(said) => {
                Reaction::Disconnect(disconnect(said.action), self.code(said.reason)?)
            }
        })
    }

    /// A reason beyond those declared is no way to let a request in: it gets a name of ours.
    fn sanitized(&self, rejection: types::Rejection) -> Rejection {
        let spaced = |c: char| if c.is_control() { ' ' } else { c };
        let detail =
            |text: String| cut(&text, REASON_DETAIL_BYTES_MAX).chars().map(spaced).collect();
        Rejection {
            status: rejection.status,
            reason: Reason {
                code: self.code(rejection.reason).unwrap_or_else(|_| Code::from("rejected")),
                detail: rejection.detail.map(detail),
            },
            retry_after: rejection
                .retry_after
                .map(|n| Duration::from_micros(n).min(RETRY_AFTER_MAX)),
            headers: pairs(rejection.headers),
        }
    }
}

/// Values of headers are as long as requests bring them.
const HEADER_VALUE_BYTES_MAX: usize = 8 << 10;

fn identity(identity: identify::Identity) -> Answer<Identity> {
    let printable = |byte: u8| matches!(byte, b' '..=b'~');
    let tenant = &identity.tenant;
    if !(1..=TENANT_BYTES_MAX).contains(&tenant.len()) || !tenant.bytes().all(printable) {
        return Err(bad(format!(
            "a tenant has 1 to {TENANT_BYTES_MAX} bytes of printable ASCII, got {:?}",
            cut(tenant, TENANT_BYTES_MAX)
        )));
    }
    let within = |attribute: &types::AttributeResult| {
        attribute.name.len() <= ATTRIBUTE_BYTES_MAX && attribute.value.len() <= ATTRIBUTE_BYTES_MAX
    };
    if identity.attributes.len() > ATTRIBUTES_MAX || !identity.attributes.iter().all(within) {
        return Err(bad(format!(
            "at most {ATTRIBUTES_MAX} attributes of at most {ATTRIBUTE_BYTES_MAX} bytes, got {}",
            identity.attributes.len()
        )));
    }
    Ok(Identity {
        tenant: identity.tenant,
        priority: identity.priority.map(priority),
        attributes: identity.attributes.into_iter().map(|a| (a.name, a.value)).collect(),
    })
}

/// What a policy watches. What makes no sense is brought to what does: nothing is decided by it.
pub(crate) fn watch(watch: &types::Watch) -> Watch {
    let has = |event| watch.events.contains(event);
    let size = |size: &types::WindowSize| WindowSize {
        tokens: size.tokens.max(1),
        delay_max: Duration::from_micros(size.max_delay)
            .clamp(Duration::from_millis(1), PLAN_TIME_MAX),
    };
    Watch {
        events: EventSet {
            queued: has(types::EventSet::QUEUED),
            dispatched: has(types::EventSet::DISPATCHED),
            first_token: has(types::EventSet::FIRST_TOKEN),
            stalled: has(types::EventSet::STALLED),
            timed_out: has(types::EventSet::TIMED_OUT),
            disconnected: has(types::EventSet::DISCONNECTED),
            preempted: has(types::EventSet::PREEMPTED),
        },
        stalled_after: watch
            .stalled_after
            .map(|n| Duration::from_micros(n).clamp(Duration::from_millis(1), PLAN_TIME_MAX)),
        guarding: match &watch.guarding {
            types::Guarding::Off => Guarding::Off,
            types::Guarding::Observe(window) => Guarding::Observe(size(window)),
            types::Guarding::Gate(window) => Guarding::Gate(size(window)),
        },
    }
}

/// # Errors
///
/// `BadOutput` when a plan has a timeout of 0 or no tokens, which would end every request as it
/// begins: whoever means that has `reject`, so it is a sum gone wrong.
fn proposal(plan: &types::Plan) -> Answer<PlanProposal> {
    let time = |name: &str, micros: Option<u64>| match micros {
        Some(0) => Err(bad(format!("timeouts.{name} must exceed 0"))),
        micros => Ok(micros.map(plan_time)),
    };
    if plan.max_tokens == Some(0) {
        return Err(bad("max-tokens must be at least 1".into()));
    }
    Ok(PlanProposal {
        priority: plan.priority.map(priority),
        deadlines: Deadlines {
            queue: time("queue", plan.timeouts.queue)?,
            first_token: time("first-token", plan.timeouts.first_token)?,
            inter_token: time("inter-token", plan.timeouts.inter_token)?,
            total: time("total", plan.timeouts.total)?,
        },
        on_disconnect: plan.on_disconnect.map(disconnect),
        tokens_max: plan.max_tokens,
    })
}

pub(crate) fn plan_time(micros: u64) -> Duration {
    Duration::from_micros(micros).min(PLAN_TIME_MAX)
}

fn disconnect(action: types::DisconnectAction) -> DisconnectAction {
    let limits = |limits: types::DrainLimits| {
        let some = limits.max_time > 0 && limits.max_tokens > 0;
        some.then(|| DrainLimits {
            time_max: plan_time(limits.max_time),
            tokens_max: limits.max_tokens,
        })
    };
    match action {
        types::DisconnectAction::Cancel => DisconnectAction::Cancel,
        types::DisconnectAction::Drain(drain) => {
            limits(drain).map_or(DisconnectAction::Cancel, DisconnectAction::Drain)
        }
        types::DisconnectAction::Detach(detach) => {
            limits(detach).map_or(DisconnectAction::Cancel, DisconnectAction::Detach)
        }
    }
}

fn priority(priority: types::Priority) -> Priority {
    match priority {
        types::Priority::Critical => Priority::Critical,
        types::Priority::Interactive => Priority::Interactive,
        types::Priority::Standard => Priority::Standard,
        types::Priority::Batch => Priority::Batch,
        types::Priority::Sheddable => Priority::Sheddable,
    }
}

fn pairs(headers: Vec<types::HeaderResult>) -> Vec<(String, String)> {
    headers.into_iter().map(|header| (header.name, header.value)).collect()
}

pub(crate) fn bad(message: String) -> PolicyFailure {
    PolicyFailure { kind: FailureKind::BadOutput, message }
}

/// The longest beginning of a text that has at most this many bytes.
pub(crate) fn cut(text: &str, bytes_max: usize) -> &str {
    &text[..text.floor_char_boundary(bytes_max)]
}
