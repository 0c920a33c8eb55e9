//! Measures what a prompt beside streams costs on a GPU, and what of it is shapes met for the first
//! time: `cargo run --release -p interlock-models --example mixed -- MODEL`.
//!
//! Milliseconds of a pass: median, smallest and largest of several. In `same` each pass has the
//! same shapes; in `new` each prompt is one token longer than the one before it.

#![expect(clippy::print_stdout, reason = "an example that prints its result")]

use std::time::Instant;

use interlock_engine::{Forward, Opening, PageId, PassFailed, Row};
use interlock_models::{LoadOptions, Model, Sequence, load};
use interlock_request::{Generation, Priority, Sampling};

const PASSES: usize = 12;

/// `(streams, newcomers, prompt)`.
const CASES: [(usize, usize, usize); 12] = [
    (8, 0, 0),
    (32, 0, 0),
    (0, 1, 80),
    (0, 1, 480),
    (0, 1, 1500),
    (8, 1, 20),
    (8, 1, 80),
    (8, 3, 80),
    (32, 8, 80),
    (8, 1, 240),
    (8, 1, 480),
    (8, 1, 1500),
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::args().nth(1).ok_or("usage: mixed MODEL")?;
    let mut model = load(path.as_ref(), &LoadOptions::default(), &mut |_| {})?.model;
    println!("attention       {}", model.attention());
    println!("\nstreams   joining  prompt   same: ms (min, max)        new: ms (min, max)");
    for (streams, joining, prompt) in CASES {
        let same = measure(&mut model, streams, joining, |_| prompt)?;
        let new = measure(&mut model, streams, joining, |pass| prompt + pass)?;
        println!("{streams:>7} {joining:>9} {prompt:>7}   {same}   {new}");
    }
    Ok(())
}

struct Request {
    sequence: Sequence,
    tokens: Vec<u32>,
    pages: Vec<PageId>,
}

impl Request {
    fn new(model: &mut Model, number: usize, length: usize) -> Result<Self, PassFailed> {
        /// Enough for the longest prompt and what is decoded.
        const PAGES: u32 = 64;
        let vocabulary = model.shape().vocabulary as usize;
        let tokens: Vec<u32> = (0..length)
            .map(|at| ((at * 7919 + number * 104_729 + 13) % vocabulary) as u32)
            .collect();
        let generation = Generation {
            sampling: Sampling::greedy(),
            tokens_max: 1,
            tokens_min: 0,
            stop_tokens: Vec::new(),
            logprobs: None,
            priority: Priority::Standard,
        };
        let opening =
            Opening { prompt: &tokens, generated: &[], generation: &generation, fresh_seed: 0 };
        let first = number as u32 * PAGES;
        Ok(Self {
            sequence: model.open(&opening)?,
            pages: (first..first + PAGES).map(PageId).collect(),
            tokens,
        })
    }

    fn row(&mut self, from: usize) -> Row<'_, Sequence> {
        let Self { sequence, tokens, pages } = self;
        Row { sequence, tokens: &tokens[from..], from: from as u32, pages, draw: true }
    }
}

fn measure(
    model: &mut Model,
    streams: usize,
    newcomers: usize,
    prompt: impl Fn(usize) -> usize,
) -> Result<Times, PassFailed> {
    let mut flowing = (0..streams)
        .map(|number| Request::new(model, number, 40 + number))
        .collect::<Result<Vec<_>, _>>()?;
    for stream in &mut flowing {
        let drawn = model.pass(&mut [stream.row(0)])?;
        stream.tokens.extend(drawn.into_iter().flatten().map(|drawn| drawn.token));
    }
    let mut times = Vec::with_capacity(PASSES);
    for pass in 0..PASSES {
        let mut joining = (0..newcomers)
            .map(|number| Request::new(model, streams + number, prompt(pass)))
            .collect::<Result<Vec<_>, _>>()?;
        let mut rows: Vec<_> = flowing
            .iter_mut()
            .map(|stream| {
                let last = stream.tokens.len() - 1;
                stream.row(last)
            })
            .chain(joining.iter_mut().map(|request| request.row(0)))
            .collect();
        let started = Instant::now();
        let drawn = model.pass(&mut rows)?;
        times.push(started.elapsed().as_secs_f64() * 1000.0);
        drop(rows);
        for (stream, drawn) in flowing.iter_mut().zip(drawn) {
            stream.tokens.extend(drawn.map(|drawn| drawn.token));
        }
    }
    times.sort_by(f64::total_cmp);
    Ok(Times(times))
}

/// Milliseconds, in order.
struct Times(Vec<f64>);

impl std::fmt::Display for Times {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self(times) = self;
        let (least, most) = (times[0], times[times.len() - 1]);
        write!(f, "{:>8.2} ({least:>7.2}, {most:>8.2})", times[times.len() / 2])
    }
}
