//! What the engine needs of a model.

use interlock_request::{Sampling, TokenId};

/// A model that computes on the thread that made it.
///
/// Implementations own weights, caches and device state, and need not be `Send`: the engine
/// builds one on its own thread, calls it from there alone and drops it there.
///
/// Each of `prefill`, `prefill_last` and `decode` is one *pass*: it returns when its results are
/// known and the device is idle, never earlier. A pass cannot be interrupted.
pub trait Forward {
    /// All that the model keeps for one request: its keys and values, its random state, the
    /// counts its penalties need. Dropping it gives all of that back.
    type Sequence;

    /// What this model can do.
    fn shape(&self) -> ModelShape;

    /// Prepares for a request with this whole prompt. Computes nothing yet: `prompt` is here for
    /// the penalties and for sizing the cache.
    ///
    /// # Errors
    ///
    /// When the device cannot hold the sequence, or a parameter is beyond the model (a biased
    /// token outside the vocabulary, say).
    fn open(
        &mut self,
        prompt: &[TokenId],
        sampling: &Sampling,
    ) -> Result<Self::Sequence, PassFailed>;

    /// One pass: the next `chunk` of the prompt enters the cache; nothing is sampled.
    ///
    /// # Errors
    ///
    /// When the device fails. The sequence is then spent: the engine drops it.
    fn prefill(
        &mut self,
        sequence: &mut Self::Sequence,
        chunk: &[TokenId],
    ) -> Result<(), PassFailed>;

    /// One pass: the last `chunk` of the prompt, at least one token, and the first token after it.
    ///
    /// # Errors
    ///
    /// As for [`Forward::prefill`].
    fn prefill_last(
        &mut self,
        sequence: &mut Self::Sequence,
        chunk: &[TokenId],
    ) -> Result<TokenId, PassFailed>;

    /// One pass: the next token of each sequence, in order. A sequence remembers its last token.
    ///
    /// # Errors
    ///
    /// As for [`Forward::prefill`]; all sequences in the batch are then spent.
    fn decode(&mut self, batch: &mut [&mut Self::Sequence]) -> Result<Vec<TokenId>, PassFailed>;
}

/// What a model can do, in tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ModelShape {
    /// Most tokens of prompt and output together.
    pub context: u32,
    /// Token ids are below this.
    pub vocabulary: u32,
}

/// A pass that did not produce its result. The text is for our log.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct PassFailed(pub String);
