//! The configuration that answers cargo in place of mlx-sys's build script.

use std::env::consts::ARCH;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use crate::source::MlxSys;

/// The platform built for, which is the one this runs on.
pub(crate) fn host_triple() -> String {
    format!("{ARCH}-unknown-linux-gnu")
}

/// Writes `cargo.toml` and `check-macos.toml`; says whether either had to change.
///
/// All paths are absolute: cargo hands them to a compiler that runs in the folder of a
/// registry crate.
pub(crate) fn write(place: &Path, mlx_sys: &MlxSys, out: &Path, mlx: &Path) -> Result<bool> {
    let lib = mlx.join("mlx/lib");
    let version = quoted(&mlx_sys.mlx_version);
    let out_dir = quoted(&out.to_string_lossy());
    let host = format!(
        "# Written by host/mlx-setup, included by .cargo/config.toml. Do not edit.\n\
         [target.{triple}.mlx]\n\
         rustc-link-search = [{out_native}, {lib_native}]\n\
         rustc-link-lib = [\"static=mlxc\", \"dylib=mlx\", \"dylib=stdc++\"]\n\
         # Wins over cargo's own OUT_DIR, so that bindings.rs comes from here.\n\
         rustc-env = {{ OUT_DIR = {out_dir} }}\n\
         # Build scripts of direct dependents see these as DEP_MLX_VERSION and DEP_MLX_LIB.\n\
         version = {version}\n\
         lib = {lib}\n",
        triple = host_triple(),
        out_native = quoted(&format!("native={}", out.display())),
        lib_native = quoted(&format!("native={}", lib.display())),
        lib = quoted(&lib.to_string_lossy()),
    );
    // Type-checking for macOS links nothing; a library is named only because cargo
    // takes an override without any for none at all.
    let macos = format!(
        "# Written by host/mlx-setup for `make check-macos` (cargo --config). Do not edit.\n\
         [target.aarch64-apple-darwin.mlx]\n\
         rustc-link-lib = [\"dylib=mlx\"]\n\
         rustc-env = {{ OUT_DIR = {out_dir} }}\n\
         version = {version}\n",
    );
    let host = replace(&place.join("cargo.toml"), &host)?;
    let macos = replace(&place.join("check-macos.toml"), &macos)?;
    Ok(host || macos)
}

/// A JSON string is a TOML string too.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// Leaves a file alone that already says the same; a cargo that runs meanwhile sees the
/// old text or the new one, never half of it.
fn replace(file: &Path, text: &str) -> Result<bool> {
    if fs::read_to_string(file).is_ok_and(|current| current == text) {
        return Ok(false);
    }
    let partial = file.with_extension(format!("{}.partial", std::process::id()));
    fs::write(&partial, text)
        .and_then(|()| fs::rename(&partial, file))
        .with_context(|| format!("cannot write {}", file.display()))?;
    Ok(true)
}
