//! What comes out of the chain: a request that may run, or the reason why not.

use interlock_policy_api::{Admitted, Phase, PolicyFailure, Rejection};

use crate::{Oversight, Said};

/// Nobody objected.
#[derive(Debug)]
pub struct Consent {
    /// For the engine.
    pub admitted: Admitted,
    /// For whoever drives the request: what its policies have to say from here on.
    pub oversight: Oversight,
    /// Headers of the answer.
    pub headers: Vec<(String, String)>,
    /// Everything that was said of it so far.
    pub said: Vec<Said>,
}

/// A request that a policy turned away, or whose policy failed closed.
#[derive(Debug, Clone, PartialEq)]
pub struct Refused {
    /// Who refused; the host itself when nobody knew the caller ([`Refused::HOST`]).
    pub policy: Box<str>,
    /// When.
    pub phase: Phase,
    /// What the client is told. Its headers include those of the policies before.
    pub rejection: Rejection,
    /// Set when the policy failed and its `on_failure` is closed. For our log only.
    pub failure: Option<Box<PolicyFailure>>,
}

impl Refused {
    /// In [`Refused::policy`]: no policy, but the host. No policy can be called that.
    pub const HOST: &str = "(host)";
}
