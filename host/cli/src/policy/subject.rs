//! Which policy a command is about, and with which grants and settings.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::Args;
use interlock_config::Sources;
use interlock_policy_chain::LimitsConfig;
use interlock_policy_wasm::{Grant, PolicyConfig, PolicySource};
use serde_json::{Map, Value};

use crate::BadUsage;

/// Longest file of a policy's settings.
const SETTINGS_BYTES_MAX: u64 = 1 << 20;

/// Longest file of cases, workloads or records that is read: as much as the host writes of records
/// into one file.
pub(crate) const FILE_BYTES_MAX: u64 = interlock_policy_chain::RECORD_BYTES_MAX;

#[derive(Debug, Args)]
pub(crate) struct Subject {
    /// A policy component's file, or builtin:NAME
    #[arg(value_name = "FILE|builtin:NAME", value_parser = source)]
    pub(crate) source: PolicySource,

    #[command(flatten)]
    pub(crate) circumstances: Circumstances,
}

#[derive(Debug, Args)]
pub(crate) struct Circumstances {
    /// Take grants, settings and limits from the `[[policy]]` of this configuration that has the same source
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,

    /// Take the `[[policy]]` of --config that has this name, whatever its source
    #[arg(long, value_name = "NAME", requires = "config")]
    name: Option<String>,

    /// Grant the policy access: state, metrics, headers:NAME, ...; can be repeated
    #[arg(long = "grant", value_name = "GRANT", conflicts_with = "config")]
    grants: Vec<Grant>,

    /// The policy's settings: JSON, or a JSON or TOML file
    #[arg(long, value_name = "JSON|FILE", value_parser = settings)]
    settings: Option<Map<String, Value>>,
}

pub(crate) fn source(text: &str) -> Result<PolicySource, String> {
    text.parse().map_err(|why: interlock_policy_wasm::BadSource| why.to_string())
}

pub(crate) fn settings(text: &str) -> Result<Map<String, Value>, String> {
    if text.trim_start().starts_with('{') {
        return serde_json::from_str(text).map_err(|why| why.to_string());
    }
    let read = interlock_files::read_text(Path::new(text), SETTINGS_BYTES_MAX);
    let read = read.map_err(|why| format!("cannot read {text}: {why}"))?;
    if Path::new(text).extension().is_some_and(|extension| extension == "json") {
        return serde_json::from_str(&read).map_err(|why| why.to_string());
    }
    // Its own text quotes the line, which may hold a secret.
    toml::from_str(&read).map_err(|why: toml::de::Error| {
        let before = why.span().and_then(|span| read.get(..span.start)).unwrap_or_default();
        format!("{text}, line {}: {}", before.lines().count().max(1), why.message())
    })
}

impl Subject {
    /// As an operator would configure it.
    pub(crate) fn policy(&self) -> anyhow::Result<PolicyConfig> {
        self.circumstances.policy(&self.source)
    }
}

impl Circumstances {
    /// Was something said about what it may reach?
    pub(crate) fn grants_said(&self) -> bool {
        self.config.is_some() || !self.grants.is_empty()
    }

    /// What --settings says.
    pub(crate) fn settings_said(&self) -> Option<&Map<String, Value>> {
        self.settings.as_ref()
    }

    /// `[limits]` of the configuration, or the default ones.
    pub(crate) fn limits(&self) -> anyhow::Result<LimitsConfig> {
        Ok(self.config.as_deref().map(load).transpose()?.unwrap_or_default().limits)
    }

    pub(crate) fn policy(&self, source: &PolicySource) -> anyhow::Result<PolicyConfig> {
        let mut policy = match &self.config {
            Some(path) => self.configured(path, source)?,
            None => PolicyConfig {
                grants: self.grants.clone(),
                ..PolicyConfig::new(name_of(source), source.clone())
            },
        };
        if let Some(settings) = &self.settings {
            policy.settings.clone_from(settings);
        }
        Ok(policy)
    }

    fn configured(&self, path: &Path, source: &PolicySource) -> anyhow::Result<PolicyConfig> {
        let policies = load(path)?.policy;
        let is_it = |policy: &&PolicyConfig| match &self.name {
            Some(name) => policy.name == *name,
            None => same(&policy.source, source),
        };
        let found: Vec<_> = policies.iter().filter(is_it).collect();
        match found[..] {
            [one] => Ok(PolicyConfig { source: source.clone(), ..one.clone() }),
            [] => {
                let names: Vec<_> = policies
                    .iter()
                    .map(|policy| format!("{} ({})", policy.name, policy.source))
                    .collect();
                bail!(BadUsage(format!(
                    "{} has no `[[policy]]` for {source}; it has {}. Say which with --name",
                    path.display(),
                    names.join(", ")
                )))
            }
            _ => bail!(BadUsage(format!(
                "{} has several `[[policy]]` for {source}; say which with --name",
                path.display()
            ))),
        }
    }
}

/// A configuration of this file alone: what the environment says is about the host that runs here.
pub(crate) fn load(path: &Path) -> anyhow::Result<interlock_config::Config> {
    let sources = Sources { file: Some(path.to_owned()), env: vec![], flags: vec![] };
    Ok(interlock_config::load(&sources)?.config)
}

/// Do both mean the same file? One of the same name somewhere else is taken for it: policies are
/// built in one place and served from another.
fn same(a: &PolicySource, b: &PolicySource) -> bool {
    match (a, b) {
        (PolicySource::File(a), PolicySource::File(b)) => a == b || a.file_name() == b.file_name(),
        (a, b) => a == b,
    }
}

/// What to call a policy that no configuration names.
pub(crate) fn name_of(source: &PolicySource) -> String {
    let name = match source {
        PolicySource::Builtin(name) => name.clone(),
        PolicySource::File(path) => {
            path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default()
        }
    };
    let plain = |c: char| match c.to_ascii_lowercase() {
        c if c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '_' => c,
        _ => '-',
    };
    let name: String = name.chars().take(64).map(plain).collect();
    if name.is_empty() { "policy".to_owned() } else { name }
}

/// A file that a command needs.
pub(crate) fn read(path: &Path) -> anyhow::Result<String> {
    let read = interlock_files::read_text(path, FILE_BYTES_MAX);
    read.with_context(|| format!("cannot read {}", path.display()))
}
