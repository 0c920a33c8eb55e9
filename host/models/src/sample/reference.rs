//! Host and device against the naive way to do it, for all sorts of batches.

use interlock_request::{Generation, Penalties, Sampling, TokenId};
use proptest::prelude::*;
use proptest::sample::select;

use super::Sampler;
use super::tests::{BOTH, Drawer, asking, model_like, sampled, sampler};

/// The whole list of steps, naively: dense, sorted, in f64 where likelihoods are added.
///
/// The second number is how much of the mass lies between what was decided and what would have
/// been decided otherwise. Where that is next to nothing, rounding may decide.
fn reference(row: &Row, logits: &[f32]) -> (TokenId, f64) {
    let sampling = &row.generation.sampling;
    let penalties = sampling.penalties;
    let mut adjusted = logits.to_vec();
    for (token, logit) in (0..).zip(&mut adjusted) {
        let count = row.generated.iter().filter(|&&t| t == token).count();
        *logit += sampling.logit_bias.get(&token).copied().unwrap_or_default();
        if count > 0 || row.prompt.contains(&token) {
            let r = penalties.repetition;
            *logit = if *logit < 0.0 { *logit * r } else { *logit / r };
        }
        if count > 0 {
            *logit -= penalties.frequency * count as f32 + penalties.presence;
        }
        let too_early = row.generated.len() < row.generation.tokens_min as usize;
        if too_early && row.generation.stop_tokens.contains(&token) {
            *logit = f32::NEG_INFINITY;
        }
    }

    let mut order: Vec<usize> = (0..adjusted.len()).collect();
    order.sort_by(|&a, &b| adjusted[b].total_cmp(&adjusted[a])); // stable
    let likeliest = adjusted[order[0]];
    if sampling.temperature == 0.0 || likeliest == f32::NEG_INFINITY {
        return (order[0] as TokenId, 1.0);
    }
    let tempered = |token: usize| (adjusted[token] - likeliest) * (1.0 / sampling.temperature);
    let weight = |token: usize| f64::from(tempered(token)).exp();

    let mut margin = 1.0_f64;
    if sampling.top_k > 0 {
        order.truncate(sampling.top_k as usize);
    }
    if sampling.top_p < 1.0 {
        let total: f64 = order.iter().map(|&token| weight(token)).sum();
        let (mut before, mut count) = (0.0, 0);
        for &token in &order {
            let over = f64::from(sampling.top_p) - before / total;
            margin = margin.min(if count > 0 { over.abs() } else { 1.0 });
            if count > 0 && over <= 0.0 {
                break;
            }
            before += weight(token);
            count += 1;
        }
        order.truncate(count);
    }
    if sampling.min_p > 0.0 {
        order.retain(|&token| tempered(token) >= sampling.min_p.ln());
    }

    order.sort_unstable();
    let sampler = row.sampler(logits.len());
    let total: f64 = order.iter().map(|&token| weight(token)).sum();
    let (mut sum, mut drawn) = (0.0, None);
    for &token in &order {
        sum += weight(token) / total;
        if token != order[order.len() - 1] {
            margin = margin.min((sum - sampler.unit()).abs());
        }
        if drawn.is_none() && sum > sampler.unit() {
            drawn = Some(token);
        }
    }
    (drawn.unwrap_or(order[order.len() - 1]) as TokenId, margin)
}

/// One of a batch.
#[derive(Debug, Clone)]
struct Row {
    prompt: Vec<TokenId>,
    generated: Vec<TokenId>,
    generation: Generation,
    /// In quarters: many are equal, and those that are not are apart.
    quarters: Vec<i8>,
}

impl Row {
    fn sampler(&self, vocabulary: usize) -> Sampler {
        sampler(&self.prompt, &self.generated, &self.generation, vocabulary)
    }

    fn logits(&self) -> Vec<f32> {
        self.quarters.iter().map(|&quarters| f32::from(quarters) / 4.0).collect()
    }
}

fn some_penalties() -> impl Strategy<Value = Penalties> {
    let some = (select(vec![1.0, 1.5, 0.8]), select(vec![0.0, 0.5]), select(vec![0.0, 0.25, -0.5]));
    let some = some.prop_map(|(repetition, presence, frequency)| Penalties {
        repetition,
        presence,
        frequency,
    });
    prop_oneof![Just(Penalties::NONE), some]
}

fn some_sampling(vocabulary: u32) -> impl Strategy<Value = Sampling> {
    let temperature = select(vec![0.0_f32, 0.2, 0.7, 1.0, 3.0]);
    let top_p = select(vec![1.0_f32, 1.0, 0.95, 0.5, 0.1, 0.0]);
    let top_k = select(vec![0_u32, 0, 1, 2, 5, 50]);
    let min_p = select(vec![0.0_f32, 0.0, 0.04, 0.5, 1.0]);
    let bias = prop::collection::btree_map(0..vocabulary, select(vec![-1.0_f32, 0.5, 2.0]), 0..4);
    (temperature, top_p, top_k, min_p, any::<u64>(), some_penalties(), bias).prop_map(
        |(temperature, top_p, top_k, min_p, seed, penalties, logit_bias)| Sampling {
            temperature,
            top_p,
            top_k,
            min_p,
            seed: Some(seed),
            penalties,
            logit_bias,
        },
    )
}

