#!/usr/bin/env python3
"""What one decode step's attention and cache writes cost, by where keys and values lie.

Written before the cache was, to choose how it is laid out. Each way writes one new position per row
and attends to all of the row's positions, in every layer of a model's shape:

    arena    one buffer of slots by positions; everyone attends over the longest row's length,
             with a mask (slots, masked)
    bucket   the same, but rows of similar length are attended to together: one call for each power
             of two of pages
    gather   pages of 32 positions, gathered into one padded array for the pass, with a mask
    per-row  a buffer for each row, and a call for each row over exactly its own length
    kernel   pages, read where they lie by a kernel of our own (CUDA only; on the CPU ours is in
             Rust, host/models/src/cpu, and examples/decode measures it)

    python tests/benches/attention.py [--cpu] [--repeat N]

Needs MLX's Python package of the version that the host uses. Milliseconds for all layers, best of N.
"""

import argparse
import time

import mlx.core as mx

PAGE = 32

KERNEL = """
    // One block a row and query head; a warp takes every 8th position, lanes share head_dim.
    constexpr int PER_LANE = D / 32;
    int row = blockIdx.x, head = blockIdx.y;
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    constexpr int WARPS = 8;
    int kv_head = head / (H / KVH);
    int length = lengths[row];
    float q[PER_LANE], sum[PER_LANE];
    for (int i = 0; i < PER_LANE; ++i) {
        q[i] = scale[0] * (float)queries[(row * H + head) * D + lane * PER_LANE + i];
        sum[i] = 0;
    }
    float most = -INFINITY, weight = 0;
    for (int p = warp; p < length; p += WARPS) {
        int page = table[row * MAXP + p / PAGE];
        size_t at = (((size_t)page * KVH + kv_head) * PAGE + p % PAGE) * D + lane * PER_LANE;
        float dot = 0;
        for (int i = 0; i < PER_LANE; ++i) dot += q[i] * (float)keys[at + i];
        for (int o = 16; o; o >>= 1) dot += __shfl_xor_sync(0xffffffff, dot, o);
        float now = fmaxf(most, dot);
        float keep = __expf(most - now), add = __expf(dot - now);
        weight = weight * keep + add;
        for (int i = 0; i < PER_LANE; ++i) sum[i] = sum[i] * keep + add * (float)values[at + i];
        most = now;
    }
    __shared__ float mosts[WARPS], weights[WARPS], sums[WARPS][D];
    if (lane == 0) { mosts[warp] = most; weights[warp] = weight; }
    for (int i = 0; i < PER_LANE; ++i) sums[warp][lane * PER_LANE + i] = sum[i];
    __syncthreads();
    float all = -INFINITY, total = 0;
    for (int w = 0; w < WARPS; ++w) all = fmaxf(all, mosts[w]);
    for (int w = 0; w < WARPS; ++w) total += weights[w] * __expf(mosts[w] - all);
    for (int d = threadIdx.x; d < D; d += WARPS * 32) {
        float mixed = 0;
        for (int w = 0; w < WARPS; ++w) mixed += sums[w][d] * __expf(mosts[w] - all);
        out[(row * H + head) * D + d] = (T)(mixed / total);
    }
"""


class Shape:
    def __init__(self, name, layers, heads, kv_heads, dim, dtype):
        self.name, self.layers, self.heads, self.kv_heads = name, layers, heads, kv_heads
        self.dim, self.dtype, self.scale = dim, dtype, dim**-0.5


def attend(q, k, v, shape, mask):
    return mx.fast.scaled_dot_product_attention(q, k, v, scale=shape.scale, mask=mask)


def mask_of(lengths, longest):
    return (mx.arange(longest)[None] < mx.array(lengths)[:, None])[:, None, None]


def round_up(n, step):
    return (n + step - 1) // step * step


class Arena:
    def __init__(self, shape, lengths, capacity):
        size = (len(lengths), shape.kv_heads, capacity, shape.dim)
        self.shape, self.lengths = shape, lengths
        self.keys = [mx.zeros(size, shape.dtype) for _ in range(shape.layers)]
        self.values = [mx.zeros(size, shape.dtype) for _ in range(shape.layers)]
        self.longest = round_up(max(lengths), 256)

    def state(self):
        return self.keys + self.values

    def prepare(self):
        self.at = mx.array([n - 1 for n in self.lengths])[:, None, None, None]
        self.mask = mask_of(self.lengths, self.longest)

    def layer(self, n, q, k, v):
        keys, self.keys[n] = self.keys[n], None
        values, self.values[n] = self.values[n], None
        at = mx.broadcast_to(self.at, k.shape)
        self.keys[n] = keys = mx.put_along_axis(keys, at, k, 2)
        self.values[n] = values = mx.put_along_axis(values, at, v, 2)
        return attend(q, keys[:, :, : self.longest], values[:, :, : self.longest], self.shape, self.mask)


