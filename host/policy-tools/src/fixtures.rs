//! What a case gives a policy: facts, load, callers, candidates, windows, events and ends, as a
//! person writes them. What is left out is as in an ordinary request.

use std::collections::BTreeMap;
use std::time::Duration;

use interlock_policy_api::{
    Body, Caller, Candidate, Closing, Event, Facts, Headers, Identity, Load, Phase, Progress,
    Summary,
};
use interlock_request::{
    CancelCause, Deadline, Endpoint, Finish, ModelId, Outcome, Priority, RequestId, Usage,
};
use serde::Deserialize;
use sha2::{Digest, Sha256};

/// When cases and simulations begin, unless a file of cases says so: a moment that never changes,
/// so that none depends on the day it is run.
pub const EPOCH: Duration = Duration::from_secs(1_767_225_600); // 2026-01-01T00:00:00Z

/// `request`: the facts.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RequestFixture {
    pub(crate) id: String,
    endpoint: EndpointFixture,
    model: String,
    streaming: bool,
    background: bool,
    prompt_tokens: u32,
    /// 0: the client asked for nothing, and gets this many in `admit`.
    max_tokens: Option<u32>,
    body_bytes: Option<u64>,
    prefix_key: u64,
    tenant: String,
    priority: Option<Priority>,
    attributes: BTreeMap<String, String>,
    headers: BTreeMap<String, OneOrMore>,
    /// What the policy noted at admission. A case with an earlier `admit` step need not say.
    pub(crate) note: Option<String>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
enum OneOrMore {
    One(String),
    More(Vec<String>),
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
enum EndpointFixture {
    Chat,
    Completions,
    Responses,
}

impl Default for RequestFixture {
    fn default() -> Self {
        Self {
            id: "r-1".into(),
            endpoint: EndpointFixture::Chat,
            model: "sim".into(),
            streaming: true,
            background: false,
            prompt_tokens: 100,
            max_tokens: None,
            body_bytes: None,
            prefix_key: 0,
            tenant: String::new(),
            priority: None,
            attributes: BTreeMap::new(),
            headers: BTreeMap::new(),
            note: None,
        }
    }
}

impl RequestFixture {
    /// Tokens that a request may generate when a case does not say.
    const TOKENS_MAX: u32 = 4096;

    /// The facts as they are in this phase, when it is so long since the Unix epoch.
    pub(crate) fn facts(&self, serial: u64, now: Duration, phase: Phase) -> Result<Facts, String> {
        let early = matches!(phase, Phase::Transform | Phase::Route);
        Ok(Facts {
            serial,
            request_id: self.request_id()?,
            arrived_at_micros: micros(now),
            endpoint: self.endpoint(),
            model: ModelId::new(&self.model),
            streaming: self.streaming,
            background: self.background,
            prompt_tokens: self.prompt_tokens,
            tokens_max: self.max_tokens.unwrap_or(if early { 0 } else { Self::TOKENS_MAX }),
            tokens_max_asked: self.max_tokens.is_some(),
            body_bytes: self.body_bytes.unwrap_or(u64::from(self.prompt_tokens) * 4 + 100),
            prefix_key: self.prefix_key,
            identity: Identity {
                tenant: self.tenant.clone(),
                priority: self.priority,
                attributes: self.attributes.clone().into_iter().collect(),
            },
            headers: Headers(flat(&self.headers)),
        })
    }

    pub(crate) fn request_id(&self) -> Result<RequestId, String> {
        RequestId::parse(&self.id).map_err(|why| format!("request.id: {why}"))
    }

    pub(crate) fn endpoint(&self) -> Endpoint {
        match self.endpoint {
            EndpointFixture::Chat => Endpoint::Chat,
            EndpointFixture::Completions => Endpoint::Completions,
            EndpointFixture::Responses => Endpoint::Responses,
        }
    }
}

fn flat(headers: &BTreeMap<String, OneOrMore>) -> Vec<(String, String)> {
    let values = |name: &String, values: &OneOrMore| -> Vec<(String, String)> {
        let name = name.to_ascii_lowercase();
        match values {
            OneOrMore::One(value) => vec![(name, value.clone())],
            OneOrMore::More(values) => values.iter().map(|v| (name.clone(), v.clone())).collect(),
        }
    };
    headers.iter().flat_map(|(name, given)| values(name, given)).collect()
}

/// `caller`: what is known before the body. The request's id and endpoint are in `request`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct CallerFixture {
    /// The bearer token; the policy gets its SHA-256.
    token: Option<String>,
    /// That SHA-256 itself.
    credential: Option<String>,
    address: Option<String>,
    headers: BTreeMap<String, OneOrMore>,
}

