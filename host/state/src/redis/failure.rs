//! Why Redis did not do what it was asked: told apart for whoever has to mend it, counted, and said in
//! the log without flooding it.
//!
//! # Not here
//!
//! What becomes of the connection, which is the connection pool's affair (`connection_pool.rs`).

use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use ::redis::{ErrorKind, RedisError, ServerErrorKind};
use interlock_metrics::IntCounter;

use crate::metrics::StateFailureKind;
use crate::store::StateFault;

/// A call that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct CallFailure {
    pub(super) kind: StateFailureKind,
    /// Redis' words, or ours where it has none. No address and no login.
    pub(super) why: String,
    /// Whether the call was sent, so that it may have been carried out.
    pub(super) sent: bool,
}

/// Longest part of the server's words that is worth a log.
const WORDS_MAX: usize = 300;

impl CallFailure {
    /// A failure before anything was sent.
    pub(super) fn unsent(kind: StateFailureKind, why: impl Into<String>) -> Self {
        Self { kind, why: why.into(), sent: false }
    }

    /// The server answered with a refusal. What else it may be, a line that broke, is `sent`.
    pub(super) fn of(error: &RedisError) -> Self {
        let kind = kind(error);
        let mut why = match (error.code(), error.detail()) {
            // As it says it; the client would put its own words between these two.
            (Some(code), Some(detail)) => format!("redis: {code} {detail}"),
            _ => format!("redis: {error}"),
        };
        why.truncate(why.floor_char_boundary(WORDS_MAX));
        let sent = matches!(kind, StateFailureKind::Unreachable | StateFailureKind::Late);
        Self { kind, why, sent }
    }

    /// There is no answer, not even a refusal.
    pub(super) fn is_silence(&self) -> bool {
        matches!(
            self.kind,
            StateFailureKind::Unreachable | StateFailureKind::Late | StateFailureKind::Crowded
        )
    }
}

impl From<CallFailure> for StateFault {
    fn from(failure: CallFailure) -> Self {
        Self::Unavailable(failure.why)
    }
}

fn kind(error: &RedisError) -> StateFailureKind {
    match error.kind() {
        ErrorKind::AuthenticationFailed => StateFailureKind::Auth,
        ErrorKind::Server(kind) => match kind {
            ServerErrorKind::BusyLoading => StateFailureKind::Loading,
            ServerErrorKind::ReadOnly => StateFailureKind::ReadOnly,
            ServerErrorKind::NoPerm => StateFailureKind::Auth,
            ServerErrorKind::Moved
            | ServerErrorKind::Ask
            | ServerErrorKind::TryAgain
            | ServerErrorKind::ClusterDown
            | ServerErrorKind::CrossSlot => StateFailureKind::Cluster,
            ServerErrorKind::MasterDown => StateFailureKind::Replication,
            // What a script met has the code inside: "ERR Error running script ...: -OOM command".
            _ => by_words(error),
        },
        ErrorKind::Extension => by_words(error),
        _ if error.is_timeout() => StateFailureKind::Late,
        _ => StateFailureKind::Unreachable,
    }
}

/// By the code that the server's words begin with or have in them: the client does not know each one,
/// and what a script met, older servers say in the middle of a sentence.
fn by_words(error: &RedisError) -> StateFailureKind {
    const CODES: [(&str, StateFailureKind); 14] = [
        ("OOM", StateFailureKind::Memory),
        ("MISCONF", StateFailureKind::Persistence),
        ("READONLY", StateFailureKind::ReadOnly),
        ("NOAUTH", StateFailureKind::Auth),
        ("WRONGPASS", StateFailureKind::Auth),
        ("NOPERM", StateFailureKind::Auth),
        ("LOADING", StateFailureKind::Loading),
        ("BUSY", StateFailureKind::Busy),
        ("UNKILLABLE", StateFailureKind::Busy),
        ("CLUSTERDOWN", StateFailureKind::Cluster),
        ("MOVED", StateFailureKind::Cluster),
        ("CROSSSLOT", StateFailureKind::Cluster),
        ("NOREPLICAS", StateFailureKind::Replication),
        ("MASTERDOWN", StateFailureKind::Replication),
    ];
    let words = error.to_string();
    let has = |code: &str| {
        error.code() == Some(code)
            || words.split(|letter: char| !letter.is_ascii_alphabetic()).any(|word| word == code)
    };
    CODES.iter().find(|(code, _)| has(code)).map_or(StateFailureKind::Refused, |(_, kind)| *kind)
}

/// Says of each kind of failure that there is one, once, and now and then that it goes on.
#[derive(Default)]
pub(super) struct OutageLog {
    kinds: Mutex<[KindLog; StateFailureKind::ALL.len()]>,
    counters: OnceLock<[IntCounter; StateFailureKind::ALL.len()]>,
}

#[derive(Clone, Copy, Default)]
struct KindLog {
    said: Option<Instant>,
    last: Option<Instant>,
    /// Failures since something was said.
    unsaid: u64,
}

/// How often a failure that goes on is logged again.
const AGAIN: Duration = Duration::from_secs(60);

/// What has not been met for so long is over.
const OVER: Duration = Duration::from_secs(10);

impl OutageLog {
    /// Counts them there, from now on.
    pub(super) fn count_in(&self, counters: [IntCounter; StateFailureKind::ALL.len()]) {
        let _first = self.counters.set(counters);
    }

