//! `interlock config`: show, check and explain.

use std::path::PathBuf;

use clap::Subcommand;
use interlock_config::{Problems, Sources, default_toml, draft, load};

use crate::settings::Settings;
use crate::{note, preflight, say};

#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Print the settings in effect, and where each value comes from
    ///
    /// The output is TOML. Secrets are masked, so the output can go into a bug report.
    Show(Settings),
    /// Check a configuration file and report every problem, with its key, value and line
    ///
    /// The check covers keys, types and ranges, and what `interlock serve` will need on this machine:
    /// each model's files, tokenizer and chat template can be read, and the memory for its cache
    /// suffices (a model that is still to be pulled is only mentioned); each policy's component exists
    /// (a relative path counts from the working directory), fits this host, accepts its settings and
    /// does not conflict with the other policies; records can be written; and the addresses are this
    /// machine's. The check changes nothing, does not connect to Redis, and ignores INTERLOCK__
    /// variables. Exit status: 0 without a problem, 2 with one.
    Check {
        /// The configuration file
        file: PathBuf,
    },
    /// Print a configuration file with every setting at its default, and what each is for
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
