//! The crash that this project was asked for after, over real connections that really close.
//!
//! Every story brings a request to a stage with a pass in the device, and asserts so, before
//! anything is cancelled; then it asserts that nothing enters the device until that pass has left.

use interlock_engine::Mode;
use interlock_sim::{RowKind, RowSeen};
use interlock_tests::{Call, Leaving, Logs, Served, metric};

/// A way to ask for text.
struct ApiCall {
    name: &'static str,
    path: &'static str,
    body: &'static str,
}

const API_CALLS: [ApiCall; 6] = [
    ApiCall {
        name: "responses",
        path: "/v1/responses",
        body: r#"{"model":"sim","input":"a long prompt, many chunks","max_output_tokens":200}"#,
    },
    ApiCall {
        name: "responses-stream",
        path: "/v1/responses",
        body: r#"{"model":"sim","input":"a long prompt, many chunks","max_output_tokens":200,"stream":true}"#,
    },
    ApiCall {
        name: "chat",
        path: "/v1/chat/completions",
        body: r#"{"model":"sim","messages":[{"role":"user","content":"a long prompt, many chunks"}],"max_tokens":200}"#,
    },
    ApiCall {
        name: "chat-stream",
        path: "/v1/chat/completions",
        body: r#"{"model":"sim","messages":[{"role":"user","content":"a long prompt, many chunks"}],"max_tokens":200,"stream":true}"#,
    },
    ApiCall {
        name: "completions",
        path: "/v1/completions",
        body: r#"{"model":"sim","prompt":"a long prompt, many chunks","max_tokens":200}"#,
    },
    ApiCall {
        name: "completions-stream",
        path: "/v1/completions",
        body: r#"{"model":"sim","prompt":"a long prompt, many chunks","max_tokens":200,"stream":true}"#,
    },
];

/// A short request that must be served after whatever happened to the one before it.
const SHORT: &str = r#"{"model":"sim","prompt":"x","max_tokens":1}"#;

#[derive(Clone, Copy, Debug, PartialEq)]
enum CancelStage {
    Waiting,
    Prefilling,
    Decoding,
}

/// A request whose stage is known, with a pass in the device: its own, or, while it waits, that
/// of the request before it.
struct StagedCall {
    served: Served,
    call: CallOnce,
    id: String,
    /// What the device calls it, or would.
    number: usize,
    /// Who is in the device before it: its companion in the batch, or whom it waits for.
    other: Option<Call>,
    /// Passes in the device or through it.
    begun: usize,
}

/// A call that is answered or left, once, while the rest of the story goes on.
struct CallOnce(Option<Call>);

impl CallOnce {
    fn take(&mut self) -> Call {
        self.0.take().expect("it is taken once")
    }
}

const OTHER_TOKENS: u32 = 200;

async fn bring_to(stage: CancelStage, mode: Mode, way: &ApiCall, story: &str) -> StagedCall {
    let logs = Logs::captured();
    let served = Served::start(mode, 8).await;
    let gate = served.rig.gate.clone();
    let id = format!("{story}-{}-{stage:?}-{mode:?}", way.name);
    let other = if stage == CancelStage::Waiting || mode == Mode::Batched {
        let call = served.post(API_CALLS[2].path, &format!("before-{id}"), API_CALLS[2].body).await;
        let decodes = [RowSeen { request: 0, kind: RowKind::Decode }];
        gate.step_until(|rows| rows == decodes);
        Some(call)
    } else {
        None
    };
    let number = usize::from(other.is_some());
    let call = served.post(way.path, &id, way.body).await;
    let begun = match stage {
        CancelStage::Waiting => {
            logs.wait_for(&["admitted", &format!("request={id} ")]);
            assert_eq!(served.rig.metric("requests_waiting"), 1.0);
            gate.begun().len()
        }
        CancelStage::Prefilling | CancelStage::Decoding => {
            let kind = stage.row();
            let its = |rows: &[RowSeen]| rows.contains(&RowSeen { request: number, kind });
            let first = gate.step_until(its);
            gate.let_through(1);
            gate.wait_begun(first + 1);
            assert!(its(&gate.begun()[first]), "not its first pass of that kind");
            first + 1
        }
    };
    assert_eq!(gate.begun().len(), begun);
    assert_eq!(gate.ended(), begun - 1, "a pass is in the device");
    StagedCall { served, call: CallOnce(Some(call)), id, number, other, begun }
}

impl CancelStage {
    const ALL: [Self; 3] = [Self::Waiting, Self::Prefilling, Self::Decoding];
    const IN_THE_DEVICE: [Self; 2] = [Self::Prefilling, Self::Decoding];

