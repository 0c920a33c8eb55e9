//! What the engine runs on here: a clock that only forward passes move, a device that fails when the seed
//! says so, and a wrapper of the simulated model that records every call.

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;

use fastrand::Rng;
use interlock_engine::{Clock, Forward, ModelShape, Opening, PassFailed, Row};
use interlock_request::{Drawn, TokenId};
use interlock_sim::{Device, RowSeen, SimModel, SimSettings};

use crate::outside::Outside;
use crate::scenario::{Faults, SimRequest, one_in};
use crate::sharing::Authors;

/// Time stands still but for [`VirtualClock::advance`].
#[derive(Debug, Clone, Default)]
pub(crate) struct VirtualClock(Rc<Cell<Duration>>);

impl VirtualClock {
    pub(crate) fn advance(&self, by: Duration) {
        self.0.set(self.0.get() + by);
    }
}

impl Clock for VirtualClock {
    fn now(&self) -> Duration {
        self.0.get()
    }
}

/// A call of the model.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum ModelCall {
    /// It took a request that had drawn so many tokens.
    Opened { who: usize, generated: usize },
    /// It would not take this one.
    Refused { who: usize },
    /// It had no memory for this one.
    Oversized { who: usize },
    /// What it kept for a request is gone.
    Closed { who: usize },
    /// It computed these rows, or failed to.
    Pass { rows: Vec<RowOf>, failed: Option<PassFailed> },
}

impl ModelCall {
    /// The rows of a pass.
    pub(crate) fn rows(&self) -> Option<&[RowOf]> {
        match self {
            Self::Pass { rows, .. } => Some(rows),
            Self::Opened { .. }
            | Self::Refused { .. }
            | Self::Oversized { .. }
            | Self::Closed { .. } => None,
        }
    }
}

/// A row of a pass.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct RowOf {
    pub who: usize,
    pub from: usize,
    pub tokens: usize,
    pub draw: bool,
    /// Who else computed what it reads.
    pub read: Vec<usize>,
    /// What came of it.
    pub drawn: Option<TokenId>,
}

/// Why an oversized request is not opened.
pub(crate) const OVERSIZED: &str = "no memory for one more";

pub(crate) type CallLog = Rc<RefCell<Vec<ModelCall>>>;

/// The simulated model, watched.
pub(crate) struct Watched {
    model: SimModel,
    miscounts: Option<usize>,
    requests: Rc<[SimRequest]>,
    /// Who is who, in the order in which the simulated model opened them.
    opened: Rc<RefCell<Vec<usize>>>,
    authors: Authors,
    log: CallLog,
}

/// What it keeps for a request; its end is written down too.
pub(crate) struct Sequence {
    who: usize,
    inner: <SimModel as Forward>::Sequence,
    log: CallLog,
}

impl Drop for Sequence {
    fn drop(&mut self) {
        self.log.borrow_mut().push(ModelCall::Closed { who: self.who });
    }
}

/// The device below it.
pub(crate) struct Flaky {
    clock: VirtualClock,
    rng: Rng,
    faults: Faults,
    opened: Rc<RefCell<Vec<usize>>>,
    /// What happens outside while a pass is in the device; set once there is an outside.
    outside: Rc<OnceCell<Rc<RefCell<Outside>>>>,
}

impl Watched {
    pub(crate) fn new(
        settings: SimSettings,
        requests: Rc<[SimRequest]>,
        faults: Faults,
        rng: Rng,
        clock: &VirtualClock,
        outside: &Rc<OnceCell<Rc<RefCell<Outside>>>>,
    ) -> (Self, CallLog) {
        let (opened, log) = (Rc::default(), CallLog::default());
        let miscounts = faults.miscounts;
        let device = Flaky {
            clock: clock.clone(),
            rng,
            faults,
            opened: Rc::clone(&opened),
            outside: Rc::clone(outside),
        };
        let model = SimModel::on(settings, Box::new(device));
        (
            Self {
                model,
                miscounts,
                requests,
                opened,
                authors: Authors::default(),
                log: Rc::clone(&log),
            },
            log,
        )
    }

