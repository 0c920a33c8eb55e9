//! Each test draws on the host and on the device.

use std::collections::BTreeMap;

use interlock_request::{Drawn, Generation, Penalties, Priority, Sampling, TokenId};
use mlx_rs::{Array, Dtype};

use super::*;

#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Drawer {
    Host,
    Device,
}

pub(super) const BOTH: [Drawer; 2] = [Drawer::Host, Drawer::Device];

impl Drawer {
    pub(super) fn draw(self, samplers: &[&Sampler], rows: &[&[f32]]) -> Vec<Drawn> {
        let logits = rows.concat();
        match self {
            Self::Host => draw_on_host(samplers, &logits),
            Self::Device => {
                let shape = [rows.len(), rows[0].len()].map(|length| length as i32);
                draw_on_device(samplers, &Array::from_slice(&logits, &shape), []).unwrap()
            }
        }
    }

    pub(super) fn draw_one(self, sampler: &Sampler, row: &[f32]) -> Drawn {
        self.draw(&[sampler], &[row]).remove(0)
    }

    /// Tokens that one sequence draws, one after the other, from logits that stay the same.
    fn draws(
        self,
        generation: &Generation,
        prompt: &[TokenId],
        row: &[f32],
        count: usize,
    ) -> Vec<u32> {
        let mut sampler = sampler(prompt, &[], generation, row.len());
        let mut next = || {
            let token = self.draw_one(&sampler, row).token;
            sampler.remember(token);
            token
        };
        (0..count).map(|_| next()).collect()
    }
}

pub(super) fn sampler(
    prompt: &[TokenId],
    generated: &[TokenId],
    generation: &Generation,
    vocabulary: usize,
) -> Sampler {
    let opening = Opening { prompt, generated, generation, fresh_seed: 0 };
    Sampler::new(&opening, vocabulary as u32).unwrap()
}

pub(super) fn asking(sampling: Sampling) -> Generation {
    Generation {
        sampling,
        tokens_max: 100,
        tokens_min: 0,
        stop_tokens: Vec::new(),
        logprobs: None,
        priority: Priority::Standard,
    }
}

fn greedy() -> Generation {
    asking(Sampling::greedy())
}

pub(super) fn sampled() -> Sampling {
    Sampling { temperature: 1.0, seed: Some(7), ..Sampling::greedy() }
}

/// Logits of these likelihoods.
fn of(likelihoods: &[f32]) -> Vec<f32> {
    likelihoods.iter().map(|p| p.ln()).collect()
}

/// Logits about as far apart as a model's, the same for the same seed.
pub(super) fn model_like(vocabulary: usize, seed: u64) -> Vec<f32> {
    let unit = |i: u64| (mix(seed.wrapping_add(i)) >> 40) as f32 / (1_u32 << 24) as f32;
    // The sum of three: a hump, 3 wide on each side of 0.
    (0..vocabulary as u64)
        .map(|i| 4.0 * (unit(3 * i) + unit(3 * i + 1) + unit(3 * i + 2) - 1.5))
        .collect()
}

fn which(mut tokens: Vec<u32>) -> Vec<u32> {
    tokens.sort_unstable();
    tokens.dedup();
    tokens
}

/// The tokens that occur among so many draws, each once.
fn kept(path: Drawer, sampling: Sampling, row: &[f32], draws: usize) -> Vec<u32> {
    which(path.draws(&asking(sampling), &[], row, draws))
}

#[test]
fn greedy_takes_the_most_likely() {
    for path in BOTH {
        assert_eq!(path.draws(&greedy(), &[], &[0.1, 3.0, -2.0], 2), [1, 1]);
    }
}

#[test]
fn a_seed_repeats_and_another_does_not() {
    let row = vec![0.0; 1000];
    for path in BOTH {
        let first = path.draws(&asking(sampled()), &[], &row, 20);
        assert_eq!(path.draws(&asking(sampled()), &[], &row, 20), first);
        let other = Sampling { seed: Some(8), ..sampled() };
        assert_ne!(path.draws(&asking(other), &[], &row, 20), first);
        assert!(which(first).len() > 10, "each draw has its own number");
    }
}

