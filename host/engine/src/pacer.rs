//! How many tokens of prompts a forward pass may compute, so that streams beside it keep their pace
//! and cancelling does not wait for long.
//!
//! Two questions, two answers:
//!
//! - **What does a pass cost?** A fixed part and a part for each token of a prompt, learnt from passes
//!   that differ ([`CostModel`]): on a GPU nearly all of it is fixed, on a CPU hardly anything. Prompts
//!   alone and prompts beside streams are learnt apart. So is the cost of a pass that only decodes.
//! - **What may it cost?** Alone a prompt may take [`PrefillPacer::ALONE_SECONDS`], since cancelling
//!   waits for it. Beside streams it takes from their [`StreamCredit`]: for each pass that a stream
//!   waits for, the stream may be held up by `decode_slowdown_max - 1` times as long, now or later. What
//!   was not used is saved, up to `decode_pause_max`, so the prompt of a new request goes in one piece.
//!   What was overdrawn is paid back before the next prompt, so a flood of new requests slows no stream
//!   beyond its maximum.
//!
//! # Invariants
//!
//! - Over its life a stream is held up by no more than `decode_slowdown_max - 1` times what its passes
//!   take, and once `decode_pause_max` or one pass's share, whichever is more; and, where that is still
//!   less, by one piece as below. On top come passes before it is known what decoding takes, passes
//!   that fail, and those in which a row runs isolated.
//! - A prompt is not cut into pieces that cost less for their tokens than for being a pass. A piece has
//!   at least [`PrefillPacer::CHUNK_MIN`] tokens, and as many as cost what is fixed; or it is the rest of
//!   the prompt, or all that `prefill_chunk` and the device's memory allow.
//! - The last token of a prompt is no prompt here: it costs what a stream's next token does.
//!
//! # Not here
//!
//! No clock: the caller says how long a pass took. Which request is next: the scheduler decides.

mod cost;

use std::num::NonZeroU32;
use std::time::Duration;

use interlock_scheduler::PrefillBudget;

use self::cost::{CostModel, OUTLIER, PassCost, SURPRISE};
use crate::EngineConfig;

/// Learns what the passes of one model cost, and says how much the next may compute.
///
/// Each new pass counts for an eighth of an estimate, so an estimate follows a change within some ten
/// passes. A pass that took far longer than expected counts as one that took [`OUTLIER`] times as long.
#[derive(Debug)]
pub(crate) struct PrefillPacer {
    /// Most tokens of prompts in one pass.
    chunk_max: NonZeroU32,
    /// Seconds that streams may be held up for each second of their own passes.
    share: f64,
    /// Seconds that saved time may hold streams up at once.
    pause_max: f64,
    /// Seconds of a pass that only decodes.
    decode: Option<f64>,
    /// Passes with streams and prompts since one that only decoded.
    mixed: u32,
    /// The cost of passes over prompts alone.
    alone: CostModel,
    /// The cost that prompts add to a pass that decodes too.
    beside: CostModel,
}

/// How the time of one pass divides between the streams that waited for it and prompts.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(crate) struct PassTimes {
    /// Seconds that streams had for themselves; `None` if the pass had no streams.
    pub(crate) decode: Option<f64>,
    /// Seconds for prompts.
    pub(crate) prefill: f64,
}

/// Seconds that streams may yet be held up by the prompts beside them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct StreamCredit {
    /// Below zero after prompts took more than the streams' share.
    saved: f64,
}

impl PrefillPacer {
    /// A pass over prompts that no stream waits for may take this long: cancelling waits for it.
    const ALONE_SECONDS: f64 = 1.0;

    /// The least piece of a prompt, in tokens, whatever it costs. Products of fewer rows are no cheaper.
    const CHUNK_MIN: f64 = 8.0;

    /// Before it is known what a token costs. 16 take a second where one takes 60 ms, which is a
    /// large model on a slow CPU; a fast machine finds out in one pass.
    const CHUNK_FIRST: f64 = 16.0;

    /// At a `decode_slowdown_max` of 1 streams are still held up by this share of their time, or a prompt
    /// would wait until there are no streams.
    const SHARE_MIN: f64 = 0.25;

    /// How many times beyond what was measured an estimate is trusted. The first passes of all are over
    /// prompts alone, and their time has other causes too.
    const EXTRAPOLATE_ALONE: f64 = 2.0;
    const EXTRAPOLATE_BESIDE: f64 = 4.0;

    /// After this many passes with prompts one only decodes, or a flood of prompts would hide what
    /// decoding takes.
    const MIXED_MAX: u32 = 16;

    /// Seconds. No device computes a pass in less, and a pass that took no time would earn no credit.
    const DECODE_MIN: f64 = 0.0001;

    pub(crate) fn new(config: &EngineConfig) -> Self {
        let slowdown = f64::from(config.decode_slowdown_max.get());
        Self {
            chunk_max: config.prefill_chunk,
            share: (slowdown - 1.0).max(Self::SHARE_MIN),
            pause_max: config.decode_pause_max.as_secs_f64(),
            decode: None,
            mixed: 0,
            alone: CostModel::default(),
            beside: CostModel::default(),
        }
    }

    /// Seconds of a pass that only decodes, as far as is known.
    pub(crate) fn decode(&self) -> Option<f64> {
        self.decode
    }

