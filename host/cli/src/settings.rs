//! The flags that are settings, shared by `serve` and `config show`.

use std::ffi::OsStr;
use std::path::PathBuf;

use clap::Args;
use clap::builder::TypedValueParser;
use clap::error::ErrorKind;
use interlock_config::{Effective, Flag, Problems, Sources, load};

/// Where settings come from. Later wins: default, file, environment, flag.
#[derive(Debug, Args)]
pub(crate) struct Settings {
    /// Read this file instead of $INTERLOCK_CONFIG, ./interlock.toml or /etc/interlock/interlock.toml
    ///
    /// The first of these that is there is read, and no other.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,

    /// The model: a built-in name, a folder, a .gguf file, hf:org/name, or sim:...
    ///
    /// Short for --set model.reference=REF. `sim:decode=20ms,prefill=1ms` is a simulated model: it
    /// computes nothing in the time it is told to take, for trying policies and clients.
    #[arg(long, value_name = "REF")]
    model: Option<String>,

    /// Address and port to listen on; port 0 takes any that is free
    ///
    /// Short for --set server.bind=ADDR:PORT.
    #[arg(long, value_name = "ADDR:PORT")]
    bind: Option<String>,

    /// Any setting; may be repeated. `interlock config default` lists them all
    ///
    /// A text needs no quotes, a list may be written a,b. The same from the environment:
    /// INTERLOCK__SECTION__KEY=value.
    #[arg(long = "set", value_name = "SECTION.KEY=VALUE", value_parser = SetParser)]
    set: Vec<Flag>,
}

/// Reads a `--set`. Where it cannot, it says so without quoting it, as clap would: it may be a secret.
#[derive(Clone)]
struct SetParser;

impl TypedValueParser for SetParser {
    type Value = Flag;

    fn parse_ref(
        &self,
        command: &clap::Command,
        _: Option<&clap::Arg>,
        value: &OsStr,
    ) -> Result<Flag, clap::Error> {
        Flag::set(&value.to_string_lossy()).ok_or_else(|| {
            let why = "a --set is section.key=value; one is not, and may be a secret, so it is not \
                       shown";
            command.clone().error(ErrorKind::ValueValidation, why)
        })
    }
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

    pub(crate) fn load(&self) -> Result<Effective, Problems> {
        load(&self.sources())
    }
}
