//! What a policy says stands in the host's log: whose it is, about which request, and not more
//! than it may. A test binary of its own, since it listens to the whole process.

use std::io;
use std::pin::pin;
use std::sync::{Arc, Mutex, Once};
use std::task::{Context, Poll, Wake};
use std::thread;
use std::time::Duration;

use interlock_policy_api::{Policy as _, Prompt};
use interlock_policy_chain::{LimitsConfig, Policies, PolicyMetrics};
use interlock_policy_wasm::PolicyConfig;
use interlock_policy_wasm::limits::LOG_BURST;
use interlock_request::{Generation, Priority, Sampling};

mod common;
use common::{
    LOAD, admit, admitted, body, config, facts, grants, guest, host, load, misbehaves, summary,
    told,
};

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Listens while `run` runs, and returns what stands in the log then.
fn listening(run: impl FnOnce()) -> String {
    // A place in the code that is first met by another test's thread, where nobody listens, would
    // be taken for one that nobody wants to hear of. So somebody listens everywhere.
    static EVERYWHERE: Once = Once::new();
    EVERYWHERE.call_once(|| tracing_subscriber::fmt().with_writer(io::sink).init());
    let log = Log::default();
    let writer = log.clone();
    let subscriber =
        tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
    tracing::subscriber::with_default(subscriber, run);
    String::from_utf8(log.0.lock().unwrap().clone()).expect("UTF-8")
}

#[test]
fn a_policys_lines_are_tagged_and_bounded() {
    let mut config = misbehaves();
    config.deadline = Duration::from_secs(1);
    let text = listening(|| {
        let policy = load(&config).expect("it is fine so far");
        let account = policy.account(told(&facts("repeat the summary")), &summary());
        account.expect("nothing wrong with that");
        admit(&*policy, "shout").expect("a decision all the same");
    });
    let summary = text.lines().find(|line| line.contains("Summary {")).expect("it repeated it");
    assert!(summary.contains("generated-tokens: 7"), "{summary}");
    assert!(summary.contains("Outcome::Completed(Finish::Stop)"), "{summary}");
    assert!(summary.contains(r#"policy="p" request="r-1""#), "{summary}");
    let shouted = text.lines().filter(|line| line.contains(" line ")).count();
    assert!((1..1000).contains(&shouted), "{shouted} of 10000 lines, {LOG_BURST} at once");
}

fn hostile() -> PolicyConfig {
    let all =
        ["state", "metrics", "headers:x-tenant", "content:read:/messages", "http:127.0.0.1:1"];
    let deadline = Duration::from_millis(100);
    PolicyConfig { grants: grants(&all), deadline, ..config("p", guest("guest-hostile")) }
}

#[test]
fn lines_without_end_are_dropped_and_do_no_harm() {
    let text = listening(|| {
        let config = PolicyConfig { deadline: Duration::from_secs(1), ..hostile() };
        let policy = load(&config).expect("it is fine so far");
        admitted(&*policy, "storm of lines");
    });
    let lines = text.lines().filter(|line| line.contains(" line ")).count();
    assert!((LOG_BURST as usize..1000).contains(&lines), "{lines} of 10000, {LOG_BURST} at once");
}

/// Asks a chain of this policy to admit a request called that.
fn ask(policies: &Policies, model: &str) {
    let facts = facts(model);
    let review = policies.current().review(facts.serial, facts.request_id.clone());
    let generation = Generation {
        sampling: Sampling::greedy(),
        tokens_max: 50,
        tokens_min: 0,
        stop_tokens: vec![],
        logprobs: None,
        priority: Priority::Standard,
    };
    let prompt = Prompt::new(vec![1]).expect("a token");
    let body = Arc::new(body());
    let refused = block_on(review.admit(facts, &LOAD, prompt, generation, &body));
    assert!(refused.is_err(), "{model:?} was admitted");
}

/// The policy asks others, so it is asked on a thread of its own, and somebody has to wait.
fn block_on<T>(future: impl Future<Output = T>) -> T {
    struct Unpark(thread::Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Arc::new(Unpark(thread::current())).into();
    let (mut future, mut context) = (pin!(future), Context::from_waker(&waker));
    loop {
        match future.as_mut().poll(&mut context) {
            Poll::Ready(done) => return done,
            Poll::Pending => thread::park(),
        }
    }
}

#[test]
fn each_crime_is_counted_by_its_kind_and_stands_in_the_log() {
    let crimes = [
        ("panic", "trap"),
        ("recurse", "trap"),
        ("count backwards", "trap"),
        ("spin", "deadline"),
        ("grow", "memory"),
        ("storm", "host_calls"),
        ("a giant line", "bad_output"),
        ("a reason of its own", "bad_output"),
        ("headers without end", "bad_output"),
    ];
    let (host, registry) = host();
    let config = hostile();
    let policy = host.load(&config).expect("it is fine so far");
    let ceilings = LimitsConfig::default().ceilings();
    let policies = Policies::new(
        vec![config.chain_entry(policy)],
        ceilings,
        PolicyMetrics::register(&registry),
    );
    let counted = |kind: &str| {
        let series = r#"interlock_policy_failures_total{kind="KIND",phase="admit",policy="p"} "#;
        let series = series.replace("KIND", kind);
        let text = registry.expose().expect("it can be read");
        let line = text.lines().find_map(|line| line.strip_prefix(&series).map(str::to_owned));
        line.map_or(0, |count| count.parse().expect("a number"))
    };
    for (what, kind) in crimes {
        let before: u64 = counted(kind);
        let log = listening(|| ask(&policies, what));
        assert_eq!(counted(kind), before + 1, "{what}");
        let line = log.lines().find(|line| line.contains("policy gave no decision"));
        let line = line.unwrap_or_else(|| panic!("{what} stands not in the log: {log}"));
        for said in ["WARN", "policy=p", "phase=\"admit\"", &format!("failure={kind}: ")] {
            assert!(line.contains(said), "{what}: no {said} in {line}");
        }
    }
}
