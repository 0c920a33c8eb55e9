//! From a request's head to its admission: who it is, what it asks, which model, tokens, checks, a
//! seat, and at each step the policies.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::http::{HeaderMap, HeaderValue, header};
use bytes::Bytes;
use interlock_engine::{ModelShape, QueuePermit};
use interlock_policy_api::{Admitted, Body, Caller, Facts, Headers, Identity, Phase, Prompt};
use interlock_policy_chain::{
    AdmissionOutcome, AdmissionReview, DecisionRecord, PolicyChain, PolicySession,
};
use interlock_request::{
    Deadline, Deadlines, Endpoint, Generation, ModelId, Priority, RequestId, Sampling, TokenId,
};
use interlock_text::{Detokenizer, RenderError, TextModel};
use sha2::{Digest, Sha256};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;

use crate::ask::{Ask, Invalid, Least, Length, Words};
use crate::body::Arrived;
use crate::doors::client;
use crate::failure::Failure;
use crate::host::Host;
use crate::models::Model;
use crate::router::Meta;
use crate::work::{Class, Job, Large, Lease, NotDone, Part};

/// A request on its way in, and the policies that it keeps for its whole life: a swap meanwhile is
/// not its business.
pub(crate) struct Visit {
    /// Taken by the consent.
    hearing: AdmissionReview,
    pub(crate) id: RequestId,
    pub(crate) endpoint: Endpoint,
    /// Microseconds since the Unix epoch.
    pub(crate) at_micros: u64,
    pub(crate) identity: Identity,
    /// When its head had arrived: its deadlines count from here.
    arrived_at: Instant,
    /// When its time is up if it is not admitted before, and by which deadline.
    due: Option<(Instant, Deadline)>,
    /// The other side's address or network, where nobody says whose it is.
    client: String,
    serial: u64,
    headers: Headers,
    /// Does its client want to know what was decided, and may it?
    traced: bool,
}

/// What was understood of a request before a model was chosen.
pub(crate) struct Understood {
    ask: Large<Ask>,
    facts: Facts,
    body: Large<Arc<Body>>,
}

/// A request that may begin: it has passed the policies and has a seat.
pub(crate) struct Entry {
    pub(crate) id: RequestId,
    /// Microseconds since the Unix epoch.
    pub(crate) at_micros: u64,
    /// The same moment, for deadlines.
    pub(crate) arrived_at: Instant,
    /// Whom it counts for.
    pub(crate) tenant: String,
    pub(crate) seat: QueuePermit,
    pub(crate) admitted: Admitted,
    pub(crate) oversight: PolicySession,
    /// The model that answers.
    pub(crate) model: Arc<Model>,
    pub(crate) text: Arc<TextModel>,
    /// Goes on where the prompt's text ends.
    pub(crate) detokenizer: Detokenizer,
    pub(crate) prompt_tokens: u32,
    pub(crate) tokens_min: u32,
    /// Temperature and `top_p`, which some answers repeat.
    pub(crate) drawing: (f32, f32),
    /// How many wait before it.
    pub(crate) before: u32,
    /// What policies say to its client in headers.
    pub(crate) headers: Vec<(String, String)>,
    /// A place among those that nobody waits for, if it is one.
    pub(crate) place: Option<OwnedSemaphorePermit>,
}

impl Host {
    /// Asks who it is, before anything of the body is read.
    ///
    /// # Errors
    ///
    /// When a policy refuses.
    pub(crate) async fn identify(
        &self,
        meta: &Meta,
        endpoint: Endpoint,
        headers: &HeaderMap,
    ) -> Result<Visit, Failure> {
        self.identify_for(meta, endpoint, headers, false).await
    }

    /// The same of someone who asks for an answer that is made, or cancels: for no new work. The
    /// endpoint is that of the request which it is about.
    ///
    /// # Errors
    ///
    /// When a policy refuses.
    pub(crate) async fn identify_to_look_up(
        &self,
        meta: &Meta,
        endpoint: Endpoint,
        headers: &HeaderMap,
    ) -> Result<Visit, Failure> {
        self.identify_for(meta, endpoint, headers, true).await
    }

