//! What the chain makes of what policies say, phase by phase.

mod admit;
mod identify;
mod route;
mod transform;

use crate::testing::{Fake, SERIAL, id};
use crate::{AdmissionReview, ChainEntry, FailureAction, OnFailure, PolicyChain, PolicyMode};
use interlock_policy_api::{Code, Reason, Rejection};
use std::sync::Arc;

fn review(chain: &Arc<PolicyChain>) -> AdmissionReview {
    chain.review(SERIAL, id())
}

/// With this action in every phase in which it makes sense.
fn failing(fake: Fake, action: FailureAction) -> ChainEntry {
    ChainEntry::new(Arc::new(fake), OnFailure::all(action))
}

fn shadow(fake: Fake) -> ChainEntry {
    ChainEntry { mode: PolicyMode::Shadow, ..fake.entry() }
}

/// The new one in the shadow of the old, of the same name.
fn successor(old: Fake, new: Fake) -> ChainEntry {
    ChainEntry { previous: Some(Arc::new(old)), ..shadow(new) }
}

fn rejection(status: u16) -> Rejection {
    Rejection {
        status,
        reason: Reason { code: Code::from("no"), detail: None },
        retry_after: None,
        headers: vec![("x-why".into(), "so".into()), ("set-cookie".into(), "evil".into())],
    }
}

fn counts(registry: &interlock_metrics::Registry, line: &str) {
    let text = registry.expose().expect("encodes");
    assert!(text.lines().any(|other| other == format!("interlock_{line}")), "{line} in\n{text}");
}
