//! One state of all policies: loading it, comparing it, and putting it in place.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::sync::Arc;
use std::time::SystemTime;

use interlock_policy_api::Policy as _;
use interlock_policy_chain::{ChainEntry, PolicyMode};
use interlock_request::without_logins;

use super::change::{PolicyChange, PolicyVersion};
use crate::compiled::Compiled;
use crate::load::ComponentBytes;
use crate::{LoadFailed, LoadProblem, PolicyConfig, PolicyHost, PolicySource, WasmPolicy};

/// A policy in its place.
#[derive(Clone)]
pub(super) struct ManagedPolicy {
    pub(super) config: PolicyConfig,
    pub(super) compiled: Arc<Compiled>,
    pub(super) policy: Arc<WasmPolicy>,
    /// While it is in canary or shadow: who decides in its place.
    pub(super) previous: Option<Arc<WasmPolicy>>,
    /// The file as it was when it was last looked at.
    pub(super) stamp: Option<FileStamp>,
    pub(super) loaded_at: SystemTime,
    /// Was the component itself sent here? Then the source holds another one, or an older one.
    pub(super) posted: bool,
}

/// What a file has to change for its content to be read again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FileStamp {
    pub(super) modified: (i64, i64),
    pub(super) size: u64,
    pub(super) inode: u64,
}

impl ManagedPolicy {
    /// Takes the place of another: while it does not decide for everyone, the last one that did
    /// decides for the others.
    pub(super) fn succeeds(&mut self, old: &Self) {
        let decided = if old.config.mode == PolicyMode::Enforce {
            Some(Arc::clone(&old.policy))
        } else {
            old.previous.clone()
        };
        let itself = decided.as_ref().is_some_and(|policy| Arc::ptr_eq(policy, &self.policy));
        let tried = self.config.mode != PolicyMode::Enforce;
        self.previous = decided.filter(|_| tried && !itself);
        if !Arc::ptr_eq(&self.policy, &old.policy) {
            self.loaded_at = SystemTime::now();
        }
    }

    /// Does it decide as that one does?
    pub(super) fn is_same_as(&self, other: &Self) -> bool {
        self.config == other.config && Arc::ptr_eq(&self.policy, &other.policy)
    }

    /// What a person needs to tell it from others.
    pub(super) fn version(&self) -> PolicyVersion {
        PolicyVersion {
            version: self.policy.version().to_owned(),
            sha256: self.compiled.digest.clone(),
            mode: self.config.mode,
            source: without_logins(&self.config.source.to_string()),
            posted: self.posted,
        }
    }
}

pub(super) fn all_same(before: &[ManagedPolicy], now: &[ManagedPolicy]) -> bool {
    before.len() == now.len() && now.iter().zip(before).all(|(new, old)| new.is_same_as(old))
}

/// What differs between these entries and those, policy by policy.
pub(super) fn changes(before: &[ManagedPolicy], now: &[ManagedPolicy]) -> Vec<PolicyChange> {
    let named = |entries: &'_ [ManagedPolicy], name: &str| {
        entries.iter().find(|entry| entry.config.name == name).cloned()
    };
    let change = |name: &String| {
        let (from, to) = (named(before, name), named(now, name));
        let both = from.as_ref().zip(to.as_ref());
        let same = both.is_some_and(|(from, to)| to.is_same_as(from));
        let settings_changed =
            both.is_some_and(|(from, to)| to.config.settings != from.config.settings);
        let (from, to) =
            (from.as_ref().map(ManagedPolicy::version), to.as_ref().map(ManagedPolicy::version));
        (!same).then(|| PolicyChange { policy: name.clone(), from, to, settings_changed })
    };
    let gone = before.iter().filter(|old| named(now, &old.config.name).is_none());
    now.iter().chain(gone).filter_map(|entry| change(&entry.config.name)).collect()
}

/// Loads what is not among these already: the same component with the same configuration is the
/// same policy.
pub(super) fn load_all(
    host: &PolicyHost,
    configs: &[PolicyConfig],
    before: &[ManagedPolicy],
) -> Result<Vec<ManagedPolicy>, Vec<LoadFailed>> {
    let (mut entries, mut failures) = (Vec::new(), Vec::new());
    for config in configs {
        let old = before.iter().find(|entry| entry.config.name == config.name);
        let (stamp, component) = (stamp(&config.source), ComponentBytes::read(&config.source));
        match load_one(host, config.clone(), stamp, Some(component), old) {
            Ok(entry) => entries.push(entry),
            Err(failed) => failures.push(failed),
        }
    }
    if failures.is_empty() {
        failures = contradictions(&entries);
    }
    if failures.is_empty() { Ok(entries) } else { Err(failures) }
}

