//! What a request asks for: how to sample, how much, how long, how urgently.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::TokenId;

/// The sampling parameters of one request. Other requests in the batch have no effect on them.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampling {
    /// Divides the logits; 0 means greedy: the most likely token, always.
    pub temperature: f32,
    /// Keep the smallest set of tokens whose probabilities sum to at least this; 1 keeps all.
    pub top_p: f32,
    /// Keep this many most likely tokens; 0 keeps all.
    pub top_k: u32,
    /// Keep tokens at least this fraction as likely as the most likely; 0 keeps all.
    pub min_p: f32,
    /// The same seed, prompt and parameters give the same tokens. None: a fresh seed.
    pub seed: Option<u64>,
    /// What to hold against tokens that already occurred.
    pub penalties: Penalties,
    /// Added to the logits of these tokens, -100 to 100.
    pub logit_bias: BTreeMap<TokenId, f32>,
}

/// The sampling parameters that a request gets where it says none. Models have their own: a small
/// one talks nonsense at the temperature that suits a large one.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SamplingDefaults {
    /// See [`Sampling::temperature`].
    pub temperature: f32,
    /// See [`Sampling::top_p`].
    pub top_p: f32,
    /// See [`Sampling::top_k`].
    pub top_k: u32,
    /// See [`Sampling::min_p`].
    pub min_p: f32,
    /// See [`Penalties::repetition`].
    pub repetition_penalty: f32,
}

impl SamplingDefaults {
    /// What OpenAI's API says: the model's own distribution, as it is.
    pub const OPENAI: Self =
        Self { temperature: 1.0, top_p: 1.0, top_k: 0, min_p: 0.0, repetition_penalty: 1.0 };
}

impl Sampling {
    /// The most likely token, always; nothing penalised, nothing biased.
    pub fn greedy() -> Self {
        Self {
            temperature: 0.0,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            seed: None,
            penalties: Penalties::NONE,
            logit_bias: BTreeMap::new(),
        }
    }
}

/// What to hold against tokens that already occurred.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Penalties {
    /// Divides positive and multiplies negative logits of tokens seen in the prompt or the
    /// output (Keskar et al. 2019, CTRL); 1 is off.
    pub repetition: f32,
    /// Subtracted once from the logit of every token already generated; 0 is off.
    pub presence: f32,
    /// Subtracted from a token's logit for each time it was generated; 0 is off.
    pub frequency: f32,
}

impl Penalties {
    /// No penalty at all.
    pub const NONE: Self = Self { repetition: 1.0, presence: 0.0, frequency: 0.0 };
}

/// The order in which requests are served when not all can be. Smaller is more urgent.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    serde::Deserialize,
    serde::Serialize,
    schemars::JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Priority {
    /// Before all others.
    Critical,
    /// A person waits for each token.
    Interactive,
    /// The priority of a request that asks for none.
    Standard,
    /// A job that nobody watches.
    Batch,
    /// After everyone: whoever sent it will send it again.
    Sheddable,
}

/// How long each part of a request may take; `None` is no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Deserialize, serde::Serialize)]
pub struct Deadlines {
    /// From when its head had arrived to its first pass.
    pub queue: Option<Duration>,
    /// From when its head had arrived to the first token.
    pub first_token: Option<Duration>,
    /// The longest time between one token and the next.
    pub inter_token: Option<Duration>,
    /// From when its head had arrived to the end.
    pub total: Option<Duration>,
}

/// What to do when the client leaves before the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DisconnectAction {
    /// Stop before the next pass.
    Cancel,
    /// Go on within limits, so that usage is whole; then stop. The answer is dropped.
    Drain(DrainLimits),
    /// Go on within limits and keep the answer for whoever asks for it later.
    Detach(DrainLimits),
}

/// How far a drain may go after its client left. Whichever limit is met first ends it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
pub struct DrainLimits {
    /// Longest time after the disconnect.
    pub time_max: Duration,
    /// Most tokens after the disconnect.
    pub tokens_max: u32,
}

/// Everything the engine needs to know to generate for one request.
///
/// Plain data: it could cross a process boundary.
#[derive(Debug, Clone, PartialEq)]
pub struct Generation {
    /// The sampling parameters.
    pub sampling: Sampling,
    /// Most tokens to generate, at least 1.
    pub tokens_max: u32,
    /// No stop token is drawn before this many tokens are; 0 is off. Says nothing of stop strings.
    pub tokens_min: u32,
    /// Tokens that end the generation and are not part of the text: the model's own, unless they are
    /// ignored (`ignore_eos`), and the client's (`stop_token_ids`). With none at all it goes on to
    /// `tokens_max`.
    pub stop_tokens: Vec<TokenId>,
    /// Tell each token's log probability, and those of this many likeliest tokens; `None` tells
    /// neither.
    pub logprobs: Option<u32>,
    /// The request's priority over others.
    pub priority: Priority,
}

/// A token that was drawn.
#[derive(Debug, Clone, PartialEq)]
pub struct Drawn {
    /// The drawn token.
    pub token: TokenId,
    /// The token's log probabilities; only if the request asked.
    pub logprobs: Option<Box<Logprobs>>,
}

/// How likely a drawn token was, by the model itself: before bias, penalties and temperature.
#[derive(Debug, Clone, PartialEq)]
pub struct Logprobs {
    /// The natural logarithm of the drawn token's probability.
    pub drawn: f32,
    /// The likeliest tokens and theirs, likeliest first; as many as were asked for.
    pub top: Vec<(TokenId, f32)>,
}

impl Generation {
    /// Most alternatives whose log probabilities can be asked for, as in OpenAI's API.
    pub const LOGPROBS_MAX: u32 = 20;
}

impl From<TokenId> for Drawn {
    fn from(token: TokenId) -> Self {
        Self { token, logprobs: None }
    }
}
