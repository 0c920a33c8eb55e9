//! What an error while a pass is computed means for the engine.
//!
//! MLX throws one class of exception, so its text is all there is to go by. The texts here are
//! those of MLX 0.32; whoever takes another version looks at `mlx/allocator.cpp`,
//! `mlx/backend/metal/allocator.cpp`, `mlx/backend/metal/eval.cpp`, `mlx/backend/cuda/allocator.cpp`
//! and `mlx/backend/cuda/utils.cpp` there. A text that is not known is [`PassFault::Broken`], and
//! the engine finds out by itself whether fewer rows help.
//!
//! MLX's CPU backend looks at no allocation and crashes; there our own code computes.
//!
//! [`PassFault::Broken`]: interlock_engine::PassFault::Broken

use interlock_engine::PassFailed;
use mlx_rs::error::Exception;
use mlx_rs::memory;

use crate::cache::KvPages;
use crate::compute_error::ComputeError;

/// Parts of texts that say that a pass was too large, in small letters.
const TOO_LARGE: [&str; 9] = [
    // `[malloc]` and, with CUDA, `[malloc_async] Unable to allocate 123 bytes.`
    "unable to allocate",
    // `[metal::malloc] Attempting to allocate 12 bytes which is greater than the maximum allowed
    // buffer size of 11 bytes.`
    "greater than the maximum allowed buffer size",
    // `[metal::malloc] Resource limit (499000) exceeded.`: too many buffers at once.
    "[metal::malloc] resource limit",
    // `[METAL] Command buffer execution failed: Insufficient Memory
    // (00000008:kIOGPUCommandBufferCallbackErrorOutOfMemory)`
    "kiogpucommandbuffercallbackerroroutofmemory",
    // Metal ends what computes for so long that the screen stands still, or its watchdog barks: a
    // smaller pass takes less time.
    "kiogpucommandbuffercallbackerrorimpactinginteractivity",
    "kiogpucommandbuffercallbackerrortimeout",
    // CUDA's own words for its error 2, whatever call had it: `cudaMallocManaged failed: out of
    // memory.`
    "out of memory",
    // `CUFFT_ALLOC_FAILED`, `CUDNN_STATUS_ALLOC_FAILED`, `CUBLAS_STATUS_ALLOC_FAILED`
    "alloc_failed",
    // What C++ says of the host's memory.
    "bad_alloc",
];

/// Was it more than the device has memory, or time, for?
fn is_too_large(what: &str) -> bool {
    let what = what.to_lowercase();
    // cuBLAS's errors come as numbers; 3 is CUBLAS_STATUS_ALLOC_FAILED.
    let cublas = what.contains("cublas") && what.contains("failed with code: 3.");
    cublas || TOO_LARGE.iter().any(|text| what.contains(text))
}

/// A pass over these pages has failed with this error. If it failed half-way through MLX's graph,
/// arrays that hold the pages may be gone with it, so they are made anew; the CPU's pages are as
/// they were.
pub(crate) fn pass_failed(error: &ComputeError, pages: &mut KvPages) -> PassFailed {
    let failed = match error {
        ComputeError::Mlx(what) => kind(what),
        ComputeError::Mixed(what) => PassFailed::new(*what),
    };
    match pages {
        KvPages::Cpu(_) => failed,
        KvPages::Mlx(pages) => {
            let made = pages.clear().or_else(|error| {
                // What MLX keeps of buffers that nobody uses may be all the memory there is.
                tracing::warn!(
                    error = error.what(),
                    "no room for empty pages; MLX clears its cache"
                );
                memory::clear_cache()?;
                pages.clear()
            });
            remade(failed, made)
        }
    }
}

fn kind(what: &str) -> PassFailed {
    let failed = PassFailed::new(format!("MLX: {what}"));
    if is_too_large(what) { failed.too_large() } else { failed }
}

/// And its pages were made anew, or could not be.
fn remade(failed: PassFailed, pages: Result<(), Exception>) -> PassFailed {
    match pages {
        Ok(()) => failed.losing_caches(),
        Err(error) => {
            let why = format!("{}; and no empty pages could be made: {}", failed.why, error.what());
            PassFailed { why, ..failed }.beyond_repair()
        }
    }
}

#[cfg(test)]
mod tests {
    use interlock_engine::{Caches, PassFault};

    use super::*;

    #[test]
    fn what_mlx_says_when_memory_is_short_is_too_large() {
        for what in [
            "[malloc] Unable to allocate 268435456 bytes.",
            "[malloc_async] Unable to allocate 1073741824 bytes.",
            "[metal::malloc] Attempting to allocate 135383101952 bytes which is greater than the \
             maximum allowed buffer size of 86586540032 bytes.",
            "[metal::malloc] Resource limit (499000) exceeded.",
            "[METAL] Command buffer execution failed: Insufficient Memory \
             (00000008:kIOGPUCommandBufferCallbackErrorOutOfMemory)",
            "[METAL] Command buffer execution failed: Impacting Interactivity \
             (0000000e:kIOGPUCommandBufferCallbackErrorImpactingInteractivity)",
            "[METAL] Command buffer execution failed: Caused GPU Timeout Error \
             (00000002:kIOGPUCommandBufferCallbackErrorTimeout)",
            "cudaMallocManaged failed: out of memory.",
            "cudaMallocAsync(&data, size, stream) failed: out of memory",
            "cudaGraphInstantiate(&handle_, graph, nullptr, nullptr, 0) failed: out of memory",
            "cublasLtMatmul(...) failed with code: 3.",
            "CUDNN_STATUS_ALLOC_FAILED",
            "std::bad_alloc",
        ] {
            assert_eq!(kind(what).kind, PassFault::TooLarge, "{what}");
            assert_eq!(kind(what).why, format!("MLX: {what}"));
        }
    }

    #[test]
    fn what_else_mlx_says_is_nobodys_known_fault() {
        for what in [
            "[matmul] Last dimension of first input with shape (1,2) must match second to last \
             dimension of second input with shape (3,4).",
            "cudaStreamSynchronize(stream) failed: an illegal memory access was encountered",
            "[METAL] Command buffer execution failed: Caused GPU Hang Error \
             (00000003:kIOGPUCommandBufferCallbackErrorHang)",
            "cublasLtMatmul(...) failed with code: 13.",
            "cudaMallocManaged failed: initialization error.",
            "",
        ] {
            assert_eq!(kind(what).kind, PassFault::Broken, "{what}");
        }
    }

    #[test]
    fn pages_that_cannot_be_made_anew_are_gone_and_the_error_says_both() {
        let failed = || kind("[malloc] Unable to allocate 8 bytes.");
        assert_eq!(remade(failed(), Ok(())).caches, Caches::Emptied);
        let gone = remade(failed(), Err(Exception::custom("an illegal memory access")));
        assert_eq!(gone.caches, Caches::Gone);
        assert_eq!(
            gone.why,
            "MLX: [malloc] Unable to allocate 8 bytes.; and no empty pages could be made: an \
             illegal memory access"
        );
    }
}
