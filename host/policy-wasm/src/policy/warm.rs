//! The instances of a policy that wait for its next call.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::instance::Instance;
use crate::metrics::{PolicyMeters, Recycled};

/// An instance, as the metrics know it.
pub(super) struct WarmInstance {
    pub(super) instance: Instance,
    memory: usize,
    meters: Arc<PolicyMeters>,
}

impl WarmInstance {
    pub(super) fn new(instance: Instance, meters: &Arc<PolicyMeters>) -> Box<Self> {
        let memory = instance.memory();
        meters.live.inc();
        meters.memory.add(signed(memory));
        Box::new(Self { instance, memory, meters: Arc::clone(meters) })
    }
}

impl Drop for WarmInstance {
    fn drop(&mut self) {
        self.meters.live.dec();
        self.meters.memory.sub(signed(self.memory));
    }
}

/// An instance that is in a call, also if the call panics.
pub(super) struct BusyInstance<'a>(&'a PolicyMeters);

impl<'a> BusyInstance<'a> {
    pub(super) fn with(meters: &'a PolicyMeters) -> Self {
        meters.busy.inc();
        Self(meters)
    }
}

impl Drop for BusyInstance<'_> {
    fn drop(&mut self) {
        self.0.busy.dec();
    }
}

/// Warm instances, in a stack, so that a quiet host keeps using the one whose memory is in the
/// cache.
pub(super) struct WarmInstances {
    // Held for a push or a pop, never during a call.
    #[allow(clippy::vec_box, reason = "an instance goes through several hands in each call")]
    stack: Mutex<Vec<Box<WarmInstance>>>,
    /// How many are kept at most.
    most: usize,
    memory_max: usize,
    // Requests that began with the policy may still call it, and it may come back.
    retired: AtomicBool,
    meters: Arc<PolicyMeters>,
}

impl WarmInstances {
    pub(super) fn new(most: usize, memory_max: usize, meters: Arc<PolicyMeters>) -> Self {
        let (stack, retired) = (Mutex::default(), AtomicBool::new(false));
        Self { stack, most, memory_max, retired, meters }
    }

    pub(super) fn take(&self) -> Option<Box<WarmInstance>> {
        self.stack().pop()
    }

    /// Keeps as many as it may from now on.
    pub(super) fn serve(&self) {
        self.retired.store(false, Ordering::Relaxed);
    }

    /// Gives up all instances and keeps one at a time from now on.
    pub(super) fn retire(&self) {
        let mut stack = self.stack();
        self.retired.store(true, Ordering::Relaxed);
        let given_up = std::mem::take(&mut *stack);
        drop(stack);
        drop(given_up);
    }

    /// Memory of each, in bytes.
    pub(super) fn memory(&self) -> Vec<usize> {
        self.stack().iter().map(|kept| kept.memory).collect()
    }

    /// Keeps an instance for the next call, unless it has had its share of them or has grown.
    pub(super) fn give_back(&self, mut kept: Box<WarmInstance>) {
        let instance = &mut kept.instance;
        instance.calls_left = instance.calls_left.saturating_sub(1);
        if instance.calls_left == 0 {
            return self.drop_one(kept, Recycled::Age);
        }
        let memory = instance.memory();
        if memory != kept.memory {
            // WebAssembly memory never shrinks; what a policy once needed it would keep.
            let spare = self.memory_max.saturating_sub(instance.born_with);
            if memory > instance.born_with + spare / 4 * 3 {
                return self.drop_one(kept, Recycled::Memory);
            }
            self.meters.memory.add(signed(memory) - signed(kept.memory));
            kept.memory = memory;
        }
        let mut stack = self.stack();
        let most = if self.retired.load(Ordering::Relaxed) { 1 } else { self.most };
        if stack.len() < most {
            stack.push(kept);
        } else {
            drop(stack);
            self.drop_one(kept, Recycled::Surplus);
        }
    }

    pub(super) fn drop_one(&self, kept: Box<WarmInstance>, why: Recycled) {
        self.meters.recycled(why);
        drop(kept);
    }

    #[allow(clippy::vec_box, reason = "as above")]
    fn stack(&self) -> MutexGuard<'_, Vec<Box<WarmInstance>>> {
        // Whoever panicked held it for a push or a pop: the stack is whole.
        self.stack.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn signed(bytes: usize) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}
