//! Measures a model:
//! `cargo run --release -p interlock-models --example decode -- MODEL [threads]`.
//!
//! Prints tokens per second and the CPU time of a token, for prompts of several lengths, for
//! decoding several sequences at once, and for decoding far into a context. Each figure is the best
//! of three: the machine is seldom ours alone. The greedy tokens' checksum shows that two runs
//! computed the same. `tests/golden/compare.py` runs it beside mlx-lm.

#![expect(clippy::print_stdout, reason = "an example that prints its result")]

use std::time::Instant;

use interlock_engine::{Forward, Opening, PageId, PassFailed, Row};
use interlock_models::{LoadOptions, Model, Sequence, load};
use interlock_request::{Generation, Priority, Sampling};

const RUNS: usize = 3;
const DECODED: usize = 16;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let path = arguments.next().ok_or("usage: decode MODEL [threads]")?;
    let threads = arguments.next().map(|count| count.parse()).transpose()?;
    let options = LoadOptions { threads, ..LoadOptions::default() };

    let started = Instant::now();
    let mut loaded = load(path.as_ref(), &options, &mut |_| {})?;
    println!("{}", loaded.description);
    println!("{:<16}{:.2} s", "loaded in", started.elapsed().as_secs_f64());
    let shape = loaded.model.shape();
    println!("{:<16}{}", "arithmetic", loaded.model.arithmetic());
    println!("{:<16}{}", "attention", loaded.model.attention());
    println!("{:<16}{} of {} tokens", "pages", shape.pages, shape.page_tokens);

    println!("\nprompt   tokens/s   cpu ms each");
    for length in [32, 90, 256, 512, 1500] {
        let mut best = Best::default();
        for _ in 0..RUNS {
            let mut request = Request::new(&mut loaded.model, length, 0)?;
            best.measure(length, || request.prefill(&mut loaded.model))?;
        }
        println!("{length:>6} {best}");
    }

    println!("\nrows  after   tokens/s   cpu ms each   checksum");
    for (rows, after) in
        [(1, 32), (2, 32), (4, 32), (8, 32), (16, 32), (32, 32), (1, 512), (8, 512), (32, 512)]
    {
        let mut requests = (0..rows)
            .map(|number| Request::new(&mut loaded.model, after, number))
            .collect::<Result<Vec<_>, _>>()?;
        for request in &mut requests {
            request.prefill(&mut loaded.model)?;
        }
        let mut best = Best::default();
        for _ in 0..RUNS {
            best.measure(rows * DECODED, || {
                (0..DECODED).try_for_each(|_| decode(&mut loaded.model, &mut requests))
            })?;
        }
        let checksum = requests.iter().flat_map(|request| &request.tokens[after..]);
        let checksum = checksum.fold(0_u32, |sum, token| sum.wrapping_mul(31).wrapping_add(*token));
        println!("{rows:>4} {after:>6} {best}   {checksum:08x}");
    }
    Ok(())
}

struct Request {
    sequence: Sequence,
    tokens: Vec<u32>,
    pages: Vec<PageId>,
}

impl Request {
    /// A prompt that no other number has, in pages of its own.
    fn new(model: &mut Model, length: usize, number: usize) -> Result<Self, PassFailed> {
        let shape = model.shape();
        let tokens: Vec<u32> = (0..length)
            .map(|at| ((at * 7919 + number * 104_729 + 13) % shape.vocabulary as usize) as u32)
            .collect();
        let generation = Generation {
            sampling: Sampling::greedy(),
            tokens_max: 1,
            tokens_min: 0,
            stop_tokens: Vec::new(),
            logprobs: None,
            priority: Priority::Standard,
        };
        let needed = (length + (RUNS + 1) * DECODED).div_ceil(shape.page_tokens as usize);
        let first = (number * needed) as u32;
        let opening =
            Opening { prompt: &tokens, generated: &[], generation: &generation, fresh_seed: 0 };
        Ok(Self {
            sequence: model.open(&opening)?,
            pages: (first..first + needed as u32).map(PageId).collect(),
            tokens,
        })
    }

    fn prefill(&mut self, model: &mut Model) -> Result<(), PassFailed> {
        let Self { sequence, tokens, pages } = self;
        let row = Row { sequence, tokens: &tokens[..], from: 0, pages, draw: true };
        let drawn = model.pass(&mut [row])?;
        tokens.extend(drawn.into_iter().flatten().map(|drawn| drawn.token));
        Ok(())
    }
}

fn decode(model: &mut Model, requests: &mut [Request]) -> Result<(), PassFailed> {
    let mut rows: Vec<_> = requests
        .iter_mut()
        .map(|Request { sequence, tokens, pages }| Row {
            sequence,
            tokens: &tokens[tokens.len() - 1..],
            from: tokens.len() as u32 - 1,
            pages,
            draw: true,
        })
        .collect();
    let drawn = model.pass(&mut rows)?;
    for (request, drawn) in requests.iter_mut().zip(drawn) {
        request.tokens.extend(drawn.map(|drawn| drawn.token));
    }
    Ok(())
}

/// The shortest time of several, and its CPU time.
struct Best {
    tokens: f64,
    seconds: f64,
    cpu: f64,
}

impl Default for Best {
    fn default() -> Self {
        Self { tokens: 0.0, seconds: f64::MAX, cpu: 0.0 }
    }
}

impl Best {
    fn measure<E>(&mut self, tokens: usize, work: impl FnOnce() -> Result<(), E>) -> Result<(), E> {
        let (started, cpu) = (Instant::now(), cpu_seconds());
        work()?;
        let seconds = started.elapsed().as_secs_f64();
        if seconds < self.seconds {
            *self = Self { tokens: tokens as f64, seconds, cpu: cpu_seconds() - cpu };
        }
        Ok(())
    }
}

impl std::fmt::Display for Best {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (speed, cpu) = (self.tokens / self.seconds, self.cpu / self.tokens * 1000.0);
        write!(f, "{speed:>10.1} {cpu:>13.2}")
    }
}

/// This process's CPU time, in steps of 10 ms; zero where there is no /proc.
fn cpu_seconds() -> f64 {
    let Ok(stat) = std::fs::read_to_string("/proc/self/stat") else { return 0.0 };
    // The fields after the name, which stands in brackets and may hold spaces: 14 and 15 are
    // user and system time.
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
    let ticks: f64 =
        fields.split_whitespace().skip(11).take(2).filter_map(|f| f.parse::<f64>().ok()).sum();
    ticks / 100.0
}
