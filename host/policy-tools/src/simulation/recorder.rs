//! Wraps each policy and records what it was asked and what it answered.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use interlock_policy_api::{
    Answer, Body, CallTime, Caller, Candidate, Choice, Code, Decision, Event, Facts, Identified,
    Load, Phase, Policy, Progress, Reaction, RequestContext, Summary, Transformed, Verdict, Watch,
    Window,
};
use interlock_policy_chain::{ChainEntry, OnFailure};

/// What was said, by policy, phase, decision and reason.
pub(super) type DecisionKey = (String, &'static str, String, String);

/// All that was recorded. Clones share one recording.
#[derive(Clone, Default)]
pub(super) struct Recording(Arc<Mutex<Recorded>>);

#[derive(Default)]
pub(super) struct Recorded {
    pub(super) said: BTreeMap<DecisionKey, u64>,
    /// Whether the chain has policies besides the simulation's own.
    pub(super) policies: bool,
    /// The policies that take part in `account`.
    pub(super) accounting: BTreeSet<String>,
    /// By policy and request: what is owed to it, and what it got.
    pub(super) accounts_owed: BTreeMap<(String, u64), AccountsOwed>,
    /// By request: how it ended. Only what was admitted.
    pub(super) ended: BTreeMap<u64, Vec<EndedRequest>>,
    /// By request: how often the policies were told to forget it.
    pub(super) forgotten: BTreeMap<u64, u32>,
}

/// An account that is owed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct AccountsOwed {
    pub(super) owed: bool,
    pub(super) accounts: u32,
}

/// How an admitted request ended.
#[derive(Debug, Clone)]
pub(super) struct EndedRequest {
    pub(super) id: String,
    pub(super) tokens_max: u32,
    pub(super) summary: Summary,
}

impl Recording {
    /// These entries with a recorder around each policy, and one more entry at the end.
    pub(super) fn recorded_by(&self, entries: Vec<ChainEntry>) -> Vec<ChainEntry> {
        self.recorded().policies = !entries.is_empty();
        let beside = |policy: Arc<dyn Policy>| -> Arc<dyn Policy> {
            if policy.takes(Phase::Account) {
                self.recorded().accounting.insert(policy.name().to_owned());
            }
            Arc::new(Recorder { policy, recording: self.clone() })
        };
        let mut all: Vec<ChainEntry> = entries
            .into_iter()
            .map(|entry| ChainEntry {
                policy: beside(entry.policy),
                previous: entry.previous.map(beside),
                ..entry
            })
            .collect();
        let last = Arc::new(EndRecorder { recording: self.clone() });
        all.push(ChainEntry::new(last, OnFailure::default()));
        all
    }

    pub(super) fn recorded(&self) -> MutexGuard<'_, Recorded> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Recorder {
    policy: Arc<dyn Policy>,
    recording: Recording,
}

impl Recorder {
    fn note<T>(&self, phase: Phase, answer: &Answer<T>, said: impl Fn(&T) -> (String, String)) {
        let (decision, reason) = match answer {
            Ok(answer) => said(answer),
            Err(failure) => ("failure".to_owned(), failure.kind.as_str().to_owned()),
        };
        let saying = (self.policy.name().to_owned(), phase.as_str(), decision, reason);
        *self.recording.recorded().said.entry(saying).or_default() += 1;
    }

    fn owe(&self, serial: u64, owed: bool) {
        let mut recorded = self.recording.recorded();
        let account =
            recorded.accounts_owed.entry((self.policy.name().to_owned(), serial)).or_default();
        account.owed = owed;
    }
}

fn with(label: &str, code: &Code) -> (String, String) {
    (label.to_owned(), code.0.to_string())
}

fn only(label: &str) -> (String, String) {
    (label.to_owned(), String::new())
}

impl Policy for Recorder {
    fn name(&self) -> &str {
        self.policy.name()
    }

    fn version(&self) -> &str {
        self.policy.version()
    }

    fn takes(&self, phase: Phase) -> bool {
        self.policy.takes(phase)
    }

    fn call_time(&self) -> CallTime {
        self.policy.call_time()
    }

    fn wants_content(&self) -> bool {
        self.policy.wants_content()
    }

    fn headers(&self) -> &[String] {
        self.policy.headers()
    }

    fn watch(&self) -> Watch {
        self.policy.watch()
    }

    fn reasons(&self) -> &[String] {
        self.policy.reasons()
    }

    fn identify(&self, caller: &Caller) -> Answer<Identified> {
        let answer = self.policy.identify(caller);
        self.note(Phase::Identify, &answer, |said| match said {
            Identified::Known(_, code) => with(said.as_str(), code),
            Identified::Unknown => only(said.as_str()),
            Identified::Reject(no) => with(said.as_str(), &no.reason.code),
        });
        answer
    }

