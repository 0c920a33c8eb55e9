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
//! - Whoever looks after policies goes on whatever a round comes to, a panic included.
//! - One change at a time. Whoever only looks never waits for one.
//! - A policy is on probation for its minute, whatever else is swapped meanwhile; and only a policy
//!   that is in place is taken back.

mod change;
mod list;
mod looking;

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use interlock_policy_api::{Ceilings, Policy as _};
use interlock_policy_chain::{
    ChainEntry, ChainShared, GenerationNotKept, Policies, PolicyMode, RollbackTarget,
};
use interlock_request::without_logins;

pub use change::{Changed, Origin, PolicyChange, PolicyVersion};
pub use looking::LookingAfter;

use crate::host::Compiled;
use crate::load::Bytes;
use crate::{Digest, LoadFailed, PolicyConfig, PolicyHost, PolicySource, Unfit, WasmPolicy};

/// How long a new policy is on probation.
const PROBATION: Duration = Duration::from_secs(60);

/// How often a file is tried that could not be loaded for a reason that passes.
const TRIES: u32 = 5;

/// The policies of a host, and how they change.
pub struct Keeper {
    host: PolicyHost,
    policies: Arc<Policies>,
    // Held for as long as a change takes, compiling included.
    changing: Mutex<()>,
    // Held for a look or a push.
    book: Mutex<Book>,
    /// How many have come to change something.
    #[cfg(test)]
    asked: std::sync::atomic::AtomicUsize,
}

/// The one change that is under way. It starts from what the change before it has left: whoever read
/// that before it was its turn would put back what was changed meanwhile.
struct Changing<'a> {
    _alone: MutexGuard<'a, ()>,
    entries: Vec<Entry>,
}

/// What there is and what there was.
struct Book {
    now: Generation,
    /// Those that `Policies` keeps, the start first.
    past: Vec<Generation>,
    probation: Vec<Trial>,
    /// Files that were found not to do, so that each is complained about once, by policy.
    refused: HashMap<String, Refusal>,
}

/// One state of all policies, and where it came from.
struct Generation {
    number: u64,
    origin: Origin,
    at: SystemTime,
    entries: Vec<Entry>,
}

/// A policy that has to prove itself.
struct Trial {
    policy: Arc<WasmPolicy>,
    /// The one that it came with.
    generation: u64,
    until: Instant,
    /// How often it was quarantined when it came.
    quarantines: u64,
    /// What was in its place.
    before: Option<Entry>,
}

impl Trial {
    fn failed(&self) -> bool {
        self.policy.quarantines() > self.quarantines
    }
}

