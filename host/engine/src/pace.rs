//! How much prompt a pass may compute, so that streams beside it keep their pace and cancelling
//! does not wait for long.
//!
//! Two questions, two answers:
//!
//! - **What does a pass cost?** A fixed part and a part for each token of a prompt, learnt from
//!   passes that differ ([`Line`]): on a GPU nearly all of it is fixed, on a CPU hardly anything.
//!   Prompts alone and prompts beside streams are learnt apart. So is what a pass costs that only
//!   decodes.
//! - **What may it cost?** Alone a prompt may take [`Pace::ALONE_SECONDS`], since cancelling waits
//!   for it. Beside streams it takes from an [`Account`]: for each pass that a stream waits for, it
//!   may be held up by `decode_stretch_max - 1` times as long, now or later. What was not used is
//!   saved, up to `decode_pause_max`, so a newcomer's prompt goes in one piece; and what was
//!   overdrawn is paid back before the next prompt, so a flood of newcomers slows no stream beyond
//!   its stretch.
//!
//! # Invariants
//!
//! - Over its life a stream is held up by no more than `decode_stretch_max - 1` times what its
//!   passes take, and once `decode_pause_max` or one pass's share, whichever is more; and, where
//!   that is still less, by one piece as below. On top come passes before it is known what decoding
//!   takes, passes that fail, and those in which a suspect runs alone.
//! - A prompt is not cut into pieces that cost less for their tokens than for being a pass: a piece
//!   has at least [`Pace::CHUNK_MIN`] tokens, and as many as cost what is fixed; or it is the rest,
//!   or all that `prefill_chunk` and the device's memory allow.
//! - The last token of a prompt is no prompt here: it costs what a stream's next one does.
//!
//! # Not here
//!
//! Time: it is told how long a pass took. Whose turn it is: the scheduler's.

use std::num::NonZeroU32;
use std::time::Duration;

use interlock_scheduler::PrefillBudget;

use crate::EngineConfig;
use crate::company::Member;

/// What passes of one model have cost so far, and what follows for the next.
///
/// Each new pass counts for an eighth of an estimate: it follows a change within some ten passes,
/// and a pass that took far longer than expected counts as one that took [`OUTLIER`] times as long.
#[derive(Debug)]
pub(crate) struct Pace {
    chunk_max: NonZeroU32,
    share: f64,
    pause_max: f64,
    /// Seconds of a pass that only decodes.
    decode: Option<f64>,
    /// Passes with streams since one that only decoded.
    mixed: u32,
    /// Passes over prompts alone.
    alone: Line,
    /// What prompts add to a pass that decodes too.
    beside: Line,
}

/// What a pass means for those that waited for it.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(crate) struct Lent {
    /// Seconds that streams had for themselves, if any were in it.
    pub(crate) decoding: Option<f64>,
    /// Seconds for prompts.
    pub(crate) prompts: f64,
}

/// How streams stand with the prompts beside them, in seconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Account {
    /// Below zero, streams have lent more than their share.
    saved: f64,
}

/// A pass that takes more than this many times what was expected is an accident, or the first of a
/// new kind: those that follow will tell.
const OUTLIER: f64 = 4.0;

/// Expecting nothing, be surprised by no more than this.
const SURPRISE: f64 = 0.001;

impl Pace {
    /// A prompt's pass that nobody's stream waits for may take this long: cancelling waits for it.
    const ALONE_SECONDS: f64 = 1.0;

    /// The least piece of a prompt, whatever it costs: one must be, and products of fewer rows are
    /// no cheaper.
    const CHUNK_MIN: f64 = 8.0;

    /// Before it is known what a token costs. 16 take a second where one takes 60 ms, which is a
    /// large model on a slow CPU; a fast machine finds out in one pass.
    const CHUNK_FIRST: f64 = 16.0;

    /// Streams that are not to be stretched at all lend this share of their time nevertheless, or a
    /// prompt would wait until there are none.
    const SHARE_MIN: f64 = 0.25;

    /// How far beyond what was seen an estimate is trusted. The first passes of all are over prompts
    /// alone, and take what they take for other reasons too.
    const FURTHER_ALONE: f64 = 2.0;
    const FURTHER_BESIDE: f64 = 4.0;

