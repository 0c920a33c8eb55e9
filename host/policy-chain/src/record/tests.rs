use std::sync::Mutex;

use super::*;
use crate::testing::{Fake, SERIAL, body, caller, facts, generation, id, let_in, prompt};
use crate::{
    ChainEntry, ChainShared, LimitsConfig, PolicyChain, PolicyMetrics, RecordBounds, at_once,
};
use interlock_policy_api::{
    Admission, Choice, Code, Edits, Headers, Identified, Identity, PlanProposal, Transformed,
};

#[derive(Default)]
struct Kept(Mutex<Vec<Record>>);

impl RecordSink for Kept {
    fn take(&self, record: Record) {
        self.0.lock().unwrap().push(record);
    }
}

fn chain(entries: Vec<ChainEntry>) -> (Arc<PolicyChain>, Arc<Kept>) {
    let kept = Arc::new(Kept::default());
    let metrics = PolicyMetrics::register(&interlock_metrics::Registry::new());
    let shared = ChainShared::in_line(metrics).recording(Arc::clone(&kept) as Arc<dyn RecordSink>);
    (Arc::new(PolicyChain::new(entries, LimitsConfig::default().ceilings(), shared)), kept)
}

fn secretive() -> Headers {
    let pair = |name: &str| (name.to_owned(), "s3cret".to_owned());
    let mut headers: Vec<_> = SECRET.into_iter().map(pair).collect();
    headers.extend(["api-key", "X-Auth-Token", "ocp-apim-subscription-key"].map(pair));
    headers.push(("x-tenant".into(), "acme".into()));
    Headers(headers)
}

/// A policy that takes part in all that is recorded.
fn busy(tokens_max: u32) -> Fake {
    let proposal = PlanProposal { tokens_max: Some(tokens_max), ..PlanProposal::default() };
    Fake {
        identify: Some(Box::new(|_| {
            let identity = Identity { tenant: "acme".into(), ..Identity::default() };
            Ok(Identified::Known(identity, Code::from("known")))
        })),
        transform: Some(Box::new(|_, _| {
            Ok(Transformed::Edit(Edits {
                set_headers: vec![("Authorization".into(), "s3cret".into())],
                remove_headers: vec![],
                answer_headers: vec![],
                model: Some("better".into()),
                code: Code::default(),
            }))
        })),
        route: Some(Box::new(|_| Ok(Choice::Scores(vec![(0, f32::NAN)], Code::default())))),
        ..Fake::admitting("p", let_in(Admission { proposal, ..Admission::default() }))
    }
}

fn somewhere() -> Candidate {
    Candidate {
        id: 0,
        model: interlock_request::ModelId::new("m"),
        asked: true,
        ready: true,
        context: 100,
        load: Load::default(),
        prefix_seen: false,
        first_token: Some(std::time::Duration::from_millis(20)),
        inter_token: None,
    }
}

/// What a policy is told and no record keeps.
const PREFIX_KEY: u64 = 9_753_186_420;

fn ask(chain: &Arc<PolicyChain>) -> Result<(), PolicyRefusal> {
    let mut review = chain.review(SERIAL, id());
    at_once(review.identify(&Caller { headers: secretive(), ..caller() }))?;
    let mut facts = Facts { headers: secretive(), prefix_key: PREFIX_KEY, ..facts() };
    at_once(review.transform(&mut facts, &body()))?;
    at_once(review.route(&facts, &[somewhere()], &body()))?;
    at_once(review.admit(facts, &Load::default(), prompt(), generation(), &body())).map(|_| ())
}

#[test]
fn a_request_is_recorded_once_and_reads_as_it_was_written() {
    let (chain, kept) = chain(vec![busy(10).entry()]);
    ask(&chain).expect("it admits");
    let records = kept.0.lock().unwrap();
    let [record] = records.as_slice() else { panic!("{records:?}") };
    let phases: Vec<_> = record.steps.iter().map(|step| step.asked.phase()).collect();
    assert_eq!(phases, [Phase::Identify, Phase::Transform, Phase::Route, Phase::Admit]);
    assert!(matches!(record.verdict, Ruling::Admitted { tokens_max: 10, .. }));
    let line = serde_json::to_string(record).expect("it can be written");
    assert_eq!(&serde_json::from_str::<Record>(&line).expect("and read"), record);
}

#[test]
fn no_secret_header_is_recorded_whoever_was_granted_it() {
    let (chain, kept) = chain(vec![busy(10).entry()]);
    ask(&chain).expect("it admits");
    let line = serde_json::to_string(&*kept.0.lock().unwrap()).expect("it can be written");
    assert!(line.contains("x-tenant"), "{line}");
    assert!(!line.contains("s3cret"), "{line}");
}

