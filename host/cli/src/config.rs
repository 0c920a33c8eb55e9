//! `interlock config`: show, check and explain.

use std::path::PathBuf;

use clap::Subcommand;
use interlock_catalog::ModelRef;
use interlock_config::{Draft, Problems, Sources, default_toml, draft, load};
use interlock_policy::{PolicyConfig, PolicyHost, Unfit};
use interlock_sim::SimSettings;

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
    /// Checks keys, types and ranges, the settings of a simulated model, and every policy: that its
    /// component is there (a relative path counts from the working directory), fits this host, and
    /// accepts its settings. Looks neither at the environment nor at whether the model is there.
    /// Exits with 2 when there is a problem.
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
                check(&Sources::of_file(&file))?;
                say(&format!("{}: no problems\n", file.display()))
            }
            Self::Default => say(&default_toml()),
        }
    }
}

/// What the configuration says of itself, and what only those can tell who run it.
fn check(sources: &Sources) -> Result<(), Problems> {
    let mut draft = draft(sources)?;
    check_models(&mut draft);
    check_policies(&mut draft);
    draft.finish().map(|_| ())
}

fn check_models(draft: &mut Draft) {
    let extra = draft.extra_models();
    let extra = extra.map(|(at, extra)| (format!("extra_model.{at}"), &extra.reference));
    let first = std::iter::once(("model".to_owned(), &draft.config.model.reference));
    let problems: Vec<_> = first
        .chain(extra)
        .filter_map(|(section, reference)| {
            let ModelRef::Sim { settings, .. } = reference else { return None };
            let error = settings.parse::<SimSettings>().err()?;
            let key = format!("{section}.reference");
            let text = format!("{key} cannot be read: {error}, got {:?}", reference.to_string());
            Some((key, text))
        })
        .collect();
    for (key, text) in problems {
        draft.add(&key, text);
    }
}

fn check_policies(draft: &mut Draft) {
    let host = match PolicyHost::new() {
        Ok(host) => host,
        Err(error) => return draft.add("policy", format!("policy cannot be checked: {error}")),
    };
    let mut failures = Vec::new();
    for (at, policy) in draft.policies() {
        let PolicyConfig { name, source, settings, .. } = policy;
        // What the configuration finds wrong it reports; a better one is asked for the rest.
        let mended = (!policy.problems().is_empty()).then(|| PolicyConfig {
            settings: settings.clone(),
            ..PolicyConfig::new("mended", source.clone())
        });
        let Err(failed) = host.load(mended.as_ref().unwrap_or(policy)) else { continue };
        let key = match &failed.why {
            Unfit::Config(_) => continue,
            Unfit::Settings(_) => "settings",
            _ => "source",
        };
        let text = format!("policy[{at}] {name:?} ({source}): {}", failed.why);
        failures.push((format!("policy.{at}.{key}"), text));
    }
    for (key, text) in failures {
        draft.add(&key, text);
    }
}
