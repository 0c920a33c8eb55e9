//! The two Python packages that carry native libraries: MLX, and libclang.
//!
//! Nothing of Python is used but its package index, through whichever of pip and uv is
//! there, so the user's own index, proxy and certificates apply.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, bail};

use crate::step;

/// bindgen reads mlx-c's headers correctly from this libclang on.
const LIBCLANG_MIN: u32 = 15;
const LIBCLANG_WHEEL: &str = "18.1.1";

/// Unpacks a wheel to `target/mlx/NAME-VERSION`, unless it is there, and names the folder.
pub(crate) fn install(place: &Path, name: &str, version: &str) -> Result<PathBuf> {
    let folder = place.join(format!("{name}-{version}"));
    if folder.exists() {
        return Ok(folder);
    }
    let wanted = format!("{name}=={version}");
    let partial = step::partial(&folder)?;
    step::timed(&format!("fetching {wanted}"), || fetch(&wanted, &partial))?;
    step::complete(&partial, &folder)?;
    Ok(folder)
}

/// Tries pip first: it knows pip's configuration, which uv does not read.
fn fetch(wanted: &str, folder: &Path) -> Result<()> {
    let installers: [&[&str]; 3] = [
        &["python3", "-m", "pip", "install", "--no-compile"],
        &["pip3", "install"],
        &["uv", "pip", "install"],
    ];
    let mut complaints = String::new();
    for installer in installers {
        let mut command = Command::new(installer[0]);
        command.args(&installer[1..]);
        // Only wheels: a source package would run its own build here.
        command.args(["--quiet", "--no-deps", "--only-binary", ":all:", "--target"]);
        match step::output(command.arg(folder).arg(wanted)) {
            Ok(_) => return Ok(()),
            Err(error) => complaints.push_str(&format!("\n- {}: {error:#}", installer.join(" "))),
        }
    }
    bail!(
        "cannot install {wanted} from the Python package index; Python 3 with pip does it \
         (Debian: apt-get install python3-pip), or uv. What was tried:{complaints}"
    );
}

/// The libclang that bindgen uses.
pub(crate) struct Libclang {
    pub(crate) folder: PathBuf,
    /// The wheel is the bare library: `stddef.h` and its like must come from elsewhere.
    pub(crate) bare: bool,
}

/// The user's choice, else the system's newest, else the wheel.
pub(crate) fn libclang(place: &Path) -> Result<Libclang> {
    if let Some(folder) = env::var_os("LIBCLANG_PATH") {
        return Ok(Libclang { folder: folder.into(), bare: false });
    }
    if let Some(folder) = system_libclang() {
        return Ok(Libclang { folder, bare: false });
    }
    let wheel = install(place, "libclang", LIBCLANG_WHEEL)?;
    Ok(Libclang { folder: wheel.join("clang/native"), bare: true })
}

/// Looks where Debian and its descendants put it; elsewhere the wheel does.
fn system_libclang() -> Option<PathBuf> {
    let versions = fs::read_dir("/usr/lib").ok()?.flatten().filter_map(|entry| {
        let version = entry.file_name().to_str()?.strip_prefix("llvm-")?.parse::<u32>().ok()?;
        let folder = entry.path().join("lib");
        let usable = version >= LIBCLANG_MIN && has_libclang(&folder);
        usable.then_some((version, folder))
    });
    versions.max().map(|(_, folder)| folder)
}

/// `libclang.so`, `libclang.so.1` or `libclang-15.so.1`, but not `libclang-cpp.so`.
fn has_libclang(folder: &Path) -> bool {
    let Ok(entries) = fs::read_dir(folder) else { return false };
    entries.flatten().any(|entry| {
        entry
            .file_name()
            .to_str()
            .and_then(|name| name.strip_prefix("libclang"))
            .is_some_and(|rest| rest.contains(".so") && !rest.starts_with("-cpp"))
    })
}
