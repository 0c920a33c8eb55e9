//! Namespaces: the only values of a template that change.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use minijinja::Value;
use minijinja::value::{Object, ObjectRepr};

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
    /// All values by name, as a dict.
    pub(crate) fn values(&self) -> Value {
        let values = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Value::from_pairs(values.clone())
    }

    pub(crate) fn insert(&self, name: &str, value: Value) {
        let mut values = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        values.insert(name.to_owned(), value);
    }
}
