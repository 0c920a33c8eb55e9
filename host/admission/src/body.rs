//! The body of a request, for policies that were granted a look at it.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use serde_json::Value;

/// A JSON body that is parsed when somebody first asks.
///
/// Shared by the policies of one request, one after the other; what one changes the next one
/// sees. What a policy may see of it is the caller's business. Cheap to clone: every clone is the
/// same body.
#[derive(Clone)]
pub struct Body(Arc<Mutex<State>>);

#[derive(Clone)]
enum State {
    Raw(Bytes),
    /// Shared with the copies until one of them changes it.
    Parsed {
        root: Arc<Value>,
        changed: bool,
    },
}

/// Why nothing was read or changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadPointer {
    /// Not a JSON Pointer.
    #[error("a JSON pointer is empty or begins with '/', got {0:?}")]
    Form(String),
    /// Nothing to put it into.
    #[error("there is nothing at {0:?} to put it into")]
    NoParent(String),
    /// The value is no JSON.
    #[error("the value is no JSON: {0}")]
    NotJson(String),
    /// The body itself is none.
    #[error("the body is no JSON: {0}")]
    BodyNotJson(String),
}

impl fmt::Debug for Body {
    /// Without its content, which is the client's.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Body").finish_non_exhaustive()
    }
}

impl Body {
    /// A body as it came. Nothing is copied until somebody asks for it.
    pub fn new(bytes: impl Into<Bytes>) -> Self {
        Self(Arc::new(Mutex::new(State::Raw(bytes.into()))))
    }

    /// Parses it now, for whoever would otherwise do so where it must not take long. A body that is
    /// no JSON stays as it is, and whoever asks for something in it is told.
    pub fn parse(&self) {
        let _told_later = self.lock().parsed();
    }

    /// What stands there, as JSON text.
    ///
    /// # Errors
    ///
    /// When the body or the pointer is none.
    pub fn get(&self, pointer: &str) -> Result<Option<String>, BadPointer> {
        well_formed(pointer)?;
        let mut state = self.lock();
        let (root, _) = state.parsed()?;
        Ok(root.pointer(pointer).map(Value::to_string))
    }

    /// Puts JSON text there; `/-` at the end of an array appends.
    ///
    /// # Errors
    ///
    /// When the body, the pointer or the value is none, or there is no parent to put it into.
    pub fn set(&self, pointer: &str, json: &str) -> Result<(), BadPointer> {
        well_formed(pointer)?;
        let value: Value =
            serde_json::from_str(json).map_err(|why| BadPointer::NotJson(why.to_string()))?;
        let mut state = self.lock();
        let (root, changed) = state.parsed()?;
        let Some((parent, name)) = pointer.rsplit_once('/') else {
            (*root, *changed) = (Arc::new(value), true);
            return Ok(());
        };
        let no_parent = || BadPointer::NoParent(pointer.to_owned());
        match Arc::make_mut(root).pointer_mut(parent).ok_or_else(no_parent)? {
            Value::Object(map) => {
                map.insert(unescaped(name), value);
            }
            Value::Array(list) if name == "-" => list.push(value),
            Value::Array(list) => {
                let at = name.parse().ok().and_then(|at: usize| list.get_mut(at));
                *at.ok_or_else(no_parent)? = value;
            }
            _ => return Err(no_parent()),
        }
        *changed = true;
        Ok(())
    }

    /// Removes what stands there, if anything does.
    ///
    /// # Errors
    ///
    /// When the body or the pointer is none.
    pub fn remove(&self, pointer: &str) -> Result<(), BadPointer> {
        well_formed(pointer)?;
        let mut state = self.lock();
        let (root, changed) = state.parsed()?;
        let Some((parent, name)) = pointer.rsplit_once('/') else {
            (*root, *changed) = (Arc::new(Value::Null), true);
            return Ok(());
        };
        *changed |= match Arc::make_mut(root).pointer_mut(parent) {
            Some(Value::Object(map)) => map.shift_remove(&unescaped(name)).is_some(),
            Some(Value::Array(list)) => match name.parse::<usize>() {
                Ok(at) if at < list.len() => {
                    list.remove(at);
                    true
                }
                _ => false,
            },
            _ => false,
        };
        Ok(())
    }

