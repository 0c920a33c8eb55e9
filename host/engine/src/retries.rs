//! How often a request may be tried again after a forward pass that failed.

/// Retries that a request has: more than it takes to halve the largest pass that can be configured
/// (16,384 rows, or 8,192 tokens of prompts beside them) down to one row of one token. So no request
/// ends for want of memory before it has run in the smallest pass.
pub const RETRIES_MAX: u32 = 16;

/// Tokens that a request must have computed for the first time to get a retry back. A request that makes
/// progress is not ended by rare failures over a long life, and one that makes none soon is.
pub const TOKENS_PER_RETRY: usize = 32;

/// The retries of one request.
#[derive(Debug)]
pub(crate) struct Retries {
    left: u32,
    /// All retries that were taken, for the error message.
    taken: u32,
    /// The most of the request's tokens that its passes have brought into the cache.
    reached: usize,
    /// Of those, the tokens that have been exchanged for retries.
    counted: usize,
}

impl Retries {
    pub(crate) fn new() -> Self {
        Self { left: RETRIES_MAX, taken: 0, reached: 0, counted: 0 }
    }

    /// Learns that a pass has brought this many of the request's tokens into the cache. Tokens that were
    /// there before do not count a second time.
    pub(crate) fn reached(&mut self, tokens: usize) {
        self.reached = self.reached.max(tokens);
    }

    /// Gives back all retries: the failures were another request's fault.
    pub(crate) fn restore(&mut self) {
        self.left = RETRIES_MAX;
    }

    /// Takes a retry.
    ///
    /// # Errors
    ///
    /// How many were taken in all, when none is left.
    pub(crate) fn take(&mut self) -> Result<(), u32> {
        let earned = (self.reached - self.counted) / TOKENS_PER_RETRY;
        self.counted += earned * TOKENS_PER_RETRY;
        let earned = u32::try_from(earned).unwrap_or(u32::MAX);
        self.left = self.left.saturating_add(earned).min(RETRIES_MAX);
        self.left = self.left.checked_sub(1).ok_or(self.taken)?;
        self.taken = self.taken.saturating_add(1);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Retries in a row while it stands at so many tokens.
    fn taken(retries: &mut Retries, tokens: usize) -> u32 {
        retries.reached(tokens);
        (0..).find(|_| retries.take().is_err()).expect("it ends")
    }

    #[test]
    fn who_makes_no_progress_has_so_many_and_no_more() {
        let mut retries = Retries::new();
        assert_eq!(taken(&mut retries, 0), RETRIES_MAX);
        assert_eq!(taken(&mut retries, TOKENS_PER_RETRY - 1), 0);
        assert_eq!(retries.take(), Err(RETRIES_MAX), "in all");
    }

    #[test]
    fn progress_gives_back_one_for_so_many_tokens_and_never_more_than_there_were() {
        let mut retries = Retries::new();
        taken(&mut retries, 0);
        assert_eq!(taken(&mut retries, 3 * TOKENS_PER_RETRY + 5), 3);
        // What was not enough for one is not lost; what is computed again earns nothing.
        assert_eq!(taken(&mut retries, TOKENS_PER_RETRY), 0);
        assert_eq!(taken(&mut retries, 4 * TOKENS_PER_RETRY), 1);
        assert_eq!(taken(&mut retries, 1000 * TOKENS_PER_RETRY), RETRIES_MAX);
    }

    #[test]
    fn one_failure_in_so_many_tokens_ends_nobody() {
        let mut retries = Retries::new();
        let well = |n| {
            retries.reached(n * TOKENS_PER_RETRY);
            retries.take().is_ok()
        };
        assert!((1..10_000).all(well));
    }
}
