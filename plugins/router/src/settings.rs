//! What an operator may set, and what holds when nobody did.

use std::collections::BTreeMap;

use interlock_policy_sdk::RequestFacts;
use schemars::JsonSchema;
use serde::Deserialize;

/// `[policy.settings]`.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Settings {
    /// Other names for models: what a client may write, and the served models behind it, the
    /// preferred one first. A rule without conditions but `model`, in short; asked after `rules`.
    pub(crate) aliases: BTreeMap<String, Vec<String>>,
    /// The first that applies decides.
    pub(crate) rules: Vec<Rule>,
    /// So many waiting at a model send a request on to the next one; not set: only a full waiting
    /// room does.
    pub(crate) fall_back_at: Option<u32>,
    /// How much it counts that a request with the same beginning ran there lately, from 0 (not at
    /// all) to 1 (more than any load).
    pub(crate) prefix_weight: PrefixWeight,
}

/// See [`Settings::prefix_weight`].
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(transparent)]
pub(crate) struct PrefixWeight(pub(crate) f32);

// A prefix that is there saves its prefill; one that is a third of a full house away does not.
impl Default for PrefixWeight {
    fn default() -> Self {
        Self(0.3)
    }
}

/// Where some requests run. What is not set applies to all.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Rule {
    /// What the client wrote as the model.
    pub(crate) model: Option<String>,
    /// Who asks, as an `identify` said.
    pub(crate) tenants: Option<Vec<String>>,
    /// Prompts of at least so many tokens. They are estimated: a quarter of the bytes.
    pub(crate) min_prompt_tokens: u32,
    /// Prompts of at most so many tokens.
    pub(crate) max_prompt_tokens: Option<u32>,
    /// The served models, the preferred one first. Either this or `split`.
    pub(crate) to: Vec<String>,
    /// The served models and their shares; the others of them are what follows the first.
    pub(crate) split: BTreeMap<String, u32>,
    /// Requests that are equal in this go to the same part of the split.
    pub(crate) sticky: Sticky,
}

/// What a split goes by.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Sticky {
    /// Each request by itself: by its id.
    #[default]
    Request,
    /// A tenant stays where it is. Without a tenant it is the request.
    Tenant,
    /// How the prompt begins: a conversation stays where it is. Without text it is the request.
    Prefix,
}

impl Rule {
    pub(crate) fn applies(&self, request: &RequestFacts) -> bool {
        self.model.as_ref().is_none_or(|model| *model == request.model)
            && self.tenants.as_ref().is_none_or(|tenants| tenants.contains(&request.tenant))
            && self.min_prompt_tokens <= request.prompt_tokens
            && self.max_prompt_tokens.is_none_or(|max| request.prompt_tokens <= max)
    }
}

impl Settings {
    /// Every problem, as key, relation, value.
    pub(crate) fn problems(&self) -> Vec<String> {
        let mut problems = vec![];
        for (index, rule) in self.rules.iter().enumerate() {
            let key = format!("rules[{index}]");
            if rule.to.is_empty() == rule.split.is_empty() {
                problems.push(format!("{key} must have either `to` or `split`"));
            }
            if !rule.split.is_empty() && rule.split.values().all(|&share| share == 0) {
                problems.push(format!("{key}.split must have a share above 0"));
            }
            if let Some(max) = rule.max_prompt_tokens.filter(|&max| max < rule.min_prompt_tokens) {
                let min = rule.min_prompt_tokens;
                problems.push(format!(
                    "{key}.max_prompt_tokens must not be below min_prompt_tokens ({min}), got {max}"
                ));
            }
        }
        for (alias, models) in &self.aliases {
            if models.is_empty() {
                problems.push(format!("aliases.{alias} must name a model"));
            }
        }
        if self.fall_back_at == Some(0) {
            problems.push("fall_back_at must exceed 0, got 0".into());
        }
        if !(0.0..=1.0).contains(&self.prefix_weight.0) {
            let weight = self.prefix_weight.0;
            problems.push(format!("prefix_weight must be from 0 to 1, got {weight}"));
        }
        problems
    }
}
