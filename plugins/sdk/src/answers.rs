//! Ways to write an answer down, and to read what was asked.
//!
//! The types are those of `wit/policy.wit`; here they get their defaults ("leave it to others")
//! and the methods that make an answer one expression.

use crate::{
    Admission, Amendment, Attribute, Caller, Candidate, Choice, Decision, Departure,
    DisconnectAction, DrainLimits, Edited, Edits, Ending, EventSet, Guarding, Header, Identity,
    Known, Pick, Plan, Priority, Ranking, Reaction, Reasons, Rejection, Replacement, RequestFacts,
    Score, Span, Timeouts, Verdict, Watch, Window, WindowSize,
};

/// Lets a request in: under the plan, the note and the headers that are added.
pub fn admit(reason: impl Reasons) -> Admission {
    Admission {
        plan: Plan::default(),
        watch: None,
        note: String::new(),
        headers: vec![],
        reason: reason.index(),
    }
}

/// Turns a request away with this HTTP status. Clients see the reason's name as the error's code.
pub fn reject(status: u16, reason: impl Reasons) -> Rejection {
    Rejection { status, reason: reason.index(), detail: None, retry_after: None, headers: vec![] }
}

/// Says whom a request counts for.
pub fn known(tenant: impl Into<String>, reason: impl Reasons) -> Identity {
    Identity { tenant: tenant.into(), priority: None, attributes: vec![], reason: reason.index() }
}

/// Changes a request: in the ways that are added, and as `content` did.
pub fn edit(reason: impl Reasons) -> Edits {
    Edits {
        set_headers: vec![],
        remove_headers: vec![],
        answer_headers: vec![],
        model: None,
        reason: reason.index(),
    }
}

/// Gives the client this in place of the window, of which the last `hold` bytes stay.
pub fn replace(text: impl Into<String>, hold: u32, reason: impl Reasons) -> Verdict {
    Verdict::Replace(Replacement { text: text.into(), hold, reason: reason.index() })
}

/// Gives the client this in place of the window, and ends the answer.
pub fn stop(text: impl Into<String>, reason: impl Reasons) -> Verdict {
    Verdict::Stop(Ending { text: text.into(), reason: reason.index() })
}

/// Fails a request whose answer has begun.
pub fn abort(reason: impl Reasons) -> Verdict {
    Verdict::Abort(reason.index())
}

/// Says how well each suits, from 0 to 1; see [`Candidate::score`].
pub fn scores(scores: Vec<Score>, reason: impl Reasons) -> Choice {
    Choice::Scores(Ranking { scores, reason: reason.index() })
}

/// Takes back what this policy said of the plan, and says this.
pub fn amend(plan: Plan, reason: impl Reasons) -> Reaction {
    Reaction::Amend(Amendment { plan, reason: reason.index() })
}

/// Does this about a client that left, or will.
pub fn disconnect(action: DisconnectAction, reason: impl Reasons) -> Reaction {
    Reaction::Disconnect(Departure { action, reason: reason.index() })
}

/// Ends a request that goes on.
pub fn cancel(reason: impl Reasons) -> Reaction {
    Reaction::Cancel(reason.index())
}

/// A header, its name in lower case.
pub fn header(name: impl Into<String>, value: impl ToString) -> Header {
    Header { name: name.into(), value: value.to_string() }
}

impl Admission {
    /// Under this plan.
    #[must_use]
    pub fn plan(mut self, plan: Plan) -> Self {
        self.plan = plan;
        self
    }

    /// With at most so many tokens.
    #[must_use]
    pub fn max_tokens(mut self, max: u32) -> Self {
        self.plan.max_tokens = Some(max);
        self
    }

    /// At most so urgent.
    #[must_use]
    pub fn priority(mut self, priority: Priority) -> Self {
        self.plan.priority = Some(priority);
        self
    }

    /// Watched like this, whatever the descriptor says.
    #[must_use]
    pub fn watch(mut self, watch: Watch) -> Self {
        self.watch = Some(watch);
        self
    }

    /// With a note that its later facts bring back.
    #[must_use]
    pub fn note(mut self, note: impl Into<String>) -> Self {
        self.note = note.into();
        self
    }

    /// With a header of the answer, `x-...` or `ratelimit...`.
    #[must_use]
    pub fn header(mut self, name: impl Into<String>, value: impl ToString) -> Self {
        self.headers.push(header(name, value));
        self
    }
}

impl Rejection {
    /// With a sentence for the client.
    #[must_use]
    pub fn detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = Some(detail.into());
        self
    }

    /// With when it makes sense to try again.
    #[must_use]
    pub fn retry_after(mut self, wait: Span) -> Self {
        self.retry_after = Some(wait.micros);
        self
    }

    /// With a header of the answer, `x-...` or `ratelimit...`.
    #[must_use]
    pub fn header(mut self, name: impl Into<String>, value: impl ToString) -> Self {
        self.headers.push(header(name, value));
        self
    }
}

