use expect_test::{Expect, expect};
use interlock_policy_api::{
    Admission, Answer, Body, Caller, Candidate, Choice, Code, Decision, Event, Facts, FailureKind,
    Identified, Identity, Load, PolicyFailure, Progress, Reaction, Reason, Rejection,
    RequestContext, Summary, Transformed, Verdict, Window,
};
use interlock_state::{Bucket, State, Taken};

use super::*;

/// Takes part in everything, with as little as shows that what was given arrives.
struct Parrot {
    state: Space,
    per_minute: f64,
}

fn reason(code: &str) -> Reason {
    Reason { code: Code::from(code), detail: Some(format!("because {code}")) }
}

fn time_of_day(micros: u64) -> String {
    let minutes = micros / 60_000_000;
    format!("{:02}:{:02}", minutes / 60 % 24, minutes % 60)
}

impl Policy for Parrot {
    fn name(&self) -> &str {
        "parrot"
    }

    fn version(&self) -> &str {
        "1"
    }

    fn takes(&self, phase: Phase) -> bool {
        phase != Phase::Transform || self.per_minute > 1.0
    }

    fn identify(&self, caller: &Caller) -> Answer<Identified> {
        let identity =
            Identity { tenant: caller.credential[..8].to_owned(), ..Identity::default() };
        Ok(Identified::Known(identity, Code::from("known")))
    }

    fn transform(&self, _: &Facts, body: &Body) -> Answer<Transformed> {
        body.set("/temperature", "0.5").expect("it can be set");
        Ok(Transformed::Keep)
    }

    fn route(&self, _: &Facts, candidates: &[Candidate], _: &Body) -> Answer<Choice> {
        let quiet = candidates.iter().min_by_key(|candidate| candidate.load.waiting);
        Ok(quiet.map_or(Choice::Abstain, |quiet| Choice::Pick(quiet.id, Code::from("quiet"))))
    }

    fn admit(&self, facts: &Facts, load: &Load, in_flight: u32, _: &Body) -> Answer<Decision> {
        if load.waiting > 100 {
            let message = "unreachable".to_owned();
            return Err(PolicyFailure { kind: FailureKind::Trap, message });
        }
        let key = format!("of {}", facts.identity.tenant);
        let bucket =
            Bucket { capacity: self.per_minute, refill_per_second: self.per_minute / 60.0 };
        let taken = self.state.take(&key, bucket, 1.0).expect("memory answers");
        Ok(match taken {
            Taken::Ok { .. } => Decision::Admit(Admission {
                // What a case says of the load, or else the time of day.
                note: match in_flight {
                    0 => time_of_day(facts.arrived_at_micros),
                    some => format!("{some} in flight"),
                },
                code: Code::from("within"),
                ..Admission::default()
            }),
            Taken::Denied { available_in: retry_after } => Decision::Reject(Rejection {
                status: 429,
                reason: reason("too_many"),
                retry_after: Some(retry_after),
                headers: vec![("x-left".into(), "0".into())],
            }),
        })
    }

    fn window(&self, _: RequestContext<'_>, window: &Window<'_>) -> Answer<Verdict> {
        let text = window.text;
        if let Some(at) = text.find("secret") {
            let text = format!("{}[gone]{}", &text[..at], &text[at + 6..]);
            return Ok(Verdict::Replace { text, hold: 0, reason: reason("secret") });
        }
        Ok(Verdict::Hold(if window.finished { 0 } else { 5 }))
    }

    fn event(
        &self,
        request: RequestContext<'_>,
        _: &Event,
        progress: &Progress,
    ) -> Answer<Reaction> {
        let code = format!("{} after {:?}", request.note, progress.elapsed);
        Ok(Reaction::Cancel(Reason { code: Code::from(code.as_str()), detail: None }))
    }

    fn account(&self, request: RequestContext<'_>, summary: &Summary) -> Answer<()> {
        let said = format!("{} used {}", request.note, summary.usage.generated_tokens);
        self.state.set("last", said.as_bytes(), None).expect("memory takes it");
        Ok(())
    }
}

