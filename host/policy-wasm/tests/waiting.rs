//! Policies that wait for others, or compute for long, hold up nobody but those who wait for them.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use interlock_metrics::Registry;
use interlock_policy_api::{Body, CallTime, Caller, Facts, Identity, Load, Policy as _, Prompt};
use interlock_policy_chain::{
    AdmissionOutcome, ChainShared, LimitsConfig, PolicyChain, PolicyMetrics, PolicyRefusal, at_once,
};
use interlock_policy_wasm::{PolicyConfig, PolicyHost, Services, default_policies};
use interlock_request::{Generation, Priority, Sampling};
use interlock_state::{State, StateConfig};

mod common;
use common::{caller, config, facts, grants, guest, settings};

/// A Redis that answers whatever is asked with "ok, 1", or with nothing until the test wants it.
#[derive(Clone)]
struct FakeRedis {
    url: String,
    inner: Arc<(Mutex<Inner>, Condvar)>,
}

#[derive(Default)]
struct Inner {
    holds: bool,
    /// Calls that wait for their answer.
    held: usize,
    /// Scripts by the name that they are called by.
    scripts: Vec<(String, String)>,
    /// What was called, by a piece of its script.
    called: Vec<String>,
}

impl FakeRedis {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let url = format!("redis://{}", listener.local_addr().expect("an address"));
        let fake = Self { url, inner: Arc::default() };
        let serving = fake.clone();
        thread::spawn(move || {
            for connection in listener.incoming().flatten() {
                let serving = serving.clone();
                thread::spawn(move || serving.serve(&connection));
            }
        });
        fake
    }

    /// The longest that a call may wait, as an operator may set it.
    fn state(&self) -> State {
        let store = self.url.parse().expect("a URL");
        let timeout = Duration::from_secs(1);
        State::open(&StateConfig { store, timeout, ..StateConfig::default() }).expect("it answers")
    }

    fn serve(&self, connection: &TcpStream) {
        let mut read = BufReader::new(connection);
        while let Some(command) = command(&mut read) {
            let answer = match command[0].to_ascii_uppercase().as_str() {
                "SCRIPT" => {
                    let name = sha1_smol::Sha1::from(&command[2]).digest().to_string();
                    let answer = format!("${}\r\n{name}\r\n", name.len());
                    self.inner.0.lock().unwrap().scripts.push((name, command[2].clone()));
                    answer
                }
                "EVALSHA" => {
                    self.call(&command[1]);
                    "*2\r\n$2\r\nok\r\n$1\r\n1\r\n".into()
                }
                _ => "+OK\r\n".into(),
            };
            let mut write = connection;
            if write.write_all(answer.as_bytes()).is_err() {
                return;
            }
        }
    }

    fn call(&self, name: &str) {
        let (inner, changed) = &*self.inner;
        let mut inner = inner.lock().unwrap();
        let script = inner.scripts.iter().find(|(it, _)| it == name);
        let script = script.map(|(_, script)| script.clone()).expect("it was loaded");
        inner.called.push(script);
        inner.held += 1;
        let mut inner = changed.wait_while(inner, |inner| inner.holds).unwrap();
        inner.held -= 1;
    }

    fn hold(&self, holds: bool) {
        self.inner.0.lock().unwrap().holds = holds;
        self.inner.1.notify_all();
    }

    fn held(&self) -> usize {
        self.inner.0.lock().unwrap().held
    }

    /// How often this script was called.
    fn called(&self, script: &str) -> usize {
        let inner = self.inner.0.lock().unwrap();
        inner.called.iter().filter(|called| called.ends_with(script)).count()
    }
}

/// A command as clients send it: an array of texts.
fn command(read: &mut BufReader<&TcpStream>) -> Option<Vec<String>> {
    let mut line = || {
        let mut line = String::new();
        read.read_line(&mut line).ok().filter(|bytes| *bytes > 0)?;
        line.trim_end()[1..].parse::<usize>().ok()
    };
    let parts = line()?;
    let mut command = Vec::new();
    for _ in 0..parts {
        let mut line = String::new();
        read.read_line(&mut line).ok()?;
        let mut text = vec![0; line.trim_end()[1..].parse::<usize>().ok()? + 2];
        read.read_exact(&mut text).ok()?;
        text.truncate(text.len() - 2);
        command.push(String::from_utf8_lossy(&text).into_owned());
    }
    Some(command)
}

const LEAVE: &str = include_str!("../../state/src/redis/leave.lua");

/// A host with this state.
fn host(state: State) -> PolicyHost {
    let services = Services { state, registry: &Registry::new(), cache: None };
    PolicyHost::with(services).expect("WebAssembly works here")
}