impl Identity {
    /// Whose requests are at most so urgent.
    #[must_use]
    pub fn priority(mut self, priority: Option<Priority>) -> Self {
        self.priority = priority;
        self
    }

    /// Of whom the policies after this one should know this, too.
    #[must_use]
    pub fn attribute(mut self, name: impl Into<String>, value: impl ToString) -> Self {
        self.attributes.push(Attribute { name: name.into(), value: value.to_string() });
        self
    }
}

impl Edits {
    /// With a header in place of those of its name, for the policies after this one.
    #[must_use]
    pub fn set_header(mut self, name: impl Into<String>, value: impl ToString) -> Self {
        self.set_headers.push(header(name, value));
        self
    }

    /// Without the headers of this name.
    #[must_use]
    pub fn remove_header(mut self, name: impl Into<String>) -> Self {
        self.remove_headers.push(name.into());
        self
    }

    /// With a header of the answer, `x-...` or `ratelimit...`.
    #[must_use]
    pub fn answer_header(mut self, name: impl Into<String>, value: impl ToString) -> Self {
        self.answer_headers.push(header(name, value));
        self
    }

    /// For this model.
    #[must_use]
    pub fn model(mut self, model: impl Into<String>) -> Self {
        self.model = Some(model.into());
        self
    }
}

impl Candidate {
    /// This one.
    pub fn pick(&self, reason: impl Reasons) -> Choice {
        Choice::Pick(Pick { id: self.id, reason: reason.index() })
    }

    /// This well, from 0 to 1.
    pub fn score(&self, score: f32) -> Score {
        Score { id: self.id, score }
    }
}

impl Window {
    /// The part of its text that was not there before.
    pub fn new_text(&self) -> &str {
        self.text.get(self.held as usize..).unwrap_or_default()
    }
}

impl RequestFacts {
    /// The first header of this name (in lower case), of those that were granted.
    pub fn header(&self, name: &str) -> Option<&str> {
        value_of(&self.headers, name)
    }

    /// What an `identify` said of the caller under this name.
    pub fn attribute(&self, name: &str) -> Option<&str> {
        self.attributes.iter().find(|said| said.name == name).map(|said| said.value.as_str())
    }
}

impl Caller {
    /// The first header of this name (in lower case), of those that were granted.
    pub fn header(&self, name: &str) -> Option<&str> {
        value_of(&self.headers, name)
    }
}

fn value_of<'a>(headers: &'a [Header], name: &str) -> Option<&'a str> {
    headers.iter().find(|header| header.name == name).map(|header| header.value.as_str())
}

impl DisconnectAction {
    /// Go on for so long or so many tokens, whichever is met first, and drop the answer.
    pub fn drain(time: Span, tokens: u32) -> Self {
        Self::Drain(DrainLimits { max_time: time.micros, max_tokens: tokens })
    }

    /// Go on for so long or so many tokens, whichever is met first, and keep the answer.
    pub fn detach(time: Span, tokens: u32) -> Self {
        Self::Detach(DrainLimits { max_time: time.micros, max_tokens: tokens })
    }
}

impl WindowSize {
    /// So many tokens, or fewer when the first of them is so old.
    pub fn new(tokens: u32, delay: Span) -> Self {
        Self { tokens, max_delay: delay.micros }
    }
}

/// A plan that leaves everything to others.
impl Default for Plan {
    fn default() -> Self {
        Self {
            priority: None,
            timeouts: Timeouts::default(),
            on_disconnect: None,
            max_tokens: None,
        }
    }
}

/// No timeout beyond the operator's.
impl Default for Timeouts {
    fn default() -> Self {
        Self { queue: None, first_token: None, inter_token: None, total: None }
    }
}

/// Nothing is watched.
impl Default for Watch {
    fn default() -> Self {
        Self { events: EventSet::empty(), stalled_after: None, guarding: Guarding::Off }
    }
}

/// So that a phase may end with `.into()`, whatever it decided.
macro_rules! answers {
    ($($part:ty => $answer:ident::$variant:ident),+ $(,)?) => {$(
        impl From<$part> for $answer {
            fn from(part: $part) -> Self {
                Self::$variant(part)
            }
        }
    )+};
}

answers! {
    Admission => Decision::Admit,
    Rejection => Decision::Reject,
    Identity => Known::Known,
    Rejection => Known::Reject,
    Edits => Edited::Edit,
    Rejection => Edited::Reject,
    Pick => Choice::Pick,
    Rejection => Choice::Reject,
}
