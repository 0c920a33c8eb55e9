//! What a policy says stands in the host's log: whose it is, about which request, and not more
//! than it may. A test binary of its own, since it listens to the whole process.

use std::io;
use std::sync::{Arc, Mutex};

use interlock_admission::Policy as _;
use interlock_policy::limits::LOG_BURST;

mod common;
use common::{admit, facts, load, misbehaves, summary, told};

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

#[test]
fn a_policys_lines_are_tagged_and_bounded() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber =
        tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
    let _listening = tracing::subscriber::set_default(subscriber);

    let mut config = misbehaves();
    config.deadline = std::time::Duration::from_secs(1);
    let policy = load(&config).expect("it is fine so far");
    policy
        .account(told(&facts("repeat the summary")), &summary())
        .expect("nothing wrong with that");
    admit(&*policy, "shout").expect("a decision all the same");

    let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    let summary = text.lines().find(|line| line.contains("Summary {")).expect("it repeated it");
    assert!(summary.contains("generated-tokens: 7"), "{summary}");
    assert!(summary.contains("Outcome::Completed(Finish::Stop)"), "{summary}");
    assert!(summary.contains(r#"policy="p" request="r-1""#), "{summary}");
    let shouted = text.lines().filter(|line| line.contains(" line ")).count();
    assert!((1..1000).contains(&shouted), "{shouted} of 10000 lines, {LOG_BURST} at once");
}
