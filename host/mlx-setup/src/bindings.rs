//! `bindings.rs`, as mlx-sys's own build would write it.

use std::env;
use std::ffi::OsStr;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use sha2::{Digest, Sha256};

use crate::native::Compiler;
use crate::source::{self, MlxSys};
use crate::{step, wheels};

/// SHA-256 of the `bindgen_config.rs` that the settings below were read from.
///
/// That file cannot be compiled into this program: which mlx-sys is used is known only
/// when it runs. So a change there must stop us, or the bindings would differ from
/// those on macOS without anyone noticing.
const SETTINGS_READ_FROM: &str = "c90bc916c1bf5b11c7ce2dcbb84e10b22f8c1f0bf37d161ad6b4950306ff5542";

pub(crate) fn generate(
    compiler: &Compiler,
    mlx_sys: &MlxSys,
    gaps: &Path,
    place: &Path,
    out: &Path,
) -> Result<()> {
    let upstream = fs::read(&mlx_sys.bindgen_config)
        .with_context(|| format!("cannot read {}", mlx_sys.bindgen_config.display()))?;
    let digest: String =
        Sha256::digest(upstream).iter().map(|byte| format!("{byte:02x}")).collect();
    ensure!(
        digest == SETTINGS_READ_FROM,
        "mlx-sys {} changed how it calls bindgen: read {}, follow it in bindings.rs, and put {digest} there",
        mlx_sys.version,
        mlx_sys.bindgen_config.display(),
    );

    let libclang = wheels::libclang(place)?;
    // SAFETY: this program has one thread, and nothing has loaded libclang yet.
    unsafe { env::set_var("LIBCLANG_PATH", &libclang.folder) };

    let half = gaps.join("half.h");
    let mut builder = bindgen::Builder::default()
        .rust_target("1.73.0".parse().context("bindgen knows Rust 1.73")?)
        .clang_arg(format!("-I{}", mlx_sys.mlx_c.display()))
        .clang_args(["-include", &half.to_string_lossy()])
        .blocklist_function("malloc")
        .blocklist_function("realloc");
    if libclang.bare {
        let headers = compiler.builtin_headers()?;
        builder = builder.clang_args(["-isystem", &headers.to_string_lossy()]);
    }
    for header in source::files(&mlx_sys.mlx_c.join("mlx/c"))? {
        if header.extension() == Some(OsStr::new("h")) {
            builder = builder.header(header.to_string_lossy());
        }
    }
    let bindings =
        step::timed("generating bindings", || builder.generate().context("bindgen failed"))?;
    bindings.write_to_file(out.join("bindings.rs"))?;
    Ok(())
}
