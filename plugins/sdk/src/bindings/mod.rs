//! Made by generate.sh from `wit/policy.wit`, one file for each world there.

#![allow(
    missing_docs,
    unreachable_pub,
    clippy::all,
    clippy::undocumented_unsafe_blocks,
    clippy::allow_attributes_without_reason,
    clippy::cast_lossless,
    clippy::semicolon_if_nothing_returned,
    reason = "generated; the generator's habits are not ours to correct"
)]

#[rustfmt::skip]
pub mod accounting;
#[rustfmt::skip]
pub mod admitting;
#[rustfmt::skip]
pub mod asking;
#[rustfmt::skip]
pub mod base;
#[rustfmt::skip]
pub mod guarding_streams;
#[rustfmt::skip]
pub mod identifying;
#[rustfmt::skip]
pub mod measuring;
#[rustfmt::skip]
pub mod reacting;
#[rustfmt::skip]
pub mod reading;
#[rustfmt::skip]
pub mod remembering;
#[rustfmt::skip]
pub mod routing;
#[rustfmt::skip]
pub mod transforming;

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use sha2::{Digest, Sha256};

    #[test]
    fn the_bindings_are_made_from_the_wit_that_is_there() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../wit/policy.wit");
        let wit = fs::read(path).expect("wit/policy.wit is in the repository");
        let now: String = Sha256::digest(wit).iter().map(|byte| format!("{byte:02x}")).collect();
        let then = include_str!("made-from.sha256").trim();
        assert_eq!(now, then, "wit/policy.wit has changed: run plugins/sdk/generate.sh");
    }
}