    fn transform(&self, facts: &Facts, body: &Body) -> Answer<Transformed> {
        let answer = self.policy.transform(facts, body);
        self.note(Phase::Transform, &answer, |said| match said {
            Transformed::Keep => only(said.as_str()),
            Transformed::Edit(edits) => with(said.as_str(), &edits.code),
            Transformed::Reject(no) => with(said.as_str(), &no.reason.code),
        });
        answer
    }

    fn route(&self, facts: &Facts, candidates: &[Candidate], body: &Body) -> Answer<Choice> {
        let answer = self.policy.route(facts, candidates, body);
        let name = |id: u32| {
            let found = candidates.iter().find(|candidate| candidate.id == id);
            found.map_or("?", |candidate| candidate.model.as_str())
        };
        self.note(Phase::Route, &answer, |said| match said {
            Choice::Abstain => only(said.as_str()),
            Choice::Scores(_, code) => with(said.as_str(), code),
            Choice::Pick(id, code) => (format!("pick {}", name(*id)), code.0.to_string()),
            Choice::Reject(no) => with(said.as_str(), &no.reason.code),
        });
        answer
    }

    fn admit(&self, facts: &Facts, load: &Load, in_flight: u32, body: &Body) -> Answer<Decision> {
        let answer = self.policy.admit(facts, load, in_flight, body);
        self.note(Phase::Admit, &answer, |said| match said {
            Decision::Admit(admission) => with(said.as_str(), &admission.code),
            Decision::Reject(no) => with(said.as_str(), &no.reason.code),
        });
        self.owe(facts.serial, !matches!(answer, Ok(Decision::Reject(_))));
        answer
    }

    fn window(&self, request: RequestContext<'_>, window: &Window<'_>) -> Answer<Verdict> {
        let answer = self.policy.window(request, window);
        self.note(Phase::StreamGuard, &answer, |said| match said {
            Verdict::Pass | Verdict::Hold(_) => only(said.as_str()),
            Verdict::Replace { reason, .. } | Verdict::Stop { reason, .. } => {
                with(said.as_str(), &reason.code)
            }
            Verdict::Abort(reason) => with(said.as_str(), &reason.code),
        });
        answer
    }

    fn event(
        &self,
        request: RequestContext<'_>,
        event: &Event,
        progress: &Progress,
    ) -> Answer<Reaction> {
        let answer = self.policy.event(request, event, progress);
        let what = match event {
            Event::Queued(_) => "queued",
            Event::Dispatched => "dispatched",
            Event::FirstToken => "first_token",
            Event::Stalled(_) => "stalled",
            Event::TimedOut(_) => "timed_out",
            Event::Disconnected => "disconnected",
            Event::Preempted(_) => "preempted",
        };
        self.note(Phase::Events, &answer, |said| match said {
            Reaction::Cancel(reason) => (format!("{what}: cancel"), reason.code.0.to_string()),
            Reaction::Amend(_, code) | Reaction::Disconnect(_, code) => {
                (format!("{what}: {}", said.as_str()), code.0.to_string())
            }
            Reaction::Keep => (format!("{what}: keep"), String::new()),
        });
        answer
    }

    fn account(&self, request: RequestContext<'_>, summary: &Summary) -> Answer<()> {
        let answer = self.policy.account(request, summary);
        self.note(Phase::Account, &answer, |()| only(summary.closing.as_str()));
        let mut recorded = self.recording.recorded();
        let whose = (self.policy.name().to_owned(), request.facts.serial);
        recorded.accounts_owed.entry(whose).or_default().accounts += 1;
        answer
    }

    fn forget(&self, serial: u64, ran: bool) {
        self.policy.forget(serial, ran);
        *self.recording.recorded().forgotten.entry(serial).or_default() += 1;
    }
}

/// Records how every admitted request ended, and decides nothing.
struct EndRecorder {
    recording: Recording,
}

impl Policy for EndRecorder {
    fn name(&self) -> &str {
        "the-simulation"
    }

    fn version(&self) -> &str {
        "1"
    }

    fn takes(&self, phase: Phase) -> bool {
        phase == Phase::Account
    }

    fn account(&self, request: RequestContext<'_>, summary: &Summary) -> Answer<()> {
        let ended = EndedRequest {
            id: request.facts.request_id.to_string(),
            tokens_max: request.facts.tokens_max,
            summary: summary.clone(),
        };
        self.recording.recorded().ended.entry(request.facts.serial).or_default().push(ended);
        Ok(())
    }

    fn forget(&self, serial: u64, _ran: bool) {
        *self.recording.recorded().forgotten.entry(serial).or_default() += 1;
    }
}
