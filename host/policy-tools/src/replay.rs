//! Recorded traffic before another policy.
//!
//! A record holds the questions that were put and what each policy said. Here they are put again,
//! to one policy, at the time that they were asked at first, and the answers compared.
//!
//! # Not here
//!
//! Bodies, which no record holds: to a policy that reads them they are `null`. Other callers: who
//! asks is whoever the record says, with what the policy now says of that one. Accounts and events:
//! what a policy reserves for a request is released when its last question was answered.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use interlock_policy_api::{Facts, Identified, Identity, Phase, Policy, PolicyFailure};
use interlock_policy_chain::AnyAnswer;
use interlock_policy_chain::{PhaseQuestion, Record};
use interlock_request::RequestId;
use serde_json::{Value, json};

use crate::clock::ManualClock;
use crate::json::ToJson;
use crate::table::Table;

/// The differences between the recorded answers and those of another policy.
#[derive(Debug, Default)]
pub struct Replayed {
    requests: u64,
    questions: u64,
    same: u64,
    /// By phase, what it was and what it is.
    changes: BTreeMap<(&'static str, String, String), u64>,
    changed: Vec<ChangedAnswer>,
}

/// An answer that is another one now.
#[derive(Debug)]
struct ChangedAnswer {
    request: String,
    phase: Phase,
    was: Value,
    is: Value,
}

/// A trace that is none.
#[derive(Debug, thiserror::Error)]
pub enum BadTrace {
    /// A line is no record.
    #[error("line {line} is no record: {why}")]
    Line {
        /// Which, from 1.
        line: usize,
        /// What is wrong.
        why: String,
    },
    /// Nothing of it concerns this policy.
    #[error("nobody called {name:?} was asked anything in it; it has {has}")]
    Nobody {
        /// Who was looked for.
        name: String,
        /// Who is there.
        has: String,
    },
}

/// Puts the questions of a trace to `policy` and compares with what `name` said; without a name,
/// with the first policy that answered each.
///
/// # Errors
///
/// When a line is no record, or nobody of that name was asked.
pub fn replay(
    trace: &str,
    name: Option<&str>,
    policy: &dyn Policy,
    clock: &ManualClock,
) -> Result<Replayed, BadTrace> {
    let mut replayed = Replayed::default();
    let mut names: BTreeMap<String, u64> = BTreeMap::new();
    let mut began = None;
    for record in records(trace) {
        let record = record?;
        replayed.requests += 1;
        let (mut serial, mut known) = (None, None);
        for step in &record.steps {
            for said in &step.decisions {
                *names.entry(said.policy.to_string()).or_default() += 1;
            }
            let said =
                step.decisions.iter().find(|said| name.is_none_or(|name| &*said.policy == name));
            let (id, its_serial, at) = about(&step.asked);
            serial = Some(its_serial);
            let began = *began.get_or_insert(at);
            clock.set(Duration::from_micros(at.saturating_sub(began)));
            let was = said.map(|said| answer_json(&said.decision));
            let is = as_known(&step.asked, known.as_ref()).ask(policy);
            if let Some(Ok(AnyAnswer::Identify(Identified::Known(identity, _)))) = &is {
                known = Some(identity.clone());
            }
            let is = is.as_ref().map(answer_json);
            if was.is_none() && (is.is_none() || name.is_some_and(|name| !names.contains_key(name)))
            {
                continue;
            }
            let (was, is) = (was.unwrap_or_else(silent), is.unwrap_or_else(silent));
            replayed.questions += 1;
            if was == is {
                replayed.same += 1;
                continue;
            }
            let phase = step.asked.phase();
            let change = (phase.as_str(), short(&was), short(&is));
            *replayed.changes.entry(change).or_default() += 1;
            replayed.changed.push(ChangedAnswer { request: id.to_string(), phase, was, is });
        }
        if let Some(serial) = serial {
            // How it ended is not asked about here, so nothing is left charged either.
            policy.forget(serial, false);
        }
    }
    match name {
        Some(name) if replayed.requests > 0 && !names.contains_key(name) => {
            let has: Vec<_> = names.into_keys().collect();
            let has = if has.is_empty() { "nobody".to_owned() } else { has.join(", ") };
            Err(BadTrace::Nobody { name: name.to_owned(), has })
        }
        _ => Ok(replayed),
    }
}

/// The lines of a trace.
pub(crate) fn records(trace: &str) -> impl Iterator<Item = Result<Record, BadTrace>> {
    let lines = trace.lines().enumerate().filter(|(_, text)| !text.trim().is_empty());
    lines.map(|(line, text)| {
        let bad = |why| BadTrace::Line { line: line + 1, why };
        let record: Record = serde_json::from_str(text).map_err(|why| bad(why.to_string()))?;
        match record.version {
            Record::VERSION => Ok(record),
            other => Err(bad(format!("it is of format {other}, this is {}", Record::VERSION))),
        }
    })
}

/// The request that a question is about: its id, its serial, and when it came, in microseconds
/// since the Unix epoch.
pub(crate) fn about(asked: &PhaseQuestion) -> (RequestId, u64, u64) {
    match asked {
        PhaseQuestion::Identify(caller) => {
            (caller.request_id.clone(), caller.serial, caller.arrived_at_micros)
        }
        PhaseQuestion::Transform(facts)
        | PhaseQuestion::Route { facts, .. }
        | PhaseQuestion::Admit { facts, .. } => {
            (facts.request_id.clone(), facts.serial, facts.arrived_at_micros)
        }
    }
}

/// The question with what the policy itself said of the caller, if that is who asks: it may tell
/// itself something there for later.
fn as_known(asked: &PhaseQuestion, known: Option<&Identity>) -> PhaseQuestion {
    let mut asked = asked.clone();
    let facts: Option<&mut Facts> = match &mut asked {
        PhaseQuestion::Identify(_) => None,
        PhaseQuestion::Transform(facts)
        | PhaseQuestion::Route { facts, .. }
        | PhaseQuestion::Admit { facts, .. } => Some(facts),
    };
    if let (Some(facts), Some(known)) = (facts, known)
        && facts.identity.tenant == known.tenant
    {
        facts.identity.attributes.clone_from(&known.attributes);
    }
    asked
}

fn silent() -> Value {
    json!({"decision": "not asked"})
}

fn answer_json(answer: &Result<AnyAnswer, PolicyFailure>) -> Value {
    match answer {
        Ok(AnyAnswer::Identify(answer)) => answer.to_json(),
        Ok(AnyAnswer::Transform(answer)) => answer.to_json(),
        Ok(AnyAnswer::Route(answer)) => answer.to_json(),
        Ok(AnyAnswer::Admit(answer)) => answer.to_json(),
        Ok(AnyAnswer::Event(answer)) => answer.to_json(),
        Ok(AnyAnswer::Window(answer)) => answer.to_json(),
        Err(failure) => failure.to_json(),
    }
}

/// What a table has room for.
fn short(answer: &Value) -> String {
    let text = |key: &str| answer[key].as_str().unwrap_or_default();
    let status = answer["status"].as_u64().map(|status| format!(" {status}")).unwrap_or_default();
    let picked = answer["pick"].as_u64().map(|id| format!(" {id}")).unwrap_or_default();
    let why = match (text("reason"), text("failure")) {
        ("", "") => String::new(),
        ("", failure) => format!(" ({failure})"),
        (reason, _) => format!(" ({reason})"),
    };
    format!("{}{status}{picked}{why}", text("decision"))
}

impl Replayed {
    /// Answers that are other ones now.
    pub fn differences(&self) -> usize {
        self.changed.len()
    }

