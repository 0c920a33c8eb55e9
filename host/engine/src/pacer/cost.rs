//! What a pass over so many tokens of prompts costs: learnt from the passes that were run.

/// A pass that takes more than this many times what was expected is an accident, or the first of a new
/// kind. It counts as one that took this many times as long; the passes that follow tell which it was.
pub(super) const OUTLIER: f64 = 4.0;

/// Seconds. An expectation counts as at least this much when a pass is compared with it.
pub(super) const SURPRISE: f64 = 0.001;

/// A linear model of what passes cost: a fixed part, and a part for each token. It is fitted by least
/// squares, in which older passes weigh less.
///
/// Passes that all had about as many tokens do not tell the two parts apart. The fixed part then stays
/// what it was, and the part for each token follows: what changes between passes that are alike is how
/// far back each token attends.
#[derive(Debug, Default)]
pub(super) struct CostModel {
    weight: f64,
    tokens: f64,
    seconds: f64,
    tokens_squared: f64,
    tokens_seconds: f64,
    fixed: f64,
    /// The most tokens of a pass that took what was expected.
    pub(super) most: f64,
}

/// What passes cost, in seconds. No part is negative.
#[derive(Debug, Clone, Copy)]
pub(super) struct PassCost {
    pub(super) fixed: f64,
    pub(super) token: f64,
    /// What a token costs if nothing is fixed.
    pub(super) at_most: f64,
    pub(super) most: f64,
}

impl CostModel {
    pub(super) const NEW_WEIGHT: f64 = 1.0 / 8.0;

    /// How much the numbers of tokens must differ, as the square of their deviation over that of
    /// their mean, for passes to tell as much of the fixed part as is known of it already.
    const DIFFERENT: f64 = 0.02;

    /// Learns from a pass over `tokens` tokens. Returns the seconds that it counts for: less than it took
    /// if it took more than [`OUTLIER`] times what was expected.
    pub(super) fn observe(&mut self, tokens: f64, seconds: f64, expected: Option<f64>) -> f64 {
        let expected = expected.map(|expected| expected.max(SURPRISE));
        let counts = expected.map_or(seconds, |expected| seconds.min(OUTLIER * expected));
        let surprise = expected.is_some_and(|expected| seconds > 2.0 * expected);
        self.most = if surprise { tokens } else { self.most.max(tokens) };
        for (sum, new) in [
            (&mut self.weight, 1.0),
            (&mut self.tokens, tokens),
            (&mut self.seconds, counts),
            (&mut self.tokens_squared, tokens * tokens),
            (&mut self.tokens_seconds, tokens * counts),
        ] {
            *sum += Self::NEW_WEIGHT * (new - *sum);
        }
        // The line through the mean that has this much less for each token has that much fixed.
        let by_token = self.tokens_seconds / self.tokens_squared;
        let above = (self.seconds - by_token * self.tokens) / self.weight;
        let different = 1.0 - self.tokens * self.tokens / (self.weight * self.tokens_squared);
        let fixed = (above + Self::DIFFERENT * self.fixed) / (different + Self::DIFFERENT);
        self.fixed = fixed.clamp(0.0, self.seconds / self.weight);
        counts
    }

    pub(super) fn cost(&self) -> Option<PassCost> {
        let &Self { weight, tokens, tokens_squared, tokens_seconds, fixed, most, .. } = self;
        (weight > 0.0).then(|| PassCost {
            fixed,
            token: ((tokens_seconds - fixed * tokens) / tokens_squared).max(0.0),
            at_most: tokens_seconds / tokens_squared,
            most,
        })
    }
}

impl PassCost {
    pub(super) fn of(&self, tokens: f64) -> f64 {
        // Infinitely many tokens that cost nothing cost nothing, not NaN.
        if self.token > 0.0 { self.fixed + self.token * tokens } else { self.fixed }
    }

    /// How many tokens take this many seconds: never more than `extrapolate` times as many as were
    /// measured, unless they take no longer even if nothing is fixed.
    pub(super) fn tokens(&self, seconds: f64, extrapolate: f64) -> f64 {
        let over = |seconds: f64, token: f64| match (seconds > 0.0, token > 0.0) {
            (false, _) => 0.0,
            (true, true) => seconds / token,
            (true, false) => f64::INFINITY,
        };
        let sure = over(seconds, self.at_most).max(extrapolate * self.most);
        over(seconds - self.fixed, self.token).min(sure)
    }
}
