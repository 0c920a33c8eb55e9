//! What operators are told: the log line of a refusal, and metrics that are there beforehand.

use std::io;
use std::sync::{Arc, Mutex, Once};

use interlock_policy_api::{Decision, Reason, Rejection};

use crate::rig::{Rig, Setup};

/// Where a test's log goes.
#[derive(Clone, Default)]
struct Paper(Arc<Mutex<Vec<u8>>>);

impl io::Write for Paper {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().expect("nobody panicked").write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Paper {
    /// The lines that say this, without the time.
    fn lines(&self, saying: &str) -> Vec<String> {
        let written = self.0.lock().expect("nobody panicked").clone();
        let written = String::from_utf8(written).expect("UTF-8");
        written.lines().filter(|line| line.contains(saying)).map(str::to_owned).collect()
    }
}

/// Writes this thread's log for as long as the guard lives.
fn logged() -> (Paper, tracing::subscriber::DefaultGuard) {
    logged_from(tracing::Level::INFO)
}

/// The same, with what is this important or more.
fn logged_from(level: tracing::Level) -> (Paper, tracing::subscriber::DefaultGuard) {
    // A place in the code that is first met by another test's thread, where nobody listens, would be
    // taken for one that nobody wants to hear of. So somebody listens everywhere.
    static EVERYWHERE: Once = Once::new();
    EVERYWHERE.call_once(|| tracing_subscriber::fmt().with_writer(io::sink).init());
    let paper = Paper::default();
    let writer = paper.clone();
    let log = tracing_subscriber::fmt().with_ansi(false).without_time().with_target(false);
    let log = log.with_max_level(level).with_writer(move || writer.clone()).finish();
    (paper, tracing::subscriber::set_default(log))
}

// On one thread, which is the one whose log is read.
#[tokio::test]
async fn an_end_is_one_line_that_counts_the_tokens() {
    let (paper, _guard) = logged();
    let mut rig = Rig::start().await;
    let body = r#"{"model":"sim","prompt":"x","max_tokens":3}"#;
    assert_eq!(rig.begin("/v1/completions", "r", body).await.answer().await.status, 200);
    rig.ended().await;
    let lines = paper.lines("request ended request=r ");
    let [line] = &lines[..] else { panic!("one line, got {lines:?}") };
    let counts =
        r#"outcome="completed" why="length" prompt_tokens=2 cached_tokens=0 generated_tokens=3"#;
    assert!(line.contains(counts), "{line}");
}

// On one thread, which is the one whose log is read.
#[tokio::test]
async fn a_refusal_is_one_line_that_says_where_and_why_and_nothing_of_the_clients() {
    let (paper, _guard) = logged();
    let reason = Reason { code: "quota_spent".into(), detail: None };
    let decision =
        Decision::Reject(Rejection { status: 429, reason, retry_after: None, headers: vec![] });
    let rig = Rig::with(Setup { decision, ..Setup::default() }).await;
    let long = format!("/{}", "x".repeat(300));
    let stories = [
        ("/v1/completions", r#"{"model":"sim","prompt":"x"}"#),
        ("/v1/completions", r#"{"model":"sim","prompt":"x","top_p":7.25}"#),
        ("/v1/responses", r#"{"model":"sim","input":"x","metadata":{"secret":7}}"#),
        (&long, ""),
    ];
    for (path, body) in stories {
        rig.begin(path, "r", body).await.answer().await;
    }
    let lines = paper.lines("request=r ");
    let said = |fields: &str| format!(" INFO request answered with an error request=r {fields}");
    let nothing = format!(r#"method=POST path="/{}" status=404"#, "x".repeat(199));
    assert_eq!(
        lines,
        [
            said(
                r#"method=POST path="/v1/completions" status=429 code="quota_spent" reason="policy" policy="witness""#
            ),
            said(
                r#"method=POST path="/v1/completions" status=400 code="invalid_value" reason="invalid_request" param="top_p""#
            ),
            said(
                r#"method=POST path="/v1/responses" status=400 code="invalid_type" reason="invalid_request" param="metadata""#
            ),
            said(&format!(r#"{nothing} code="unknown_url" reason="unknown_url""#)),
        ]
    );
}

// On one thread, which is the one whose log is read.
#[tokio::test]
async fn ignored_fields_are_named_at_level_debug_and_above_it_never() {
    let body = r#"{"model":"sim","prompt":"x","max_tokens":1,"frob":1,"mood":2}"#;
    for (level, lines_expected) in [(tracing::Level::DEBUG, 1), (tracing::Level::INFO, 0)] {
        let (paper, _guard) = logged_from(level);
        let mut rig = Rig::start().await;
        assert_eq!(rig.begin("/v1/completions", "r", body).await.answer().await.status, 200);
        rig.ended().await;
        assert_eq!(paper.lines("request ended request=r ").len(), 1, "it is heard");
        let lines = paper.lines("frob");
        assert_eq!(lines.len(), lines_expected, "{lines:?}");
        assert!(lines.iter().all(|line| line.contains("request=r fields=frob, mood")), "{lines:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_counted_is_there_at_0_before_it_happens() {
    let rig = Rig::start().await;
    let there = rig.get("/metrics").await.body;
    for line in [
        r#"http_refusals_total{reason="policy"} 0"#,
        r#"http_refusals_total{reason="waiting_room_full"} 0"#,
        r#"request_duration_seconds_count{endpoint="chat"} 0"#,
        r#"requests_total{endpoint="responses",model="sim",outcome="failed"} 0"#,
    ] {
        assert!(there.contains(&format!("interlock_{line}\n")), "{line} in {there}");
    }
}
