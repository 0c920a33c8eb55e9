//! `wit/` as Rust types: those of the version that this host speaks, and those of the release
//! before.

/// `wit/policy.wit`.
pub(crate) mod v0_2 {
    wasmtime::component::bindgen!({
        path: "../../wit",
        world: "policy",
        // Facts are lent to a call; nothing is copied but what the guest's memory needs.
        ownership: Borrowing { duplicate_if_necessary: true },
        // A host call can end the call that it is in: see `crate::host_functions::TooManyCalls`.
        imports: { default: trappable },
    });
}

/// `wit/released/policy-0.1.0.wit`: nobody writes these any more, but what was built with them is
/// still in use.
pub(crate) mod v0_1 {
    wasmtime::component::bindgen!({
        path: "../../wit/released/policy-0.1.0.wit",
        world: "policy",
        ownership: Borrowing { duplicate_if_necessary: false },
    });
}

pub(crate) use v0_2::interlock::policy as imports;
