//! How much prompt a pass may compute, so that streams beside it keep their pace and cancelling
//! does not wait for long.

use std::num::NonZeroU32;
use std::time::Duration;

use interlock_scheduler::Budget;

use crate::EngineConfig;

/// What passes have cost so far, and what follows for the next.
///
/// A pass costs what its decoding rows cost, and so much more for each token of a prompt. Both are
/// measured, since they differ by a factor of a thousand between machines, and by ten between a
/// short and a long context on one. Each new pass counts for an eighth of the estimate: it follows
/// a change within some ten passes and no single slow pass moves it much. A short piece of prompt
/// counts for less: what its pass took is mostly what any pass takes.
///
/// While costs hold, a pass beside streams takes at most `decode_stretch_max` times what one takes
/// that only decodes, or that and [`Pace::CHUNK_MIN`] tokens of a prompt, whichever is more. Two
/// things come on top: a row for each prompt that lacks only its last token, and, after a pass that
/// failed through nobody's known fault, the passes in which each suspect runs alone.
#[derive(Debug)]
pub(crate) struct Pace {
    chunk_max: NonZeroU32,
    stretch: Stretch,
    /// Seconds of a pass that only decodes.
    decode: Option<f64>,
    /// Seconds that a token of a prompt adds.
    prompt_token: Option<f64>,
}

#[derive(Debug, Clone, Copy)]
enum Stretch {
    /// Nobody's stream is there to be held up.
    Any,
    /// A pass may take this many times as long as one that only decodes.
    AtMost(f64),
}

impl Pace {
    const NEW: f64 = 1.0 / 8.0;

    /// A prompt advances by this many tokens in a pass, whatever that costs the streams: or it
    /// would wait for them for ever.
    const CHUNK_MIN: f64 = 8.0;

    /// A prompt's pass that nobody's stream waits for may take this long: cancelling waits for it.
    const ALONE_SECONDS: f64 = 1.0;

    /// What a prompt alone gets at least, and before it is known what it costs: enough for products
    /// to be efficient on any machine.
    const ALONE_MIN: f64 = 64.0;
    const ALONE_FIRST: f64 = 256.0;

    /// A piece of prompt of this many tokens tells what a token costs.
    const TELLING: f64 = 64.0;

    /// Of `simple` mode: one request at a time.
    pub(crate) fn alone(config: &EngineConfig) -> Self {
        Self {
            chunk_max: config.prefill_chunk,
            stretch: Stretch::Any,
            decode: None,
            prompt_token: None,
        }
    }

    pub(crate) fn shared(config: &EngineConfig) -> Self {
        let stretch = Stretch::AtMost(f64::from(config.decode_stretch_max.get()));
        Self { stretch, ..Self::alone(config) }
    }

    /// A pass of `decoding` rows and `prompt_tokens` tokens has taken this long.
    pub(crate) fn passed(&mut self, decoding: usize, prompt_tokens: u32, took: Duration) {
        let took = took.as_secs_f64();
        let follow = |estimate: &mut Option<f64>, seen: f64, telling: f64| {
            let estimate = estimate.get_or_insert(seen);
            *estimate += Self::NEW * telling * (seen - *estimate);
        };
        if prompt_tokens == 0 {
            follow(&mut self.decode, took, 1.0);
            return;
        }
        let tokens = f64::from(prompt_tokens);
        let decode = match (decoding, self.decode, self.prompt_token) {
            (0, _, _) => 0.0,
            (_, Some(decode), _) => decode,
            // No pass has only decoded so far. There need not be one for a long time, so this one
            // must do: it took that much longer than its prompt would have alone.
            (_, None, Some(token)) => {
                return follow(&mut self.decode, (took - token * tokens).max(0.0), 1.0);
            }
            (_, None, None) => 0.0,
        };
        let token = (took - decode).max(0.0) / tokens;
        follow(&mut self.prompt_token, token, (tokens / Self::TELLING).min(1.0));
    }

