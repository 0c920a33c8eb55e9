//! The body of a request, for policies that were granted a look at it.
//!
//! # Invariants
//!
//! - What policies write into a body is at most its own size and [`Body::WRITTEN_BYTES_MAX`] more,
//!   however often they overwrite it: the host's memory is not theirs to fill.
//! - It is never nested deeper than the stack of whoever walks it: a pointer that is written to
//!   has at most [`Body::DEPTH_MAX`] parts, and a value is as deep as the parser allows.

use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use serde_json::Value;

/// A JSON body that is parsed when somebody first asks.
///
/// Shared by the policies of one request, one after the other; what one changes the next one
/// sees. What a policy may see of it is the caller's business. Cheap to clone: every clone is the
/// same body.
#[derive(Clone)]
pub struct Body {
    state: Arc<Mutex<BodyState>>,
    /// Bytes that it came with.
    bytes: usize,
}

#[derive(Clone)]
struct BodyState {
    content: Content,
    /// Bytes that may still be written into it.
    room: usize,
}

#[derive(Clone)]
enum Content {
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
    /// Too far down to be written to.
    #[error("a pointer to write to has at most {max} parts, got {0}", max = Body::DEPTH_MAX)]
    TooDeep(usize),
    /// What would be read or written is too large.
    #[error("it has more bytes than may be read or written")]
    TooLarge,
}

impl fmt::Debug for Body {
    /// Without its content, which is the client's.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Body").finish_non_exhaustive()
    }
}

impl Body {
    /// The largest body that policies read on the threads that serve everyone: parsing or copying
    /// one takes some tens of microseconds.
    pub const IN_LINE_BYTES_MAX: usize = 16 << 10;

    /// Bytes that policies may write into a body, besides as many as it had.
    pub const WRITTEN_BYTES_MAX: usize = 256 << 10;

    /// Most parts of a pointer that is written to.
    pub const DEPTH_MAX: usize = 64;

    /// A body as it came. Nothing is copied until somebody asks for it.
    pub fn new(bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        let (len, room) = (bytes.len(), bytes.len() + Self::WRITTEN_BYTES_MAX);
        let state = BodyState { content: Content::Raw(bytes), room };
        Self { state: Arc::new(Mutex::new(state)), bytes: len }
    }

    /// May it take long to read?
    pub fn is_large(&self) -> bool {
        self.bytes > Self::IN_LINE_BYTES_MAX
    }

    /// Parses it, unless somebody has. Whoever asks first would do so anyway; this way its time
    /// can be told from theirs.
    ///
    /// # Errors
    ///
    /// When the body is none.
    pub fn parse(&self) -> Result<(), BadPointer> {
        self.lock().parsed().map(drop)
    }

    /// What stands there, as JSON text of at most so many bytes.
    ///
    /// # Errors
    ///
    /// When the body or the pointer is none, or the text is longer.
    pub fn get(&self, pointer: &str, bytes_max: usize) -> Result<Option<String>, BadPointer> {
        well_formed(pointer)?;
        let mut state = self.lock();
        let (root, _) = state.parsed()?;
        root.pointer(pointer).map(|value| text(value, bytes_max)).transpose()
    }