    async fn identify_for(
        &self,
        meta: &Meta,
        endpoint: Endpoint,
        headers: &HeaderMap,
        looks_up: bool,
    ) -> Result<Visit, Failure> {
        let chain = self.policies.current();
        let Meta { id, at_micros, arrived_at, address, .. } = meta;
        let serial = self.serial();
        let shown = |address: IpAddr| address.to_string();
        let mut visit = Visit {
            id: id.clone(),
            endpoint,
            at_micros: *at_micros,
            identity: Identity::default(),
            arrived_at: *arrived_at,
            due: self.due(*arrived_at),
            // As connections are counted: whoever has a network of addresses is one all the same.
            client: address.map(client).map_or_else(String::new, shown),
            serial,
            headers: seen_by_policies(&chain, headers),
            traced: self.config.policy_trace && headers.contains_key(TRACE),
            hearing: chain.review(serial, id.clone()),
        };
        if chain.takes(Phase::Identify) {
            let caller = Caller {
                serial: visit.serial,
                request_id: id.clone(),
                arrived_at_micros: *at_micros,
                endpoint,
                credential: credential(headers),
                address: address.map_or_else(String::new, shown),
                headers: visit.headers.clone(),
                looks_up,
            };
            visit.identity = visit.hearing.identify(&caller).await?;
        }
        Ok(visit)
    }

    /// Reads a body, and lets the policies change it.
    ///
    /// # Errors
    ///
    /// When it is not what the endpoint takes, or a policy refuses.
    pub(crate) async fn understand(
        &self,
        visit: &mut Visit,
        arrived: Arrived,
        lease: &mut Lease,
    ) -> Result<Understood, Failure> {
        let (chain, endpoint) = (Arc::clone(visit.hearing.chain()), visit.endpoint);
        let Arrived { bytes, values } = arrived.without_mark();
        let size = bytes.len();
        // Kept for nobody, unless somebody may look at it.
        let seen = if chain.wants_content() { bytes.clone() } else { Bytes::new() };
        lease.grow(read_bytes(size, values, !seen.is_empty())).await?;
        let parse = lease.held_by(move || Ask::parse(endpoint, &bytes));
        let ask = self.read(visit, size, values, parse).await??;
        let mut ask = Large::new(ask, self.work.clone());
        let mut facts = self.facts(visit, &ask, size);
        let asked = facts.model.clone();
        let body = Large::new(Arc::new(Body::new(seen)), self.work.clone());
        if chain.takes(Phase::Transform) {
            // Otherwise the first policy that looks would parse it, on the runtime's thread.
            // Whoever asks for something in a body that is none is told so.
            let parsed = Arc::clone(&body);
            let parse = lease.held_by(move || drop(parsed.parse()));
            self.read(visit, size, values, parse).await?;
            visit.hearing.transform(&mut facts, &body).await?;
            if body.is_changed() {
                // What policies may write is not known before it is written out.
                let size_max = size.saturating_mul(2) + Body::WRITTEN_BYTES_MAX;
                lease.grow(size_max.saturating_mul(2)).await?;
                let changed = Arc::clone(&body);
                let parse_again = lease.held_by(move || {
                    let changed = changed.changed().unwrap_or_default();
                    Ask::parse(endpoint, &changed).map(|ask| (ask, changed.len()))
                });
                let again = self.read(visit, size_max, values, parse_again).await?;
                let (again, size) = again.map_err(|invalid| {
                    Failure::Spoiled(format!("a policy changed the body: {}", invalid.message))
                })?;
                // A policy that names a model says so last.
                let model = (facts.model != asked).then(|| facts.model.clone());
                // A client hears of its own fields, not of those that a policy added.
                let unknown = std::mem::take(&mut ask.unknown);
                ask = Large::new(Ask { unknown, ..again }, self.work.clone());
                let identity = std::mem::take(&mut facts.identity);
                let seen = std::mem::take(&mut facts.headers);
                facts = Facts { identity, headers: seen, ..self.facts(visit, &ask, size) };
                facts.model = model.unwrap_or(facts.model);
            }
        }
        Ok(Understood { ask, facts, body })
    }

    /// Reads so many bytes with so many values in them: few of them here, more of them in the pool.
    async fn read<T: Send + 'static>(
        &self,
        visit: &Visit,
        bytes: usize,
        values: usize,
        read: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, NotDone> {
        /// It takes less time to read these than to have them read.
        const AT_ONCE_BYTES: usize = 4 << 10;

        if bytes <= AT_ONCE_BYTES {
            return Ok(read());
        }
        self.work.run(visit.job(Class::of(bytes, values)), read).await
    }

