//! How large a forward pass may be, learnt from passes that were too large for the device's memory.
//!
//! Memory for 8 rows and not for 9 lets 9 requests start, fails their pass, and often loses all caches
//! with it. So a pass that was too large halves the limits of the next, in rows and in tokens, each as
//! far as there is something to halve. From there the limits grow back:
//!
//! - at once, twofold with each good pass, to what is *known* to fit: the most that went well before
//!   it failed, or the half;
//! - slowly beyond it: by an eighth (at least one) after [`AdaptiveLimit::TRIAL_AFTER`] good passes.
//!   That is a *trial*. If it fails, the limits are as before it, and the next trial comes after twice as
//!   many good passes, up to [`AdaptiveLimit::TRIAL_AFTER_MAX`].
//!
//! So with memory for 8 rows the limit settles at 8, and 9 is tried ever more rarely: some dozen failures
//! in 20,000 passes.
//!
//! A failure does not say which was too much, rows or tokens. At fault is the one in which the pass was
//! larger than any that went well. If both were, it is the tokens of a pass that has many for each row,
//! and the rows of any other pass. The limit that is not at fault grows back at once; if that was wrong,
//! the next failure shows it.
//!
//! # Invariants
//!
//! - What is known to fit becomes less with each failure that is no failed trial, and more only by a
//!   trial that went well. Only passes count towards a trial that were as large as allowed, and in which
//!   every row computed a token that was never in the cache before. So between two trials every request
//!   in the pass has made progress, whatever a failure took from it, and the engine cannot fail and grow
//!   in a loop without progress.
//! - One row of one token that is too large says nothing of other passes: the limits grow back at once.
//!
//! # Not here
//!
//! Not the requests of the pass and what becomes of them (`step`). Not time (`pacer`).

use std::num::NonZeroU32;

use interlock_scheduler::PassBounds;

use crate::EngineConfig;

/// The size of a pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PassSize {
    pub(crate) rows: u32,
    /// Tokens of all rows together.
    pub(crate) tokens: u32,
}

/// The limits of the next pass.
#[derive(Debug)]
pub(crate) struct PassLimits {
    rows: AdaptiveLimit,
    tokens: AdaptiveLimit,
}

impl PassLimits {
    /// A pass with this many tokens for each row is mostly prompts.
    const MANY_TOKENS: u32 = 8;

    /// Limits as large as the configuration allows, until a pass is too large. `running_max` is the
    /// most rows in the configured mode.
    pub(crate) fn new(config: &EngineConfig, running_max: u32) -> Self {
        let tokens = config.prefill_chunk.saturating_add(running_max);
        Self { rows: AdaptiveLimit::new(running_max), tokens: AdaptiveLimit::new(tokens.get()) }
    }

    pub(crate) fn bounds(&self) -> PassBounds {
        PassBounds { rows: self.rows.number(), tokens: self.tokens.number() }
    }

    /// Most requests that may run at once: each has a row of at least one token in each pass.
    pub(crate) fn running_max(&self) -> u32 {
        self.rows.now.min(self.tokens.now)
    }

    /// Whether a limit is below what is configured.
    pub(crate) fn is_bound(&self) -> bool {
        self.rows.is_bound() || self.tokens.is_bound()
    }

    /// Learns that a pass of this size went well. In a `fresh` pass every row computed a token that was
    /// never in the cache before.
    pub(crate) fn passed(&mut self, size: PassSize, fresh: bool) {
        self.rows.passed(size.rows, fresh);
        self.tokens.passed(size.tokens, fresh);
    }

    /// Learns that there is no memory for more requests than these, which run.
    pub(crate) fn cap_rows(&mut self, running: u32) {
        self.rows.cap(running.max(1));
    }

    /// The size that is known to fit, also during a trial.
    pub(crate) fn safe(&self) -> PassBounds {
        let number =
            |limit: &AdaptiveLimit| NonZeroU32::new(limit.safe()).unwrap_or(NonZeroU32::MIN);
        PassBounds { rows: number(&self.rows), tokens: number(&self.tokens) }
    }

