use std::time::Duration;

use interlock_request::{Finish, Usage};
use interlock_text::{TextModel, TextParts, TokenizerSource};

use super::*;
use crate::in_flight::InFlight;
use crate::request_info::RequestInfo;

fn stored(id: &str, tenant: &str) -> Arc<StoredRequest> {
    stored_as(id, tenant, ResponseFormat::Completions { include_usage: false })
}

fn stored_as(id: &str, tenant: &str, format: ResponseFormat) -> Arc<StoredRequest> {
    let parts = TextParts {
        tokenizer: TokenizerSource::Sim,
        chat_template: None,
        special_tokens: Default::default(),
        eos: vec![],
    };
    let endpoint = Endpoint::Completions;
    let info = RequestInfo { tenant: tenant.into(), ..RequestInfo::for_test(id, endpoint) };
    let head = ResponseHead {
        info: Arc::new(info),
        temperature: 1.0,
        top_p: 1.0,
        logprobs: false,
        text: Arc::new(TextModel::new(parts).expect("a text model")),
    };
    let canceller = InFlight::default().register(&head.info.id, endpoint).canceller();
    Arc::new(StoredRequest { format, head, canceller })
}

fn text(bytes: usize) -> TextChunk {
    TextChunk { text: "x".repeat(bytes), tokens: vec![] }
}

const DONE: Done = Done {
    finish: Finish::Stop,
    usage: Usage { prompt_tokens: 1, cached_tokens: 0, generated_tokens: 1 },
};

fn id(id: &str) -> RequestId {
    RequestId::parse(id).expect("an id")
}

fn remove(results: &ResultStore, name: &str, tenant: &str) -> bool {
    results.get(&id(name), tenant).is_some_and(|(stored, _)| results.remove(&stored))
}

#[test]
fn a_result_is_its_tenants_alone() {
    let results = ResultStore::new(DetachedConfig::default());
    let pending = results.keep(stored("a", "acme"), AnswerState::Queued);
    assert!(matches!(results.get(&id("a"), "acme"), Some((_, AnswerState::Queued))));
    pending.started();
    assert!(matches!(results.get(&id("a"), "acme"), Some((_, AnswerState::Running))));
    assert!(results.get(&id("a"), "").is_none());
    pending.end(text(3), Ok(DONE));
    let Some((_, AnswerState::Ended(result))) = results.get(&id("a"), "acme") else {
        panic!("it has ended")
    };
    assert_eq!(*result, (text(3), Ok(DONE)));
    assert!(!remove(&results, "a", "other") && remove(&results, "a", "acme"));
    assert!(results.get(&id("a"), "acme").is_none());
}

#[test]
fn an_id_of_one_tenant_is_not_in_the_way_of_anothers() {
    let results = ResultStore::new(DetachedConfig::default());
    let end = |tenant: &str, bytes| {
        results.keep(stored("a", tenant), AnswerState::Running).end(text(bytes), Ok(DONE));
    };
    end("acme", 3);
    end("globex", 5);
    let bytes = |tenant: &str| match results.get(&id("a"), tenant) {
        Some((_, AnswerState::Ended(result))) => result.0.text.len(),
        _ => 0,
    };
    assert_eq!((bytes("acme"), bytes("globex")), (3, 5));
    assert!(remove(&results, "a", "globex"));
    assert_eq!((bytes("acme"), bytes("globex")), (3, 0));
}

#[test]
fn what_is_let_go_of_is_written_nowhere() {
    let results = ResultStore::new(DetachedConfig::default());
    for _ in 0..3 {
        results.keep(stored("a", "acme"), AnswerState::Running).end(text(3), Ok(DONE));
        assert!(remove(&results, "a", "acme"));
        // Another of the same id takes its place, before it is over or after.
        results.keep(stored("b", "acme"), AnswerState::Running).end(text(3), Ok(DONE));
    }
    let stored_results = results.stored_results();
    assert_eq!(
        (stored_results.by_name.len(), stored_results.ended.len(), stored_results.bytes),
        (1, 1, 3 + 4)
    );
}

#[test]
fn what_a_response_repeats_of_its_request_takes_memory_too() {
    let memory_max = interlock_request::ByteSize(100);
    let results = ResultStore::new(DetachedConfig { memory_max, ..DetachedConfig::default() });
    let echo = |instructions: usize, metadata: usize| {
        let metadata = serde_json::value::to_raw_value(&"x".repeat(metadata)).expect("text");
        ResponseFormat::Responses(Box::new(crate::endpoints::RequestEcho {
            instructions: Some("x".repeat(instructions)),
            metadata: Some(metadata),
            max_output_tokens: None,
            top_logprobs: 0,
            background: true,
        }))
    };
    let is_kept = |format| {
        results.keep(stored_as("a", "", format), AnswerState::Running).end(text(1), Ok(DONE));
        results.get(&id("a"), "").is_some()
    };
    assert_eq!(
        [is_kept(echo(40, 40)), is_kept(echo(200, 0)), is_kept(echo(0, 200))],
        [true, false, false]
    );
}