    fn cancellations(self, cause: &str) -> String {
        let stage = format!("{self:?}").to_lowercase();
        format!("cancellations_total{{cause=\"{cause}\",stage=\"{stage}\"}}")
    }

    fn row(self) -> RowKind {
        if self == Self::Decoding { RowKind::Decode } else { RowKind::Prefill }
    }
}

/// Every way to ask, at each of these stages, alone and in a batch.
fn stories(stages: &[CancelStage]) -> impl Iterator<Item = (&'static ApiCall, CancelStage, Mode)> {
    API_CALLS.iter().flat_map(move |way| {
        let modes = [Mode::Simple, Mode::Batched];
        stages.iter().flat_map(move |&stage| modes.map(|mode| (way, stage, mode)))
    })
}

/// The pass in the device is let go: the next to enter has the request behind the one that was
/// cancelled, which is served, and the device never held two. Who was there before gets it all.
async fn the_next_is_served(staged: StagedCall, behind: Call) {
    let StagedCall { served, number, other, begun, id, .. } = staged;
    let gate = &served.rig.gate;
    assert_eq!(gate.ended(), begun - 1, "the pass is still in the device");
    gate.let_through(1);
    gate.wait_begun(begun + 1);
    gate.step_until(|rows| {
        assert!(rows.iter().all(|row| row.request != number), "{id} is in the device again");
        rows.contains(&RowSeen { request: number + 1, kind: RowKind::Prefill })
    });
    gate.open();
    let answer = behind.answer().await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    if let Some(other) = other {
        let answer = other.answer().await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        assert!(answer.contains(&format!("\"completion_tokens\":{OTHER_TOKENS}")), "{answer}");
    }
    assert_eq!(gate.in_flight_max(), 1, "the device never held two passes");
    assert_eq!(served.rig.metric("engine_passes_in_flight_max"), 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_lets_nobody_in_before_its_pass_has_ended() {
    for (way, stage, mode) in stories(&CancelStage::IN_THE_DEVICE) {
        let mut staged = bring_to(stage, mode, way, "leaves").await;
        let id = staged.id.clone();
        let metrics = staged.served.rig.registry.clone();
        staged.call.take().leave();
        Logs::captured().wait_for(&["client left", &id]);
        let behind = staged.served.post("/v1/completions", &format!("behind-{id}"), SHORT).await;
        staged.served.rig.gate.watch_none_begin();
        the_next_is_served(staged, behind).await;
        let metric = |line: &str| metric(&metrics.expose().expect("exposes"), line);
        assert_eq!(metric(&stage.cancellations("disconnect")), 1.0, "{id}");
        assert_eq!(metric("cancelled_pass_completions_total"), 1.0, "{id}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_while_waiting_never_reaches_the_device() {
    for (way, stage, mode) in stories(&[CancelStage::Waiting]) {
        let mut staged = bring_to(stage, mode, way, "leaves").await;
        staged.call.take().leave();
        let StagedCall { served, id, other, number, .. } = staged;
        Logs::captured().wait_for(&["client left", &id]);
        served.rig.gate.open();
        let answer = other.expect("one occupies the device").answer().await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        Logs::captured().wait_for(&["request ended", &id, "disconnected"]);
        let rows = served.rig.gate.begun().into_iter().flatten().collect::<Vec<_>>();
        assert!(rows.iter().all(|row| row.request != number), "{id}");
        assert_eq!(served.rig.metric(&stage.cancellations("disconnect")), 1.0, "{id}");
    }
}

/// What may lie in a socket behind a request whose client leaves.
fn behind() -> [(&'static str, Vec<u8>); 5] {
    let post = |body: &str| {
        let head = "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length:";
        format!("{head} {}\r\n\r\n{body}", body.len()).into_bytes()
    };
    [
        ("nothing", vec![]),
        ("a line's end", b"\r\n".to_vec()),
        ("a request", post(SHORT)),
        ("half a request", b"POST /v1/completions HTTP/1.1\r\nhost: in".to_vec()),
        // More than the system holds for whoever does not read, and than the server does.
        ("a megabyte", post(&SHORT.replace('x', &"x".repeat(1 << 20)))),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_is_seen_whatever_lies_in_its_socket() {
    // Whole and streaming; that all endpoints are alike in this is told above.
    for way in &API_CALLS[4..] {
        for (stage, leaving) in
            CancelStage::ALL.iter().flat_map(|stage| Leaving::ALL.map(|by| (*stage, by)))
        {
            for (what, bytes) in behind() {
                let story = format!("{leaving:?}-{}", what.replace([' ', '\''], "-"));
                let mut staged = bring_to(stage, Mode::Batched, way, &story).await;
                let mut call = staged.call.take();
                call.send(&bytes).await;
                let left = call.leave_by(leaving).await;
                let StagedCall { served, id, number, other, begun, .. } = staged;
                Logs::captured().wait_for(&["client left", &id]);
                let gate = &served.rig.gate;
                assert_eq!(gate.ended(), begun - 1, "known while the pass is in the device: {id}");
                gate.open();
                if let Some(half) = left {
                    let said = half.answer_if_any().await;
                    let ends = ["[DONE]", "completion_tokens"];
                    assert!(!ends.iter().any(|end| said.contains(end)), "{id} was given: {said}");
                }
                let answer = other.expect("a batch has another request").answer().await;
                assert!(
                    answer.contains(&format!("\"completion_tokens\":{OTHER_TOKENS}")),
                    "{answer}"
                );
                Logs::captured().wait_for(&["request ended", &id, "disconnected"]);
                let later = gate.begun().split_off(begun);
                let computed = later.iter().flatten().any(|row| row.request == number);
                assert!(!computed, "{id} is in the device again");
                assert_eq!(served.rig.metric(&stage.cancellations("disconnect")), 1.0, "{id}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_who_cancels_twice_is_answered_at_once_and_lets_nobody_in_early() {
    for (way, stage, mode) in stories(&CancelStage::ALL) {
        let mut staged = bring_to(stage, mode, way, "operator").await;
        let id = staged.id.clone();
        let metrics = staged.served.rig.registry.clone();
        for _ in 0..2 {
            let path = format!("/v1/requests/{id}/cancel");
            let answer = staged.served.post(&path, "operator", "").await.answer().await;
            assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        }
        // The client hears of it while the pass is still in the device.
        let told = staged.call.take().answer().await;
        assert_eq!(staged.served.rig.gate.ended(), staged.begun - 1);
        assert!(told.contains("request_cancelled"), "{id}: {told}");
        let behind = staged.served.post("/v1/completions", &format!("behind-{id}"), SHORT).await;
        staged.served.rig.gate.watch_none_begin();
        if stage == CancelStage::Waiting {
            staged.number = usize::MAX; // the device never hears of it
            staged.served.rig.gate.open();
            let other = staged.other.take().expect("one occupies the device").answer().await;
            assert!(other.starts_with("HTTP/1.1 200"), "{other}");
            assert!(behind.answer().await.starts_with("HTTP/1.1 200"));
            assert_eq!(staged.served.rig.gate.in_flight_max(), 1);
        } else {
            the_next_is_served(staged, behind).await;
        }
        let metric = |line: &str| metric(&metrics.expose().expect("exposes"), line);
        assert_eq!(metric(&stage.cancellations("operator")), 1.0, "{id}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pass_that_fails_after_its_client_left_is_in_the_log_and_the_metric() {
    for (way, stage, mode) in stories(&CancelStage::IN_THE_DEVICE) {
        let mut staged = bring_to(stage, mode, way, "fails").await;
        let id = staged.id.clone();
        let metrics = staged.served.rig.registry.clone();
        staged.call.take().leave();
        Logs::captured().wait_for(&["client left", &id]);
        staged.served.rig.gate.fail_next();
        let behind = staged.served.post("/v1/completions", &format!("behind-{id}"), SHORT).await;
        the_next_is_served(staged, behind).await;
        let metric = |line: &str| metric(&metrics.expose().expect("exposes"), line);
        assert_eq!(metric("cancelled_pass_failures_total"), 1.0, "{id}");
        let said = ["ERROR", &id, "pass failed after its request was cancelled"];
        assert_eq!(Logs::captured().lines_with(&said).len(), 1, "{id}");
        let ended = ["request ended", &format!("request={id} "), "disconnected"];
        Logs::captured().wait_for(&ended);
        assert_eq!(Logs::captured().lines_with(&ended).len(), 1, "one terminal line: {id}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_whose_pass_fails_is_told_so_and_the_next_is_served() {
    for (way, stage, mode) in stories(&CancelStage::IN_THE_DEVICE) {
        let mut staged = bring_to(stage, mode, way, "failing").await;
        let id = staged.id.clone();
        let gate = staged.served.rig.gate.clone();
        gate.fail_whenever(staged.number);
        let behind = staged.served.post("/v1/completions", &format!("behind-{id}"), SHORT).await;
        gate.open();
        let told = staged.call.take().answer().await;
        assert!(told.contains("internal_error") && told.contains(&id), "{id}: {told}");
        assert!(!told.contains("the gate was told"), "what failed inside stays inside: {told}");
        for call in [Some(behind), staged.other].into_iter().flatten() {
            let answer = call.answer().await;
            assert!(answer.starts_with("HTTP/1.1 200"), "{id}: {answer}");
        }
    }
}
