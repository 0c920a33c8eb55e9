//! Decides who runs and what the next pass computes.
//!
//! The engine asks four questions, in this order, and does what the answers say:
//!
//! 1. [`pick_victim_for_rows`] and [`pick_victim_for_pages`]: who must give its row or its pages back, so that the others can
//!    take their next step? Asked until nobody must.
//! 2. [`most_urgent`]: who of those waiting is next?
//! 3. [`place`]: may it start now, and whom does it displace?
//! 4. [`plan_rows`]: what does the pass compute? Every decoding request gets its next token, and what
//!    is left of the budget is spent on prompts.
//!
//! # Invariants
//!
//! - The more urgent [`Rank`] goes first: by priority, within one by arrival. So a trace can be
//!   replayed: same input, same answer, and no two ranks are equal.
//! - Nobody starves: a request that later ones have overtaken [`OVERTAKEN_MAX`] times is overdue,
//!   and goes before everyone who is not. After that it is overtaken only by those that are more
//!   urgent, overdue too, and were there before it became so or last gave way: whoever comes later
//!   would have to be overtaken by still later ones first, and those do not start before it.
//! - The last in rank is the first to give way: the lowest priority, the youngest. One that is
//!   overdue never gives way to one that is not.
//! - Every decoding request is in every pass, unless a isolated runs alone.
//! - No pass has more rows or tokens than its [`PassBounds`]. Who has no room in them waits in the order
//!   of rank, and the first in rank always advances.
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
