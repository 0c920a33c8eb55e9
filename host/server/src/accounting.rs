//! How a request's end is written down: one log line, one metric, one settlement. Once.

use std::sync::Arc;
use std::time::Duration;

use interlock_policy_api::Summary;
use interlock_policy_chain::PolicySession;
use interlock_request::{CancelCause, Finish, Outcome, Usage};
use tokio::time::Instant;

use crate::metrics::ServerMetrics;
use crate::model_stats::ModelStats;
use crate::request_info::RequestInfo;

/// What is known of an admitted request so far, and the duty to write down how it ended.
///
/// [`RequestAccounting::end`] fulfils it. Dropping the value fulfils it too, as a failure: a driver
/// that panicked is still logged, counted and settled.
pub(crate) struct RequestAccounting {
    pub(crate) info: Arc<RequestInfo>,
    metrics: Arc<ServerMetrics>,
    stats: Arc<ModelStats>,
    // Taken by the end: `None` means that all is written.
    session: Option<PolicySession>,
    admitted_at: Instant,
    queue_time: Option<Duration>,
    first_token: Option<Duration>,
    last_token_at: Option<Instant>,
    generated: u32,
}

impl RequestAccounting {
    pub(crate) fn open(
        info: Arc<RequestInfo>,
        stats: Arc<ModelStats>,
        session: PolicySession,
        metrics: Arc<ServerMetrics>,
    ) -> Self {
        let admitted_at = Instant::from_std(session.admitted_at());
        Self {
            info,
            stats,
            metrics,
            session: Some(session),
            admitted_at,
            queue_time: None,
            first_token: None,
            last_token_at: None,
            generated: 0,
        }
    }

    /// When the request was admitted.
    pub(crate) fn admitted_at(&self) -> Instant {
        self.admitted_at
    }

    /// The policies that watch the request.
    pub(crate) fn session(&self) -> &PolicySession {
        self.session.as_ref().expect("it is taken by the end, and nothing comes after that")
    }

    pub(crate) fn session_mut(&mut self) -> &mut PolicySession {
        self.session.as_mut().expect("it is taken by the end, and nothing comes after that")
    }

    /// How long a pause is, as it is now, before the policies hear of it.
    pub(crate) fn stalled_after(&self) -> Option<Duration> {
        self.session().stalled_after(self.generated)
    }

    /// Has a pass begun for it?
    pub(crate) fn has_started(&self) -> bool {
        self.queue_time.is_some()
    }

    /// What it used as far as its driver saw.
    pub(crate) fn usage_seen(&self) -> Usage {
        let prompt_tokens = if self.generated > 0 { self.info.prompt_tokens } else { 0 };
        Usage { prompt_tokens, cached_tokens: 0, generated_tokens: self.generated }
    }

    /// The request's first step begins.
    pub(crate) fn started(&mut self) {
        let time = self.admitted_at.elapsed();
        self.queue_time = Some(time);
        self.metrics.queued(time);
    }

    /// A token came at this moment. True if it is the first.
    pub(crate) fn token(&mut self, now: Instant) -> bool {
        let last = self.last_token_at.replace(now);
        match last {
            None => {
                let time = now - self.admitted_at;
                self.first_token = Some(time);
                self.metrics.first_token(time);
                self.stats.first_token(time);
            }
            Some(last) => self.metrics.next_token(now - last),
        }
        self.generated += 1;
        last.is_none()
    }

    /// The request has ended.
    pub(crate) fn end(mut self, outcome: Outcome, usage: Usage) {
        self.write(outcome, usage);
    }

    fn write(&mut self, outcome: Outcome, usage: Usage) {
        let Some(session) = self.session.take() else { return };
        let summary = Summary {
            closing: outcome.clone().into(),
            usage,
            queue_time: self.queue_time,
            time_to_first_token: self.first_token,
            total: self.admitted_at.elapsed(),
        };
        self.log(&outcome, &summary);
        self.metrics.ended(self.info.endpoint, &self.info.model, &summary);
        if let Some(pace) = self.pace() {
            self.stats.inter_token(pace);
        }
        session.settle(&summary);
    }

    /// Between its tokens, on average.
    fn pace(&self) -> Option<Duration> {
        let flowed = self.last_token_at? - self.admitted_at;
        let pauses = self.generated.checked_sub(1).filter(|&pauses| pauses > 0)?;
        Some(flowed.saturating_sub(self.first_token?) / pauses)
    }

