//! Interlock against mlx-lm: the same weights, the same tokens, the same logits.
//! And a row against itself in other company: the same bits.
//!
//! `tests/golden/generate.py` made the data, which is kept in the repository; no Python runs here.
//!
//! Tolerance: both sides compute in f32 with sums in another order (other BLAS, other MLX kernels
//! for the same operation). Over two layers that moves a logit of size 10 by some 1e-5; 2e-4 of the
//! largest logit leaves room for another CPU's kernels and is a hundred times less than any mistake
//! in the model makes (a wrong rope base, a missing bias).

use std::fs;
use std::path::{Path, PathBuf};

use interlock_engine::{Caches, Forward, Opening, PageId, PassFault, Row};
use interlock_models::{
    LoadError, LoadOptions, LoadedModel, Model, Sequence, TensorProblem, load, load_as_stored,
};
use interlock_request::{Generation, Priority, Sampling, TokenId};
use serde::Deserialize;

const TOLERANCE: f32 = 2e-4;

/// Where weights are packed, their products take rows in fixed point of 16 bits, so each number is
/// off by 2^-16 of the largest of its 32. In a row of 32 numbers that shows; it is still twenty
/// times less than any mistake makes.
const TOLERANCE_OF_PACKED: f32 = 1e-3;

#[derive(Deserialize)]
struct Expected {
    prompt: Vec<TokenId>,
    greedy: Vec<TokenId>,
    logits: Vec<Position>,
}

#[derive(Deserialize)]
struct Position {
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

fn loaded(path: &Path) -> LoadedModel {
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

/// Numbers that look random and are the same every time.
struct Noise(u64);

impl Noise {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 20) as usize % end
    }

    fn shuffle<T>(&mut self, items: &mut [T]) {
        for at in (1..items.len()).rev() {
            items.swap(at, self.below(at + 1));
        }
    }
}

/// One request as the engine would keep it: what is in the cache, where, and what comes next.
struct Request {
    sequence: Sequence,
    pages: Vec<PageId>,
    length: usize,
}

fn generation(sampling: Sampling) -> Generation {
    Generation {
        sampling,
        tokens_max: 1,
        tokens_min: 0,
        stop_tokens: Vec::new(),
        logprobs: None,
        priority: Priority::Standard,
    }
}

impl Request {
    /// Takes pages off `free` for a prompt and `more` tokens.
    fn open(model: &mut Model, prompt: &[TokenId], more: usize, free: &mut Vec<PageId>) -> Self {
        let generation = generation(Sampling::greedy());
        let opening = Opening { prompt, generated: &[], generation: &generation, fresh_seed: 0 };
        let needed = (prompt.len() + more).div_ceil(model.shape().page_tokens as usize);
        Self {
            sequence: model.open(&opening).unwrap(),
            pages: free.split_off(free.len() - needed),
            length: 0,
        }
    }

    /// The next row, and afterwards it counts as in the cache.
    fn row<'a>(&'a mut self, tokens: &'a [TokenId], draw: bool) -> Row<'a, Sequence> {
        let from = self.length as u32;
        self.length += tokens.len();
        Row { sequence: &mut self.sequence, tokens, from, pages: &self.pages, draw }
    }
}

/// All pages, in an order of which the engine would not dream.
fn shuffled_pages(model: &Model, noise: &mut Noise) -> Vec<PageId> {
    let mut pages: Vec<PageId> = (0..model.shape().pages).map(PageId).collect();
    noise.shuffle(&mut pages);
    pages
}

/// Logits of prompt and greedy tokens, the prompt in chunks of these sizes.
fn compare_logits(case: &str, mut model: Model, chunks: &[usize], tolerance: f32) {
    let Expected { prompt, greedy, logits } = expected(case);
    let mut free = shuffled_pages(&model, &mut Noise(7));
    let mut request = Request::open(&mut model, &prompt, greedy.len(), &mut free);
    let mut rows = Vec::new();
    let mut rest = &prompt[..];
    let one = |model: &mut Model, request: &mut Request, tokens: &[TokenId]| {
        model.score(&mut [request.row(tokens, false)]).unwrap().remove(0)
    };
    for &chunk in chunks {
        let (now, later) = rest.split_at(chunk);
        rows.extend(one(&mut model, &mut request, now));
        rest = later;
    }
    assert!(rest.is_empty(), "the chunks make up the prompt");
    for token in greedy {
        rows.extend(one(&mut model, &mut request, &[token]));
    }
    for Position { position, values } in logits {
        let what = format!("{case}, {chunks:?}, position {position}");
        assert_close(&rows[position], &values, tolerance, &what);
    }
}

