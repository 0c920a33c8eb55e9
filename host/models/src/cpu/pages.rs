//! Keys and values on the CPU: pages in our own memory, and attention over them in our own code.
//!
//! MLX has no attention over pages, and its sums would depend on the shape of the table.

use std::cell::RefCell;
use std::sync::{Mutex, PoisonError};

use super::attention::{HeadGroup, PAGE, scores_needed};
use super::output::OutputPointer;
use super::tensor::CpuTensor;
use super::thread_pool;
use crate::rope::{Rope, RopeTable};
use crate::span::Span;

/// Multiply-adds of attention, or numbers to rotate, below which asking for help costs more than it
/// saves.
const WORTH_SHARING: usize = 1 << 17;

/// Positions whose queries one task computes, so that each page read serves several.
const TILE: usize = 16;

/// Scores that one task may hold: half a megabyte, which fits a core's own cache.
const SCORES_MAX: usize = 128 << 10;

/// All pages of all layers. Memory that was never written is not there yet: the system commits it
/// when it is first touched.
pub(crate) struct CpuPages {
    layers: Vec<LayerPages>,
    heads: PageShape,
    /// The sines and cosines of this pass's positions, which all layers of a model share.
    rope_table: Option<RopeTable>,
    queries: Vec<f32>,
}

/// One layer's pages: keys as `[page][kv_head][head_dim][PAGE]`, values as
/// `[page][kv_head][PAGE][head_dim]`.
struct LayerPages {
    keys: Vec<f32>,
    values: Vec<f32>,
}

/// The sizes of one position in a page.
#[derive(Clone, Copy)]
struct PageShape {
    kv_heads: usize,
    head_dim: usize,
}

/// A part of the attention that one thread computes: a key head's queries of a few positions.
#[derive(Clone, Copy)]
struct AttentionTask {
    span: usize,
    kv_head: usize,
    first: usize,
    positions: usize,
}

