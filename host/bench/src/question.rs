//! What each request of a run asks for.
//!
//! # Invariants
//!
//! - Same seed, same place in the plan, same prompt: every target is asked the same.
//! - No two prompts of a run begin alike, since servers keep what they computed of a beginning;
//!   except in [`WorkloadKind::SharedPrefix`], where all do, on purpose.

use std::num::NonZeroU32;

use fastrand::Rng;

use crate::plan::BenchPlan;
use crate::workload::WorkloadKind;

/// The position of a request in a plan. Two requests to one target have different positions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PlanPosition {
    pub(crate) workload: WorkloadKind,
    pub(crate) concurrency: NonZeroU32,
    /// Warm-up rounds count too.
    pub(crate) round: u32,
    pub(crate) index: u32,
}

/// The prompt of a request, and the most tokens of its answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Question {
    pub(crate) system: Option<String>,
    pub(crate) user: String,
    pub(crate) max_tokens: NonZeroU32,
}

/// Tokens of a short prompt, about.
const SHORT: u32 = 32;
/// The shortest answer of the mixed workload.
const ANSWER_MIN: u32 = 8;

/// Common enough to be one token each in most vocabularies.
const WORDS: [&str; 64] = [
    "time",
    "year",
    "people",
    "way",
    "day",
    "man",
    "thing",
    "woman",
    "life",
    "child",
    "world",
    "school",
    "state",
    "family",
    "student",
    "group",
    "country",
    "problem",
    "hand",
    "part",
    "place",
    "case",
    "week",
    "company",
    "system",
    "program",
    "question",
    "work",
    "government",
    "number",
    "night",
    "point",
    "home",
    "water",
    "room",
    "mother",
    "area",
    "money",
    "story",
    "fact",
    "month",
    "lot",
    "right",
    "study",
    "book",
    "eye",
    "job",
    "word",
    "business",
    "issue",
    "side",
    "kind",
    "head",
    "house",
    "service",
    "friend",
    "father",
    "power",
    "hour",
    "game",
    "line",
    "end",
    "member",
    "law",
];

impl Question {
    pub(crate) fn new(plan: &BenchPlan, place: PlanPosition) -> Self {
        let rng = &mut place.rng(plan.seed);
        let long = plan.prompt_tokens.get();
        let most = plan.max_tokens;
        let (system, user, max_tokens) = match place.workload {
            WorkloadKind::Short | WorkloadKind::Storm => (None, question(rng, SHORT), most),
            WorkloadKind::LongPrompt => (None, question(rng, long), most),
            WorkloadKind::SharedPrefix => {
                let shared = &mut Rng::with_seed(plan.seed);
                (Some(words(shared, long)), question(rng, SHORT), most)
            }
            WorkloadKind::Mixed => {
                let prompt = log_uniform(rng, SHORT.min(long), long);
                let answer = log_uniform(rng, ANSWER_MIN.min(most.get()), most.get());
                let answer = NonZeroU32::new(answer).unwrap_or(NonZeroU32::MIN);
                (None, question(rng, prompt), answer)
            }
        };
        Self { system, user, max_tokens }
    }
}

impl PlanPosition {
    pub(crate) fn rng(self, seed: u64) -> Rng {
        let parts = [
            self.workload as u64,
            self.concurrency.get().into(),
            self.round.into(),
            self.index.into(),
        ];
        // Each step mixes what came before, so that neighbouring places have unrelated prompts.
        let mixed = parts.into_iter().fold(seed, |seed, part| Rng::with_seed(seed ^ part).u64(..));
        Rng::with_seed(mixed)
    }
}

/// About `tokens` long; its number comes first, so that no two begin alike.
fn question(rng: &mut Rng, tokens: u32) -> String {
    let number = rng.u32(100_000_000..1_000_000_000);
    if tokens < SHORT {
        // No room for a sentence: nine digits, which many vocabularies take one by one, and words.
        return format!("{number}: {}", words(rng, tokens.saturating_sub(10).max(1)));
    }
    // A number of nine digits, and the words around the list, are some twelve tokens.
    let list = words(rng, tokens.saturating_sub(12).max(4));
    format!("{number}: write a long story with these words: {list}")
}

fn words(rng: &mut Rng, count: u32) -> String {
    let words: Vec<&str> = (0..count).map(|_| WORDS[rng.usize(..WORDS.len())]).collect();
    words.join(" ")
}

/// As many between 16 and 32 as between 512 and 1024: lengths in the wild spread like that.
fn log_uniform(rng: &mut Rng, least: u32, most: u32) -> u32 {
    let (low, high) = (f64::from(least).ln(), f64::from(most).ln());
    let drawn = (low + rng.f64() * (high - low)).exp().round() as u32;
    drawn.clamp(least, most)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::plan::tests::plan;

    fn questions(workload: WorkloadKind, seed: u64) -> Vec<Question> {
        let plan = BenchPlan { seed, ..plan() };
        let place = |concurrency, round, index| PlanPosition {
            workload,
            concurrency: NonZeroU32::new(concurrency).expect("not zero"),
            round,
            index,
        };
        let places = [1, 2, 8].into_iter().flat_map(|concurrency| {
            (0..3)
                .flat_map(move |round| (0..concurrency).map(move |i| place(concurrency, round, i)))
        });
        places.map(|place| Question::new(&plan, place)).collect()
    }

    fn beginnings(questions: &[Question]) -> BTreeSet<String> {
        let all = |question: &Question| {
            question.system.iter().chain([&question.user]).cloned().collect::<String>()
        };
        questions.iter().map(|question| all(question).chars().take(9).collect()).collect()
    }

    #[test]
    fn a_seed_decides_every_prompt() {
        for workload in WorkloadKind::ALL {
            assert_eq!(questions(workload, 7), questions(workload, 7));
            assert_ne!(questions(workload, 7), questions(workload, 8));
        }
    }

    #[test]
    fn prompts_begin_differently_unless_they_share_a_prefix_on_purpose() {
        for workload in WorkloadKind::ALL {
            let asked = questions(workload, 1);
            let expected = if workload == WorkloadKind::SharedPrefix { 1 } else { asked.len() };
            assert_eq!(beginnings(&asked).len(), expected, "{workload}");
        }
    }

    #[test]
    fn a_long_prompt_has_about_the_tokens_asked_for() {
        for question in questions(WorkloadKind::LongPrompt, 1) {
            let words = question.user.split_whitespace().count();
            assert!((250..=270).contains(&words), "{words} words");
        }
    }

    #[test]
    fn a_prompt_can_be_as_short_as_a_number_and_a_few_words() {
        let plan = BenchPlan { prompt_tokens: NonZeroU32::new(16).expect("not zero"), ..plan() };
        let place = PlanPosition {
            workload: WorkloadKind::LongPrompt,
            concurrency: NonZeroU32::MIN,
            round: 0,
            index: 0,
        };
        let asked = Question::new(&plan, place).user;
        let (number, list) = asked.split_once(": ").expect("a number, then words");
        assert_eq!((number.len(), list.split(' ').count()), (9, 6), "{asked}");
    }

    #[test]
    fn mixed_lengths_differ_and_keep_within_the_plan() {
        let asked = questions(WorkloadKind::Mixed, 1);
        let answers: BTreeSet<u32> = asked.iter().map(|q| q.max_tokens.get()).collect();
        assert!(answers.len() > asked.len() / 2, "{answers:?}");
        assert!(answers.iter().all(|tokens| (8..=64).contains(tokens)), "{answers:?}");
    }
}