    pub(crate) fn budget(&self) -> Budget {
        let tokens = match (self.stretch, self.decode, self.prompt_token) {
            (Stretch::Any, _, _) => f64::INFINITY,
            (Stretch::AtMost(stretch), Some(decode), Some(token)) if token > 0.0 => {
                (stretch - 1.0) * decode / token
            }
            (Stretch::AtMost(_), Some(_), Some(_)) => f64::INFINITY,
            // Too little is known yet: the least, and soon more is.
            (Stretch::AtMost(_), _, _) => Self::CHUNK_MIN,
        };
        let alone = match self.prompt_token {
            Some(token) if token > 0.0 => (Self::ALONE_SECONDS / token).max(Self::ALONE_MIN),
            Some(_) => f64::INFINITY,
            None => Self::ALONE_FIRST,
        };
        // A float that is too large for the type becomes its largest value.
        let chunk = |tokens: f64| {
            NonZeroU32::new(tokens as u32).map_or(self.chunk_max, |n| n.min(self.chunk_max))
        };
        Budget { alone: chunk(alone), beside: chunk(tokens.max(Self::CHUNK_MIN).min(alone)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn shared() -> Pace {
        let decode_stretch_max = NonZeroU32::new(3).expect("not 0");
        Pace::shared(&EngineConfig { decode_stretch_max, ..EngineConfig::default() })
    }

    #[test]
    fn a_prompt_beside_streams_gets_what_keeps_the_pass_within_its_stretch() {
        let mut pace = shared();
        pace.passed(0, 100, 100 * MS);
        pace.passed(8, 0, 20 * MS);
        // (3 - 1) * 20 ms, at 1 ms a token.
        assert_eq!(pace.budget().beside.get(), 40);
    }

    #[test]
    fn it_follows_what_passes_cost() {
        let mut pace = shared();
        pace.passed(0, 100, 100 * MS);
        pace.passed(8, 0, 20 * MS);
        for _ in 0..100 {
            pace.passed(8, 0, 40 * MS);
            pace.passed(8, 50, 140 * MS); // 2 ms a token, beside decoding
        }
        let tokens = pace.budget().beside.get();
        assert!((39..=40).contains(&tokens), "(3 - 1) * 40 ms, at 2 ms a token: {tokens}");
    }

    #[test]
    fn a_prompt_always_advances_and_never_by_more_than_a_chunk() {
        let mut pace = shared();
        pace.passed(0, 10, 1000 * MS);
        pace.passed(1, 0, MS);
        assert_eq!(pace.budget().beside.get(), 8);
        let mut pace = shared();
        pace.passed(0, 1000, MS);
        pace.passed(1, 0, 1000 * MS);
        assert_eq!(pace.budget().beside.get(), 2048);
    }

    /// Whoever prefills without a pause gives no pass that only decodes; streams must keep their
    /// pace from the first such pass on.
    #[test]
    fn what_decoding_costs_shows_beside_prompts_too() {
        let mut pace = shared();
        pace.passed(0, 100, 100 * MS);
        assert_eq!(pace.budget().beside.get(), 8, "the first pass beside a stream is a short one");
        pace.passed(4, 8, 28 * MS);
        assert_eq!(pace.budget().beside.get(), 40, "(3 - 1) * 20 ms, at 1 ms a token");
    }

    #[test]
    fn a_clock_that_stands_still_is_survived() {
        let mut pace = shared();
        pace.passed(1, 0, Duration::ZERO);
        pace.passed(1, 8, Duration::ZERO);
        assert_eq!(pace.budget().beside.get(), 2048);
    }

    #[test]
    fn a_prompt_alone_gets_what_takes_a_second() {
        let mut pace = shared();
        assert_eq!(pace.budget().alone.get(), 256, "before anything is known");
        pace.passed(0, 256, 512 * MS);
        assert_eq!(pace.budget().alone.get(), 500, "at 2 ms a token");
        let mut slow = shared();
        slow.passed(0, 100, 10_000 * MS);
        assert_eq!(slow.budget().alone.get(), 64, "no less, however slow");
    }

    #[test]
    fn a_short_piece_of_prompt_tells_little_of_what_a_token_costs() {
        let mut pace = shared();
        pace.passed(0, 256, 256 * MS);
        for _ in 0..8 {
            pace.passed(0, 1, 20 * MS); // found in the prefix cache but for its last token
        }
        assert!(pace.budget().alone.get() > 700, "{:?}", pace.budget());
    }
}
