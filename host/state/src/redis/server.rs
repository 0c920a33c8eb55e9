//! The server as the policies' stores see it: its scripts, how they are called, and their answers.

use std::time::Duration;

use ::redis::{FromRedisValue, Script, ScriptInvocation};

use super::connection_pool::{CONNECT, ConnectionPool};
use super::failure::CallFailure;
use crate::store::{ENTRY_BYTES, LeaseEnd, Quota, SLOT_BYTES, StateFault, entry_bytes};
use crate::{LIFE_MAX, RESERVATION_LIFE};

/// The connection to one Redis server, for all policies.
pub(super) struct RedisServer {
    pub(super) pool: ConnectionPool,
    pub(super) scripts: Scripts,
    pub(super) quota: Quota,
    /// How long a lease lasts without being renewed.
    pub(super) lease: Duration,
}

/// The identity of a lease: a slot or a reservation that a request holds, and that ends by itself
/// unless it is renewed.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct LeaseKey {
    /// The prefix of the policy's keys.
    pub(super) prefix: std::sync::Arc<str>,
    /// The key of the slot; empty for a reservation.
    pub(super) key: Box<str>,
    pub(super) number: u64,
}

pub(super) struct Scripts {
    pub(super) take: Script,
    pub(super) reserve: Script,
    pub(super) extend: Script,
    pub(super) settle: Script,
    pub(super) enter: Script,
    pub(super) leave: Script,
    pub(super) renew: Script,
    pub(super) set: Script,
    pub(super) delete: Script,
    pub(super) compare_and_set: Script,
    pub(super) increment: Script,
}

impl RedisServer {
    /// Begins a call with the arguments that every script takes, in the order of `shared.lua`.
    pub(super) fn call<'a>(&self, script: &'a Script, prefix: &str) -> ScriptInvocation<'a> {
        let mut call = script.prepare_invoke();
        call.key(prefix);
        call.arg(self.quota.keys_max).arg(self.quota.bytes_max);
        call.arg(LIFE_MAX.as_millis() as u64);
        call
    }

    pub(super) fn run(&self, call: &ScriptInvocation<'_>) -> Result<ScriptReply, CallFailure> {
        self.pool.with(|connection| call.invoke(connection)).map(ScriptReply)
    }

    /// Makes a call that no request waits for, with a longer timeout.
    fn run_without_request<T: FromRedisValue>(
        &self,
        call: &ScriptInvocation<'_>,
    ) -> Result<T, CallFailure> {
        self.pool.with_timeout(CONNECT, |connection| call.invoke(connection))
    }

    /// Ends a lease, and returns whether it was there.
    pub(super) fn end(&self, prefix: &str, ending: &LeaseEnd) -> Result<ScriptReply, CallFailure> {
        self.run(&self.ending(prefix, ending))
    }

    /// Does what `end` does, with the longer timeout of the renewing thread, for which no request waits.
    pub(super) fn end_without_request(
        &self,
        prefix: &str,
        ending: &LeaseEnd,
    ) -> Result<ScriptReply, CallFailure> {
        self.run_without_request(&self.ending(prefix, ending)).map(ScriptReply)
    }

    fn ending(&self, prefix: &str, ending: &LeaseEnd) -> ScriptInvocation<'_> {
        match ending {
            LeaseEnd::Settle { reservation, actual } => {
                let mut call = self.call(&self.scripts.settle, prefix);
                let actual = actual.map(|actual| actual.to_string()).unwrap_or_default();
                call.arg(reservation).arg(actual).arg(ENTRY_BYTES);
                call
            }
            LeaseEnd::Leave { key, slot } => {
                let mut call = self.call(&self.scripts.leave, prefix);
                call.arg(key).arg(entry_bytes(key)).arg(SLOT_BYTES).arg(slot);
                call
            }
        }
    }

    /// Renews leases of one policy, each for no longer than it may be held, and returns those that had
    /// ended.
    pub(super) fn renew(
        &self,
        prefix: &str,
        held: &[(LeaseKey, Duration)],
    ) -> Result<Vec<LeaseKey>, CallFailure> {
        let mut call = self.call(&self.scripts.renew, prefix);
        call.arg(micros(self.lease));
        for (hold, most) in held {
            call.arg(&*hold.key).arg(hold.number).arg(micros(*most));
        }
        let lost: Vec<(String, u64)> = self.run_without_request(&call)?;
        let hold = |(key, number): (String, u64)| LeaseKey {
            prefix: prefix.into(),
            key: key.into(),
            number,
        };
        Ok(lost.into_iter().map(hold).collect())
    }
}

