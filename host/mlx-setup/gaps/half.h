/* Gap 2, the side that bindgen reads: the same two types as plain C.
 *
 * bindgen has a Rust type for _Float16, the one it also gives ARM's __fp16; bfloat16
 * has none in C, and 16 bits are all that mlx-rs needs to know about it. */

#ifndef INTERLOCK_GAPS_HALF_H
#define INTERLOCK_GAPS_HALF_H

#if !defined(__aarch64__) && !defined(__ARM_FEATURE_FP16_SCALAR_ARITHMETIC)
#define HAS_FLOAT16
typedef _Float16 float16_t;
#endif

#if !defined(__aarch64__) && !defined(__ARM_FEATURE_BF16)
#define HAS_BFLOAT16
typedef unsigned short bfloat16_t;
#endif

#endif
