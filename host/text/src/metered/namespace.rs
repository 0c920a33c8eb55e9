//! `namespace()`: the only values that change.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use minijinja::value::{Kwargs, Object, ObjectRepr};
use minijinja::{Error, ErrorKind, State, Value};

use super::settled;

/// Values by name that a template may change: `namespace()`. It is no dict, as in Jinja2.
#[derive(Debug, Default)]
pub(crate) struct Namespace(Mutex<BTreeMap<String, Value>>);

impl Object for Namespace {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }

    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        let values = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        values.get(key.as_str()?).cloned()
    }
}

impl Namespace {
    /// All of them, as a dict.
    pub(crate) fn values(&self) -> Value {
        let values = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Value::from_pairs(values.clone())
    }

    fn set(&self, state: &State, name: &str, value: Value) -> Result<(), Error> {
        // As in a list: it may be no namespace either.
        settled(state, &Value::from(vec![value.clone()]), 0)?;
        let mut values = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        values.insert(name.to_owned(), value);
        Ok(())
    }
}

pub(super) fn namespace(
    state: &State,
    defaults: Option<Value>,
    more: Kwargs,
) -> Result<Value, Error> {
    let namespace = Namespace::default();
    if let Some(defaults) = defaults {
        for key in defaults.try_iter()? {
            if let Some(name) = key.as_str() {
                namespace.set(state, name, defaults.get_item(&key)?)?;
            }
        }
    }
    for name in more.args() {
        namespace.set(state, name, more.get(name)?)?;
    }
    Ok(Value::from_object(namespace))
}

/// `{% set namespace.name = value %}`.
pub(super) fn set(
    state: &State,
    value: &Value,
    namespace: &Value,
    name: &str,
) -> Result<(), Error> {
    match namespace.downcast_object_ref::<Namespace>() {
        Some(namespace) => namespace.set(state, name, value.clone()),
        None => {
            let error = format!("can only assign to namespaces, not {}", namespace.kind());
            Err(Error::new(ErrorKind::InvalidOperation, error))
        }
    }
}
