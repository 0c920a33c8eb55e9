//! State in Redis, for hosts that share it.
//!
//! Each operation is one Lua script, so it is atomic among all hosts, and the time it goes by is
//! the server's (`TIME`), so hosts whose clocks differ agree. The scripts are loaded when a
//! connection is made and called by their hash.
//!
//! # Keys
//!
//! ```text
//! interlock:{POLICY}:b:KEY     bucket       "tokens since", a string
//! interlock:{POLICY}:w:KEY     window       "began ends used"
//! interlock:{POLICY}:r:ID      reservation  "began here total limit per KEY"
//! interlock:{POLICY}:c:KEY     slots        sorted set: slot by the end of its lease
//! interlock:{POLICY}:v:KEY     value        as the policy gave it
//! interlock:{POLICY}:ends      sorted set of the above by when they end
//! interlock:{POLICY}:sizes     hash of the above by size; the sum is in the field ""
//! ```
//!
//! All have an expiry. The last two are the policy's account: quotas are checked against them, and
//! what has ended is taken off them before anything is refused. The braces make a cluster keep a
//! policy's keys in one place; scripts therefore get the prefix as their one key.
//!
//! # Invariants
//!
//! - A script that refuses for want of room has written nothing but the sweep's deletions.
//! - Numbers of reservations and slots travel as text: Lua's numbers are doubles.
//!
//! # Not here
//!
//! TLS, clusters of more than one shard, and sentinels: the client can do each of them behind a
//! feature of its own, and none has been tested here. How connections fail and heal is [`link`]'s.

mod link;

use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::Duration;

use ::redis::{IntoConnectionInfo, RedisResult, Script, ScriptInvocation};

use self::link::Link;
use crate::space::{
    Bucket, ENTRY_BYTES, Entered, Extended, Quota, Reservation, Reserved, SLOT_BYTES, Shelf,
    StateFault, Taken, Window,
};
use crate::{LIFE_MAX, RESERVATION_LIFE, Store};

/// Whether the client takes this for a server that it can reach: no TLS.
pub(crate) fn is_url(text: &str) -> bool {
    let plain = ["redis://", "redis+unix://"].iter().any(|scheme| text.starts_with(scheme));
    plain && text.into_connection_info().is_ok()
}

/// A connection to Redis, with the scripts.
pub(crate) struct Redis {
    link: Arc<Link>,
    scripts: Arc<Scripts>,
    quota: Quota,
}

/// One policy's keys.
struct RedisShelf {
    link: Arc<Link>,
    scripts: Arc<Scripts>,
    quota: Quota,
    prefix: String,
}

struct Scripts {
    take: Script,
    reserve: Script,
    extend: Script,
    settle: Script,
    enter: Script,
    leave: Script,
    set: Script,
    delete: Script,
    compare_and_set: Script,
    increment: Script,
}

impl Redis {
    pub(crate) fn open(url: &str, timeout: Duration, quota: Quota) -> RedisResult<Self> {
        let scripts = Arc::new(Scripts::new());
        let link = Link::open(url, timeout, scripts.all().cloned().collect())?;
        Ok(Self { link: Arc::new(link), scripts, quota })
    }
}

impl Store for Redis {
    fn waits(&self) -> bool {
        true
    }

    fn shelf(&self, policy: &str) -> Arc<dyn Shelf> {
        Arc::new(RedisShelf {
            link: Arc::clone(&self.link),
            scripts: Arc::clone(&self.scripts),
            quota: self.quota,
            prefix: format!("interlock:{{{}}}:", plain(policy)),
        })
    }
}

/// A name that cannot end the braces it stands in, whoever checked it before.
fn plain(policy: &str) -> String {
    let mut name = String::with_capacity(policy.len());
    for byte in policy.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' => {
                name.push(char::from(byte));
            }
            _ => name.push_str(&format!("%{byte:02x}")),
        }
    }
    name
}

