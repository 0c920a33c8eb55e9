//! The policies that come with the host.

/// The policies that are part of the host: built by `make guests`, put here by build.rs.
pub(crate) const BUILTINS: &[(&str, &[u8])] = &[
    ("disconnect-guard", include_bytes!(concat!(env!("OUT_DIR"), "/disconnect-guard.wasm"))),
    ("guard", include_bytes!(concat!(env!("OUT_DIR"), "/guard.wasm"))),
    ("quota", include_bytes!(concat!(env!("OUT_DIR"), "/quota.wasm"))),
    ("router", include_bytes!(concat!(env!("OUT_DIR"), "/router.wasm"))),
    ("stream-guard", include_bytes!(concat!(env!("OUT_DIR"), "/stream-guard.wasm"))),
    ("timeouts", include_bytes!(concat!(env!("OUT_DIR"), "/timeouts.wasm"))),
];
