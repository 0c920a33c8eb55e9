//! The flags that are settings, shared by `serve` and `config show`.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::Args;
use interlock_config::{ConfigDraft, Flag, LogConfig, Problems, Sources, draft};

/// The sources of the settings. Later ones win: default, file, environment, flag.
#[derive(Debug, Args)]
pub(crate) struct Settings {
    /// Read this file instead of $INTERLOCK_CONFIG, ./interlock.toml or /etc/interlock/interlock.toml
    ///
    /// Without --config, the first of these files that exists is read, and no other.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,

    /// The model: a built-in name, a folder, a .gguf file, hf:org/name, or sim:...
    ///
    /// Short for --set model.reference=REF. `sim:decode=20ms,prefill=1ms` is a simulated model for
    /// trying out policies and clients: it computes nothing, and takes the time that it is told to.
    #[arg(long, value_name = "REF")]
    model: Option<String>,

    /// Address and port to listen on; port 0 takes any that is free
    ///
    /// Short for --set server.bind=ADDR:PORT.
    #[arg(long, value_name = "ADDR:PORT")]
    bind: Option<String>,

    /// Set any setting; can be repeated. `interlock config default` lists all settings
    ///
    /// A text needs no quotes, and a list can be written a,b. An environment variable sets the same:
    /// INTERLOCK__SECTION__KEY=value.
    #[arg(long = "set", value_name = "SECTION.KEY=VALUE", value_parser = set)]
    set: Vec<Flag>,
}

fn set(text: &str) -> Result<Flag, String> {
    Flag::set(text).ok_or_else(|| NOT_A_SET.to_owned())
}

const NOT_A_SET: &str = "a --set is section.key=value";

/// What is wrong with a `--set`, before clap looks at the command line: clap would quote it, and what
/// stands behind it, and either may be a secret.
pub(crate) fn unreadable_set(arguments: impl IntoIterator<Item = OsString>) -> Option<String> {
    let mut arguments = arguments.into_iter();
    while let Some(argument) = arguments.next() {
        let argument = argument.to_string_lossy().into_owned();
        let text = match argument.strip_prefix("--set") {
            Some("") => arguments.next()?.to_string_lossy().into_owned(),
            Some(rest) if rest.starts_with('=') => rest[1..].to_owned(),
            _ => continue,
        };
        if Flag::set(&text).is_none() {
            return Some(format!("{NOT_A_SET}; one is not, and is not shown: it may be a secret"));
        }
    }
    None
}

impl Settings {
    pub(crate) fn sources(&self) -> Sources {
        // The dedicated flags last: who types both means the one that is harder to overlook.
        let mut flags = self.set.clone();
        let model = self.model.as_ref().map(|text| Flag::new("--model", "model.reference", text));
        let bind = self.bind.as_ref().map(|text| Flag::new("--bind", "server.bind", text));
        flags.extend(model.into_iter().chain(bind));
        Sources::of_process(self.config.clone(), flags)
    }

    /// What could be read; and how to log, also where the rest cannot be.
    pub(crate) fn draft(&self) -> (LogConfig, Result<ConfigDraft, Problems>) {
        let sources = self.sources();
        let read = draft(&sources);
        let log = match &read {
            Ok(draft) => draft.config.log.clone(),
            // The file cannot be read: flags and variables may say it all the same.
            Err(_) => draft(&Sources { file: None, ..sources })
                .map_or_else(|_| LogConfig::default(), |draft| draft.config.log),
        };
        let usable = log.problems().is_empty();
        let log =
            if usable { log } else { LogConfig { format: log.format, ..LogConfig::default() } };
        (log, read)
    }
}
