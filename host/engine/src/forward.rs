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
    /// When a parameter is beyond the model (a biased token outside the vocabulary, say): the
    /// request ends. When there is no memory for one more ([`PassFault::TooLarge`]): it waits until
    /// another has ended.
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
    /// were, but for what [`PassFailed::caches`] says of the pages.
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

/// A pass that did not produce its results, or a request that could not be opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{why}")]
pub struct PassFailed {
    /// For our log.
    pub why: String,
    /// Whose fault it was, as far as is known.
    pub kind: PassFault,
    /// What became of the pages.
    pub caches: Caches,
}

/// Whose fault a pass that failed was, which decides what is tried next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PassFault {
    /// That of this row of the table, and no other's. Its request ends, the others go on.
    Row(usize),
    /// Nobody's: the device had not enough memory, or time, for so many rows or tokens at once.
    /// Fewer are computed at a time.
    TooLarge,
    /// Nobody knows. Each request of the pass runs alone once, and who fails alone ends.
    Broken,
}

/// What became of the pages in a pass that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Caches {
    /// They hold what they held, up to each row's `from`.
    Kept,
    /// They are there, and hold nothing any more, for all requests.
    Emptied,
    /// They are gone and cannot be made anew: no pass can succeed any more, and the engine closes.
    Gone,
}

impl PassFault {
    /// Its label in `interlock_engine_pass_failures_total{kind}`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Row(_) => "row",
            Self::TooLarge => "too_large",
            Self::Broken => "broken",
        }
    }
}

impl PassFailed {
    /// Nobody's fault, as far as is known, and nothing is lost.
    pub fn new(why: impl Into<String>) -> Self {
        Self { why: why.into(), kind: PassFault::Broken, caches: Caches::Kept }
    }

    /// This row's fault.
    pub fn of_row(self, row: usize) -> Self {
        Self { kind: PassFault::Row(row), ..self }
    }

    /// There was not enough memory for so much.
    pub fn too_large(self) -> Self {
        Self { kind: PassFault::TooLarge, ..self }
    }

    /// What the caches held went with it.
    pub fn losing_caches(self) -> Self {
        Self { caches: Caches::Emptied, ..self }
    }

    /// The caches went with it, and there are no others to be had.
    pub fn beyond_repair(self) -> Self {
        Self { caches: Caches::Gone, ..self }
    }
}
