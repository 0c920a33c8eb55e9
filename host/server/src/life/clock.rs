//! When a request's time is up, and by which of its deadlines.

use std::time::Duration;

use interlock_request::{Deadline, Deadlines};
use tokio::time::Instant;

/// The deadlines of one request, counted from its admission.
#[derive(Debug)]
pub(super) struct Clock {
    limits: Deadlines,
    admitted_at: Instant,
    started: bool,
    last_token_at: Option<Instant>,
    drain_ends_at: Option<Instant>,
    stopped: bool,
}

/// What a clock can strike.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Strike {
    /// The plan's patience is over.
    Deadline(Deadline),
    /// The client left, and the time to go on without it is over.
    DrainOver,
}

impl Clock {
    pub(super) fn new(limits: Deadlines, admitted_at: std::time::Instant) -> Self {
        Self {
            limits,
            admitted_at: Instant::from_std(admitted_at),
            started: false,
            last_token_at: None,
            drain_ends_at: None,
            stopped: false,
        }
    }

    pub(super) fn started(&mut self) {
        self.started = true;
    }

    pub(super) fn token(&mut self) {
        self.last_token_at = Some(Instant::now());
    }

    pub(super) fn drain(&mut self, time_max: Duration) {
        self.drain_ends_at = Instant::now().checked_add(time_max);
    }

    /// Strikes no more.
    pub(super) fn stop(&mut self) {
        self.stopped = true;
    }

    /// Returns when the next deadline strikes.
    pub(super) async fn struck(&self) -> Strike {
        match self.next() {
            Some((at, strike)) => {
                tokio::time::sleep_until(at).await;
                strike
            }
            None => std::future::pending().await,
        }
    }

    fn next(&self) -> Option<(Instant, Strike)> {
        if self.stopped {
            return None;
        }
        let Deadlines { queue, first_token, inter_token, total } = self.limits;
        let since = |from: Instant, limit: Option<Duration>, deadline: Deadline| {
            // A limit too far away to be a moment is none.
            Some((from.checked_add(limit?)?, Strike::Deadline(deadline)))
        };
        let admitted_at = self.admitted_at;
        let waiting = (!self.started).then(|| since(admitted_at, queue, Deadline::Queue)).flatten();
        let paused = match self.last_token_at {
            None => since(admitted_at, first_token, Deadline::FirstToken),
            Some(last) => since(last, inter_token, Deadline::InterToken),
        };
        let total = since(admitted_at, total, Deadline::Total);
        let drained = self.drain_ends_at.map(|at| (at, Strike::DrainOver));
        [waiting, paused, total, drained].into_iter().flatten().min_by_key(|(at, _)| *at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(n: u64) -> Option<Duration> {
        Some(Duration::from_millis(n))
    }

    fn strikes(clock: &Clock) -> (Duration, Strike) {
        let (at, strike) = clock.next().expect("a deadline");
        (at - clock.admitted_at, strike)
    }

    #[test]
    fn each_part_of_a_life_has_its_own_deadline() {
        let limits =
            Deadlines { queue: ms(10), first_token: ms(20), inter_token: ms(30), total: ms(40) };
        let mut clock = Clock::new(limits, std::time::Instant::now());
        let deadline = |ms, deadline| (Duration::from_millis(ms), Strike::Deadline(deadline));
        assert_eq!(strikes(&clock), deadline(10, Deadline::Queue));
        clock.started();
        assert_eq!(strikes(&clock), deadline(20, Deadline::FirstToken));
        clock.last_token_at = clock.admitted_at.checked_add(Duration::from_millis(5));
        assert_eq!(strikes(&clock), deadline(35, Deadline::InterToken));
        clock.last_token_at = clock.admitted_at.checked_add(Duration::from_millis(20));
        assert_eq!(strikes(&clock), deadline(40, Deadline::Total));
        clock.drain_ends_at = clock.admitted_at.checked_add(Duration::from_millis(39));
        assert_eq!(strikes(&clock), (Duration::from_millis(39), Strike::DrainOver));
        clock.stop();
        assert_eq!(clock.next(), None);
    }

    #[test]
    fn a_limit_beyond_all_time_is_none() {
        let limits = Deadlines { queue: Some(Duration::MAX), ..Deadlines::default() };
        assert_eq!(Clock::new(limits, std::time::Instant::now()).next(), None);
    }
}
