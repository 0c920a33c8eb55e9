//! Draws on the host, a row at a time, for logits that were computed there.
//!
//! A vocabulary is never sorted. It is read in blocks whose largest logits, the *peaks*, are
//! found first; they tell which blocks can hold a token that `top_k`, `top_p` or `min_p` would
//! keep, and only such tokens become candidates:
//!
//! - `top_k`: k blocks have peaks at least as large as the k-th largest peak, so k tokens are, and
//!   whatever is smaller is not kept.
//! - `top_p`: tokens that each have less than `(1 - top_p) / vocabulary` of the mass together have
//!   less than `1 - top_p`, so the mass before them is at least `top_p`, and they are not kept. A
//!   few halvings between there and the likeliest find a better line.
//! - `min_p` says it itself.
//!
//! # Invariants
//!
//! - [`draw_row`] is a pure function of its two arguments.
//! - Likelihoods are computed in f32, added up in f32 over a block at most and in f64 beyond it,
//!   and always in the same order.

use std::cell::RefCell;

use interlock_request::{Drawn, Logprobs, TokenId};

use super::blocks::{
    BLOCK, Tempering, find_peaks, first_of, largest, least_likely, nth_largest, sum,
};
use super::candidates::{TokenCandidate, clean, collect, find, keep_first, nucleus};
use super::{Filter, Sampler, Strategy, printable};

/// The next token of each sampler. `logits` is `[rows, vocabulary]`, row after row.
pub(crate) fn draw_on_host(samplers: &[&Sampler], logits: &[f32]) -> Vec<Drawn> {
    let vocabulary = logits.len() / samplers.len().max(1);
    debug_assert_eq!(logits.len(), vocabulary * samplers.len(), "rows of one length");
    let rows = logits.chunks_exact(vocabulary.max(1));
    samplers.iter().zip(rows).map(|(sampler, row)| draw_row(sampler, row)).collect()
}

/// The next token of one sequence.
pub(super) fn draw_row(sampler: &Sampler, logits: &[f32]) -> Drawn {
    thread_local! {
        static SCRATCH: RefCell<RowScratch> = RefCell::default();
    }
    SCRATCH.with_borrow_mut(|scratch| {
        let token = scratch.draw(sampler, logits);
        let logprobs =
            sampler.logprobs.map(|count| Box::new(scratch.logprobs(logits, token, count)));
        Drawn { token, logprobs }
    })
}

/// The buffers that one row needs, kept from row to row.
#[derive(Default)]
struct RowScratch {
    adjusted: Vec<f32>,
    buffers: Buffers,
}

/// The buffers apart from the adjusted logits, which are read while these are filled.
#[derive(Default)]
struct Buffers {
    peaks: Vec<f32>,
    ranking: Vec<f32>,
    masses: Vec<f64>,
    weights: Vec<f32>,
    candidates: Vec<TokenCandidate>,
    ranked: Vec<TokenCandidate>,
}

impl RowScratch {
    fn draw(&mut self, sampler: &Sampler, logits: &[f32]) -> TokenId {
        let mut changes = sampler.adjustments.changes().peekable();
        if changes.peek().is_none() {
            return self.buffers.choose(sampler, logits);
        }
        self.adjusted.clear();
        self.adjusted.extend_from_slice(logits);
        for (token, terms) in changes {
            // Tokens beyond the vocabulary are not among the changes.
            if let Some(logit) = self.adjusted.get_mut(token as usize) {
                *logit = terms.apply(*logit);
            }
        }
        self.buffers.choose(sampler, &self.adjusted)
    }

    fn logprobs(&mut self, logits: &[f32], token: TokenId, count: usize) -> Logprobs {
        let Buffers { peaks, ranking, masses, candidates, .. } = &mut self.buffers;
        find_peaks(logits, peaks);
        let tempering =
            Tempering { largest: largest(peaks).min(f32::MAX), inverse_temperature: 1.0 };
        let mass = tempering.add_up(logits, masses);
        let whole = f64::from(tempering.largest) + mass.ln();
        let logprob = |logit: f32| printable((f64::from(clean(logit)) - whole) as f32);

        candidates.clear();
        if count > 0 {
            let least = nth_largest(peaks, count, ranking);
            collect(logits, peaks, candidates, |logit| logit < least, |_| 0.0);
            keep_first(candidates, count);
            candidates.sort_unstable_by_key(TokenCandidate::likeliest_first);
        }
        Logprobs {
            drawn: logprob(logits[token as usize]),
            top: candidates.iter().map(|c| (c.token(), logprob(c.logit()))).collect(),
        }
    }
}

