//! What answers look like on the wire.

use std::sync::Arc;

use expect_test::{Expect, expect};
use interlock_request::{
    CancelCause, Deadline, Endpoint, Finish, Logprobs, ModelId, TokenId, Usage,
};
use interlock_text::{TextModel, TextParts, TokenizerSource};

use super::sse_frames::SseFrames;
use super::{ApiError, RequestEcho, ResponseFormat, ResponseHead, writer};
use crate::chunks::{Done, TextChunk, TokenLogprob};
use crate::failure::Failure;
use crate::request_info::RequestInfo;

const DONE: Done = Done {
    finish: Finish::Stop,
    usage: Usage { prompt_tokens: 3, cached_tokens: 1, generated_tokens: 2 },
};

fn info(model: &str) -> Arc<RequestInfo> {
    let (model, arrived_at_micros) = (ModelId::new(model), 7_000_000);
    let info = RequestInfo::for_test("r1", Endpoint::Chat);
    Arc::new(RequestInfo { model, arrived_at_micros, ..info })
}

fn head() -> ResponseHead {
    let parts = TextParts {
        tokenizer: TokenizerSource::Sim,
        chat_template: None,
        special_tokens: Default::default(),
        eos: vec![],
    };
    let text = Arc::new(TextModel::new(parts).expect("the simulated text model"));
    ResponseHead { info: info("m"), temperature: 0.7, top_p: 1.0, logprobs: false, text }
}

fn plain(text: &str) -> TextChunk {
    TextChunk { text: text.into(), tokens: vec![] }
}

/// Text of which every byte is a token, each less likely than the one before it. If alternatives
/// are told, they are the next letter, just as likely, and an end that could not have been.
fn with_logprobs(text: &str, at: usize, top: bool) -> TextChunk {
    let tokens = text
        .bytes()
        .enumerate()
        .map(|(nth, byte)| {
            let token = TokenId::from(byte);
            let drawn = -0.25 * (1 + nth) as f32;
            let ranks = vec![(token + 1, drawn), (256, f32::NEG_INFINITY)];
            let top = if top { ranks } else { vec![] };
            TokenLogprob { token, at: at + nth, logprobs: Box::new(Logprobs { drawn, top }) }
        })
        .collect();
    TextChunk { text: text.into(), tokens }
}

fn responses() -> ResponseFormat {
    ResponseFormat::Responses(Box::new(RequestEcho {
        instructions: None,
        metadata: None,
        max_output_tokens: None,
        top_logprobs: 0,
        background: false,
    }))
}

fn streamed(format: ResponseFormat, end: Result<Done, Failure>, expected: &Expect) {
    let mut frames = SseFrames::default();
    let mut writer = writer(format, head());
    writer.open(&mut frames);
    writer.text(plain("Hel"), &mut frames);
    writer.text(plain("lo\n"), &mut frames);
    match end {
        Ok(done) => writer.done(&done, &mut frames),
        Err(failure) => writer.fail(&ApiError::of(&failure, &head().info.id), &mut frames),
    }
    expected.assert_eq(&frames.into_text());
}

fn whole(format: ResponseFormat, finish: Finish, expected: &Expect) {
    let body = writer(format, head()).whole(plain("Hello"), &Done { finish, ..DONE });
    expected.assert_eq(&String::from_utf8(body).expect("JSON is UTF-8"));
}

