//! How large a pass may be: what was learnt from those that were too large.
//!
//! Memory that suffices for 8 rows and not for 9 lets 9 requests start, fails their pass, and often
//! takes all caches with it. So a pass that was too large halves what the next may hold, rows and
//! tokens, each as far as there is something to halve. From there it grows back:
//!
//! - at once, twofold with each good pass, to what is *known* to fit: the most that went well before
//!   it failed, or the half;
//! - slowly beyond it: by an eighth (at least one) after [`Limit::PATIENCE`] good passes. That is a
//!   *try*. If it fails, all is as before it, and the next try comes after twice as many good
//!   passes, up to [`Limit::PATIENCE_MAX`].
//!
//! So for memory that suffices for 8 rows it settles at 8, and tries 9 ever more rarely: some dozen
//! failures in 20,000 passes.
//!
//! Which of the two was too much, rows or tokens, a failure does not say. One of them is to blame:
//! that in which the pass was larger than any that went well. If both were, it is the tokens of a
//! pass that has many for each row, and the rows of any other. What is not to blame grows back at
//! once; if that was wrong, the next failure says so.
//!
//! # Invariants
//!
//! - What is known to fit becomes less with each failure that is no failed try, and more only by a
//!   try that went well. For a try only passes count that were as large as they might be, and in
//!   which every row came further than it ever was. So between two tries everyone in the pass has
//!   made progress, whatever a failure took from it, and failing and growing cannot go round in
//!   circles.
//! - One row of one token that is too large says nothing of the others: they grow back at once.
//!
//! # Not here
//!
//! Whose pass it was and what becomes of them: the engine's. Time: the pace's.

use std::num::NonZeroU32;

use interlock_scheduler::PassBounds;

use crate::EngineConfig;

/// How large a pass is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Size {
    pub(crate) rows: u32,
    /// Of all rows together.
    pub(crate) tokens: u32,
}

/// How large the next pass may be.
#[derive(Debug)]
pub(crate) struct Fit {
    rows: Limit,
    tokens: Limit,
}

impl Fit {
    /// Tokens for each row of a pass that is mostly prompts.
    const MANY_TOKENS: u32 = 8;

    /// As large as the configuration lets passes be, until one is too large. `running_max`: most
    /// rows, in this mode.
    pub(crate) fn new(config: &EngineConfig, running_max: u32) -> Self {
        let tokens = config.prefill_chunk.saturating_add(running_max);
        Self { rows: Limit::new(running_max), tokens: Limit::new(tokens.get()) }
    }

    pub(crate) fn bounds(&self) -> PassBounds {
        PassBounds { rows: self.rows.number(), tokens: self.tokens.number() }
    }

    /// Most requests that may run at once: each has a row in each pass, of a token at least.
    pub(crate) fn running_max(&self) -> u32 {
        self.rows.now.min(self.tokens.now)
    }

    /// Is there a bound that the configuration does not know of?
    pub(crate) fn is_bound(&self) -> bool {
        self.rows.is_bound() || self.tokens.is_bound()
    }

    /// A pass of this size went well; in a `fresh` one every row came further than it ever was.
    pub(crate) fn passed(&mut self, size: Size, fresh: bool) {
        self.rows.passed(size.rows, fresh);
        self.tokens.passed(size.tokens, fresh);
    }

    /// There is no memory for one more than these, who run.
    pub(crate) fn no_more_than(&mut self, running: u32) {
        self.rows.no_more_than(running.max(1));
    }

    /// What fits, also if more is being tried.
    pub(crate) fn safe(&self) -> PassBounds {
        let number = |limit: &Limit| NonZeroU32::new(limit.safe()).unwrap_or(NonZeroU32::MIN);
        PassBounds { rows: number(&self.rows), tokens: number(&self.tokens) }
    }

    /// A pass of this size was too large.
    pub(crate) fn too_large(&mut self, size: Size) -> Fell {
        let Size { rows, tokens } = size;
        if rows <= 1 && tokens <= 1 {
            // It is this one that is too large, and nothing follows for others.
            self.rows.known = self.rows.most;
            self.tokens.known = self.tokens.most;
            return Fell::Least;
        }
        let tries = [(&mut self.rows, rows), (&mut self.tokens, tokens)];
        let mut back = false;
        for (limit, _) in tries.into_iter().filter(|(limit, size)| *size > limit.safe()) {
            limit.step_back();
            back = true;
        }
        if back {
            return Fell::Back;
        }
        // Who only decodes has no token too many but that of a row too many.
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
        Fell::Half
    }
}

