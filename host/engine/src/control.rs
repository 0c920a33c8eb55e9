//! Asking a request to stop, from any thread, at any time, as often as one likes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use interlock_request::{CancelCause, Deadline, Finish, Outcome};

/// Asks one request to stop before its next pass. The first to ask decides the cause.
///
/// One byte, shared with the engine thread: a request can be cancelled however full every queue
/// is, and asking twice, or asking for one that has ended, changes nothing.
#[derive(Debug, Clone)]
pub struct Control(Arc<AtomicU8>);

/// What was asked of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Asked {
    /// Stop: someone does not want the rest.
    Cancel(CancelCause),
    /// Stop: the text is complete, a stop string has matched.
    Finish,
}

const LIVE: u8 = 0;
const ENDED: u8 = u8::MAX;

impl Control {
    pub(crate) fn new() -> Self {
        Self(Arc::new(AtomicU8::new(LIVE)))
    }

    /// Cancels. True if this call is the one that counts: the request's outcome is then
    /// [`Outcome::Cancelled`] with this cause, whatever the pass in flight does.
    pub fn cancel(&self, cause: CancelCause) -> bool {
        self.ask(Asked::Cancel(cause))
    }

    /// Ends the generation as complete, because its text is. True if this call counts.
    pub fn finish(&self) -> bool {
        self.ask(Asked::Finish)
    }

    pub(crate) fn asked(&self) -> Option<Asked> {
        decode(self.0.load(Ordering::Acquire))
    }

    /// Closes the request to further asking and says what came of it: who asked first is why it
    /// ended, even if it came to `natural` in the same pass, or that pass failed.
    pub(crate) fn close(&self, natural: Outcome) -> Outcome {
        match decode(self.0.swap(ENDED, Ordering::AcqRel)) {
            Some(Asked::Cancel(cause)) => Outcome::Cancelled(cause),
            Some(Asked::Finish) => Outcome::Completed(Finish::Stop),
            None => natural,
        }
    }

    fn ask(&self, asked: Asked) -> bool {
        self.0.compare_exchange(LIVE, encode(asked), Ordering::AcqRel, Ordering::Acquire).is_ok()
    }
}

const ASKED: [Asked; 9] = [
    Asked::Finish,
    Asked::Cancel(CancelCause::Disconnect),
    Asked::Cancel(CancelCause::Deadline(Deadline::Queue)),
    Asked::Cancel(CancelCause::Deadline(Deadline::FirstToken)),
    Asked::Cancel(CancelCause::Deadline(Deadline::InterToken)),
    Asked::Cancel(CancelCause::Deadline(Deadline::Total)),
    Asked::Cancel(CancelCause::Operator),
    Asked::Cancel(CancelCause::Shutdown),
    Asked::Cancel(CancelCause::Policy),
];

/// A place in [`ASKED`], counted from 1. Written as a match so that a new cause that has no place
/// does not compile.
fn encode(asked: Asked) -> u8 {
    match asked {
        Asked::Finish => 1,
        Asked::Cancel(CancelCause::Disconnect) => 2,
        Asked::Cancel(CancelCause::Deadline(Deadline::Queue)) => 3,
        Asked::Cancel(CancelCause::Deadline(Deadline::FirstToken)) => 4,
        Asked::Cancel(CancelCause::Deadline(Deadline::InterToken)) => 5,
        Asked::Cancel(CancelCause::Deadline(Deadline::Total)) => 6,
        Asked::Cancel(CancelCause::Operator) => 7,
        Asked::Cancel(CancelCause::Shutdown) => 8,
        Asked::Cancel(CancelCause::Policy) => 9,
    }
}

fn decode(byte: u8) -> Option<Asked> {
    ASKED.get(usize::from(byte).wrapping_sub(1)).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_of_asking_survives_its_byte() {
        for asked in ASKED {
            assert_eq!(decode(encode(asked)), Some(asked));
        }
        assert_eq!(decode(LIVE), None);
        assert_eq!(decode(ENDED), None);
    }

    #[test]
    fn the_first_to_ask_is_the_cause_and_asking_twice_changes_nothing() {
        let control = Control::new();
        assert!(control.cancel(CancelCause::Disconnect));
        assert!(!control.cancel(CancelCause::Disconnect));
        assert!(!control.cancel(CancelCause::Operator));
        assert!(!control.finish());
        let outcome = control.close(Outcome::Completed(Finish::Stop));
        assert_eq!(outcome, Outcome::Cancelled(CancelCause::Disconnect));
    }

    #[test]
    fn a_text_that_is_complete_stays_complete_when_the_pass_in_flight_fails() {
        let control = Control::new();
        assert!(control.finish());
        let outcome = control.close(Outcome::Failed("the pass in flight".into()));
        assert_eq!(outcome, Outcome::Completed(Finish::Stop));
    }

    #[test]
    fn asking_for_a_request_that_has_ended_changes_nothing() {
        let control = Control::new();
        assert_eq!(
            control.close(Outcome::Completed(Finish::Length)),
            Outcome::Completed(Finish::Length)
        );
        assert!(!control.cancel(CancelCause::Shutdown));
        assert_eq!(control.asked(), None);
    }
}