#[test]
fn tokens_come_as_often_as_they_are_likely() {
    let row = of(&[0.5, 0.3, 0.15, 0.05]);
    for path in BOTH {
        let tokens = path.draws(&asking(sampled()), &[], &row, 4000);
        for (token, likelihood) in [(0, 0.5), (1, 0.3), (2, 0.15), (3, 0.05)] {
            let share = tokens.iter().filter(|&&t| t == token).count() as f64 / 4000.0;
            // Four standard deviations at most 0.032.
            assert!((share - likelihood).abs() < 0.032, "{path:?}, token {token}: {share}");
        }
    }
}

#[test]
fn the_numbers_of_a_seed_are_spread_evenly_and_below_one() {
    let mut sampler = sampler(&[], &[], &asking(sampled()), 2);
    let mut tenths = [0; 10];
    for _ in 0..10_000 {
        let unit = sampler.unit();
        assert!((0.0..1.0).contains(&unit));
        tenths[(unit * 10.0) as usize] += 1;
        sampler.remember(0);
    }
    // Five standard deviations: 150.
    assert!(tenths.iter().all(|count| (850..1150).contains(count)), "{tenths:?}");
}

#[test]
fn temperature_flattens() {
    let row = of(&[0.9, 0.1]);
    for path in BOTH {
        let share = |temperature| {
            let tokens =
                path.draws(&asking(Sampling { temperature, ..sampled() }), &[], &row, 1000);
            tokens.iter().filter(|&&token| token == 1).count()
        };
        // p^(1/T): 0.012 at T = 0.5, 0.25 at T = 2.
        assert!(share(0.5) < 40 && (200..300).contains(&share(2.0)), "{path:?}");
    }
}

#[test]
fn top_k_keeps_that_many() {
    let row = of(&[0.1, 0.4, 0.2, 0.3]);
    for path in BOTH {
        let kept = |top_k| kept(path, Sampling { top_k, ..sampled() }, &row, 300);
        assert_eq!(kept(2), [1, 3]);
        assert_eq!(kept(1), [1]);
        assert_eq!(kept(99), [0, 1, 2, 3]);
    }
}

#[test]
fn top_p_keeps_the_smallest_set_that_reaches_it() {
    let row = of(&[0.1, 0.4, 0.2, 0.3]);
    for path in BOTH {
        let kept = |top_p| kept(path, Sampling { top_p, ..sampled() }, &row, 300);
        assert_eq!(kept(0.35), [1]);
        assert_eq!(kept(0.6), [1, 3]);
        assert_eq!(kept(0.75), [1, 2, 3]);
        assert_eq!(kept(0.0), [1], "never nothing at all");
    }
}

#[test]
fn top_p_looks_at_what_top_k_left() {
    // Of the two that top_k leaves, 0.4 and 0.3, the first alone has 0.57 of the mass.
    let row = of(&[0.1, 0.4, 0.2, 0.3]);
    for path in BOTH {
        assert_eq!(kept(path, Sampling { top_k: 2, top_p: 0.55, ..sampled() }, &row, 200), [1]);
    }
}

#[test]
fn top_p_looks_at_the_tempered_distribution() {
    // 0.6^4 has 0.93 of the mass.
    let row = of(&[0.6, 0.3, 0.1]);
    for path in BOTH {
        let cold = Sampling { temperature: 0.25, top_p: 0.9, ..sampled() };
        assert_eq!(kept(path, cold, &row, 200), [0]);
    }
}

#[test]
fn min_p_is_relative_to_the_most_likely() {
    let row = of(&[0.1, 0.45, 0.05, 0.4]);
    for path in BOTH {
        let kept = |min_p| kept(path, Sampling { min_p, ..sampled() }, &row, 300);
        assert_eq!(kept(0.5), [1, 3]);
        assert_eq!(kept(0.2), [0, 1, 3]);
    }
}

