//! From a type to a component.

use crate::reasons::snake_case;
use crate::{Policy, Reasons, lifecycle, log};

/// Makes a type the crate's policy, for the phases that it names:
/// `export!(Mine: identify, transform, route, admit, stream_guard, events, account)`.
///
/// Once per crate. For each phase the type implements the trait of that name.
#[macro_export]
macro_rules! export {
    ($policy:ty: $($phase:ident),* $(,)?) => {
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
                    let descriptor = $crate::descriptor(&policy, $crate::export!(@crate));
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

    (@crate) => {
        $crate::Crate {
            name: ::core::env!("CARGO_PKG_NAME"),
            version: ::core::env!("CARGO_PKG_VERSION"),
        }
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
        impl $crate::bindings::hearing::exports::interlock::policy::events::Guest for Component {
            fn on_event(
                request: $crate::RequestFacts,
                event: $crate::Event,
                progress: $crate::Progress,
            ) -> $crate::Reaction {
                policy(|policy| $crate::Events::on_event(policy, &request, &event, &progress))
            }
        }
        $crate::bindings::hearing::export!(Component with_types_in $crate::bindings::hearing);
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

/// What cargo knows of a policy's crate.
#[doc(hidden)]
#[derive(Debug, Clone, Copy)]
pub struct Crate {
    pub name: &'static str,
    pub version: &'static str,
}

#[doc(hidden)]
pub fn begin<P: Policy>(config: &str) -> Result<P, String> {
    // Without this a panic is an `unreachable` without a word. Not in native tests, whose own
    // hook knows better.
    if cfg!(target_arch = "wasm32") {
        std::panic::set_hook(Box::new(|panic| log::error(panic)));
    }
    let settings = serde_json::from_str(config).map_err(|e| {
        let what = e.to_string();
        // A position in a JSON text that the operator never saw: the file was TOML. To name the
        // whole path of keys instead would make every policy a quarter larger.
        what.rsplit_once(" at line ").map_or(what.clone(), |(what, _)| what.to_owned())
    })?;
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
        settings_schema: String::new(),
    }
}
