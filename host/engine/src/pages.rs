//! Which request holds which pages of the cache, and which computed pages may be shared.
//!
//! A page holds the keys and values of a fixed number of tokens. A request leases pages. A page that is
//! full and computed goes into an index under its tokens. A request of the same [`PrefixScope`] whose
//! prompt begins with the same tokens leases that page instead of computing it again. A page without a
//! lease that is still in the index is *idle*: it is evicted when no free page is left, the least
//! recently used first.
//!
//! # Invariants
//!
//! - A [`Lease`] releases its pages when it is dropped. The pool is shared with its leases by `Rc` on
//!   the one engine thread, so a page cannot leak or be released twice.
//! - A page in the index is full, and is never written again.
//! - The index compares tokens, not hashes of them: a hit is never another prompt's page.
//! - The first key of a prefix has its scope in it, and each further key names the page before it: a hit
//!   is never another scope's page.
//! - Every page is free, idle or leased, and the three add up to all pages ([`Pages::audit`]).

mod index;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use interlock_request::TokenId;

use self::index::{Added, IndexEntry, PageIndex};
use crate::{PageId, PrefixScope};

/// All pages of a model's cache.
#[derive(Debug, Clone)]
pub(crate) struct Pages(Rc<RefCell<PagePool>>);

/// Pages that one request holds.
#[derive(Debug)]
pub(crate) struct Lease {
    pool: Pages,
    scope: PrefixScope,
    pages: Vec<PageId>,
    /// The contents of the first pages, which are full, as the index names them.
    contents: Vec<ContentId>,
}

/// Names what a page holds, together with all pages before it. A name is never used for anything else.
type ContentId = u64;

/// What a page follows.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Parent {
    /// The page is the first of a prompt of this scope.
    Start(PrefixScope),
    /// The page follows one of this content.
    Page(ContentId),
}

/// The pages that the index had for the beginning of a history when it was last asked. A further look-up
/// first compares the names of these pages and goes on after those that are still there, so it compares
/// no token twice.
#[derive(Debug)]
pub(crate) struct PrefixMatch {
    /// The scope whose pages may be found.
    scope: PrefixScope,
    pages: Vec<(PageId, ContentId)>,
}

impl PrefixMatch {
    /// An empty match in this scope.
    pub(crate) fn nothing(scope: PrefixScope) -> Self {
        Self { scope, pages: vec![] }
    }
}

/// The pages that a waiting request would need if it started now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PageDemand {
    /// Pages that it would have to take.
    pub(crate) lacks: u32,
    /// Free and idle pages beside those that it would share.
    pub(crate) available: u32,
}

#[derive(Debug)]
struct PagePool {
    page_tokens: usize,
    /// The state of each page, by its id.
    pages: Vec<PageState>,
    free: Vec<PageId>,
    /// Idle pages in the order of their release. The first is evicted next.
    idle: BTreeMap<u64, PageId>,
    index: PageIndex,
    prefix_cache: bool,
    releases: u64,
}

#[derive(Debug, Default, Clone)]
struct PageState {
    leases: u32,
    entry: Option<IndexEntry>,
    /// The release since which the page is idle, if it is.
    idle_since: Option<u64>,
}

/// Counts of pages by state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PageAudit {
    /// Pages that requests hold.
    pub leased: u32,
    /// Pages that no request holds, and that keep a prefix.
    pub idle: u32,
    /// Pages that hold nothing.
    pub free: u32,
}

impl PageAudit {
    /// Pages that a request could take.
    pub fn available(&self) -> u32 {
        self.idle + self.free
    }
}

impl Pages {
    /// A pool of `pages` pages of `page_tokens` tokens. `prefix_cache` says whether computed pages are
    /// shared.
    pub(crate) fn new(pages: u32, page_tokens: u32, prefix_cache: bool) -> Self {
        Self(Rc::new(RefCell::new(PagePool {
            page_tokens: page_tokens.max(1) as usize,
            pages: vec![PageState::default(); pages as usize],
            // Taken from the end: the first pages first.
            free: (0..pages).rev().map(PageId).collect(),
            idle: BTreeMap::new(),
            index: PageIndex::default(),
            prefix_cache,
            releases: 0,
        })))
    }

