//! What looking at a value costs a template, in the engine's steps of fuel.

use minijinja::value::ValueKind;
use minijinja::{Error, ErrorKind, State, Value};

/// Lists in lists, and dicts. Descriptions of tools, the deepest that templates see, have ten.
pub(crate) const DEPTH_MAX: usize = 64;

/// One step of fuel in the engine's own units: it pays for 64 bytes, or two values looked at.
pub(crate) const UNITS_OF_A_STEP: u64 = 64;
const UNITS_OF_A_VALUE: u64 = 32;

/// A value nested deeper than [`DEPTH_MAX`].
#[derive(Debug, thiserror::Error)]
#[error("a value is nested deeper than {DEPTH_MAX}")]
pub(crate) struct TooDeep;

/// Charges for all that is in a value, `times` over, and for looking at its texts.
/// Zero times: once, and its texts not at all, since whoever asks charges for them.
pub(crate) fn weigh(state: &State, value: &Value, times: u64) -> Result<(), Error> {
    let mut weigher = Weigher { state, times: times.max(1), texts: times > 0, units: 0 };
    weigher.put(value, 0)?;
    weigher.settle()
}

struct Weigher<'a, 'b, 'c> {
    state: &'a State<'b, 'c>,
    times: u64,
    texts: bool,
    /// The units that are not charged yet.
    units: u64,
}

impl Weigher<'_, '_, '_> {
    fn put(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        // Arguments are weighed as one list.
        if depth > DEPTH_MAX + 2 {
            return Err(Error::from(ErrorKind::InvalidOperation).with_source(TooDeep));
        }
        match value.kind() {
            ValueKind::String if self.texts => {
                let bytes = value.as_str().map_or(0, str::len);
                self.units += (bytes as u64).saturating_mul(self.times);
            }
            ValueKind::Map => {
                self.value()?;
                for key in value.try_iter()? {
                    self.put(&value.get_item(&key)?, depth + 1)?;
                    self.put(&key, depth + 1)?;
                }
            }
            ValueKind::Seq | ValueKind::Iterable => {
                self.value()?;
                for item in value.try_iter()? {
                    self.put(&item, depth + 1)?;
                }
            }
            _ => {}
        }
        self.value()
    }

    fn value(&mut self) -> Result<(), Error> {
        self.units += UNITS_OF_A_VALUE.saturating_mul(self.times);
        if self.units < UNITS_OF_A_STEP { Ok(()) } else { self.settle() }
    }

    fn settle(&mut self) -> Result<(), Error> {
        let steps = self.units / UNITS_OF_A_STEP;
        self.units %= UNITS_OF_A_STEP;
        self.state.consume_fuel(steps)
    }
}
