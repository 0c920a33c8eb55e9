//! Worlds that are written out, for promises with a number in them. The [checker](crate::checker) runs in
//! these too.

use std::num::{NonZeroU32, NonZeroU64};
use std::time::Duration;

use fastrand::Rng;
use interlock_engine::{CacheConfig, EngineConfig, PassFault, PrefixSharing, RETRIES_MAX};
use interlock_request::{
    Deadlines, Fault, FaultKind, Finish, Generation, Outcome, Priority, Sampling, TokenId,
};
use interlock_scheduler::OVERTAKEN_MAX;
use interlock_sim::SimSettings;

use crate::device::{ModelCall, RowOf};
use crate::scenario::{
    Faults, PolicyVerdict, Scenario, SimRequest, StopAttempt, StopTime, StopWay,
};
use crate::world::{Lab, Ran};

const MS: Duration = Duration::from_millis(1);

fn number(n: u32) -> NonZeroU32 {
    NonZeroU32::new(n).expect("not 0")
}

/// A quiet world with all the room there could be: 20 ms a pass that decodes, 1 ms for each of its
/// rows and each token of a prompt.
fn world(requests: Vec<SimRequest>) -> Scenario {
    let mut requests = requests;
    requests.sort_by_key(|request| request.at);
    for (number, request) in requests.iter_mut().enumerate() {
        request.generation.sampling.top_k = number as u32;
    }
    Scenario {
        seed: None,
        engine: EngineConfig::default(),
        cache: CacheConfig::default(),
        queue_max: 2000,
        sim: SimSettings {
            stop: 0,
            prefill: MS,
            decode: 20 * MS,
            row: MS,
            ..SimSettings::default()
        },
        requests,
        faults: Faults::default(),
        closes_at: None,
    }
}

/// A request whose prompt begins like no other's.
fn request(at: Duration, first: TokenId, prompt: usize, tokens_max: u32) -> SimRequest {
    let prompt = std::iter::once(first).chain((1..prompt as TokenId).map(|n| n % 200)).collect();
    let generation = Generation {
        sampling: Sampling::greedy(),
        tokens_max,
        tokens_min: 0,
        stop_tokens: vec![],
        logprobs: None,
        priority: Priority::Standard,
    };
    SimRequest {
        at,
        tenant: "",
        prompt,
        generation,
        verdict: of(Priority::Standard),
        stops: vec![],
        unwelcome: false,
        oversized: false,
    }
}

fn of(priority: Priority) -> PolicyVerdict {
    PolicyVerdict::Admit(priority, Deadlines::default())
}

fn gaps(ran: &Ran, who: usize) -> Vec<Duration> {
    ran.tokens_at(who).windows(2).map(|two| two[1] - two[0]).collect()
}

fn longest_gap(ran: &Ran, who: usize) -> Duration {
    gaps(ran, who).into_iter().max().expect("two tokens")
}

const COMPLETED: Outcome = Outcome::Completed(Finish::Length);

#[test]
fn a_storm_of_a_thousand_ends_with_nothing_left() {
    let rng = &mut Rng::with_seed(1000);
    let requests = (0..1000)
        .map(|first| {
            let at = 2000 * MS.mul_f64(rng.f64());
            let mut request = request(at, first % 7, rng.usize(1..60), rng.u32(1..30));
            let how = if rng.bool() { StopWay::Leave } else { StopWay::Operator };
            if rng.u32(0..100) < 85 {
                request.stops =
                    vec![StopAttempt { when: StopTime::After(1500 * MS.mul_f64(rng.f64())), how }];
            }
            request
        })
        .collect();
    let mut scenario = world(requests);
    // Everyone could run at once, but not in this cache.
    scenario.engine.running_max = number(200);
    scenario.sim.cache = 2048;
    scenario.sim.row = MS / 10;
    scenario.sim.prefill = MS / 10;
    let counts = Lab::new().world(&scenario).counts;
    assert!(counts.of("left") + counts.of("cancelled") > 500, "{counts:?}");
    assert!(counts.of("completed") > 150, "{counts:?}");
}

/// Two run at once, and more urgent ones come faster than they are served.
fn flood(sheddable: SimRequest) -> Ran {
    let mut requests: Vec<_> = (0..600)
        .map(|n| {
            let mut urgent = request(50 * MS + 10 * MS * n, 2 + n % 50, 10, 4);
            urgent.verdict = of(Priority::Critical);
            urgent
        })
        .collect();
    requests.push(SimRequest { verdict: of(Priority::Sheddable), ..sheddable });
    let mut scenario = world(requests);
    scenario.engine.running_max = number(2);
    Lab::new().world(&scenario)
}

