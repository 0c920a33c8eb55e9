//! Where should it run?

use std::sync::Arc;

use super::{AdmissionReview, Shadows, context};
use crate::PolicyRefusal;
use crate::call::{CallContext, CallOutcome};
use crate::record::PhaseQuestion;
use interlock_policy_api::{Body, Candidate, Choice, Facts, Load, Phase};

impl AdmissionReview {
    /// Asks where it should run: the [`Candidate::id`] of that place, or `None` when there is none
    /// that the client asked for and no policy named another.
    ///
    /// Scores are cut to 0 to 1 (NaN is 0), weighted and added up; the highest sum wins, of equals
    /// the least busy, of those the first. One that is not ready wins only when none is. When
    /// nobody has a good word for any, the least busy of those asked for takes it.
    ///
    /// # Errors
    ///
    /// When a policy turns the request away or fails closed.
    pub async fn route(
        &mut self,
        facts: &Facts,
        candidates: &[Candidate],
        body: &Arc<Body>,
    ) -> Result<Option<u32>, PolicyRefusal> {
        let (mut shadows, from) = (Shadows::none(), self.decisions.len());
        let result = self.choose(facts, candidates, body, &mut shadows).await;
        let asked =
            || PhaseQuestion::Route { facts: facts.clone(), candidates: candidates.to_vec() };
        self.write(asked, from, &result);
        shadows.compare(Phase::Route, || {
            let (candidates, taken) = (candidates.to_vec(), result.as_ref().ok().copied());
            move |previous: Option<&Choice>, answer: &Choice| {
                let rejects = |choice: &Choice| matches!(choice, Choice::Reject(_));
                let preferred = |choice: &Choice| preferred(&candidates, choice);
                match (previous, answer) {
                    (Some(previous), _) => {
                        rejects(previous) != rejects(answer)
                            || preferred(previous) != preferred(answer)
                    }
                    (None, Choice::Abstain) => false,
                    (None, Choice::Reject(_)) => taken.is_some(),
                    (None, Choice::Pick(..) | Choice::Scores(..)) => {
                        taken != Some(preferred(answer))
                    }
                }
            }
        });
        result
    }

    async fn choose(
        &mut self,
        facts: &Facts,
        candidates: &[Candidate],
        body: &Arc<Body>,
        shadows: &mut Shadows<Choice>,
    ) -> Result<Option<u32>, PolicyRefusal> {
        let phase = Phase::Route;
        let mut sums = vec![0.0; candidates.len()];
        let mut end = None;
        for (index, member) in self.members(phase) {
            if shadows.is_over_for(&member) {
                break;
            }
            let own = || {
                let (facts, candidates) = (facts.clone(), candidates.to_vec());
                let body = Arc::clone(body);
                move |policy: &dyn interlock_policy_api::Policy| {
                    policy.route(&facts, &candidates, &body)
                }
            };
            let about = Some((facts.identity.tenant.as_str(), facts.model.as_str()));
            if let Some(background) = self.background(index) {
                let candidates = candidates.to_vec();
                let check = move |choice: &Choice| sensible(choice, &candidates);
                let context = context(&self.completion, index, phase, about);
                shadows.ask_in_background(context, &member, &background, own(), check);
                continue;
            }
            let context = CallContext {
                large: body.is_large(),
                ..context(&self.completion, index, phase, about)
            };
            let (outcome, decision) = context
                .ask(
                    &member,
                    |policy| policy.route(facts, candidates, body),
                    own,
                    |choice| sensible(choice, candidates),
                )
                .await;
            self.decisions.push(decision);
            match shadows.set_aside(&member, outcome) {
                CallOutcome::Answered(Choice::Scores(scores, _)) => {
                    add(&mut sums, candidates, &scores, member.weight);
                }
                // One that cannot take it is no choice, when another can: the next may decide.
                CallOutcome::Answered(Choice::Pick(id, _)) => {
                    if at(candidates, id).is_some_and(|at| eligible(candidates, at)) {
                        shadows.end(&member);
                        end = Some(Ok(Some(id)));
                    }
                }
                CallOutcome::Answered(Choice::Reject(rejection)) => {
                    shadows.end(&member);
                    end = Some(Err(self.refuse(&member, phase, &rejection)));
                }
                CallOutcome::Builtin => {
                    let asked = candidates.iter().filter(|candidate| candidate.asked);
                    #[expect(
                        clippy::cast_possible_truncation,
                        reason = "a score need not be exact"
                    )]
                    let score = |load: &Load| 1.0 - busy(load) as f32;
                    let scores: Vec<_> = asked.map(|one| (one.id, score(&one.load))).collect();
                    add(&mut sums, candidates, &scores, member.weight);
                }
                CallOutcome::Answered(Choice::Abstain) | CallOutcome::NoAnswer => {}
                CallOutcome::Closed(status, failure) => {
                    shadows.end(&member);
                    end = Some(Err(self.fail_closed(&member, phase, status, failure)));
                }
            }
        }
        end.unwrap_or_else(|| Ok(best(candidates, &sums).map(|at| candidates[at].id)))
    }
}

