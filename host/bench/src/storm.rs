//! The disconnect storm: clients that leave at all times, and a look at the server afterwards.
//!
//! Servers have died of this, and worse, gone on with requests that nobody would read.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use crate::failure::{Failures, RequestFailure};
use crate::plan::BenchPlan;
use crate::progress::RunBar;
use crate::question::{PlanPosition, Question};
use crate::report::{Storm, StormAfter};
use crate::request::{LeavePoint, Ready, RequestEnd};
use crate::target::Target;

/// How often a server is asked whether it has noticed that everyone left.
const SETTLE_POLL: Duration = Duration::from_millis(50);
/// A client that leaves before any text leaves within this time.
const PATIENCE_MAX: Duration = Duration::from_millis(200);

/// Keeps as many requests in flight as the position's concurrency, until all rounds are sent or the
/// time is over.
pub(crate) async fn run(
    plan: &Arc<BenchPlan>,
    target: &Arc<Target>,
    place: PlanPosition,
    bar: &RunBar,
) -> Storm {
    let at_once = place.concurrency.get();
    let mut storm = Storm {
        concurrency: place.concurrency,
        target: target.name().to_owned(),
        requests: 0,
        served: 0,
        left_before_text: 0,
        left_midway: 0,
        refused: Failures::default(),
        failures: Failures::default(),
        wall_s: 0.0,
        after: StormAfter::default(),
    };
    let failed_before = LiveCounts::of(target).await.and_then(|live| live.failed_passes);
    let mut flying = JoinSet::new();
    let begun = Instant::now();
    // As many as fly at once are sent whatever the time says: none would be no storm.
    let goes_on = |round| match plan.storm.time {
        None => round < plan.storm.rounds.get(),
        Some(time) => round == 0 || begun.elapsed() < time,
    };
    let mut places = (0..u32::MAX)
        .flat_map(|round| (0..at_once).map(move |index| PlanPosition { round, index, ..place }))
        .take_while(|place| goes_on(place.round));
    loop {
        while flying.len() < at_once as usize
            && let Some(place) = places.next()
        {
            storm.requests += 1;
            flying.spawn(one(Arc::clone(plan), Arc::clone(target), place));
        }
        let Some(ended) = flying.join_next().await else { break };
        let (leave, ended) = ended.expect("a request's task does not panic, and nobody aborts it");
        bar.advance();
        match (ended, leave) {
            (Ok(RequestEnd::Whole(_)), _) => storm.served += 1,
            (Ok(RequestEnd::Left), LeavePoint::AfterText(_)) => storm.left_midway += 1,
            (Ok(RequestEnd::Left), _) => storm.left_before_text += 1,
            (Err(failure), _) if failure.is_refusal() => storm.refused.add(&failure),
            (Err(failure), _) => storm.failures.add(&failure),
        }
    }
    storm.wall_s = begun.elapsed().as_secs_f64();
    storm.after = afterwards(plan, target, place).await;
    // Those that failed before are no fault of this storm's.
    if let (Some(failed), Some(before)) = (&mut storm.after.failed_passes, failed_before) {
        *failed -= before;
    }
    storm
}

async fn one(
    plan: Arc<BenchPlan>,
    target: Arc<Target>,
    place: PlanPosition,
) -> (LeavePoint, Result<RequestEnd, RequestFailure>) {
    let question = Question::new(&plan, place);
    let leave = leaves(&plan, place, question.max_tokens.get());
    let ended = match Ready::open(&target, &plan, &question).await {
        Ok(ready) => ready.ask(leave).await,
        Err(failure) => Err(failure),
    };
    (leave, ended)
}

/// When this request leaves; the seed decides.
fn leaves(plan: &BenchPlan, place: PlanPosition, tokens: u32) -> LeavePoint {
    let mut rng = place.rng(plan.seed.wrapping_add(1));
    if rng.u8(..100) >= plan.storm.leave_percent {
        return LeavePoint::Never;
    }
    // Without a stream there is no middle of an answer to leave in.
    if rng.bool() || !plan.stream {
        LeavePoint::BeforeText(PATIENCE_MAX.mul_f64(rng.f64()))
    } else {
        LeavePoint::AfterText(rng.u32(1..=(tokens / 2).max(1)))
    }
}

