//! One request before the policies, from its head to its admission.
//!
//! The host calls the phases in this order; each is skipped by a chain in which no policy takes
//! part in it. A hearing that ends without consent, however it does, is over for the policies too:
//! those asked to admit hear that it was turned away, and all forget it.
//!
//! # Invariants
//!
//! - The first rejection ends the hearing. Later policies are not asked; but one in the shadow of
//!   the policy that ended it is, or it would be compared only where it matters least.
//! - Nothing waits for a slow policy in shadow: it is asked beside the request, and compared when
//!   it has answered. What it says is counted and logged, and in no record.
//! - No lock is held while a policy is asked.

mod admit;
mod identify;
mod route;
mod transform;

pub(crate) use route::counted;

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use interlock_request::RequestId;

use crate::answer_headers;
use crate::chain::{Member, PolicyChain};
use crate::consult::{Heard, Matter, checked};
use crate::duty::Duty;
use crate::lane::Lane;
use crate::record::{Asked, Draft};
use crate::said::Phased;
use crate::{Refused, Said};
use interlock_policy_api::{Answer, Code, Phase, Policy, PolicyFailure, Reason, Rejection};

/// One request before the policies of its generation. See [`PolicyChain::hear`].
pub struct Hearing {
    chain: Arc<PolicyChain>,
    duty: Duty,
    said: Vec<Said>,
    headers: Vec<(String, String)>,
    draft: Option<Draft>,
}

impl fmt::Debug for Hearing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hearing").field("request", &self.duty.id).finish_non_exhaustive()
    }
}

impl Hearing {
    pub(crate) fn new(chain: Arc<PolicyChain>, serial: u64, id: RequestId) -> Self {
        let duty = Duty::new(chain.panel(serial), serial, id, chain.commons.clone());
        let sink = chain.commons.records.as_ref().map(Arc::clone);
        let draft = sink.map(|sink| Draft::new(chain.generation(), sink));
        Self { chain, duty, said: vec![], headers: vec![], draft }
    }

    /// The policies that this request stays with.
    pub fn chain(&self) -> &Arc<PolicyChain> {
        &self.chain
    }

    /// What was said so far.
    pub fn said(&self) -> &[Said] {
        &self.said
    }

    /// Headers that policies put on the answer so far.
    pub fn headers(&self) -> &[(String, String)] {
        &self.headers
    }

    /// Its members that take part in this phase, by their place.
    fn members(&self, phase: Phase) -> impl Iterator<Item = (usize, Member)> + use<> {
        let panel = Arc::clone(&self.duty.panel);
        (0..panel.len()).filter(move |&at| panel[at].policy.takes(phase)).map({
            let panel = Arc::clone(&self.duty.panel);
            move |at| (at, panel[at].clone())
        })
    }

    /// The lane of one that looks on.
    fn lane(&self, at: usize) -> Option<Arc<Lane>> {
        let lane = self.duty.parties[at].lane.as_ref();
        lane.filter(|_| self.duty.panel[at].looks_on()).cloned()
    }

    /// Records a phase, if records are wanted: all that was said since `from`.
    fn write<T>(
        &mut self,
        asked: impl FnOnce() -> Asked,
        from: usize,
        result: &Result<T, Refused>,
    ) {
        let Some(draft) = &mut self.draft else { return };
        // Nobody was asked.
        if self.said.len() > from {
            draft.step(asked(), &self.said[from..]);
        }
        if let Err(refused) = result {
            draft.refused(refused);
        }
    }

    fn refuse(&self, member: &Member, phase: Phase, rejection: &Rejection) -> Refused {
        let mut headers = Vec::new();
        answer_headers::add(&mut headers, &rejection.headers);
        answer_headers::add(&mut headers, &self.headers);
        let status = rejection.status.clamp(400, 599);
        let rejection = Rejection { status, headers, ..rejection.clone() };
        Refused { policy: (*member.name).into(), phase, rejection, failure: None }
    }

    fn fail_closed(
        &self,
        member: &Member,
        phase: Phase,
        status: u16,
        failure: PolicyFailure,
    ) -> Refused {
        let name = &*member.name;
        let rejection = Rejection {
            status,
            reason: Reason {
                code: Code::from("policy_failed"),
                detail: Some(format!("the policy {name:?} could not decide about this request")),
            },
            retry_after: None,
            headers: self.headers.clone(),
        };
        Refused { policy: name.into(), phase, rejection, failure: Some(Box::new(failure)) }
    }
}

/// A question's frame, borrowed from the duty alone so that the rest of the hearing stays free.
fn matter<'a>(
    duty: &'a Duty,
    at: usize,
    phase: Phase,
    about: Option<(&'a str, &'a str)>,
) -> Matter<'a> {
    Matter {
        commons: &duty.commons,
        calls: duty.parties[at].calls.as_ref(),
        large: false,
        id: &duty.id,
        phase,
        gates: false,
        about,
    }
}

