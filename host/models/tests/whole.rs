//! A model is read whole, or refused, before its weights are read.

mod files;

use std::fs;

use files::{Copy, Gguf, cases, data, number, root, whole, wholes, word, yes};
use interlock_engine::{Forward, Opening, PageId, Row};
use interlock_models::{LoadError, LoadOptions, OnUnknown, inspect, load};
use interlock_request::{Generation, Priority, Sampling};
use serde_json::{Map, Value, json};

fn said(copy: &Copy) -> Option<String> {
    inspect(&copy.model(), OnUnknown::Refuse).err().map(|error| error.to_string())
}

/// `inspect` and `load` refuse alike, with these words.
#[track_caller]
fn refused(copy: &Copy, says: &str) {
    let Some(refusal) = said(copy) else { panic!("taken, though {says}") };
    assert!(refusal.contains(says), "{refusal:?} does not say {says:?}");
    let loaded = load(&copy.model(), &LoadOptions::default(), &mut |_| {});
    assert_eq!(loaded.err().map(|error| error.to_string()), Some(refusal));
}

#[track_caller]
fn taken(copy: &Copy) {
    if let Some(refusal) = said(copy) {
        panic!("{refusal}");
    }
}

#[test]
fn of_all_kept_models_and_the_default_one_nothing_is_left_over() {
    let default = std::env::var_os("INTERLOCK_TEST_MODEL")
        .map_or_else(|| root().join("target/models/smollm2-135m-instruct.gguf"), Into::into);
    assert!(default.is_file(), "{} is missing: run `make setup`", default.display());
    let kept = cases().into_iter().map(|case| Copy::of(&case));
    let copies: Vec<Copy> = kept.collect();
    assert!(copies.len() > 15);
    for path in copies.iter().map(Copy::model).chain([default]) {
        match inspect(&path, OnUnknown::Warn) {
            Ok(description) => assert_eq!(description.ignored, None, "{}", path.display()),
            Err(error) => panic!("{error}"),
        }
    }
}

/// Keys as they stand in published configurations, which change nothing here.
#[test]
fn what_is_known_to_change_nothing_is_taken() {
    let published = json!({
        "architectures": ["LlamaForCausalLM"], "attention_dropout": 0.0, "hidden_act": "silu",
        "initializer_range": 0.02, "pretraining_tp": 1, "torch_dtype": "bfloat16", "use_cache": true,
        "transformers_version": "4.47.0", "auto_map": {"AutoModel": "x.Y"}, "is_llama_config": true,
        "rope_interleaved": false, "pad_token_id": 2, "unsloth_fixed": true, "rope_scaling": null,
        "transformers.js_config": {"dtype": "q4"}, "quantization_config": null, "novelty": false,
        "partial_rotary_factor": 1.0, "sliding_window": null, "use_mrope": false, "alibi": false,
        "vision_config": null, "logit_scale": 1, "other_novelty": null, "num_experts": 0,
    });
    taken(&Copy::of("llama-f32").with_keys(&published));
    let qwen = json!({
        "architectures": ["Qwen2ForCausalLM"], "use_sliding_window": false, "sliding_window": 16,
        "max_window_layers": 0, "use_mrope": false, "attention_bias": true,
        "layer_types": ["full_attention", "full_attention"],
        "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0},
    });
    taken(&Copy::of("qwen2-bf16-sharded").with_keys(&qwen));
    let mixture = json!({
        "router_aux_loss_coef": 0.001, "output_router_logits": false, "num_local_experts": 6,
        "max_window_layers": 48, "attention_bias": false, "use_qk_norm": true,
    });
    taken(&Copy::of("qwen3-moe-bf16").with_keys(&mixture));
}