    fn log(&self, outcome: &Outcome, summary: &Summary) {
        let Summary { usage, queue_time, time_to_first_token, total, .. } = summary;
        let error = match outcome {
            Outcome::Failed(fault) => Some(fault.why.as_str()),
            Outcome::Completed(_) | Outcome::Cancelled(_) => None,
        };
        tracing::info!(
            request = %self.info.id,
            endpoint = self.info.endpoint.as_str(),
            model = %self.info.model,
            streaming = self.info.streaming,
            outcome = outcome.as_str(),
            why = why(outcome),
            error,
            prompt_tokens = usage.prompt_tokens,
            cached_tokens = usage.cached_tokens,
            generated_tokens = usage.generated_tokens,
            queue_ms = queue_time.map(millis),
            first_token_ms = time_to_first_token.map(millis),
            total_ms = millis(*total),
            "request ended"
        );
    }
}

impl Drop for RequestAccounting {
    fn drop(&mut self) {
        let usage = self.usage_seen();
        self.write(Outcome::Failed("its driver panicked or was dropped".into()), usage);
    }
}

/// What brought the outcome about.
fn why(outcome: &Outcome) -> Option<&'static str> {
    match outcome {
        Outcome::Completed(Finish::Stop) => Some("stop"),
        Outcome::Completed(Finish::Length) => Some("length"),
        Outcome::Completed(Finish::Filtered) => Some("content_filter"),
        Outcome::Cancelled(cause) => Some(CancelCause::as_str(*cause)),
        Outcome::Failed(fault) => Some(fault.kind.as_str()),
    }
}

fn millis(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e3
}

#[cfg(test)]
mod tests {
    use interlock_metrics::Registry;
    use interlock_policy_api::{Body, Facts, Headers, Identity, Load, Prompt};
    use interlock_policy_chain::{LimitsConfig, PolicyChain, PolicyMetrics};
    use interlock_request::{Endpoint, Generation, Priority, Sampling};

    use super::*;

    async fn open(registry: &Registry) -> RequestAccounting {
        let info = RequestInfo::for_test("r1", Endpoint::Chat);
        let facts = Facts {
            serial: 1,
            request_id: info.id.clone(),
            arrived_at_micros: 0,
            endpoint: info.endpoint,
            model: info.model.clone(),
            streaming: info.streaming,
            prompt_tokens: info.prompt_tokens,
            tokens_max: 1,
            tokens_max_asked: true,
            background: false,
            body_bytes: 0,
            prefix_key: 0,
            identity: Identity::default(),
            headers: Headers::default(),
        };
        let generation = Generation {
            sampling: Sampling::greedy(),
            tokens_max: 1,
            tokens_min: 0,
            stop_tokens: vec![],
            logprobs: None,
            priority: Priority::Standard,
        };
        let ceilings = LimitsConfig::default().ceilings();
        let chain = PolicyChain::new(vec![], ceilings, PolicyMetrics::register(registry));
        let prompt = Prompt::new(vec![1, 2]).expect("two tokens");
        let (chain, load, body) = (Arc::new(chain), Load::default(), Arc::new(Body::new(vec![])));
        let review = chain.review(1, facts.request_id.clone());
        let admission = review.admit(facts, &load, prompt, generation, &body).await;
        let session = admission.expect("no policy refuses").session;
        RequestAccounting::open(
            Arc::new(info),
            Arc::default(),
            session,
            Arc::new(ServerMetrics::register(registry)),
        )
    }

    fn counted(registry: &Registry, outcome: &str) -> bool {
        let line = format!(
            "interlock_requests_total{{endpoint=\"chat\",model=\"m\",outcome=\"{outcome}\"}} 1\n"
        );
        registry.expose().expect("encodes").contains(&line)
    }

    #[tokio::test]
    async fn a_driver_that_panics_is_written_down_as_failed_with_what_it_saw() {
        let registry = Registry::new();
        let mut accounting = open(&registry).await;
        let driver = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || {
            accounting.token(Instant::now());
            panic!("a bug in the driver");
        }));
        assert!(driver.is_err());
        assert!(counted(&registry, "failed"));
        let exposed = registry.expose().expect("encodes");
        assert!(exposed.contains("interlock_generated_tokens_total 1\n"), "{exposed}");
    }

    #[tokio::test]
    async fn cached_tokens_are_counted_beside_the_prompt_of_which_they_are_a_part() {
        let registry = Registry::new();
        let usage = Usage { prompt_tokens: 9, cached_tokens: 4, generated_tokens: 2 };
        open(&registry).await.end(Outcome::Completed(Finish::Stop), usage);
        let exposed = registry.expose().expect("encodes");
        for line in ["prompt_tokens_total 9", "prompt_tokens_cached_total 4"] {
            assert!(exposed.contains(&format!("interlock_{line}\n")), "{exposed}");
        }
    }

    #[tokio::test]
    async fn an_end_is_written_down_once() {
        let registry = Registry::new();
        open(&registry).await.end(Outcome::Completed(Finish::Stop), Usage::default());
        assert!(counted(&registry, "completed"));
        assert!(!counted(&registry, "failed"));
    }
}
