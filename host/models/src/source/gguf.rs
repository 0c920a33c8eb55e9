//! GGUF: one file with metadata, tokenizer and tensors.
//!
//! Layout (little-endian), after <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>:
//! ```text
//! "GGUF"  version: u32  tensors: u64  entries: u64
//! entries x  key: string  type: u32  value
//! tensors x  name: string  sides: u32  side: u64 x sides (innermost first)  type: u32  offset: u64
//! padding to general.alignment, then the tensors' bytes; offsets count from here
//! ```
//!
//! # Not here
//!
//! Version 1, big-endian files and files split in several parts: the error says so.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

use interlock_model_files::open as open_file;
use interlock_request::TokenId;
use serde_json::{Map, Value, json};

use super::blocks::{BLOCK, Kind};
use super::ends::{self, NamedToken};
use super::{Checkpoint, Encoding, Format, Source, Tensor, shape};
use crate::error::LoadError;
use crate::leftover::{Computed, Leftover, shown};
use crate::text_source::{TextSource, TokenizerSource};

const SUPPORTED_VERSIONS: std::ops::RangeInclusive<u32> = 2..=3;
/// Longer text than any tokenizer or template needs.
const STRING_BYTES_MAX: u64 = 16 << 20;

/// A metadata value, its number type forgotten.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Meta {
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
struct Metadata {
    entries: HashMap<String, Meta>,
    asked: RefCell<HashSet<String>>,
}