#[test]
fn no_hash_of_a_prompt_is_recorded() {
    let (chain, kept) = chain(vec![busy(10).entry()]);
    ask(&chain).expect("it admits");
    let line = serde_json::to_string(&*kept.0.lock().unwrap()).expect("it can be written");
    assert!(!line.contains(&PREFIX_KEY.to_string()), "{line}");
    assert_eq!(line.matches(r#""prefix_key":0"#).count(), 3, "{line}");
}

#[test]
fn a_record_of_a_host_that_kept_the_hash_is_still_read() {
    let (chain, kept) = chain(vec![busy(10).entry()]);
    ask(&chain).expect("it admits");
    let line = serde_json::to_string(&kept.0.lock().unwrap()[0]).expect("it can be written");
    let old = line.replace(r#""prefix_key":0"#, &format!(r#""prefix_key":{PREFIX_KEY}"#));
    let read: Record = serde_json::from_str(&old).expect("it can be read");
    let PhaseQuestion::Admit { facts, .. } = &read.steps[3].asked else { panic!("{read:?}") };
    assert_eq!(facts.prefix_key, PREFIX_KEY);
}

#[test]
fn a_record_says_who_refused_and_a_request_that_came_to_nothing_is_open() {
    let fake = Fake { identify: Some(Box::new(|_| Ok(Identified::Unknown))), ..Fake::named("p") };
    let (nobody, kept) = chain(vec![fake.entry()]);
    ask(&nobody).expect_err("nobody knows it");
    let refused = Ruling::Refused {
        policy: PolicyRefusal::HOST.into(),
        phase: Phase::Identify,
        code: "unidentified".into(),
        status: 401,
    };
    assert_eq!(kept.0.lock().unwrap()[0].verdict, refused);

    let (chain, kept) = chain(vec![busy(10).entry()]);
    let mut review = chain.review(SERIAL, id());
    at_once(review.identify(&caller())).expect("it is known");
    drop(review);
    assert_eq!(kept.0.lock().unwrap()[0].verdict, Ruling::Open);
}

#[test]
fn a_recorded_question_can_be_put_to_another_policy() {
    let (chain, kept) = chain(vec![busy(10).entry()]);
    ask(&chain).expect("it admits");
    let record = kept.0.lock().unwrap()[0].clone();
    let step = record.steps.last().expect("admit");
    assert_eq!(step.asked.ask(&busy(10)), Some(step.decisions[0].decision.clone()));
    let other = step.asked.ask(&busy(20)).expect("it admits");
    assert_ne!(other, step.decisions[0].decision);
    assert_eq!(step.asked.ask(&Fake::named("idle")), None);
}

/// A file that is gone when the test is.
struct Scratch(std::path::PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let name = format!("interlock-records-{}-{name}", std::process::id());
        Self(std::env::temp_dir().join(name))
    }

    fn pipe(name: &str) -> Self {
        let scratch = Self::new(name);
        let made = std::process::Command::new("mkfifo").arg(&scratch.0).status();
        assert!(made.expect("mkfifo runs").success());
        scratch
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// More than these tests write.
const LARGE: RecordBounds = RecordBounds { bytes_max: 1 << 30, kept: 0 };

/// Asks so often that the records fit nowhere; how many were lost.
fn recorded_in(path: &std::path::Path) -> u64 {
    let metrics = PolicyMetrics::register(&interlock_metrics::Registry::new());
    let file = Arc::new(RecordFile::open(path, LARGE, &metrics).expect("it opens"));
    let shared = ChainShared::new(metrics.clone()).recording(file);
    let ceilings = LimitsConfig::default().ceilings();
    let chain = Arc::new(PolicyChain::new(vec![busy(10).entry()], ceilings, shared));
    for _ in 0..20_000 {
        ask(&chain).expect("it admits");
    }
    drop(chain);
    metrics.records_dropped.get()
}

/// One that waited for the reader would wait for ever, here or at the end.
#[test]
fn a_pipe_that_is_not_read_costs_records_and_holds_up_nobody() {
    let pipe = Scratch::pipe("unread");
    // Reading and writing, so that the opening of it waits for nobody.
    let reader = std::fs::OpenOptions::new().read(true).write(true).open(&pipe.0);
    let lost = recorded_in(&pipe.0);
    assert!((1..20_000).contains(&lost), "{lost} lost");
    drop(reader.expect("it opens"));
}

#[test]
fn a_pipe_without_a_reader_is_found_at_the_start() {
    let pipe = Scratch::pipe("lonely");
    let metrics = PolicyMetrics::register(&interlock_metrics::Registry::new());
    let refused = RecordFile::open(&pipe.0, LARGE, &metrics).expect_err("nobody reads it");
    assert_eq!(refused.to_string(), "it is a pipe that nobody reads, or a socket");
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_costs_all_records_and_each_is_counted() {
    assert_eq!(recorded_in("/dev/full".as_ref()), 20_000);
}

#[test]
fn the_file_holds_a_line_for_each_request_and_only_its_owner_reads_it() {
    let scratch = Scratch::new("file");
    let path = &scratch.0;
    let metrics = PolicyMetrics::register(&interlock_metrics::Registry::new());
    let file = Arc::new(RecordFile::open(path, LARGE, &metrics).expect("a file"));
    let shared = ChainShared::new(metrics).recording(file);
    let ceilings = LimitsConfig::default().ceilings();
    let chain = Arc::new(PolicyChain::new(vec![busy(10).entry()], ceilings, shared));
    for _ in 0..100 {
        ask(&chain).expect("it admits");
    }
    // The last handle waits for what is still to be written.
    drop(chain);
    let text = std::fs::read_to_string(path).expect("it is there");
    let records: Vec<Record> =
        text.lines().map(|line| serde_json::from_str(line).expect(line)).collect();
    assert_eq!(records.len(), 100);
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let mode = std::fs::metadata(path).expect("it is there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}
