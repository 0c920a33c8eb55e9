//! What the engine tells the one who submitted a request.
//!
//! # Invariants
//!
//! - The engine never waits for a reader: the channel has room for every event that its request can
//!   cause, and the lock in it is held to move one event.
//! - A sender that is dropped before the end closes the channel: the reader gets what lies there, then
//!   `None`.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};

use interlock_request::{CancelCause, Drawn, Outcome, Usage};
use tokio::task::coop::poll_proceed;

use crate::Control;

/// Something that happened to a request. The order is: `Started` at most once, then tokens, then
/// `Ended` once. Between `Started` and `Ended` there may be any number of `Preempted`.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// The request's first forward pass begins.
    Started,
    /// The model drew this token. Stop tokens are counted in the usage but not sent.
    Token(Drawn),
    /// The request gave its pages to one of higher rank and waits for others. It goes on by itself:
    /// its next token says that it has. One event stands for all preemptions since the last one that
    /// was received.
    Preempted,
    /// The request has ended. Nothing follows.
    Ended(Ended),
}

/// How a request ended, and what it used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// Why the request ended.
    pub outcome: Outcome,
    /// Exactly what the model saw and generated; zero for a request that never began.
    pub usage: Usage,
}

/// The receiving end of one request's events. Dropping it before the end cancels the request, as a
/// disconnect.
#[derive(Debug)]
pub struct Events {
    channel: Arc<Channel>,
    control: Control,
}

/// The engine's end of one request's events. Ending the request consumes it, so a request ends once.
#[derive(Debug)]
pub(crate) struct EventSender {
    channel: Arc<Channel>,
    control: Control,
}

/// What is on its way from the engine to one reader.
///
/// Not a channel of tokio's: each token would take a permit of its semaphore and give it back, though
/// there is a permit for every event that can come.
#[derive(Debug)]
struct Channel {
    events_max: usize,
    // Both ends write here: there is no single owner.
    state: Mutex<ChannelState>,
}

#[derive(Debug, Default)]
struct ChannelState {
    events: VecDeque<Event>,
    /// Whether an [`Event::Preempted`] lies in the channel. How often a request is preempted has no
    /// bound, so the channel has room for one such event.
    preempted: bool,
    sender_gone: bool,
    receiver_gone: bool,
    /// Who waits for an event.
    reader: Option<Waker>,
}

/// A channel for a request of which at most `events_max` events can lie there at once.
pub(crate) fn channel(events_max: usize, control: &Control) -> (EventSender, Events) {
    let channel = Arc::new(Channel { events_max, state: Mutex::default() });
    let events = Events { channel: Arc::clone(&channel), control: control.clone() };
    (EventSender { channel, control: control.clone() }, events)
}

impl Channel {
    fn state(&self) -> MutexGuard<'_, ChannelState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes what the reader sees, and wakes it.
    fn change(&self, change: impl FnOnce(&mut ChannelState)) {
        let reader = {
            let mut state = self.state();
            change(&mut state);
            state.reader.take()
        };
        if let Some(reader) = reader {
            reader.wake();
        }
    }

    fn push(&self, state: &mut ChannelState, event: Event) {
        if state.receiver_gone {
            return;
        }
        let (lie_there, events_max) = (state.events.len(), self.events_max);
        assert!(lie_there < events_max, "a request caused more than its {events_max} events");
        state.events.push_back(event);
    }
}

impl ChannelState {
    fn poll_next(&mut self, cx: &Context<'_>) -> Poll<Option<Event>> {
        if let Some(event) = self.events.pop_front() {
            self.preempted &= event != Event::Preempted;
            return Poll::Ready(Some(event));
        }
        if self.sender_gone {
            return Poll::Ready(None);
        }
        match &mut self.reader {
            Some(reader) => reader.clone_from(cx.waker()),
            None => self.reader = Some(cx.waker().clone()),
        }
        Poll::Pending
    }
}

impl EventSender {
    pub(crate) fn control(&self) -> &Control {
        &self.control
    }

    /// Sends an event, unless the receiver is gone, which [`Control`] says too. The channel has room for
    /// every event that a request can cause.
    pub(crate) fn send(&self, event: Event) {
        self.channel.change(|state| self.channel.push(state, event));
    }

    /// Sends [`Event::Preempted`], unless one lies in the channel already.
    pub(crate) fn send_preempted(&self) {
        self.channel.change(|state| {
            if !std::mem::replace(&mut state.preempted, true) {
                self.channel.push(state, Event::Preempted);
            }
        });
    }

    /// Ends the request. It came to `natural` by itself; a cancellation before that decides instead.
    /// `count` is called with the outcome before the receiver can see it.
    pub(crate) fn end(self, natural: Outcome, usage: Usage, count: impl FnOnce(&Outcome)) {
        let outcome = self.control.close(natural);
        count(&outcome);
        self.send(Event::Ended(Ended { outcome, usage }));
    }
}

impl Drop for EventSender {
    fn drop(&mut self) {
        self.channel.change(|state| state.sender_gone = true);
    }
}

impl Events {
    /// The next event; `None` after the end, or without one when the engine thread is gone.
    pub async fn next(&mut self) -> Option<Event> {
        std::future::poll_fn(|cx| {
            // A reader that always finds an event lets other tasks of its thread run now and then.
            let progress = ready!(poll_proceed(cx));
            let next = self.channel.state().poll_next(cx);
            if next.is_ready() {
                progress.made_progress();
            }
            next
        })
        .await
    }

