//! Connections: who may hold one, how slowly bytes may come and go on it, when its client has left,
//! and what is answered to bytes that never become a request.
//!
//! # Not here
//!
//! What is asked and answered: a connection's requests go to the router that its listener was
//! given.

mod client;
mod keep_alive;
mod listener;
mod refusal;
mod request_clock;
mod slots;
mod socket;
mod write_timeout;

use std::net::IpAddr;

pub(crate) use client::{ActiveGeneration, Client};
pub use listener::descriptors;
pub(crate) use listener::{Listener, ListenerRules};
pub(crate) use slots::client as client_address;

use crate::failure::ConnectionLimit;

/// The address at the other end of a connection.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PeerAddress(pub(crate) IpAddr);

/// A connection over a limit: only health and metrics are answered on it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct OverLimit(pub(crate) ConnectionLimit);