impl Scripts {
    fn new() -> Self {
        // Each begins with what they share: the time, the account, and how a window is read.
        let script =
            |own: &str| Script::new(&format!("{}\n{own}", include_str!("redis/shared.lua")));
        Self {
            take: script(include_str!("redis/take.lua")),
            reserve: script(include_str!("redis/reserve.lua")),
            extend: script(include_str!("redis/extend.lua")),
            settle: script(include_str!("redis/settle.lua")),
            enter: script(include_str!("redis/enter.lua")),
            leave: script(include_str!("redis/leave.lua")),
            set: script(include_str!("redis/set.lua")),
            delete: script(include_str!("redis/delete.lua")),
            compare_and_set: script(include_str!("redis/compare_and_set.lua")),
            increment: script(include_str!("redis/increment.lua")),
        }
    }

    fn all(&self) -> impl Iterator<Item = &Script> {
        let Self { take, reserve, extend, settle, enter, leave, .. } = self;
        let Self { set, delete, compare_and_set, increment, .. } = self;
        [take, reserve, extend, settle, enter, leave, set, delete, compare_and_set, increment]
            .into_iter()
    }
}

/// What a script says: a word, and what belongs to it.
struct Answer(Vec<String>);

impl Answer {
    fn word(&self) -> &str {
        self.0.first().map_or("", String::as_str)
    }

    fn number<T: std::str::FromStr>(&self, at: usize) -> Result<T, StateFault> {
        let number = self.0.get(at).and_then(|text| text.parse().ok());
        number.ok_or_else(|| self.nonsense())
    }

    /// Microseconds, as the scripts count them. Rounded up: who waits that long must not come early.
    fn time(&self, at: usize) -> Result<Duration, StateFault> {
        let micros: f64 = self.number(at)?;
        Ok(Duration::from_micros(micros.max(0.0).ceil() as u64))
    }

    fn nonsense(&self) -> StateFault {
        StateFault::Unavailable(format!(
            "redis answered {:?}, which is none of our scripts' answers",
            self.0
        ))
    }
}

/// A number that no other reservation or slot of the policy has: drawn by whoever makes it, so
/// that hosts need not agree on a counter. One in 10^19 that it is taken.
fn draw() -> u64 {
    fastrand::u64(NonZeroU64::MIN.get()..)
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

fn entry(key: &str) -> u64 {
    key.len() as u64 + ENTRY_BYTES
}

impl RedisShelf {
    /// What every script is told first, in the order of `shared.lua`.
    fn call<'a>(&self, script: &'a Script) -> ScriptInvocation<'a> {
        let mut call = script.prepare_invoke();
        call.key(&self.prefix);
        call.arg(self.quota.keys_max).arg(self.quota.bytes_max);
        call.arg(LIFE_MAX.as_millis() as u64);
        call
    }

    fn run(&self, call: &ScriptInvocation<'_>) -> Result<Answer, StateFault> {
        let answer = Answer(self.link.with(|connection| call.invoke(connection))?);
        if answer.word() == "quota" { Err(StateFault::Quota) } else { Ok(answer) }
    }
}

impl Shelf for RedisShelf {
    fn take(&self, key: &str, bucket: Bucket, cost: f64, take: bool) -> Result<Taken, StateFault> {
        let Bucket { capacity, refill_per_second } = bucket;
        let mut call = self.call(&self.scripts.take);
        call.arg(key).arg(entry(key)).arg(capacity).arg(refill_per_second).arg(cost);
        call.arg(u8::from(take));
        let answer = self.run(&call)?;
        match answer.word() {
            "ok" => Ok(Taken::Ok { remaining: answer.number(1)? }),
            "denied" => Ok(Taken::denied(answer.number(1)?, refill_per_second)),
            _ => Err(answer.nonsense()),
        }
    }

    fn reserve(&self, key: &str, window: Window, estimate: f64) -> Result<Reserved, StateFault> {
        let id = draw();
        let mut call = self.call(&self.scripts.reserve);
        call.arg(key).arg(entry(key)).arg(window.limit).arg(micros(window.per)).arg(estimate);
        call.arg(id).arg(micros(RESERVATION_LIFE));
        let answer = self.run(&call)?;
        match answer.word() {
            "ok" => Ok(Reserved::Ok(Reservation {
                id,
                remaining: answer.number(1)?,
                resets_in: answer.time(2)?,
            })),
            "denied" => Ok(Reserved::Denied { available_in: answer.time(1)? }),
            _ => Err(answer.nonsense()),
        }
    }

