//! MLX: weights, layers, families, sampling.
