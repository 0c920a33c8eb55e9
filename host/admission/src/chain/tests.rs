use std::sync::Mutex;

use interlock_metrics::Registry;
use interlock_request::{Deadlines, DisconnectAction, Endpoint, ModelId, Priority, Sampling};

use super::*;
use crate::{FailureKind, LimitsConfig};

/// A policy that gives the same answer every time and remembers what it was told.
struct Fixed {
    name: &'static str,
    answer: Result<Decision, PolicyFailure>,
    told: Mutex<Vec<Outcome>>,
}

impl Policy for Fixed {
    fn name(&self) -> &str {
        self.name
    }
    fn version(&self) -> &str {
        "1.0.0"
    }
    fn takes(&self, _: Phase) -> bool {
        true
    }
    fn admit(&self, _: &Facts, _: &Load) -> Result<Decision, PolicyFailure> {
        self.answer.clone()
    }
    fn account(&self, _: &Facts, summary: &Summary) -> Result<(), PolicyFailure> {
        self.told.lock().unwrap().push(summary.outcome.clone());
        Ok(())
    }
}

fn fixed(name: &'static str, answer: Result<Decision, PolicyFailure>) -> Arc<Fixed> {
    Arc::new(Fixed { name, answer, told: Mutex::default() })
}

fn wish(priority: Priority) -> Result<Decision, PolicyFailure> {
    Ok(Decision::Admit(PlanProposal { priority: Some(priority), ..PlanProposal::default() }))
}

fn rejection(status: u16) -> Result<Decision, PolicyFailure> {
    Ok(Decision::Reject(Rejection {
        status,
        reason: Reason { code: "no".into(), detail: None },
        retry_after: None,
    }))
}

fn trap() -> Result<Decision, PolicyFailure> {
    Err(PolicyFailure { kind: FailureKind::Trap, message: "unreachable".into() })
}

fn chain(links: &[(&Arc<Fixed>, FailureAction)]) -> (Arc<PolicyChain>, Registry) {
    let registry = Registry::new();
    let links = links
        .iter()
        .map(|(policy, admit)| Link {
            policy: Arc::clone(policy) as Arc<dyn Policy>,
            on_failure: OnFailure { admit: *admit, ..OnFailure::default() },
        })
        .collect();
    let metrics = PolicyMetrics::register(&registry);
    let chain = PolicyChain::new(links, LimitsConfig::default().ceilings(), metrics);
    (Arc::new(chain), registry)
}

fn facts() -> Facts {
    Facts {
        request_id: RequestId::parse("r1").unwrap(),
        arrived_at_micros: 0,
        endpoint: Endpoint::Chat,
        model: ModelId::new("m"),
        streaming: false,
        prompt_tokens: 1,
        tokens_max: 1,
        tokens_max_asked: true,
        body_bytes: 2,
        headers: vec![],
    }
}

fn ask(chain: &Arc<PolicyChain>) -> Result<(Admitted, Account, Vec<Verdict>), Refused> {
    let generation = Generation {
        sampling: Sampling::greedy(),
        tokens_max: 1,
        tokens_min: 0,
        stop_tokens: vec![],
        logprobs: None,
        priority: Priority::Standard,
    };
    chain.admit(facts(), &Load::default(), Prompt::new(vec![1]).unwrap(), generation)
}

fn summary(outcome: Outcome) -> Summary {
    Summary {
        outcome,
        usage: Usage::default(),
        queue_time: None,
        time_to_first_token: None,
        total: Duration::ZERO,
    }
}

const OPEN: FailureAction = FailureAction::Open;
const CLOSED: FailureAction = FailureAction::Closed(503);

#[test]
fn the_first_rejection_ends_the_chain() {
    let (a, b) = (fixed("a", rejection(403)), fixed("b", rejection(401)));
    let (chain, metrics) = chain(&[(&a, CLOSED), (&b, CLOSED)]);
    let refused = ask(&chain).expect_err("a rejects");
    assert_eq!((refused.policy.as_str(), refused.rejection.status), ("a", 403));
    let text = metrics.expose().unwrap();
    assert!(text.contains(r#"policy_calls_total{decision="reject",phase="admit",policy="a"} 1"#));
    for decision in ["admit", "reject", "failed"] {
        let asked = format!(r#"decision="{decision}",phase="admit",policy="b"}} 0"#);
        assert!(text.contains(&asked), "b was asked after a had rejected:\n{text}");
    }
}

#[test]
fn a_status_outside_the_errors_is_clamped() {
    let a = fixed("a", rejection(200));
    let (chain, _) = chain(&[(&a, CLOSED)]);
    assert_eq!(ask(&chain).expect_err("a rejects").rejection.status, 400);
}

#[test]
fn the_engine_is_told_the_merged_priority() {
    let (a, b) = (fixed("a", wish(Priority::Critical)), fixed("b", wish(Priority::Batch)));
    let (chain, _) = chain(&[(&a, CLOSED), (&b, CLOSED)]);
    let (admitted, _account, verdicts) = ask(&chain).expect("both admit");
    assert_eq!(admitted.plan().priority, Priority::Batch);
    assert_eq!(verdicts.len(), 2);
    assert_eq!(admitted.into_work().2.priority, Priority::Batch);
}

#[test]
fn a_failing_policy_does_what_its_setting_says() {
    let a = fixed("a", trap());
    let (open, metrics) = chain(&[(&a, OPEN)]);
    let (admitted, _account, verdicts) = ask(&open).expect("open goes on");
    assert_eq!(admitted.plan().on_disconnect, DisconnectAction::Cancel);
    assert!(verdicts[0].decision.is_err());
    let text = metrics.expose().unwrap();
    assert!(text.contains(r#"policy_failures_total{kind="trap",phase="admit",policy="a"} 1"#));

    let (closed, _) = chain(&[(&a, CLOSED)]);
    let refused = ask(&closed).expect_err("closed refuses");
    assert_eq!(refused.rejection.status, 503);
    assert!(refused.failure.is_some());
}

#[test]
fn every_admitted_request_is_accounted_for_exactly_once() {
    let a = fixed("a", wish(Priority::Standard));
    let (chain, _) = chain(&[(&a, CLOSED)]);
    let completed = Outcome::Completed(interlock_request::Finish::Stop);

    let (_, account, _) = ask(&chain).expect("admitted");
    account.settle(&summary(completed.clone()));
    assert_eq!(*a.told.lock().unwrap(), std::slice::from_ref(&completed));

    let (_, forgotten, _) = ask(&chain).expect("admitted");
    drop(forgotten);
    let told = a.told.lock().unwrap();
    assert_eq!(told.len(), 2, "a dropped account was not settled: {told:?}");
    assert!(matches!(&told[1], Outcome::Failed(_)));
}

#[test]
fn without_policies_the_ceilings_are_the_plan() {
    let (chain, _) = chain(&[]);
    let (admitted, ..) = ask(&chain).expect("nobody objects");
    let limits = LimitsConfig::default();
    assert_eq!(
        admitted.plan().deadlines,
        Deadlines {
            queue: Some(limits.queue_max),
            first_token: Some(limits.first_token_max),
            inter_token: Some(limits.inter_token_max),
            total: Some(limits.total_max),
        }
    );
}
