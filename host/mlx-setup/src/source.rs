//! What is to be built: the mlx-sys that the lock file pins.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::step;

/// Raised when this program changes what it makes from the same inputs.
const RECIPE: &str = "1";

/// The unpacked mlx-sys package.
pub(crate) struct MlxSys {
    pub(crate) version: String,
    /// mlx-c as the package carries it.
    pub(crate) mlx_c: PathBuf,
    /// The C++ files of mlx-c, relative to `mlx_c`, in the order of its own build.
    pub(crate) units: Vec<String>,
    /// The MLX version that this mlx-c was written against.
    pub(crate) mlx_version: String,
    /// The code that configures bindgen in the package's own build.
    pub(crate) bindgen_config: PathBuf,
}

/// Asks cargo where the mlx-sys of this workspace's lock file is unpacked.
pub(crate) fn find(manifest: &Path, platform: &str) -> Result<MlxSys> {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    // Only this platform's packages: cargo fetches all that it lists, and the others'
    // would be fetched for nothing.
    let mut metadata = Command::new(cargo);
    metadata
        .args(["metadata", "--locked", "--format-version", "1"])
        .args(["--filter-platform", platform])
        .arg("--manifest-path")
        .arg(manifest);
    let metadata = step::output(&mut metadata).context(
        "cannot ask cargo for mlx-sys (if Cargo.lock is behind a Cargo.toml: `cargo update --workspace`)",
    )?;
    let metadata: Value = serde_json::from_slice(&metadata.stdout)?;

    let mut found = metadata["packages"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|package| package["name"] == "mlx-sys");
    let (Some(package), None) = (found.next(), found.next()) else {
        bail!("{} must lead to exactly one mlx-sys", manifest.display());
    };
    let version = package["version"].as_str().context("mlx-sys has no version")?.to_owned();
    let manifest = package["manifest_path"].as_str().context("mlx-sys has no manifest")?;
    let package = Path::new(manifest).parent().context("a manifest lies in a folder")?;

    let mlx_c = package.join("src/mlx-c");
    let cmake = mlx_c.join("CMakeLists.txt");
    let cmake = fs::read_to_string(&cmake)
        .with_context(|| format!("mlx-sys {version} has no {}", cmake.display()))?;
    Ok(MlxSys {
        units: units(&cmake)?,
        mlx_version: mlx_version(&cmake)?,
        bindgen_config: package.join("src/bindgen_config.rs"),
        version,
        mlx_c,
    })
}

/// `GIT_TAG v0.32.2)` names the MLX that mlx-c's own build would fetch.
fn mlx_version(cmake: &str) -> Result<String> {
    let tag = cmake.lines().find_map(|line| line.trim().strip_prefix("GIT_TAG v"));
    let tag = tag.context("mlx-c's CMakeLists.txt names no MLX version (GIT_TAG v...)")?;
    Ok(tag.trim_end_matches(|c: char| c == ')' || c.is_whitespace()).to_owned())
}

/// The lines of `set(mlxc-src ${CMAKE_CURRENT_LIST_DIR}/mlx/c/array.cpp ...)`, of which
/// some are commented out.
fn units(cmake: &str) -> Result<Vec<String>> {
    let units: Vec<String> = cmake
        .lines()
        .filter_map(|line| line.trim().strip_prefix("${CMAKE_CURRENT_LIST_DIR}/"))
        .map(|unit| unit.trim_end_matches(')'))
        .filter(|unit| unit.ends_with(".cpp"))
        .map(str::to_owned)
        .collect();
    if units.is_empty() {
        bail!("mlx-c's CMakeLists.txt lists no source files");
    }
    Ok(units)
}

/// A short name for everything that decides what the library and the bindings will be.
pub(crate) fn hash(mlx_sys: &MlxSys, gaps: &Path, compiler: &str) -> Result<String> {
    let mut hash = Sha256::new();
    for word in [RECIPE, &mlx_sys.version, &mlx_sys.mlx_version, compiler] {
        hash.update(word);
        hash.update([0]);
    }
    let folders = [mlx_sys.mlx_c.join("mlx/c"), mlx_sys.mlx_c.join("mlx/c/private"), gaps.into()];
    for file in folders.iter().map(|folder| files(folder)).collect::<Result<Vec<_>>>()?.concat() {
        let text = fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
        hash.update(file.file_name().unwrap_or_default().as_encoded_bytes());
        hash.update(text.len().to_le_bytes());
        hash.update(text);
    }
    Ok(short(hash))
}

/// The files directly in a folder, sorted.
pub(crate) fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries =
        fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let mut files = Vec::new();
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            files.push(entry.path());
        }
    }
    files.sort();
    Ok(files)
}

/// The first 12 hexadecimal digits: enough to tell the builds of one checkout apart.
fn short(hash: Sha256) -> String {
    hash.finalize().iter().take(6).map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const CMAKE: &str = "
        FetchContent_Declare(
          mlx
          GIT_TAG v0.32.2)
        set(mlxc-src
            ${CMAKE_CURRENT_LIST_DIR}/mlx/c/array.cpp
            # ${CMAKE_CURRENT_LIST_DIR}/mlx/c/object.cpp
            ${CMAKE_CURRENT_LIST_DIR}/mlx/c/version.cpp)";

    #[test]
    fn the_mlx_version_is_the_tag_without_its_bracket() {
        assert_eq!(mlx_version(CMAKE).unwrap(), "0.32.2");
    }

    #[test]
    fn files_that_upstream_commented_out_are_not_compiled() {
        assert_eq!(units(CMAKE).unwrap(), ["mlx/c/array.cpp", "mlx/c/version.cpp"]);
    }
}
