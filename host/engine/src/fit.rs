//! How large a pass may be: what was learnt from those that were too large.
//!
//! Memory that suffices for 8 rows and not for 9 lets 9 requests start, fails their pass, and often
//! takes all caches with it. So a pass that was too large halves what the next may hold, rows and
//! tokens, each as far as there is something to halve. From there it grows back:
//!
//! - quickly, by an eighth (at least one) with each good pass, to what is *known* to fit: the most
//!   that went well before it failed, or the half;
//! - slowly beyond it: by an eighth after [`Limit::PATIENCE`] good passes, after twice as many each
//!   time that it turned out too much, up to [`Limit::PATIENCE_MAX`].
//!
//! So for memory that suffices for 8 rows it settles at 8, and tries 9 ever more rarely: 13 failures
//! in 20,000 passes.
//!
//! # Invariants
//!
//! - Only a pass counts as good that was as large as it might be, and in which every row came
//!   further than it ever was. So between two growths everyone in the pass has made progress,
//!   whatever a failure took from it, and failing and growing cannot go round in circles.
//! - A dimension in which the pass was no larger than many that went well is halved too, but not
//!   blamed: it grows back quickly.
//! - One row of one token that is too large says nothing of the others: they grow back quickly.
//!
//! # Not here
//!
//! Whose pass it was and what becomes of them: the engine's. Time: the pace's.

use std::num::NonZeroU32;

use interlock_scheduler::Bounds;

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
    /// As large as the configuration lets passes be, until one is too large. `running_max`: most
    /// rows, in this mode.
    pub(crate) fn new(config: &EngineConfig, running_max: u32) -> Self {
        let tokens = config.prefill_chunk.saturating_add(running_max);
        Self { rows: Limit::new(running_max), tokens: Limit::new(tokens.get()) }
    }

    pub(crate) fn bounds(&self) -> Bounds {
        Bounds { rows: self.rows.number(), tokens: self.tokens.number() }
    }

    /// Most requests that may run at once: each has a row in each pass, of a token at least.
    pub(crate) fn running_max(&self) -> u32 {
        self.rows.now.min(self.tokens.now)
    }

    /// Is it being tried whether more fits than is known to? If not, that is nobody's retry: it was
    /// our idea, and comes only so often.
    pub(crate) fn is_trying(&self) -> bool {
        self.rows.trying || self.tokens.trying
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

    /// A pass of this size was too large. Can the next be smaller?
    pub(crate) fn too_large(&mut self, size: Size) -> bool {
        let Size { rows, tokens } = size;
        if rows <= 1 && tokens <= 1 {
            self.rows.known = self.rows.most;
            self.tokens.known = self.tokens.most;
            return false;
        }
        // Who only decodes has no token too many but that of a row too many.
        let (in_rows, in_tokens) = (rows > 1, tokens > rows);
        let new = (rows > self.rows.proven, tokens > self.tokens.proven);
        let (by_rows, by_tokens) = match (in_rows, in_tokens) {
            (true, true) if new.0 != new.1 => new,
            both => both,
        };
        if in_rows {
            self.rows.too_large(rows, by_rows);
        }
        if in_tokens {
            self.tokens.too_large(tokens, by_tokens);
        }
        (self.rows.trying, self.tokens.trying) = (false, false);
        true
    }
}

/// The limit in one dimension.
#[derive(Debug)]
struct Limit {
    /// By the configuration.
    most: u32,
    now: u32,
    /// What it grows back to quickly.
    known: u32,
    /// The most that went well since it was last to blame.
    proven: u32,
    /// Good passes at `known` since it last changed.
    calm: u32,
    /// Good passes that it takes to try more.
    patience: u32,
    /// Is it being tried whether more than was known fits?
    trying: bool,
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
            trying: false,
        }
    }

    fn is_bound(&self) -> bool {
        self.now < self.most
    }

    fn number(&self) -> NonZeroU32 {
        NonZeroU32::new(self.now).unwrap_or(NonZeroU32::MIN)
    }

    fn larger(&self) -> u32 {
        self.now.saturating_add((self.now / 8).max(1)).min(self.most)
    }

    fn passed(&mut self, size: u32, fresh: bool) {
        self.proven = self.proven.max(size);
        if !self.is_bound() || size < self.now || !fresh {
            return;
        }
        if self.trying {
            self.trying = false;
            self.patience = (self.patience / 2).max(Self::PATIENCE);
        }
        if self.now < self.known {
            self.now = self.larger().min(self.known);
            return;
        }
        self.calm += 1;
        if self.calm >= self.patience {
            self.calm = 0;
            self.trying = true;
            self.now = self.larger();
            self.known = self.now;
        }
    }

    fn too_large(&mut self, size: u32, to_blame: bool) {
        let half = (size / 2).max(1);
        self.calm = 0;
        self.now = self.now.min(half);
        if to_blame {
            if self.trying {
                self.patience = (self.patience * 2).min(Self::PATIENCE_MAX);
            }
            let went_well = if self.proven < size { self.proven } else { 0 };
            self.known = self.known.min(half.max(went_well));
            self.proven = self.proven.min(self.known);
        }
    }

    fn no_more_than(&mut self, most: u32) {
        if self.trying {
            self.patience = (self.patience * 2).min(Self::PATIENCE_MAX);
        }
        self.trying = false;
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
                assert!(fit.too_large(size));
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
        assert!(fit.too_large(Size { rows: 12, tokens: 500 }));
        let bounds = fit.bounds();
        assert_eq!((bounds.rows.get(), bounds.tokens.get()), (6, 250));
        assert!(fit.too_large(Size { rows: 1, tokens: 100 }));
        assert_eq!(fit.bounds().rows.get(), 6, "one row is no row too many");
        assert_eq!(fit.bounds().tokens.get(), 50);
    }

    #[test]
    fn one_row_of_one_token_cannot_be_smaller() {
        let mut fit = fit();
        assert!(!fit.too_large(Size { rows: 1, tokens: 1 }));
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
        for rows in 4..9 {
            fit.passed(Size { rows, tokens: rows }, true);
        }
        assert_eq!(fit.bounds().rows.get(), 9, "and at once as it was");
        assert_eq!(fit.bounds().tokens.get(), 1028);
    }

    #[test]
    fn who_does_not_even_fit_alone_is_not_held_against_the_others() {
        let mut fit = fit();
        let (mut rows, mut tokens) = (MOST, 2048);
        while fit.too_large(Size { rows, tokens }) {
            (rows, tokens) = ((rows / 2).max(1), (tokens / 2).max(1));
        }
        assert_eq!(fit.running_max(), 1);
        let (failed, _) = decodes(&mut fit, |_| MOST, 40);
        assert_eq!((failed, fit.bounds().rows.get()), (0, MOST));
    }
}
