//! A request that every policy has passed.

use interlock_request::{Generation, RequestId, TokenId};

use crate::{Facts, Plan};

/// The rendered prompt, as token ids. Never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prompt(Vec<TokenId>);

impl Prompt {
    /// Takes the tokens; `None` when there are none, since a model cannot start from nothing.
    pub fn new(tokens: Vec<TokenId>) -> Option<Self> {
        (!tokens.is_empty()).then_some(Self(tokens))
    }

    /// The tokens.
    pub fn tokens(&self) -> &[TokenId] {
        &self.0
    }

    /// The tokens, for whoever goes on behind them.
    pub fn into_tokens(self) -> Vec<TokenId> {
        self.0
    }
}

/// A request that every configured policy has passed.
///
/// The engine takes nothing else, and only the policy chain makes one
/// (`tests/agreement/dependencies.rs` looks for anyone else who would).
#[derive(Debug)]
pub struct Admitted {
    id: RequestId,
    tenant: String,
    prompt: Prompt,
    generation: Generation,
    plan: Plan,
}

/// What the engine makes of an [`Admitted`].
#[derive(Debug)]
pub struct Work {
    /// Names the request.
    pub id: RequestId,
    /// Whom it counts for; empty when nobody said.
    pub tenant: String,
    /// What to continue.
    pub prompt: Prompt,
    /// How; the plan's priority is in there.
    pub generation: Generation,
}

impl Admitted {
    /// For the policy chain alone, when every policy has passed the request. The plan's priority
    /// and its bound on tokens go into what the engine is told.
    pub fn by_policies(
        facts: &Facts,
        prompt: Prompt,
        mut generation: Generation,
        plan: Plan,
        tokens_max: Option<u32>,
    ) -> Self {
        generation.priority = plan.priority;
        if let Some(tokens_max) = tokens_max {
            generation.tokens_max = generation.tokens_max.min(tokens_max.max(1));
            // Fewer than its least could never be met.
            generation.tokens_min = generation.tokens_min.min(generation.tokens_max);
        }
        let (id, tenant) = (facts.request_id.clone(), facts.identity.tenant.clone());
        Self { id, tenant, prompt, generation, plan }
    }

    /// Names the request.
    pub fn id(&self) -> &RequestId {
        &self.id
    }

    /// What the host must enforce, as it was decided; events may amend it later
    /// (the chain's `PolicySession::plan`).
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Most tokens it may generate.
    pub fn tokens_max(&self) -> u32 {
        self.generation.tokens_max
    }

    /// For the engine: the prompt and what to make of it.
    pub fn into_work(self) -> Work {
        let Self { id, tenant, prompt, generation, plan: _ } = self;
        Work { id, tenant, prompt, generation }
    }
}
