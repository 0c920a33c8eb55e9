//! Interlock against mlx-lm: the same weights, the same tokens, the same logits.
//!
//! `tests/golden/generate.py` made the data, which is kept in the repository; no Python runs here.
//!
//! Tolerance: both sides compute in f32 with sums in another order (other BLAS, other MLX kernels
//! for the same operation). Over two layers that moves a logit of size 10 by some 1e-5; 2e-4 of the
//! largest logit leaves room for another CPU's kernels and is a hundred times less than any mistake
//! in the model makes (a wrong rope base, a missing bias).

use std::fs;
use std::path::{Path, PathBuf};

use interlock_engine::Forward;
use interlock_models::{LoadError, LoadOptions, Loaded, Model, Problem, load, load_as_stored};
use interlock_request::{Sampling, TokenId};
use serde::Deserialize;

const TOLERANCE: f32 = 2e-4;

#[derive(Deserialize)]
struct Expected {
    prompt: Vec<TokenId>,
    greedy: Vec<TokenId>,
    logits: Vec<Row>,
}

#[derive(Deserialize)]
struct Row {
    position: usize,
    values: Vec<f32>,
}

/// Asked when it runs, so that a moved checkout, or a build shared by two, finds its own files.
fn root() -> PathBuf {
    let here = std::env::var_os("CARGO_MANIFEST_DIR");
    here.map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from).join("../..")
}

fn folder(case: &str) -> PathBuf {
    root().join("tests/golden/data").join(case)
}

fn model_path(case: &str) -> PathBuf {
    let folder = folder(case);
    if case.starts_with("gguf") { folder.join("model.gguf") } else { folder }
}

