//! The server as the policies' shelves see it: its scripts, how they are called, and their answers.

use std::time::Duration;

use ::redis::{FromRedisValue, Script, ScriptInvocation};

use super::failure::Failure;
use super::link::{CONNECT, Link};
use crate::space::{ENTRY_BYTES, Ending, Quota, SLOT_BYTES, StateFault, entry_bytes};
use crate::{LIFE_MAX, RESERVATION_LIFE};

/// What all shelves share.
pub(super) struct Server {
    pub(super) link: Link,
    pub(super) scripts: Scripts,
    pub(super) quota: Quota,
    /// How long something is held without being renewed.
    pub(super) lease: Duration,
}

/// Something that a request holds, and that ends by itself if nobody renews it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Hold {
    /// Of the policy's keys.
    pub(super) prefix: std::sync::Arc<str>,
    /// Of the slot; empty: it is a reservation.
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

impl Server {
    /// What every script is told first, in the order of `shared.lua`.
    pub(super) fn call<'a>(&self, script: &'a Script, prefix: &str) -> ScriptInvocation<'a> {
        let mut call = script.prepare_invoke();
        call.key(prefix);
        call.arg(self.quota.keys_max).arg(self.quota.bytes_max);
        call.arg(LIFE_MAX.as_millis() as u64);
        call
    }

    pub(super) fn run(&self, call: &ScriptInvocation<'_>) -> Result<Answer, Failure> {
        self.link.with(|connection| call.invoke(connection)).map(Answer)
    }

    /// For calls that no request waits for.
    fn run_patiently<T: FromRedisValue>(&self, call: &ScriptInvocation<'_>) -> Result<T, Failure> {
        self.link.with_patience(CONNECT, |connection| call.invoke(connection))
    }

    /// Ends something; whether it was there.
    pub(super) fn end(&self, prefix: &str, ending: &Ending) -> Result<Answer, Failure> {
        self.run(&self.ending(prefix, ending))
    }

    /// The same where no request waits.
    pub(super) fn end_patiently(&self, prefix: &str, ending: &Ending) -> Result<Answer, Failure> {
        self.run_patiently(&self.ending(prefix, ending)).map(Answer)
    }

    fn ending(&self, prefix: &str, ending: &Ending) -> ScriptInvocation<'_> {
        match ending {
            Ending::Settle { reservation, actual } => {
                let mut call = self.call(&self.scripts.settle, prefix);
                let actual = actual.map(|actual| actual.to_string()).unwrap_or_default();
                call.arg(reservation).arg(actual).arg(ENTRY_BYTES);
                call
            }
            Ending::Leave { key, slot } => {
                let mut call = self.call(&self.scripts.leave, prefix);
                call.arg(key).arg(entry_bytes(key)).arg(SLOT_BYTES).arg(slot);
                call
            }
        }
    }

    /// Renews what one policy holds, each no longer than it may be held; what has ended.
    pub(super) fn renew(
        &self,
        prefix: &str,
        held: &[(Hold, Duration)],
    ) -> Result<Vec<Hold>, Failure> {
        let mut call = self.call(&self.scripts.renew, prefix);
        call.arg(micros(self.lease));
        for (hold, most) in held {
            call.arg(&*hold.key).arg(hold.number).arg(micros(*most));
        }
        let lost: Vec<(String, u64)> = self.run_patiently(&call)?;
        let hold =
            |(key, number): (String, u64)| Hold { prefix: prefix.into(), key: key.into(), number };
        Ok(lost.into_iter().map(hold).collect())
    }
}

impl Hold {
    pub(super) fn slot(prefix: &std::sync::Arc<str>, key: &str, slot: u64) -> Self {
        Self { prefix: std::sync::Arc::clone(prefix), key: key.into(), number: slot }
    }

    pub(super) fn reservation(prefix: &std::sync::Arc<str>, reservation: u64) -> Self {
        Self::slot(prefix, "", reservation)
    }

    /// What an ending ends.
    pub(super) fn of(prefix: &std::sync::Arc<str>, ending: &Ending) -> Self {
        match ending {
            Ending::Settle { reservation, .. } => Self::reservation(prefix, *reservation),
            Ending::Leave { key, slot } => Self::slot(prefix, key, *slot),
        }
    }

    /// Ends it as if it had never been.
    pub(super) fn undo(&self) -> Ending {
        match &*self.key {
            "" => Ending::Settle { reservation: self.number, actual: Some(0.0) },
            key => Ending::Leave { key: key.to_owned(), slot: self.number },
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

/// What a script says: a word, and what belongs to it.
pub(super) struct Answer(Vec<String>);

impl Answer {
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

    /// Of an ending and a removal: was it there?
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

/// How long a reservation is remembered, as scripts are told.
pub(super) fn reservation_life() -> u64 {
    micros(RESERVATION_LIFE)
}
