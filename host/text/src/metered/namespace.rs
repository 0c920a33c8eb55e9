//! What changes a namespace: `namespace()` and `{% set namespace.name = value %}`.

use minijinja::value::Kwargs;
use minijinja::{Error, ErrorKind, State, Value};

use super::settled;
use crate::namespace::Namespace;

pub(super) fn namespace(
    state: &State,
    defaults: Option<Value>,
    more: Kwargs,
) -> Result<Value, Error> {
    let namespace = Namespace::default();
    if let Some(defaults) = defaults {
        for key in defaults.try_iter()? {
            if let Some(name) = key.as_str() {
                put(&namespace, state, name, defaults.get_item(&key)?)?;
            }
        }
    }
    for name in more.args() {
        put(&namespace, state, name, more.get(name)?)?;
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
        Some(namespace) => put(namespace, state, name, value.clone()),
        None => {
            let error = format!("can only assign to namespaces, not {}", namespace.kind());
            Err(Error::new(ErrorKind::InvalidOperation, error))
        }
    }
}

fn put(namespace: &Namespace, state: &State, name: &str, value: Value) -> Result<(), Error> {
    // As in a list: it may be no namespace either.
    settled(state, &Value::from(vec![value.clone()]), 0)?;
    namespace.insert(name, value);
    Ok(())
}
