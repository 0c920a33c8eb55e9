//! The duty to tell the policies how a request ended, and to let them forget it.
//!
//! # Invariants
//!
//! - It is fulfilled exactly once: by hand, or when it is dropped, whatever dropped it: a panic, a
//!   future that nobody polls any more, a client that left while a policy was being asked.
//! - Who was asked to admit the request, or failed to answer, hears how it ended, but for the one
//!   that turned it away itself. Who is not asked hears only of what was admitted.
//! - Every policy of the panel forgets the request, after everything that it was asked of it, also
//!   what nobody waits for any more, and nothing is asked after that.

use std::sync::Arc;
use std::time::{Duration, Instant};

use interlock_request::{Outcome, RequestId};

use crate::chain::{Commons, Member, Panel};
use crate::clock;
use crate::consult::tell;
use crate::lane::Lane;
use crate::tenants::Counted;
use interlock_policy_api::{
    Closing, Facts, FailureKind, Phase, PlanProposal, PolicyFailure, Summary, Told, Watch,
};

/// A member of the panel and what it said of the request.
#[derive(Debug, Clone)]
pub(crate) struct Party {
    pub(crate) proposal: PlanProposal,
    pub(crate) note: Arc<str>,
    pub(crate) watch: Watch,
    pub(crate) stand: Stand,
    /// Where it is asked what the request waits for, when that may take long.
    pub(crate) calls: Option<Arc<Lane>>,
    /// Where it hears what nobody waits for. See [`Member::looks_on`].
    pub(crate) lane: Option<Arc<Lane>>,
}

impl Party {
    fn new(member: &Member, commons: &Commons) -> Self {
        let threads = member.threads.as_deref();
        let calls = threads.filter(|_| !member.looks_on()).map(|threads| &threads.calls);
        // A slow one that decides has all its calls on the threads that somebody waits for, but
        // for the windows that it only observes.
        let beside = threads.filter(|_| member.slow());
        let pool = beside.map_or(&commons.beside, |threads| &threads.beside);
        let lane = member.looks_on() || member.policy.takes(Phase::StreamGuard);
        Self {
            proposal: PlanProposal::default(),
            note: Arc::default(),
            watch: member.policy.watch(),
            stand: Stand::NotAsked,
            calls: calls.map(|pool| Lane::new(pool.clone())),
            lane: lane.then(|| Lane::new(pool.clone())),
        }
    }
}

/// What a party has to do with the admission.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stand {
    NotAsked,
    Asked,
    Refused,
}

/// The duty of one request, from its head to its end.
pub(crate) struct Duty {
    pub(crate) panel: Panel,
    /// One for each member of the panel.
    pub(crate) parties: Vec<Party>,
    pub(crate) serial: u64,
    pub(crate) id: RequestId,
    pub(crate) commons: Commons,
    /// There from the moment that the first policy is asked to admit it.
    pub(crate) facts: Option<Arc<Facts>>,
    pub(crate) admitted_at: Option<Instant>,
    pub(crate) counted: Option<Counted>,
    fulfilled: bool,
}

impl Duty {
    pub(crate) fn new(panel: Panel, serial: u64, id: RequestId, commons: Commons) -> Self {
        let parties = panel.iter().map(|member| Party::new(member, &commons)).collect();
        Self {
            panel,
            parties,
            serial,
            id,
            commons,
            facts: None,
            admitted_at: None,
            counted: None,
            fulfilled: false,
        }
    }

    /// Tells everyone whom it concerns, in the order of the chain: those that may be told at once.
    pub(crate) fn fulfil(&mut self, summary: &Summary) {
        self.end(summary, summary.ran());
    }

    fn end(&mut self, summary: &Summary, ran: bool) {
        if std::mem::replace(&mut self.fulfilled, true) {
            return;
        }
        let admitted = self.admitted_at.is_some();
        for (member, party) in self.panel.iter().zip(&self.parties) {
            let concerned = match party.stand {
                Stand::NotAsked => admitted,
                Stand::Asked => true,
                Stand::Refused => false,
            };
            let accounts = concerned && member.policy.takes(Phase::Account);
            let farewell = Farewell {
                member: member.clone(),
                about: self.facts.clone().filter(|_| accounts),
                note: Arc::clone(&party.note),
                serial: self.serial,
                ran,
                calls: party.calls.clone(),
                lane: party.lane.clone(),
            };
            farewell.bid_last(summary);
        }
        // Only now is there room for the tenant's next one: what it held is given back.
        self.counted = None;
    }
}