    /// Every so many passes one only decodes, or a flood of prompts would hide what that takes.
    const MIXED_MAX: u32 = 16;

    /// No device computes a pass in less; and one that took no time would lend none.
    const DECODE_MIN: f64 = 0.0001;

    pub(crate) fn new(config: &EngineConfig) -> Self {
        let stretch = f64::from(config.decode_stretch_max.get());
        Self {
            chunk_max: config.prefill_chunk,
            share: (stretch - 1.0).max(Self::SHARE_MIN),
            pause_max: config.decode_pause_max.as_secs_f64(),
            decode: None,
            mixed: 0,
            alone: Line::default(),
            beside: Line::default(),
        }
    }

    /// Seconds of a pass that only decodes, as far as is known.
    pub(crate) fn decode(&self) -> Option<f64> {
        self.decode
    }

    /// A pass of `decoding` rows of a single token and `prompt_tokens` tokens has taken this long.
    pub(crate) fn passed(&mut self, decoding: usize, prompt_tokens: u32, took: Duration) -> Lent {
        let took = took.as_secs_f64();
        if prompt_tokens == 0 {
            self.mixed = 0;
            self.decoded(took);
            return Lent { decoding: self.decode, prompts: 0.0 };
        }
        let tokens = f64::from(prompt_tokens);
        if decoding == 0 {
            let expected = self.alone.cost().map(|cost| cost.of(tokens));
            return Lent { decoding: None, prompts: self.alone.saw(tokens, took, expected) };
        }
        // A stream's first pass may have a prompt beside it.
        let Some(decode) = self.decode else { return Lent::default() };
        self.mixed += 1;
        if took < decode {
            // No prompt makes a pass faster.
            self.decoded(took);
        }
        let expected = self.beside().map(|cost| cost.of(tokens));
        let prompts = self.beside.saw(tokens, (took - decode).max(0.0), expected);
        Lent { decoding: Some(decode), prompts }
    }

    /// None of its own streams flow: nothing of theirs is hidden by prompts beside them.
    pub(crate) fn nobody_flows(&mut self) {
        self.mixed = 0;
    }

    /// What prompts cost beside streams: until that has been seen, what they cost alone.
    fn beside(&self) -> Option<Cost> {
        let cost = self.beside.cost().or_else(|| self.alone.cost())?;
        // That so many tokens can be computed at a time was seen in either case.
        Some(Cost { most: cost.most.max(self.alone.most), ..cost })
    }

    fn decoded(&mut self, took: f64) {
        let decode = self.decode.get_or_insert(took);
        let took = took.min(OUTLIER * decode.max(SURPRISE));
        *decode += Line::NEW * (took - *decode);
    }

    /// What the next pass may compute.
    pub(crate) fn budget(&self, company: &Member) -> PrefillBudget {
        let others_streaming = company.others_streaming();
        PrefillBudget { others_streaming, ..self.of(company.account(self), company.round()) }
    }

