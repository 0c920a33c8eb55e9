//! mlx-c, compiled into `libmlxc.a`.

use std::env;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::source::MlxSys;
use crate::step;

/// The C++ compiler: `CXX` if set, else `c++`.
pub(crate) struct Compiler {
    program: OsString,
    /// The compiler's version text; another compiler makes another library.
    pub(crate) version: String,
}

impl Compiler {
    pub(crate) fn find() -> Result<Self> {
        let program = env::var_os("CXX").unwrap_or_else(|| "c++".into());
        let version = step::output(Command::new(&program).arg("--version"))
            .context("a C++20 compiler is needed (Debian: apt-get install g++; or set CXX)")?;
        Ok(Self { program, version: String::from_utf8_lossy(&version.stdout).into_owned() })
    }

    /// The folder of the headers that come with the compiler itself.
    pub(crate) fn builtin_headers(&self) -> Result<PathBuf> {
        let folder = step::output(Command::new(&self.program).arg("-print-file-name=include"))?;
        Ok(String::from_utf8(folder.stdout)?.trim_end().into())
    }
}

/// Compiles all of mlx-c as one file, with the gaps filled in front.
///
/// One translation unit, because MLX's headers are most of the work: read once instead
/// of 26 times, they cost a fifth of the time.
pub(crate) fn build(
    compiler: &Compiler,
    mlx_sys: &MlxSys,
    gaps: &Path,
    mlx: &Path,
    out: &Path,
) -> Result<()> {
    let mut all = String::from("#include \"format.hpp\"\n#include \"half.hpp\"\n");
    for unit in &mlx_sys.units {
        writeln!(all, "#include \"{unit}\"")?;
    }
    all.push_str("#include \"mach_time.hpp\"\n");
    let unit = out.join("mlxc.cpp");
    fs::write(&unit, all)?;

    let object = out.join("mlxc.o");
    let mut compile = Command::new(&compiler.program);
    compile.args(["-std=c++20", "-O2", "-fPIC", "-c"]).arg(&unit).arg("-o").arg(&object);
    for folder in [gaps, &mlx_sys.mlx_c, &mlx.join("mlx/include")] {
        compile.arg("-I").arg(folder);
    }
    step::timed("compiling mlx-c (about half a minute)", || step::output(&mut compile))?;
    step::output(Command::new("ar").arg("crs").arg(out.join("libmlxc.a")).arg(&object))?;
    fs::remove_file(object)?;
    Ok(())
}
