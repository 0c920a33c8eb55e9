//! Model references: what they name, where the files are, how they get here.
//!
//! A [`ModelRef`] is what a user writes. A [`Catalog`] knows where models lie on this machine:
//! [`Catalog::locate`] answers from the disk alone, [`Catalog::pull`] fetches what is missing,
//! [`Catalog::list`] says what is there.
//!
//! # Invariants
//!
//! - What `locate` returns is whole: a download under way, or one that was cut, is never taken
//!   for a model.
//! - The network is used by `pull` and by nothing else.
//! - The environment is read by [`Catalog::from_env`] and by nothing else.
//!
//! # Not here
//!
//! Nothing looks into a model's files beyond what tells whether they are there; `models` does. What
//! a file is, `model-files` decides.
//! No index of our own: built-in models come through the user's pip, everything else through the
//! Hugging Face hub or whatever `HF_ENDPOINT` names in its place.

mod built_in;
mod catalog;
mod config;
mod hub;
mod progress;
mod reference;
mod verify;

pub use built_in::{BUILT_IN, BuiltIn, PackageFailure};
pub use catalog::{Catalog, Located, NotHere, NotPulled, StoredModel};
pub use config::{ExtraModelConfig, ModelConfig, Unknown, problems};
pub use hub::{Hub, HubFailure};
pub use progress::PullProgress;
pub use reference::{BadModelRef, HubRepo, ModelRef};
