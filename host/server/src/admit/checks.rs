//! What is checked of a request once its model is known: no clock, no policy, no queue.

use interlock_engine::ModelShape;
use interlock_request::TokenId;
use interlock_text::{RenderError, TextModel};

use crate::endpoints::{ApiRequest, MaxTokens, MinTokens, PromptInput};
use crate::failure::InvalidRequest;

/// One token of the context is for the answer.
pub(super) fn room_for_prompt(shape: ModelShape) -> usize {
    shape.context.saturating_sub(1) as usize
}

pub(super) fn fits_at_least(input: &PromptInput, shape: ModelShape) -> Result<(), InvalidRequest> {
    let parts = input.parts();
    if parts <= room_for_prompt(shape) {
        return Ok(());
    }
    let count = match input {
        PromptInput::Tokens { .. } => parts.to_string(),
        PromptInput::Chat { .. } | PromptInput::Text(_) => format!("at least {parts}"),
    };
    Err(InvalidRequest::context_length(input.param(), &count, shape.context))
}

pub(super) fn tokens(
    text: &TextModel,
    input: PromptInput,
    shape: ModelShape,
) -> Result<Vec<TokenId>, InvalidRequest> {
    let (param, room) = (input.param(), room_for_prompt(shape));
    let tokens = match input {
        PromptInput::Chat { messages, options, .. } => text.render_chat(&messages, &options, room),
        PromptInput::Text(prompt) => text.encode(&prompt, room),
        PromptInput::Tokens { path, ids } => return known(&path, &ids, shape).map(|()| ids),
    };
    tokens.map_err(|why| {
        tracing::debug!(%why, "a prompt was not rendered");
        match why {
            RenderError::TooLong { tokens_min, .. } => {
                let tokens = format!("at least {tokens_min}");
                InvalidRequest::context_length(param, &tokens, shape.context)
            }
            why => InvalidRequest::not_rendered(param, &why.to_string()),
        }
    })
}

/// Refuses tokens that the model does not have. They stand at `path`.
pub(super) fn known(path: &str, ids: &[TokenId], shape: ModelShape) -> Result<(), InvalidRequest> {
    match ids.iter().position(|&id| id >= shape.vocabulary) {
        None => Ok(()),
        Some(at) => {
            let path = format!("{path}[{at}]");
            Err(InvalidRequest::wrong_value(&path, &token_id(shape), &ids[at].to_string()))
        }
    }
}

/// The prompt's length, if it leaves room for a token of answer.
pub(super) fn fits(param: &str, tokens: usize, shape: ModelShape) -> Result<u32, InvalidRequest> {
    let context = shape.context;
    let prompt_tokens = u32::try_from(tokens).ok().filter(|&tokens| tokens < context);
    prompt_tokens.ok_or_else(|| InvalidRequest::context_length(param, &tokens.to_string(), context))
}

/// Most tokens to generate, and whether the client asked for a number itself. What does not fit
/// behind the prompt ends there, with `max_tokens`; what cannot fit behind any prompt is an error.
pub(super) fn tokens_max(
    max_tokens: &MaxTokens,
    prompt_tokens: u32,
    shape: ModelShape,
) -> Result<(u32, bool), InvalidRequest> {
    let room = shape.context - prompt_tokens;
    match max_tokens {
        MaxTokens::Context => Ok((room, false)),
        MaxTokens::Default(tokens) => Ok(((*tokens).min(room), false)),
        MaxTokens::Asked { param, tokens, shown } => match u32::try_from(*tokens) {
            Ok(tokens) if tokens <= shape.context => Ok((tokens.min(room), true)),
            _ => {
                let expected = format!("at most {}, this model's context", shape.context);
                Err(InvalidRequest::wrong_value(param, &expected, shown))
            }
        },
    }
}

/// Fewest tokens to generate, if that many can be: `tokens_max` is what the client's limit and
/// the context leave.
pub(super) fn tokens_min(
    min_tokens: &MinTokens,
    max_tokens: &MaxTokens,
    tokens_max: u32,
) -> Result<u32, InvalidRequest> {
    let most = i64::from(tokens_max);
    let (most, why) = match max_tokens {
        MaxTokens::Asked { param, tokens, .. } if min_tokens.tokens > *tokens => {
            (*tokens, format!("{param} of the same request"))
        }
        MaxTokens::Default(tokens) if *tokens == tokens_max => {
            (most, "max_tokens where a request does not say it".to_owned())
        }
        _ => (most, "what this model's context leaves behind the prompt".to_owned()),
    };
    match u32::try_from(min_tokens.tokens) {
        Ok(tokens) if min_tokens.tokens <= most => Ok(tokens),
        _ => {
            let expected = format!("at most {most}, {why}");
            Err(InvalidRequest::wrong_value("min_tokens", &expected, &min_tokens.shown))
        }
    }
}

pub(super) fn bias_in_vocabulary(
    request: &ApiRequest,
    shape: ModelShape,
) -> Result<(), InvalidRequest> {
    match request.sampling.biased().find(|&id| id >= shape.vocabulary) {
        None => Ok(()),
        Some(id) => {
            let path = format!("logit_bias.{id}");
            Err(InvalidRequest::wrong_value(
                &path,
                &format!("named by {}", token_id(shape)),
                &id.to_string(),
            ))
        }
    }
}

/// The tokens that end this answer: the client's, and the model's unless they are to be ignored.
pub(super) fn stop_tokens(request: &ApiRequest, text: &TextModel) -> Vec<TokenId> {
    let ours = if request.stop.ignore_eos { &[] } else { text.eos() };
    [ours, &request.stop.stop_tokens].concat()
}

pub(super) fn token_id(shape: ModelShape) -> String {
    format!("a token id below {}, this model's vocabulary", shape.vocabulary)
}