    /// Chooses a model, checks the request against it, seats it and asks the policies.
    ///
    /// # Errors
    ///
    /// When the model cannot take it, is not there, is busy, or a policy refuses.
    pub(crate) async fn admit(
        &self,
        visit: Visit,
        understood: Understood,
        lease: &mut Lease,
    ) -> Result<(Ask, Entry), Failure> {
        let Understood { ask, facts, body } = understood;
        let mut visit = visit;
        let model = Arc::clone(self.route(&mut visit.hearing, &facts, &body).await?);
        let (text, shape) = model.at_hand()?;
        let text = Arc::clone(text);
        let (param, mut ask) = (ask.words.param(), ask);
        let words = Large::new(std::mem::take(&mut ask.words), self.work.clone());
        let ask = ask.into_inner();
        let (tokens, detokenizer) =
            self.tokenize(&visit, &model.id, &text, words, shape, lease).await?;
        let prompt_tokens = fits(param, tokens.len(), shape)?;
        let Visit { hearing, id, identity, at_micros, arrived_at, traced, .. } = visit;
        let (tokens_max, tokens_max_asked) = tokens_max(&ask.length, prompt_tokens, shape)?;
        let tokens_min = match &ask.ending.least {
            Some(least) => tokens_min(least, &ask.length, tokens_max)?,
            None => 0,
        };
        bias_in_vocabulary(&ask, shape)?;
        known("stop_token_ids", &ask.ending.stop_tokens, shape)?;
        let prompt = Prompt::new(tokens)
            .ok_or_else(|| Invalid::wrong_value(param, "at least one token long", "none"))?;
        let generation = Generation {
            sampling: ask.sampling.or(&model.sampling),
            tokens_max,
            tokens_min,
            stop_tokens: stop_tokens(&ask, &text),
            logprobs: ask.logprobs,
            // The policies decide; without them it is the chain's default.
            priority: Priority::Standard,
        };
        let Sampling { temperature, top_p, .. } = generation.sampling;
        let model_id = model.id.clone();
        let facts = Facts { model: model_id, prompt_tokens, tokens_max, tokens_max_asked, ..facts };
        let prefix_key = facts.prefix_key;
        // Read before the seat is taken: the load is that of the others.
        let load = model.load();
        let seat = model.engine.queue_permit()?;
        let place = ask.background.then(|| self.results.place_in_background()).transpose()?;
        let consent = hearing.admit(facts, &load, prompt, generation, &body).await?;
        let AdmissionOutcome { admitted, session: oversight, mut headers, decisions: said } =
            consent;
        tracing::debug!(request = %id, model = %model.id, ?said, "admitted");
        if traced {
            headers.push((TRACE.into(), trace(&said)));
        }
        model.recent.prefix(prefix_key);
        let entry = Entry {
            id,
            at_micros,
            arrived_at,
            tenant: identity.tenant,
            seat,
            admitted,
            oversight,
            model,
            text,
            detokenizer,
            prompt_tokens,
            tokens_min,
            drawing: (temperature, top_p),
            before: load.waiting,
            headers,
            place,
        };
        Ok((ask, entry))
    }

    /// When the time of a request is up that was not admitted before, by the limits that hold for
    /// all, and by which.
    pub(crate) fn due(&self, arrived_at: Instant) -> Option<(Instant, Deadline)> {
        let Deadlines { queue, first_token, total, .. } =
            self.policies.current().ceilings().deadlines;
        let limits = [
            (queue, Deadline::Queue),
            (first_token, Deadline::FirstToken),
            (total, Deadline::Total),
        ];
        // A limit too far away to be a moment is none.
        let due = |(limit, deadline): (Option<Duration>, Deadline)| {
            Some((arrived_at.checked_add(limit?)?, deadline))
        };
        limits.into_iter().filter_map(due).min_by_key(|(at, _)| *at)
    }

    /// What is known of a request before a model is chosen.
    fn facts(&self, visit: &Visit, ask: &Ask, body_bytes: usize) -> Facts {
        let tokens = ask.tokens_asked();
        Facts {
            serial: visit.serial,
            request_id: visit.id.clone(),
            arrived_at_micros: visit.at_micros,
            endpoint: visit.endpoint,
            model: self.models.asked(ask.model.as_deref()),
            streaming: ask.stream,
            background: ask.background,
            prompt_tokens: ask.words.tokens_about(),
            tokens_max: tokens.unwrap_or(0),
            tokens_max_asked: tokens.is_some(),
            body_bytes: u64::try_from(body_bytes).unwrap_or(u64::MAX),
            prefix_key: self.prefix_keys.key(&visit.identity.tenant, &ask.words),
            identity: visit.identity.clone(),
            headers: visit.headers.clone(),
        }
    }

