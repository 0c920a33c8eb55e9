//! Asks the policies in order and makes what the engine insists on.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use interlock_request::{Generation, Outcome, RequestId, TokenId, Usage};

use crate::{
    Ceilings, Decision, Facts, FailureAction, Load, OnFailure, Phase, Plan, PlanProposal, Policy,
    PolicyFailure, PolicyMetrics, Reason, Rejection,
};

/// A policy in its place in the chain.
pub struct Link {
    /// Who decides.
    pub policy: Arc<dyn Policy>,
    /// What its silence means.
    pub on_failure: OnFailure,
}

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

/// One policy's answer to one request, as the log has it.
#[derive(Debug, Clone, PartialEq)]
pub struct Said {
    /// Who answered.
    pub policy: String,
    /// Which version of it.
    pub version: String,
    /// What it answered, or how it failed.
    pub decision: Result<Decision, PolicyFailure>,
    /// How long it took.
    pub elapsed: Duration,
}

/// A request that every configured policy has passed.
#[derive(Debug)]
pub struct Admitted {
    id: RequestId,
    prompt: Prompt,
    generation: Generation,
    plan: Plan,
}

impl Admitted {
    /// Names the request.
    pub fn id(&self) -> &RequestId {
        &self.id
    }

    /// What the host must enforce.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Most tokens it may generate.
    pub fn tokens_max(&self) -> u32 {
        self.generation.tokens_max
    }

    /// For the engine: the prompt and what to make of it. The plan's priority is in there.
    pub fn into_work(self) -> (RequestId, Prompt, Generation) {
        (self.id, self.prompt, self.generation)
    }
}

/// How an admitted request ended, in the words that policies read.
#[derive(Debug, Clone, PartialEq)]
pub struct Summary {
    /// How it ended.
    pub outcome: Outcome,
    /// What it used.
    pub usage: Usage,
    /// From admission to its first pass, if it had one.
    pub queue_time: Option<Duration>,
    /// From admission to the first token, if there was one.
    pub time_to_first_token: Option<Duration>,
    /// From admission to the end.
    pub total: Duration,
}

/// The duty to tell the policies how an admitted request ended.
///
/// [`Account::settle`] fulfils it. Dropping it fulfils it too, as a failure: a task that
/// panicked or was forgotten still accounts for its request, once.
pub struct Account {
    chain: Arc<PolicyChain>,
    facts: Option<Facts>,
    admitted_at: Instant,
}

impl fmt::Debug for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Account").field("facts", &self.facts).finish_non_exhaustive()
    }
}

impl Account {
    /// Tells every policy that accounts, in the order of the chain.
    pub fn settle(mut self, summary: &Summary) {
        self.tell(summary);
    }

    /// When the request was admitted; its deadlines count from here.
    pub fn admitted_at(&self) -> Instant {
        self.admitted_at
    }

    fn tell(&mut self, summary: &Summary) {
        if let Some(facts) = self.facts.take() {
            self.chain.account(&facts, summary);
        }
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        if self.facts.is_some() {
            let total = self.admitted_at.elapsed();
            self.tell(&Summary {
                outcome: Outcome::Failed("the request was dropped before it ended".into()),
                usage: Usage::default(),
                queue_time: None,
                time_to_first_token: None,
                total,
            });
        }
    }
}

/// A request that a policy turned away, or whose policy failed closed.
#[derive(Debug, Clone, PartialEq)]
pub struct Refused {
    /// Who refused.
    pub policy: String,
    /// What the client is told.
    pub rejection: Rejection,
    /// Set when the policy failed and its `on_failure` is closed. For our log only.
    pub failure: Option<Box<PolicyFailure>>,
}

/// The policies, in the operator's order.
pub struct PolicyChain {
    links: Vec<Link>,
    ceilings: Ceilings,
    metrics: PolicyMetrics,
}

impl fmt::Debug for PolicyChain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.names()).finish()
    }
}