impl Buffers {
    fn choose(&mut self, sampler: &Sampler, logits: &[f32]) -> TokenId {
        find_peaks(logits, &mut self.peaks);
        let largest = largest(&self.peaks);
        if largest == f32::NEG_INFINITY {
            return 0;
        }
        match sampler.strategy {
            Strategy::Greedy => first_of(logits, &self.peaks, largest),
            Strategy::Sample(filter) => {
                let inverse_temperature = filter.inverse_temperature;
                let tempering = Tempering { largest: largest.min(f32::MAX), inverse_temperature };
                self.draw(logits, filter, tempering, sampler.unit())
            }
        }
    }

    fn draw(&mut self, logits: &[f32], filter: Filter, tempering: Tempering, unit: f64) -> TokenId {
        match filter {
            Filter { top_k: None, top_p: None, min_p_ln: None, .. } => {
                self.draw_from_all(logits, tempering, unit)
            }
            _ => {
                let border = self.border(logits, filter, tempering);
                let kept = || {
                    let kept = self.candidates.iter().filter(|c| c.place >= border);
                    kept.filter(|c| tempering.reaches(c.logit(), filter.min_p_ln))
                };
                let total: f64 = kept().map(|c| f64::from(c.weight)).sum();
                let weights = kept().map(|c| (c.token(), c.weight));
                find(weights, unit * total).unwrap_or_default()
            }
        }
    }

    fn draw_from_all(&mut self, logits: &[f32], tempering: Tempering, unit: f64) -> TokenId {
        let mut left = unit * tempering.add_up(logits, &mut self.masses);
        // The block it falls in, or by rounding behind the last that could be drawn from.
        let mut found = 0;
        for (at, &mass) in self.masses.iter().enumerate().filter(|&(_, &mass)| mass > 0.0) {
            found = at * BLOCK;
            if left < mass {
                break;
            }
            left -= mass;
        }
        let block = (found..).zip(logits[found..].iter().take(BLOCK));
        let weights = block.map(|(token, &logit)| (token as TokenId, tempering.weight(logit)));
        find(weights, left).unwrap_or_default()
    }

    /// Fills `candidates` with all that may be kept, in the order of their ids, and finds the last
    /// that `top_k` and `top_p` keep.
    fn border(&mut self, logits: &[f32], filter: Filter, tempering: Tempering) -> u64 {
        let Self { peaks, ranking, weights, candidates, ranked, .. } = self;
        let Filter { top_k, top_p, min_p_ln, .. } = filter;
        let mut mass = 0.0;
        let least = match (top_k, top_p) {
            (Some(count), _) => tempering.temper(nth_largest(peaks, count as usize, ranking)),
            (None, Some(top_p)) => {
                tempering.weigh(logits, weights);
                mass = weights.chunks(BLOCK).map(|block| sum(block, |weight| weight)).sum();
                let least = least_likely(tempering, peaks, weights, f64::from(top_p), mass);
                least.max(min_p_ln.unwrap_or(f32::NEG_INFINITY))
            }
            (None, None) => min_p_ln.unwrap_or(f32::NEG_INFINITY),
        };
        candidates.clear();
        let unlikely = |logit| tempering.temper(logit) < least;
        collect(logits, peaks, candidates, unlikely, |logit| tempering.weight(logit));
        if top_k.is_none() && top_p.is_none() {
            return 0;
        }

        ranked.clone_from(candidates);
        let mut border = 0;
        if let Some(count) = top_k {
            border = keep_first(ranked, count as usize);
            let kept = candidates.iter().filter(|c| c.place >= border);
            mass = kept.map(|c| f64::from(c.weight)).sum();
        }
        if let Some(top_p) = top_p {
            border = nucleus(ranked, f64::from(top_p) * mass);
        }
        border
    }
}
