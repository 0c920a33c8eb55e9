//! Model files: what they say of themselves, and their tensors' bytes.
//!
//! Both formats are read by our own few lines rather than MLX's loaders. A header must be known
//! before the weights are touched (`inspect`, shape errors that list everything, progress), a
//! hostile file must end in an error rather than in a C library's `exit`, and on the CPU quantized
//! blocks go straight to f32.
//!
//! # Invariants
//!
//! - Every tensor in a [`Checkpoint`] lies inside its file and has as many bytes as its shape and
//!   encoding call for.
//! - Nothing is allocated by a length that a file claims before the file is known to be that long.

pub(crate) mod blocks;
mod eos;
pub(crate) mod gguf;
mod json;
pub(crate) mod safetensors;
mod special_tokens;
pub(crate) mod text;

pub(crate) use text::sampling;

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use interlock_model_files::{ModelFiles, TextParts, recognize};
use mlx_rs::Dtype;
use serde_json::{Map, Value};

use crate::error::LoadError;
use crate::leftover::Leftover;

/// A model's files, opened and understood, with no weight read yet.
pub(crate) struct ModelSource {
    pub(crate) path: PathBuf,
    pub(crate) format: Format,
    /// `config.json`, or GGUF metadata in its terms.
    pub(crate) config: Map<String, Value>,
    pub(crate) checkpoint: Checkpoint,
    pub(crate) text: TextParts,
    pub(crate) name: Option<String>,
    /// What the files have beyond that, and nothing reads: metadata that `config` has no word for.
    pub(crate) leftovers: Vec<Leftover>,
}

/// The format of a model's files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// One `.gguf` file with everything in it.
    Gguf,
    /// A folder in Hugging Face's layout.
    Safetensors,
}

/// Tensors by name, and the files that hold them.
pub(crate) struct Checkpoint {
    files: Vec<(PathBuf, File)>,
    pub(crate) tensors: BTreeMap<String, StoredTensor>,
}

/// The place of a tensor in its file, its shape and its encoding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StoredTensor {
    file: usize,
    offset: u64,
    pub(crate) bytes: u64,
    pub(crate) shape: Vec<i32>,
    pub(crate) encoding: Encoding,
}

/// The type in which a file stores a tensor's numbers.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Encoding {
    F32,
    F16,
    Bf16,
    /// MLX's packed quantized weights.
    U32,
    Block(blocks::BlockType),
    /// A type that is not read, by its name or number.
    Other(String),
}

impl Encoding {
    pub(crate) fn name(&self) -> &str {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::Bf16 => "BF16",
            Self::U32 => "U32",
            Self::Block(kind) => kind.name(),
            Self::Other(name) => name,
        }
    }

    /// MLX's type for it, if it has one.
    pub(crate) fn dtype(&self) -> Option<Dtype> {
        match self {
            Self::F32 => Some(Dtype::Float32),
            Self::F16 => Some(Dtype::Float16),
            Self::Bf16 => Some(Dtype::Bfloat16),
            Self::U32 => Some(Dtype::Uint32),
            Self::Block(_) | Self::Other(_) => None,
        }
    }
}

impl StoredTensor {
    /// The number of elements; a packed word is one.
    pub(crate) fn elements(&self) -> u64 {
        self.shape.iter().map(|&side| u64::from(side.unsigned_abs())).product()
    }
}

impl ModelSource {
    /// Opens a GGUF file or a model folder and reads all but the weights.
    pub(crate) fn open(path: &Path) -> Result<Self, LoadError> {
        match recognize(path)? {
            ModelFiles::Gguf(path) => gguf::open(&path),
            ModelFiles::Folder { path, weights } => safetensors::open(&path, weights),
        }
    }
}

impl Checkpoint {
    /// A tensor's bytes, from disk.
    pub(crate) fn read(&self, tensor: &StoredTensor) -> Result<Vec<u8>, LoadError> {
        let (path, file) = &self.files[tensor.file];
        // It was checked when the header was read that the file is this long.
        let length = usize::try_from(tensor.bytes).map_err(|_| LoadError::Damaged {
            path: path.clone(),
            what: format!("a tensor of {} bytes does not fit this machine", tensor.bytes),
        })?;
        let mut bytes = vec![0; length];
        file.read_exact_at(&mut bytes, tensor.offset)
            .map_err(|cause| LoadError::Read { path: path.clone(), cause })?;
        Ok(bytes)
    }

    /// Whether two tensors hold the same numbers as far as a look at three places tells: matrices
    /// that were trained apart differ everywhere.
    pub(crate) fn look_alike(
        &self,
        one: &StoredTensor,
        other: &StoredTensor,
    ) -> Result<bool, LoadError> {
        const PIECE: u64 = 4096;
        if (&one.shape, &one.encoding, one.bytes) != (&other.shape, &other.encoding, other.bytes) {
            return Ok(false);
        }
        let bytes = one.bytes.min(PIECE);
        let last = one.bytes - bytes;
        for from in [0, last / 2, last] {
            let piece = |of: &StoredTensor| {
                self.read(&StoredTensor { offset: of.offset + from, bytes, ..of.clone() })
            };
            if piece(one)? != piece(other)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Bytes of all files together.
    pub(crate) fn file_bytes(&self) -> u64 {
        self.files.iter().filter_map(|(_, file)| file.metadata().ok()).map(|file| file.len()).sum()
    }

    pub(crate) fn file_names(&self) -> Vec<String> {
        let name = |path: &PathBuf| Some(path.file_name()?.to_string_lossy().into_owned());
        self.files.iter().filter_map(|(path, _)| name(path)).collect()
    }
}

/// The shape in MLX's i32s; the error says which side or size is beyond the limits.
fn shape(dimensions: impl IntoIterator<Item = u64>) -> Result<Vec<i32>, String> {
    let shape: Vec<i32> = dimensions
        .into_iter()
        .map(|side| i32::try_from(side).map_err(|_| format!("a side of {side} elements")))
        .collect::<Result<_, _>>()?;
    let elements = shape
        .iter()
        .try_fold(1_u64, |product, &side| product.checked_mul(u64::from(side.unsigned_abs())));
    match elements {
        Some(elements) if elements <= 1 << 48 => Ok(shape),
        _ => Err(format!("a shape of {shape:?}")),
    }
}
