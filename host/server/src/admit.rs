//! From a request's head to its admission: who sends it, what it asks, which model, tokens, checks,
//! a queue permit, and at each step the policies.

mod checks;
mod headers;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::http::HeaderMap;
use bytes::Bytes;
use interlock_engine::{ModelShape, QueuePermit};
use interlock_policy_api::{Admitted, Body, Caller, Facts, Headers, Identity, Phase, Prompt};
use interlock_policy_chain::{AdmissionOutcome, AdmissionReview, PolicySession};
use interlock_request::{
    Deadline, Deadlines, Endpoint, Generation, ModelId, Priority, Sampling, TokenId,
};
use interlock_text::{Detokenizer, TextModel};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;

use crate::body::ReceivedBody;
use crate::connection::client_address;
use crate::endpoints::{ApiRequest, PromptInput};
use crate::failure::{Failure, InvalidRequest};
use crate::host::ServerHost;
use crate::model_stats::ModelStats;
use crate::models::HostedModel;
use crate::request_head::RequestHead;
use crate::request_info::RequestInfo;
use crate::work::{Class, DroppedInPool, MemoryLease, ModelPart, WorkError, WorkJob};
use checks::{
    bias_in_vocabulary, fits, fits_at_least, known, room_for_prompt, stop_tokens, tokens,
    tokens_max, tokens_min,
};
use headers::{TRACE, credential, seen_by_policies, trace};

/// A request whose head was read and whose sender the policies have identified. It keeps the
/// policies that it began with, whatever is swapped meanwhile.
pub(crate) struct IdentifiedRequest {
    review: AdmissionReview,
    head: RequestHead,
    endpoint: Endpoint,
    pub(crate) identity: Identity,
    /// When the time of a request that is not admitted before is up, and by which deadline.
    due: Option<(Instant, Deadline)>,
    /// The client's address or network, for taking turns where no policy names a tenant.
    client: String,
    serial: u64,
    headers: Headers,
    /// Whether the client wants to know what was decided, and may.
    traced: bool,
}

/// A request whose body was parsed and perhaps changed by policies, before a model is chosen.
pub(crate) struct ParsedRequest {
    request: DroppedInPool<ApiRequest>,
    facts: Facts,
    body: DroppedInPool<Arc<Body>>,
}

/// A request that may begin: it has a queue permit and has passed the policies.
pub(crate) struct AdmittedRequest {
    pub(crate) info: Arc<RequestInfo>,
    pub(crate) permit: QueuePermit,
    pub(crate) admitted: Admitted,
    pub(crate) session: PolicySession,
    /// What the model's latest requests were like.
    pub(crate) stats: Arc<ModelStats>,
    pub(crate) text: Arc<TextModel>,
    /// Makes text of the answer's tokens, from where the prompt's text ends.
    pub(crate) detokenizer: Detokenizer,
    pub(crate) tokens_min: u32,
    /// Temperature and `top_p`, which some answers repeat.
    pub(crate) drawing: (f32, f32),
    /// How many requests wait before this one.
    pub(crate) before: u32,
    /// Headers that policies add to the answer.
    pub(crate) headers: Vec<(String, String)>,
    /// For a request in the background, the permit of those without a client.
    pub(crate) background: Option<OwnedSemaphorePermit>,
}

impl ServerHost {
    /// Asks the policies who sends the request, before anything of the body is read.
    ///
    /// # Errors
    ///
    /// When a policy refuses.
    pub(crate) async fn identify(
        &self,
        head: &RequestHead,
        endpoint: Endpoint,
        headers: &HeaderMap,
    ) -> Result<IdentifiedRequest, Failure> {
        self.identify_for(head, endpoint, headers, false).await
    }

    /// As [`Self::identify`], for a request that looks up or cancels another and is no new work.
    /// The endpoint is that of the request which it is about.
    ///
    /// # Errors
    ///
    /// When a policy refuses.
    pub(crate) async fn identify_to_look_up(
        &self,
        head: &RequestHead,
        endpoint: Endpoint,
        headers: &HeaderMap,
    ) -> Result<IdentifiedRequest, Failure> {
        self.identify_for(head, endpoint, headers, true).await
    }

