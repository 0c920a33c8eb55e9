//! From the policy API's types to those of the WIT: the arguments of a call. They are borrowed, and
//! only what has another shape there is copied.

use std::time::Duration;

use interlock_policy_api::{
    Caller, Candidate, Closing, Event, Facts, Headers, Load, Progress, Summary, Window,
};
use interlock_request::{CancelCause, Deadline, Endpoint, Finish, Outcome, Usage};

use crate::wit::imports::types;
use crate::wit::v0_2::exports::interlock::policy::{
    account, admit, events, identify, route, stream_guard,
};

/// Facts in the shape that a call borrows.
pub(crate) struct WitFacts<'a> {
    facts: &'a Facts,
    note: &'a str,
    attributes: Vec<types::AttributeParam<'a>>,
    headers: Vec<types::HeaderParam<'a>>,
}

impl<'a> WitFacts<'a> {
    /// Facts with the headers that a policy may see, and what it noted of the request.
    pub(crate) fn new(facts: &'a Facts, seen: &[String], note: &'a str) -> Self {
        let attribute = |(name, value): &'a (String, String)| types::AttributeParam { name, value };
        Self {
            facts,
            note,
            attributes: facts.identity.attributes.iter().map(attribute).collect(),
            headers: headers(&facts.headers, seen),
        }
    }

    pub(crate) fn as_wit(&self) -> types::RequestFacts<'_> {
        let facts = self.facts;
        types::RequestFacts {
            request_id: facts.request_id.as_str(),
            arrived_at: facts.arrived_at_micros,
            endpoint: endpoint(facts.endpoint),
            model: facts.model.as_str(),
            streaming: facts.streaming,
            background: facts.background,
            prompt_tokens: facts.prompt_tokens,
            max_tokens: facts.tokens_max,
            max_tokens_asked: facts.tokens_max_asked,
            body_bytes: facts.body_bytes,
            prefix_key: facts.prefix_key,
            tenant: &facts.identity.tenant,
            attributes: &self.attributes,
            headers: &self.headers,
            note: self.note,
        }
    }
}

/// The headers that a policy may see, in the order in which they came.
pub(crate) fn headers<'a>(headers: &'a Headers, seen: &[String]) -> Vec<types::HeaderParam<'a>> {
    if seen.is_empty() {
        return Vec::new();
    }
    let shown = headers.0.iter().filter(|(name, _)| seen.contains(name));
    shown.map(|(name, value)| types::HeaderParam { name, value }).collect()
}

pub(crate) fn caller<'a>(
    caller: &'a Caller,
    headers: &'a [types::HeaderParam<'a>],
) -> identify::Caller<'a> {
    identify::Caller {
        request_id: caller.request_id.as_str(),
        arrived_at: caller.arrived_at_micros,
        endpoint: endpoint(caller.endpoint),
        credential: &caller.credential,
        address: &caller.address,
        headers,
    }
}

pub(crate) fn candidate(candidate: &Candidate) -> route::Candidate<'_> {
    route::Candidate {
        id: candidate.id,
        model: candidate.model.as_str(),
        asked: candidate.asked,
        ready: candidate.ready,
        context: candidate.context,
        waiting: candidate.load.waiting,
        max_waiting: candidate.load.waiting_max,
        running: candidate.load.running,
        max_running: candidate.load.running_max,
        prefix_seen: candidate.prefix_seen,
        first_token: candidate.first_token.map_or(0, micros),
        inter_token: candidate.inter_token.map_or(0, micros),
    }
}

pub(crate) fn load(load: &Load, tenant_in_flight: u32) -> admit::Load {
    admit::Load {
        waiting: load.waiting,
        max_waiting: load.waiting_max,
        running: load.running,
        max_running: load.running_max,
        tenant_in_flight,
    }
}

pub(crate) fn window<'a>(window: &Window<'a>) -> stream_guard::Window<'a> {
    stream_guard::Window {
        index: window.index,
        text: window.text,
        held: window.held,
        finished: window.finished,
        usage: usage(&window.usage),
    }
}

pub(crate) fn event(event: &Event) -> events::Event {
    match *event {
        Event::Queued(before) => events::Event::Queued(before),
        Event::Dispatched => events::Event::Dispatched,
        Event::FirstToken => events::Event::FirstToken,
        Event::Stalled(time) => events::Event::Stalled(micros(time)),
        Event::TimedOut(deadline) => events::Event::TimedOut(timeout(deadline)),
        Event::Disconnected => events::Event::Disconnected,
        Event::Preempted(times) => events::Event::Preempted(times),
    }
}

pub(crate) fn progress(progress: &Progress) -> events::Progress {
    events::Progress {
        now: progress.at_micros,
        elapsed: micros(progress.elapsed),
        since_token: progress.since_token.map(micros),
        usage: usage(&progress.usage),
    }
}

pub(crate) fn summary(summary: &Summary, ended_at_micros: u64) -> account::Summary {
    account::Summary {
        outcome: match &summary.closing {
            Closing::Ended(ended) => outcome(ended),
            Closing::Rejected => account::Outcome::Rejected,
        },
        usage: usage(&summary.usage),
        queue_time: summary.queue_time.map(micros),
        time_to_first_token: summary.time_to_first_token.map(micros),
        total_time: micros(summary.total),
        ended_at: ended_at_micros,
    }
}

fn outcome(outcome: &Outcome) -> account::Outcome {
    use account::{Canceller, Finish as F, Outcome as O};
    match outcome {
        Outcome::Completed(Finish::Stop) => O::Completed(F::Stop),
        Outcome::Completed(Finish::Length) => O::Completed(F::Length),
        Outcome::Completed(Finish::Filtered) => O::Completed(F::Filtered),
        Outcome::Cancelled(CancelCause::Disconnect) => O::Disconnected,
        Outcome::Cancelled(CancelCause::Deadline(deadline)) => O::TimedOut(timeout(*deadline)),
        Outcome::Cancelled(CancelCause::Operator) => O::Cancelled(Canceller::Operator),
        Outcome::Cancelled(CancelCause::Shutdown) => O::Cancelled(Canceller::Shutdown),
        Outcome::Cancelled(CancelCause::Policy) => O::Cancelled(Canceller::Policy),
        // The text is for our log: it may tell of paths and addresses.
        Outcome::Failed(_) => O::Failed,
    }
}

fn usage(usage: &Usage) -> types::Usage {
    types::Usage {
        prompt_tokens: usage.prompt_tokens,
        cached_tokens: usage.cached_tokens,
        generated_tokens: usage.generated_tokens,
    }
}

fn timeout(deadline: Deadline) -> types::Timeout {
    match deadline {
        Deadline::Queue => types::Timeout::Queue,
        Deadline::FirstToken => types::Timeout::FirstToken,
        Deadline::InterToken => types::Timeout::InterToken,
        Deadline::Total => types::Timeout::Total,
    }
}

fn endpoint(endpoint: Endpoint) -> types::Endpoint {
    match endpoint {
        Endpoint::Chat => types::Endpoint::Chat,
        Endpoint::Completions => types::Endpoint::Completions,
        Endpoint::Responses => types::Endpoint::Responses,
    }
}

pub(crate) fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}
