//! Policies of closures, and requests to put before them.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use interlock_metrics::Registry;
use interlock_request::{
    Endpoint, Generation, ModelId, Outcome, Priority, RequestId, Sampling, Usage,
};

use crate::{
    AdmissionOutcome, ChainEntry, ChainShared, LimitsConfig, PolicyChain, PolicyMetrics,
    PolicyRefusal, at_once,
};
use interlock_policy_api::{
    Admission, Answer, Body, Caller, Candidate, Choice, Decision, Event, Facts, FailureKind,
    Headers, Identified, Identity, Load, Phase, Policy, PolicyFailure, Progress, Prompt, Reaction,
    RequestContext, Summary, Transformed, Verdict, Watch, Window,
};

type Call<A, R> = Option<Box<dyn Fn(A) -> Answer<R> + Send + Sync>>;
type Differs = Option<Box<dyn Fn(&Window<'_>) -> Answer<Verdict> + Send + Sync>>;
type Change = Option<Box<dyn Fn(&Facts, &Body) -> Answer<Transformed> + Send + Sync>>;
type Place = Option<Box<dyn Fn(&[Candidate]) -> Answer<Choice> + Send + Sync>>;

/// A policy that takes part in what it has a closure for, and accounts.
pub(crate) struct Fake {
    pub(crate) name: &'static str,
    pub(crate) version: &'static str,
    pub(crate) slow: bool,
    pub(crate) watch: Watch,
    pub(crate) headers: Vec<String>,
    pub(crate) identify: Call<Caller, Identified>,
    pub(crate) transform: Change,
    pub(crate) route: Place,
    /// With how many others of its tenant.
    pub(crate) admit: Call<u32, Decision>,
    pub(crate) window: Differs,
    pub(crate) event: Call<(Event, String), Reaction>,
    /// Each account waits for a word on it, or for its end.
    pub(crate) account: Option<Mutex<std::sync::mpsc::Receiver<()>>>,
    pub(crate) told: Arc<FakeLog>,
}

/// What a fake was told of ends.
#[derive(Default)]
pub(crate) struct FakeLog {
    /// Serial, note and summary.
    pub(crate) accounts: Mutex<Vec<(u64, String, Summary)>>,
    pub(crate) forgotten: Mutex<Vec<u64>>,
    /// Whether what was forgotten had run.
    pub(crate) ran: Mutex<Vec<bool>>,
}

impl FakeLog {
    pub(crate) fn closings(&self) -> Vec<&'static str> {
        self.accounts.lock().unwrap().iter().map(|(.., summary)| summary.closing.as_str()).collect()
    }

    pub(crate) fn forgotten(&self) -> Vec<u64> {
        self.forgotten.lock().unwrap().clone()
    }
}

impl Fake {
    pub(crate) fn named(name: &'static str) -> Self {
        Self {
            name,
            version: "1.0.0",
            slow: false,
            watch: Watch::default(),
            headers: Vec::new(),
            identify: None,
            transform: None,
            route: None,
            admit: None,
            window: None,
            event: None,
            account: None,
            told: Arc::default(),
        }
    }

    /// One that gives this answer to `admit`.
    pub(crate) fn admitting(name: &'static str, answer: Answer<Decision>) -> Self {
        Self { admit: Some(Box::new(move |_| answer.clone())), ..Self::named(name) }
    }

    pub(crate) fn entry(self) -> ChainEntry {
        ChainEntry::new(Arc::new(self), crate::OnFailure::default())
    }
}

