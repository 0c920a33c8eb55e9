//! Measures a model: `cargo run --release -p interlock-models --example decode -- MODEL [threads]`.
//!
//! Prints tokens per second for prompts of two lengths and for decoding after them, the CPU time
//! that took, and the greedy tokens' checksum, so that two runs can be seen to compute the same.
//! `tests/golden/compare.py` runs it beside mlx-lm.

#![expect(clippy::print_stdout, reason = "an example that prints its result")]

use std::time::Instant;

use interlock_engine::Forward;
use interlock_models::{LoadOptions, load};
use interlock_request::Sampling;

const DECODED: u32 = 64;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let path = arguments.next().ok_or("usage: decode MODEL [threads]")?;
    let threads = arguments.next().map(|count| count.parse()).transpose()?;
    let options = LoadOptions { threads, ..LoadOptions::default() };

    let started = Instant::now();
    let mut loaded = load(path.as_ref(), &options, &mut |_| {})?;
    println!("{}", loaded.description);
    println!("{:<16}{:.2} s", "loaded in", started.elapsed().as_secs_f64());

    println!("\nprompt  prefill/s     cpu ms   decode/s     cpu ms   checksum");
    let vocabulary = loaded.model.shape().vocabulary;
    for length in [32_u32, 512] {
        let prompt: Vec<u32> = (0..length).map(|i| (i * 7919 + 13) % vocabulary).collect();
        let mut sequence = loaded.model.open(&prompt, &Sampling::greedy())?;
        let (started, cpu) = (Instant::now(), cpu_seconds());
        let mut token = loaded.model.prefill_last(&mut sequence, &prompt)?;
        let prefill = started.elapsed().as_secs_f64() / f64::from(length);
        let prefill_cpu = (cpu_seconds() - cpu) / f64::from(length);

        let mut checksum = token;
        let (started, cpu) = (Instant::now(), cpu_seconds());
        for _ in 0..DECODED {
            token = loaded.model.decode(&mut [&mut sequence])?[0];
            checksum = checksum.wrapping_mul(31).wrapping_add(token);
        }
        let decode = started.elapsed().as_secs_f64() / f64::from(DECODED);
        let decode_cpu = (cpu_seconds() - cpu) / f64::from(DECODED);
        println!(
            "{length:>6} {:>10.1} {:>10.2} {:>10.1} {:>10.1}   {checksum:08x}",
            1.0 / prefill,
            prefill_cpu * 1000.0,
            1.0 / decode,
            decode_cpu * 1000.0
        );
    }
    Ok(())
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
