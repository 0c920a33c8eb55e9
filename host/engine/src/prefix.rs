//! Whose computed pages a request may share.
//!
//! How long a request takes to its first token, and `cached_tokens` in its usage, tell whether
//! somebody has asked something that begins like it. So the index of computed pages is kept apart
//! by scope, and a scope is a tenant, unless the operator says otherwise.

use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// `cache.prefix_sharing`: among whom computed pages are shared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum PrefixSharing {
    /// Among the requests of one tenant, as the policies' `identify` names it. Requests of nobody in
    /// particular are one tenant.
    #[default]
    Tenant,
    /// Among all requests of a model.
    All,
}

/// A group of requests that share computed pages; no two groups ever do.
///
/// [`PrefixSharing::scope`] is the only way to one.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PrefixScope(Option<Arc<str>>);

impl PrefixSharing {
    /// The group that a tenant's requests belong to.
    pub fn scope(self, tenant: &str) -> PrefixScope {
        PrefixScope(match self {
            Self::Tenant => Some(tenant.into()),
            Self::All => None,
        })
    }
}
