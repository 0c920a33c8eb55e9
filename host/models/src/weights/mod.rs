//! Loads the weights of an architecture from a model's files, after it has checked all of them.
//!
//! An architecture is built twice by the same code. The first time is the survey, which reads no
//! weights and does not touch MLX: it compares every tensor that the architecture asks for with the
//! files, and notes what is missing or misshapen and which tensors were not asked for. Weights are
//! read the second time, if nothing was wrong. So an error lists all that is wrong, and an
//! architecture lists its tensors once, where it uses them.
//!
//! Matrices stay as they are stored, packed or in 16 bits; on the CPU in our own layout
//! ([`crate::cpu`]), which is then the only copy. Vectors and activations are f32 on the CPU and of
//! the checkpoint's own type on a GPU.

mod matrices;
mod pack;
mod read;

use std::collections::BTreeSet;

use mlx_rs::error::Exception;
use mlx_rs::{Array, Dtype};

use crate::error::{LoadError, TensorProblem, TensorProblems};
use crate::leftover::{self, Leftover};
use crate::linear::{Embedding, Linear, Matrix};
use crate::mixture::{Expert, ExpertMlps};
use crate::norm::{Norm, Vector};
use crate::quantization::Quantization;
use crate::source::{Encoding, Format, ModelSource};
use matrices::{placeholder, stack};
use pack::widen;

/// The type in which an architecture computes, and what computes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Precision {
    /// f32, by this crate's own kernels on the CPU.
    F32,
    /// The type that the files store, in MLX arrays.
    AsStored,
}

/// Gives an architecture its weights, by Hugging Face's names. While surveying, what it gives are
/// placeholders.
pub(crate) struct WeightLoader<'a> {
    source: &'a ModelSource,
    quantization: Quantization,
    precision: Precision,
    dtype: Dtype,
    stage: LoadStage<'a>,
}

enum LoadStage<'a> {
    Survey(Survey),
    Read { done: u64, all: u64, progress: &'a mut dyn FnMut(f32) },
}

/// What a survey found: the tensors that an architecture asks for, and what is wrong with them.
#[derive(Debug, Default)]
pub(crate) struct Survey {
    problems: Vec<TensorProblem>,
    taken: BTreeSet<String>,
    /// What the files have and the architecture does not ask for.
    pub(crate) leftovers: Vec<Leftover>,
    bytes: u64,
}