#[test]
fn who_was_forgotten_by_its_driver_has_failed() {
    let results = ResultStore::new(DetachedConfig::default());
    drop(results.keep(stored("a", ""), AnswerState::Queued));
    let Some((_, AnswerState::Ended(result))) = results.get(&id("a"), "") else { panic!("ended") };
    assert_eq!(result.1, Err(Failure::INTERNAL));
}

#[test]
fn the_oldest_go_when_there_are_too_many_or_too_much() {
    let config = DetachedConfig {
        results_max: 2,
        memory_max: interlock_request::ByteSize(100),
        ..DetachedConfig::default()
    };
    let results = ResultStore::new(config);
    let end = |name: &str, bytes| {
        results.keep(stored(name, ""), AnswerState::Running).end(text(bytes), Ok(DONE));
    };
    let kept = || ["a", "b", "c", "d"].map(|name| results.get(&id(name), "").is_some());
    end("a", 10);
    end("b", 10);
    end("c", 10);
    assert_eq!(kept(), [false, true, true, false]);
    end("d", 95);
    assert_eq!(kept(), [false, false, false, true]);
    end("d", 5);
    assert_eq!((kept(), results.stored_results().bytes), ([false, false, false, true], 5));
}

#[test]
fn what_is_too_old_is_gone() {
    let config = DetachedConfig { keep: Duration::ZERO, ..DetachedConfig::default() };
    let results = ResultStore::new(config);
    results.keep(stored("a", ""), AnswerState::Running).end(text(1), Ok(DONE));
    assert!(results.get(&id("a"), "").is_none());
    assert_eq!(results.stored_results().bytes, 0);
}

#[test]
fn so_many_go_on_without_a_client() {
    let results = ResultStore::new(DetachedConfig { requests_max: 1, ..Default::default() });
    let place = results.place();
    assert!(place.is_some() && results.place().is_none());
    drop(place);
    assert!(results.place().is_some());
}

#[test]
fn what_is_removed_while_it_runs_is_kept_no_more_and_takes_no_place_of_the_next() {
    let results = ResultStore::new(DetachedConfig::default());
    let first = stored("a", "acme");
    let pending = results.keep(Arc::clone(&first), AnswerState::Running);
    assert!(results.remove(&first) && !results.remove(&first));
    let second = stored("a", "acme");
    let next = results.keep(Arc::clone(&second), AnswerState::Running);
    pending.end(text(3), Ok(DONE));
    assert!(!results.remove(&first), "the next one of its id is another");
    assert!(matches!(results.state_of(&second), Some(AnswerState::Running)));
    next.end(text(5), Ok(DONE));
    assert!(results.remove(&second));
    let stored_results = results.stored_results();
    assert_eq!(
        (stored_results.by_name.len(), stored_results.ended.len(), stored_results.bytes),
        (0, 0, 0)
    );
}

#[test]
fn of_several_of_an_id_the_latest_tells_the_endpoint_whosever_they_are() {
    let results = ResultStore::new(DetachedConfig::default());
    for (tenant, endpoint) in [
        ("b", Endpoint::Chat),
        ("a", Endpoint::Responses),
        ("c", Endpoint::Completions),
        ("b", Endpoint::Responses),
    ] {
        let mut stored = stored("same", tenant);
        let ours = Arc::get_mut(&mut stored).expect("nobody else has it");
        Arc::get_mut(&mut ours.head.info).expect("nobody else has it").endpoint = endpoint;
        results.keep(stored, AnswerState::Running).end(text(1), Ok(DONE));
        assert_eq!(results.endpoint(&id("same")), Some(endpoint), "{tenant}");
    }
}

#[test]
fn an_id_tells_the_endpoint_of_its_own_requests_alone() {
    let results = ResultStore::new(DetachedConfig::default());
    let _kept = ["b", "d"].map(|id| results.keep(stored(id, "acme"), AnswerState::Running));
    let known = ["a", "b", "c", "d", "e"].map(|name| results.endpoint(&id(name)).is_some());
    assert_eq!(known, [false, true, false, true, false]);
}
