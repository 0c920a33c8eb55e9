//! What policies said of one request, for the log, the trace and the record.

use std::sync::Arc;
use std::time::Duration;

use crate::FailureAction;
use interlock_policy_api::{
    Choice, Code, Decision, Identified, Phase, PolicyAnswer, PolicyFailure, Reaction, Transformed,
    Verdict,
};

/// One policy's answer in one phase.
#[derive(Debug, Clone, PartialEq, serde::Deserialize, serde::Serialize)]
pub struct DecisionRecord {
    /// The name of the policy.
    pub policy: Arc<str>,
    /// The version of the policy.
    pub version: Arc<str>,
    /// The answer of the policy, or how the policy failed.
    pub decision: Result<AnyAnswer, PolicyFailure>,
    /// When it failed: when asked.
    pub phase: Phase,
    /// What the host did in place of an answer.
    pub fallback: Option<FailureAction>,
    /// The policy is in shadow mode: nothing followed of its answer.
    pub shadow: bool,
    /// How long the call took.
    pub elapsed: Duration,
}

/// An answer of any phase.
#[derive(Debug, Clone, PartialEq, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum AnyAnswer {
    /// An answer to `identify`.
    Identify(Identified),
    /// An answer to `transform`.
    Transform(Transformed),
    /// An answer to `route`.
    Route(Choice),
    /// An answer to `admit`.
    Admit(Decision),
    /// An answer to an event.
    Event(Reaction),
    /// A verdict on a window of text.
    Window(Verdict),
}

impl DecisionRecord {
    /// Its label in `interlock_policy_calls_total{decision}`.
    pub fn label(&self) -> &'static str {
        self.decision.as_ref().map_or("failed", AnyAnswer::label)
    }

    /// The reason that the policy gave.
    pub fn code(&self) -> Option<&Code> {
        self.decision.as_ref().ok().and_then(AnyAnswer::code)
    }
}

impl AnyAnswer {
    fn ruling(&self) -> &dyn PolicyAnswer {
        match self {
            Self::Identify(ruling) => ruling,
            Self::Transform(ruling) => ruling,
            Self::Route(ruling) => ruling,
            Self::Admit(ruling) => ruling,
            Self::Event(ruling) => ruling,
            Self::Window(ruling) => ruling,
        }
    }

    /// The label of the answer in metrics and logs.
    pub fn label(&self) -> &'static str {
        self.ruling().label()
    }

    /// The reason, where the answer has one.
    pub fn code(&self) -> Option<&Code> {
        self.ruling().code()
    }
}

/// An answer of one phase, that can be kept among those of others.
pub(crate) trait PhaseAnswer: PolicyAnswer + Clone + Send + 'static {
    fn into_any(self) -> AnyAnswer;
    fn of(into_any: &AnyAnswer) -> Option<&Self>;
}

macro_rules! phased {
    ($($name:ident: $type:ty),* $(,)?) => {$(
        impl PhaseAnswer for $type {
            fn into_any(self) -> AnyAnswer {
                AnyAnswer::$name(self)
            }
            fn of(into_any: &AnyAnswer) -> Option<&Self> {
                match into_any {
                    AnyAnswer::$name(answer) => Some(answer),
                    _ => None,
                }
            }
        }
    )*};
}

phased! {
    Identify: Identified,
    Transform: Transformed,
    Route: Choice,
    Admit: Decision,
    Event: Reaction,
    Window: Verdict,
}
