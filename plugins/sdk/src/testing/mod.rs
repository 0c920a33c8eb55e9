//! A host for native tests: state with a clock that the test sets, metrics and log lines to look
//! at, a body to read and change.
//!
//! ```
//! use interlock_policy_sdk::state::{self, Bucket, Taken};
//! use interlock_policy_sdk::{Span, testing::Host};
//!
//! let host = Host::new();
//! let once = || state::take("acme", Bucket::per_minute(1), 1.0).expect("the store is there");
//! assert_eq!(once(), Taken::Ok(0.0));
//! assert_eq!(once(), Taken::Denied(Some(60_000_001)));
//! host.pass(Span::from_secs(60));
//! assert_eq!(once(), Taken::Ok(0.0));
//! ```
//!
//! It is the thread's, as each test has one of its own: [`Host::new`] begins anew.
//!
//! # Not here
//!
//! The real host's limits (lengths, quotas, deadlines), its merging of several policies, and what
//! crosses into a component and back. `interlock policy test` runs the component itself.

pub(crate) mod content;
pub(crate) mod http;
pub(crate) mod metrics;
pub(crate) mod state;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs;

use serde_json::Value;

use crate::bindings::base::interlock::policy::log::Level;
use crate::{
    Attribute, Caller, Candidate, Endpoint, Header, Load, Metric, Policy, Progress, Reasons,
    RequestFacts, Span, Usage, Window,
};

/// What the SDK's functions reach in place of a host.
struct World {
    now: u64,
    log: Vec<String>,
    declared: &'static [Metric],
    numbers: BTreeMap<(u32, Vec<String>), f64>,
    body: Option<Value>,
    store: state::Store,
    answers: Option<http::Answers>,
}

thread_local! {
    static WORLD: RefCell<World> = RefCell::new(World::new());
}

fn world<T>(with: impl FnOnce(&mut World) -> T) -> T {
    WORLD.with_borrow_mut(with)
}

impl World {
    fn new() -> Self {
        Self {
            now: 1_700_000_000_000_000,
            log: vec![],
            declared: &[],
            numbers: BTreeMap::new(),
            body: None,
            store: state::Store::default(),
            answers: None,
        }
    }
}

/// A new host for this thread.
#[derive(Debug)]
pub struct Host {
    _private: (),
}

impl Default for Host {
    fn default() -> Self {
        Self::new()
    }
}

impl Host {
    /// Nothing has happened on it.
    pub fn new() -> Self {
        WORLD.set(World::new());
        Self { _private: () }
    }

    /// Begins a policy with settings, as the host does at load.
    ///
    /// # Errors
    ///
    /// What an operator would read.
    pub fn begin<P: Policy>(&self, settings: Value) -> Result<P, String> {
        world(|world| world.declared = P::METRICS);
        crate::begin(&settings.to_string())
    }

    /// What time it is.
    pub fn now(&self) -> u64 {
        world(|world| world.now)
    }

    /// Lets time pass.
    pub fn pass(&self, span: Span) {
        world(|world| world.now += span.micros);
    }

    /// From here on every call to the state is this fault, or none.
    pub fn state_fails(&self, fault: Option<crate::state::Fault>) {
        world(|world| world.store.fault = fault);
    }

    /// The body that `content` reads and changes.
    pub fn set_body(&self, body: Value) {
        world(|world| world.body = Some(body));
    }

    /// The body as it is now.
    ///
    /// # Panics
    ///
    /// There is none before [`Host::set_body`].
    pub fn body(&self) -> Value {
        world(|world| world.body.clone()).expect("a test gave a body")
    }

    /// Answers requests to other services.
    pub fn answers(
        &self,
        answer: impl Fn(&crate::http::Request) -> Result<crate::http::Response, crate::http::Fault>
        + 'static,
    ) {
        world(|world| world.answers = Some(Box::new(answer)));
    }

    /// What a counter or a gauge stands at, or how many values a histogram has; 0 if it was never
    /// used with these labels.
    ///
    /// # Panics
    ///
    /// The policy that was begun last declares no such metric.
    pub fn metric(&self, name: &str, labels: &[&str]) -> f64 {
        world(|world| {
            let index = world.declared.iter().position(|metric| metric.name == name);
            let index = index.unwrap_or_else(|| panic!("no metric {name} is declared"));
            let labels = labels.iter().map(|&label| label.to_owned()).collect();
            world.numbers.get(&(index as u32, labels)).copied().unwrap_or_default()
        })
    }

