//! All sections, side by side.

use std::net::SocketAddr;

use interlock_catalog::{ExtraModelConfig, ModelConfig};
use interlock_engine::{CacheConfig, EngineConfig, WaitingConfig};
use interlock_policy_chain::{LimitsConfig, PoliciesConfig};
use interlock_policy_wasm::{PolicyConfig, default_policies};
use interlock_server::{AdminConfig, DetachedConfig, MetricsConfig, ServerConfig, WorkConfig};
use interlock_state::StateConfig;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::LogConfig;

/// The whole configuration. The order of the fields is the order of the generated files: what is
/// changed first, first.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[expect(missing_docs, reason = "a doc comment here would hide the struct's own in the reference")]
pub struct Config {
    pub model: ModelConfig,
    pub extra_model: Vec<ExtraModelConfig>,
    pub server: ServerConfig,
    pub admin: AdminConfig,
    pub metrics: MetricsConfig,
    pub log: LogConfig,
    pub waiting: WaitingConfig,
    pub limits: LimitsConfig,
    pub work: WorkConfig,
    pub detached: DetachedConfig,
    pub engine: EngineConfig,
    pub cache: CacheConfig,
    pub state: StateConfig,
    pub policies: PoliciesConfig,
    pub policy: Vec<PolicyConfig>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            model: ModelConfig::default(),
            extra_model: Vec::new(),
            server: ServerConfig::default(),
            admin: AdminConfig::default(),
            metrics: MetricsConfig::default(),
            log: LogConfig::default(),
            waiting: WaitingConfig::default(),
            limits: LimitsConfig::default(),
            work: WorkConfig::default(),
            detached: DetachedConfig::default(),
            engine: EngineConfig::default(),
            cache: CacheConfig::default(),
            state: StateConfig::default(),
            policies: PoliciesConfig::default(),
            policy: default_policies(),
        }
    }
}

impl Config {
    /// Every problem of every section, then those that only show when sections are seen together.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = interlock_catalog::problems(&self.model, &self.extra_model);
        problems.extend(self.server.problems());
        problems.extend(self.admin.problems());
        problems.extend(self.metrics.problems());
        problems.extend(self.log.problems());
        problems.extend(self.waiting.problems());
        problems.extend(self.limits.problems());
        problems.extend(self.work.problems());
        problems.extend(self.detached.problems());
        problems.extend(self.engine.problems());
        problems.extend(self.cache.problems());
        problems.extend(self.state.problems());
        problems.extend(self.policies.problems());
        problems.extend(interlock_policy_wasm::problems(&self.policy));
        problems.extend(self.problems_together());
        problems
    }

    fn problems_together(&self) -> Vec<String> {
        let mut problems = Vec::new();
        // A waiting request holds its connection, so these places could never be taken.
        let (requests, connections) = (self.waiting.requests_max, self.server.connections_max);
        if requests > connections {
            problems.push(format!(
                "waiting.requests_max must be at most server.connections_max ({connections}), got \
                 {requests}"
            ));
        }
        problems.extend(self.listeners_in_the_way());
        // One request may hold half of the memory; a usual body takes three times its size.
        let (memory, body) = (self.work.memory_max, self.server.body_max);
        if memory.0 < body.0.saturating_mul(8) {
            problems.push(format!(
                "work.memory_max must be at least 8 times server.body_max ({body}), got {memory}"
            ));
        }
        problems
    }

    /// Listeners that would take each other's port.
    fn listeners_in_the_way(&self) -> Vec<String> {
        let server = ("server.bind", Some(self.server.bind));
        let (admin, metrics) =
            (("admin.bind", self.admin.bind), ("metrics.bind", self.metrics.bind));
        let mut problems = Vec::new();
        for ((key, bind), (other_key, other)) in
            [(admin, server), (metrics, server), (metrics, admin)]
        {
            let (Some(bind), Some(other)) = (bind, other) else { continue };
            if overlap(bind, other) {
                problems.push(format!("{key} must differ from {other_key} ({other}), got {bind}"));
            }
        }
        problems
    }
}

/// Would these two listeners want the same port of an address? Of port 0 each gets one of its own.
fn overlap(a: SocketAddr, b: SocketAddr) -> bool {
    let everywhere = a.ip().is_unspecified() || b.ip().is_unspecified();
    a.port() != 0 && a.port() == b.port() && (a.ip() == b.ip() || everywhere)
}
