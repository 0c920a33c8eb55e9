//! A folder in Hugging Face's layout: `config.json`, `*.safetensors`, tokenizer files.
//!
//! A safetensors file is a length (u64), that many bytes of JSON (`name: {dtype, shape,
//! data_offsets}`) and the tensors' bytes; offsets count from the end of the JSON.

use std::collections::BTreeMap;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use interlock_model_files::open as open_file;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::json::read_object;
use super::{Checkpoint, Encoding, Format, ModelSource, StoredTensor, shape, text};
use crate::error::LoadError;
use crate::leftover::Leftover;

/// The format's own limit for the JSON.
const HEADER_BYTES_MAX: u64 = 100_000_000;

/// Files that say that the folder is a change to a model that lies elsewhere.
const ADAPTERS: [&str; 3] =
    ["adapter_config.json", "adapter_model.safetensors", "adapters.safetensors"];

pub(super) fn open(folder: &Path, weights: Vec<PathBuf>) -> Result<ModelSource, LoadError> {
    let config_path = folder.join("config.json");
    let config = read_object(&config_path)?;
    let mut checkpoint = Checkpoint { files: Vec::new(), tensors: BTreeMap::new() };
    for path in weights {
        add_file(&mut checkpoint, path)?;
    }
    let text = text::read(folder, &config)?;
    let name = folder
        .canonicalize()
        .ok()
        .and_then(|folder| folder.file_name().map(|name| name.to_string_lossy().into_owned()));
    let format = Format::Safetensors;
    let adapters = ADAPTERS.iter().filter(|name| folder.join(name).exists());
    let leftovers = adapters.map(|name| Leftover::File { name: (*name).to_owned() }).collect();
    Ok(ModelSource { path: folder.into(), format, config, checkpoint, text, name, leftovers })
}

fn add_file(checkpoint: &mut Checkpoint, path: PathBuf) -> Result<(), LoadError> {
    let read = |cause| LoadError::Read { path: path.clone(), cause };
    let damaged = |what: String| LoadError::Damaged { path: path.clone(), what };

    let file = open_file(&path).map_err(read)?;
    let length = file.metadata().map_err(read)?.len();
    if length < 8 {
        return Err(damaged(format!("{length} bytes are no safetensors file")));
    }
    let mut claimed = [0; 8];
    file.read_exact_at(&mut claimed, 0).map_err(read)?;
    let claimed = u64::from_le_bytes(claimed);
    if claimed > HEADER_BYTES_MAX.min(length - 8) {
        return Err(damaged(format!("a header of {claimed} bytes in a file of {length}")));
    }
    let mut header = vec![0; usize::try_from(claimed).unwrap_or(0)];
    file.read_exact_at(&mut header, 8).map_err(read)?;

    let number = checkpoint.files.len();
    let start = 8 + claimed;
    for (name, tensor) in tensors(&header, number, start, length - start).map_err(damaged)? {
        if checkpoint.tensors.contains_key(&name) {
            return Err(damaged(format!("tensor {name:?} is in another file already")));
        }
        checkpoint.tensors.insert(name, tensor);
    }
    checkpoint.files.push((path, file));
    Ok(())
}

fn tensors(
    header: &[u8],
    file: usize,
    start: u64,
    length: u64,
) -> Result<Vec<(String, StoredTensor)>, String> {
    #[derive(Deserialize)]
    struct HeaderEntry {
        dtype: String,
        shape: Vec<u64>,
        data_offsets: (u64, u64),
    }
    let entries: Map<String, Value> =
        serde_json::from_slice(header).map_err(|bad| bad.to_string())?;
    let mut tensors = Vec::new();
    for (name, entry) in entries {
        if name == "__metadata__" {
            continue;
        }
        let entry: HeaderEntry =
            serde_json::from_value(entry).map_err(|bad| format!("tensor {name:?}: {bad}"))?;
        let (from, to) = entry.data_offsets;
        if from > to || to > length {
            return Err(format!("tensor {name:?} lies at {from}..{to} of {length} bytes"));
        }
        let shape = shape(entry.shape).map_err(|what| format!("tensor {name:?} has {what}"))?;
        let (encoding, size) = match entry.dtype.as_str() {
            "F32" => (Encoding::F32, Some(4)),
            "F16" => (Encoding::F16, Some(2)),
            "BF16" => (Encoding::Bf16, Some(2)),
            "U32" => (Encoding::U32, Some(4)),
            other => (Encoding::Other(other.to_owned()), None),
        };
        let tensor = StoredTensor { file, offset: start + from, bytes: to - from, shape, encoding };
        if size.is_some_and(|size: u64| tensor.elements() * size != tensor.bytes) {
            return Err(format!(
                "tensor {name:?} has {} bytes, its shape {:?} and type {} call for others",
                tensor.bytes, tensor.shape, entry.dtype
            ));
        }
        tensors.push((name, tensor));
    }
    Ok(tensors)
}
