//! Turns long prompts away: the smallest policy that decides something.

use interlock_policy_sdk as sdk;
use sdk::{Admit, Decision, Load, Policy, RequestFacts};

/// What the operator sets is all that this policy is.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Hello {
    max_prompt_tokens: u32,
}

sdk::reasons! {
    enum Reason { Welcome, PromptTooLong }
}

impl Policy for Hello {
    type Settings = Self;
    type Reason = Reason;

    fn new(settings: Self) -> Result<Self, String> {
        Ok(settings)
    }
}

impl Admit for Hello {
    fn admit(&self, request: &RequestFacts, _: &Load) -> Decision {
        if request.prompt_tokens > self.max_prompt_tokens {
            let why = format!("at most {} tokens of prompt, please", self.max_prompt_tokens);
            return sdk::reject(413, Reason::PromptTooLong).detail(why).into();
        }
        sdk::admit(Reason::Welcome).header("x-hello", "welcome").into()
    }
}

sdk::export!(Hello: admit);

#[cfg(test)]
mod tests {
    use sdk::testing::{Host, idle};
    use serde_json::json;

    use super::*;

    #[test]
    fn a_prompt_may_be_as_long_as_the_settings_say() {
        let host = Host::new();
        let hello: Hello = host.begin(json!({"max_prompt_tokens": 100})).expect("settings");
        let decide =
            |prompt_tokens| hello.admit(&RequestFacts { prompt_tokens, ..host.request() }, &idle());
        assert!(matches!(decide(100), Decision::Admit(_)));
        let why = "at most 100 tokens of prompt, please";
        assert_eq!(decide(101), sdk::reject(413, Reason::PromptTooLong).detail(why).into());
    }
}
