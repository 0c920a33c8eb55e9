//! A body in memory. Everything is granted.

use serde_json::Value;

use super::world;
use crate::content::Fault;

/// What stands at a pointer, as JSON text; `None`: nothing does.
///
/// # Errors
///
/// There is no body at this phase, or the pointer was not granted or is none.
pub fn get(pointer: &str) -> Result<Option<String>, Fault> {
    check(pointer)?;
    with_body(|body| Ok(body.pointer(pointer).map(Value::to_string)))
}

/// Puts a value there. Its parent must exist; `/-` at the end of an array appends.
///
/// # Errors
///
/// As [`get`]'s; and the JSON is none, or there is no such parent.
pub fn set(pointer: &str, json: &str) -> Result<(), Fault> {
    check(pointer)?;
    let value: Value = serde_json::from_str(json).map_err(|e| Fault::Invalid(e.to_string()))?;
    with_body(|body| {
        let Some((parent, key)) = pointer.rsplit_once('/') else {
            *body = value;
            return Ok(());
        };
        let key = key.replace("~1", "/").replace("~0", "~");
        match body.pointer_mut(parent) {
            Some(Value::Object(fields)) => {
                fields.insert(key, value);
            }
            Some(Value::Array(items)) if key == "-" => items.push(value),
            Some(Value::Array(items)) => {
                let place = key.parse().ok().and_then(|place: usize| items.get_mut(place));
                *place.ok_or_else(|| Fault::Invalid(format!("{pointer} is not there")))? = value;
            }
            _ => return Err(Fault::Invalid(format!("{pointer} has no parent"))),
        }
        Ok(())
    })
}

/// Removes what stands there, if anything does.
///
/// # Errors
///
/// As [`get`]'s.
pub fn remove(pointer: &str) -> Result<(), Fault> {
    check(pointer)?;
    with_body(|body| {
        let (parent, key) =
            pointer.rsplit_once('/').ok_or_else(|| Fault::Invalid("all of it".into()))?;
        let key = key.replace("~1", "/").replace("~0", "~");
        match body.pointer_mut(parent) {
            Some(Value::Object(fields)) => {
                fields.remove(&key);
            }
            Some(Value::Array(items)) => {
                if let Some(place) = key.parse().ok().filter(|&place: &usize| place < items.len()) {
                    items.remove(place);
                }
            }
            _ => {}
        }
        Ok(())
    })
}

fn check(pointer: &str) -> Result<(), Fault> {
    if pointer.is_empty() || pointer.starts_with('/') {
        return Ok(());
    }
    Err(Fault::Invalid(format!("a pointer begins with a slash, got {pointer:?}")))
}

fn with_body<T>(with: impl FnOnce(&mut Value) -> Result<T, Fault>) -> Result<T, Fault> {
    world(|world| with(world.body.as_mut().ok_or(Fault::NotNow)?))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::testing::Host;

    #[test]
    fn a_body_is_read_and_changed_by_pointer() {
        let host = Host::new();
        assert_eq!(get("/model"), Err(Fault::NotNow));
        host.set_body(json!({"model": "m", "messages": [{"content": "hello"}], "a/b": 1}));
        assert_eq!(crate::content::text("/messages/0/content"), Ok(Some("hello".into())));
        assert_eq!(crate::content::text("/messages"), Ok(None));
        assert_eq!(get("/nothing"), Ok(None));
        set("/temperature", "0.5").expect("its parent is there");
        set("/messages/-", r#"{"content": "you"}"#).expect("it is an array");
        set("/messages/0/content", "\"hi\"").expect("it is there");
        remove("/a~1b").expect("it is there");
        remove("/nothing").expect("it is gone");
        assert_eq!(
            host.body(),
            json!({"model": "m", "messages": [{"content": "hi"}, {"content": "you"}], "temperature": 0.5})
        );
        assert!(matches!(set("/no/where", "1"), Err(Fault::Invalid(_))));
        assert!(matches!(set("/model", "{"), Err(Fault::Invalid(_))));
        assert!(matches!(get("model"), Err(Fault::Invalid(_))));
    }
}
