//! What the files of a model are, and how they are opened: decided here and nowhere else.
//!
//! [`recognize`] looks at what a path holds: a file that begins with `GGUF` is a GGUF file whatever
//! it is called, a folder with a `config.json` is a model folder. Names decide only between files
//! that cannot be told apart otherwise: which `.safetensors` files of a folder, or of a repository
//! on the hub, are the model ([`WeightFiles::among`]).
//!
//! # Invariants
//!
//! - Files are opened and read through `interlock-files`: only regular ones, with a bound.
//!
//! # Not here
//!
//! Reading what stands in the files beyond their first bytes and the index: `models` does. What of it
//! the text side needs is described here ([`TextParts`]), so that `models` and `text` need not know
//! each other. Downloading: the catalog's.

mod text;
mod weights;

use std::io::{self, Read};
use std::path::{Path, PathBuf};

pub use interlock_files::{open, read, read_if_there};
pub use text::{GgufTokenizer, TextParts, TokenizerSource};
pub use weights::{BadWeights, WeightFiles, weights_named_in};

/// Longest `config.json` or index of weights that is read; the largest known take 10 MiB.
pub const JSON_BYTES_MAX: u64 = 64 << 20;

/// A model's files, by what they hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ModelFiles {
    /// One file with everything in it.
    Gguf(PathBuf),
    /// A folder in Hugging Face's layout.
    Folder {
        /// The path of the folder.
        path: PathBuf,
        /// The folder's files of weights, all of which are there.
        weights: Vec<PathBuf>,
    },
}

/// Why a path is no model.
#[derive(Debug, thiserror::Error)]
pub enum NotAModel {
    /// A file cannot be read, is no regular file, or is longer than any of its kind.
    #[error("cannot read {}: {cause}", path.display())]
    Read {
        /// The path of the file.
        path: PathBuf,
        /// The system's error, or the limit that was met.
        cause: io::Error,
    },
    /// The path holds something that is no model.
    #[error(
        "{} is neither a GGUF file nor a folder with config.json and .safetensors files: {found}",
        path.display()
    )]
    Neither {
        /// The path that was looked at.
        path: PathBuf,
        /// What the path holds.
        found: String,
    },
    /// A folder lacks a file of weights.
    #[error("{} lacks {missing}", path.display())]
    Incomplete {
        /// The path of the folder.
        path: PathBuf,
        /// The name of the missing file.
        missing: String,
    },
    /// A folder has more than one set of weights.
    #[error("{}: {what}; leave one of them there", path.display())]
    Ambiguous {
        /// The path of the folder.
        path: PathBuf,
        /// The sets of weights that were found.
        what: String,
    },
    /// The index of the weights makes no sense.
    #[error("{} is damaged: {what}", path.display())]
    Index {
        /// The path of the index.
        path: PathBuf,
        /// What is wrong with the index.
        what: String,
    },
}

/// What lies at a path, by its content.
///
/// # Errors
///
/// When nothing does, or something that is no model, or not the whole of one.
pub fn recognize(path: &Path) -> Result<ModelFiles, NotAModel> {
    let read = |cause| NotAModel::Read { path: path.into(), cause };
    let neither = |found: String| NotAModel::Neither { path: path.into(), found };
    if std::fs::metadata(path).map_err(read)?.is_dir() {
        return folder(path);
    }
    let mut start = [0; 9];
    let length = beginning(path, &mut start).map_err(read)?;
    let start = &start[..length];
    // Whoever calls it so means a GGUF file: what is wrong with it, its reader says.
    let called = path.extension().is_some_and(|kind| kind.eq_ignore_ascii_case("gguf"));
    if start.starts_with(b"GGUF") || called {
        return Ok(ModelFiles::Gguf(path.into()));
    }
    Err(neither(match start {
        [] => "it is empty".to_owned(),
        // A length of eight bytes and a JSON object.
        [.., b'{'] if length == 9 => {
            "it is a safetensors file, whose model is the folder around it".to_owned()
        }
        start => format!("it begins with {:?}", String::from_utf8_lossy(start)),
    }))
}

/// Fills `start` with a file's first bytes, and says how many there were.
fn beginning(path: &Path, start: &mut [u8]) -> io::Result<usize> {
    let mut file = open(path)?;
    let mut length = 0;
    while length < start.len() {
        match file.read(&mut start[length..])? {
            0 => break,
            more => length += more,
        }
    }
    Ok(length)
}

fn folder(path: &Path) -> Result<ModelFiles, NotAModel> {
    let read = |cause| NotAModel::Read { path: path.into(), cause };
    let mut names = Vec::new();
    for entry in std::fs::read_dir(path).map_err(read)? {
        // A name that is not UTF-8 is none of those that we look for.
        names.extend(entry.map_err(read)?.file_name().into_string());
    }
    names.sort();
    // A link whose file was cleaned away is no file.
    names.retain(|name| path.join(name).exists());
    if !names.iter().any(|name| name == "config.json") {
        let gguf = names.iter().find(|name| {
            Path::new(name).extension().is_some_and(|kind| kind.eq_ignore_ascii_case("gguf"))
        });
        let found = match gguf {
            Some(name) => format!("it has no config.json; name the file, such as {name}"),
            None => "it has no config.json".to_owned(),
        };
        return Err(NotAModel::Neither { path: path.into(), found });
    }
    let weights = match WeightFiles::among(names.iter().map(String::as_str)) {
        Ok(WeightFiles::Index(index)) => weights_named_in(&path.join(index))?,
        Ok(WeightFiles::Files(files)) => files,
        Err(BadWeights::None) => {
            let missing = weights::SINGLE.to_owned();
            return Err(NotAModel::Incomplete { path: path.into(), missing });
        }
        Err(BadWeights::Lacks(missing)) => {
            return Err(NotAModel::Incomplete { path: path.into(), missing });
        }
        Err(BadWeights::Several(what)) => {
            return Err(NotAModel::Ambiguous { path: path.into(), what });
        }
    };
    if let Some(missing) = weights.iter().find(|name| !names.contains(name)) {
        return Err(NotAModel::Incomplete { path: path.into(), missing: missing.clone() });
    }
    let weights = weights.iter().map(|name| path.join(name)).collect();
    Ok(ModelFiles::Folder { path: path.into(), weights })
}