    /// Learns that a pass of this size was too large.
    pub(crate) fn too_large(&mut self, size: PassSize) -> Reduction {
        let PassSize { rows, tokens } = size;
        if rows <= 1 && tokens <= 1 {
            // That one request is too large. Nothing follows for others.
            self.rows.known = self.rows.most;
            self.tokens.known = self.tokens.most;
            return Reduction::AtMinimum;
        }
        let limits = [(&mut self.rows, rows), (&mut self.tokens, tokens)];
        let mut undone = false;
        for (limit, _) in limits.into_iter().filter(|(limit, size)| *size > limit.safe()) {
            limit.undo_trial();
            undone = true;
        }
        if undone {
            return Reduction::TrialUndone;
        }
        // Where each row has one token, a token too many is a row too many.
        let (in_rows, in_tokens) = (rows > 1, tokens > rows);
        let (by_rows, by_tokens) = match (rows > self.rows.proven, tokens > self.tokens.proven) {
            _ if !in_rows || !in_tokens => (in_rows, in_tokens),
            (true, true) => {
                let by_tokens = tokens / rows >= Self::MANY_TOKENS;
                (!by_tokens, by_tokens)
            }
            (false, false) => (true, true),
            new => new,
        };
        if in_rows {
            self.rows.halve(rows, by_rows);
        }
        if in_tokens {
            self.tokens.halve(tokens, by_tokens);
        }
        Reduction::Halved
    }
}

/// How the limits changed after a pass that was too large.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reduction {
    /// The next pass may be half as large.
    Halved,
    /// A trial of more than was known to fit has failed and was undone. Trials are rare.
    TrialUndone,
    /// The next pass cannot be smaller.
    AtMinimum,
}

/// The limit of rows, or of tokens.
#[derive(Debug)]
struct AdaptiveLimit {
    /// The configured limit.
    most: u32,
    now: u32,
    /// The size that the limit grows back to at once.
    known: u32,
    /// The most that went well since this limit was last at fault.
    proven: u32,
    /// Good passes at `known` since the limit last changed.
    good_passes: u32,
    /// Good passes before the next trial.
    trial_after: u32,
    /// The limit before the trial that is under way.
    before_trial: Option<u32>,
}

impl AdaptiveLimit {
    /// Good passes before a trial. With fewer, trials would cost more than they bring, since each trial
    /// that fails lets every request compute its cache again.
    const TRIAL_AFTER: u32 = 32;
    /// Half a minute to some minutes of passes. Memory that was freed is used after no longer than that,
    /// and one failure in so many passes costs nothing that could be measured.
    const TRIAL_AFTER_MAX: u32 = 4096;

    fn new(most: u32) -> Self {
        Self {
            most,
            now: most,
            known: most,
            proven: 0,
            good_passes: 0,
            trial_after: Self::TRIAL_AFTER,
            before_trial: None,
        }
    }

    fn is_bound(&self) -> bool {
        self.safe() < self.most
    }

    fn number(&self) -> NonZeroU32 {
        NonZeroU32::new(self.now).unwrap_or(NonZeroU32::MIN)
    }

    fn safe(&self) -> u32 {
        self.before_trial.unwrap_or(self.now)
    }

    fn passed(&mut self, size: u32, fresh: bool) {
        self.proven = self.proven.max(size);
        if !self.is_bound() || size < self.now {
            return;
        }
        if self.now < self.known {
            self.now = self.now.saturating_mul(2).min(self.known);
            return;
        }
        if !fresh {
            return;
        }
        if self.before_trial.take().is_some() {
            self.trial_after = (self.trial_after / 2).max(Self::TRIAL_AFTER);
        }
        if !self.is_bound() {
            return;
        }
        self.good_passes += 1;
        if self.good_passes >= self.trial_after {
            self.good_passes = 0;
            self.before_trial = Some(self.now);
            self.now = self.now.saturating_add((self.now / 8).max(1)).min(self.most);
            self.known = self.now;
        }
    }

