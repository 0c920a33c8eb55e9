//! What flows between the CPU's kernels.

/// A table of numbers in our own memory, a row for each token.
pub(crate) struct CpuTensor {
    pub(crate) width: usize,
    pub(crate) numbers: Vec<f32>,
}

impl CpuTensor {
    pub(crate) fn rows(&self) -> usize {
        self.numbers.len() / self.width.max(1)
    }
}
