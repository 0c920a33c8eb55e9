//! Policies' answers as JSON: what cases expect, what traces hold and what people read.
//!
//! Every answer is an object with `decision`, the label that it has in metrics. Times are texts
//! such as `1m 30s`. What a policy left to others is left out.

use std::time::Duration;

use interlock_policy_api::{
    Admission, Answer, Choice, Decision, Guarding, Identified, PlanProposal, PolicyFailure,
    Reaction, Reason, Rejection, Transformed, Verdict, Watch,
};
use interlock_request::{DisconnectAction, DrainLimits};
use serde_json::{Map, Value, json};

/// An answer that can be read.
pub trait ToJson {
    /// The answer as a JSON object.
    fn to_json(&self) -> Value;
}

/// A time as a person writes it.
pub fn time(time: Duration) -> Value {
    humantime::format_duration(time).to_string().into()
}

fn object<const N: usize>(fields: [(&str, Option<Value>); N]) -> Value {
    let said = fields.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?)));
    Value::Object(said.collect::<Map<_, _>>())
}

fn pairs(pairs: &[(String, String)]) -> Option<Value> {
    let map: Map<_, _> = pairs.iter().map(|(k, v)| (k.clone(), v.as_str().into())).collect();
    (!map.is_empty()).then_some(Value::Object(map))
}

fn word(label: &str) -> Option<Value> {
    Some(label.into())
}

fn unless_empty(text: &str) -> Option<Value> {
    (!text.is_empty()).then(|| text.into())
}

impl<T: ToJson> ToJson for Answer<T> {
    fn to_json(&self) -> Value {
        match self {
            Ok(answer) => answer.to_json(),
            Err(failure) => failure.to_json(),
        }
    }
}

impl ToJson for PolicyFailure {
    fn to_json(&self) -> Value {
        json!({"decision": "failure", "failure": self.kind.as_str(), "message": self.message})
    }
}

impl ToJson for () {
    fn to_json(&self) -> Value {
        json!({"decision": "noted"})
    }
}

fn rejection(rejection: &Rejection) -> Value {
    object([
        ("decision", word("reject")),
        ("status", Some(rejection.status.into())),
        ("reason", word(&rejection.reason.code.0)),
        ("detail", rejection.reason.detail.clone().map(Value::from)),
        ("retry_after", rejection.retry_after.map(time)),
        ("headers", pairs(&rejection.headers)),
    ])
}

fn reason(reason: &Reason) -> Option<Value> {
    word(&reason.code.0)
}

impl ToJson for Identified {
    fn to_json(&self) -> Value {
        let identity = match self {
            Self::Reject(no) => return rejection(no),
            Self::Unknown => return json!({"decision": self.as_str()}),
            Self::Known(identity, code) => (identity, code),
        };
        let (identity, code) = identity;
        object([
            ("decision", word(self.as_str())),
            ("reason", word(&code.0)),
            ("tenant", word(&identity.tenant)),
            ("priority", identity.priority.map(|priority| json!(priority))),
            ("attributes", pairs(&identity.attributes)),
        ])
    }
}

impl ToJson for Transformed {
    fn to_json(&self) -> Value {
        let edits = match self {
            Self::Reject(no) => return rejection(no),
            Self::Keep => return json!({"decision": self.as_str()}),
            Self::Edit(edits) => edits,
        };
        object([
            ("decision", word(self.as_str())),
            ("reason", word(&edits.code.0)),
            ("model", edits.model.clone().map(Value::from)),
            ("set_headers", pairs(&edits.set_headers)),
            ("remove_headers", {
                let removed = &edits.remove_headers;
                (!removed.is_empty()).then(|| json!(removed))
            }),
            ("answer_headers", pairs(&edits.answer_headers)),
        ])
    }
}

impl ToJson for Choice {
    /// `pick` and `scores` name candidates by id: names are the caller's to add.
    fn to_json(&self) -> Value {
        match self {
            Self::Reject(no) => rejection(no),
            Self::Abstain => json!({"decision": self.as_str()}),
            Self::Scores(scores, code) => {
                let scores: Map<_, _> =
                    scores.iter().map(|(id, score)| (id.to_string(), rounded(*score))).collect();
                json!({"decision": self.as_str(), "reason": &*code.0, "scores": scores})
            }
            Self::Pick(id, code) => {
                json!({"decision": self.as_str(), "reason": &*code.0, "pick": id})
            }
        }
    }
}

