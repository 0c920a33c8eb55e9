//! What the engine needs of a model.

use interlock_request::{Drawn, Generation, TokenId};

/// A model that computes on the thread that made it.
///
/// Implementations own weights, caches and device state, and need not be `Send`: the engine
/// builds one on its own thread, calls it from there alone and drops it there.
///
/// Keys and values lie in *pages* of a fixed number of tokens. The engine says which pages a
/// request has, the model what is in them; so joining, leaving and sharing a prefix are edits of a
/// table, and copy nothing.
pub trait Forward {
    /// What the model keeps for one request beside its pages: how it samples and what it drew; for
    /// a recurrent model also its state. Dropping it gives all of that back.
    type Sequence;

    /// What this model can do.
    fn shape(&self) -> ModelShape;

    /// Prepares for a request. Computes nothing.
    ///
    /// # Errors
    ///
    /// When a parameter is beyond the model (a biased token outside the vocabulary, say).
    fn open(&mut self, opening: &Opening<'_>) -> Result<Self::Sequence, PassFailed>;

    /// One pass over a table of rows, each sequence in it at most once. It returns when its
    /// results are known and the device is idle, never earlier, and cannot be interrupted.
    ///
    /// For each row, in order: the token drawn, or `None` if it was not to draw.
    ///
    /// # Errors
    ///
    /// When the device fails, or a row is not one the model can compute. Nothing that a later pass
    /// could see has changed then: sequences, and pages up to each row's `from`, are what they
    /// were, unless [`PassFailed::caches_lost`].
    fn pass(
        &mut self,
        rows: &mut [Row<'_, Self::Sequence>],
    ) -> Result<Vec<Option<Drawn>>, PassFailed>;
}

/// A request as the model first sees it.
#[derive(Debug, Clone, Copy)]
pub struct Opening<'a> {
    /// The whole prompt; penalties count it.
    pub prompt: &'a [TokenId],
    /// Tokens it drew before it was preempted; none the first time.
    pub generated: &'a [TokenId],
    /// How to draw.
    pub generation: &'a Generation,
    /// The seed if the request names none: the same one each time it is opened.
    pub fresh_seed: u64,
}

/// One request's part in a pass.
#[derive(Debug)]
pub struct Row<'a, S> {
    /// Whose.
    pub sequence: &'a mut S,
    /// Tokens that enter the cache at positions `from` and on; at least one.
    pub tokens: &'a [TokenId],
    /// The position of the first of `tokens`. All before it are in the pages.
    pub from: u32,
    /// Where its positions lie, in order; there is room for all of `tokens`.
    pub pages: &'a [PageId],
    /// Shall the token after the last of `tokens` be drawn?
    pub draw: bool,
}

/// Names a page: below [`ModelShape::pages`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PageId(pub u32);

/// What a model can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ModelShape {
    /// Most tokens of prompt and output together; at most what all pages hold.
    pub context: u32,
    /// Token ids are below this.
    pub vocabulary: u32,
    /// Tokens whose keys and values a page holds.
    pub page_tokens: u32,
    /// Pages there are, for all requests together.
    pub pages: u32,
}

/// A pass that did not produce its results.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{why}")]
pub struct PassFailed {
    /// For our log.
    pub why: String,
    /// The row whose fault it was, if that is known.
    pub row: Option<usize>,
    /// What the pages held is lost, for all requests.
    pub caches_lost: bool,
}

impl PassFailed {
    /// Nobody's fault, as far as is known, and nothing is lost.
    pub fn new(why: impl Into<String>) -> Self {
        Self { why: why.into(), row: None, caches_lost: false }
    }

    /// This row's fault.
    pub fn of_row(self, row: usize) -> Self {
        Self { row: Some(row), ..self }
    }

    /// The caches went with it.
    pub fn losing_caches(self) -> Self {
        Self { caches_lost: true, ..self }
    }
}
