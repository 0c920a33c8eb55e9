use sdk::state::Fault;
use sdk::testing::{Host, idle, usage, value_of};
use sdk::{Admission, Finish, Identity, Priority, Rejection};
use serde_json::{Value, json};

use super::*;

/// `printf %s key-of-acme | sha256sum`
const KEY_OF_ACME: &str = "689febd264f8b977e29c0fdb75f839eb248ba07d1561b14f2b95f42756943245";

fn quota(host: &Host, limits: Value) -> Quota {
    let settings = json!({
        "tenants": {
            "acme": {"keys": [KEY_OF_ACME], "priority": "batch"},
            "free": {"limits": {"requests_per_minute": 1}},
        },
        "limits": limits,
    });
    host.begin(settings).expect("these are settings")
}

/// 100 tokens of prompt, 50 of output, of acme.
fn request(host: &Host) -> RequestFacts {
    RequestFacts { tenant: "acme".into(), ..host.request() }
}

fn admit(quota: &Quota, request: &RequestFacts) -> Result<Admission, Rejection> {
    match quota.admit(request, &idle()) {
        Decision::Admit(admission) => Ok(admission),
        Decision::Reject(rejection) => Err(rejection),
    }
}

fn end(quota: &Quota, request: &RequestFacts, note: &str, outcome: Outcome, generated: u32) {
    let request = RequestFacts { note: note.into(), ..request.clone() };
    let summary = Summary {
        outcome,
        usage: usage(request.prompt_tokens, generated),
        queue_time: None,
        time_to_first_token: None,
        total_time: 1,
        ended_at: request.arrived_at + 1,
    };
    quota.account(&request, &summary);
}

/// Someone with the key of acme, and the identity of it, if it is let in.
fn identify(host: &Host, quota: &Quota) -> Result<Identity, Rejection> {
    identify_as(quota, &Caller { credential: KEY_OF_ACME.into(), ..host.caller() })
}

fn identify_as(quota: &Quota, caller: &Caller) -> Result<Identity, Rejection> {
    match quota.identify(caller) {
        Known::Known(identity) => Ok(identity),
        Known::Reject(rejection) => Err(rejection),
        Known::Unknown => panic!("it knows or rejects"),
    }
}

/// The facts of the request that was identified like this.
fn identified(request: &RequestFacts, identity: Identity) -> RequestFacts {
    let Identity { tenant, attributes, .. } = identity;
    RequestFacts { tenant, attributes, ..request.clone() }
}

const DONE: Outcome = Outcome::Completed(Finish::Stop);

#[test]
fn a_key_is_its_tenant_and_its_priority() {
    let host = Host::new();
    let quota = quota(&host, json!({}));
    let known = quota.identify(&Caller { credential: KEY_OF_ACME.into(), ..host.caller() });
    let expected: Identity = sdk::known("acme", Reason::KeyKnown).priority(Some(Priority::Batch));
    assert_eq!(known, expected.into());
}

#[test]
fn an_unknown_key_and_none_at_all_are_turned_away() {
    let host = Host::new();
    let quota = quota(&host, json!({}));
    let rejected = |caller| match quota.identify(&caller) {
        Known::Reject(rejection) => (rejection.status, rejection.reason),
        other => panic!("{other:?}"),
    };
    let unknown = Caller { credential: "0".repeat(64), ..host.caller() };
    assert_eq!(rejected(unknown), (401, Reason::InvalidApiKey as u32));
    assert_eq!(rejected(host.caller()), (401, Reason::MissingApiKey as u32));
}

#[test]
fn without_a_key_one_may_be_anonymous_but_a_wrong_one_is_wrong() {
    let host = Host::new();
    let quota: Quota = host.begin(json!({"anonymous": "everyone"})).expect("settings");
    let everyone = sdk::known("everyone", Reason::Anonymous);
    assert_eq!(quota.identify(&host.caller()), everyone.into());
    let wrong = Caller { credential: "0".repeat(64), ..host.caller() };
    assert!(matches!(quota.identify(&wrong), Known::Reject(_)));
}

