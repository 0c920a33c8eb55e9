//! One slow thing at a time: saying what is done, how long it took, and finishing it
//! whole or not at all.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::{self, Command, Output};
use std::time::Instant;

use anyhow::{Context, Result, bail};

/// Runs `work`, with a line before and its duration after.
pub(crate) fn timed<T>(what: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    eprintln!("mlx-setup: {what} ...");
    let started = Instant::now();
    let done = work()?;
    eprintln!("mlx-setup: {what}: {:.1} s", started.elapsed().as_secs_f32());
    Ok(done)
}

/// Runs a command to its end and gives back what it printed.
///
/// # Errors
///
/// When it cannot be started, or fails; then with everything it said.
pub(crate) fn output(command: &mut Command) -> Result<Output> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.output().with_context(|| format!("cannot run {name}"))?;
    if !output.status.success() {
        bail!(
            "{name} failed ({})\n{}{}",
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(output)
}

/// An empty folder beside `place`, to be filled and then handed to [`complete`].
pub(crate) fn partial(place: &Path) -> Result<PathBuf> {
    let name = place.file_name().context("a folder to fill has a name")?.to_string_lossy();
    let partial = place.with_file_name(format!(".{name}.{}", process::id()));
    match fs::remove_dir_all(&partial) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error.into()),
        _ => fs::create_dir(&partial)?,
    }
    Ok(partial)
}

/// Gives a filled folder its final name.
///
/// Another run may have been faster; its folder was made from the same inputs, so it
/// stays and ours goes.
pub(crate) fn complete(partial: &Path, place: &Path) -> Result<()> {
    let Err(error) = fs::rename(partial, place) else { return Ok(()) };
    if !place.exists() {
        return Err(error).with_context(|| format!("cannot create {}", place.display()));
    }
    fs::remove_dir_all(partial)?;
    Ok(())
}
