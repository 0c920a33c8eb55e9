//! Numbers of a policy's own, which the host shows to Prometheus. Needs the grant `metrics`.

use crate::bindings::base::exports::interlock::policy::lifecycle;
#[cfg(target_arch = "wasm32")]
use crate::bindings::measuring::interlock::policy::metrics as host;
#[cfg(not(target_arch = "wasm32"))]
use crate::testing::metrics as host;

pub use lifecycle::MetricKind;

/// A metric as its policy declares it.
#[derive(Debug, Clone, Copy)]
pub struct Metric {
    /// What it is called; the host puts `interlock_plugin_` in front.
    pub name: &'static str,
    /// What kind of number it is.
    pub kind: MetricKind,
    /// A sentence for whoever reads it.
    pub help: &'static str,
    /// The names of its labels.
    pub labels: &'static [&'static str],
}

impl From<&Metric> for lifecycle::Metric {
    fn from(metric: &Metric) -> Self {
        Self {
            name: metric.name.into(),
            kind: metric.kind,
            help: metric.help.into(),
            labels: metric.labels.iter().map(|&label| label.into()).collect(),
        }
    }
}

/// A number that only grows, with `N` labels.
#[derive(Debug, Clone, Copy)]
pub struct Counter<const N: usize>(u32);

/// A number that goes up and down, with `N` labels.
#[derive(Debug, Clone, Copy)]
pub struct Gauge<const N: usize>(u32);

/// A distribution, with `N` labels.
#[derive(Debug, Clone, Copy)]
pub struct Histogram<const N: usize>(u32);

impl<const N: usize> Counter<N> {
    #[doc(hidden)]
    pub const KIND: MetricKind = MetricKind::Counter;

    #[doc(hidden)]
    pub const fn declared(index: u32) -> Self {
        Self(index)
    }

    /// One more.
    pub fn count(self, labels: [&str; N]) {
        self.add(1.0, labels);
    }

    /// So many more.
    pub fn add(self, value: f64, labels: [&str; N]) {
        host::add(self.0, value, &labels.map(String::from));
    }
}

impl<const N: usize> Gauge<N> {
    #[doc(hidden)]
    pub const KIND: MetricKind = MetricKind::Gauge;

    #[doc(hidden)]
    pub const fn declared(index: u32) -> Self {
        Self(index)
    }

    /// So many more, or less.
    pub fn add(self, value: f64, labels: [&str; N]) {
        host::add(self.0, value, &labels.map(String::from));
    }

    /// This it is.
    pub fn set(self, value: f64, labels: [&str; N]) {
        host::set(self.0, value, &labels.map(String::from));
    }
}

impl<const N: usize> Histogram<N> {
    #[doc(hidden)]
    pub const KIND: MetricKind = MetricKind::Histogram;

    #[doc(hidden)]
    pub const fn declared(index: u32) -> Self {
        Self(index)
    }

    /// One more value.
    pub fn observe(self, value: f64, labels: [&str; N]) {
        host::observe(self.0, value, &labels.map(String::from));
    }
}

/// Declares the metrics of a policy: a module with a handle for each, and `ALL` of them for
/// [`Policy::METRICS`](crate::Policy::METRICS). A wrong number of labels does not compile.
///
/// ```
/// interlock_policy_sdk::metrics! {
///     mod metrics {
///         /// Requests turned away.
///         REFUSED: Counter = refused_total(tenant, limit),
///         /// Tenants known.
///         TENANTS: Gauge = tenants(),
///     }
/// }
/// fn refuse() {
///     metrics::REFUSED.count(["acme", "tokens"]);
/// }
/// # fn main() {}
/// ```
#[macro_export]
macro_rules! metrics {
    (
        $visible:vis mod $module:ident {
            $(
                #[doc = $help:literal]
                $handle:ident: $kind:ident = $name:ident($($label:ident),*)
            ),+ $(,)?
        }
    ) => {
        /// What this policy counts.
        $visible mod $module {
            #[expect(non_camel_case_types, reason = "named as the metrics are")]
            enum Index { $($name),+ }

            $(
                #[doc = $help]
                pub(crate) const $handle: $crate::metrics::$kind<
                    { <[&str]>::len(&[$(::core::stringify!($label)),*]) }
                > = $crate::metrics::$kind::declared(Index::$name as u32);
            )+

            /// As the host is told of them.
            pub(crate) const ALL: &[$crate::Metric] = &[$(
                $crate::Metric {
                    name: ::core::stringify!($name),
                    kind: $crate::metrics::$kind::<0>::KIND,
                    help: $help.trim_ascii(),
                    labels: &[$(::core::stringify!($label)),*],
                }
            ),+];
        }
    };
}