    /// Whether an event has arrived that was not taken yet.
    pub fn are_waiting(&self) -> bool {
        !self.channel.state().events.is_empty()
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        // Has no effect when the request has ended or was cancelled for another reason.
        self.control.cancel(CancelCause::Disconnect);
        let _unread = {
            let mut state = self.channel.state();
            state.receiver_gone = true;
            (state.reader.take(), std::mem::take(&mut state.events))
        };
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::task::Wake;

    use interlock_request::{Finish, TokenId};

    use super::*;

    fn token(token: TokenId) -> Event {
        Event::Token(token.into())
    }

    /// A task that reads events, and how often it was woken.
    #[derive(Default)]
    struct Reader(AtomicU32);

    impl Wake for Reader {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    impl Reader {
        fn poll(self: &Arc<Self>, events: &mut Events) -> Poll<Option<Event>> {
            let waker = Waker::from(Arc::clone(self));
            std::pin::pin!(events.next()).poll(&mut Context::from_waker(&waker))
        }

        fn woken(&self) -> u32 {
            self.0.swap(0, Ordering::Relaxed)
        }
    }

    fn poll(events: &mut Events) -> Poll<Option<Event>> {
        Arc::<Reader>::default().poll(events)
    }

    #[test]
    fn a_reader_that_waits_is_woken_for_each_event_and_reads_the_end_once() {
        let (sender, mut events) = channel(3, &Control::new());
        let reader = Arc::<Reader>::default();
        for n in 1..3 {
            assert!(reader.poll(&mut events).is_pending() && !events.are_waiting());
            sender.send(token(n));
            assert!(events.are_waiting());
            assert_eq!(reader.woken(), 1);
            assert_eq!(reader.poll(&mut events), Poll::Ready(Some(token(n))));
        }
        let ended = Ended { outcome: Outcome::Completed(Finish::Stop), usage: Usage::default() };
        sender.end(ended.outcome.clone(), ended.usage, |_| {});
        assert_eq!(reader.woken(), 0, "it did not wait");
        assert_eq!(reader.poll(&mut events), Poll::Ready(Some(Event::Ended(ended))));
        assert_eq!(reader.poll(&mut events), Poll::Ready(None));
    }

    #[test]
    fn a_sender_that_vanishes_wakes_its_reader_which_reads_what_lies_there_and_then_nothing() {
        let (sender, mut events) = channel(3, &Control::new());
        let reader = Arc::<Reader>::default();
        assert!(reader.poll(&mut events).is_pending());
        drop(sender);
        assert_eq!(reader.woken(), 1);
        assert_eq!(reader.poll(&mut events), Poll::Ready(None));

        let (sender, mut events) = channel(3, &Control::new());
        sender.send(token(1));
        drop(sender);
        assert_eq!(poll(&mut events), Poll::Ready(Some(token(1))));
        assert_eq!(poll(&mut events), Poll::Ready(None));
    }

    #[test]
    fn a_reader_that_moved_to_another_task_is_woken_there() {
        let (sender, mut events) = channel(3, &Control::new());
        let [before, now] = [(); 2].map(|()| Arc::<Reader>::default());
        assert!(before.poll(&mut events).is_pending() && now.poll(&mut events).is_pending());
        sender.send(token(1));
        assert_eq!((before.woken(), now.woken()), (0, 1));
    }

    #[test]
    fn a_preemption_is_told_again_once_the_one_before_was_read() {
        let (sender, mut events) = channel(2, &Control::new());
        for _ in 0..9 {
            sender.send_preempted();
        }
        sender.send(token(1));
        assert_eq!(poll(&mut events), Poll::Ready(Some(Event::Preempted)));
        assert_eq!(poll(&mut events), Poll::Ready(Some(token(1))));
        sender.send_preempted();
        assert_eq!(poll(&mut events), Poll::Ready(Some(Event::Preempted)));
        assert!(poll(&mut events).is_pending());
    }

    #[test]
    fn nothing_is_kept_for_a_reader_that_has_left_and_its_request_is_cancelled() {
        let control = Control::new();
        let (sender, mut events) = channel(2, &control);
        assert!(poll(&mut events).is_pending());
        sender.send(token(1));
        drop(events);
        (0..9).for_each(|n| sender.send(token(n)));
        assert!(sender.channel.state().events.is_empty());
        let cause = CancelCause::Disconnect;
        sender.end(Outcome::Completed(Finish::Stop), Usage::default(), |outcome| {
            assert_eq!(*outcome, Outcome::Cancelled(cause));
        });
    }

    #[test]
    #[should_panic = "a request caused more than its 2 events"]
    fn the_channel_holds_as_many_events_as_its_request_can_cause_and_no_more() {
        let (sender, _events) = channel(2, &Control::new());
        (0..3).for_each(|n| sender.send(token(n)));
    }

    #[tokio::test]
    async fn a_reader_that_always_finds_an_event_lets_others_run() {
        const MANY: u32 = 10_000;
        let (sender, mut events) = channel(MANY as usize, &Control::new());
        (0..MANY).for_each(|n| sender.send(token(n)));
        let reader =
            tokio::spawn(async move { while events.next().await != Some(token(MANY - 1)) {} });
        tokio::task::yield_now().await;
        assert!(!reader.is_finished(), "it has read all without a pause");
        reader.await.expect("it reads to the end");
    }
}
