//! Where the chunks of one piece of work write their results.

/// The address of a result's first number, which all threads of a piece of work have.
#[derive(Clone, Copy)]
pub(super) struct OutputPointer(pub(super) *mut f32);

// SAFETY: it is an address. Each chunk writes numbers that no other chunk writes; whoever writes
// through it says why that is so.
unsafe impl Send for OutputPointer {}
// SAFETY: as above.
unsafe impl Sync for OutputPointer {}