    fn extend(&self, reservation: u64, extra: f64) -> Result<Extended, StateFault> {
        let mut call = self.call(&self.scripts.extend);
        call.arg(reservation).arg(extra).arg(micros(RESERVATION_LIFE)).arg(ENTRY_BYTES);
        let answer = self.run(&call)?;
        match answer.word() {
            "ok" => Ok(Extended::Ok),
            "denied" => Ok(Extended::Denied),
            "unknown" => Ok(Extended::Unknown),
            _ => Err(answer.nonsense()),
        }
    }

    fn settle(&self, reservation: u64, actual: f64) -> Result<bool, StateFault> {
        let mut call = self.call(&self.scripts.settle);
        call.arg(reservation).arg(actual).arg(ENTRY_BYTES);
        let answer = self.run(&call)?;
        match answer.word() {
            "ok" => Ok(true),
            "unknown" => Ok(false),
            _ => Err(answer.nonsense()),
        }
    }

    fn enter(&self, key: &str, limit: u32, lease: Duration) -> Result<Entered, StateFault> {
        let slot = draw();
        let mut call = self.call(&self.scripts.enter);
        call.arg(key).arg(entry(key)).arg(SLOT_BYTES).arg(limit).arg(micros(lease)).arg(slot);
        let answer = self.run(&call)?;
        match answer.word() {
            "ok" => Ok(Entered::Ok { slot, running: answer.number(1)? }),
            "denied" => Ok(Entered::Denied { available_in: answer.time(1)? }),
            _ => Err(answer.nonsense()),
        }
    }

    fn leave(&self, key: &str, slot: u64) -> Result<bool, StateFault> {
        let mut call = self.call(&self.scripts.leave);
        call.arg(key).arg(entry(key)).arg(SLOT_BYTES).arg(slot);
        let answer = self.run(&call)?;
        match answer.word() {
            "ok" => Ok(true),
            "unknown" => Ok(false),
            _ => Err(answer.nonsense()),
        }
    }

    fn get(&self, key: &str) -> Result<Option<Vec<u8>>, StateFault> {
        let mut get = ::redis::cmd("GET");
        get.arg(format!("{}v:{key}", self.prefix));
        self.link.with(|connection| get.query(connection))
    }

    fn set(&self, key: &str, value: &[u8], ttl: Duration) -> Result<(), StateFault> {
        let mut call = self.call(&self.scripts.set);
        call.arg(key).arg(entry(key) + value.len() as u64).arg(value).arg(micros(ttl));
        let answer = self.run(&call)?;
        if answer.word() == "ok" { Ok(()) } else { Err(answer.nonsense()) }
    }

    fn delete(&self, key: &str) -> Result<bool, StateFault> {
        let mut call = self.call(&self.scripts.delete);
        call.arg(key);
        let answer = self.run(&call)?;
        match answer.word() {
            "ok" => Ok(true),
            "unknown" => Ok(false),
            _ => Err(answer.nonsense()),
        }
    }

    fn compare_and_set(
        &self,
        key: &str,
        old: Option<&[u8]>,
        new: &[u8],
        ttl: Duration,
    ) -> Result<bool, StateFault> {
        let mut call = self.call(&self.scripts.compare_and_set);
        call.arg(key).arg(entry(key) + new.len() as u64).arg(new).arg(micros(ttl));
        if let Some(old) = old {
            call.arg(old);
        }
        let answer = self.run(&call)?;
        match answer.word() {
            "ok" => Ok(true),
            "denied" => Ok(false),
            _ => Err(answer.nonsense()),
        }
    }

    fn increment(&self, key: &str, by: i64, ttl: Duration) -> Result<i64, StateFault> {
        let mut call = self.call(&self.scripts.increment);
        call.arg(key).arg(entry(key)).arg(by).arg(micros(ttl));
        let answer = self.run(&call)?;
        match answer.word() {
            "ok" => answer.number(1),
            "invalid" => Err(StateFault::Invalid(
                "the value to increment is no whole number, or would leave the range of a 64-bit \
                 number"
                    .into(),
            )),
            _ => Err(answer.nonsense()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_cannot_leave_its_braces() {
        assert_eq!(plain("quota-1_a.b"), "quota-1_a.b");
        assert_eq!(plain("a}:v:{b"), "a%7d%3av%3a%7bb");
        assert_ne!(plain("a%7d"), plain("a}"));
    }
}
