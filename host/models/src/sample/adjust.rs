//! Bias, penalties and forbidden stop tokens: what changes single logits before a draw.
//!
//! Few tokens of a vocabulary are ever touched, so they are kept one by one. Host and device do
//! the same arithmetic, in f32 and in the order of [`LogitChange::apply`].

use std::collections::HashMap;

use interlock_engine::PassFailed;
use interlock_request::{Penalties, TokenId};

use super::{Opening, failed};

/// The tokens of one sequence whose logits are not taken as they come.
pub(super) struct Adjustments {
    penalties: Penalties,
    vocabulary: u32,
    tokens_min: u32,
    drawn: u32,
    touched: Vec<AdjustedToken>,
    /// Where in `touched` a token is.
    places: HashMap<TokenId, usize>,
}

/// What changes the logit of one token.
struct AdjustedToken {
    token: TokenId,
    bias: f32,
    /// Whether the token is in the prompt or the output.
    seen: bool,
    /// How often the token is in the output.
    count: u32,
    /// Whether the token ends the generation.
    stops: bool,
}

/// The numbers that change one logit; see [`LogitChange::apply`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct LogitChange {
    pub(super) bias: f32,
    pub(super) repetition: f32,
    /// Frequency and presence penalties; infinite for a token that must not come.
    pub(super) held: f32,
}

impl LogitChange {
    /// The change that leaves a logit as it is.
    pub(super) const NONE: Self = Self { bias: 0.0, repetition: 1.0, held: 0.0 };

    pub(super) fn apply(self, logit: f32) -> f32 {
        let logit = logit + self.bias;
        let logit = if logit < 0.0 { logit * self.repetition } else { logit / self.repetition };
        logit - self.held
    }
}

impl Adjustments {
    pub(super) fn new(opening: &Opening<'_>, vocabulary: u32) -> Result<Self, PassFailed> {
        let &Opening { prompt, generated, generation, .. } = opening;
        let mut adjustments = Self {
            penalties: generation.sampling.penalties,
            vocabulary,
            tokens_min: generation.tokens_min,
            drawn: 0,
            touched: Vec::new(),
            places: HashMap::new(),
        };
        for (&token, &bias) in &generation.sampling.logit_bias {
            if !bias.is_finite() {
                return Err(failed(format!("logit_bias of token {token} is {bias}")));
            }
            let Some(touched) = adjustments.touch(token) else {
                let why = format!("logit_bias for token {token}, the vocabulary has {vocabulary}");
                return Err(failed(why));
            };
            touched.bias = bias;
        }
        // Others than biased tokens are ours, or from the model's files, and their range was
        // checked elsewhere; here one that does not exist has no logit to change.
        if adjustments.penalties.repetition != 1.0 {
            for token in prompt {
                if let Some(touched) = adjustments.touch(*token) {
                    touched.seen = true;
                }
            }
        }
        if adjustments.tokens_min > 0 {
            for token in &generation.stop_tokens {
                if let Some(touched) = adjustments.touch(*token) {
                    touched.stops = true;
                }
            }
        }
        for token in generated {
            adjustments.remember(*token);
        }
        Ok(adjustments)
    }

    pub(super) fn remember(&mut self, token: TokenId) {
        self.drawn = self.drawn.saturating_add(1);
        if self.penalties == Penalties::NONE {
            return;
        }
        if let Some(touched) = self.touch(token) {
            touched.seen = true;
            touched.count = touched.count.saturating_add(1);
        }
    }

    /// Each token whose logit changes, once.
    pub(super) fn changes(&self) -> impl Iterator<Item = (TokenId, LogitChange)> {
        let Penalties { repetition, presence, frequency } = self.penalties;
        let too_early = self.drawn < self.tokens_min;
        let terms = move |touched: &AdjustedToken| LogitChange {
            bias: touched.bias,
            repetition: if touched.seen { repetition } else { 1.0 },
            held: match touched.count {
                _ if touched.stops && too_early => f32::INFINITY,
                0 => 0.0,
                count => frequency * count as f32 + presence,
            },
        };
        let changes = self.touched.iter().map(move |touched| (touched.token, terms(touched)));
        changes.filter(|&(_, terms)| terms != LogitChange::NONE)
    }

    fn touch(&mut self, token: TokenId) -> Option<&mut AdjustedToken> {
        if token >= self.vocabulary {
            return None;
        }
        let place = *self.places.entry(token).or_insert_with(|| {
            self.touched.push(AdjustedToken {
                token,
                bias: 0.0,
                seen: false,
                count: 0,
                stops: false,
            });
            self.touched.len() - 1
        });
        self.touched.get_mut(place)
    }
}
