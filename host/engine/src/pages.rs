//! Which request holds which pages of the cache, and what computed pages may be shared.
//!
//! A page holds the keys and values of a fixed number of tokens. A request leases pages; a page
//! that is full and computed goes into an index under the tokens it stands for, and a request of the
//! same [`PrefixScope`] whose prompt begins with the same tokens leases that very page instead of
//! computing it again.
//! A page that nobody leases any more but the index still knows is *idle*: it is given away when
//! no free one is left, the least recently used first.
//!
//! # Invariants
//!
//! - A [`Lease`] gives its pages back when it is dropped. The pool is shared with its leases by
//!   `Rc`, on the one thread there is: a page cannot leak, or be given back twice.
//! - A page in the index is full, and nobody writes to it again.
//! - The index compares tokens, not hashes of them: a hit is never another prompt's page.
//! - The index begins with a scope, and its page is the only way to the next: a hit is never another
//!   scope's page.
//! - Every page is free, idle or leased; the three add up to all of them ([`Pages::audit`]).

use std::cell::RefCell;
use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;

use interlock_request::TokenId;

use crate::{PageId, PrefixScope};

/// All pages of a model's cache.
#[derive(Debug, Clone)]
pub(crate) struct Pages(Rc<RefCell<Pool>>);

/// Pages that one request holds.
#[derive(Debug)]
pub(crate) struct Lease {
    pool: Pages,
    scope: PrefixScope,
    pages: Vec<PageId>,
    /// What each of the first pages holds, as the index names it: those are full.
    contents: Vec<Content>,
}

/// Names what a page holds, together with all pages before it. Never used again for anything else.
type Content = u64;

/// What the index knows a page by: what it follows, and its own tokens.
type Key = (Before, Rc<[TokenId]>);

/// What a page follows.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Before {
    /// Nothing: it is the first one of a prompt of this scope.
    Start(PrefixScope),
    /// A page of this content.
    Page(Content),
}

/// What the index knew of the beginning of a history when it was last asked. Asked again, it is
/// looked at whether that is still so, and on from there: a name is compared for each page, and no
/// token before the first that was unknown.
#[derive(Debug)]
pub(crate) struct Found {
    /// Whose pages may be found.
    scope: PrefixScope,
    pages: Vec<(PageId, Content)>,
}

impl Found {
    /// Nothing yet of this scope's.
    pub(crate) fn nothing(scope: PrefixScope) -> Self {
        Self { scope, pages: vec![] }
    }
}

/// What a request would find if it started, without starting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Prospect {
    /// Pages that it lacks.
    pub(crate) lacks: u32,
    /// Pages that there are beside those that it would share.
    pub(crate) available: u32,
}

#[derive(Debug)]
struct Pool {
    page_tokens: usize,
    /// By page: how many leases hold it, and what the index knows it for.
    pages: Vec<Page>,
    free: Vec<PageId>,
    /// Idle pages by when they were given back: the first is the one to give away.
    idle: BTreeMap<u64, PageId>,
    index: HashMap<Key, PageId>,
    remember: bool,
    given_back: u64,
    named: Content,
    /// How often the index was asked.
    #[cfg(test)]
    looked_up: std::cell::Cell<usize>,
}

#[derive(Debug, Default, Clone)]
struct Page {
    leases: u32,
    known: Option<Known>,
    /// When it became idle, if it is.
    idle_since: Option<u64>,
}

#[derive(Debug, Clone)]
struct Known {
    content: Content,
    key: Key,
}

/// How many pages are what.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PageAudit {
    /// Held by requests.
    pub leased: u32,
    /// Held by nobody, remembered for whoever begins alike.
    pub idle: u32,
    /// Empty.
    pub free: u32,
}

impl PageAudit {
    /// All that a request could get.
    pub fn available(&self) -> u32 {
        self.idle + self.free
    }
}

