use std::collections::BTreeSet;

use interlock_policy_api::{Code, Phase, Reason, Rejection};
use interlock_request::ModelId;

use super::*;
use crate::work::ModelPart;

#[test]
fn the_reasons_are_those_that_failures_give() {
    let refused = PolicyRefusal {
        policy: "p".into(),
        phase: Phase::Admit,
        rejection: Rejection {
            status: 403,
            reason: Reason { code: "no".into(), detail: None },
            retry_after: None,
            headers: vec![],
        },
        failure: None,
    };
    let deadlines = [Deadline::Queue, Deadline::FirstToken, Deadline::InterToken, Deadline::Total];
    let owner = (ModelId::new("m"), ModelPart::ChatTemplate);
    let mut failures = vec![
        Failure::InvalidRequest(InvalidRequest::missing("model")),
        Failure::BadRequestId(String::new()),
        BodyProblem::TooLarge { limit: 1 }.into(),
        BodyProblem::TooSlow { limit: Duration::ZERO }.into(),
        BodyProblem::Broken(String::new()).into(),
        BodyProblem::Encoded(String::new()).into(),
        Failure::HeadTooLarge { unit: "bytes", got: 2, limit: 1 },
        Failure::Unreadable(HeadProblem::Malformed),
        Failure::Unreadable(HeadProblem::UrlTooLong),
        Failure::Unreadable(HeadProblem::TooSlow { limit: Duration::ZERO }),
        Failure::Foreign(Foreign::Origin(String::new())),
        Failure::Foreign(Foreign::Host(String::new())),
        Failure::UnknownModel { asked: String::new(), served: vec![] },
        Failure::UnknownUrl { path: String::new() },
        Failure::Method,
        Failure::UnknownRequest(String::new()),
        Failure::NotKept(String::new()),
        Failure::InFlight(RequestId::generate()),
        Failure::Connections(ConnectionLimit::Address(1)),
        Failure::Draining,
        NotStarted::Full { waiting: 1, limit: 1 }.into(),
        NotStarted::Loading.into(),
        NotStarted::Stopped(EngineExit::Asked).into(),
        refused.into(),
        Failure::Spoiled(String::new()),
        Failure::Intervened(Box::new(Intervention {
            policy: "p".into(),
            reason: Reason { code: Code::default(), detail: None },
            failed: None,
        })),
        Failure::Detached { limit: 1 },
        WorkError::Full { limit: 1 }.into(),
        WorkError::TooMuch { bytes: 2, limit: 1 }.into(),
        WorkError::Endless { owner: owner.clone(), limit: Duration::ZERO }.into(),
        WorkError::Stuck { owner }.into(),
        WorkError::Panicked.into(),
    ];
    failures.extend(FaultKind::ALL.map(Failure::Failed));
    let causes = [CancelCause::Operator, CancelCause::Shutdown, CancelCause::Disconnect];
    failures.extend(causes.map(Failure::Cancelled));
    failures.extend(deadlines.map(|which| Failure::Cancelled(CancelCause::Deadline(which))));
    let given: BTreeSet<_> = failures.iter().map(Failure::reason).collect();
    assert_eq!(given, Failure::REASONS.iter().copied().collect());
}

#[test]
fn the_log_has_no_name_that_a_client_made_up() {
    let field = |path: &str| Failure::from(InvalidRequest::missing(path)).field();
    assert_eq!(field("metadata.my secret").as_deref(), Some("metadata"));
    assert_eq!(field("logit_bias.cat").as_deref(), Some("logit_bias"));
    assert_eq!(field("messages[2].content").as_deref(), Some("messages[2].content"));
}