fn begin(settings: &Map<String, Value>) -> Result<PolicyUnderTest, NotBegun> {
    let clock = ManualClock::default();
    let state = State::memory_with(Arc::new(clock.clone())).space("parrot");
    let per_minute = settings.get("per_minute").and_then(Value::as_f64);
    let why = "per_minute must be a number, got nothing";
    let per_minute = per_minute.ok_or_else(|| NotBegun::Refused(why.into()))?;
    let policy = Arc::new(Parrot { state: state.clone(), per_minute });
    Ok(PolicyUnderTest { policy, state, clock })
}

fn check(cases: &str, shown: &Expect) {
    let cases = Cases::parse(cases).unwrap_or_else(|why| panic!("{why}"));
    let played = cases.play("", &mut begin).unwrap_or_else(|why| panic!("{why}"));
    shown.assert_eq(&played.to_string());
}

#[test]
fn steps_share_a_state_and_a_clock_that_they_move() {
    check(
        r#"
        settings = { per_minute = 2 }
        request = { tenant = "acme" }

        [[case]]
        name = "two a minute, and then again"
        [[case.step]]
        times = 2
        load = { tenant_in_flight = 3 }
        expect = { decision = "admit", note = "3 in flight" }
        [[case.step]]
        expect = { decision = "reject", status = 429, retry_after = { min = "29s", max = "31s" }, headers = { x-left = 0 } }
        [[case.step]]
        request = { tenant = "other" }
        expect = { decision = "admit" }
        [[case.step]]
        at = "31s"
        expect = { decision = "admit" }

        [[case]]
        name = "cases share nothing"
        expect = { decision = "admit" }
        "#,
        &expect![[r#"
              ok      two a minute, and then again
              ok      cases share nothing

            2 cases, all as expected
        "#]],
    );
}

#[test]
fn what_differs_is_shown_with_the_answer() {
    check(
        r#"
        settings = { per_minute = 1 }
        [[case]]
        name = "wrong on purpose"
        expect = { decision = "reject", status = 429 }
        [[case]]
        name = "wrong the second time"
        step = [{ times = 2, expect = { decision = "admit" } }]
        [[case]]
        name = "a policy that traps"
        load = { waiting = 101 }
        expect = { decision = "failure", failure = "trap" }
        "#,
        &expect![[r#"
              FAILED  wrong on purpose
                        decision
                          - "reject"
                          + "admit"
                        status
                          - 429
                          + nothing
                        it answered {"decision":"admit","reason":"within","note":"00:00"}
              FAILED  wrong the second time
                      step 1 (admit, time 2)
                        decision
                          - "admit"
                          + "reject"
                        it answered {"decision":"reject","status":429,"reason":"too_many","detail":"because too_many","retry_after":"1m 1us","headers":{"x-left":"0"}}
              ok      a policy that traps

            3 cases, 2 not as expected
        "#]],
    );
}

#[test]
fn every_phase_can_be_asked() {
    check(
        r#"
        settings = { per_minute = 60 }
        [[case]]
        name = "identify"
        caller = { token = "sk-1" }
        expect = { decision = "known", tenant = "0f2c10bf" }
        [[case]]
        name = "transform"
        phase = "transform"
        body = { temperature = 2 }
        expect = { decision = "keep", body = { "/temperature" = 0.5, "/model" = { present = false } } }
        [[case]]
        name = "route"
        candidates = [{ model = "a", waiting = 3 }, { model = "b" }]
        expect = { decision = "pick", pick = "b" }
        [[case]]
        name = "a stream"
        text = ["the sec", "ret is", " out"]
        expect = { passed = "the [gone] is out", decisions = ["hold", "replace", "hold"] }
        [[case]]
        name = "a life"
        [[case.step]]
        load = { tenant_in_flight = 1 }
        expect = { decision = "admit" }
        [[case.step]]
        at = "2s"
        event = { stalled = "1s" }
        expect = { decision = "cancel", reason = "1 in flight after 2s" }
        [[case.step]]
        ended = { outcome = "disconnected", generated_tokens = 7 }
        expect = { state = { last = "1 in flight used 7" } }
        "#,
        &expect![[r#"
              ok      identify
              ok      transform
              ok      route
              ok      a stream
              ok      a life

            5 cases, all as expected
        "#]],
    );
}

#[test]
fn settings_that_are_refused_can_be_expected() {
    check(
        r#"
        settings = { per_minute = 1 }
        [[case]]
        name = "refused"
        settings = {}
        expect_init = "must be a number"
        [[case]]
        name = "refused and not expected to be"
        settings = {}
        expect = { decision = "admit" }
        "#,
        &expect![[r#"
              ok      refused
              FAILED  refused and not expected to be
                      init
                        init
                          - "ok"
                          + "refused"
                        it answered {"init":"refused","message":"per_minute must be a number, got nothing"}

            2 cases, 1 not as expected
        "#]],
    );
}

#[test]
fn a_file_that_makes_no_sense_is_refused_with_the_reason() {
    let why = |text: &str| {
        let cases = match Cases::parse(text) {
            Err(why) => return why.to_string(),
            Ok(cases) => cases,
        };
        cases.play("", &mut begin).expect_err(text).to_string()
    };
    assert_eq!(why(""), "it has no [[case]]");
    assert_eq!(why("[[case]]\nname = \"a\""), "case \"a\" expects nothing");
    let typo = why("[[case]]\nname = \"a\"\nexpct = 1");
    assert!(typo.contains("unknown field `expct`"), "{typo}");
    let back = "settings = { per_minute = 9 }\n[[case]]\nname = \"a\"\n\
                step = [{ at = \"2s\", expect = {} }, { at = \"1s\", expect = {} }]";
    assert_eq!(
        why(back),
        "case \"a\": a step at 2026-01-01T00:00:01Z comes after one at 2026-01-01T00:00:02Z: time \
         goes forward"
    );
    let absent =
        "settings = { per_minute = 1 }\n[[case]]\nname = \"a\"\nphase = \"transform\"\nexpect = {}";
    assert_eq!(why(absent), "case \"a\": the policy takes no part in transform");
}

/// Cases began on 1 January at midnight, whatever they said, so none could be about the night.
#[test]
fn a_case_is_at_the_time_that_it_says() {
    check(
        r#"
        at = 2026-03-07T00:00:00Z
        settings = { per_minute = 2 }
        [[case]]
        name = "when the file begins"
        expect = { note = "00:00" }
        [[case]]
        name = "so long after that"
        at = "22h 30m"
        expect = { note = "22:30" }
        [[case]]
        name = "at a moment of its own"
        at = "2026-12-24T23:30:00+01:00"
        step = [{ expect = { note = "22:30" } }, { at = "2026-12-24T22:45:00Z", expect = { note = "22:45" } },
                { at = "1h", expect = { note = "23:30" } }]
        "#,
        &expect![[r#"
              ok      when the file begins
              ok      so long after that
              ok      at a moment of its own

            3 cases, all as expected
        "#]],
    );
}

#[test]
fn a_case_that_says_no_time_begins_on_the_first_of_january_at_midnight() {
    check(
        r#"
        settings = { per_minute = 1 }
        [[case]]
        name = "a"
        expect = { note = "00:00" }
        "#,
        &expect![[r#"
              ok      a

            1 cases, all as expected
        "#]],
    );
    assert_eq!(crate::case_time::written(EPOCH), "2026-01-01T00:00:00Z");
}

/// It was a case that failed, as if the policy had decided otherwise.
#[test]
fn a_policy_that_is_not_there_is_no_case_that_fails() {
    let cases = Cases::parse("[[case]]\nname = \"a\"\nexpect_init = \"not there\"").expect("cases");
    let why = "no-such.wasm is not there";
    let played = cases.play("", &mut |_| Err(NotBegun::Unusable(why.into())));
    assert_eq!(played.expect_err("there is none"), NotPlayed::Policy(why.into()));
}