/// What comes of a pass that was too large.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fell {
    /// The next may be half as large.
    Half,
    /// More was tried than was known to fit. That was our idea, and comes only so often.
    Back,
    /// The next cannot be smaller.
    Least,
}

/// The limit in one dimension.
#[derive(Debug)]
struct Limit {
    /// By the configuration.
    most: u32,
    now: u32,
    /// What it grows back to at once.
    known: u32,
    /// The most that went well since it was last to blame.
    proven: u32,
    /// Good passes at `known` since it last changed.
    calm: u32,
    /// Good passes that it takes to try more.
    patience: u32,
    /// What was known, while it is being tried whether more fits.
    before: Option<u32>,
}

impl Limit {
    /// Good passes before more is tried: with fewer, trying would cost more than it brings, since
    /// each try that fails lets everyone compute its cache again.
    const PATIENCE: u32 = 32;
    /// Half a minute to some minutes of passes: whoever freed memory need not wait for longer, and
    /// a failure in so many passes is lost in the noise.
    const PATIENCE_MAX: u32 = 4096;

    fn new(most: u32) -> Self {
        Self {
            most,
            now: most,
            known: most,
            proven: 0,
            calm: 0,
            patience: Self::PATIENCE,
            before: None,
        }
    }

    fn is_bound(&self) -> bool {
        self.safe() < self.most
    }

    fn number(&self) -> NonZeroU32 {
        NonZeroU32::new(self.now).unwrap_or(NonZeroU32::MIN)
    }

    fn safe(&self) -> u32 {
        self.before.unwrap_or(self.now)
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
        if self.before.take().is_some() {
            self.patience = (self.patience / 2).max(Self::PATIENCE);
        }
        if !self.is_bound() {
            return;
        }
        self.calm += 1;
        if self.calm >= self.patience {
            self.calm = 0;
            self.before = Some(self.now);
            self.now = self.now.saturating_add((self.now / 8).max(1)).min(self.most);
            self.known = self.now;
        }
    }

    /// More was tried than fits.
    fn step_back(&mut self) {
        if let Some(before) = self.before.take() {
            self.patience = (self.patience * 2).min(Self::PATIENCE_MAX);
            self.now = before;
            self.known = before;
            self.proven = self.proven.min(before);
        }
        self.calm = 0;
    }

    fn halve(&mut self, size: u32, to_blame: bool) {
        let half = (size / 2).max(1);
        self.calm = 0;
        self.known = self.known.min(self.before.take().unwrap_or(self.known));
        self.now = self.now.min(half);
        if to_blame {
            let went_well = if self.proven < size { self.proven } else { 0 };
            self.known = self.known.min(half.max(went_well));
            self.proven = self.proven.min(self.known);
        }
    }

