//! A policy that takes part in everything, reaches for everything, and means no good: in each
//! phase it does what the request's model is called (`identify`: what the caller's address or its
//! header `x-tenant` is).
//! Anything else it answers as it should.

use std::cell::{Cell, RefCell};
use std::hint::black_box;

use interlock_policy_sdk as sdk;
use sdk::bindings::measuring::interlock::policy::metrics as raw;
use sdk::state::{Bucket, Budget};
use sdk::{
    Account, Admission, Admit, Attribute, Caller, Candidate, Choice, Decision, DisconnectAction,
    Edited, Event, Events, Guarding, Identify, Known, Load, Pick, Plan, Policy, Progress, Reaction,
    RequestFacts, Route, Score, Span, StreamGuard, Summary, Timeouts, Transform, Verdict, Watch,
    Window, WindowSize, content, http, log, state,
};

sdk::reasons! {
    enum Reason { Fine, Bad }
}

sdk::metrics! {
    mod metrics {
        /// What it did.
        DEEDS: Counter = deeds_total(what),
        /// How much of it.
        WEIGHT: Gauge = weight(),
        /// How long it took.
        SECONDS: Histogram = seconds(),
    }
}

struct Hostile {
    calls: Cell<u32>,
    // What it remembers of others' requests, though nobody should.
    seen: RefCell<Vec<String>>,
}

#[derive(Default, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Settings {
    /// Whether it fails to begin once a request was called `curse`.
    cursed: bool,
}

impl Policy for Hostile {
    type Settings = Settings;
    type Reason = Reason;
    const METRICS: &'static [sdk::Metric] = metrics::ALL;

    fn new(settings: Settings) -> Result<Self, String> {
        assert!(!settings.cursed || state::get("curse") == Ok(None), "it was cursed");
        Ok(Self { calls: Cell::new(0), seen: RefCell::default() })
    }

    fn needs(&self) -> Vec<String> {
        vec!["headers:x-tenant".into(), "content:read:/messages".into()]
    }

    fn watch(&self) -> Watch {
        let windows = WindowSize::new(4, Span::from_secs(1));
        Watch {
            events: sdk::EventSet::all(),
            guarding: Guarding::Gate(windows),
            ..Watch::default()
        }
    }
}

impl Identify for Hostile {
    fn identify(&self, caller: &Caller) -> Known {
        misbehave(&caller.address);
        misbehave(caller.header("x-tenant").unwrap_or_default());
        match caller.address.as_str() {
            "no tenant" => sdk::known("", Reason::Fine).into(),
            "a tenant of two lines" => sdk::known("a\nb", Reason::Fine).into(),
            "attributes" => {
                let mut known = sdk::known("a", Reason::Fine);
                let attribute = || Attribute { name: "n".into(), value: "v".into() };
                known.attributes.extend((0..1000).map(|_| attribute()));
                known.into()
            }
            _ => sdk::known(format!("{:?}", caller.headers), Reason::Fine).into(),
        }
    }
}

impl Transform for Hostile {
    fn transform(&self, request: &RequestFacts) -> Edited {
        misbehave(request.model.as_str());
        let said = |what: String| sdk::edit(Reason::Fine).answer_header("x-said", what).into();
        match request.model.as_str() {
            "read granted" => said(format!("{:?}", content::get("/messages/0/content"))),
            "read else" => said(format!("{:?}", content::get("/temperature"))),
            "write granted" => said(format!("{:?}", content::set("/temperature", "0.25"))),
            "write else" => said(format!("{:?}", content::set("/messages", "[]"))),
            "write nonsense" => said(format!("{:?}", content::set("/temperature", "{"))),
            "write without end" => {
                let much = format!("\"{}\"", "x".repeat(100 << 10));
                let written = (0..99).take_while(|_| content::set("/temperature", &much).is_ok());
                let written = written.count();
                said(format!("{written} {:?}", content::set("/temperature", &much)))
            }
            "write much" => {
                let much = format!("\"{}\"", "x".repeat(250 << 10));
                said(format!("{:?}", content::set("/temperature", &much)))
            }
            "headers" => {
                let mut edits = sdk::edit(Reason::Fine);
                for n in 0..1000 {
                    edits = edits.set_header(format!("x-{n}"), "v");
                }
                edits.into()
            }
            "header of two lines" => {
                sdk::edit(Reason::Fine).set_header("x-a", "1\r\nx-b: 2").into()
            }
            "header without a name" => sdk::edit(Reason::Fine).set_header("", "1").into(),
            "model without a name" => sdk::edit(Reason::Fine).model("").into(),
            _ => Edited::Keep,
        }
    }
}

