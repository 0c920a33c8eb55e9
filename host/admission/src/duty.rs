//! The duty to tell the policies how a request ended, and to let them forget it.
//!
//! # Invariants
//!
//! - It is fulfilled exactly once: by hand, or when it is dropped, whatever dropped it: a panic, a
//!   future that nobody polls any more, a client that left while a policy was being asked.
//! - Who was asked to admit the request, or failed to answer, hears how it ended, but for the one
//!   that turned it away itself. Who is not asked hears only of what was admitted.
//! - Every policy of the panel forgets the request, and nothing is asked after that.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use interlock_request::{Outcome, RequestId, Usage};

use crate::chain::{Commons, Member, Panel};
use crate::clock;
use crate::consult::tell;
use crate::tenants::Counted;
use crate::{Facts, Phase, PlanProposal, Told, Watch};

/// How a request ended, in the words that policies read.
#[derive(Debug, Clone, PartialEq)]
pub struct Summary {
    /// How it ended.
    pub closing: Closing,
    /// What it used.
    pub usage: Usage,
    /// From admission to its first pass, if it had one.
    pub queue_time: Option<Duration>,
    /// From admission to the first token, if there was one.
    pub time_to_first_token: Option<Duration>,
    /// From admission to the end.
    pub total: Duration,
}

/// How it ended for those who were asked about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Closing {
    /// It was admitted, and ended like this.
    Ended(Outcome),
    /// It never began: another policy, or the host, turned it away.
    Rejected,
}

impl From<Outcome> for Closing {
    fn from(outcome: Outcome) -> Self {
        Self::Ended(outcome)
    }
}

impl Closing {
    /// Its label: the outcome's, or `rejected`.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Ended(outcome) => outcome.as_str(),
            Self::Rejected => "rejected",
        }
    }
}

impl Summary {
    fn nothing_ran(closing: Closing, total: Duration) -> Self {
        let usage = Usage::default();
        Self { closing, usage, queue_time: None, time_to_first_token: None, total }
    }
}

/// A member of the panel and what it said of the request.
#[derive(Debug, Clone)]
pub(crate) struct Party {
    pub(crate) proposal: PlanProposal,
    pub(crate) note: Arc<str>,
    pub(crate) watch: Watch,
    pub(crate) stand: Stand,
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
    /// Which members have forgotten the request. Read by calls that outlive it.
    pub(crate) over: Arc<[AtomicBool]>,
    fulfilled: bool,
}

impl Duty {
    pub(crate) fn new(panel: Panel, serial: u64, id: RequestId, commons: Commons) -> Self {
        let party = |member: &Member| Party {
            proposal: PlanProposal::default(),
            note: Arc::default(),
            watch: member.policy.watch(),
            stand: Stand::NotAsked,
        };
        let parties = panel.iter().map(party).collect();
        let over = panel.iter().map(|_| AtomicBool::new(false)).collect();
        Self {
            panel,
            parties,
            serial,
            id,
            commons,
            facts: None,
            admitted_at: None,
            counted: None,
            over,
            fulfilled: false,
        }
    }

    /// Tells everyone whom it concerns, in the order of the chain.
    pub(crate) fn fulfil(&mut self, summary: &Summary) {
        if std::mem::replace(&mut self.fulfilled, true) {
            return;
        }
        let admitted = self.admitted_at.is_some();
        for (at, (member, party)) in self.panel.iter().zip(&self.parties).enumerate() {
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
                over: Arc::clone(&self.over),
                at,
            };
            if member.slow {
                let summary = summary.clone();
                self.commons.slow.run(move || farewell.bid(&summary));
            } else {
                farewell.bid(summary);
            }
        }
        // Only now is there room for the tenant's next one: what it held is given back.
        self.counted = None;
    }
}

/// The last that one policy hears of a request.
struct Farewell {
    member: Member,
    about: Option<Arc<Facts>>,
    note: Arc<str>,
    serial: u64,
    over: Arc<[AtomicBool]>,
    at: usize,
}

impl Farewell {
    fn bid(self, summary: &Summary) {
        if let Some(facts) = self.about {
            let told = Told { facts: &facts, note: &self.note };
            let answer = tell(&self.member, Phase::Account, |policy| policy.account(told, summary));
            if let Err(failure) = answer {
                self.member.meters.fell_back(Phase::Account, "open");
                tracing::warn!(
                    request = %facts.request_id, policy = %self.member.name, phase = "account",
                    %failure, "policy failed to account for a request"
                );
            }
        }
        // After the account, which may need what is held; before it is let go, so that a call that
        // is still under way and holds more lets that go itself when it ends.
        self.over[self.at].store(true, Ordering::Release);
        let policy = &self.member.policy;
        let forgotten = crate::consult::guarded(|| {
            policy.forget(self.serial);
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
        self.fulfil(&Summary::nothing_ran(closing, total));
    }
}

#[cfg(test)]
mod tests;