/// A file that was tried in vain.
struct Refusal {
    digest: Digest,
    tries: u32,
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
    loaded_at: SystemTime,
    /// Was the component itself sent here? Then the source holds another one, or an older one.
    posted: bool,
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
        commons: impl Into<ChainShared>,
    ) -> Result<Arc<Self>, Vec<LoadFailed>> {
        let entries = load_all(&host, configs, &[])?;
        let policies = Arc::new(Policies::new(links(&entries), ceilings, commons));
        in_place(&host, &[], &entries);
        let number = policies.current().generation();
        let now = Generation { number, origin: Origin::Start, at: SystemTime::now(), entries };
        let book = Book { now, past: Vec::new(), probation: Vec::new(), refused: HashMap::new() };
        Ok(Arc::new(Self {
            host,
            policies,
            changing: Mutex::default(),
            book: Mutex::new(book),
            #[cfg(test)]
            asked: std::sync::atomic::AtomicUsize::new(0),
        }))
    }

    /// Where requests get their chain.
    pub fn policies(&self) -> &Arc<Policies> {
        &self.policies
    }

    /// Replaces a policy: compiles it, has it read its settings, and gives it to the requests that
    /// come from now on. Takes as long as compiling does; call it where that may be. The same
    /// component with the same settings and mode is the same policy, and nothing changes.
    ///
    /// # Errors
    ///
    /// When there is no such policy or the new one cannot be loaded; nothing has changed then.
    pub fn replace(&self, name: &str, change: Change) -> Result<Changed, NotChanged> {
        self.replace_by(name, change, None, Origin::Admin)
    }

    /// The same with a component that was read already.
    fn replace_by(
        &self,
        name: &str,
        change: Change,
        read: Option<Bytes>,
        origin: Origin,
    ) -> Result<Changed, NotChanged> {
        let changing = self.changing();
        let mut entries = changing.entries.clone();
        let at = entries.iter().position(|entry| entry.config.name == name);
        let at = at.ok_or_else(|| NotChanged::Unknown(name.to_owned()))?;
        let stays = entries[at].version();
        let replaced = self.changed(&entries[at], change, read).and_then(|entry| {
            entries[at] = entry;
            contradictions(&entries).pop().map_or(Ok(()), Err)
        });
        replaced.inspect_err(|failed| {
            self.policies.swap_failed();
            refused(failed, Some(&stays), origin);
        })?;
        Ok(self.swap(entries, origin))
    }

    /// Makes the policies those of another configuration; what did not change is shared. Files are
    /// read again, so with the same configuration this is what SIGHUP wants.
    ///
    /// # Errors
    ///
    /// Every policy that cannot be loaded; nothing has changed then.
    pub fn reconfigure(&self, configs: &[PolicyConfig]) -> Result<Changed, Vec<LoadFailed>> {
        self.take_over(self.changing(), configs)
    }

    /// For whoever is the one that changes something.
    fn take_over(
        &self,
        changing: Changing<'_>,
        configs: &[PolicyConfig],
    ) -> Result<Changed, Vec<LoadFailed>> {
        let before = &changing.entries;
        let entries = load_all(&self.host, configs, before).inspect_err(|failures| {
            self.policies.swap_failed();
            for failed in failures {
                let old = before.iter().find(|entry| entry.config.name == failed.policy);
                refused(failed, old.map(Entry::version).as_ref(), Origin::Sighup);
            }
        })?;
        Ok(self.swap(entries, Origin::Sighup))
    }

    /// Reads the files of all policies again, as SIGHUP asks for.
    ///
    /// # Errors
    ///
    /// As [`Keeper::reconfigure`].
    pub fn reload(&self) -> Result<Changed, Vec<LoadFailed>> {
        let changing = self.changing();
        let configs: Vec<_> = changing.entries.iter().map(|entry| entry.config.clone()).collect();
        self.take_over(changing, &configs)
    }

    /// Goes back to an earlier generation, which takes its own number again. Those that came after
    /// it are gone.
    ///
    /// # Errors
    ///
    /// When that generation is not kept.
    pub fn rollback(&self, to: RollbackTarget) -> Result<Changed, GenerationNotKept> {
        let _changing = self.changing();
        let from = self.policies.current().generation();
        let number = self.policies.rollback(to)?;
        let policies = if number == from { Vec::new() } else { self.went_back(number) };
        let changed = Changed { generation: number, from, policies };
        changed.log_rollback();
        Ok(changed)
    }

    /// Looks after the policies on a thread of its own, called `interlock-policies`, until what it
    /// returns is dropped: files that change are loaded, each `every` so often (`None`: they are
    /// not looked at), and a replacement that ends up in quarantine within a minute is taken back.
    ///
    /// # Errors
    ///
    /// When there is no room for a thread.
    pub fn look_after(self: &Arc<Self>, every: Option<Duration>) -> std::io::Result<LookingAfter> {
        LookingAfter::start(Arc::downgrade(self), every)
    }

    /// Loads the files that changed since they were last looked at.
    pub fn look_at_files(&self) {
        // A disk may take its time, and nobody who wants to look at the book waits for one.
        let found: Vec<_> = {
            let entries = self.book().now.entries.clone();
            let found = |entry: Entry| Some((stamp(&entry.config.source)?, entry.config));
            entries.into_iter().filter_map(found).collect()
        };
        // One that is not there now is in the middle of being replaced, or a mistake that the next
        // start will name.
        for (now, config) in found {
            let changed = self.book().now.entries.iter_mut().any(|entry| {
                let same = entry.config.name == config.name && entry.config.source == config.source;
                same && entry.stamp.replace(now) != Some(now)
            });
            if changed {
                self.look_at(&config.name);
            }
        }
    }

    fn look_at(&self, name: &str) {
        let found = {
            let book = self.book();
            book.now.entries.iter().find(|entry| entry.config.name == name).cloned()
        };
        let Some(entry) = found else { return };
        let bytes = match Bytes::read(&entry.config.source) {
            Ok(bytes) => bytes,
            Err(why) => {
                // If it is half of it, the other half will change the stamp once more.
                let from = &entry.config.source;
                tracing::warn!(
                    policy = name, %from, %why,
                    "a policy's file changed and cannot be taken: the one that was there stays"
                );
                self.policies.swap_failed();
                return;
            }
        };
        let digest = bytes.digest.clone();
        let tried = {
            let book = self.book();
            let refusal = book.refused.get(name).filter(|refusal| refusal.digest == digest);
            refusal.map_or(0, |refusal| refusal.tries)
        };
        if digest == entry.compiled.digest {
            let from = without_logins(&entry.config.source.to_string());
            tracing::info!(policy = name, from, %digest, "a policy's file is the one in place");
            return;
        }
        if tried >= TRIES {
            return;
        }
        let from = without_logins(&entry.config.source.to_string());
        tracing::info!(policy = name, from, %digest, "a policy's file changed");
        let replaced = self.replace_by(name, Change::default(), Some(bytes), Origin::File);
        let Err(NotChanged::Load(failed)) = replaced else {
            return;
        };
        let passes = failed.why.passes();
        let tries = if passes { tried + 1 } else { TRIES };
        let mut book = self.book();
        if passes && tries < TRIES {
            tracing::warn!(policy = name, %digest, tries, "it is tried again: the reason may pass");
            // As if nobody had looked at it.
            let entry = book.now.entries.iter_mut().find(|entry| entry.config.name == name);
            entry.into_iter().for_each(|entry| entry.stamp = None);
        }
        book.refused.insert(name.to_owned(), Refusal { digest, tries });
    }

    /// Takes back what failed while it was on probation.
    fn judge(&self) {
        let failed = {
            let (mut book, now) = (self.book(), Instant::now());
            book.probation.retain(|trial| trial.failed() || now <= trial.until);
            book.probation.iter().any(Trial::failed)
        };
        if failed {
            self.take_back();
        }
    }

    fn take_back(&self) {
        let _changing = self.changing();
        // Looked for again: whoever changed something while this waited may have put it right, and
        // what is in place now did nothing.
        let trial = {
            let mut book = self.book();
            let at = book.probation.iter().position(Trial::failed);
            at.map(|at| book.probation.swap_remove(at))
        };
        let Some(trial) = trial else { return };
        let from = self.policies.current().generation();
        let back = if trial.generation == from {
            let back = self.policies.restore_before(from);
            back.inspect(|&generation| {
                let policies = self.went_back(generation);
                Changed { generation, from, policies }.log_rollback();
            })
        } else {
            // What was swapped since is not its doing, and stays.
            trial.before.and_then(|before| self.put_back(&trial.policy, before))
        };
        let Some(generation) = back else { return };
        let digest = trial.policy.describe().digest.clone();
        tracing::error!(
            policy = trial.policy.name(), %digest, from, generation,
            "a policy was quarantined right after it was replaced: the one before is back"
        );
        let refusal = Refusal { digest, tries: TRIES };
        self.book().refused.insert(trial.policy.name().to_owned(), refusal);
    }

    /// Puts an earlier policy into the place of this one, in a generation of its own.
    fn put_back(&self, failed: &Arc<WasmPolicy>, mut before: Entry) -> Option<u64> {
        let mut entries = self.book().now.entries.clone();
        let place = entries.iter_mut().find(|entry| Arc::ptr_eq(&entry.policy, failed))?;
        // What the file has now is what is taken back: only a further change counts.
        before.stamp = stamp(&before.config.source);
        let policy = Arc::clone(&before.policy);
        *place = before;
        let generation = self.swap(entries, Origin::Quarantine).generation;
        // It has proved itself; and what it could be replaced by has not.
        self.book().probation.retain(|trial| !Arc::ptr_eq(&trial.policy, &policy));
        Some(generation)
    }

    /// The entry with what is to change of it.
    fn changed(
        &self,
        old: &Entry,
        change: Change,
        read: Option<Bytes>,
    ) -> Result<Entry, LoadFailed> {
        let mut config = old.config.clone();
        let sent = change.component.is_some();
        let given = sent || change.source.is_some();
        if let Some(source) = change.source {
            config.source = source;
        }
        if let Some(settings) = change.settings {
            config.settings = settings;
        }
        config.mode = change.mode.unwrap_or(config.mode);
        let stamp = if given { stamp(&config.source) } else { old.stamp };
        let component = match (read, change.component) {
            (Some(bytes), _) => Some(Ok(bytes)),
            (None, Some(bytes)) => Some(Bytes::new(bytes.into())),
            (None, None) => given.then(|| Bytes::read(&config.source)),
        };
        let entry = load_one(&self.host, config, stamp, component, Some(old))?;
        let same = Arc::ptr_eq(&entry.compiled, &old.compiled);
        let posted = if same { old.posted && (sent || !given) } else { sent };
        Ok(Entry { posted, ..entry })
    }

    /// These entries are in place from now on, in a generation of their own; unless nothing differs
    /// from those that are.
    fn swap(&self, entries: Vec<Entry>, origin: Origin) -> Changed {
        let mut book = self.book();
        let from = book.now.number;
        let policies = changes(&book.now.entries, &entries);
        if all_same(&book.now.entries, &entries) {
            // What is known of the files may be newer.
            book.now.entries = entries;
            drop(book);
            let changed = Changed { generation: from, from, policies };
            changed.log(origin, &self.versions());
            return changed;
        }
        let generation = self.policies.swap(links(&entries));
        let now = Generation { number: generation, origin, at: SystemTime::now(), entries };
        let before = std::mem::replace(&mut book.now, now);
        in_place(&self.host, &before.entries, &book.now.entries);
        let Book { now: Generation { entries, .. }, probation, past, .. } = &mut *book;
        probation.retain(|trial| has(entries, &trial.policy));
        let until = Instant::now() + PROBATION;
        let fresh = entries.iter().filter(|entry| !has(&before.entries, &entry.policy));
        probation.extend(fresh.map(|entry| Trial {
            policy: Arc::clone(&entry.policy),
            generation,
            until,
            quarantines: entry.policy.quarantines(),
            before: before.entries.iter().find(|old| old.config.name == entry.config.name).cloned(),
        }));
        past.push(before);
        let kept = self.policies.kept();
        past.retain(|generation| kept.contains(&generation.number));
        drop(book);
        let changed = Changed { generation, from, policies };
        changed.log(origin, &self.versions());
        changed
    }

    /// The generation of this number is in place again; what that changed.
    fn went_back(&self, number: u64) -> Vec<PolicyChange> {
        // Before the lock, which whoever only looks takes: a file may be on a slow disk. Nothing else
        // changes meanwhile.
        let sources: Vec<_> = {
            let book = self.book();
            let kept = book.past.iter().filter(|generation| generation.number == number);
            kept.flat_map(|kept| &kept.entries).map(|entry| entry.config.source.clone()).collect()
        };
        let stamps: Vec<_> = sources.iter().map(stamp).collect();
        let mut book = self.book();
        let at = book.past.iter().position(|generation| generation.number == number);
        let at = at.expect("the book keeps the generations that can be gone back to");
        book.past.truncate(at + 1);
        let mut back = book.past.pop().expect("it was found there");
        // What the files have now is what was taken back: only a further change counts.
        for (entry, stamp) in back.entries.iter_mut().zip(stamps) {
            entry.stamp = stamp;
        }
        let left = std::mem::replace(&mut book.now, back);
        in_place(&self.host, &left.entries, &book.now.entries);
        let Book { now: Generation { entries, .. }, probation, .. } = &mut *book;
        probation.retain(|trial| has(entries, &trial.policy));
        changes(&left.entries, entries)
    }

    fn changing(&self) -> Changing<'_> {
        #[cfg(test)]
        self.asked.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        // Whoever panicked changed nothing: a swap is the last step.
        let alone = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        Changing { _alone: alone, entries: self.book().now.entries.clone() }
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
            self.loaded_at = SystemTime::now();
        }
    }

    /// Does it decide as that one does?
    fn is_same_as(&self, other: &Self) -> bool {
        self.config == other.config && Arc::ptr_eq(&self.policy, &other.policy)
    }

    /// What a person needs to tell it from others.
    fn version(&self) -> PolicyVersion {
        PolicyVersion {
            version: self.policy.version().to_owned(),
            sha256: self.compiled.digest.clone(),
            mode: self.config.mode,
            source: without_logins(&self.config.source.to_string()),
            posted: self.posted,
        }
    }
}