impl Route for Hostile {
    fn route(&self, request: &RequestFacts, candidates: &[Candidate]) -> Choice {
        misbehave(request.model.as_str());
        let of = |scores| sdk::scores(scores, Reason::Fine);
        let all = |score| of(candidates.iter().map(|c| c.score(score)).collect());
        match request.model.as_str() {
            "nan" => all(f32::NAN),
            "infinite" => all(f32::INFINITY),
            "negative" => all(-1e30),
            "nobody" => Pick { id: 4711, reason: 0 }.into(),
            "unheard of" => of(vec![Score { id: 4711, score: 1.0 }]),
            "a hundred thousand" => of(vec![Score { id: 0, score: 1.0 }; 100_000]),
            "twice" => of(vec![Score { id: 0, score: 1.0 }; 1000]),
            _ => Choice::Abstain,
        }
    }
}

impl Admit for Hostile {
    fn admit(&self, request: &RequestFacts, _: &Load) -> Decision {
        self.calls.set(self.calls.get() + 1);
        misbehave(&request.model);
        let with = |plan| sdk::admit(Reason::Fine).plan(plan).into();
        let said = |what: String| sdk::reject(418, Reason::Bad).detail(what).into();
        let day = Span { micros: 86_400_000_000 };
        match request.model.as_str() {
            // Another's secret, if an instance were to keep it.
            "remember" => {
                self.seen.borrow_mut().push(format!("{:?}", request.headers));
                with(Plan::default())
            }
            "tell" => said(self.seen.borrow().join(", ")),
            "count" => sdk::admit(Reason::Fine).note(self.calls.get().to_string()).into(),
            "a reason of its own" => Admission { reason: 99, ..sdk::admit(Reason::Fine) }.into(),
            "a rejection without a reason" => {
                sdk::Rejection { reason: 99, ..sdk::reject(403, Reason::Bad) }.into()
            }
            "a long note" => sdk::admit(Reason::Fine).note("x".repeat(2000)).into(),
            "a giant note" => sdk::admit(Reason::Fine).note("x".repeat(1 << 20)).into(),
            "headers without end" => {
                let mut admission = sdk::admit(Reason::Fine);
                admission.headers = vec![sdk::header("x-a", 1); 50_000];
                admission.into()
            }
            "no time" => with(Plan {
                timeouts: Timeouts { total: Some(0), ..Timeouts::default() },
                ..Plan::default()
            }),
            "no tokens" => sdk::admit(Reason::Fine).max_tokens(0).into(),
            "absurd" => with(Plan {
                max_tokens: Some(u32::MAX),
                timeouts: Timeouts {
                    queue: Some(u64::MAX),
                    first_token: Some(u64::MAX),
                    inter_token: Some(u64::MAX),
                    total: Some(u64::MAX),
                },
                on_disconnect: Some(DisconnectAction::detach(Span { micros: u64::MAX }, u32::MAX)),
                ..Plan::default()
            }),
            "a watch of nothing" => sdk::admit(Reason::Fine)
                .watch(Watch {
                    events: sdk::EventSet::all(),
                    stalled_after: Some(0),
                    guarding: sdk::Guarding::Gate(sdk::WindowSize { tokens: 0, max_delay: 0 }),
                })
                .into(),
            "read late" => said(format!("{:?}", content::set("/temperature", "1"))),
            "reserve" => {
                let held = state::reserve("k", Budget { limit: 10.0, window: day.micros }, 8.0);
                said(format!("{held:?}"))
            }
            "curse" => said(format!("{:?}", state::set("curse", b"", None))),
            "take nan" => {
                let bucket = Bucket { capacity: f64::NAN, refill_per_second: 1.0 };
                said(format!("{:?}", state::take("k", bucket, 1.0)))
            }
            "a long key" => said(format!("{:?}", state::get(&"k".repeat(300)))),
            "a large value" => said(format!("{:?}", state::set("k", &vec![0; 100_000], None))),
            "ask around" => said(format!("{:?}", http::send(&request_to("http://127.0.0.1:1/")))),
            "ask elsewhere" => {
                said(format!("{:?}", http::send(&request_to("http://10.0.0.1:80/"))))
            }
            url if url.starts_with("ask http") => {
                said(format!("{:?}", http::send(&request_to(&url[4..]))))
            }
            "pretend to ask around" => {
                said(format!("{:?}", http::send(&request_to("http://127.0.0.1:1@10.0.0.1/"))))
            }
            _ => with(Plan::default()),
        }
    }
}

