//! `interlock config`: show, check and explain.

use std::path::PathBuf;

use clap::Subcommand;
use interlock_config::{Problems, Sources, default_toml, draft, load};

use crate::settings::Settings;
use crate::{note, preflight, say};

#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Print what is in effect, and where each value came from
    ///
    /// The output is TOML. Secrets are masked, so that it can go into a bug report.
    Show(Settings),
    /// Report every problem in a file, each as key, relation, value and line
    ///
    /// Checks keys, types and ranges, and what `interlock serve` will need on this machine: that a
    /// model's files are understood, its tokenizer and chat template among them, and that the memory
    /// for its cache suffices (one that is to be pulled is only remarked on), that every
    /// policy's component is there (a relative path counts from the working directory), fits this
    /// host, accepts its settings and gets along with the others, that records can be written and
    /// the addresses are this machine's. Changes nothing, does not connect to Redis, and does not
    /// look at INTERLOCK__ variables. Exits with 2 when there is a problem.
    Check {
        /// The file
        file: PathBuf,
    },
    /// Print every setting at its default, with the reason for it: a file to start from
    Default,
}

impl ConfigCommand {
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
                check(&Sources::of_file(&file))?.iter().for_each(|remark| note(remark));
                say(&format!("{}: no problems\n", file.display()))
            }
            Self::Default => say(&default_toml()),
        }
    }
}

/// What the configuration says of itself, and what only those can tell who run it. Returns what may
/// be wrong.
fn check(sources: &Sources) -> Result<Vec<String>, Problems> {
    let mut draft = draft(sources)?;
    let remarks = preflight::look(&mut draft);
    draft.finish().map(|_| remarks)
}
