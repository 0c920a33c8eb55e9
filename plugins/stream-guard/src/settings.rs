//! What an operator may set, and what holds when nobody did.

use interlock_policy_sdk::Span;
use schemars::JsonSchema;
use serde::Deserialize;

use crate::filter::{Action, Filter, Rule};
use crate::pattern::{Options, Pattern};

/// `[policy.settings]`.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Settings {
    /// What is looked for.
    pub(crate) patterns: Vec<PatternSettings>,
    /// Tokens in a window: more are cheaper, fewer come sooner.
    pub(crate) window_tokens: u32,
    /// A window is not older than this, at least 1ms.
    pub(crate) window_delay: Span,
    /// Most bytes that a match has, 8 to 4096. Twice as many are held back at most.
    pub(crate) longest_match: usize,
}

/// What is looked for, and what then happens: either `text` or `regex`.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct PatternSettings {
    /// What it is called in metrics.
    pub(crate) name: String,
    /// Words that are what they are.
    pub(crate) text: Option<String>,
    /// A regular expression: `. [a-z] [^0-9] \d \w \s a|b (ab) ? * + {2,5}`.
    pub(crate) regex: Option<String>,
    /// `ä` is `Ä`.
    pub(crate) ignore_case: bool,
    /// Only as whole words: `art` is not in `start`.
    pub(crate) whole_words: bool,
    /// What happens to a match.
    pub(crate) action: ActionSettings,
    /// What the client reads in its place, or last.
    pub(crate) replacement: Option<String>,
}

/// What happens to a match.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum ActionSettings {
    /// The replacement stands in its place.
    #[default]
    Redact,
    /// The answer ends before it.
    Stop,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            patterns: vec![],
            // A glance of text, and a delay that nobody sees.
            window_tokens: 8,
            window_delay: Span::from_millis(100),
            longest_match: 256,
        }
    }
}

impl Settings {
    /// The patterns, ready to match.
    ///
    /// # Errors
    ///
    /// Something makes no sense; the text names it.
    pub(crate) fn filter(&self) -> Result<Filter, String> {
        let limit = self.longest_match;
        if !(8..=4096).contains(&limit) {
            return Err(format!("longest_match must be from 8 to 4096, got {limit}"));
        }
        if self.window_tokens == 0 {
            return Err("window_tokens must exceed 0, got 0".into());
        }
        if self.window_delay < Span::from_millis(1) {
            return Err("window_delay must be at least 1ms".into());
        }
        if self.patterns.is_empty() {
            return Err("patterns must not be empty: there is nothing to look for".into());
        }
        let rules = self.patterns.iter().enumerate().map(|(index, pattern)| {
            let rule = pattern.rule(index);
            rule.map_err(|why| format!("patterns[{index}]: {why}"))
        });
        let words = self.patterns.iter().any(|pattern| pattern.whole_words);
        Ok(Filter { rules: rules.collect::<Result<_, _>>()?, limit, words })
    }
}

impl PatternSettings {
    fn rule(&self, index: usize) -> Result<Rule, String> {
        let options = Options { ignore_case: self.ignore_case, words: self.whole_words };
        let pattern = match (&self.text, &self.regex) {
            (Some(text), None) => Pattern::text(text, options)?,
            (None, Some(regex)) => Pattern::regex(regex, options)?,
            _ => return Err("it must have either `text` or `regex`".into()),
        };
        let with = self.replacement.clone();
        let action = match self.action {
            ActionSettings::Redact => Action::Redact(with.unwrap_or_else(|| "[redacted]".into())),
            ActionSettings::Stop => Action::Stop(with.unwrap_or_default()),
        };
        let name = match self.name.as_str() {
            "" => index.to_string(),
            name => name.to_owned(),
        };
        Ok(Rule { name, pattern, action })
    }
}
