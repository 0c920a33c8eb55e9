//! Manages the policies of a host: loads them, replaces them while requests go on, and takes a
//! replacement back.
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
//! - The manager's thread goes on whatever a round comes to, a panic included.
//! - One change at a time. Whoever only looks never waits for one.
//! - A policy is on probation for its minute, whatever else is swapped meanwhile; and only a policy
//!   that is in place is taken back.

mod change;
mod entries;
mod files;
mod list;
mod probation;
mod state;
#[cfg(test)]
mod tests;
mod thread;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use interlock_policy_api::Ceilings;
use interlock_policy_chain::{
    ChainShared, GenerationNotKept, Policies, PolicyMode, RollbackTarget,
};

pub use change::{ChangeOrigin, ChangeReport, PolicyChange, PolicyVersion};
pub use thread::ManagerThread;

use crate::load::ComponentBytes;
use crate::{LoadFailed, PolicyConfig, PolicyHost, PolicySource};
use change::refused;
use entries::{
    ManagedPolicy, all_same, chain_entries, changes, contradictions, has, in_place, load_all,
    load_one, stamp,
};
use state::{ManagerState, PolicyGeneration, Probation};

/// How long a new policy is on probation.
const PROBATION: Duration = Duration::from_secs(60);

/// The policies of a host, and how they change.
pub struct PolicyManager {
    host: PolicyHost,
    policies: Arc<Policies>,
    // Held for as long as a change takes, compiling included.
    changing: Mutex<()>,
    // Held for a look or a push.
    state: Mutex<ManagerState>,
    /// How many calls have come to change something.
    #[cfg(test)]
    asked: std::sync::atomic::AtomicUsize,
}

/// The one change that is under way. It starts from what the change before it has left: whoever
/// read that before it was its turn would put back what was changed meanwhile.
struct ChangeGuard<'a> {
    _alone: MutexGuard<'a, ()>,
    entries: Vec<ManagedPolicy>,
}

