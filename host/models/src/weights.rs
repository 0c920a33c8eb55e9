//! Hands a family its weights, checked.
//!
//! A family is built twice by the same code. The first time, the survey, reads no weights and does
//! not touch MLX: every tensor the family asks for is compared with the files, whatever is missing
//! or misshapen is noted, and so is every tensor that it did not ask for. Only if nothing is wrong,
//! the second time reads. So an error lists all that is wrong, and a family lists its tensors once,
//! where it uses them.
//!
//! Matrices stay as they are stored, packed or in 16 bits; on the CPU in our own layout
//! ([`crate::cpu`]), which is then the only copy. Vectors and activations are f32 on the CPU and of
//! the checkpoint's own type on a GPU.

use std::collections::BTreeSet;

use half::{bf16, f16};
use mlx_rs::error::Exception;
use mlx_rs::{Array, Dtype, ops};

use crate::cpu::dots::{self, Dense};
use crate::cpu::packed::{self, Packed};
use crate::cpu::products;
use crate::error::{LoadError, Problem, Problems};
use crate::experts::{Mlp, Mlps};
use crate::leftover::{self, Leftover};
use crate::linear::{Embedding, Linear, Matrix};
use crate::norm::{Norm, Vector};
use crate::quantization::{Affine, Quantization};
use crate::source::blocks::{self, BLOCK, Kind};
use crate::source::{Encoding, Format, Source, Tensor, gguf};

/// What a family computes in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Precision {
    /// f32, in our own memory: on the CPU.
    Wide,
    /// The files' own type, in MLX's arrays.
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
    Survey(Survey),
    Read { done: u64, all: u64, progress: &'a mut dyn FnMut(f32) },
}

/// What a family asks of the files.
#[derive(Debug, Default)]
pub(crate) struct Survey {
    problems: Vec<Problem>,
    taken: BTreeSet<String>,
    /// What the files have and the family does not ask for.
    pub(crate) leftovers: Vec<Leftover>,
    bytes: u64,
}

