//! Matrices out of a model's files: dense, quantized by mlx_lm or in GGUF's blocks, alone or
//! stacked, for the CPU or for MLX.

use mlx_rs::error::Exception;
use mlx_rs::{Array, Dtype, ops};

use super::pack::{dense_type, pack_affine, pack_blocks};
use super::{Precision, WeightLoader, on_device, settled};
use crate::cpu::dense::{Dense, DenseType};
use crate::cpu::matmul::CpuMatrix;
use crate::error::LoadError;
use crate::linear::Matrix;
use crate::quantization::Affine;
use crate::source::blocks::{self, BLOCK};
use crate::source::{Encoding, Format};

impl WeightLoader<'_> {
    /// Matrices that lie in one tensor: each alone on the CPU, the tensor as one on a GPU.
    pub(super) fn stack(
        &mut self,
        module: &str,
        count: i32,
        rows: i32,
        columns: i32,
    ) -> Result<Vec<Matrix>, LoadError> {
        if self.has(&format!("{module}.scales")) {
            return self.affine_matrices(module, Some(count), rows, columns);
        }
        let name = format!("{module}.weight");
        let shape = [count, rows, columns];
        if self.precision == Precision::AsStored {
            let weight = self.dense(&name, &shape)?;
            if self.surveys() {
                return Ok(vec![placeholder()]);
            }
            return Ok(vec![on_device(&name, Matrix::dense(&weight))?]);
        }
        let Some((bytes, encoding)) = self.numbers(&name, &shape)? else { return Ok(Vec::new()) };
        let [outputs, inputs] = [rows, columns].map(|side| side.unsigned_abs() as usize);
        let each = bytes.len() / count.unsigned_abs() as usize;
        let dense = |bytes| Dense::new(dense_type(&encoding), outputs, inputs, bytes);
        let matrices = bytes.chunks_exact(each.max(1)).map(dense);
        Ok(matrices.map(|dense| Matrix::Cpu(CpuMatrix::Dense(dense))).collect())
    }

    pub(super) fn matrix(
        &mut self,
        module: &str,
        rows: i32,
        columns: i32,
    ) -> Result<Matrix, LoadError> {
        let name = format!("{module}.weight");
        if self.source.format == Format::Safetensors && self.has(&format!("{module}.scales")) {
            let mut one = self.affine_matrices(module, None, rows, columns)?;
            return Ok(one.pop().unwrap_or_else(placeholder));
        }
        let (shown, tensor) = self.find(&name);
        let shape = [rows, columns];
        let kind = match (tensor.map(|tensor| &tensor.encoding), self.precision) {
            (Some(Encoding::Block(kind)), _) => *kind,
            (_, Precision::AsStored) => {
                let weight = self.dense(&name, &shape)?;
                if self.surveys() {
                    return Ok(placeholder());
                }
                return on_device(&shown, Matrix::dense(&weight));
            }
            (_, Precision::F32) => {
                let Some((bytes, encoding)) = self.numbers(&name, &shape)? else {
                    return Ok(placeholder());
                };
                let [outputs, inputs] = shape.map(|side| side.unsigned_abs() as usize);
                let dense = Dense::new(dense_type(&encoding), outputs, inputs, &bytes);
                return Ok(Matrix::Cpu(CpuMatrix::Dense(dense)));
            }
        };
        let Some(bytes) = self.bytes(&name, &shape)? else { return Ok(placeholder()) };
        match self.precision {
            Precision::F32 => {
                let [outputs, inputs] = shape.map(|side| side.unsigned_abs() as usize);
                let packed = pack_blocks(kind, &bytes, outputs, inputs);
                Ok(Matrix::Cpu(CpuMatrix::Packed(packed)))
            }
            Precision::AsStored => {
                let (words, scales, biases) = blocks::repack(kind, &bytes);
                let groups = columns / BLOCK as i32;
                let affine = Affine { bits: kind.bits(), group_size: BLOCK as i32 };
                let numbers = |halves: &[half::f16]| {
                    Array::from_slice(halves, &[rows, groups]).as_dtype(self.dtype)
                };
                let matrix = numbers(&scales).and_then(|scales| {
                    Ok(Matrix::Quantized {
                        weight: Array::from_slice(&words, &[rows, columns * affine.bits / 32]),
                        scales: settled(scales)?,
                        biases: settled(numbers(&biases)?)?,
                        affine,
                    })
                });
                on_device(&shown, matrix)
            }
        }
    }

    /// A matrix that mlx_lm quantized: three tensors. Or `count` of them in the same three.
    pub(super) fn affine_matrices(
        &mut self,
        module: &str,
        count: Option<i32>,
        rows: i32,
        columns: i32,
    ) -> Result<Vec<Matrix>, LoadError> {
        let config = |what: String| LoadError::Config { path: self.source.path.clone(), what };
        let Some(affine) = self.quantization.of(module) else {
            return Err(config(format!("{module} is quantized, config.json does not say how")));
        };
        let size = affine.group_size;
        if columns % size != 0 {
            return Err(config(format!("{module} has {columns} inputs in groups of {size}")));
        }
        // The shapes below are what the configuration calls for; a wrong `bits` shows there.
        let words = i64::from(columns) * i64::from(affine.bits) / 32;
        let shape =
            |columns: i32| -> Vec<i32> { count.into_iter().chain([rows, columns]).collect() };
        let words = shape(i32::try_from(words).unwrap_or(i32::MAX));
        let groups = shape(columns / size);
        let [weight, scales, biases] =
            ["weight", "scales", "biases"].map(|part| format!("{module}.{part}"));
        if self.precision == Precision::AsStored {
            let weight = self.typed(&weight, &words, Dtype::Uint32)?;
            let (scales, biases) = (self.dense(&scales, &groups)?, self.dense(&biases, &groups)?);
            return Ok(vec![Matrix::Quantized { weight, scales, biases, affine }]);
        }
        let weight = self.stored(&weight, &words, true)?;
        let (scales, biases) = (self.numbers(&scales, &groups)?, self.numbers(&biases, &groups)?);
        let (Some((weight, _)), Some(scales), Some(biases)) = (weight, scales, biases) else {
            return Ok(Vec::new());
        };
        let [outputs, inputs] = [rows, columns].map(|side| side.unsigned_abs() as usize);
        let count = count.unwrap_or(1).unsigned_abs() as usize;
        let part = |bytes: &'_ [u8], number: usize| {
            let each = bytes.len() / count;
            number * each..(number + 1) * each
        };
        let matrix = |number: usize| {
            let scales = (&scales.0[part(&scales.0, number)], &scales.1);
            let biases = (&biases.0[part(&biases.0, number)], &biases.1);
            let words = &weight[part(&weight, number)];
            let packed = pack_affine(affine, words, scales, biases, outputs, inputs);
            Matrix::Cpu(CpuMatrix::Packed(packed))
        };
        Ok((0..count).map(matrix).collect())
    }
}