/// What is to change of a policy. What is not said stays as it is.
#[derive(Debug, Clone, Default)]
pub struct PolicyUpdate {
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

impl PolicyManager {
    /// Loads these policies and makes the first generation of them.
    ///
    /// # Errors
    ///
    /// Every policy that cannot be loaded, and why.
    pub fn new(
        host: PolicyHost,
        configs: &[PolicyConfig],
        ceilings: Ceilings,
        shared: impl Into<ChainShared>,
    ) -> Result<Arc<Self>, Vec<LoadFailed>> {
        let entries = load_all(&host, configs, &[])?;
        let policies = Arc::new(Policies::new(chain_entries(&entries), ceilings, shared));
        in_place(&host, &[], &entries);
        let number = policies.current().generation();
        let now = PolicyGeneration {
            number,
            origin: ChangeOrigin::Start,
            at: SystemTime::now(),
            entries,
        };
        let state =
            ManagerState { now, past: Vec::new(), probation: Vec::new(), refused: HashMap::new() };
        Ok(Arc::new(Self {
            host,
            policies,
            changing: Mutex::default(),
            state: Mutex::new(state),
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
    pub fn replace(&self, name: &str, change: PolicyUpdate) -> Result<ChangeReport, NotChanged> {
        self.replace_by(name, change, None, ChangeOrigin::Admin)
    }

    /// The same with a component that was read already.
    fn replace_by(
        &self,
        name: &str,
        change: PolicyUpdate,
        read: Option<ComponentBytes>,
        origin: ChangeOrigin,
    ) -> Result<ChangeReport, NotChanged> {
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
    pub fn reconfigure(&self, configs: &[PolicyConfig]) -> Result<ChangeReport, Vec<LoadFailed>> {
        self.take_over(self.changing(), configs)
    }

    /// For whoever is the one that changes something.
    fn take_over(
        &self,
        changing: ChangeGuard<'_>,
        configs: &[PolicyConfig],
    ) -> Result<ChangeReport, Vec<LoadFailed>> {
        let before = &changing.entries;
        let entries = load_all(&self.host, configs, before).inspect_err(|failures| {
            self.policies.swap_failed();
            for failed in failures {
                let old = before.iter().find(|entry| entry.config.name == failed.policy);
                refused(failed, old.map(ManagedPolicy::version).as_ref(), ChangeOrigin::Sighup);
            }
        })?;
        Ok(self.swap(entries, ChangeOrigin::Sighup))
    }

    /// Reads the files of all policies again, as SIGHUP asks for.
    ///
    /// # Errors
    ///
    /// As [`PolicyManager::reconfigure`].
    pub fn reload(&self) -> Result<ChangeReport, Vec<LoadFailed>> {
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
    pub fn rollback(&self, to: RollbackTarget) -> Result<ChangeReport, GenerationNotKept> {
        let _changing = self.changing();
        let from = self.policies.current().generation();
        let number = self.policies.rollback(to)?;
        let policies = if number == from { Vec::new() } else { self.went_back(number) };
        let changed = ChangeReport { generation: number, from, policies };
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
    pub fn start_thread(
        self: &Arc<Self>,
        every: Option<Duration>,
    ) -> std::io::Result<ManagerThread> {
        ManagerThread::start(Arc::downgrade(self), every)
    }

    /// The entry with what is to change of it.
    fn changed(
        &self,
        old: &ManagedPolicy,
        change: PolicyUpdate,
        read: Option<ComponentBytes>,
    ) -> Result<ManagedPolicy, LoadFailed> {
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
            (None, Some(bytes)) => Some(ComponentBytes::new(bytes.into())),
            (None, None) => given.then(|| ComponentBytes::read(&config.source)),
        };
        let entry = load_one(&self.host, config, stamp, component, Some(old))?;
        let same = Arc::ptr_eq(&entry.compiled, &old.compiled);
        let posted = if same { old.posted && (sent || !given) } else { sent };
        Ok(ManagedPolicy { posted, ..entry })
    }

    /// These entries are in place from now on, in a generation of their own; unless nothing differs
    /// from those that are.
    fn swap(&self, entries: Vec<ManagedPolicy>, origin: ChangeOrigin) -> ChangeReport {
        let mut state = self.state();
        let from = state.now.number;
        let policies = changes(&state.now.entries, &entries);
        if all_same(&state.now.entries, &entries) {
            // What is known of the files may be newer.
            state.now.entries = entries;
            drop(state);
            let changed = ChangeReport { generation: from, from, policies };
            changed.log(origin, &self.versions());
            return changed;
        }
        let generation = self.policies.swap(chain_entries(&entries));
        let now = PolicyGeneration { number: generation, origin, at: SystemTime::now(), entries };
        let before = std::mem::replace(&mut state.now, now);
        in_place(&self.host, &before.entries, &state.now.entries);
        let ManagerState { now: PolicyGeneration { entries, .. }, probation, past, .. } =
            &mut *state;
        probation.retain(|trial| has(entries, &trial.policy));
        let until = Instant::now() + PROBATION;
        let fresh = entries.iter().filter(|entry| !has(&before.entries, &entry.policy));
        probation.extend(fresh.map(|entry| Probation {
            policy: Arc::clone(&entry.policy),
            generation,
            until,
            quarantines: entry.policy.quarantines(),
            before: before.entries.iter().find(|old| old.config.name == entry.config.name).cloned(),
        }));
        past.push(before);
        let kept = self.policies.kept();
        past.retain(|generation| kept.contains(&generation.number));
        drop(state);
        let changed = ChangeReport { generation, from, policies };
        changed.log(origin, &self.versions());
        changed
    }

    /// The generation of this number is in place again; what that changed.
    fn went_back(&self, number: u64) -> Vec<PolicyChange> {
        // Before the lock, which whoever only looks takes: a file may be on a slow disk. Nothing
        // else changes meanwhile.
        let sources: Vec<_> = {
            let state = self.state();
            let kept = state.past.iter().filter(|generation| generation.number == number);
            kept.flat_map(|kept| &kept.entries).map(|entry| entry.config.source.clone()).collect()
        };
        let stamps: Vec<_> = sources.iter().map(stamp).collect();
        let mut state = self.state();
        let at = state.past.iter().position(|generation| generation.number == number);
        let at = at.expect("the book keeps the generations that can be gone back to");
        state.past.truncate(at + 1);
        let mut back = state.past.pop().expect("it was found there");
        // What the files have now is what was taken back: only a further change counts.
        for (entry, stamp) in back.entries.iter_mut().zip(stamps) {
            entry.stamp = stamp;
        }
        let left = std::mem::replace(&mut state.now, back);
        in_place(&self.host, &left.entries, &state.now.entries);
        let ManagerState { now: PolicyGeneration { entries, .. }, probation, .. } = &mut *state;
        probation.retain(|trial| has(entries, &trial.policy));
        changes(&left.entries, entries)
    }

    fn changing(&self) -> ChangeGuard<'_> {
        #[cfg(test)]
        self.asked.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        // Whoever panicked changed nothing: a swap is the last step.
        let alone = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        ChangeGuard { _alone: alone, entries: self.state().now.entries.clone() }
    }

    fn state(&self) -> MutexGuard<'_, ManagerState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for PolicyManager {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PolicyManager").field("policies", &self.policies).finish_non_exhaustive()
    }
}
