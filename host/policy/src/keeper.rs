//! Keeps the policies of a host at work: loads them, replaces them while requests go on, and takes
//! a replacement back.
//!
//! ```text
//! file changed ─┐
//! SIGHUP        ├─► compile ─► init ─► a chain that shares what did not change ─► swap
//! admin         ┘   (this thread; requests go on with what is there)               │
//!                                       quarantined within a minute ◄──────────────┘
//!                                                  └─► what was there before is back
//! ```
//!
//! # Invariants
//!
//! - A policy that does not load changes nothing: the one that was there stays.
//! - A request stays with the chain that it began with; a policy that was replaced lives until the
//!   last such request is gone and it is too old to be rolled back to.
//! - One change at a time. Whoever only looks never waits for one.

use std::collections::{HashMap, VecDeque};
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::{self, JoinHandle, Thread};
use std::time::{Duration, Instant};

use interlock_admission::{Ceilings, Commons, Link, Policies, Policy as _, PolicyMode};
use serde_json::json;

use crate::fit::interface_of;
use crate::host::Compiled;
use crate::load::Bytes;
use crate::{Digest, LoadFailed, PolicyConfig, PolicyHost, PolicySource, Unfit, WasmPolicy};

/// Generations that can be gone back to: as many as `Policies` keeps.
const KEPT: usize = 3;

/// How long a new generation is on probation.
const PROBATION: Duration = Duration::from_secs(60);

/// How often it is looked at meanwhile.
const LOOK: Duration = Duration::from_secs(1);

/// The policies of a host, and how they change.
pub struct Keeper {
    host: PolicyHost,
    policies: Arc<Policies>,
    // Held for as long as a change takes, compiling included.
    changing: Mutex<()>,
    // Held for a look or a push.
    book: Mutex<Book>,
}

/// What there is and what there was.
struct Book {
    entries: Vec<Entry>,
    past: VecDeque<Vec<Entry>>,
    probation: Option<Probation>,
    /// Files that were found not to do, so that each is complained about once.
    refused: HashMap<String, Digest>,
}

/// A generation that has to prove itself.
struct Probation {
    generation: u64,
    until: Instant,
    policies: Vec<(Arc<WasmPolicy>, u64)>,
}

/// A policy in its place.
#[derive(Clone)]
struct Entry {
    config: PolicyConfig,
    compiled: Arc<Compiled>,
    policy: Arc<WasmPolicy>,
    /// While it is in canary or shadow: who decides in its place.
    previous: Option<Arc<WasmPolicy>>,
    /// The file as it was when it was last looked at.
    stamp: Option<Stamp>,
    loaded_at: std::time::SystemTime,
}

/// What a file has to change for its content to be read again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    modified: (i64, i64),
    size: u64,
    inode: u64,
}

/// What is to change of a policy. What is not said stays as it is.
#[derive(Debug, Clone, Default)]
pub struct Change {
    /// The component itself.
    pub component: Option<Vec<u8>>,
    /// Where it is, when it is not here.
    pub source: Option<PolicySource>,
    /// What it reads.
    pub settings: Option<serde_json::Map<String, serde_json::Value>>,
    /// Whether it decides.
    pub mode: Option<PolicyMode>,
}

/// Why nothing changed.
#[derive(Debug, thiserror::Error)]
pub enum NotChanged {
    /// There is no such policy.
    #[error("no policy is called {0:?}")]
    Unknown(String),
    /// The new one cannot be loaded.
    #[error(transparent)]
    Load(#[from] LoadFailed),
}

impl Keeper {
    /// Loads these policies and makes the first generation of them.
    ///
    /// # Errors
    ///
    /// Every policy that cannot be loaded, and why.
    pub fn new(
        host: PolicyHost,
        configs: &[PolicyConfig],
        ceilings: Ceilings,
        commons: impl Into<Commons>,
    ) -> Result<Arc<Self>, Vec<LoadFailed>> {
        let entries = load_all(&host, configs, &[])?;
        let policies = Arc::new(Policies::new(links(&entries), ceilings, commons));
        let book =
            Book { entries, past: VecDeque::new(), probation: None, refused: HashMap::new() };
        Ok(Arc::new(Self { host, policies, changing: Mutex::default(), book: Mutex::new(book) }))
    }

