//! `[state]`: where policies keep what they share, and how much of it.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use interlock_request::{ByteSize, Secret};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::redis_url::{BadRedisUrl, RedisUrl};
use crate::store::{ENTRY_BYTES, Quota};

/// `[state]`: what policies remember between calls. Each policy has its own keys and its own quota.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct StateConfig {
    /// `memory`, which is this process's own and ends with it, or a server of Redis 6.2 or later, or
    /// of Valkey, as `redis://[user:password@]host[:port][/database]`; what is shown of it has no login. What is tested is Redis 6.2,
    /// the oldest, and Valkey 9.1, the newest. Turn this to Redis when several hosts are to share
    /// their limits, or when limits have to outlive a restart. A host starts whether or not it answers, says so,
    /// and connects when it does.
    pub store: StoreUrl,
    /// Longest time that one call may wait for Redis, 1ms to 1s; memory never waits. The default is
    /// several times a round trip within a data centre. A policy that waited in vain hears that the
    /// state is unavailable and decides without it; its deadline, which counts its own time alone,
    /// does not run meanwhile. Turn this up when Redis is further away than that. A policy with
    /// state in Redis is called on threads of its own, so nobody else waits for its calls.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String")]
    pub timeout: Duration,
    /// How long a slot or a reservation in Redis outlives the host that took it, 1s to 1h. A host
    /// renews what its requests hold each third of this; of one that was killed it is free again
    /// after this, and of one that Redis did not hear for longer it is lost while the request goes on.
    /// Turn this up when Redis is away for longer now and then, as while a replica takes over; turn it
    /// down when tenants must not wait that long for the slots of a host that died.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String")]
    pub lease: Duration,
    /// Most keys of one policy: buckets, windows, open reservations, counted slots and values. A
    /// limit per user takes a key per user. Turn this up when the log or the metrics say `quota`
    /// and there are that many users.
    pub keys_max: usize,
    /// Most bytes of one policy, keys and values, with 128 bytes for each entry's bookkeeping.
    /// Turn this up together with `keys_max`: the default is enough for that many short ones.
    pub bytes_max: ByteSize,
    /// Most bytes of one value, 1B to 64KiB, which is as much as a policy may hand over in one call.
    /// State is for counters, flags and small records; turn this down to hold policies to that.
    pub value_bytes_max: ByteSize,
}

/// The store of the state, written `memory` or as a Redis URL.
///
/// The login is never shown or written.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(with = "Secret")]
pub enum StoreUrl {
    /// State is kept in this process.
    #[default]
    Memory,
    /// State is kept in Redis, which several hosts can share.
    Redis(RedisUrl),
}

/// A text that names no store. It may be a URL with a password in the wrong place, so it is not quoted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(transparent)]
pub struct BadStoreUrl(#[from] BadRedisUrl);

impl Default for StateConfig {
    fn default() -> Self {
        Self {
            store: StoreUrl::Memory,
            timeout: Duration::from_millis(3),
            lease: Duration::from_secs(30),
            keys_max: 100_000,
            bytes_max: ByteSize(32 << 20),
            value_bytes_max: ByteSize(64 << 10),
        }
    }
}

impl StateConfig {
    /// The limits on what one policy may keep.
    pub(crate) fn quota(&self) -> Quota {
        Quota {
            keys_max: self.keys_max as u64,
            bytes_max: self.bytes_max.0,
            value_bytes_max: self.value_bytes_max.in_memory(),
        }
    }

    const TIMEOUT_MIN: Duration = Duration::from_millis(1);
    const TIMEOUT_MAX: Duration = Duration::from_secs(1);
    const LEASE_MIN: Duration = Duration::from_secs(1);
    const LEASE_MAX: Duration = Duration::from_secs(3600);
    const KEYS_MAX: usize = 10_000_000;
    const BYTES_MAX: ByteSize = ByteSize(16 << 30);
    const VALUE_BYTES_MAX: ByteSize = ByteSize(64 << 10);

    /// Every problem, as key, relation, value.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let mut must = |holds: bool, key: &str, relation: String, value: &dyn fmt::Display| {
            if !holds {
                problems.push(format!("state.{key} must {relation}, got {value}"));
            }
        };
        must(
            (Self::TIMEOUT_MIN..=Self::TIMEOUT_MAX).contains(&self.timeout),
            "timeout",
            format!("be {:?} to {:?}", Self::TIMEOUT_MIN, Self::TIMEOUT_MAX),
            &format!("{:?}", self.timeout),
        );
        must(
            (Self::LEASE_MIN..=Self::LEASE_MAX).contains(&self.lease),
            "lease",
            format!("be {:?} to {:?}", Self::LEASE_MIN, Self::LEASE_MAX),
            &format!("{:?}", self.lease),
        );
        must(
            (1..=Self::KEYS_MAX).contains(&self.keys_max),
            "keys_max",
            format!("be 1 to {}", Self::KEYS_MAX),
            &self.keys_max,
        );
        let values = (ByteSize(1), Self::VALUE_BYTES_MAX);
        must(
            (values.0..=values.1).contains(&self.value_bytes_max),
            "value_bytes_max",
            format!("be {} to {}", values.0, values.1),
            &self.value_bytes_max,
        );
        let least = ByteSize(self.value_bytes_max.0.saturating_add(ENTRY_BYTES));
        must(
            (least..=Self::BYTES_MAX).contains(&self.bytes_max),
            "bytes_max",
            format!("be {least} (one value of state.value_bytes_max) to {}", Self::BYTES_MAX),
            &self.bytes_max,
        );
        problems
    }
}

