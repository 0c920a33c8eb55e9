//! Makes unmodified mlx-rs build on Linux.
//!
//! mlx-sys, as published, builds MLX from source and for macOS only. But it declares
//! `links = "mlx"`, and Cargo lets a configuration file answer in place of such a
//! crate's build script. This program produces what that answer points at, under
//! `target/mlx`, from the MLX wheel on PyPI:
//!
//! 1. [`source`] finds the mlx-sys that Cargo.lock pins and the MLX version it wants;
//! 2. [`wheels`] installs that MLX, and libclang where the system has none to offer;
//! 3. [`native`] compiles mlx-c, the C interface to MLX, into `libmlxc.a`;
//! 4. [`bindings`] writes the `bindings.rs` that mlx-sys includes;
//! 5. [`answer`] writes `target/mlx/cargo.toml`, which `.cargo/config.toml` includes.
//!
//! The third and fourth step go to a folder named after a hash of all that went into
//! them: Cargo does not watch the files behind an override, only its text.
//!
//! # Invariants
//!
//! - A folder under its final name is complete: each is filled under another name first.
//! - A second run does nothing and says so in one line.
//! - macOS is left to mlx-sys's own build.
//!
//! # Not here
//!
//! The CUDA build of MLX: it has the same headers and symbols, so it is chosen when
//! the server starts, by `LD_LIBRARY_PATH`. The rpath of the binary: the crate that
//! builds it reads `DEP_MLX_LIB`. And one gap that no setup can fill: until mlx-rs has
//! made its first call, an error in a raw `mlx_sys` call ends the process.

mod answer;
mod bindings;
mod native;
mod source;
mod step;
mod wheels;

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result, bail};

fn main() -> ExitCode {
    if cfg!(target_os = "macos") {
        println!("mlx-setup: nothing to do on macOS, mlx-sys builds MLX itself");
        return ExitCode::SUCCESS;
    }
    match prepare() {
        Ok(()) => ExitCode::SUCCESS,
        // Without a backtrace: what went wrong happened in some other program.
        Err(error) => {
            eprintln!("mlx-setup: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn prepare() -> Result<()> {
    let started = Instant::now();
    let here = crate_dir();
    let root = here.join("../..").canonicalize()?;
    let manifest = workspace_manifest(&root)?;

    let mlx_sys = source::find(&manifest, &answer::host_triple())?;
    let place = root.join("target/mlx");
    fs::create_dir_all(&place).with_context(|| format!("cannot create {}", place.display()))?;

    let mlx = wheels::install(&place, "mlx-cpu", &mlx_sys.mlx_version)?;
    let gaps = here.join("gaps");
    let compiler = native::Compiler::find()?;
    let hash = source::hash(&mlx_sys, &gaps, &compiler.version)?;
    let out = place.join(format!("mlxc-{}-{hash}", mlx_sys.mlx_version));

    let fresh = !out.exists();
    if fresh {
        let partial = step::partial(&out)?;
        native::build(&compiler, &mlx_sys, &gaps, &mlx, &partial)?;
        bindings::generate(&compiler, &mlx_sys, &gaps, &place, &partial)?;
        step::complete(&partial, &out)?;
    }
    let rewritten = answer::write(&place, &mlx_sys, &out, &mlx)?;

    let state = if fresh || rewritten { "ready" } else { "up to date" };
    println!(
        "mlx-setup: MLX {} for mlx-sys {} is {state} ({:.1} s)",
        mlx_sys.mlx_version,
        mlx_sys.version,
        started.elapsed().as_secs_f32()
    );
    Ok(())
}

/// The folder of this crate's sources, looked up at run time so that a moved checkout works.
fn crate_dir() -> PathBuf {
    env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), Into::into)
}

/// The manifest whose lock file decides: ours, or the one named with `--manifest-path`
/// (to try another mlx-sys without touching this repository).
fn workspace_manifest(root: &Path) -> Result<PathBuf> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    match arguments.as_slice() {
        [] => Ok(root.join("Cargo.toml")),
        [flag, path] if flag == "--manifest-path" => Ok(path.into()),
        _ => bail!("usage: mlx-setup [--manifest-path CARGO_TOML]"),
    }
}