#[test]
fn keys_that_change_what_is_computed_are_refused_by_name_with_both_values() {
    let cases = [
        (
            "llama-f32",
            json!({"partial_rotary_factor": 0.5}),
            "partial_rotary_factor is 0.5, computed is 1 alone",
        ),
        (
            "llama-f32",
            json!({"hidden_act": "gelu"}),
            "hidden_act is \"gelu\", computed is \"silu\" alone",
        ),
        ("llama-f32", json!({"sliding_window": 64}), "sliding_window is 64, from layer 0 on"),
        ("llama-f32", json!({"logit_scale": 0.25}), "logit_scale is 0.25, computed is 1 alone"),
        (
            "llama-f32",
            json!({"attn_logit_softcapping": 50.0}),
            "attn_logit_softcapping is 50.0, which",
        ),
        ("llama-f32", json!({"is_causal": false}), "is_causal is false, computed is true alone"),
        ("llama-f32", json!({"num_experts": 8}), "num_experts is 8, which is not computed"),
        (
            "llama-f32",
            json!({"vision_config": {"layers": 3}}),
            "vision_config is {\"layers\":3}, which",
        ),
        ("llama-f32", json!({"use_qk_norm": true}), "use_qk_norm is true, computed is false alone"),
        (
            "llama-f32",
            json!({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}),
            "rope type \"dynamic\" is not supported",
        ),
        (
            "llama-f32",
            json!({"rope_scaling": {"rope_type": "linear", "factor": 2.0, "mscale": 3}}),
            "unknown keys: rope_scaling.mscale = 3",
        ),
        (
            "llama-f32",
            json!({"rope_parameters": {"rope_theta": 500.0}}),
            "rope_theta is 10000 in one place and 500 in another",
        ),
        (
            "llama-f32",
            json!({"rope_parameters": {"partial_rotary_factor": 0.5}}),
            "rope_parameters.partial_rotary_factor is 0.5",
        ),
        (
            "llama-f32",
            json!({"rope_scaling": {"type": "linear", "rope_type": "yarn", "factor": 2.0}}),
            "must be the same",
        ),
        (
            "llama-f32",
            json!({"head_dim": null, "num_attention_heads": 3}),
            "hidden_size is 32, no multiple of num_attention_heads, 3",
        ),
        (
            "llama-f32",
            json!({"quantization_config": {"quant_method": "gptq", "bits": 4}}),
            "quantization method \"gptq\" is not supported",
        ),
        (
            "llama-f32",
            json!({"quantization_config": {"quant_method": "fp8"}}),
            "quantization method \"fp8\" is not supported",
        ),
        (
            "llama-f32",
            json!({"quantization_config": {"quant_method": "bitsandbytes"}}),
            "quantization method \"bitsandbytes\"",
        ),
        (
            "llama-f32",
            json!({"quantization": {"bits": 4, "group_size": 32, "desc_act": true}}),
            "quantization.desc_act = true",
        ),
        (
            "llama-f32",
            json!({"attention_bias": true}),
            "model.layers.0.self_attn.q_proj.bias is missing",
        ),
        ("llama-f32", json!({"mlp_bias": true}), "model.layers.0.mlp.gate_proj.bias is missing"),
        ("qwen3-f32", json!({"attention_bias": true}), "self_attn.q_proj.bias is missing"),
        ("qwen3-f32", json!({"mlp_bias": true}), "mlp_bias is true, computed is false alone"),
        (
            "qwen3-f32",
            json!({"use_qk_norm": false}),
            "use_qk_norm is false, computed is true alone",
        ),
        (
            "qwen2-bf16-sharded",
            json!({"use_sliding_window": true, "sliding_window": 64, "max_window_layers": 1}),
            "sliding_window is 64, from layer 1 on",
        ),
        (
            "qwen2-bf16-sharded",
            json!({"layer_types": ["full_attention", "sliding_attention"]}),
            "layer_types is \"sliding_attention\", that of layer 1",
        ),
        (
            "qwen2-bf16-sharded",
            json!({"layer_types": ["full_attention"]}),
            "layer_types has 1 entries, num_hidden_layers is 2",
        ),
        (
            "qwen2-bf16-sharded",
            json!({"use_mrope": true}),
            "use_mrope is true, computed is false alone",
        ),
        ("qwen2-bf16-sharded", json!({"rope_theta": null}), "rope_theta is missing"),
        (
            "qwen3-yarn-f16",
            json!({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}),
            "without original_max_position_embeddings",
        ),
        (
            "qwen3-moe-bf16",
            json!({"use_sliding_window": true, "sliding_window": 64, "max_window_layers": 9}),
            "sliding_window is 64, from layer 0 on",
        ),
        (
            "qwen3-moe-bf16",
            json!({"shared_expert_intermediate_size": 32}),
            "shared_expert_intermediate_size is 32, which",
        ),
        (
            "qwen3-moe-bf16",
            json!({"num_local_experts": 5}),
            "num_experts is 6 and num_local_experts is 5",
        ),
        ("qwen3-moe-bf16", json!({"mlp_only_layers": [1]}), "mlp.gate_proj.weight is missing"),
        ("qwen3-moe-bf16", json!({"decoder_sparse_step": 2}), "mlp.gate_proj.weight is missing"),
    ];
    for (case, keys, says) in cases {
        let copy = Copy::of(case).with_keys(&keys);
        refused(&copy, says);
        // What is known to differ no setting lets through.
        assert!(
            says.starts_with("unknown")
                || says.contains("desc_act")
                || inspect(&copy.model(), OnUnknown::Warn).is_err(),
            "{keys} was let through"
        );
    }
    for (case, keys) in [
        (
            "qwen2-bf16-sharded",
            json!({"use_sliding_window": true, "sliding_window": 64, "max_window_layers": 2}),
        ),
        (
            "qwen2-bf16-sharded",
            json!({"use_sliding_window": true, "sliding_window": 512, "max_window_layers": 0}),
        ),
        ("qwen2-bf16-sharded", json!({"use_sliding_window": true, "sliding_window": null})),
        ("qwen3-moe-bf16", json!({"num_experts": null, "num_local_experts": 6})),
    ] {
        taken(&Copy::of(case).with_keys(&keys));
    }
}

