//! When a request's time is up, and by which of its deadlines.

use std::time::Duration;

use interlock_request::{CancelCause, Deadline, Deadlines};
use tokio::time::Instant;

use crate::alarm::Alarm;

/// The deadlines of one request, counted from when its head had arrived: what was done before it was
/// admitted took its client's time as well.
#[derive(Debug)]
pub(super) struct RequestTimers {
    limits: Deadlines,
    arrived_at: Instant,
    started_at: Option<Instant>,
    last_token_at: Option<Instant>,
    drain_ends_at: Option<Instant>,
    stopped: bool,
    alarm: Alarm,
}

/// What can become due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TimerEvent {
    /// A deadline of the plan has passed.
    Deadline(Deadline),
    /// The client left, and the time to go on without it is over.
    DrainOver,
    /// No token came for so long.
    Stalled(Duration),
    /// A window of text has waited long enough for more.
    WindowDue,
}

impl RequestTimers {
    pub(super) fn new(limits: Deadlines, arrived_at: Instant) -> Self {
        Self {
            limits,
            arrived_at,
            started_at: None,
            last_token_at: None,
            drain_ends_at: None,
            stopped: false,
            alarm: Alarm::default(),
        }
    }

    pub(super) fn started(&mut self) {
        self.started_at = Some(Instant::now());
    }

    /// A token came at this moment.
    pub(super) fn token(&mut self, at: Instant) {
        self.last_token_at = Some(at);
    }

    /// Since the last token, if there was one.
    pub(super) fn since_token(&self) -> Option<Duration> {
        self.last_token_at.map(|at| at.elapsed())
    }

    /// From now on these.
    pub(super) fn limit(&mut self, limits: Deadlines) {
        self.limits = limits;
    }

    /// Has this deadline struck, by the limits as they are now?
    pub(super) fn is_over(&self, deadline: Deadline) -> bool {
        let due = self.limits_left().find(|(_, due)| *due == deadline);
        due.is_some_and(|(at, _)| at <= Instant::now())
    }

    /// The request goes on without a client, for this long from when that left.
    pub(super) fn drain(&mut self, left_at: Instant, time_max: Duration) {
        self.drain_ends_at = left_at.checked_add(time_max);
    }

    /// Was it stopped?
    pub(super) fn is_stopped(&self) -> bool {
        self.stopped
    }

    /// Strikes no more.
    pub(super) fn stop(&mut self) {
        self.stopped = true;
    }

    /// Returns when the next moment comes. A window of text may be due at one, too, and a pause may
    /// be worth telling when it lasts so long.
    pub(super) async fn next_event(
        &mut self,
        window_due: Option<Instant>,
        stalled_after: Option<Duration>,
    ) -> TimerEvent {
        match self.next(window_due, stalled_after) {
            Some((at, strike)) => {
                std::future::poll_fn(|cx| self.alarm.poll(Some(at), cx)).await;
                strike
            }
            None => std::future::pending().await,
        }
    }

    /// Returns when time is up while a policy is asked, and why the request ends. If deadlines are
    /// `watched`, a policy hears of them and may put them off: none of them ends it unheard. What
    /// the engine owes is not late while something of it waits (`flows`) to be dealt with.
    pub(super) async fn over(&self, watched: bool, flows: impl Fn() -> bool) -> CancelCause {
        let drained = self.drain_ends_at.map(|at| (at, CancelCause::Disconnect));
        let deadlines = self.limits_left().filter(|_| !watched);
        let deadlines = deadlines.map(|(at, deadline)| (at, CancelCause::Deadline(deadline)));
        let mut ends: Vec<_> = deadlines.chain(drained).filter(|_| !self.stopped).collect();
        ends.sort_by_key(|(at, _)| *at);
        for (at, cause) in ends {
            tokio::time::sleep_until(at).await;
            let always =
                matches!(cause, CancelCause::Disconnect | CancelCause::Deadline(Deadline::Total));
            if always || !flows() {
                return cause;
            }
        }
        std::future::pending().await
    }

    fn next(
        &self,
        window_due: Option<Instant>,
        stalled_after: Option<Duration>,
    ) -> Option<(Instant, TimerEvent)> {
        // What was held back is passed on even when the request is about to end.
        let window = window_due.map(|at| (at, TimerEvent::WindowDue));
        if self.stopped {
            return window;
        }
        let drained = self.drain_ends_at.map(|at| (at, TimerEvent::DrainOver));
        let others = [drained, self.stall(stalled_after), window].into_iter().flatten();
        let deadlines =
            self.limits_left().map(|(at, deadline)| (at, TimerEvent::Deadline(deadline)));
        deadlines.chain(others).min_by_key(|(at, _)| *at)
    }

    /// A request that waits for its first step does not stall.
    fn stall(&self, after: Option<Duration>) -> Option<(Instant, TimerEvent)> {
        let since = self.last_token_at.or(self.started_at)?;
        let after = after?;
        Some((since.checked_add(after)?, TimerEvent::Stalled(after)))
    }