/// How many started before it did, for the first time or the last.
fn starts_before(ran: &Ran, who: usize, last: bool) -> usize {
    let started: Vec<_> = ran
        .seen()
        .filter_map(|seen| if let ModelCall::Opened { who, .. } = seen { Some(*who) } else { None })
        .collect();
    let same = |&of: &usize| of == who;
    let at = if last { started.iter().rposition(same) } else { started.iter().position(same) };
    at.expect("it starts")
}

#[test]
fn the_last_in_rank_starts_when_enough_have_overtaken_it() {
    // Two came before it and have both places.
    let who = 2;
    let ran = flood(request(65 * MS, 1, 10, 20));
    let before = starts_before(&ran, who, false);
    assert_eq!(before, 2 + OVERTAKEN_MAX as usize);
    assert_eq!(starts_before(&ran, who, true), before, "and nobody displaces it after that");
    assert_eq!(ran.ended(who).outcome, COMPLETED);
}

/// It had its first token before the flood came; that it was overtaken did not count from then on.
#[test]
fn a_stream_that_gave_way_is_overtaken_no_more_often() {
    let who = 0;
    let ran = flood(request(Duration::ZERO, 1, 10, 200));
    assert!(!ran.tokens_at(who).is_empty(), "it had begun");
    assert_eq!(starts_before(&ran, who, false), 0);
    let again = starts_before(&ran, who, true);
    assert!(again > 2, "it gave way");
    // Those that started beside it while it flowed have not overtaken it: two at most.
    assert!(again <= 1 + 2 + OVERTAKEN_MAX as usize, "{again} started before it went on");
    assert_eq!(ran.ended(who).outcome, COMPLETED);
}

/// Streams flow, and a prompt ten times as long as theirs comes.
fn long_prompt(prefill: Duration) -> Ran {
    let mut requests: Vec<_> = (0..4).map(|n| request(Duration::ZERO, n, 40, 200)).collect();
    requests.push(request(1000 * MS, 9, 400, 10));
    let mut scenario = world(requests);
    scenario.sim.prefill = prefill;
    scenario.engine.decode_slowdown_max = number(SLOWDOWN_MAX);
    Lab::new().world(&scenario)
}

/// Time of a pass that decodes for four.
const FOUR: Duration = Duration::from_millis(24);
const SLOWDOWN_MAX: u32 = 3;

#[test]
fn a_long_prompt_holds_streams_up_by_what_they_have_saved_and_then_by_their_share() {
    let ran = long_prompt(MS);
    let pause = EngineConfig::default().decode_pause_max;
    for who in 0..4 {
        let mut gaps = gaps(&ran, who);
        gaps.sort_unstable();
        let [.., second, longest] = gaps[..] else { panic!("two gaps") };
        assert!(longest <= FOUR + pause + MS, "{longest:?}");
        assert!(longest > FOUR + pause - 2 * MS, "{longest:?}: what was saved is not used");
        assert!(second <= SLOWDOWN_MAX * FOUR + MS, "{second:?}");
    }
    // 200 tokens at once, and then all that the slowdown allows: 48 a pass.
    let waited = ran.tokens_at(4)[0] - 1000 * MS;
    assert!(waited <= 2 * FOUR + pause + SLOWDOWN_MAX * FOUR * 200_u32.div_ceil(47), "{waited:?}");
}

#[test]
fn a_prompt_that_is_dear_advances_by_eight_tokens_and_streams_are_paid_back() {
    let prefill = 50 * MS;
    let ran = long_prompt(prefill);
    for who in 0..4 {
        let gap = longest_gap(&ran, who);
        assert_eq!(gap, FOUR + 8 * prefill, "more than the slowdown allows, and the least piece");
        stays_within_its_slowdown(&ran, who, &gaps(&ran, who), 8 * prefill);
    }
}

