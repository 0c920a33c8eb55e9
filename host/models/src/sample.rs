//! From logits to a token, on the device. Only the token's number comes back.
//!
//! One graph, each step present only if the request asks for it:
//!
//! 1. `logit_bias` is added;
//! 2. repetition, then frequency and presence penalties;
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
//! # Invariants
//!
//! - A draw depends on the sequence's logits, its parameters, its seed and how many tokens it drew
//!   before; on nothing else in the process. So a seed repeats in any company.
//! - The token is below the vocabulary's size, whatever the logits are.

use std::hash::{BuildHasher, Hasher};

use interlock_engine::PassFailed;
use interlock_request::{Sampling, TokenId};
use mlx_rs::error::Exception;
use mlx_rs::ops::indexing::{TryIndexOp, argmax, take};
use mlx_rs::{Array, Dtype, ops, random};

/// Below this a temperature is zero (as in vLLM): dividing by it says nothing that greedy does not.
const TEMPERATURE_MIN: f32 = 1e-5;

/// One sequence's way of drawing tokens, and what it must remember for that.
pub(crate) struct Sampler {
    sampling: Sampling,
    seed: u64,
    drawn: u64,
    /// `[vocabulary]`; none if nothing is biased.
    bias: Option<Array>,
    /// `[vocabulary]`: is it in prompt or output? None without a repetition penalty.
    seen: Option<Array>,
    /// `[vocabulary]`: how often is it in the output? None without the other two.
    counts: Option<Array>,
    /// `0..vocabulary`, to find a token in the two above; none without them.
    ids: Option<Array>,
}

impl Sampler {
    pub(crate) fn new(
        sampling: &Sampling,
        prompt: &[TokenId],
        vocabulary: u32,
    ) -> Result<Self, PassFailed> {
        check(sampling)?;
        let size = vocabulary as usize;
        let shape = [vocabulary.cast_signed()];

        let mut bias = vec![0.0_f32; if sampling.logit_bias.is_empty() { 0 } else { size }];
        for (&token, &value) in &sampling.logit_bias {
            if !value.is_finite() {
                return Err(PassFailed(format!("logit_bias of token {token} is {value}")));
            }
            *bias.get_mut(token as usize).ok_or_else(|| {
                PassFailed(format!("logit_bias for token {token}, the vocabulary has {vocabulary}"))
            })? = value;
        }

        let penalties = sampling.penalties;
        let seen = (penalties.repetition != 1.0).then(|| {
            let mut seen = vec![false; size];
            for &token in prompt {
                if let Some(seen) = seen.get_mut(token as usize) {
                    *seen = true;
                }
            }
            Array::from_slice(&seen, &shape)
        });
        let counts = (penalties.presence != 0.0 || penalties.frequency != 0.0)
            .then(|| Array::from_slice(&vec![0.0_f32; size], &shape));
        let ids = (seen.is_some() || counts.is_some()).then(|| {
            let ids: Vec<u32> = (0..vocabulary).collect();
            Array::from_slice(&ids, &shape)
        });
        Ok(Self {
            seed: sampling.seed.unwrap_or_else(fresh_seed),
            sampling: sampling.clone(),
            drawn: 0,
            bias: (!bias.is_empty()).then(|| Array::from_slice(&bias, &shape)),
            seen,
            counts,
            ids,
        })
    }

    /// The next token, as a graph that is not computed yet. `logits` is `[vocabulary]`.
    pub(crate) fn draw(&mut self, logits: &Array) -> Result<Array, Exception> {
        let logits = self.adjust(&logits.as_dtype(Dtype::Float32)?)?;
        let token = if self.sampling.temperature < TEMPERATURE_MIN {
            argmax(&logits, false)?
        } else {
            self.filter_and_draw(&logits)?
        };
        self.drawn += 1;
        self.remember(&token)?;
        Ok(token)
    }

