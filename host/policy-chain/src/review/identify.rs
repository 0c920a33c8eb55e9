//! Who is this?

use super::{AdmissionReview, Shadows, context};
use crate::call::CallOutcome;
use crate::record::PhaseQuestion;
use crate::{FailureAction, PolicyRefusal};
use interlock_policy_api::{Caller, Code, Identified, Identity, Phase, Reason, Rejection};

/// Longest name of a tenant.
const TENANT_BYTES_MAX: usize = 128;
/// Most attributes of a caller, and the longest name or value of one.
const ATTRIBUTES_MAX: usize = 16;
const ATTRIBUTE_BYTES_MAX: usize = 256;

impl AdmissionReview {
    /// Asks who it is, before the body is read. The first policy that knows the caller or turns
    /// it away ends the matter; without policies that identify it is nobody in particular.
    ///
    /// # Errors
    ///
    /// When a policy turns the caller away, fails closed, or all were asked and none knows it: 401
    /// `unidentified`.
    pub async fn identify(&mut self, caller: &Caller) -> Result<Identity, PolicyRefusal> {
        let (mut shadows, from) = (Shadows::none(), self.decisions.len());
        let result = self.identity(caller, &mut shadows).await;
        self.write(|| PhaseQuestion::Identify(caller.clone()), from, &result);
        shadows.compare(Phase::Identify, || {
            let known = result.as_ref().ok().cloned();
            move |previous: Option<&Identified>, answer: &Identified| match (previous, answer) {
                (Some(Identified::Known(one, _)), Identified::Known(other, _)) => one != other,
                (Some(previous), _) => previous.as_str() != answer.as_str(),
                (None, Identified::Known(identity, _)) => known.as_ref() != Some(identity),
                (None, Identified::Reject(_)) => known.is_some(),
                (None, Identified::Unknown) => false,
            }
        });
        result
    }

    async fn identity(
        &mut self,
        caller: &Caller,
        shadows: &mut Shadows<Identified>,
    ) -> Result<Identity, PolicyRefusal> {
        let phase = Phase::Identify;
        let mut someone_does_not_know = false;
        let mut end = None;
        for (at, member) in self.members(phase) {
            if shadows.is_over_for(&member) {
                break;
            }
            // The credential stands for the tenant that nobody knows yet, and with it all else that
            // the policy may have gone by: what was decided about one caller is not repeated for
            // another. Callers without a credential cannot be told apart.
            let repeats = matches!(member.on_failure.identify, FailureAction::LastGood(_));
            let seen = (repeats && !caller.credential.is_empty())
                .then(|| self.completion.shared.last_good.digest(caller, member.policy.headers()));
            let about = seen.as_deref().map(|seen| (caller.credential.as_str(), seen));
            let own = || {
                let caller = caller.clone();
                move |policy: &dyn interlock_policy_api::Policy| policy.identify(&caller)
            };
            if let Some(background) = self.background(at) {
                let context = context(&self.completion, at, phase, about);
                shadows.ask_in_background(context, &member, &background, own(), sensible);
                continue;
            }
            let (outcome, decision) = context(&self.completion, at, phase, about)
                .ask(&member, |policy| policy.identify(caller), own, sensible)
                .await;
            self.decisions.push(decision);
            let decided = match shadows.set_aside(&member, outcome) {
                CallOutcome::Answered(Identified::Known(identity, _)) => Ok(identity),
                CallOutcome::Answered(Identified::Reject(rejection)) => {
                    Err(self.refuse(&member, phase, &rejection))
                }
                CallOutcome::Builtin => Ok(Identity::default()),
                CallOutcome::Closed(status, failure) => {
                    Err(self.fail_closed(&member, phase, status, failure))
                }
                CallOutcome::Answered(Identified::Unknown) => {
                    someone_does_not_know = true;
                    continue;
                }
                CallOutcome::NoAnswer => continue,
            };
            shadows.end(&member);
            end = Some(decided);
        }
        let nobody =
            || if someone_does_not_know { Err(unidentified()) } else { Ok(Identity::default()) };
        end.unwrap_or_else(nobody)
    }
}

fn sensible(answer: &Identified) -> Result<(), String> {
    let Identified::Known(identity, _) = answer else { return Ok(()) };
    let tenant = &identity.tenant;
    let printable = |text: &str| text.bytes().all(|byte| matches!(byte, b' '..=b'~'));
    if tenant.is_empty() || tenant.len() > TENANT_BYTES_MAX || !printable(tenant) {
        return Err(format!(
            "a tenant has 1 to {TENANT_BYTES_MAX} bytes of printable ASCII, got {tenant:?}"
        ));
    }
    if identity.attributes.len() > ATTRIBUTES_MAX {
        let count = identity.attributes.len();
        return Err(format!("a caller has at most {ATTRIBUTES_MAX} attributes, got {count}"));
    }
    let longest = identity.attributes.iter().map(|(name, value)| name.len().max(value.len())).max();
    match longest {
        Some(bytes) if bytes > ATTRIBUTE_BYTES_MAX => Err(format!(
            "an attribute's name and value have at most {ATTRIBUTE_BYTES_MAX} bytes, got {bytes}"
        )),
        _ => Ok(()),
    }
}

fn unidentified() -> PolicyRefusal {
    PolicyRefusal {
        policy: PolicyRefusal::HOST.into(),
        phase: Phase::Identify,
        rejection: Rejection {
            status: 401,
            reason: Reason {
                code: Code::from("unidentified"),
                detail: Some("no policy of this host knows who is asking".into()),
            },
            retry_after: None,
            headers: vec![],
        },
        failure: None,
    }
}
