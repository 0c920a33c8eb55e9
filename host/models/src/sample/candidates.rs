//! The few tokens of a row that may be drawn, and which of them are.

use interlock_request::TokenId;

use super::blocks::BLOCK;

/// A token that may be drawn.
#[derive(Debug, Clone, Copy)]
pub(super) struct TokenCandidate {
    /// Larger is likelier: the logit, as an integer of the same order, above the token's id,
    /// whose bits are turned over so that of equal logits the lower id is the likelier.
    pub(super) place: u64,
    pub(super) weight: f32,
}

impl TokenCandidate {
    pub(super) fn new(token: TokenId, logit: f32, weight: f32) -> Self {
        // Adding zero makes -0 into 0, which is equal and must be equally likely.
        let bits = (clean(logit) + 0.0).to_bits();
        let ordered = if bits >> 31 == 0 { bits | 1 << 31 } else { !bits };
        Self { place: u64::from(ordered) << 32 | u64::from(!token), weight }
    }

    pub(super) fn token(&self) -> TokenId {
        !(self.place as u32)
    }

    pub(super) fn logit(&self) -> f32 {
        let ordered = (self.place >> 32) as u32;
        f32::from_bits(if ordered >> 31 == 1 { ordered & !(1 << 31) } else { !ordered })
    }

    pub(super) fn likeliest_first(&self) -> std::cmp::Reverse<u64> {
        std::cmp::Reverse(self.place)
    }
}

/// A logit that is not a number is as unlikely as can be; an infinite one is just very likely.
#[inline(always)]
pub(super) fn clean(logit: f32) -> f32 {
    if logit.is_nan() { f32::NEG_INFINITY } else { logit.min(f32::MAX) }
}

/// All tokens that are not `unlikely`, in the order of their ids.
#[inline(always)]
pub(super) fn collect(
    logits: &[f32],
    peaks: &[f32],
    candidates: &mut Vec<TokenCandidate>,
    unlikely: impl Fn(f32) -> bool,
    weight: impl Fn(f32) -> f32,
) {
    for (at, block) in logits.chunks(BLOCK).enumerate() {
        if unlikely(peaks[at]) {
            continue;
        }
        for (token, &logit) in (at * BLOCK..).zip(block) {
            if !unlikely(logit) {
                candidates.push(TokenCandidate::new(token as TokenId, logit, weight(logit)));
            }
        }
    }
}

/// Keeps the `count` likeliest, in any order, and returns the place of the last of them.
pub(super) fn keep_first(ranked: &mut Vec<TokenCandidate>, count: usize) -> u64 {
    if ranked.len() <= count {
        return 0;
    }
    let (_, last, _) =
        ranked.select_nth_unstable_by_key(count - 1, TokenCandidate::likeliest_first);
    let border = last.place;
    ranked.truncate(count);
    border
}

/// The place of the last token that has less than `mass` before it, where the likeliest has none.
///
/// Halves until few are left: all tokens are looked at twice on average, none is put in order but
/// the last few.
pub(super) fn nucleus(ranked: &mut [TokenCandidate], mass: f64) -> u64 {
    const FEW: usize = 64;
    let (mut rest, mut before) = (ranked, 0.0);
    while rest.len() > FEW {
        let middle = rest.len() / 2;
        rest.select_nth_unstable_by_key(middle, TokenCandidate::likeliest_first);
        let (likelier, others) = rest.split_at_mut(middle);
        let through = before + likelier.iter().map(|c| f64::from(c.weight)).sum::<f64>();
        rest = if through < mass {
            before = through;
            others
        } else {
            likelier
        };
    }
    rest.sort_unstable_by_key(TokenCandidate::likeliest_first);
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
pub(super) fn find(weights: impl Iterator<Item = (TokenId, f32)>, target: f64) -> Option<TokenId> {
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