/// The same logits for several requests in one table: some in their prompts, some decoding.
fn compare_logits_in_company(case: &str, mut model: Model, tolerance: f32) {
    let Expected { prompt, greedy, logits } = expected(case);
    let all = [&prompt[..], &greedy[..]].concat();
    let mut free = shuffled_pages(&model, &mut Noise(9));
    let sizes: [&[usize]; 4] = [&[12, 1, 1], &[1, 1, 7, 3, 1], &[5, 7, 1], &[1, 11]];
    let mut requests: Vec<Request> =
        sizes.iter().map(|_| Request::open(&mut model, &prompt, greedy.len(), &mut free)).collect();
    let mut scored = vec![Vec::new(); sizes.len()];
    for step in 0..all.len() {
        let mut table = Vec::new();
        let mut whose = Vec::new();
        for (number, request) in requests.iter_mut().enumerate() {
            let size = sizes[number].get(step).copied().unwrap_or(1);
            let from = request.length;
            let to = (from + size).min(all.len());
            if from < to {
                table.push(request.row(&all[from..to], false));
                whose.push(number);
            }
        }
        if table.is_empty() {
            break;
        }
        for (number, rows) in whose.into_iter().zip(model.score(&mut table).unwrap()) {
            scored[number].extend(rows);
        }
    }
    for (number, rows) in scored.iter().enumerate() {
        for Position { position, values } in &logits {
            let what = format!("{case}, request {number} in company, position {position}");
            assert_close(&rows[*position], values, tolerance, &what);
        }
    }
}

/// The tokens, by the passes that serve.
fn compare_tokens(case: &str) {
    let Expected { prompt, greedy, .. } = expected(case);
    let mut model = loaded(&model_path(case)).model;
    assert_eq!(generate(&mut model, &prompt, prompt.len(), greedy.len()), greedy, "{case}");
    assert_eq!(generate(&mut model, &prompt, 5, greedy.len()), greedy, "{case}, in chunks");
}

fn generate(model: &mut Model, prompt: &[TokenId], chunk: usize, count: usize) -> Vec<TokenId> {
    let mut free = shuffled_pages(model, &mut Noise(3));
    let mut request = Request::open(model, prompt, count, &mut free);
    let mut tokens: Vec<TokenId> = Vec::new();
    let mut chunks = prompt.chunks(chunk).peekable();
    while let Some(chunk) = chunks.next() {
        let last = chunks.peek().is_none();
        let drawn = model.pass(&mut [request.row(chunk, last)]).unwrap();
        tokens.extend(drawn.into_iter().flatten().map(|drawn| drawn.token));
    }
    while tokens.len() < count {
        let last = [tokens[tokens.len() - 1]];
        let drawn = model.pass(&mut [request.row(&last, true)]).unwrap();
        tokens.extend(drawn.into_iter().flatten().map(|drawn| drawn.token));
    }
    tokens
}

fn tolerance(case: &str) -> f32 {
    let packed = ["4bit", "8bit", "q4_0", "q4_1", "q8_0"].iter().any(|kind| case.ends_with(kind));
    if packed { TOLERANCE_OF_PACKED } else { TOLERANCE }
}