    /// What must be computed, beside the token, before a pass has ended.
    pub(crate) fn arrays(&self) -> impl Iterator<Item = &Array> {
        self.seen.iter().chain(&self.counts)
    }

    fn adjust(&self, logits: &Array) -> Result<Array, Exception> {
        let penalties = self.sampling.penalties;
        let mut logits = match &self.bias {
            Some(bias) => logits.add(bias)?,
            None => logits.clone(),
        };
        if let Some(seen) = &self.seen {
            let factor = Array::from_f32(penalties.repetition);
            let less_likely = ops::select(
                logits.lt(Array::from_f32(0.0))?,
                logits.multiply(&factor)?,
                logits.divide(&factor)?,
            )?;
            logits = ops::select(seen, less_likely, logits)?;
        }
        if let Some(counts) = &self.counts {
            let often = counts.multiply(Array::from_f32(penalties.frequency))?;
            let once = counts.minimum_one()?.multiply(Array::from_f32(penalties.presence))?;
            logits = logits.subtract(often)?.subtract(once)?;
        }
        Ok(logits)
    }

    fn filter_and_draw(&self, logits: &Array) -> Result<Array, Exception> {
        let Sampling { temperature, top_p, top_k, min_p, .. } = self.sampling;
        // Relative to the largest, so that no temperature makes an infinity.
        let mut logits =
            logits.subtract(ops::max(logits, false)?)?.divide(Array::from_f32(temperature))?;
        // Where the candidates stand in the vocabulary, once they are fewer or in another order.
        let mut tokens: Option<Array> = None;

        let top_k = top_k.cast_signed();
        if top_k > 0 && top_k < logits.dim(0) {
            let best = ops::argpartition_axis(logits.negative()?, top_k - 1, 0)?;
            let best = best.try_index(..top_k)?;
            logits = take(&logits, &best)?;
            tokens = Some(best);
        }
        if top_p < 1.0 {
            let order = ops::argsort_axis(logits.negative()?, 0)?;
            logits = take(&logits, &order)?;
            tokens = Some(match tokens {
                Some(tokens) => take(tokens, &order)?,
                None => order,
            });
            let likelihood = ops::softmax_axis(&logits, 0, true)?;
            // The mass before each token. The most likely has none before it, and so stays.
            let before = likelihood.cumsum(0, false, false)?;
            let within = before.lt(Array::from_f32(top_p.max(f32::MIN_POSITIVE)))?;
            logits = keep(&within, logits)?;
        }
        if min_p > 0.0 {
            // The largest is 0 by now, so a likelihood relative to it is the exponential.
            let likely = logits.ge(Array::from_f32(min_p.min(1.0).ln()))?;
            logits = keep(&likely, logits)?;
        }
        let drawn = random::categorical(&logits, 0, None, &self.key())?;
        match tokens {
            Some(tokens) => take(tokens, drawn)?.as_dtype(Dtype::Uint32),
            None => drawn.as_dtype(Dtype::Uint32),
        }
    }

    /// MLX's keys are two words. Ours are a bijection of the position, offset by the seed, and
    /// mixed: no state to keep, and no split to compute.
    fn key(&self) -> Array {
        let mixed = mix(mix(self.seed).wrapping_add(self.drawn));
        Array::from_slice(&[(mixed >> 32) as u32, mixed as u32], &[2])
    }

    fn remember(&mut self, token: &Array) -> Result<(), Exception> {
        let Some(ids) = &self.ids else { return Ok(()) };
        let drawn = ids.eq(token)?;
        if let Some(seen) = &mut self.seen {
            *seen = seen.logical_or(&drawn)?;
        }
        if let Some(counts) = &mut self.counts {
            *counts = counts.add(drawn.as_dtype(Dtype::Float32)?)?;
        }
        Ok(())
    }
}

trait MinimumOne {
    fn minimum_one(&self) -> Result<Array, Exception>;
}

impl MinimumOne for Array {
    fn minimum_one(&self) -> Result<Array, Exception> {
        ops::minimum(self, Array::from_f32(1.0))
    }
}