    async fn identify_for(
        &self,
        head: &RequestHead,
        endpoint: Endpoint,
        headers: &HeaderMap,
        looks_up: bool,
    ) -> Result<IdentifiedRequest, Failure> {
        let chain = self.policies.current();
        let RequestHead { id, at_micros, arrived_at, address, .. } = head;
        let serial = self.serial();
        let shown = |address: IpAddr| address.to_string();
        let mut identified = IdentifiedRequest {
            head: head.clone(),
            endpoint,
            identity: Identity::default(),
            due: self.due(*arrived_at),
            // As connections are counted: whoever has a network of addresses is one all the same.
            client: address.map(client_address).map_or_else(String::new, shown),
            serial,
            headers: seen_by_policies(&chain, headers),
            traced: self.config.policy_trace && headers.contains_key(TRACE),
            review: chain.review(serial, id.clone()),
        };
        if chain.takes(Phase::Identify) {
            let caller = Caller {
                serial: identified.serial,
                request_id: id.clone(),
                arrived_at_micros: *at_micros,
                endpoint,
                credential: credential(headers),
                address: address.map_or_else(String::new, shown),
                headers: identified.headers.clone(),
                looks_up,
            };
            identified.identity = identified.review.identify(&caller).await?;
        }
        Ok(identified)
    }

    /// Reads a body, and lets the policies change it.
    ///
    /// # Errors
    ///
    /// When it is not what the endpoint takes, or a policy refuses.
    pub(crate) async fn parse(
        &self,
        identified: &mut IdentifiedRequest,
        arrived: ReceivedBody,
        lease: &mut MemoryLease,
    ) -> Result<ParsedRequest, Failure> {
        let (chain, endpoint) = (Arc::clone(identified.review.chain()), identified.endpoint);
        let ReceivedBody { bytes, values } = arrived.without_mark();
        let size = bytes.len();
        // Kept for nobody, unless somebody may look at it.
        let seen = if chain.wants_content() { bytes.clone() } else { Bytes::new() };
        lease.grow(read_bytes(size, values, !seen.is_empty())).await?;
        let parse = lease.held_by(move || ApiRequest::parse(endpoint, &bytes));
        let request = self.read(identified, size, values, parse).await??;
        let mut request = DroppedInPool::new(request, self.work.clone());
        let mut facts = self.facts(identified, &request, size);
        let asked = facts.model.clone();
        let body = DroppedInPool::new(Arc::new(Body::new(seen)), self.work.clone());
        if chain.takes(Phase::Transform) {
            // Otherwise the first policy that looks would parse it, on the runtime's thread.
            // Whoever asks for something in a body that is none is told so.
            let parsed = Arc::clone(&body);
            let parse = lease.held_by(move || drop(parsed.parse()));
            self.read(identified, size, values, parse).await?;
            identified.review.transform(&mut facts, &body).await?;
            if body.is_changed() {
                // What policies may write is not known before it is written out.
                let size_max = size.saturating_mul(2) + Body::WRITTEN_BYTES_MAX;
                lease.grow(size_max.saturating_mul(2)).await?;
                let changed = Arc::clone(&body);
                let parse_again = lease.held_by(move || {
                    let changed = changed.changed().unwrap_or_default();
                    ApiRequest::parse(endpoint, &changed).map(|request| (request, changed.len()))
                });
                let again = self.read(identified, size_max, values, parse_again).await?;
                let (again, size) = again.map_err(|invalid| {
                    Failure::Spoiled(format!("a policy changed the body: {}", invalid.message))
                })?;
                // A policy that names a model says so last.
                let model = (facts.model != asked).then(|| facts.model.clone());
                // A client hears of its own fields, not of those that a policy added.
                let unknown = std::mem::take(&mut request.unknown);
                request = DroppedInPool::new(ApiRequest { unknown, ..again }, self.work.clone());
                let identity = std::mem::take(&mut facts.identity);
                let seen = std::mem::take(&mut facts.headers);
                facts = Facts { identity, headers: seen, ..self.facts(identified, &request, size) };
                facts.model = model.unwrap_or(facts.model);
            }
        }
        Ok(ParsedRequest { request, facts, body })
    }

