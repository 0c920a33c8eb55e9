//! Text that is paid for while it grows.

use minijinja::{Error, State};

/// Bytes that one step of fuel pays for, as in minijinja.
pub(crate) const BYTES_PER_FUEL: u64 = 64;

/// Every number in a format: any of them may be a width.
pub(crate) fn numbers(format: &str) -> impl Iterator<Item = u64> + '_ {
    let digits = format.split(|letter: char| !letter.is_ascii_digit());
    digits.filter(|digits| !digits.is_empty()).map(|digits| digits.parse().unwrap_or(u64::MAX))
}

/// A text that a filter or method makes: a small value that holds another many times, which holds
/// another many times, is exponentially long when written down.
pub(crate) struct PaidText<'a, 'b, 'c> {
    state: &'a State<'b, 'c>,
    text: String,
    unpaid: u64,
}

impl<'a, 'b, 'c> PaidText<'a, 'b, 'c> {
    pub(crate) fn new(state: &'a State<'b, 'c>) -> Self {
        Self { state, text: String::new(), unpaid: 0 }
    }

    pub(crate) fn push(&mut self, text: &str) -> Result<(), Error> {
        self.pay(text.len() as u64)?;
        self.text.push_str(text);
        Ok(())
    }

    pub(crate) fn push_char(&mut self, letter: char) -> Result<(), Error> {
        self.pay(letter.len_utf8() as u64)?;
        self.text.push(letter);
        Ok(())
    }

    /// A negative number of times is none, as in Python.
    pub(crate) fn push_times(&mut self, text: &str, times: i64) -> Result<(), Error> {
        let times = u64::try_from(times).unwrap_or(0);
        self.pay((text.len() as u64).saturating_mul(times))?;
        (0..times).for_each(|_| self.text.push_str(text));
        Ok(())
    }

    /// Pays for looking at a value, half a step.
    pub(crate) fn look(&mut self) -> Result<(), Error> {
        self.pay(BYTES_PER_FUEL / 2)
    }

    pub(crate) fn finish(self) -> String {
        self.text
    }

    pub(crate) fn state(&self) -> &'a State<'b, 'c> {
        self.state
    }

    fn pay(&mut self, bytes: u64) -> Result<(), Error> {
        self.unpaid = self.unpaid.saturating_add(bytes);
        if self.unpaid >= BYTES_PER_FUEL {
            self.state.consume_fuel(self.unpaid / BYTES_PER_FUEL)?;
            self.unpaid %= BYTES_PER_FUEL;
        }
        Ok(())
    }
}
