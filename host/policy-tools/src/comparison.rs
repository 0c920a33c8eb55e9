//! Recorded traffic before the policies of then and one more.
//!
//! The policies of the record stand in a chain, each saying what it said; behind them stands the
//! new one, which is asked in truth. What the chain decides with it and without it is compared: it
//! is the host's own chain, so plans are merged and rejections end a request as they do there.
//!
//! # Not here
//!
//! Bodies, which no record holds: to a policy that reads them they are `null`. Accounts and events:
//! what a policy reserves for a request is released when its last question was answered. Weights of
//! recorded scores, which no record holds either: each counts as 1. What a policy of then would
//! have said of a request that the new one changes: it says what it said.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use interlock_policy_api::{
    Answer, Body, CallTime, Caller, Candidate, Ceilings, Choice, Decision, Facts, Identified, Load,
    Phase, Policy, PolicyFailure, Prompt, Transformed,
};
use interlock_policy_chain::{
    AnyAnswer, ChainEntry, ChainShared, DecisionRecord, OnFailure, PhaseQuestion, PolicyChain,
    PolicyMetrics, Record, RecordSink, Ruling,
};
use interlock_request::{Generation, Priority, RequestId, Sampling};
use serde_json::{Value, json};

use crate::clock::ManualClock;
use crate::differences::differences;
use crate::replay::{BadTrace, about, records};
use crate::table::Table;

/// What became of the requests of a trace with one more policy.
#[derive(Debug, Default)]
pub struct TraceComparison {
    requests: u64,
    questions: u64,
    /// What it was and what it is.
    changes: BTreeMap<(String, String), u64>,
    changed: Vec<ChangedRequest>,
}

/// A request of which something else becomes.
#[derive(Debug)]
struct ChangedRequest {
    request: RequestId,
    was: Value,
    is: Value,
}

/// What the chain decided about one request.
#[derive(Debug, PartialEq)]
struct RequestOutcome {
    ruled: Ruling,
    /// The model that `route` chose.
    model: Option<String>,
}

/// Puts the policy of `entry` behind those of a trace, under these ceilings, and compares what
/// becomes of each request with what became of it without.
///
/// # Errors
///
/// When a line is no record.
pub fn compare(
    trace: &str,
    entry: &ChainEntry,
    ceilings: Ceilings,
    clock: &ManualClock,
) -> Result<TraceComparison, BadTrace> {
    let verdicts = Arc::new(Verdicts::default());
    let metrics = PolicyMetrics::register(&interlock_metrics::Registry::new());
    let shared =
        ChainShared::in_line(metrics).recording(Arc::clone(&verdicts) as Arc<dyn RecordSink>);
    let new = Arc::new(NewPolicy::of(entry));
    let runtime = in_line();
    let mut found = TraceComparison::default();
    let mut began = None;
    for record in records(trace) {
        let record = record?;
        let Some(first) = record.steps.first() else { continue };
        let (id, serial, at) = about(&first.asked);
        let began = *began.get_or_insert(at);
        let recorded = recorded(&record);
        let replay = |entries: Vec<ChainEntry>| {
            let chain = Arc::new(PolicyChain::new(entries, ceilings, shared.clone()));
            let questions = Questions { record: &record, clock, began, new: &new };
            let model = runtime.block_on(questions.all(&chain, serial, &id));
            RequestOutcome { ruled: verdicts.take(), model }
        };
        let was = replay(recorded.clone());
        let asked_before = new.questions.load(Ordering::Relaxed);
        let with = ChainEntry { policy: Arc::clone(&new) as Arc<dyn Policy>, ..entry.clone() };
        let is = replay(recorded.into_iter().chain([with]).collect());
        found.requests += 1;
        found.questions += u64::from(new.questions.load(Ordering::Relaxed) - asked_before);
        if was != is {
            *found.changes.entry((was.short(), is.short_beside(&was))).or_default() += 1;
            let (was, is) = (was.to_json(), is.to_json());
            found.changed.push(ChangedRequest { request: id, was, is });
        }
    }
    Ok(found)
}

/// An entry for each answer of a record, which gives that answer and no other. In each phase they
/// are in the order in which they answered.
fn recorded(record: &Record) -> Vec<ChainEntry> {
    let said = record.steps.iter().flat_map(|step| &step.decisions);
    said.filter(|said| !said.shadow).map(RecordedAnswer::entry).collect()
}

/// The policies' verdict on the request that was asked about last.
#[derive(Default)]
struct Verdicts(Mutex<Option<Ruling>>);

impl RecordSink for Verdicts {
    fn take(&self, record: Record) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(record.verdict);
    }
}

impl Verdicts {
    /// Of a request that nobody was asked about there is none: it goes on.
    fn take(&self) -> Ruling {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take().unwrap_or(Ruling::Open)
    }
}

