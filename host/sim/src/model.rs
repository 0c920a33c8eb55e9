//! The simulated model.

use std::fmt;
use std::num::NonZeroU64;

use interlock_engine::{Caches, Forward, ModelShape, Opening, PageId, PassFailed, Row};
use interlock_request::{Drawn, TokenId};

use crate::device::{Device, RowKind, RowSeen, Sleeper, take};
use crate::logprobs::logprobs;
use crate::{Gate, SimSettings};

/// A model that computes nothing, and takes the time that its settings say.
///
/// Its cache is real: each position holds a hash of all tokens up to it, and the next token is a function
/// of the hash at the position before. A page that was given to two requests, shared too early or not
/// written leads to other tokens, as it would in a real model.
pub struct SimModel<D = Box<dyn Device>> {
    settings: SimSettings,
    device: D,
    pages: Vec<u64>,
    opened: usize,
    passes: u64,
}

/// What the simulated model keeps for a request beside its pages.
#[derive(Debug)]
pub struct SimSequence {
    request: usize,
    /// Changes which tokens are drawn. The cache does not depend on it.
    seed: u64,
    drawn: u32,
    tokens_min: u32,
    /// Tokens that are not drawn before `tokens_min` tokens were.
    stop_tokens: Vec<TokenId>,
    logprobs: Option<u32>,
}

impl<D> fmt::Debug for SimModel<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimModel").field("settings", &self.settings).finish_non_exhaustive()
    }
}

impl SimModel {
    /// Ids below 256 are bytes, the next few are specials; see the sim tokenizer in `interlock-text`.
    pub const VOCABULARY: u32 = 512;
    /// The token with which the model ends by itself.
    pub const EOS: TokenId = 256;

    /// Loads a model, which takes the time that the settings say.
    pub fn load(settings: SimSettings) -> Self {
        Self::on(settings, Box::new(Sleeper))
    }

    /// A model whose every pass stops at `gate`.
    pub fn gated(settings: SimSettings, gate: Gate) -> Self {
        Self::on(settings, Box::new(gate))
    }

    /// A model on this device.
    pub fn on(settings: SimSettings, device: Box<dyn Device>) -> Self {
        Self::with(settings, device)
    }
}

impl<D: Device> SimModel<D> {
    /// A model with a device of one kind, which may borrow.
    pub fn with(settings: SimSettings, device: D) -> Self {
        take(settings.load);
        let positions = pages(&settings) as usize * settings.page.get() as usize;
        Self { settings, device, pages: vec![0; positions], opened: 0, passes: 0 }
    }

    fn position(&self, pages: &[PageId], position: u32) -> usize {
        let page_tokens = self.settings.page.get();
        let PageId(page) = pages[(position / page_tokens) as usize];
        page as usize * page_tokens as usize + (position % page_tokens) as usize
    }

