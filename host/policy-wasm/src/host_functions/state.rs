//! `state`: the policy's own space of the host's, and what is held for requests at hand.

use std::time::Duration;

use interlock_state::{Bucket, BudgetWindow, Entered, NEVER, Reserved, StateFault, Taken};

use super::{GuestState, HeldState};
use crate::limits::{STATE_KEY_BYTES_MAX, STATE_VALUE_BYTES_MAX};
use crate::to_wit::micros;
use crate::wit::imports::state as wit;

type StateResult<T> = wasmtime::Result<Result<T, wit::Fault>>;

impl GuestState {
    /// Counts the call, checks the key, and does it.
    fn remember<T>(
        &mut self,
        key: &str,
        run: impl FnOnce(&Self) -> Result<T, wit::Fault>,
    ) -> StateResult<T> {
        self.charge()?;
        Ok(if key.len() > STATE_KEY_BYTES_MAX { Err(wit::Fault::TooLarge) } else { run(self) })
    }
}

impl wit::Host for GuestState {
    fn take(&mut self, key: String, bucket: wit::Bucket, cost: f64) -> StateResult<wit::Taken> {
        self.remember(&key, |state| {
            let bucket =
                Bucket { capacity: bucket.capacity, refill_per_second: bucket.refill_per_second };
            let space = &state.functions.space;
            // Who asks for an answer that is made, or cancels, has asked for nothing new: a rate
            // must not keep anyone from that.
            let cost = if state.call.looks_up { 0.0 } else { cost };
            let taken = if cost == 0.0 {
                space.peek(&key, bucket, cost)
            } else {
                space.take(&key, bucket, cost)
            };
            Ok(match taken.map_err(fault)? {
                Taken::Ok { remaining } => wit::Taken::Ok(remaining),
                Taken::Denied { available_in } => {
                    let known = available_in != NEVER;
                    wit::Taken::Denied(known.then(|| micros(available_in)))
                }
            })
        })
    }

    fn reserve(
        &mut self,
        key: String,
        budget: wit::Budget,
        estimate: f64,
    ) -> StateResult<wit::Reserved> {
        self.remember(&key, |state| {
            // Nothing would ever release it.
            if state.call.request.is_none() {
                return Err(wit::Fault::Invalid("there is no request to reserve for".into()));
            }
            let per = Duration::from_micros(budget.window);
            if per < Duration::from_secs(1) {
                return Err(wit::Fault::Invalid(format!(
                    "window must be at least 1s, got {per:?}"
                )));
            }
            let window = BudgetWindow { limit: budget.limit, per };
            Ok(match state.functions.space.reserve(&key, window, estimate).map_err(fault)? {
                Reserved::Ok(reservation) => {
                    state.functions.hold(state.call.serial, HeldState::Reservation(reservation.id));
                    wit::Reserved::Ok(wit::Reservation {
                        id: reservation.id,
                        remaining: reservation.remaining,
                        resets_in: micros(reservation.resets_in),
                    })
                }
                Reserved::Denied { available_in } => wit::Reserved::Denied(micros(available_in)),
            })
        })
    }

    fn extend(&mut self, reservation: u64, extra: f64) -> StateResult<bool> {
        self.remember("", |state| state.functions.space.extend(reservation, extra).map_err(fault))
    }

    fn settle(&mut self, reservation: u64, actual: f64) -> StateResult<bool> {
        self.remember("", |state| {
            let settled = state.functions.space.settle(reservation, actual);
            // Where the store did not answer the host settles when it does, as was said here.
            if !matches!(settled, Err(StateFault::Invalid(_))) {
                state.functions.release(state.call.serial, &HeldState::Reservation(reservation));
            }
            settled.map_err(fault)
        })
    }

    fn enter(&mut self, key: String, limit: u32, lease: u64) -> StateResult<wit::Entered> {
        self.remember(&key, |state| {
            let lease = Duration::from_micros(lease);
            Ok(match state.functions.space.enter(&key, limit, lease).map_err(fault)? {
                Entered::Ok { slot, .. } => {
                    // One that no request is to blame for ends with its lease.
                    if state.call.request.is_some() {
                        state
                            .functions
                            .hold(state.call.serial, HeldState::Slot { key: key.clone(), slot });
                    }
                    wit::Entered::Ok(slot)
                }
                Entered::Full => wit::Entered::Full,
            })
        })
    }

    fn leave(&mut self, key: String, number: u64) -> StateResult<()> {
        self.remember(&key, |state| {
            let left = state.functions.space.leave(&key, number);
            let slot = HeldState::Slot { key: key.clone(), slot: number };
            state.functions.release(state.call.serial, &slot);
            left.map_err(fault)
        })
    }

    fn get(&mut self, key: String) -> StateResult<Option<Vec<u8>>> {
        self.remember(&key, |state| state.functions.space.get(&key).map_err(fault))
    }

    fn set(&mut self, key: String, value: Vec<u8>, lasts: Option<u64>) -> StateResult<()> {
        self.remember(&key, |state| {
            small(&value)?;
            state.functions.space.set(&key, &value, lasts.map(Duration::from_micros)).map_err(fault)
        })
    }

    fn compare_and_set(
        &mut self,
        key: String,
        old: Option<Vec<u8>>,
        new: Vec<u8>,
        lasts: Option<u64>,
    ) -> StateResult<bool> {
        self.remember(&key, |state| {
            small(&new)?;
            let lasts = lasts.map(Duration::from_micros);
            state.functions.space.compare_and_set(&key, old.as_deref(), &new, lasts).map_err(fault)
        })
    }

    fn increment(&mut self, key: String, by: i64, lasts: Option<u64>) -> StateResult<i64> {
        self.remember(&key, |state| {
            state
                .functions
                .space
                .increment(&key, by, lasts.map(Duration::from_micros))
                .map_err(fault)
        })
    }

    fn delete(&mut self, key: String) -> StateResult<()> {
        self.remember(&key, |state| state.functions.space.delete(&key).map(|_| ()).map_err(fault))
    }
}

fn small(value: &[u8]) -> Result<(), wit::Fault> {
    if value.len() > STATE_VALUE_BYTES_MAX { Err(wit::Fault::TooLarge) } else { Ok(()) }
}

fn fault(fault: StateFault) -> wit::Fault {
    match fault {
        StateFault::Quota => wit::Fault::Quota,
        StateFault::TooLarge => wit::Fault::TooLarge,
        // Where the store is and what it says is the operator's affair: the state logs it.
        StateFault::Unavailable(_) => wit::Fault::Unavailable,
        StateFault::Invalid(why) => wit::Fault::Invalid(why),
    }
}
