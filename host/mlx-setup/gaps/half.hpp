// Gap 2, the C++ side: mlx-c's half precision accessors on x86-64.
//
// mlx/c/half.h declares float16_t and bfloat16_t for ARM compilers only, and array.h
// offers the accessors of those types only where they are declared. mlx-rs calls the
// accessors everywhere. MLX's own two types have the layout that mlx-rs expects (16
// bits, in memory order), so elsewhere they are what the accessors speak of.

#pragma once

#include "mlx/types/half_types.h"

#if !defined(__aarch64__) && !defined(__ARM_FEATURE_FP16_SCALAR_ARITHMETIC)
#define HAS_FLOAT16
using mlx::core::float16_t;
#endif

#if !defined(__aarch64__) && !defined(__ARM_FEATURE_BF16)
#define HAS_BFLOAT16
using mlx::core::bfloat16_t;
#endif