    /// Puts JSON text there; `/-` at the end of an array appends.
    ///
    /// # Errors
    ///
    /// When the body, the pointer or the value is none, there is no parent to put it into, or too
    /// much was written already. What was not a change may have used up room all the same.
    pub fn set(&self, pointer: &str, json: &str) -> Result<(), BadPointer> {
        well_formed(pointer)?;
        let depth = pointer.bytes().filter(|byte| *byte == b'/').count();
        if depth > Self::DEPTH_MAX {
            return Err(BadPointer::TooDeep(depth));
        }
        let mut state = self.lock();
        // The name of a member is written as well.
        let written = json.len() + pointer.len();
        state.room = state.room.checked_sub(written).ok_or(BadPointer::TooLarge)?;
        let value: Value =
            serde_json::from_str(json).map_err(|why| BadPointer::NotJson(why.to_string()))?;
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

    /// Did a policy change it?
    pub fn is_changed(&self) -> bool {
        matches!(self.lock().content, Content::Parsed { changed: true, .. })
    }

    /// The body as policies left it; `None` when none of them changed it.
    pub fn changed(&self) -> Option<Vec<u8>> {
        match &self.lock().content {
            Content::Parsed { root, changed: true } => Some(root.to_string().into_bytes()),
            Content::Raw(_) | Content::Parsed { .. } => None,
        }
    }

    /// A body like this one, for whoever's changes must not be seen. What it says is copied when
    /// one of the two changes, not before.
    pub fn copy(&self) -> Self {
        let state = self.lock().clone();
        Self { state: Arc::new(Mutex::new(state)), bytes: self.bytes }
    }

    /// Takes over the content of `other`.
    pub fn replace_with(&self, other: &Self) {
        let state = other.lock().clone();
        *self.lock() = state;
    }

    fn lock(&self) -> MutexGuard<'_, BodyState> {
        // Nothing panics while it is held but an allocation, and then the value is whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl BodyState {
    fn parsed(&mut self) -> Result<(&mut Arc<Value>, &mut bool), BadPointer> {
        if let Content::Raw(bytes) = &self.content {
            let root = serde_json::from_slice(bytes)
                .map_err(|why| BadPointer::BodyNotJson(why.to_string()))?;
            self.content = Content::Parsed { root: Arc::new(root), changed: false };
        }
        match &mut self.content {
            Content::Parsed { root, changed } => Ok((root, changed)),
            Content::Raw(_) => unreachable!("it was parsed above"),
        }
    }
}

/// JSON text that is given up as soon as it is too long, rather than made and thrown away.
fn text(value: &Value, bytes_max: usize) -> Result<String, BadPointer> {
    let mut short = Short { bytes: Vec::new(), bytes_max };
    // Nothing else fails: it is JSON already.
    serde_json::to_writer(&mut short, value).map_err(|_| BadPointer::TooLarge)?;
    String::from_utf8(short.bytes).map_err(|_| unreachable!("JSON text is UTF-8"))
}

struct Short {
    bytes: Vec<u8>,
    bytes_max: usize,
}

impl io::Write for Short {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.bytes.len() + bytes.len() > self.bytes_max {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
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
        assert_eq!(body.get("/messages/0/content", 99), Ok(Some("\"hi\"".into())));
        assert_eq!(body.get("/a~1b", 99), Ok(Some("1".into())));
        assert_eq!(body.get("/none", 99), Ok(None));
        body.remove("/none").unwrap();
        assert_eq!(body.changed(), None);
    }

    #[test]
    fn a_body_that_nobody_looked_at_is_the_bytes_that_came() {
        let came = Bytes::from(vec![b' '; 1000]);
        let body = Body::new(came.clone());
        for body in [body.copy(), body] {
            let Content::Raw(bytes) = &body.lock().content else { panic!("nobody looked") };
            assert_eq!((bytes.as_ptr(), bytes.len()), (came.as_ptr(), came.len()));
        }
    }

    #[test]
    fn a_copy_shares_what_was_parsed_and_sees_no_changes() {
        let body = body();
        body.parse().unwrap();
        let copy = body.copy();
        let root = |body: &Body| match &body.lock().content {
            Content::Parsed { root, .. } => Arc::as_ptr(root),
            Content::Raw(_) => panic!("it was parsed"),
        };
        assert_eq!(root(&body), root(&copy));
        body.set("/model", r#""other""#).unwrap();
        assert_eq!(copy.get("/model", 100), Ok(Some(r#""m""#.into())));
        assert_eq!((copy.changed(), body.changed().is_some()), (None, true));
    }

    #[test]
    fn what_one_policy_changes_the_next_one_sees() {
        let body = body();
        body.set("/temperature", "0.5").unwrap();
        body.set("/messages/-", r#"{"content":"more"}"#).unwrap();
        body.remove("/a~1b").unwrap();
        assert_eq!(body.get("/messages/1/content", 99), Ok(Some("\"more\"".into())));
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
        assert!(matches!(none.get("", 99), Err(BadPointer::BodyNotJson(_))));
    }

    #[test]
    fn what_is_too_long_is_not_read() {
        let body = body();
        assert_eq!(body.get("/messages", 17), Err(BadPointer::TooLarge));
        assert_eq!(body.get("/messages", 18), Ok(Some(r#"[{"content":"hi"}]"#.into())));
    }

    #[test]
    fn what_is_overwritten_was_written_all_the_same() {
        let body = body();
        let much = format!("\"{}\"", "x".repeat(100 << 10));
        let written = (0..9).take_while(|_| body.set("/x", &much).is_ok()).count();
        assert_eq!(written, 2);
        assert_eq!(body.set("/messages/-", &much), Err(BadPointer::TooLarge));
        body.set("/y", "1").expect("there is room for that");
    }

    /// Each value is as deep as the parser allows, and put into the one before: whoever walked
    /// that would run out of stack, which no host survives.
    #[test]
    fn nobody_nests_deeper_than_the_stack() {
        let body = Body::new(b"[0]".to_vec());
        let deep = format!("{}0{}", "[".repeat(120), "]".repeat(120));
        let mut pointer = String::from("/0");
        let set = (0..1000).take_while(|_| {
            let set = body.set(&pointer, &deep);
            pointer.push_str(&"/0".repeat(120));
            set.is_ok()
        });
        assert_eq!(set.count(), 1);
        assert!(body.changed().is_some());
    }
}
