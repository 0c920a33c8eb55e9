//! Matrices that multiply: dense, or quantized and left packed.
//!
//! A family asks for as much at once as it can: what shares its rows ([`together`]), what is added
//! to ([`Linear::onto`]) and what is gated ([`gated`]). On the CPU each is one piece of shared work.

use mlx_rs::error::Exception;
use mlx_rs::{Array, ops};

use crate::cpu::products::{self, Step};
use crate::norm::Vector;
use crate::quantization::Affine;
use crate::tensor::Tensor;

/// `y = x W^T (+ b)`.
pub(crate) struct Linear {
    pub(crate) weight: Matrix,
    pub(crate) bias: Option<Vector>,
}

/// A matrix of `[outputs, inputs]`.
pub(crate) enum Matrix {
    Host(products::Matrix),
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

/// The products of the same rows with several matrices.
pub(crate) fn together<const N: usize>(
    x: &Tensor,
    linears: [&Linear; N],
) -> Result<[Tensor; N], Exception> {
    if let Tensor::Host(x) = x {
        let mut steps = Vec::with_capacity(N);
        for linear in linears {
            steps.push(Step::Product(linear.on_host()?));
        }
        let Ok(steps) = steps.try_into() else { unreachable!("as many as there are linears") };
        return Ok(products::multiply::<N>(x, steps).map(Tensor::Host));
    }
    let mut results = Vec::with_capacity(N);
    for linear in linears {
        results.push(linear.forward(x)?);
    }
    results.try_into().map_err(|_| Exception::custom("as many results as there are linears"))
}

/// `silu(gate) * up`.
pub(crate) fn gated(x: &Tensor, gate: &Linear, up: &Linear) -> Result<Tensor, Exception> {
    if let Tensor::Host(x) = x {
        let step = Step::Gated { gate: gate.on_host()?, up: up.on_host()? };
        let [result] = products::multiply(x, [step]);
        return Ok(Tensor::Host(result));
    }
    let (gate, up) = (gate.forward(x)?, up.forward(x)?);
    let gate = gate.device()?;
    // Not `mlx_rs::nn::silu`: it compiles its two operations anew at every call, and on the CPU
    // MLX's compiler runs g++.
    gate.multiply(ops::sigmoid(gate)?)?.multiply(up.device()?).map(Tensor::Device)
}

impl Linear {
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor, Exception> {
        if let Tensor::Host(x) = x {
            let [result] = products::multiply(x, [Step::Product(self.on_host()?)]);
            return Ok(Tensor::Host(result));
        }
        let x = x.device()?;
        let result = match (&self.weight, &self.bias) {
            (Matrix::Dense { transposed }, Some(Vector::Device(bias))) => {
                ops::addmm(bias, x, transposed, None, None)
            }
            (weight, Some(Vector::Device(bias))) => weight.product(x)?.add(bias),
            (weight, _) => weight.product(x),
        };
        result.map(Tensor::Device)
    }

    /// `onto + x W^T (+ b)`.
    pub(crate) fn onto(&self, onto: &Tensor, x: &Tensor) -> Result<Tensor, Exception> {
        if let (Tensor::Host(x), Tensor::Host(onto)) = (x, onto) {
            let [result] = products::multiply(x, [Step::Onto(self.on_host()?, onto)]);
            return Ok(Tensor::Host(result));
        }
        onto.device()?.add(self.forward(x)?.device()?).map(Tensor::Device)
    }

    fn on_host(&self) -> Result<products::Affine<'_>, Exception> {
        let bias = match &self.bias {
            Some(Vector::Host(bias)) => Some(&bias[..]),
            _ => None,
        };
        Ok(products::Affine { matrix: self.weight.on_host()?, bias })
    }
}

impl Matrix {
    pub(crate) fn dense(weight: &Array) -> Result<Self, Exception> {
        Ok(Self::Dense { transposed: weight.swap_axes(-1, -2)? })
    }

    fn on_host(&self) -> Result<&products::Matrix, Exception> {
        match self {
            Self::Host(matrix) => Ok(matrix),
            _ => Err(Exception::custom("numbers on the host, weights on the device")),
        }
    }

    fn product(&self, x: &Array) -> Result<Array, Exception> {
        match self {
            Self::Host(_) => Err(Exception::custom("numbers on the device, weights on the host")),
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

impl Matrix {
    /// The products of rows with those of several matrices, `[experts, outputs, inputs]`, that
    /// `which` says.
    pub(crate) fn gathered(&self, x: &Array, which: &Array) -> Result<Array, Exception> {
        match self {
            Self::Host(_) => Err(Exception::custom("numbers on the device, weights on the host")),
            Self::Dense { transposed } => ops::gather_mm(x, transposed, None, which, false),
            Self::Quantized { weight, scales, biases, affine } => ops::gather_qmm(
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
            ),
        }
    }
}

impl Embedding {
    /// Rows of the table. `tokens` must be below its height: MLX does not look.
    pub(crate) fn forward(&self, tokens: &[u32]) -> Result<Tensor, Exception> {
        if let Matrix::Host(matrix) = &self.weight {
            return Ok(Tensor::Host(matrix.rows(tokens)));
        }
        let tokens = Array::from_slice(tokens, &[1, tokens.len() as i32]);
        let rows = match &self.weight {
            Matrix::Host(_) => unreachable!("looked at above"),
            Matrix::Dense { transposed } => transposed.transpose()?.take_axis(tokens, 0),
            Matrix::Quantized { weight, scales, biases, affine } => ops::dequantize(
                weight.take_axis(&tokens, 0)?,
                scales.take_axis(&tokens, 0)?,
                &biases.take_axis(&tokens, 0)?,
                affine.group_size,
                affine.bits,
            ),
        };
        rows.map(Tensor::Device)
    }

    /// The table as the head: one logit for each token.
    pub(crate) fn as_linear(&self, x: &Tensor) -> Result<Tensor, Exception> {
        match (&self.weight, x) {
            (Matrix::Host(matrix), Tensor::Host(x)) => {
                let head = products::Affine { matrix, bias: None };
                let [logits] = products::multiply(x, [Step::Product(head)]);
                Ok(Tensor::Host(logits))
            }
            (weight, x) => weight.product(x.device()?).map(Tensor::Device),
        }
    }
}