    /// The deadlines that can still strike.
    fn limits_left(&self) -> impl Iterator<Item = (Instant, Deadline)> {
        let Deadlines { queue, first_token, inter_token, total } = self.limits;
        let since = |from: Instant, limit: Option<Duration>, deadline: Deadline| {
            // A limit too far away to be a moment is none.
            Some((from.checked_add(limit?)?, deadline))
        };
        let (arrived_at, waits) = (self.arrived_at, self.started_at.is_none());
        let waiting = waits.then(|| since(arrived_at, queue, Deadline::Queue)).flatten();
        let paused = match self.last_token_at {
            None => since(arrived_at, first_token, Deadline::FirstToken),
            Some(last) => since(last, inter_token, Deadline::InterToken),
        };
        let total = since(arrived_at, total, Deadline::Total);
        [waiting, paused, total].into_iter().flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(n: u64) -> Option<Duration> {
        Some(Duration::from_millis(n))
    }

    fn strikes(timers: &RequestTimers) -> (Duration, TimerEvent) {
        let (at, strike) = timers.next(None, None).expect("a deadline");
        (at - timers.arrived_at, strike)
    }

    #[test]
    fn each_part_of_a_life_has_its_own_deadline() {
        let limits =
            Deadlines { queue: ms(10), first_token: ms(20), inter_token: ms(30), total: ms(40) };
        let mut timers = RequestTimers::new(limits, Instant::now());
        let deadline = |ms, deadline| (Duration::from_millis(ms), TimerEvent::Deadline(deadline));
        assert_eq!(strikes(&timers), deadline(10, Deadline::Queue));
        timers.started();
        assert_eq!(strikes(&timers), deadline(20, Deadline::FirstToken));
        timers.last_token_at = timers.arrived_at.checked_add(Duration::from_millis(5));
        assert_eq!(strikes(&timers), deadline(35, Deadline::InterToken));
        timers.last_token_at = timers.arrived_at.checked_add(Duration::from_millis(20));
        assert_eq!(strikes(&timers), deadline(40, Deadline::Total));
        timers.drain_ends_at = timers.arrived_at.checked_add(Duration::from_millis(39));
        assert_eq!(strikes(&timers), (Duration::from_millis(39), TimerEvent::DrainOver));
        timers.stop();
        assert_eq!(timers.next(None, None), None);
    }

    #[test]
    fn a_limit_beyond_all_time_is_none() {
        let limits = Deadlines { queue: Some(Duration::MAX), ..Deadlines::default() };
        assert_eq!(RequestTimers::new(limits, Instant::now()).next(None, None), None);
    }

    #[test]
    fn who_waits_for_its_turn_does_not_stall() {
        let mut timers = RequestTimers::new(Deadlines::default(), Instant::now());
        assert_eq!(timers.next(None, ms(10)), None);
        timers.started_at = Some(timers.arrived_at);
        let stalled = TimerEvent::Stalled(Duration::from_millis(10));
        let at = timers.arrived_at + Duration::from_millis(10);
        assert_eq!(timers.next(None, ms(10)), Some((at, stalled)));
        let window = timers.arrived_at + Duration::from_millis(5);
        assert_eq!(timers.next(Some(window), ms(10)), Some((window, TimerEvent::WindowDue)));
    }

    #[test]
    fn a_deadline_that_was_put_off_is_not_over() {
        let limits = Deadlines { total: ms(0), ..Deadlines::default() };
        let mut timers = RequestTimers::new(limits, Instant::now());
        assert!(timers.is_over(Deadline::Total) && !timers.is_over(Deadline::FirstToken));
        timers.limit(Deadlines { total: ms(60_000), ..Deadlines::default() });
        assert!(!timers.is_over(Deadline::Total));
    }

    #[test]
    fn how_long_it_goes_on_counts_from_when_the_client_left() {
        let mut timers = RequestTimers::new(Deadlines::default(), Instant::now());
        let left_at = timers.arrived_at;
        timers.drain(left_at, Duration::from_millis(50));
        timers.drain(left_at, Duration::from_millis(40));
        assert_eq!(strikes(&timers), (Duration::from_millis(40), TimerEvent::DrainOver));
    }

    #[tokio::test]
    async fn who_waits_for_a_policy_is_late_by_the_whole_but_not_by_what_the_engine_has_done() {
        let limits = Deadlines { first_token: ms(10), total: ms(40), ..Deadlines::default() };
        let mut timers = RequestTimers::new(limits, Instant::now());
        let began = Instant::now();
        let cause = timers.over(false, || true).await;
        assert_eq!(
            (cause, began.elapsed() >= Duration::from_millis(40)),
            (CancelCause::Deadline(Deadline::Total), true,)
        );
        let first = CancelCause::Deadline(Deadline::FirstToken);
        assert_eq!(timers.over(false, || false).await, first);
        // Who watches for deadlines may put them off; how long it drains is not up to anybody.
        timers.drain(began, Duration::from_millis(90));
        assert_eq!(timers.over(true, || false).await, CancelCause::Disconnect);
    }
}