    /// Where requests get their chain.
    pub fn policies(&self) -> &Arc<Policies> {
        &self.policies
    }

    /// What there is, for people and programs.
    pub fn list(&self) -> serde_json::Value {
        let book = self.book();
        let entry = |entry: &Entry| {
            let description = entry.policy.describe();
            let phases: Vec<_> = description.phases.iter().map(|p| interface_of(*p)).collect();
            json!({
                "name": entry.config.name,
                "source": entry.config.source.to_string(),
                "sha256": description.digest.as_str(),
                "itself": description.says.as_ref().map(|says| &says.name),
                "version": entry.policy.version(),
                "wit": description.wit,
                "phases": phases,
                "mode": entry.config.mode.to_string(),
                "grants": entry.config.grants,
                "quarantines": entry.policy.quarantines(),
                "loaded_at": seconds(entry.loaded_at),
                "instead": entry.previous.as_ref().map(|p| p.describe().digest.as_str()),
            })
        };
        json!({
            "generation": self.policies.current().generation(),
            "earlier": book.past.len(),
            "policies": book.entries.iter().map(entry).collect::<Vec<_>>(),
        })
    }

    /// Replaces a policy: compiles it, has it read its settings, and gives it to the requests that
    /// come from now on. Takes as long as compiling does; call it where that may be.
    ///
    /// # Errors
    ///
    /// When there is no such policy or the new one cannot be loaded; nothing has changed then.
    pub fn replace(&self, name: &str, change: Change) -> Result<u64, NotChanged> {
        let _changing = self.changing();
        let entries = self.book().entries.clone();
        let at = entries.iter().position(|entry| entry.config.name == name);
        let at = at.ok_or_else(|| NotChanged::Unknown(name.to_owned()))?;
        let mut entries = entries;
        let replaced = self.changed(&entries[at], change);
        entries[at] = replaced.inspect_err(|failed| {
            self.policies.swap_failed();
            tracing::error!(policy = name, %failed, "policy not replaced: the one that was there stays");
        })?;
        Ok(self.swap(entries))
    }

    /// Makes the policies those of another configuration; what did not change is shared. Files are
    /// read again, so with the same configuration this is what SIGHUP wants. `None`: nothing has
    /// changed.
    ///
    /// # Errors
    ///
    /// Every policy that cannot be loaded; nothing has changed then.
    pub fn reconfigure(&self, configs: &[PolicyConfig]) -> Result<Option<u64>, Vec<LoadFailed>> {
        let _changing = self.changing();
        let before = self.book().entries.clone();
        let entries = load_all(&self.host, configs, &before).inspect_err(|failed| {
            self.policies.swap_failed();
            for failed in failed {
                tracing::error!(%failed, "policies not changed: what was there stays");
            }
        })?;
        let same = entries.len() == before.len()
            && entries.iter().zip(&before).all(|(new, old)| {
                new.config == old.config && Arc::ptr_eq(&new.policy, &old.policy)
            });
        if same {
            self.book().entries = entries;
            return Ok(None);
        }
        Ok(Some(self.swap(entries)))
    }

    /// Reads the files of all policies again, as SIGHUP asks for.
    ///
    /// # Errors
    ///
    /// As [`Keeper::reconfigure`].
    pub fn reload(&self) -> Result<Option<u64>, Vec<LoadFailed>> {
        let configs: Vec<_> = self.book().entries.iter().map(|e| e.config.clone()).collect();
        self.reconfigure(&configs)
    }

    /// Takes the last change back; the number of the generation that is back. `None`: there is
    /// none to go back to.
    pub fn rollback(&self) -> Option<u64> {
        let _changing = self.changing();
        let generation = self.policies.rollback()?;
        self.went_back();
        Some(generation)
    }

