//! Attention of single tokens by a kernel of our own, which reads pages where they lie.
//!
//! MLX's attention wants each row's keys and values in one piece and all rows of one length; so
//! pages would be gathered into a padded copy at every layer of every pass. Ours follows each
//! row's list of pages, so a row costs what its own length costs. A long row is cut into pieces
//! that are computed side by side and put together by a second kernel (Flash-Decoding: Dao et
//! al. 2023); a piece of the softmax is kept as its largest score, its sum and its mix.
//!
//! What a GPU compiles here was written without one of every kind at hand. So [`PagedAttention::find`]
//! tries it when the model is loaded, against MLX's own operations; where it does not compile or
//! not agree, it is not used, and the log says so.

use mlx_rs::error::Exception;
use mlx_rs::{Array, Device, DeviceType, Dtype};

use super::pool_shape::{PAGE, PoolShape, numbers};
use crate::gpu_kernel::{GpuKernel, KernelCall, KernelOutput, TemplateArgument};

/// Positions that one group of threads looks at.
const PIECE: i32 = 128;

/// How many groups a row of `length` positions takes, for each key head.
pub(super) fn pieces(length: usize) -> usize {
    length.div_ceil(PIECE as usize)
}

const PIECE_THREADS: i32 = 128;

/// A group for each piece and key head: it reads each key and value once for all query heads that
/// share it. Eight lanes share a position; four groups of them share a warp.
const PIECES: &str = r"
    constexpr int SHARE = H / KVH;
    constexpr int WARPS = GROUP_SIZE / 32;
    constexpr int AHEAD = 16;
    int piece = GROUP_X, kv = GROUP_Y, t = THREAD;
    int lane = t % 32, warp = t / 32;
    int row = piece_row[piece], begin = piece_begin[piece];
    int count = lengths[row] - begin;
    if (count > PIECE) count = PIECE;
    int list = first_page[row], pool_pages = sizes[0];
    SHARED float query[SHARE * D];
    SHARED float score[SHARE * PIECE];
    for (int i = t; i < SHARE * D; i += GROUP_SIZE) {
        query[i] = scale[0] * float(queries[(row * H + kv * SHARE) * D + i]);
    }
    SYNC;
    // All lanes of a warp go round equally often, or they could not add up what they have.
    int rounds = (count + GROUP_SIZE / 8 - 1) / (GROUP_SIZE / 8);
    for (int round = 0; round < rounds; ++round) {
        int p = round * (GROUP_SIZE / 8) + t / 8;
        int at = begin + (p < count ? p : 0);
        int page = table[list + at / PAGE];
        size_t key = (size_t(kv * pool_pages + page) * PAGE + at % PAGE) * D;
        float dot[SHARE];
        for (int s = 0; s < SHARE; ++s) dot[s] = 0;
        float k[D / 8];
        for (int i = 0; i < D / 8; ++i) k[i] = float(keys[key + i * 8 + t % 8]);
        for (int i = 0; i < D / 8; ++i) {
            for (int s = 0; s < SHARE; ++s) dot[s] += query[s * D + i * 8 + t % 8] * k[i];
        }
        for (int s = 0; s < SHARE; ++s) {
            float whole = dot[s];
            whole += LANE_XOR(whole, 1);
            whole += LANE_XOR(whole, 2);
            whole += LANE_XOR(whole, 4);
            if (t % 8 == 0) score[s * PIECE + p] = whole;
        }
    }
    SYNC;
    for (int s = warp; s < SHARE; s += WARPS) {
        float most = -INFINITY;
        for (int p = lane; p < count; p += 32) most = score[s * PIECE + p] > most ? score[s * PIECE + p] : most;
        for (int o = 16; o > 0; o /= 2) {
            float other = LANE_XOR(most, o);
            most = other > most ? other : most;
        }
        float sum = 0;
        for (int p = lane; p < count; p += 32) {
            float e = EXP(score[s * PIECE + p] - most);
            score[s * PIECE + p] = e;
            sum += e;
        }
        for (int o = 16; o > 0; o /= 2) sum += LANE_XOR(sum, o);
        if (lane == 0) {
            most_out[piece * H + kv * SHARE + s] = most;
            sum_out[piece * H + kv * SHARE + s] = sum;
        }
    }
    SYNC;
    for (int d = t; d < D; d += GROUP_SIZE) {
        float mixed[SHARE];
        for (int s = 0; s < SHARE; ++s) mixed[s] = 0;
        for (int first = 0; first < count; first += PAGE) {
            int page = table[list + (begin + first) / PAGE];
            size_t value = size_t(kv * pool_pages + page) * PAGE * D + d;
            int here = count - first < PAGE ? count - first : PAGE;
            int p = 0;
            // Several reads at once: memory is far away.
            for (; p + AHEAD <= here; p += AHEAD) {
                float v[AHEAD];
                for (int j = 0; j < AHEAD; ++j) v[j] = float(values[value + size_t(p + j) * D]);
                for (int j = 0; j < AHEAD; ++j) {
                    for (int s = 0; s < SHARE; ++s) {
                        mixed[s] += score[s * PIECE + first + p + j] * v[j];
                    }
                }
            }
            for (; p < here; ++p) {
                float v = float(values[value + size_t(p) * D]);
                for (int s = 0; s < SHARE; ++s) mixed[s] += score[s * PIECE + first + p] * v;
            }
        }
        for (int s = 0; s < SHARE; ++s) {
            mixed_out[(piece * H + kv * SHARE + s) * D + d] = mixed[s];
        }
    }
