//! Decides who may use how much: who asks by their key, how many requests and tokens a minute,
//! how many requests at once. README.md says how, and which settings it has.
//!
//! # Invariants
//!
//! - A request is charged once: before its body is read if this is who identifies its caller, or
//!   else when it is admitted. It stays charged, whatever becomes of it.
//! - A request that is turned away leaves nothing else behind: what was reserved for it before the
//!   limit that it met is given back.
//! - What it knows between two calls is in the state, in the identity that it gave or in the
//!   request's note, nowhere else.
//!
//! # Not here
//!
//! No keys: settings and facts have their SHA-256.

mod headers;
mod ledger;
mod settings;

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use interlock_policy_sdk as sdk;
use sdk::{
    Account, Admit, Caller, Decision, Identify, Identity, Known, Load, Outcome, Policy, Rejection,
    RequestFacts, Span, Summary,
};

use crate::ledger::{Asked, Held, Left, Marked, Refused};
use crate::settings::{Limits, Settings, WhenUnavailable};

sdk::reasons! {
    /// Why quota decides.
    enum Reason {
        /// It is within its limits.
        WithinLimits,
        /// Its key is a tenant's.
        KeyKnown,
        /// It has no key and needs none.
        Anonymous,
        /// It has no key.
        MissingApiKey,
        /// Nobody has this key.
        InvalidApiKey,
        /// Too many requests a minute.
        RequestsExceeded,
        /// Too many tokens a minute.
        TokensExceeded,
        /// Too many requests at once.
        ConcurrencyExceeded,
        /// It alone needs more tokens than there are in a minute.
        RequestTooLarge,
        /// The state cannot be reached.
        StateUnavailable,
    }
}

sdk::metrics! {
    mod metrics {
        /// Requests turned away, by the limit that they met.
        REFUSED: Counter = refused_total(tenant, limit),
        /// Tokens used, by where they stood.
        TOKENS: Counter = tokens_total(tenant, kind),
        /// Requests that nothing was counted of, since the state could not be reached.
        UNCOUNTED: Counter = uncounted_total(tenant),
    }
}

struct Quota {
    settings: Settings,
    /// Whose key has this hash.
    keys: BTreeMap<String, String>,
    /// Tells its settings from those of another quota in the same chain.
    digest: u64,
}

impl Policy for Quota {
    type Settings = Settings;
    type Reason = Reason;
    const METRICS: &'static [sdk::Metric] = metrics::ALL;

    fn new(settings: Settings) -> Result<Self, String> {
        let keys = settings.keys()?;
        let mut hasher = DefaultHasher::new();
        format!("{settings:?}").hash(&mut hasher);
        let digest = hasher.finish();
        Ok(Self { settings, keys, digest })
    }
}

impl Identify for Quota {
    fn identify(&self, caller: &Caller) -> Known {
        let identity = match self.who(caller) {
            Ok(identity) => identity,
            Err(rejection) => return rejection.into(),
        };
        let limits = self.settings.limits_of(&identity.tenant);
        let mut left = Left::default();
        match ledger::take_request(&identity.tenant, &limits, &mut left) {
            Ok(()) => {}
            // It may be there again when the request is admitted, and is charged then.
            Err(Refused::Unavailable) if self.admits_uncounted() => {}
            Err(refused) => {
                return self.reject(&identity.tenant, 0, refused, &limits, &left).into();
            }
        }
        match left.requests {
            Some(left) => {
                let charged = self.marked(&caller.request_id, caller.arrived_at).charged(left);
                identity.attribute(charged.name, charged.value).into()
            }
            None => identity.into(),
        }
    }
}

impl Admit for Quota {
    fn admit(&self, request: &RequestFacts, _: &Load) -> Decision {
        let tenant = request.tenant.as_str();
        let limits = self.settings.limits_of(tenant);
        let output = match request.max_tokens_asked {
            true => request.max_tokens,
            false => request.max_tokens.min(self.settings.expected_output_tokens),
        };
        let asked = Asked {
            tenant,
            tokens: request.prompt_tokens.saturating_add(output),
            longest: self.settings.longest_request,
        };
        let marked = self.marked(&request.request_id, request.arrived_at);
        let charged = marked.left(&request.attributes);
        let mut left = Left::default();
        match ledger::grant(&asked, &limits, charged, &mut left) {
            Ok(held) => {
                let mut admission = sdk::admit(Reason::WithinLimits).note(held.to_note());
                admission.headers = headers::rate_limits(&limits, &left);
                admission.into()
            }
            Err(Refused::Unavailable) if self.admits_uncounted() => {
                metrics::UNCOUNTED.count([tenant]);
                sdk::admit(Reason::StateUnavailable).into()
            }
            Err(refused) => self.reject(tenant, asked.tokens, refused, &limits, &left).into(),
        }
    }
}