/// Several matrices as one of `[count, outputs, inputs]`. Parts of several types are refused by MLX.
pub(super) fn stack(matrices: &[Matrix]) -> Result<Matrix, Exception> {
    let mut parts: [Vec<&Array>; 3] = [const { Vec::new() }; 3];
    let mut setting = None;
    for matrix in matrices {
        match matrix {
            Matrix::Cpu(_) => return Err(Exception::custom("a matrix on the host")),
            Matrix::Dense { transposed } => parts[0].push(transposed),
            Matrix::Quantized { weight, scales, biases, affine } => {
                parts[0].push(weight);
                parts[1].push(scales);
                parts[2].push(biases);
                setting = Some(*affine);
            }
        }
    }
    let one = |parts: &[&Array]| ops::stack(parts, 0).and_then(settled);
    let weight = one(&parts[0])?;
    Ok(match setting {
        None => Matrix::Dense { transposed: weight },
        Some(affine) => {
            Matrix::Quantized { weight, scales: one(&parts[1])?, biases: one(&parts[2])?, affine }
        }
    })
}

/// Stands in for a matrix while surveying. Nothing computes with it.
pub(super) fn placeholder() -> Matrix {
    Matrix::Cpu(CpuMatrix::Dense(Dense::new(DenseType::F32, 0, 0, &[])))
}