fn expected(case: &str) -> Expected {
    let text = fs::read_to_string(folder(case).join("expected.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn loaded(path: &Path) -> Loaded {
    load(path, &LoadOptions::default(), &mut |_| {}).unwrap_or_else(|error| panic!("{error}"))
}

fn assert_close(got: &[f32], want: &[f32], tolerance: f32, what: &str) {
    assert_eq!(got.len(), want.len(), "{what}");
    let largest = want.iter().fold(1.0_f32, |largest, value| largest.max(value.abs()));
    let (worst, difference) = got
        .iter()
        .zip(want)
        .map(|(got, want)| (got - want).abs())
        .enumerate()
        .max_by(|a, b| a.1.total_cmp(&b.1))
        .unwrap();
    assert!(
        difference <= tolerance * largest,
        "{what}: token {worst} has logit {}, mlx-lm has {} (largest {largest})",
        got[worst],
        want[worst],
    );
}

/// Logits of prompt and greedy tokens, the prompt in chunks of these sizes.
fn compare_logits(case: &str, mut model: Model, chunks: &[usize], tolerance: f32) {
    let Expected { prompt, greedy, logits } = expected(case);
    let mut sequence = model.open(&prompt, &Sampling::greedy()).unwrap();
    let mut rows = Vec::new();
    let mut rest = &prompt[..];
    for &chunk in chunks {
        let (now, later) = rest.split_at(chunk);
        rows.extend(model.score(&mut sequence, now).unwrap());
        rest = later;
    }
    assert!(rest.is_empty(), "the chunks make up the prompt");
    for token in greedy {
        rows.extend(model.score(&mut sequence, &[token]).unwrap());
    }
    for Row { position, values } in logits {
        let what = format!("{case}, {chunks:?}, position {position}");
        assert_close(&rows[position], &values, tolerance, &what);
    }
}

/// The tokens, by the passes that serve.
fn compare_tokens(case: &str) {
    let Expected { prompt, greedy, .. } = expected(case);
    let mut model = loaded(&model_path(case)).model;
    assert_eq!(generate(&mut model, &prompt, prompt.len(), greedy.len()), greedy, "{case}");
    assert_eq!(generate(&mut model, &prompt, 5, greedy.len()), greedy, "{case}, in chunks");
}

fn generate(
    model: &mut impl Forward,
    prompt: &[TokenId],
    chunk: usize,
    count: usize,
) -> Vec<TokenId> {
    let mut sequence = model.open(prompt, &Sampling::greedy()).unwrap();
    let mut chunks = prompt.chunks(chunk);
    let last = chunks.next_back().unwrap();
    for chunk in chunks {
        model.prefill(&mut sequence, chunk).unwrap();
    }
    let mut tokens = vec![model.prefill_last(&mut sequence, last).unwrap()];
    while tokens.len() < count {
        tokens.extend(model.decode(&mut [&mut sequence]).unwrap());
    }
    tokens
}

macro_rules! golden {
    ($($name:ident: $case:literal;)*) => {$(
        #[test]
        fn $name() {
            compare_logits($case, loaded(&model_path($case)).model, &[12], TOLERANCE);
            compare_logits($case, loaded(&model_path($case)).model, &[1, 7, 4], TOLERANCE);
            compare_tokens($case);
        }
    )*};
}

golden! {
    llama_in_f32_with_its_own_head: "llama-f32";
    llama_3_with_its_rope_scaling: "llama3-rope-bf16";
    llama_with_biases_linear_rope_and_head_dim: "llama-bias-linear-f16";
    llama_quantized_with_overrides: "llama-4bit";
    qwen2_in_shards: "qwen2-bf16-sharded";
    qwen3: "qwen3-f32";
    qwen3_with_yarn: "qwen3-yarn-f16";
    qwen3_quantized_with_its_own_head: "qwen3-8bit";
    gguf_llama_in_f32_with_rope_freqs: "gguf-llama-f32";
    gguf_llama_in_f16_with_its_own_head: "gguf-llama-f16";
    gguf_llama_q4_0: "gguf-llama-q4_0";
    gguf_llama_q4_1: "gguf-llama-q4_1";
    gguf_llama_q8_0_with_linear_rope: "gguf-llama-q8_0";
    gguf_qwen2_q8_0: "gguf-qwen2-q8_0";
    gguf_qwen3_q4_0: "gguf-qwen3-q4_0";
}

/// What a GPU would compute: packed weights packed, activations in the file's own type. Those types
/// round by one part in 2048 (f16) or 256 (bf16) at each of some forty steps, and MLX's CPU kernels
/// for packed weights add up in them too, while mlx-lm's side is in f32: hence the tolerances. A
/// wrong packing is off by as much as the logits are large.
#[test]
fn weights_left_as_they_are_stored_mean_the_same() {
    let cases = [
        ("llama-4bit", TOLERANCE),
        ("gguf-llama-f32", TOLERANCE),
        ("gguf-llama-f16", 0.03),
        ("gguf-llama-q4_0", 0.03),
        ("gguf-llama-q4_1", 0.03),
        ("gguf-llama-q8_0", 0.03),
        ("gguf-qwen2-q8_0", 0.03),
        ("gguf-qwen3-q4_0", 0.03),
        ("llama-bias-linear-f16", 0.03),
        ("qwen3-yarn-f16", 0.03),
        ("llama3-rope-bf16", 0.08),
        ("qwen2-bf16-sharded", 0.08),
        ("qwen3-8bit", 0.08),
    ];
    for (case, tolerance) in cases {
        let model = load_as_stored(&model_path(case), &LoadOptions::default())
            .unwrap_or_else(|error| panic!("{error}"))
            .model;
        compare_logits(case, model, &[7, 5], tolerance);
    }
}

#[test]
fn every_kept_case_is_compared() {
    let source = include_str!("golden.rs");
    for entry in fs::read_dir(root().join("tests/golden/data")).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            let case = entry.file_name().into_string().unwrap();
            assert!(source.contains(&format!("{case:?};")), "{case} is in no test");
        }
    }
}