/// Over its life a stream is held up by its share of what its own passes took, what it may have
/// saved, and at most one piece more.
fn stays_within_its_slowdown(ran: &Ran, who: usize, gaps: &[Duration], piece: Duration) {
    let took: Duration = gaps.iter().sum();
    let had = gaps.iter().min().expect("a gap").saturating_mul(gaps.len() as u32);
    let burst = EngineConfig::default().decode_pause_max.max((SLOWDOWN_MAX - 1) * FOUR);
    let most = SLOWDOWN_MAX * had + burst + piece;
    assert!(took <= most.mul_f64(1.02), "{who}: {took:?} of {most:?}, {} passes", ran.trace.len());
}

#[test]
fn a_flood_of_new_requests_slows_no_stream_beyond_its_slowdown() {
    for (pass, mixed, prefill) in [(1, 0, MS), (10, 30, MS / 50), (10, 300, MS / 10)] {
        let mut requests: Vec<_> =
            (0..2).map(|n| request(n * 100 * MS, n, 40, 300 - 100 * n)).collect();
        // More than are served, with prompts of all lengths.
        requests.extend((2..300).map(|n| request(40 * MS * n, n, 8 + n as usize % 90, 2)));
        let mut scenario = world(requests);
        scenario.engine.decode_slowdown_max = number(SLOWDOWN_MAX);
        scenario.sim =
            SimSettings { pass: pass * MS, mixed: mixed * MS, prefill, ..scenario.sim.clone() };
        scenario.sim.row = Duration::ZERO;
        let ran = Lab::new().world(&scenario);
        for who in 0..2 {
            // A piece costs twice what is fixed, or eight tokens.
            let piece = (2 * mixed * MS).max(8 * prefill);
            stays_within_its_slowdown(&ran, who, &gaps(&ran, who), piece);
        }
    }
}

/// A flood of prompts hides what a stream's own passes take; it must show all the same.
#[test]
fn streams_keep_their_pace_from_the_first_pass_on() {
    let mut requests = vec![request(Duration::ZERO, 0, 4, 40)];
    requests.extend((1..20).map(|n| request(Duration::ZERO, n, 400, 1)));
    let mut scenario = world(requests);
    scenario.engine.prefill_chunk = number(256);
    scenario.engine.decode_slowdown_max = number(SLOWDOWN_MAX);
    let ran = Lab::new().world(&scenario);
    let gaps = gaps(&ran, 0);
    assert_eq!(gaps[0], 21 * MS, "nothing is beside it until it is known what it takes");
    stays_within_its_slowdown(&ran, 0, &gaps, Duration::ZERO);
    let took: Duration = gaps.iter().sum();
    let may = SLOWDOWN_MAX * 21 * MS * gaps.len() as u32;
    assert!(took >= may.mul_f64(0.95), "{gaps:?}: what the slowdown allows is not used");
}

/// A model that costs mostly for being asked, as on a GPU: a pass costs as much as 100 tokens of a
/// prompt, and prompts beside streams as much again.
fn fixed_costs(requests: Vec<SimRequest>) -> Scenario {
    let mut scenario = world(requests);
    scenario.sim = SimSettings {
        pass: 10 * MS,
        mixed: 10 * MS,
        prefill: MS / 10,
        decode: Duration::ZERO,
        row: Duration::ZERO,
        ..scenario.sim
    };
    scenario
}

const TOKENS: u32 = 128;

/// Closed loops: as many run at once as there are clients, and as one ends the next begins. What it
/// took, and what the model needs: of prompts what their tokens cost, and as much more for each as
/// is said, and tokens in passes that are full.
fn batch(clients: u32, rounds: u32, mixed: Duration, each: Duration) -> (Duration, Duration) {
    let requests: Vec<_> = (0..clients * rounds)
        .map(|n| request(Duration::ZERO, n, 70 + n as usize % 20, TOKENS))
        .collect();
    let tokens: usize = requests.iter().map(|request| request.prompt.len()).sum();
    let mut scenario = fixed_costs(requests);
    scenario.engine.running_max = number(clients);
    scenario.sim.mixed = mixed;
    let prompts = scenario.sim.prefill * tokens as u32 + each * clients * rounds;
    let ran = Lab::new().world(&scenario);
    let took = ran.trace.last().expect("steps").ended_at;
    (took, prompts + scenario.sim.time(clients as usize, 0) * (TOKENS - 1) * rounds)
}

#[test]
fn a_batch_with_fixed_costs_makes_nine_tenths_of_what_its_model_could() {
    for (clients, rounds) in [(8, 1), (8, 4), (32, 1), (32, 4)] {
        let (took, needs) = batch(clients, rounds, 10 * MS, Duration::ZERO);
        assert!(needs >= took.mul_f64(0.9), "{clients} clients: {took:?}, not {needs:?}");
    }
}