#[test]
fn of_equal_logits_the_lower_token_is_kept() {
    // The likeliest stands last, so that the border runs through the equals.
    let mut row = vec![0.0; 200];
    row[199] = 1.0;
    for path in BOTH {
        assert_eq!(path.draws(&greedy(), &[], &[0.0, 5.0, 5.0], 1), [1]);
        assert_eq!(kept(path, Sampling { top_k: 4, ..sampled() }, &row, 100), [0, 1, 2, 199]);
        // All as likely: 70 of 200 have 0.35 of the mass, and the last is not 70.
        let flat = Sampling { top_p: 0.35, ..sampled() };
        assert_eq!(kept(path, flat, &[0.0; 200], 1000), (0..70).collect::<Vec<_>>());
        // Minus zero equals zero.
        assert_eq!(kept(path, Sampling { top_k: 2, ..sampled() }, &[-0.0, 0.0, 0.0], 50), [0, 1]);
    }
}

#[test]
fn a_bias_of_one_hundred_decides() {
    let logit_bias = BTreeMap::from([(2, 100.0), (0, -100.0)]);
    for path in BOTH {
        let biased = asking(Sampling { logit_bias: logit_bias.clone(), ..Sampling::greedy() });
        assert_eq!(path.draws(&biased, &[], &[9.0, 3.0, 1.0], 1), [2]);
    }
}

#[test]
fn any_number_of_changes_changes_these_tokens_and_no_other() {
    // Changes are padded to 16, 64, ...: token 0, which has none, would be kept for being the lowest.
    for path in BOTH {
        for count in [1, 2, 15, 16, 17, 63, 64, 65] {
            let logit_bias = (0..count).map(|i| (i * 2 + 1, 1.0)).collect();
            let biased = asking(Sampling { logit_bias, top_k: count, ..sampled() });
            let row = vec![0.5; 2 * count as usize];
            let odd: Vec<u32> = (0..count).map(|i| i * 2 + 1).collect();
            let drawn = which(path.draws(&biased, &[], &row, 50));
            assert!(drawn.iter().all(|token| odd.contains(token)), "{path:?}, {count}: {drawn:?}");
        }
    }
}

#[test]
fn what_a_model_cannot_do_is_refused_with_the_numbers() {
    let refused = |sampling| {
        let generation = asking(sampling);
        let opening =
            Opening { prompt: &[], generated: &[], generation: &generation, fresh_seed: 0 };
        Sampler::new(&opening, 3).err().unwrap().to_string()
    };
    let greedy = Sampling::greedy;
    assert_eq!(
        refused(Sampling { logit_bias: BTreeMap::from([(3, 1.0)]), ..greedy() }),
        "logit_bias for token 3, the vocabulary has 3"
    );
    assert_eq!(
        refused(Sampling { logit_bias: BTreeMap::from([(1, f32::NAN)]), ..greedy() }),
        "logit_bias of token 1 is NaN"
    );
    assert_eq!(refused(Sampling { top_p: 1.5, ..greedy() }), "top_p is 1.5, must be 0e0 to 1e0");
}

#[test]
fn penalties_are_those_of_the_paper_and_of_openai() {
    let with = |penalties| asking(Sampling { penalties, ..Sampling::greedy() });
    let none = Penalties::NONE;
    let row = [2.0, 1.5, -1.0];
    for path in BOTH {
        // The prompt counts for repetition: 2 / 2 < 1.5, and then 1.5 / 2 < 1.
        let repetition = with(Penalties { repetition: 2.0, ..none });
        assert_eq!(path.draws(&repetition, &[0], &row, 2), [1, 0]);
        // Negative logits are multiplied.
        let repetition = with(Penalties { repetition: 3.0, ..none });
        assert_eq!(path.draws(&repetition, &[0], &[-1.0, -2.0], 1), [1]);

        // The prompt does not count for the other two.
        let presence = with(Penalties { presence: 0.75, ..none });
        assert_eq!(path.draws(&presence, &[0], &row, 4), [0, 1, 0, 0], "once, however often");
        let frequency = with(Penalties { frequency: 0.75, ..none });
        assert_eq!(path.draws(&frequency, &[0], &row, 4), [0, 1, 0, 1], "for each time");
    }
}

