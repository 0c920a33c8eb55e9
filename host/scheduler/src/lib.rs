//! Decides what the next pass computes.
//!
//! Given what waits and what runs, [`schedule`] says what the engine does next: start a waiting
//! request, advance a prompt by a chunk, or decode. Doing it is the engine's business.
//!
//! # Invariants
//!
//! - One request at a time (`simple` mode): nothing starts while anything runs.
//! - The most urgent waiting request starts first; within one priority, the first to arrive.
//! - Same [`Load`], same [`Next`]. Ties are broken by arrival, so a trace can be replayed.
//!
//! # Not here
//!
//! No clock, no randomness, no model, no policy. Priorities arrive as values; this crate does
//! not know why a request has the one it has.

use std::num::NonZeroU32;

use interlock_request::Priority;

/// What there is to schedule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Load<'a> {
    /// The request that has begun, if one has.
    pub running: Option<Running>,
    /// Those that have not, in any order.
    pub waiting: &'a [Waiting],
}

/// How far the running request is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Running {
    /// Its prompt still has this many tokens to compute.
    Prefilling {
        /// Tokens left.
        left: NonZeroU32,
    },
    /// Its prompt is done.
    Decoding,
}

/// A request that has not begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Waiting {
    /// How urgent it is.
    pub priority: Priority,
    /// Its place in the order of arrival; unique.
    pub arrival: u64,
}

/// What the engine does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Nothing to do: wait for an arrival.
    Wait,
    /// Take this index out of [`Load::waiting`] and begin with it.
    Start(usize),
    /// Compute this many more tokens of the running request's prompt.
    Prefill(NonZeroU32),
    /// Compute the running request's next token.
    Decode,
}

/// Decides what comes next; `chunk_max` is the most prompt tokens one pass may take.
pub fn schedule(load: &Load<'_>, chunk_max: NonZeroU32) -> Next {
    match load.running {
        Some(Running::Prefilling { left }) => Next::Prefill(left.min(chunk_max)),
        Some(Running::Decoding) => Next::Decode,
        None => load
            .waiting
            .iter()
            .enumerate()
            .min_by_key(|(_, waiting)| (waiting.priority, waiting.arrival))
            .map_or(Next::Wait, |(index, _)| Next::Start(index)),
    }
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;

    /// Plays requests `(name, arrives at pass, priority, prompt, outputs)` to the end and writes
    /// one line a decision.
    fn check(chunk_max: u32, requests: &[(&str, u32, Priority, u32, u32)], expect: Expect) {
        let chunk_max = NonZeroU32::new(chunk_max).unwrap();
        let mut story = String::new();
        let (mut waiting, mut running): (Vec<usize>, Option<(usize, u32, u32)>) = (vec![], None);
        let mut arrived = 0;
        for pass in 0.. {
            while arrived < requests.len() && requests[arrived].1 <= pass {
                waiting.push(arrived);
                arrived += 1;
            }
            let view: Vec<Waiting> = waiting
                .iter()
                .map(|&i| Waiting { priority: requests[i].2, arrival: i as u64 })
                .collect();
            let load = Load {
                running: running.map(|(_, left, _)| {
                    NonZeroU32::new(left)
                        .map_or(Running::Decoding, |left| Running::Prefilling { left })
                }),
                waiting: &view,
            };
            match schedule(&load, chunk_max) {
                Next::Wait if arrived == requests.len() => break,
                Next::Wait => story.push_str(&format!("t{pass} wait\n")),
                Next::Start(index) => {
                    let i = waiting.remove(index);
                    story.push_str(&format!("t{pass} start {}\n", requests[i].0));
                    running = Some((i, requests[i].3, requests[i].4));
                }
                Next::Prefill(n) => {
                    let (i, left, outputs) = running.unwrap();
                    story.push_str(&format!("t{pass} prefill {} {n}\n", requests[i].0));
                    running = Some((i, left - n.get(), outputs));
                }
                Next::Decode => {
                    let (i, _, outputs) = running.unwrap();
                    story.push_str(&format!("t{pass} decode {}\n", requests[i].0));
                    running = (outputs > 1).then_some((i, 0, outputs - 1));
                }
            }
        }
        expect.assert_eq(&story);
    }

    #[test]
    fn a_long_prompt_advances_in_chunks_and_the_next_request_waits_for_the_end() {
        check(
            4,
            &[("A", 0, Priority::Standard, 6, 2), ("B", 1, Priority::Standard, 1, 1)],
            expect![[r#"
                t0 start A
                t1 prefill A 4
                t2 prefill A 2
                t3 decode A
                t4 decode A
                t5 start B
                t6 prefill B 1
                t7 decode B
            "#]],
        );
    }

    #[test]
    fn the_urgent_go_first_and_within_a_priority_the_first_to_arrive() {
        check(
            8,
            &[
                ("A", 0, Priority::Standard, 1, 1),
                ("B", 1, Priority::Batch, 1, 1),
                ("C", 1, Priority::Standard, 1, 1),
                ("D", 1, Priority::Standard, 1, 1),
                ("E", 2, Priority::Critical, 1, 1),
            ],
            expect![[r#"
                t0 start A
                t1 prefill A 1
                t2 decode A
                t3 start E
                t4 prefill E 1
                t5 decode E
                t6 start C
                t7 prefill C 1
                t8 decode C
                t9 start D
                t10 prefill D 1
                t11 decode D
                t12 start B
                t13 prefill B 1
                t14 decode B
            "#]],
        );
    }

    #[test]
    fn nothing_to_do_means_wait() {
        let load = Load { running: None, waiting: &[] };
        assert_eq!(schedule(&load, NonZeroU32::MIN), Next::Wait);
    }
}