    fn run(&mut self, rows: &[Row<'_, SimSequence>]) -> Result<(), PassFailed> {
        self.passes += 1;
        let seen: Vec<_> = rows.iter().map(seen).collect();
        let prompts: usize =
            rows.iter().zip(&seen).filter(|(_, s)| s.kind == RowKind::Prefill).map(tokens).sum();
        let decoding = seen.iter().filter(|seen| seen.kind == RowKind::Decode).count();
        self.device.pass(&seen, self.settings.time(decoding, prompts))?;
        if self.settings.panic_at.is_some_and(|n| n.get() == self.passes) {
            panic!("the simulated model was told to panic at pass {}", self.passes);
        }
        let at = |n: Option<NonZeroU64>| n.is_some_and(|n| n.get() == self.passes);
        if at(self.settings.device_lost_at) {
            let why = format!("the simulated device was told to be lost at pass {}", self.passes);
            return Err(PassFailed::new(why).beyond_repair());
        }
        self.fits(rows)?;
        match self.settings.fail_every {
            Some(n) if self.passes.is_multiple_of(n.get()) => Err(PassFailed::new(format!(
                "the simulated model was told to fail pass {}",
                self.passes
            ))),
            _ => Ok(()),
        }
    }

    /// Fails where the simulated memory is too small for these rows.
    fn fits(&self, rows: &[Row<'_, SimSequence>]) -> Result<(), PassFailed> {
        let SimSettings { fail_from, fail_until, .. } = self.settings;
        if self.passes < fail_from || fail_until.is_some_and(|until| self.passes >= until) {
            return Ok(());
        }
        let tokens = rows.iter().map(|row| row.tokens.len()).sum();
        let over = |count: usize, most: Option<u32>, what| match most {
            Some(most) if u32::try_from(count).is_ok_and(|count| count <= most) => Ok(()),
            None => Ok(()),
            Some(most) => Err(PassFailed::new(format!(
                "the simulated device has memory for {most} {what}, the pass has {count}"
            ))
            .too_large()),
        };
        over(rows.len(), self.settings.fail_above_rows, "rows")?;
        over(tokens, self.settings.fail_above_tokens, "tokens")
    }

    /// Overwrites the positions that a failed pass was to write: it may have left anything there.
    fn spoil(&mut self, rows: &[Row<'_, SimSequence>], failed: &PassFailed) {
        const ANYTHING: u64 = 0xdead;
        if failed.caches != Caches::Kept {
            self.pages.fill(ANYTHING);
        }
        for row in rows {
            for (position, _) in (row.from..).zip(row.tokens) {
                let at = self.position(row.pages, position);
                self.pages[at] = ANYTHING;
            }
        }
    }
}

fn pages(settings: &SimSettings) -> u32 {
    settings.cache.div_ceil(settings.page.get())
}

fn seen(row: &Row<'_, SimSequence>) -> RowSeen {
    let next = row.sequence.drawn > 0 && row.draw && row.tokens.len() == 1;
    let kind = if next { RowKind::Decode } else { RowKind::Prefill };
    RowSeen { request: row.sequence.request, kind }
}

fn tokens((row, _): (&Row<'_, SimSequence>, &RowSeen)) -> usize {
    row.tokens.len()
}

impl<D: Device> Forward for SimModel<D> {
    type Sequence = SimSequence;

    fn shape(&self) -> ModelShape {
        let page_tokens = self.settings.page.get();
        let pages = pages(&self.settings);
        ModelShape {
            context: self.settings.context.min(pages.saturating_mul(page_tokens)),
            vocabulary: SimModel::VOCABULARY,
            page_tokens,
            pages,
        }
    }

    fn open(&mut self, opening: &Opening<'_>) -> Result<SimSequence, PassFailed> {
        let request = self.opened;
        self.opened += 1;
        let generation = opening.generation;
        let sampling = &generation.sampling;
        // Greedy ignores the seed, as it does in a real model.
        let seed = if sampling.temperature > 0.0 { sampling.seed.unwrap_or(0) } else { 0 };
        Ok(SimSequence {
            request,
            seed,
            drawn: u32::try_from(opening.generated.len()).unwrap_or(u32::MAX),
            tokens_min: generation.tokens_min,
            stop_tokens: generation.stop_tokens.clone(),
            logprobs: generation.logprobs,
        })
    }

    fn pass(
        &mut self,
        rows: &mut [Row<'_, SimSequence>],
    ) -> Result<Vec<Option<Drawn>>, PassFailed> {
        if let Err(mut failed) = self.run(rows) {
            if self.settings.fail_loses_caches && failed.caches == Caches::Kept {
                failed = failed.losing_caches();
            }
            self.spoil(rows, &failed);
            return Err(failed);
        }
        let mut drawn = Vec::with_capacity(rows.len());
        for row in rows {
            let mut hash = match row.from.checked_sub(1) {
                None => mix(self.settings.salt),
                Some(before) => self.pages[self.position(row.pages, before)],
            };
            for (position, token) in (row.from..).zip(row.tokens) {
                hash = mix(hash ^ u64::from(*token));
                let at = self.position(row.pages, position);
                self.pages[at] = hash;
            }
            drawn.push(row.draw.then(|| row.sequence.draw(hash, self.settings.stop)));
        }
        Ok(drawn)
    }
}

impl SimSequence {
    /// Draws a letter or a space, or the end of the text.
    fn draw(&mut self, hash: u64, stop: u32) -> Drawn {
        const TEXT: &[u8] = b"etaoinshrdlu cmfwyp vbgkqjxz";
        let hash = if self.seed == 0 { hash } else { mix(hash ^ mix(self.seed)) };
        let may_end = self.drawn >= self.tokens_min;
        let ends = may_end && stop > 0 && (hash >> 32).is_multiple_of(u64::from(stop));
        let letter = usize::try_from(hash % TEXT.len() as u64).unwrap_or(0);
        let letters = TEXT[letter..].iter().chain(TEXT).map(|&letter| TokenId::from(letter));
        let may_be = |token: &TokenId| may_end || !self.stop_tokens.contains(token);
        let letter = letters.clone().find(may_be).or(letters.clone().next()).unwrap_or(0);
        let token = if ends { SimModel::EOS } else { letter };
        self.drawn += 1;
        let told = self.logprobs.map(|count| Box::new(logprobs(token, count, hash)));
        Drawn { token, logprobs: told }
    }
}

/// SplitMix64's finalizer (Steele, Lea and Flood 2014): every bit of the input moves the output.
const fn mix(mut x: u64) -> u64 {
    x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use interlock_engine::PassFault;
    use interlock_request::{Generation, Priority, Sampling};

    use super::*;

    const PAGES: [PageId; 2] = [PageId(5), PageId(2)];

    fn generation(sampling: Sampling) -> Generation {
        Generation {
            sampling,
            tokens_max: 100,
            tokens_min: 0,
            stop_tokens: vec![SimModel::EOS],
            logprobs: None,
            priority: Priority::Standard,
        }
    }

    fn open(model: &mut SimModel, generation: &Generation) -> SimSequence {
        let opening = Opening { prompt: &[], generated: &[], generation, fresh_seed: 7 };
        model.open(&opening).unwrap()
    }

    fn pass(
        model: &mut SimModel,
        sequence: &mut SimSequence,
        from: u32,
        tokens: &[TokenId],
        draw: bool,
    ) -> Result<Option<TokenId>, PassFailed> {
        let mut rows = [Row { sequence, tokens, from, pages: &PAGES, draw }];
        Ok(model.pass(&mut rows)?.remove(0).map(|drawn| drawn.token))
    }

    fn tokens(prompt: &[TokenId], chunk: usize, sampling: Sampling) -> Vec<TokenId> {
        let mut model = SimModel::load(SimSettings { stop: 0, ..SimSettings::default() });
        let mut sequence = open(&mut model, &generation(sampling));
        let mut all = prompt.to_vec();
        let mut from = 0;
        while all.len() < prompt.len() + 8 {
            let until = (from + chunk).min(all.len());
            let (draw, chunk) = (until == all.len(), &all[from..until]);
            let drawn = pass(&mut model, &mut sequence, from as u32, chunk, draw).unwrap();
            from = until;
            all.extend(drawn);
        }
        all.split_off(prompt.len())
    }

    #[test]
    fn tokens_are_a_function_of_history_however_it_was_chunked() {
        let greedy = Sampling::greedy;
        assert_eq!(tokens(&[1, 2, 3, 4], 4, greedy()), tokens(&[1, 2, 3, 4], 2, greedy()));
        assert_ne!(tokens(&[1, 2, 3, 4], 4, greedy()), tokens(&[1, 2, 3, 5], 4, greedy()));
    }

    #[test]
    fn a_seed_matters_only_with_a_temperature() {
        let seeded =
            |temperature, seed| Sampling { temperature, seed: Some(seed), ..Sampling::greedy() };
        assert_eq!(tokens(&[1], 1, seeded(0.0, 1)), tokens(&[1], 1, seeded(0.0, 2)));
        assert_ne!(tokens(&[1], 1, seeded(1.0, 1)), tokens(&[1], 1, seeded(1.0, 2)));
    }

    #[test]
    fn it_fails_when_it_was_told_to_and_the_same_pass_can_be_tried_again() {
        let once = || {
            let mut model = SimModel::load("fail-every=2,stop=0".parse().unwrap());
            let sequence = open(&mut model, &generation(Sampling::greedy()));
            (model, sequence)
        };
        let (mut model, mut sequence) = once();
        let first = pass(&mut model, &mut sequence, 0, &[1], true).unwrap().unwrap();
        assert!(pass(&mut model, &mut sequence, 1, &[first], true).is_err());
        let second = pass(&mut model, &mut sequence, 1, &[first], true).unwrap();
        assert_eq!(tokens(&[1], 1, Sampling::greedy())[..2], [first, second.unwrap()]);
    }

    #[test]
    fn it_has_memory_for_as_many_rows_and_tokens_as_it_was_told_and_for_as_long() {
        let settings = "fail-above-tokens=2,fail-from=2,fail-until=4,fail-loses=caches,stop=0";
        let mut model = SimModel::load(settings.parse().unwrap());
        let mut sequence = open(&mut model, &generation(Sampling::greedy()));
        let mut three = || pass(&mut model, &mut sequence, 0, &[1, 2, 3], false);
        assert!(three().is_ok(), "before");
        let failed = three().unwrap_err();
        assert_eq!((failed.kind, failed.caches), (PassFault::TooLarge, Caches::Emptied));
        assert!(failed.why.ends_with("memory for 2 tokens, the pass has 3"), "{failed}");
        assert!(three().is_err());
        assert!(three().is_ok(), "after");
        let mut model = SimModel::load("fail-above-rows=0,device-lost-at=2".parse().unwrap());
        let mut sequence = open(&mut model, &generation(Sampling::greedy()));
        let mut one = || pass(&mut model, &mut sequence, 0, &[1], false).unwrap_err();
        let first = one();
        assert_eq!((first.kind, first.caches), (PassFault::TooLarge, Caches::Kept));
        assert_eq!(one().caches, Caches::Gone);
    }

    #[test]
    fn what_lies_in_its_pages_is_what_it_goes_on_from() {
        let mut model = SimModel::load(SimSettings { stop: 0, ..SimSettings::default() });
        let mut sequence = open(&mut model, &generation(Sampling::greedy()));
        let before: Vec<_> =
            (0..3).map(|n| pass(&mut model, &mut sequence, 1, &[n], true)).collect();
        pass(&mut model, &mut sequence, 0, &[9], false).unwrap();
        let after: Vec<_> =
            (0..3).map(|n| pass(&mut model, &mut sequence, 1, &[n], true)).collect();
        assert_ne!(before, after, "another token at position 0");
    }

    /// A prefix that one request computed is another's to go on from, whatever its seed; the
    /// simulation's seed 13 found that it was not, and drew other tokens than alone.
    #[test]
    fn what_lies_in_its_pages_knows_no_seed() {
        let drawn_behind = |seed| {
            let mut model = SimModel::load(SimSettings { stop: 0, ..SimSettings::default() });
            let sampled = |seed| Sampling { temperature: 1.0, seed, ..Sampling::greedy() };
            let mut first = open(&mut model, &generation(sampled(Some(seed))));
            pass(&mut model, &mut first, 0, &[1, 2, 3], false).unwrap();
            let mut second = open(&mut model, &generation(sampled(Some(9))));
            let next = |n| pass(&mut model, &mut second, 3, &[n], true).unwrap();
            (0..8).map(next).collect::<Vec<_>>()
        };
        assert_eq!(drawn_behind(1), drawn_behind(2));
    }

    #[test]
    fn it_does_not_end_before_it_may() {
        let mut model = SimModel::load(SimSettings { stop: 1, ..SimSettings::default() });
        let mut sequence =
            open(&mut model, &Generation { tokens_min: 2, ..generation(Sampling::greedy()) });
        let drawn: Vec<_> =
            (0..3).map(|n| pass(&mut model, &mut sequence, n, &[1], true).unwrap()).collect();
        assert_eq!(drawn[2], Some(SimModel::EOS));
        assert!(!drawn[..2].contains(&Some(SimModel::EOS)));
    }
}