    /// Pages that `tokens` tokens take.
    pub(crate) fn count(&self, tokens: usize) -> u32 {
        count(tokens.div_ceil(self.0.borrow().page_tokens))
    }

    /// Whether this many tokens fit into all pages together.
    pub(crate) fn could_hold(&self, tokens: usize) -> bool {
        self.count(tokens) as usize <= self.0.borrow().pages.len()
    }

    /// The pages that a request with this history would need. `found` is its last match, and is updated.
    pub(crate) fn demand(&self, history: &[TokenId], found: &mut PrefixMatch) -> PageDemand {
        let pool = self.0.borrow();
        pool.find(history, found);
        let shares_idle =
            found.pages.iter().filter(|(page, _)| pool.page(*page).idle_since.is_some()).count();
        PageDemand {
            lacks: count(history.len().div_ceil(pool.page_tokens) - found.pages.len()),
            available: count(pool.free.len() + pool.idle.len() - shares_idle),
        }
    }

    /// Leases the pages that the index has for the beginning of `history`. `found` is its last match, and
    /// is updated.
    pub(crate) fn lease(&self, history: &[TokenId], found: &mut PrefixMatch) -> Lease {
        let mut pool = self.0.borrow_mut();
        pool.find(history, found);
        let (mut pages, mut contents) = (vec![], vec![]);
        for &(page, content) in &found.pages {
            pool.share(page);
            pages.push(page);
            contents.push(content);
        }
        drop(pool);
        Lease { pool: self.clone(), scope: found.scope.clone(), pages, contents }
    }

    /// Empties the index and all pages, since their contents are lost.
    pub(crate) fn clear_contents(&self) {
        let mut pool = self.0.borrow_mut();
        let PagePool { pages, free, idle, index, .. } = &mut *pool;
        index.clear();
        for page in pages.iter_mut() {
            page.entry = None;
            page.idle_since = None;
        }
        free.extend(std::mem::take(idle).into_values());
    }

    /// Counts the pages by state.
    ///
    /// # Panics
    ///
    /// When a page is in two states or in none: a bug that could corrupt any cache.
    pub(crate) fn audit(&self) -> PageAudit {
        let pool = self.0.borrow();
        let leased = pool.pages.iter().filter(|page| page.leases > 0).count();
        let audit = PageAudit {
            leased: count(leased),
            idle: count(pool.idle.len()),
            free: count(pool.free.len()),
        };
        assert_eq!(leased + pool.idle.len() + pool.free.len(), pool.pages.len(), "{audit:?}");
        audit
    }

    /// Pages without a lease that the index has.
    pub(crate) fn idle(&self) -> u32 {
        count(self.0.borrow().idle.len())
    }

    /// Free and idle pages.
    pub(crate) fn available(&self) -> u32 {
        let pool = self.0.borrow();
        count(pool.free.len() + pool.idle.len())
    }
}

impl Lease {
    pub(crate) fn pages(&self) -> &[PageId] {
        &self.pages
    }

    /// The scope whose pages it may share.
    pub(crate) fn scope(&self) -> &PrefixScope {
        &self.scope
    }

    /// Tokens at the beginning that are in the cache already.
    pub(crate) fn cached_tokens(&self) -> usize {
        self.contents.len() * self.pool.0.borrow().page_tokens
    }

    /// Pages that it lacks to hold `tokens` tokens.
    pub(crate) fn lacks(&self, tokens: usize) -> u32 {
        self.pool.count(tokens).saturating_sub(count(self.pages.len()))
    }

    /// Pages that no other lease holds.
    pub(crate) fn exclusive_pages(&self) -> u32 {
        let pool = self.pool.0.borrow();
        count(self.pages.iter().filter(|page| pool.page(**page).leases == 1).count())
    }

    /// Takes pages until `tokens` tokens fit. Returns false and takes none if there are too few.
    #[must_use]
    pub(crate) fn extend(&mut self, tokens: usize) -> bool {
        let lacks = self.lacks(tokens) as usize;
        let mut pool = self.pool.0.borrow_mut();
        if pool.free.len() + pool.idle.len() < lacks {
            return false;
        }
        for _ in 0..lacks {
            let page = pool.allocate();
            self.pages.push(page);
        }
        true
    }

