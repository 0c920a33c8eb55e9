//! What is held for a request, from its admission to its end.

use interlock_policy_sdk::state::{self, Bucket, Budget, Entered, Fault, Reserved, Taken};
use interlock_policy_sdk::{Span, log};

use crate::settings::Limits;

/// What a request wants.
pub(crate) struct Asked<'a> {
    pub(crate) tenant: &'a str,
    /// Tokens of its prompt and those that it is expected to generate.
    pub(crate) tokens: u32,
    /// How long it may take to end.
    pub(crate) longest: Span,
}

/// Why it does not get that.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// There will be a request after this long.
    Requests(Span),
    /// There will be tokens after this long.
    Tokens(Span),
    /// As many run as may.
    Concurrent,
    /// It wants more tokens than there ever are.
    TooLarge,
    /// Nobody knows.
    Unavailable,
}

/// What is left for the tenant, as far as it was looked up.
#[derive(Debug, Default)]
pub(crate) struct Left {
    /// Requests.
    pub(crate) requests: Option<f64>,
    /// Tokens, and when there are all again.
    pub(crate) tokens: Option<(f64, Span)>,
}

/// What is held for a request; it travels in its note.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Held {
    /// The reservation of its tokens.
    tokens: Option<u64>,
    /// Its place among those that run at once.
    place: Option<u64>,
}

/// Holds what it asks for, or nothing.
pub(crate) fn grant(asked: &Asked<'_>, limits: &Limits, left: &mut Left) -> Result<Held, Refused> {
    let mut held = Held::default();
    // A request taken from its bucket cannot be put back, so that comes last.
    let granted = reserve_tokens(asked, limits, left, &mut held)
        .and_then(|()| enter(asked, limits, &mut held))
        .and_then(|()| take_request(asked, limits, left));
    if granted.is_err() {
        settle(asked.tenant, held, 0);
    }
    granted.map(|()| held)
}

/// Gives back what was held, but for the tokens that were used.
pub(crate) fn settle(tenant: &str, held: Held, used: u32) {
    // Without the state nothing can be done: the host gives back what never ran itself, and a place
    // is free again after `longest_request`.
    if let Some(reservation) = held.tokens {
        _ = state::settle(reservation, used.into()).map_err(unavailable);
    }
    if let Some(number) = held.place {
        _ = state::leave(&running(tenant), number).map_err(unavailable);
    }
}

fn reserve_tokens(
    asked: &Asked<'_>,
    limits: &Limits,
    left: &mut Left,
    held: &mut Held,
) -> Result<(), Refused> {
    let Some(limit) = limits.tokens_per_minute else { return Ok(()) };
    if asked.tokens > limit {
        return Err(Refused::TooLarge);
    }
    let budget = Budget::each(Span::from_secs(60), limit);
    let key = format!("tokens {}", asked.tenant);
    match state::reserve(&key, budget, asked.tokens.into()).map_err(unavailable)? {
        Reserved::Ok(reservation) => {
            left.tokens = Some((reservation.remaining, Span { micros: reservation.resets_in }));
            held.tokens = Some(reservation.id);
            Ok(())
        }
        Reserved::Denied(wait) => {
            let wait = Span { micros: wait };
            // Something may be left, but not enough for this one.
            left.tokens = Some((0.0, wait));
            Err(Refused::Tokens(wait))
        }
    }
}

fn enter(asked: &Asked<'_>, limits: &Limits, held: &mut Held) -> Result<(), Refused> {
    let Some(limit) = limits.concurrent else { return Ok(()) };
    let entered = state::enter(&running(asked.tenant), limit, asked.longest.micros);
    match entered.map_err(unavailable)? {
        Entered::Ok(number) => {
            held.place = Some(number);
            Ok(())
        }
        Entered::Full => Err(Refused::Concurrent),
    }
}

fn take_request(asked: &Asked<'_>, limits: &Limits, left: &mut Left) -> Result<(), Refused> {
    let Some(limit) = limits.requests_per_minute else { return Ok(()) };
    let key = format!("requests {}", asked.tenant);
    match state::take(&key, Bucket::per_minute(limit), 1.0).map_err(unavailable)? {
        Taken::Ok(remaining) => {
            left.requests = Some(remaining);
            Ok(())
        }
        Taken::Denied(wait) => {
            left.requests = Some(0.0);
            // A bucket of at least one request always fills up again.
            Err(Refused::Requests(Span { micros: wait.unwrap_or(60_000_000) }))
        }
    }
}

fn running(tenant: &str) -> String {
    format!("running {tenant}")
}

fn unavailable(fault: Fault) -> Refused {
    // The host says when its store is away; anything else is for whoever wrote or set up this.
    if fault != Fault::Unavailable {
        log::error(format_args!("the state did nothing: {fault}"));
    }
    Refused::Unavailable
}

impl Held {
    /// `r17 p4`: reservation 17, place 4; what is not held is not there.
    pub(crate) fn to_note(self) -> String {
        let part = |letter, number: Option<u64>| number.map(|number| format!("{letter}{number}"));
        let parts = [part('r', self.tokens), part('p', self.place)];
        parts.into_iter().flatten().collect::<Vec<_>>().join(" ")
    }

    pub(crate) fn from_note(note: &str) -> Self {
        let part = |letter| {
            note.split(' ').find_map(|part| part.strip_prefix(letter)?.parse::<u64>().ok())
        };
        Self { tokens: part('r'), place: part('p') }
    }
}
