//! The crash that this project was asked for after, over real connections that really close.
//!
//! Every story brings a request to a stage with a pass in the device, and asserts so, before
//! anything is cancelled; then it asserts that nothing enters the device until that pass has left.

use interlock_sim::{PassKind, PassSeen};
use interlock_tests::{Call, Logs, Served};

/// A way to ask for text.
struct Way {
    name: &'static str,
    path: &'static str,
    body: &'static str,
}

const WAYS: [Way; 6] = [
    Way {
        name: "responses",
        path: "/v1/responses",
        body: r#"{"model":"sim","input":"a long prompt, many chunks","max_output_tokens":200}"#,
    },
    Way {
        name: "responses-stream",
        path: "/v1/responses",
        body: r#"{"model":"sim","input":"a long prompt, many chunks","max_output_tokens":200,"stream":true}"#,
    },
    Way {
        name: "chat",
        path: "/v1/chat/completions",
        body: r#"{"model":"sim","messages":[{"role":"user","content":"a long prompt, many chunks"}],"max_tokens":200}"#,
    },
    Way {
        name: "chat-stream",
        path: "/v1/chat/completions",
        body: r#"{"model":"sim","messages":[{"role":"user","content":"a long prompt, many chunks"}],"max_tokens":200,"stream":true}"#,
    },
    Way {
        name: "completions",
        path: "/v1/completions",
        body: r#"{"model":"sim","prompt":"a long prompt, many chunks","max_tokens":200}"#,
    },
    Way {
        name: "completions-stream",
        path: "/v1/completions",
        body: r#"{"model":"sim","prompt":"a long prompt, many chunks","max_tokens":200,"stream":true}"#,
    },
];

/// A short request that must be served after whatever happened to the one before it.
const SHORT: &str = r#"{"model":"sim","prompt":"x","max_tokens":1}"#;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Stage {
    Waiting,
    Prefilling,
    Decoding,
}

/// A request whose stage is known, with a pass in the device: its own, or, while it waits, that
/// of the request before it.
struct Staged {
    served: Served,
    call: Call,
    id: String,
    /// The request that is in the device while `call` waits.
    occupant: Option<Call>,
    /// Passes in the device or through it.
    begun: usize,
}

async fn bring_to(stage: Stage, way: &Way, story: &str) -> Staged {
    let served = Served::start(8).await;
    let id = format!("{story}-{}-{stage:?}", way.name);
    let occupant = match stage {
        Stage::Waiting => {
            let call = served.post(WAYS[0].path, &format!("occupies-{id}"), WAYS[0].body).await;
            served.rig.gate.wait_begun(1);
            Some(call)
        }
        Stage::Prefilling | Stage::Decoding => None,
    };
    let call = served.post(way.path, &id, way.body).await;
    let mut begun = 1;
    served.rig.gate.wait_begun(begun);
    match stage {
        Stage::Waiting => {
            Logs::captured().wait_for(&["admitted", &format!("request={id} ")]);
            assert_eq!(served.rig.metric("requests_waiting"), 1.0);
        }
        Stage::Prefilling => {
            served.rig.gate.let_through(1);
            begun = 2;
            served.rig.gate.wait_begun(begun);
            assert_eq!(served.rig.gate.begun()[1].kind, PassKind::Prefill, "a later chunk");
        }
        Stage::Decoding => {
            while served.rig.gate.begun()[begun - 1].kind == PassKind::Prefill {
                served.rig.gate.let_through(1);
                begun += 1;
                served.rig.gate.wait_begun(begun);
            }
        }
    }
    assert_eq!(served.rig.gate.begun().len(), begun);
    assert_eq!(served.rig.gate.ended(), begun - 1, "a pass is in the device");
    Staged { served, call, id, occupant, begun }
}

impl Stage {
    const ALL: [Self; 3] = [Self::Waiting, Self::Prefilling, Self::Decoding];
    const IN_THE_DEVICE: [Self; 2] = [Self::Prefilling, Self::Decoding];

    fn cancellations(self, cause: &str) -> String {
        let stage = format!("{self:?}").to_lowercase();
        format!("cancellations_total{{cause=\"{cause}\",stage=\"{stage}\"}}")
    }
}

