//! The phases as calls of the component's functions.

use std::time::{SystemTime, UNIX_EPOCH};

use interlock_policy_api::{
    Answer, Body, CallTime, Caller, Candidate, Choice, Decision, Event, Facts, Identified, Load,
    Phase, Policy, Progress, Reaction, RequestContext, Summary, Transformed, Verdict, Watch,
    Window,
};
use wasmtime::Store;

use super::WasmPolicy;
use crate::descriptor::within;
use crate::host_functions::{Call, GuestState};
use crate::interfaces::Version;
use crate::linked::{GuestFunctions, OldPhaseFunctions, PhaseFunctions};
use crate::old;
use crate::to_wit::{self, WitFacts};

const NOT_ASKED: &str = "only asked when it takes this phase";

/// The phases of today; those that 0.1 did not have are not asked of it.
fn phases(guests: &GuestFunctions) -> &PhaseFunctions {
    match guests {
        GuestFunctions::V0_2(phases) => phases,
        GuestFunctions::V0_1(_) => panic!("{NOT_ASKED}"),
    }
}

impl WasmPolicy {
    fn call(&self, facts: &Facts, body: Option<&Body>, writable: bool) -> Call {
        Call {
            request: Some(facts.request_id.clone()),
            serial: facts.serial,
            body: body.filter(|_| self.reads).cloned(),
            writable: writable && self.writes,
            looks_up: false,
        }
    }

    /// A watch without what this policy would not be called for.
    fn heeded(&self, watch: Watch) -> Watch {
        within(watch, |phase| self.takes(phase))
    }
}

impl Policy for WasmPolicy {
    fn name(&self) -> &str {
        &self.name
    }

    fn version(&self) -> &str {
        &self.descriptor.version
    }

    fn takes(&self, phase: Phase) -> bool {
        self.description.phases.contains(&phase)
    }

    fn call_time(&self) -> CallTime {
        self.description.call_time
    }

    fn wants_content(&self) -> bool {
        self.reads
    }

    fn headers(&self) -> &[String] {
        &self.headers
    }

    fn watch(&self) -> Watch {
        self.watch
    }

    fn reasons(&self) -> &[String] {
        &self.descriptor.reasons
    }

    fn identify(&self, caller: &Caller) -> Answer<Identified> {
        let headers = to_wit::headers(&caller.headers, &self.headers);
        let call = Call {
            request: Some(caller.request_id.clone()),
            serial: caller.serial,
            looks_up: caller.looks_up,
            ..Call::default()
        };
        let ask = |guests: &GuestFunctions, store: &mut Store<GuestState>| {
            let guest = phases(guests).identify.as_ref().expect(NOT_ASKED);
            guest.call_identify(store, to_wit::caller(caller, &headers))
        };
        self.ask(call, ask, |answer| self.codes.identified(answer))
    }

    fn transform(&self, facts: &Facts, body: &Body) -> Answer<Transformed> {
        let wit_facts = WitFacts::new(facts, &self.headers, "");
        let call = self.call(facts, Some(body), true);
        let ask = |guests: &GuestFunctions, store: &mut Store<GuestState>| {
            let guest = phases(guests).transform.as_ref().expect(NOT_ASKED);
            guest.call_transform(store, wit_facts.as_wit())
        };
        self.ask(call, ask, |answer| self.codes.transformed(answer))
    }

    fn route(&self, facts: &Facts, candidates: &[Candidate], body: &Body) -> Answer<Choice> {
        let wit_facts = WitFacts::new(facts, &self.headers, "");
        let shown: Vec<_> = candidates.iter().map(to_wit::candidate).collect();
        let call = self.call(facts, Some(body), false);
        let ask = |guests: &GuestFunctions, store: &mut Store<GuestState>| {
            let guest = phases(guests).route.as_ref().expect(NOT_ASKED);
            guest.call_route(store, wit_facts.as_wit(), &shown)
        };
        self.ask(call, ask, |answer| self.codes.choice(answer, candidates))
    }

