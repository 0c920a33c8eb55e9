//! What clients read of their limits, in the headers that OpenAI's have.

use interlock_policy_sdk::{Header, Span, header};

use crate::ledger::Left;
use crate::settings::Limits;

/// `x-ratelimit-*`, for each limit that there is and was looked up.
pub(crate) fn rate_limits(limits: &Limits, left: &Left) -> Vec<Header> {
    let mut headers = vec![];
    let mut of = |what: &str, limit: u32, remaining: f64, reset: Span| {
        headers.push(header(format!("x-ratelimit-limit-{what}"), limit));
        headers.push(header(format!("x-ratelimit-remaining-{what}"), remaining as u64));
        headers.push(header(format!("x-ratelimit-reset-{what}"), written(reset)));
    };
    if let (Some(limit), Some(remaining)) = (limits.requests_per_minute, left.requests) {
        let missing = f64::from(limit) - remaining;
        let reset = Span { micros: (missing / f64::from(limit) * 60e6) as u64 };
        of("requests", limit, remaining, reset);
    }
    if let (Some(limit), Some((remaining, reset))) = (limits.tokens_per_minute, left.tokens) {
        of("tokens", limit, remaining, reset);
    }
    headers
}

/// `120ms`, `7s`, `1m0s`: as OpenAI writes it.
fn written(span: Span) -> String {
    let millis = span.micros.div_ceil(1000);
    if millis < 1000 {
        return format!("{millis}ms");
    }
    let seconds = millis.div_ceil(1000);
    match seconds / 60 {
        0 => format!("{seconds}s"),
        minutes => format!("{minutes}m{}s", seconds % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_written_as_openai_writes_it() {
        for (micros, text) in [
            (0, "0ms"),
            (1, "1ms"),
            (120_000, "120ms"),
            (7_000_000, "7s"),
            (59_000_001, "1m0s"),
            (61_000_000, "1m1s"),
        ] {
            assert_eq!(written(Span { micros }), text);
        }
    }
}