";

/// A group for each row and query head, a thread for each of its dimensions.
const COMBINE: &str = r"
    int row = GROUP_X, head = GROUP_Y, d = THREAD;
    float most = -INFINITY;
    for (int i = first_piece[row]; i < first_piece[row + 1]; ++i) {
        float piece = most_of[i * H + head];
        most = piece > most ? piece : most;
    }
    float sum = 0, mixed = 0;
    for (int i = first_piece[row]; i < first_piece[row + 1]; ++i) {
        float weight = EXP(most_of[i * H + head] - most);
        sum += weight * sum_of[i * H + head];
        mixed += weight * mixed_of[(i * H + head) * D + d];
    }
    out[(row * H + head) * D + d] = T(mixed / sum);
";

/// The two kernels, found to work here.
pub(super) struct PagedAttention {
    pieces: GpuKernel,
    combine: GpuKernel,
}

/// A token that is computed as a row of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct QueryRow {
    /// Positions that it looks at: its own and those before.
    pub(super) length: usize,
    /// The number of the list of pages that the token attends over. Tokens of one sequence share one.
    pub(super) list: usize,
}

/// The rows of one token in a pass.
pub(super) struct QueryRows {
    rows: i32,
    pieces: i32,
    pool_pages: i32,
    /// All lists of pages, one behind the other.
    table: Array,
    /// `[rows]`: where in it each row's list begins.
    first_page: Array,
    /// `[pool_pages]`, which is a number.
    sizes: Array,
    /// `[rows]`: how many positions each row attends to.
    lengths: Array,
    /// The row of each piece, and the position at which the piece begins.
    piece_row: Array,
    piece_begin: Array,
    /// `[rows + 1]`: where each row's pieces begin, and where the last row's end.
    first_piece: Array,
}

impl QueryRows {
    /// Lays out the query rows, whose pages are in these lists, for the kernel.
    pub(super) fn new(query_rows: &[QueryRow], lists: &[Vec<i32>], pool_pages: i32) -> Self {
        let mut begins = Vec::with_capacity(lists.len());
        let mut table = Vec::new();
        for list in lists {
            begins.push(table.len() as i32);
            table.extend(list);
        }
        let (mut lengths, mut piece_row, mut piece_begin) = (vec![], vec![], vec![]);
        let (mut first_page, mut first_piece) = (vec![], vec![0]);
        for (row, query_row) in query_rows.iter().enumerate() {
            first_page.push(begins[query_row.list]);
            lengths.push(query_row.length as i32);
            for begin in (0..query_row.length as i32).step_by(PIECE as usize) {
                piece_row.push(row as i32);
                piece_begin.push(begin);
            }
            first_piece.push(piece_row.len() as i32);
        }
        Self {
            rows: query_rows.len() as i32,
            pieces: piece_row.len() as i32,
            pool_pages,
            table: numbers(&table),
            first_page: numbers(&first_page),
            sizes: numbers(&[pool_pages]),
            lengths: numbers(&lengths),
            piece_row: numbers(&piece_row),
            piece_begin: numbers(&piece_begin),
            first_piece: numbers(&first_piece),
        }
    }
}

impl PagedAttention {
    /// The kernels, if there is a GPU and they compute on it what MLX's own operations do; or why
    /// they are not used. `differ` says by how much a candidate's results differ at most, for
    /// values about 1 large.
    pub(super) fn find(
        heads: PoolShape,
        differ: impl FnOnce(&Self) -> Result<f32, Exception>,
    ) -> Result<Self, String> {
        /// bf16 keeps 8 bits. A wrong page or mask is off by as much as the values are large.
        const TOLERANCE: f32 = 0.03;
        let gpu = Device::try_default().and_then(|device| device.get_type());
        if !matches!(gpu, Ok(DeviceType::Gpu)) {
            return Err("there is no GPU".to_owned());
        }
        if heads.head_dim % 8 != 0 {
            return Err(format!("heads of {} dimensions", heads.head_dim));
        }
        match Self::new().and_then(|kernels| Ok((differ(&kernels)?, kernels))) {
            Ok((apart, kernels)) if apart <= TOLERANCE => Ok(kernels),
            // A NaN is not within any tolerance.
            Ok((apart, _)) => Err(format!("our kernel's results are off by {apart} on this GPU")),
            Err(error) => Err(format!("our kernel does not run on this GPU: {}", error.what())),
        }
    }

