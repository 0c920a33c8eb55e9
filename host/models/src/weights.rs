//! Hands a family its weights, checked.
//!
//! A family is built twice by the same code. The first time nothing is read: every tensor it asks
//! for is compared with the files, and whatever is missing or misshapen is noted. Only if nothing
//! is, the second time reads. So an error lists all that is wrong, and a family lists its tensors
//! once, where it uses them.
//!
//! On the CPU everything becomes dense f32, because MLX's CPU backend multiplies quantized, f16 and
//! bf16 matrices without SIMD; on a GPU packed weights stay packed and the rest takes the
//! checkpoint's own type.

use mlx_rs::error::Exception;
use mlx_rs::{Array, Dtype, ops};

use crate::error::{LoadError, Problem, Problems};
use crate::linear::{Embedding, Linear, Matrix};
use crate::quantization::{Affine, Quantization};
use crate::source::blocks::{self, BLOCK};
use crate::source::{Encoding, Format, Source, Tensor, gguf};

/// What a family computes in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Precision {
    /// Dense f32.
    Wide,
    /// As in the files.
    Kept,
}

pub(crate) struct Weights<'a> {
    source: &'a Source,
    quantization: Quantization,
    precision: Precision,
    dtype: Dtype,
    stage: Stage<'a>,
}

enum Stage<'a> {
    Survey { problems: Vec<Problem>, bytes: u64 },
    Read { done: u64, all: u64, progress: &'a mut dyn FnMut(f32) },
}

