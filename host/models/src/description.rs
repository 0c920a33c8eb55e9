//! What a model says of itself, for `interlock models inspect`.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

use crate::dimensions::Dimensions;
use crate::leftover::Leftovers;
use crate::quantization::Quantization;
use crate::source::{Encoding, Format, ModelSource};

/// A model, described without its weights being read.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ModelDescription {
    /// The model's own name, or its folder's.
    pub name: Option<String>,
    /// `llama`, `qwen2`, `qwen3` or `qwen3_moe`.
    pub architecture: &'static str,
    /// The format of the files.
    pub format: Format,
    /// Weights, each quantized one counted.
    pub parameters: u64,
    /// How most of the weights are stored: `Q4_1`, `BF16` or `4-bit, groups of 64`.
    pub quantization: String,
    /// Bytes of tensors by how they are stored.
    pub stored_bytes: BTreeMap<String, u64>,
    /// Bytes of all files that hold weights.
    pub file_bytes: u64,
    /// The files that hold weights.
    pub files: Vec<String>,
    /// Blocks of attention and MLP.
    pub layers: u32,
    /// Width of the hidden state.
    pub hidden_size: u32,
    /// Width of the MLP.
    pub intermediate_size: u32,
    /// Query heads in each layer.
    pub heads: u32,
    /// Key and value heads in each layer.
    pub kv_heads: u32,
    /// Width of a head.
    pub head_dim: u32,
    /// Token ids are below this.
    pub vocabulary: u32,
    /// Most tokens of prompt and output, as trained; none if the files do not say.
    pub context: Option<u32>,
    /// Bytes of keys and values that one token takes in the cache, in 16-bit numbers (on a GPU);
    /// in f32 (on the CPU) it is twice as many.
    pub kv_bytes_per_token: u64,
    /// Whether the files have a chat template.
    pub chat_template: bool,
    /// The instructions that multiply it on this machine where there is no GPU.
    pub on_cpu: &'static str,
    /// What the files have and nothing here uses, if the setting lets it through.
    pub ignored: Option<String>,
}

impl ModelDescription {
    pub(crate) fn new(
        source: &ModelSource,
        architecture: &'static str,
        dimensions: &Dimensions,
        ignored: &Leftovers,
    ) -> Self {
        // What cannot be read is said by `load`; here it only cannot be counted.
        let (quantization, _) = Quantization::read(&source.config).unwrap_or_default();
        let mut stored_bytes: BTreeMap<String, u64> = BTreeMap::new();
        let mut parameters = 0;
        for (name, tensor) in &source.checkpoint.tensors {
            *stored_bytes.entry(tensor.encoding.name().to_owned()).or_default() += tensor.bytes;
            let (module, kind) = name.rsplit_once('.').unwrap_or(("", name));
            let of_a_packed_weight = matches!(kind, "scales" | "biases");
            parameters += match (&tensor.encoding, quantization.of(module)) {
                _ if of_a_packed_weight => 0,
                (Encoding::U32, Some(affine)) => {
                    tensor.elements() * 32 / u64::from(affine.bits.unsigned_abs())
                }
                _ => tensor.elements(),
            };
        }
        let most = stored_bytes.iter().max_by_key(|(_, bytes)| **bytes);
        let quantization = match (most, quantization.all) {
            (Some((name, _)), Some(affine)) if name == "U32" => {
                format!("{}-bit, groups of {}", affine.bits, affine.group_size)
            }
            (Some((name, _)), _) => name.clone(),
            (None, _) => "nothing".to_owned(),
        };
        Self {
            name: source.name.clone(),
            architecture,
            format: source.format,
            parameters,
            quantization,
            stored_bytes,
            file_bytes: source.checkpoint.file_bytes(),
            files: source.checkpoint.file_names(),
            layers: dimensions.layers.unsigned_abs(),
            hidden_size: dimensions.hidden.unsigned_abs(),
            intermediate_size: dimensions.intermediate.unsigned_abs(),
            heads: dimensions.heads.unsigned_abs(),
            kv_heads: dimensions.kv_heads.unsigned_abs(),
            head_dim: dimensions.head_dim.unsigned_abs(),
            vocabulary: dimensions.vocabulary.unsigned_abs(),
            context: dimensions.context.map(i32::unsigned_abs),
            kv_bytes_per_token: dimensions.kv_bytes_per_token(mlx_rs::Dtype::Float16),
            chat_template: source.text.chat_template.is_some(),
            on_cpu: crate::cpu::instructions(),
            ignored: (!ignored.0.is_empty()).then(|| ignored.to_string()),
        }
    }
}

impl fmt::Display for ModelDescription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut row = |label: &str, value: String| writeln!(f, "{label:<16}{value}");
        row("name", self.name.clone().unwrap_or_else(|| "-".to_owned()))?;
        row("architecture", self.architecture.to_owned())?;
        row("parameters", count(self.parameters))?;
        row("quantization", self.quantization.clone())?;
        for (encoding, bytes) in &self.stored_bytes {
            row(&format!("  {encoding}"), size(*bytes))?;
        }
        let format = match self.format {
            Format::Gguf => "GGUF",
            Format::Safetensors => "safetensors",
        };
        let files = match &self.files[..] {
            [one] => one.clone(),
            several => format!("{} files", several.len()),
        };
        row("files", format!("{files} ({format}, {})", size(self.file_bytes)))?;
        row(
            "layers",
            format!(
                "{} (hidden {}, mlp {}, heads {}, kv heads {}, head dim {})",
                self.layers,
                self.hidden_size,
                self.intermediate_size,
                self.heads,
                self.kv_heads,
                self.head_dim
            ),
        )?;
        row("vocabulary", self.vocabulary.to_string())?;
        row("context", self.context.map_or("not said".to_owned(), |n| format!("{n} tokens")))?;
        row("cache", format!("{} a token (16 bit)", size(self.kv_bytes_per_token)))?;
        row("chat template", if self.chat_template { "yes" } else { "no" }.to_owned())?;
        row("without a GPU", format!("multiplied with {}", self.on_cpu))?;
        self.ignored.iter().try_for_each(|ignored| row("ignored", ignored.clone()))
    }
}

fn count(number: u64) -> String {
    scaled(number, &[(1_000_000_000, " billion"), (1_000_000, " million"), (1_000, " thousand")])
}

fn size(bytes: u64) -> String {
    let units = [(1 << 30, " GiB"), (1 << 20, " MiB"), (1 << 10, " KiB")];
    if bytes < 1 << 10 { format!("{bytes} B") } else { scaled(bytes, &units) }
}

fn scaled(number: u64, units: &[(u64, &str)]) -> String {
    match units.iter().find(|(unit, _)| number >= *unit) {
        Some((unit, name)) => format!("{:.1}{name}", number as f64 / *unit as f64),
        None => number.to_string(),
    }
}
