//! STAND-IN: draws greedily, whatever was asked for. It has the signatures of the sampler that is
//! being written elsewhere, which replaces this file.

use interlock_engine::{Opening, PassFailed};
use interlock_request::{Drawn, TokenId};
use mlx_rs::error::Exception;
use mlx_rs::ops::indexing::argmax_axis;
use mlx_rs::{Array, Dtype};

/// One sequence's way of drawing tokens. Plain data.
pub(crate) struct Sampler;

impl Sampler {
    pub(crate) fn new(_: &Opening<'_>, _vocabulary: u32) -> Result<Self, PassFailed> {
        Ok(Self)
    }

    /// After the pass that drew it has succeeded.
    pub(crate) fn remember(&mut self, _: TokenId) {}
}

/// `logits` are `[rows, vocabulary]`, row by row.
pub(crate) fn draw_on_host(samplers: &[&Sampler], logits: &[f32]) -> Vec<Drawn> {
    let vocabulary = logits.len() / samplers.len().max(1);
    let likeliest = |row: &[f32]| {
        let mut best = 0;
        for (token, logit) in row.iter().enumerate() {
            if *logit > row[best] {
                best = token;
            }
        }
        Drawn::from(best as TokenId)
    };
    logits.chunks(vocabulary.max(1)).map(likeliest).collect()
}

/// `logits` are `[rows, vocabulary]`.
pub(crate) fn draw_on_device(_: &[&Sampler], logits: &Array) -> Result<Vec<Drawn>, Exception> {
    let tokens = argmax_axis(logits, -1, false)?.as_dtype(Dtype::Uint32)?;
    let tokens: Vec<TokenId> =
        tokens.to_vec_exact().map_err(|error| Exception::custom(error.to_string()))?;
    Ok(tokens.into_iter().map(Drawn::from).collect())
}
