//! Rows of activations in fixed point: 16 bits for each number, and a scale for each 32 of them.
//!
//! ```text
//! x = scale * (256 * high + low)      high and low are signed bytes, -32512 <= 256 * high + low <= 32512
//!
//! panel of R rows, for each block of 32 inputs:
//!    R x { high: i8[32]  low: i8[32] }   scale: f32[R]   sum: f32[R]     (sum = the block's numbers, added up)
//! ```
//! Rows that a product computes together lie in one panel, interleaved, so that the product walks
//! through memory with one address.
//!
//! Sixteen bits, not the usual eight: a number is off by at most 2^-16 of its block's largest, so
//! greedy text stays what f32 makes it, at 1.6 times the instructions of eight bits where rows are
//! many and at no cost where memory is what one waits for.
//!
//! # Invariants
//!
//! - A row's codes depend on its own numbers alone.
//! - A block that holds a NaN or an infinity becomes NaN as a whole.

use super::memory::AlignedBytes;
use super::{BLOCK, InstructionSet};

/// Bytes of a block's codes in one row.
pub(super) const CODES_BYTES: usize = 2 * BLOCK;

/// Bytes of a block in one row: its codes, its scale and its sum.
pub(super) const ACTIVATION_BYTES: usize = CODES_BYTES + 2 * size_of::<f32>();

/// The largest number that a code can have.
const MOST: f32 = 127.0 * 256.0;

/// Blocks without a larger number become zero: their scale would leave f32's normal range.
const LEAST: f32 = 1e-30;

/// Rows as the product reads them.
pub(crate) struct Activations {
    path: InstructionSet,
    lines: AlignedBytes,
    /// The lines' first byte: threads fill panels side by side.
    at: *mut u8,
    panels: Vec<RowPanel>,
    blocks: usize,
}

// SAFETY: the address is of memory that this owns; `fill` says who may write where.
unsafe impl Sync for Activations {}

/// Rows that are computed together.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RowPanel {
    pub(crate) first: usize,
    pub(crate) rows: usize,
}

impl RowPanel {
    /// Cuts rows into panels of about the same size: a last one of one row would wait for its sums.
    pub(crate) fn of(rows: usize, most: usize) -> Vec<Self> {
        let mut left = rows.div_ceil(most);
        let mut panels = Vec::with_capacity(left);
        let mut first = 0;
        while first < rows {
            let rows = (rows - first).div_ceil(left);
            panels.push(Self { first, rows });
            first += rows;
            left -= 1;
        }
        panels
    }
}

impl Activations {
    pub(crate) fn new(path: InstructionSet) -> Self {
        let at = std::ptr::null_mut();
        Self { path, lines: AlignedBytes::default(), at, panels: Vec::new(), blocks: 0 }
    }

    pub(crate) fn path(&self) -> InstructionSet {
        self.path
    }

    /// Makes room for `rows` rows of `inputs` numbers.
    pub(crate) fn clear(&mut self, rows: usize, inputs: usize) {
        self.blocks = inputs / BLOCK;
        if self.lines.all().len() < rows * self.row_bytes() {
            self.lines = AlignedBytes::new(rows * self.row_bytes());
        }
        self.at = self.lines.bytes().as_mut_ptr();
        self.panels = RowPanel::of(rows, self.path.rows_max());
    }

    pub(crate) fn panels(&self) -> &[RowPanel] {
        &self.panels
    }

    /// Bytes that a row takes.
    pub(crate) fn row_bytes(&self) -> usize {
        self.blocks * ACTIVATION_BYTES
    }

    pub(super) fn at(&self, panel: RowPanel) -> *mut u8 {
        self.at.wrapping_add(panel.first * self.row_bytes())
    }