/// A policy does not load, and another one stays in its place.
fn refused(failed: &LoadFailed, stays: Option<&PolicyVersion>, origin: Origin) {
    let stays = stays.map(tracing::field::display);
    tracing::error!(
        policy = failed.policy, origin = origin.as_str(), %failed, stays,
        "a policy was not replaced: the one that was there stays"
    );
}

fn all_same(before: &[Entry], now: &[Entry]) -> bool {
    before.len() == now.len() && now.iter().zip(before).all(|(new, old)| new.is_same_as(old))
}

/// What differs between these entries and those, policy by policy.
fn changes(before: &[Entry], now: &[Entry]) -> Vec<PolicyChange> {
    let named = |entries: &'_ [Entry], name: &str| {
        entries.iter().find(|entry| entry.config.name == name).cloned()
    };
    let change = |name: &String| {
        let (from, to) = (named(before, name), named(now, name));
        let both = from.as_ref().zip(to.as_ref());
        let same = both.is_some_and(|(from, to)| to.is_same_as(from));
        let settings_changed =
            both.is_some_and(|(from, to)| to.config.settings != from.config.settings);
        let (from, to) = (from.as_ref().map(Entry::version), to.as_ref().map(Entry::version));
        (!same).then(|| PolicyChange { policy: name.clone(), from, to, settings_changed })
    };
    let gone = before.iter().filter(|old| named(now, &old.config.name).is_none());
    now.iter().chain(gone).filter_map(|entry| change(&entry.config.name)).collect()
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
        let (stamp, component) = (stamp(&config.source), Bytes::read(&config.source));
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
fn contradictions(entries: &[Entry]) -> Vec<LoadFailed> {
    let contradiction = |(at, entry): (usize, &Entry)| {
        let previous = entries.iter().filter_map(|other| other.previous.as_ref());
        let mut others = entries[..at].iter().map(|other| &other.policy).chain(previous);
        let why = others.find_map(|other| entry.policy.contradicts(other))?;
        let (policy, from) = (entry.config.name.clone(), entry.config.source.clone());
        Some(LoadFailed { policy, from, why: Unfit::Descriptor(why) })
    };
    entries.iter().enumerate().filter_map(contradiction).collect()
}

