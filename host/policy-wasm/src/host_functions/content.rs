//! `content`: the body of the request at hand, as far as it was granted.

use interlock_policy_api::{BadPointer, Body};

use super::GuestState;
use crate::grants::{Grant, below};
use crate::limits::CONTENT_BYTES_MAX;
use crate::wit::imports::content as wit;

type ContentResult<T> = wasmtime::Result<Result<T, wit::Fault>>;

impl GuestState {
    fn body(&self, pointer: &str, write: bool) -> Result<&Body, wit::Fault> {
        let granted = self.functions.grants.iter().any(|grant| match grant {
            Grant::Read(granted) => !write && below(granted, pointer),
            Grant::Write(granted) => write && below(granted, pointer),
            _ => false,
        });
        let body = self.call.body.as_ref().filter(|_| !write || self.call.writable);
        match body {
            None => Err(wit::Fault::NotNow),
            Some(_) if !granted => Err(wit::Fault::NotGranted),
            Some(body) => Ok(body),
        }
    }
}

impl GuestState {
    /// The same, parsed. That is the host's work, since the body is as long as its client likes and
    /// whoever asks first would pay for it; all that follows is the policy's.
    fn parsed(&mut self, pointer: &str, write: bool) -> Result<Body, wit::Fault> {
        let body = self.body(pointer, write)?.clone();
        self.work(|_| body.parse()).map_err(fault)?;
        Ok(body)
    }
}

impl wit::Host for GuestState {
    fn get(&mut self, pointer: String) -> ContentResult<Option<String>> {
        self.charge()?;
        let body = self.parsed(&pointer, false);
        Ok(body.and_then(|body| body.get(&pointer, CONTENT_BYTES_MAX).map_err(fault)))
    }

    fn set(&mut self, pointer: String, json: String) -> ContentResult<()> {
        self.charge()?;
        let body = self.parsed(&pointer, true);
        Ok(body.and_then(|body| {
            if json.len() > CONTENT_BYTES_MAX {
                return Err(wit::Fault::TooLarge);
            }
            body.set(&pointer, &json).map_err(fault)
        }))
    }

    fn remove(&mut self, pointer: String) -> ContentResult<()> {
        self.charge()?;
        let body = self.parsed(&pointer, true);
        Ok(body.and_then(|body| body.remove(&pointer).map_err(fault)))
    }
}

fn fault(why: BadPointer) -> wit::Fault {
    match why {
        BadPointer::TooLarge => wit::Fault::TooLarge,
        why => wit::Fault::Invalid(why.to_string()),
    }
}
