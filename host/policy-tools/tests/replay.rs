//! A trace that was recorded with one policy, before another.

use std::sync::Arc;

use interlock_policy_api::{
    Admission, Answer, Body, Caller, Code, Decision, Facts, FailureKind, Headers, Identified,
    Identity, Load, Phase, PlanProposal, Policy, PolicyFailure, Reason, Rejection,
};
use interlock_policy_chain::{
    ChainEntry, DecisionRecord, FailureAction, LimitsConfig, OnFailure, PhaseQuestion, Record,
    RecordedPhase, Ruling,
};
use interlock_policy_tools::clock::ManualClock;
use interlock_policy_tools::comparison::{TraceComparison, compare};
use interlock_policy_tools::replay::replay;
use interlock_request::{Endpoint, ModelId, RequestId};

/// Turns prompts away that are longer than this.
struct AtMost(u32);

impl Policy for AtMost {
    fn name(&self) -> &str {
        "at-most"
    }

    fn version(&self) -> &str {
        "1"
    }

    fn takes(&self, phase: Phase) -> bool {
        phase == Phase::Admit
    }

    fn admit(&self, facts: &Facts, _: &Load, _: u32, _: &Body) -> Answer<Decision> {
        if facts.prompt_tokens <= self.0 {
            return Ok(Decision::Admit(Admission::default()));
        }
        Ok(Decision::Reject(Rejection {
            status: 413,
            reason: Reason { code: Code::from("too_long"), detail: None },
            retry_after: None,
            headers: vec![],
        }))
    }
}

/// Three requests of 100, 200 and 300 tokens, as `policy` decided about them.
fn trace(policy: &AtMost) -> String {
    let line = |serial: u64| {
        let facts = Facts {
            serial,
            request_id: RequestId::parse(&format!("r-{serial}")).expect("an id"),
            arrived_at_micros: 1_000_000 * serial,
            endpoint: Endpoint::Chat,
            model: ModelId::new("m"),
            streaming: true,
            background: false,
            prompt_tokens: 100 * u32::try_from(serial).expect("few"),
            tokens_max: 10,
            tokens_max_asked: true,
            body_bytes: 100,
            prefix_key: 0,
            identity: Identity::default(),
            headers: Headers::default(),
        };
        let asked = PhaseQuestion::Admit { facts, load: Load::default(), tenant_in_flight: 0 };
        let said = DecisionRecord {
            policy: "at-most".into(),
            version: "1".into(),
            decision: asked.ask(policy).expect("it takes part"),
            phase: Phase::Admit,
            fallback: None,
            shadow: false,
            elapsed: std::time::Duration::from_micros(5),
        };
        let record = Record {
            version: Record::VERSION,
            generation: 1,
            steps: vec![RecordedPhase { asked, decisions: vec![said] }],
            verdict: Ruling::Open,
        };
        serde_json::to_string(&record).expect("a record is JSON")
    };
    (1..=3).map(|serial| line(serial) + "\n").collect()
}

#[test]
fn the_same_policy_says_the_same() {
    let trace = trace(&AtMost(250));
    let replayed = replay(&trace, None, &AtMost(250), &ManualClock::default()).expect("a trace");
    assert_eq!(replayed.differences(), 0, "{replayed}");
    assert_eq!(
        replayed.to_string(),
        "3 requests, 3 questions: 3 answered as before, 0 otherwise\n"
    );
}

#[test]
fn what_another_one_decides_otherwise_is_shown() {
    let trace = trace(&AtMost(250));
    let replayed = replay(&trace, Some("at-most"), &AtMost(150), &ManualClock::default());
    let replayed = replayed.expect("a trace");
    assert_eq!(replayed.differences(), 1, "{replayed}");
    let shown = replayed.to_string();
    assert!(shown.contains("reject 413 (too_long)"), "{shown}");
    assert!(shown.contains("r-2"), "{shown}");
}

#[test]
fn a_trace_that_is_none_is_refused_with_the_line() {
    let ask = |trace: &str, name| replay(trace, name, &AtMost(1), &ManualClock::default());
    let why = ask("\n{}\n", None).expect_err("no record").to_string();
    assert!(why.starts_with("line 2 is no record: missing field"), "{why}");
    let why = ask(&trace(&AtMost(1)), Some("other")).expect_err("nobody").to_string();
    assert_eq!(why, "nobody called \"other\" was asked anything in it; it has at-most");
}

/// Says of the caller what it wants to hear when it is asked to admit.
struct Charges;

impl Policy for Charges {
    fn name(&self) -> &str {
        "charges"
    }

    fn version(&self) -> &str {
        "1"
    }

    fn takes(&self, phase: Phase) -> bool {
        matches!(phase, Phase::Identify | Phase::Admit)
    }

    fn identify(&self, _: &Caller) -> Answer<Identified> {
        let attributes = vec![("charged".into(), "today".into())];
        let identity = Identity { tenant: "acme".into(), priority: None, attributes };
        Ok(Identified::Known(identity, Code::from("known")))
    }

    fn admit(&self, facts: &Facts, _: &Load, _: u32, _: &Body) -> Answer<Decision> {
        let note = facts.identity.attributes.first().map(|(_, value)| value.clone());
        Ok(Decision::Admit(Admission { note: note.unwrap_or_default(), ..Admission::default() }))
    }
}