/// Where it would go by this word alone.
fn preferred(candidates: &[Candidate], choice: &Choice) -> Option<u32> {
    match choice {
        Choice::Pick(id, _) => Some(*id),
        Choice::Scores(scores, _) => {
            let mut sums = vec![0.0; candidates.len()];
            add(&mut sums, candidates, scores, 1.0);
            best(candidates, &sums).map(|at| candidates[at].id)
        }
        Choice::Abstain | Choice::Reject(_) => None,
    }
}

/// A policy that names what is not there, or one twice, has not understood the question; half of
/// its answer would be chance.
fn sensible(choice: &Choice, candidates: &[Candidate]) -> Result<(), String> {
    let unknown = |id: &u32| format!("there is no candidate {id}");
    match choice {
        Choice::Pick(id, _) => at(candidates, *id).map(|_| ()).ok_or_else(|| unknown(id)),
        Choice::Scores(scores, _) => {
            let mut seen = vec![false; candidates.len()];
            for (id, _) in scores {
                let at = at(candidates, *id).ok_or_else(|| unknown(id))?;
                if std::mem::replace(&mut seen[at], true) {
                    return Err(format!("the candidate {id} has two scores"));
                }
            }
            Ok(())
        }
        Choice::Abstain | Choice::Reject(_) => Ok(()),
    }
}

/// Where the candidate of this id stands: at its id, in a table of all models.
fn at(candidates: &[Candidate], id: u32) -> Option<usize> {
    let guess = usize::try_from(id).ok()?;
    if candidates.get(guess).is_some_and(|candidate| candidate.id == id) {
        return Some(guess);
    }
    candidates.iter().position(|candidate| candidate.id == id)
}

fn add(sums: &mut [f32], candidates: &[Candidate], scores: &[(u32, f32)], weight: f32) {
    for (id, score) in scores {
        if let Some(at) = at(candidates, *id) {
            sums[at] += weight * Choice::clamped(*score);
        }
    }
}

fn eligible(candidates: &[Candidate], at: usize) -> bool {
    candidates[at].ready || !candidates.iter().any(|candidate| candidate.ready)
}

/// Who takes it.
fn best(candidates: &[Candidate], sums: &[f32]) -> Option<usize> {
    let praised = (0..candidates.len())
        .filter(|&at| sums[at] > 0.0 && eligible(candidates, at))
        .min_by(|&a, &b| {
            sums[b].total_cmp(&sums[a]).then_with(|| by_load(&candidates[a], &candidates[b]))
        });
    // Nobody has a good word for any of them: the client's own choice stands. `min_by` takes the
    // first of equals.
    praised.or_else(|| {
        (0..candidates.len()).filter(|&at| candidates[at].asked).min_by(|&a, &b| {
            let (a, b) = (&candidates[a], &candidates[b]);
            b.ready.cmp(&a.ready).then_with(|| by_load(a, b))
        })
    })
}

fn by_load(a: &Candidate, b: &Candidate) -> std::cmp::Ordering {
    busy(&a.load).total_cmp(&busy(&b.load))
}

/// How full a model is: 0 is idle, 1 is as much as it takes.
fn busy(load: &Load) -> f64 {
    let room = f64::from(load.waiting_max) + f64::from(load.running_max);
    let used = f64::from(load.waiting) + f64::from(load.running);
    if room > 0.0 { (used / room).min(1.0) } else { 1.0 }
}
