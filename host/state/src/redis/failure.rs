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

use crate::metrics::FailureKind;
use crate::store::StateFault;

/// A call that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Failure {
    pub(super) kind: FailureKind,
    /// Redis' words, or ours where it has none. No address and no login.
    pub(super) why: String,
    /// Whether the call was sent, so that it may have been carried out.
    pub(super) sent: bool,
}

/// Longest part of the server's words that is worth a log.
const WORDS_MAX: usize = 300;

impl Failure {
    /// A failure before anything was sent.
    pub(super) fn unsent(kind: FailureKind, why: impl Into<String>) -> Self {
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
        let sent = matches!(kind, FailureKind::Unreachable | FailureKind::Late);
        Self { kind, why, sent }
    }

    /// There is no answer, not even a refusal.
    pub(super) fn is_silence(&self) -> bool {
        matches!(self.kind, FailureKind::Unreachable | FailureKind::Late | FailureKind::Crowded)
    }
}

impl From<Failure> for StateFault {
    fn from(failure: Failure) -> Self {
        Self::Unavailable(failure.why)
    }
}

fn kind(error: &RedisError) -> FailureKind {
    match error.kind() {
        ErrorKind::AuthenticationFailed => FailureKind::Auth,
        ErrorKind::Server(kind) => match kind {
            ServerErrorKind::BusyLoading => FailureKind::Loading,
            ServerErrorKind::ReadOnly => FailureKind::ReadOnly,
            ServerErrorKind::NoPerm => FailureKind::Auth,
            ServerErrorKind::Moved
            | ServerErrorKind::Ask
            | ServerErrorKind::TryAgain
            | ServerErrorKind::ClusterDown
            | ServerErrorKind::CrossSlot => FailureKind::Cluster,
            ServerErrorKind::MasterDown => FailureKind::Replication,
            // What a script met has the code inside: "ERR Error running script ...: -OOM command".
            _ => by_words(error),
        },
        ErrorKind::Extension => by_words(error),
        _ if error.is_timeout() => FailureKind::Late,
        _ => FailureKind::Unreachable,
    }
}

/// By the code that the server's words begin with or have in them: the client does not know each one,
/// and what a script met, older servers say in the middle of a sentence.
fn by_words(error: &RedisError) -> FailureKind {
    const CODES: [(&str, FailureKind); 14] = [
        ("OOM", FailureKind::Memory),
        ("MISCONF", FailureKind::Persistence),
        ("READONLY", FailureKind::ReadOnly),
        ("NOAUTH", FailureKind::Auth),
        ("WRONGPASS", FailureKind::Auth),
        ("NOPERM", FailureKind::Auth),
        ("LOADING", FailureKind::Loading),
        ("BUSY", FailureKind::Busy),
        ("UNKILLABLE", FailureKind::Busy),
        ("CLUSTERDOWN", FailureKind::Cluster),
        ("MOVED", FailureKind::Cluster),
        ("CROSSSLOT", FailureKind::Cluster),
        ("NOREPLICAS", FailureKind::Replication),
        ("MASTERDOWN", FailureKind::Replication),
    ];
    let words = error.to_string();
    let has = |code: &str| {
        error.code() == Some(code)
            || words.split(|letter: char| !letter.is_ascii_alphabetic()).any(|word| word == code)
    };
    CODES.iter().find(|(code, _)| has(code)).map_or(FailureKind::Refused, |(_, kind)| *kind)
}

/// Says of each kind of failure that there is one, once, and now and then that it goes on.
#[derive(Default)]
pub(super) struct FailureLog {
    kinds: Mutex<[KindLog; FailureKind::ALL.len()]>,
    counters: OnceLock<[IntCounter; FailureKind::ALL.len()]>,
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

impl FailureLog {
    /// Counts them there, from now on.
    pub(super) fn count_in(&self, counters: [IntCounter; FailureKind::ALL.len()]) {
        let _first = self.counters.set(counters);
    }

    /// Notes that a call failed, and logs it unless that was logged lately.
    pub(super) fn failed(&self, failure: &Failure) {
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
            "redis answers and refuses; policies decide as without their state"
        );
    }

    /// The number of failures since the last log line, if a log line is due.
    fn worth_saying(&self, kind: FailureKind, now: Instant) -> Option<u64> {
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
            tracing::info!(kind = kind.as_str(), "redis refuses no more");
        }
    }

    fn over(&self, now: Instant) -> Vec<FailureKind> {
        let mut kinds = self.kinds();
        let over = |report: &KindLog| {
            report.last.is_some_and(|last| now.saturating_duration_since(last) >= OVER)
        };
        let over: Vec<_> =
            FailureKind::ALL.into_iter().filter(|kind| over(&kinds[*kind as usize])).collect();
        over.iter().for_each(|kind| kinds[*kind as usize] = KindLog::default());
        over
    }

    fn kinds(&self) -> std::sync::MutexGuard<'_, [KindLog; FailureKind::ALL.len()]> {
        self.kinds.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A refusal as the client reads it from the connection.
    fn refused(words: &str) -> Failure {
        let answer = ::redis::parse_redis_value(format!("-{words}\r\n").as_bytes());
        let value = answer.expect("it is an answer");
        Failure::of(&value.extract_error().expect_err("it is a refusal"))
    }

    #[test]
    fn a_refusal_is_known_by_its_code_wherever_that_stands() {
        const IN_A_SCRIPT: &str = "ERR Error running script (call to f_ab): @user_script:9: -";
        let told = [
            ("OOM command not allowed when used memory > 'maxmemory'.", FailureKind::Memory),
            ("MISCONF Redis is configured to save RDB snapshots", FailureKind::Persistence),
            ("READONLY You can't write against a read only replica.", FailureKind::ReadOnly),
            ("NOAUTH Authentication required.", FailureKind::Auth),
            ("WRONGPASS invalid username-password pair", FailureKind::Auth),
            ("NOPERM this user has no permissions to run 'evalsha'", FailureKind::Auth),
            ("LOADING Redis is loading the dataset in memory", FailureKind::Loading),
            ("BUSY Redis is busy running a script.", FailureKind::Busy),
            ("UNKILLABLE Sorry the script already executed write commands", FailureKind::Busy),
            ("CLUSTERDOWN Hash slot not served", FailureKind::Cluster),
            ("MOVED 3999 127.0.0.1:6381", FailureKind::Cluster),
            ("ASK 3999 127.0.0.1:6381", FailureKind::Cluster),
            ("TRYAGAIN Multiple keys request during rehashing of slot", FailureKind::Cluster),
            ("CROSSSLOT Keys in request don't hash to the same slot", FailureKind::Cluster),
            ("NOREPLICAS Not enough good replicas to write.", FailureKind::Replication),
            ("MASTERDOWN Link with MASTER is down", FailureKind::Replication),
            ("ERR unknown command", FailureKind::Refused),
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
        let (reports, kind) = (FailureLog::default(), FailureKind::Memory);
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(reports.worth_saying(kind, at(0)), Some(1));
        for second in 1..60 {
            assert_eq!(reports.worth_saying(kind, at(second)), None);
        }
        assert_eq!(reports.worth_saying(FailureKind::ReadOnly, at(59)), Some(1), "another kind");
        assert_eq!(reports.worth_saying(kind, at(60)), Some(60));
        assert_eq!(reports.over(at(69)), [FailureKind::ReadOnly]);
        assert_eq!(reports.over(at(70)), [kind]);
        assert_eq!(reports.over(at(71)), []);
        assert_eq!(reports.worth_saying(kind, at(72)), Some(1));
    }
}