#[test]
fn no_stop_token_is_drawn_before_tokens_min() {
    // Token 9 does not exist; token 2 is biased as well, and penalised.
    let penalties = Penalties { presence: 0.1, ..Penalties::NONE };
    let logit_bias = BTreeMap::from([(2, 50.0)]);
    for path in BOTH {
        for temperature in [0.0, 1.0, f32::MAX] {
            let sampling =
                Sampling { temperature, penalties, logit_bias: logit_bias.clone(), ..sampled() };
            let generation =
                Generation { tokens_min: 3, stop_tokens: vec![2, 9], ..asking(sampling) };
            let tokens = path.draws(&generation, &[], &[1.0, 1.0, 1.0], 60);
            assert!(!tokens[..3].contains(&2), "{path:?}, {temperature}: {tokens:?}");
            assert!(tokens[3..].contains(&2), "{path:?}, {temperature}: {tokens:?}");
            assert!(temperature > 1.0 || tokens[3] == 2, "{path:?}: as soon as it may");

            // Three tokens before it was preempted are three tokens.
            let after = sampler(&[], &[0, 1, 0], &generation, 3);
            assert_eq!(path.draw_one(&after, &[0.0; 3]).token, tokens_with(path, &generation));
        }
    }
}

/// What comes after `0 1 0`, drawn without a preemption.
fn tokens_with(path: Drawer, generation: &Generation) -> u32 {
    let mut sampler = sampler(&[], &[], generation, 3);
    for token in [0, 1, 0] {
        sampler.remember(token);
    }
    path.draw_one(&sampler, &[0.0; 3]).token
}

#[test]
fn with_nothing_but_stop_tokens_it_is_still_a_token() {
    for path in BOTH {
        for sampling in [Sampling::greedy(), sampled(), Sampling { top_p: 0.5, ..sampled() }] {
            let all = Generation { tokens_min: 5, stop_tokens: vec![0, 1], ..asking(sampling) };
            assert_eq!(path.draws(&all, &[], &[1.0, 2.0], 2), [0, 0]);
        }
    }
}

#[test]
fn a_preempted_sequence_goes_on_as_if_nothing_had_been() {
    let penalties = Penalties { repetition: 1.3, presence: 0.5, frequency: 0.25 };
    let prompt = [3, 3, 17, 60];
    let generation = Generation {
        tokens_min: 12,
        stop_tokens: vec![5],
        ..asking(Sampling { penalties, top_p: 0.9, ..sampled() })
    };
    let row_at = |at: usize| model_like(100, at as u64);
    for path in BOTH {
        let mut uninterrupted = sampler(&prompt, &[], &generation, 100);
        let mut tokens: Vec<u32> = Vec::new();
        for at in 0..25 {
            let token = path.draw_one(&uninterrupted, &row_at(at)).token;
            let preempted = sampler(&prompt, &tokens, &generation, 100);
            assert_eq!(path.draw_one(&preempted, &row_at(at)).token, token, "{path:?}, at {at}");
            uninterrupted.remember(token);
            tokens.push(token);
        }
    }
}

#[test]
fn log_probabilities_are_the_models_own_likeliest_first() {
    let row = of(&[0.1, 0.4, 0.25, 0.25]);
    let sampling =
        Sampling { logit_bias: BTreeMap::from([(0, 50.0)]), temperature: 0.3, ..sampled() };
    for path in BOTH {
        for count in [0, 1, 3, 4, 20] {
            let generation = Generation { logprobs: Some(count), ..asking(sampling.clone()) };
            let drawn = path.draw_one(&sampler(&[], &[], &generation, 4), &row);
            assert_eq!(drawn.token, 0);
            let logprobs = drawn.logprobs.unwrap();
            assert!((logprobs.drawn - 0.1_f32.ln()).abs() < 1e-5);
            let tokens: Vec<u32> = logprobs.top.iter().map(|top| top.0).collect();
            let likeliest = [1, 2, 3, 0];
            assert_eq!(tokens, likeliest[..likeliest.len().min(count as usize)]);
            assert!(logprobs.top.iter().all(|&(t, p)| (p - row[t as usize]).abs() < 1e-5));
        }
        let silent = path.draw_one(&sampler(&[], &[], &asking(sampling.clone()), 4), &row);
        assert_eq!(silent.logprobs, None);
    }
}

