//! HTTP: the OpenAI API on one side, the engine's handle on the other.
//!
//! ```text
//! bytes -> ApiRequest -> tokens -> queue permit, policies -> driver -> text chunks -> writer -> bytes
//!          endpoints     admit     admit                     driver    chunks         endpoints
//! ```
//!
//! Every endpoint takes this one path (`generate`); only the first and the last step know which it
//! is.
//!
//! # Where what is
//!
//! - `connection`: sockets, their limits, and when a client has left.
//! - `router`: routes, and what all answers have in common.
//! - `endpoints`: a folder for each API: how its requests are parsed and its answers written.
//! - `admit`: from a request's head to its admission. `driver`: from there to its end.
//! - `failure`: why a request got no answer, with which status and in which words.
//! - `work`: the threads for whatever takes long.
//!
//! No two modules need each other; `tests/agreement/modules.rs` holds it.
//!
//! # Invariants
//!
//! - Nothing reaches the engine without a queue permit and the policies' admission, in this order:
//!   no admitted request is refused for want of room.
//! - An admitted request is owned by one driver, which ends it once: one log line, one count, one
//!   settlement with the policies, and an end for its client, whatever happens to either of them.
//! - A cause becomes a status in `failure/status.rs` and nowhere else.
//! - Nothing that takes long for what a client sent is done on the runtime's threads: see `work.rs`.
//! - Body, head, connections, and how slowly each may come or go are bounded by [`ServerConfig`].
//!
//! # Noticing that a client left
//!
//! Each connection's socket is watched while a generation is under way, whatever lies in it (see
//! `connection/socket.rs`). When its client has left, the connection is dropped, and with it the
//! request's future or the body of its answer; the driver hears of that at once. A client that
//! closes only its sending half is taken to have left, as nearly all that do have, unless
//! `server.half_close` says otherwise; it still gets what is answered at once (see
//! `connection/client.rs`).
//!
//! # Errors have one shape
//!
//! Whatever is refused, and by whom, is told in OpenAI's shape and as JSON: what a framework's own
//! extractors refuse (`error_response`), and what hyper alone answers because it never becomes a
//! request: bytes that are not HTTP (400), heads that do not fit (431, 414)
//! (`connection/refusal.rs`).
//!
//! # Not here
//!
//! No WebAssembly, no MLX: policies are a chain that answers, the model a handle that computes.
//! No TLS: something in front of it does that. No authentication of its own: policies identify
//! callers, and without one that does, whoever reaches the port is served.

mod accounting;
mod activity;
mod admin;
mod admit;
mod alarm;
mod answer_state;
mod body;
mod cancel;
mod chunks;
mod config;
mod connection;
mod driver;
mod endpoints;
mod error_response;
mod failure;
mod generate;
mod host;
mod in_flight;
mod metrics;
mod metrics_listener;
mod model_stats;
mod models;
mod origin;
mod path_param;
mod paths;
mod prefix_keys;
mod request_head;
mod request_info;
mod result_store;
mod router;
mod serve;
mod stored_responses;
mod wall_clock;
mod work;
mod write_out;

pub use admin::{AdminParts, PolicyAdmin, Replacement, SwapError, SwapFuture, serve_admin};
pub use config::{AdminConfig, DetachedConfig, HalfClose, MetricsConfig, ServerConfig};
pub use connection::descriptors;
pub use endpoints::request_fields_md;
pub use host::ServerParts;
pub use in_flight::InFlight;
pub use metrics::ServerMetrics;
pub use metrics_listener::{MetricsParts, serve_metrics};
pub use models::ServedModel;
pub use prefix_keys::PrefixKeys;
pub use serve::{ServeOutcome, app, listen, serve};
pub use wall_clock::{WallClock, system_time};
pub use work::{
    Class, ModelPart, STUCK_MAX, WorkConfig, WorkError, WorkJob, WorkMetrics, WorkOwner, WorkPool,
};
