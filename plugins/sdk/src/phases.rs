//! What a policy is, and the phases that it may take part in: a trait for each.

use serde::de::DeserializeOwned;

use crate::{
    Caller, Candidate, Choice, Decision, Edited, Event, Known, Load, Metric, Progress, Reaction,
    Reasons, RequestFacts, Summary, Verdict, Watch, Window,
};

/// A policy: what it decides by, and how it begins. What it is called, and its version, are its
/// crate's.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is no policy",
    label = "`export!` wants a type that implements `Policy`"
)]
pub trait Policy: Sized + 'static {
    /// What the operator may set, as the table `[policy.settings]`. Add
    /// `#[serde(deny_unknown_fields)]`, or a misspelt key goes unnoticed.
    type Settings: DeserializeOwned;

    /// Why it decides: an enum made by [`reasons!`](macro@crate::reasons), or [`NoReasons`](crate::NoReasons).
    type Reason: Reasons;

    /// Metrics of its own, made by [`metrics!`](macro@crate::metrics).
    const METRICS: &'static [Metric] = &[];

    /// Begins with these settings, in every instance.
    ///
    /// # Errors
    ///
    /// When the settings make no sense. The host then does not take the policy, and says why in
    /// these words: name the key and the value.
    fn new(settings: Self::Settings) -> Result<Self, String>;

    /// What it needs beyond its imports, in the words of grants: `headers:x-tenant`,
    /// `content:read:/messages`, `http:example.com:443`.
    fn needs(&self) -> Vec<String> {
        vec![]
    }

    /// What it watches of each request that its admission does not say otherwise about.
    fn watch(&self) -> Watch {
        Watch::default()
    }
}

/// A policy that says who is asking.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is exported for `identify`, but does not implement `Identify`"
)]
pub trait Identify: Policy {
    /// Who is this? Asked before the body is read.
    fn identify(&self, caller: &Caller) -> Known;
}

/// A policy that changes requests before they are understood.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is exported for `transform`, but does not implement `Transform`"
)]
pub trait Transform: Policy {
    /// What should be changed? The body changes through [`content`](crate::content).
    fn transform(&self, request: &RequestFacts) -> Edited;
}

/// A policy that decides where requests run.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is exported for `route`, but does not implement `Route`"
)]
pub trait Route: Policy {
    /// Where should it run? Asked once, with all candidates.
    fn route(&self, request: &RequestFacts, candidates: &[Candidate]) -> Choice;
}

/// A policy that decides who gets in.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is exported for `admit`, but does not implement `Admit`"
)]
pub trait Admit: Policy {
    /// May this request pass, and under which plan?
    fn admit(&self, request: &RequestFacts, load: &Load) -> Decision;
}

/// A policy that reads what the model says.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is exported for `stream_guard`, but does not implement `StreamGuard`"
)]
pub trait StreamGuard: Policy {
    /// Is this what the model should say? Asked for each window that [`Watch::guarding`] wants.
    fn on_window(&self, request: &RequestFacts, window: &Window) -> Verdict;
}

/// A policy that reacts to what happens.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is exported for `events`, but does not implement `Events`"
)]
pub trait Events: Policy {
    /// What now? Asked at the moments that [`Watch::events`] names.
    fn on_event(&self, request: &RequestFacts, event: &Event, progress: &Progress) -> Reaction;
}

/// A policy that takes note of how requests end.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is exported for `account`, but does not implement `Account`"
)]
pub trait Account: Policy {
    /// A request has ended; called once for each that this policy was asked to admit and did not
    /// itself reject, whatever became of it.
    fn account(&self, request: &RequestFacts, summary: &Summary);
}

/// The settings of a policy that has none.
#[derive(Debug, Clone, Copy, Default, serde::Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(crate = "schemars")]
pub struct NoSettings {}