/// As an H200 was: what a prompt costs for being beside streams is more than streams lend in a
/// pass, so whoever takes that for the price of its tokens cuts it ever smaller.
#[test]
fn a_prompt_that_is_dear_to_join_with_joins_once() {
    for (clients, rounds) in [(8, 1), (8, 4), (32, 1), (32, 4)] {
        let dear = 60 * MS;
        let (took, needs) = batch(clients, rounds, dear, dear);
        assert!(needs >= took.mul_f64(0.9), "{clients} clients: {took:?}, not {needs:?}");
    }
}

#[test]
fn a_new_requests_first_token_comes_after_two_passes_and_its_prompt() {
    for clients in [8, 32] {
        for prompt in [10, 90, 400, 1500] {
            for at in 0..10 {
                let mut requests: Vec<_> =
                    (0..clients).map(|n| request(Duration::ZERO, n, 90, 200)).collect();
                // Others joined before it, so that it is known what that costs.
                let before = [(700, 30), (900, 120), (1100, 60)];
                let at = 1500 * MS + at * MS;
                requests.extend(
                    before
                        .into_iter()
                        .zip(100..)
                        .map(|((at, n), first)| request(at * MS, first, n, 3)),
                );
                requests.push(request(at, 180, prompt, 2));
                let who = requests.len() - 1;
                let scenario = fixed_costs(requests);
                let ran = Lab::new().world(&scenario);
                let waited = ran.tokens_at(who)[0] - at;
                let streams = scenario.sim.time(clients as usize, 0);
                let own = scenario.sim.time(0, prompt);
                assert!(waited <= 2 * streams + own, "{waited:?} of {prompt} beside {clients}");
            }
        }
    }
}

/// What was found in the prefix cache but for its last token is in every pass, and is no prompt that
/// holds streams up.
#[test]
fn a_flood_of_single_tokens_keeps_no_prompt_waiting() {
    let mut requests = vec![request(Duration::ZERO, 0, 90, 400)];
    requests.extend((1..400).map(|n| request(10 * MS * n, n, 1, 1)));
    requests.push(request(1500 * MS, 180, 90, 2));
    let scenario = fixed_costs(requests);
    let long = |request: &SimRequest| request.prompt.len() == 90 && request.at > Duration::ZERO;
    let who = scenario.requests.iter().position(long).expect("it is one of them");
    let ran = Lab::new().world(&scenario);
    let waited = ran.tokens_at(who)[0] - 1500 * MS;
    let own = scenario.sim.time(0, 90);
    assert!(waited <= 3 * scenario.sim.time(2, 1) + own, "{waited:?}");
}

#[test]
fn requests_that_come_together_join_in_one_pass() {
    let mut requests: Vec<_> = (0..8).map(|n| request(Duration::ZERO, n, 90, 200)).collect();
    requests.extend((8..40).map(|n| request(1500 * MS, n, 50, 3)));
    let ran = Lab::new().world(&fixed_costs(requests));
    let firsts: Vec<_> = (8..40).map(|who| ran.tokens_at(who)[0]).collect();
    assert!(firsts.iter().all(|at| *at == firsts[0]), "{firsts:?}");
}

/// Nothing is known of it yet, as after a start.
#[test]
fn the_first_prompt_stops_within_a_second_however_slow_the_model() {
    for token in [MS, 18 * MS, 60 * MS] {
        for after in [1, 300, 900, 2000, 5000] {
            let mut first = request(Duration::ZERO, 0, 3000, 1);
            first.stops =
                vec![StopAttempt { when: StopTime::After(after * MS), how: StopWay::Operator }];
            let mut scenario = world(vec![first]);
            scenario.sim.prefill = token;
            let ran = Lab::new().world(&scenario);
            let ended = ran.heard(0).last().map(|(at, _)| at).expect("it hears of its end");
            if !matches!(ran.ended(0).outcome, Outcome::Cancelled(_)) {
                assert!(token == MS && after == 5000, "it had ended by itself");
                continue;
            }
            let waited = ended.saturating_sub(after * MS);
            assert!(waited <= 1001 * MS, "{waited:?} at {token:?} a token, after {after} ms");
        }
    }
}