impl Pages {
    /// Of `pages` pages of `page_tokens` tokens. `remember`: may computed pages be shared?
    pub(crate) fn new(pages: u32, page_tokens: u32, remember: bool) -> Self {
        Self(Rc::new(RefCell::new(Pool {
            page_tokens: page_tokens.max(1) as usize,
            pages: vec![Page::default(); pages as usize],
            // Taken from the end: the first pages first.
            free: (0..pages).rev().map(PageId).collect(),
            idle: BTreeMap::new(),
            index: HashMap::new(),
            remember,
            given_back: 0,
            named: 0,
            #[cfg(test)]
            looked_up: std::cell::Cell::new(0),
        })))
    }

    /// How many pages `tokens` tokens take.
    pub(crate) fn count(&self, tokens: usize) -> u32 {
        count(tokens.div_ceil(self.0.borrow().page_tokens))
    }

    /// Would so many tokens fit, with nobody else there?
    pub(crate) fn could_hold(&self, tokens: usize) -> bool {
        self.count(tokens) as usize <= self.0.borrow().pages.len()
    }

    /// What `history` would find. `found` is what it found before, and is what it finds now.
    pub(crate) fn look(&self, history: &[TokenId], found: &mut Found) -> Prospect {
        let pool = self.0.borrow();
        pool.find(history, found);
        let shares_idle =
            found.pages.iter().filter(|(page, _)| pool.page(*page).idle_since.is_some()).count();
        Prospect {
            lacks: count(history.len().div_ceil(pool.page_tokens) - found.pages.len()),
            available: count(pool.free.len() + pool.idle.len() - shares_idle),
        }
    }

    /// Leases what the index knows of the beginning of `history`, and has `found` of it before.
    pub(crate) fn lease(&self, history: &[TokenId], found: &mut Found) -> Lease {
        let mut pool = self.0.borrow_mut();
        pool.find(history, found);
        let (mut pages, mut contents) = (vec![], vec![]);
        for &(page, content) in &found.pages {
            pool.take(page);
            pages.push(page);
            contents.push(content);
        }
        drop(pool);
        Lease { pool: self.clone(), scope: found.scope.clone(), pages, contents }
    }

    /// Forgets what all pages held: it is lost.
    pub(crate) fn forget(&self) {
        let mut pool = self.0.borrow_mut();
        let Pool { pages, free, idle, index, .. } = &mut *pool;
        index.clear();
        for page in pages.iter_mut() {
            page.known = None;
            page.idle_since = None;
        }
        free.extend(std::mem::take(idle).into_values());
    }

    /// How many pages are what.
    ///
    /// # Panics
    ///
    /// When a page is in two states, or in none: the books are wrong, and with them every cache.
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

    /// Pages that nobody leases and the index knows.
    pub(crate) fn idle(&self) -> u32 {
        count(self.0.borrow().idle.len())
    }

    /// As [`Pages::audit`], without looking at each page.
    pub(crate) fn available(&self) -> u32 {
        let pool = self.0.borrow();
        count(pool.free.len() + pool.idle.len())
    }
}

impl Lease {
    pub(crate) fn pages(&self) -> &[PageId] {
        &self.pages
    }

    /// Whose pages it may share.
    pub(crate) fn scope(&self) -> &PrefixScope {
        &self.scope
    }

    /// Tokens at the beginning that need not be computed.
    pub(crate) fn cached_tokens(&self) -> usize {
        self.contents.len() * self.pool.0.borrow().page_tokens
    }

    /// Pages that it lacks to hold `tokens` tokens.
    pub(crate) fn lacks(&self, tokens: usize) -> u32 {
        self.pool.count(tokens).saturating_sub(count(self.pages.len()))
    }

    /// Pages that would come free without it.
    pub(crate) fn alone(&self) -> u32 {
        let pool = self.pool.0.borrow();
        count(self.pages.iter().filter(|page| pool.page(**page).leases == 1).count())
    }

    /// Takes pages until `tokens` tokens fit. False, and nothing is taken, if there are too few.
    #[must_use]
    pub(crate) fn extend(&mut self, tokens: usize) -> bool {
        let lacks = self.lacks(tokens) as usize;
        let mut pool = self.pool.0.borrow_mut();
        if pool.free.len() + pool.idle.len() < lacks {
            return false;
        }
        for _ in 0..lacks {
            let page = pool.take_any();
            self.pages.push(page);
        }
        true
    }

