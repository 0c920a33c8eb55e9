//! What an operator may set, and what holds when nobody did.

use std::collections::BTreeMap;

use interlock_policy_sdk::{Priority, Span};
use schemars::JsonSchema;
use serde::Deserialize;

/// `[policy.settings]`.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Settings {
    /// Who may ask, by name.
    pub(crate) tenants: BTreeMap<String, Tenant>,
    /// Whom requests without a key count for; not set: they are turned away.
    pub(crate) anonymous: Option<String>,
    /// What each tenant may use that has no number of its own.
    pub(crate) limits: Limits,
    /// What a request is expected to generate that does not say how much it wants; what it really
    /// used is counted when it has ended.
    pub(crate) expected_output_tokens: u32,
    /// After so long a request counts no more among those that run at once, although it may run.
    pub(crate) longest_request: Span,
    /// What if the state cannot be reached?
    pub(crate) when_unavailable: WhenUnavailable,
}

/// Someone who may ask.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Tenant {
    /// The SHA-256 of each of its keys, in 64 hex digits: `printf %s "$KEY" | sha256sum`.
    pub(crate) keys: Vec<String>,
    /// How urgent its requests are at most.
    pub(crate) priority: Option<Priority>,
    /// What it may use; what is not set is as in `limits`.
    pub(crate) limits: Limits,
}

/// What may be used; not set: any amount.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Limits {
    /// Requests a minute, all at once if need be.
    pub(crate) requests_per_minute: Option<u32>,
    /// Tokens of prompt and output in a minute, which begins with its first request.
    pub(crate) tokens_per_minute: Option<u32>,
    /// Requests at once.
    pub(crate) concurrent: Option<u32>,
}

/// What if the state cannot be reached?
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum WhenUnavailable {
    /// Nobody gets in: 503.
    #[default]
    Closed,
    /// Everyone gets in, uncounted.
    Open,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            tenants: BTreeMap::new(),
            anonymous: None,
            limits: Limits::default(),
            // A paragraph or two, as most chats go.
            expected_output_tokens: 256,
            longest_request: Span::from_secs(3600),
            when_unavailable: WhenUnavailable::default(),
        }
    }
}

impl Limits {
    /// These, and the others' where these say nothing.
    fn or(self, others: Self) -> Self {
        Self {
            requests_per_minute: self.requests_per_minute.or(others.requests_per_minute),
            tokens_per_minute: self.tokens_per_minute.or(others.tokens_per_minute),
            concurrent: self.concurrent.or(others.concurrent),
        }
    }
}

impl Settings {
    /// What a tenant may use, also one that others identified.
    pub(crate) fn limits_of(&self, tenant: &str) -> Limits {
        self.tenants.get(tenant).map_or(self.limits, |it| it.limits.or(self.limits))
    }

    /// Whose key has this hash; `Err`: something makes no sense, the text names it.
    pub(crate) fn keys(&self) -> Result<BTreeMap<String, String>, String> {
        let mut keys = BTreeMap::new();
        for (name, tenant) in &self.tenants {
            if !is_tenant(name) {
                return Err(format!(
                    "tenants.{name:?} must have 1 to 128 bytes of printable ASCII as its name"
                ));
            }
            for (index, key) in tenant.keys.iter().enumerate() {
                let hex = key.to_ascii_lowercase();
                // Not the value: it may be a key that someone forgot to hash.
                if hex.len() != 64 || !hex.bytes().all(|byte| byte.is_ascii_hexdigit()) {
                    return Err(format!(
                        "tenants.{name}.keys[{index}] must be a SHA-256 in 64 hex digits"
                    ));
                }
                if let Some(other) = keys.insert(hex, name.clone()) {
                    return Err(format!(
                        "tenants.{name}.keys[{index}] is a key of {other} already"
                    ));
                }
            }
        }
        if self.anonymous.as_deref().is_some_and(|name| !is_tenant(name)) {
            return Err("anonymous must be 1 to 128 bytes of printable ASCII".into());
        }
        // Limits alone are for those whom other policies identify.
        if keys.is_empty() && self.anonymous.is_none() && self.limits == Limits::default() {
            return Err("there is nothing to decide: no keys, no `anonymous`, no `limits`".into());
        }
        let all =
            self.tenants.iter().map(|(name, it)| (format!("tenants.{name}.limits"), it.limits));
        for (key, limits) in all.chain([("limits".to_owned(), self.limits)]) {
            for (name, limit) in [
                ("requests_per_minute", limits.requests_per_minute),
                ("tokens_per_minute", limits.tokens_per_minute),
                ("concurrent", limits.concurrent),
            ] {
                if limit == Some(0) {
                    return Err(format!("{key}.{name} must exceed 0, got 0"));
                }
            }
        }
        if self.longest_request == Span::ZERO {
            return Err("longest_request must exceed 0s, got 0s".into());
        }
        Ok(keys)
    }
}

fn is_tenant(name: &str) -> bool {
    (1..=128).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' ')
}