/// Is this policy in one of these places?
fn has(entries: &[Entry], policy: &Arc<WasmPolicy>) -> bool {
    entries.iter().any(|entry| Arc::ptr_eq(&entry.policy, policy))
}

/// These entries are in place from now on, in place of those.
fn in_place(host: &PolicyHost, before: &[Entry], now: &[Entry]) {
    let both =
        |entry: &Entry| std::iter::once(Arc::clone(&entry.policy)).chain(entry.previous.clone());
    let serving: Vec<_> = now.iter().flat_map(both).collect();
    for gone in before.iter().flat_map(both) {
        if !serving.iter().any(|policy| Arc::ptr_eq(policy, &gone)) {
            gone.retire();
        }
    }
    // Those that share a name share their metrics, and the one that is new is shown.
    let shown = |entry: &Entry| {
        let apart = |previous: &Arc<WasmPolicy>| previous.own() != entry.policy.own();
        [Some(Arc::clone(&entry.policy)), entry.previous.clone().filter(apart)]
    };
    let shown: Vec<_> = now.iter().flat_map(shown).flatten().collect();
    for policy in &serving {
        policy.serve(shown.iter().any(|shown| Arc::ptr_eq(shown, policy)));
    }
    host.shared().metrics.plugins.show_only(shown.iter().filter_map(|policy| policy.shown()));
}

