//! Which requests may share computed pages.
//!
//! A request's time to first token, and `cached_tokens` in its usage, tell whether another request began
//! with the same tokens. So the index of computed pages is kept apart by scope, and a scope is a tenant,
//! unless the operator configures otherwise.

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

/// A set of requests that share computed pages. No page is shared between two scopes.
///
/// Only [`PrefixSharing::scope`] makes one.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PrefixScope(Option<Arc<str>>);

impl PrefixSharing {
    /// The scope of a tenant's requests.
    pub fn scope(self, tenant: &str) -> PrefixScope {
        PrefixScope(match self {
            Self::Tenant => Some(tenant.into()),
            Self::All => None,
        })
    }
}
