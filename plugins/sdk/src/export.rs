//! From a type to a component.

use crate::reasons::snake_case;
use crate::{Policy, Reasons, lifecycle, log, settings};

/// Makes a type the crate's policy, for the phases that it names:
/// `export!(Mine: identify, transform, route, admit, stream_guard, events, account)`.
///
/// Once per crate. For each phase the type implements the trait of that name; the compiler says so
/// when it does not:
///
/// ```compile_fail,E0277
/// # use interlock_policy_sdk::{NoReasons, NoSettings, Policy};
/// # struct Mine;
/// # impl Policy for Mine {
/// #     type Settings = NoSettings;
/// #     type Reason = NoReasons;
/// #     fn new(_: NoSettings) -> Result<Self, String> { Ok(Self) }
/// # }
/// // `Mine` is exported for `account`, but does not implement `Account`
/// interlock_policy_sdk::export!(Mine: account);
/// # fn main() {}
/// ```
///
/// # The schema of its settings
///
/// `export!(Mine: admit; schema "settings.schema.json")` tells the host the JSON Schema of
/// `Mine::Settings`, which derives `schemars::JsonSchema` beside `Deserialize`. The file lies
/// beside Cargo.toml; a test that this makes writes it, and fails when it was out of date. Made in
/// the component instead, it would cost 100 KB of code (guard: 219 KB, not 121).
#[macro_export]
macro_rules! export {
    ($policy:ty: $($phase:ident),* $(,)?) => {
        $crate::export!(@all $policy: "", $($phase),*);
    };
    ($policy:ty: $($phase:ident),+ $(,)?; schema $file:literal) => {
        $crate::export!(
            @all $policy:
            ::core::include_str!(::core::concat!(::core::env!("CARGO_MANIFEST_DIR"), "/", $file)),
            $($phase),*
        );
        #[cfg(all(test, not(target_arch = "wasm32")))]
        #[test]
        fn the_schema_of_the_settings_is_up_to_date() {
            let file = ::core::concat!(::core::env!("CARGO_MANIFEST_DIR"), "/", $file);
            $crate::testing::check_schema::<<$policy as $crate::Policy>::Settings>(file);
        }
    };

    (@all $policy:ty: $schema:expr, $($phase:ident),*) => {
        // On every target, so that the errors are those of a native `cargo check`.
        const _: () = {
            $($crate::export!(@check $phase $policy);)*
        };
        #[cfg(target_arch = "wasm32")]
        const _: () = {
            struct Component;
            ::std::thread_local! {
                // An instance has one thread, and lives as long as this does.
                static POLICY: ::std::cell::OnceCell<$policy> =
                    const { ::std::cell::OnceCell::new() };
            }
            fn policy<T>(phase: impl FnOnce(&$policy) -> T) -> T {
                POLICY.with(|cell| phase(cell.get().expect("the host calls init first")))
            }
            impl $crate::lifecycle::Guest for Component {
                fn init(config: String) -> Result<$crate::lifecycle::Descriptor, String> {
                    let policy = $crate::begin::<$policy>(&config)?;
                    let descriptor = $crate::descriptor(
                        &policy,
                        $crate::Crate {
                            name: ::core::env!("CARGO_PKG_NAME"),
                            version: ::core::env!("CARGO_PKG_VERSION"),
                            settings_schema: $schema,
                        },
                    );
                    POLICY.with(|cell| cell.set(policy).map_err(|_| "init was called twice"))?;
                    Ok(descriptor)
                }
            }
            $crate::bindings::base::export!(Component with_types_in $crate::bindings::base);
            $($crate::export!(@phase $phase);)*
        };
        // Elsewhere the policy counts as used: what is dead here is dead in the component.
        #[cfg(not(target_arch = "wasm32"))]
        const _: fn(&str) -> Result<$policy, String> = $crate::begin::<$policy>;
    };

    (@check identify $policy:ty) => { $crate::export!(@implements $policy: Identify); };
    (@check transform $policy:ty) => { $crate::export!(@implements $policy: Transform); };
    (@check route $policy:ty) => { $crate::export!(@implements $policy: Route); };
    (@check admit $policy:ty) => { $crate::export!(@implements $policy: Admit); };
    (@check stream_guard $policy:ty) => { $crate::export!(@implements $policy: StreamGuard); };
    (@check events $policy:ty) => { $crate::export!(@implements $policy: Events); };
    (@check account $policy:ty) => { $crate::export!(@implements $policy: Account); };
    (@check $other:ident $policy:ty) => {
        ::core::compile_error!(::core::concat!(
            "`", ::core::stringify!($other), "` is no phase; there are identify, transform, \
             route, admit, stream_guard, events and account"
        ));
    };
    (@implements $policy:ty: $phase:ident) => {
        const _: fn() = || {
            fn implements<P: $crate::$phase>() {}
            implements::<$policy>();
        };
    };

    (@phase identify) => {
        impl $crate::bindings::identifying::exports::interlock::policy::identify::Guest
            for Component
        {
            fn identify(caller: $crate::Caller) -> $crate::Known {
                policy(|policy| $crate::Identify::identify(policy, &caller))
            }
        }
        $crate::bindings::identifying::export!(
            Component with_types_in $crate::bindings::identifying
        );
    };
    (@phase transform) => {
        impl $crate::bindings::transforming::exports::interlock::policy::transform::Guest
            for Component
        {
            fn transform(request: $crate::RequestFacts) -> $crate::Edited {
                policy(|policy| $crate::Transform::transform(policy, &request))
            }
        }
        $crate::bindings::transforming::export!(
            Component with_types_in $crate::bindings::transforming
        );
    };
    (@phase route) => {
        impl $crate::bindings::routing::exports::interlock::policy::route::Guest for Component {
            fn route(
                request: $crate::RequestFacts,
                candidates: Vec<$crate::Candidate>,
            ) -> $crate::Choice {
                policy(|policy| $crate::Route::route(policy, &request, &candidates))
            }
        }
        $crate::bindings::routing::export!(Component with_types_in $crate::bindings::routing);
    };
    (@phase admit) => {
        impl $crate::bindings::admitting::exports::interlock::policy::admit::Guest for Component {
            fn admit(request: $crate::RequestFacts, load: $crate::Load) -> $crate::Decision {
                policy(|policy| $crate::Admit::admit(policy, &request, &load))
            }
        }
        $crate::bindings::admitting::export!(Component with_types_in $crate::bindings::admitting);
    };
    (@phase stream_guard) => {
        impl $crate::bindings::guarding_streams::exports::interlock::policy::stream_guard::Guest
            for Component
        {
            fn on_window(
                request: $crate::RequestFacts,
                window: $crate::Window,
            ) -> $crate::Verdict {
                policy(|policy| $crate::StreamGuard::on_window(policy, &request, &window))
            }
        }
        $crate::bindings::guarding_streams::export!(
            Component with_types_in $crate::bindings::guarding_streams
        );
    };
    (@phase events) => {
        impl $crate::bindings::reacting::exports::interlock::policy::events::Guest for Component {
            fn on_event(
                request: $crate::RequestFacts,
                event: $crate::Event,
                progress: $crate::Progress,
            ) -> $crate::Reaction {
                policy(|policy| $crate::Events::on_event(policy, &request, &event, &progress))
            }
        }
        $crate::bindings::reacting::export!(Component with_types_in $crate::bindings::reacting);
    };
    (@phase account) => {
        impl $crate::bindings::accounting::exports::interlock::policy::account::Guest
            for Component
        {
            fn account(request: $crate::RequestFacts, summary: $crate::Summary) {
                policy(|policy| $crate::Account::account(policy, &request, &summary));
            }
        }
        $crate::bindings::accounting::export!(
            Component with_types_in $crate::bindings::accounting
        );
    };
    // A check above has said what is wrong.
    (@phase $other:ident) => {};
}