/// The entry of this configuration, which shares with the old one of its name whatever stays the same.
///
/// `component`: `None` where it is the old one's, or else what its source has.
fn load_one(
    host: &PolicyHost,
    config: PolicyConfig,
    stamp: Option<Stamp>,
    component: Option<Result<Bytes, Unfit>>,
    old: Option<&Entry>,
) -> Result<Entry, LoadFailed> {
    let is_of = |bytes: &Result<Bytes, Unfit>, old: &Entry| {
        bytes.as_ref().is_ok_and(|bytes| bytes.digest == old.compiled.digest)
    };
    let coded = old.filter(|old| component.as_ref().is_none_or(|bytes| is_of(bytes, old)));
    let compiled = match coded {
        // Only what it is told changes: there is nothing to compile.
        Some(old) => Arc::clone(&old.compiled),
        None => host.compile(&config, component.unwrap_or_else(|| Bytes::read(&config.source)))?,
    };
    let policy = match coded.filter(|old| reads_the_same(&old.config, &config)) {
        Some(old) => Arc::clone(&old.policy),
        None => host.load_compiled(&config, &compiled)?,
    };
    let loaded_at = old.map_or_else(SystemTime::now, |old| old.loaded_at);
    let mut entry =
        Entry { config, compiled, policy, previous: None, stamp, loaded_at, posted: false };
    if let Some(old) = old {
        entry.succeeds(old);
    }
    Ok(entry)
}

