//! Stops a request: from any thread, at any time, as often as the caller likes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use interlock_request::{CancelCause, Deadline, Finish, Outcome};

/// Stops one request before its next forward pass. The first caller decides the cause.
///
/// One byte, shared with the engine thread: a request can be cancelled however full every queue
/// is. Asking twice, or asking a request that has ended, changes nothing.
#[derive(Debug, Clone)]
pub struct Control(Arc<AtomicU8>);

/// How a request was asked to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StopRequest {
    /// Somebody does not want the rest.
    Cancel(CancelCause),
    /// The text is complete: a stop string has matched.
    Finish,
}

const LIVE: u8 = 0;
const ENDED: u8 = u8::MAX;

impl Control {
    pub(crate) fn new() -> Self {
        Self(Arc::new(AtomicU8::new(LIVE)))
    }

    /// Cancels the request. True if this call is the one that counts: the request's outcome is then
    /// [`Outcome::Cancelled`] with this cause, whatever the pass in flight does.
    pub fn cancel(&self, cause: CancelCause) -> bool {
        self.request_stop(StopRequest::Cancel(cause))
    }

    /// Ends the generation as complete, because its text is. True if this call counts.
    pub fn finish(&self) -> bool {
        self.request_stop(StopRequest::Finish)
    }

    pub(crate) fn stop_request(&self) -> Option<StopRequest> {
        decode(self.0.load(Ordering::Acquire))
    }

    /// Closes the request to further calls and returns its outcome. The first call to stop it decides,
    /// even if the request came to `natural` in the same pass, or that pass failed.
    pub(crate) fn close(&self, natural: Outcome) -> Outcome {
        match decode(self.0.swap(ENDED, Ordering::AcqRel)) {
            Some(StopRequest::Cancel(cause)) => Outcome::Cancelled(cause),
            Some(StopRequest::Finish) => Outcome::Completed(Finish::Stop),
            None => natural,
        }
    }

    fn request_stop(&self, stop: StopRequest) -> bool {
        self.0.compare_exchange(LIVE, encode(stop), Ordering::AcqRel, Ordering::Acquire).is_ok()
    }
}

const STOP_REQUESTS: [StopRequest; 9] = [
    StopRequest::Finish,
    StopRequest::Cancel(CancelCause::Disconnect),
    StopRequest::Cancel(CancelCause::Deadline(Deadline::Queue)),
    StopRequest::Cancel(CancelCause::Deadline(Deadline::FirstToken)),
    StopRequest::Cancel(CancelCause::Deadline(Deadline::InterToken)),
    StopRequest::Cancel(CancelCause::Deadline(Deadline::Total)),
    StopRequest::Cancel(CancelCause::Operator),
    StopRequest::Cancel(CancelCause::Shutdown),
    StopRequest::Cancel(CancelCause::Policy),
];

/// The index in [`STOP_REQUESTS`], counted from 1. It is a match so that a new cause without an index does
/// not compile.
fn encode(stop: StopRequest) -> u8 {
    match stop {
        StopRequest::Finish => 1,
        StopRequest::Cancel(CancelCause::Disconnect) => 2,
        StopRequest::Cancel(CancelCause::Deadline(Deadline::Queue)) => 3,
        StopRequest::Cancel(CancelCause::Deadline(Deadline::FirstToken)) => 4,
        StopRequest::Cancel(CancelCause::Deadline(Deadline::InterToken)) => 5,
        StopRequest::Cancel(CancelCause::Deadline(Deadline::Total)) => 6,
        StopRequest::Cancel(CancelCause::Operator) => 7,
        StopRequest::Cancel(CancelCause::Shutdown) => 8,
        StopRequest::Cancel(CancelCause::Policy) => 9,
    }
}

fn decode(byte: u8) -> Option<StopRequest> {
    STOP_REQUESTS.get(usize::from(byte).wrapping_sub(1)).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_of_asking_survives_its_byte() {
        for stop in STOP_REQUESTS {
            assert_eq!(decode(encode(stop)), Some(stop));
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
        assert_eq!(control.stop_request(), None);
    }
}