/// Calls `build` with weights that check, then with weights that read.
pub(crate) fn build<M>(
    source: &Source,
    precision: Precision,
    progress: &mut dyn FnMut(f32),
    mut build: impl FnMut(&mut Weights<'_>) -> Result<M, LoadError>,
) -> Result<M, LoadError> {
    let quantization = || {
        Quantization::read(&source.config).map_err(|what| LoadError::Unsupported {
            path: source.path.clone(),
            what,
            supported: "MLX's affine quantization with 2, 3, 4, 5, 6 or 8 bits",
        })
    };
    let dtype = match precision {
        Precision::Wide => Dtype::Float32,
        Precision::Kept => compute_type(source),
    };
    let mut survey = Weights {
        source,
        quantization: quantization()?,
        precision,
        dtype,
        stage: Stage::Survey { problems: Vec::new(), bytes: 0 },
    };
    build(&mut survey)?;
    let Stage::Survey { problems, bytes } = survey.stage else {
        unreachable!("a survey stays one");
    };
    if !problems.is_empty() {
        let problems = Problems(problems);
        return Err(LoadError::Weights { path: source.path.clone(), problems });
    }
    build(&mut Weights {
        source,
        quantization: quantization()?,
        precision,
        dtype,
        stage: Stage::Read { done: 0, all: bytes.max(1), progress },
    })
}

/// The type of a checkpoint's activations: that of its embedding, or of the scales if it is packed.
fn compute_type(source: &Source) -> Dtype {
    let checkpoint = &source.checkpoint;
    let embedding = "model.embed_tokens";
    let tensor = match source.format {
        Format::Gguf => checkpoint.tensors.get("token_embd.weight"),
        Format::Safetensors => checkpoint
            .tensors
            .get(&format!("{embedding}.scales"))
            .or_else(|| checkpoint.tensors.get(&format!("{embedding}.weight"))),
    };
    match tensor.map(|tensor| &tensor.encoding) {
        Some(Encoding::F16 | Encoding::Block(_)) => Dtype::Float16,
        Some(Encoding::Bf16) => Dtype::Bfloat16,
        _ => Dtype::Float32,
    }
}

impl<'a> Weights<'a> {
    /// The type in which the family computes, and its cache is kept.
    pub(crate) fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// Something in the configuration that we do not have.
    pub(crate) fn unsupported(&self, what: String) -> LoadError {
        let supported = crate::rope::SUPPORTED;
        LoadError::Unsupported { path: self.source.path.clone(), what, supported }
    }

    /// Whether the files have a tensor.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.find(name).1.is_some()
    }

    /// A vector, such as a norm's weight.
    pub(crate) fn vector(&mut self, name: &str, length: i32) -> Result<Array, LoadError> {
        self.dense(name, &[length])
    }

    /// The numbers of a small vector, if the files have it; on the first reading too.
    pub(crate) fn optional_numbers(&mut self, name: &str, length: i32) -> Option<Vec<f32>> {
        let tensor = self.source.checkpoint.tensors.get(name)?;
        if tensor.encoding != Encoding::F32 || tensor.shape != [length] {
            let problem = Problem::Shape {
                tensor: name.to_owned(),
                expected: vec![length],
                found: tensor.shape.clone(),
            };
            self.note(problem);
            return None;
        }
        let bytes = self.source.checkpoint.read(tensor).ok()?;
        Some(bytes.as_chunks::<4>().0.iter().map(|&four| f32::from_le_bytes(four)).collect())
    }

    /// A matrix of `[outputs, inputs]`, with a vector to add if `bias`.
    pub(crate) fn linear(
        &mut self,
        module: &str,
        inputs: i32,
        outputs: i32,
        bias: bool,
    ) -> Result<Linear, LoadError> {
        let weight = self.matrix(module, outputs, inputs)?;
        let bias = if bias { Some(self.vector(&format!("{module}.bias"), outputs)?) } else { None };
        Ok(Linear { weight, bias })
    }

    /// A table of `[rows, columns]`.
    pub(crate) fn embedding(
        &mut self,
        module: &str,
        rows: i32,
        columns: i32,
    ) -> Result<Embedding, LoadError> {
        Ok(Embedding { weight: self.matrix(module, rows, columns)? })
    }

    fn matrix(&mut self, module: &str, rows: i32, columns: i32) -> Result<Matrix, LoadError> {
        let name = format!("{module}.weight");
        if self.source.format == Format::Safetensors && self.has(&format!("{module}.scales")) {
            return self.affine_matrix(module, rows, columns);
        }
        let (shown, tensor) = self.find(&name);
        let kind = match tensor.map(|tensor| &tensor.encoding) {
            Some(Encoding::Block(kind)) => *kind,
            _ => {
                let weight = self.dense(&name, &[rows, columns])?;
                return on_device(&shown, Matrix::dense(&weight));
            }
        };
        let Some(bytes) = self.bytes(&name, &[rows, columns])? else { return Ok(placeholder()) };
        match self.precision {
            Precision::Wide => {
                let numbers = blocks::widen(kind, &bytes);
                drop(bytes);
                let weight = Array::from_slice(&numbers, &[rows, columns]);
                on_device(&shown, Matrix::dense(&weight))
            }
            Precision::Kept => {
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

    /// A matrix that mlx_lm quantized: three tensors.
    fn affine_matrix(
        &mut self,
        module: &str,
        rows: i32,
        columns: i32,
    ) -> Result<Matrix, LoadError> {
        let Some(affine) = self.quantization.of(module) else {
            return Err(LoadError::Config {
                path: self.source.path.clone(),
                what: format!("{module} is quantized, config.json does not say how"),
            });
        };
        // The shapes below are what the configuration calls for; a wrong `bits` shows there.
        let packed = i64::from(columns) * i64::from(affine.bits) / 32;
        let packed = i32::try_from(packed).unwrap_or(i32::MAX);
        let groups = columns / affine.group_size;
        let weight = self.typed(&format!("{module}.weight"), &[rows, packed], Dtype::Uint32)?;
        let scales = self.dense(&format!("{module}.scales"), &[rows, groups])?;
        let biases = self.dense(&format!("{module}.biases"), &[rows, groups])?;
        if matches!(self.stage, Stage::Survey { .. }) {
            return Ok(placeholder());
        }
        let matrix = match self.precision {
            Precision::Kept => Ok(Matrix::Quantized { weight, scales, biases, affine }),
            Precision::Wide => {
                ops::dequantize(weight, scales, &biases, affine.group_size, affine.bits)
                    .and_then(settled)
                    .and_then(|weight| Matrix::dense(&weight))
            }
        };
        on_device(module, matrix)
    }

    /// A tensor of floating-point numbers, in the type we compute in.
    fn dense(&mut self, name: &str, shape: &[i32]) -> Result<Array, LoadError> {
        self.typed(name, shape, self.dtype)
    }

    fn typed(&mut self, name: &str, shape: &[i32], dtype: Dtype) -> Result<Array, LoadError> {
        let (shown, tensor) = self.find(name);
        let stored = tensor.and_then(|tensor| tensor.encoding.dtype());
        // Packed words are no numbers, and numbers no packed words.
        let fits = stored.filter(|stored| (*stored == Dtype::Uint32) == (dtype == Dtype::Uint32));
        let Some(stored) = fits else {
            if let Some(tensor) = tensor {
                let found = tensor.encoding.name().to_owned();
                self.note(Problem::Encoding { tensor: shown, found });
            } else {
                self.note(Problem::Missing { tensor: shown });
            }
            return Ok(Array::from_f32(0.0));
        };
        let Some(bytes) = self.bytes(name, shape)? else { return Ok(Array::from_f32(0.0)) };
        // SAFETY: `Checkpoint` checked that the bytes are as many as shape and type call for, and
        // `bytes` that the shape is this one. MLX copies them, byte by byte, so alignment does not
        // matter.
        let array = unsafe { Array::from_raw_data(bytes.as_ptr().cast(), shape, stored) };
        drop(bytes);
        let array =
            if stored == dtype { Ok(array) } else { array.as_dtype(dtype).and_then(settled) };
        on_device(&shown, array)
    }

    /// A tensor's bytes; none while surveying, when the tensor is checked and what is wrong noted.
    fn bytes(&mut self, name: &str, shape: &[i32]) -> Result<Option<Vec<u8>>, LoadError> {
        let (shown, Some(tensor)) = self.find(name) else {
            let (tensor, _) = self.find(name);
            self.note(Problem::Missing { tensor });
            return Ok(None);
        };
        match &mut self.stage {
            Stage::Survey { bytes, .. } => {
                *bytes += tensor.bytes;
                if tensor.shape != shape {
                    self.note(Problem::Shape {
                        tensor: shown,
                        expected: shape.to_vec(),
                        found: tensor.shape.clone(),
                    });
                }
                Ok(None)
            }
            Stage::Read { done, all, progress } => {
                let bytes = self.source.checkpoint.read(tensor)?;
                *done += tensor.bytes;
                progress((*done as f64 / *all as f64) as f32);
                Ok(Some(bytes))
            }
        }
    }

    /// A tensor by Hugging Face's name, and its name in the files.
    fn find(&self, name: &str) -> (String, Option<&'a Tensor>) {
        let shown = match self.source.format {
            Format::Gguf => gguf::rename(name).unwrap_or_else(|| name.to_owned()),
            Format::Safetensors => name.to_owned(),
        };
        let source = self.source;
        let tensor = source.checkpoint.tensors.get(&shown);
        (shown, tensor)
    }

    fn note(&mut self, problem: Problem) {
        if let Stage::Survey { problems, .. } = &mut self.stage {
            problems.push(problem);
        }
    }
}

/// Stands in for a matrix while surveying. Nothing computes with it.
fn placeholder() -> Matrix {
    Matrix::Dense { transposed: Array::from_f32(0.0) }
}

/// Computes an array now, so that what it was made from can go.
fn settled(array: Array) -> Result<Array, Exception> {
    array.eval()?;
    Ok(array)
}

fn on_device<T>(tensor: &str, result: Result<T, Exception>) -> Result<T, LoadError> {
    result.map_err(|error| LoadError::Device {
        tensor: tensor.to_owned(),
        what: error.what().to_owned(),
    })
}
