//! What the policy chain wants of a policy.

use crate::{
    Body, Caller, Candidate, Choice, Decision, Event, Facts, Identified, Load, Phase,
    PolicyFailure, Progress, Reaction, Summary, Transformed, Verdict, Watch, Window,
};

/// The result of a call: an answer, or why the policy gave none.
pub type Answer<T> = Result<T, PolicyFailure>;

/// A request that a policy admitted, as it is brought before it again.
#[derive(Debug, Clone, Copy)]
pub struct RequestContext<'a> {
    /// The facts of its admission.
    pub facts: &'a Facts,
    /// What the policy noted then.
    pub note: &'a str,
}

/// How long calls of a policy may take, and so which threads they are made on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CallTime {
    /// Microseconds, and by no means more than some milliseconds: it is called where it is asked,
    /// on the threads that serve everyone. (But for a large body that it may read:
    /// [`Body::IN_LINE_BYTES_MAX`].)
    AtOnce,
    /// Longer, with a core: on threads of its own, as many as there are cores.
    Computes,
    /// Longer, since it waits for others: on threads of its own, more than there are cores.
    Waits,
}

/// Something that decides. WebAssembly components implement it in `interlock-policy-wasm`; tests
/// use closures over plain structs.
///
/// Every call is synchronous and on the caller's thread, which is the policy's own unless
/// [`Policy::call_time`] says that it takes no time. What the chain does with an answer, and
/// with none, is in `interlock-policy-chain`. A method of a phase that the policy does not take
/// part in is not called.
pub trait Policy: Send + Sync {
    /// The operator's name for it: a metric label, unique in the chain.
    fn name(&self) -> &str;

    /// The version that the component declares.
    fn version(&self) -> &str;

    /// Whether the policy takes part in this phase.
    fn takes(&self, phase: Phase) -> bool;

    /// How long a call may take, by what bounds it and not by what it took so far.
    fn call_time(&self) -> CallTime {
        CallTime::AtOnce
    }

    /// May it read or change bodies? If no policy of a chain does, the host keeps them to itself.
    fn wants_content(&self) -> bool {
        false
    }

    /// Names, in lower case, of the headers that it is shown.
    fn headers(&self) -> &[String] {
        &[]
    }

    /// What it watches of a request that it does not say otherwise about.
    fn watch(&self) -> Watch {
        Watch::default()
    }

    /// Every reason that it can give: metric labels.
    fn reasons(&self) -> &[String] {
        &[]
    }

    /// Says who the caller is.
    ///
    /// # Errors
    ///
    /// When it has no answer, here and below; its `on_failure` setting then decides.
    fn identify(&self, caller: &Caller) -> Answer<Identified> {
        let _ = caller;
        Err(PolicyFailure::absent(Phase::Identify))
    }

    /// Says what should be changed before the request is parsed. The policy may change `body`
    /// itself.
    fn transform(&self, facts: &Facts, body: &Body) -> Answer<Transformed> {
        let _ = (facts, body);
        Err(PolicyFailure::absent(Phase::Transform))
    }

    /// Chooses among the models that the request could run on.
    fn route(&self, facts: &Facts, candidates: &[Candidate], body: &Body) -> Answer<Choice> {
        let _ = (facts, candidates, body);
        Err(PolicyFailure::absent(Phase::Route))
    }

    /// May this request pass, and under which plan? `tenant_in_flight` requests of the same tenant
    /// were admitted and have not ended.
    fn admit(
        &self,
        facts: &Facts,
        load: &Load,
        tenant_in_flight: u32,
        body: &Body,
    ) -> Answer<Decision> {
        let _ = (facts, load, tenant_in_flight, body);
        Err(PolicyFailure::absent(Phase::Admit))
    }

    /// Judges a window of the text.
    fn window(&self, request: RequestContext<'_>, window: &Window<'_>) -> Answer<Verdict> {
        let _ = (request, window);
        Err(PolicyFailure::absent(Phase::StreamGuard))
    }

    /// Says what follows of something that happened to the request.
    fn event(
        &self,
        request: RequestContext<'_>,
        event: &Event,
        progress: &Progress,
    ) -> Answer<Reaction> {
        let _ = (request, event, progress);
        Err(PolicyFailure::absent(Phase::Events))
    }

    /// The request has ended like this. Called once.
    fn account(&self, request: RequestContext<'_>, summary: &Summary) -> Answer<()> {
        let _ = (request, summary);
        Err(PolicyFailure::absent(Phase::Account))
    }

    /// Nothing more will be asked about the request of this [`Facts::serial`], whether it was
    /// admitted or not: whatever is held for it can be let go. But if it `ran`, what is reserved
    /// for it and not settled is spent, and nobody knows how much of it: it stays charged. Called
    /// where many are served: it waits for nobody.
    fn forget(&self, serial: u64, ran: bool) {
        let _ = (serial, ran);
    }
}
