//! `wit/policy.wit` as Rust types.

wasmtime::component::bindgen!({
    path: "../../wit",
    world: "policy",
    // Facts are lent to a call; nothing is copied but what the guest's memory needs.
    ownership: Borrowing { duplicate_if_necessary: false },
});
