//! How long the host takes for a row. Prints, and asserts nothing:
//! `cargo test --release -p interlock-models --lib sample::bench -- --ignored --nocapture`.

#![expect(clippy::print_stdout, reason = "a measurement that prints its figures")]

use std::hint::black_box;
use std::time::Instant;

use interlock_engine::{Forward, PageId, Row};
use interlock_request::{Generation, Penalties, Priority, Sampling, TokenId};

use super::host::draw_row;
use super::{Opening, Sampler, mix};
use crate::LoadOptions;

const ROUNDS: usize = 200;

#[test]
#[ignore = "a measurement, not a test"]
fn microseconds_a_row() {
    let sampled = || Sampling { temperature: 1.0, seed: Some(7), ..Sampling::greedy() };
    let penalties = Penalties { repetition: 1.1, presence: 0.1, frequency: 0.1 };
    let cases = [
        ("greedy", Sampling::greedy(), None),
        (
            "temperature 0.2, top_p 0.9",
            Sampling { temperature: 0.2, top_p: 0.9, ..sampled() },
            None,
        ),
        ("temperature 1", sampled(), None),
        ("temperature 1, top_p 0.95", Sampling { top_p: 0.95, ..sampled() }, None),
        ("temperature 1, min_p 0.05", Sampling { min_p: 0.05, ..sampled() }, None),
        ("top_k 40", Sampling { top_k: 40, ..sampled() }, None),
        ("top_k 40, top_p 0.9", Sampling { top_k: 40, top_p: 0.9, ..sampled() }, None),
        ("greedy, 1000 penalised", Sampling { penalties, ..Sampling::greedy() }, None),
        ("top_k 40, 1000 penalised", Sampling { penalties, top_k: 40, ..sampled() }, None),
        ("greedy, 5 log probabilities", Sampling::greedy(), Some(5)),
    ];
    for (what, logits) in rows() {
        println!("\n{what} (µs: median and fastest of {ROUNDS})");
        for (name, sampling, logprobs) in &cases {
            let prompt: Vec<u32> = (0..1000).map(|i| i * 37).collect();
            let generation = Generation { logprobs: *logprobs, ..generation(sampling.clone()) };
            let opening =
                Opening { prompt: &prompt, generated: &[], generation: &generation, fresh_seed: 0 };
            let sampler = Sampler::new(&opening, logits.len() as u32).unwrap();
            let [median, fastest] = times(&sampler, &logits);
            println!("{name:<30}{median:>8.1}{fastest:>10.1}");
        }
    }
}

fn times(sampler: &Sampler, logits: &[f32]) -> [f64; 2] {
    let mut times = [0.0; ROUNDS];
    for time in &mut times {
        let started = Instant::now();
        black_box(draw_row(sampler, black_box(logits)));
        *time = started.elapsed().as_secs_f64() * 1e6;
    }
    times.sort_by(f64::total_cmp);
    [times[ROUNDS / 2], times[0]]
}

/// A model's, if `make model` fetched one; made up ones; and the worst there is.
fn rows() -> Vec<(&'static str, Vec<f32>)> {
    const MODEL: &str =
        concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/models/smollm2-135m-instruct.gguf");
    let mut rows = vec![
        ("made up, vocabulary 49152", model_like(49_152)),
        ("made up, vocabulary 151936", model_like(151_936)),
        ("all equal, vocabulary 49152", vec![0.0; 49_152]),
    ];
    if let Ok(loaded) = crate::load(MODEL.as_ref(), &LoadOptions::default(), &mut |_| {}) {
        let mut model = loaded.model;
        let pages: Vec<_> = (0..model.shape().pages.min(1)).map(PageId).collect();
        let mut after = |tokens: &[TokenId]| {
            let generation = generation(Sampling::greedy());
            let opening =
                Opening { prompt: tokens, generated: &[], generation: &generation, fresh_seed: 0 };
            let mut sequence = model.open(&opening).unwrap();
            let row = Row { sequence: &mut sequence, tokens, from: 0, pages: &pages, draw: false };
            model.score(&mut [row]).unwrap().remove(0).pop().unwrap()
        };
        // Some tokens, and the end of a text, after which anything may come.
        let unsure = after(&[6403, 1980, 253, 655, 665, 436, 253]);
        let anything = after(&[0]);
        rows.insert(0, ("SmolLM2 within a text, vocabulary 49152", unsure));
        rows.insert(1, ("SmolLM2 at the start of a text", anything));
    }
    rows
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

/// A hump of unlikely tokens about 10 wide and, some way above, a few likely ones.
fn model_like(vocabulary: u32) -> Vec<f32> {
    let unit = |i: u32| (mix(u64::from(i)) >> 40) as f32 / (1_u32 << 24) as f32;
    let hump = |i| 6.0 * (unit(3 * i) + unit(3 * i + 1) + unit(3 * i + 2) - 1.5);
    let likely = |i| if i % 997 == 5 { 8.0 * unit(i + 77) } else { 0.0 };
    (0..vocabulary).map(|i| hump(i) + likely(i)).collect()
}