/// The default model, end to end: what people get, compared with what mlx-lm gives them.
#[test]
fn the_default_model_says_what_mlx_lm_says() {
    #[derive(Deserialize)]
    struct Case {
        question: String,
        prompt: Vec<TokenId>,
        greedy: Vec<TokenId>,
    }
    let path = std::env::var_os("INTERLOCK_TEST_MODEL")
        .map_or_else(|| root().join("target/models/smollm2-135m-instruct.gguf"), PathBuf::from);
    assert!(path.is_file(), "{} is missing: run `make setup`", path.display());
    let cases: Vec<Case> =
        serde_json::from_str(&fs::read_to_string(folder("smollm2.json")).unwrap()).unwrap();
    let mut model = loaded(&path).model;
    for Case { question, prompt, greedy } in cases {
        let tokens = generate(&mut model, &prompt, 16, greedy.len());
        assert_eq!(tokens, greedy, "{question}");
    }
}

/// A sequence gets the same tokens alone and beside others, at whatever point it joins them.
#[test]
fn company_changes_nothing() {
    let Expected { prompt, .. } = expected("qwen3-f32");
    let mut model = loaded(&model_path("qwen3-f32")).model;
    let sampling =
        |seed| Sampling { temperature: 1.0, top_p: 0.95, seed: Some(seed), ..Sampling::greedy() };
    let mut alone = Vec::new();
    for seed in 0..3 {
        let mut sequence = model.open(&prompt, &sampling(seed)).unwrap();
        let mut tokens = vec![model.prefill_last(&mut sequence, &prompt).unwrap()];
        for _ in 0..10 {
            tokens.extend(model.decode(&mut [&mut sequence]).unwrap());
        }
        alone.push(tokens);
    }
    assert_ne!(alone[0], alone[1], "another seed, other tokens");

    let mut sequences: Vec<_> =
        (0..3).map(|seed| model.open(&prompt, &sampling(seed)).unwrap()).collect();
    let mut together: Vec<Vec<TokenId>> = vec![Vec::new(); 3];
    for turn in 0..13 {
        // Each joins one turn after the one before it.
        if let Some(sequence) = sequences.get_mut(turn) {
            together[turn].push(model.prefill_last(sequence, &prompt).unwrap());
        }
        let joined = turn.min(3);
        let mut batch: Vec<_> = sequences[..joined].iter_mut().collect();
        for (row, token) in model.decode(&mut batch).unwrap().into_iter().enumerate() {
            together[row].push(token);
        }
    }
    for (row, (alone, together)) in alone.iter().zip(&together).enumerate() {
        assert_eq!(together[..11], alone[..], "sequence {row}");
    }
}

#[test]
fn a_pass_that_cannot_be_is_refused_before_mlx_sees_it() {
    let options = LoadOptions { context_max: Some(8), ..LoadOptions::default() };
    let mut model = load(&model_path("llama-f32"), &options, &mut |_| {}).unwrap().model;
    assert_eq!(model.shape().context, 8);
    let mut sequence = model.open(&[1, 2], &Sampling::greedy()).unwrap();

    let refused = model.prefill(&mut sequence, &[96]).unwrap_err();
    assert_eq!(refused.0, "token 96, the vocabulary has 96");
    let refused = model.prefill(&mut sequence, &[1; 9]).unwrap_err();
    assert_eq!(refused.0, "9 tokens, the context has 8");
    let refused = model.prefill_last(&mut sequence, &[]).unwrap_err();
    assert_eq!(refused.0, "a pass over no tokens");
    let refused = model.decode(&mut [&mut sequence]).unwrap_err();
    assert_eq!(refused.0, "decode before the prompt's last chunk");
}

/// A copy of a case with one file changed.
fn changed(case: &str, file: &str, change: impl FnOnce(Vec<u8>) -> Vec<u8>) -> Changed {
    let copy = std::env::temp_dir().join(format!(
        "interlock-golden-{}-{:?}",
        std::process::id(),
        std::thread::current().id()
    ));
    fs::create_dir_all(&copy).unwrap();
    for entry in fs::read_dir(folder(case)).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), copy.join(entry.file_name())).unwrap();
    }
    let path = copy.join(file);
    let bytes = change(fs::read(&path).unwrap());
    fs::write(&path, bytes).unwrap();
    Changed(copy)
}

struct Changed(PathBuf);

