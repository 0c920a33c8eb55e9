//! The log probabilities of the simulated model's tokens.

use interlock_request::{Logprobs, TokenId};

/// Log probabilities as a real model would report them. `token` is the most likely, with a probability
/// between 0.5 and 0.9 that `hash` decides. `count` tokens are reported in all; each of the others has half
/// of the probability that those before it leave. The result depends on nothing but the arguments.
pub fn logprobs(token: TokenId, count: u32, hash: u64) -> Logprobs {
    /// Letters that the model draws from, and more of them than can be asked for.
    const OTHERS: std::ops::RangeInclusive<u8> = b'a'..=b'z';

    let chance = 0.5 + 0.4 * (hash % 1024) as f64 / 1024.0;
    let drawn = chance.ln() as f32;
    let letters = OTHERS.count() as u64;
    let others = (0..letters)
        .map(|nth| TokenId::from(*OTHERS.start()) + ((hash % letters + nth) % letters) as TokenId)
        .filter(|&other| other != token);
    let mut left = 1.0 - chance;
    let others = others.map(|other| {
        left /= 2.0;
        (other, left.ln() as f32)
    });
    let top = std::iter::once((token, drawn)).chain(others).take(count as usize).collect();
    Logprobs { drawn, top }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn the_drawn_token_leads_distinct_ones_whose_chances_make_no_more_than_one() {
        for (token, hash) in [(101, 0), (256, 7), (32, u64::MAX), (122, 12345)] {
            let told = logprobs(token, 20, hash);
            assert_eq!(told, logprobs(token, 20, hash));
            assert_eq!(told.top[0], (token, told.drawn));
            assert!(told.top.is_sorted_by(|a, b| a.1 > b.1), "{told:?}");
            assert_eq!(told.top.iter().map(|top| top.0).collect::<BTreeSet<_>>().len(), 20);
            let sum: f64 = told.top.iter().map(|top| f64::from(top.1).exp()).sum();
            assert!((0.5..=1.0).contains(&sum), "{sum}");
        }
        assert_eq!(logprobs(101, 0, 7).top, []);
    }
}