    fn admit(
        &self,
        facts: &Facts,
        load: &Load,
        tenant_in_flight: u32,
        body: &Body,
    ) -> Answer<Decision> {
        if self.factory.version == Version::V0_1 {
            let wit_facts = old::WitFactsV0_1::new(facts, &self.headers);
            let ask = |guests: &GuestFunctions, store: &mut Store<GuestState>| {
                let guest = old_phases(guests).admit.as_ref().expect(NOT_ASKED);
                guest.call_admit(store, wit_facts.as_wit(), old::load(load))
            };
            return self.ask(self.call(facts, None, false), ask, old::decision);
        }
        let wit_facts = WitFacts::new(facts, &self.headers, "");
        let ask = |guests: &GuestFunctions, store: &mut Store<GuestState>| {
            let guest = phases(guests).admit.as_ref().expect(NOT_ASKED);
            guest.call_admit(store, wit_facts.as_wit(), to_wit::load(load, tenant_in_flight))
        };
        self.ask(self.call(facts, Some(body), false), ask, |answer| {
            let mut decision = self.codes.decision(answer)?;
            if let Decision::Admit(admission) = &mut decision {
                admission.watch = admission.watch.map(|watch| self.heeded(watch));
            }
            Ok(decision)
        })
    }

    fn window(&self, request: RequestContext<'_>, window: &Window<'_>) -> Answer<Verdict> {
        let wit_facts = WitFacts::new(request.facts, &self.headers, request.note);
        let call = self.call(request.facts, None, false);
        let ask = |guests: &GuestFunctions, store: &mut Store<GuestState>| {
            let guest = phases(guests).stream_guard.as_ref().expect(NOT_ASKED);
            guest.call_on_window(store, wit_facts.as_wit(), to_wit::window(window))
        };
        self.ask(call, ask, |answer| self.codes.verdict(answer))
    }

    fn event(
        &self,
        request: RequestContext<'_>,
        event: &Event,
        progress: &Progress,
    ) -> Answer<Reaction> {
        let wit_facts = WitFacts::new(request.facts, &self.headers, request.note);
        let call = self.call(request.facts, None, false);
        let ask = |guests: &GuestFunctions, store: &mut Store<GuestState>| {
            let guest = phases(guests).events.as_ref().expect(NOT_ASKED);
            guest.call_on_event(
                store,
                wit_facts.as_wit(),
                to_wit::event(event),
                to_wit::progress(progress),
            )
        };
        self.ask(call, ask, |answer| self.codes.reaction(answer))
    }

    fn account(&self, request: RequestContext<'_>, summary: &Summary) -> Answer<()> {
        let call = self.call(request.facts, None, false);
        if self.factory.version == Version::V0_1 {
            let Some(summary) = old::summary(summary) else { return Ok(()) };
            let wit_facts = old::WitFactsV0_1::new(request.facts, &self.headers);
            let ask = |guests: &GuestFunctions, store: &mut Store<GuestState>| {
                let guest = old_phases(guests).account.as_ref().expect(NOT_ASKED);
                guest.call_account(store, wit_facts.as_wit(), summary)
            };
            return self.ask(call, ask, Ok);
        }
        let wit_facts = WitFacts::new(request.facts, &self.headers, request.note);
        let ask = |guests: &GuestFunctions, store: &mut Store<GuestState>| {
            let guest = phases(guests).account.as_ref().expect(NOT_ASKED);
            guest.call_account(store, wit_facts.as_wit(), to_wit::summary(summary, now_micros()))
        };
        self.ask(call, ask, Ok)
    }

    fn forget(&self, serial: u64, ran: bool) {
        self.factory.functions.forget(serial, ran);
    }
}

fn old_phases(guests: &GuestFunctions) -> &OldPhaseFunctions {
    match guests {
        GuestFunctions::V0_1(phases) => phases,
        GuestFunctions::V0_2(_) => panic!("{NOT_ASKED}"),
    }
}

fn now_micros() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    to_wit::micros(since)
}