/// The pass in the device is let go: the next to enter belongs to the request behind the one
/// that was cancelled, it is served, and the device never held two.
async fn the_next_is_served(served: &Served, behind: Call, begun: usize) {
    assert_eq!(served.rig.gate.ended(), begun - 1, "the pass is still in the device");
    served.rig.gate.let_through(1);
    served.rig.gate.wait_begun(begun + 1);
    let entered: PassSeen = served.rig.gate.begun()[begun];
    assert_eq!((entered.request, entered.kind), (1, PassKind::Prefill));
    served.rig.gate.open();
    let answer = behind.answer().await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert_eq!(served.rig.gate.in_flight_max(), 1, "the device never held two passes");
    assert_eq!(served.rig.metric("engine_passes_in_flight_max"), 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_lets_nobody_in_before_its_pass_has_ended() {
    for way in &WAYS {
        for stage in Stage::IN_THE_DEVICE {
            let Staged { served, call, id, begun, .. } = bring_to(stage, way, "leaves").await;
            call.leave();
            Logs::captured().wait_for(&["client left", &id]);
            let behind = served.post("/v1/completions", &format!("behind-{id}"), SHORT).await;
            served.rig.gate.watch_none_begin();
            the_next_is_served(&served, behind, begun).await;
            assert_eq!(served.rig.metric(&stage.cancellations("disconnect")), 1.0, "{id}");
            assert_eq!(served.rig.metric("cancelled_pass_completions_total"), 1.0, "{id}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_while_waiting_never_reaches_the_device() {
    for way in &WAYS {
        let Staged { served, call, id, occupant, .. } =
            bring_to(Stage::Waiting, way, "leaves").await;
        call.leave();
        Logs::captured().wait_for(&["client left", &id]);
        served.rig.gate.open();
        let answer = occupant.expect("one occupies the device").answer().await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        Logs::captured().wait_for(&["request ended", &id, "disconnected"]);
        assert!(served.rig.gate.begun().iter().all(|seen| seen.request == 0), "{id}");
        assert_eq!(served.rig.metric(&Stage::Waiting.cancellations("disconnect")), 1.0, "{id}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_who_cancels_twice_is_answered_at_once_and_lets_nobody_in_early() {
    for way in &WAYS {
        for stage in Stage::ALL {
            let Staged { served, call, id, occupant, begun } =
                bring_to(stage, way, "operator").await;
            for _ in 0..2 {
                let path = format!("/v1/requests/{id}/cancel");
                let answer = served.post(&path, "operator", "").await.answer().await;
                assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
            }
            // The client hears of it while the pass is still in the device.
            let told = call.answer().await;
            assert_eq!(served.rig.gate.ended(), begun - 1);
            assert!(told.contains("request_cancelled"), "{id}: {told}");
            let behind = served.post("/v1/completions", &format!("behind-{id}"), SHORT).await;
            served.rig.gate.watch_none_begin();
            if stage == Stage::Waiting {
                served.rig.gate.open();
                let occupant = occupant.expect("one occupies the device").answer().await;
                assert!(occupant.starts_with("HTTP/1.1 200"), "{occupant}");
                assert!(behind.answer().await.starts_with("HTTP/1.1 200"));
                assert_eq!(served.rig.gate.in_flight_max(), 1);
            } else {
                the_next_is_served(&served, behind, begun).await;
            }
            assert_eq!(served.rig.metric(&stage.cancellations("operator")), 1.0, "{id}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pass_that_fails_after_its_client_left_is_in_the_log_and_the_metric() {
    for way in &WAYS {
        for stage in Stage::IN_THE_DEVICE {
            let Staged { served, call, id, begun, .. } = bring_to(stage, way, "fails").await;
            call.leave();
            Logs::captured().wait_for(&["client left", &id]);
            served.rig.gate.fail_next();
            let behind = served.post("/v1/completions", &format!("behind-{id}"), SHORT).await;
            the_next_is_served(&served, behind, begun).await;
            assert_eq!(served.rig.metric("cancelled_pass_failures_total"), 1.0, "{id}");
            let said = ["ERROR", &id, "pass failed after its request was cancelled"];
            assert_eq!(Logs::captured().lines_with(&said).len(), 1, "{id}");
            let ended = ["request ended", &format!("request={id} "), "disconnected"];
            Logs::captured().wait_for(&ended);
            assert_eq!(Logs::captured().lines_with(&ended).len(), 1, "one terminal line: {id}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_whose_pass_fails_is_told_so_and_the_next_is_served() {
    for way in &WAYS {
        for stage in Stage::IN_THE_DEVICE {
            let Staged { served, call, id, begun, .. } = bring_to(stage, way, "failing").await;
            served.rig.gate.fail_next();
            let behind = served.post("/v1/completions", &format!("behind-{id}"), SHORT).await;
            the_next_is_served(&served, behind, begun).await;
            let told = call.answer().await;
            assert!(told.contains("internal_error") && told.contains(&id), "{id}: {told}");
            assert!(!told.contains("the gate was told"), "what failed inside stays inside: {told}");
        }
    }
}