#[test]
fn requests_come_back_one_by_one() {
    let host = Host::new();
    let quota = quota(&host, json!({"requests_per_minute": 2}));
    let request = request(&host);
    let first = admit(&quota, &request).expect("there are two");
    assert_eq!(value_of(&first.headers, "x-ratelimit-limit-requests"), Some("2"));
    assert_eq!(value_of(&first.headers, "x-ratelimit-remaining-requests"), Some("1"));
    assert_eq!(value_of(&first.headers, "x-ratelimit-reset-requests"), Some("30s"));
    assert_eq!(value_of(&first.headers, "x-ratelimit-limit-tokens"), None);
    admit(&quota, &request).expect("there is one left");
    host.pass(Span::from_secs(10));
    let refused = admit(&quota, &request).expect_err("there is none");
    assert_eq!((refused.status, refused.reason), (429, Reason::RequestsExceeded as u32));
    let wait = refused.retry_after.expect("one comes back");
    assert!((20_000_000..=20_000_001).contains(&wait), "{wait}");
    assert_eq!(value_of(&refused.headers, "x-ratelimit-remaining-requests"), Some("0"));
    assert_eq!(host.metric("refused_total", &["acme", "requests"]), 1.0);
    host.pass(Span { micros: wait });
    admit(&quota, &request).expect("one came back");
}

/// A tenant with one request a minute must not make work with each one that it sends.
#[test]
fn a_request_is_charged_before_its_body_is_read_and_only_once() {
    let host = Host::new();
    let quota = quota(&host, json!({"requests_per_minute": 2}));
    for left in ["1", "0"] {
        let known = identify(&host, &quota).expect("there are two");
        let admission = admit(&quota, &identified(&request(&host), known)).expect("it is charged");
        assert_eq!(value_of(&admission.headers, "x-ratelimit-remaining-requests"), Some(left));
    }
    let refused = identify(&host, &quota).expect_err("there is none");
    assert_eq!((refused.status, refused.reason), (429, Reason::RequestsExceeded as u32));
    let wait = refused.retry_after.expect("one comes back");
    assert!((30_000_000..=30_000_001).contains(&wait), "{wait}");
    assert_eq!(value_of(&refused.headers, "x-ratelimit-limit-requests"), Some("2"));
    assert_eq!(value_of(&refused.headers, "x-ratelimit-remaining-requests"), Some("0"));
    assert_eq!(host.metric("refused_total", &["acme", "requests"]), 1.0);
    host.pass(Span { micros: wait });
    identify(&host, &quota).expect("one came back");
}

#[test]
fn who_was_identified_by_another_policy_or_for_another_request_is_charged_at_admission() {
    let host = Host::new();
    let quota = quota(&host, json!({"requests_per_minute": 2}));
    let known = identify(&host, &quota).expect("there are two");
    let repeated = RequestFacts { request_id: "r-2".into(), ..request(&host) };
    admit(&quota, &identified(&repeated, known.clone())).expect("there is one left");
    let refused = admit(&quota, &request(&host)).expect_err("nobody charged this one");
    assert_eq!(refused.reason, Reason::RequestsExceeded as u32);
    admit(&quota, &identified(&request(&host), known)).expect("this one was charged");

    // A second one behind the first is asked to admit only, and has its own limits.
    let second: Quota =
        host.begin(json!({"limits": {"requests_per_minute": 1}})).expect("settings");
    host.pass(Span::from_secs(60));
    let request = identified(&request(&host), identify(&host, &quota).expect("a new minute"));
    admit(&second, &request).expect("its only one");
    assert!(admit(&second, &request).is_err(), "another's mark is not its own");
}

#[test]
fn without_limits_on_requests_nothing_is_asked_of_the_state_before_the_body() {
    let host = Host::new();
    let quota = quota(&host, json!({"tokens_per_minute": 300}));
    host.state_fails(Some(Fault::Unavailable));
    let known = identify(&host, &quota).expect("nothing is counted here");
    assert_eq!(known.attributes, []);
}

