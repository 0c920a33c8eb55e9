//! `content`: the body of the request at hand, as far as it was granted.

use interlock_admission::{BadPointer, Body};

use super::GuestState;
use crate::grants::{Grant, below};
use crate::limits::CONTENT_BYTES_MAX;
use crate::wit::words::content as wit;

type Said<T> = wasmtime::Result<Result<T, wit::Fault>>;

impl GuestState {
    fn body(&self, pointer: &str, write: bool) -> Result<&Body, wit::Fault> {
        let granted = self.reach.grants.iter().any(|grant| match grant {
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

impl wit::Host for GuestState {
    fn get(&mut self, pointer: String) -> Said<Option<String>> {
        self.charge()?;
        // Whoever asks first would pay for reading the body, which is as long as its client likes.
        Ok(self.work(|state| {
            match state.body(&pointer, false)?.get(&pointer).map_err(invalid)? {
                Some(json) if json.len() > CONTENT_BYTES_MAX => Err(wit::Fault::TooLarge),
                found => Ok(found),
            }
        }))
    }

    fn set(&mut self, pointer: String, json: String) -> Said<()> {
        self.charge()?;
        Ok(self.work(|state| {
            let body = state.body(&pointer, true)?;
            if json.len() > CONTENT_BYTES_MAX {
                return Err(wit::Fault::TooLarge);
            }
            body.set(&pointer, &json).map_err(invalid)
        }))
    }

    fn remove(&mut self, pointer: String) -> Said<()> {
        self.charge()?;
        Ok(self.work(|state| state.body(&pointer, true)?.remove(&pointer).map_err(invalid)))
    }
}

fn invalid(why: BadPointer) -> wit::Fault {
    wit::Fault::Invalid(why.to_string())
}
