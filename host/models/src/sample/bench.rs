//! How long the host takes for a row. Prints, and asserts nothing:
//! `cargo test --release -p interlock-models --lib sample::bench -- --ignored --nocapture`.

#![expect(clippy::print_stdout, reason = "a measurement that prints its figures")]

use std::hint::black_box;
use std::time::Instant;

use interlock_request::{Generation, Penalties, Priority, Sampling};

use super::host::draw_row;
use super::{Opening, Sampler, mix};

const ROUNDS: usize = 200;

#[test]
#[ignore = "a measurement, not a test"]
fn microseconds_a_row() {
    let hot = || Sampling { temperature: 1.0, seed: Some(7), ..Sampling::greedy() };
    let penalties = Penalties { repetition: 1.1, presence: 0.1, frequency: 0.1 };
    let cases = [
        ("greedy", Sampling::greedy(), None),
        ("temperature 0.2, top_p 0.9", Sampling { temperature: 0.2, top_p: 0.9, ..hot() }, None),
        ("temperature 1", hot(), None),
        ("temperature 1, top_p 0.95", Sampling { top_p: 0.95, ..hot() }, None),
        ("temperature 1, min_p 0.05", Sampling { min_p: 0.05, ..hot() }, None),
        ("top_k 40", Sampling { top_k: 40, ..hot() }, None),
        ("top_k 40, top_p 0.9", Sampling { top_k: 40, top_p: 0.9, ..hot() }, None),
        ("greedy, 1000 penalised", Sampling { penalties, ..Sampling::greedy() }, None),
        ("top_k 40, 1000 penalised", Sampling { penalties, top_k: 40, ..hot() }, None),
        ("greedy, 5 log probabilities", Sampling::greedy(), Some(5)),
    ];
    for vocabulary in [49_152, 151_936] {
        let [peaked, flat] = [model_like(vocabulary), vec![0.0; vocabulary as usize]];
        println!("\nvocabulary {vocabulary}: like a model's, all equal (µs, fastest of {ROUNDS})");
        for (name, sampling, logprobs) in &cases {
            let prompt: Vec<u32> = (0..1000).map(|i| i * 37).collect();
            let generation = Generation {
                sampling: sampling.clone(),
                tokens_max: 1,
                tokens_min: 0,
                stop_tokens: Vec::new(),
                logprobs: *logprobs,
                priority: Priority::Standard,
            };
            let opening = Opening { prompt: &prompt, generated: &[], generation: &generation };
            let sampler = Sampler::new(&opening, vocabulary).unwrap();
            let [a, b] = [&peaked, &flat].map(|logits| fastest(&sampler, logits));
            println!("{name:<30}{a:>8.1}{b:>10.1}");
        }
    }
}

fn fastest(sampler: &Sampler, logits: &[f32]) -> f64 {
    let mut fastest = f64::INFINITY;
    for _ in 0..ROUNDS {
        let started = Instant::now();
        black_box(draw_row(sampler, black_box(logits)));
        fastest = fastest.min(started.elapsed().as_secs_f64() * 1e6);
    }
    fastest
}

/// A hump of unlikely tokens about 10 wide and, some way above, a few likely ones.
fn model_like(vocabulary: u32) -> Vec<f32> {
    let unit = |i: u32| (mix(u64::from(i)) >> 40) as f32 / (1_u32 << 24) as f32;
    let hump = |i| 6.0 * (unit(3 * i) + unit(3 * i + 1) + unit(3 * i + 2) - 1.5);
    let likely = |i| if i % 997 == 5 { 8.0 * unit(i + 77) } else { 0.0 };
    (0..vocabulary).map(|i| hump(i) + likely(i)).collect()
}
