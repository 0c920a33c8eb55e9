//! `interlock policy new`: a policy that builds, tests and documents itself.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::Args;

use super::subject::name_of;
use crate::{BadUsage, say};

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct New {
    /// The policy's name: lower-case letters, digits and '-'
    #[arg(value_name = "NAME")]
    name: String,

    /// The folder to create; by default NAME in the working directory
    #[arg(long, value_name = "FOLDER")]
    dir: Option<PathBuf>,

    /// The clone of Interlock whose SDK the policy uses
    ///
    /// By default, the clone that contains this program or the working directory.
    #[arg(long, value_name = "FOLDER")]
    clone: Option<PathBuf>,
}

const EXAMPLES: &str = "\
Examples:
  interlock policy new night-shift
  interlock policy new night-shift --dir policies/night-shift --clone ~/interlock

Then, in that folder: make, make check, make cases, make sim.";

/// Each file of the template, and where it goes.
const FILES: [(&str, &str); 8] = [
    ("Cargo.toml", include_str!("template/Cargo.toml.in")),
    ("src/lib.rs", include_str!("template/lib.rs.in")),
    ("cases.toml", include_str!("template/cases.toml.in")),
    ("workload.toml", include_str!("template/workload.toml.in")),
    ("interlock.toml", include_str!("template/interlock.toml.in")),
    ("README.md", include_str!("template/README.md.in")),
    ("Makefile", include_str!("template/Makefile.in")),
    (".gitignore", include_str!("template/gitignore.in")),
];

impl New {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        let name = self.name;
        let letter = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        let fine = name.starts_with(|c: char| c.is_ascii_lowercase())
            && name.ends_with(|c: char| c != '-')
            && name.chars().all(letter)
            && !name.contains("--")
            && name.len() <= 64;
        if !fine {
            bail!(BadUsage(format!(
                "a policy's name begins with a lower-case letter and has lower-case letters, \
                 digits and '-', 64 at most; got {name:?}"
            )));
        }
        let clone = match self.clone {
            Some(clone) => fs::canonicalize(&clone)
                .ok()
                .filter(|clone| is_clone(clone))
                .with_context(|| format!("{} is not a clone of Interlock", clone.display()))?,
            None => nearest_clone().ok_or_else(|| {
                BadUsage(
                    "neither this program nor the working directory lies in a clone of Interlock; \
                     say where one is with --clone"
                        .into(),
                )
            })?,
        };
        let folder = self.dir.unwrap_or_else(|| PathBuf::from(&name));
        make(&name, &folder, &clone)?;
        let at = folder.display();
        say(&format!(
            "{at} is a policy. Next:\n\n  cd {at}\n  make              native tests, then \
             {name}.wasm\n  make check        would it load, and with which grants\n  make cases        \
             facts in, decisions out\n  make sim          an hour's traffic in a second\n\nIt is \
             src/lib.rs; README.md says what it decides.\n"
        ))
    }
}

fn make(name: &str, folder: &Path, clone: &Path) -> anyhow::Result<()> {
    let at = folder.display();
    if fs::read_dir(folder).is_ok_and(|mut files| files.next().is_some()) {
        bail!(BadUsage(format!("{at} already exists, and is not empty")));
    }
    let clone_text = clone.to_str().context("the clone's path is not UTF-8")?;
    let sdk = clone.join("plugins/sdk");
    let policy = name_of(&interlock_policy_wasm::PolicySource::File(name.into()));
    let kind: String = name.split('-').map(capital).collect();
    for (file, text) in FILES {
        let text = text
            .replace("{{name}}", name)
            .replace("{{policy}}", &policy)
            .replace("{{type}}", &kind)
            .replace("{{sdk}}", sdk.to_str().context("the clone's path is not UTF-8")?)
            .replace("{{clone}}", clone_text);
        let path = folder.join(file);
        let parent = path.parent().context("every file lies in a folder")?;
        fs::create_dir_all(parent)
            .and_then(|()| fs::write(&path, text))
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

fn capital(word: &str) -> String {
    let mut letters = word.chars();
    letters
        .next()
        .map_or_else(String::new, |first| first.to_ascii_uppercase().to_string() + letters.as_str())
}

fn is_clone(folder: &Path) -> bool {
    folder.join("plugins/sdk/Cargo.toml").is_file() && folder.join("wit/policy.wit").is_file()
}

/// The one that this program was built in, or that we are in.
fn nearest_clone() -> Option<PathBuf> {
    let from = [std::env::current_exe().ok(), std::env::current_dir().ok()];
    let found = |from: PathBuf| {
        let from = fs::canonicalize(from).ok()?;
        from.ancestors().find(|folder| is_clone(folder)).map(Path::to_owned)
    };
    from.into_iter().flatten().find_map(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_to_fill_in_is_filled_in() {
        let folder = std::env::temp_dir().join(format!("interlock-new-{}", std::process::id()));
        let clone = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        make("night-shift", &folder, &clone).expect("it can be made");
        for (file, _) in FILES {
            let text = fs::read_to_string(folder.join(file)).expect(file);
            assert!(!text.contains("{{"), "{file}: {text}");
        }
        let code = fs::read_to_string(folder.join("src/lib.rs")).expect("it is there");
        assert!(code.contains("sdk::export!(NightShift: admit);"));
        let again = make("night-shift", &folder, &clone).expect_err("nothing is overwritten");
        assert!(again.to_string().contains("not empty"), "{again}");
        fs::remove_dir_all(&folder).expect("it was ours");
    }
}
