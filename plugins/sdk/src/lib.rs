//! What a policy for Interlock is written with: one file, no WASI, no unsafe code.
//!
//! ```
//! use interlock_policy_sdk as sdk;
//! use sdk::{Admit, Decision, LoadFacts, Plan, Policy, RequestFacts};
//!
//! /// Turns long prompts away.
//! struct Short {
//!     settings: Settings,
//! }
//!
//! #[derive(serde::Deserialize)]
//! #[serde(deny_unknown_fields)]
//! struct Settings {
//!     max_prompt_tokens: u32,
//! }
//!
//! impl Policy for Short {
//!     const NAME: &'static str = "short";
//!     const VERSION: &'static str = env!("CARGO_PKG_VERSION");
//!     type Settings = Settings;
//!
//!     fn new(settings: Settings) -> Result<Self, String> {
//!         Ok(Self { settings })
//!     }
//! }
//!
//! impl Admit for Short {
//!     fn admit(&self, request: &RequestFacts, _: &LoadFacts) -> Decision {
//!         if request.prompt_tokens > self.settings.max_prompt_tokens {
//!             return sdk::reject(413, "prompt_too_long", "this service takes short prompts only");
//!         }
//!         Decision::Admit(Plan::default())
//!     }
//! }
//!
//! sdk::export!(Short: admit);
//! # fn main() {}
//! ```
//!
//! The crate is a `cdylib`; `wit/README.md` says how it becomes a component. On other targets
//! [`export!`] expands to nothing, so a policy's logic is tested like any code.
//!
//! # Not here
//!
//! No clock and no randomness: a component for `wasm32-unknown-unknown` has neither, and the
//! facts say when a request arrived. No state that outlives an instance.

#[doc(hidden)]
pub mod bindings;
pub mod log;
mod span;

pub use bindings::accounting::exports::interlock::policy::account;
pub use bindings::admitting::exports::interlock::policy::admit::{self, Decision};
pub use bindings::admitting::interlock::policy::types::{
    Canceller, DisconnectAction, DrainLimits, Endpoint, Finish, LoadFacts, Outcome, Plan, Priority,
    Rejection, RequestFacts, Summary, Timeout, Timeouts, Usage,
};
pub use bindings::base::exports::interlock::policy::lifecycle;
pub use span::Span;

/// A policy: what it is called, and how it begins.
pub trait Policy: Sized + 'static {
    /// What it calls itself.
    const NAME: &'static str;

    /// Its own version; usually `env!("CARGO_PKG_VERSION")`.
    const VERSION: &'static str;

    /// What the operator may set, as the table `[policy.settings]`. Add
    /// `#[serde(deny_unknown_fields)]`, or a misspelt key goes unnoticed.
    type Settings: serde::de::DeserializeOwned;

    /// Begins with these settings, in every instance.
    ///
    /// # Errors
    ///
    /// When the settings make no sense. The host then does not start, and says why in these
    /// words: name the key and the value.
    fn new(settings: Self::Settings) -> Result<Self, String>;
}

/// A policy that decides who gets in.
pub trait Admit: Policy {
    /// May this request pass, and under which plan?
    fn admit(&self, request: &RequestFacts, load: &LoadFacts) -> Decision;
}

/// A policy that takes note of how requests end.
pub trait Account: Policy {
    /// An admitted request has ended; called once for each.
    fn account(&self, request: &RequestFacts, summary: &Summary);
}

/// The settings of a policy that has none.
#[derive(Debug, Clone, Copy, Default, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NoSettings {}

/// Turns a request away: an HTTP status, a cause for programs and a sentence for people.
pub fn reject(status: u16, code: &str, detail: &str) -> Decision {
    Decision::Reject(Rejection {
        status,
        code: code.to_owned(),
        detail: Some(detail.to_owned()),
        retry_after: None,
    })
}

/// A plan that leaves everything to others.
impl Default for Plan {
    fn default() -> Self {
        Self { priority: None, timeouts: Timeouts::default(), on_disconnect: None }
    }
}

/// No timeout beyond the operator's.
impl Default for Timeouts {
    fn default() -> Self {
        Self { queue: None, first_token: None, inter_token: None, total: None }
    }
}