impl CallerFixture {
    pub(crate) fn caller(
        &self,
        request: &RequestFixture,
        serial: u64,
        now: Duration,
    ) -> Result<Caller, String> {
        let credential = match (&self.token, &self.credential) {
            (Some(_), Some(_)) => return Err("caller: token or credential, not both".into()),
            (Some(token), None) => hex(&Sha256::digest(token)),
            (None, credential) => credential.clone().unwrap_or_default(),
        };
        let mut headers = flat(&self.headers);
        if let Some(token) = &self.token {
            headers.push(("authorization".into(), format!("Bearer {token}")));
        }
        Ok(Caller {
            serial,
            request_id: request.request_id()?,
            arrived_at_micros: micros(now),
            endpoint: request.endpoint(),
            credential,
            address: self.address.clone().unwrap_or_else(|| "192.0.2.1".into()),
            headers: Headers(headers),
            looks_up: false,
        })
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// `load`: how busy the model is.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct LoadFixture {
    waiting: u32,
    max_waiting: u32,
    running: u32,
    max_running: u32,
    pub(crate) tenant_in_flight: u32,
}

impl Default for LoadFixture {
    /// A quiet host as it is configured by default.
    fn default() -> Self {
        Self { waiting: 0, max_waiting: 256, running: 0, max_running: 16, tenant_in_flight: 0 }
    }
}

impl LoadFixture {
    pub(crate) fn load(self) -> Load {
        Load {
            waiting: self.waiting,
            waiting_max: self.max_waiting,
            running: self.running,
            running_max: self.max_running,
        }
    }
}

/// One of `candidates`. Its id is its place.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct CandidateFixture {
    pub(crate) model: String,
    #[serde(default)]
    asked: bool,
    #[serde(default = "yes")]
    ready: bool,
    #[serde(default = "context")]
    context: u32,
    #[serde(default)]
    waiting: u32,
    #[serde(default = "max_waiting")]
    max_waiting: u32,
    #[serde(default)]
    running: u32,
    #[serde(default = "max_running")]
    max_running: u32,
    #[serde(default)]
    prefix_seen: bool,
    #[serde(default, with = "humantime_serde")]
    first_token: Option<Duration>,
    #[serde(default, with = "humantime_serde")]
    inter_token: Option<Duration>,
}

fn yes() -> bool {
    true
}

fn context() -> u32 {
    4096
}

fn max_waiting() -> u32 {
    LoadFixture::default().max_waiting
}

fn max_running() -> u32 {
    LoadFixture::default().max_running
}

impl CandidateFixture {
    pub(crate) fn candidate(&self, id: u32) -> Candidate {
        Candidate {
            id,
            model: ModelId::new(&self.model),
            asked: self.asked,
            ready: self.ready,
            context: self.context,
            load: Load {
                waiting: self.waiting,
                waiting_max: self.max_waiting,
                running: self.running,
                running_max: self.max_running,
            },
            prefix_seen: self.prefix_seen,
            first_token: self.first_token,
            inter_token: self.inter_token,
        }
    }
}

/// `event`: `"first_token"`, `{ queued = 3 }`, `{ stalled = "5s" }`, `{ timed_out = "queue" }`.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum EventFixture {
    Queued(u32),
    Dispatched,
    FirstToken,
    Stalled(#[serde(with = "humantime_serde")] Duration),
    TimedOut(DeadlineFixture),
    Disconnected,
    Preempted(u32),
}

/// Which of the four timeouts.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum DeadlineFixture {
    Queue,
    FirstToken,
    InterToken,
    Total,
}

impl From<DeadlineFixture> for Deadline {
    fn from(given: DeadlineFixture) -> Self {
        match given {
            DeadlineFixture::Queue => Self::Queue,
            DeadlineFixture::FirstToken => Self::FirstToken,
            DeadlineFixture::InterToken => Self::InterToken,
            DeadlineFixture::Total => Self::Total,
        }
    }
}

