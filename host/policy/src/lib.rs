//! Policies as WebAssembly components.
