//! Finds a page by what it holds.
//!
//! A key is hashed once, when it is looked up or added; the hash stays with the page, so that growing the
//! index and evicting from it hash nothing. Clients choose the tokens, so the hash is keyed by the
//! operating system's randomness: nobody can find tokens whose hashes collide.

use ahash::RandomState;
use hashbrown::HashTable;
use hashbrown::hash_table::Entry;
use interlock_request::TokenId;

use super::{ContentId, Parent};
use crate::PageId;

/// The full and computed pages that may be shared.
#[derive(Debug, Default)]
pub(super) struct PageIndex {
    table: HashTable<IndexedPage>,
    keys: RandomState,
    contents_named: ContentId,
    /// Look-ups, for a test.
    #[cfg(test)]
    pub(super) looked_up: std::cell::Cell<usize>,
}

/// A page in the index, with its key: what the page follows, and its own tokens.
#[derive(Debug)]
struct IndexedPage {
    hash: u64,
    parent: Parent,
    tokens: Box<[TokenId]>,
    page: PageId,
    content: ContentId,
}

/// What a page that is in the index knows of its entry there.
#[derive(Debug, Clone, Copy)]
pub(super) struct IndexEntry {
    pub(super) content: ContentId,
    hash: u64,
}

/// What became of a page that was to be added.
pub(super) enum Added {
    /// It is in the index.
    Entry(IndexEntry),
    /// Another page of the same content is.
    Known(ContentId),
}

impl PageIndex {
    /// The page that holds these tokens behind this parent, and the name of its content.
    pub(super) fn find(&self, parent: &Parent, tokens: &[TokenId]) -> Option<(PageId, ContentId)> {
        #[cfg(test)]
        self.looked_up.set(self.looked_up.get() + 1);
        self.find_hashed(self.hash(parent, tokens), parent, tokens)
    }

    fn find_hashed(
        &self,
        hash: u64,
        parent: &Parent,
        tokens: &[TokenId],
    ) -> Option<(PageId, ContentId)> {
        let found = self.table.find(hash, |known| known.is(hash, parent, tokens))?;
        Some((found.page, found.content))
    }

    /// Adds a full page, unless one of the same content is there.
    pub(super) fn add(&mut self, parent: Parent, tokens: &[TokenId], page: PageId) -> Added {
        self.add_hashed(self.hash(&parent, tokens), parent, tokens, page)
    }

    fn add_hashed(&mut self, hash: u64, parent: Parent, tokens: &[TokenId], page: PageId) -> Added {
        let same = |known: &IndexedPage| known.is(hash, &parent, tokens);
        match self.table.entry(hash, same, |known| known.hash) {
            Entry::Occupied(known) => Added::Known(known.get().content),
            Entry::Vacant(vacant) => {
                self.contents_named += 1;
                let content = self.contents_named;
                vacant.insert(IndexedPage { hash, parent, tokens: tokens.into(), page, content });
                Added::Entry(IndexEntry { content, hash })
            }
        }
    }

    fn hash(&self, parent: &Parent, tokens: &[TokenId]) -> u64 {
        self.keys.hash_one((parent, tokens))
    }

    /// Names a content that is not added.
    pub(super) fn name_only(&mut self) -> ContentId {
        self.contents_named += 1;
        self.contents_named
    }

    /// Takes a page out again.
    pub(super) fn remove(&mut self, entry: IndexEntry) {
        let is_it = |known: &IndexedPage| known.content == entry.content;
        if let Ok(known) = self.table.find_entry(entry.hash, is_it) {
            known.remove();
        }
    }

    /// Takes all pages out. Names that were given are not given again.
    pub(super) fn clear(&mut self) {
        self.table.clear();
    }
}

impl IndexedPage {
    fn is(&self, hash: u64, parent: &Parent, tokens: &[TokenId]) -> bool {
        self.hash == hash && self.parent == *parent && *self.tokens == *tokens
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::PrefixSharing;

    #[test]
    fn pages_whose_hashes_collide_are_told_apart_by_their_parent_and_their_tokens() {
        const HASH: u64 = 7;
        let start = |tenant| Parent::Start(PrefixSharing::Tenant.scope(tenant));
        let keys = [
            (start("acme"), [1, 2]),
            (start("acme"), [1, 3]),
            (start("globex"), [1, 2]),
            (Parent::Page(1), [1, 2]),
            (Parent::Page(2), [1, 2]),
        ];
        let mut index = PageIndex::default();
        let entries: Vec<_> = keys
            .iter()
            .zip(0..)
            .map(|((parent, tokens), n)| {
                match index.add_hashed(HASH, parent.clone(), tokens, PageId(n)) {
                    Added::Entry(entry) => entry,
                    Added::Known(content) => panic!("{parent:?} {tokens:?} is taken for {content}"),
                }
            })
            .collect();
        let found = |index: &PageIndex| {
            let found = keys.iter().map(|(parent, tokens)| {
                index.find_hashed(HASH, parent, tokens).map(|(PageId(page), _)| page)
            });
            found.collect::<Vec<_>>()
        };
        let mut expected = [Some(0), Some(1), Some(2), Some(3), Some(4)];
        assert_eq!(found(&index), expected);
        for gone in [1, 4, 0, 3, 2] {
            index.remove(entries[gone]);
            expected[gone] = None;
            assert_eq!(found(&index), expected);
        }
    }

    #[test]
    fn nobody_knows_beforehand_what_a_page_hashes_to() {
        let [one, other] = [(); 2].map(|()| PageIndex::default());
        let parent = Parent::Page(1);
        assert_eq!(one.hash(&parent, &[1, 2]), one.hash(&parent, &[1, 2]));
        assert_ne!(one.hash(&parent, &[1, 2]), other.hash(&parent, &[1, 2]));
    }
}
