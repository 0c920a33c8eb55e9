//! A folder in Hugging Face's layout: `config.json`, `*.safetensors`, tokenizer files.
//!
//! A safetensors file is a length (u64), that many bytes of JSON (`name: {dtype, shape,
//! data_offsets}`) and the tensors' bytes; offsets count from the end of the JSON.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::{Map, Value};

use super::{Checkpoint, Encoding, Format, Source, Tensor, shape, text};
use crate::error::LoadError;

/// The format's own limit for the JSON.
const HEADER_BYTES_MAX: u64 = 100_000_000;

pub(super) fn open(folder: &Path) -> Result<Source, LoadError> {
    let config_path = folder.join("config.json");
    let config = object(&config_path)?;
    let mut checkpoint = Checkpoint { files: Vec::new(), tensors: BTreeMap::new() };
    for path in weight_files(folder)? {
        add_file(&mut checkpoint, path)?;
    }
    let text = text::read(folder, &config)?;
    let name = folder
        .canonicalize()
        .ok()
        .and_then(|folder| folder.file_name().map(|name| name.to_string_lossy().into_owned()));
    let format = Format::Safetensors;
    Ok(Source { path: folder.into(), format, config, checkpoint, text, name })
}

/// Reads a JSON object.
pub(super) fn object(path: &Path) -> Result<Map<String, Value>, LoadError> {
    let bytes = fs::read(path).map_err(|cause| LoadError::Read { path: path.into(), cause })?;
    serde_json::from_slice(&bytes)
        .map_err(|bad| LoadError::Damaged { path: path.into(), what: bad.to_string() })
}

/// The index's files if there is an index, else every `model*.safetensors`.
fn weight_files(folder: &Path) -> Result<Vec<PathBuf>, LoadError> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let index_path = folder.join("model.safetensors.index.json");
    if index_path.is_file() {
        let index = object(&index_path)?;
        let damaged = |what: String| LoadError::Damaged { path: index_path.clone(), what };
        let index: Index =
            serde_json::from_value(Value::Object(index)).map_err(|bad| damaged(bad.to_string()))?;
        let names: BTreeSet<String> = index.weight_map.into_values().collect();
        return names
            .into_iter()
            .map(|name| {
                // A name from the internet must not lead out of the folder.
                let plain = Path::new(&name).file_name().is_some_and(|last| *last == *name);
                if plain {
                    Ok(folder.join(name))
                } else {
                    Err(damaged(format!("{name:?} is not a file name")))
                }
            })
            .collect();
    }
    let read = |cause| LoadError::Read { path: folder.into(), cause };
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).map_err(read)? {
        let name = entry.map_err(read)?.file_name().to_string_lossy().into_owned();
        if name.starts_with("model") && name.ends_with(".safetensors") {
            files.push(folder.join(name));
        }
    }
    files.sort();
    if files.is_empty() { Err(LoadError::NotAModel(folder.into())) } else { Ok(files) }
}

fn add_file(checkpoint: &mut Checkpoint, path: PathBuf) -> Result<(), LoadError> {
    let read = |cause| LoadError::Read { path: path.clone(), cause };
    let damaged = |what: String| LoadError::Damaged { path: path.clone(), what };

    let file = File::open(&path).map_err(read)?;
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
) -> Result<Vec<(String, Tensor)>, String> {
    #[derive(Deserialize)]
    struct Entry {
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
        let entry: Entry =
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
        let tensor = Tensor { file, offset: start + from, bytes: to - from, shape, encoding };
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