/// Calls `build` with weights that check.
///
/// # Errors
///
/// All that is missing or misshapen.
pub(crate) fn survey<M>(
    source: &Source,
    build: impl FnOnce(&mut Weights<'_>) -> Result<M, LoadError>,
) -> Result<Survey, LoadError> {
    let (quantization, leftovers) = quantization(source)?;
    let survey = Survey { leftovers, ..Survey::default() };
    // As on the CPU, where nothing but reading needs MLX. What is asked for is the same.
    let (precision, dtype) = (Precision::Wide, Dtype::Float32);
    let mut weights =
        Weights { source, quantization, precision, dtype, stage: Stage::Survey(survey) };
    build(&mut weights)?;
    let Stage::Survey(mut survey) = weights.stage else {
        unreachable!("a survey stays one");
    };
    if !survey.problems.is_empty() {
        let problems = Problems(survey.problems);
        return Err(LoadError::Weights { path: source.path.clone(), problems });
    }
    let left = source.checkpoint.tensors.keys().filter(|name| !survey.taken.contains(*name));
    survey.leftovers.extend(left.filter(|name| !leftover::is_derived(name)).map(|name| {
        let tensor = name.clone();
        match leftover::is_inside(name) {
            true => Leftover::Inside { tensor },
            false => Leftover::Tensor { tensor },
        }
    }));
    Ok(survey)
}

/// Calls `build` with weights that read, after a survey found nothing wrong.
pub(crate) fn build<M>(
    source: &Source,
    survey: &Survey,
    precision: Precision,
    progress: &mut dyn FnMut(f32),
    build: impl FnOnce(&mut Weights<'_>) -> Result<M, LoadError>,
) -> Result<M, LoadError> {
    let (quantization, _) = quantization(source)?;
    let dtype = compute_type(source, precision);
    let stage = Stage::Read { done: 0, all: survey.bytes.max(1), progress };
    build(&mut Weights { source, quantization, precision, dtype, stage })
}

fn quantization(source: &Source) -> Result<(Quantization, Vec<Leftover>), LoadError> {
    Quantization::read(&source.config).map_err(|what| LoadError::Unsupported {
        path: source.path.clone(),
        what,
        supported: "MLX's affine quantization with 2, 3, 4, 5, 6 or 8 bits",
    })
}

/// The type in which a family computes: f32 on the CPU, else that of the checkpoint's embedding, or
/// of the scales if it is packed.
pub(crate) fn compute_type(source: &Source, precision: Precision) -> Dtype {
    if precision == Precision::Wide {
        return Dtype::Float32;
    }
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
    /// Something in the configuration that we do not have.
    pub(crate) fn unsupported(&self, what: String) -> LoadError {
        let supported = crate::rope::SUPPORTED;
        LoadError::Unsupported { path: self.source.path.clone(), what, supported }
    }

    /// Whether this is the first time, when nothing is read.
    fn surveys(&self) -> bool {
        matches!(self.stage, Stage::Survey(_))
    }

    /// Whether the files have a tensor.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.find(name).1.is_some()
    }

    /// A vector, such as a bias.
    fn vector(&mut self, name: &str, length: i32) -> Result<Vector, LoadError> {
        match self.precision {
            Precision::Kept => self.dense(name, &[length]).map(Vector::Device),
            Precision::Wide => {
                let Some((bytes, encoding)) = self.numbers(name, &[length])? else {
                    return Ok(Vector::Host(Vec::new()));
                };
                Ok(Vector::Host(widen(&bytes, &encoding)))
            }
        }
    }

    /// An RMS norm of as many numbers.
    pub(crate) fn norm(&mut self, module: &str, length: i32, eps: f32) -> Result<Norm, LoadError> {
        Ok(Norm { weight: self.vector(&format!("{module}.weight"), length)?, eps })
    }

    /// Whether a GGUF file has a bias for a module: it has no key that says so. False for a folder,
    /// whose `config.json` says it.
    pub(crate) fn gguf_has_bias(&self, module: &str) -> bool {
        self.source.format == Format::Gguf && self.has(&format!("{module}.bias"))
    }

    /// GGUF's divisors of a rotation's frequencies, if the file has them; in the survey too, since
    /// what is wrong with them is to be known then.
    pub(crate) fn rope_divisors(&mut self, length: i32) -> Result<Option<Vec<f32>>, LoadError> {
        let name = "rope_freqs.weight";
        let source = self.source;
        let Some(tensor) = source.checkpoint.tensors.get(name) else { return Ok(None) };
        if source.format != Format::Gguf {
            return Ok(None);
        }
        self.took(name);
        let tensor_name = name.to_owned();
        if tensor.encoding != Encoding::F32 {
            let found = tensor.encoding.name().to_owned();
            self.note(Problem::Encoding { tensor: tensor_name, found });
        } else if tensor.shape != [length] {
            let (expected, found) = (vec![length], tensor.shape.clone());
            self.note(Problem::Shape { tensor: tensor_name, expected, found });
        } else {
            let bytes = source.checkpoint.read(tensor)?;
            let numbers = bytes.as_chunks::<4>().0.iter().map(|&four| f32::from_le_bytes(four));
            return Ok(Some(numbers.collect()));
        }
        Ok(None)
    }

    /// The head, or none where the embedding is the head too: `tie` says so, or if nobody does,
    /// that the files have no head.
    ///
    /// Files that have one although they say that it is the embedding have it twice. If the two
    /// differ, either the key is wrong or the tensor, and with it the model.
    pub(crate) fn head(
        &mut self,
        tie: Option<bool>,
        hidden: i32,
        vocabulary: i32,
    ) -> Result<Option<Linear>, LoadError> {
        if !tie.unwrap_or_else(|| !self.has("lm_head.weight")) {
            return self.linear("lm_head", hidden, vocabulary, false).map(Some);
        }
        for part in ["weight", "scales", "biases"] {
            let name = format!("lm_head.{part}");
            let (shown, Some(head)) = self.find(&name) else { continue };
            self.took(&shown);
            let (_, embedding) = self.find(&format!("model.embed_tokens.{part}"));
            let alike = match embedding {
                Some(embedding) => self.source.checkpoint.look_alike(head, embedding)?,
                None => false,
            };
            if !alike && let Stage::Survey(survey) = &mut self.stage {
                let computed = format!("but {shown} differs from the embedding");
                let (key, value) = ("tie_word_embeddings", serde_json::Value::Bool(true));
                survey.leftovers.push(Leftover::differs(key, &value, computed));
            }
        }
        Ok(None)
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

    /// The gated MLPs of a mixture, `{module}.{part}.weight` of `[experts, outputs, inputs]` as
    /// mlx_lm stores them, or `{apart}.{expert}.{part}.weight` as Hugging Face has them.
    pub(crate) fn mlps(
        &mut self,
        module: &str,
        apart: &str,
        experts: i32,
        [hidden, intermediate]: [i32; 2],
    ) -> Result<Mlps, LoadError> {
        let parts = [
            ("gate_proj", intermediate, hidden),
            ("up_proj", intermediate, hidden),
            ("down_proj", hidden, intermediate),
        ];
        let stacked = self.has(&format!("{module}.gate_proj.weight"));
        let mut all = Vec::new();
        for (part, rows, columns) in parts {
            let mut each = Vec::new();
            if stacked {
                each.extend(self.stack(&format!("{module}.{part}"), experts, rows, columns)?);
            } else {
                for expert in 0..experts {
                    each.push(self.matrix(&format!("{apart}.{expert}.{part}"), rows, columns)?);
                }
                if self.precision == Precision::Kept && !self.surveys() {
                    each = vec![on_device(module, stack(&each))?];
                }
            }
            all.push(each.into_iter());
        }
        let linear = |weight: Matrix| Linear { weight, bias: None };
        let (Some(downs), Some(ups), Some(gates)) = (all.pop(), all.pop(), all.pop()) else {
            unreachable!("there are three parts");
        };
        if self.precision == Precision::Kept {
            let mut first = gates.chain(ups).chain(downs);
            let mut next = || first.next().unwrap_or_else(placeholder);
            return Ok(Mlps::Device { gate: next(), up: next(), down: next() });
        }
        let mlps = gates.zip(ups).zip(downs).map(|((gate, up), down)| Mlp {
            gate: linear(gate),
            up: linear(up),
            down: linear(down),
        });
        Ok(Mlps::Host(mlps.collect()))
    }

    /// Matrices that lie in one tensor: each alone on the CPU, the tensor as one on a GPU.
    fn stack(
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
        if self.precision == Precision::Kept {
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
        Ok(matrices.map(|dense| Matrix::Host(products::Matrix::Dense(dense))).collect())
    }

    fn matrix(&mut self, module: &str, rows: i32, columns: i32) -> Result<Matrix, LoadError> {
        let name = format!("{module}.weight");
        if self.source.format == Format::Safetensors && self.has(&format!("{module}.scales")) {
            let mut one = self.affine_matrices(module, None, rows, columns)?;
            return Ok(one.pop().unwrap_or_else(placeholder));
        }
        let (shown, tensor) = self.find(&name);
        let shape = [rows, columns];
        let kind = match (tensor.map(|tensor| &tensor.encoding), self.precision) {
            (Some(Encoding::Block(kind)), _) => *kind,
            (_, Precision::Kept) => {
                let weight = self.dense(&name, &shape)?;
                if self.surveys() {
                    return Ok(placeholder());
                }
                return on_device(&shown, Matrix::dense(&weight));
            }
            (_, Precision::Wide) => {
                let Some((bytes, encoding)) = self.numbers(&name, &shape)? else {
                    return Ok(placeholder());
                };
                let [outputs, inputs] = shape.map(|side| side.unsigned_abs() as usize);
                let dense = Dense::new(dense_type(&encoding), outputs, inputs, &bytes);
                return Ok(Matrix::Host(products::Matrix::Dense(dense)));
            }
        };
        let Some(bytes) = self.bytes(&name, &shape)? else { return Ok(placeholder()) };
        match self.precision {
            Precision::Wide => {
                let [outputs, inputs] = shape.map(|side| side.unsigned_abs() as usize);
                let packed = pack_blocks(kind, &bytes, outputs, inputs);
                Ok(Matrix::Host(products::Matrix::Packed(packed)))
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

    /// A matrix that mlx_lm quantized: three tensors. Or `count` of them in the same three.
    fn affine_matrices(
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
        if self.precision == Precision::Kept {
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
            Matrix::Host(products::Matrix::Packed(packed))
        };
        Ok((0..count).map(matrix).collect())
    }

    /// The bytes of a tensor of floating-point numbers and how they are stored; none while
    /// surveying.
    fn numbers(
        &mut self,
        name: &str,
        shape: &[i32],
    ) -> Result<Option<(Vec<u8>, Encoding)>, LoadError> {
        self.stored(name, shape, false)
    }

    fn stored(
        &mut self,
        name: &str,
        shape: &[i32],
        words: bool,
    ) -> Result<Option<(Vec<u8>, Encoding)>, LoadError> {
        let Some((_, encoding)) = self.fitting(name, words) else { return Ok(None) };
        Ok(self.bytes(name, shape)?.map(|bytes| (bytes, encoding)))
    }

    /// The type in which a tensor is stored, if it holds numbers, or packed words, as wanted; what
    /// is wrong is noted.
    fn fitting(&mut self, name: &str, words: bool) -> Option<(Dtype, Encoding)> {
        let (shown, tensor) = self.find(name);
        let Some(tensor) = tensor else {
            self.note(Problem::Missing { tensor: shown });
            return None;
        };
        let stored = tensor.encoding.dtype();
        // Packed words are no numbers, and numbers no packed words.
        match stored.filter(|stored| (*stored == Dtype::Uint32) == words) {
            Some(dtype) => Some((dtype, tensor.encoding.clone())),
            None => {
                let found = tensor.encoding.name().to_owned();
                self.note(Problem::Encoding { tensor: shown, found });
                None
            }
        }
    }

    /// A tensor of floating-point numbers, in the type we compute in.
    fn dense(&mut self, name: &str, shape: &[i32]) -> Result<Array, LoadError> {
        self.typed(name, shape, self.dtype)
    }

    fn typed(&mut self, name: &str, shape: &[i32], dtype: Dtype) -> Result<Array, LoadError> {
        let (shown, _) = self.find(name);
        let Some((stored, _)) = self.fitting(name, dtype == Dtype::Uint32) else {
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
            Stage::Survey(survey) => {
                survey.bytes += tensor.bytes;
                survey.taken.insert(shown.clone());
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
        if let Stage::Survey(survey) = &mut self.stage {
            survey.problems.push(problem);
        }
    }

    /// A tensor of the files is used.
    fn took(&mut self, shown: &str) {
        if let Stage::Survey(survey) = &mut self.stage {
            survey.taken.insert(shown.to_owned());
        }
    }
}

/// Numbers as f32. `Weights::fitting` has seen that they are numbers.
fn widen(bytes: &[u8], encoding: &Encoding) -> Vec<f32> {
    let two = bytes.as_chunks::<2>().0.iter();
    match encoding {
        Encoding::F16 => two.map(|two| f16::from_le_bytes(*two).to_f32()).collect(),
        Encoding::Bf16 => two.map(|two| bf16::from_le_bytes(*two).to_f32()).collect(),
        _ => bytes.as_chunks::<4>().0.iter().map(|four| f32::from_le_bytes(*four)).collect(),
    }
}

fn dense_type(encoding: &Encoding) -> dots::Stored {
    match encoding {
        Encoding::F16 => dots::Stored::F16,
        Encoding::Bf16 => dots::Stored::Bf16,
        _ => dots::Stored::F32,
    }
}

/// GGUF's blocks in our layout.
fn pack_blocks(kind: Kind, bytes: &[u8], outputs: usize, inputs: usize) -> Packed {
    let (size, blocks) = (kind.bytes(), inputs / BLOCK);
    let (mut scales, mut biases) = (Vec::new(), Vec::new());
    for block in bytes.chunks_exact(size) {
        let (scale, bias) = kind.affine(block);
        scales.extend(scale.to_le_bytes());
        biases.extend(bias.to_le_bytes());
    }
    let bits = if kind.bits() == 4 { packed::Bits::Four } else { packed::Bits::Eight };
    let affine = packed::Affine {
        outputs,
        inputs,
        group: BLOCK,
        codes: &|output, number, codes| {
            kind.codes(&bytes[(output * blocks + number) * size..][..size], codes);
        },
        scales: &scales,
        biases: &biases,
    };
    Packed::new(packed::Stored { bits, scales: packed::Scales::F16 }, &affine)
}

/// MLX's codes in our layout: those of 2 and 3 bits as 4, those of 5 and 6 as 8.
fn pack_affine(
    affine: Affine,
    words: &[u8],
    (scales, scale_type): (&[u8], &Encoding),
    (biases, bias_type): (&[u8], &Encoding),
    outputs: usize,
    inputs: usize,
) -> Packed {
    let own = match scale_type {
        Encoding::F16 => packed::Scales::F16,
        Encoding::Bf16 => packed::Scales::Bf16,
        _ => packed::Scales::F32,
    };
    let wide;
    let (kind, scales, biases) = if scale_type == bias_type {
        (own, scales, biases)
    } else {
        wide = [(scales, scale_type), (biases, bias_type)].map(|(bytes, encoding)| {
            widen(bytes, encoding).into_iter().flat_map(f32::to_le_bytes).collect::<Vec<u8>>()
        });
        (packed::Scales::F32, &wide[0][..], &wide[1][..])
    };
    // A row is a string of bits, lowest first; each code takes the next few.
    let each = affine.bits.unsigned_abs() as usize;
    let row_bytes = inputs * each / 8;
    let codes = |output: usize, number: usize, codes: &mut [u8]| {
        let row = &words[output * row_bytes..][..row_bytes];
        for (i, code) in codes.iter_mut().enumerate() {
            let bit = (number * BLOCK + i) * each;
            let next = row.get(bit / 8 + 1).copied().unwrap_or(0);
            let both = u16::from_le_bytes([row[bit / 8], next]);
            *code = (both >> (bit % 8)) as u8 & u8::MAX >> (8 - each);
        }
    };
    let bits = if each <= 4 { packed::Bits::Four } else { packed::Bits::Eight };
    let affine = packed::Affine {
        outputs,
        inputs,
        group: affine.group_size.unsigned_abs() as usize,
        codes: &codes,
        scales,
        biases,
    };
    Packed::new(packed::Stored { bits, scales: kind }, &affine)
}

/// Several matrices as one of `[count, outputs, inputs]`. Parts of several types are refused by MLX.
fn stack(matrices: &[Matrix]) -> Result<Matrix, Exception> {
    let mut parts: [Vec<&Array>; 3] = [const { Vec::new() }; 3];
    let mut setting = None;
    for matrix in matrices {
        match matrix {
            Matrix::Host(_) => return Err(Exception::custom("a matrix on the host")),
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
fn placeholder() -> Matrix {
    Matrix::Host(products::Matrix::Dense(Dense::new(dots::Stored::F32, 0, 0, &[])))
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

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::path::Path;

    use super::*;
    use crate::families::Config;

    #[test]
    fn an_error_while_the_divisors_are_read_is_an_error_and_no_model_without_them() {
        let kept = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../../tests/golden/data/gguf-llama-f32/model.gguf");
        let path = std::env::temp_dir().join(format!("interlock-cut-{}.gguf", std::process::id()));
        fs::copy(kept, &path).unwrap();
        let source = Source::open(&path).unwrap();
        let Ok((config, _)) = Config::read(&source.config) else { panic!("it is ours") };
        let surveyed = || survey(&source, |weights| config.load(weights));
        assert!(surveyed().is_ok());
        // What a disk does that fails after the header was read.
        File::options().write(true).open(&path).unwrap().set_len(100).unwrap();
        let error = surveyed().err();
        fs::remove_file(&path).unwrap();
        assert!(matches!(error, Some(LoadError::Read { .. })), "{error:?}");
    }
}