/// What a policy's crate says of it.
#[doc(hidden)]
#[derive(Debug, Clone, Copy)]
pub struct Crate {
    pub name: &'static str,
    pub version: &'static str,
    pub settings_schema: &'static str,
}

#[doc(hidden)]
pub fn begin<P: Policy>(config: &str) -> Result<P, String> {
    // Without this a panic is an `unreachable` without a word. Not in native tests, whose own
    // hook knows better.
    if cfg!(target_arch = "wasm32") {
        std::panic::set_hook(Box::new(|panic| log::error(panic)));
    }
    let settings = settings::read(config)?;
    P::new(settings)
}

#[doc(hidden)]
pub fn descriptor<P: Policy>(policy: &P, of: Crate) -> lifecycle::Descriptor {
    lifecycle::Descriptor {
        name: of.name.into(),
        version: of.version.into(),
        reasons: P::Reason::NAMES.iter().map(|name| snake_case(name)).collect(),
        metrics: P::METRICS.iter().map(Into::into).collect(),
        needs: policy.needs(),
        watch: policy.watch(),
        settings_schema: of.settings_schema.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{EventSet, Metric, NoSettings, Watch, testing::Host};

    crate::reasons! {
        enum Reason { Welcome, PromptTooLong }
    }

    crate::metrics! {
        mod metrics {
            /// Those turned away.
            REFUSED: Counter = refused_total(tenant, limit),
            /// Those here.
            HERE: Gauge = here(),
        }
    }

    #[derive(Debug)]
    struct Any;

    impl Policy for Any {
        type Settings = NoSettings;
        type Reason = Reason;
        const METRICS: &'static [Metric] = metrics::ALL;

        fn new(_: NoSettings) -> Result<Self, String> {
            Ok(Self)
        }

        fn needs(&self) -> Vec<String> {
            vec!["headers:x-tenant".into()]
        }

        fn watch(&self) -> Watch {
            Watch { events: EventSet::STALLED, ..Watch::default() }
        }
    }

    #[test]
    fn settings_that_a_policy_does_not_know_are_refused_by_name() {
        begin::<Any>("{}").expect("no settings are no settings");
        let refused = begin::<Any>(r#"{"dedline": 1}"#).expect_err("it has none");
        assert_eq!(refused, "unknown field `dedline`, there are no fields");
    }

    #[test]
    fn what_a_policy_declares_is_in_its_descriptor() {
        let of = Crate { name: "any", version: "1.2.3", settings_schema: "{}" };
        let descriptor = descriptor(&Any, of);
        assert_eq!(descriptor.name, "any");
        assert_eq!(descriptor.version, "1.2.3");
        assert_eq!(descriptor.reasons, ["welcome", "prompt_too_long"]);
        assert_eq!(crate::admit(Reason::Welcome).reason, 0);
        assert_eq!(crate::reject(413, Reason::PromptTooLong).reason, 1);
        assert_eq!(descriptor.needs, ["headers:x-tenant"]);
        assert_eq!(descriptor.watch.events, EventSet::STALLED);
        assert_eq!(descriptor.settings_schema, "{}");
        let [refused, here] = &descriptor.metrics[..] else { panic!("two are declared") };
        assert_eq!(
            (refused.name.as_str(), refused.help.as_str()),
            ("refused_total", "Those turned away.")
        );
        assert_eq!(
            (refused.kind, &refused.labels[..]),
            (lifecycle::MetricKind::Counter, &["tenant".to_owned(), "limit".to_owned()][..])
        );
        assert_eq!((here.name.as_str(), here.kind), ("here", lifecycle::MetricKind::Gauge));
    }

    #[test]
    fn a_metric_counts_where_it_was_declared() {
        let host = Host::new();
        host.begin::<Any>(serde_json::json!({})).expect("no settings");
        metrics::REFUSED.count(["blue", "tokens"]);
        metrics::REFUSED.add(2.0, ["blue", "tokens"]);
        metrics::HERE.set(7.0, []);
        metrics::HERE.add(-2.0, []);
        assert_eq!(host.metric("refused_total", &["blue", "tokens"]), 3.0);
        assert_eq!(host.metric("refused_total", &["green", "tokens"]), 0.0);
        assert_eq!(host.metric("here", &[]), 5.0);
    }
}
