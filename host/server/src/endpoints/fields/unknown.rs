//! The names of fields that are in no table.

/// Names of ignored fields, for a response header and the log: few, short and printable, however
/// many a client sends.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct UnknownFields {
    /// Such as `frobnicate` or `messages[].mood`.
    names: Vec<String>,
    /// Are there others that are not named?
    more: bool,
}

impl UnknownFields {
    /// Most names.
    const NAMES_MAX: usize = 16;
    /// Longest name, in bytes.
    const NAME_BYTES_MAX: usize = 64;

    /// Takes the name of a field of the object at `path`.
    pub(super) fn add(&mut self, path: &str, name: &str) {
        let is_full = self.names.len() == Self::NAMES_MAX;
        if self.more && is_full {
            return;
        }
        let printable = name.chars().all(|c| c.is_ascii_graphic() && c != ',');
        let named = super::path_in(&without_positions(path), name);
        if self.names.contains(&named) {
            return;
        }
        if is_full || !printable || name.is_empty() || named.len() > Self::NAME_BYTES_MAX {
            self.more = true;
        } else {
            self.names.push(named);
        }
    }

    /// The names, separated by commas, with `...` at the end if there are more; `None` when nothing
    /// was ignored.
    pub(crate) fn listed(&self) -> Option<String> {
        let more = self.more.then_some("...");
        let all: Vec<_> = self.names.iter().map(String::as_str).chain(more).collect();
        (!all.is_empty()).then(|| all.join(", "))
    }
}

/// A path such as `messages[12].content` as `messages[].content`: the same for every element.
fn without_positions(path: &str) -> String {
    let mut inside = false;
    let mut kept = path.to_owned();
    kept.retain(|c| {
        inside = (inside || c == '[') && c != ']';
        !(inside && c.is_ascii_digit())
    });
    kept
}