#[test]
fn tokens_are_held_as_expected_and_counted_as_used() {
    let host = Host::new();
    let quota = quota(&host, json!({"tokens_per_minute": 300}));
    let request = request(&host);
    let first = admit(&quota, &request).expect("it needs 150 of 300");
    assert_eq!(value_of(&first.headers, "x-ratelimit-remaining-tokens"), Some("150"));
    let second = admit(&quota, &request).expect("it needs the other 150");
    let refused = admit(&quota, &request).expect_err("there are none");
    assert_eq!((refused.status, refused.reason), (429, Reason::TokensExceeded as u32));
    let wait = refused.retry_after.expect("the minute ends");
    assert!((1..=60_000_000).contains(&wait), "{wait}");

    end(&quota, &request, &first.note, DONE, 1);
    end(&quota, &request, &second.note, Outcome::Rejected, 0);
    let third = admit(&quota, &request).expect("one used 101, the other nothing");
    assert_eq!(value_of(&third.headers, "x-ratelimit-remaining-tokens"), Some("49"));
    assert_eq!(host.metric("tokens_total", &["acme", "generated"]), 1.0);
    assert_eq!(host.metric("tokens_total", &["acme", "prompt"]), 100.0);

    host.pass(Span { micros: wait });
    let next = admit(&quota, &request).expect("a new minute");
    assert_eq!(value_of(&next.headers, "x-ratelimit-remaining-tokens"), Some("150"));
}

#[test]
fn who_does_not_say_how_much_it_wants_is_expected_to_want_what_most_do() {
    let host = Host::new();
    let quota = quota(&host, json!({"tokens_per_minute": 1000}));
    let request = RequestFacts { max_tokens: 8000, max_tokens_asked: false, ..request(&host) };
    let admission = admit(&quota, &request).expect("100 and 256");
    assert_eq!(value_of(&admission.headers, "x-ratelimit-remaining-tokens"), Some("644"));
}

#[test]
fn what_can_never_fit_is_not_told_to_come_again() {
    let host = Host::new();
    let quota = quota(&host, json!({"tokens_per_minute": 149}));
    let refused = admit(&quota, &request(&host)).expect_err("it needs 150");
    assert_eq!((refused.status, refused.retry_after), (413, None));
    assert_eq!(refused.reason, Reason::RequestTooLarge as u32);
}

#[test]
fn a_place_is_free_when_its_request_ends_however_it_ends() {
    let host = Host::new();
    let quota = quota(&host, json!({"concurrent": 1}));
    let request = request(&host);
    for outcome in [DONE, Outcome::Disconnected, Outcome::Failed, Outcome::Rejected] {
        let admission = admit(&quota, &request).expect("it is alone");
        let refused = admit(&quota, &request).expect_err("it is not alone");
        assert_eq!((refused.status, refused.reason), (429, Reason::ConcurrencyExceeded as u32));
        end(&quota, &request, &admission.note, outcome, 1);
    }
    admit(&quota, &request).expect("all have ended");
    host.pass(Span::from_secs(3600));
    admit(&quota, &request).expect("nobody runs for an hour: its host died");
}

#[test]
fn who_is_turned_away_at_one_limit_uses_nothing_of_the_others() {
    let host = Host::new();
    let limits = json!({"requests_per_minute": 1, "tokens_per_minute": 450, "concurrent": 2});
    let quota = quota(&host, limits);
    let request = request(&host);
    let admission = admit(&quota, &request).expect("within all limits");
    for _ in 0..5 {
        let refused = admit(&quota, &request).expect_err("it was the only one this minute");
        assert_eq!(refused.reason, Reason::RequestsExceeded as u32);
    }
    end(&quota, &request, &admission.note, DONE, 50);
    let look = RequestFacts { prompt_tokens: 1, max_tokens: 0, ..request };
    let refused = admit(&quota, &look).expect_err("no request is left");
    let left = value_of(&refused.headers, "x-ratelimit-remaining-tokens");
    assert_eq!(left, Some("299"), "450, but for the 150 that were used and this one's");
}