/// Policies whose metrics cannot be shown together.
pub(super) fn contradictions(entries: &[ManagedPolicy]) -> Vec<LoadFailed> {
    let contradiction = |(at, entry): (usize, &ManagedPolicy)| {
        let previous = entries.iter().filter_map(|other| other.previous.as_ref());
        let mut others = entries[..at].iter().map(|other| &other.policy).chain(previous);
        let why = others.find_map(|other| entry.policy.contradicts(other))?;
        let (policy, from) = (entry.config.name.clone(), entry.config.source.clone());
        Some(LoadFailed { policy, from, why: LoadProblem::Descriptor(why) })
    };
    entries.iter().enumerate().filter_map(contradiction).collect()
}

/// Is this policy in one of these places?
pub(super) fn has(entries: &[ManagedPolicy], policy: &Arc<WasmPolicy>) -> bool {
    entries.iter().any(|entry| Arc::ptr_eq(&entry.policy, policy))
}

/// The entry of this configuration, which shares with the old one of its name whatever stays the
/// same.
///
/// `component`: `None` where it is the old one's, or else what its source has.
pub(super) fn load_one(
    host: &PolicyHost,
    config: PolicyConfig,
    stamp: Option<FileStamp>,
    component: Option<Result<ComponentBytes, LoadProblem>>,
    old: Option<&ManagedPolicy>,
) -> Result<ManagedPolicy, LoadFailed> {
    let is_of = |bytes: &Result<ComponentBytes, LoadProblem>, old: &ManagedPolicy| {
        bytes.as_ref().is_ok_and(|bytes| bytes.digest == old.compiled.digest)
    };
    let coded = old.filter(|old| component.as_ref().is_none_or(|bytes| is_of(bytes, old)));
    let compiled =
        match coded {
            // Only what it is told changes: there is nothing to compile.
            Some(old) => Arc::clone(&old.compiled),
            None => Arc::new(host.compile(
                &config,
                component.unwrap_or_else(|| ComponentBytes::read(&config.source)),
            )?),
        };
    let policy = match coded.filter(|old| reads_the_same(&old.config, &config)) {
        Some(old) => Arc::clone(&old.policy),
        None => host.load_compiled(&config, &compiled)?,
    };
    let loaded_at = old.map_or_else(SystemTime::now, |old| old.loaded_at);
    let mut entry =
        ManagedPolicy { config, compiled, policy, previous: None, stamp, loaded_at, posted: false };
    if let Some(old) = old {
        entry.succeeds(old);
    }
    Ok(entry)
}

/// Is a policy of the one configuration also one of the other? What it does not read itself can
/// change without it.
pub(super) fn reads_the_same(before: &PolicyConfig, now: &PolicyConfig) -> bool {
    // In shadow it has a state of its own, so what comes out of it begins anew.
    let shadow = |mode: PolicyMode| mode == PolicyMode::Shadow;
    let moved = shadow(before.mode) != shadow(now.mode);
    let known = PolicyConfig {
        mode: if moved { before.mode } else { now.mode },
        on_failure: now.on_failure,
        weight: now.weight,
        soft_deadline: now.soft_deadline,
        source: now.source.clone(),
        ..before.clone()
    };
    known == *now
}

pub(super) fn chain_entries(entries: &[ManagedPolicy]) -> Vec<ChainEntry> {
    let chain_entry = |entry: &ManagedPolicy| ChainEntry {
        previous: entry
            .previous
            .clone()
            .map(|policy| policy as Arc<dyn interlock_policy_api::Policy>),
        ..entry
            .config
            .chain_entry(Arc::clone(&entry.policy) as Arc<dyn interlock_policy_api::Policy>)
    };
    entries.iter().map(chain_entry).collect()
}

pub(super) fn stamp(source: &PolicySource) -> Option<FileStamp> {
    let PolicySource::File(path) = source else { return None };
    let found = fs::metadata(path).ok()?;
    let modified = (found.mtime(), found.mtime_nsec());
    Some(FileStamp { modified, size: found.size(), inode: found.ino() })
}

/// These entries are in place from now on, in place of those.
pub(super) fn in_place(host: &PolicyHost, before: &[ManagedPolicy], now: &[ManagedPolicy]) {
    let both = |entry: &ManagedPolicy| {
        std::iter::once(Arc::clone(&entry.policy)).chain(entry.previous.clone())
    };
    let serving: Vec<_> = now.iter().flat_map(both).collect();
    for gone in before.iter().flat_map(both) {
        if !serving.iter().any(|policy| Arc::ptr_eq(policy, &gone)) {
            gone.retire();
        }
    }
    // Those that share a name share their metrics, and the one that is new is shown.
    let shown = |entry: &ManagedPolicy| {
        let apart = |previous: &Arc<WasmPolicy>| previous.own() != entry.policy.own();
        [Some(Arc::clone(&entry.policy)), entry.previous.clone().filter(apart)]
    };
    let shown: Vec<_> = now.iter().flat_map(shown).flatten().collect();
    for policy in &serving {
        policy.serve(shown.iter().any(|shown| Arc::ptr_eq(shown, policy)));
    }
    host.shared().metrics.plugins.show_only(shown.iter().filter_map(|policy| policy.shown()));
}
