//! Why a model did not load.

use std::fmt;
use std::path::PathBuf;

use interlock_engine::PassFailed;
use interlock_model_files::NotAModel;

use crate::leftover::{Leftover, Leftovers};

/// Why a model could not be inspected or loaded. All are the files' fault or the disk's; trying
/// again without changing either does not help.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// A file cannot be read.
    #[error("cannot read {path}: {cause}")]
    Read {
        /// The path of the file.
        path: PathBuf,
        /// The system's error.
        cause: std::io::Error,
    },

    /// Neither a GGUF file nor the whole of a model folder.
    #[error(transparent)]
    NotAModel(#[from] NotAModel),

    /// A file is not what its name says, or is cut off.
    #[error("{path} is damaged: {what}")]
    Damaged {
        /// The path of the file.
        path: PathBuf,
        /// What is wrong, with the value found and the limit.
        what: String,
    },

    /// A well-formed model of a kind that this crate cannot run.
    #[error("{path}: {what} is not supported; supported are {supported}")]
    Unsupported {
        /// The file or folder.
        path: PathBuf,
        /// The part that is not supported, with its value.
        what: String,
        /// What is supported.
        supported: &'static str,
    },

    /// The configuration lacks something, or contradicts itself.
    #[error("{path}: {what}")]
    Config {
        /// The path of the file.
        path: PathBuf,
        /// The key, the value found and what is wrong with it.
        what: String,
    },

    /// The files have keys or tensors that nothing here uses and that may change what is computed.
    #[error("{path}: {leftovers}{}", LeftoversHint(leftovers))]
    Leftovers {
        /// The file or folder.
        path: PathBuf,
        /// The keys, tensors and files that nothing uses.
        leftovers: Leftovers,
    },

    /// The memory for keys and values does not hold one sequence of use.
    #[error(
        "cache.memory_max gives this model {}, and {tokens} tokens take {}; raise it{}",
        size(*.given), size(*.needed), ShorterContextHint(*.held)
    )]
    Cache {
        /// Bytes that it may take.
        given: u64,
        /// Tokens that there must be room for.
        tokens: u32,
        /// Bytes that they take.
        needed: u64,
        /// Tokens that there is room for.
        held: u64,
    },

    /// Weights are missing or have the wrong shape or type. All of them, not just the first.
    #[error("{path}: {problems}")]
    Weights {
        /// The file or folder.
        path: PathBuf,
        /// Each tensor that is wrong, and how.
        problems: TensorProblems,
    },

    /// MLX failed while the weights were moved to the device: usually out of memory.
    #[error("cannot put {tensor} on the device: {what}")]
    Device {
        /// The name of the tensor.
        tensor: String,
        /// The message of MLX.
        what: String,
    },

    /// The first passes on a GPU, which compile its kernels, failed.
    #[error("the model is loaded, but the device cannot compute with it: {0}")]
    WarmUp(PassFailed),
}

/// Says which `model.context_max` would fit, if the memory holds any token at all.
struct ShorterContextHint(u64);

impl fmt::Display for ShorterContextHint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0 => Ok(()),
            held => write!(f, ", or set model.context_max to {held} or less"),
        }
    }
}

/// Says what the operator can do about leftovers.
struct LeftoversHint<'a>(&'a Leftovers);

impl fmt::Display for LeftoversHint<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.0.iter().all(Leftover::is_unknown) {
            f.write_str(
                "; if you know that the model means the same without, set model.unknown = \"warn\"",
            )
        } else {
            f.write_str("; another model, or a newer Interlock, may do")
        }
    }
}

/// Formats a number of bytes in KiB, MiB or GiB.
pub(crate) fn size(bytes: u64) -> String {
    let units = [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    match units.iter().find(|(unit, _)| bytes >= *unit) {
        Some((unit, name)) if bytes.is_multiple_of(*unit) => format!("{}{name}", bytes / unit),
        Some((unit, name)) => format!("{:.1}{name}", bytes as f64 / *unit as f64),
        None => format!("{bytes}B"),
    }
}

/// Why one tensor cannot be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TensorProblem {
    /// The model needs the tensor and the files do not have it.
    Missing {
        /// The tensor's name in the files.
        tensor: String,
    },
    /// The tensor has another shape than the configuration calls for.
    Shape {
        /// The tensor's name in the files.
        tensor: String,
        /// The shape that the configuration calls for.
        expected: Vec<i32>,
        /// The shape in the file.
        found: Vec<i32>,
    },
    /// The tensor is stored in an encoding that is not read.
    Encoding {
        /// The tensor's name in the files.
        tensor: String,
        /// The encoding in the file.
        found: String,
    },
}

impl fmt::Display for TensorProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing { tensor } => write!(f, "{tensor} is missing"),
            Self::Shape { tensor, expected, found } => {
                write!(f, "{tensor} has shape {found:?}, the configuration calls for {expected:?}")
            }
            Self::Encoding { tensor, found } => write!(
                f,
                "{tensor} is stored as {found}, readable are F32, F16, BF16, Q4_0, Q4_1 and Q8_0 \
                 (GGUF) and F32, F16, BF16 and MLX's affine quantization (safetensors)"
            ),
        }
    }
}

/// All that is wrong with a model's weights; shown are the first few and how many more there are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorProblems(pub Vec<TensorProblem>);

impl TensorProblems {
    const SHOWN: usize = 6;
}

impl fmt::Display for TensorProblems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, problem) in self.0.iter().take(Self::SHOWN).enumerate() {
            if i > 0 {
                f.write_str("; ")?;
            }
            write!(f, "{problem}")?;
        }
        match self.0.len().saturating_sub(Self::SHOWN) {
            0 => Ok(()),
            more => write!(f, "; and {more} more"),
        }
    }
}
