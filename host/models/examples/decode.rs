//! Measures a model: `cargo run --release -p interlock-models --example decode -- MODEL [threads]`.
//!
//! Prints tokens per second for prompts of two lengths and for decoding after them, and the greedy
//! tokens' checksum, so that two runs can be seen to compute the same.

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

    println!("\nprompt   prefill tok/s   decode tok/s   decode ms/tok   checksum");
    let vocabulary = loaded.model.shape().vocabulary;
    for length in [32_u32, 512] {
        let prompt: Vec<u32> = (0..length).map(|i| (i * 7919 + 13) % vocabulary).collect();
        let mut sequence = loaded.model.open(&prompt, &Sampling::greedy())?;
        let started = Instant::now();
        let mut token = loaded.model.prefill_last(&mut sequence, &prompt)?;
        let prefill = started.elapsed().as_secs_f64();

        let mut checksum = token;
        let started = Instant::now();
        for _ in 0..DECODED {
            token = loaded.model.decode(&mut [&mut sequence])?[0];
            checksum = checksum.wrapping_mul(31).wrapping_add(token);
        }
        let decode = started.elapsed().as_secs_f64() / f64::from(DECODED);
        println!(
            "{length:>6} {:>15.1} {:>14.1} {:>15.1}   {checksum:08x}",
            f64::from(length) / prefill,
            1.0 / decode,
            decode * 1000.0
        );
    }
    Ok(())
}