    /// Learns that a pass of `decoding` rows of a single token and `prompt_tokens` further tokens took
    /// this long.
    pub(crate) fn passed(
        &mut self,
        decoding: usize,
        prompt_tokens: u32,
        took: Duration,
    ) -> PassTimes {
        let took = took.as_secs_f64();
        if prompt_tokens == 0 {
            self.mixed = 0;
            self.decoded(took);
            return PassTimes { decode: self.decode, prefill: 0.0 };
        }
        let tokens = f64::from(prompt_tokens);
        if decoding == 0 {
            let expected = self.alone.cost().map(|cost| cost.of(tokens));
            return PassTimes { decode: None, prefill: self.alone.observe(tokens, took, expected) };
        }
        // A stream's first pass may have a prompt beside it.
        let Some(decode) = self.decode else { return PassTimes::default() };
        self.mixed += 1;
        if took < decode {
            // No prompt makes a pass faster.
            self.decoded(took);
        }
        let expected = self.beside().map(|cost| cost.of(tokens));
        let prefill = self.beside.observe(tokens, (took - decode).max(0.0), expected);
        PassTimes { decode: Some(decode), prefill }
    }

    /// Learns that the model has no streams, so prompts hide no time of theirs.
    pub(crate) fn no_streams(&mut self) {
        self.mixed = 0;
    }

    /// What prompts cost beside streams; until that was measured, what they cost alone.
    fn beside(&self) -> Option<PassCost> {
        let cost = self.beside.cost().or_else(|| self.alone.cost())?;
        // How many tokens can be computed at a time was measured in either case.
        Some(PassCost { most: cost.most.max(self.alone.most), ..cost })
    }

    fn decoded(&mut self, took: f64) {
        let decode = self.decode.get_or_insert(took);
        let took = took.min(OUTLIER * decode.max(SURPRISE));
        *decode += CostModel::NEW_WEIGHT * (took - *decode);
    }

    /// How many tokens of prompts the next pass may compute. `round` is the seconds of one decoding pass
    /// of each model that has streams; `None` if that is not known.
    pub(crate) fn budget(&self, credit: StreamCredit, round: Option<f64>) -> PrefillBudget {
        let alone = match self.alone.cost().or_else(|| self.beside.cost()) {
            None => Self::CHUNK_FIRST,
            Some(cost) => cost
                .tokens(Self::ALONE_SECONDS, Self::EXTRAPOLATE_ALONE)
                .max(Self::piece_min(&cost)),
        };
        let (beside, piece) = match (self.beside(), round) {
            (Some(cost), Some(round)) => {
                let piece = Self::piece_min(&cost);
                (self.beside_streams(credit, &cost, piece, self.share_of(round)), piece)
            }
            // Too little is known yet: little, and soon more is.
            (None, Some(round)) if credit.saved + self.share_of(round) > 0.0 => {
                (Self::CHUNK_FIRST, Self::CHUNK_MIN)
            }
            // The next pass will tell what one takes that only decodes.
            (_, _) => (0.0, Self::CHUNK_MIN),
        };
        let beside = if self.mixed < Self::MIXED_MAX { beside } else { 0.0 };
        // A float that is too large for the type becomes its largest value.
        let chunk = |tokens: f64| (tokens as u32).min(self.chunk_max.get());
        let least = |tokens: f64| NonZeroU32::new(chunk(tokens)).unwrap_or(NonZeroU32::MIN);
        PrefillBudget {
            alone: least(alone),
            beside: chunk(beside),
            piece_min: least(piece),
            others_streaming: false,
        }
    }

    /// Tokens of prompts that a pass may compute beside streams; 0 while the streams have no credit left.
    fn beside_streams(&self, credit: StreamCredit, cost: &PassCost, piece: f64, share: f64) -> f64 {
        /// Allows for rounding, and for a share that has fallen since the credit was saved.
        const ROUNDING: f64 = 1e-9;
        const FALLEN: f64 = 0.99;
        let most = share.max(self.pause_max);
        let may = (credit.saved + share).min(most) + ROUNDING;
        let least = cost.of(piece);
        // The least piece may be more than streams can ever save. It is then due when they have saved
        // all that they can.
        if may < least.min(most * FALLEN) {
            return 0.0;
        }
        cost.tokens(may, Self::EXTRAPOLATE_BESIDE).max(piece)
    }

    /// The least piece, in tokens: it costs as much for its tokens as for being a pass.
    fn piece_min(cost: &PassCost) -> f64 {
        cost.tokens(2.0 * cost.fixed, Self::EXTRAPOLATE_ALONE).max(Self::CHUNK_MIN)
    }

    /// The credit after a pass. `round` is as for [`PrefillPacer::budget`].
    pub(crate) fn settle(
        &self,
        credit: StreamCredit,
        times: PassTimes,
        round: Option<f64>,
    ) -> StreamCredit {
        let share = round.map_or(0.0, |round| self.share_of(round));
        let earned = times.decode.map_or(0.0, |decoding| self.share_of(decoding));
        let saved = credit.saved + earned - times.prefill;
        StreamCredit { saved: saved.min((self.pause_max - share).max(0.0)) }
    }

    fn share_of(&self, decoding: f64) -> f64 {
        self.share * decoding.max(Self::DECODE_MIN)
    }

    /// The credit of streams that have just begun.
    pub(crate) fn fresh(&self) -> StreamCredit {
        StreamCredit { saved: self.pause_max }
    }
}

#[cfg(test)]
mod tests;
