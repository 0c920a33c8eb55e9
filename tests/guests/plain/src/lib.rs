//! A policy that takes part in everything and does as little as it can: what a call costs.

use interlock_policy_sdk as sdk;
use sdk::{
    Account, Admit, Caller, Candidate, Choice, Decision, Edited, Event, Events, Identify, Known,
    Load, Policy, Progress, Reaction, RequestFacts, Route, StreamGuard, Summary, Transform,
    Verdict, Window,
};

sdk::reasons! {
    enum Reason { Fine }
}

struct Plain;

impl Policy for Plain {
    type Settings = sdk::NoSettings;
    type Reason = Reason;

    fn new(_: sdk::NoSettings) -> Result<Self, String> {
        Ok(Self)
    }

    fn needs(&self) -> Vec<String> {
        (0..6).map(|n| format!("headers:x-header-{n}")).collect()
    }
}

impl Identify for Plain {
    fn identify(&self, _: &Caller) -> Known {
        Known::Unknown
    }
}

impl Transform for Plain {
    fn transform(&self, _: &RequestFacts) -> Edited {
        Edited::Keep
    }
}

impl Route for Plain {
    fn route(&self, request: &RequestFacts, candidates: &[Candidate]) -> Choice {
        let room = |c: &Candidate| 1.0 / (1.0 + c.waiting as f32) + f32::from(c.prefix_seen);
        let fits = |c: &&Candidate| c.ready && c.context >= request.prompt_tokens;
        let fitting = candidates.iter().filter(fits).map(|c| c.score(room(c))).collect();
        sdk::scores(fitting, Reason::Fine)
    }
}

impl Admit for Plain {
    fn admit(&self, request: &RequestFacts, load: &Load) -> Decision {
        let tight = load.waiting > load.max_waiting / 2;
        let max = if tight { request.max_tokens / 2 } else { request.max_tokens };
        sdk::admit(Reason::Fine).max_tokens(max.max(1)).into()
    }
}

impl StreamGuard for Plain {
    fn on_window(&self, _: &RequestFacts, window: &Window) -> Verdict {
        if window.text.contains("forbidden") { sdk::stop("", Reason::Fine) } else { Verdict::Pass }
    }
}

impl Events for Plain {
    fn on_event(&self, _: &RequestFacts, _: &Event, _: &Progress) -> Reaction {
        Reaction::Keep
    }
}

impl Account for Plain {
    fn account(&self, _: &RequestFacts, _: &Summary) {}
}

sdk::export!(Plain: identify, transform, route, admit, stream_guard, events, account);
