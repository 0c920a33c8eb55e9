//! Panics of policies and of the host's own jobs, kept from spreading.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

use interlock_policy_api::{Answer, FailureKind, PolicyFailure};

/// Calls, and makes a panic a failure.
pub(crate) fn guarded<T>(call: impl FnOnce() -> Answer<T>) -> Answer<T> {
    // Policies are shared between threads and so keep themselves whole; what else the call has
    // borrowed, a body's lock among it, is whole after a panic too (see there).
    catch_unwind(AssertUnwindSafe(call)).unwrap_or_else(|panic| {
        let text = panic
            .downcast_ref::<&str>()
            .map(|text| (*text).to_owned())
            .or_else(|| panic.downcast_ref::<String>().cloned());
        let message = format!("it panicked: {}", text.as_deref().unwrap_or("(no message)"));
        drop_payload(panic);
        Err(PolicyFailure { kind: FailureKind::Trap, message })
    })
}

/// Does it, and goes on when it panics. Policies' own panics are caught before; this is one of the
/// host's, and whoever does the next job is still counted on.
pub(crate) fn survive(whose: &str, job: impl FnOnce()) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(job)) {
        drop_payload(panic);
        tracing::error!(whose, "a job panicked");
    }
}

/// What a panic brought along is whatever it was raised with, and may panic once more.
pub(crate) fn drop_payload(panic: Box<dyn Any + Send>) {
    if let Err(again) = catch_unwind(AssertUnwindSafe(|| drop(panic))) {
        std::mem::forget(again);
    }
}