#[test]
fn an_unknown_key_is_refused_by_name_and_a_setting_lets_it_through_with_a_word() {
    let copy = Copy::of("llama-f32").with_keys(&json!({"novelty": {"depth": 3}}));
    refused(
        &copy,
        "unknown keys: novelty = {\"depth\":3}; if you know that the model means the same without, \
         set model.unknown = \"warn\"",
    );
    let described = inspect(&copy.model(), OnUnknown::Warn).unwrap();
    assert_eq!(described.ignored.as_deref(), Some("unknown keys: novelty = {\"depth\":3}"));
    let options = LoadOptions { unknown: OnUnknown::Warn, ..LoadOptions::default() };
    assert!(load(&copy.model(), &options, &mut |_| {}).is_ok());
    // Beside one that is known to differ, it is named too.
    let both = copy.with_keys(&json!({"hidden_act": "relu"}));
    refused(&both, "hidden_act is \"relu\", computed is \"silu\" alone; unknown keys: novelty");
}

#[test]
fn tensors_that_nothing_uses_are_refused_by_name() {
    let ones = [1.0; 8];
    let inside = [
        "model.layers.0.self_attn.q_norm.weight",
        "model.layers.0.self_attn.q_proj.bias",
        "model.layers.2.input_layernorm.weight",
        "model.norm.bias",
        "lm_head.bias",
        "model.visual.patch_embed.weight",
    ];
    for name in inside {
        let copy = Copy::of("llama-f32").with_tensor(name, &[8], &ones);
        refused(&copy, &format!("this model is computed without {name}; another model, or"));
        assert!(inspect(&copy.model(), OnUnknown::Warn).is_err(), "{name} was let through");
    }
    for name in ["vision_tower.patch.weight", "base_model.model.x.lora_A.weight", "score.weight"] {
        let copy = Copy::of("llama-f32").with_tensor(name, &[8], &ones);
        refused(&copy, &format!("unknown tensors: {name}; if you know"));
        assert!(inspect(&copy.model(), OnUnknown::Warn).is_ok());
    }
    let mut many = Copy::of("llama-f32");
    for number in 0..9 {
        many = many.with_tensor(&format!("vision.{number}"), &[8], &ones);
    }
    refused(&many, "vision.5 and 3 more; if");
    let derived = "model.layers.0.self_attn.rotary_emb.inv_freq";
    taken(&Copy::of("llama-f32").with_tensor(derived, &[4], &ones[..4]));
}

