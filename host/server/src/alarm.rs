//! One timer for a moment that is put off again and again, mostly by the next token.
//!
//! A timer of its own for each token would be entered into the runtime's wheel and taken out again,
//! under a lock both times. This one stays where it is while the moment moves away, and sees where
//! that is when it strikes.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::time::{Instant, Sleep, sleep_until};

/// A timer that is told with each poll when it is to strike. Until the first it costs nothing.
#[derive(Debug, Default)]
pub(crate) struct Alarm(Option<Pin<Box<Sleep>>>);

impl Alarm {
    /// Ready once it is `at`; `None`: never. Until then the task is woken at that moment, or
    /// before.
    pub(crate) fn poll(&mut self, at: Option<Instant>, cx: &mut Context<'_>) -> Poll<()> {
        let Some(at) = at else { return Poll::Pending };
        let sleep = self.0.get_or_insert_with(|| Box::pin(sleep_until(at)));
        if at < sleep.deadline() {
            sleep.as_mut().reset(at);
        }
        loop {
            ready!(sleep.as_mut().poll(cx));
            if sleep.deadline() >= at {
                return Poll::Ready(());
            }
            sleep.as_mut().reset(at);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::time::Duration;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn it_strikes_when_it_was_last_told_to_however_the_moment_moved() {
        let began = Instant::now();
        let mut alarm = Alarm::default();
        let mut wait = async |seconds: u32| {
            poll_fn(|cx| alarm.poll(Some(began + SECOND * seconds), cx)).await;
            began.elapsed()
        };
        // Not polled to its end: what follows moves it away, then back before it struck.
        assert!(tokio::time::timeout(SECOND, wait(2)).await.is_err());
        assert!(tokio::time::timeout(SECOND * 4, wait(9)).await.is_err());
        assert!(began.elapsed() >= SECOND * 5);
        assert_eq!(wait(6).await.as_secs(), 6);
        assert_eq!(wait(6).await.as_secs(), 6, "that moment has passed");
        assert_eq!(wait(8).await.as_secs(), 8);
    }
}
