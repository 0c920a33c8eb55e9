//! What the engines of one thread know of each other.
//!
//! The engines run one step each in turn, so a stream of one model waits while another model computes
//! a prompt. How long streams may be held up is therefore one credit for all engines of the thread.
//! Everything here is plain data on that one thread.

use std::cell::RefCell;
use std::rc::Rc;

use interlock_scheduler::PrefillBudget;

use crate::pacer::{PassTimes, PrefillPacer, StreamCredit};

/// The engines of one thread. Clones refer to the same group.
#[derive(Debug, Clone, Default)]
pub struct EngineGroup(Rc<RefCell<GroupState>>);

#[derive(Debug, Default)]
struct GroupState {
    /// For each engine, whether it has streams that decode.
    streams: Vec<EngineStreams>,
    /// `None` while no engine has a stream that decodes.
    credit: Option<StreamCredit>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum EngineStreams {
    None,
    /// The engine has streams that decode. A pass that only decodes takes them this many seconds, if
    /// that is known.
    Decoding(Option<f64>),
}

/// One engine's membership of its group. It ends when the engine is dropped.
#[derive(Debug)]
pub(crate) struct GroupMember {
    group: EngineGroup,
    index: usize,
}

impl EngineGroup {
    pub(crate) fn join(&self) -> GroupMember {
        let mut state = self.0.borrow_mut();
        state.streams.push(EngineStreams::None);
        GroupMember { group: self.clone(), index: state.streams.len() - 1 }
    }
}

impl GroupMember {
    /// Publishes whether this engine has streams that decode, and the seconds that a pass which only
    /// decodes takes them.
    pub(crate) fn set_streaming(&self, streaming: bool, decode: Option<f64>) {
        let mut state = self.group.0.borrow_mut();
        state.streams[self.index] =
            if streaming { EngineStreams::Decoding(decode) } else { EngineStreams::None };
        if state.streams.iter().all(|streams| *streams == EngineStreams::None) {
            state.credit = None;
        }
    }

    /// How many tokens of prompts this engine's next pass may compute.
    pub(crate) fn budget(&self, pacer: &PrefillPacer) -> PrefillBudget {
        let others_streaming = self.others_streaming();
        PrefillBudget { others_streaming, ..pacer.budget(self.credit(pacer), self.round()) }
    }

    /// Charges the time of this engine's last pass to the credit of the streams that waited for it.
    pub(crate) fn settle(&self, pacer: &PrefillPacer, times: PassTimes) {
        let (credit, round) = (self.credit(pacer), self.round());
        let mut state = self.group.0.borrow_mut();
        if state.streams.iter().any(|streams| *streams != EngineStreams::None) {
            state.credit = Some(pacer.settle(credit, times, round));
        }
    }

    fn others_streaming(&self) -> bool {
        let state = self.group.0.borrow();
        let mut others = state.streams.iter().enumerate().filter(|(index, _)| *index != self.index);
        others.any(|(_, streams)| *streams != EngineStreams::None)
    }

    /// Seconds of one decoding pass of each engine that has streams, as far as they are known.
    fn round(&self) -> Option<f64> {
        let state = self.group.0.borrow();
        let known = state.streams.iter().filter_map(|streams| match streams {
            EngineStreams::Decoding(decode) => *decode,
            EngineStreams::None => None,
        });
        known.reduce(|sum, seconds| sum + seconds)
    }

    fn credit(&self, pacer: &PrefillPacer) -> StreamCredit {
        self.group.0.borrow().credit.unwrap_or_else(|| pacer.fresh())
    }
}

impl Drop for GroupMember {
    fn drop(&mut self) {
        self.set_streaming(false, None);
    }
}
