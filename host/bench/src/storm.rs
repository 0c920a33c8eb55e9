//! The disconnect storm: clients that leave at all times, and a look at the server afterwards.
//!
//! Servers have died of this, and worse, gone on with requests that nobody would read.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use crate::failure::{Failure, Failures};
use crate::plan::Plan;
use crate::progress::Bar;
use crate::report::{Storm, StormAfter};
use crate::request::{Ended, Leave, Ready};
use crate::target::Target;
use crate::workload::{Place, Question};

/// How often a server is asked whether it has noticed that everyone left.
const SETTLE_POLL: Duration = Duration::from_millis(50);
/// Who leaves before any text does so within this time.
const PATIENCE_MAX: Duration = Duration::from_millis(200);

/// Keeps as many requests in flight as the place says, until all rounds are asked.
pub(crate) async fn rage(plan: &Arc<Plan>, target: &Arc<Target>, place: Place, bar: &Bar) -> Storm {
    let at_once = place.concurrency.get();
    let requests = u64::from(at_once) * u64::from(plan.storm.rounds.get());
    let mut storm = Storm {
        concurrency: place.concurrency,
        target: target.name().to_owned(),
        requests,
        served: 0,
        left_before_text: 0,
        left_midway: 0,
        refused: Failures::default(),
        failures: Failures::default(),
        wall_s: 0.0,
        after: StormAfter { failure: None, idle_after_s: None, still: None },
    };
    let mut places = (0..plan.storm.rounds.get())
        .flat_map(|round| (0..at_once).map(move |index| Place { round, index, ..place }));
    let mut flying = JoinSet::new();
    let begun = Instant::now();
    loop {
        while flying.len() < at_once as usize
            && let Some(place) = places.next()
        {
            flying.spawn(one(Arc::clone(plan), Arc::clone(target), place));
        }
        let Some(ended) = flying.join_next().await else { break };
        let (leave, ended) = ended.expect("a request's task does not panic, and nobody aborts it");
        bar.advance();
        match (ended, leave) {
            (Ok(Ended::Whole(_)), _) => storm.served += 1,
            (Ok(Ended::Left), Leave::AfterText(_)) => storm.left_midway += 1,
            (Ok(Ended::Left), _) => storm.left_before_text += 1,
            (Err(failure), _) if failure.is_refusal() => storm.refused.add(&failure),
            (Err(failure), _) => storm.failures.add(&failure),
        }
    }
    storm.wall_s = begun.elapsed().as_secs_f64();
    storm.after = afterwards(plan, target, place).await;
    storm
}

async fn one(
    plan: Arc<Plan>,
    target: Arc<Target>,
    place: Place,
) -> (Leave, Result<Ended, Failure>) {
    let question = Question::new(&plan, place);
    let leave = leaves(&plan, place, question.max_tokens.get());
    let ended = match Ready::open(&target, &plan, &question).await {
        Ok(ready) => ready.ask(leave).await,
        Err(failure) => Err(failure),
    };
    (leave, ended)
}

/// When this request leaves; the seed decides.
fn leaves(plan: &Plan, place: Place, tokens: u32) -> Leave {
    let mut rng = place.rng(plan.seed.wrapping_add(1));
    if rng.u8(..100) >= plan.storm.leave_percent {
        return Leave::Never;
    }
    // Without a stream there is no middle of an answer to leave in.
    if rng.bool() || !plan.stream {
        Leave::BeforeText(PATIENCE_MAX.mul_f64(rng.f64()))
    } else {
        Leave::AfterText(rng.u32(1..=(tokens / 2).max(1)))
    }
}

async fn afterwards(plan: &Plan, target: &Target, place: Place) -> StormAfter {
    let (idle_after_s, still) = settled(target, plan.storm.settle).await;
    // A place that no round had.
    let question = Question::new(plan, Place { round: u32::MAX, ..place });
    let plain = match Ready::open(target, plan, &question).await {
        Ok(ready) => ready.ask(Leave::Never).await,
        Err(failure) => Err(failure),
    };
    let failure = plain.err().map(|failure| failure.to_string());
    StormAfter { failure, idle_after_s, still }
}

/// How long an Interlock took to be rid of all requests, or what it was left with.
async fn settled(target: &Target, most: Duration) -> (Option<f64>, Option<String>) {
    let begun = Instant::now();
    loop {
        let page = target.page("/metrics").await;
        let Some(live) = page.ok().and_then(|page| Live::read(&String::from_utf8_lossy(&page)))
        else {
            // Another server's metrics, or none: it is judged by the plain request alone.
            return (None, None);
        };
        let elapsed = begun.elapsed();
        if live.is_none() {
            return (Some(elapsed.as_secs_f64()), None);
        }
        if elapsed > most {
            let Live { running, waiting } = live;
            return (None, Some(format!("{running} running, {waiting} waiting")));
        }
        tokio::time::sleep(SETTLE_POLL).await;
    }
}

/// Requests that an Interlock still has.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Live {
    running: f64,
    waiting: f64,
}

impl Live {
    fn read(metrics: &str) -> Option<Self> {
        let gauge = |name: &str| {
            let value =
                |line: &str| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok();
            metrics.lines().find_map(value)
        };
        let running = gauge("interlock_requests_running")?;
        Some(Self { running, waiting: gauge("interlock_requests_waiting")? })
    }

    fn is_none(self) -> bool {
        self.running + self.waiting == 0.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Storming;
    use crate::plan::tests::{nonzero, plan};
    use crate::workload::Workload;

    fn all(leave_percent: u8) -> Vec<Leave> {
        let storm = Storming { leave_percent, ..plan().storm };
        let plan = Plan { storm, ..plan() };
        let place =
            |index| Place { workload: Workload::Storm, concurrency: nonzero(200), round: 0, index };
        (0..200).map(|index| leaves(&plan, place(index), 64)).collect()
    }

    #[test]
    fn the_stated_share_leaves_and_at_all_times() {
        assert!(all(0).iter().all(|leave| *leave == Leave::Never));
        assert!(all(100).iter().all(|leave| *leave != Leave::Never));
        let half = all(50);
        let count = |which: fn(&Leave) -> bool| half.iter().filter(|leave| which(leave)).count();
        assert!((70..=130).contains(&count(|leave| *leave == Leave::Never)));
        assert!(count(|leave| matches!(leave, Leave::BeforeText(_))) > 25);
        assert!(count(|leave| matches!(leave, Leave::AfterText(1..=32))) > 25);
        assert_eq!(half, all(50), "the seed decides");
    }

    #[test]
    fn only_an_interlock_has_the_gauges() {
        let page = "# HELP interlock_requests_running x\ninterlock_requests_running 2\n\
                    interlock_requests_waiting 0\ninterlock_requests_waiting_x 9\n";
        assert_eq!(Live::read(page), Some(Live { running: 2.0, waiting: 0.0 }));
        assert_eq!(Live::read("vllm:num_requests_running 0\n"), None);
    }
}