fn quota(limits: &str) -> PolicyConfig {
    PolicyConfig {
        grants: grants(&["state", "metrics"]),
        settings: settings(&format!(r#"{{"anonymous": "everyone", "limits": {limits}}}"#)),
        ..config("quota", guest("quota"))
    }
}

fn chain(host: &PolicyHost, config: &PolicyConfig, shared: &ChainShared) -> Arc<PolicyChain> {
    let policy = host.load(config).unwrap_or_else(|why| panic!("{why}"));
    let ceilings = LimitsConfig::default().ceilings();
    Arc::new(PolicyChain::new(vec![config.chain_entry(policy)], ceilings, shared.clone()))
}

fn shared() -> ChainShared {
    ChainShared::new(PolicyMetrics::register(&Registry::new()))
}

async fn identify(chain: Arc<PolicyChain>, serial: u64) -> Result<Identity, PolicyRefusal> {
    let caller = Caller { serial, ..caller("x") };
    chain.review(serial, caller.request_id.clone()).identify(&caller).await
}

async fn admit(chain: Arc<PolicyChain>, facts: Facts) -> Result<AdmissionOutcome, PolicyRefusal> {
    let generation = Generation {
        sampling: Sampling::greedy(),
        tokens_max: 50,
        tokens_min: 0,
        stop_tokens: vec![],
        logprobs: None,
        priority: Priority::Standard,
    };
    let prompt = Prompt::new(vec![1]).expect("a token");
    let review = chain.review(facts.serial, facts.request_id.clone());
    let body = Arc::new(Body::new(b"{}".to_vec()));
    review.admit(facts, &Load::default(), prompt, generation, &body).await
}

async fn until(what: impl Fn() -> bool) {
    let patience = Instant::now() + Duration::from_secs(60);
    while !what() {
        assert!(Instant::now() < patience, "it does not happen");
        tokio::task::yield_now().await;
    }
}

/// It was waited for on the threads that serve: one silent Redis, and nobody was served for as long
/// as `state.timeout` says. Here one thread serves everyone. A machine that is busy enough may give
/// up on Redis before it looks; then it tries again, with a Redis that is not given up on yet. With
/// a call on that thread it could try for ever, since it only ever looks when that is over.
#[tokio::test]
async fn a_redis_that_does_not_answer_holds_up_no_thread_that_serves() {
    let shared = shared();
    for attempt in 1.. {
        assert!(attempt <= 10, "whenever this thread comes round, the call is over");
        let redis = FakeRedis::start();
        let host = host(redis.state());
        let waits = chain(&host, &quota(r#"{"requests_per_minute": 1000}"#), &shared);
        let fine = chain(&host, &default_policies()[0], &shared);
        identify(Arc::clone(&waits), 0).await.expect("it answers");
        redis.hold(true);
        let first = tokio::spawn(identify(Arc::clone(&waits), 1));
        until(|| redis.held() > 0 || first.is_finished()).await;
        if first.is_finished() {
            continue;
        }
        let crowd: Vec<_> =
            (2..200).map(|serial| tokio::spawn(identify(Arc::clone(&waits), serial))).collect();
        for serial in 1000..1100 {
            at_once(admit(Arc::clone(&fine), Facts { serial, ..facts("m") })).expect("it admits");
            tokio::task::yield_now().await;
        }
        redis.hold(false);
        for asked in crowd.into_iter().chain([first]) {
            // It was answered, or given up on, which is 503 here; in any case it has ended.
            let answer = asked.await.expect("no panic");
            assert!(answer.is_ok() || answer.is_err_and(|no| no.rejection.status == 503));
        }
        break;
    }
    assert_eq!(shared.drain(Duration::from_secs(60)), 0);
}

/// Its client leaves while Redis thinks about its place: the place would have been taken for the
/// hour that `longest_request` says.
#[tokio::test]
async fn a_place_that_nobody_waited_for_is_given_back() {
    let shared = shared();
    for attempt in 1.. {
        assert!(attempt <= 10, "whenever this thread comes round, the call is over");
        let redis = FakeRedis::start();
        let chain = chain(&host(redis.state()), &quota(r#"{"concurrent": 1}"#), &shared);
        redis.hold(true);
        let asked = tokio::spawn(admit(Arc::clone(&chain), facts("m")));
        until(|| redis.held() > 0 || asked.is_finished()).await;
        asked.abort();
        let left = asked.await.is_err();
        let entered = redis.held() > 0;
        redis.hold(false);
        assert_eq!(shared.drain(Duration::from_secs(60)), 0);
        if left && entered && redis.called(LEAVE) == 1 {
            break;
        }
    }
}

#[test]
fn whether_a_policy_may_hold_up_its_thread_follows_from_what_bounds_it() {
    let redis = FakeRedis::start();
    let (memory, redis) = (host(State::memory()), host(redis.state()));
    let time = |host: &PolicyHost, config: &PolicyConfig| {
        host.load(config).unwrap_or_else(|why| panic!("{why}")).call_time()
    };
    let hello = PolicyConfig {
        settings: settings(r#"{"max_prompt_tokens": 1}"#),
        ..config("hello", guest("hello-policy"))
    };
    let quota = quota(r#"{"concurrent": 1}"#);
    let asks = PolicyConfig {
        grants: grants(&[
            "state",
            "metrics",
            "headers:x-tenant",
            "content:read:/messages",
            "content:write:/temperature",
            "http:127.0.0.1:1",
        ]),
        ..config("asks", guest("guest-hostile"))
    };
    let long = |config: &PolicyConfig| {
        let deadline = Duration::from_millis(3);
        PolicyConfig { deadline, ..config.clone() }
    };
    assert_eq!(time(&memory, &hello), CallTime::AtOnce);
    assert_eq!(time(&redis, &hello), CallTime::AtOnce, "it has no state");
    assert_eq!(time(&memory, &long(&hello)), CallTime::Computes);
    assert_eq!(time(&memory, &quota), CallTime::AtOnce);
    assert_eq!(time(&memory, &long(&quota)), CallTime::Computes);
    assert_eq!(time(&redis, &quota), CallTime::Waits);
    assert_eq!(time(&memory, &asks), CallTime::Waits);
}
