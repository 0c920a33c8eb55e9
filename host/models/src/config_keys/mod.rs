//! Reads a configuration by key, and remembers which keys were read.
//!
//! # Invariants
//!
//! - A key that is neither asked for, nor known to change nothing, nor known to mean what we
//!   compute, is a [`Leftover`] when [`Keys::finish`] is called.
//! - `null` means that a key is not there; `false` means not, for every key but those of
//!   [`COMPUTED`] that say otherwise.

mod known;

use std::cell::RefCell;
use std::collections::BTreeSet;

use serde_json::{Map, Value};

use crate::leftover::{Leftover, shown};
use known::{COMPUTED, IGNORED};

/// A type that a key's value can have, and what it is called.
pub(crate) trait ConfigValue: Sized {
    const KIND: &str;
    fn read(value: &Value) -> Option<Self>;
}

impl ConfigValue for i32 {
    const KIND: &str = "a whole number below 2^31";
    fn read(value: &Value) -> Option<Self> {
        Self::try_from(value.as_i64()?).ok()
    }
}

impl ConfigValue for f64 {
    const KIND: &str = "a number";
    fn read(value: &Value) -> Option<Self> {
        value.as_f64().filter(|number| number.is_finite())
    }
}

impl ConfigValue for bool {
    const KIND: &str = "true or false";
    fn read(value: &Value) -> Option<Self> {
        value.as_bool()
    }
}

impl ConfigValue for String {
    const KIND: &str = "a text";
    fn read(value: &Value) -> Option<Self> {
        value.as_str().map(str::to_owned)
    }
}

impl<T: ConfigValue> ConfigValue for Vec<T> {
    const KIND: &str = "a list";
    fn read(value: &Value) -> Option<Self> {
        value.as_array()?.iter().map(T::read).collect()
    }
}

/// A configuration, or a table in one.
pub(crate) struct Keys<'a> {
    map: &'a Map<String, Value>,
    /// What stands before a key in messages: nothing, or `rope_scaling.`.
    within: &'static str,
    asked: RefCell<BTreeSet<&'static str>>,
    leftovers: RefCell<Vec<Leftover>>,
}

impl<'a> Keys<'a> {
    pub(crate) fn new(map: &'a Map<String, Value>) -> Self {
        Self { map, within: "", asked: RefCell::default(), leftovers: RefCell::default() }
    }

    /// A key's value, if it is there and not null. From then on it counts as used.
    pub(crate) fn value(&self, key: &'static str) -> Option<&'a Value> {
        self.asked.borrow_mut().insert(key);
        self.map.get(key).filter(|value| !value.is_null())
    }

    pub(crate) fn get<T: ConfigValue>(&self, key: &'static str) -> Result<Option<T>, String> {
        let read = |value| {
            T::read(value).ok_or_else(|| self.wrong(key, value, &format!("must be {}", T::KIND)))
        };
        self.value(key).map(read).transpose()
    }

    pub(crate) fn need<T: ConfigValue>(&self, key: &'static str) -> Result<T, String> {
        self.get(key)?
            .ok_or_else(|| format!("{}{key} is missing, must be {}", self.within, T::KIND))
    }

    /// A number above zero.
    pub(crate) fn above_zero(&self, key: &'static str) -> Result<Option<f64>, String> {
        match self.get::<f64>(key)? {
            Some(number) if number <= 0.0 => {
                Err(format!("{}{key} is {number}, not above zero", self.within))
            }
            number => Ok(number),
        }
    }

    /// What keeps a norm from dividing by zero.
    pub(crate) fn epsilon(&self, key: &'static str) -> Result<f32, String> {
        let told: f64 = self.need(key)?;
        let epsilon = told as f32;
        if epsilon.is_finite() && epsilon >= 0.0 {
            return Ok(epsilon);
        }
        Err(format!("{}{key} is {told}, must be a small number and not below zero", self.within))
    }

    /// A key that has two names: both may be there, if they say the same.
    pub(crate) fn either(&self, key: &'static str, other: &'static str) -> Result<i32, String> {
        match (self.get::<i32>(key)?, self.get::<i32>(other)?) {
            (Some(one), Some(two)) if one != two => {
                Err(format!("{key} is {one} and {other} is {two}, must be the same"))
            }
            (None, Some(value)) => Ok(value),
            (Some(value), _) => Ok(value),
            (None, None) => self.need(key),
        }
    }

    /// A table within, whose keys are its reader's to account for.
    pub(crate) fn table(
        &self,
        key: &'static str,
        within: &'static str,
    ) -> Result<Option<Keys<'a>>, String> {
        match self.value(key) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(Keys { within, ..Keys::new(map) })),
            Some(other) => Err(self.wrong(key, other, "must be an object")),
        }
    }

    /// Whether a key is there, if only as null.
    pub(crate) fn mentions(&self, key: &str) -> bool {
        self.map.contains_key(key)
    }

    /// A key changes what is computed, in a way that we do not have.
    pub(crate) fn differs(&self, key: &str, value: &Value, computed: impl Into<String>) {
        let key = format!("{}{key}", self.within);
        self.leftovers.borrow_mut().push(Leftover::differs(&key, value, computed));
    }

    /// Changes nothing for this architecture.
    pub(crate) fn ignore(&self, key: &'static str) {
        self.asked.borrow_mut().insert(key);
    }

    pub(crate) fn wrong(&self, key: &str, value: &Value, must: &str) -> String {
        format!("{}{key} is {}, {must}", self.within, shown(value))
    }

    /// Takes over what a table had left.
    pub(crate) fn absorb(&self, leftovers: Vec<Leftover>) {
        self.leftovers.borrow_mut().extend(leftovers);
    }

    /// All that was not asked for, and is not known to change nothing.
    pub(crate) fn finish(self) -> Vec<Leftover> {
        let Self { map, within, asked, leftovers } = self;
        let (asked, mut leftovers) = (asked.into_inner(), leftovers.into_inner());
        let top = within.is_empty();
        for (key, value) in map {
            if value.is_null() || asked.contains(&**key) {
                continue;
            }
            let computed = COMPUTED.iter().find(|(known, _)| known == key);
            let computed = computed.map(|(_, computed)| computed);
            let ignored = top && IGNORED.iter().any(|(_, keys)| keys.contains(&&**key));
            let shown = format!("{within}{key}");
            leftovers.extend(Leftover::of(&shown, value, computed, ignored));
        }
        leftovers
    }
}