    fn no_more_than(&mut self, most: u32) {
        if self.now <= most {
            return;
        }
        // A part of what is being tried may have worked.
        if self.safe() >= most {
            self.step_back();
        }
        self.calm = 0;
        self.now = self.now.min(most);
        self.known = self.known.min(most);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOST: u32 = 64;

    fn fit() -> Fit {
        Fit::new(&EngineConfig::default(), MOST)
    }

    /// Streams without end on a device that holds no more than this; how many passes failed, and how
    /// many rows were computed.
    fn decodes(fit: &mut Fit, most: impl Fn(u32) -> u32, passes: u32) -> (u32, u32) {
        let (mut failed, mut rows) = (0, 0);
        for pass in 0..passes {
            let now = fit.running_max();
            let size = Size { rows: now, tokens: now };
            if now > most(pass) {
                assert_ne!(fit.too_large(size), Fell::Least);
                failed += 1;
            } else {
                fit.passed(size, true);
                rows += now;
            }
        }
        (failed, rows)
    }

    #[test]
    fn a_pass_that_was_too_large_is_halved_in_rows_and_tokens() {
        let mut fit = fit();
        assert_eq!(fit.too_large(Size { rows: 12, tokens: 500 }), Fell::Half);
        let bounds = fit.bounds();
        assert_eq!((bounds.rows.get(), bounds.tokens.get()), (6, 250));
        assert_eq!(fit.too_large(Size { rows: 1, tokens: 100 }), Fell::Half);
        assert_eq!(fit.bounds().rows.get(), 6, "one row is no row too many");
        assert_eq!(fit.bounds().tokens.get(), 50);
    }

    #[test]
    fn one_row_of_one_token_cannot_be_smaller() {
        let mut fit = fit();
        assert_eq!(fit.too_large(Size { rows: 1, tokens: 1 }), Fell::Least);
        assert!(!fit.is_bound());
    }

    #[test]
    fn memory_for_so_many_rows_is_used_and_more_is_tried_ever_more_rarely() {
        for most in 1..=MOST {
            let mut fit = fit();
            decodes(&mut fit, |_| most, 1000);
            let (failed, rows) = decodes(&mut fit, |_| most, 20_000);
            assert!(failed <= 12, "{failed} failures with memory for {most}");
            let used = f64::from(rows) / f64::from(20_000 * most);
            assert!(used > 0.85, "{used} of memory for {most} is used");
        }
    }

    #[test]
    fn the_first_passes_find_what_fits_by_halving() {
        let mut fit = fit();
        let (failed, _) = decodes(&mut fit, |_| 8, 30);
        assert_eq!((failed, fit.running_max()), (3, 8), "64, 32 and 16 were too many");
    }

    #[test]
    fn memory_that_comes_back_is_used_again() {
        let mut fit = fit();
        decodes(&mut fit, |_| 4, 10_000);
        assert_eq!(fit.running_max(), 4);
        let before_it_is_tried = Limit::PATIENCE_MAX;
        let growing = 32 * Limit::PATIENCE_MAX / 2;
        decodes(&mut fit, |_| MOST, before_it_is_tried + growing);
        assert!(!fit.is_bound(), "{fit:?}");
    }

    /// A newcomer's prompt makes the pass in which a ninth row is tried larger in tokens, too.
    #[test]
    fn a_try_that_fails_costs_nothing_but_the_try() {
        let mut fit = fit();
        decodes(&mut fit, |_| 8, 100);
        let size = Size { rows: 8, tokens: 8 };
        while fit.running_max() == 8 {
            fit.passed(size, true);
        }
        let tokens = fit.bounds().tokens;
        assert_eq!((fit.bounds().rows.get(), fit.safe().rows.get()), (9, 8));
        assert_eq!(fit.too_large(Size { rows: 9, tokens: 500 }), Fell::Back);
        assert_eq!(fit.running_max(), 8);
        assert_eq!(fit.bounds().tokens, tokens);
        // Memory that has become less shows while more is tried.
        while fit.running_max() == 8 {
            fit.passed(size, true);
        }
        assert_eq!(fit.too_large(size), Fell::Half);
        assert_eq!(fit.running_max(), 4);
    }

    #[test]
    fn of_two_that_may_be_to_blame_the_wrong_one_is_found_out_by_the_next_failure() {
        // Rows are few, and to blame.
        let mut fit = fit();
        let fails = |size: &Size| size.rows > 8;
        let mut size = Size { rows: MOST, tokens: 2048 };
        let mut failed = 0;
        for _ in 0..100 {
            if fails(&size) {
                fit.too_large(size);
                failed += 1;
            } else {
                fit.passed(size, true);
            }
            let PassBounds { rows, tokens } = fit.bounds();
            size = Size { rows: rows.get(), tokens: tokens.get() };
        }
        assert_eq!((failed, size.rows), (4 + 1, 8), "and one try of nine");
        assert!(size.tokens >= 256, "{size:?}");
    }

    #[test]
    fn passes_that_only_compute_again_what_was_lost_do_not_let_it_grow() {
        let mut fit = fit();
        fit.too_large(Size { rows: 8, tokens: 8 });
        for _ in 0..10 * Limit::PATIENCE {
            fit.passed(Size { rows: 4, tokens: 4 }, false);
        }
        assert_eq!(fit.running_max(), 4);
    }

    /// Eight streams flow, and a prompt's chunk of 2048 beside them is too much.
    #[test]
    fn what_went_well_before_is_not_blamed() {
        let mut fit = fit();
        fit.passed(Size { rows: 9, tokens: 9 }, true);
        fit.too_large(Size { rows: 9, tokens: 2056 });
        assert_eq!(fit.bounds().rows.get(), 4, "halved all the same");
        for rows in [4, 8] {
            fit.passed(Size { rows, tokens: rows }, false);
        }
        assert_eq!(fit.bounds().rows.get(), 16, "and at once more than it was");
        assert_eq!(fit.bounds().tokens.get(), 1028);
    }

    #[test]
    fn who_does_not_even_fit_alone_is_not_held_against_the_others() {
        let mut fit = fit();
        let (mut rows, mut tokens) = (MOST, 2048);
        while fit.too_large(Size { rows, tokens }) != Fell::Least {
            (rows, tokens) = ((rows / 2).max(1), (tokens / 2).max(1));
        }
        assert_eq!(fit.running_max(), 1);
        let (failed, _) = decodes(&mut fit, |_| MOST, 7);
        assert_eq!((failed, fit.bounds().rows.get()), (0, MOST));
    }
}