    /// A position that a row writes belongs to that row alone.
    fn nobody_writes_where_another_reads(&self, rows: &[Row<'_, Sequence>]) {
        let page_tokens = self.model.shape().page_tokens as usize;
        let mut written = BTreeSet::new();
        for row in rows {
            let (from, until) = (row.from as usize, row.from as usize + row.tokens.len());
            assert!(
                until <= row.pages.len() * page_tokens,
                "row of {} lacks pages",
                row.sequence.who
            );
            let new = &row.pages[from / page_tokens..until.div_ceil(page_tokens)];
            for page in new {
                assert!(written.insert(*page), "{page:?} is written by two rows");
            }
        }
        for row in rows {
            let old = &row.pages[..row.from as usize / page_tokens];
            let spoilt = old.iter().find(|page| written.contains(page));
            assert_eq!(spoilt, None, "a page that {} has read is written", row.sequence.who);
        }
    }
}

impl Forward for Watched {
    type Sequence = Sequence;

    fn shape(&self) -> ModelShape {
        self.model.shape()
    }

    fn open(&mut self, opening: &Opening<'_>) -> Result<Sequence, PassFailed> {
        // Where no part of the simulated model looks, the scenario has written who it is.
        let who = opening.generation.sampling.top_k as usize;
        assert_eq!(opening.prompt, self.requests[who].prompt, "another's prompt");
        if self.requests[who].unwelcome {
            self.log.borrow_mut().push(ModelCall::Refused { who });
            return Err(PassFailed::new("unwelcome"));
        }
        if self.requests[who].oversized {
            self.log.borrow_mut().push(ModelCall::Oversized { who });
            return Err(PassFailed::new(OVERSIZED).too_large());
        }
        let inner = self.model.open(opening)?;
        self.opened.borrow_mut().push(who);
        self.log.borrow_mut().push(ModelCall::Opened { who, generated: opening.generated.len() });
        Ok(Sequence { who, inner, log: Rc::clone(&self.log) })
    }

    fn pass(&mut self, rows: &mut [Row<'_, Sequence>]) -> Result<Vec<Option<Drawn>>, PassFailed> {
        self.nobody_writes_where_another_reads(rows);
        let page_tokens = self.model.shape().page_tokens as usize;
        let authors = &mut self.authors;
        let mut told: Vec<_> = rows
            .iter()
            .map(|row| RowOf {
                who: row.sequence.who,
                from: row.from as usize,
                tokens: row.tokens.len(),
                draw: row.draw,
                read: authors.read(row.sequence.who, row, page_tokens),
                drawn: None,
            })
            .collect();
        let mut inner: Vec<_> = rows
            .iter_mut()
            .map(|row| Row {
                sequence: &mut row.sequence.inner,
                tokens: row.tokens,
                from: row.from,
                pages: row.pages,
                draw: row.draw,
            })
            .collect();
        let mut result = self.model.pass(&mut inner);
        let wanted = inner.len();
        let failed = match &mut result {
            Ok(drawn) if self.miscounts.is_some_and(|most| wanted > most) => {
                drawn.pop();
                let got = drawn.len();
                let why = format!("a pass of {wanted} rows gave {got} results");
                Some(PassFailed::new(why).losing_caches())
            }
            Ok(_) => None,
            Err(failed) => Some(failed.clone()),
        };
        if failed.is_none()
            && let Ok(drawn) = &result
        {
            for (row, drawn) in told.iter_mut().zip(drawn) {
                row.drawn = drawn.as_ref().map(|drawn| drawn.token);
            }
        }
        self.log.borrow_mut().push(ModelCall::Pass { rows: told, failed });
        result
    }
}

impl Device for Flaky {
    fn pass(&mut self, rows: &[RowSeen], time: Duration) -> Result<(), PassFailed> {
        self.clock.advance(time);
        if let Some(outside) = self.outside.get() {
            outside.borrow_mut().deliver();
        }
        let opened = self.opened.borrow();
        let poisoned = |row: &RowSeen| self.faults.poisoned.contains(&opened[row.request]);
        let poison = rows.iter().position(poisoned);
        let crowded = self.faults.together.is_some_and(|most| rows.len() > most);
        let fails = crowded || poison.is_some() || one_in(&mut self.rng, self.faults.one_in);
        if !fails {
            return Ok(());
        }
        let mut failed = PassFailed::new("the seed said so");
        if !crowded && one_in(&mut self.rng, self.faults.naming) {
            let row = poison.unwrap_or_else(|| self.rng.usize(0..rows.len()));
            let wrongly = self.rng.u32(0..100) < self.faults.naming_wrongly;
            failed = failed.of_row(if wrongly { rows.len() + row } else { row });
        }
        if one_in(&mut self.rng, self.faults.losing) {
            failed = failed.losing_caches();
        }
        Err(failed)
    }
}
