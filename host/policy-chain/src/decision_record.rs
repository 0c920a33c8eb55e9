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
    /// Who answered.
    pub policy: Arc<str>,
    /// Which version of it.
    pub version: Arc<str>,
    /// What it answered, or how it failed.
    pub decision: Result<AnyAnswer, PolicyFailure>,
    /// When it failed: when asked.
    pub phase: Phase,
    /// What was done in place of an answer.
    pub fallback: Option<FailureAction>,
    /// It is in shadow mode: nothing followed of it.
    pub shadow: bool,
    /// How long it took.
    pub elapsed: Duration,
}

/// An answer of any phase.
#[derive(Debug, Clone, PartialEq, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum AnyAnswer {
    /// To `identify`.
    Identify(Identified),
    /// To `transform`.
    Transform(Transformed),
    /// To `route`.
    Route(Choice),
    /// To `admit`.
    Admit(Decision),
    /// To an event.
    Event(Reaction),
    /// To a window.
    Window(Verdict),
}

impl DecisionRecord {
    /// Its label in `interlock_policy_calls_total{decision}`.
    pub fn label(&self) -> &'static str {
        self.decision.as_ref().map_or("failed", AnyAnswer::label)
    }

    /// Why, as the policy said.
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

    /// Its label.
    pub fn label(&self) -> &'static str {
        self.ruling().label()
    }

    /// Why, if it says.
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