    fn new() -> Result<Self, Exception> {
        Ok(Self {
            pieces: GpuKernel::new(
                "interlock_attention_pieces",
                &[
                    "queries",
                    "keys",
                    "values",
                    "table",
                    "first_page",
                    "sizes",
                    "lengths",
                    "piece_row",
                    "piece_begin",
                    "scale",
                ],
                &["mixed_out", "most_out", "sum_out"],
                PIECES,
            )?,
            combine: GpuKernel::new(
                "interlock_attention_combine",
                &["mixed_of", "most_of", "sum_of", "first_piece"],
                &["out"],
                COMBINE,
            )?,
        })
    }

    /// `queries` are `[rows, heads, 1, head_dim]`; the pools are those of [`super::arrays`]. What
    /// they attend to, `[rows, heads, head_dim]`.
    pub(super) fn attend(
        &self,
        rows: &QueryRows,
        queries: &Array,
        keys: &Array,
        values: &Array,
        scale: f32,
    ) -> Result<Array, Exception> {
        let (heads, head_dim) = (queries.dim(1), queries.dim(3));
        let kv_heads = keys.dim(0) / (rows.pool_pages * PAGE);
        let scale = Array::from_slice(&[scale], &[1]);
        let float = |shape: &[i32]| KernelOutput { shape: shape.to_vec(), dtype: Dtype::Float32 };
        let shape = [
            ("T", TemplateArgument::Type(queries.dtype())),
            ("H", TemplateArgument::Number(heads)),
            ("KVH", TemplateArgument::Number(kv_heads)),
            ("D", TemplateArgument::Number(head_dim)),
            ("PAGE", TemplateArgument::Number(PAGE)),
            ("PIECE", TemplateArgument::Number(PIECE)),
            ("GROUP_SIZE", TemplateArgument::Number(PIECE_THREADS)),
        ];
        // SAFETY: `QueryRows` lists pieces within rows' lengths, and pages that the plan took from rows
        // that were checked against the pool; every group writes its own part of the outputs.
        let pieces = unsafe {
            self.pieces.call(&KernelCall {
                inputs: &[
                    queries,
                    keys,
                    values,
                    &rows.table,
                    &rows.first_page,
                    &rows.sizes,
                    &rows.lengths,
                    &rows.piece_row,
                    &rows.piece_begin,
                    &scale,
                ],
                outputs: &[
                    float(&[rows.pieces, heads, head_dim]),
                    float(&[rows.pieces, heads]),
                    float(&[rows.pieces, heads]),
                ],
                arguments: &shape,
                groups: (rows.pieces, kv_heads),
                threads: PIECE_THREADS,
            })?
        };
        let [mixed, most, sum] = &pieces[..] else {
            return Err(Exception::custom("a kernel of three outputs gave another number"));
        };
        // SAFETY: each row has its pieces, each thread one element of the output.
        let mut out = unsafe {
            self.combine.call(&KernelCall {
                inputs: &[mixed, most, sum, &rows.first_piece],
                outputs: &[KernelOutput {
                    shape: vec![rows.rows, heads, head_dim],
                    dtype: queries.dtype(),
                }],
                arguments: &shape[..4],
                groups: (rows.rows, heads),
                threads: head_dim,
            })?
        };
        out.pop().ok_or_else(|| Exception::custom("a kernel of one output gave none"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_of_one_sequence_share_its_pages_and_each_looks_as_far_as_itself() {
        let query_row = |length, list| QueryRow { length, list };
        let query_rows = [query_row(40, 0), query_row(128, 1), query_row(129, 1)];
        let lists = [vec![7, 3], vec![9, 8, 6, 5, 4]];
        let rows = QueryRows::new(&query_rows, &lists, 10);
        let read = |array: &Array| array.to_vec_exact::<i32>().unwrap();
        assert_eq!(read(&rows.table), [7, 3, 9, 8, 6, 5, 4]);
        assert_eq!(read(&rows.first_page), [0, 2, 2]);
        assert_eq!(read(&rows.lengths), [40, 128, 129]);
        assert_eq!(read(&rows.piece_row), [0, 1, 2, 2]);
        assert_eq!(read(&rows.piece_begin), [0, 0, 0, 128]);
        assert_eq!(read(&rows.first_piece), [0, 1, 2, 4]);
    }
}