    /// The model that the request runs on: the one it asks for, unless policies choose.
    async fn route(
        &self,
        hearing: &mut AdmissionReview,
        facts: &Facts,
        body: &Arc<Body>,
    ) -> Result<&Arc<Model>, Failure> {
        if !hearing.chain().takes(Phase::Route) {
            return self.models.called(facts.model.as_str());
        }
        let candidates = self.models.candidates(facts);
        let chosen = hearing.route(facts, &candidates, body).await?;
        let chosen = chosen.and_then(|id| self.models.chosen(id));
        chosen.ok_or_else(|| self.models.unknown(facts.model.as_str()))
    }

    /// The prompt's tokens, if they leave room for one of an answer, and what makes text of those.
    async fn tokenize(
        &self,
        visit: &Visit,
        model: &ModelId,
        text: &Arc<TextModel>,
        words: Large<Words>,
        shape: ModelShape,
        lease: &mut Lease,
    ) -> Result<(Vec<TokenId>, Detokenizer), Failure> {
        // Each part is a token at least, so this decides without looking at any of them.
        fits_at_least(&words, shape)?;
        let (bytes, parts) = (words.text_bytes(), words.parts());
        let part = match *words {
            Words::Chat { .. } => Some(Part::ChatTemplate),
            Words::Text(_) => Some(Part::Tokenizer),
            Words::Tokens { .. } => None,
        };
        let class = Class::of(bytes, parts);
        // What a small one takes for a moment it takes on one of a few threads. And what a long one
        // takes at most it hardly ever does: no reason to refuse it.
        if part.is_some() && class > Class::Small {
            let most = text.working_bytes(bytes, room_for_prompt(shape));
            lease.grow_for_a_while(most).await?;
        }
        let owner = part.map(|part| (model.clone(), part));
        let job = Job { owner, ..visit.job(class) };
        let text = Arc::clone(text);
        let tokenize = lease.held_by(move || {
            let tokens = tokens(&text, words.into_inner(), shape)?;
            let detokenizer = text.detokenizer(&tokens);
            Ok::<_, Invalid>((tokens, detokenizer))
        });
        Ok(self.work.run(job, tokenize).await??)
    }
}

/// About as much memory as reading a body takes, beside the body itself.
fn read_bytes(bytes: usize, values: usize, parsed_for_policies: bool) -> usize {
    /// A short message is three values, and takes 72 bytes and what its two texts are allocated.
    const VALUE: usize = 48;
    /// An object of one field, which is two values, takes about twice this.
    const VALUE_FOR_POLICIES: usize = 280;

    let read = bytes.saturating_add(values.saturating_mul(VALUE));
    let seen = bytes.saturating_add(values.saturating_mul(VALUE_FOR_POLICIES));
    read.saturating_add(if parsed_for_policies { seen } else { 0 })
}

impl Visit {
    /// With whose work this one's takes turns.
    pub(crate) fn whose(&self) -> &str {
        if self.identity.tenant.is_empty() { &self.client } else { &self.identity.tenant }
    }

    fn job(&self, class: Class) -> Job<'_> {
        Job { due: self.due, ..Job::new(class, self.whose()) }
    }
}

/// Headers that some policy was granted, in the order in which they came. The map keeps it but for
/// one thing: what repeats a name stands right behind its first. A value that is no text is not
/// shown.
fn seen_by_policies(chain: &PolicyChain, headers: &HeaderMap) -> Headers {
    let granted = chain.headers_seen();
    if granted.is_empty() {
        return Headers::default();
    }
    let text = |value: &HeaderValue| String::from_utf8(value.as_bytes().to_vec()).ok();
    let seen = headers
        .iter()
        .filter(|(name, _)| granted.contains(name.as_str()))
        .filter_map(|(name, value)| Some((name.to_string(), text(value)?)));
    Headers(seen.collect())
}

/// SHA-256 of the key that a client shows, in hex: policies tell keys apart and cannot leak them.
/// Empty when there is none.
fn credential(headers: &HeaderMap) -> String {
    let bearer = || {
        let value = headers.get(header::AUTHORIZATION)?.as_bytes();
        let (scheme, token) = value.split_at_checked("bearer ".len())?;
        scheme.eq_ignore_ascii_case(b"bearer ").then(|| token.trim_ascii())
    };
    let key = bearer().or_else(|| Some(headers.get("x-api-key")?.as_bytes()));
    match key {
        None | Some([]) => String::new(),
        Some(key) => Sha256::digest(key).iter().map(|byte| format!("{byte:02x}")).collect(),
    }
}

/// With this header a client asks for the trace, and gets it.
const TRACE: &str = "x-policy-trace";