/// Makes a type the crate's policy, for the phases that it names: `export!(Mine: admit, account)`.
///
/// Once per crate. The phases must be implemented: `admit` by [`Admit`], `account` by [`Account`].
#[macro_export]
macro_rules! export {
    ($policy:ty: $($phase:ident),* $(,)?) => {
        #[cfg(target_arch = "wasm32")]
        const _: () = {
            struct Component;
            ::std::thread_local! {
                // An instance has one thread, and lives as long as this does.
                static POLICY: ::std::cell::OnceCell<$policy> =
                    const { ::std::cell::OnceCell::new() };
            }
            impl $crate::lifecycle::Guest for Component {
                fn init(config: String) -> Result<$crate::lifecycle::Descriptor, String> {
                    let policy = $crate::begin::<$policy>(&config)?;
                    POLICY.with(|cell| cell.set(policy).map_err(|_| "init was called twice"))?;
                    Ok($crate::descriptor::<$policy>())
                }
            }
            $crate::bindings::base::export!(Component with_types_in $crate::bindings::base);
            $($crate::export!(@phase $phase);)*
        };
        // Elsewhere the policy counts as used, and its phases as checked.
        #[cfg(not(target_arch = "wasm32"))]
        const _: fn(&str) -> Result<$policy, String> = $crate::begin::<$policy>;
        $(#[cfg(not(target_arch = "wasm32"))] $crate::export!(@check $phase $policy);)*
    };
    (@check admit $policy:ty) => {
        const _: fn(&$policy, &$crate::RequestFacts, &$crate::LoadFacts) -> $crate::Decision =
            <$policy as $crate::Admit>::admit;
    };
    (@check account $policy:ty) => {
        const _: fn(&$policy, &$crate::RequestFacts, &$crate::Summary) =
            <$policy as $crate::Account>::account;
    };
    (@phase admit) => {
        impl $crate::admit::Guest for Component {
            fn admit(
                request: $crate::RequestFacts,
                load: $crate::LoadFacts,
            ) -> $crate::Decision {
                POLICY.with(|cell| {
                    $crate::Admit::admit(cell.get().expect($crate::NOT_BEGUN), &request, &load)
                })
            }
        }
        $crate::bindings::admitting::export!(Component with_types_in $crate::bindings::admitting);
    };
    (@phase account) => {
        impl $crate::account::Guest for Component {
            fn account(request: $crate::RequestFacts, summary: $crate::Summary) {
                POLICY.with(|cell| {
                    let policy = cell.get().expect($crate::NOT_BEGUN);
                    $crate::Account::account(policy, &request, &summary);
                });
            }
        }
        $crate::bindings::accounting::export!(Component with_types_in $crate::bindings::accounting);
    };
}

#[doc(hidden)]
pub const NOT_BEGUN: &str = "the host calls init before anything else";

#[doc(hidden)]
pub fn begin<P: Policy>(config: &str) -> Result<P, String> {
    // Without this a panic is an `unreachable` without a word.
    std::panic::set_hook(Box::new(|panic| log::error(panic)));
    let settings = serde_json::from_str(config).map_err(|e| {
        let what = e.to_string();
        // A position in a JSON text that the operator never saw: the file was TOML. To name the
        // whole path of keys instead would make every policy a quarter larger.
        what.rsplit_once(" at line ").map_or(what.clone(), |(what, _)| what.to_owned())
    })?;
    P::new(settings)
}

#[doc(hidden)]
pub fn descriptor<P: Policy>() -> lifecycle::Descriptor {
    lifecycle::Descriptor { name: P::NAME.into(), version: P::VERSION.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Any;

    impl Policy for Any {
        const NAME: &'static str = "any";
        const VERSION: &'static str = "0.0.1";
        type Settings = NoSettings;

        fn new(_: NoSettings) -> Result<Self, String> {
            Ok(Self)
        }
    }

    #[test]
    fn settings_that_a_policy_does_not_know_are_refused_by_name() {
        begin::<Any>("{}").expect("no settings are no settings");
        let refused = begin::<Any>(r#"{"dedline": 1}"#).expect_err("it has none");
        assert_eq!(refused, "unknown field `dedline`, there are no fields");
    }
}
