//! From a well-formed request to an admitted one: tokens, checks, a seat, the policies.

use std::sync::Arc;

use axum::http::{HeaderMap, HeaderValue};
use interlock_admission::{Account, Admitted, Facts, Load, Prompt};
use interlock_engine::{EngineView, ModelShape, Seat};
use interlock_request::{Endpoint, Generation, ModelId, Priority, RequestId, Sampling, TokenId};
use interlock_text::{RenderError, TextModel};

use crate::ask::{Ask, Invalid, Least, Length, Words};
use crate::failure::Failure;
use crate::host::Host;

/// What is known of a request besides its body.
pub(crate) struct Arrival {
    pub(crate) id: RequestId,
    pub(crate) endpoint: Endpoint,
    /// Microseconds since the Unix epoch.
    pub(crate) at_micros: u64,
    pub(crate) headers: HeaderMap,
    pub(crate) body_bytes: u64,
}

/// A request that may begin: it has passed the policies and has a seat.
pub(crate) struct Entry {
    pub(crate) seat: Seat,
    pub(crate) admitted: Admitted,
    pub(crate) account: Account,
    /// The model that answers.
    pub(crate) model: ModelId,
    pub(crate) text: Arc<TextModel>,
    pub(crate) prompt_tokens: u32,
    pub(crate) tokens_min: u32,
    /// Temperature and `top_p`, which some answers repeat.
    pub(crate) drawing: (f32, f32),
}

impl Host {
    /// Checks a request against the model, seats it and asks the policies.
    ///
    /// # Errors
    ///
    /// When the model cannot take it, is not there, is busy, or a policy refuses.
    pub(crate) async fn admit(&self, arrival: &Arrival, ask: &Ask) -> Result<Entry, Failure> {
        let model = self.models.called(&ask.model)?;
        let (text, shape) = model.at_hand()?;
        let text = Arc::clone(text);
        let tokens = self.tokenize(&text, &ask.words).await?;
        let prompt_tokens = fits(&ask.words, tokens.len(), shape)?;
        let (tokens_max, tokens_max_asked) = tokens_max(&ask.length, prompt_tokens, shape)?;
        let tokens_min = match &ask.ending.least {
            Some(least) => tokens_min(least, &ask.length, tokens_max)?,
            None => 0,
        };
        bias_in_vocabulary(ask, shape)?;
        let prompt = Prompt::new(tokens).ok_or_else(|| {
            Invalid::wrong_value(ask.words.param(), "at least one token long", "none")
        })?;
        let generation = Generation {
            sampling: ask.sampling.or(&model.sampling),
            tokens_max,
            tokens_min,
            stop_tokens: if ask.ending.ignore_eos { vec![] } else { text.eos().to_vec() },
            logprobs: ask.logprobs,
            // The policies decide; without them it is the chain's default.
            priority: Priority::Standard,
        };
        let facts = Facts {
            request_id: arrival.id.clone(),
            arrived_at_micros: arrival.at_micros,
            endpoint: arrival.endpoint,
            model: model.id.clone(),
            streaming: ask.stream,
            prompt_tokens,
            tokens_max,
            tokens_max_asked,
            body_bytes: arrival.body_bytes,
            headers: self.seen_by_policies(&arrival.headers),
        };
        // Read before the seat is taken: the load is that of the others.
        let load = load(model.engine.view());
        let seat = model.engine.seat()?;
        let Sampling { temperature, top_p, .. } = generation.sampling;
        let (admitted, account, verdicts) = self.chain.admit(facts, &load, prompt, generation)?;
        tracing::debug!(request = %arrival.id, ?verdicts, "admitted");
        let model = model.id.clone();
        let drawing = (temperature, top_p);
        Ok(Entry { seat, admitted, account, model, text, prompt_tokens, tokens_min, drawing })
    }

    async fn tokenize(&self, text: &TextModel, words: &Words) -> Result<Vec<TokenId>, Failure> {
        let tokens = self.labour(words.text_bytes(), || tokens(text, words)).await;
        tokens.map_err(|why| {
            tracing::debug!(%why, "a prompt was not rendered");
            Invalid::not_rendered(words.param(), &why.to_string()).into()
        })
    }

