//! The policies that one request is brought before.

use std::fmt;
use std::sync::Arc;

use interlock_policy_api::{CallTime, Policy};

use crate::OnFailure;
use crate::metrics::MemberMeters;
use crate::policy_threads::PolicyThreads;

/// A policy as it is asked about requests: that of an entry of the chain, or its previous
/// generation.
#[derive(Clone)]
pub(crate) struct PolicyMember {
    pub(crate) policy: Arc<dyn Policy>,
    pub(crate) name: Arc<str>,
    pub(crate) version: Arc<str>,
    pub(crate) on_failure: OnFailure,
    pub(crate) weight: f32,
    pub(crate) shadow: bool,
    pub(crate) call_time: CallTime,
    /// `Some` if a call may take long: always, or with a large body.
    pub(crate) threads: Option<Arc<PolicyThreads>>,
    pub(crate) meters: Arc<MemberMeters>,
}

impl PolicyMember {
    /// Whether every call may take long.
    pub(crate) fn slow(&self) -> bool {
        self.call_time != CallTime::AtOnce
    }

    /// Whether nothing waits for its answers: it is in shadow mode, and its calls may take long.
    pub(crate) fn runs_in_background(&self) -> bool {
        self.shadow && self.slow()
    }
}

impl fmt::Debug for PolicyMember {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.name, self.version)
    }
}

/// The policies of one request, in order. They stay the same for its whole life.
pub(crate) type PolicySet = Arc<[PolicyMember]>;