#[test]
fn a_chat_stream_is_role_content_finish_usage_done() {
    streamed(
        ResponseFormat::Chat { include_usage: true },
        Ok(DONE),
        &expect![[r#"
            data: {"id":"chatcmpl-r1","object":"chat.completion.chunk","created":7,"model":"m","choices":[{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}],"usage":null}

            data: {"id":"chatcmpl-r1","object":"chat.completion.chunk","created":7,"model":"m","choices":[{"index":0,"delta":{"content":"Hel"},"logprobs":null,"finish_reason":null}],"usage":null}

            data: {"id":"chatcmpl-r1","object":"chat.completion.chunk","created":7,"model":"m","choices":[{"index":0,"delta":{"content":"lo\n"},"logprobs":null,"finish_reason":null}],"usage":null}

            data: {"id":"chatcmpl-r1","object":"chat.completion.chunk","created":7,"model":"m","choices":[{"index":0,"delta":{},"logprobs":null,"finish_reason":"stop"}],"usage":null}

            data: {"id":"chatcmpl-r1","object":"chat.completion.chunk","created":7,"model":"m","choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2,"total_tokens":5,"prompt_tokens_details":{"cached_tokens":1}}}

            data: [DONE]

        "#]],
    );
}

#[test]
fn a_chat_stream_without_usage_says_nothing_of_it() {
    streamed(
        ResponseFormat::Chat { include_usage: false },
        Ok(DONE),
        &expect![[r#"
        data: {"id":"chatcmpl-r1","object":"chat.completion.chunk","created":7,"model":"m","choices":[{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}]}

        data: {"id":"chatcmpl-r1","object":"chat.completion.chunk","created":7,"model":"m","choices":[{"index":0,"delta":{"content":"Hel"},"logprobs":null,"finish_reason":null}]}

        data: {"id":"chatcmpl-r1","object":"chat.completion.chunk","created":7,"model":"m","choices":[{"index":0,"delta":{"content":"lo\n"},"logprobs":null,"finish_reason":null}]}

        data: {"id":"chatcmpl-r1","object":"chat.completion.chunk","created":7,"model":"m","choices":[{"index":0,"delta":{},"logprobs":null,"finish_reason":"stop"}]}

        data: [DONE]

    "#]],
    );
}

#[test]
fn a_stream_that_fails_ends_with_an_error_and_done() {
    let struck = Failure::Cancelled(CancelCause::Deadline(Deadline::InterToken));
    streamed(
        ResponseFormat::Completions { include_usage: false },
        Err(struck),
        &expect![[r#"
        data: {"id":"cmpl-r1","object":"text_completion","created":7,"model":"m","choices":[{"text":"Hel","index":0,"logprobs":null,"finish_reason":null}]}

        data: {"id":"cmpl-r1","object":"text_completion","created":7,"model":"m","choices":[{"text":"lo\n","index":0,"logprobs":null,"finish_reason":null}]}

        data: {"error":{"message":"request r1 paused too long between two tokens and was ended by its inter_token deadline","type":"server_error","param":null,"code":"deadline_inter_token"}}

        data: [DONE]

    "#]],
    );
}

#[test]
fn a_completions_stream_is_text_finish_usage_done() {
    streamed(
        ResponseFormat::Completions { include_usage: true },
        Ok(DONE),
        &expect![[r#"
            data: {"id":"cmpl-r1","object":"text_completion","created":7,"model":"m","choices":[{"text":"Hel","index":0,"logprobs":null,"finish_reason":null}],"usage":null}

            data: {"id":"cmpl-r1","object":"text_completion","created":7,"model":"m","choices":[{"text":"lo\n","index":0,"logprobs":null,"finish_reason":null}],"usage":null}

            data: {"id":"cmpl-r1","object":"text_completion","created":7,"model":"m","choices":[{"text":"","index":0,"logprobs":null,"finish_reason":"stop"}],"usage":null}

            data: {"id":"cmpl-r1","object":"text_completion","created":7,"model":"m","choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2,"total_tokens":5,"prompt_tokens_details":{"cached_tokens":1}}}

            data: [DONE]

        "#]],
    );
}

#[test]
fn a_responses_stream_has_its_events_in_order() {
    streamed(
        responses(),
        Ok(DONE),
        &expect![[r#"
            event: response.created
            data: {"type":"response.created","sequence_number":0,"response":{"id":"resp_r1","object":"response","created_at":7,"status":"in_progress","background":false,"error":null,"incomplete_details":null,"instructions":null,"max_output_tokens":null,"metadata":{},"model":"m","output":[],"parallel_tool_calls":true,"previous_response_id":null,"store":false,"temperature":0.7,"text":{"format":{"type":"text"}},"tool_choice":"auto","tools":[],"top_logprobs":0,"top_p":1.0,"truncation":"disabled","usage":null,"user":null}}

            event: response.in_progress
            data: {"type":"response.in_progress","sequence_number":1,"response":{"id":"resp_r1","object":"response","created_at":7,"status":"in_progress","background":false,"error":null,"incomplete_details":null,"instructions":null,"max_output_tokens":null,"metadata":{},"model":"m","output":[],"parallel_tool_calls":true,"previous_response_id":null,"store":false,"temperature":0.7,"text":{"format":{"type":"text"}},"tool_choice":"auto","tools":[],"top_logprobs":0,"top_p":1.0,"truncation":"disabled","usage":null,"user":null}}

            event: response.output_item.added
            data: {"type":"response.output_item.added","sequence_number":2,"output_index":0,"item":{"id":"msg_r1","type":"message","status":"in_progress","role":"assistant","content":[]}}

            event: response.content_part.added
            data: {"type":"response.content_part.added","sequence_number":3,"item_id":"msg_r1","output_index":0,"content_index":0,"part":{"type":"output_text","text":"","annotations":[],"logprobs":[]}}

            event: response.output_text.delta
            data: {"type":"response.output_text.delta","sequence_number":4,"item_id":"msg_r1","output_index":0,"content_index":0,"delta":"Hel","logprobs":[]}

            event: response.output_text.delta
            data: {"type":"response.output_text.delta","sequence_number":5,"item_id":"msg_r1","output_index":0,"content_index":0,"delta":"lo\n","logprobs":[]}

            event: response.output_text.done
            data: {"type":"response.output_text.done","sequence_number":6,"item_id":"msg_r1","output_index":0,"content_index":0,"text":"Hello\n","logprobs":[]}

            event: response.content_part.done
            data: {"type":"response.content_part.done","sequence_number":7,"item_id":"msg_r1","output_index":0,"content_index":0,"part":{"type":"output_text","text":"Hello\n","annotations":[],"logprobs":[]}}

            event: response.output_item.done
            data: {"type":"response.output_item.done","sequence_number":8,"output_index":0,"item":{"id":"msg_r1","type":"message","status":"completed","role":"assistant","content":[{"type":"output_text","text":"Hello\n","annotations":[],"logprobs":[]}]}}

            event: response.completed
            data: {"type":"response.completed","sequence_number":9,"response":{"id":"resp_r1","object":"response","created_at":7,"status":"completed","background":false,"error":null,"incomplete_details":null,"instructions":null,"max_output_tokens":null,"metadata":{},"model":"m","output":[{"id":"msg_r1","type":"message","status":"completed","role":"assistant","content":[{"type":"output_text","text":"Hello\n","annotations":[],"logprobs":[]}]}],"parallel_tool_calls":true,"previous_response_id":null,"store":false,"temperature":0.7,"text":{"format":{"type":"text"}},"tool_choice":"auto","tools":[],"top_logprobs":0,"top_p":1.0,"truncation":"disabled","usage":{"input_tokens":3,"input_tokens_details":{"cached_tokens":1,"cache_write_tokens":0},"output_tokens":2,"output_tokens_details":{"reasoning_tokens":0},"total_tokens":5},"user":null}}

        "#]],
    );
}

#[test]
fn a_responses_stream_that_fails_says_error_and_failed() {
    streamed(
        responses(),
        Err(Failure::INTERNAL),
        &expect![[r#"
            event: response.created
            data: {"type":"response.created","sequence_number":0,"response":{"id":"resp_r1","object":"response","created_at":7,"status":"in_progress","background":false,"error":null,"incomplete_details":null,"instructions":null,"max_output_tokens":null,"metadata":{},"model":"m","output":[],"parallel_tool_calls":true,"previous_response_id":null,"store":false,"temperature":0.7,"text":{"format":{"type":"text"}},"tool_choice":"auto","tools":[],"top_logprobs":0,"top_p":1.0,"truncation":"disabled","usage":null,"user":null}}

            event: response.in_progress
            data: {"type":"response.in_progress","sequence_number":1,"response":{"id":"resp_r1","object":"response","created_at":7,"status":"in_progress","background":false,"error":null,"incomplete_details":null,"instructions":null,"max_output_tokens":null,"metadata":{},"model":"m","output":[],"parallel_tool_calls":true,"previous_response_id":null,"store":false,"temperature":0.7,"text":{"format":{"type":"text"}},"tool_choice":"auto","tools":[],"top_logprobs":0,"top_p":1.0,"truncation":"disabled","usage":null,"user":null}}

            event: response.output_item.added
            data: {"type":"response.output_item.added","sequence_number":2,"output_index":0,"item":{"id":"msg_r1","type":"message","status":"in_progress","role":"assistant","content":[]}}

            event: response.content_part.added
            data: {"type":"response.content_part.added","sequence_number":3,"item_id":"msg_r1","output_index":0,"content_index":0,"part":{"type":"output_text","text":"","annotations":[],"logprobs":[]}}

            event: response.output_text.delta
            data: {"type":"response.output_text.delta","sequence_number":4,"item_id":"msg_r1","output_index":0,"content_index":0,"delta":"Hel","logprobs":[]}

            event: response.output_text.delta
            data: {"type":"response.output_text.delta","sequence_number":5,"item_id":"msg_r1","output_index":0,"content_index":0,"delta":"lo\n","logprobs":[]}

            event: error
            data: {"type":"error","sequence_number":6,"code":"internal_error","message":"request r1 failed inside the host; its log has the reason","param":null}

            event: response.failed
            data: {"type":"response.failed","sequence_number":7,"response":{"id":"resp_r1","object":"response","created_at":7,"status":"failed","background":false,"error":{"code":"server_error","message":"request r1 failed inside the host; its log has the reason"},"incomplete_details":null,"instructions":null,"max_output_tokens":null,"metadata":{},"model":"m","output":[{"id":"msg_r1","type":"message","status":"incomplete","role":"assistant","content":[{"type":"output_text","text":"Hello\n","annotations":[],"logprobs":[]}]}],"parallel_tool_calls":true,"previous_response_id":null,"store":false,"temperature":0.7,"text":{"format":{"type":"text"}},"tool_choice":"auto","tools":[],"top_logprobs":0,"top_p":1.0,"truncation":"disabled","usage":null,"user":null}}

        "#]],
    );
}

#[test]
fn whole_answers_have_text_finish_and_usage() {
    whole(
        ResponseFormat::Chat { include_usage: false },
        Finish::Stop,
        &expect![[
            r#"{"id":"chatcmpl-r1","object":"chat.completion","created":7,"model":"m","choices":[{"index":0,"message":{"role":"assistant","content":"Hello","refusal":null},"logprobs":null,"finish_reason":"stop"}],"usage":{"prompt_tokens":3,"completion_tokens":2,"total_tokens":5,"prompt_tokens_details":{"cached_tokens":1}}}"#
        ]],
    );
    whole(
        ResponseFormat::Completions { include_usage: false },
        Finish::Length,
        &expect![[
            r#"{"id":"cmpl-r1","object":"text_completion","created":7,"model":"m","choices":[{"text":"Hello","index":0,"logprobs":null,"finish_reason":"length"}],"usage":{"prompt_tokens":3,"completion_tokens":2,"total_tokens":5,"prompt_tokens_details":{"cached_tokens":1}}}"#
        ]],
    );
    whole(
        responses(),
        Finish::Length,
        &expect![[
            r#"{"id":"resp_r1","object":"response","created_at":7,"status":"incomplete","background":false,"error":null,"incomplete_details":{"reason":"max_output_tokens"},"instructions":null,"max_output_tokens":null,"metadata":{},"model":"m","output":[{"id":"msg_r1","type":"message","status":"incomplete","role":"assistant","content":[{"type":"output_text","text":"Hello","annotations":[],"logprobs":[]}]}],"parallel_tool_calls":true,"previous_response_id":null,"store":false,"temperature":0.7,"text":{"format":{"type":"text"}},"tool_choice":"auto","tools":[],"top_logprobs":0,"top_p":1.0,"truncation":"disabled","usage":{"input_tokens":3,"input_tokens_details":{"cached_tokens":1,"cache_write_tokens":0},"output_tokens":2,"output_tokens_details":{"reasoning_tokens":0},"total_tokens":5},"user":null}"#
        ]],
    );
}

/// A whole answer of these parts to a client that asked how likely tokens were.
fn whole_with(format: ResponseFormat, chunk: TextChunk) -> serde_json::Value {
    let body = writer(format, ResponseHead { logprobs: true, ..head() }).whole(chunk, &DONE);
    serde_json::from_slice(&body).expect("JSON")
}

/// The data of each frame of a stream of these parts.
fn streamed_with(format: ResponseFormat, chunk: &[TextChunk]) -> Vec<serde_json::Value> {
    let mut frames = SseFrames::default();
    let mut writer = writer(format, ResponseHead { logprobs: true, ..head() });
    writer.open(&mut frames);
    for chunk in chunk {
        writer.text(chunk.clone(), &mut frames);
    }
    writer.done(&DONE, &mut frames);
    let text = frames.into_text();
    let data = text.lines().filter_map(|line| line.strip_prefix("data: "));
    let values = data.filter(|data| *data != "[DONE]").map(serde_json::from_str);
    values.collect::<Result<_, _>>().expect("JSON")
}

const CHAT: ResponseFormat = ResponseFormat::Chat { include_usage: false };
const COMPLETIONS: ResponseFormat = ResponseFormat::Completions { include_usage: false };

#[test]
fn a_whole_chat_tells_each_token_with_its_bytes_and_alternatives() {
    let choice = &whole_with(CHAT, with_logprobs("Hi", 0, true))["choices"][0];
    expect![[r#"{"content":[{"token":"H","logprob":-0.25,"bytes":[72],"top_logprobs":[{"token":"I","logprob":-0.25,"bytes":[73]},{"token":"<eos>","logprob":-9999.0,"bytes":[60,101,111,115,62]}]},{"token":"i","logprob":-0.5,"bytes":[105],"top_logprobs":[{"token":"j","logprob":-0.5,"bytes":[106]},{"token":"<eos>","logprob":-9999.0,"bytes":[60,101,111,115,62]}]}],"refusal":null}"#]].assert_eq(&choice["logprobs"].to_string());
}

#[test]
fn a_whole_completion_tells_tokens_in_columns() {
    let choice = &whole_with(COMPLETIONS, with_logprobs("Hi", 0, true))["choices"][0];
    expect![[r#"{"tokens":["H","i"],"token_logprobs":[-0.25,-0.5],"top_logprobs":[{"I":-0.25,"<eos>":-9999.0,"H":-0.25},{"j":-0.5,"<eos>":-9999.0,"i":-0.5}],"text_offset":[0,1]}"#]].assert_eq(&choice["logprobs"].to_string());
}

#[test]
fn a_whole_response_tells_each_token_of_its_text() {
    let part = &whole_with(responses(), with_logprobs("H", 0, true))["output"][0]["content"][0];
    expect![[r#"[{"token":"H","logprob":-0.25,"bytes":[72],"top_logprobs":[{"token":"I","logprob":-0.25,"bytes":[73]},{"token":"<eos>","logprob":-9999.0,"bytes":[60,101,111,115,62]}]}]"#]].assert_eq(&part["logprobs"].to_string());
}

#[test]
fn without_alternatives_there_are_none() {
    let choice = &whole_with(CHAT, with_logprobs("H", 0, false))["choices"][0];
    expect![[r#"{"content":[{"token":"H","logprob":-0.25,"bytes":[72],"top_logprobs":[]}],"refusal":null}"#]].assert_eq(&choice["logprobs"].to_string());
    let choice = &whole_with(COMPLETIONS, with_logprobs("H", 0, false))["choices"][0];
    expect![[r#"{"tokens":["H"],"token_logprobs":[-0.25],"top_logprobs":null,"text_offset":[0]}"#]]
        .assert_eq(&choice["logprobs"].to_string());
}

#[test]
fn half_a_character_is_lossy_text_with_exact_bytes_or_spelled_by_its_bytes() {
    let choice = &whole_with(CHAT, with_logprobs("é", 0, false))["choices"][0];
    expect![[r#"{"content":[{"token":"�","logprob":-0.25,"bytes":[195],"top_logprobs":[]},{"token":"�","logprob":-0.5,"bytes":[169],"top_logprobs":[]}],"refusal":null}"#]].assert_eq(&choice["logprobs"].to_string());
    let choice = &whole_with(COMPLETIONS, with_logprobs("é", 0, true))["choices"][0];
    expect![[r#"{"tokens":["bytes:\\xc3","bytes:\\xa9"],"token_logprobs":[-0.25,-0.5],"top_logprobs":[{"bytes:\\xc4":-0.25,"<eos>":-9999.0,"bytes:\\xc3":-0.25},{"bytes:\\xaa":-0.5,"<eos>":-9999.0,"bytes:\\xa9":-0.5}],"text_offset":[0,1]}"#]].assert_eq(&choice["logprobs"].to_string());
}

#[test]
fn alternatives_that_are_spelled_alike_are_one_key_with_the_likelier_ones_number() {
    let mut chunk = with_logprobs("H", 0, false);
    // Ids from 300 on are no tokens and have no text.
    chunk.tokens[0].logprobs.top = vec![(300, -0.1), (301, -0.2)];
    let choice = &whole_with(COMPLETIONS, chunk)["choices"][0];
    expect![[r#"[{"":-0.1,"H":-0.25}]"#]]
        .assert_eq(&choice["logprobs"]["top_logprobs"].to_string());
}

#[test]
fn an_answer_without_text_tells_of_no_tokens_and_one_without_tokens_tells_nothing() {
    let logprobs = |format, chunk| whole_with(format, chunk)["choices"][0]["logprobs"].to_string();
    expect![[r#"{"content":[],"refusal":null}"#]].assert_eq(&logprobs(CHAT, plain("")));
    expect![[r#"{"tokens":[],"token_logprobs":[],"top_logprobs":null,"text_offset":[]}"#]]
        .assert_eq(&logprobs(COMPLETIONS, plain("")));
    assert_eq!(logprobs(CHAT, plain("a model that says nothing of them")), "null");
    assert_eq!(logprobs(COMPLETIONS, plain("a model that says nothing of them")), "null");
    let unasked = writer(CHAT, head()).whole(plain(""), &DONE);
    assert!(String::from_utf8(unasked).expect("JSON").contains(r#""logprobs":null"#));
}

#[test]
fn a_chunk_tells_the_tokens_whose_text_it_has() {
    let parts = [with_logprobs("Hi", 0, false), plain("?"), with_logprobs("!", 3, false)];
    let tell = |chunk: &serde_json::Value| {
        let choice = &chunk["choices"][0];
        let text = choice["delta"]["content"].as_str().or(choice["text"].as_str()).unwrap_or("-");
        let tokens = &choice["logprobs"];
        match tokens["content"].as_array() {
            Some(content) => {
                let tokens: Vec<_> = content.iter().map(|token| token["token"].as_str()).collect();
                format!("{text:?}: {tokens:?}\n")
            }
            None => format!("{text:?}: {tokens}\n"),
        }
    };
    let chat: String = streamed_with(CHAT, &parts).iter().map(tell).collect();
    expect![[r#"
        "": null
        "Hi": [Some("H"), Some("i")]
        "?": null
        "!": [Some("!")]
        "-": null
    "#]]
    .assert_eq(&chat);
    let completions: String = streamed_with(COMPLETIONS, &parts).iter().map(tell).collect();
    expect![[r#"
        "Hi": {"tokens":["H","i"],"token_logprobs":[-0.25,-0.5],"top_logprobs":null,"text_offset":[0,1]}
        "?": null
        "!": {"tokens":["!"],"token_logprobs":[-0.25],"top_logprobs":null,"text_offset":[3]}
        "": null
    "#]].assert_eq(&completions);
}

#[test]
fn a_responses_stream_tells_tokens_in_deltas_and_again_at_the_end() {
    let parts = [with_logprobs("H", 0, true), with_logprobs("i", 1, false)];
    let told: String = streamed_with(responses(), &parts)
        .iter()
        .filter_map(|event| {
            let name = event["type"].as_str().expect("a type");
            let part = event.get("part").or(event.pointer("/item/content/0"));
            let part = part.or(event.pointer("/response/output/0/content/0")).unwrap_or(event);
            Some(format!("{name} {}\n", part.get("logprobs")?))
        })
        .collect();
    expect![[r#"
        response.content_part.added []
        response.output_text.delta [{"token":"H","logprob":-0.25,"top_logprobs":[{"token":"I","logprob":-0.25},{"token":"<eos>","logprob":-9999.0}]}]
        response.output_text.delta [{"token":"i","logprob":-0.25,"top_logprobs":[]}]
        response.output_text.done [{"token":"H","logprob":-0.25,"top_logprobs":[{"token":"I","logprob":-0.25},{"token":"<eos>","logprob":-9999.0}]},{"token":"i","logprob":-0.25,"top_logprobs":[]}]
        response.content_part.done [{"token":"H","logprob":-0.25,"bytes":[72],"top_logprobs":[{"token":"I","logprob":-0.25,"bytes":[73]},{"token":"<eos>","logprob":-9999.0,"bytes":[60,101,111,115,62]}]},{"token":"i","logprob":-0.25,"bytes":[105],"top_logprobs":[]}]
        response.output_item.done [{"token":"H","logprob":-0.25,"bytes":[72],"top_logprobs":[{"token":"I","logprob":-0.25,"bytes":[73]},{"token":"<eos>","logprob":-9999.0,"bytes":[60,101,111,115,62]}]},{"token":"i","logprob":-0.25,"bytes":[105],"top_logprobs":[]}]
        response.completed [{"token":"H","logprob":-0.25,"bytes":[72],"top_logprobs":[{"token":"I","logprob":-0.25,"bytes":[73]},{"token":"<eos>","logprob":-9999.0,"bytes":[60,101,111,115,62]}]},{"token":"i","logprob":-0.25,"bytes":[105],"top_logprobs":[]}]
    "#]].assert_eq(&told);
}

/// Chunks with nothing but text are written from one frame, made with the first.
#[test]
fn a_text_stands_in_its_place_whatever_it_says_and_whatever_the_model_is_called() {
    const TEXTS: [&str; 5] = ["\"\"", "", "a \"b\"\n\\", "data: x\n\n", "\u{1f600}"];
    let usage = |include_usage| {
        [ResponseFormat::Chat { include_usage }, ResponseFormat::Completions { include_usage }]
    };
    for format in [true, false].into_iter().flat_map(usage) {
        let head = ResponseHead { info: info("\"\" \\"), ..head() };
        let mut writer = writer(format, head);
        let mut texts = vec![];
        for text in TEXTS {
            let mut frames = SseFrames::default();
            writer.text(plain(text), &mut frames);
            let frames = frames.into_text();
            let last = frames.trim_end().rsplit("data: {").next().expect("a frame");
            let chunk: serde_json::Value =
                serde_json::from_str(&format!("{{{last}")).expect(&frames);
            assert_eq!(chunk["model"], "\"\" \\");
            let choice = &chunk["choices"][0];
            texts.push(
                choice["text"].as_str().or(choice["delta"]["content"].as_str()).map(str::to_owned),
            );
        }
        assert_eq!(texts, TEXTS.map(|text| Some(text.to_owned())));
    }
}