thread_local! {
    static SCORES: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

impl CpuPages {
    pub(crate) fn new(layers: usize, kv_heads: usize, head_dim: usize, pages: usize) -> Self {
        let heads = PageShape { kv_heads, head_dim };
        let numbers = pages * heads.page();
        let layer = || LayerPages { keys: vec![0.0; numbers], values: vec![0.0; numbers] };
        Self {
            layers: (0..layers).map(|_| layer()).collect(),
            heads,
            rope_table: None,
            queries: Vec::new(),
        }
    }

    /// Begins a pass: its positions differ from the last one's.
    pub(crate) fn begin(&mut self) {
        self.rope_table = None;
    }

    /// Does what [`crate::cache::Batch::attend`] says, in f32 on the CPU.
    pub(crate) fn attend(
        &mut self,
        layer: usize,
        spans: &[Span<'_>],
        [queries, keys, values]: [&CpuTensor; 3],
        rope: &Rope,
        scale: f32,
    ) -> CpuTensor {
        let per_position = queries.width;
        let (queries, keys, values) = (&queries.numbers, &keys.numbers, &values.numbers);
        let table = match self.rope_table.take() {
            Some(table) if rope.makes(&table) => table,
            _ => rope.table(spans.iter().flat_map(|span| span.from..span.from + span.count)),
        };

        let width = self.heads.head_dim;
        self.queries.resize(queries.len(), 0.0);
        let turn = |first: usize, into: &mut [f32]| {
            let from = &queries[first * per_position..][..into.len()];
            for (at, (from, to)) in
                from.chunks_exact(width).zip(into.chunks_exact_mut(width)).enumerate()
            {
                table.rotate(first + at * width / per_position, from, to);
                for number in to {
                    *number *= scale;
                }
            }
        };
        if queries.len() < WORTH_SHARING {
            turn(0, &mut self.queries);
        } else {
            // No two threads have a part; a lock for each one proves that to the compiler.
            let parts: Vec<_> =
                self.queries.chunks_mut(TILE * per_position).map(Mutex::new).collect();
            thread_pool::pool().run(parts.len(), &|number| {
                let mut part = parts[number].lock().unwrap_or_else(PoisonError::into_inner);
                turn(number * TILE, &mut part);
            });
        }
        self.layers[layer].write(self.heads, spans, &table, keys, values);
        self.rope_table = Some(table);
        self.mix(layer, spans, per_position)
    }

    /// Attends with the rotated queries, over pages in which the pass's keys and values are written.
    fn mix(&mut self, layer: usize, spans: &[Span<'_>], per_position: usize) -> CpuTensor {
        let PageShape { kv_heads, head_dim } = self.heads;
        let heads = per_position / head_dim / kv_heads;
        let mut mixed = CpuTensor { width: per_position, numbers: vec![0.0; self.queries.len()] };
        let (tasks, work) = tasks(spans, kv_heads, heads);
        let (queries, into) = (&self.queries, OutputPointer(mixed.numbers.as_mut_ptr()));
        let (layer, page) = (&self.layers[layer], self.heads.page());
        let compute = |number: usize| {
            let AttentionTask { span, kv_head, first, positions } = tasks[number];
            let span = &spans[span];
            let head = kv_head * head_dim * PAGE;
            let from = span.from + first;
            let offset = (span.start + first) * per_position + kv_head * heads * head_dim;
            let OutputPointer(into) = { into };
            SCORES.with_borrow_mut(|scores| {
                let needed = scores_needed(positions * heads, from + positions - 1);
                if scores.len() < needed {
                    scores.resize(needed, 0.0);
                }
                let group = HeadGroup {
                    queries: queries[offset..].as_ptr(),
                    stride: per_position,
                    heads,
                    positions,
                    from,
                    head_dim,
                    keys: &|at| layer.keys[span.page(at) * page + head..].as_ptr(),
                    values: &|at| layer.values[span.page(at) * page + head..].as_ptr(),
                    out: into.wrapping_add(offset),
                    scores,
                };
                // SAFETY: the table's pages cover its positions and are within the pool
                // (`Model::check`), the slices above begin within it, and no two tasks have a
                // head's positions in common.
                unsafe { group.compute() }
            });
        };
        if work < WORTH_SHARING {
            (0..tasks.len()).for_each(compute);
        } else {
            thread_pool::pool().run(tasks.len(), &compute);
        }
        mixed
    }
}

/// The attention of all spans in parts, the longest first, and its multiply-adds by head dimension.
fn tasks(spans: &[Span<'_>], kv_heads: usize, heads: usize) -> (Vec<AttentionTask>, usize) {
    let mut tasks = Vec::new();
    let mut work = 0_usize;
    for (number, span) in spans.iter().enumerate() {
        let line = scores_needed(heads, span.from + span.count - 1);
        let tile = (SCORES_MAX / line).clamp(1, TILE);
        for first in (0..span.count).step_by(tile).rev() {
            let positions = tile.min(span.count - first);
            // 64: about a head's dimensions, which is as exact as this must be.
            work += positions * kv_heads * line * 64;
            tasks.extend((0..kv_heads).map(|kv_head| AttentionTask {
                span: number,
                kv_head,
                first,
                positions,
            }));
        }
    }
    (tasks, work)
}

impl PageShape {
    /// Numbers of a page of keys, or of values.
    fn page(self) -> usize {
        self.kv_heads * self.head_dim * PAGE
    }
}

impl LayerPages {
    fn write(
        &mut self,
        heads: PageShape,
        spans: &[Span<'_>],
        table: &RopeTable,
        keys: &[f32],
        values: &[f32],
    ) {
        let PageShape { kv_heads, head_dim } = heads;
        let mut turned = vec![0.0; head_dim];
        for span in spans {
            for new in 0..span.count {
                let (row, position) = (span.start + new, span.from + new);
                let page = span.page(position / PAGE) * heads.page();
                let slot = position % PAGE;
                for head in 0..kv_heads {
                    let from = (row * kv_heads + head) * head_dim;
                    let at = page + head * head_dim * PAGE;
                    table.rotate(row, &keys[from..from + head_dim], &mut turned);
                    let held = self.keys[at + slot..].iter_mut().step_by(PAGE);
                    for (held, key) in held.zip(&turned) {
                        *held = *key;
                    }
                    self.values[at + slot * head_dim..][..head_dim]
                        .copy_from_slice(&values[from..from + head_dim]);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::noise::noise;
    use crate::rope::RopeConfig;
    use interlock_engine::PageId;

    const HEADS: usize = 6;
    const KV_HEADS: usize = 2;

    /// A sequence's queries, keys and values, token by token.
    struct TestSequence {
        queries: Vec<f32>,
        keys: Vec<f32>,
        values: Vec<f32>,
        head_dim: usize,
    }

    impl TestSequence {
        fn new(seed: u64, length: usize, head_dim: usize) -> Self {
            Self {
                queries: noise(seed, length * HEADS * head_dim),
                keys: noise(seed + 1, length * KV_HEADS * head_dim),
                values: noise(seed + 2, length * KV_HEADS * head_dim),
                head_dim,
            }
        }

        /// What the last query of `length` tokens attends to, in f64.
        fn reference(&self, at: usize, rope: &Rope, scale: f32) -> Vec<f64> {
            let width = self.head_dim;
            let table = rope.table(0..at + 1);
            let turned = |numbers: &[f32], row: usize, head: usize, heads: usize| {
                let from = (row * heads + head) * width;
                let mut to = vec![0.0; width];
                table.rotate(row, &numbers[from..from + width], &mut to);
                to
            };
            let mut mixed = Vec::new();
            for head in 0..HEADS {
                let kv_head = head / (HEADS / KV_HEADS);
                let query = turned(&self.queries, at, head, HEADS);
                let scores: Vec<f64> = (0..=at)
                    .map(|row| {
                        let key = turned(&self.keys, row, kv_head, KV_HEADS);
                        let product = |(q, k): (&f32, &f32)| f64::from(*q) * f64::from(*k);
                        f64::from(scale) * query.iter().zip(&key).map(product).sum::<f64>()
                    })
                    .collect();
                let largest = scores.iter().copied().fold(f64::MIN, f64::max);
                let shares: Vec<f64> = scores.iter().map(|s| (s - largest).exp()).collect();
                let all: f64 = shares.iter().sum();
                for dimension in 0..width {
                    let value = |row: usize| {
                        f64::from(self.values[(row * KV_HEADS + kv_head) * width + dimension])
                    };
                    let sum: f64 = shares.iter().enumerate().map(|(r, s)| s * value(r)).sum();
                    mixed.push(sum / all);
                }
            }
            mixed
        }
    }

    fn rope(head_dim: usize, turned: usize) -> Rope {
        assert!(turned <= head_dim);
        Rope::new(&RopeConfig {
            dimensions: turned as i32,
            theta: 10_000.0,
            traditional: turned.is_multiple_of(4),
            scaling: None,
            divisors: None,
        })
        .unwrap()
    }

    /// One pass over parts of sequences: `(sequence, from, count)`.
    fn pass(
        pages: &mut CpuPages,
        stories: &[(TestSequence, Vec<PageId>)],
        table: &[(usize, usize, usize)],
        rope: &Rope,
        scale: f32,
    ) -> Vec<f32> {
        let mut start = 0;
        let (mut queries, mut keys, mut values) = (Vec::new(), Vec::new(), Vec::new());
        let mut spans = Vec::new();
        for &(number, from, count) in table {
            let (story, pages) = &stories[number];
            let part = |heads: usize| {
                from * heads * story.head_dim..(from + count) * heads * story.head_dim
            };
            queries.extend(&story.queries[part(HEADS)]);
            keys.extend(&story.keys[part(KV_HEADS)]);
            values.extend(&story.values[part(KV_HEADS)]);
            spans.push(Span { start, count, from, pages });
            start += count;
        }
        let tensor = |numbers: Vec<f32>| CpuTensor { width: numbers.len() / start, numbers };
        pages.begin();
        let (queries, keys, values) = (tensor(queries), tensor(keys), tensor(values));
        pages.attend(0, &spans, [&queries, &keys, &values], rope, scale).numbers
    }

    /// Page borders, lengths below and above a vector's lanes, head dimensions with and without a
    /// rest after the last vector.
    #[test]
    fn attention_agrees_with_sums_in_double_precision() {
        for (length, head_dim, turned) in
            [(1, 64, 64), (31, 16, 16), (32, 80, 64), (33, 20, 10), (65, 128, 128), (200, 6, 6)]
        {
            let (rope, scale) = (rope(head_dim, turned), 0.3);
            let mut pages = CpuPages::new(1, KV_HEADS, head_dim, 9);
            let numbers = [4, 8, 0, 3, 1, 7, 2].map(PageId).to_vec();
            let stories = [(TestSequence::new(5, length, head_dim), numbers)];
            let mixed = pass(&mut pages, &stories, &[(0, 0, length)], &rope, scale);
            for (at, got) in mixed.chunks(HEADS * head_dim).enumerate() {
                let want = stories[0].0.reference(at, &rope, scale);
                for (got, want) in got.iter().zip(want) {
                    let off = (f64::from(*got) - want).abs();
                    assert!(off < 5e-6, "{length}x{head_dim}, token {at}: {got}, want {want}");
                }
            }
        }
    }

    #[test]
    fn a_query_is_answered_the_same_in_any_company_bit_for_bit() {
        let lengths = [1, 5, 31, 32, 33, 64, 90, 333];
        for head_dim in [6, 16, 64] {
            let (rope, scale) = (rope(head_dim, head_dim), 0.2);
            // Alone, in one pass, in pages in order.
            let alone: Vec<Vec<f32>> = lengths
                .iter()
                .enumerate()
                .map(|(seed, &length)| {
                    let mut pages = CpuPages::new(1, KV_HEADS, head_dim, 11);
                    let story = TestSequence::new(seed as u64, length, head_dim);
                    let stories = [(story, (0..11).map(PageId).collect())];
                    pass(&mut pages, &stories, &[(0, 0, length)], &rope, scale)
                })
                .collect();
            // In chunks, beside the others, in pages in no order that others had before.
            let mut pages = CpuPages::new(1, KV_HEADS, head_dim, 97);
            pages.layers[0].keys.fill(f32::NAN);
            pages.layers[0].values.fill(f32::NAN);
            let stories: Vec<(TestSequence, Vec<PageId>)> = lengths
                .iter()
                .enumerate()
                .map(|(seed, &length)| {
                    let page = |at: usize| PageId(((seed * 11 + at) * 31 % 97) as u32);
                    (TestSequence::new(seed as u64, length, head_dim), (0..11).map(page).collect())
                })
                .collect();
            let mut done = vec![0; lengths.len()];
            let mut together = vec![Vec::new(); lengths.len()];
            let mut sizes = [1, 7, 1, 40, 2, 19, 100, 1, 1, 3].iter().cycle();
            while done.iter().zip(lengths).any(|(done, length)| *done < length) {
                let mut table = Vec::new();
                for (number, &length) in lengths.iter().enumerate() {
                    let count = (*sizes.next().unwrap()).min(length - done[number]);
                    if count > 0 {
                        table.push((number, done[number], count));
                        done[number] += count;
                    }
                }
                let mixed = pass(&mut pages, &stories, &table, &rope, scale);
                let mut at = 0;
                for (number, _, count) in table {
                    let width = count * HEADS * head_dim;
                    together[number].extend_from_slice(&mixed[at..at + width]);
                    at += width;
                }
            }
            for (number, (alone, together)) in alone.iter().zip(&together).enumerate() {
                assert_eq!(alone, together, "{} tokens of {head_dim}", lengths[number]);
            }
        }
    }
}
