//! Fields that several endpoints read in the same way.

use interlock_request::Generation;

use super::fields::{self, EndpointSet, RequestFields, UnknownFields};
use super::json::FieldValue;
use super::{MaxTokens, MinTokens, StopRules, stop_tokens};
use crate::failure::InvalidRequest;

/// Other servers serve one model and do not ask for its name; some of their clients send an empty
/// one.
pub(super) fn model(body: &RequestFields<'_>) -> Result<Option<String>, InvalidRequest> {
    let name = body.get("model").map(|item| item.text()).transpose()?;
    Ok(name.filter(|name| !name.is_empty()))
}

pub(super) fn flag(body: &RequestFields<'_>, name: &str) -> Result<bool, InvalidRequest> {
    body.get(name).map_or(Ok(false), |item| item.boolean())
}

/// `max_tokens`, by whichever of its names; -1 is how clients say that there is no limit.
pub(super) fn max_tokens(
    body: &RequestFields<'_>,
    otherwise: MaxTokens,
) -> Result<MaxTokens, InvalidRequest> {
    const NAME: &str = "max_tokens";
    const UNLIMITED: i64 = -1;

    let Some(item) = body.get(NAME) else { return Ok(otherwise) };
    if item.integer(UNLIMITED..=UNLIMITED).is_ok() {
        return Ok(MaxTokens::Context);
    }
    let tokens = item.integer(1..=i64::MAX)?;
    Ok(MaxTokens::Asked { param: body.written(NAME), tokens, shown: item.shown() })
}

/// `stop`, and what vLLM's clients know as `stop_token_ids`, `ignore_eos` and `min_tokens`.
pub(super) fn stop(body: &RequestFields<'_>) -> Result<StopRules, InvalidRequest> {
    let min_tokens = |item: FieldValue<'_>| {
        Ok(MinTokens { tokens: item.integer(0..=i64::MAX)?, shown: item.shown() })
    };
    Ok(StopRules {
        stops: stops(body)?,
        stop_tokens: stop_tokens::parse(body)?,
        ignore_eos: flag(body, "ignore_eos")?,
        min_tokens: body.get("min_tokens").map(min_tokens).transpose()?,
    })
}

/// `stop`: up to four texts. Empty ones are how some clients say that there are none.
fn stops(body: &RequestFields<'_>) -> Result<Vec<String>, InvalidRequest> {
    /// OpenAI's limit.
    const STOPS_MAX: usize = 4;
    /// Longest text to look for, in bytes. Every one is compared at every token.
    const STOP_BYTES_MAX: usize = 256;

    let Some(item) = body.get("stop") else { return Ok(vec![]) };
    let stop = |item: &FieldValue<'_>| {
        let text = item.text()?;
        if text.len() <= STOP_BYTES_MAX {
            Ok(text)
        } else {
            Err(item.wrong_value(&format!("a string of at most {STOP_BYTES_MAX} bytes")))
        }
    };
    let mut count = 0;
    let mut stops = if item.is_list() {
        item.list(|one| {
            count += 1;
            if count > STOPS_MAX {
                return Err(item.wrong_value(&format!("at most {STOPS_MAX} strings")));
            }
            stop(&one)
        })?
    } else {
        vec![stop(&item)?]
    };
    stops.retain(|stop| !stop.is_empty());
    Ok(stops)
}

/// `stream` and `stream_options.include_usage`.
pub(super) fn streaming(
    endpoint: EndpointSet,
    body: &RequestFields<'_>,
    unknown: &mut UnknownFields,
) -> Result<(bool, bool), InvalidRequest> {
    let stream = flag(body, "stream")?;
    let Some(options) = body.get("stream_options") else { return Ok((stream, false)) };
    if !stream {
        return Err(options.wrong_value("absent unless stream is true"));
    }
    let options = fields::STREAM_OPTIONS.read(endpoint, options.object()?, unknown)?;
    Ok((stream, flag(&options, "include_usage")?))
}

/// How many of the likeliest tokens to tell.
pub(super) fn likeliest(item: &FieldValue<'_>) -> Result<u32, InvalidRequest> {
    let count = item.integer(0..=i64::from(Generation::LOGPROBS_MAX))?;
    Ok(u32::try_from(count).expect("the range was checked"))
}

/// `top_logprobs`, which goes with another field that says whether to tell any at all.
pub(super) fn top_logprobs(
    body: &RequestFields<'_>,
    asked: bool,
    with: &str,
) -> Result<Option<u32>, InvalidRequest> {
    let Some(item) = body.get("top_logprobs") else { return Ok(asked.then_some(0)) };
    match likeliest(&item)? {
        count if asked => Ok(Some(count)),
        0 => Ok(None),
        _ => Err(item.wrong_value(&format!("absent or 0 unless {with}"))),
    }
}

/// A field that takes these texts; others are features that this host has not.
pub(super) fn only_text(
    body: &RequestFields<'_>,
    name: &str,
    served: &[&str],
) -> Result<(), InvalidRequest> {
    let Some(item) = body.get(name) else { return Ok(()) };
    if item.is_text() && served.contains(&item.text()?.as_str()) {
        return Ok(());
    }
    let served = served.join(" or ");
    Err(InvalidRequest::unsupported(item.path(), &format!("only {served} is"), &item.shown()))
}

/// `response_format` and `text.format`: plain text.
pub(super) fn only_plain_text(
    endpoint: EndpointSet,
    format: Option<FieldValue<'_>>,
    unknown: &mut UnknownFields,
) -> Result<(), InvalidRequest> {
    let Some(format) = format else { return Ok(()) };
    // What the format is says more than what it would need.
    let kind = format.object()?.take("type");
    only_plain(&kind.ok_or_else(|| InvalidRequest::missing(&format!("{}.type", format.path())))?)?;
    fields::FORMAT.read(endpoint, format.object()?, unknown).map(drop)
}

fn only_plain(kind: &FieldValue<'_>) -> Result<(), InvalidRequest> {
    match kind.text()?.as_str() {
        "text" => Ok(()),
        _ => Err(InvalidRequest::unsupported(kind.path(), "only text is", &kind.shown())),
    }
}
