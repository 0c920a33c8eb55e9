//! Why a request may not run.

use interlock_policy_api::{Phase, PolicyFailure, Rejection};

/// A request that a policy turned away, or whose policy failed closed.
#[derive(Debug, Clone, PartialEq)]
pub struct PolicyRefusal {
    /// Who refused; the host itself when nobody knew the caller ([`PolicyRefusal::HOST`]).
    pub policy: Box<str>,
    /// The phase in which the request was refused.
    pub phase: Phase,
    /// What the client is told. Its headers include those of the policies before.
    pub rejection: Rejection,
    /// Set when the policy failed and its `on_failure` is closed. For our log only.
    pub failure: Option<Box<PolicyFailure>>,
}

impl PolicyRefusal {
    /// In [`PolicyRefusal::policy`]: no policy, but the host. No policy can be called that.
    pub const HOST: &str = "(host)";
}