    /// All results as JSON.
    pub fn to_json(&self) -> Value {
        let change = |((phase, was, is), count): (&(&str, String, String), &u64)| json!({"phase": phase, "was": was, "is": is, "count": count});
        let changed = |changed: &ChangedAnswer| {
            json!({"request": changed.request, "phase": changed.phase.as_str(),
                "was": changed.was, "is": changed.is})
        };
        json!({
            "requests": self.requests, "questions": self.questions, "same": self.same,
            "changes": self.changes.iter().map(change).collect::<Vec<_>>(),
            "changed": self.changed.iter().map(changed).collect::<Vec<_>>(),
        })
    }
}

/// Requests that are shown one by one.
const SHOWN: usize = 20;

impl fmt::Display for Replayed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} requests, {} questions: {} answered as before, {} otherwise",
            self.requests,
            self.questions,
            self.same,
            self.changed.len()
        )?;
        if self.changed.is_empty() {
            return Ok(());
        }
        let mut table = Table::new(&["phase", "was", "is", ">count"]);
        for ((phase, was, is), count) in &self.changes {
            let same = was == is;
            let is = if same { format!("{is}, in other words") } else { is.clone() };
            table.row([(*phase).to_owned(), was.clone(), is, count.to_string()]);
        }
        writeln!(f, "\n{table}")?;
        let mut table = Table::new(&["request", "phase", "what", "was", "is"]);
        for ChangedAnswer { request, phase, was, is } in self.changed.iter().take(SHOWN) {
            for difference in crate::differences::differences(was, is) {
                let cells = [difference.at, difference.expected, difference.got];
                let who = [request.clone(), phase.as_str().to_owned()];
                table.row(who.into_iter().chain(cells));
            }
        }
        write!(f, "{table}")?;
        match self.changed.len().saturating_sub(SHOWN) {
            0 => Ok(()),
            more => writeln!(f, "  ... and {more} more; --json has them all"),
        }
    }
}