impl Drop for Changed {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn refused(path: &Path) -> LoadError {
    match load(path, &LoadOptions::default(), &mut |_| {}) {
        Ok(_) => panic!("{} loaded", path.display()),
        Err(error) => error,
    }
}

fn replace(from: &str, to: &str) -> impl FnOnce(Vec<u8>) -> Vec<u8> {
    move |bytes| {
        let text = String::from_utf8(bytes).unwrap();
        assert!(text.contains(from), "{from} is in the file");
        text.replace(from, to).into_bytes()
    }
}

#[test]
fn all_that_is_wrong_with_the_weights_is_said_at_once() {
    let model = changed(
        "llama-f32",
        "config.json",
        replace("\"num_hidden_layers\": 2", "\"num_hidden_layers\": 3"),
    );
    let LoadError::Weights { problems, .. } = refused(&model.0) else { panic!("another error") };
    let missing = |part: &str| Problem::Missing { tensor: format!("model.layers.2.{part}.weight") };
    assert_eq!(problems.0.len(), 9);
    assert!(problems.0.contains(&missing("self_attn.q_proj")));
    assert!(problems.0.contains(&missing("post_attention_layernorm")));
    assert!(problems.to_string().ends_with("; and 3 more"), "{problems}");
}

#[test]
fn a_wrong_shape_is_named_with_both_shapes() {
    let model =
        changed("llama-f32", "config.json", replace("\"vocab_size\": 96", "\"vocab_size\": 97"));
    let error = refused(&model.0).to_string();
    assert!(
        error.contains(
            "model.embed_tokens.weight has shape [96, 32], the configuration calls for [97, 32]"
        ),
        "{error}"
    );
}

#[test]
fn kinds_that_we_do_not_have_are_named_beside_those_we_have() {
    let cases = [
        ("\"model_type\": \"llama\"", "\"model_type\": \"mamba\"", "model type \"mamba\" is not"),
        (
            "\"rope_type\": \"llama3\"",
            "\"rope_type\": \"longrope\"",
            "rope type \"longrope\" is not",
        ),
        ("\"hidden_size\": 32", "\"hidden_size\": 0", "hidden_size is 0, must be 1 to"),
        ("\"num_key_value_heads\": 2", "\"num_key_value_heads\": 3", "no multiple of"),
        ("\"factor\": 8.0", "\"factor\": 0.0", "rope_scaling.factor is 0, not above zero"),
    ];
    for (from, to, says) in cases {
        let model = changed("llama3-rope-bf16", "config.json", replace(from, to));
        let error = refused(&model.0).to_string();
        assert!(error.contains(says), "{error}");
    }
}

/// Whatever is cut off or flipped, the answer is an error or a model, never a crash. A crash here
/// takes the whole test binary with it, so that the last seed printed is the culprit.
#[test]
fn damaged_files_are_errors() {
    for (case, file) in [("gguf-qwen3-q4_0", "model.gguf"), ("llama-4bit", "model.safetensors")] {
        let path = |model: &Changed| {
            if case.starts_with("gguf") { model.0.join(file) } else { model.0.clone() }
        };
        let length = fs::metadata(folder(case).join(file)).unwrap().len() as usize;
        for keep in [0, 3, 7, 8, 40, 900, length / 2, length - 1] {
            let model = changed(case, file, |bytes| bytes[..keep].to_vec());
            let error = refused(&path(&model));
            assert!(
                matches!(error, LoadError::Damaged { .. }),
                "{case} cut to {keep} bytes: {error}"
            );
        }
        let mut state = 0x2545_F491_4F6C_DD1D_u64;
        for _ in 0..200 {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            // Headers are at the front; what follows is numbers, where nothing can be wrong.
            let (at, bit) = (state as usize % 1500, (state >> 40) % 8);
            let model = changed(case, file, |mut bytes| {
                bytes[at] ^= 1 << bit;
                bytes
            });
            let loaded = load(&path(&model), &LoadOptions::default(), &mut |_| {});
            if let Ok(mut loaded) = loaded {
                let mut sequence = loaded.model.open(&[1], &Sampling::greedy()).unwrap();
                let _ = loaded.model.prefill_last(&mut sequence, &[1]);
            }
        }
    }
}
