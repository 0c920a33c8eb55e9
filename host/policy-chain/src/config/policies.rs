//! `[policies]`: the settings that concern all policies together.

use std::path::PathBuf;
use std::time::Duration;

use interlock_request::ByteSize;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Largest file of records that the host writes and `interlock policy replay` reads.
pub const RECORD_BYTES_MAX: u64 = 1 << 30;

/// How much is kept of records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecordBounds {
    /// Most bytes of one file.
    pub bytes_max: u64,
    /// Earlier files that are kept beside it.
    pub kept: u32,
}

/// `[policies]`: what concerns all policies together. Each one has a `[[policy]]` of its own.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct PoliciesConfig {
    /// How often the files of policies are looked at for changes, 100ms to 1h; a change is taken
    /// over without a restart, and one that does not load leaves everything as it is. 0s: only
    /// when the host is told to (SIGHUP, or the admin listener). Turn it off where a file that
    /// appears must not decide anything before someone said so.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String")]
    pub reload: Duration,
    /// A file to append one line of JSON to for each request: what policies were asked, what they
    /// said and why, for `interlock policy replay`. Prompts and answers are not in there, nor
    /// headers that no policy was granted, nor credentials as they came. Set this while you work
    /// on a policy: each request takes a kilobyte or two. When the file is moved or deleted, the
    /// next record begins a new one (at SIGHUP that is done at once). Unset, nothing is recorded.
    #[schemars(example = &"policies.jsonl")]
    pub record: Option<PathBuf>,
    /// Most bytes of that file, 1MiB to 1GiB. When it is full it is renamed to `.1`, what was `.1`
    /// to `.2` and so on, and a new one is begun. Turn this up when one file is to hold a whole day.
    pub record_max: ByteSize,
    /// How many earlier files are kept, 0 to 1000; the oldest is deleted, or the only one where none
    /// is kept. Turn this up when there is room on the disk and a day is more than they hold.
    pub record_kept: u32,
    /// A folder to keep compiled policies in, so that the next start need not compile them again;
    /// `off`: they are not kept. Unset, it is `interlock/policies` in the user's cache folder. What
    /// lies there is run as it is, so a folder that others may write to, or put another in the
    /// place of, is not used. Set this where the user has no cache folder, as in a container.
    #[schemars(example = &"off")]
    pub cache: Option<PathBuf>,
}

impl Default for PoliciesConfig {
    fn default() -> Self {
        Self {
            reload: Duration::from_secs(2),
            record: None,
            record_max: ByteSize(64 << 20),
            record_kept: 3,
            cache: None,
        }
    }
}

impl PoliciesConfig {
    const RELOAD_MIN: Duration = Duration::from_millis(100);
    const RELOAD_MAX: Duration = Duration::from_secs(3600);
    const RECORD_MAX_MIN: ByteSize = ByteSize(1 << 20);
    const RECORD_MAX_MAX: ByteSize = ByteSize(RECORD_BYTES_MAX);
    const RECORD_KEPT_MAX: u32 = 1000;

    /// Every problem, as key, relation, value.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let (least, most, reload) = (Self::RELOAD_MIN, Self::RELOAD_MAX, self.reload);
        if !reload.is_zero() && !(least..=most).contains(&reload) {
            problems.push(format!("policies.reload must be 0s or {least:?} to 1h, got {reload:?}"));
        }
        if self.record.as_ref().is_some_and(|path| path.as_os_str().is_empty()) {
            problems.push("policies.record must be the path of a file, got \"\"".into());
        }
        let (least, most, bytes) = (Self::RECORD_MAX_MIN, Self::RECORD_MAX_MAX, self.record_max);
        if !(least..=most).contains(&bytes) {
            problems.push(format!("policies.record_max must be {least} to {most}, got {bytes}"));
        }
        let (most, kept) = (Self::RECORD_KEPT_MAX, self.record_kept);
        if kept > most {
            problems.push(format!("policies.record_kept must be 0 to {most}, got {kept}"));
        }
        if self.cache.as_ref().is_some_and(|path| path.as_os_str().is_empty()) {
            problems
                .push("policies.cache must be the path of a folder or \"off\", got \"\"".into());
        }
        problems
    }

    /// How much is kept of records.
    pub fn record_bounds(&self) -> RecordBounds {
        RecordBounds { bytes_max: self.record_max.0, kept: self.record_kept }
    }

    /// Where compiled policies are kept, if this is where they are when nobody says otherwise.
    pub fn cache_or(&self, usual: Option<PathBuf>) -> Option<PathBuf> {
        match &self.cache {
            None => usual,
            Some(path) if path.as_os_str() == "off" => None,
            Some(path) => Some(path.clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reload_is_off_or_neither_too_often_nor_too_rare() {
        let problems = |reload| PoliciesConfig { reload, ..PoliciesConfig::default() }.problems();
        assert_eq!(PoliciesConfig::default().problems(), [""; 0]);
        assert_eq!(problems(Duration::ZERO), [""; 0]);
        let why = "policies.reload must be 0s or 100ms to 1h, got 1ms";
        assert_eq!(problems(Duration::from_millis(1)), [why]);
        assert_eq!(problems(Duration::from_secs(7200)).len(), 1);
        let record = Some(PathBuf::new());
        assert_eq!(PoliciesConfig { record, ..PoliciesConfig::default() }.problems().len(), 1);
    }

    #[test]
    fn compiled_policies_are_kept_where_it_says_or_where_they_usually_are() {
        let usual = || Some(PathBuf::from("/usual"));
        let cache = |path: Option<&str>| PoliciesConfig {
            cache: path.map(PathBuf::from),
            ..PoliciesConfig::default()
        };
        assert_eq!(cache(None).cache_or(usual()), usual());
        assert_eq!(cache(Some("off")).cache_or(usual()), None);
        assert_eq!(cache(Some("/here")).cache_or(usual()), Some("/here".into()));
        assert_eq!(cache(Some("")).problems().len(), 1);
    }
}