    /// Fills a panel with its rows.
    ///
    /// # Safety
    ///
    /// `row(r)` must be the address of as many numbers as `clear` was told, for each row of the
    /// panel, and nobody else be filling or reading it.
    pub(crate) unsafe fn fill(&self, panel: RowPanel, row: &dyn Fn(usize) -> *const f32) {
        let into = self.at(panel);
        for r in 0..panel.rows {
            let from = row(panel.first + r);
            // SAFETY: the panel has room for its rows (`clear`), the row has its numbers.
            unsafe { encode_row(self.path, from, self.blocks, into, panel.rows, r) };
        }
    }
}

/// # Safety
///
/// `from` must have `blocks * BLOCK` numbers, and `into` be a panel of as many blocks and `rows`;
/// the machine must have what `path` needs.
unsafe fn encode_row(
    path: InstructionSet,
    from: *const f32,
    blocks: usize,
    into: *mut u8,
    rows: usize,
    row: usize,
) {
    // SAFETY: the caller's promise.
    unsafe {
        match path {
            #[cfg(target_arch = "x86_64")]
            InstructionSet::Avx512 => encode_row_avx512(from, blocks, into, rows, row),
            #[cfg(target_arch = "x86_64")]
            InstructionSet::Avx2 => encode_row_avx2(from, blocks, into, rows, row),
            _ => encode_blocks(from, blocks, into, rows, row),
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn encode_row_avx512(
    from: *const f32,
    blocks: usize,
    into: *mut u8,
    rows: usize,
    row: usize,
) {
    // SAFETY: the caller's promise.
    unsafe { encode_blocks(from, blocks, into, rows, row) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
unsafe fn encode_row_avx2(from: *const f32, blocks: usize, into: *mut u8, rows: usize, row: usize) {
    // SAFETY: the caller's promise.
    unsafe { encode_blocks(from, blocks, into, rows, row) }
}

/// Written so that the compiler makes vectors of it, whatever the machine; each step is exact or
/// rounds once, so all machines agree.
#[inline(always)]
unsafe fn encode_blocks(from: *const f32, blocks: usize, into: *mut u8, rows: usize, row: usize) {
    for block in 0..blocks {
        // SAFETY: within the row and the panel, by the caller's promise.
        let (x, codes, numbers) = unsafe {
            let start = into.add(block * rows * ACTIVATION_BYTES);
            (
                &*from.add(block * BLOCK).cast::<[f32; BLOCK]>(),
                &mut *start.add(row * CODES_BYTES).cast::<[[u8; BLOCK]; 2]>(),
                start.add(rows * CODES_BYTES).cast::<f32>(),
            )
        };
        let (scale, sum) = encode(x, codes);
        // SAFETY: as above; scales and sums follow all rows' codes.
        unsafe {
            numbers.add(row).write_unaligned(scale);
            numbers.add(rows + row).write_unaligned(sum);
        }
    }
}

/// A block's codes, its scale and its sum.
#[expect(clippy::needless_range_loop, reason = "see `dense`")]
#[inline(always)]
fn encode(x: &[f32; BLOCK], [high, low]: &mut [[u8; BLOCK]; 2]) -> (f32, f32) {
    // As whole numbers, sizes are in the same order, and a NaN is larger than all.
    let mut largest = 0;
    for i in 0..BLOCK {
        largest = largest.max(x[i].to_bits() & 0x7FFF_FFFF);
    }
    let largest = f32::from_bits(largest);
    if largest.is_nan() || largest.is_infinite() || largest < LEAST {
        *high = [0; BLOCK];
        *low = [0; BLOCK];
        let scale = if largest < LEAST { 0.0 } else { f32::NAN };
        return (scale, scale);
    }
    let (scale, inverse) = (largest / MOST, MOST / largest);
    let mut sum = 0;
    for i in 0..BLOCK {
        let rounded = (x[i] * inverse).round_ties_even();
        // SAFETY: finite, and at most a little above `MOST` in size.
        let code = unsafe { rounded.to_int_unchecked::<i32>() };
        sum += code;
        // What is left is -128 to 127; both are cut to the byte that they are.
        let upper = (code + 128) >> 8;
        high[i] = upper as u8;
        low[i] = (code - upper * 256) as u8;
    }
    (scale, sum as f32 * scale)
}
