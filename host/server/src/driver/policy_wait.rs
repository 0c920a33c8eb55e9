//! A policy is asked, and what may end the request before it has answered.
//!
//! What has happened is dealt with as if it had come between two calls. A policy may have a say in
//! some of it: in what becomes of a request whose client leaves, or whose time is up, when one
//! watches for that. Then the call goes on, and the driver finds it when the call is over.
//!
//! # Not here
//!
//! What follows: who asked gives the request up.

use std::pin::pin;

use interlock_engine::Events;
use interlock_policy_api::EventSet;
use interlock_request::{CancelCause, DisconnectAction};
use tokio::time::Instant;

use super::timers::RequestTimers;
use crate::chunks::{ChunkSender, Done, TextChunk};
use crate::failure::Failure;
use crate::in_flight::Registration;

/// What may end a request while a policy is asked.
pub(super) struct PolicyWait<'a> {
    pub(super) registration: &'a mut Registration,
    pub(super) timers: &'a RequestTimers,
    pub(super) events: &'a Events,
    /// What policies want to hear of before it counts.
    pub(super) watched: EventSet,
    /// What the plan is for a client that leaves.
    pub(super) on_disconnect: DisconnectAction,
}

/// The client, until it has left or was told its end; for the background there is none.
pub(super) struct ClientLink {
    sender: Option<ChunkSender>,
    left_at: Option<Instant>,
}

impl PolicyWait<'_> {
    /// Waits for a policy's answer.
    ///
    /// # Errors
    ///
    /// When the request has to stop before, and why. The call is dropped then.
    pub(super) async fn wait<T>(
        &mut self,
        client: &mut ClientLink,
        call: impl Future<Output = T>,
    ) -> Result<T, CancelCause> {
        let Self { registration, timers, events, watched, on_disconnect } = self;
        let gives_up = *on_disconnect == DisconnectAction::Cancel && !watched.disconnected;
        // While tokens wait, it is the policy that keeps the client waiting and not the engine.
        let flows = || events.are_waiting();
        let mut call = pin!(call);
        let mut over = pin!(timers.over(watched.timed_out, flows));
        loop {
            tokio::select! {
                biased;
                cause = registration.cancel_requested() => return Err(cause),
                () = client.leaves() => {
                    if gives_up {
                        return Err(CancelCause::Disconnect);
                    }
                }
                answer = &mut call => return Ok(answer),
                cause = &mut over => return Err(cause),
            }
        }
    }
}

impl ClientLink {
    pub(super) fn new(sender: Option<ChunkSender>) -> Self {
        Self { sender, left_at: None }
    }

    /// Returns once the client has left, if there is one.
    pub(super) async fn left(&mut self) {
        if self.left_at.is_none() {
            self.leaves().await;
        }
    }

    /// Returns when the client leaves; once.
    async fn leaves(&mut self) {
        match &mut self.sender {
            Some(sender) if self.left_at.is_none() => {
                sender.left().await;
                self.left_at = Some(Instant::now());
            }
            _ => std::future::pending().await,
        }
    }

    /// Has it been seen to leave?
    pub(super) fn has_left(&self) -> bool {
        self.left_at.is_some()
    }

    /// The client has left: the moment at which it did.
    pub(super) fn forget(&mut self) -> Instant {
        self.sender = None;
        self.left_at.take().unwrap_or_else(Instant::now)
    }

    pub(super) fn push(&mut self, chunk: TextChunk) {
        if let Some(sender) = &mut self.sender {
            sender.push(chunk);
        }
    }

    /// Tells how it ended. Again, nothing happens.
    pub(super) fn end(&mut self, how: Result<Done, Failure>) {
        self.left_at = None;
        if let Some(sender) = self.sender.take() {
            sender.end(how);
        }
    }
}