#[test]
fn probabilities_sum_to_one() {
    let row = model_like(500, 3);
    for path in BOTH {
        let all = Generation { logprobs: Some(500), ..greedy() };
        let logprobs = path.draw_one(&sampler(&[], &[], &all, 500), &row).logprobs.unwrap();
        let sum: f32 = logprobs.top.iter().map(|&(_, p)| p.exp()).sum();
        assert!((sum - 1.0).abs() < 1e-4, "{path:?}: {sum}");
        assert!(logprobs.top.is_sorted_by(|a, b| a.1 >= b.1), "{path:?}");
        assert_eq!(which(logprobs.top.iter().map(|top| top.0).collect()).len(), 500);
    }
}

#[test]
fn whatever_the_logits_the_token_is_in_the_vocabulary() {
    let all = Sampling { top_k: 2, top_p: 0.9, min_p: 0.1, ..sampled() };
    let hottest = Sampling { temperature: f32::MAX, ..sampled() };
    let penalised = Sampling {
        penalties: Penalties { repetition: 1e-30, presence: f32::MAX, frequency: f32::MIN },
        ..sampled()
    };
    let (nan, inf) = (f32::NAN, f32::INFINITY);
    let rows = [[nan; 4], [inf, 0.0, 0.0, inf], [-inf; 4], [nan, 1.0, -inf, inf]];
    for path in BOTH {
        for row in rows.iter().chain(&[[f32::MAX, f32::MIN, 0.0, -0.0], [1e-45, -1e-45, 0.0, nan]])
        {
            for sampling in [&all, &sampled(), &hottest, &penalised, &Sampling::greedy()] {
                let generation = Generation { logprobs: Some(4), ..asking(sampling.clone()) };
                let mut sampler = sampler(&[1], &[2, 3], &generation, 4);
                for _ in 0..3 {
                    let drawn = path.draw_one(&sampler, row);
                    assert!(drawn.token < 4, "{path:?}, {row:?}, {sampling:?}");
                    let logprobs = drawn.logprobs.unwrap();
                    assert_eq!(logprobs.top.len(), 4);
                    assert!(logprobs.top.iter().all(|&(t, p)| t < 4 && p.is_finite()));
                    assert!(logprobs.drawn.is_finite());
                    sampler.remember(drawn.token);
                }
            }
        }
    }
}

#[test]
fn an_infinite_logit_is_drawn_and_a_number_that_is_none_is_not() {
    let (nan, inf) = (f32::NAN, f32::INFINITY);
    for path in BOTH {
        for sampling in
            [sampled(), Sampling { top_k: 3, ..sampled() }, Sampling { top_p: 0.9, ..sampled() }]
        {
            assert_eq!(kept(path, sampling, &[nan, 3.0, inf, -inf, inf], 40), [2, 4]);
        }
    }
}

#[test]
fn half_precision_logits_are_drawn_from_as_they_are() {
    let row = model_like(300, 5);
    let shape = [1, 300];
    let half = Array::from_slice(&row, &shape).as_dtype(Dtype::Bfloat16).unwrap();
    let whole = half.as_dtype(Dtype::Float32).unwrap();
    for sampling in [Sampling::greedy(), sampled(), Sampling { top_k: 20, ..sampled() }] {
        let generation = Generation { logprobs: Some(5), ..asking(sampling) };
        let sampler = sampler(&[], &[], &generation, 300);
        let of_half = draw_on_device(&[&sampler], &half, []).unwrap();
        assert_eq!(of_half, draw_on_device(&[&sampler], &whole, []).unwrap());
    }
}

#[test]
fn a_batch_of_none_draws_nothing() {
    assert_eq!(draw_on_host(&[], &[]), []);
    let none = Array::from_slice::<f32>(&[], &[0, 4]);
    assert_eq!(draw_on_device(&[], &none, []).unwrap(), []);
}