/// What was heard of those that do not decide, kept until it is known what was decided.
struct Shadows<T> {
    heard: Vec<Shadow<T>>,
    /// Those whose answers come later.
    looking: Vec<Arc<Looking<T>>>,
    /// What the last one answered that does decide, and who that was.
    decided: Option<(Arc<str>, T)>,
    /// Whose word ended the phase.
    ended: Option<Arc<str>>,
}

struct Shadow<T> {
    member: Member,
    answer: T,
    /// What the generation answered that decides in its place, if there is one.
    previous: Option<T>,
}

/// One that looks on: whichever comes later, its answer or what was decided, has them compared.
struct Looking<T> {
    member: Member,
    previous: Option<T>,
    both: Mutex<(Option<T>, Option<Judge<T>>)>,
}

/// Would this answer have made a difference? To what the generation said that it is to replace, if
/// that said something, or else to what came of it all.
type Judge<T> = Arc<dyn Fn(Option<&T>, &T) -> bool + Send + Sync>;

impl<T: Phased + Sync> Shadows<T> {
    fn none() -> Self {
        Self { heard: Vec::new(), looking: Vec::new(), decided: None, ended: None }
    }

    /// This one's word ends the phase.
    fn end(&mut self, member: &Member) {
        self.ended = Some(Arc::clone(&member.name));
    }

    /// The phase has ended, and this is not the one that stands in its last one's shadow.
    fn are_done_before(&self, member: &Member) -> bool {
        self.ended.as_ref().is_some_and(|name| !member.shadow || *name != member.name)
    }

    /// Keeps what a shadow said; gives back what somebody said who decides.
    fn part(&mut self, member: &Member, heard: Heard<T>) -> Heard<T> {
        match heard {
            Heard::Said(answer) if member.shadow => {
                let previous = self.previous(member);
                self.heard.push(Shadow { member: member.clone(), answer, previous });
                Heard::Silence
            }
            Heard::Said(answer) => {
                self.decided = Some((Arc::clone(&member.name), answer.clone()));
                Heard::Said(answer)
            }
            heard => heard,
        }
    }

    /// Asks one that looks on, in its lane.
    fn look_on(
        &mut self,
        matter: Matter<'_>,
        member: &Member,
        lane: &Arc<Lane>,
        ask: impl FnOnce(&dyn Policy) -> Answer<T> + Send + 'static,
        check: impl FnOnce(&T) -> Result<(), String> + Send + 'static,
    ) {
        let phase = matter.phase;
        let previous = self.previous(member);
        let looking =
            Arc::new(Looking { member: member.clone(), previous, both: Mutex::default() });
        self.looking.push(Arc::clone(&looking));
        let ask = |policy: &dyn Policy| checked(ask(policy), check);
        matter.look_on(member, lane, ask, move |answer| looking.compare(phase, Some(answer), None));
    }

    /// It stands right behind the generation that it may replace.
    fn previous(&mut self, member: &Member) -> Option<T> {
        let previous = self.decided.take_if(|(name, _)| *name == member.name);
        previous.map(|(_, answer)| answer)
    }

    /// Counts those that would have made a difference.
    fn compare<J>(&self, phase: Phase, judge: impl FnOnce() -> J)
    where
        J: Fn(Option<&T>, &T) -> bool + Send + Sync + 'static,
    {
        if self.heard.is_empty() && self.looking.is_empty() {
            return;
        }
        let judge: Judge<T> = Arc::new(judge());
        for Shadow { member, answer, previous } in &self.heard {
            if judge(previous.as_ref(), answer) {
                disagreed(member, phase);
            }
        }
        for looking in &self.looking {
            looking.compare(phase, None, Some(Arc::clone(&judge)));
        }
    }
}

impl<T> Looking<T> {
    fn compare(&self, phase: Phase, answer: Option<T>, judge: Option<Judge<T>>) {
        let mut both = self.both.lock().unwrap_or_else(PoisonError::into_inner);
        // Each comes once, so the two are there together once.
        let (had_answer, had_judge) = std::mem::take(&mut *both);
        match (had_answer.or(answer), had_judge.or(judge)) {
            (Some(answer), Some(judge)) => {
                drop(both);
                if judge(self.previous.as_ref(), &answer) {
                    disagreed(&self.member, phase);
                }
            }
            one_of_them => *both = one_of_them,
        }
    }
}

fn disagreed(member: &Member, phase: Phase) {
    member.meters.disagreed(phase);
    tracing::info!(
        policy = %member.name, version = %member.version, phase = phase.as_str(),
        "a policy in shadow mode would have decided otherwise"
    );
}

#[cfg(test)]
mod tests;
