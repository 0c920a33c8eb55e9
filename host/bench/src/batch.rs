//! One batch: as many requests as the concurrency says, sent at once, each timed.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{Barrier, Semaphore};
use tokio::task::JoinSet;

use crate::failure::{Failures, RequestFailure};
use crate::machine;
use crate::plan::BenchPlan;
use crate::progress::RunBar;
use crate::question::{PlanPosition, Question};
use crate::report::Iteration;
use crate::request::{CompleteAnswer, LeavePoint, Ready, RequestEnd};
use crate::stats::{mean, percentile};
use crate::target::Target;

/// Connections that open at the same time. A server's backlog holds some hundreds; what does not fit
/// the kernel asks again after seconds, and some of it only after the clock has started.
const OPENING_MAX: usize = 64;

/// A batch's figures, and what only figures over all batches need.
pub(crate) struct Measured {
    pub(crate) batch: Iteration,
    /// Times between two pieces of text of an answer, in milliseconds.
    pub(crate) gaps: Vec<f64>,
    /// Tokens per second of each answer.
    pub(crate) rates: Vec<f64>,
}

/// Makes the clients of a batch wait for each other: the first request is sent when the last
/// connection is open.
struct Start {
    opening: Semaphore,
    all_open: Barrier,
}

impl Start {
    fn of(clients: u32) -> Self {
        Self { opening: Semaphore::new(OPENING_MAX), all_open: Barrier::new(clients as usize) }
    }

    /// Opens one client's connection. Returns when all clients' are open, or have failed to.
    async fn after<T>(&self, open: impl Future<Output = T>) -> T {
        let turn = self.opening.acquire().await.expect("nobody closes the semaphore");
        let opened = open.await;
        drop(turn);
        self.all_open.wait().await;
        opened
    }
}

/// One request of a batch, answered or not.
struct TimedRequest {
    sent: Instant,
    ended: Instant,
    answered: Result<CompleteAnswer, RequestFailure>,
    /// Tokens that the request asked for.
    wanted: u32,
}

/// Sends the batch of this place and waits for all of it.
pub(crate) async fn measure(
    plan: &Arc<BenchPlan>,
    target: &Arc<Target>,
    place: PlanPosition,
    bar: &RunBar,
) -> Measured {
    let size = place.concurrency.get();
    let start = Arc::new(Start::of(size));
    let cpu_before = cpu(target);
    let mut tasks = JoinSet::new();
    for index in 0..size {
        let (plan, target, start) = (Arc::clone(plan), Arc::clone(target), Arc::clone(&start));
        let question = Question::new(&plan, PlanPosition { index, ..place });
        tasks.spawn(async move {
            let wanted = question.max_tokens.get();
            let ready = start.after(Ready::open(&target, &plan, &question)).await;
            let sent = Instant::now();
            let answered = match ready {
                Ok(ready) => match ready.ask(LeavePoint::Never).await {
                    Ok(RequestEnd::Whole(answered)) => Ok(answered),
                    Ok(RequestEnd::Left) => unreachable!("nobody leaves a measured batch"),
                    Err(failure) => Err(failure),
                },
                Err(failure) => Err(failure),
            };
            TimedRequest { sent, ended: Instant::now(), answered, wanted }
        });
    }
    let mut asked = Vec::with_capacity(size as usize);
    while let Some(one) = tasks.join_next().await {
        asked.push(one.expect("a request's task does not panic, and nobody aborts it"));
        bar.advance();
    }
    let cpu_seconds = cpu(target).zip(cpu_before).map(|(after, before)| after - before);
    sum_up(asked, cpu_seconds)
}

fn cpu(target: &Target) -> Option<f64> {
    target.process.and_then(machine::cpu_seconds)
}

fn sum_up(asked: Vec<TimedRequest>, cpu_seconds: Option<f64>) -> Measured {
    let first_sent = asked.iter().map(|one| one.sent).min();
    let last_ended = asked.iter().map(|one| one.ended).max();
    let wall = first_sent.zip(last_ended).map_or(Duration::ZERO, |(from, to)| to - from);
    let wall_s = wall.as_secs_f64();

    let requests = asked.len() as u64;
    let mut failures = Failures::default();
    let mut whole = Vec::new();
    let (mut short, mut counted) = (0, 0);
    for TimedRequest { answered, wanted, .. } in asked {
        match answered {
            Ok(answered) => {
                short += u64::from(answered.tokens_or_chunks() < wanted);
                counted += u64::from(answered.tokens.is_some());
                whole.push(answered);
            }
            Err(failure) => failures.add(&failure),
        }
    }

    let tokens: u64 = whole.iter().map(|one| u64::from(one.tokens_or_chunks())).sum();
    let rates: Vec<f64> = whole
        .iter()
        .filter(|one| !one.took.is_zero())
        .map(|one| f64::from(one.tokens_or_chunks()) / one.took.as_secs_f64())
        .collect();
    let firsts = sorted_ms(whole.iter().filter_map(|one| one.first));
    let gaps = sorted_ms(whole.iter().flat_map(|one| one.gaps.iter().copied()));
    let tokens_per_s = (wall_s > 0.0 && !whole.is_empty()).then(|| tokens as f64 / wall_s);
    let batch = Iteration {
        requests,
        answered: whole.len() as u64,
        short,
        tokens,
        counted_by_server: counted,
        chunks: whole.iter().map(|one| u64::from(one.chunks)).sum(),
        prompt_tokens: whole.iter().map(|one| u64::from(one.prompt_tokens.unwrap_or(0))).sum(),
        wall_s,
        tokens_per_s,
        request_tokens_per_s: mean(&rates),
        first_token_ms_least: firsts.first().copied(),
        first_token_ms_mean: mean(&firsts),
        first_token_ms_most: firsts.last().copied(),
        inter_token_ms_p50: percentile(&gaps, 0.50),
        inter_token_ms_p99: percentile(&gaps, 0.99),
        cpu_s: cpu_seconds,
        failures,
    };
    Measured { batch, gaps, rates }
}

