//! A policy that does what a request's model is called: `admit` does it for `MODEL`, `account`
//! for `account:MODEL`, `init` for its setting `init`. Any other model is served as it should be.

use std::cell::Cell;
use std::hint::black_box;

use interlock_policy_sdk as sdk;
use sdk::{
    Account, Admit, Decision, DisconnectAction, Load, Plan, Policy, Priority, RequestFacts, Span,
    Summary, Timeouts, log,
};

sdk::reasons! {
    enum Reason { Served, Facts, Giant, Long, Odd, Later }
}

struct Misbehaves {
    calls: Cell<u32>,
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Settings {
    init: String,
}

impl Default for Settings {
    fn default() -> Self {
        Self { init: "fine".into() }
    }
}

impl Policy for Misbehaves {
    type Settings = Settings;
    type Reason = Reason;

    fn new(settings: Settings) -> Result<Self, String> {
        if settings.init == "refuse" {
            return Err("init must be anything but \"refuse\"".into());
        }
        misbehave(&settings.init);
        Ok(Self { calls: Cell::new(0) })
    }
}

impl Admit for Misbehaves {
    fn admit(&self, request: &RequestFacts, load: &Load) -> Decision {
        self.calls.set(self.calls.get() + 1);
        misbehave(&request.model);
        let with = |plan| sdk::admit(Reason::Served).plan(plan).into();
        match request.model.as_str() {
            // How often this very instance was asked: shows whether it is a fresh one.
            "count" => with(Plan {
                timeouts: Timeouts { total: Some(self.calls.get().into()), ..Timeouts::default() },
                ..Plan::default()
            }),
            "repeat the facts" => {
                sdk::reject(418, Reason::Facts).detail(format!("{request:?} {load:?}")).into()
            }
            "giant detail" => sdk::reject(400, Reason::Giant).detail("x".repeat(2 << 20)).into(),
            "long detail" => sdk::reject(400, Reason::Long).detail("x\n".repeat(10_000)).into(),
            "reject as a success" => sdk::reject(200, Reason::Odd).detail("").into(),
            "zero timeouts" => with(Plan {
                timeouts: Timeouts { first_token: Some(0), ..Timeouts::default() },
                ..Plan::default()
            }),
            "endless timeouts" => {
                let forever = Span { micros: u64::MAX };
                with(Plan {
                    priority: Some(Priority::Critical),
                    timeouts: Timeouts {
                        queue: Some(u64::MAX),
                        first_token: Some(u64::MAX),
                        inter_token: Some(u64::MAX),
                        total: Some(u64::MAX),
                    },
                    on_disconnect: Some(DisconnectAction::drain(forever, u32::MAX)),
                    ..Plan::default()
                })
            }
            "retry in 500000 years" => {
                sdk::reject(429, Reason::Later).retry_after(Span { micros: u64::MAX }).into()
            }
            _ => with(Plan::default()),
        }
    }
}

impl Account for Misbehaves {
    fn account(&self, request: &RequestFacts, summary: &Summary) {
        if let Some(what) = request.model.strip_prefix("account:") {
            misbehave(what);
        }
        if request.model == "repeat the summary" {
            log::info(format_args!("{summary:?}"));
        }
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
        "recurse" => {
            black_box(recurse(1));
        }
        "panic" => panic!("this policy panics\nover two lines"),
        "shout" => (0..10_000).for_each(|n| log::warn(format_args!("line {n}"))),
        "giant log" => log::info("x".repeat(1 << 20)),
        _ => {}
    }
}

// Not a loop in disguise: the result is needed after the call.
#[expect(unconditional_recursion, reason = "that is the point")]
fn recurse(n: u64) -> u64 {
    black_box(recurse(black_box(n + 1)) + 1)
}

sdk::export!(Misbehaves: admit, account);