impl Quota {
    /// Whose key it is.
    fn who(&self, caller: &Caller) -> Result<Identity, Rejection> {
        let reject = |reason, detail| Err(sdk::reject(401, reason).detail(detail));
        if caller.credential.is_empty() {
            return match &self.settings.anonymous {
                Some(tenant) => Ok(sdk::known(tenant, Reason::Anonymous)),
                None => reject(
                    Reason::MissingApiKey,
                    "no API key was given: send it as `Authorization: Bearer KEY`",
                ),
            };
        }
        match self.keys.get(&caller.credential) {
            Some(tenant) => {
                let priority = self.settings.tenants.get(tenant).and_then(|it| it.priority);
                Ok(sdk::known(tenant, Reason::KeyKnown).priority(priority))
            }
            None => reject(Reason::InvalidApiKey, "this API key is not known here"),
        }
    }

    fn admits_uncounted(&self) -> bool {
        self.settings.when_unavailable == WhenUnavailable::Open
    }

    fn marked<'a>(&self, request_id: &'a str, arrived_at: u64) -> Marked<'a> {
        Marked { settings: self.digest, request_id, arrived_at }
    }

    /// The answer to one that met a limit; it needs so many tokens, if that is known.
    fn reject(
        &self,
        tenant: &str,
        tokens: u32,
        refused: Refused,
        limits: &Limits,
        left: &Left,
    ) -> Rejection {
        let (status, reason, limit, wait, detail) = match refused {
            Refused::Unavailable => (
                503,
                Reason::StateUnavailable,
                "state",
                Some(Span::from_secs(1)),
                "limits cannot be checked at the moment".to_owned(),
            ),
            Refused::Requests(wait) => (
                429,
                Reason::RequestsExceeded,
                "requests",
                Some(wait),
                format!("more than {} requests a minute", limits.requests_per_minute.unwrap_or(0)),
            ),
            Refused::Tokens(wait) => (
                429,
                Reason::TokensExceeded,
                "tokens",
                Some(wait),
                format!("more than {} tokens a minute", limits.tokens_per_minute.unwrap_or(0)),
            ),
            // Nobody knows when one of them ends.
            Refused::Concurrent => (
                429,
                Reason::ConcurrencyExceeded,
                "concurrent",
                Some(Span::from_secs(1)),
                format!("more than {} requests at once", limits.concurrent.unwrap_or(0)),
            ),
            // Not 429: to try again cannot help.
            Refused::TooLarge => (
                413,
                Reason::RequestTooLarge,
                "tokens",
                None,
                format!(
                    "it needs {tokens} tokens, and a minute has {}",
                    limits.tokens_per_minute.unwrap_or(0)
                ),
            ),
        };
        metrics::REFUSED.count([tenant, limit]);
        let mut rejection = sdk::reject(status, reason).detail(detail);
        rejection.retry_after = wait.map(|wait| wait.micros);
        rejection.headers = headers::rate_limits(limits, left);
        rejection
    }
}

impl Account for Quota {
    fn account(&self, request: &RequestFacts, summary: &Summary) {
        let tenant = request.tenant.as_str();
        let usage = summary.usage;
        // What never began used nothing, whatever its prompt would have been.
        let used = match summary.outcome {
            Outcome::Rejected => 0,
            _ => usage.prompt_tokens.saturating_add(usage.generated_tokens),
        };
        ledger::settle(tenant, Held::from_note(&request.note), used);
        if used > 0 {
            metrics::TOKENS.add(usage.prompt_tokens.into(), [tenant, "prompt"]);
            metrics::TOKENS.add(usage.generated_tokens.into(), [tenant, "generated"]);
        }
    }
}

sdk::export!(Quota: identify, admit, account; schema "settings.schema.json");

#[cfg(test)]
mod tests;