/// Keys below the architecture's name that change what is computed, with the values that we compute.
const COMPUTED: &[(&str, Computed)] = &[
    ("attention.causal", Computed::Bool(true)),
    ("attention.clamp_kqv", Computed::Nothing),
    ("attention.max_alibi_bias", Computed::Nothing),
    ("attention.scale", Computed::Nothing),
    ("attn_logit_softcapping", Computed::Nothing),
    ("embedding_scale", Computed::Number(1.0)),
    ("expert_count", Computed::Nothing),
    ("expert_shared_count", Computed::Nothing),
    ("expert_used_count", Computed::Nothing),
    ("final_logit_softcapping", Computed::Nothing),
    ("logit_scale", Computed::Number(1.0)),
    ("nextn_predict_layers", Computed::Nothing),
    ("residual_scale", Computed::Number(1.0)),
    ("rope.dimension_sections", Computed::Nothing),
    ("rope.scale_linear", Computed::Number(1.0)),
    ("rope.scaling.attn_factor", Computed::Number(1.0)),
    ("rope.scaling.yarn_attn_factor", Computed::Number(1.0)),
    ("rope.scaling.yarn_ext_factor", Computed::Number(1.0)),
    ("rope.scaling.yarn_log_multiplier", Computed::Nothing),
    ("tensor_data_layout", Computed::Text(&["Meta AI original pth"])),
    ("use_parallel_residual", Computed::Bool(false)),
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
type Fits = fn(&Meta) -> bool;

/// The text side's keys, and what each must hold.
const TOKENIZER: &[(&str, Fits, &str)] = &[
    ("tokenizer.chat_template", |meta| matches!(meta, Meta::Text(_)), "a text"),
    ("tokenizer.ggml.model", |meta| matches!(meta, Meta::Text(_)), "a text"),
    ("tokenizer.ggml.pre", |meta| matches!(meta, Meta::Text(_)), "a text"),
    ("tokenizer.ggml.tokens", |meta| matches!(meta, Meta::Texts(_)), "a list of texts"),
    ("tokenizer.ggml.merges", |meta| matches!(meta, Meta::Texts(_)), "a list of texts"),
    ("tokenizer.ggml.token_type", |meta| matches!(meta, Meta::Integers(_)), "a list of numbers"),
    ("tokenizer.ggml.scores", |meta| matches!(meta, Meta::Floats(_)), "a list of numbers"),
    ("tokenizer.ggml.add_bos_token", |meta| matches!(meta, Meta::Bool(_)), "true or false"),
    ("tokenizer.ggml.add_eos_token", |meta| matches!(meta, Meta::Bool(_)), "true or false"),
    ("tokenizer.ggml.add_space_prefix", |meta| matches!(meta, Meta::Bool(_)), "true or false"),
    ("tokenizer.ggml.bos_token_id", Meta::is_token, "a token's number"),
    ("tokenizer.ggml.eos_token_id", Meta::is_token, "a token's number"),
    ("tokenizer.ggml.unknown_token_id", Meta::is_token, "a token's number"),
    ("tokenizer.ggml.padding_token_id", Meta::is_token, "a token's number"),
    ("tokenizer.ggml.seperator_token_id", Meta::is_token, "a token's number"),
    ("tokenizer.ggml.separator_token_id", Meta::is_token, "a token's number"),
    ("tokenizer.ggml.cls_token_id", Meta::is_token, "a token's number"),
    ("tokenizer.ggml.mask_token_id", Meta::is_token, "a token's number"),
    ("tokenizer.ggml.eot_token_id", Meta::is_token, "a token's number"),
    ("tokenizer.ggml.eom_token_id", Meta::is_token, "a token's number"),
];

/// Keys that name a special token, and what templates call it.
const SPECIAL_TOKENS: [(&str, &str); 8] = [
    ("tokenizer.ggml.bos_token_id", "bos_token"),
    ("tokenizer.ggml.eos_token_id", "eos_token"),
    ("tokenizer.ggml.unknown_token_id", "unk_token"),
    ("tokenizer.ggml.padding_token_id", "pad_token"),
    // Its usual spelling.
    ("tokenizer.ggml.seperator_token_id", "sep_token"),
    ("tokenizer.ggml.separator_token_id", "sep_token"),
    ("tokenizer.ggml.cls_token_id", "cls_token"),
    ("tokenizer.ggml.mask_token_id", "mask_token"),
];

impl Meta {
    /// As JSON has it, long lists cut.
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

    /// See [`Metadata::token`] for the bounds.
    fn is_token(&self) -> bool {
        matches!(self, Self::Integer(value) if (-1..=i64::from(u32::MAX)).contains(value))
    }
}

impl Metadata {
    fn get(&self, key: &str) -> Option<&Meta> {
        self.asked.borrow_mut().insert(key.to_owned());
        self.entries.get(key)
    }

    fn integer(&self, key: &str) -> Option<i64> {
        match self.get(key)? {
            Meta::Integer(value) => Some(*value),
            // Some files give a per-layer list where all entries are the same.
            Meta::Integers(values) if values.windows(2).all(|pair| pair[0] == pair[1]) => {
                values.first().copied()
            }
            _ => None,
        }
    }

    fn float(&self, key: &str) -> Option<f64> {
        match self.get(key)? {
            Meta::Float(value) => Some(*value),
            Meta::Integer(value) => Some(*value as f64),
            _ => None,
        }
    }

    fn text(&self, key: &str) -> Option<&str> {
        match self.get(key)? {
            Meta::Text(value) => Some(value),
            _ => None,
        }
    }

    fn bool(&self, key: &str) -> Option<bool> {
        match self.get(key)? {
            Meta::Bool(value) => Some(*value),
            _ => None,
        }
    }

    /// 2^32 - 1 is how some files say that there is none.
    fn token(&self, key: &str) -> Option<TokenId> {
        TokenId::try_from(self.integer(key)?).ok().filter(|id| *id != TokenId::MAX)
    }

    fn texts(&mut self, key: &str) -> Vec<String> {
        match self.entries.remove(key) {
            Some(Meta::Texts(values)) => values,
            _ => Vec::new(),
        }
    }

    /// What `read` makes of a key; an error if it is there and `read` makes nothing of it.
    fn told<'a, T>(
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

    fn whole(&self, key: &str) -> Result<Option<i64>, String> {
        self.told(key, Self::integer, "a whole number, the same for all layers")
    }

    fn number(&self, key: &str) -> Result<Option<f64>, String> {
        self.told(key, Self::float, "a number")
    }

    /// What was not asked for and is not known to change nothing.
    fn leftovers(&self, architecture: &str) -> Vec<Leftover> {
        let asked = self.asked.borrow();
        let mut left: Vec<(&String, &Meta)> =
            self.entries.iter().filter(|(key, _)| !asked.contains(*key)).collect();
        left.sort_by_key(|(key, _)| *key);
        let leftover = |(key, meta): (&String, &Meta)| {
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

pub(super) fn open(path: &Path) -> Result<Source, LoadError> {
    let read = |cause| LoadError::Read { path: path.into(), cause };
    let damaged = |what: String| LoadError::Damaged { path: path.into(), what };

    let file = open_file(path).map_err(read)?;
    let length = file.metadata().map_err(read)?.len();
    let mut reader = Reader { from: BufReader::new(&file), at: 0, length };
    let (mut metadata, tensors) = reader.header().map_err(|what| match what {
        Bad::Version(version) => LoadError::Unsupported {
            path: path.into(),
            what: format!("GGUF version {version}"),
            supported: "versions 2 and 3, little-endian",
        },
        Bad::Damaged(what) => damaged(what),
        Bad::Read(cause) => read(cause),
    })?;

    let wrong = |what| LoadError::Config { path: path.into(), what };
    let kind = metadata.told("general.type", Metadata::text, "a text").map_err(wrong)?;
    if let Some(other) = kind.filter(|kind| *kind != "model") {
        return Err(LoadError::Unsupported {
            path: path.into(),
            what: format!("a GGUF file of type {other:?}"),
            supported: "those of type \"model\"",
        });
    }
    if let Some(parts @ 2..) = metadata.whole("split.count").map_err(wrong)? {
        return Err(LoadError::Unsupported {
            path: path.into(),
            what: format!("a GGUF file split in {parts}"),
            supported: "single files",
        });
    }
    let (mut config, mut leftovers) = config(&metadata).map_err(wrong)?;
    let architecture = metadata.text("general.architecture").unwrap_or_default();
    leftovers.extend(metadata.leftovers(architecture));
    if let Some((key, _, must)) = TOKENIZER
        .iter()
        .find(|(key, fits, _)| metadata.entries.get(*key).is_some_and(|meta| !fits(meta)))
    {
        return Err(wrong(format!("metadata {key} is not {must}")));
    }
    // The embedding may be padded beyond the tokenizer: its rows are what the model computes.
    if let Some(&[rows, _]) = tensors.get("token_embd.weight").map(|tensor| &tensor.shape[..]) {
        config.insert("vocab_size".to_owned(), json!(rows));
    }
    let name = metadata.text("general.name").map(str::to_owned);
    let text = text(path, &mut metadata)?;
    let checkpoint = Checkpoint { files: vec![(path.into(), file)], tensors };
    let format = Format::Gguf;
    Ok(Source { path: path.into(), format, config, checkpoint, text, name, leftovers })
}

/// The metadata in `config.json`'s terms, so that a family reads one kind of configuration; and what
/// there is no such term for, because it is not computed.
fn config(metadata: &Metadata) -> Result<(Map<String, Value>, Vec<Leftover>), String> {
    let told = metadata.told("general.architecture", Metadata::text, "a text")?;
    let architecture = told.ok_or("metadata general.architecture is missing")?;
    let key = |name: &str| format!("{architecture}.{name}");
    let missing = |name: &str| format!("metadata {} is missing, must be a number", key(name));
    let whole = |name: &str| metadata.whole(&key(name));
    let number = |name: &str| metadata.number(&key(name));
    let need = |name: &str| whole(name)?.ok_or_else(|| missing(name));

    let mut config = Map::new();
    let mut set = |name: &str, value: Value| config.insert(name.to_owned(), value);
    let (hidden, heads) = (need("embedding_length")?, need("attention.head_count")?);
    let head_dim = whole("attention.key_length")?;
    let context = whole("context_length")?;
    set("model_type", json!(architecture));
    set("hidden_size", json!(hidden));
    set("num_hidden_layers", json!(need("block_count")?));
    set("intermediate_size", json!(need("feed_forward_length")?));
    set("num_attention_heads", json!(heads));
    if let Some(heads) = whole("attention.head_count_kv")? {
        set("num_key_value_heads", json!(heads));
    }
    if let Some(dimension) = head_dim {
        set("head_dim", json!(dimension));
    }
    let epsilon = "attention.layer_norm_rms_epsilon";
    set("rms_norm_eps", json!(number(epsilon)?.ok_or_else(|| missing(epsilon))?));
    if let Some(context) = context {
        set("max_position_embeddings", json!(context));
    }
    if let Some(size) = whole("vocab_size")? {
        set("vocab_size", json!(size));
    } else if let Some(Meta::Texts(tokens)) = metadata.entries.get("tokenizer.ggml.tokens") {
        set("vocab_size", json!(tokens.len()));
    }
    if let Some(theta) = number("rope.freq_base")? {
        set("rope_theta", json!(theta));
    }
    // llama.cpp's converter permutes Llama's query and key rows so that the two halves of each
    // rotation lie side by side; other families keep Hugging Face's order.
    set("rope_traditional", json!(architecture == "llama"));
    if let Some(scaling) = scaling(metadata, &key)? {
        set("rope_scaling", Value::Object(scaling));
    }

    let mut leftovers = Vec::new();
    let mut differs = |name: &str, value: i64, computed: String| {
        leftovers.push(Leftover::differs(&key(name), &json!(value), computed));
    };
    let head_dim = head_dim.unwrap_or_else(|| hidden / heads.max(1));
    for name in ["rope.dimension_count", "attention.value_length"] {
        if let Some(told) = whole(name)?.filter(|told| *told != head_dim) {
            differs(name, told, format!("computed is {head_dim} alone, the width of a head"));
        }
    }
    let name = "attention.sliding_window";
    let shorter = |window: &i64| *window != 0 && context.is_none_or(|context| *window < context);
    if let Some(window) = whole(name)?.filter(shorter) {
        differs(name, window, "computed is attention to all that came before".to_owned());
    }
    Ok((config, leftovers))
}

/// How the rotation is stretched, as `rope_scaling` has it.
fn scaling(
    metadata: &Metadata,
    key: &dyn Fn(&str) -> String,
) -> Result<Option<Map<String, Value>>, String> {
    let kind = metadata.told(&key("rope.scaling.type"), Metadata::text, "a text")?;
    let factor = metadata.number(&key("rope.scaling.factor"))?;
    // Nothing is stretched by 0 or 1, and a factor alone is that of the linear kind, as in llama.cpp.
    let stretched = factor.is_some_and(|factor| factor != 0.0 && factor != 1.0);
    let kind = match kind {
        Some("none") => None,
        None => stretched.then_some("linear"),
        kind => kind,
    };
    let numbers = [
        ("rope.scaling.original_context_length", "original_max_position_embeddings"),
        ("rope.scaling.yarn_beta_fast", "beta_fast"),
        ("rope.scaling.yarn_beta_slow", "beta_slow"),
    ];
    let mut scaling = Map::new();
    for (name, called) in numbers {
        if let Some(number) = metadata.number(&key(name))?.filter(|_| kind == Some("yarn")) {
            scaling.insert(called.to_owned(), json!(number));
        }
    }
    let Some(kind) = kind else { return Ok(None) };
    scaling.insert("rope_type".to_owned(), json!(kind));
    if let Some(factor) = factor {
        scaling.insert("factor".to_owned(), json!(factor));
    }
    Ok(Some(scaling))
}

fn text(path: &Path, metadata: &mut Metadata) -> Result<TextSource, LoadError> {
    let key = |name: &str| format!("tokenizer.ggml.{name}");
    let tokens = metadata.texts(&key("tokens"));
    if tokens.is_empty() {
        return Err(LoadError::Config {
            path: path.into(),
            what: "metadata tokenizer.ggml.tokens is missing: the file has no tokenizer".to_owned(),
        });
    }
    let token_types = match metadata.get(&key("token_type")) {
        Some(Meta::Integers(types)) => {
            types.iter().map(|&kind| i32::try_from(kind).unwrap_or(0)).collect()
        }
        _ => Vec::new(),
    };
    let scores = match metadata.get(&key("scores")) {
        Some(Meta::Floats(scores)) => scores.iter().map(|&score| score as f32).collect(),
        _ => Vec::new(),
    };
    let special_tokens = special_tokens(path, metadata, &tokens)?;
    let listed = (0..).zip(&tokens).map(|(id, spelling)| NamedToken {
        id,
        spelling: spelling.as_str(),
        special: token_types.get(id as usize) == Some(&CONTROL),
    });
    let named = ["eos_token_id", "eot_token_id", "eom_token_id"];
    let named = named.map(|name| metadata.token(&key(name)));
    let eos = ends::all(named.into_iter().flatten(), named[1].is_some(), listed);
    Ok(TextSource {
        special_tokens,
        eos,
        chat_template: metadata.text("tokenizer.chat_template").map(str::to_owned),
        tokenizer: TokenizerSource::Gguf {
            model: metadata.text(&key("model")).unwrap_or_default().to_owned(),
            pre: metadata.text(&key("pre")).map(str::to_owned),
            add_bos: metadata.bool(&key("add_bos_token")),
            add_eos: metadata.bool(&key("add_eos_token")),
            add_space_prefix: metadata.bool(&key("add_space_prefix")),
            merges: metadata.texts(&key("merges")),
            tokens,
            token_types,
            scores,
        },
    })
}

/// The kind of special tokens.
const CONTROL: i32 = 3;

/// The special tokens that the file names by id, as templates call them.
fn special_tokens(
    path: &Path,
    metadata: &Metadata,
    tokens: &[String],
) -> Result<Map<String, Value>, LoadError> {
    let mut named = Map::new();
    for (key, name) in SPECIAL_TOKENS {
        let Some(id) = metadata.token(key) else { continue };
        let Some(token) = tokens.get(id as usize) else {
            // Whoever added one to a model often forgot the vocabulary; nothing here pads or masks.
            if !["bos_token", "eos_token"].contains(&name) {
                tracing::warn!(
                    key,
                    id,
                    vocabulary = tokens.len(),
                    "the file names a token that it does not have"
                );
                continue;
            }
            let what = format!("metadata {key} is {id}, must be below {}", tokens.len());
            return Err(LoadError::Config { path: path.into(), what });
        };
        named.insert(name.to_owned(), token.as_str().into());
    }
    Ok(named)
}

/// Hugging Face's tensor name in GGUF's terms.
pub(crate) fn rename(name: &str) -> Option<String> {
    let (module, kind) = name.rsplit_once('.')?;
    let fixed = match module {
        "model.embed_tokens" => "token_embd",
        "model.norm" => "output_norm",
        "lm_head" => "output",
        _ => "",
    };
    if !fixed.is_empty() {
        return Some(format!("{fixed}.{kind}"));
    }
    let (layer, part) = module.strip_prefix("model.layers.")?.split_once('.')?;
    let part = match part {
        "input_layernorm" => "attn_norm",
        "post_attention_layernorm" => "ffn_norm",
        "self_attn.q_proj" => "attn_q",
        "self_attn.k_proj" => "attn_k",
        "self_attn.v_proj" => "attn_v",
        "self_attn.o_proj" => "attn_output",
        "self_attn.q_norm" => "attn_q_norm",
        "self_attn.k_norm" => "attn_k_norm",
        "mlp.gate_proj" => "ffn_gate",
        "mlp.up_proj" => "ffn_up",
        "mlp.down_proj" => "ffn_down",
        _ => return None,
    };
    Some(format!("blk.{layer}.{part}.{kind}"))
}

/// What can be wrong with a header.
enum Bad {
    Version(u32),
    Damaged(String),
    Read(std::io::Error),
}

impl From<String> for Bad {
    fn from(what: String) -> Self {
        Self::Damaged(what)
    }
}

/// Reads forward and knows how much is left, so that no claimed length is believed.
struct Reader<'a> {
    from: BufReader<&'a File>,
    at: u64,
    length: u64,
}

impl Reader<'_> {
    fn header(&mut self) -> Result<(Metadata, BTreeMap<String, Tensor>), Bad> {
        if self.take::<4>()? != *b"GGUF" {
            return Err(Bad::Damaged("it does not begin with GGUF".to_owned()));
        }
        let version = self.u32()?;
        if !SUPPORTED_VERSIONS.contains(&version) {
            return Err(Bad::Version(version));
        }
        let tensor_count = self.u64()?;
        let entry_count = self.u64()?;

        let mut metadata = Metadata::default();
        for _ in 0..entry_count {
            let key = self.text()?;
            let kind = self.u32()?;
            let value = self.value(kind).map_err(|bad| match bad {
                Bad::Damaged(what) => Bad::Damaged(format!("metadata {key:?}: {what}")),
                other => other,
            })?;
            if metadata.entries.insert(key.clone(), value).is_some() {
                return Err(Bad::Damaged(format!("metadata {key:?} occurs twice")));
            }
        }

        let mut tensors = BTreeMap::new();
        for _ in 0..tensor_count {
            let (name, tensor) = self.tensor()?;
            if tensors.insert(name.clone(), tensor).is_some() {
                return Err(Bad::Damaged(format!("tensor {name:?} occurs twice")));
            }
        }
        self.place(&metadata, &mut tensors)?;
        Ok((metadata, tensors))
    }

    /// Turns offsets within the data into offsets within the file, and checks them.
    fn place(
        &self,
        metadata: &Metadata,
        tensors: &mut BTreeMap<String, Tensor>,
    ) -> Result<(), String> {
        let alignment = match metadata.whole("general.alignment")? {
            None => 32,
            Some(value) => u64::try_from(value)
                .ok()
                .filter(|value| value.is_power_of_two() && *value <= 1 << 20)
                .ok_or_else(|| format!("general.alignment is {value}, not a small power of two"))?,
        };
        let start = self.at.next_multiple_of(alignment);
        for (name, tensor) in tensors {
            let end = start
                .checked_add(tensor.offset)
                .inspect(|offset| tensor.offset = *offset)
                .and_then(|offset| offset.checked_add(tensor.bytes));
            if end.is_none_or(|end| end > self.length) {
                return Err(format!(
                    "tensor {name:?} of {} bytes ends beyond the file's {} bytes",
                    tensor.bytes, self.length
                ));
            }
        }
        Ok(())
    }

    fn tensor(&mut self) -> Result<(String, Tensor), Bad> {
        let name = self.text()?;
        let sides = self.u32()?;
        if sides > 4 {
            return Err(Bad::Damaged(format!("tensor {name:?} has {sides} sides, the limit is 4")));
        }
        let mut dimensions = Vec::new();
        for _ in 0..sides {
            dimensions.push(self.u64()?);
        }
        dimensions.reverse();
        let shape = shape(dimensions).map_err(|what| format!("tensor {name:?} has {what}"))?;
        let encoding = encoding(self.u32()?);
        let offset = self.u64()?;
        let mut tensor = Tensor { file: 0, offset, bytes: 0, shape, encoding };
        tensor.bytes = match &tensor.encoding {
            Encoding::F32 | Encoding::U32 => tensor.elements() * 4,
            Encoding::F16 | Encoding::Bf16 => tensor.elements() * 2,
            Encoding::Block(kind) => {
                let row = tensor.shape.last().copied().unwrap_or(1).unsigned_abs() as usize;
                if !row.is_multiple_of(BLOCK) {
                    return Err(Bad::Damaged(format!(
                        "tensor {name:?} has rows of {row}, no multiple of {BLOCK}"
                    )));
                }
                tensor.elements() / BLOCK as u64 * kind.bytes() as u64
            }
            // It will be refused by name if the model needs it.
            Encoding::Other(_) => 0,
        };
        Ok((name, tensor))
    }

    fn value(&mut self, kind: u32) -> Result<Meta, Bad> {
        Ok(match kind {
            7 => Meta::Bool(self.take::<1>()?[0] != 0),
            8 => Meta::Text(self.text()?),
            6 | 12 => Meta::Float(self.float(kind)?),
            9 => {
                let kind = self.u32()?;
                let count = self.u64()?;
                // Each element takes at least a byte.
                if count > self.length - self.at {
                    return Err(Bad::Damaged(format!(
                        "an array of {count} elements in a file of {} bytes",
                        self.length
                    )));
                }
                self.array(kind, count)?
            }
            _ => Meta::Integer(self.integer(kind)?),
        })
    }

    fn array(&mut self, kind: u32, count: u64) -> Result<Meta, Bad> {
        let counted = 0..count;
        Ok(match kind {
            7 => Meta::Bools(
                counted.map(|_| Ok(self.take::<1>()?[0] != 0)).collect::<Result<_, Bad>>()?,
            ),
            8 => Meta::Texts(counted.map(|_| self.text()).collect::<Result<_, _>>()?),
            6 | 12 => Meta::Floats(counted.map(|_| self.float(kind)).collect::<Result<_, _>>()?),
            _ => Meta::Integers(counted.map(|_| self.integer(kind)).collect::<Result<_, _>>()?),
        })
    }

    fn float(&mut self, kind: u32) -> Result<f64, Bad> {
        Ok(match kind {
            6 => f64::from(f32::from_le_bytes(self.take()?)),
            _ => f64::from_le_bytes(self.take()?),
        })
    }

    fn integer(&mut self, kind: u32) -> Result<i64, Bad> {
        Ok(match kind {
            0 => i64::from(u8::from_le_bytes(self.take()?)),
            1 => i64::from(i8::from_le_bytes(self.take()?)),
            2 => i64::from(u16::from_le_bytes(self.take()?)),
            3 => i64::from(i16::from_le_bytes(self.take()?)),
            4 => i64::from(self.u32()?),
            5 => i64::from(i32::from_le_bytes(self.take()?)),
            10 => i64::try_from(self.u64()?).unwrap_or(i64::MAX),
            11 => i64::from_le_bytes(self.take()?),
            other => return Err(Bad::Damaged(format!("value type {other} is unknown"))),
        })
    }

    fn text(&mut self) -> Result<String, Bad> {
        let length = self.u64()?;
        if length > STRING_BYTES_MAX.min(self.length - self.at) {
            return Err(Bad::Damaged(format!(
                "a text of {length} bytes, {} are left",
                self.length - self.at
            )));
        }
        let mut bytes = vec![0; usize::try_from(length).unwrap_or(0)];
        self.fill(&mut bytes)?;
        String::from_utf8(bytes).map_err(|bad| {
            let start: String = String::from_utf8_lossy(bad.as_bytes()).chars().take(40).collect();
            Bad::Damaged(format!("{start:?} is not UTF-8"))
        })
    }

    fn u32(&mut self) -> Result<u32, Bad> {
        Ok(u32::from_le_bytes(self.take()?))
    }

    fn u64(&mut self) -> Result<u64, Bad> {
        Ok(u64::from_le_bytes(self.take()?))
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N], Bad> {
        let mut bytes = [0; N];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    fn fill(&mut self, bytes: &mut [u8]) -> Result<(), Bad> {
        if bytes.len() as u64 > self.length - self.at {
            return Err(Bad::Damaged(format!(
                "it ends in its header, after {} bytes",
                self.length
            )));
        }
        self.from.read_exact(bytes).map_err(Bad::Read)?;
        self.at += bytes.len() as u64;
        Ok(())
    }
}

/// `enum ggml_type`.
fn encoding(number: u32) -> Encoding {
    let name = match number {
        0 => return Encoding::F32,
        1 => return Encoding::F16,
        2 => return Encoding::Block(Kind::Q4_0),
        3 => return Encoding::Block(Kind::Q4_1),
        8 => return Encoding::Block(Kind::Q8_0),
        30 => return Encoding::Bf16,
        6 => "Q5_0",
        7 => "Q5_1",
        9 => "Q8_1",
        10 => "Q2_K",
        11 => "Q3_K",
        12 => "Q4_K",
        13 => "Q5_K",
        14 => "Q6_K",
        15 => "Q8_K",
        16..=23 | 29 => "an IQ type",
        24..=27 => "integers",
        28 => "F64",
        34 | 35 => "a ternary type",
        39 => "MXFP4",
        other => return Encoding::Other(format!("ggml type {other}")),
    };
    Encoding::Other(name.to_owned())
}