    /// Looks after the policies on a thread of its own, called `interlock-policies`, until what it
    /// returns is dropped: files that change are loaded, each `every` so often (`None`: they are
    /// not looked at), and a replacement that ends up in quarantine within a minute is taken back.
    ///
    /// # Errors
    ///
    /// When there is no room for a thread.
    pub fn look_after(self: &Arc<Self>, every: Option<Duration>) -> std::io::Result<LookingAfter> {
        let keeper = Arc::downgrade(self);
        let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::Builder::new()
            .name("interlock-policies".into())
            .spawn(move || look_after(&keeper, every, &stopped))?;
        let handle = thread.thread().clone();
        Ok(LookingAfter { stop, handle, thread: Some(thread) })
    }

    /// Loads the files that changed since they were last looked at.
    pub fn look_at_files(&self) {
        let names: Vec<String> = {
            let mut book = self.book();
            let mut changed = Vec::new();
            for entry in &mut book.entries {
                let now = stamp(&entry.config.source);
                // One that is not there now is in the middle of being replaced, or a mistake that
                // the next start will name.
                if now.is_some() && now != entry.stamp {
                    entry.stamp = now;
                    changed.push(entry.config.name.clone());
                }
            }
            changed
        };
        for name in names {
            self.look_at(&name);
        }
    }

    fn look_at(&self, name: &str) {
        let found = {
            let book = self.book();
            book.entries.iter().find(|entry| entry.config.name == name).cloned()
        };
        let Some(entry) = found else { return };
        let Ok(bytes) = Bytes::read(&entry.config.source) else {
            // Likely half of it; the other half will change the stamp once more.
            tracing::warn!(policy = name, from = %entry.config.source, "a policy's file changed, and cannot be read");
            return;
        };
        let known = bytes.digest == entry.compiled.digest
            || self.book().refused.get(name) == Some(&bytes.digest);
        if known {
            return;
        }
        let digest = bytes.digest.clone();
        tracing::info!(policy = name, from = %entry.config.source, %digest, "a policy's file changed");
        let source = Some(entry.config.source);
        // It is read once more there; what counts is that it is whole.
        if self.replace(name, Change { source, ..Change::default() }).is_err() {
            self.book().refused.insert(name.to_owned(), digest);
        }
    }

    /// Is the current generation on probation? Takes it back if it failed.
    fn judge(&self) -> bool {
        let failed = {
            let mut book = self.book();
            let Some(probation) = &book.probation else { return false };
            let failed = probation.policies.iter().find(|(p, before)| p.quarantines() > *before);
            let failed = failed.map(|(policy, _)| Arc::clone(policy));
            if failed.is_none() && Instant::now() > probation.until {
                book.probation = None;
                return false;
            }
            failed
        };
        let Some(policy) = failed else { return true };
        let _changing = self.changing();
        let Some(probation) = self.book().probation.take() else { return false };
        if let Some(generation) = self.policies.restore_before(probation.generation) {
            let digest = policy.describe().digest.clone();
            tracing::error!(
                policy = policy.name(), %digest, from = probation.generation, generation,
                "a policy was quarantined right after it was replaced: the one before is back"
            );
            self.went_back();
            self.book().refused.insert(policy.name().to_owned(), digest);
        }
        false
    }

