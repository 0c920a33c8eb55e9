//! The order of a run.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::batch::{Measured, measure};
use crate::failure::{Failures, RequestFailure};
use crate::plan::BenchPlan;
use crate::progress::{ProgressDisplay, RunBar};
use crate::question::{PlanPosition, Question};
use crate::report::{BenchReport, Cell};
use crate::request::{LeavePoint, Ready};
use crate::stats::{Spread, percentile};
use crate::storm;
use crate::target::Target;
use crate::workload::WorkloadKind;

/// Why nothing was measured.
#[derive(Debug, thiserror::Error)]
pub enum Unusable {
    /// A target does not answer the simplest request of the plan.
    #[error("{target} does not answer a first request: {failure}")]
    Target {
        /// The target's name.
        target: String,
        /// The failure of the request.
        failure: RequestFailure,
    },
    /// Two targets have the same name, so their figures could not be told apart.
    #[error("two targets are called {0:?}: name them with NAME=URL")]
    SameName(String),
}

impl Unusable {
    /// Whether the server may have refused fields that OpenAI does not have.
    #[must_use]
    pub fn may_be_for_extensions(&self) -> bool {
        matches!(
            self,
            Self::Target { failure: RequestFailure::Status { status, .. }, .. }
                if [400, 422].contains(&status.as_u16())
        )
    }
}

/// Asks every target once, then measures.
///
/// For each iteration, workload and concurrency the targets are asked one after the other; who is
/// first changes with the iteration. Storms come last: what they leave behind should be in
/// nobody's figures.
///
/// # Errors
///
/// When a target cannot be measured at all. What fails later is in the report.
pub async fn run(
    plan: BenchPlan,
    targets: Vec<Target>,
    progress: ProgressDisplay,
) -> Result<BenchReport, Unusable> {
    let mut names = BTreeSet::new();
    if let Some(twice) = targets.iter().find(|target| !names.insert(target.name())) {
        return Err(Unusable::SameName(twice.name().to_owned()));
    }
    for target in &targets {
        first_request(&plan, target).await?;
    }
    let mut report =
        BenchReport::begin(&plan, targets.iter().map(|target| target.facts.clone()).collect());
    let plan = Arc::new(plan);
    let targets: Vec<Arc<Target>> = targets.into_iter().map(Arc::new).collect();
    let bar = RunBar::start(progress, plan.requests_per_target() * targets.len() as u64);

    let mut growing: Vec<Growing> = places(&plan)
        .filter(|place| place.workload != WorkloadKind::Storm)
        .flat_map(|place| targets.iter().map(move |target| Growing::new(target, place)))
        .collect();
    let rounds = plan.warmup + plan.iterations.get();
    for round in 0..rounds {
        for in_turn in growing.chunks_mut(targets.len()) {
            // Whoever is asked second finds a warmer machine.
            in_turn.rotate_left(usize::from(round > 0 && in_turn.len() > 1));
            for cell in in_turn {
                bar.measures(cell.describe(&plan, round));
                let place = PlanPosition { round, ..cell.place };
                let measured = measure(&plan, &cell.target, place, &bar).await;
                cell.take(measured, round < plan.warmup);
            }
        }
    }
    for cells in growing.chunks_mut(targets.len()) {
        let rank = |name: &str| report.targets.iter().position(|target| target.name == name);
        cells.sort_by_key(|cell| rank(cell.target.name()));
    }
    report.cells = growing.into_iter().map(Growing::done).collect();

    for place in places(&plan).filter(|place| place.workload == WorkloadKind::Storm) {
        for target in &targets {
            bar.measures(format!("storm, {} at once, {}", place.concurrency, target.name()));
            report.storms.push(storm::run(&plan, target, place, &bar).await);
        }
    }
    report.load_after = crate::machine::LoadAverage::now();
    Ok(report)
}

fn places(plan: &BenchPlan) -> impl Iterator<Item = PlanPosition> {
    plan.workloads.iter().flat_map(|&workload| {
        plan.concurrency.iter().map(move |&concurrency| PlanPosition {
            workload,
            concurrency,
            round: 0,
            index: 0,
        })
    })
}