    /// Notes that a call failed, and logs it unless that was logged lately.
    pub(super) fn failed(&self, failure: &CallFailure) {
        let kind = failure.kind;
        if let Some(counters) = self.counters.get() {
            counters[kind as usize].inc();
        }
        // That nobody answers is said when the server is lost.
        if failure.is_silence() {
            return;
        }
        let Some(times) = self.worth_saying(kind, Instant::now()) else { return };
        tracing::warn!(
            kind = kind.as_str(),
            words = failure.why,
            times,
            "redis refuses calls; policies decide as if their state were unavailable"
        );
    }

    /// The number of failures since the last log line, if a log line is due.
    fn worth_saying(&self, kind: StateFailureKind, now: Instant) -> Option<u64> {
        let mut kinds = self.kinds();
        let report = &mut kinds[kind as usize];
        report.last = Some(now);
        report.unsaid += 1;
        let due = report.said.is_none_or(|said| now.saturating_duration_since(said) >= AGAIN);
        due.then(|| {
            report.said = Some(now);
            std::mem::take(&mut report.unsaid)
        })
    }

    /// Says what is over. Called now and then.
    pub(super) fn look(&self) {
        for kind in self.over(Instant::now()) {
            tracing::info!(kind = kind.as_str(), "redis accepts calls again");
        }
    }

    fn over(&self, now: Instant) -> Vec<StateFailureKind> {
        let mut kinds = self.kinds();
        let over = |report: &KindLog| {
            report.last.is_some_and(|last| now.saturating_duration_since(last) >= OVER)
        };
        let over: Vec<_> =
            StateFailureKind::ALL.into_iter().filter(|kind| over(&kinds[*kind as usize])).collect();
        over.iter().for_each(|kind| kinds[*kind as usize] = KindLog::default());
        over
    }

    fn kinds(&self) -> std::sync::MutexGuard<'_, [KindLog; StateFailureKind::ALL.len()]> {
        self.kinds.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A refusal as the client reads it from the connection.
    fn refused(words: &str) -> CallFailure {
        let answer = ::redis::parse_redis_value(format!("-{words}\r\n").as_bytes());
        let value = answer.expect("it is an answer");
        CallFailure::of(&value.extract_error().expect_err("it is a refusal"))
    }

    #[test]
    fn a_refusal_is_known_by_its_code_wherever_that_stands() {
        const IN_A_SCRIPT: &str = "ERR Error running script (call to f_ab): @user_script:9: -";
        let told = [
            ("OOM command not allowed when used memory > 'maxmemory'.", StateFailureKind::Memory),
            ("MISCONF Redis is configured to save RDB snapshots", StateFailureKind::Persistence),
            ("READONLY You can't write against a read only replica.", StateFailureKind::ReadOnly),
            ("NOAUTH Authentication required.", StateFailureKind::Auth),
            ("WRONGPASS invalid username-password pair", StateFailureKind::Auth),
            ("NOPERM this user has no permissions to run 'evalsha'", StateFailureKind::Auth),
            ("LOADING Redis is loading the dataset in memory", StateFailureKind::Loading),
            ("BUSY Redis is busy running a script.", StateFailureKind::Busy),
            ("UNKILLABLE Sorry the script already executed write commands", StateFailureKind::Busy),
            ("CLUSTERDOWN Hash slot not served", StateFailureKind::Cluster),
            ("MOVED 3999 127.0.0.1:6381", StateFailureKind::Cluster),
            ("ASK 3999 127.0.0.1:6381", StateFailureKind::Cluster),
            ("TRYAGAIN Multiple keys request during rehashing of slot", StateFailureKind::Cluster),
            ("CROSSSLOT Keys in request don't hash to the same slot", StateFailureKind::Cluster),
            ("NOREPLICAS Not enough good replicas to write.", StateFailureKind::Replication),
            ("MASTERDOWN Link with MASTER is down", StateFailureKind::Replication),
            ("ERR unknown command", StateFailureKind::Refused),
        ];
        let mut wrong = Vec::new();
        for (words, kind) in told {
            // These two are met before any script runs: their code is the first word.
            let first_only = words.starts_with("ASK") || words.starts_with("TRYAGAIN");
            let inside = (!first_only).then(|| format!("{IN_A_SCRIPT}{words}"));
            for words in std::iter::once(words.to_owned()).chain(inside) {
                let failure = refused(&words);
                // An answer says that it was not done.
                if failure.kind != kind || failure.sent {
                    wrong.push(format!("{words}: {failure:?}"));
                }
            }
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }

    #[test]
    fn what_goes_on_is_said_once_a_minute_and_that_it_is_over_once() {
        let (reports, kind) = (OutageLog::default(), StateFailureKind::Memory);
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(reports.worth_saying(kind, at(0)), Some(1));
        for second in 1..60 {
            assert_eq!(reports.worth_saying(kind, at(second)), None);
        }
        assert_eq!(
            reports.worth_saying(StateFailureKind::ReadOnly, at(59)),
            Some(1),
            "another kind"
        );
        assert_eq!(reports.worth_saying(kind, at(60)), Some(60));
        assert_eq!(reports.over(at(69)), [StateFailureKind::ReadOnly]);
        assert_eq!(reports.over(at(70)), [kind]);
        assert_eq!(reports.over(at(71)), []);
        assert_eq!(reports.worth_saying(kind, at(72)), Some(1));
    }
}
