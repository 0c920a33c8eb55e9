//! HTTP: the OpenAI API on one side, the engine's handle on the other.
//!
//! ```text
//! bytes -> Ask -> tokens -> seat, policies -> driver -> pieces -> voice -> bytes
//!          ask    admit     admit             life               voice
//! ```
//!
//! Every endpoint takes this one path; only the first and the last step know which it is.
//!
//! # Invariants
//!
//! - Nothing reaches the engine without a seat and the policies' consent, in this order: no
//!   admitted request is refused for want of room.
//! - An admitted request is owned by one driver, which ends it once: one log line, one count,
//!   one account, and an end for its client, whatever happens to either of them.
//! - A cause becomes a status in `failure` and nowhere else.
//! - Nothing that takes long for what a client sent is done on the runtime's threads: see `work.rs`.
//! - Body, head, connections, and how slowly each may come or go are bounded by [`ServerConfig`].
//!
//! # Noticing that a client left
//!
//! Each connection's socket is watched while a generation is under way, whatever lies in it (see
//! `socket`). When its client has left, the connection is dropped, and with it the request's future
//! or the body of its answer; the driver hears of that at once. A client that closes only its
//! sending half is taken to have left, as nearly all that do have, unless `server.half_close` says
//! otherwise; it still gets what is answered at once (see `client`).
//!
//! # Errors have one shape
//!
//! Whatever is refused, and by whom, is told in OpenAI's shape and as JSON: what a framework's own
//! extractors refuse (`shape`), and what hyper alone answers because it never becomes a request:
//! bytes that are not HTTP (400), heads that do not fit (431, 414) (`refusal`).
//!
//! # Not here
//!
//! No WebAssembly, no MLX: policies are a chain that answers, the model a handle that computes.
//! No TLS and no authentication: something in front of it does both.

mod activity;
mod admin;
mod admit;
mod alarm;
mod ask;
mod bind;
mod body;
mod cancel;
mod client;
mod config;
mod doors;
mod failure;
mod generate;
mod host;
mod keep_alive;
mod later;
mod ledger;
mod life;
mod listener;
mod live;
mod metrics;
mod metrics_listener;
mod models;
mod origin;
mod paths;
mod patience;
mod pieces;
mod prefix_keys;
mod recent;
mod refusal;
mod request_clock;
mod results;
mod router;
mod serve;
mod shape;
mod socket;
mod voice;
mod work;

pub use admin::{AdminParts, NotSwapped, PolicyAdmin, Replacement, Swapping, serve_admin};
pub use ask::request_fields_md;
pub use config::{AdminConfig, DetachedConfig, HalfClose, MetricsConfig, ServerConfig};
pub use host::{ServerParts, Wall, system_time};
pub use listener::descriptors;
pub use live::InFlight;
pub use metrics::ServerMetrics;
pub use metrics_listener::{MetricsParts, serve_metrics};
pub use models::ServedModel;
pub use prefix_keys::PrefixKeys;
pub use serve::{Served, app, listen, serve};
pub use work::{Class, Job, NotDone, Owner, Part, STUCK_MAX, WorkConfig, WorkMetrics, WorkPool};
