//! What the engine will need of a model that computes a table of rows in one pass.
//!
//! Stands beside [`crate::Forward`] only until the engine is rewritten over it; then it takes its
//! name and place.

use interlock_request::{Drawn, Generation, TokenId};

/// A model that computes on the thread that made it.
///
/// Implementations own weights, caches and device state, and need not be `Send`: the engine
/// builds one on its own thread, calls it from there alone and drops it there. Keys and values lie
/// in pages of fixed size; the engine says which page is whose.
pub trait Forward {
    /// What the model keeps for one request beside its pages: how it samples, what it drew; for a
    /// recurrent model also its state.
    type Sequence;

    /// What this model can do.
    fn shape(&self) -> ModelShape;

    /// Prepares for a request. Computes nothing.
    ///
    /// # Errors
    ///
    /// When a parameter is beyond the model (a biased token outside the vocabulary, say).
    fn open(&mut self, opening: &Opening<'_>) -> Result<Self::Sequence, PassFailed>;

    /// One pass over a table of rows, each sequence at most once. Returns for each row, in order,
    /// the token drawn, or `None` where `draw` is false.
    ///
    /// # Errors
    ///
    /// A pass that fails changes nothing that a later pass could see: positions below each row's
    /// `from` and the sequences are as before (what lies in pages from `from` on may be anything),
    /// unless [`PassFailed::caches_lost`].
    fn pass(
        &mut self,
        rows: &mut [Row<'_, Self::Sequence>],
    ) -> Result<Vec<Option<Drawn>>, PassFailed>;
}

/// A request, as the model hears of it first.
#[derive(Debug, Clone, Copy)]
pub struct Opening<'a> {
    /// The whole prompt.
    pub prompt: &'a [TokenId],
    /// Tokens it had already drawn before it was preempted.
    pub generated: &'a [TokenId],
    /// How to go on.
    pub generation: &'a Generation,
}

/// One sequence's part in a pass.
#[derive(Debug)]
pub struct Row<'a, S> {
    /// Whose.
    pub sequence: &'a mut S,
    /// Tokens that enter the cache at positions `from..`; at least one.
    pub tokens: &'a [TokenId],
    /// Positions below this are in the pages already.
    pub from: u32,
    /// The pages of positions 0.., `page_tokens` each; they cover `from + tokens.len()`.
    pub pages: &'a [PageId],
    /// Draw the token after the last of `tokens`?
    pub draw: bool,
}

/// A page of keys and values, by number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PageId(pub u32);

/// What a model can do, in tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ModelShape {
    /// Most tokens of prompt and output together; no more than all pages hold.
    pub context: u32,
    /// Token ids are below this.
    pub vocabulary: u32,
    /// Positions in one page.
    pub page_tokens: u32,
    /// Page numbers are below this.
    pub pages: u32,
}

/// A pass that did not produce its result. The text is for our log.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{why}")]
pub struct PassFailed {
    /// What happened.
    pub why: String,
    /// Whose fault, if known: a row's place in the table.
    pub row: Option<usize>,
    /// Whether no page holds what it held.
    pub caches_lost: bool,
}

impl PassFailed {
    /// Nobody's fault that is known, and the pages are as they were.
    pub fn new(why: impl Into<String>) -> Self {
        Self { why: why.into(), row: None, caches_lost: false }
    }

    /// It was this row's fault.
    #[must_use]
    pub fn of_row(self, row: usize) -> Self {
        Self { row: Some(row), ..self }
    }

    /// No page holds what it held.
    #[must_use]
    pub fn losing_caches(self) -> Self {
        Self { caches_lost: true, ..self }
    }
}