fn request_to(url: &str) -> http::Request {
    http::Request {
        method: "GET".into(),
        url: url.into(),
        headers: vec![],
        body: vec![],
        timeout: 1_000_000,
    }
}

impl StreamGuard for Hostile {
    fn on_window(&self, request: &RequestFacts, window: &Window) -> Verdict {
        misbehave(&request.model);
        match request.model.as_str() {
            "hold all" => Verdict::Hold(u32::MAX),
            "say much" => sdk::replace("x".repeat(2 << 20), 0, Reason::Bad),
            "a reason of its own" => Verdict::Abort(99),
            _ => sdk::replace(window.text.to_uppercase(), 0, Reason::Fine),
        }
    }
}

impl Events for Hostile {
    fn on_event(&self, request: &RequestFacts, _: &Event, _: &Progress) -> Reaction {
        misbehave(&request.model);
        match request.model.as_str() {
            "no time" => {
                let timeouts = Timeouts { total: Some(0), ..Timeouts::default() };
                sdk::amend(Plan { timeouts, ..Plan::default() }, Reason::Fine)
            }
            "a reason of its own" => Reaction::Cancel(99),
            _ => Reaction::Keep,
        }
    }
}

impl Account for Hostile {
    fn account(&self, request: &RequestFacts, _: &Summary) {
        misbehave(&request.model);
    }
}

fn misbehave(what: &str) {
    match what {
        "spin" => loop {
            black_box(());
        },
        "grow" => {
            let mut kept = Vec::new();
            loop {
                kept.push(black_box(vec![1_u8; 64 << 10]));
            }
        }
        // Within its limits, but more than it will need again.
        "grow a little" => {
            black_box(vec![1_u8; 6 << 20]);
        }
        "recurse" => {
            black_box(recurse(1));
        }
        "panic" => panic!("it was told to"),
        "storm" => loop {
            let _ = black_box(state::get("k"));
        },
        "storm of lines" => (0..10_000).for_each(|n| log::warn(format_args!("line {n}"))),
        "a giant line" => log::info("x".repeat(1 << 20)),
        "count too many" => {
            for n in 0..200 {
                metrics::DEEDS.count([&format!("deed {n}")]);
            }
            metrics::WEIGHT.set(2.5, []);
            metrics::SECONDS.observe(0.002, []);
            metrics::SECONDS.observe(1e9, []);
        }
        "count long" => metrics::DEEDS.count([&"x".repeat(1000)]),
        "count backwards" => metrics::DEEDS.add(-1.0, ["back"]),
        "count nan" => metrics::WEIGHT.set(f64::NAN, []),
        "count elsewhere" => raw::add(77, 1.0, &[]),
        "count without labels" => raw::add(0, 1.0, &[]),
        "count what is observed" => raw::add(2, 1.0, &[]),
        _ => {}
    }
}

// Not a loop in disguise: the result is needed after the call.
#[expect(unconditional_recursion, reason = "that is the point")]
fn recurse(n: u64) -> u64 {
    black_box(recurse(black_box(n + 1)) + 1)
}

sdk::export!(Hostile: identify, transform, route, admit, stream_guard, events, account);