    /// The body as policies left it; `None` when none of them changed it.
    pub fn changed(&self) -> Option<Vec<u8>> {
        match &*self.lock() {
            State::Parsed { root, changed: true } => Some(root.to_string().into_bytes()),
            State::Raw(_) | State::Parsed { .. } => None,
        }
    }

    /// A body like this one, for whoever's changes must not be seen. What it says is copied when
    /// one of the two changes, not before.
    pub(crate) fn copy(&self) -> Self {
        let state = self.lock().clone();
        Self(Arc::new(Mutex::new(state)))
    }

    /// Becomes what `other` is.
    pub(crate) fn become_again(&self, other: &Self) {
        let state = other.lock().clone();
        *self.lock() = state;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it is held but an allocation, and then the value is whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn parsed(&mut self) -> Result<(&mut Arc<Value>, &mut bool), BadPointer> {
        if let Self::Raw(bytes) = self {
            let root = serde_json::from_slice(bytes)
                .map_err(|why| BadPointer::BodyNotJson(why.to_string()))?;
            *self = Self::Parsed { root: Arc::new(root), changed: false };
        }
        match self {
            Self::Parsed { root, changed } => Ok((root, changed)),
            Self::Raw(_) => unreachable!("it was parsed above"),
        }
    }
}

fn well_formed(pointer: &str) -> Result<(), BadPointer> {
    if pointer.is_empty() || pointer.starts_with('/') {
        Ok(())
    } else {
        Err(BadPointer::Form(pointer.to_owned()))
    }
}

fn unescaped(name: &str) -> String {
    name.replace("~1", "/").replace("~0", "~")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body() -> Body {
        Body::new(br#"{"model":"m","messages":[{"content":"hi"}],"a/b":1}"#.to_vec())
    }

    #[test]
    fn what_nobody_changed_has_not_changed() {
        let body = body();
        assert_eq!(body.get("/messages/0/content"), Ok(Some("\"hi\"".into())));
        assert_eq!(body.get("/a~1b"), Ok(Some("1".into())));
        assert_eq!(body.get("/none"), Ok(None));
        body.remove("/none").unwrap();
        assert_eq!(body.changed(), None);
    }

    #[test]
    fn a_body_that_nobody_looked_at_is_the_bytes_that_came() {
        let came = Bytes::from(vec![b' '; 1000]);
        let body = Body::new(came.clone());
        for body in [body.copy(), body] {
            let State::Raw(bytes) = &*body.lock() else { panic!("nobody looked") };
            assert_eq!((bytes.as_ptr(), bytes.len()), (came.as_ptr(), came.len()));
        }
    }

    #[test]
    fn a_copy_shares_what_was_parsed_and_sees_no_changes() {
        let body = body();
        body.parse();
        let copy = body.copy();
        let root = |body: &Body| match &*body.lock() {
            State::Parsed { root, .. } => Arc::as_ptr(root),
            State::Raw(_) => panic!("it was parsed"),
        };
        assert_eq!(root(&body), root(&copy));
        body.set("/model", r#""other""#).unwrap();
        assert_eq!(copy.get("/model"), Ok(Some(r#""m""#.into())));
        assert_eq!((copy.changed(), body.changed().is_some()), (None, true));
    }

    #[test]
    fn what_one_policy_changes_the_next_one_sees() {
        let body = body();
        body.set("/temperature", "0.5").unwrap();
        body.set("/messages/-", r#"{"content":"more"}"#).unwrap();
        body.remove("/a~1b").unwrap();
        assert_eq!(body.get("/messages/1/content"), Ok(Some("\"more\"".into())));
        let changed = String::from_utf8(body.changed().unwrap()).unwrap();
        assert_eq!(
            changed,
            r#"{"model":"m","messages":[{"content":"hi"},{"content":"more"}],"temperature":0.5}"#
        );
    }

    #[test]
    fn nonsense_is_named_and_changes_nothing() {
        let body = body();
        assert_eq!(body.set("x", "1"), Err(BadPointer::Form("x".into())));
        assert_eq!(body.set("/no/such", "1"), Err(BadPointer::NoParent("/no/such".into())));
        assert!(matches!(body.set("/x", "{"), Err(BadPointer::NotJson(_))));
        assert_eq!(body.changed(), None);
        let none = Body::new(b"not json".to_vec());
        assert!(matches!(none.get(""), Err(BadPointer::BodyNotJson(_))));
    }
}