impl Policy for Fake {
    fn name(&self) -> &str {
        self.name
    }
    fn version(&self) -> &str {
        self.version
    }
    fn takes(&self, phase: Phase) -> bool {
        match phase {
            Phase::Identify => self.identify.is_some(),
            Phase::Transform => self.transform.is_some(),
            Phase::Route => self.route.is_some(),
            Phase::Admit => self.admit.is_some(),
            Phase::StreamGuard => self.window.is_some(),
            Phase::Events => self.event.is_some(),
            Phase::Account => true,
        }
    }
    fn call_time(&self) -> interlock_policy_api::CallTime {
        if self.slow {
            interlock_policy_api::CallTime::Waits
        } else {
            interlock_policy_api::CallTime::AtOnce
        }
    }
    fn wants_content(&self) -> bool {
        self.transform.is_some()
    }
    fn headers(&self) -> &[String] {
        &self.headers
    }
    fn reasons(&self) -> &[String] {
        static REASONS: std::sync::LazyLock<Vec<String>> =
            std::sync::LazyLock::new(|| vec!["known".into()]);
        &REASONS
    }
    fn watch(&self) -> Watch {
        self.watch
    }
    fn identify(&self, caller: &Caller) -> Answer<Identified> {
        self.identify.as_ref().expect("it identifies")(caller.clone())
    }
    fn transform(&self, facts: &Facts, body: &Body) -> Answer<Transformed> {
        self.transform.as_ref().expect("it transforms")(facts, body)
    }
    fn route(&self, _: &Facts, candidates: &[Candidate], _: &Body) -> Answer<Choice> {
        self.route.as_ref().expect("it routes")(candidates)
    }
    fn admit(&self, _: &Facts, _: &Load, others: u32, _: &Body) -> Answer<Decision> {
        self.admit.as_ref().expect("it admits")(others)
    }
    fn window(&self, _: RequestContext<'_>, window: &Window<'_>) -> Answer<Verdict> {
        self.window.as_ref().expect("it guards")(window)
    }
    fn event(&self, request: RequestContext<'_>, event: &Event, _: &Progress) -> Answer<Reaction> {
        self.event.as_ref().expect("it hears")((*event, request.note.to_owned()))
    }
    fn account(&self, request: RequestContext<'_>, summary: &Summary) -> Answer<()> {
        assert!(
            !self.told.forgotten().contains(&request.facts.serial),
            "asked about what it was to forget"
        );
        if let Some(gone) = &self.account {
            let _ = gone.lock().unwrap().recv();
        }
        let line = (request.facts.serial, request.note.to_owned(), summary.clone());
        self.told.accounts.lock().unwrap().push(line);
        Ok(())
    }
    fn forget(&self, serial: u64, ran: bool) {
        self.told.forgotten.lock().unwrap().push(serial);
        self.told.ran.lock().unwrap().push(ran);
    }
}

pub(crate) fn failure(kind: FailureKind) -> PolicyFailure {
    PolicyFailure { kind, message: "on purpose".into() }
}

pub(crate) fn chain(entries: Vec<ChainEntry>) -> (Arc<PolicyChain>, Registry) {
    let registry = Registry::new();
    let shared = ChainShared::in_line(PolicyMetrics::register(&registry));
    let chain = PolicyChain::new(entries, LimitsConfig::default().ceilings(), shared);
    (Arc::new(chain), registry)
}

pub(crate) const SERIAL: u64 = 7;

pub(crate) fn id() -> RequestId {
    RequestId::parse("r1").expect("an id")
}

pub(crate) fn facts() -> Facts {
    Facts {
        serial: SERIAL,
        request_id: id(),
        arrived_at_micros: 0,
        endpoint: Endpoint::Chat,
        model: ModelId::new("m"),
        streaming: false,
        background: false,
        prompt_tokens: 1,
        tokens_max: 100,
        tokens_max_asked: true,
        body_bytes: 2,
        prefix_key: 0,
        identity: Identity { tenant: "acme".into(), ..Identity::default() },
        headers: Headers::default(),
    }
}

pub(crate) fn caller() -> Caller {
    Caller {
        serial: SERIAL,
        request_id: id(),
        arrived_at_micros: 0,
        endpoint: Endpoint::Chat,
        credential: String::new(),
        address: "127.0.0.1".into(),
        headers: Headers::default(),
        looks_up: false,
    }
}

pub(crate) fn generation() -> Generation {
    Generation {
        sampling: Sampling::greedy(),
        tokens_max: 100,
        tokens_min: 50,
        stop_tokens: vec![],
        logprobs: None,
        priority: Priority::Standard,
    }
}

pub(crate) fn body() -> Arc<Body> {
    Arc::new(Body::new(b"{}".to_vec()))
}

pub(crate) fn prompt() -> Prompt {
    Prompt::new(vec![1]).expect("a token")
}

/// What the chain makes of a request at `admit`.
pub(crate) fn admit(
    chain: &Arc<PolicyChain>,
    facts: Facts,
) -> Result<AdmissionOutcome, PolicyRefusal> {
    let review = chain.review(facts.serial, facts.request_id.clone());
    at_once(review.admit(facts, &Load::default(), prompt(), generation(), &body()))
}

pub(crate) fn outcome_of(entries: Vec<ChainEntry>) -> AdmissionOutcome {
    admit(&chain(entries).0, facts()).expect("nobody objects")
}

pub(crate) fn outcome_with(entries: Vec<ChainEntry>, shared: ChainShared) -> AdmissionOutcome {
    let chain = PolicyChain::new(entries, LimitsConfig::default().ceilings(), shared);
    admit(&Arc::new(chain), facts()).expect("nobody objects")
}

pub(crate) fn let_in(admission: Admission) -> Answer<Decision> {
    Ok(Decision::Admit(admission))
}

pub(crate) fn summary(outcome: Outcome) -> Summary {
    Summary {
        closing: outcome.into(),
        usage: Usage::default(),
        queue_time: None,
        time_to_first_token: None,
        total: Duration::ZERO,
    }
}
