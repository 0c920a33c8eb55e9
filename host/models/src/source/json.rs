//! JSON files of a model folder.

use std::path::Path;

use interlock_model_files::{JSON_BYTES_MAX, read};
use serde_json::{Map, Value};

use crate::error::LoadError;

/// Reads a JSON object.
pub(super) fn read_object(path: &Path) -> Result<Map<String, Value>, LoadError> {
    let bytes =
        read(path, JSON_BYTES_MAX).map_err(|cause| LoadError::Read { path: path.into(), cause })?;
    serde_json::from_slice(&bytes)
        .map_err(|bad| LoadError::Damaged { path: path.into(), what: bad.to_string() })
}