/// The last that one policy hears of a request.
#[derive(Clone)]
struct Farewell {
    member: Member,
    about: Option<Arc<Facts>>,
    note: Arc<str>,
    serial: u64,
    ran: bool,
    calls: Option<Arc<Lane>>,
    lane: Option<Arc<Lane>>,
}

impl Farewell {
    /// Bids it behind everything else that the policy is asked of the request.
    fn bid_last(self, summary: &Summary) {
        let lanes = [self.calls.clone(), self.lane.clone()];
        if lanes.iter().all(Option::is_none) {
            return self.bid(summary);
        }
        self.bid_behind(lanes.into_iter().flatten().collect(), summary.clone());
    }

    fn bid_behind(self, mut lanes: Vec<Arc<Lane>>, summary: Summary) {
        let Some(lane) = lanes.pop() else { return self.bid_away(summary) };
        let rest = lane.close(move || self.bid_behind(lanes, summary));
        rest.into_iter().for_each(|rest| rest());
    }

    /// Nothing is before it. Where it may take long, nobody waits for it.
    fn bid_away(self, summary: Summary) {
        let threads = self.member.threads.clone().filter(|_| self.member.slow());
        let Some(threads) = threads else { return self.bid(&summary) };
        let alone = self.clone();
        if !threads.accounts.run(move || self.bid(&summary)) {
            alone.give_up();
        }
    }

    fn bid(self, summary: &Summary) {
        if let Some(facts) = &self.about {
            let told = Told { facts, note: self.note() };
            let answer = tell(&self.member, Phase::Account, |policy| policy.account(told, summary));
            if let Err(failure) = answer {
                self.unaccounted(facts, &failure);
            }
        }
        self.forget();
    }

    /// What it noted, also when nobody waited for its answer any more.
    fn note(&self) -> &str {
        let lanes = [&self.calls, &self.lane].into_iter().flatten();
        lanes.filter_map(|lane| lane.note.get()).next().unwrap_or(&self.note)
    }

    /// There is no thread to account on, and no room to wait for one.
    fn give_up(self) {
        if let Some(facts) = &self.about {
            let message = "too many accounts wait for a thread".into();
            let failure = PolicyFailure { kind: FailureKind::Busy, message };
            let answer = Err::<(), _>(failure.clone());
            self.member.meters.called(Phase::Account, Duration::ZERO, &answer);
            self.unaccounted(facts, &failure);
        }
        self.forget();
    }

    fn unaccounted(&self, facts: &Facts, failure: &PolicyFailure) {
        self.member.meters.fell_back(Phase::Account, "open");
        tracing::warn!(
            request = %facts.request_id, policy = %self.member.name, phase = "account",
            %failure, "policy failed to account for a request"
        );
    }

    fn forget(self) {
        let policy = &self.member.policy;
        let forgotten = crate::consult::guarded(|| {
            policy.forget(self.serial, self.ran);
            Ok(())
        });
        if let Err(failure) = forgotten {
            tracing::error!(policy = %self.member.name, %failure, "policy failed to forget");
        }
    }
}

impl Drop for Duty {
    fn drop(&mut self) {
        let (closing, total) = match self.admitted_at {
            Some(at) => {
                let why = "the request was dropped before it ended";
                let total = clock::now().saturating_duration_since(at);
                (Closing::Ended(Outcome::Failed(why.into())), total)
            }
            None => (Closing::Rejected, Duration::ZERO),
        };
        // Whether an admitted one had begun nobody knows any more.
        let ran = self.admitted_at.is_some();
        self.end(&Summary::nothing_ran(closing, total), ran);
    }
}

#[cfg(test)]
mod tests;
