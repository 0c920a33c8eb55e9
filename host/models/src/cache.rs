//! Keys and values of one layer, of one sequence.

use mlx_rs::error::Exception;
use mlx_rs::ops::indexing::{TryIndexOp, TryIndexUpdateOp, UpdateMode};
use mlx_rs::{Array, ops};

/// Positions by which the buffers grow, as in mlx_lm's KVCache: a copy every 256 tokens, and no
/// more than 255 positions unused.
pub(crate) const STEP: i32 = 256;

/// Buffers of `[1, kv_heads, capacity, head_dim]`, of which `offset` positions are filled.
///
/// An update makes a new array from the old one. MLX writes in place if nobody else holds the old
/// one when it is evaluated, and nobody does: [`KvCache::append`] drops it, and the views it
/// returned last time are gone with their pass.
#[derive(Default)]
pub(crate) struct KvCache {
    buffers: Option<(Array, Array)>,
    offset: i32,
}

impl KvCache {
    /// Positions filled: where the next token goes.
    pub(crate) fn offset(&self) -> i32 {
        self.offset
    }

    /// Adds the keys and values of new positions, and returns those of all positions.
    pub(crate) fn append(
        &mut self,
        keys: &Array,
        values: &Array,
    ) -> Result<(Array, Array), Exception> {
        let from = self.offset;
        let to = from + keys.dim(2);
        let (held_keys, held_values) = match self.buffers.take() {
            Some((held_keys, held_values)) if to <= held_keys.dim(2) => (held_keys, held_values),
            Some((held_keys, held_values)) => {
                (grow(&held_keys, from, to)?, grow(&held_values, from, to)?)
            }
            None => (empty(keys, to)?, empty(values, to)?),
        };
        let held_keys = write(&held_keys, keys, from, to)?;
        let held_values = write(&held_values, values, from, to)?;
        let all =
            (held_keys.try_index((.., .., ..to, ..))?, held_values.try_index((.., .., ..to, ..))?);
        self.buffers = Some((held_keys, held_values));
        self.offset = to;
        Ok(all)
    }

    /// What must be computed before a pass has ended.
    pub(crate) fn arrays(&self) -> impl Iterator<Item = &Array> {
        self.buffers.iter().flat_map(|(keys, values)| [keys, values])
    }
}

fn empty(like: &Array, positions: i32) -> Result<Array, Exception> {
    let shape = like.shape();
    let capacity = (positions + STEP - 1) / STEP * STEP;
    ops::zeros_dtype(&[shape[0], shape[1], capacity, shape[3]], like.dtype())
}

fn grow(held: &Array, filled: i32, needed: i32) -> Result<Array, Exception> {
    let filled_part = held.try_index((.., .., ..filled, ..))?;
    let shape = held.shape();
    let capacity = (needed + STEP - 1) / STEP * STEP;
    let more = ops::zeros_dtype(&[shape[0], shape[1], capacity - filled, shape[3]], held.dtype())?;
    ops::concatenate(&[filled_part, more], 2)
}

fn write(held: &Array, new: &Array, from: i32, to: i32) -> Result<Array, Exception> {
    held.try_index_update((.., .., from..to, ..), new, UpdateMode::Replace)
        .map_err(|error| Exception::custom(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn positions(numbers: std::ops::Range<i32>) -> Array {
        let numbers: Vec<f32> = numbers.flat_map(|n| [n as f32, n as f32 + 0.5]).collect();
        Array::from_slice(&numbers, &[1, 1, numbers.len() as i32 / 2, 2])
    }

    #[test]
    fn what_was_appended_comes_back_in_order_whatever_the_chunks() {
        for chunks in [vec![1, 1, 1], vec![255, 1, 1, 300], vec![256, 256, 5], vec![700, 1]] {
            let mut cache = KvCache::default();
            let mut at = 0;
            for chunk in chunks {
                let new = positions(at..at + chunk);
                let (keys, values) = cache.append(&new, &new).unwrap();
                at += chunk;
                assert_eq!(cache.offset(), at);
                let want = positions(0..at);
                assert!(keys.eq_exact(&want).unwrap());
                assert!(values.eq_exact(&want).unwrap());
            }
        }
    }
}