#[test]
fn a_head_beside_a_tied_embedding_must_be_the_embedding() {
    // It has its own head; the key says that it has none.
    let copy = Copy::of("llama-f32").with_keys(&json!({"tie_word_embeddings": true}));
    refused(&copy, "tie_word_embeddings is true, but lm_head.weight differs from the embedding");

    let tied = |change: fn(&mut Vec<f32>)| {
        let copy = Copy::of("qwen3-f32");
        let mut numbers = embedding(&copy);
        change(&mut numbers);
        copy.with_tensor("lm_head.weight", &[96, 32], &numbers)
    };
    taken(&tied(|_| {}));
    refused(&tied(|numbers| numbers[0] += 1.0), "but lm_head.weight differs");
    refused(&tied(|numbers| numbers[96 * 32 - 1] += 1.0), "but lm_head.weight differs");
}

/// `model.embed_tokens.weight` of a folder in f32.
fn embedding(copy: &Copy) -> Vec<f32> {
    let bytes = fs::read(copy.0.join("model.safetensors")).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: Map<String, Value> = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    let offsets = &header["model.embed_tokens.weight"]["data_offsets"];
    let [from, to] = [0, 1].map(|at| 8 + length + offsets[at].as_u64().unwrap() as usize);
    let fours = bytes[from..to].chunks_exact(4);
    fours.map(|four| f32::from_le_bytes(four.try_into().unwrap())).collect()
}

#[test]
fn gguf_metadata_that_changes_what_is_computed_is_refused_by_name() {
    let cases: Vec<(&str, Vec<u8>, &str)> = vec![
        (
            "llama.rope.dimension_count",
            whole(4),
            "llama.rope.dimension_count is 4, computed is 8 alone",
        ),
        (
            "llama.attention.value_length",
            whole(16),
            "llama.attention.value_length is 16, computed is 8",
        ),
        (
            "llama.attention.sliding_window",
            whole(64),
            "llama.attention.sliding_window is 64, computed is",
        ),
        (
            "llama.attention.causal",
            yes(false),
            "llama.attention.causal is false, computed is true alone",
        ),
        ("llama.logit_scale", number(0.5), "llama.logit_scale is 0.5, computed is 1 alone"),
        (
            "llama.attn_logit_softcapping",
            number(50.0),
            "llama.attn_logit_softcapping is 50.0, which",
        ),
        ("llama.expert_count", whole(8), "llama.expert_count is 8, which is not computed"),
        ("llama.rope.scale_linear", number(4.0), "llama.rope.scale_linear is 4.0, computed is 1"),
        ("llama.rope.scaling.type", word("longrope"), "rope type \"longrope\" is not supported"),
        (
            "llama.attention.head_count_kv",
            wholes(&[2, 4]),
            "llama.attention.head_count_kv is [2,4], must be a whole number, the same",
        ),
        (
            "llama.attention.head_count_kv",
            word("two"),
            "llama.attention.head_count_kv is \"two\", must be",
        ),
        ("llama.embedding_length", number(32.0), "llama.embedding_length is 32.0, must be"),
        (
            "tokenizer.ggml.bos_token_id",
            word("<s>"),
            "tokenizer.ggml.bos_token_id is not a token's number",
        ),
        ("tokenizer.ggml.merges", whole(1), "tokenizer.ggml.merges is not a list of texts"),
        ("general.type", word("adapter"), "a GGUF file of type \"adapter\" is not supported"),
        ("general.alignment", word("wide"), "general.alignment is \"wide\", must be a whole"),
        ("split.count", whole(2), "a GGUF file split in 2 is not supported"),
        ("llama.novelty", whole(1), "unknown keys: llama.novelty = 1; if you know"),
        ("vendor.novelty", whole(1), "unknown keys: vendor.novelty = 1; if you know"),
    ];
    for (key, value, says) in cases {
        refused(&Copy::of("gguf-llama-q4_0").with_gguf(|gguf| gguf.set(key, value)), says);
    }
    for (key, value) in [
        ("llama.rope.dimension_count", whole(8)),
        ("llama.attention.sliding_window", whole(0)),
        ("llama.attention.sliding_window", whole(512)),
        ("llama.expert_count", whole(0)),
        ("llama.attention.head_count_kv", wholes(&[2, 2])),
        ("general.anything", word("at all")),
        ("tokenizer.ggml.add_space_prefix", yes(false)),
        ("quantize.imatrix.file", word("x")),
        ("llama.novelty", yes(false)),
    ] {
        taken(&Copy::of("gguf-llama-q4_0").with_gguf(|gguf| gguf.set(key, value)));
    }
    let twice = Copy::of("gguf-llama-q4_0").with_gguf(|gguf| {
        gguf.entries.push(("llama.block_count".to_owned(), whole(1)));
    });
    refused(&twice, "metadata \"llama.block_count\" occurs twice");
}