/// Everything is called in line, so nothing is ever waited for.
fn in_line() -> tokio::runtime::Runtime {
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    runtime.expect("a runtime without drivers takes nothing of the system")
}

/// The questions of one request, in order.
struct Questions<'a> {
    record: &'a Record,
    clock: &'a ManualClock,
    began: u64,
    new: &'a NewPolicy,
}

impl Questions<'_> {
    /// Asks until someone refuses. The model that was chosen, if one was.
    async fn all(&self, chain: &Arc<PolicyChain>, serial: u64, id: &RequestId) -> Option<String> {
        let mut review = chain.review(serial, id.clone());
        let body = Arc::new(Body::new(b"null".to_vec()));
        let (mut known, mut model) = (None, None);
        for step in &self.record.steps {
            let (.., at) = about(&step.asked);
            self.clock.set(Duration::from_micros(at.saturating_sub(self.began)));
            let with_known = |facts: &Facts| match &known {
                Some(identity) => Facts { identity: Clone::clone(identity), ..facts.clone() },
                None => facts.clone(),
            };
            match &step.asked {
                PhaseQuestion::Identify(caller) => {
                    known = Some(review.identify(caller).await.ok()?);
                }
                PhaseQuestion::Transform(facts) => {
                    let mut facts = with_known(facts);
                    review.transform(&mut facts, &body).await.ok()?;
                }
                PhaseQuestion::Route { facts, candidates } => {
                    let place = review.route(&with_known(facts), candidates, &body).await.ok()?;
                    let chosen = |candidate: &&Candidate| Some(candidate.id) == place;
                    model = candidates.iter().find(chosen).map(|c| c.model.to_string());
                }
                PhaseQuestion::Admit { facts, load, tenant_in_flight } => {
                    self.new.tenant_in_flight.store(*tenant_in_flight, Ordering::Relaxed);
                    let facts = with_known(facts);
                    let prompt = Prompt::new(vec![0]).expect("there is a token");
                    let generation = generation(facts.tokens_max);
                    let _ = review.admit(facts, load, prompt, generation, &body).await;
                    return model;
                }
            }
        }
        model
    }
}

/// As much as the chain reads of it.
fn generation(tokens_max: u32) -> Generation {
    Generation {
        sampling: Sampling::greedy(),
        tokens_max,
        tokens_min: 0,
        stop_tokens: vec![],
        logprobs: None,
        priority: Priority::Standard,
    }
}

/// Says once what a policy said.
struct RecordedAnswer(DecisionRecord);

impl RecordedAnswer {
    fn entry(said: &DecisionRecord) -> ChainEntry {
        let mut on_failure = OnFailure::default();
        if let Some(action) = said.fallback {
            match said.phase {
                Phase::Identify => on_failure.identify = action,
                Phase::Transform => on_failure.transform = action,
                Phase::Route => on_failure.route = action,
                _ => on_failure.admit = action,
            }
        }
        ChainEntry::new(Arc::new(Self(said.clone())), on_failure)
    }

    fn answer<T>(&self, of: impl FnOnce(AnyAnswer) -> Option<T>) -> Answer<T> {
        // A record says of each answer which phase it is of; one that lies is a policy that failed.
        let other = || PolicyFailure::bad_output("the record has another phase's answer here");
        self.0.decision.clone().and_then(|answered| of(answered).ok_or_else(other))
    }
}

impl Policy for RecordedAnswer {
    fn name(&self) -> &str {
        &self.0.policy
    }

    fn version(&self) -> &str {
        &self.0.version
    }

    fn takes(&self, phase: Phase) -> bool {
        phase == self.0.phase
    }

    fn identify(&self, _: &Caller) -> Answer<Identified> {
        self.answer(|answered| match answered {
            AnyAnswer::Identify(answer) => Some(answer),
            _ => None,
        })
    }

    fn transform(&self, _: &Facts, _: &Body) -> Answer<Transformed> {
        self.answer(|answered| match answered {
            AnyAnswer::Transform(answer) => Some(answer),
            _ => None,
        })
    }

    fn route(&self, _: &Facts, _: &[Candidate], _: &Body) -> Answer<Choice> {
        self.answer(|answered| match answered {
            AnyAnswer::Route(answer) => Some(answer),
            _ => None,
        })
    }

    fn admit(&self, _: &Facts, _: &Load, _: u32, _: &Body) -> Answer<Decision> {
        self.answer(|answered| match answered {
            AnyAnswer::Admit(answer) => Some(answer),
            _ => None,
        })
    }
}

/// The one that was not there. It hears of no end: nobody knows how long a request would have
/// taken.
struct NewPolicy {
    policy: Arc<dyn Policy>,
    /// As recorded: the requests of the tenant that were inside then.
    tenant_in_flight: AtomicU32,
    questions: AtomicU32,
}

