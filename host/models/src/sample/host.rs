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

use super::exp::exp;
use super::{Filter, Sampler, Way, printable};

/// Logits that share a peak. Small, so that few tokens beside a likely one are looked at.
const BLOCK: usize = 64;

/// Numbers that are worked on side by side, as the compiler likes them: four SSE registers.
const LANES: usize = 16;

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
        static SCRATCH: RefCell<Scratch> = RefCell::default();
    }
    SCRATCH.with_borrow_mut(|scratch| {
        let token = scratch.draw(sampler, logits);
        let logprobs =
            sampler.logprobs.map(|count| Box::new(scratch.logprobs(logits, token, count)));
        Drawn { token, logprobs }
    })
}

/// Room for what one row needs, kept from row to row.
#[derive(Default)]
struct Scratch {
    adjusted: Vec<f32>,
    work: Work,
}

/// The same, without the logits themselves.
#[derive(Default)]
struct Work {
    peaks: Vec<f32>,
    ranking: Vec<f32>,
    masses: Vec<f64>,
    weights: Vec<f32>,
    candidates: Vec<Candidate>,
    ranked: Vec<Candidate>,
}

impl Scratch {
    fn draw(&mut self, sampler: &Sampler, logits: &[f32]) -> TokenId {
        let mut changes = sampler.adjustments.changes().peekable();
        if changes.peek().is_none() {
            return self.work.choose(sampler, logits);
        }
        self.adjusted.clear();
        self.adjusted.extend_from_slice(logits);
        for (token, terms) in changes {
            // Tokens beyond the vocabulary are not among the changes.
            if let Some(logit) = self.adjusted.get_mut(token as usize) {
                *logit = terms.apply(*logit);
            }
        }
        self.work.choose(sampler, &self.adjusted)
    }

    fn logprobs(&mut self, logits: &[f32], token: TokenId, count: usize) -> Logprobs {
        let Work { peaks, ranking, masses, candidates, .. } = &mut self.work;
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
            candidates.sort_unstable_by_key(Candidate::likeliest_first);
        }
        Logprobs {
            drawn: logprob(logits[token as usize]),
            top: candidates.iter().map(|c| (c.token(), logprob(c.logit()))).collect(),
        }
    }
}