fn sorted_ms(durations: impl Iterator<Item = Duration>) -> Vec<f64> {
    let mut ms: Vec<f64> = durations.map(|duration| duration.as_secs_f64() * 1e3).collect();
    ms.sort_by(f64::total_cmp);
    ms
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    fn answered(first_ms: u64, took_ms: u64, tokens: u32) -> CompleteAnswer {
        CompleteAnswer {
            first: Some(Duration::from_millis(first_ms)),
            took: Duration::from_millis(took_ms),
            gaps: vec![Duration::from_millis(took_ms - first_ms)],
            chunks: 2,
            tokens: Some(tokens),
            prompt_tokens: Some(5),
        }
    }

    #[test]
    fn a_batch_lasts_from_the_first_request_to_the_last_answer() {
        let begin = Instant::now();
        let at = |ms| begin + Duration::from_millis(ms);
        let one = |sent, ended, answered| TimedRequest {
            sent: at(sent),
            ended: at(ended),
            answered,
            wanted: 10,
        };
        let asked = vec![
            one(10, 1010, Ok(answered(100, 1000, 10))),
            one(0, 500, Ok(answered(50, 500, 10))),
            one(5, 2000, Err(RequestFailure::Timeout(Duration::from_secs(2)))),
            one(0, 500, Ok(answered(70, 250, 5))),
        ];
        let Measured { batch, gaps, rates } = sum_up(asked, Some(0.5));
        assert_eq!(rates, [10.0, 20.0, 20.0]);
        assert_eq!((batch.requests, batch.answered, batch.short), (4, 3, 1));
        assert_eq!((batch.tokens, batch.chunks, batch.prompt_tokens), (25, 6, 15));
        assert!((batch.wall_s - 2.0).abs() < 1e-9, "{}", batch.wall_s);
        assert_eq!(batch.tokens_per_s, Some(12.5));
        assert_eq!(batch.request_tokens_per_s, Some((10.0 + 20.0 + 20.0) / 3.0));
        assert_eq!(batch.first_token_ms_least, Some(50.0));
        assert_eq!(batch.first_token_ms_most, Some(100.0));
        assert_eq!(gaps, [180.0, 450.0, 900.0]);
        assert_eq!(batch.inter_token_ms_p50, Some(450.0));
        assert_eq!(batch.failures.count(), 1);
    }

    /// All on one thread: whoever is let through goes on at once.
    #[tokio::test]
    async fn nobody_is_asked_before_the_last_connection_is_open() {
        const CLIENTS: u32 = OPENING_MAX as u32 + 8;
        let start = Arc::new(Start::of(CLIENTS));
        let (opened, asked) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
        let mut clients = JoinSet::new();
        for _ in 0..CLIENTS {
            let (start, opened, asked) =
                (Arc::clone(&start), Arc::clone(&opened), Arc::clone(&asked));
            clients.spawn(async move {
                let early = start
                    .after(async {
                        // The last to open sees what all the others have done since they did.
                        let before = opened.fetch_add(1, Ordering::Relaxed);
                        (before, asked.load(Ordering::Relaxed))
                    })
                    .await;
                asked.fetch_add(1, Ordering::Relaxed);
                early
            });
        }
        let seen = clients.join_all().await;
        assert!(seen.iter().any(|(before, _)| *before == CLIENTS - 1), "there is a last one");
        assert!(seen.iter().all(|(_, asked)| *asked == 0), "opened before, asked: {seen:?}");
    }

    #[test]
    fn a_batch_without_an_answer_has_no_rates() {
        let now = Instant::now();
        let failed = TimedRequest {
            sent: now,
            ended: now + Duration::from_secs(1),
            answered: Err(RequestFailure::Connect("refused".to_owned())),
            wanted: 1,
        };
        let Measured { batch, .. } = sum_up(vec![failed], None);
        assert_eq!((batch.tokens_per_s, batch.inter_token_ms_p99), (None, None));
        assert_eq!(batch.failures.count(), 1);
    }
}