#[test]
fn a_factor_without_a_type_is_that_of_linear_rope() {
    let case = "gguf-llama-q8_0";
    let untyped = Copy::of(case).with_gguf(|gguf| {
        gguf.entries.retain(|(key, _)| key != "llama.rope.scaling.type");
    });
    assert_eq!(first_logits(&untyped), first_logits(&Copy::of(case)));
    let plain = Copy::of(case).with_gguf(|gguf| gguf.set("llama.rope.scaling.type", word("none")));
    assert_ne!(first_logits(&plain), first_logits(&Copy::of(case)));
}

#[test]
fn gguf_tensors_are_used_or_refused() {
    let with = |case: &str, name: &str, count: usize| {
        let numbers: Vec<f32> = (0..count).map(|i| i as f32 / 10.0).collect();
        Copy::of(case).with_gguf(|gguf| gguf.add_tensor(name, &numbers))
    };
    // A bias has no key: that the file has it says that it is added.
    for (case, name, count) in [
        ("gguf-llama-q4_0", "blk.0.attn_q.bias", 32),
        ("gguf-llama-q4_0", "blk.1.attn_output.bias", 32),
        ("gguf-qwen3-q4_0", "blk.0.attn_k.bias", 32),
    ] {
        let biased = with(case, name, count);
        taken(&biased);
        assert_ne!(first_logits(&biased), first_logits(&Copy::of(case)), "{name} is not added");
    }
    refused(&with("gguf-llama-q4_0", "blk.0.attn_q.bias", 31), "blk.0.attn_q.bias has shape [31]");
    refused(
        &with("gguf-llama-q4_0", "blk.0.attn_q_norm.weight", 8),
        "without blk.0.attn_q_norm.weight",
    );
    refused(&with("gguf-qwen3-q4_0", "rope_freqs.weight", 8), "without rope_freqs.weight");
    refused(&with("gguf-llama-q4_0", "rope_factors_long.weight", 4), "without rope_factors_long");
    refused(&with("gguf-llama-q4_0", "mm.0.weight", 4), "unknown tensors: mm.0.weight");

    refused(
        &with("gguf-llama-q4_0", "rope_freqs.weight", 4),
        "rope_freqs.weight with 0, not above zero",
    );
    refused(&with("gguf-llama-q4_0", "rope_freqs.weight", 3), "rope_freqs.weight has shape [3]");
    let stretched = Copy::of("gguf-llama-q8_0")
        .with_gguf(|gguf| gguf.add_tensor("rope_freqs.weight", &[1.0; 4]));
    refused(&stretched, "rope_freqs.weight beside rope type \"linear\"");
}

/// What a model makes of one prompt.
fn first_logits(copy: &Copy) -> Vec<f32> {
    let options = LoadOptions::default();
    let loaded = load(&copy.model(), &options, &mut |_| {});
    let mut model = loaded.unwrap_or_else(|error| panic!("{error}")).model;
    score(&mut model).unwrap_or_else(|error| panic!("{error}"))
}