macro_rules! golden {
    ($($name:ident: $case:literal;)*) => {$(
        #[test]
        fn $name() {
            let model = || loaded(&model_path($case)).model;
            compare_logits($case, model(), &[12], tolerance($case));
            compare_logits($case, model(), &[1, 7, 4], tolerance($case));
            compare_logits_in_company($case, model(), tolerance($case));
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
    a_mixture_of_experts_in_bf16: "qwen3-moe-bf16";
    a_quantized_mixture_with_a_dense_layer: "qwen3-moe-4bit";
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
        ("qwen3-moe-4bit", TOLERANCE),
    ];
    for (case, tolerance) in cases {
        let model = || {
            // Few pages: here they are memory at once.
            let options = LoadOptions { cache_max: Some(4 << 20), ..LoadOptions::default() };
            let loaded = load_as_stored(&model_path(case), &options);
            loaded.unwrap_or_else(|error| panic!("{error}")).model
        };
        compare_logits(case, model(), &[7, 5], tolerance);
        compare_logits_in_company(case, model(), tolerance);
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

fn default_model() -> PathBuf {
    let path = std::env::var_os("INTERLOCK_TEST_MODEL")
        .map_or_else(|| root().join("target/models/smollm2-135m-instruct.gguf"), PathBuf::from);
    assert!(path.is_file(), "{} is missing: run `make setup`", path.display());
    path
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
    let path = default_model();
    let cases: Vec<Case> =
        serde_json::from_str(&fs::read_to_string(folder("smollm2.json")).unwrap()).unwrap();
    let mut model = loaded(&path).model;
    for Case { question, prompt, greedy } in cases {
        let tokens = generate(&mut model, &prompt, 16, greedy.len());
        assert_eq!(tokens, greedy, "{question}");
    }
}

/// Tokens to put through a model, and where its prefix comes from.
struct Story {
    tokens: Vec<TokenId>,
    /// Whose first pages hold its prefix, and how many.
    shares: Option<(usize, usize)>,
}

/// Several requests, the later ones often beginning as an earlier one does.
fn stories(noise: &mut Noise, count: usize, longest: usize, model: &Model) -> Vec<Story> {
    let shape = model.shape();
    let page = shape.page_tokens as usize;
    let mut stories: Vec<Story> = Vec::new();
    for number in 0..count {
        let mut tokens: Vec<TokenId> = (0..1 + noise.below(longest))
            .map(|_| noise.below(shape.vocabulary as usize) as TokenId)
            .collect();
        let mut shares = None;
        if number > 0 && noise.below(3) > 0 {
            let owner = noise.below(number);
            let pages = stories[owner].tokens.len() / page;
            if pages > 0 {
                let pages = 1 + noise.below(pages);
                tokens.splice(..0, stories[owner].tokens[..pages * page].iter().copied());
                shares = Some((owner, pages));
            }
        }
        stories.push(Story { tokens, shares });
    }
    stories
}

/// Every token's logits, computed alone, in one pass, in pages in order.
fn scored_alone(model: &mut Model, stories: &[Story]) -> Vec<Vec<Vec<f32>>> {
    let in_order: Vec<PageId> = (0..model.shape().pages).rev().map(PageId).collect();
    stories
        .iter()
        .map(|story| {
            let mut request = Request::open(model, &story.tokens, 0, &mut in_order.clone());
            model.score(&mut [request.row(&story.tokens, false)]).unwrap().remove(0)
        })
        .collect()
}

/// The invariant that lets the scheduler do as it likes: which rows stand beside a row, how its
/// prompt is cut, where its pages lie, who had them before and who computed its prefix move no bit
/// of its logits. Not so on a GPU.
fn check_company(path: &Path, seed: u64, count: usize, longest: usize) {
    let mut model = loaded(path).model;
    let mut noise = Noise(seed);
    let stories = stories(&mut noise, count, longest, &model);
    let alone = scored_alone(&mut model, &stories);
    let page = model.shape().page_tokens as usize;

    // Only as many pages as there are to be filled, so that all hold something by now.
    let needed: usize = stories.iter().map(|story| story.tokens.len().div_ceil(page)).sum();
    let mut free: Vec<PageId> = (0..needed as u32).map(PageId).collect();
    noise.shuffle(&mut free);
    let mut requests: Vec<Request> = Vec::new();
    for story in &stories {
        let mut request = Request::open(&mut model, &story.tokens, 0, &mut free);
        if let Some((owner, pages)) = story.shares {
            request.pages.splice(..pages, requests[owner].pages[..pages].iter().copied());
            request.length = pages * page;
        }
        requests.push(request);
    }
    loop {
        let lengths: Vec<usize> = requests.iter().map(|request| request.length).collect();
        // A prefix counts once it is computed, by its owner or by whom that one has it from.
        let mut ready: Vec<bool> = Vec::new();
        for story in &stories {
            let its =
                |(owner, pages): (usize, usize)| ready[owner] && lengths[owner] >= pages * page;
            ready.push(story.shares.is_none_or(its));
        }
        let mut table = Vec::new();
        let mut whose = Vec::new();
        for (number, (request, story)) in requests.iter_mut().zip(&stories).enumerate() {
            let left = story.tokens.len() - request.length;
            let chunk = [1, 1, 2, 9, 33, 500][noise.below(6)].min(left);
            if chunk > 0 && ready[number] && noise.below(4) > 0 {
                whose.push((number, request.length));
                let tokens = &story.tokens[request.length..request.length + chunk];
                table.push(request.row(tokens, false));
            }
        }
        if table.is_empty() {
            if lengths.iter().zip(&stories).all(|(length, story)| *length == story.tokens.len()) {
                return;
            }
            continue;
        }
        let rows = table.len();
        for ((number, from), scored) in whose.iter().zip(model.score(&mut table).unwrap()) {
            for (at, logits) in scored.iter().enumerate() {
                let same = logits.iter().zip(&alone[*number][from + at]);
                let differing = same.filter(|(a, b)| a.to_bits() != b.to_bits()).count();
                assert_eq!(
                    differing,
                    0,
                    "{}, seed {seed}: logits of request {number} at {} differ among {rows} rows",
                    path.display(),
                    from + at,
                );
            }
        }
    }
}

#[test]
fn a_row_is_the_same_in_any_company_bit_for_bit() {
    let cases = ["llama-f32", "qwen3-f32", "llama-bias-linear-f16", "gguf-llama-q4_1"];
    for case in cases.into_iter().chain(["llama-4bit", "qwen3-moe-bf16", "qwen3-moe-4bit"]) {
        for seed in 1..=6 {
            check_company(&model_path(case), seed * 7919, 6, 150);
        }
    }
}

/// Widths and depths that are served in earnest.
#[test]
fn a_row_of_the_default_model_is_the_same_in_any_company_bit_for_bit() {
    check_company(&default_model(), 12_345, 4, 70);
}

#[test]
fn a_pass_that_cannot_be_is_refused_before_mlx_sees_it() {
    let options = LoadOptions { context_max: Some(40), ..LoadOptions::default() };
    let mut model = load(&model_path("llama-f32"), &options, &mut |_| {}).unwrap().model;
    assert_eq!(model.shape().context, 40);
    let free = &mut vec![PageId(0), PageId(1), PageId(2), PageId(3)];
    let mut good = Request::open(&mut model, &[1, 2], 1, free);
    let mut bad = Request::open(&mut model, &[1, 2], 1, free);
    let too_far = [PageId(model.shape().pages)];
    let nothing: &[TokenId] = &[];
    let cases = [
        (&[96][..], 0, None, "token 96, the vocabulary has 96"),
        (&[1; 9], 32, None, "41 tokens, the context has 40"),
        (nothing, 0, None, "a pass over no tokens"),
        (&[1], 32, None, "33 tokens need 2 pages, the row has 1"),
        (
            &[1],
            0,
            Some(&too_far[..]),
            &format!("page {}, there are {}", too_far[0].0, too_far[0].0),
        ),
    ];
    for (tokens, from, pages, says) in cases {
        let mut wrong = bad.row(tokens, true);
        wrong.from = from;
        wrong.pages = pages.unwrap_or(wrong.pages);
        let refused = model.pass(&mut [good.row(&[1], true), wrong]).unwrap_err();
        assert_eq!(refused.why, says);
        assert_eq!((refused.kind, refused.caches), (PassFault::Row(1), Caches::Kept));
    }
    assert_eq!(model.pass(&mut []).unwrap_err().why, "a pass over no rows");
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
    let missing =
        |part: &str| TensorProblem::Missing { tensor: format!("model.layers.2.{part}.weight") };
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
                let mut request = Request::open(&mut loaded.model, &[1], 0, &mut vec![PageId(0)]);
                let _ = loaded.model.pass(&mut [request.row(&[1], true)]);
            }
        }
    }
}