#[test]
fn a_tenant_has_its_own_limits_and_the_common_ones_where_it_has_none() {
    let host = Host::new();
    let quota = quota(&host, json!({"requests_per_minute": 3, "concurrent": 2}));
    let free = RequestFacts { tenant: "free".into(), ..host.request() };
    admit(&quota, &free).expect("one a minute");
    let refused = admit(&quota, &free).expect_err("one a minute");
    assert_eq!(refused.reason, Reason::RequestsExceeded as u32);
    let acme = request(&host);
    admit(&quota, &acme).expect("it is another one");
    let someone = RequestFacts { tenant: "someone that others know".into(), ..host.request() };
    admit(&quota, &someone).expect("the common limits");
    admit(&quota, &someone).expect("the common limits");
    let refused = admit(&quota, &someone).expect_err("two at once");
    assert_eq!(refused.reason, Reason::ConcurrencyExceeded as u32);
}

#[test]
fn without_the_state_the_settings_decide() {
    let host = Host::new();
    let closed = quota(&host, json!({"requests_per_minute": 3}));
    host.state_fails(Some(Fault::Unavailable));
    let refused = identify(&host, &closed).expect_err("closed");
    assert_eq!((refused.status, refused.retry_after), (503, Some(1_000_000)));
    let refused = admit(&closed, &request(&host)).expect_err("closed");
    assert_eq!((refused.status, refused.retry_after), (503, Some(1_000_000)));
    assert_eq!(host.log(), [""; 0], "the host has said it");

    let open: Quota = host
        .begin(json!({
            "anonymous": "everyone", "limits": {"concurrent": 1, "requests_per_minute": 1},
            "when_unavailable": "open",
        }))
        .expect("settings");
    let known = identify_as(&open, &host.caller()).expect("open");
    assert_eq!(known.attributes, [], "it is not charged");
    let admission = admit(&open, &request(&host)).expect("open");
    assert_eq!((admission.reason, admission.note.as_str()), (Reason::StateUnavailable as u32, ""));
    assert_eq!(host.metric("uncounted_total", &["acme"]), 1.0);
    end(&open, &request(&host), "r7 p9", DONE, 1);

    host.state_fails(Some(Fault::Quota));
    admit(&open, &request(&host)).expect("open");
    assert_eq!(host.log(), ["error the state did nothing: Fault::Quota"]);
}

#[test]
fn a_note_comes_back_as_what_it_was() {
    for note in ["", "r1", "p2", "r18446744073709551615 p3"] {
        assert_eq!(Held::from_note(note).to_note(), note);
    }
    assert_eq!(Held::from_note("nonsense r1x"), Held::default());
}

#[test]
fn settings_that_make_no_sense_are_refused_by_key() {
    let refused = |settings: Value| Host::new().begin::<Quota>(settings).err().expect("no sense");
    assert_eq!(
        refused(json!({})),
        "there is nothing to decide: no keys, no `anonymous`, no `limits`"
    );
    let secret = refused(json!({"tenants": {"acme": {"keys": ["sk-oops"]}}}));
    assert_eq!(secret, "tenants.acme.keys[0] must be a SHA-256 in 64 hex digits");
    let twice = json!({"tenants": {"a": {"keys": [KEY_OF_ACME]}, "b": {"keys": [KEY_OF_ACME]}}});
    assert_eq!(refused(twice), "tenants.b.keys[0] is a key of a already");
    assert_eq!(
        refused(json!({"anonymous": "x", "limits": {"concurrent": 0}})),
        "limits.concurrent must exceed 0, got 0"
    );
    let flat = refused(json!({"anonymous": "x", "tenants": {"a": {"concurrent": 1}}}));
    assert!(flat.starts_with("tenants.a: unknown field `concurrent`"), "{flat}");
}
