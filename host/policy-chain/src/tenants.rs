//! How many requests of each tenant are under way.
//!
//! # Invariants
//!
//! - A tenant is in the table as long as it has a request under way and no longer, so the table
//!   never has more rows than there are requests.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

/// The count of each tenant's requests, over all generations of policies.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tenants(Arc<Mutex<HashMap<Arc<str>, u32>>>);

/// A request that counts for its tenant until this is dropped.
#[derive(Debug)]
pub(crate) struct TenantGuard {
    tenants: Tenants,
    tenant: Arc<str>,
    others: u32,
}

impl Tenants {
    /// Counts one in.
    pub(crate) fn enter(&self, tenant: &str) -> TenantGuard {
        // Held for a look-up, never across a call.
        let mut table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((tenant, count)) = table.get_key_value(tenant) {
            let (tenant, others) = (Arc::clone(tenant), *count);
            table.insert(Arc::clone(&tenant), others + 1);
            return TenantGuard { tenants: self.clone(), tenant, others };
        }
        let tenant: Arc<str> = tenant.into();
        table.insert(Arc::clone(&tenant), 1);
        TenantGuard { tenants: self.clone(), tenant, others: 0 }
    }

    #[cfg(test)]
    pub(crate) fn count(&self, tenant: &str) -> Option<u32> {
        self.0.lock().unwrap().get(tenant).copied()
    }
}

impl TenantGuard {
    /// How many others of the tenant there were when it came.
    pub(crate) fn others(&self) -> u32 {
        self.others
    }
}

impl Drop for TenantGuard {
    fn drop(&mut self) {
        let mut table = self.tenants.0.lock().unwrap_or_else(PoisonError::into_inner);
        match table.get_mut(&self.tenant) {
            Some(count) if *count > 1 => *count -= 1,
            _ => {
                table.remove(&self.tenant);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenant_is_forgotten_with_its_last_request() {
        let tenants = Tenants::default();
        let first = tenants.enter("a");
        let second = tenants.enter("a");
        let other = tenants.enter("b");
        assert_eq!((first.others(), second.others(), other.others()), (0, 1, 0));
        drop(first);
        assert_eq!(tenants.count("a"), Some(1));
        drop(second);
        assert_eq!((tenants.count("a"), tenants.count("b")), (None, Some(1)));
    }
}
