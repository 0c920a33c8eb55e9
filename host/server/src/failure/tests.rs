use std::collections::BTreeSet;

use interlock_policy_api::{Code, Phase, Reason, Rejection};
use interlock_request::ModelId;

use super::*;
use crate::work::ModelPart;

#[test]
fn the_reasons_are_those_that_failures_give() {
    let refused = Refused {
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
        RequestFailure::InvalidRequest(InvalidRequest::missing("model")),
        RequestFailure::BadRequestId(String::new()),
        BodyProblem::TooLarge { limit: 1 }.into(),
        BodyProblem::TooSlow { limit: Duration::ZERO }.into(),
        BodyProblem::Broken(String::new()).into(),
        BodyProblem::Encoded(String::new()).into(),
        RequestFailure::ResponseHead { unit: "bytes", got: 2, limit: 1 },
        RequestFailure::Unreadable(HeadProblem::Malformed),
        RequestFailure::Unreadable(HeadProblem::UrlTooLong),
        RequestFailure::Unreadable(HeadProblem::TooSlow { limit: Duration::ZERO }),
        RequestFailure::Foreign(Foreign::Origin(String::new())),
        RequestFailure::Foreign(Foreign::ServerHost(String::new())),
        RequestFailure::UnknownModel { asked: String::new(), served: vec![] },
        RequestFailure::UnknownUrl { path: String::new() },
        RequestFailure::Method,
        RequestFailure::UnknownRequest(String::new()),
        RequestFailure::NotKept(String::new()),
        RequestFailure::InFlight(RequestId::generate()),
        RequestFailure::Connections(ConnectionLimit::Address(1)),
        RequestFailure::Draining,
        NotStarted::Full { waiting: 1, limit: 1 }.into(),
        NotStarted::Loading.into(),
        NotStarted::Stopped(EngineExit::Asked).into(),
        refused.into(),
        RequestFailure::Spoiled(String::new()),
        RequestFailure::Intervened(Box::new(Intervention {
            policy: "p".into(),
            reason: Reason { code: Code::default(), detail: None },
            failed: None,
        })),
        RequestFailure::Detached { limit: 1 },
        WorkError::Full { limit: 1 }.into(),
        WorkError::TooMuch { bytes: 2, limit: 1 }.into(),
        WorkError::Endless { owner: owner.clone(), limit: Duration::ZERO }.into(),
        WorkError::Stuck { owner }.into(),
        WorkError::Panicked.into(),
    ];
    failures.extend(FaultKind::ALL.map(RequestFailure::Failed));
    let causes = [CancelCause::Operator, CancelCause::Shutdown, CancelCause::Disconnect];
    failures.extend(causes.map(RequestFailure::Cancelled));
    failures.extend(deadlines.map(|which| RequestFailure::Cancelled(CancelCause::Deadline(which))));
    let given: BTreeSet<_> = failures.iter().map(RequestFailure::reason).collect();
    assert_eq!(given, RequestFailure::REASONS.iter().copied().collect());
}

#[test]
fn the_log_has_no_name_that_a_client_made_up() {
    let field = |path: &str| RequestFailure::from(InvalidRequest::missing(path)).field();
    assert_eq!(field("metadata.my secret").as_deref(), Some("metadata"));
    assert_eq!(field("logit_bias.cat").as_deref(), Some("logit_bias"));
    assert_eq!(field("messages[2].content").as_deref(), Some("messages[2].content"));
}
