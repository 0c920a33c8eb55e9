//! Keys by which policies tell which prompts begin alike, without reading any of them.
//!
//! A key is for sending requests to where their beginning has been computed, so it is equal exactly
//! where that may be shared: within a tenant, or among all.
//!
//! # Invariants
//!
//! - The hash has a secret of this process, so a key tells nobody what the prompt was: not by
//!   guessing prompts and hashing them, nor beside the keys of another host or run.

use std::hash::{BuildHasher, DefaultHasher, Hash, Hasher, RandomState};

use interlock_engine::PrefixSharing;

use crate::endpoints::PromptInput;

/// Makes the keys of one process.
#[derive(Debug)]
pub struct PrefixKeys {
    sharing: PrefixSharing,
    /// `None` has no secret.
    secret: Option<RandomState>,
}

impl PrefixKeys {
    /// With a secret of their own. Beginnings may be shared among these.
    pub fn new(sharing: PrefixSharing) -> Self {
        Self { sharing, secret: Some(RandomState::new()) }
    }

    /// Keys that are the same in every process, for simulations that must repeat. No client's
    /// prompt is in them.
    pub fn without_secret(sharing: PrefixSharing) -> Self {
        Self { sharing, secret: None }
    }

    /// Of a tenant's prompt; 0 when it is no text.
    pub(crate) fn key(&self, tenant: &str, input: &PromptInput) -> u64 {
        let mut hasher =
            self.secret.as_ref().map_or_else(DefaultHasher::new, RandomState::build_hasher);
        self.sharing.scope(tenant).hash(&mut hasher);
        if !input.hash_beginning(&mut hasher) {
            return 0;
        }
        // 0 has a meaning of its own.
        hasher.finish().max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> PromptInput {
        PromptInput::Text(text.to_owned())
    }

    #[test]
    fn equal_beginnings_of_one_tenant_have_one_key_and_nobody_elses_has_it() {
        let keys = PrefixKeys::new(PrefixSharing::Tenant);
        let long = "x".repeat(1024);
        let key = |tenant, end: &str| keys.key(tenant, &text(&format!("{long}{end}")));
        assert_eq!(key("acme", "one"), key("acme", "another"));
        assert_ne!(key("acme", "one"), key("globex", "one"));
        assert_ne!(key("acme", "one"), key("", "one"));
        assert_ne!(key("acme", ""), keys.key("acme", &text(&long[1..])));
    }

    #[test]
    fn where_all_share_equal_beginnings_have_one_key_whoever_asks() {
        let keys = PrefixKeys::new(PrefixSharing::All);
        let key = |tenant| keys.key(tenant, &text("hello"));
        assert_eq!(key("acme"), key("globex"));
    }

    /// Two processes are two of these.
    #[test]
    fn who_guesses_a_prompt_cannot_make_its_key() {
        let key = |keys: PrefixKeys| keys.key("acme", &text("hello"));
        let guessed = key(PrefixKeys::without_secret(PrefixSharing::Tenant));
        let [one, other] = [(), ()].map(|()| key(PrefixKeys::new(PrefixSharing::Tenant)));
        assert_ne!(one, guessed);
        assert_ne!(one, other);
    }

    #[test]
    fn a_simulation_has_the_same_keys_again() {
        let key = || PrefixKeys::without_secret(PrefixSharing::Tenant).key("acme", &text("hello"));
        assert_eq!(key(), key());
    }

    #[test]
    fn tokens_have_no_key() {
        let tokens = PromptInput::Tokens { path: "prompt".into(), ids: vec![1, 2, 3] };
        assert_eq!(PrefixKeys::new(PrefixSharing::Tenant).key("acme", &tokens), 0);
    }
}