impl LeaseKey {
    pub(super) fn slot(prefix: &std::sync::Arc<str>, key: &str, slot: u64) -> Self {
        Self { prefix: std::sync::Arc::clone(prefix), key: key.into(), number: slot }
    }

    pub(super) fn reservation(prefix: &std::sync::Arc<str>, reservation: u64) -> Self {
        Self::slot(prefix, "", reservation)
    }

    /// The lease that an ending ends.
    pub(super) fn of(prefix: &std::sync::Arc<str>, ending: &LeaseEnd) -> Self {
        match ending {
            LeaseEnd::Settle { reservation, .. } => Self::reservation(prefix, *reservation),
            LeaseEnd::Leave { key, slot } => Self::slot(prefix, key, *slot),
        }
    }

    /// The end that leaves nothing charged and no slot taken.
    pub(super) fn undo(&self) -> LeaseEnd {
        match &*self.key {
            "" => LeaseEnd::Settle { reservation: self.number, actual: Some(0.0) },
            key => LeaseEnd::Leave { key: key.to_owned(), slot: self.number },
        }
    }
}

impl Scripts {
    pub(super) fn new() -> Self {
        // Each begins with what they share: the time, the account, and how a window is read.
        let script = |own: &str| Script::new(&format!("{}\n{own}", include_str!("shared.lua")));
        Self {
            take: script(include_str!("take.lua")),
            reserve: script(include_str!("reserve.lua")),
            extend: script(include_str!("extend.lua")),
            settle: script(include_str!("settle.lua")),
            enter: script(include_str!("enter.lua")),
            leave: script(include_str!("leave.lua")),
            renew: script(include_str!("renew.lua")),
            set: script(include_str!("set.lua")),
            delete: script(include_str!("delete.lua")),
            compare_and_set: script(include_str!("compare_and_set.lua")),
            increment: script(include_str!("increment.lua")),
        }
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &Script> {
        let Self { take, reserve, extend, settle, enter, leave, renew, .. } = self;
        let Self { set, delete, compare_and_set, increment, .. } = self;
        [
            take,
            reserve,
            extend,
            settle,
            enter,
            leave,
            renew,
            set,
            delete,
            compare_and_set,
            increment,
        ]
        .into_iter()
    }
}

/// What a script returns: a word, and the values that belong to it.
pub(super) struct ScriptReply(Vec<String>);

impl ScriptReply {
    pub(super) fn word(&self) -> &str {
        self.0.first().map_or("", String::as_str)
    }

    pub(super) fn number<T: std::str::FromStr>(&self, at: usize) -> Result<T, StateFault> {
        let number = self.0.get(at).and_then(|text| text.parse().ok());
        number.ok_or_else(|| self.nonsense())
    }

    /// Microseconds, as the scripts count them. Rounded up: who waits that long must not come early.
    pub(super) fn time(&self, at: usize) -> Result<Duration, StateFault> {
        let micros: f64 = self.number(at)?;
        Ok(Duration::from_micros(micros.max(0.0).ceil() as u64))
    }

    /// Whether what was ended or removed was there.
    pub(super) fn known(&self) -> Result<bool, StateFault> {
        match self.word() {
            "ok" => Ok(true),
            "unknown" => Ok(false),
            _ => Err(self.nonsense()),
        }
    }

    pub(super) fn nonsense(&self) -> StateFault {
        StateFault::Unavailable(format!(
            "redis answered {:?}, which is none of our scripts' answers",
            self.0
        ))
    }
}

pub(super) fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// How long scripts remember a reservation, in microseconds.
pub(super) fn reservation_life() -> u64 {
    micros(RESERVATION_LIFE)
}