/// Is a policy of the one configuration also one of the other? What it does not read itself can
/// change without it.
fn reads_the_same(before: &PolicyConfig, now: &PolicyConfig) -> bool {
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

fn links(entries: &[Entry]) -> Vec<ChainEntry> {
    let link = |entry: &Entry| ChainEntry {
        previous: entry
            .previous
            .clone()
            .map(|policy| policy as Arc<dyn interlock_policy_api::Policy>),
        ..entry
            .config
            .chain_entry(Arc::clone(&entry.policy) as Arc<dyn interlock_policy_api::Policy>)
    };
    entries.iter().map(link).collect()
}

fn stamp(source: &PolicySource) -> Option<Stamp> {
    let PolicySource::File(path) = source else { return None };
    let found = fs::metadata(path).ok()?;
    let modified = (found.mtime(), found.mtime_nsec());
    Some(Stamp { modified, size: found.size(), inode: found.ino() })
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

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;
    use std::thread;

    use interlock_metrics::Registry;
    use interlock_policy_chain::{LimitsConfig, PolicyMetrics};

    use super::*;

    fn guest(name: &str) -> PolicySource {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/guests");
        PolicySource::File(folder.join(format!("{name}.wasm")))
    }

    fn keeper() -> Arc<Keeper> {
        let first = PolicyConfig { crash_budget: 1, ..PolicyConfig::new("p", guest("guest-mute")) };
        let registry = Registry::new();
        let metrics = PolicyMetrics::register(&registry);
        let host = PolicyHost::new().expect("WebAssembly works here");
        let ceilings = LimitsConfig::default().ceilings();
        Keeper::new(host, &[first], ceilings, metrics).expect("it is fine")
    }

    /// SIGHUP comes while a swap is under way that has changed nothing yet.
    #[test]
    fn a_reload_that_waits_for_a_swap_keeps_what_it_changed() {
        let keeper = keeper();
        let swapping = keeper.changing();
        let asked = || keeper.asked.load(Ordering::SeqCst);
        thread::scope(|scope| {
            let reload = scope.spawn(|| keeper.reload());
            // What it reads before its turn, it has read now.
            while asked() < 2 {
                thread::yield_now();
            }
            let shadow = Change { mode: Some(PolicyMode::Shadow), ..Change::default() };
            let entry = keeper.changed(&swapping.entries[0], shadow, None).expect("it is fine");
            keeper.swap(vec![entry], Origin::Admin);
            drop(swapping);
            let reloaded = reload.join().expect("no panic").expect("it is fine");
            assert!(reloaded.policies.is_empty(), "{reloaded:?}");
        });
        assert_eq!(keeper.book().now.entries[0].config.mode, PolicyMode::Shadow);
    }

    /// The keeper saw that a policy had failed, and waited for the operator, who was replacing it.
    #[test]
    fn what_put_it_right_is_not_taken_back() {
        let keeper = keeper();
        let replace = |settings: &str| {
            let source = Some(guest("guest-misbehaves"));
            let settings = serde_json::from_str(settings).expect("it is JSON");
            let change = Change { source, settings: Some(settings), ..Change::default() };
            keeper.replace("p", change).expect("it is fine so far").generation
        };
        replace("{}");
        let fail = || {
            let policy = Arc::clone(&keeper.book().now.entries[0].policy);
            policy.fail();
            assert!(keeper.book().probation[0].failed());
        };
        fail();
        let fixed = replace(r#"{"init": "still fine"}"#);
        // It was here that it waited.
        keeper.take_back();
        assert_eq!(keeper.policies.current().generation(), fixed);
        fail();
        keeper.take_back();
        assert_eq!(keeper.policies.current().generation(), fixed - 1);
    }
}