#[test]
fn who_begins_like_another_is_served_from_its_pages() {
    let page = 16;
    let alike = |at: u32, end: TokenId| {
        let mut request = request(at * MS, 1, 3 * page, 5);
        request.prompt.extend([end; 5]);
        request
    };
    // The second comes while the first runs, the third when both have gone.
    let ran = Lab::new().world(&world(vec![alike(0, 1), alike(70, 2), alike(900, 3)]));
    let cached = |who| ran.ended(who).usage.cached_tokens as usize;
    assert_eq!([cached(0), cached(1), cached(2)], [0, 3 * page, 3 * page]);
    let computed = |who| {
        let rows = ran.seen().filter_map(ModelCall::rows).flatten();
        rows.filter(|row| row.who == who && row.from < 3 * page + 5).map(|row| row.tokens).sum()
    };
    let computed: [usize; 3] = [computed(0), computed(1), computed(2)];
    assert_eq!(computed, [3 * page + 5, 5, 5]);
}

/// One tenant asks something; another guesses it, or guesses wrong. How many cached tokens the guess
/// is told, and after what time it has its first token.
fn guess(sharing: PrefixSharing, right: bool) -> (u32, Duration) {
    let secret = |at, first| SimRequest { tenant: "acme", ..request(at, first, 800, 5) };
    let begins = if right { 1 } else { 2 };
    let guess = SimRequest { tenant: "globex", ..request(5000 * MS, begins, 800, 5) };
    let mut scenario = world(vec![secret(Duration::ZERO, 1), guess]);
    scenario.cache.prefix_sharing = sharing;
    let ran = Lab::new().world(&scenario);
    let first_token = ran.tokens_at(1)[0] - 5000 * MS;
    (ran.ended(1).usage.cached_tokens, first_token)
}

#[test]
fn a_right_guess_of_another_tenants_prompt_is_as_slow_as_a_wrong_one() {
    let wrong = guess(PrefixSharing::Tenant, false);
    assert_eq!(guess(PrefixSharing::Tenant, true), wrong);
    assert_eq!(wrong.0, 0);
    // Where tenants may know of each other it shows, so this test would see it.
    let (cached, first_token) = guess(PrefixSharing::All, true);
    assert!(cached >= 768 && first_token < wrong.1 / 5, "{cached}, {first_token:?} of {wrong:?}");
}

#[test]
fn one_whose_every_pass_fails_fails_alone() {
    let requests = (0..6).map(|n| request(n * 30 * MS, n, 20, 10)).collect();
    let mut scenario = world(requests);
    scenario.faults = Faults { poisoned: vec![3], ..Faults::default() };
    let ran = Lab::new().world(&scenario);
    for who in 0..6 {
        let failed = Outcome::Failed("the seed said so".into());
        assert_eq!(ran.ended(who).outcome, if who == 3 { failed } else { COMPLETED }, "{who}");
    }
    assert_eq!(failures(&ran), 2, "once with the others, once alone");
}

#[test]
fn the_youngest_gives_way_when_pages_run_out_and_ends_as_it_would_have() {
    let requests = (0..3).map(|n| request(n * 30 * MS, n, 16, 60)).collect();
    let mut scenario = world(requests);
    // Room for the beginnings of three and the ends of two.
    scenario.sim.cache = 160;
    let ran = Lab::new().world(&scenario);
    let lives = |who| {
        let opened =
            |seen: &&ModelCall| matches!(seen, ModelCall::Opened { who: of, .. } if *of == who);
        ran.seen().filter(opened).count()
    };
    assert_eq!((lives(0), lives(1)), (1, 1));
    assert!(lives(2) > 1, "it gave way");
    assert_eq!(ran.ended(2).outcome, COMPLETED);
}

fn failures(ran: &Ran) -> usize {
    ran.seen().filter(|seen| matches!(seen, ModelCall::Pass { failed: Some(_), .. })).count()
}

fn rows(ran: &Ran) -> Vec<usize> {
    ran.seen().filter_map(ModelCall::rows).map(<[RowOf]>::len).collect()
}

fn out_of_memory(ran: &Ran, who: usize) -> bool {
    let outcome = &ran.ended(who).outcome;
    matches!(outcome, Outcome::Failed(Fault { kind: FaultKind::OutOfMemory, .. }))
}