    /// The entry with what is to change of it.
    fn changed(&self, old: &Entry, change: Change) -> Result<Entry, LoadFailed> {
        let mut config = old.config.clone();
        let given = change.component.is_some() || change.source.is_some();
        // In shadow it has a state of its own, so what comes out of it begins anew.
        let shadow = |mode: PolicyMode| mode == PolicyMode::Shadow;
        let moved = change.mode.is_some_and(|mode| shadow(mode) != shadow(config.mode));
        let fresh = given || moved || change.settings.is_some();
        if let Some(source) = change.source {
            config.source = source;
        }
        if let Some(settings) = change.settings {
            config.settings = settings;
        }
        config.mode = change.mode.unwrap_or(config.mode);
        let stamp = if given { stamp(&config.source) } else { old.stamp };
        let compiled = match change.component {
            Some(bytes) => self.host.compile(&config, Bytes::new(bytes.into()))?,
            None if given => self.host.compile(&config, Bytes::read(&config.source))?,
            // Only what it is told changes: there is nothing to compile.
            None => Arc::clone(&old.compiled),
        };
        let policy = if fresh {
            self.host.load_compiled(&config, &compiled)?
        } else {
            Arc::clone(&old.policy)
        };
        let mut entry = Entry { config, compiled, policy, stamp, ..old.clone() };
        entry.succeeds(old);
        Ok(entry)
    }

    fn swap(&self, entries: Vec<Entry>) -> u64 {
        let generation = self.policies.swap(links(&entries));
        let mut book = self.book();
        let before = std::mem::replace(&mut book.entries, entries);
        let known =
            |policy: &Arc<WasmPolicy>| before.iter().any(|e| Arc::ptr_eq(&e.policy, policy));
        let fresh = book.entries.iter().map(|e| &e.policy).filter(|policy| !known(policy));
        let policies = fresh.map(|policy| (Arc::clone(policy), policy.quarantines())).collect();
        let until = Instant::now() + PROBATION;
        book.probation = Some(Probation { generation, until, policies });
        book.past.push_back(before);
        if book.past.len() > KEPT {
            book.past.pop_front();
        }
        generation
    }

    fn went_back(&self) {
        let mut book = self.book();
        book.probation = None;
        if let Some(before) = book.past.pop_back() {
            for entry in &before {
                entry.policy.show_metrics();
            }
            // What the files have now is what was taken back: only a further change counts.
            let stamps: Vec<_> = before.iter().map(|entry| stamp(&entry.config.source)).collect();
            book.entries = before;
            for (entry, stamp) in book.entries.iter_mut().zip(stamps) {
                entry.stamp = stamp;
            }
        }
    }

