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
//! interlock:{POLICY}:r:ID      reservation  "began here total limit per KEY"; given back: total 0
//! interlock:{POLICY}:c:KEY     slots        sorted set: slot by the end of its lease
//! interlock:{POLICY}:v:KEY     value        as the policy gave it
//! interlock:{POLICY}:ends      sorted set of the above by when they end
//! interlock:{POLICY}:sizes     hash of the above by size; the sum is in the field ""
//! ```
//!
//! Slots and reservations are held by leases of `state.lease`, which the host renews while their
//! requests live ([`leases`]): of a host that has died nothing is held for longer. A reservation's
//! lease is its end in `ends`; when that has come, whoever sweeps gives back what it holds, and it is
//! remembered for the rest of its life, so that a host which was only slow can still charge.
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
//! feature of its own, and none has been tested here. How connections fail and heal
//! is [`connection_pool`]'s; what it means that the server refuses something is [`failure`]'s.

mod address;
mod connection_pool;
mod failure;
mod leases;
mod server;

use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::Duration;

use ::redis::{Script, ScriptInvocation};

use self::address::{Connector, LookUp, system};
use self::connection_pool::ConnectionPool;
use self::leases::Leases;
use self::server::{LeaseKey, RedisServer, ScriptReply, Scripts, micros, reservation_life};
use crate::metrics::StateMetrics;
use crate::redis_url::RedisUrl;
use crate::store::{
    Bucket, BudgetWindow, ENTRY_BYTES, Entered, Extended, LeaseEnd, PolicyStore, Quota,
    Reservation, Reserved, SLOT_BYTES, StateFault, Taken, entry_bytes,
};
use crate::{RESERVATION_LIFE, StateConfig, Store};

/// A connection to Redis, and what this host holds there.
pub(crate) struct Redis {
    server: Arc<RedisServer>,
    leases: Arc<Leases>,
}

/// The state of one policy: keys that begin with its prefix.
struct RedisPolicyStore {
    server: Arc<RedisServer>,
    leases: Arc<Leases>,
    prefix: Arc<str>,
}

impl Redis {
    /// Opens it, whether it answers or not: until it does, each call fails at once.
    pub(crate) fn open(
        url: &RedisUrl,
        config: &StateConfig,
        quota: Quota,
    ) -> std::io::Result<Self> {
        let opened = Self::open_with(url, config, quota, system())?;
        if let Some(down) = opened.server.pool.down() {
            tracing::warn!(
                store = %url, kind = down.kind.as_str(), why = down.why,
                "policies' state is unavailable; the host starts without it, and policies decide \
                 without it until it answers"
            );
        }
        Ok(opened)
    }

    fn open_with(
        url: &RedisUrl,
        config: &StateConfig,
        quota: Quota,
        look_up: LookUp,
    ) -> std::io::Result<Self> {
        let scripts = Scripts::new();
        let connector = Connector::new(url.info(), look_up);
        let pool =
            ConnectionPool::open(connector, config.timeout, scripts.all().cloned().collect())?;
        let server = Arc::new(RedisServer { pool, scripts, quota, lease: config.lease });
        let leases = Arc::new(Leases::start(Arc::clone(&server))?);
        Ok(Self { server, leases })
    }

    /// The reason that Redis cannot be used now; `None` if it can.
    pub(crate) fn probe(
        url: &RedisUrl,
        config: &StateConfig,
        quota: Quota,
    ) -> std::io::Result<Option<String>> {
        let opened = Self::open_with(url, config, quota, system())?;
        Ok(opened.server.pool.down().map(|down| down.why))
    }
}

impl Store for Redis {
    fn waits(&self) -> bool {
        true
    }

    fn count_in(&self, metrics: &StateMetrics) {
        self.server.pool.count_in(metrics);
        self.leases.count_in(metrics.leases_lost.clone());
    }

    fn flush(&self, wait_max: Duration) -> bool {
        self.leases.flush(wait_max)
    }