    /// `history` is computed up to its end: full pages of it may be shared from now on.
    pub(crate) fn computed(&mut self, history: &[TokenId]) {
        let mut pool = self.pool.0.borrow_mut();
        let full = history.chunks_exact(pool.page_tokens).zip(&self.pages);
        for (tokens, page) in full.skip(self.contents.len()) {
            let before = before(&self.scope, self.contents.last());
            self.contents.push(pool.learn(before, tokens, *page));
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut pool = self.pool.0.borrow_mut();
        // From the end, so that the end of a prompt is given away before its beginning: a page
        // helps nobody without those before it.
        for page in self.pages.drain(..).rev() {
            pool.give_back(page);
        }
    }
}

impl Pool {
    fn page(&self, PageId(at): PageId) -> &Page {
        &self.pages[at as usize]
    }

    fn page_mut(&mut self, PageId(at): PageId) -> &mut Page {
        &mut self.pages[at as usize]
    }

    /// The known pages that `history` begins with, and what they are. At least the last token is
    /// left to compute: something must be, for the next one to be drawn.
    fn find(&self, history: &[TokenId], Found { scope, pages: found }: &mut Found) {
        // A name is never used again, so a page that has it holds the same tokens, behind the same.
        let is_known = |&(page, content): &(PageId, Content)| {
            self.page(page).known.as_ref().is_some_and(|known| known.content == content)
        };
        let still = found.iter().take_while(|page| is_known(page)).count();
        found.truncate(still);
        let end = history.len().saturating_sub(1);
        let mut last = found.last().map(|(_, content)| *content);
        for tokens in history[..end].chunks_exact(self.page_tokens).skip(still) {
            #[cfg(test)]
            self.looked_up.set(self.looked_up.get() + 1);
            let key = (before(scope, last.as_ref()), tokens.into());
            let Some(&page) = self.index.get(&key) else { return };
            let known = self.page(page).known.as_ref().expect("what the index has is known");
            last = Some(known.content);
            found.push((page, known.content));
        }
    }

    /// One more lease of a page that is known.
    fn take(&mut self, page: PageId) {
        let taken = self.page_mut(page);
        taken.leases += 1;
        if let Some(since) = taken.idle_since.take() {
            self.idle.remove(&since);
        }
    }

    /// An empty page, or the idle one that was used least recently.
    fn take_any(&mut self) -> PageId {
        let page = self.free.pop().unwrap_or_else(|| {
            let (_, page) = self.idle.pop_first().expect("the caller counted them");
            let gone = std::mem::take(self.page_mut(page));
            if let Some(known) = gone.known {
                self.index.remove(&known.key);
            }
            page
        });
        self.page_mut(page).leases = 1;
        page
    }

    fn give_back(&mut self, page: PageId) {
        let now = self.given_back;
        let given = self.page_mut(page);
        given.leases -= 1;
        if given.leases > 0 {
            return;
        }
        if given.known.is_some() {
            given.idle_since = Some(now);
            self.idle.insert(now, page);
            self.given_back += 1;
        } else {
            self.free.push(page);
        }
    }

    /// Enters a full page into the index; what it is called there.
    ///
    /// If another page is known for the same tokens, because two requests computed them at the
    /// same time, that one stays, and this one is its lease's own; both have the same name.
    fn learn(&mut self, before: Before, tokens: &[TokenId], page: PageId) -> Content {
        let place = match self.index.entry((before, tokens.into())) {
            Entry::Occupied(known) => {
                let PageId(at) = *known.get();
                let known = self.pages[at as usize].known.as_ref();
                return known.expect("what the index has is known").content;
            }
            Entry::Vacant(place) => place,
        };
        self.named += 1;
        let content = self.named;
        if self.remember {
            let known = Known { content, key: place.key().clone() };
            place.insert(page);
            self.page_mut(page).known = Some(known);
        }
        content
    }
}

/// What comes behind a page of this content, or at the beginning.
fn before(scope: &PrefixScope, last: Option<&Content>) -> Before {
    last.map_or_else(|| Before::Start(scope.clone()), |content| Before::Page(*content))
}

fn count(pages: usize) -> u32 {
    u32::try_from(pages).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests;
