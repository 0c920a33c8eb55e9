//! A row of logits in blocks: their peaks, their masses, and bounds that follow from these.

use interlock_request::TokenId;

use super::exp::exp;

/// Logits that share a peak. Small, so that few tokens beside a likely one are looked at.
pub(super) const BLOCK: usize = 64;

/// Numbers that are worked on side by side, as the compiler likes them: four SSE registers.
const LANES: usize = 16;

/// Logits relative to the largest, so that no temperature makes an infinity.
#[derive(Clone, Copy)]
pub(super) struct Tempering {
    /// The largest logit of the row, which must be finite.
    pub(super) largest: f32,
    pub(super) inverse_temperature: f32,
}

impl Tempering {
    #[inline(always)]
    pub(super) fn temper(self, logit: f32) -> f32 {
        // Two infinite logits are as likely as each other; their difference is not a number.
        let logit = if logit > f32::MAX { f32::MAX } else { logit };
        (logit - self.largest) * self.inverse_temperature
    }

    /// How likely a token with this logit is, relative to the likeliest one: 0 to 1.
    #[inline(always)]
    pub(super) fn weight(self, logit: f32) -> f32 {
        exp(self.temper(logit))
    }

    pub(super) fn reaches(self, logit: f32, least: Option<f32>) -> bool {
        least.is_none_or(|least| self.temper(logit) >= least)
    }

    /// Fills `masses` with each block's, and returns their sum.
    pub(super) fn add_up(self, logits: &[f32], masses: &mut Vec<f64>) -> f64 {
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

    /// Fills `weights` with the weight of each token.
    pub(super) fn weigh(self, logits: &[f32], weights: &mut Vec<f32>) {
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

/// The largest logit of each block.
pub(super) fn find_peaks(logits: &[f32], peaks: &mut Vec<f32>) {
    peaks.clear();
    peaks.extend(logits.chunks(BLOCK).map(peak));
}

/// The sum over a block, always in the same order.
#[inline(always)]
pub(super) fn sum(block: &[f32], of: impl Fn(f32) -> f32) -> f64 {
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

/// The largest logit of a block; NaNs are passed over.
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

pub(super) fn largest(peaks: &[f32]) -> f32 {
    peaks.iter().copied().fold(f32::NEG_INFINITY, f32::max)
}

/// The first token with this logit, which is the largest.
pub(super) fn first_of(logits: &[f32], peaks: &[f32], largest: f32) -> TokenId {
    let block = peaks.iter().position(|&peak| peak == largest).unwrap_or_default();
    let start = block * BLOCK;
    let within = logits[start..].iter().position(|&logit| logit == largest).unwrap_or_default();
    (start + within) as TokenId
}

/// What the tempered logit of each token that `top_p` keeps is at least. `weights` and `mass` are
/// all tokens'.
pub(super) fn least_likely(
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
pub(super) fn nth_largest(peaks: &[f32], count: usize, ranking: &mut Vec<f32>) -> f32 {
    if count > peaks.len() {
        return f32::NEG_INFINITY;
    }
    ranking.clear();
    ranking.extend_from_slice(peaks);
    *ranking.select_nth_unstable_by(count - 1, |a, b| b.total_cmp(a)).1
}