/// Finds out in a second what would otherwise fail for an hour.
async fn first_request(plan: &BenchPlan, target: &Target) -> Result<(), Unusable> {
    let unusable = |failure| Unusable::Target { target: target.name().to_owned(), failure };
    let place = PlanPosition {
        workload: WorkloadKind::Short,
        concurrency: std::num::NonZeroU32::MAX,
        round: 0,
        index: 0,
    };
    let question =
        Question { max_tokens: plan.max_tokens.min(FIRST_TOKENS), ..Question::new(plan, place) };
    let ready = Ready::open(target, plan, &question).await.map_err(unusable)?;
    ready.ask(LeavePoint::Never).await.map_err(unusable)?;
    Ok(())
}

/// Length of the first answer, which nobody measures.
const FIRST_TOKENS: std::num::NonZeroU32 = std::num::NonZeroU32::new(8).expect("8 is not 0");

/// A cell while its iterations come in.
struct Growing {
    place: PlanPosition,
    target: Arc<Target>,
    cell: Cell,
    gaps: Vec<f64>,
    rates: Vec<f64>,
}

impl Growing {
    fn new(target: &Arc<Target>, place: PlanPosition) -> Self {
        let cell = Cell {
            workload: place.workload,
            concurrency: place.concurrency,
            target: target.name().to_owned(),
            batches: Vec::new(),
            inter_token_ms_p50: None,
            inter_token_ms_p99: None,
            request_tokens_per_s: None,
            warmup_failures: Failures::default(),
        };
        Self { place, target: Arc::clone(target), cell, gaps: Vec::new(), rates: Vec::new() }
    }

    fn describe(&self, plan: &BenchPlan, round: u32) -> String {
        let PlanPosition { workload, concurrency, .. } = self.place;
        let target = self.target.name();
        match round.checked_sub(plan.warmup) {
            None => format!("{workload}, {concurrency} at once, {target}, warm-up"),
            Some(iteration) => {
                let (iteration, of) = (iteration + 1, plan.iterations);
                format!("{workload}, {concurrency} at once, {target}, {iteration} of {of}")
            }
        }
    }

    fn take(&mut self, measured: Measured, warmup: bool) {
        if warmup {
            self.cell.warmup_failures.merge(&measured.batch.failures);
        } else {
            self.gaps.extend(measured.gaps);
            self.rates.extend(measured.rates);
            self.cell.batches.push(measured.batch);
        }
    }

    fn done(mut self) -> Cell {
        self.gaps.sort_by(f64::total_cmp);
        self.cell.inter_token_ms_p50 = percentile(&self.gaps, 0.50);
        self.cell.inter_token_ms_p99 = percentile(&self.gaps, 0.99);
        self.cell.request_tokens_per_s = Spread::of(self.rates);
        self.cell
    }
}

/// Files that are open beside connections: three standard ones, the runtime's, pipes to hosts.
const OTHER_FILES: u64 = 64;

/// Lets this process, and those that it starts, have so many connections open.
///
/// # Errors
///
/// When the system does not allow as many; what it allows is in the error.
pub fn room_for_connections(connections: u64) -> Result<(), TooManyConnections> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

    let limits = getrlimit(Resource::Nofile);
    let needed = connections.saturating_add(OTHER_FILES);
    if limits.maximum.is_some_and(|most| most < needed) {
        let allowed = limits.maximum.unwrap_or(u64::MAX).saturating_sub(OTHER_FILES);
        return Err(TooManyConnections { connections, allowed });
    }
    if limits.current.is_some_and(|now| now < needed) {
        let raised = Rlimit { current: Some(needed), maximum: limits.maximum };
        setrlimit(Resource::Nofile, raised).map_err(|_| TooManyConnections {
            connections,
            allowed: limits.current.unwrap_or(0),
        })?;
    }
    Ok(())
}

/// The system lets a process have fewer files open.
#[derive(Debug, thiserror::Error)]
#[error("{connections} connections at once, but this system allows {allowed} (`ulimit -Hn`)")]
pub struct TooManyConnections {
    connections: u64,
    allowed: u64,
}