    fn changing(&self) -> MutexGuard<'_, ()> {
        // Whoever panicked changed nothing: a swap is the last step.
        self.changing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Keeper {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keeper").field("policies", &self.policies).finish_non_exhaustive()
    }
}

impl Entry {
    /// Takes the place of another: while it does not decide for everyone, the last one that did
    /// decides for the others.
    fn succeeds(&mut self, old: &Self) {
        let decided = if old.config.mode == PolicyMode::Enforce {
            Some(Arc::clone(&old.policy))
        } else {
            old.previous.clone()
        };
        let itself = decided.as_ref().is_some_and(|policy| Arc::ptr_eq(policy, &self.policy));
        let tried = self.config.mode != PolicyMode::Enforce;
        self.previous = decided.filter(|_| tried && !itself);
        if !Arc::ptr_eq(&self.policy, &old.policy) {
            self.loaded_at = std::time::SystemTime::now();
        }
    }
}

/// Loads what is not among these already: the same component with the same configuration is the
/// same policy.
fn load_all(
    host: &PolicyHost,
    configs: &[PolicyConfig],
    before: &[Entry],
) -> Result<Vec<Entry>, Vec<LoadFailed>> {
    let (mut entries, mut failures) = (Vec::new(), Vec::new());
    for config in configs {
        let old = before.iter().find(|entry| entry.config.name == config.name);
        match load_one(host, config, old) {
            Ok(entry) => entries.push(entry),
            Err(failed) => failures.push(failed),
        }
    }
    if failures.is_empty() { Ok(entries) } else { Err(failures) }
}

fn load_one(
    host: &PolicyHost,
    config: &PolicyConfig,
    old: Option<&Entry>,
) -> Result<Entry, LoadFailed> {
    let stamp = stamp(&config.source);
    let bytes = Bytes::read(&config.source);
    let same_code =
        |old: &&Entry| bytes.as_ref().is_ok_and(|bytes| bytes.digest == old.compiled.digest);
    // What the policy itself does not read can change without it.
    let same_policy = |old: &&Entry| {
        let shadow = |mode: PolicyMode| mode == PolicyMode::Shadow;
        let moved = shadow(old.config.mode) != shadow(config.mode);
        let known = PolicyConfig {
            mode: if moved { old.config.mode } else { config.mode },
            on_failure: config.on_failure,
            weight: config.weight,
            soft_deadline: config.soft_deadline,
            source: config.source.clone(),
            ..old.config.clone()
        };
        known == *config
    };
    let coded = old.filter(same_code);
    let compiled = match coded {
        Some(old) => Arc::clone(&old.compiled),
        None => host.compile(config, bytes)?,
    };
    let policy = match coded.filter(same_policy) {
        Some(old) => Arc::clone(&old.policy),
        None => host.load_compiled(config, &compiled)?,
    };
    let mut entry = Entry {
        config: config.clone(),
        compiled,
        policy,
        previous: None,
        stamp,
        loaded_at: old.map_or_else(std::time::SystemTime::now, |old| old.loaded_at),
    };
    if let Some(old) = old {
        entry.succeeds(old);
    }
    Ok(entry)
}

fn links(entries: &[Entry]) -> Vec<Link> {
    let link = |entry: &Entry| Link {
        previous: entry
            .previous
            .clone()
            .map(|policy| policy as Arc<dyn interlock_admission::Policy>),
        ..entry.config.link(Arc::clone(&entry.policy) as Arc<dyn interlock_admission::Policy>)
    };
    entries.iter().map(link).collect()
}

fn stamp(source: &PolicySource) -> Option<Stamp> {
    let PolicySource::File(path) = source else { return None };
    let found = fs::metadata(path).ok()?;
    let modified = (found.mtime(), found.mtime_nsec());
    Some(Stamp { modified, size: found.size(), inode: found.ino() })
}

fn seconds(at: std::time::SystemTime) -> u64 {
    at.duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// A thread that looks after policies, until this is dropped.
#[derive(Debug)]
pub struct LookingAfter {
    stop: Arc<std::sync::atomic::AtomicBool>,
    handle: Thread,
    // None only while being dropped.
    thread: Option<JoinHandle<()>>,
}

impl Drop for LookingAfter {
    fn drop(&mut self) {
        self.stop.store(true, std::sync::atomic::Ordering::SeqCst);
        self.handle.unpark();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn look_after(
    keeper: &Weak<Keeper>,
    every: Option<Duration>,
    stop: &std::sync::atomic::AtomicBool,
) {
    let mut looked = Instant::now();
    // A change may put a generation on probation at any time, so it is asked about each second.
    let pause = every.map_or(LOOK, |every| every.min(LOOK));
    while !stop.load(std::sync::atomic::Ordering::SeqCst) {
        thread::park_timeout(pause);
        let Some(keeper) = keeper.upgrade() else { return };
        keeper.judge();
        if every.is_some_and(|every| looked.elapsed() >= every) {
            keeper.look_at_files();
            looked = Instant::now();
        }
    }
}

impl PolicyHost {
    fn compile(
        &self,
        config: &PolicyConfig,
        bytes: Result<Bytes, Unfit>,
    ) -> Result<Arc<Compiled>, LoadFailed> {
        let failed =
            |why| LoadFailed { policy: config.name.clone(), from: config.source.clone(), why };
        let problems = config.problems();
        if !problems.is_empty() {
            return Err(failed(Unfit::Config(problems)));
        }
        bytes.and_then(|bytes| self.shared().compile(&bytes)).map(Arc::new).map_err(failed)
    }

    fn load_compiled(
        &self,
        config: &PolicyConfig,
        compiled: &Compiled,
    ) -> Result<Arc<WasmPolicy>, LoadFailed> {
        Ok(Arc::new(WasmPolicy::new(self.shared(), config, compiled)?))
    }
}