impl FromStr for StoreUrl {
    type Err = BadStoreUrl;

    fn from_str(text: &str) -> Result<Self, BadStoreUrl> {
        Ok(if text == "memory" { Self::Memory } else { Self::Redis(text.parse()?) })
    }
}

impl TryFrom<String> for StoreUrl {
    type Error = BadStoreUrl;

    fn try_from(text: String) -> Result<Self, BadStoreUrl> {
        text.parse()
    }
}

impl From<StoreUrl> for String {
    fn from(store: StoreUrl) -> Self {
        store.to_string()
    }
}

impl fmt::Display for StoreUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Memory => f.write_str("memory"),
            Self::Redis(url) => url.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    #[test]
    fn a_store_is_memory_or_a_redis_url() {
        assert_eq!("memory".parse::<StoreUrl>().unwrap(), StoreUrl::Memory);
        for url in ["redis://cache", "redis://cache:6380/2", "redis+unix:///run/redis.sock"] {
            assert_eq!(url.parse::<StoreUrl>().unwrap(), StoreUrl::Redis(url.parse().unwrap()));
        }
        for bad in ["", "cache:6379", "http://cache", "rediss://cache", "redis:cache", "redis://"] {
            assert!(bad.parse::<StoreUrl>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_password_is_not_shown() {
        let store: StoreUrl = "redis://host:p@ss:w0rd@cache:6379/1".parse().unwrap();
        assert_eq!(store.to_string(), "redis://***@cache:6379/1");
        assert!(!format!("{store:?}").contains("w0rd"), "{store:?}");
        assert_eq!(serde_json::to_string(&store).unwrap(), format!("\"{store}\""));
    }

    #[test]
    fn the_defaults_have_no_problems_and_are_what_an_empty_table_means() {
        assert_eq!(StateConfig::default().problems(), [""; 0]);
        let empty: StateConfig = serde_json::from_str("{}").unwrap();
        assert_eq!(empty, StateConfig::default());
        let typo = serde_json::from_str::<StateConfig>(r#"{"timout": "3ms"}"#);
        assert!(typo.unwrap_err().to_string().contains("unknown field `timout`"));
    }

    #[test]
    fn every_problem_is_reported_with_key_relation_and_value() {
        let bad = StateConfig {
            store: StoreUrl::Memory,
            timeout: Duration::from_secs(2),
            lease: Duration::from_millis(999),
            keys_max: 0,
            bytes_max: ByteSize(4),
            value_bytes_max: ByteSize(2 << 20),
        };
        expect![[r#"
            state.timeout must be 1ms to 1s, got 2s
            state.lease must be 1s to 3600s, got 999ms
            state.keys_max must be 1 to 10000000, got 0
            state.value_bytes_max must be 1B to 64KiB, got 2MiB
            state.bytes_max must be 2097280B (one value of state.value_bytes_max) to 16GiB, got 4B"#]]
        .assert_eq(&bad.problems().join("\n"));
    }
}