fn keep(condition: &Array, logits: Array) -> Result<Array, Exception> {
    ops::select(condition, logits, Array::from_f32(f32::NEG_INFINITY))
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
            return Err(PassFailed(format!("{name} is {value}, must be {least:e} to {most:e}")));
        }
    }
    Ok(())
}

/// SplitMix64's finalizer: each bit of the input moves about half of the output's.
fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    value ^ (value >> 31)
}

/// The standard library seeds each of its hashers anew.
fn fresh_seed() -> u64 {
    std::hash::RandomState::new().build_hasher().finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use interlock_request::Penalties;
    use std::collections::BTreeMap;

    fn hot() -> Sampling {
        Sampling { temperature: 1.0, seed: Some(7), ..Sampling::greedy() }
    }

    fn draws(sampling: &Sampling, prompt: &[TokenId], logits: &[f32], count: usize) -> Vec<u32> {
        let mut sampler = Sampler::new(sampling, prompt, logits.len() as u32).unwrap();
        let logits = Array::from_slice(logits, &[logits.len() as i32]);
        (0..count).map(|_| sampler.draw(&logits).unwrap().try_item_exact().unwrap()).collect()
    }

    /// Logits of these likelihoods.
    fn of(likelihoods: &[f32]) -> Vec<f32> {
        likelihoods.iter().map(|p| p.ln()).collect()
    }

    fn which(mut tokens: Vec<u32>) -> Vec<u32> {
        tokens.sort_unstable();
        tokens.dedup();
        tokens
    }

    #[test]
    fn greedy_takes_the_most_likely() {
        assert_eq!(draws(&Sampling::greedy(), &[], &[0.1, 3.0, -2.0], 2), [1, 1]);
    }

    #[test]
    fn a_seed_repeats_and_another_does_not() {
        let logits = vec![0.0; 1000];
        let first = draws(&hot(), &[], &logits, 20);
        assert_eq!(draws(&hot(), &[], &logits, 20), first);
        let other = Sampling { seed: Some(8), ..hot() };
        assert_ne!(draws(&other, &[], &logits, 20), first);
        assert!(which(first).len() > 10, "each draw has its own key");
    }

    #[test]
    fn tokens_come_as_often_as_they_are_likely() {
        let tokens = draws(&hot(), &[], &of(&[0.5, 0.3, 0.15, 0.05]), 4000);
        for (token, likelihood) in [(0, 0.5), (1, 0.3), (2, 0.15), (3, 0.05)] {
            let share = tokens.iter().filter(|&&t| t == token).count() as f64 / 4000.0;
            // Four standard deviations at most 0.032.
            assert!((share - likelihood).abs() < 0.032, "token {token}: {share}");
        }
    }

    #[test]
    fn temperature_flattens() {
        let logits = of(&[0.9, 0.1]);
        let share = |temperature| {
            let tokens = draws(&Sampling { temperature, ..hot() }, &[], &logits, 1000);
            tokens.iter().filter(|&&token| token == 1).count()
        };
        // p^(1/T): 0.012 at T = 0.5, 0.25 at T = 2.
        assert!(share(0.5) < 40 && (200..300).contains(&share(2.0)));
    }

    #[test]
    fn top_k_keeps_that_many() {
        let logits = of(&[0.1, 0.4, 0.2, 0.3]);
        assert_eq!(which(draws(&Sampling { top_k: 2, ..hot() }, &[], &logits, 300)), [1, 3]);
        assert_eq!(which(draws(&Sampling { top_k: 1, ..hot() }, &[], &logits, 50)), [1]);
        assert_eq!(which(draws(&Sampling { top_k: 99, ..hot() }, &[], &logits, 500)), [0, 1, 2, 3]);
    }

    #[test]
    fn top_p_keeps_the_smallest_set_that_reaches_it() {
        let logits = of(&[0.1, 0.4, 0.2, 0.3]);
        let kept = |top_p| which(draws(&Sampling { top_p, ..hot() }, &[], &logits, 400));
        assert_eq!(kept(0.35), [1]);
        assert_eq!(kept(0.6), [1, 3]);
        assert_eq!(kept(0.75), [1, 2, 3]);
        assert_eq!(kept(0.0), [1], "never nothing at all");
    }

    #[test]
    fn top_p_looks_at_what_top_k_left() {
        // Of the two that top_k leaves, 0.4 and 0.3, the first alone has 0.57 of the mass.
        let logits = of(&[0.1, 0.4, 0.2, 0.3]);
        let both = Sampling { top_k: 2, top_p: 0.55, ..hot() };
        assert_eq!(which(draws(&both, &[], &logits, 200)), [1]);
    }

    #[test]
    fn top_p_looks_at_the_tempered_distribution() {
        let logits = of(&[0.6, 0.3, 0.1]);
        let cold = Sampling { temperature: 0.25, top_p: 0.9, ..hot() };
        // 0.6^4 has 0.93 of the mass.
        assert_eq!(which(draws(&cold, &[], &logits, 200)), [0]);
    }

    #[test]
    fn min_p_is_relative_to_the_most_likely() {
        let logits = of(&[0.1, 0.45, 0.05, 0.4]);
        let kept = |min_p| which(draws(&Sampling { min_p, ..hot() }, &[], &logits, 400));
        assert_eq!(kept(0.5), [1, 3]);
        assert_eq!(kept(0.2), [0, 1, 3]);
    }

    #[test]
    fn a_bias_of_one_hundred_decides() {
        let biased = Sampling {
            logit_bias: BTreeMap::from([(2, 100.0), (0, -100.0)]),
            ..Sampling::greedy()
        };
        assert_eq!(draws(&biased, &[], &[9.0, 3.0, 1.0], 1), [2]);
    }

    #[test]
    fn a_bias_outside_the_vocabulary_is_refused_with_both_numbers() {
        let biased = Sampling { logit_bias: BTreeMap::from([(3, 1.0)]), ..Sampling::greedy() };
        let refused = Sampler::new(&biased, &[], 3).err().unwrap();
        assert_eq!(refused.0, "logit_bias for token 3, the vocabulary has 3");
    }

    #[test]
    fn penalties_are_those_of_the_paper_and_of_openai() {
        let with = |penalties| Sampling { penalties, ..Sampling::greedy() };
        let none = Penalties::NONE;
        let logits = [2.0, 1.5, -1.0];

        // The prompt counts for repetition: 2 / 2 < 1.5, and then 1.5 / 2 < 1.
        let repetition = with(Penalties { repetition: 2.0, ..none });
        assert_eq!(draws(&repetition, &[0], &logits, 2), [1, 0]);
        // Negative logits are multiplied.
        let repetition = with(Penalties { repetition: 3.0, ..none });
        assert_eq!(draws(&repetition, &[0], &[-1.0, -2.0], 1), [1]);

        // The prompt does not count for the other two.
        let presence = with(Penalties { presence: 0.75, ..none });
        assert_eq!(draws(&presence, &[0], &logits, 4), [0, 1, 0, 0], "once, however often");
        let frequency = with(Penalties { frequency: 0.75, ..none });
        assert_eq!(draws(&frequency, &[0], &logits, 4), [0, 1, 0, 1], "for each time");
    }

    #[test]
    fn whatever_the_logits_the_token_is_in_the_vocabulary() {
        let all = Sampling { top_k: 2, top_p: 0.9, min_p: 0.1, ..hot() };
        let (nan, inf) = (f32::NAN, f32::INFINITY);
        for logits in [[nan; 4], [inf, 0.0, 0.0, inf], [-inf; 4], [nan, 1.0, -inf, inf]] {
            for sampling in [&all, &hot(), &Sampling::greedy()] {
                assert!(draws(sampling, &[], &logits, 3).iter().all(|&token| token < 4));
            }
        }
    }
}