impl From<EventFixture> for Event {
    fn from(given: EventFixture) -> Self {
        match given {
            EventFixture::Queued(before) => Self::Queued(before),
            EventFixture::Dispatched => Self::Dispatched,
            EventFixture::FirstToken => Self::FirstToken,
            EventFixture::Stalled(pause) => Self::Stalled(pause),
            EventFixture::TimedOut(deadline) => Self::TimedOut(deadline.into()),
            EventFixture::Disconnected => Self::Disconnected,
            EventFixture::Preempted(times) => Self::Preempted(times),
        }
    }
}

/// `progress`: how far the request is when the event happens.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct ProgressFixture {
    /// Since admission. Left out: since the case's `admit` step.
    #[serde(with = "humantime_serde")]
    elapsed: Option<Duration>,
    #[serde(with = "humantime_serde")]
    since_token: Option<Duration>,
    cached_tokens: u32,
    generated_tokens: u32,
}

impl ProgressFixture {
    pub(crate) fn usage(&self, prompt_tokens: u32) -> Usage {
        Usage {
            prompt_tokens,
            cached_tokens: self.cached_tokens,
            generated_tokens: self.generated_tokens,
        }
    }

    pub(crate) fn progress(&self, prompt_tokens: u32, now: Duration, since: Duration) -> Progress {
        Progress {
            at_micros: micros(now),
            elapsed: self.elapsed.unwrap_or_else(|| now.saturating_sub(since)),
            since_token: self.since_token,
            usage: self.usage(prompt_tokens),
        }
    }
}

/// `ended`: how the request ended.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct EndedFixture {
    outcome: OutcomeFixture,
    #[serde(default)]
    cached_tokens: u32,
    #[serde(default)]
    generated_tokens: u32,
    #[serde(default, with = "humantime_serde")]
    queue_time: Option<Duration>,
    #[serde(default, with = "humantime_serde")]
    time_to_first_token: Option<Duration>,
    #[serde(default, with = "humantime_serde")]
    total: Option<Duration>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
enum OutcomeFixture {
    Stop,
    Length,
    Filtered,
    Disconnected,
    TimedOutQueue,
    TimedOutFirstToken,
    TimedOutInterToken,
    TimedOutTotal,
    Operator,
    Shutdown,
    Policy,
    Failed,
    Rejected,
}

impl OutcomeFixture {
    fn outcome(self) -> Outcome {
        let timed_out = |deadline| Outcome::Cancelled(CancelCause::Deadline(deadline));
        match self {
            Self::Stop => Outcome::Completed(Finish::Stop),
            Self::Length => Outcome::Completed(Finish::Length),
            Self::Filtered => Outcome::Completed(Finish::Filtered),
            Self::Disconnected => Outcome::Cancelled(CancelCause::Disconnect),
            Self::TimedOutQueue => timed_out(Deadline::Queue),
            Self::TimedOutFirstToken => timed_out(Deadline::FirstToken),
            Self::TimedOutInterToken => timed_out(Deadline::InterToken),
            Self::TimedOutTotal => timed_out(Deadline::Total),
            Self::Operator => Outcome::Cancelled(CancelCause::Operator),
            Self::Shutdown => Outcome::Cancelled(CancelCause::Shutdown),
            Self::Policy => Outcome::Cancelled(CancelCause::Policy),
            Self::Failed | Self::Rejected => Outcome::Failed("a case said so".into()),
        }
    }
}

impl EndedFixture {
    pub(crate) fn summary(&self, prompt_tokens: u32, now: Duration, since: Duration) -> Summary {
        let closing = match self.outcome {
            OutcomeFixture::Rejected => Closing::Rejected,
            ended => Closing::Ended(ended.outcome()),
        };
        Summary {
            closing,
            usage: Usage {
                prompt_tokens,
                cached_tokens: self.cached_tokens,
                generated_tokens: self.generated_tokens,
            },
            queue_time: self.queue_time,
            time_to_first_token: self.time_to_first_token,
            total: self.total.unwrap_or_else(|| now.saturating_sub(since)),
        }
    }
}

/// `body`: what the client sent.
pub(crate) fn body(given: Option<&serde_json::Value>) -> Body {
    let text = given.map_or_else(|| "{}".to_owned(), ToString::to_string);
    Body::new(text.into_bytes())
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}
