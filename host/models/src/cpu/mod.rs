//! A pass on the CPU, in our own code: products with weights that stay as they are stored,
//! attention over pages, norms and gates, on all cores.
//!
//! MLX's CPU backend multiplies quantized, f16 and bf16 matrices in scalar code on one thread, and
//! ships the reference BLAS. Here MLX has no part in a pass at all. Its graph would carry some
//! 870 small operations for each token of the default model, each allocated, scheduled on
//! another thread and waited for; a primitive of our own in that graph would save the waiting and
//! leave the rest. So each step is a plain call on the engine's thread, which shares out what is
//! worth it among a small [pool of threads](thread_pool): the only ones that compute.
//!
//! # Invariants
//!
//! - A row's numbers depend on its own sequence alone, to the bit: not on the rows beside it, how
//!   its prompt was cut, where its pages lie or how many threads there are.
//!
//! # Not here
//!
//! GPUs: there the same architectures run in MLX's arrays. Which of the two, [`crate::tensor`] says.

pub(crate) mod attention;
pub(crate) mod dense;
pub(crate) mod matmul;
mod norm;
mod output;
pub(crate) mod packed;
pub(crate) mod pages;
mod swiglu;
mod tensor;
mod thread_pool;

use std::num::NonZeroUsize;

pub(crate) use norm::rms_norm;
pub(crate) use tensor::CpuTensor;

/// Sets how many threads compute, before the first product. Later calls change nothing: the pool is
/// made once and serves the whole process.
pub(crate) fn prepare(threads: Option<NonZeroUsize>) {
    thread_pool::start(threads.unwrap_or_else(thread_pool::physical_cores));
}

/// The instructions that products use on this machine, for people.
pub(crate) fn instructions() -> &'static str {
    packed::InstructionSet::best().name()
}

/// The number of threads that compute, the calling one included.
pub(crate) fn threads() -> usize {
    thread_pool::pool().size()
}