    /// `round` is what one pass of each model takes whose streams flow, if they only decode, in
    /// seconds. `None`: it is not known.
    fn of(&self, account: Account, round: Option<f64>) -> PrefillBudget {
        let alone = match self.alone.cost().or_else(|| self.beside.cost()) {
            None => Self::CHUNK_FIRST,
            Some(cost) => {
                cost.tokens(Self::ALONE_SECONDS, Self::FURTHER_ALONE).max(Self::piece(&cost))
            }
        };
        let (beside, piece) = match (self.beside(), round) {
            (Some(cost), Some(round)) => {
                let piece = Self::piece(&cost);
                (self.may(account, &cost, piece, self.share_of(round)), piece)
            }
            // Too little is known yet: little, and soon more is.
            (None, Some(round)) if account.saved + self.share_of(round) > 0.0 => {
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

    /// Tokens that a pass may compute beside streams; 0 if they have lent enough for now.
    fn may(&self, account: Account, cost: &Cost, piece: f64, share: f64) -> f64 {
        /// What is lost in adding up seconds, and in a share that has fallen since it was saved.
        const ROUNDING: f64 = 1e-9;
        const FALLEN: f64 = 0.99;
        let most = share.max(self.pause_max);
        let may = (account.saved + share).min(most) + ROUNDING;
        let least = cost.of(piece);
        // The least piece may be more than streams can ever save. Then it is due when they have
        // saved all they can.
        if may < least.min(most * FALLEN) {
            return 0.0;
        }
        cost.tokens(may, Self::FURTHER_BESIDE).max(piece)
    }

    /// The least piece: it costs as much for its tokens as for being a pass.
    fn piece(cost: &Cost) -> f64 {
        cost.tokens(2.0 * cost.fixed, Self::FURTHER_ALONE).max(Self::CHUNK_MIN)
    }

    /// Where the account stands after a pass.
    ///
    /// `round` as for [`Pace::of`].
    pub(crate) fn settle(&self, account: Account, lent: Lent, round: Option<f64>) -> Account {
        let share = round.map_or(0.0, |round| self.share_of(round));
        let earned = lent.decoding.map_or(0.0, |decoding| self.share_of(decoding));
        let saved = account.saved + earned - lent.prompts;
        Account { saved: saved.min((self.pause_max - share).max(0.0)) }
    }

    fn share_of(&self, decoding: f64) -> f64 {
        self.share * decoding.max(Self::DECODE_MIN)
    }

    /// The account of streams that have just begun to flow.
    pub(crate) fn fresh(&self) -> Account {
        Account { saved: self.pause_max }
    }
}

/// What passes over so many tokens took: a fixed part, and one for each token. Least squares, in
/// which what is older counts less.
///
/// Where all passes had about as many tokens, they do not tell the two apart. Then the fixed part
/// stays what it was, and the token's follows: what changes between passes that are alike is how
/// far back each token looks.
#[derive(Debug, Default)]
struct Line {
    weight: f64,
    tokens: f64,
    seconds: f64,
    tokens_squared: f64,
    tokens_seconds: f64,
    fixed: f64,
    /// The most tokens of a pass that took what was expected.
    most: f64,
}

/// A [`Line`]'s answer. Not negative.
#[derive(Debug, Clone, Copy)]
struct Cost {
    fixed: f64,
    token: f64,
    /// What a token costs if nothing is fixed.
    at_most: f64,
    most: f64,
}

impl Line {
    const NEW: f64 = 1.0 / 8.0;

    /// How much the numbers of tokens must differ, as the square of their deviation over that of
    /// their mean, for passes to tell as much of the fixed part as is known of it already.
    const DIFFERENT: f64 = 0.02;

    /// A pass, and what was expected of it. What it counts for, in seconds, which is less than it
    /// took if that is out of all proportion.
    fn saw(&mut self, tokens: f64, seconds: f64, expected: Option<f64>) -> f64 {
        let expected = expected.map(|expected| expected.max(SURPRISE));
        let counts = expected.map_or(seconds, |expected| seconds.min(OUTLIER * expected));
        let surprise = expected.is_some_and(|expected| seconds > 2.0 * expected);
        self.most = if surprise { tokens } else { self.most.max(tokens) };
        for (sum, new) in [
            (&mut self.weight, 1.0),
            (&mut self.tokens, tokens),
            (&mut self.seconds, counts),
            (&mut self.tokens_squared, tokens * tokens),
            (&mut self.tokens_seconds, tokens * counts),
        ] {
            *sum += Self::NEW * (new - *sum);
        }
        // The line through the mean that has this much less for each token has that much fixed.
        let by_token = self.tokens_seconds / self.tokens_squared;
        let above = (self.seconds - by_token * self.tokens) / self.weight;
        let different = 1.0 - self.tokens * self.tokens / (self.weight * self.tokens_squared);
        let fixed = (above + Self::DIFFERENT * self.fixed) / (different + Self::DIFFERENT);
        self.fixed = fixed.clamp(0.0, self.seconds / self.weight);
        counts
    }

    fn cost(&self) -> Option<Cost> {
        let &Self { weight, tokens, tokens_squared, tokens_seconds, fixed, most, .. } = self;
        (weight > 0.0).then(|| Cost {
            fixed,
            token: ((tokens_seconds - fixed * tokens) / tokens_squared).max(0.0),
            at_most: tokens_seconds / tokens_squared,
            most,
        })
    }
}

impl Cost {
    fn of(&self, tokens: f64) -> f64 {
        // Nothing times as many as you like is nothing.
        if self.token > 0.0 { self.fixed + self.token * tokens } else { self.fixed }
    }

    /// How many tokens take so long: never more than `further` times as many as were seen, unless
    /// they take no longer even if nothing is fixed.
    fn tokens(&self, seconds: f64, further: f64) -> f64 {
        let over = |seconds: f64, token: f64| match (seconds > 0.0, token > 0.0) {
            (false, _) => 0.0,
            (true, true) => seconds / token,
            (true, false) => f64::INFINITY,
        };
        let sure = over(seconds, self.at_most).max(further * self.most);
        over(seconds - self.fixed, self.token).min(sure)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn pace() -> Pace {
        let decode_stretch_max = NonZeroU32::new(3).expect("not 0");
        Pace::new(&EngineConfig { decode_stretch_max, ..EngineConfig::default() })
    }

    /// What streams have that were never held up and never saved anything.
    const NOTHING: Account = Account { saved: 0.0 };

    /// What a prompt gets beside streams that have saved nothing.
    fn beside(pace: &Pace) -> u32 {
        pace.of(NOTHING, pace.decode()).beside
    }

    fn alone(pace: &Pace) -> u32 {
        pace.of(NOTHING, None).alone.get()
    }

    /// What a pass takes, in milliseconds.
    #[derive(Clone, Copy)]
    struct Machine {
        decode: f64,
        fixed: f64,
        token: f64,
    }

    impl Machine {
        /// An H200 as it was measured: a prompt beside streams costs ten times a stream's pass.
        const GPU: Self = Self { decode: 6.0, fixed: 30.0, token: 0.02 };
        const CPU: Self = Self { decode: 20.0, fixed: 0.0, token: 1.0 };

        fn pass(self, pace: &mut Pace, streams: usize, tokens: u32) -> Lent {
            let decode = if streams > 0 { self.decode } else { 0.0 };
            let prompts = if tokens > 0 { self.fixed } else { 0.0 };
            let took = decode + prompts + self.token * f64::from(tokens);
            pace.passed(streams, tokens, MS.mul_f64(took))
        }

        /// Streams flow, and prompts come faster than they are computed: how many tokens each pass
        /// had that had any, and how many times as long the streams took.
        fn flood(self, pace: &mut Pace, passes: usize) -> (Vec<u32>, f64) {
            let mut account = pace.fresh();
            let (mut pieces, mut took, mut had) = (vec![], 0.0, 0.0);
            for _ in 0..passes {
                let tokens = pace.of(account, pace.decode()).beside;
                let lent = self.pass(pace, 4, tokens);
                account = pace.settle(account, lent, pace.decode());
                pieces.extend((tokens > 0).then_some(tokens));
                let prompt = f64::from(tokens) * self.token;
                took += self.decode + if tokens > 0 { self.fixed + prompt } else { 0.0 };
                had += self.decode;
            }
            (pieces, took / had)
        }
    }

    /// Where another model's streams flow on, no pass of this one's need ever only decode.
    #[test]
    fn a_flood_that_ends_with_its_streams_leaves_no_prompt_waiting() {
        let mut pace = pace();
        pace.passed(4, 0, 20 * MS);
        for _ in 0..Pace::MIXED_MAX {
            pace.passed(4, 40, 60 * MS);
        }
        let others = Some(0.02);
        assert_eq!(pace.of(pace.fresh(), others).beside, 0, "a pass that only decodes is due");
        pace.nobody_flows();
        assert!(pace.of(pace.fresh(), others).beside > 0);
    }

    #[test]
    fn a_prompt_beside_streams_gets_what_keeps_the_pass_within_its_stretch() {
        let mut pace = pace();
        pace.passed(0, 100, 100 * MS);
        pace.passed(8, 0, 20 * MS);
        // (3 - 1) * 20 ms, at 1 ms a token.
        assert_eq!(beside(&pace), 40);
    }

    #[test]
    fn it_follows_what_passes_cost() {
        let mut pace = pace();
        pace.passed(0, 100, 100 * MS);
        pace.passed(8, 0, 20 * MS);
        for _ in 0..100 {
            pace.passed(8, 0, 40 * MS);
            pace.passed(8, 50, 140 * MS); // 2 ms a token, beside decoding
        }
        let tokens = beside(&pace);
        assert!((39..=40).contains(&tokens), "(3 - 1) * 40 ms, at 2 ms a token: {tokens}");
    }

    #[test]
    fn no_piece_is_less_than_eight_tokens_and_none_more_than_a_chunk() {
        let mut dear = pace();
        dear.passed(0, 10, 1000 * MS);
        dear.passed(1, 0, MS);
        assert_eq!(beside(&dear), 0, "streams have not saved so much");
        assert_eq!(dear.of(dear.fresh(), dear.decode()).beside, 8, "nor can they ever");
        let mut cheap = pace();
        cheap.passed(0, 1000, MS);
        cheap.passed(1, 0, 1000 * MS);
        assert_eq!(beside(&cheap), 2048);
    }

    #[test]
    fn a_piece_costs_as_much_for_its_tokens_as_for_being_a_pass() {
        let mut pace = pace();
        for tokens in [16, 40, 90] {
            Machine::GPU.pass(&mut pace, 4, 0);
            Machine::GPU.pass(&mut pace, 4, tokens);
        }
        let (pieces, _) = Machine::GPU.flood(&mut pace, 1000);
        let settled = &pieces[10..];
        assert!(settled.len() > 100);
        // 30 ms are 1,500 tokens.
        assert!(settled.iter().all(|&tokens| tokens >= 1400), "{settled:?}");
    }

    #[test]
    fn a_flood_of_prompts_slows_streams_by_the_stretch_and_no_more() {
        let machines = [
            Machine::GPU,
            Machine::CPU,
            Machine { decode: 24.0, fixed: 0.0, token: 50.0 }, // eight tokens are 16 passes
            Machine { decode: 10.0, fixed: 10.0, token: 0.1 },
        ];
        for machine in machines {
            let (pieces, stretch) = machine.flood(&mut pace(), 2000);
            assert!((2.5..=3.1).contains(&stretch), "{stretch} times, {pieces:?}");
        }
    }

    #[test]
    fn streams_that_are_not_to_be_stretched_lend_a_quarter_of_their_time() {
        let decode_stretch_max = NonZeroU32::MIN;
        let mut pace = Pace::new(&EngineConfig { decode_stretch_max, ..EngineConfig::default() });
        let (pieces, stretch) = Machine::CPU.flood(&mut pace, 2000);
        assert!(!pieces.is_empty() && stretch <= 1.3, "{stretch}, {pieces:?}");
    }

    #[test]
    fn what_streams_have_saved_a_newcomer_gets_in_one_piece() {
        let mut pace = pace();
        for _ in 0..10 {
            Machine::CPU.pass(&mut pace, 0, 100);
            Machine::CPU.pass(&mut pace, 4, 0);
        }
        let mut account = NOTHING;
        for _ in 0..10 {
            let lent = Machine::CPU.pass(&mut pace, 4, 0);
            account = pace.settle(account, lent, pace.decode());
        }
        // 200 ms at 1 ms a token, which is not 2 * 20 ms.
        let tokens = pace.of(account, pace.decode()).beside;
        assert!((199..=200).contains(&tokens), "{tokens}");
        let lent = Machine::CPU.pass(&mut pace, 4, tokens);
        account = pace.settle(account, lent, pace.decode());
        let tokens = pace.of(account, pace.decode()).beside;
        assert!((39..=41).contains(&tokens), "and then their share: {tokens}");
    }

    /// A prompt's passes are alike but for its last, and their context grows.
    #[test]
    fn what_grows_with_the_context_is_the_tokens_and_not_what_is_fixed() {
        let mut pace = pace();
        pace.passed(4, 0, 20 * MS);
        for prompt in 0..5 {
            for piece in 0..50 {
                let token = 1.0 + f64::from(piece) / 20.0;
                pace.passed(4, 0, 20 * MS);
                pace.passed(4, 40, MS.mul_f64(20.0 + 40.0 * token));
            }
            let cost = pace.beside().expect("seen");
            assert!(cost.fixed < 0.04, "{prompt}: {cost:?} seconds are fixed");
            assert!(beside(&pace) < 20, "at 3.5 ms a token: {cost:?}");
        }
    }

    #[test]
    fn a_flood_of_prompts_does_not_hide_what_decoding_costs() {
        let mut pace = pace();
        pace.passed(0, 100, 100 * MS);
        assert_eq!(beside(&pace), 0, "the first pass with a stream only decodes");
        pace.passed(4, 0, 20 * MS);
        // More streams have joined, and there is a prompt for every pass that may have one.
        let crowded = Machine { decode: 60.0, ..Machine::CPU };
        for _ in 0..400 {
            let tokens = beside(&pace);
            crowded.pass(&mut pace, 12, tokens);
        }
        let decode = pace.decode().expect("known");
        assert!((0.055..=0.06).contains(&decode), "{decode}");
    }

    #[test]
    fn the_first_pass_of_all_may_have_streams_and_prompts_in_it() {
        let mut pace = pace();
        assert_eq!(Machine::GPU.pass(&mut pace, 4, 16), Lent::default());
        let (pieces, stretch) = Machine::GPU.flood(&mut pace, 2000);
        assert!(pieces[20..].iter().all(|&tokens| tokens >= 1400), "{pieces:?}");
        assert!(stretch <= 3.1, "{stretch}");
    }

    #[test]
    fn passes_of_one_length_cut_no_prompt_smaller_and_smaller() {
        let mut pace = pace();
        for _ in 0..100 {
            Machine::GPU.pass(&mut pace, 4, 0);
            Machine::GPU.pass(&mut pace, 4, 80);
        }
        // Whether it is the tokens that cost, they cannot tell; one longer piece can.
        let tokens = pace.of(pace.fresh(), pace.decode()).beside;
        assert!(tokens >= 160, "{tokens}");
    }

    #[test]
    fn a_clock_that_stands_still_is_survived() {
        let mut pace = pace();
        pace.passed(1, 0, Duration::ZERO);
        pace.passed(1, 8, Duration::ZERO);
        assert_eq!((beside(&pace), alone(&pace)), (2048, 2048));
    }

    #[test]
    fn a_prompt_alone_gets_what_takes_a_second() {
        let mut known = pace();
        known.passed(0, 256, 512 * MS);
        assert_eq!(alone(&known), 500, "at 2 ms a token");
        let mut slow = pace();
        slow.passed(0, 100, 100_000 * MS);
        assert_eq!(alone(&slow), 8, "no less, however slow");
    }

    #[test]
    fn the_first_prompts_pieces_are_short_until_it_is_known_what_they_cost() {
        for token in [0.02, 1.0, 18.0, 60.0, 100.0] {
            let (mut pace, machine) = (pace(), Machine { decode: 0.0, fixed: 0.0, token });
            let mut left = 4000;
            while left > 0 {
                let tokens = alone(&pace).min(left);
                let took = token * f64::from(tokens);
                assert!(took <= 1001.0 || tokens == 16, "{tokens} tokens take {took} ms");
                machine.pass(&mut pace, 0, tokens);
                left -= tokens;
            }
        }
    }

    /// As after a start, when weights come from the disk with the first pass.
    #[test]
    fn one_slow_pass_is_forgotten() {
        for slow in [5_000, 3_600_000] {
            let mut pace = pace();
            for _ in 0..8 {
                Machine::CPU.pass(&mut pace, 0, 200);
                Machine::CPU.pass(&mut pace, 4, 0);
                Machine::CPU.pass(&mut pace, 4, 40);
            }
            let lent = pace.passed(4, 40, slow * MS);
            assert!(lent.prompts < 0.2, "{lent:?}: 40 ms were expected");
            pace.passed(0, 200, slow * MS);
            pace.passed(4, 0, slow * MS);
            for _ in 0..30 {
                let prompt = alone(&pace).min(1000);
                Machine::CPU.pass(&mut pace, 0, prompt);
                Machine::CPU.pass(&mut pace, 4, 0);
                let piece = beside(&pace).max(8);
                Machine::CPU.pass(&mut pace, 4, piece);
            }
            assert!((35..=45).contains(&beside(&pace)), "{}", beside(&pace));
            assert!(alone(&pace) >= 900, "{}", alone(&pace));
        }
    }

    #[test]
    fn a_short_piece_of_prompt_tells_little_of_what_a_token_costs() {
        let mut pace = pace();
        pace.passed(0, 256, 256 * MS);
        for _ in 0..8 {
            pace.passed(0, 1, 20 * MS); // found in the prefix cache but for its last token
        }
        assert!(alone(&pace) > 700, "{}", alone(&pace));
    }
}