    fn policy_store(&self, policy: &str) -> Arc<dyn PolicyStore> {
        Arc::new(RedisPolicyStore {
            server: Arc::clone(&self.server),
            leases: Arc::clone(&self.leases),
            prefix: format!("interlock:{{{}}}:", plain(policy)).into(),
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

/// A number that no other reservation or slot of the policy has: drawn by whoever makes it, so
/// that hosts need not agree on a counter. One in 10^19 that it is taken.
fn draw() -> u64 {
    fastrand::u64(NonZeroU64::MIN.get()..)
}

fn room(answer: ScriptReply) -> Result<ScriptReply, StateFault> {
    if answer.word() == "quota" { Err(StateFault::Quota) } else { Ok(answer) }
}

impl RedisPolicyStore {
    fn call<'a>(&self, script: &'a Script) -> ScriptInvocation<'a> {
        self.server.call(script, &self.prefix)
    }

    fn run(&self, call: &ScriptInvocation<'_>) -> Result<ScriptReply, StateFault> {
        room(self.server.run(call)?)
    }

    /// Makes a call that begins a lease. If the call failed and may have been carried out, it is undone.
    fn begin(
        &self,
        call: &ScriptInvocation<'_>,
        hold: &LeaseKey,
    ) -> Result<ScriptReply, StateFault> {
        let answer = self.server.run(call).inspect_err(|failure| {
            if failure.sent {
                self.leases.undo(hold.clone());
            }
        });
        room(answer?)
    }
}

impl PolicyStore for RedisPolicyStore {
    fn take(&self, key: &str, bucket: Bucket, cost: f64, take: bool) -> Result<Taken, StateFault> {
        let Bucket { capacity, refill_per_second } = bucket;
        let mut call = self.call(&self.server.scripts.take);
        call.arg(key).arg(entry_bytes(key)).arg(capacity).arg(refill_per_second).arg(cost);
        call.arg(u8::from(take));
        let answer = self.run(&call)?;
        match answer.word() {
            "ok" => Ok(Taken::Ok { remaining: answer.number(1)? }),
            "denied" => Ok(Taken::denied(answer.number(1)?, refill_per_second)),
            _ => Err(answer.nonsense()),
        }
    }

    fn reserve(
        &self,
        key: &str,
        window: BudgetWindow,
        estimate: f64,
    ) -> Result<Reserved, StateFault> {
        let id = draw();
        let mut call = self.call(&self.server.scripts.reserve);
        call.arg(key).arg(entry_bytes(key)).arg(window.limit).arg(micros(window.per)).arg(estimate);
        call.arg(id).arg(reservation_life()).arg(micros(self.server.lease));
        let hold = LeaseKey::reservation(&self.prefix, id);
        let answer = self.begin(&call, &hold)?;
        match answer.word() {
            "ok" => {
                self.leases.hold(hold, RESERVATION_LIFE);
                let (remaining, resets_in) = (answer.number(1)?, answer.time(2)?);
                Ok(Reserved::Ok(Reservation { id, remaining, resets_in }))
            }
            "denied" => Ok(Reserved::Denied { available_in: answer.time(1)? }),
            _ => Err(answer.nonsense()),
        }
    }

    fn extend(&self, reservation: u64, extra: f64) -> Result<Extended, StateFault> {
        let mut call = self.call(&self.server.scripts.extend);
        call.arg(reservation).arg(extra).arg(ENTRY_BYTES);
        call.arg(reservation_life()).arg(micros(self.server.lease));
        let answer = self.run(&call)?;
        match answer.word() {
            "ok" => {
                // Given back meanwhile, it is held again, and no longer renewed.
                self.leases
                    .hold(LeaseKey::reservation(&self.prefix, reservation), RESERVATION_LIFE);
                Ok(Extended::Ok)
            }
            "denied" => Ok(Extended::Denied),
            "unknown" => Ok(Extended::Unknown),
            _ => Err(answer.nonsense()),
        }
    }

    fn enter(&self, key: &str, limit: u32, lease: Duration) -> Result<Entered, StateFault> {
        let slot = draw();
        let mut call = self.call(&self.server.scripts.enter);
        let first = lease.min(self.server.lease);
        call.arg(key).arg(entry_bytes(key)).arg(SLOT_BYTES).arg(limit).arg(micros(first)).arg(slot);
        let hold = LeaseKey::slot(&self.prefix, key, slot);
        let answer = self.begin(&call, &hold)?;
        match answer.word() {
            "ok" => {
                self.leases.hold(hold, lease);
                Ok(Entered::Ok { slot, running: answer.number(1)? })
            }
            "full" => Ok(Entered::Full),
            _ => Err(answer.nonsense()),
        }
    }

    fn end(&self, ending: LeaseEnd) -> Result<bool, StateFault> {
        let hold = LeaseKey::of(&self.prefix, &ending);
        self.leases.release(&hold);
        match self.server.end(&self.prefix, &ending) {
            Ok(answer) => answer.known(),
            Err(failure) => {
                self.leases.end_soon(hold, ending);
                Err(failure.into())
            }
        }
    }

    fn end_soon(&self, ending: LeaseEnd) {
        self.leases.end_soon(LeaseKey::of(&self.prefix, &ending), ending);
    }

    fn get(&self, key: &str) -> Result<Option<Vec<u8>>, StateFault> {
        let mut get = ::redis::cmd("GET");
        get.arg(format!("{}v:{key}", self.prefix));
        Ok(self.server.pool.with(|connection| get.query(connection))?)
    }

    fn set(&self, key: &str, value: &[u8], ttl: Duration) -> Result<(), StateFault> {
        let mut call = self.call(&self.server.scripts.set);
        call.arg(key).arg(entry_bytes(key) + value.len() as u64).arg(value).arg(micros(ttl));
        let answer = self.run(&call)?;
        if answer.word() == "ok" { Ok(()) } else { Err(answer.nonsense()) }
    }

    fn delete(&self, key: &str) -> Result<bool, StateFault> {
        let mut call = self.call(&self.server.scripts.delete);
        call.arg(key);
        self.run(&call)?.known()
    }

    fn compare_and_set(
        &self,
        key: &str,
        old: Option<&[u8]>,
        new: &[u8],
        ttl: Duration,
    ) -> Result<bool, StateFault> {
        let mut call = self.call(&self.server.scripts.compare_and_set);
        call.arg(key).arg(entry_bytes(key) + new.len() as u64).arg(new).arg(micros(ttl));
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
        let mut call = self.call(&self.server.scripts.increment);
        call.arg(key).arg(entry_bytes(key)).arg(by).arg(micros(ttl));
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