/// What the policies said, in the order in which they did.
fn trace(said: &[DecisionRecord]) -> String {
    /// More is cut: proxies refuse long headers.
    const BYTES_MAX: usize = 4096;

    let mut trace = String::new();
    for said in said {
        let DecisionRecord { policy, version, phase, elapsed, .. } = said;
        let code = said.code().map_or(String::new(), |code| format!(" {}", code.0));
        let shadow = if said.shadow { " shadow" } else { "" };
        let (phase, decision, micros) = (phase.as_str(), said.label(), elapsed.as_micros());
        let one = format!("{phase} {policy}/{version} {decision}{code}{shadow} {micros}us");
        if trace.len() + one.len() > BYTES_MAX {
            break;
        }
        trace.push_str(if trace.is_empty() { "" } else { "; " });
        trace.push_str(&one);
    }
    trace
}

/// One token of the context is for the answer.
fn room_for_prompt(shape: ModelShape) -> usize {
    shape.context.saturating_sub(1) as usize
}

fn fits_at_least(words: &Words, shape: ModelShape) -> Result<(), Invalid> {
    let parts = words.parts();
    if parts <= room_for_prompt(shape) {
        return Ok(());
    }
    let count = match words {
        Words::Tokens { .. } => parts.to_string(),
        Words::Chat { .. } | Words::Text(_) => format!("at least {parts}"),
    };
    Err(Invalid::context_length(words.param(), &count, shape.context))
}

fn tokens(text: &TextModel, words: Words, shape: ModelShape) -> Result<Vec<TokenId>, Invalid> {
    let (param, room) = (words.param(), room_for_prompt(shape));
    let tokens = match words {
        Words::Chat { messages, options, .. } => text.render_chat(&messages, &options, room),
        Words::Text(prompt) => text.encode(&prompt, room),
        Words::Tokens { path, ids } => return known(&path, &ids, shape).map(|()| ids),
    };
    tokens.map_err(|why| {
        tracing::debug!(%why, "a prompt was not rendered");
        match why {
            RenderError::TooLong { tokens_min, .. } => {
                let tokens = format!("at least {tokens_min}");
                Invalid::context_length(param, &tokens, shape.context)
            }
            why => Invalid::not_rendered(param, &why.to_string()),
        }
    })
}

/// Refuses tokens that the model does not have. They stand at `path`.
fn known(path: &str, ids: &[TokenId], shape: ModelShape) -> Result<(), Invalid> {
    match ids.iter().position(|&id| id >= shape.vocabulary) {
        None => Ok(()),
        Some(at) => {
            let path = format!("{path}[{at}]");
            Err(Invalid::wrong_value(&path, &token_id(shape), &ids[at].to_string()))
        }
    }
}

/// The prompt's length, if it leaves room for a token of answer.
fn fits(param: &str, tokens: usize, shape: ModelShape) -> Result<u32, Invalid> {
    let context = shape.context;
    let prompt_tokens = u32::try_from(tokens).ok().filter(|&tokens| tokens < context);
    prompt_tokens.ok_or_else(|| Invalid::context_length(param, &tokens.to_string(), context))
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

/// The tokens that end this answer: the client's, and the model's unless they are to be ignored.
fn stop_tokens(ask: &Ask, text: &TextModel) -> Vec<TokenId> {
    let ours = if ask.ending.ignore_eos { &[] } else { text.eos() };
    [ours, &ask.ending.stop_tokens].concat()
}

fn token_id(shape: ModelShape) -> String {
    format!("a token id below {}, this model's vocabulary", shape.vocabulary)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn credential_of(name: &str, value: &str) -> String {
        let mut headers = HeaderMap::new();
        let name = header::HeaderName::from_bytes(name.as_bytes()).expect("a name");
        headers.insert(name, HeaderValue::from_str(value).expect("a value"));
        credential(&headers)
    }

    #[test]
    fn a_key_is_known_by_its_hash_alone_however_it_is_shown() {
        let hash = "2c70e12b7a0646f92279f427c7b38e7334d8e5389cff167a1dc30e73f826b683";
        for (name, value) in [
            ("authorization", "Bearer key"),
            ("authorization", "bearer   key "),
            ("x-api-key", "key"),
        ] {
            assert_eq!(credential_of(name, value), hash, "{name}: {value}");
        }
        for (name, value) in
            [("authorization", "Basic key"), ("authorization", "Bearer "), ("x", "key")]
        {
            assert_eq!(credential_of(name, value), "", "{name}: {value}");
        }
    }
}