/// The loop that nothing bounded: nine and more are admitted where memory suffices for eight, and
/// each pass that fails takes the caches of all.
#[test]
fn memory_for_eight_streams_serves_eight_at_a_time() {
    for losing in [true, false] {
        let requests = (0..32).map(|n| request(n * 10 * MS, n, 40, 1500)).collect();
        let mut scenario = world(requests);
        scenario.sim.fail_above_rows = Some(8);
        scenario.sim.fail_loses_caches = losing;
        let ran = Lab::new().world(&scenario);
        for who in 0..32 {
            assert_eq!(ran.ended(who).outcome, COMPLETED, "{who}");
        }
        let (passes, failures) = (rows(&ran).len(), failures(&ran));
        // Halvings at first, then ever fewer tries of nine.
        assert!(failures <= 12, "{failures} of {passes} passes failed");
        // The last streams end alone, after others; up to then eight rows are in nearly every pass.
        let tokens = 32 * 1500;
        assert!(tokens * 10 > passes * 8 * 9, "{tokens} tokens in {passes} passes");
    }
}

/// CUDA is known to tell of memory that was short as an illegal access: nobody can know what it
/// means, but that each fails in a batch and none by itself.
#[test]
fn a_failure_of_an_unknown_kind_that_no_request_has_alone_makes_the_batch_smaller() {
    let requests = (0..16).map(|n| request(Duration::ZERO, n, 20, 200)).collect();
    let mut scenario = world(requests);
    scenario.faults = Faults { together: Some(5), losing: 1, ..Faults::default() };
    let ran = Lab::new().world(&scenario);
    for who in 0..16 {
        assert_eq!(ran.ended(who).outcome, COMPLETED, "{who}");
    }
    let (passes, failures) = (rows(&ran).len(), failures(&ran));
    assert!(failures <= 16, "{failures} of {passes} passes failed");
    assert!(passes < 2 * 16 * 200 / 5, "{passes} passes");
}

#[test]
fn a_model_that_gives_too_few_results_is_asked_for_fewer() {
    let requests = (0..8).map(|n| request(Duration::ZERO, n, 20, 100)).collect();
    let mut scenario = world(requests);
    scenario.faults = Faults { miscounts: Some(2), ..Faults::default() };
    let ran = Lab::new().world(&scenario);
    for who in 0..8 {
        assert_eq!(ran.ended(who).outcome, COMPLETED, "{who}");
    }
    assert!(failures(&ran) <= 12, "{} passes failed", failures(&ran));
}

#[test]
fn a_prompt_for_whose_tokens_there_is_no_memory_is_computed_in_smaller_pieces() {
    let mut requests: Vec<_> = (0..4).map(|n| request(Duration::ZERO, n, 10, 300)).collect();
    requests.push(request(1000 * MS, 9, 2000, 10));
    let mut scenario = world(requests);
    scenario.engine.decode_slowdown_max = number(1000);
    scenario.sim.fail_above_tokens = Some(100);
    scenario.sim.fail_loses_caches = true;
    let ran = Lab::new().world(&scenario);
    for who in 0..5 {
        assert_eq!(ran.ended(who).outcome, COMPLETED, "{who}");
    }
    assert!(failures(&ran) <= 12, "{} passes failed", failures(&ran));
    let most = ran.seen().filter_map(|seen| match seen {
        ModelCall::Pass { rows, failed: None } => {
            Some(rows.iter().map(|row| row.tokens).sum::<usize>())
        }
        _ => None,
    });
    let most = most.max().expect("a pass");
    assert!((50..=100).contains(&most), "{most} tokens at most, with memory for 100");
}

/// Four rows fit for the first hundred passes, then as many as are configured.
#[test]
fn memory_that_comes_back_is_used_again() {
    let requests = (0..16).map(|n| request(Duration::ZERO, n, 20, 800)).collect();
    let mut scenario = world(requests);
    scenario.engine.running_max = number(16);
    scenario.sim.fail_above_rows = Some(4);
    scenario.sim.fail_until = Some(100);
    let ran = Lab::new().world(&scenario);
    let rows = rows(&ran);
    assert!(rows[10..100].iter().all(|&rows| rows <= 5), "{:?}", &rows[..100]);
    let again = rows[100..].iter().position(|&rows| rows == 16).expect("sixteen rows again");
    assert!(again < 1000, "after {again} passes");
    assert!(failures(&ran) <= 6, "{} passes failed", failures(&ran));
}

