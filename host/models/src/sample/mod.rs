//! From logits to tokens: a whole batch at once, each row in its own way.
//!
//! For each row, in this order, each step only if its request asks for it:
//!
//! 1. `logit_bias` is added;
//! 2. repetition, then frequency and presence penalties; until `tokens_min` tokens are drawn, stop
//!    tokens are out of the question;
//! 3. temperature (below 1e-5: the most likely token, and the rest of this list is skipped);
//! 4. `top_k`; 5. `top_p`, of what `top_k` left; 6. `min_p`, relative to the most likely;
//! 7. a draw.
//!
//! Bias before penalties before temperature is what vLLM (v1/sample/sampler.py) and mlx_lm
//! (`make_logits_processors`) do, and the order of penalties is vLLM's. Temperature, `top_k`,
//! `top_p`, `min_p` in this order is Transformers' (`_get_logits_processor`); vLLM has `min_p`
//! before `top_k`, which only moves where `top_p` cuts; mlx_lm applies temperature last, so that
//! its `top_p` looks at the untempered distribution, which OpenAI's clients do not expect.
//!
//! Repetition looks at prompt and output, frequency and presence at the output alone (vLLM,
//! OpenAI). All look at the whole of it; mlx_lm looks at the last 20 tokens.
//!
//! Log probabilities are the model's own: of the logits before all of this.
//!
//! # Invariants
//!
//! - A draw depends on the row's logits, its parameters, its seed and how many tokens it drew
//!   before; on nothing else in the process or the batch. So a seed gives the same tokens whatever else runs, and
//!   a preempted sequence goes on as if nothing had been.
//! - The token is below the vocabulary's size, whatever the logits are.
//! - Of equal logits the lower token is the likelier, wherever a line is drawn: greedy, `top_k`,
//!   `top_p`, the list of log probabilities. (bf16 logits are often equal.)
//! - The draw inverts the distribution over the tokens kept, in the order of their ids, at a
//!   number between 0 and 1 that [`Sampler::unit`] gives.
//!
//! # Two ways to compute it
//!
//! [`draw_on_host`] for logits that a CPU computed, [`draw_on_device`] for a GPU's. They keep the
//! same tokens and draw the same, but for rounding: the host sums likelihoods in f64 and draws
//! with 53 bits, the device in f32 and with the first 24 of these. They may part where `top_p` or
//! the draw falls that close (about 1e-5 of the mass) to the border between two tokens, and on
//! which token is greedy's if a logit is NaN.

mod adjust;
#[cfg(test)]
mod bench;
mod blocks;
mod candidates;
mod device;
mod exp;
mod host;
#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;

pub(crate) use device::draw_on_device;
pub(crate) use host::draw_on_host;

use interlock_engine::{Opening, PassFailed};
use interlock_request::{Generation, Sampling, TokenId};

use adjust::Adjustments;

/// Below this a temperature is zero (as in vLLM): dividing by it says nothing that greedy does not.
const TEMPERATURE_MIN: f32 = 1e-5;

/// Draws the tokens of one sequence: its sampling parameters, and the counts that these need.
pub(crate) struct Sampler {
    strategy: Strategy,
    adjustments: Adjustments,
    logprobs: Option<usize>,
    seed: u64,
    drawn: u64,
}

/// The decoding strategy: how a token is chosen from adjusted logits.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Strategy {
    Greedy,
    Sample(Filter),
}

/// The temperature, and the limits on which tokens may be drawn.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Filter {
    /// Multiplied rather than divided by, by host and device alike: their rounding is then the
    /// same. Never subnormal, which a GPU may take for zero.
    inverse_temperature: f32,
    /// Below the vocabulary's size, or none.
    top_k: Option<u32>,
    /// Below 1, or none.
    top_p: Option<f32>,
    /// `ln(min_p)`: what a tempered logit must reach, if the largest is 0.
    min_p_ln: Option<f32>,
}

impl Sampler {
    pub(crate) fn new(opening: &Opening<'_>, vocabulary: u32) -> Result<Self, PassFailed> {
        let Generation { sampling, logprobs, .. } = opening.generation;
        check(sampling)?;
        let seed = sampling.seed.unwrap_or(opening.fresh_seed);
        Ok(Self {
            strategy: Strategy::new(sampling, vocabulary),
            adjustments: Adjustments::new(opening, vocabulary)?,
            logprobs: logprobs.map(|count| count.min(vocabulary) as usize),
            seed: mix(seed),
            drawn: opening.generated.len() as u64,
        })
    }

    /// After the pass has succeeded: this token was drawn.
    pub(crate) fn remember(&mut self, token: TokenId) {
        self.adjustments.remember(token);
        self.drawn += 1;
    }

    /// Where in the distribution the next token is looked up: at least 0, less than 1. A bijection
    /// of the position, offset by the seed, and mixed: there is no state to keep or to restore.
    fn unit(&self) -> f64 {
        let bits = mix(self.seed.wrapping_add(self.drawn)) >> (64 - f64::MANTISSA_DIGITS);
        bits as f64 / (1_u64 << f64::MANTISSA_DIGITS) as f64
    }
}

impl Strategy {
    fn new(sampling: &Sampling, vocabulary: u32) -> Self {
        let &Sampling { temperature, top_p, top_k, min_p, .. } = sampling;
        if temperature < TEMPERATURE_MIN {
            return Self::Greedy;
        }
        Self::Sample(Filter {
            inverse_temperature: (1.0 / temperature).max(f32::MIN_POSITIVE),
            top_k: (top_k > 0 && top_k < vocabulary).then_some(top_k),
            top_p: (top_p < 1.0).then_some(top_p),
            min_p_ln: (min_p > 0.0).then(|| min_p.ln()),
        })
    }
}

fn failed(why: impl Into<String>) -> PassFailed {
    PassFailed::new(why)
}

fn check(sampling: &Sampling) -> Result<(), PassFailed> {
    let penalties = sampling.penalties;
    let bounds = [
        ("temperature", sampling.temperature, 0.0, f32::MAX),
        ("top_p", sampling.top_p, 0.0, 1.0),
        ("min_p", sampling.min_p, 0.0, 1.0),
        ("repetition penalty", penalties.repetition, f32::MIN_POSITIVE, f32::MAX),
        ("presence penalty", penalties.presence, f32::MIN, f32::MAX),
        ("frequency penalty", penalties.frequency, f32::MIN, f32::MAX),
    ];
    for (name, value, least, most) in bounds {
        if !(least..=most).contains(&value) {
            return Err(failed(format!("{name} is {value}, must be {least:e} to {most:e}")));
        }
    }
    Ok(())
}

/// A log probability as those can take it who print it: JSON has neither infinities nor NaN. The
/// least is OpenAI's number for "not at all"; rounding can make one of a certain token positive.
fn printable(logprob: f32) -> f32 {
    const LEAST: f32 = -9999.0;
    if logprob.is_nan() { LEAST } else { logprob.clamp(LEAST, 0.0) }
}

/// SplitMix64's finalizer: each bit of the input moves about half of the output's.
fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    value ^ (value >> 31)
}
