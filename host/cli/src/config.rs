//! `interlock config`: show, check and explain.

use std::path::PathBuf;

use clap::Subcommand;
use interlock_config::{Sources, default_toml, load};

use crate::say;
use crate::settings::Settings;

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Print what is in effect, and where each value came from
    ///
    /// The output is TOML. Secrets are masked, so that it can go into a bug report.
    Show(Settings),
    /// Report every problem in a file, each as key, relation, value and line
    ///
    /// Looks at the file alone: not at the environment, and not at whether models and policies
    /// that it names are there. Exits with 2 when there is a problem.
    Check {
        /// The file
        file: PathBuf,
    },
    /// Print every setting at its default, with the reason for it: a file to start from
    Default,
}

impl Command {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        match self {
            Self::Show(settings) => {
                let sources = settings.sources();
                let file = sources.file.as_ref().map_or_else(
                    || "none (no --config, no INTERLOCK_CONFIG, no interlock.toml)".to_owned(),
                    |path| path.display().to_string(),
                );
                say(&format!("# file: {file}\n\n{}", load(&sources)?.show()))
            }
            Self::Check { file } => {
                load(&Sources::of_file(&file))?;
                say(&format!("{}: no problems\n", file.display()))
            }
            Self::Default => say(&default_toml()),
        }
    }
}
