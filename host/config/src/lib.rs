//! Finds, merges, checks and explains the configuration.
//!
//! Every setting is declared once, as a field of its component's own struct: the name, the type,
//! the default and the sentence that says when to change it. [`Config`] puts the structs side by
//! side; everything here (the known keys, `config/default.toml`, `config/REFERENCE.md`) is read
//! off them.
//!
//! # Precedence
//!
//! Default, then file, then environment (`INTERLOCK__SERVER__BIND`), then flag: the later one
//! wins, key by key. A list is one value: naming one `[[policy]]` replaces the default policies.
//!
//! # Invariants
//!
//! - Every problem is reported, not the first: each as key, relation, value and where it stands.
//! - A key that nobody knows is a problem wherever it comes from, and is told its nearest
//!   neighbour: a setting that is silently ignored is found out at 3 a.m.
//!
//! # Not here
//!
//! No meaning: what a setting does, and which values it takes, its component knows. No watching
//! of the file: a host reads its configuration once, at start.

mod check;
mod config;
mod keys;
mod layers;
mod log;
mod problem;
mod reference;
mod show;
mod values;

pub use check::{ConfigDraft, Effective, draft, load};
pub use config::Config;
pub use layers::{Flag, Sources};
pub use log::{LogConfig, LogFormat};
pub use problem::{Problem, Problems};
pub use reference::{default_toml, reference_md};