fn some_row(vocabulary: u32) -> impl Strategy<Value = Row> {
    let tokens = |most| prop::collection::vec(0..vocabulary, 0..most);
    let quarters = prop::collection::vec(-24..24_i8, vocabulary as usize);
    let logprobs = prop::option::of(0..6_u32);
    (some_sampling(vocabulary), tokens(20), tokens(40), tokens(3), 0..30_u32, logprobs, quarters)
        .prop_map(|(sampling, prompt, generated, stop_tokens, tokens_min, logprobs, quarters)| {
            let generation = Generation { tokens_min, stop_tokens, logprobs, ..asking(sampling) };
            Row { prompt, generated, generation, quarters }
        })
}

fn some_batch() -> impl Strategy<Value = Vec<Row>> {
    let vocabulary = prop_oneof![2..70_u32, 100..700_u32];
    vocabulary.prop_flat_map(|vocabulary| prop::collection::vec(some_row(vocabulary), 1..6))
}

/// Device sums are f32: see the head comment.
const ROUNDING: f64 = 2e-5;

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(300) })]

    #[test]
    fn each_row_of_any_batch_draws_reference_and_as_it_would_alone(batch in some_batch()) {
        let rows: Vec<Vec<f32>> = batch.iter().map(Row::logits).collect();
        let rows: Vec<&[f32]> = rows.iter().map(Vec::as_slice).collect();
        let samplers: Vec<Sampler> = batch.iter().map(|row| row.sampler(rows[0].len())).collect();
        let samplers: Vec<&Sampler> = samplers.iter().collect();

        let [on_host, on_device] = BOTH.map(|path| path.draw(&samplers, &rows));
        for (at, row) in batch.iter().enumerate() {
            prop_assert_eq!(&Drawer::Host.draw_one(samplers[at], rows[at]), &on_host[at]);
            prop_assert_eq!(&Drawer::Device.draw_one(samplers[at], rows[at]), &on_device[at]);

            let (token, margin) = reference(row, rows[at]);
            if margin > ROUNDING {
                prop_assert_eq!(on_host[at].token, token, "host, row {}", at);
                prop_assert_eq!(on_device[at].token, token, "device, row {}", at);
            }
            let [on_host, on_device] = [&on_host[at], &on_device[at]].map(|d| &d.logprobs);
            prop_assert_eq!(on_host.is_some(), row.generation.logprobs.is_some());
            prop_assert_eq!(on_device.is_some(), row.generation.logprobs.is_some());
            if let (Some(on_host), Some(on_device), true) = (on_host, on_device, margin > ROUNDING) {
                prop_assert!((on_host.drawn - on_device.drawn).abs() < 1e-4);
                prop_assert_eq!(on_host.top.len(), on_device.top.len());
                for (a, b) in on_host.top.iter().zip(&on_device.top) {
                    prop_assert!(a.0 == b.0 && (a.1 - b.1).abs() < 1e-4, "{:?} {:?}", a, b);
                }
            }
        }
    }
}

#[test]
fn a_whole_vocabulary_is_drawn_from_reference() {
    let settings = [
        Sampling::greedy(),
        sampled(),
        Sampling { temperature: 0.2, top_p: 0.9, ..sampled() },
        Sampling { top_k: 40, ..sampled() },
        Sampling { top_k: 3000, top_p: 0.7, ..sampled() },
        Sampling { top_p: 0.99, temperature: 2.0, ..sampled() },
        Sampling { top_p: 0.5, min_p: 0.02, ..sampled() },
        Sampling { min_p: 0.1, ..sampled() },
    ];
    let mut compared = 0;
    for vocabulary in [49_152, 151_936] {
        for (seed, sampling) in (0_u64..).zip(&settings) {
            let logits = model_like(vocabulary, seed);
            let generation = asking(Sampling { seed: Some(seed), ..sampling.clone() });
            let row = Row { prompt: vec![], generated: vec![], generation, quarters: vec![] };
            let (token, margin) = reference(&row, &logits);
            let tokens = BOTH.map(|path| path.draw_one(&row.sampler(vocabulary), &logits).token);
            // So many tokens lie so close that for the device's f32 there is always one near by.
            if margin > 1e-8 {
                assert_eq!(tokens[0], token, "{sampling:?}");
                compared += 1;
            }
            assert!(
                tokens[0].abs_diff(tokens[1]) < vocabulary as u32 / 100,
                "{tokens:?}, {sampling:?}"
            );
        }
    }
    assert!(compared >= 10, "{compared}");
}
