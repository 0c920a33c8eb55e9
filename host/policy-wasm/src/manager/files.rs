//! Loads the files of policies when they change.

use interlock_request::without_logins;

use super::change::ChangeOrigin;
use super::entries::{ManagedPolicy, stamp};
use super::state::RejectedFile;
use super::{NotChanged, PolicyManager, PolicyUpdate};
use crate::load::ComponentBytes;

/// How often a file is tried that could not be loaded for a reason that passes.
pub(super) const TRIES: u32 = 5;

impl PolicyManager {
    /// Loads the files that changed since they were last looked at.
    pub fn load_changed_files(&self) {
        // A disk may take its time, and nobody who reads the state waits for one.
        let found: Vec<_> = {
            let entries = self.state().now.entries.clone();
            let found = |entry: ManagedPolicy| Some((stamp(&entry.config.source)?, entry.config));
            entries.into_iter().filter_map(found).collect()
        };
        // One that is not there now is in the middle of being replaced, or a mistake that the next
        // start will name.
        for (now, config) in found {
            let changed = self.state().now.entries.iter_mut().any(|entry| {
                let same = entry.config.name == config.name && entry.config.source == config.source;
                same && entry.stamp.replace(now) != Some(now)
            });
            if changed {
                self.load_if_changed(&config.name);
            }
        }
    }

    fn load_if_changed(&self, name: &str) {
        let found = {
            let state = self.state();
            state.now.entries.iter().find(|entry| entry.config.name == name).cloned()
        };
        let Some(entry) = found else { return };
        let bytes = match ComponentBytes::read(&entry.config.source) {
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
            let state = self.state();
            let refusal = state.refused.get(name).filter(|refusal| refusal.digest == digest);
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
        let replaced =
            self.replace_by(name, PolicyUpdate::default(), Some(bytes), ChangeOrigin::File);
        let Err(NotChanged::Load(failed)) = replaced else {
            return;
        };
        let passes = failed.why.passes();
        let tries = if passes { tried + 1 } else { TRIES };
        let mut state = self.state();
        if passes && tries < TRIES {
            tracing::warn!(policy = name, %digest, tries, "it is tried again: the reason may pass");
            // As if nobody had looked at it.
            let entry = state.now.entries.iter_mut().find(|entry| entry.config.name == name);
            entry.into_iter().for_each(|entry| entry.stamp = None);
        }
        state.refused.insert(name.to_owned(), RejectedFile { digest, tries });
    }
}
