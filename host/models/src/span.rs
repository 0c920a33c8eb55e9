//! Where a row's tokens and its pages lie: what the CPU's pages and MLX's are both told of a row.

use interlock_engine::PageId;

/// Positions in one page. On the CPU a page's keys are read by whole vectors of positions, so it is
/// a multiple of 16; smaller pages waste less memory at each sequence's end and share prefixes more
/// finely, larger ones make longer reads.
pub(crate) const PAGE_TOKENS: u32 = 32;

/// One row of a pass: where its tokens are among the pass's, and where its pages are.
#[derive(Clone, Copy)]
pub(crate) struct Span<'a> {
    /// The index in the pass of the row's first token, and the number of the row's tokens.
    pub(crate) start: usize,
    pub(crate) count: usize,
    /// The position in the sequence of the row's first token.
    pub(crate) from: usize,
    pub(crate) pages: &'a [PageId],
}

impl Span<'_> {
    /// The index in the pool of the sequence's `at`th page.
    pub(crate) fn page(&self, at: usize) -> usize {
        self.pages[at].0 as usize
    }
}
