//! Matrices that multiply: dense, or quantized and left packed.

use mlx_rs::error::Exception;
use mlx_rs::{Array, ops};

use crate::quantization::Affine;

/// `y = x W^T (+ b)`.
pub(crate) struct Linear {
    pub(crate) weight: Matrix,
    pub(crate) bias: Option<Array>,
}

/// A matrix of `[outputs, inputs]`.
pub(crate) enum Matrix {
    /// Kept as its transpose: a view of `[inputs, outputs]`, so that no pass makes it anew.
    Dense {
        transposed: Array,
    },
    Quantized {
        weight: Array,
        scales: Array,
        biases: Array,
        affine: Affine,
    },
}

/// A table of `[tokens, width]` that is read by row, and that may also be the head.
pub(crate) struct Embedding {
    pub(crate) weight: Matrix,
}

impl Linear {
    pub(crate) fn forward(&self, x: &Array) -> Result<Array, Exception> {
        match (&self.weight, &self.bias) {
            (Matrix::Dense { transposed }, Some(bias)) => {
                ops::addmm(bias, x, transposed, None, None)
            }
            (weight, None) => weight.product(x),
            (weight, Some(bias)) => weight.product(x)?.add(bias),
        }
    }
}

impl Matrix {
    pub(crate) fn dense(weight: &Array) -> Result<Self, Exception> {
        Ok(Self::Dense { transposed: weight.transpose()? })
    }

    fn product(&self, x: &Array) -> Result<Array, Exception> {
        match self {
            Self::Dense { transposed } => x.matmul(transposed),
            Self::Quantized { weight, scales, biases, affine } => ops::quantized_matmul(
                x,
                weight,
                scales,
                biases,
                true,
                affine.group_size,
                affine.bits,
            ),
        }
    }
}

impl Embedding {
    /// Rows of the table. `tokens` must be below its height: MLX does not look.
    pub(crate) fn forward(&self, tokens: &Array) -> Result<Array, Exception> {
        match &self.weight {
            Matrix::Dense { transposed } => transposed.transpose()?.take_axis(tokens, 0),
            Matrix::Quantized { weight, scales, biases, affine } => ops::dequantize(
                weight.take_axis(tokens, 0)?,
                scales.take_axis(tokens, 0)?,
                &biases.take_axis(tokens, 0)?,
                affine.group_size,
                affine.bits,
            ),
        }
    }

    /// The table as the head: one logit for each token.
    pub(crate) fn as_linear(&self, x: &Array) -> Result<Array, Exception> {
        self.weight.product(x)
    }
}