/// Calls `build` with weights that check.
///
/// # Errors
///
/// All that is missing or misshapen.
pub(crate) fn survey<M>(
    source: &ModelSource,
    build: impl FnOnce(&mut WeightLoader<'_>) -> Result<M, LoadError>,
) -> Result<Survey, LoadError> {
    let (quantization, leftovers) = quantization(source)?;
    let survey = Survey { leftovers, ..Survey::default() };
    // As on the CPU, where nothing but reading needs MLX. What is asked for is the same.
    let (precision, dtype) = (Precision::F32, Dtype::Float32);
    let mut weights =
        WeightLoader { source, quantization, precision, dtype, stage: LoadStage::Survey(survey) };
    build(&mut weights)?;
    let LoadStage::Survey(mut survey) = weights.stage else {
        unreachable!("a survey stays one");
    };
    if !survey.problems.is_empty() {
        let problems = TensorProblems(survey.problems);
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
    source: &ModelSource,
    survey: &Survey,
    precision: Precision,
    progress: &mut dyn FnMut(f32),
    build: impl FnOnce(&mut WeightLoader<'_>) -> Result<M, LoadError>,
) -> Result<M, LoadError> {
    let (quantization, _) = quantization(source)?;
    let dtype = compute_type(source, precision);
    let stage = LoadStage::Read { done: 0, all: survey.bytes.max(1), progress };
    build(&mut WeightLoader { source, quantization, precision, dtype, stage })
}

fn quantization(source: &ModelSource) -> Result<(Quantization, Vec<Leftover>), LoadError> {
    Quantization::read(&source.config).map_err(|what| LoadError::Unsupported {
        path: source.path.clone(),
        what,
        supported: "MLX's affine quantization with 2, 3, 4, 5, 6 or 8 bits",
    })
}

/// The type in which an architecture computes: f32 on the CPU, else that of the checkpoint's embedding, or
/// of the scales if it is packed.
pub(crate) fn compute_type(source: &ModelSource, precision: Precision) -> Dtype {
    if precision == Precision::F32 {
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

impl<'a> WeightLoader<'a> {
    /// The error for a rotary embedding that is not supported.
    pub(crate) fn unsupported(&self, what: String) -> LoadError {
        let supported = crate::rope::SUPPORTED;
        LoadError::Unsupported { path: self.source.path.clone(), what, supported }
    }

    /// Whether this is the survey, in which nothing is read.
    fn surveys(&self) -> bool {
        matches!(self.stage, LoadStage::Survey(_))
    }

    /// Whether the files have a tensor.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.find(name).1.is_some()
    }

    /// Reads a vector, such as a bias.
    fn vector(&mut self, name: &str, length: i32) -> Result<Vector, LoadError> {
        match self.precision {
            Precision::AsStored => self.dense(name, &[length]).map(Vector::Mlx),
            Precision::F32 => {
                let Some((bytes, encoding)) = self.numbers(name, &[length])? else {
                    return Ok(Vector::Cpu(Vec::new()));
                };
                Ok(Vector::Cpu(widen(&bytes, &encoding)))
            }
        }
    }

    /// Reads an RMS norm of `length` numbers.
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
            self.note(TensorProblem::Encoding { tensor: tensor_name, found });
        } else if tensor.shape != [length] {
            let (expected, found) = (vec![length], tensor.shape.clone());
            self.note(TensorProblem::Shape { tensor: tensor_name, expected, found });
        } else {
            let bytes = source.checkpoint.read(tensor)?;
            let numbers = bytes.as_chunks::<4>().0.iter().map(|&four| f32::from_le_bytes(four));
            return Ok(Some(numbers.collect()));
        }
        Ok(None)
    }

    /// Reads the output head, or returns none where the embedding is the head too: if `tie` says so,
    /// or if `tie` says nothing and the files have no head.
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
            if !alike && let LoadStage::Survey(survey) = &mut self.stage {
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
    ) -> Result<ExpertMlps, LoadError> {
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
                if self.precision == Precision::AsStored && !self.surveys() {
                    each = vec![on_device(module, stack(&each))?];
                }
            }
            all.push(each.into_iter());
        }
        let linear = |weight: Matrix| Linear { weight, bias: None };
        let (Some(downs), Some(ups), Some(gates)) = (all.pop(), all.pop(), all.pop()) else {
            unreachable!("there are three parts");
        };
        if self.precision == Precision::AsStored {
            let mut first = gates.chain(ups).chain(downs);
            let mut next = || first.next().unwrap_or_else(placeholder);
            return Ok(ExpertMlps::Mlx { gate: next(), up: next(), down: next() });
        }
        let mlps = gates.zip(ups).zip(downs).map(|((gate, up), down)| Expert {
            gate: linear(gate),
            up: linear(up),
            down: linear(down),
        });
        Ok(ExpertMlps::Cpu(mlps.collect()))
    }
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
    use crate::architectures::ArchitectureConfig;

    #[test]
    fn an_error_while_the_divisors_are_read_is_an_error_and_no_model_without_them() {
        let kept = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../../tests/golden/data/gguf-llama-f32/model.gguf");
        let path = std::env::temp_dir().join(format!("interlock-cut-{}.gguf", std::process::id()));
        fs::copy(kept, &path).unwrap();
        let source = ModelSource::open(&path).unwrap();
        let Ok((config, _)) = ArchitectureConfig::read(&source.config) else {
            panic!("it is ours")
        };
        let surveyed = || survey(&source, |weights| config.load(weights));
        assert!(surveyed().is_ok());
        // What a disk does that fails after the header was read.
        File::options().write(true).open(&path).unwrap().set_len(100).unwrap();
        let error = surveyed().err();
        fs::remove_file(&path).unwrap();
        assert!(matches!(error, Some(LoadError::Read { .. })), "{error:?}");
    }
}
