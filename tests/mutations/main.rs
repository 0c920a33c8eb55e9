//! Files that people write, and what becomes of them in other hands: configurations, records, cases,
//! workloads and components, changed in thousands of ways.
//!
//! Whatever a file holds, it is taken or refused in words: nothing panics, and no value becomes
//! another one on the way. Models' files have `host/models/tests/whole.rs`.
//!
//! A failure prints the seed: `MUTATIONS_SEED=123 cargo test -p interlock-tests --test mutations` makes
//! that one change again; `MUTATIONS=100` makes a hundred times as many.

mod components;
mod configurations;
mod policy_tools;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use fastrand::Rng;

/// Values that have broken a parser somewhere.
const VALUES: &[&str] = &[
    "1e400",
    "-1e400",
    "99999999999999999999",
    "-99999999999999999999",
    "18446744073709551615",
    "9223372036854775807",
    "-9223372036854775808",
    "4294967296",
    "4294967295",
    "-1",
    "0",
    "0.5",
    "-0.0",
    "nan",
    "-nan",
    "inf",
    "-inf",
    "1979-05-27",
    "1979-05-27T07:32:00Z",
    "07:32:00",
    "true",
    "\"\"",
    "\"\\u0000\"",
    "\"999999999999h\"",
    "\"18446744073709551615s\"",
    "\"-5s\"",
    "\"1ns\"",
    "\"99999999TiB\"",
    "\"17179869183GiB\"",
    "\"18446744073709551615B\"",
    "\"-1B\"",
    "\"last-good:584942417355y\"",
    "\"closed:70000\"",
    "\"canary:300\"",
    "\"/dev/zero\"",
    "\"/nope/x\"",
    "\"../../..\"",
    "\"builtin:\"",
    "\"sim:decode=99999999999y\"",
    "\"sim:context=0,cache=0,page=4294967295\"",
    "\"hf:a/b@\\u0000\"",
    "\"redis://:0\"",
    "\"[::1]:0\"",
    "\"256.1.1.1:99999\"",
    "[]",
    "{}",
    "[[]]",
    "[1, \"a\", {}]",
    "null",
    "{a = 1}",
    "\"\"\"\n\"\"\"",
    "0xffffffffffffffffff",
    "0b2",
    "1_000_",
    "\u{feff}",
    "'",
];

/// Changes a text or a component, each time in another way.
fn mutate(original: &[u8], rng: &mut Rng) -> Vec<u8> {
    let mut bytes = original.to_vec();
    for _ in 0..rng.usize(1..=3) {
        let at = rng.usize(0..=bytes.len());
        let end = (at + 1 + rng.usize(0..40)).min(bytes.len());
        match rng.u32(0..10) {
            0 => bytes.truncate(at),
            1 => drop(bytes.drain(at..end)),
            2 => {
                let copy = bytes[at..end].to_vec();
                bytes.splice(at..at, copy);
            }
            3 => bytes.insert(at, rng.u8(..)),
            4 if at < bytes.len() => bytes[at] ^= 1 << rng.u32(0..8),
            5 => {
                let nested = rng.usize(1..3000);
                let open = *rng.choice(["[", "{", "{a=", "a.", "[["].iter()).expect("some");
                bytes.splice(at..at, open.repeat(nested).into_bytes());
            }
            _ => replace_value(&mut bytes, at, rng),
        }
    }
    bytes
}

/// Puts another value behind the next `=` or `:`.
fn replace_value(bytes: &mut Vec<u8>, at: usize, rng: &mut Rng) {
    let Some(sign) = bytes[at..].iter().position(|byte| matches!(byte, b'=' | b':')) else {
        return;
    };
    let start = at + sign + 1;
    let ends = |byte: &u8| matches!(byte, b',' | b'\n' | b'}');
    let length = bytes[start..].iter().position(ends).unwrap_or(bytes.len() - start);
    let value = *rng.choice(VALUES.iter()).expect("some");
    bytes.splice(start..start + length, value.bytes());
}

/// Changes `originals` so many times and looks at each; what is wrong with one is told with its seed.
fn each_mutant(originals: &[Vec<u8>], mutants: u64, look: impl Fn(&[u8]) -> Result<(), String>) {
    let number = |name: &str| std::env::var_os(name)?.to_str()?.parse::<u64>().ok();
    let seeds = match number("MUTATIONS_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..mutants * number("MUTATIONS").unwrap_or(1),
    };
    for seed in seeds {
        let mut rng = Rng::with_seed(seed);
        let original = rng.choice(originals.iter()).expect("there is something to change");
        let mutant = mutate(original, &mut rng);
        let looked = catch_unwind(AssertUnwindSafe(|| look(&mutant)));
        let wrong = looked.unwrap_or_else(|_| Err("it panicked".to_owned()));
        if let Err(wrong) = wrong {
            let shown = String::from_utf8_lossy(&mutant[..mutant.len().min(4000)]).into_owned();
            panic!("MUTATIONS_SEED={seed}: {wrong}\n{shown}");
        }
    }
}

/// A refusal that a person can do something with.
fn in_words(text: &str) -> Result<(), String> {
    match text {
        _ if text.trim().is_empty() => Err("it was refused without a word".to_owned()),
        _ if text.len() > 256 << 10 => Err(format!("the refusal has {} bytes", text.len())),
        _ => Ok(()),
    }
}

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn original(path: &str) -> Vec<u8> {
    let path = repository().join(path);
    std::fs::read(&path).unwrap_or_else(|why| panic!("{}: {why}", path.display()))
}
