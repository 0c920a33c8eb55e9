//! GGUF's metadata: values by key, and which keys were asked for.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};

use interlock_request::TokenId;
use serde_json::{Value, json};

use crate::leftover::{Leftover, SupportedValue, shown};

/// A metadata value, its number type forgotten.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum MetaValue {
    Integer(i64),
    Float(f64),
    Bool(bool),
    Text(String),
    Integers(Vec<i64>),
    Floats(Vec<f64>),
    Bools(Vec<bool>),
    Texts(Vec<String>),
}

/// Metadata by key, and which keys were asked for.
#[derive(Default)]
pub(super) struct GgufMetadata {
    pub(super) entries: HashMap<String, MetaValue>,
    asked: RefCell<HashSet<String>>,
}

/// Keys below the architecture's name that change what is computed, with the values that we compute.
const COMPUTED: &[(&str, SupportedValue)] = &[
    ("attention.causal", SupportedValue::Bool(true)),
    ("attention.clamp_kqv", SupportedValue::Nothing),
    ("attention.max_alibi_bias", SupportedValue::Nothing),
    ("attention.scale", SupportedValue::Nothing),
    ("attn_logit_softcapping", SupportedValue::Nothing),
    ("embedding_scale", SupportedValue::Number(1.0)),
    ("expert_count", SupportedValue::Nothing),
    ("expert_shared_count", SupportedValue::Nothing),
    ("expert_used_count", SupportedValue::Nothing),
    ("final_logit_softcapping", SupportedValue::Nothing),
    ("logit_scale", SupportedValue::Number(1.0)),
    ("nextn_predict_layers", SupportedValue::Nothing),
    ("residual_scale", SupportedValue::Number(1.0)),
    ("rope.dimension_sections", SupportedValue::Nothing),
    ("rope.scale_linear", SupportedValue::Number(1.0)),
    ("rope.scaling.attn_factor", SupportedValue::Number(1.0)),
    ("rope.scaling.yarn_attn_factor", SupportedValue::Number(1.0)),
    ("rope.scaling.yarn_ext_factor", SupportedValue::Number(1.0)),
    ("rope.scaling.yarn_log_multiplier", SupportedValue::Nothing),
    ("tensor_data_layout", SupportedValue::Text(&["Meta AI original pth"])),
    ("use_parallel_residual", SupportedValue::Bool(false)),
];

/// Keys below the architecture's name that change nothing that is computed for a next token.
const IGNORED: [&str; 2] = ["pooling_type", "rope.scaling.finetuned"];

/// Beginnings of keys of which no architecture takes what it computes: names and sources, what
/// quantized it and how, the parts of a split file; and the text side's.
const ELSEWHERE: [&str; 8] = [
    "general.",
    "imatrix.",
    "mradermacher.",
    "quantize.",
    "quantized_by",
    "split.",
    "tokenizer.",
    "unsloth.",
];

/// Whether a value is of the kind that its key must hold.
impl MetaValue {
    /// The value as JSON, for messages; long lists are cut.
    fn value(&self) -> Value {
        const SHOWN: usize = 8;
        fn list<T: Clone + Into<Value>>(values: &[T]) -> Value {
            values.iter().take(SHOWN).cloned().map(Into::into).collect()
        }
        match self {
            Self::Integer(value) => json!(value),
            Self::Float(value) => json!(value),
            Self::Bool(value) => json!(value),
            Self::Text(value) => json!(value),
            Self::Integers(values) => list(values),
            Self::Floats(values) => list(values),
            Self::Bools(values) => list(values),
            Self::Texts(values) => list(values),
        }
    }

    /// Whether this is a token's number; see [`GgufMetadata::token`] for the bounds.
    pub(super) fn is_token(&self) -> bool {
        matches!(self, Self::Integer(value) if (-1..=i64::from(u32::MAX)).contains(value))
    }
}

impl GgufMetadata {
    pub(super) fn get(&self, key: &str) -> Option<&MetaValue> {
        self.asked.borrow_mut().insert(key.to_owned());
        self.entries.get(key)
    }

    pub(super) fn integer(&self, key: &str) -> Option<i64> {
        match self.get(key)? {
            MetaValue::Integer(value) => Some(*value),
            // Some files give a per-layer list where all entries are the same.
            MetaValue::Integers(values) if values.windows(2).all(|pair| pair[0] == pair[1]) => {
                values.first().copied()
            }
            _ => None,
        }
    }

    pub(super) fn float(&self, key: &str) -> Option<f64> {
        match self.get(key)? {
            MetaValue::Float(value) => Some(*value),
            MetaValue::Integer(value) => Some(*value as f64),
            _ => None,
        }
    }

    pub(super) fn text(&self, key: &str) -> Option<&str> {
        match self.get(key)? {
            MetaValue::Text(value) => Some(value),
            _ => None,
        }
    }

    pub(super) fn bool(&self, key: &str) -> Option<bool> {
        match self.get(key)? {
            MetaValue::Bool(value) => Some(*value),
            _ => None,
        }
    }

    /// A token's id. Some files write 2^32 - 1 where there is no such token.
    pub(super) fn token(&self, key: &str) -> Option<TokenId> {
        TokenId::try_from(self.integer(key)?).ok().filter(|id| *id != TokenId::MAX)
    }

    pub(super) fn texts(&mut self, key: &str) -> Vec<String> {
        match self.entries.remove(key) {
            Some(MetaValue::Texts(values)) => values,
            _ => Vec::new(),
        }
    }

    /// What `read` makes of a key; an error if it is there and `read` makes nothing of it.
    pub(super) fn told<'a, T>(
        &'a self,
        key: &str,
        read: impl FnOnce(&'a Self, &str) -> Option<T>,
        must: &str,
    ) -> Result<Option<T>, String> {
        match (read(self, key), self.entries.get(key)) {
            (Some(value), _) => Ok(Some(value)),
            (None, None) => Ok(None),
            (None, Some(other)) => {
                Err(format!("metadata {key} is {}, must be {must}", shown(&other.value())))
            }
        }
    }

    pub(super) fn whole(&self, key: &str) -> Result<Option<i64>, String> {
        self.told(key, Self::integer, "a whole number, the same for all layers")
    }

    pub(super) fn number(&self, key: &str) -> Result<Option<f64>, String> {
        self.told(key, Self::float, "a number")
    }

    /// What was not asked for and is not known to change nothing.
    pub(super) fn leftovers(&self, architecture: &str) -> Vec<Leftover> {
        let asked = self.asked.borrow();
        let mut left: Vec<(&String, &MetaValue)> =
            self.entries.iter().filter(|(key, _)| !asked.contains(*key)).collect();
        left.sort_by_key(|(key, _)| *key);
        let leftover = |(key, meta): (&String, &MetaValue)| {
            let value = meta.value();
            if ELSEWHERE.iter().any(|start| key.starts_with(start)) {
                return None;
            }
            let own = key.strip_prefix(architecture).and_then(|rest| rest.strip_prefix('.'));
            let computed = COMPUTED.iter().find(|(known, _)| Some(*known) == own);
            let computed = computed.map(|(_, computed)| computed);
            let ignored = own.is_some_and(|own| IGNORED.contains(&own));
            Leftover::of(key, &value, computed, ignored)
        };
        left.into_iter().filter_map(leftover).collect()
    }
}
