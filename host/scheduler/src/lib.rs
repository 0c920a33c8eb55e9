//! Decides which requests run and what the next forward pass computes.
//!
//! In each step the engine asks four questions, in this order, and does what the answers say:
//!
//! 1. [`pick_victim_for_rows`] and [`pick_victim_for_pages`]: which request must give back its row or
//!    its pages, so that the others can take their next step? Asked until none must.
//! 2. [`most_urgent`]: which waiting request is next?
//! 3. [`place`]: may it start now, and which requests does it displace?
//! 4. [`plan_rows`]: what does the pass compute? Every decoding request gets its next token, and what
//!    is left of the budget is spent on prompts.
//!
//! # Invariants
//!
//! - The more urgent [`Rank`] goes first: by priority, within a priority by arrival. No two
//!   ranks are equal and the same input gives the same answer, so a trace can be replayed.
//! - No request starves: one that later ones have overtaken [`OVERTAKEN_MAX`] times is overdue,
//!   and goes before every one that is not. After that it is overtaken only by requests that are more
//!   urgent, overdue too, and arrived before it became overdue or was last preempted: a later one would
//!   first have to be overtaken by still later ones, and those do not start before it.
//! - The last in rank is the first to give way: the lowest priority, and in it the latest arrival. One
//!   that is overdue never gives way to one that is not.
//! - Every decoding request is in every pass, unless an isolated row runs alone.
//! - No pass has more rows or tokens than its [`PassBounds`]. Requests beyond them wait in the order of
//!   rank, and the first in rank always advances.
//!
//! # Not here
//!
//! No clock, no randomness, no model, no policy. Priorities arrive as values; this crate does
//! not know why a request has the one it has.

mod placement;
mod rank;
mod rows;

pub use placement::{
    Capacity, GrowingRequest, Placement, StartCandidate, pick_victim_for_pages,
    pick_victim_for_rows, place,
};
pub use rank::{OVERTAKEN_MAX, Rank, most_urgent};
pub use rows::{PassBounds, PlannedRow, PrefillBudget, Runnable, plan_rows};