fn score(model: &mut interlock_models::Model) -> Result<Vec<f32>, interlock_engine::PassFailed> {
    let generation = Generation {
        sampling: Sampling::greedy(),
        tokens_max: 1,
        tokens_min: 0,
        stop_tokens: Vec::new(),
        logprobs: None,
        priority: Priority::Standard,
    };
    let prompt = [3, 17, 42, 5];
    let opening =
        Opening { prompt: &prompt, generated: &[], generation: &generation, fresh_seed: 0 };
    let mut sequence = model.open(&opening)?;
    let row =
        Row { sequence: &mut sequence, tokens: &prompt, from: 0, pages: &[PageId(0)], draw: true };
    Ok(model.score(&mut [row])?.remove(0).pop().unwrap_or_default())
}

#[test]
fn an_adapter_in_a_models_folder_is_not_passed_over() {
    let copy = Copy::of("llama-f32");
    fs::write(copy.0.join("adapter_config.json"), "{}").unwrap();
    refused(&copy, "not applied: adapter_config.json");
}

#[test]
fn files_that_are_no_text_or_no_regular_files_are_named() {
    let copy = Copy::of("llama-f32");
    fs::write(copy.0.join("chat_template.jinja"), b"\xff\xfe").unwrap();
    refused(&copy, "chat_template.jinja is damaged: it is not UTF-8");
    for name in ["tokenizer.json", "tokenizer_config.json", "model.safetensors", "config.json"] {
        let copy = Copy::of("llama-f32");
        let path = copy.0.join(name);
        fs::remove_file(&path).unwrap();
        let made = std::process::Command::new("mkfifo").arg(&path).status();
        assert!(made.is_ok_and(|status| status.success()), "mkfifo works");
        refused(&copy, &format!("{name}: it is a FIFO and no regular file"));
    }
    let copy = Copy::of("llama-f32");
    fs::remove_file(copy.0.join("tokenizer.json")).unwrap();
    std::os::unix::fs::symlink("/dev/zero", copy.0.join("tokenizer.json")).unwrap();
    refused(&copy, "tokenizer.json: it is a device and no regular file");
}

#[test]
fn a_model_is_loaded_whatever_its_files_are_called() {
    let copy = Copy::of("gguf-llama-q4_0");
    for name in ["MODEL.GGUF", "model", "sha256-0a1b"] {
        let path = copy.0.join(name);
        fs::copy(copy.model(), &path).unwrap();
        let loaded = load(&path, &LoadOptions::default(), &mut |_| {});
        assert!(loaded.is_ok(), "{name}: {}", loaded.err().unwrap());
    }
    let copy = Copy::of("qwen2-bf16-sharded");
    fs::remove_file(copy.0.join("model.safetensors.index.json")).unwrap();
    for number in 1..=3 {
        let from = copy.0.join(format!("model-0000{number}-of-00003.safetensors"));
        fs::rename(from, copy.0.join(format!("weights.0000{number}-of-00003.safetensors")))
            .unwrap();
    }
    assert_eq!(first_logits(&copy), first_logits(&Copy::of("qwen2-bf16-sharded")));
    fs::remove_file(copy.0.join("weights.00002-of-00003.safetensors")).unwrap();
    refused(&copy, "lacks weights.00002-of-00003.safetensors");
}

#[test]
fn memory_that_does_not_hold_a_sequence_is_refused_before_the_weights_are_read() {
    let path = data().join("llama-f32");
    let options = LoadOptions { cache_max: Some(64 << 10), ..LoadOptions::default() };
    let mut doing = Vec::new();
    let refused = load(&path, &options, &mut |progress| doing.push(progress.doing));
    let refused = refused.err().expect("512 tokens take 128 KiB");
    assert!(matches!(refused, LoadError::Cache { .. }), "{refused}");
    assert_eq!(
        refused.to_string(),
        "cache.memory_max gives this model 64KiB, and 512 tokens take 128KiB; raise it, or set \
         model.context_max to 256 or less"
    );
    assert_eq!(doing, ["reading headers"]);
    let shorter = LoadOptions { context_max: Some(256), ..options };
    assert!(load(&path, &shorter, &mut |_| {}).is_ok());
}