class Bucket(Arena):
    """Rows in the order of their length, so that a bucket is a slice and not a copy."""

    def __init__(self, shape, lengths, capacity):
        super().__init__(shape, sorted(lengths), capacity)

    def prepare(self):
        super().prepare()
        self.buckets, begin = [], 0
        size = lambda n: 256 << max(0, (round_up(n, 256) // 256 - 1).bit_length())
        for end in range(1, len(self.lengths) + 1):
            if end == len(self.lengths) or size(self.lengths[end]) != size(self.lengths[begin]):
                longest = round_up(self.lengths[end - 1], 256)
                mask = mask_of(self.lengths[begin:end], longest)
                self.buckets.append((begin, end, longest, mask))
                begin = end

    def layer(self, n, q, k, v):
        keys, self.keys[n] = self.keys[n], None
        values, self.values[n] = self.values[n], None
        at = mx.broadcast_to(self.at, k.shape)
        self.keys[n] = keys = mx.put_along_axis(keys, at, k, 2)
        self.values[n] = values = mx.put_along_axis(values, at, v, 2)
        mixed = [
            attend(q[b:e], keys[b:e, :, :longest], values[b:e, :, :longest], self.shape, mask)
            for b, e, longest, mask in self.buckets
        ]
        return mixed[0] if len(mixed) == 1 else mx.concatenate(mixed)


class Paged:
    def __init__(self, shape, lengths, capacity):
        self.shape, self.lengths = shape, lengths
        self.per_row = round_up(max(lengths), 256) // PAGE
        pages = sum(round_up(n, PAGE) // PAGE for n in lengths) + 1
        # Page 0 is where padding points to.
        self.table, free = [], 1
        for n in lengths:
            used = round_up(n, PAGE) // PAGE
            self.table.append([free + i if i < used else 0 for i in range(self.per_row)])
            free += used
        size = self.size(pages)
        self.keys = [mx.zeros(size, shape.dtype) for _ in range(shape.layers)]
        self.values = [mx.zeros(size, shape.dtype) for _ in range(shape.layers)]

    def state(self):
        return self.keys + self.values

    def last(self):
        return [(row[(n - 1) // PAGE], (n - 1) % PAGE) for row, n in zip(self.table, self.lengths)]


class Gather(Paged):
    def size(self, pages):
        return (pages, self.shape.kv_heads, PAGE, self.shape.dim)

    def prepare(self):
        self.flat = mx.array(self.table)
        self.mask = mask_of(self.lengths, self.per_row * PAGE)
        self.page = mx.array([page for page, _ in self.last()])
        self.slot = mx.array([slot for _, slot in self.last()])

    def all(self, pool):
        # [rows, pages, kv_heads, PAGE, dim] -> [rows, kv_heads, positions, dim]
        taken = mx.take(pool, self.flat, axis=0).transpose(0, 2, 1, 3, 4)
        return taken.reshape(taken.shape[0], taken.shape[1], -1, taken.shape[4])

    def layer(self, n, q, k, v):
        keys, self.keys[n] = self.keys[n], None
        values, self.values[n] = self.values[n], None
        keys[self.page, :, self.slot] = k[:, :, 0]
        values[self.page, :, self.slot] = v[:, :, 0]
        self.keys[n], self.values[n] = keys, values
        return attend(q, self.all(keys), self.all(values), self.shape, self.mask)


class Kernel(Gather):
    def prepare(self):
        super().prepare()
        self.lengths_array = mx.array(self.lengths, mx.int32)
        self.table_array = self.flat.astype(mx.int32)
        self.scale = mx.array([self.shape.scale], mx.float32)

    kernel = None

    def layer(self, n, q, k, v):
        if Kernel.kernel is None:
            Kernel.kernel = mx.fast.cuda_kernel(
                name="paged_attention",
                input_names=["queries", "keys", "values", "table", "lengths", "scale"],
                output_names=["out"],
                source=KERNEL,
            )
        keys, self.keys[n] = self.keys[n], None
        values, self.values[n] = self.values[n], None
        keys[self.page, :, self.slot] = k[:, :, 0]
        values[self.page, :, self.slot] = v[:, :, 0]
        self.keys[n], self.values[n] = keys, values
        s, rows = self.shape, len(self.lengths)
        return Kernel.kernel(
            inputs=[q, keys, values, self.table_array, self.lengths_array, self.scale],
            template=[("T", s.dtype), ("H", s.heads), ("KVH", s.kv_heads), ("D", s.dim)]
            + [("PAGE", PAGE), ("MAXP", self.per_row)],
            grid=(rows * 256, s.heads, 1),
            threadgroup=(256, 1, 1),
            output_shapes=[(rows, s.heads, 1, s.dim)],
            output_dtypes=[s.dtype],
        )[0]


class PerRow:
    def __init__(self, shape, lengths, capacity):
        self.shape, self.lengths = shape, lengths
        size = lambda n: (1, shape.kv_heads, round_up(n, 256), shape.dim)
        self.keys = [[mx.zeros(size(n), shape.dtype) for n in lengths] for _ in range(shape.layers)]
        self.values = [[mx.zeros(size(n), shape.dtype) for n in lengths] for _ in range(shape.layers)]

    def state(self):
        return [a for layer in self.keys + self.values for a in layer]

    def prepare(self):
        pass

    def layer(self, n, q, k, v):
        mixed = []
        for row, length in enumerate(self.lengths):
            keys, self.keys[n][row] = self.keys[n][row], None
            values, self.values[n][row] = self.values[n][row], None
            keys[:, :, length - 1 : length] = k[row : row + 1]
            values[:, :, length - 1 : length] = v[row : row + 1]
            self.keys[n][row], self.values[n][row] = keys, values
            one = q[row : row + 1]
            mixed.append(attend(one, keys[:, :, :length], values[:, :, :length], self.shape, None))
        return mixed[0] if len(mixed) == 1 else mx.concatenate(mixed)


def measure(way, shape, lengths, repeat):
    cache = way(shape, list(lengths), round_up(max(lengths), 256))
    rows = len(lengths)
    random = lambda heads: mx.random.normal((rows, heads, 1, shape.dim)).astype(shape.dtype)
    q, k, v = random(shape.heads), random(shape.kv_heads), random(shape.kv_heads)
    mx.eval(q, k, v, cache.state())

    def step():
        cache.prepare()
        x = q
        for n in range(shape.layers):
            # The next layer's queries depend on this one's result, as in a model.
            x = q + 0.001 * cache.layer(n, x, k, v)
        mx.eval(x, cache.state())

    step()
    best = float("inf")
    for _ in range(repeat):
        begun = time.perf_counter()
        step()
        best = min(best, time.perf_counter() - begun)
    return 1e3 * best


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cpu", action="store_true")
    parser.add_argument("--repeat", type=int, default=10)
    options = parser.parse_args()
    if options.cpu:
        mx.set_default_device(mx.cpu)
        shape = Shape("SmolLM2-135M, f32", 30, 9, 3, 64, mx.float32)
        cases = {"1 x 512": [512], "8 x 512": [512] * 8, "2048 + 7 x 128": [2048] + [128] * 7,
                 "32 x 512": [512] * 32}
        ways = [Arena, Bucket, Gather, PerRow]
    else:
        shape = Shape("Qwen3-1.7B, bf16", 28, 16, 8, 128, mx.bfloat16)
        cases = {"1 x 512": [512], "8 x 512": [512] * 8, "32 x 512": [512] * 32,
                 "8 x 4096": [4096] * 8, "8192 + 7 x 256": [8192] + [256] * 7,
                 "8192 + 31 x 256": [8192] + [256] * 31}
        ways = [Arena, Bucket, Gather, PerRow] + ([Kernel] if mx.cuda.is_available() else [])
    print(f"{shape.name}: ms for {shape.layers} layers, best of {options.repeat}")
    print(f"{'':16}" + "".join(f"{way.__name__.lower():>10}" for way in ways))
    for name, lengths in cases.items():
        row = [measure(way, shape, lengths, options.repeat) for way in ways]
        print(f"{name:16}" + "".join(f"{ms:10.2f}" for ms in row), flush=True)


if __name__ == "__main__":
    main()
