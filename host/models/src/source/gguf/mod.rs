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
//! [`header`] reads the bytes, [`metadata`] answers for keys, [`config`] says the metadata in
//! `config.json`'s terms, and [`tokenizer`] takes what the text side needs.
//!
//! # Not here
//!
//! Version 1, big-endian files and files split in several parts: the error says so.

mod config;
mod header;
mod metadata;
mod tokenizer;

use std::path::Path;

use interlock_model_files::open as open_file;
use serde_json::json;

use super::{Checkpoint, Format, ModelSource};
use crate::error::LoadError;
use header::HeaderError;
use metadata::GgufMetadata;

pub(super) fn open(path: &Path) -> Result<ModelSource, LoadError> {
    let read = |cause| LoadError::Read { path: path.into(), cause };
    let damaged = |what: String| LoadError::Damaged { path: path.into(), what };

    let file = open_file(path).map_err(read)?;
    let length = file.metadata().map_err(read)?.len();
    let (mut metadata, tensors) = header::read(&file, length).map_err(|what| match what {
        HeaderError::Version(version) => LoadError::Unsupported {
            path: path.into(),
            what: format!("GGUF version {version}"),
            supported: "versions 2 and 3, little-endian",
        },
        HeaderError::Damaged(what) => damaged(what),
        HeaderError::Read(cause) => read(cause),
    })?;

    let wrong = |what| LoadError::Config { path: path.into(), what };
    let kind = metadata.told("general.type", GgufMetadata::text, "a text").map_err(wrong)?;
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
    let (mut config, mut leftovers) = config::read(&metadata).map_err(wrong)?;
    let architecture = metadata.text("general.architecture").unwrap_or_default();
    leftovers.extend(metadata.leftovers(architecture));
    tokenizer::check(&metadata).map_err(wrong)?;
    // The embedding may be padded beyond the tokenizer: its rows are what the model computes.
    if let Some(&[rows, _]) = tensors.get("token_embd.weight").map(|tensor| &tensor.shape[..]) {
        config.insert("vocab_size".to_owned(), json!(rows));
    }
    let name = metadata.text("general.name").map(str::to_owned);
    let text = tokenizer::read(path, &mut metadata)?;
    let checkpoint = Checkpoint { files: vec![(path.into(), file)], tensors };
    let format = Format::Gguf;
    Ok(ModelSource { path: path.into(), format, config, checkpoint, text, name, leftovers })
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