/// Values of every kind, where another is meant.
fn odd_values() -> Vec<Value> {
    vec![
        Value::Null,
        json!(true),
        json!(false),
        json!(0),
        json!(-1),
        json!(1),
        json!(7),
        json!(i64::from(i32::MAX)),
        json!(i64::MIN),
        json!(u64::MAX),
        json!(0.5),
        json!(1e308),
        json!(-1e-308),
        json!(""),
        json!("a text"),
        json!([]),
        json!([1, "two", null]),
        json!({}),
        json!({"bits": 4, "group_size": 32, "rope_type": "yarn", "factor": 1e300}),
    ]
}

/// Loads what `inspect` takes, computes with it, and never panics; how many were taken.
fn survives(copy: &Copy) -> u32 {
    if inspect(&copy.model(), OnUnknown::Warn).is_err() {
        return 0;
    }
    let options = LoadOptions {
        cache_max: Some(8 << 20),
        context_max: Some(64),
        unknown: OnUnknown::Warn,
        ..LoadOptions::default()
    };
    if let Ok(mut loaded) = load(&copy.model(), &options, &mut |_| {}) {
        let _ = score(&mut loaded.model);
    }
    1
}

/// Each key of each kept configuration, at the top and in tables, and some that are not there,
/// becomes each odd value.
#[test]
fn a_configuration_of_whatever_values_is_an_error_or_a_model() {
    let extra = [
        "rope_scaling",
        "rope_parameters",
        "quantization",
        "layer_types",
        "sliding_window",
        "use_sliding_window",
        "max_window_layers",
        "attention_bias",
        "head_dim",
        "novelty",
        "partial_rotary_factor",
        "hidden_act",
        "num_local_experts",
        "rope_traditional",
    ];
    let (mut tried, mut taken) = (0, 0);
    for case in
        ["llama-4bit", "llama3-rope-bf16", "qwen2-bf16-sharded", "qwen3-yarn-f16", "qwen3-moe-4bit"]
    {
        let copy = Copy::of(case);
        let config = copy.config();
        let top = config.keys().map(String::as_str).chain(extra).map(|key| vec![key]);
        let within = config.iter().filter_map(|(key, value)| Some((key, value.as_object()?)));
        let within =
            within.flat_map(|(table, value)| value.keys().map(move |key| vec![&**table, &**key]));
        for path in top.chain(within) {
            for value in odd_values() {
                let mut changed = config.clone();
                match path[..] {
                    [key] => drop(changed.insert(key.to_owned(), value)),
                    [table, key] => changed[table][key] = value,
                    _ => unreachable!("one or two"),
                }
                copy.set_config(&changed);
                tried += 1;
                taken += survives(&copy);
            }
        }
    }
    assert!(tried > 2000 && taken > 100 && taken < tried / 2, "{taken} of {tried} were taken");
}

/// As above, for GGUF's metadata; and each entry taken out, and cut in the middle of its value.
#[test]
fn gguf_metadata_of_whatever_values_are_an_error_or_a_model() {
    let odd = [
        whole(0),
        whole(1),
        whole(7),
        whole(u32::MAX),
        number(0.5),
        number(f32::NAN),
        number(f32::INFINITY),
        number(-1.0),
        yes(true),
        yes(false),
        word(""),
        word("none"),
        wholes(&[]),
        wholes(&[1, 2]),
        99_u32.to_le_bytes().to_vec(),
        Vec::new(),
    ];
    let (mut tried, mut taken) = (0, 0);
    for case in ["gguf-llama-q8_0", "gguf-qwen3-q4_0"] {
        let copy = Copy::of(case);
        let keys: Vec<String> =
            Gguf::read(&copy.model()).entries.into_iter().map(|(key, _)| key).collect();
        for key in keys {
            for value in odd.iter().map(Some).chain([None]) {
                let mut gguf = Gguf::read(&data().join(case).join("model.gguf"));
                match value {
                    Some(value) => gguf.set(&key, value.clone()),
                    None => gguf.entries.retain(|(known, _)| *known != key),
                }
                fs::write(copy.model(), gguf.bytes()).unwrap();
                tried += 1;
                taken += survives(&copy);
            }
        }
    }
    assert!(tried > 500 && taken > 50 && taken < tried / 2, "{taken} of {tried} were taken");
}