    /// Learns that `history` is computed to its end. Full pages of it may be shared from now on.
    pub(crate) fn mark_computed(&mut self, history: &[TokenId]) {
        let mut pool = self.pool.0.borrow_mut();
        let full = history.chunks_exact(pool.page_tokens).zip(&self.pages);
        for (tokens, page) in full.skip(self.contents.len()) {
            let parent = parent(&self.scope, self.contents.last());
            self.contents.push(pool.add_to_index(parent, tokens, *page));
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut pool = self.pool.0.borrow_mut();
        // From the end, so that the end of a prompt is evicted before its beginning: a page is of no
        // use without the pages before it.
        for page in self.pages.drain(..).rev() {
            pool.release(page);
        }
    }
}

impl PagePool {
    fn page(&self, PageId(at): PageId) -> &PageState {
        &self.pages[at as usize]
    }

    fn page_mut(&mut self, PageId(at): PageId) -> &mut PageState {
        &mut self.pages[at as usize]
    }

    /// The known pages that `history` begins with, and what they are. At least the last token is
    /// left to compute: something must be, for the next one to be drawn.
    fn find(&self, history: &[TokenId], PrefixMatch { scope, pages: found }: &mut PrefixMatch) {
        // A name is never used again, so a page that has it holds the same tokens, behind the same.
        let is_known = |&(page, content): &(PageId, ContentId)| {
            self.page(page).entry.as_ref().is_some_and(|known| known.content == content)
        };
        let still = found.iter().take_while(|page| is_known(page)).count();
        found.truncate(still);
        let end = history.len().saturating_sub(1);
        let mut last = found.last().map(|(_, content)| *content);
        for tokens in history[..end].chunks_exact(self.page_tokens).skip(still) {
            let parent = parent(scope, last.as_ref());
            let Some((page, content)) = self.index.find(&parent, tokens) else { return };
            last = Some(content);
            found.push((page, content));
        }
    }

    /// Adds a lease to a page that is in the index.
    fn share(&mut self, page: PageId) {
        let taken = self.page_mut(page);
        taken.leases += 1;
        if let Some(since) = taken.idle_since.take() {
            self.idle.remove(&since);
        }
    }

    /// Takes an empty page, or evicts the idle one that was used least recently.
    fn allocate(&mut self) -> PageId {
        let page = self.free.pop().unwrap_or_else(|| {
            let (_, page) = self.idle.pop_first().expect("the caller counted them");
            let gone = std::mem::take(self.page_mut(page));
            if let Some(known) = gone.entry {
                self.index.remove(known);
            }
            page
        });
        self.page_mut(page).leases = 1;
        page
    }

    fn release(&mut self, page: PageId) {
        let now = self.releases;
        let given = self.page_mut(page);
        given.leases -= 1;
        if given.leases > 0 {
            return;
        }
        if given.entry.is_some() {
            given.idle_since = Some(now);
            self.idle.insert(now, page);
            self.releases += 1;
        } else {
            self.free.push(page);
        }
    }

    /// Adds a full page to the index and returns the name of its content.
    ///
    /// If the index has a page of the same content, because two requests computed it at the same time,
    /// that page stays in the index, and the new one belongs to its lease alone. Both have the same name.
    fn add_to_index(&mut self, parent: Parent, tokens: &[TokenId], page: PageId) -> ContentId {
        if !self.prefix_cache {
            return self.index.name_only();
        }
        match self.index.add(parent, tokens, page) {
            Added::Known(content) => content,
            Added::Entry(entry) => {
                self.page_mut(page).entry = Some(entry);
                entry.content
            }
        }
    }
}

/// The parent of the page after one of this content, or of the first page.
fn parent(scope: &PrefixScope, last: Option<&ContentId>) -> Parent {
    last.map_or_else(|| Parent::Start(scope.clone()), |content| Parent::Page(*content))
}

fn count(pages: usize) -> u32 {
    u32::try_from(pages).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests;