/// What a quota charges in `identify` it would otherwise charge again in `admit`.
#[test]
fn a_policy_is_asked_to_admit_with_what_it_said_of_the_caller_itself() {
    let recorded = |tenant: &str| {
        let request_id = RequestId::parse("r-1").expect("an id");
        let caller = Caller {
            serial: 1,
            request_id: request_id.clone(),
            arrived_at_micros: 1,
            endpoint: Endpoint::Chat,
            credential: String::new(),
            address: String::new(),
            headers: Headers::default(),
            looks_up: false,
        };
        let attributes = vec![("charged".into(), "long ago".into())];
        let facts = Facts {
            serial: 1,
            request_id,
            arrived_at_micros: 1,
            endpoint: Endpoint::Chat,
            model: ModelId::new("m"),
            streaming: true,
            background: false,
            prompt_tokens: 1,
            tokens_max: 10,
            tokens_max_asked: true,
            body_bytes: 100,
            prefix_key: 0,
            identity: Identity { tenant: tenant.into(), priority: None, attributes },
            headers: Headers::default(),
        };
        let load = Load::default();
        let asked = [
            PhaseQuestion::Identify(caller),
            PhaseQuestion::Admit { facts, load, tenant_in_flight: 0 },
        ];
        let step = |asked: PhaseQuestion| {
            let said = DecisionRecord {
                policy: "charges".into(),
                version: "1".into(),
                phase: asked.phase(),
                decision: asked.ask(&Charges).expect("it takes part"),
                fallback: None,
                shadow: false,
                elapsed: std::time::Duration::ZERO,
            };
            RecordedPhase { asked, decisions: vec![said] }
        };
        let steps = asked.into_iter().map(step).collect();
        let record =
            Record { version: Record::VERSION, generation: 1, steps, verdict: Ruling::Open };
        serde_json::to_string(&record).expect("a record is JSON")
    };
    let ask = |tenant| {
        let replayed = replay(&recorded(tenant), None, &Charges, &ManualClock::default());
        replayed.expect("a trace").to_json()["changed"].to_string()
    };
    assert!(ask("acme").contains(r#""note":"today""#), "{}", ask("acme"));
    assert_eq!(ask("somebody else"), "[]", "that one it did not identify");
}

/// Admits two of a tenant at a time, in half the time that the host allows.
struct TwoAtOnce;

impl Policy for TwoAtOnce {
    fn name(&self) -> &str {
        "two-at-once"
    }

    fn version(&self) -> &str {
        "1"
    }

    fn takes(&self, phase: Phase) -> bool {
        phase == Phase::Admit
    }

    fn admit(&self, _: &Facts, _: &Load, in_flight: u32, _: &Body) -> Answer<Decision> {
        if in_flight >= 2 {
            return Ok(Decision::Reject(Rejection {
                status: 429,
                reason: Reason { code: Code::from("too_many"), detail: None },
                retry_after: None,
                headers: vec![],
            }));
        }
        let proposal = PlanProposal { tokens_max: Some(5), ..PlanProposal::default() };
        Ok(Decision::Admit(Admission { proposal, ..Admission::default() }))
    }
}

/// The requests of [`trace`] as they came while so many of the tenant were inside.
fn while_inside(trace: &str, tenant_in_flight: u32) -> String {
    let line = |line: &str| {
        let mut record: Record = serde_json::from_str(line).expect("a record");
        for step in &mut record.steps {
            if let PhaseQuestion::Admit { tenant_in_flight: inside, .. } = &mut step.asked {
                *inside = tenant_in_flight;
            }
        }
        serde_json::to_string(&record).expect("a record is JSON") + "\n"
    };
    trace.lines().map(line).collect()
}

fn put_beside(trace: &str, policy: impl Policy + 'static) -> TraceComparison {
    let entry = ChainEntry::new(Arc::new(policy), OnFailure::default());
    let ceilings = LimitsConfig::default().ceilings();
    compare(trace, &entry, ceilings, &ManualClock::default()).expect("a trace")
}

#[test]
fn one_more_policy_is_asked_what_those_of_the_record_let_through() {
    let trace = trace(&AtMost(250));
    let found = put_beside(&while_inside(&trace, 2), TwoAtOnce);
    assert_eq!(
        found.to_json()["changes"],
        serde_json::json!([
            {"was": "admitted", "is": "refused 429 (too_many) by two-at-once in admit", "count": 2}
        ])
    );
    assert_eq!(found.to_json()["questions"], 2, "the third one at-most had turned away: {found}");
}

#[test]
fn a_plan_that_is_tighter_with_one_more_policy_is_shown() {
    let found = put_beside(&while_inside(&trace(&AtMost(250)), 1), TwoAtOnce);
    let shown = found.to_string();
    assert!(shown.contains("admitted   admitted, under another plan       2"), "{shown}");
    assert!(shown.contains("outcome.admitted.tokens_max   10    5"), "{shown}");
}

#[test]
fn what_failed_then_has_the_consequence_that_it_had() {
    let mut record: Record =
        serde_json::from_str(trace(&AtMost(250)).lines().next().expect("a line"))
            .expect("a record");
    let said = &mut record.steps[0].decisions[0];
    said.decision = Err(PolicyFailure { kind: FailureKind::Trap, message: "unreachable".into() });
    // Not the default, which would have turned the request away.
    said.fallback = Some(FailureAction::Open);
    let trace = serde_json::to_string(&record).expect("a record is JSON");
    let found = put_beside(&trace, TwoAtOnce);
    assert_eq!(found.to_json()["questions"], 1, "{found}");
}
