//! Matrices that multiply: dense, or quantized and left packed.
//!
//! An architecture asks for as much at once as it can: [`qkv`], [`swiglu`] and
//! [`Linear::with_residual`] each are one piece of work for the CPU's thread pool.

use mlx_rs::error::Exception;
use mlx_rs::{Array, ops};

use crate::compute_error::ComputeError;
use crate::cpu::matmul::{self, CpuLinear, CpuMatrix, MatmulOp};
use crate::norm::Vector;
use crate::quantization::Affine;
use crate::tensor::Tensor;

/// `y = x W^T (+ b)`.
pub(crate) struct Linear {
    pub(crate) weight: Matrix,
    pub(crate) bias: Option<Vector>,
}

/// A weight matrix of `[outputs, inputs]`.
pub(crate) enum Matrix {
    /// In the CPU kernels' own layout.
    Cpu(CpuMatrix),
    /// An MLX array, kept as its transpose: a view of `[inputs, outputs]`, so that no pass makes it anew.
    Dense { transposed: Array },
    /// MLX's affine quantization: `weight` holds packed codes of u32.
    Quantized { weight: Array, scales: Array, biases: Array, affine: Affine },
}

/// An embedding of `[vocabulary, hidden]`, which may be the output head too.
pub(crate) struct Embedding {
    pub(crate) weight: Matrix,
}

/// The queries, keys and values of the same rows: `x` times each of the three matrices.
pub(crate) fn qkv(x: &Tensor, linears: [&Linear; 3]) -> Result<[Tensor; 3], ComputeError> {
    let [q, k, v] = linears;
    if let Tensor::Cpu(x) = x {
        let ops = [q.on_cpu()?, k.on_cpu()?, v.on_cpu()?].map(MatmulOp::Linear);
        return Ok(matmul::multiply(x, ops).map(Tensor::Cpu));
    }
    Ok([q.forward(x)?, k.forward(x)?, v.forward(x)?])
}

/// SwiGLU (Shazeer 2020): `silu(x G^T) * (x U^T)`, with `silu(y) = y / (1 + e^-y)`.
pub(crate) fn swiglu(x: &Tensor, gate: &Linear, up: &Linear) -> Result<Tensor, ComputeError> {
    if let Tensor::Cpu(x) = x {
        let op = MatmulOp::Swiglu { gate: gate.on_cpu()?, up: up.on_cpu()? };
        let [result] = matmul::multiply(x, [op]);
        return Ok(Tensor::Cpu(result));
    }
    let (gate, up) = (gate.forward(x)?, up.forward(x)?);
    let gate = gate.mlx()?;
    // Not `mlx_rs::nn::silu`: it compiles its two operations anew at every call, and on the CPU
    // MLX's compiler runs g++.
    Ok(Tensor::Mlx(gate.multiply(ops::sigmoid(gate)?)?.multiply(up.mlx()?)?))
}

impl Linear {
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor, ComputeError> {
        if let Tensor::Cpu(x) = x {
            let [result] = matmul::multiply(x, [MatmulOp::Linear(self.on_cpu()?)]);
            return Ok(Tensor::Cpu(result));
        }
        let x = x.mlx()?;
        let result = match (&self.weight, &self.bias) {
            (Matrix::Dense { transposed }, Some(Vector::Mlx(bias))) => {
                ops::addmm(bias, x, transposed, None, None)?
            }
            (weight, Some(Vector::Mlx(bias))) => weight.product(x)?.add(bias)?,
            (weight, _) => weight.product(x)?,
        };
        Ok(Tensor::Mlx(result))
    }

    /// `residual + x W^T (+ b)`.
    pub(crate) fn with_residual(
        &self,
        residual: &Tensor,
        x: &Tensor,
    ) -> Result<Tensor, ComputeError> {
        if let (Tensor::Cpu(x), Tensor::Cpu(residual)) = (x, residual) {
            let [result] = matmul::multiply(x, [MatmulOp::Residual(self.on_cpu()?, residual)]);
            return Ok(Tensor::Cpu(result));
        }
        Ok(Tensor::Mlx(residual.mlx()?.add(self.forward(x)?.mlx()?)?))
    }

    fn on_cpu(&self) -> Result<CpuLinear<'_>, ComputeError> {
        let bias = match &self.bias {
            Some(Vector::Cpu(bias)) => Some(&bias[..]),
            _ => None,
        };
        Ok(CpuLinear { matrix: self.weight.on_cpu()?, bias })
    }
}

impl Matrix {
    pub(crate) fn dense(weight: &Array) -> Result<Self, Exception> {
        Ok(Self::Dense { transposed: weight.swap_axes(-1, -2)? })
    }

    fn on_cpu(&self) -> Result<&CpuMatrix, ComputeError> {
        match self {
            Self::Cpu(matrix) => Ok(matrix),
            _ => Err(ComputeError::CPU_TENSOR),
        }
    }

    fn product(&self, x: &Array) -> Result<Array, ComputeError> {
        match self {
            Self::Cpu(_) => Err(ComputeError::MLX_TENSOR),
            Self::Dense { transposed } => Ok(x.matmul(transposed)?),
            Self::Quantized { weight, scales, biases, affine } => Ok(ops::quantized_matmul(
                x,
                weight,
                scales,
                biases,
                true,
                affine.group_size,
                affine.bits,
            )?),
        }
    }

    /// Multiplies each row with the matrices of `[experts, outputs, inputs]` whose numbers `which`
    /// has for it.
    pub(crate) fn gathered(&self, x: &Array, which: &Array) -> Result<Array, ComputeError> {
        match self {
            Self::Cpu(_) => Err(ComputeError::MLX_TENSOR),
            Self::Dense { transposed } => Ok(ops::gather_mm(x, transposed, None, which, false)?),
            Self::Quantized { weight, scales, biases, affine } => Ok(ops::gather_qmm(
                x,
                weight,
                scales,
                biases,
                None,
                which,
                true,
                affine.group_size,
                affine.bits,
                false,
            )?),
        }
    }
}

impl Embedding {
    /// The rows of these tokens, `[1, tokens, width]`. Each token must be below the number of rows:
    /// MLX does not check.
    pub(crate) fn forward(&self, tokens: &[u32]) -> Result<Tensor, ComputeError> {
        if let Matrix::Cpu(matrix) = &self.weight {
            return Ok(Tensor::Cpu(matrix.rows(tokens)));
        }
        let tokens = Array::from_slice(tokens, &[1, tokens.len() as i32]);
        let rows = match &self.weight {
            Matrix::Cpu(_) => unreachable!("looked at above"),
            Matrix::Dense { transposed } => transposed.transpose()?.take_axis(tokens, 0),
            Matrix::Quantized { weight, scales, biases, affine } => ops::dequantize(
                weight.take_axis(&tokens, 0)?,
                scales.take_axis(&tokens, 0)?,
                &biases.take_axis(&tokens, 0)?,
                affine.group_size,
                affine.bits,
            ),
        };
        Ok(Tensor::Mlx(rows?))
    }

    /// The logits of `x` where the embedding is the output head too: `x E^T`.
    pub(crate) fn as_linear(&self, x: &Tensor) -> Result<Tensor, ComputeError> {
        match (&self.weight, x) {
            (Matrix::Cpu(matrix), Tensor::Cpu(x)) => {
                let head = CpuLinear { matrix, bias: None };
                let [logits] = matmul::multiply(x, [MatmulOp::Linear(head)]);
                Ok(Tensor::Cpu(logits))
            }
            (weight, x) => Ok(Tensor::Mlx(weight.product(x.mlx()?)?)),
        }
    }
}