/// An `f32` as the decimal number that it is nearest to: 0.8 and not 0.800000011920929.
fn rounded(score: f32) -> Value {
    score.to_string().parse::<f64>().map_or(Value::Null, Value::from)
}

impl ToJson for Decision {
    fn to_json(&self) -> Value {
        match self {
            Self::Reject(no) => rejection(no),
            Self::Admit(admission) => self::admission(admission),
        }
    }
}

fn admission(admission: &Admission) -> Value {
    object([
        ("decision", word("admit")),
        ("reason", word(&admission.code.0)),
        ("plan", plan(&admission.proposal)),
        ("watch", admission.watch.as_ref().map(watch)),
        ("note", unless_empty(&admission.note)),
        ("headers", pairs(&admission.headers)),
    ])
}

fn plan(plan: &PlanProposal) -> Option<Value> {
    let deadlines = plan.deadlines;
    let plan = object([
        ("priority", plan.priority.map(|priority| json!(priority))),
        ("queue", deadlines.queue.map(time)),
        ("first_token", deadlines.first_token.map(time)),
        ("inter_token", deadlines.inter_token.map(time)),
        ("total", deadlines.total.map(time)),
        ("on_disconnect", plan.on_disconnect.map(disconnect)),
        ("max_tokens", plan.tokens_max.map(Value::from)),
    ]);
    plan.as_object().is_some_and(|plan| !plan.is_empty()).then_some(plan)
}

fn disconnect(action: DisconnectAction) -> Value {
    let within = |limits: DrainLimits| json!({"max_time": time(limits.time_max), "max_tokens": limits.tokens_max});
    match action {
        DisconnectAction::Cancel => "cancel".into(),
        DisconnectAction::Drain(limits) => json!({"drain": within(limits)}),
        DisconnectAction::Detach(limits) => json!({"detach": within(limits)}),
    }
}

/// What a policy watches.
pub fn watch(watch: &Watch) -> Value {
    let events = watch.events;
    let names = [
        (events.queued, "queued"),
        (events.dispatched, "dispatched"),
        (events.first_token, "first_token"),
        (events.stalled, "stalled"),
        (events.timed_out, "timed_out"),
        (events.disconnected, "disconnected"),
        (events.preempted, "preempted"),
    ];
    let names: Vec<_> = names.into_iter().filter_map(|(on, name)| on.then_some(name)).collect();
    let (guarding, window) = match watch.guarding {
        Guarding::Off => ("off", None),
        Guarding::Observe(size) => ("observe", Some(size)),
        Guarding::Gate(size) => ("gate", Some(size)),
    };
    object([
        ("events", Some(json!(names))),
        ("stalled_after", watch.stalled_after.map(time)),
        ("guarding", word(guarding)),
        ("window_tokens", window.map(|size| size.tokens.into())),
        ("window_max_delay", window.map(|size| time(size.delay_max))),
    ])
}

impl ToJson for Verdict {
    fn to_json(&self) -> Value {
        let decision = ("decision", word(self.as_str()));
        match self {
            Self::Pass => object([decision]),
            Self::Hold(bytes) => object([decision, ("hold", Some((*bytes).into()))]),
            Self::Replace { text, hold, reason: why } => object([
                decision,
                ("text", word(text)),
                ("hold", Some((*hold).into())),
                ("reason", reason(why)),
            ]),
            Self::Stop { text, reason: why } => {
                object([decision, ("text", word(text)), ("reason", reason(why))])
            }
            Self::Abort(why) => object([decision, ("reason", reason(why))]),
        }
    }
}

impl ToJson for Reaction {
    fn to_json(&self) -> Value {
        let decision = ("decision", word(self.as_str()));
        match self {
            Self::Keep => object([decision]),
            Self::Cancel(why) => object([decision, ("reason", reason(why))]),
            Self::Amend(proposal, code) => {
                object([decision, ("reason", word(&code.0)), ("plan", plan(proposal))])
            }
            Self::Disconnect(action, code) => {
                let action = Some(disconnect(*action));
                object([decision, ("reason", word(&code.0)), ("action", action)])
            }
        }
    }
}