impl PolicyChain {
    /// A chain of these links. An empty one admits everything under the ceilings.
    pub fn new(links: Vec<Link>, ceilings: Ceilings, metrics: PolicyMetrics) -> Self {
        for link in &links {
            for phase in [Phase::Admit, Phase::Account] {
                if link.policy.takes(phase) {
                    metrics.expects(link.policy.name(), phase);
                }
            }
        }
        Self { links, ceilings, metrics }
    }

    /// The policies' names, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.links.iter().map(|link| link.policy.name())
    }

    /// Asks the policies in order; the first rejection ends the chain, the plans of the others
    /// merge by [`PlanProposal::tighten`].
    ///
    /// A policy that traps or overruns its limits has *no* decision. What then happens is its
    /// `on_failure` setting, never a default here.
    ///
    /// # Errors
    ///
    /// When a policy turns the request away, or fails and its `on_failure.admit` is closed.
    pub fn admit(
        self: &Arc<Self>,
        facts: Facts,
        load: &Load,
        prompt: Prompt,
        mut generation: Generation,
    ) -> Result<(Admitted, Account, Vec<Said>), Refused> {
        let mut proposal = PlanProposal::default();
        let mut verdicts = Vec::with_capacity(self.links.len());
        for link in self.links.iter().filter(|link| link.policy.takes(Phase::Admit)) {
            let policy = link.policy.as_ref();
            let asked_at = Instant::now();
            let answer = policy.admit(&facts, load, 0, &crate::Body::new(vec![]));
            let elapsed = asked_at.elapsed();
            self.metrics.admitted(policy.name(), elapsed, &answer);
            match &answer {
                Ok(Decision::Admit(admission)) => proposal = proposal.tighten(admission.proposal),
                Ok(Decision::Reject(rejection)) => {
                    return Err(Refused {
                        policy: policy.name().to_owned(),
                        rejection: Rejection {
                            status: rejection.status.clamp(400, 599),
                            ..rejection.clone()
                        },
                        failure: None,
                    });
                }
                Err(failure) => {
                    tracing::warn!(
                        request = %facts.request_id, policy = policy.name(), phase = "admit",
                        on_failure = %link.on_failure.admit, %failure, "policy gave no decision"
                    );
                    if let FailureAction::Closed(status) = link.on_failure.admit {
                        return Err(Refused {
                            policy: policy.name().to_owned(),
                            rejection: failed_closed(policy.name(), status),
                            failure: Some(Box::new(failure.clone())),
                        });
                    }
                }
            }
            verdicts.push(Said {
                policy: policy.name().to_owned(),
                version: policy.version().to_owned(),
                decision: answer,
                elapsed,
            });
        }
        let plan = proposal.clamp(&self.ceilings);
        generation.priority = plan.priority;
        let admitted = Admitted { id: facts.request_id.clone(), prompt, generation, plan };
        let account =
            Account { chain: Arc::clone(self), facts: Some(facts), admitted_at: Instant::now() };
        Ok((admitted, account, verdicts))
    }

    fn account(&self, facts: &Facts, summary: &Summary) {
        for link in self.links.iter().filter(|link| link.policy.takes(Phase::Account)) {
            let policy = link.policy.as_ref();
            let asked_at = Instant::now();
            let answer = policy.account(crate::Told { facts, note: "" }, summary);
            self.metrics.accounted(policy.name(), asked_at.elapsed(), &answer);
            if let Err(failure) = answer {
                tracing::warn!(
                    request = %facts.request_id, policy = policy.name(), phase = "account",
                    %failure, "policy failed to account for a request"
                );
            }
        }
    }
}

fn failed_closed(policy: &str, status: u16) -> Rejection {
    Rejection {
        status,
        reason: Reason {
            code: crate::Code::from("policy_failed"),
            detail: Some(format!("the policy {policy:?} could not decide about this request")),
        },
        retry_after: None,
        headers: vec![],
    }
}

#[cfg(test)]
mod tests;
