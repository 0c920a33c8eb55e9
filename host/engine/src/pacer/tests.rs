use super::*;

const MS: Duration = Duration::from_millis(1);

fn pacer() -> PrefillPacer {
    let decode_slowdown_max = NonZeroU32::new(3).expect("not 0");
    PrefillPacer::new(&EngineConfig { decode_slowdown_max, ..EngineConfig::default() })
}

/// What streams have that were never held up and never saved anything.
const NOTHING: StreamCredit = StreamCredit { saved: 0.0 };

/// What a prompt gets beside streams that have saved nothing.
fn beside(pacer: &PrefillPacer) -> u32 {
    pacer.budget(NOTHING, pacer.decode()).beside
}

fn alone(pacer: &PrefillPacer) -> u32 {
    pacer.budget(NOTHING, None).alone.get()
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

    fn pass(self, pacer: &mut PrefillPacer, streams: usize, tokens: u32) -> PassTimes {
        let decode = if streams > 0 { self.decode } else { 0.0 };
        let prompts = if tokens > 0 { self.fixed } else { 0.0 };
        let took = decode + prompts + self.token * f64::from(tokens);
        pacer.passed(streams, tokens, MS.mul_f64(took))
    }

    /// Streams flow, and prompts come faster than they are computed: how many tokens each pass
    /// had that had any, and how many times as long the streams took.
    fn flood(self, pacer: &mut PrefillPacer, passes: usize) -> (Vec<u32>, f64) {
        let mut credit = pacer.fresh();
        let (mut pieces, mut took, mut had) = (vec![], 0.0, 0.0);
        for _ in 0..passes {
            let tokens = pacer.budget(credit, pacer.decode()).beside;
            let times = self.pass(pacer, 4, tokens);
            credit = pacer.settle(credit, times, pacer.decode());
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
    let mut pacer = pacer();
    pacer.passed(4, 0, 20 * MS);
    for _ in 0..PrefillPacer::MIXED_MAX {
        pacer.passed(4, 40, 60 * MS);
    }
    let others = Some(0.02);
    assert_eq!(pacer.budget(pacer.fresh(), others).beside, 0, "a pass that only decodes is due");
    pacer.no_streams();
    assert!(pacer.budget(pacer.fresh(), others).beside > 0);
}

#[test]
fn a_prompt_beside_streams_gets_what_keeps_the_pass_within_its_slowdown() {
    let mut pacer = pacer();
    pacer.passed(0, 100, 100 * MS);
    pacer.passed(8, 0, 20 * MS);
    // (3 - 1) * 20 ms, at 1 ms a token.
    assert_eq!(beside(&pacer), 40);
}

#[test]
fn it_follows_what_passes_cost() {
    let mut pacer = pacer();
    pacer.passed(0, 100, 100 * MS);
    pacer.passed(8, 0, 20 * MS);
    for _ in 0..100 {
        pacer.passed(8, 0, 40 * MS);
        pacer.passed(8, 50, 140 * MS); // 2 ms a token, beside decoding
    }
    let tokens = beside(&pacer);
    assert!((39..=40).contains(&tokens), "(3 - 1) * 40 ms, at 2 ms a token: {tokens}");
}

#[test]
fn no_piece_is_less_than_eight_tokens_and_none_more_than_a_chunk() {
    let mut dear = pacer();
    dear.passed(0, 10, 1000 * MS);
    dear.passed(1, 0, MS);
    assert_eq!(beside(&dear), 0, "streams have not saved so much");
    assert_eq!(dear.budget(dear.fresh(), dear.decode()).beside, 8, "nor can they ever");
    let mut cheap = pacer();
    cheap.passed(0, 1000, MS);
    cheap.passed(1, 0, 1000 * MS);
    assert_eq!(beside(&cheap), 2048);
}

#[test]
fn a_piece_costs_as_much_for_its_tokens_as_for_being_a_pass() {
    let mut pacer = pacer();
    for tokens in [16, 40, 90] {
        Machine::GPU.pass(&mut pacer, 4, 0);
        Machine::GPU.pass(&mut pacer, 4, tokens);
    }
    let (pieces, _) = Machine::GPU.flood(&mut pacer, 1000);
    let settled = &pieces[10..];
    assert!(settled.len() > 100);
    // 30 ms are 1,500 tokens.
    assert!(settled.iter().all(|&tokens| tokens >= 1400), "{settled:?}");
}

#[test]
fn a_flood_of_prompts_slows_streams_by_the_slowdown_and_no_more() {
    let machines = [
        Machine::GPU,
        Machine::CPU,
        Machine { decode: 24.0, fixed: 0.0, token: 50.0 }, // eight tokens are 16 passes
        Machine { decode: 10.0, fixed: 10.0, token: 0.1 },
    ];
    for machine in machines {
        let (pieces, slowdown) = machine.flood(&mut pacer(), 2000);
        assert!((2.5..=3.1).contains(&slowdown), "{slowdown} times, {pieces:?}");
    }
}

#[test]
fn streams_that_are_not_to_be_slowed_down_lend_a_quarter_of_their_time() {
    let decode_slowdown_max = NonZeroU32::MIN;
    let mut pacer =
        PrefillPacer::new(&EngineConfig { decode_slowdown_max, ..EngineConfig::default() });
    let (pieces, slowdown) = Machine::CPU.flood(&mut pacer, 2000);
    assert!(!pieces.is_empty() && slowdown <= 1.3, "{slowdown}, {pieces:?}");
}

#[test]
fn what_streams_have_saved_a_new_request_gets_in_one_piece() {
    let mut pacer = pacer();
    for _ in 0..10 {
        Machine::CPU.pass(&mut pacer, 0, 100);
        Machine::CPU.pass(&mut pacer, 4, 0);
    }
    let mut credit = NOTHING;
    for _ in 0..10 {
        let times = Machine::CPU.pass(&mut pacer, 4, 0);
        credit = pacer.settle(credit, times, pacer.decode());
    }
    // 200 ms at 1 ms a token, which is not 2 * 20 ms.
    let tokens = pacer.budget(credit, pacer.decode()).beside;
    assert!((199..=200).contains(&tokens), "{tokens}");
    let times = Machine::CPU.pass(&mut pacer, 4, tokens);
    credit = pacer.settle(credit, times, pacer.decode());
    let tokens = pacer.budget(credit, pacer.decode()).beside;
    assert!((39..=41).contains(&tokens), "and then their share: {tokens}");
}

/// A prompt's passes are alike but for its last, and their context grows.
#[test]
fn what_grows_with_the_context_is_the_tokens_and_not_what_is_fixed() {
    let mut pacer = pacer();
    pacer.passed(4, 0, 20 * MS);
    for prompt in 0..5 {
        for piece in 0..50 {
            let token = 1.0 + f64::from(piece) / 20.0;
            pacer.passed(4, 0, 20 * MS);
            pacer.passed(4, 40, MS.mul_f64(20.0 + 40.0 * token));
        }
        let cost = pacer.beside().expect("seen");
        assert!(cost.fixed < 0.04, "{prompt}: {cost:?} seconds are fixed");
        assert!(beside(&pacer) < 20, "at 3.5 ms a token: {cost:?}");
    }
}

#[test]
fn a_flood_of_prompts_does_not_hide_what_decoding_costs() {
    let mut pacer = pacer();
    pacer.passed(0, 100, 100 * MS);
    assert_eq!(beside(&pacer), 0, "the first pass with a stream only decodes");
    pacer.passed(4, 0, 20 * MS);
    // More streams have joined, and there is a prompt for every pass that may have one.
    let crowded = Machine { decode: 60.0, ..Machine::CPU };
    for _ in 0..400 {
        let tokens = beside(&pacer);
        crowded.pass(&mut pacer, 12, tokens);
    }
    let decode = pacer.decode().expect("known");
    assert!((0.055..=0.06).contains(&decode), "{decode}");
}

#[test]
fn the_first_pass_of_all_may_have_streams_and_prompts_in_it() {
    let mut pacer = pacer();
    assert_eq!(Machine::GPU.pass(&mut pacer, 4, 16), PassTimes::default());
    let (pieces, slowdown) = Machine::GPU.flood(&mut pacer, 2000);
    assert!(pieces[20..].iter().all(|&tokens| tokens >= 1400), "{pieces:?}");
    assert!(slowdown <= 3.1, "{slowdown}");
}

#[test]
fn passes_of_one_length_cut_no_prompt_smaller_and_smaller() {
    let mut pacer = pacer();
    for _ in 0..100 {
        Machine::GPU.pass(&mut pacer, 4, 0);
        Machine::GPU.pass(&mut pacer, 4, 80);
    }
    // Whether it is the tokens that cost, they cannot tell; one longer piece can.
    let tokens = pacer.budget(pacer.fresh(), pacer.decode()).beside;
    assert!(tokens >= 160, "{tokens}");
}

#[test]
fn a_clock_that_stands_still_is_survived() {
    let mut pacer = pacer();
    pacer.passed(1, 0, Duration::ZERO);
    pacer.passed(1, 8, Duration::ZERO);
    assert_eq!((beside(&pacer), alone(&pacer)), (2048, 2048));
}

#[test]
fn a_prompt_alone_gets_what_takes_a_second() {
    let mut known = pacer();
    known.passed(0, 256, 512 * MS);
    assert_eq!(alone(&known), 500, "at 2 ms a token");
    let mut slow = pacer();
    slow.passed(0, 100, 100_000 * MS);
    assert_eq!(alone(&slow), 8, "no less, however slow");
}

#[test]
fn the_first_prompts_pieces_are_short_until_it_is_known_what_they_cost() {
    for token in [0.02, 1.0, 18.0, 60.0, 100.0] {
        let (mut pacer, machine) = (pacer(), Machine { decode: 0.0, fixed: 0.0, token });
        let mut left = 4000;
        while left > 0 {
            let tokens = alone(&pacer).min(left);
            let took = token * f64::from(tokens);
            assert!(took <= 1001.0 || tokens == 16, "{tokens} tokens take {took} ms");
            machine.pass(&mut pacer, 0, tokens);
            left -= tokens;
        }
    }
}

/// As after a start, when weights come from the disk with the first pass.
#[test]
fn one_slow_pass_is_forgotten() {
    for slow in [5_000, 3_600_000] {
        let mut pacer = pacer();
        for _ in 0..8 {
            Machine::CPU.pass(&mut pacer, 0, 200);
            Machine::CPU.pass(&mut pacer, 4, 0);
            Machine::CPU.pass(&mut pacer, 4, 40);
        }
        let times = pacer.passed(4, 40, slow * MS);
        assert!(times.prefill < 0.2, "{times:?}: 40 ms were expected");
        pacer.passed(0, 200, slow * MS);
        pacer.passed(4, 0, slow * MS);
        for _ in 0..30 {
            let prompt = alone(&pacer).min(1000);
            Machine::CPU.pass(&mut pacer, 0, prompt);
            Machine::CPU.pass(&mut pacer, 4, 0);
            let piece = beside(&pacer).max(8);
            Machine::CPU.pass(&mut pacer, 4, piece);
        }
        assert!((35..=45).contains(&beside(&pacer)), "{}", beside(&pacer));
        assert!(alone(&pacer) >= 900, "{}", alone(&pacer));
    }
}

#[test]
fn a_short_piece_of_prompt_tells_little_of_what_a_token_costs() {
    let mut pacer = pacer();
    pacer.passed(0, 256, 256 * MS);
    for _ in 0..8 {
        pacer.passed(0, 1, 20 * MS); // found in the prefix cache but for its last token
    }
    assert!(alone(&pacer) > 700, "{}", alone(&pacer));
}
