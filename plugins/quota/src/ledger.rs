//! What is charged for a request before its body is read, and held from its admission to its end.

use interlock_policy_sdk::state::{self, Bucket, Budget, Entered, Fault, Reserved, Taken};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use interlock_policy_sdk::{Attribute, Span, log};

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

/// What tells a request apart in `identify` and in `admit`, and its quota from every other one.
#[derive(Hash)]
pub(crate) struct Marked<'a> {
    pub(crate) settings: u64,
    pub(crate) request_id: &'a str,
    pub(crate) arrived_at: u64,
}

/// The attribute that says of a request that it was charged already, and how many were left.
const CHARGED: &str = "quota-requests-left";

impl Marked<'_> {
    fn mark(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.hash(&mut hasher);
        hasher.finish()
    }

    /// For the identity of who asks.
    pub(crate) fn charged(&self, left: f64) -> Attribute {
        Attribute { name: CHARGED.into(), value: format!("{left} {:016x}", self.mark()) }
    }

    /// How many were left when this very request was charged. An identity that is repeated for
    /// another request, or that another quota gave, says nothing of this one.
    pub(crate) fn left(&self, attributes: &[Attribute]) -> Option<f64> {
        let mut said = attributes.iter().filter(|attribute| attribute.name == CHARGED);
        said.find_map(|attribute| {
            let (left, mark) = attribute.value.split_once(' ')?;
            (u64::from_str_radix(mark, 16).ok()? == self.mark()).then(|| left.parse().ok())?
        })
    }
}

/// Holds what it asks for, or nothing. If it was `charged` as a request already, so many are left.
pub(crate) fn grant(
    asked: &Asked<'_>,
    limits: &Limits,
    charged: Option<f64>,
    left: &mut Left,
) -> Result<Held, Refused> {
    let mut held = Held::default();
    left.requests = charged;
    // A request taken from its bucket cannot be put back, so that comes last.
    let granted = reserve_tokens(asked, limits, left, &mut held)
        .and_then(|()| enter(asked, limits, &mut held))
        .and_then(|()| match charged {
            Some(_) => Ok(()),
            None => take_request(asked.tenant, limits, left),
        });
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

/// Charges one request, if they are limited.
pub(crate) fn take_request(tenant: &str, limits: &Limits, left: &mut Left) -> Result<(), Refused> {
    let Some(limit) = limits.requests_per_minute else { return Ok(()) };
    let key = format!("requests {tenant}");
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
