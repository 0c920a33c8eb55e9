//! The interface between the engine and a model.

use interlock_request::{Drawn, Fault, FaultKind, Generation, TokenId};

/// A model that computes on the thread that made it.
///
/// Implementations own weights, caches and device state, and need not be `Send`: the engine
/// builds one on its own thread, calls it from there alone and drops it there.
///
/// Keys and values lie in *pages* of a fixed number of tokens. The engine decides which pages a request
/// has, and the model what is in them. So joining, leaving and sharing a prefix are edits of a table
/// and copy nothing.
pub trait Forward {
    /// What the model keeps for one request beside its pages: how to sample and what was drawn; for a
    /// recurrent model also its state. Dropping it frees all of that.
    type Sequence;

    /// The model's limits.
    fn shape(&self) -> ModelShape;

    /// Prepares the model for a request. Nothing is computed.
    ///
    /// # Errors
    ///
    /// When a parameter is beyond the model (a biased token outside the vocabulary, say): the request
    /// ends. When there is no memory for one more request ([`PassFault::TooLarge`]): the request waits
    /// until another has ended.
    fn open(&mut self, opening: &Opening<'_>) -> Result<Self::Sequence, PassFailed>;

    /// Runs one forward pass over a table of rows, in which each sequence occurs at most once. It
    /// returns when its results are known and the device is idle, never earlier, and cannot be
    /// interrupted.
    ///
    /// The result has for each row, in order, the token drawn, or `None` if the row was not to draw.
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

/// A request as a model opens it.
#[derive(Debug, Clone, Copy)]
pub struct Opening<'a> {
    /// The whole prompt, which penalties count too.
    pub prompt: &'a [TokenId],
    /// Tokens that were drawn before the request was preempted; none the first time.
    pub generated: &'a [TokenId],
    /// How tokens are drawn.
    pub generation: &'a Generation,
    /// The seed to use if the request names none. It is the same each time the request is opened.
    pub fresh_seed: u64,
}

/// One request's part in a forward pass.
#[derive(Debug)]
pub struct Row<'a, S> {
    /// The sequence of the request.
    pub sequence: &'a mut S,
    /// Tokens that enter the cache at positions `from` and on; at least one.
    pub tokens: &'a [TokenId],
    /// The position of the first of `tokens`. The pages hold all positions before it.
    pub from: u32,
    /// The pages of its positions, in order. They have room for all of `tokens`.
    pub pages: &'a [PageId],
    /// Whether the token after the last of `tokens` is to be drawn.
    pub draw: bool,
}

/// The index of a page, below [`ModelShape::pages`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PageId(pub u32);

/// The limits of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ModelShape {
    /// Most tokens of prompt and output together, at most what all pages hold.
    pub context: u32,
    /// Token ids are below this.
    pub vocabulary: u32,
    /// Tokens whose keys and values a page holds.
    pub page_tokens: u32,
    /// Pages there are, for all requests together.
    pub pages: u32,
}

/// The error of a forward pass without results, or of a request that could not be opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{why}")]
pub struct PassFailed {
    /// The message for our log.
    pub why: String,
    /// The cause of the failure, as far as is known.
    pub kind: PassFault,
    /// What the pages hold afterwards.
    pub caches: Caches,
}

/// The cause of a failed pass. The cause decides what the engine tries next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PassFault {
    /// This row of the table alone. The row's request ends, the others go on.
    Row(usize),
    /// No row: the device had not enough memory, or time, for so many rows or tokens at once. The engine
    /// computes fewer at a time.
    TooLarge,
    /// Not known. Each request of the pass runs alone once, and one that fails alone ends.
    Broken,
}

/// What the pages hold after a pass that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Caches {
    /// The pages hold what they held, up to each row's `from`.
    Kept,
    /// The pages are there and hold nothing any more, for all requests.
    Emptied,
    /// The pages are gone and cannot be made anew. No pass can succeed any more, so the engine closes.
    Gone,
}

impl PassFault {
    /// The label in `interlock_engine_pass_failures_total{kind}`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Row(_) => "row",
            Self::TooLarge => "too_large",
            Self::Broken => "broken",
        }
    }
}

impl PassFailed {
    /// A failure that is blamed on no row and that lost nothing.
    pub fn new(why: impl Into<String>) -> Self {
        Self { why: why.into(), kind: PassFault::Broken, caches: Caches::Kept }
    }

    /// Blames the failure on this row.
    pub fn of_row(self, row: usize) -> Self {
        Self { kind: PassFault::Row(row), ..self }
    }

    /// Blames the failure on the size of the pass.
    pub fn too_large(self) -> Self {
        Self { kind: PassFault::TooLarge, ..self }
    }

    /// Adds that the failure emptied the pages.
    pub fn losing_caches(self) -> Self {
        Self { caches: Caches::Emptied, ..self }
    }

    /// Adds that the pages are gone and cannot be made anew.
    pub fn beyond_repair(self) -> Self {
        Self { caches: Caches::Gone, ..self }
    }

    /// The fault of a request that ends because of this failure, with the message `why`.
    pub(crate) fn fault(&self, why: String) -> Fault {
        let kind = match self.kind {
            PassFault::TooLarge => FaultKind::OutOfMemory,
            PassFault::Row(_) | PassFault::Broken => FaultKind::Internal,
        };
        Fault { kind, why }
    }
}
