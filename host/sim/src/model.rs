//! The simulated model itself.

use std::time::Duration;

use interlock_engine::{Forward, ModelShape, PassFailed};
use interlock_request::{Sampling, TokenId};

use crate::{Gate, PassKind, PassSeen, SimSettings};

/// A model that computes nothing, in the time it is told to take.
#[derive(Debug)]
pub struct SimModel {
    settings: SimSettings,
    gate: Option<Gate>,
    opened: usize,
    passes: u64,
}

/// What the simulated model keeps for a request: a hash of its history.
#[derive(Debug)]
pub struct History {
    request: usize,
    hash: u64,
}

impl SimModel {
    /// Ids below 256 are bytes, the next few are specials; see the sim tokenizer in `interlock-text`.
    pub const VOCABULARY: u32 = 512;
    /// The token with which the model ends by itself.
    pub const EOS: TokenId = 256;

    /// Loads, for as long as it is told to.
    pub fn load(settings: SimSettings) -> Self {
        take(settings.load);
        Self { settings, gate: None, opened: 0, passes: 0 }
    }

    /// A model whose every pass stops at `gate`.
    pub fn gated(settings: SimSettings, gate: Gate) -> Self {
        Self { gate: Some(gate), ..Self::load(settings) }
    }

    fn pass(&mut self, seen: PassSeen, time: Duration) -> Result<(), PassFailed> {
        self.passes += 1;
        if let Some(gate) = &self.gate {
            gate.pass(seen)?;
        }
        take(time);
        if self.settings.panic_at.is_some_and(|n| n.get() == self.passes) {
            panic!("the simulated model was told to panic at pass {}", self.passes);
        }
        match self.settings.fail_every {
            Some(n) if self.passes.is_multiple_of(n.get()) => Err(PassFailed(format!(
                "the simulated model was told to fail pass {}",
                self.passes
            ))),
            _ => Ok(()),
        }
    }
}

impl Forward for SimModel {
    type Sequence = History;

    fn shape(&self) -> ModelShape {
        ModelShape { context: self.settings.context, vocabulary: Self::VOCABULARY }
    }

    fn open(&mut self, _: &[TokenId], sampling: &Sampling) -> Result<History, PassFailed> {
        let request = self.opened;
        self.opened += 1;
        // Greedy ignores the seed, as it does in a real model.
        let seed = if sampling.temperature > 0.0 { sampling.seed.unwrap_or(0) } else { 0 };
        Ok(History { request, hash: mix(seed) })
    }

    fn prefill(&mut self, history: &mut History, chunk: &[TokenId]) -> Result<(), PassFailed> {
        let time = self.settings.prefill * u32::try_from(chunk.len()).unwrap_or(u32::MAX);
        self.pass(PassSeen { request: history.request, kind: PassKind::Prefill }, time)?;
        for &token in chunk {
            history.append(token);
        }
        Ok(())
    }

    fn prefill_last(
        &mut self,
        history: &mut History,
        chunk: &[TokenId],
    ) -> Result<TokenId, PassFailed> {
        self.prefill(history, chunk)?;
        Ok(history.next(self.settings.stop))
    }

    fn decode(&mut self, batch: &mut [&mut History]) -> Result<Vec<TokenId>, PassFailed> {
        let request = batch.first().map_or(0, |history| history.request);
        self.pass(PassSeen { request, kind: PassKind::Decode }, self.settings.decode)?;
        Ok(batch.iter_mut().map(|history| history.next(self.settings.stop)).collect())
    }
}

impl History {
    fn append(&mut self, token: TokenId) {
        self.hash = mix(self.hash ^ u64::from(token));
    }

    /// Letters, and a space where one would be. Appends what it returns.
    fn next(&mut self, stop: u32) -> TokenId {
        const TEXT: &[u8] = b"etaoinshrdlu cmfwyp vbgkqjxz";
        let ends = stop > 0 && (self.hash >> 32).is_multiple_of(u64::from(stop));
        let letter = usize::try_from(self.hash % TEXT.len() as u64).unwrap_or(0);
        let token = if ends { SimModel::EOS } else { TokenId::from(TEXT[letter]) };
        self.append(token);
        token
    }
}

/// SplitMix64's finalizer (Steele, Lea and Flood 2014): every bit of the input moves the output.
const fn mix(mut x: u64) -> u64 {
    x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// The device is busy. The engine thread is the device here, so sleeping is what it does.
fn take(time: Duration) {
    if !time.is_zero() {
        std::thread::sleep(time);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(prompt: &[TokenId], chunks: usize, sampling: &Sampling) -> Vec<TokenId> {
        let mut model = SimModel::load(SimSettings { stop: 0, ..SimSettings::default() });
        let mut history = model.open(prompt, sampling).unwrap();
        let mut chunks = prompt.chunks(prompt.len().div_ceil(chunks)).peekable();
        let mut tokens = vec![];
        while let Some(chunk) = chunks.next() {
            if chunks.peek().is_some() {
                model.prefill(&mut history, chunk).unwrap();
            } else {
                tokens.push(model.prefill_last(&mut history, chunk).unwrap());
            }
        }
        for _ in 0..8 {
            tokens.extend(model.decode(&mut [&mut history]).unwrap());
        }
        tokens
    }

    #[test]
    fn tokens_are_a_function_of_history_however_it_was_chunked() {
        let greedy = Sampling::greedy();
        assert_eq!(tokens(&[1, 2, 3, 4], 1, &greedy), tokens(&[1, 2, 3, 4], 2, &greedy));
        assert_ne!(tokens(&[1, 2, 3, 4], 1, &greedy), tokens(&[1, 2, 3, 5], 1, &greedy));
    }

    #[test]
    fn a_seed_matters_only_with_a_temperature() {
        let seeded =
            |temperature, seed| Sampling { temperature, seed: Some(seed), ..Sampling::greedy() };
        assert_eq!(tokens(&[1], 1, &seeded(0.0, 1)), tokens(&[1], 1, &seeded(0.0, 2)));
        assert_ne!(tokens(&[1], 1, &seeded(1.0, 1)), tokens(&[1], 1, &seeded(1.0, 2)));
    }

    #[test]
    fn it_fails_when_it_was_told_to() {
        let settings = "fail-every=2".parse().unwrap();
        let mut model = SimModel::load(settings);
        let mut history = model.open(&[1], &Sampling::greedy()).unwrap();
        assert!(model.prefill_last(&mut history, &[1]).is_ok());
        assert!(model.decode(&mut [&mut history]).is_err());
        assert!(model.decode(&mut [&mut history]).is_ok());
    }
}