    /// Reads so many bytes with so many values in them: few of them here, more of them in the pool.
    async fn read<T: Send + 'static>(
        &self,
        identified: &IdentifiedRequest,
        bytes: usize,
        values: usize,
        read: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, WorkError> {
        /// Reading fewer than these takes less time than handing them to the pool.
        const AT_ONCE_BYTES: usize = 4 << 10;

        if bytes <= AT_ONCE_BYTES {
            return Ok(read());
        }
        self.work.run(identified.job(Class::of(bytes, values)), read).await
    }

    /// Chooses a model, checks the request against it, takes a queue permit and asks the policies.
    ///
    /// # Errors
    ///
    /// When the model cannot take it, is not there, is busy, or a policy refuses.
    pub(crate) async fn admit(
        &self,
        identified: IdentifiedRequest,
        parsed: ParsedRequest,
        lease: &mut MemoryLease,
    ) -> Result<(ApiRequest, AdmittedRequest), Failure> {
        let ParsedRequest { request, facts, body } = parsed;
        let mut identified = identified;
        let model = Arc::clone(self.route(&mut identified.review, &facts, &body).await?);
        let (text, shape) = model.at_hand()?;
        let text = Arc::clone(text);
        let (param, mut request) = (request.input.param(), request);
        let input = DroppedInPool::new(std::mem::take(&mut request.input), self.work.clone());
        let request = request.into_inner();
        let (tokens, detokenizer) =
            self.tokenize(&identified, &model.id, &text, input, shape, lease).await?;
        let prompt_tokens = fits(param, tokens.len(), shape)?;
        let IdentifiedRequest { review, head, endpoint, identity, traced, .. } = identified;
        let (tokens_max, tokens_max_asked) = tokens_max(&request.max_tokens, prompt_tokens, shape)?;
        let tokens_min = match &request.stop.min_tokens {
            Some(min_tokens) => tokens_min(min_tokens, &request.max_tokens, tokens_max)?,
            None => 0,
        };
        bias_in_vocabulary(&request, shape)?;
        known("stop_token_ids", &request.stop.stop_tokens, shape)?;
        let prompt = Prompt::new(tokens)
            .ok_or_else(|| InvalidRequest::wrong_value(param, "at least one token long", "none"))?;
        let generation = Generation {
            sampling: request.sampling.or(&model.sampling),
            tokens_max,
            tokens_min,
            stop_tokens: stop_tokens(&request, &text),
            logprobs: request.logprobs,
            // The policies decide; without them it is the chain's default.
            priority: Priority::Standard,
        };
        let Sampling { temperature, top_p, .. } = generation.sampling;
        let model_id = model.id.clone();
        let facts = Facts { model: model_id, prompt_tokens, tokens_max, tokens_max_asked, ..facts };
        let prefix_key = facts.prefix_key;
        // Read before the permit is taken: the load is that of the others.
        let load = model.load();
        let permit = model.engine.queue_permit()?;
        let background =
            request.background.then(|| self.results.place_in_background()).transpose()?;
        let outcome = review.admit(facts, &load, prompt, generation, &body).await?;
        let AdmissionOutcome { admitted, session, mut headers, decisions } = outcome;
        tracing::debug!(request = %head.id, model = %model.id, ?decisions, "admitted");
        if traced {
            headers.push((TRACE.into(), trace(&decisions)));
        }
        model.stats.prefix(prefix_key);
        let info = Arc::new(RequestInfo {
            id: head.id,
            endpoint,
            tenant: identity.tenant,
            model: model.id.clone(),
            arrived_at_micros: head.at_micros,
            arrived_at: head.arrived_at,
            streaming: request.stream,
            prompt_tokens,
        });
        let admitted_request = AdmittedRequest {
            info,
            permit,
            admitted,
            session,
            stats: Arc::clone(&model.stats),
            text,
            detokenizer,
            tokens_min,
            drawing: (temperature, top_p),
            before: load.waiting,
            headers,
            background,
        };
        Ok((request, admitted_request))
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
    fn facts(
        &self,
        identified: &IdentifiedRequest,
        request: &ApiRequest,
        body_bytes: usize,
    ) -> Facts {
        let tokens = request.tokens_asked();
        Facts {
            serial: identified.serial,
            request_id: identified.head.id.clone(),
            arrived_at_micros: identified.head.at_micros,
            endpoint: identified.endpoint,
            model: self.models.asked(request.model.as_deref()),
            streaming: request.stream,
            background: request.background,
            prompt_tokens: request.input.tokens_about(),
            tokens_max: tokens.unwrap_or(0),
            tokens_max_asked: tokens.is_some(),
            body_bytes: u64::try_from(body_bytes).unwrap_or(u64::MAX),
            prefix_key: self.prefix_keys.key(&identified.identity.tenant, &request.input),
            identity: identified.identity.clone(),
            headers: identified.headers.clone(),
        }
    }

    /// The model that the request runs on: the one it asks for, unless policies choose.
    async fn route(
        &self,
        review: &mut AdmissionReview,
        facts: &Facts,
        body: &Arc<Body>,
    ) -> Result<&Arc<HostedModel>, Failure> {
        if !review.chain().takes(Phase::Route) {
            return self.models.called(facts.model.as_str());
        }
        let candidates = self.models.candidates(facts);
        let chosen = review.route(facts, &candidates, body).await?;
        let chosen = chosen.and_then(|id| self.models.chosen(id));
        chosen.ok_or_else(|| self.models.unknown(facts.model.as_str()))
    }

    /// The prompt's tokens, if they leave room for one of an answer, and what makes text of those.
    async fn tokenize(
        &self,
        identified: &IdentifiedRequest,
        model: &ModelId,
        text: &Arc<TextModel>,
        input: DroppedInPool<PromptInput>,
        shape: ModelShape,
        lease: &mut MemoryLease,
    ) -> Result<(Vec<TokenId>, Detokenizer), Failure> {
        // Each part is a token at least, so this decides without looking at any of them.
        fits_at_least(&input, shape)?;
        let (bytes, parts) = (input.text_bytes(), input.parts());
        let part = match *input {
            PromptInput::Chat { .. } => Some(ModelPart::ChatTemplate),
            PromptInput::Text(_) => Some(ModelPart::Tokenizer),
            PromptInput::Tokens { .. } => None,
        };
        let class = Class::of(bytes, parts);
        // What a small one takes for a moment it takes on one of a few threads. And what a long one
        // takes at most it hardly ever does: no reason to refuse it.
        if part.is_some() && class > Class::Small {
            let most = text.working_bytes(bytes, room_for_prompt(shape));
            lease.grow_for_a_while(most).await?;
        }
        let owner = part.map(|part| (model.clone(), part));
        let job = WorkJob { owner, ..identified.job(class) };
        let text = Arc::clone(text);
        let tokenize = lease.held_by(move || {
            let tokens = tokens(&text, input.into_inner(), shape)?;
            let detokenizer = text.detokenizer(&tokens);
            Ok::<_, InvalidRequest>((tokens, detokenizer))
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

impl IdentifiedRequest {
    /// The name by which the host's own work is shared out: requests of different names take turns.
    pub(crate) fn work_tenant(&self) -> &str {
        if self.identity.tenant.is_empty() { &self.client } else { &self.identity.tenant }
    }

    fn job(&self, class: Class) -> WorkJob<'_> {
        WorkJob { due: self.due, ..WorkJob::new(class, self.work_tenant()) }
    }
}
