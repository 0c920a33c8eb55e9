//! Sends long prompts to another model: one call sees all models that are served. For aliases,
//! splits and fallbacks see `plugins/router`.

use interlock_policy_sdk as sdk;
use sdk::{Candidate, Choice, Policy, RequestFacts, Route};

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct RouteByLength {
    short: String,
    long: String,
    from_prompt_tokens: u32,
}

sdk::reasons! {
    enum Reason { Short, Long }
}

impl Policy for RouteByLength {
    type Settings = Self;
    type Reason = Reason;

    fn new(settings: Self) -> Result<Self, String> {
        Ok(settings)
    }
}

impl Route for RouteByLength {
    fn route(&self, request: &RequestFacts, candidates: &[Candidate]) -> Choice {
        let (model, reason) = if request.prompt_tokens < self.from_prompt_tokens {
            (&self.short, Reason::Short)
        } else {
            (&self.long, Reason::Long)
        };
        let found = candidates.iter().find(|candidate| candidate.model == *model);
        found.map_or(Choice::Abstain, |candidate| candidate.pick(reason))
    }
}

sdk::export!(RouteByLength: route);

#[cfg(test)]
mod tests {
    use sdk::testing::{Host, candidate};
    use serde_json::json;

    use super::*;

    #[test]
    fn the_length_of_the_prompt_decides() {
        let host = Host::new();
        let settings = json!({"short": "small", "long": "large", "from_prompt_tokens": 1000});
        let policy: RouteByLength = host.begin(settings).expect("settings");
        let both = [candidate(0, "small"), candidate(1, "large")];
        let route =
            |prompt_tokens| policy.route(&RequestFacts { prompt_tokens, ..host.request() }, &both);
        assert_eq!(route(999), both[0].pick(Reason::Short));
        assert_eq!(route(1000), both[1].pick(Reason::Long));
        assert_eq!(policy.route(&host.request(), &[]), Choice::Abstain);
    }
}
