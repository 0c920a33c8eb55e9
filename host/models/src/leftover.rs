//! What a model's files have and the architecture does not use.
//!
//! The readers of keys and of tensors remember which ones they read. What is left over is compared here with
//! what is known to change nothing. Whatever remains is the model's own way of computing, and serving
//! it without would be serving another model.

use std::fmt;

use serde_json::Value;

/// What to do with a model that has keys or tensors of which this version knows nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnUnknown {
    /// Refuse it, naming them.
    #[default]
    Refuse,
    /// Compute without them, and say so.
    Warn,
}

/// Something in a model's files that nothing here uses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Leftover {
    /// A key that changes what is computed, with a value other than those that we compute. It is
    /// refused whatever the settings say.
    Differs {
        /// The key, as in the file.
        key: String,
        /// The key's value, cut if it is long.
        value: String,
        /// What we compute, as the rest of a sentence.
        computed: String,
    },
    /// A tensor of a part of the model that we compute without it. It is refused as well.
    Inside {
        /// The tensor's name in the files.
        tensor: String,
    },
    /// A key of which nothing is known.
    Key {
        /// The key, as in the file.
        key: String,
        /// The key's value, cut if it is long.
        value: String,
    },
    /// A tensor of which nothing is known, outside the parts that we compute.
    Tensor {
        /// The tensor's name in the files.
        tensor: String,
    },
    /// A file that changes the model beside it.
    File {
        /// The file's name.
        name: String,
    },
}

impl Leftover {
    pub(crate) fn differs(key: &str, value: &Value, computed: impl Into<String>) -> Self {
        Self::Differs { key: key.to_owned(), value: shown(value), computed: computed.into() }
    }

    pub(crate) fn key(key: &str, value: &Value) -> Self {
        Self::Key { key: key.to_owned(), value: shown(value) }
    }

    /// The leftover that a key is which was not read, if it is one. `computed`: what its value may be, if it changes what is
    /// computed. `ignored`: it is known to change nothing.
    pub(crate) fn of(
        key: &str,
        value: &Value,
        computed: Option<&SupportedValue>,
        ignored: bool,
    ) -> Option<Self> {
        match computed {
            Some(computed) if computed.is(value) => None,
            Some(computed) => Some(Self::differs(key, value, computed.words())),
            // What is switched off changes nothing, whatever it is.
            None if ignored || *value == Value::Bool(false) => None,
            None => Some(Self::key(key, value)),
        }
    }

    /// Whether nothing is known of it, so that the operator may know better.
    pub(crate) fn is_unknown(&self) -> bool {
        match self {
            Self::Differs { .. } | Self::Inside { .. } => false,
            Self::Key { .. } | Self::Tensor { .. } | Self::File { .. } => true,
        }
    }
}

/// A value for a message: one line, not endless.
pub(crate) fn shown(value: &Value) -> String {
    const CHARS_MAX: usize = 60;
    let text = value.to_string();
    match text.char_indices().nth(CHARS_MAX) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}

/// All that is left over, by kind; of each kind the first few are shown, and how many more there are.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Leftovers(pub Vec<Leftover>);

impl fmt::Display for Leftovers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut sentences = Vec::new();
        let differing = self.each(|leftover| match leftover {
            Leftover::Differs { key, value, computed } => {
                Some(format!("{key} is {value}, {computed}"))
            }
            _ => None,
        });
        sentences.extend(differing.list("; "));
        let inside = self.each(|leftover| match leftover {
            Leftover::Inside { tensor } => Some(tensor.clone()),
            _ => None,
        });
        let inside = inside.list(", ");
        sentences.extend(inside.map(|names| format!("this model is computed without {names}")));
        let keys = self.each(|leftover| match leftover {
            Leftover::Key { key, value } => Some(format!("{key} = {value}")),
            _ => None,
        });
        sentences.extend(keys.list(", ").map(|keys| format!("unknown keys: {keys}")));
        let tensors = self.each(|leftover| match leftover {
            Leftover::Tensor { tensor } => Some(tensor.clone()),
            _ => None,
        });
        sentences.extend(tensors.list(", ").map(|names| format!("unknown tensors: {names}")));
        let files = self.each(|leftover| match leftover {
            Leftover::File { name } => Some(name.clone()),
            _ => None,
        });
        sentences.extend(files.list(", ").map(|names| format!("not applied: {names}")));
        f.write_str(&sentences.join("; "))
    }
}

impl Leftovers {
    const SHOWN: usize = 6;

    fn each(&self, of: impl Fn(&Leftover) -> Option<String>) -> Listing {
        Listing(self.0.iter().filter_map(of).collect())
    }
}

/// The leftovers of one kind, in words.
struct Listing(Vec<String>);

impl Listing {
    fn list(&self, between: &str) -> Option<String> {
        let shown = self.0.iter().take(Leftovers::SHOWN).cloned().collect::<Vec<_>>().join(between);
        match self.0.len().saturating_sub(Leftovers::SHOWN) {
            0 if shown.is_empty() => None,
            0 => Some(shown),
            more => Some(format!("{shown} and {more} more")),
        }
    }
}

/// The values of a key with which a model is computed as we do it.
#[derive(Debug, Clone, Copy)]
pub(crate) enum SupportedValue {
    /// One of these texts.
    Text(&'static [&'static str]),
    /// Only this number.
    Number(f64),
    /// Only this truth value.
    Bool(bool),
    /// Nothing: `null`, `false`, 0, or empty.
    Nothing,
}

impl SupportedValue {
    pub(crate) fn is(self, value: &Value) -> bool {
        match self {
            Self::Text(texts) => value.as_str().is_some_and(|text| texts.contains(&text)),
            Self::Number(number) => value.as_f64() == Some(number),
            Self::Bool(answer) => value.as_bool() == Some(answer),
            Self::Nothing => match value {
                Value::Null | Value::Bool(false) => true,
                Value::Bool(true) => false,
                Value::Number(number) => number.as_f64() == Some(0.0),
                Value::String(text) => text.is_empty(),
                Value::Array(list) => list.is_empty(),
                Value::Object(map) => map.is_empty(),
            },
        }
    }

    pub(crate) fn words(self) -> String {
        match self {
            Self::Text(texts) => format!("computed is {:?} alone", texts[0]),
            Self::Number(number) => format!("computed is {number} alone"),
            Self::Bool(answer) => format!("computed is {answer} alone"),
            Self::Nothing => "which is not computed here".to_owned(),
        }
    }
}

/// Whether a tensor's absence from a computation is known to change nothing.
///
/// `inv_freq` is what a rotation computes from its base: old checkpoints carried it along, and
/// Transformers and llama.cpp skip it too.
pub(crate) fn is_derived(tensor: &str) -> bool {
    let name = tensor.strip_suffix(".weight").unwrap_or(tensor);
    name.ends_with("rotary_emb.inv_freq") || name.ends_with(".attn_rot_embd")
}

/// Whether a tensor belongs to a part that every architecture computes: its blocks, norm, embedding and
/// head, by Hugging Face's names or by GGUF's.
pub(crate) fn is_inside(tensor: &str) -> bool {
    const PARTS: [&str; 7] =
        ["model.", "lm_head.", "blk.", "token_embd.", "output.", "output_norm.", "rope_"];
    PARTS.iter().any(|part| tensor.starts_with(part))
}