impl Work {
    fn choose(&mut self, sampler: &Sampler, logits: &[f32]) -> TokenId {
        find_peaks(logits, &mut self.peaks);
        let largest = largest(&self.peaks);
        if largest == f32::NEG_INFINITY {
            return 0;
        }
        match sampler.way {
            Way::Greedy => first_of(logits, &self.peaks, largest),
            Way::Hot(filter) => {
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

/// Logits relative to the largest, so that no temperature makes an infinity.
#[derive(Clone, Copy)]
struct Tempering {
    /// Finite.
    largest: f32,
    inverse_temperature: f32,
}

impl Tempering {
    #[inline(always)]
    fn temper(self, logit: f32) -> f32 {
        // Two infinite logits are as likely as each other; their difference is not a number.
        let logit = if logit > f32::MAX { f32::MAX } else { logit };
        (logit - self.largest) * self.inverse_temperature
    }

    /// How likely, relative to the likeliest.
    #[inline(always)]
    fn weight(self, logit: f32) -> f32 {
        exp(self.temper(logit))
    }

    fn reaches(self, logit: f32, least: Option<f32>) -> bool {
        least.is_none_or(|least| self.temper(logit) >= least)
    }

    /// Fills `masses` with each block's, and returns their sum.
    fn add_up(self, logits: &[f32], masses: &mut Vec<f64>) -> f64 {
        masses.resize(logits.len().div_ceil(BLOCK), 0.0);
        wide(
            #[inline(always)]
            || {
                for (mass, block) in masses.iter_mut().zip(logits.chunks(BLOCK)) {
                    *mass = sum(block, |logit| self.weight(logit));
                }
            },
        );
        masses.iter().sum()
    }

    /// Fills `weights`.
    fn weigh(self, logits: &[f32], weights: &mut Vec<f32>) {
        weights.resize(logits.len(), 0.0);
        wide(
            #[inline(always)]
            || {
                for (weight, &logit) in weights.iter_mut().zip(logits) {
                    *weight = self.weight(logit);
                }
            },
        );
    }
}

/// Has the loops in `work` run with the widest registers that this machine has, for which all that
/// they call must be inlined. The results are the same to the bit: the order of sums is ours.
#[inline(always)]
fn wide<Output>(work: impl FnOnce() -> Output) -> Output {
    pulp::Arch::new().dispatch(work)
}

/// A token that may be drawn.
#[derive(Debug, Clone, Copy)]
struct Candidate {
    /// Larger is likelier: the logit, as an integer of the same order, above the token's id,
    /// whose bits are turned over so that of equal logits the lower id is the likelier.
    place: u64,
    weight: f32,
}

impl Candidate {
    fn new(token: TokenId, logit: f32, weight: f32) -> Self {
        // Adding zero makes -0 into 0, which is equal and must be equally likely.
        let bits = (clean(logit) + 0.0).to_bits();
        let ordered = if bits >> 31 == 0 { bits | 1 << 31 } else { !bits };
        Self { place: u64::from(ordered) << 32 | u64::from(!token), weight }
    }

    fn token(&self) -> TokenId {
        !(self.place as u32)
    }

    fn logit(&self) -> f32 {
        let ordered = (self.place >> 32) as u32;
        f32::from_bits(if ordered >> 31 == 1 { ordered & !(1 << 31) } else { !ordered })
    }

    fn likeliest_first(&self) -> std::cmp::Reverse<u64> {
        std::cmp::Reverse(self.place)
    }
}

/// A logit that is not a number is as unlikely as can be; an infinite one is just very likely.
#[inline(always)]
fn clean(logit: f32) -> f32 {
    if logit.is_nan() { f32::NEG_INFINITY } else { logit.min(f32::MAX) }
}

fn find_peaks(logits: &[f32], peaks: &mut Vec<f32>) {
    peaks.clear();
    peaks.extend(logits.chunks(BLOCK).map(peak));
}

/// The sum over a block, always in the same order.
#[inline(always)]
fn sum(block: &[f32], of: impl Fn(f32) -> f32) -> f64 {
    let mut sums = [0.0_f32; LANES];
    let (lines, rest) = block.as_chunks::<LANES>();
    for line in lines {
        for (sum, &number) in sums.iter_mut().zip(line) {
            *sum += of(number);
        }
    }
    for (sum, &number) in sums.iter_mut().zip(rest) {
        *sum += of(number);
    }
    let mut width = LANES;
    while width > 1 {
        width /= 2;
        for lane in 0..width {
            sums[lane] += sums[lane + width];
        }
    }
    f64::from(sums[0])
}

/// The largest; what is not a number is passed over.
#[inline(always)]
fn peak(block: &[f32]) -> f32 {
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (lines, rest) = block.as_chunks::<LANES>();
    for line in lines {
        for (lane, &logit) in lanes.iter_mut().zip(line) {
            *lane = larger(*lane, logit);
        }
    }
    for (lane, &logit) in lanes.iter_mut().zip(rest) {
        *lane = larger(*lane, logit);
    }
    let mut width = LANES;
    while width > 1 {
        width /= 2;
        for lane in 0..width {
            lanes[lane] = larger(lanes[lane], lanes[lane + width]);
        }
    }
    lanes[0]
}

fn largest(peaks: &[f32]) -> f32 {
    peaks.iter().copied().fold(f32::NEG_INFINITY, f32::max)
}

/// The first token with this logit, which is the largest.
fn first_of(logits: &[f32], peaks: &[f32], largest: f32) -> TokenId {
    let block = peaks.iter().position(|&peak| peak == largest).unwrap_or_default();
    let start = block * BLOCK;
    let within = logits[start..].iter().position(|&logit| logit == largest).unwrap_or_default();
    (start + within) as TokenId
}

/// What the tempered logit of each token that `top_p` keeps is at least. `weights` and `mass` are
/// all tokens'.
fn least_likely(
    tempering: Tempering,
    peaks: &[f32],
    weights: &[f32],
    top_p: f64,
    mass: f64,
) -> f32 {
    /// Each reads the likelier blocks once more, and spares candidates.
    const HALVINGS: usize = 6;
    // The margins here and below are far above the rounding of likelihoods and their sums.
    let wanted = top_p * mass * (1.0 + 1e-5);
    let enough_from = |line: f32| {
        let least = exp(line);
        let blocks = weights.chunks(BLOCK).zip(peaks);
        let likely = blocks.filter(|&(_, &peak)| tempering.temper(peak) >= line);
        let masses = likely.map(|(block, _)| sum(block, |w| if w >= least { w } else { 0.0 }));
        masses.sum::<f64>() >= wanted
    };
    let share = (1.0 - top_p) * mass / weights.len() as f64;
    let (mut enough, mut too_few) = (share.ln() as f32, 0.0);
    for _ in 0..HALVINGS {
        let middle = (enough + too_few) / 2.0;
        if enough_from(middle) {
            enough = middle;
        } else {
            too_few = middle;
        }
    }
    enough - 0.01
}

/// A lower bound of the `count`-th largest logit.
fn nth_largest(peaks: &[f32], count: usize, ranking: &mut Vec<f32>) -> f32 {
    if count > peaks.len() {
        return f32::NEG_INFINITY;
    }
    ranking.clear();
    ranking.extend_from_slice(peaks);
    *ranking.select_nth_unstable_by(count - 1, |a, b| b.total_cmp(a)).1
}

/// All tokens that are not `unlikely`, in the order of their ids.
#[inline(always)]
fn collect(
    logits: &[f32],
    peaks: &[f32],
    candidates: &mut Vec<Candidate>,
    unlikely: impl Fn(f32) -> bool,
    weight: impl Fn(f32) -> f32,
) {
    for (at, block) in logits.chunks(BLOCK).enumerate() {
        if unlikely(peaks[at]) {
            continue;
        }
        for (token, &logit) in (at * BLOCK..).zip(block) {
            if !unlikely(logit) {
                candidates.push(Candidate::new(token as TokenId, logit, weight(logit)));
            }
        }
    }
}

/// Keeps the `count` likeliest, in any order, and returns the place of the last of them.
fn keep_first(ranked: &mut Vec<Candidate>, count: usize) -> u64 {
    if ranked.len() <= count {
        return 0;
    }
    let (_, last, _) = ranked.select_nth_unstable_by_key(count - 1, Candidate::likeliest_first);
    let border = last.place;
    ranked.truncate(count);
    border
}

/// The place of the last token that has less than `mass` before it, where the likeliest has none.
///
/// Halves until few are left: all tokens are looked at twice on average, none is put in order but
/// the last few.
fn nucleus(ranked: &mut [Candidate], mass: f64) -> u64 {
    const FEW: usize = 64;
    let (mut rest, mut before) = (ranked, 0.0);
    while rest.len() > FEW {
        let middle = rest.len() / 2;
        rest.select_nth_unstable_by_key(middle, Candidate::likeliest_first);
        let (likelier, others) = rest.split_at_mut(middle);
        let through = before + likelier.iter().map(|c| f64::from(c.weight)).sum::<f64>();
        rest = if through < mass {
            before = through;
            others
        } else {
            likelier
        };
    }
    rest.sort_unstable_by_key(Candidate::likeliest_first);
    let mut border = rest.first().map_or(0, |likeliest| likeliest.place);
    for candidate in rest {
        if before >= mass {
            break;
        }
        border = candidate.place;
        before += f64::from(candidate.weight);
    }
    border
}

/// The first token up to which there is more than `target`; the last possible one, if rounding
/// has it that there is none; none if none is possible at all.
fn find(weights: impl Iterator<Item = (TokenId, f32)>, target: f64) -> Option<TokenId> {
    let (mut mass, mut last) = (0.0, None);
    for (token, weight) in weights.filter(|&(_, weight)| weight > 0.0) {
        mass += f64::from(weight);
        last = Some(token);
        if mass > target {
            break;
        }
    }
    last
}
