//! What the engines of one thread know of each other.
//!
//! They take turns, so a stream of one waits while another computes a prompt, and how long streams
//! may be held up is one account for all of them. Plain values, on the one thread there is.

use std::cell::RefCell;
use std::rc::Rc;

use crate::pace::{Account, Lent, Pace};

/// The engines of a thread. What is cloned is the way to it.
#[derive(Debug, Clone, Default)]
pub struct Company(Rc<RefCell<Shared>>);

#[derive(Debug, Default)]
struct Shared {
    /// By engine: whether it has streams that flow.
    streams: Vec<Streams>,
    /// None while no stream flows.
    account: Option<Account>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Streams {
    None,
    /// Some flow, and one of its passes takes so many seconds if that is known.
    Flow(Option<f64>),
}

/// An engine's place among them. It is gone with the engine.
#[derive(Debug)]
pub(crate) struct Member {
    company: Company,
    which: usize,
}

impl Company {
    pub(crate) fn join(&self) -> Member {
        let mut shared = self.0.borrow_mut();
        shared.streams.push(Streams::None);
        Member { company: self.clone(), which: shared.streams.len() - 1 }
    }
}

impl Member {
    /// Says whether its own streams flow, and what a pass takes them.
    pub(crate) fn flows(&self, flows: bool, decode: Option<f64>) {
        let mut shared = self.company.0.borrow_mut();
        shared.streams[self.which] = if flows { Streams::Flow(decode) } else { Streams::None };
        if shared.streams.iter().all(|streams| *streams == Streams::None) {
            shared.account = None;
        }
    }

    /// Do streams of another flow?
    pub(crate) fn others_streaming(&self) -> bool {
        let shared = self.company.0.borrow();
        let mut others = shared.streams.iter().enumerate().filter(|(who, _)| *who != self.which);
        others.any(|(_, streams)| *streams != Streams::None)
    }

    /// Seconds of one pass of each whose streams flow, as far as that is known.
    pub(crate) fn round(&self) -> Option<f64> {
        let shared = self.company.0.borrow();
        let known = shared.streams.iter().filter_map(|streams| match streams {
            Streams::Flow(decode) => *decode,
            Streams::None => None,
        });
        known.reduce(|sum, seconds| sum + seconds)
    }

    /// How streams stand with the prompts beside them.
    pub(crate) fn account(&self, pace: &Pace) -> Account {
        self.company.0.borrow().account.unwrap_or_else(|| pace.fresh())
    }

    /// A pass of its own has ended.
    pub(crate) fn settle(&self, pace: &Pace, lent: Lent) {
        let (account, round) = (self.account(pace), self.round());
        let mut shared = self.company.0.borrow_mut();
        if shared.streams.iter().any(|streams| *streams != Streams::None) {
            shared.account = Some(pace.settle(account, lent, round));
        }
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.flows(false, None);
    }
}