async fn afterwards(plan: &BenchPlan, target: &Target, place: PlanPosition) -> StormAfter {
    let settled = settled(target, plan.storm.settle).await;
    // A place that no round had.
    let question = Question::new(plan, PlanPosition { round: u32::MAX, ..place });
    let plain = match Ready::open(target, plan, &question).await {
        Ok(ready) => ready.ask(LeavePoint::Never).await,
        Err(failure) => Err(failure),
    };
    let failure = plain.err().map(|failure| failure.to_string());
    StormAfter { failure, ..settled }
}

/// How long an Interlock took to be rid of all requests, or what it was left with.
async fn settled(target: &Target, most: Duration) -> StormAfter {
    let begun = Instant::now();
    loop {
        let Some(live) = LiveCounts::of(target).await else {
            // Another server's metrics, or none: it is judged by the plain request alone.
            return StormAfter::default();
        };
        let elapsed = begun.elapsed();
        let LiveCounts { running, waiting, passes_in_flight_max, failed_passes } = live;
        let idle = running + waiting == 0.0;
        if idle || elapsed > most {
            return StormAfter {
                failure: None,
                idle_after_s: idle.then_some(elapsed.as_secs_f64()),
                still: (!idle).then(|| format!("{running} running, {waiting} waiting")),
                passes_in_flight_max,
                failed_passes,
            };
        }
        tokio::time::sleep(SETTLE_POLL).await;
    }
}

/// Requests that an Interlock still has, and what its device has been through.
#[derive(Debug, Clone, Copy, PartialEq)]
struct LiveCounts {
    running: f64,
    waiting: f64,
    passes_in_flight_max: Option<f64>,
    failed_passes: Option<f64>,
}

impl LiveCounts {
    async fn of(target: &Target) -> Option<Self> {
        let page = target.page("/metrics").await.ok()?;
        Self::read(&String::from_utf8_lossy(&page))
    }

    fn read(metrics: &str) -> Option<Self> {
        Some(Self {
            running: total(metrics, "interlock_requests_running")?,
            waiting: total(metrics, "interlock_requests_waiting")?,
            passes_in_flight_max: total(metrics, "interlock_engine_passes_in_flight_max"),
            failed_passes: total(metrics, "interlock_engine_pass_failures_total"),
        })
    }
}

/// The sum of a family's samples, whatever their labels; None when there is none.
fn total(metrics: &str, family: &str) -> Option<f64> {
    let value = |line: &str| -> Option<f64> {
        let rest = line.strip_prefix(family)?;
        let (labels, value) = rest.rsplit_once(' ')?;
        (labels.is_empty() || labels.starts_with('{')).then(|| value.parse().ok())?
    };
    metrics.lines().filter_map(value).reduce(|sum, value| sum + value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Storming;
    use crate::plan::tests::{nonzero, plan};
    use crate::workload::WorkloadKind;

    fn all(leave_percent: u8) -> Vec<LeavePoint> {
        let storm = Storming { leave_percent, ..plan().storm };
        let plan = BenchPlan { storm, ..plan() };
        let place = |index| PlanPosition {
            workload: WorkloadKind::Storm,
            concurrency: nonzero(200),
            round: 0,
            index,
        };
        (0..200).map(|index| leaves(&plan, place(index), 64)).collect()
    }

    #[test]
    fn the_stated_share_leaves_and_at_all_times() {
        assert!(all(0).iter().all(|leave| *leave == LeavePoint::Never));
        assert!(all(100).iter().all(|leave| *leave != LeavePoint::Never));
        let half = all(50);
        let count =
            |which: fn(&LeavePoint) -> bool| half.iter().filter(|leave| which(leave)).count();
        assert!((70..=130).contains(&count(|leave| *leave == LeavePoint::Never)));
        assert!(count(|leave| matches!(leave, LeavePoint::BeforeText(_))) > 25);
        assert!(count(|leave| matches!(leave, LeavePoint::AfterText(1..=32))) > 25);
        assert_eq!(half, all(50), "the seed decides");
    }

    #[test]
    fn only_an_interlock_has_the_gauges() {
        let page = "# HELP interlock_requests_running x\ninterlock_requests_running 2\n\
                    interlock_requests_waiting 0\ninterlock_requests_waiting_x 9\n\
                    interlock_engine_pass_failures_total{kind=\"row\"} 2\n\
                    interlock_engine_pass_failures_total{kind=\"broken\"} 1\n";
        let live = LiveCounts {
            running: 2.0,
            waiting: 0.0,
            passes_in_flight_max: None,
            failed_passes: Some(3.0),
        };
        assert_eq!(LiveCounts::read(page), Some(live));
        assert_eq!(LiveCounts::read("vllm:num_requests_running 0\n"), None);
    }
}