    /// Allowed headers in the order in which they came. The map keeps it but for one thing: what
    /// repeats a name stands right behind its first. A value that is no text is not shown.
    fn seen_by_policies(&self, headers: &HeaderMap) -> Vec<(String, String)> {
        let allowed = &self.config.policy_headers;
        let text = |value: &HeaderValue| String::from_utf8(value.as_bytes().to_vec()).ok();
        headers
            .iter()
            .filter(|(name, _)| allowed.iter().any(|allowed| allowed == name.as_str()))
            .filter_map(|(name, value)| Some((name.to_string(), text(value)?)))
            .collect()
    }
}

fn tokens(text: &TextModel, words: &Words) -> Result<Vec<TokenId>, RenderError> {
    match words {
        Words::Chat { messages, .. } => text.render_chat(messages),
        Words::Text(prompt) => text.encode(prompt),
        Words::Tokens { ids, .. } => Ok(ids.clone()),
    }
}

/// The prompt's length, if it leaves room for a token of answer and is made of known tokens.
fn fits(words: &Words, tokens: usize, shape: ModelShape) -> Result<u32, Invalid> {
    let context = shape.context;
    let prompt_tokens = u32::try_from(tokens).ok().filter(|&tokens| tokens < context);
    let prompt_tokens =
        prompt_tokens.ok_or_else(|| Invalid::context_length(words.param(), tokens, context))?;
    if let Words::Tokens { path, ids } = words
        && let Some(at) = ids.iter().position(|&id| id >= shape.vocabulary)
    {
        let path = format!("{path}[{at}]");
        return Err(Invalid::wrong_value(&path, &token_id(shape), &ids[at].to_string()));
    }
    Ok(prompt_tokens)
}

/// Most tokens to generate, and whether the client asked for a number itself. What does not fit
/// behind the prompt ends there, with `length`; what cannot fit behind any prompt is an error.
fn tokens_max(
    length: &Length,
    prompt_tokens: u32,
    shape: ModelShape,
) -> Result<(u32, bool), Invalid> {
    let room = shape.context - prompt_tokens;
    match length {
        Length::Context => Ok((room, false)),
        Length::Default(tokens) => Ok(((*tokens).min(room), false)),
        Length::Asked { param, tokens, shown } => match u32::try_from(*tokens) {
            Ok(tokens) if tokens <= shape.context => Ok((tokens.min(room), true)),
            _ => {
                let expected = format!("at most {}, this model's context", shape.context);
                Err(Invalid::wrong_value(param, &expected, shown))
            }
        },
    }
}

/// Fewest tokens to generate, if that many can be: `tokens_max` is what the client's limit and
/// the context leave.
fn tokens_min(least: &Least, length: &Length, tokens_max: u32) -> Result<u32, Invalid> {
    let most = i64::from(tokens_max);
    let (most, why) = match length {
        Length::Asked { param, tokens, .. } if least.tokens > *tokens => {
            (*tokens, format!("{param} of the same request"))
        }
        Length::Default(tokens) if *tokens == tokens_max => {
            (most, "max_tokens where a request does not say it".to_owned())
        }
        _ => (most, "what this model's context leaves behind the prompt".to_owned()),
    };
    match u32::try_from(least.tokens) {
        Ok(tokens) if least.tokens <= most => Ok(tokens),
        _ => {
            let expected = format!("at most {most}, {why}");
            Err(Invalid::wrong_value("min_tokens", &expected, &least.shown))
        }
    }
}

fn bias_in_vocabulary(ask: &Ask, shape: ModelShape) -> Result<(), Invalid> {
    match ask.sampling.biased().find(|&id| id >= shape.vocabulary) {
        None => Ok(()),
        Some(id) => {
            let path = format!("logit_bias.{id}");
            Err(Invalid::wrong_value(
                &path,
                &format!("named by {}", token_id(shape)),
                &id.to_string(),
            ))
        }
    }
}

fn token_id(shape: ModelShape) -> String {
    format!("a token id below {}, this model's vocabulary", shape.vocabulary)
}

fn load(view: EngineView) -> Load {
    let EngineView { waiting, waiting_max, running } = view;
    Load { waiting, waiting_max, running }
}