    /// The lines that the policy logged, with their level: `error it broke`.
    pub fn log(&self) -> Vec<String> {
        world(|world| world.log.clone())
    }

    /// A request of 100 tokens that asks for 50, arriving now.
    pub fn request(&self) -> RequestFacts {
        RequestFacts {
            request_id: "r-1".into(),
            arrived_at: self.now(),
            endpoint: Endpoint::Chat,
            model: "m".into(),
            streaming: true,
            background: false,
            prompt_tokens: 100,
            max_tokens: 50,
            max_tokens_asked: true,
            body_bytes: 400,
            prefix_key: 0,
            tenant: String::new(),
            attributes: vec![],
            headers: vec![],
            note: String::new(),
        }
    }

    /// Someone without a credential.
    pub fn caller(&self) -> Caller {
        Caller {
            request_id: "r-1".into(),
            arrived_at: self.now(),
            endpoint: Endpoint::Chat,
            credential: String::new(),
            address: "192.0.2.1".into(),
            headers: vec![],
        }
    }

    /// A request's progress so long after its admission, with so many tokens, the last just now.
    pub fn progress(&self, elapsed: Span, tokens: u32) -> Progress {
        Progress {
            now: self.now(),
            elapsed: elapsed.micros,
            since_token: (tokens > 0).then_some(0),
            usage: usage(100, tokens),
        }
    }
}

/// Room for 32 waiting and 8 running, and nobody there.
pub fn idle() -> Load {
    Load { waiting: 0, max_waiting: 32, running: 0, max_running: 8, tenant_in_flight: 0 }
}

/// A candidate that is ready and idle; asked for, if it is the first.
pub fn candidate(id: u32, model: &str) -> Candidate {
    Candidate {
        id,
        model: model.into(),
        asked: id == 0,
        ready: true,
        context: 8192,
        waiting: 0,
        max_waiting: 32,
        running: 0,
        max_running: 8,
        prefix_seen: false,
        first_token: 0,
        inter_token: 0,
    }
}

/// Tokens of the prompt, none of them cached, and tokens generated.
pub fn usage(prompt: u32, generated: u32) -> Usage {
    Usage { prompt_tokens: prompt, cached_tokens: 0, generated_tokens: generated }
}

/// A window that begins with what was held back.
pub fn window(index: u32, held: &str, new: &str, finished: bool) -> Window {
    Window {
        index,
        text: format!("{held}{new}"),
        held: held.len() as u32,
        finished,
        usage: usage(100, index + 1),
    }
}

/// What a header of an answer says.
pub fn value_of<'a>(headers: &'a [Header], name: &str) -> Option<&'a str> {
    headers.iter().find(|header| header.name == name).map(|header| header.value.as_str())
}

/// Attributes, as an `identify` says them.
pub fn attributes<const N: usize>(said: [(&str, &str); N]) -> Vec<Attribute> {
    said.map(|(name, value)| Attribute { name: name.into(), value: value.into() }).into()
}

/// What a reason's index means to a policy.
pub fn reason<P: Policy>(index: u32) -> &'static str {
    P::Reason::NAMES.get(index as usize).copied().unwrap_or("(no reason)")
}

/// Compares a file with the schema of settings, and writes it where it differs.
///
/// # Panics
///
/// It differed, or cannot be written.
pub fn check_schema<S: schemars::JsonSchema>(file: &str) {
    let schema = schemars::SchemaGenerator::default().into_root_schema_for::<S>();
    let now = format!("{:#}\n", schema.as_value());
    if fs::read_to_string(file).is_ok_and(|then| then == now) {
        return;
    }
    fs::write(file, now).unwrap_or_else(|e| panic!("{file} cannot be written: {e}"));
    panic!("{file} was out of date and is written anew: look at it, and run the tests again");
}

pub(crate) fn hear(level: Level, message: String) {
    let level = match level {
        Level::Trace => "trace",
        Level::Debug => "debug",
        Level::Info => "info",
        Level::Warn => "warn",
        Level::Error => "error",
    };
    world(|world| world.log.push(format!("{level} {message}")));
}