impl NewPolicy {
    fn of(entry: &ChainEntry) -> Self {
        let (tenant_in_flight, questions) = Default::default();
        Self { policy: Arc::clone(&entry.policy), tenant_in_flight, questions }
    }

    fn count<T>(&self, answer: Answer<T>) -> Answer<T> {
        self.questions.fetch_add(1, Ordering::Relaxed);
        answer
    }
}

impl Policy for NewPolicy {
    fn name(&self) -> &str {
        self.policy.name()
    }

    fn version(&self) -> &str {
        self.policy.version()
    }

    fn takes(&self, phase: Phase) -> bool {
        let asks =
            matches!(phase, Phase::Identify | Phase::Transform | Phase::Route | Phase::Admit);
        asks && self.policy.takes(phase)
    }

    fn call_time(&self) -> CallTime {
        CallTime::AtOnce
    }

    fn wants_content(&self) -> bool {
        self.policy.wants_content()
    }

    fn headers(&self) -> &[String] {
        self.policy.headers()
    }

    fn reasons(&self) -> &[String] {
        self.policy.reasons()
    }

    fn identify(&self, caller: &Caller) -> Answer<Identified> {
        self.count(self.policy.identify(caller))
    }

    fn transform(&self, facts: &Facts, body: &Body) -> Answer<Transformed> {
        self.count(self.policy.transform(facts, body))
    }

    fn route(&self, facts: &Facts, candidates: &[Candidate], body: &Body) -> Answer<Choice> {
        self.count(self.policy.route(facts, candidates, body))
    }

    fn admit(&self, facts: &Facts, load: &Load, _: u32, body: &Body) -> Answer<Decision> {
        let tenant_in_flight = self.tenant_in_flight.load(Ordering::Relaxed);
        self.count(self.policy.admit(facts, load, tenant_in_flight, body))
    }

    fn forget(&self, serial: u64, _: bool) {
        // How it ended is not asked about here, so nothing is left charged either.
        self.policy.forget(serial, false);
    }
}

impl RequestOutcome {
    fn short(&self) -> String {
        match &self.ruled {
            Ruling::Admitted { .. } => "admitted".to_owned(),
            Ruling::Refused { policy, phase, code, status } => {
                format!("refused {status} ({code}) by {policy} in {}", phase.as_str())
            }
            Ruling::Open => "open".to_owned(),
        }
    }

    fn short_beside(&self, was: &Self) -> String {
        match (&was.ruled, &self.ruled) {
            (Ruling::Admitted { .. }, Ruling::Admitted { .. }) if self.model == was.model => {
                "admitted, under another plan".to_owned()
            }
            (Ruling::Admitted { .. }, Ruling::Admitted { .. }) => {
                format!("admitted to {}", self.model.as_deref().unwrap_or("no model in particular"))
            }
            _ => self.short(),
        }
    }

    fn to_json(&self) -> Value {
        json!({"outcome": self.ruled, "model": self.model})
    }
}

impl TraceComparison {
    /// Requests of which something else becomes.
    pub fn differences(&self) -> usize {
        self.changed.len()
    }

    /// All results as JSON.
    pub fn to_json(&self) -> Value {
        let change = |((was, is), count): (&(String, String), &u64)| json!({"was": was, "is": is, "count": count});
        let changed = |it: &ChangedRequest| json!({"request": it.request.to_string(), "was": it.was, "is": it.is});
        json!({
            "requests": self.requests, "questions": self.questions,
            "changes": self.changes.iter().map(change).collect::<Vec<_>>(),
            "changed": self.changed.iter().map(changed).collect::<Vec<_>>(),
        })
    }
}

/// Requests that are shown one by one.
const SHOWN: usize = 20;

impl fmt::Display for TraceComparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { requests, questions, changes, changed } = self;
        let same = requests - changed.len() as u64;
        writeln!(
            f,
            "{requests} requests, {questions} questions to the new policy: {same} requests go on \
             as they did, {} otherwise",
            changed.len()
        )?;
        if changed.is_empty() {
            return Ok(());
        }
        let mut table = Table::new(&["was", "is", ">count"]);
        for ((was, is), count) in changes {
            table.row([was.clone(), is.clone(), count.to_string()]);
        }
        writeln!(f, "\n{table}")?;
        let mut table = Table::new(&["request", "what", "was", "is"]);
        for ChangedRequest { request, was, is } in changed.iter().take(SHOWN) {
            for difference in differences(was, is) {
                table.row([
                    request.to_string(),
                    difference.at,
                    difference.expected,
                    difference.got,
                ]);
            }
        }
        write!(f, "{table}")?;
        match changed.len().saturating_sub(SHOWN) {
            0 => Ok(()),
            more => writeln!(f, "  ... and {more} more; --json has them all"),
        }
    }
}