#[test]
fn when_not_even_one_token_fits_everyone_is_told_and_nobody_is_tried_for_long() {
    let requests = (0..20).map(|n| request(n * 10 * MS, n, 50, 10)).collect();
    let mut scenario = world(requests);
    scenario.sim.fail_above_tokens = Some(0);
    let ran = Lab::new().world(&scenario);
    for who in 0..20 {
        assert!(out_of_memory(&ran, who), "{:?}", ran.ended(who));
    }
    // Halvings of the first pass, and one pass for each.
    assert!(failures(&ran) <= 20 + RETRIES_MAX as usize, "{} passes failed", failures(&ran));
}

/// What one request alone is too large for is not held against the others for long.
#[test]
fn memory_that_is_gone_for_good_ends_only_those_who_are_there() {
    let requests = (0..20).map(|n| request(n * 10 * MS, n, 50, 100)).collect();
    let mut scenario = world(requests);
    scenario.sim.fail_above_rows = Some(0);
    scenario.sim.fail_from = 20;
    scenario.sim.fail_until = Some(30);
    let ran = Lab::new().world(&scenario);
    let failed = (0..20).filter(|&who| out_of_memory(&ran, who)).count();
    assert!((1..10).contains(&failed), "{failed} of 20 ended");
    assert_eq!(failures(&ran), 10, "all ten passes that there was no memory for");
    let rows = rows(&ran);
    let again = rows[30..].iter().position(|&rows| rows >= 10).expect("ten rows again");
    assert!(again < 300, "after {again} passes");
}

#[test]
fn the_faults_of_others_take_no_retries_of_who_is_innocent() {
    let mut requests = vec![request(Duration::ZERO, 0, 20, 200)];
    let poisoned = 3 * RETRIES_MAX;
    requests.extend((0..poisoned).map(|n| request(n * 25 * MS, 1 + n, 20, 10)));
    for naming in [0, 1] {
        let mut scenario = world(requests.clone());
        let poisoned = (1..=poisoned as usize).collect();
        scenario.faults = Faults { poisoned, naming, ..Faults::default() };
        let ran = Lab::new().world(&scenario);
        assert_eq!(ran.ended(0).outcome, COMPLETED);
        assert!(failures(&ran) >= 3 * RETRIES_MAX as usize);
    }
}

/// A more urgent request takes the places of others one by one, and cannot begin in any.
#[test]
fn one_that_cannot_begin_is_tried_so_often_and_then_told_why() {
    let mut requests: Vec<_> = (0..40).map(|n| request(Duration::ZERO, n, 10, 60)).collect();
    let mut urgent = request(300 * MS, 99, 10, 10);
    urgent.verdict = of(Priority::Critical);
    urgent.oversized = true;
    requests.push(urgent);
    let mut scenario = world(requests);
    scenario.engine.running_max = number(40);
    let ran = Lab::new().world(&scenario);
    let why = format!("tried again {RETRIES_MAX} times, and failed again: no memory for one more");
    let told = Outcome::Failed(Fault { kind: FaultKind::OutOfMemory, why });
    assert_eq!(ran.ended(40).outcome, told);
    for who in 0..40 {
        assert_eq!(ran.ended(who).outcome, COMPLETED, "{who}");
    }
}

#[test]
fn a_device_that_is_lost_ends_everyone_at_once_and_takes_nobody_any_more() {
    let mut requests: Vec<_> = (0..12).map(|n| request(n / 6 * MS, n, 20, 50)).collect();
    requests.push(request(60_000 * MS, 13, 20, 50));
    let mut scenario = world(requests);
    scenario.engine.running_max = number(4);
    scenario.sim.device_lost_at = NonZeroU64::new(20);
    let ran = Lab::new().world(&scenario);
    for who in 0..12 {
        let Outcome::Failed(fault) = &ran.ended(who).outcome else { panic!("{who} goes on") };
        assert_eq!(fault.kind, FaultKind::DeviceFailed);
        assert!(fault.why.starts_with("the device has failed: "), "{fault}");
    }
    assert_eq!(ran.counts.of("refused"), 1, "who came later");
    assert_eq!(rows(&ran).len(), 20, "no pass after that");
    let last = ran.seen().filter_map(|seen| match seen {
        ModelCall::Pass { failed, .. } => failed.as_ref(),
        _ => None,
    });
    assert!(last.map(|failed| failed.kind).eq([PassFault::Broken]));
}
