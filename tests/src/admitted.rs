//! A request past the policies, for tests that are about what comes after them.

use std::sync::Arc;

use interlock_policy_api::{Body, Facts, Headers, Identity, Load, Prompt};
use interlock_policy_chain::{AdmissionOutcome, PolicyChain, at_once};
use interlock_request::{Endpoint, Generation, ModelId, RequestId};

/// What the policies of `chain` make of a request of nobody in particular. Its serial tells it from
/// others.
///
/// # Errors
///
/// When one of them refuses.
pub fn admit(
    chain: &Arc<PolicyChain>,
    serial: u64,
    id: &str,
    prompt: Vec<u32>,
    generation: Generation,
) -> Result<AdmissionOutcome, interlock_policy_chain::PolicyRefusal> {
    admit_of("", chain, serial, id, prompt, generation)
}

/// The same, of a tenant's request.
///
/// # Errors
///
/// When one of them refuses.
pub fn admit_of(
    tenant: &str,
    chain: &Arc<PolicyChain>,
    serial: u64,
    id: &str,
    prompt: Vec<u32>,
    generation: Generation,
) -> Result<AdmissionOutcome, interlock_policy_chain::PolicyRefusal> {
    let facts = Facts {
        serial,
        request_id: RequestId::parse(id).expect("a request id"),
        arrived_at_micros: 0,
        endpoint: Endpoint::Chat,
        model: ModelId::new("sim"),
        streaming: true,
        background: false,
        prompt_tokens: u32::try_from(prompt.len()).expect("a prompt of a test"),
        tokens_max: generation.tokens_max,
        tokens_max_asked: true,
        body_bytes: 0,
        prefix_key: 0,
        identity: Identity { tenant: tenant.into(), ..Identity::default() },
        headers: Headers::default(),
    };
    let review = chain.review(serial, facts.request_id.clone());
    let prompt = Prompt::new(prompt).expect("a prompt");
    let body = Arc::new(Body::new(vec![]));
    at_once(review.admit(facts, &Load::default(), prompt, generation, &body))
}
