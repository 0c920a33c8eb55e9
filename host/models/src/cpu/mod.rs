//! A pass on the CPU, in our own code: products with weights that stay as they are stored,
//! attention over pages, norms and gates, on all cores.
//!
//! MLX's CPU backend multiplies quantized, f16 and bf16 matrices in scalar code on one thread, and
//! ships the reference BLAS. Here MLX has no part in a pass at all. Its graph would carry some
//! 870 small operations for each token of the default model, each allocated, scheduled on
//! another thread and waited for; a primitive of our own in that graph would save the waiting and
//! leave the rest. So each step is a plain call on the engine's thread, which shares out what is
//! worth it among a small [`team`] of threads: the only ones that compute.
//!
//! # Invariants
//!
//! - A row's numbers depend on its own sequence alone, to the bit: not on the rows beside it, how
//!   its prompt was cut, where its pages lie or how many threads there are.
//!
//! # Not here
//!
//! GPUs: there the same families run in MLX's arrays. Which of the two, [`crate::tensor`] says.

pub(crate) mod attention;
pub(crate) mod dots;
mod gate;
mod norm;
pub(crate) mod packed;
pub(crate) mod pages;
pub(crate) mod products;
mod team;

use std::num::NonZeroUsize;

pub(crate) use norm::rms_norm;

/// A table of numbers in our own memory, a row for each token.
pub(crate) struct Host {
    pub(crate) width: usize,
    pub(crate) numbers: Vec<f32>,
}

impl Host {
    pub(crate) fn rows(&self) -> usize {
        self.numbers.len() / self.width.max(1)
    }
}

/// Sets how many threads compute, before the first product. Later calls change nothing: the team is
/// made once and serves the whole process.
pub(crate) fn prepare(threads: Option<NonZeroUsize>) {
    team::assemble(threads.unwrap_or_else(team::physical_cores));
}

/// The instructions that products use on this machine, for people.
pub(crate) fn instructions() -> &'static str {
    packed::Path::best().name()
}

/// How many threads compute.
pub(crate) fn threads() -> usize {
    team::team().size()
}