    /// Ends a trial that failed.
    fn undo_trial(&mut self) {
        if let Some(before_trial) = self.before_trial.take() {
            self.trial_after = (self.trial_after * 2).min(Self::TRIAL_AFTER_MAX);
            self.now = before_trial;
            self.known = before_trial;
            self.proven = self.proven.min(before_trial);
        }
        self.good_passes = 0;
    }

    fn halve(&mut self, size: u32, at_fault: bool) {
        let half = (size / 2).max(1);
        self.good_passes = 0;
        self.known = self.known.min(self.before_trial.take().unwrap_or(self.known));
        self.now = self.now.min(half);
        if at_fault {
            let went_well = if self.proven < size { self.proven } else { 0 };
            self.known = self.known.min(half.max(went_well));
            self.proven = self.proven.min(self.known);
        }
    }

    fn cap(&mut self, most: u32) {
        if self.now <= most {
            return;
        }
        // A part of what the trial added may fit.
        if self.safe() >= most {
            self.undo_trial();
        }
        self.good_passes = 0;
        self.now = self.now.min(most);
        self.known = self.known.min(most);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOST: u32 = 64;

    fn limits() -> PassLimits {
        PassLimits::new(&EngineConfig::default(), MOST)
    }

    /// Streams without end on a device that holds no more than this; how many passes failed, and how
    /// many rows were computed.
    fn decodes(limits: &mut PassLimits, most: impl Fn(u32) -> u32, passes: u32) -> (u32, u32) {
        let (mut failed, mut rows) = (0, 0);
        for pass in 0..passes {
            let now = limits.running_max();
            let size = PassSize { rows: now, tokens: now };
            if now > most(pass) {
                assert_ne!(limits.too_large(size), Reduction::AtMinimum);
                failed += 1;
            } else {
                limits.passed(size, true);
                rows += now;
            }
        }
        (failed, rows)
    }

    #[test]
    fn a_pass_that_was_too_large_is_halved_in_rows_and_tokens() {
        let mut limits = limits();
        assert_eq!(limits.too_large(PassSize { rows: 12, tokens: 500 }), Reduction::Halved);
        let bounds = limits.bounds();
        assert_eq!((bounds.rows.get(), bounds.tokens.get()), (6, 250));
        assert_eq!(limits.too_large(PassSize { rows: 1, tokens: 100 }), Reduction::Halved);
        assert_eq!(limits.bounds().rows.get(), 6, "one row is no row too many");
        assert_eq!(limits.bounds().tokens.get(), 50);
    }

    #[test]
    fn one_row_of_one_token_cannot_be_smaller() {
        let mut limits = limits();
        assert_eq!(limits.too_large(PassSize { rows: 1, tokens: 1 }), Reduction::AtMinimum);
        assert!(!limits.is_bound());
    }

    #[test]
    fn memory_for_so_many_rows_is_used_and_more_is_tried_ever_more_rarely() {
        for most in 1..=MOST {
            let mut limits = limits();
            decodes(&mut limits, |_| most, 1000);
            let (failed, rows) = decodes(&mut limits, |_| most, 20_000);
            assert!(failed <= 12, "{failed} failures with memory for {most}");
            let used = f64::from(rows) / f64::from(20_000 * most);
            assert!(used > 0.85, "{used} of memory for {most} is used");
        }
    }

    #[test]
    fn the_first_passes_find_what_fits_by_halving() {
        let mut limits = limits();
        let (failed, _) = decodes(&mut limits, |_| 8, 30);
        assert_eq!((failed, limits.running_max()), (3, 8), "64, 32 and 16 were too many");
    }

    #[test]
    fn memory_that_comes_back_is_used_again() {
        let mut limits = limits();
        decodes(&mut limits, |_| 4, 10_000);
        assert_eq!(limits.running_max(), 4);
        let before_it_is_tried = AdaptiveLimit::TRIAL_AFTER_MAX;
        let growing = 32 * AdaptiveLimit::TRIAL_AFTER_MAX / 2;
        decodes(&mut limits, |_| MOST, before_it_is_tried + growing);
        assert!(!limits.is_bound(), "{limits:?}");
    }

    /// A new request's prompt makes the pass in which a ninth row is tried larger in tokens, too.
    #[test]
    fn a_try_that_fails_costs_nothing_but_the_try() {
        let mut limits = limits();
        decodes(&mut limits, |_| 8, 100);
        let size = PassSize { rows: 8, tokens: 8 };
        while limits.running_max() == 8 {
            limits.passed(size, true);
        }
        let tokens = limits.bounds().tokens;
        assert_eq!((limits.bounds().rows.get(), limits.safe().rows.get()), (9, 8));
        assert_eq!(limits.too_large(PassSize { rows: 9, tokens: 500 }), Reduction::TrialUndone);
        assert_eq!(limits.running_max(), 8);
        assert_eq!(limits.bounds().tokens, tokens);
        // Memory that has become less shows while more is tried.
        while limits.running_max() == 8 {
            limits.passed(size, true);
        }
        assert_eq!(limits.too_large(size), Reduction::Halved);
        assert_eq!(limits.running_max(), 4);
    }

    #[test]
    fn of_two_that_may_be_to_blame_the_wrong_one_is_found_out_by_the_next_failure() {
        // Rows are few, and to blame.
        let mut limits = limits();
        let fails = |size: &PassSize| size.rows > 8;
        let mut size = PassSize { rows: MOST, tokens: 2048 };
        let mut failed = 0;
        for _ in 0..100 {
            if fails(&size) {
                limits.too_large(size);
                failed += 1;
            } else {
                limits.passed(size, true);
            }
            let PassBounds { rows, tokens } = limits.bounds();
            size = PassSize { rows: rows.get(), tokens: tokens.get() };
        }
        assert_eq!((failed, size.rows), (4 + 1, 8), "and one try of nine");
        assert!(size.tokens >= 256, "{size:?}");
    }

    #[test]
    fn passes_that_only_compute_again_what_was_lost_do_not_let_it_grow() {
        let mut limits = limits();
        limits.too_large(PassSize { rows: 8, tokens: 8 });
        for _ in 0..10 * AdaptiveLimit::TRIAL_AFTER {
            limits.passed(PassSize { rows: 4, tokens: 4 }, false);
        }
        assert_eq!(limits.running_max(), 4);
    }

    /// Eight streams flow, and a prompt's chunk of 2048 beside them is too much.
    #[test]
    fn what_went_well_before_is_not_blamed() {
        let mut limits = limits();
        limits.passed(PassSize { rows: 9, tokens: 9 }, true);
        limits.too_large(PassSize { rows: 9, tokens: 2056 });
        assert_eq!(limits.bounds().rows.get(), 4, "halved all the same");
        for rows in [4, 8] {
            limits.passed(PassSize { rows, tokens: rows }, false);
        }
        assert_eq!(limits.bounds().rows.get(), 16, "and at once more than it was");
        assert_eq!(limits.bounds().tokens.get(), 1028);
    }

    #[test]
    fn who_does_not_even_fit_alone_is_not_held_against_the_others() {
        let mut limits = limits();
        let (mut rows, mut tokens) = (MOST, 2048);
        while limits.too_large(PassSize { rows, tokens }) != Reduction::AtMinimum {
            (rows, tokens) = ((rows / 2).max(1), (tokens / 2).max(1));
        }
        assert_eq!(limits.running_max(), 1);
        let (failed, _) = decodes(&mut limits, |_| MOST, 7);
        assert_eq!((failed, limits.bounds().rows.get()), (0, MOST));
    }
}
