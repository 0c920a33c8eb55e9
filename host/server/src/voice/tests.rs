//! What answers look like on the wire.

use expect_test::{Expect, expect};
use interlock_request::{CancelCause, Deadline, Finish, ModelId, RequestId, Usage};

use super::{Frames, Head, voice};
use crate::ask::{Echo, Shape};
use crate::failure::Failure;
use crate::pieces::Done;

const DONE: Done = Done {
    finish: Finish::Stop,
    usage: Usage { prompt_tokens: 3, cached_tokens: 0, generated_tokens: 2 },
};

fn head() -> Head {
    let request = RequestId::parse("r1").expect("an id");
    Head { request, model: ModelId::new("m"), created: 7 }
}

fn responses() -> Shape {
    Shape::Responses(Box::new(Echo {
        instructions: None,
        metadata: None,
        temperature: 0.7,
        top_p: 1.0,
        max_output_tokens: None,
    }))
}

fn streamed(shape: Shape, end: Result<Done, Failure>, expected: &Expect) {
    let mut frames = Frames::default();
    let mut voice = voice(shape, head());
    voice.open(&mut frames);
    voice.text("Hel", &mut frames);
    voice.text("lo\n", &mut frames);
    match end {
        Ok(done) => voice.done(&done, &mut frames),
        Err(failure) => voice.fail(&failure.complaint(&head().request), &mut frames),
    }
    expected.assert_eq(&frames.into_text());
}

fn whole(shape: Shape, finish: Finish, expected: &Expect) {
    let body = voice(shape, head()).whole("Hello".into(), &Done { finish, ..DONE });
    expected.assert_eq(&String::from_utf8(body).expect("JSON is UTF-8"));
}

#[test]
fn a_chat_stream_is_role_content_finish_usage_done() {
    streamed(
        Shape::Chat { include_usage: true },
        Ok(DONE),
        &expect![[r#"
        data: {"id":"chatcmpl-r1","object":"chat.completion.chunk","created":7,"model":"m","choices":[{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}],"usage":null}

        data: {"id":"chatcmpl-r1","object":"chat.completion.chunk","created":7,"model":"m","choices":[{"index":0,"delta":{"content":"Hel"},"logprobs":null,"finish_reason":null}],"usage":null}

        data: {"id":"chatcmpl-r1","object":"chat.completion.chunk","created":7,"model":"m","choices":[{"index":0,"delta":{"content":"lo\n"},"logprobs":null,"finish_reason":null}],"usage":null}

        data: {"id":"chatcmpl-r1","object":"chat.completion.chunk","created":7,"model":"m","choices":[{"index":0,"delta":{},"logprobs":null,"finish_reason":"stop"}],"usage":null}

        data: {"id":"chatcmpl-r1","object":"chat.completion.chunk","created":7,"model":"m","choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2,"total_tokens":5}}

        data: [DONE]

    "#]],
    );
}

#[test]
fn a_chat_stream_without_usage_says_nothing_of_it() {
    streamed(
        Shape::Chat { include_usage: false },
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
        Shape::Completions { include_usage: false },
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
        Shape::Completions { include_usage: true },
        Ok(DONE),
        &expect![[r#"
        data: {"id":"cmpl-r1","object":"text_completion","created":7,"model":"m","choices":[{"text":"Hel","index":0,"logprobs":null,"finish_reason":null}],"usage":null}

        data: {"id":"cmpl-r1","object":"text_completion","created":7,"model":"m","choices":[{"text":"lo\n","index":0,"logprobs":null,"finish_reason":null}],"usage":null}

        data: {"id":"cmpl-r1","object":"text_completion","created":7,"model":"m","choices":[{"text":"","index":0,"logprobs":null,"finish_reason":"stop"}],"usage":null}

        data: {"id":"cmpl-r1","object":"text_completion","created":7,"model":"m","choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2,"total_tokens":5}}

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
            data: {"type":"response.created","sequence_number":0,"response":{"id":"resp_r1","object":"response","created_at":7,"status":"in_progress","background":false,"error":null,"incomplete_details":null,"instructions":null,"max_output_tokens":null,"metadata":{},"model":"m","output":[],"parallel_tool_calls":true,"previous_response_id":null,"store":false,"temperature":0.7,"text":{"format":{"type":"text"}},"tool_choice":"auto","tools":[],"top_p":1.0,"truncation":"disabled","usage":null,"user":null}}

            event: response.in_progress
            data: {"type":"response.in_progress","sequence_number":1,"response":{"id":"resp_r1","object":"response","created_at":7,"status":"in_progress","background":false,"error":null,"incomplete_details":null,"instructions":null,"max_output_tokens":null,"metadata":{},"model":"m","output":[],"parallel_tool_calls":true,"previous_response_id":null,"store":false,"temperature":0.7,"text":{"format":{"type":"text"}},"tool_choice":"auto","tools":[],"top_p":1.0,"truncation":"disabled","usage":null,"user":null}}

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
            data: {"type":"response.completed","sequence_number":9,"response":{"id":"resp_r1","object":"response","created_at":7,"status":"completed","background":false,"error":null,"incomplete_details":null,"instructions":null,"max_output_tokens":null,"metadata":{},"model":"m","output":[{"id":"msg_r1","type":"message","status":"completed","role":"assistant","content":[{"type":"output_text","text":"Hello\n","annotations":[],"logprobs":[]}]}],"parallel_tool_calls":true,"previous_response_id":null,"store":false,"temperature":0.7,"text":{"format":{"type":"text"}},"tool_choice":"auto","tools":[],"top_p":1.0,"truncation":"disabled","usage":{"input_tokens":3,"input_tokens_details":{"cached_tokens":0,"cache_write_tokens":0},"output_tokens":2,"output_tokens_details":{"reasoning_tokens":0},"total_tokens":5},"user":null}}

        "#]],
    );
}

#[test]
fn a_responses_stream_that_fails_says_error_and_failed() {
    streamed(
        responses(),
        Err(Failure::Failed),
        &expect![[r#"
        event: response.created
        data: {"type":"response.created","sequence_number":0,"response":{"id":"resp_r1","object":"response","created_at":7,"status":"in_progress","background":false,"error":null,"incomplete_details":null,"instructions":null,"max_output_tokens":null,"metadata":{},"model":"m","output":[],"parallel_tool_calls":true,"previous_response_id":null,"store":false,"temperature":0.7,"text":{"format":{"type":"text"}},"tool_choice":"auto","tools":[],"top_p":1.0,"truncation":"disabled","usage":null,"user":null}}

        event: response.in_progress
        data: {"type":"response.in_progress","sequence_number":1,"response":{"id":"resp_r1","object":"response","created_at":7,"status":"in_progress","background":false,"error":null,"incomplete_details":null,"instructions":null,"max_output_tokens":null,"metadata":{},"model":"m","output":[],"parallel_tool_calls":true,"previous_response_id":null,"store":false,"temperature":0.7,"text":{"format":{"type":"text"}},"tool_choice":"auto","tools":[],"top_p":1.0,"truncation":"disabled","usage":null,"user":null}}

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
        data: {"type":"response.failed","sequence_number":7,"response":{"id":"resp_r1","object":"response","created_at":7,"status":"failed","background":false,"error":{"code":"server_error","message":"request r1 failed inside the host; its log has the reason"},"incomplete_details":null,"instructions":null,"max_output_tokens":null,"metadata":{},"model":"m","output":[{"id":"msg_r1","type":"message","status":"incomplete","role":"assistant","content":[{"type":"output_text","text":"Hello\n","annotations":[],"logprobs":[]}]}],"parallel_tool_calls":true,"previous_response_id":null,"store":false,"temperature":0.7,"text":{"format":{"type":"text"}},"tool_choice":"auto","tools":[],"top_p":1.0,"truncation":"disabled","usage":null,"user":null}}

    "#]],
    );
}

#[test]
fn whole_answers_have_text_finish_and_usage() {
    whole(
        Shape::Chat { include_usage: false },
        Finish::Stop,
        &expect![[
            r#"{"id":"chatcmpl-r1","object":"chat.completion","created":7,"model":"m","choices":[{"index":0,"message":{"role":"assistant","content":"Hello","refusal":null},"logprobs":null,"finish_reason":"stop"}],"usage":{"prompt_tokens":3,"completion_tokens":2,"total_tokens":5}}"#
        ]],
    );
    whole(
        Shape::Completions { include_usage: false },
        Finish::Length,
        &expect![[
            r#"{"id":"cmpl-r1","object":"text_completion","created":7,"model":"m","choices":[{"text":"Hello","index":0,"logprobs":null,"finish_reason":"length"}],"usage":{"prompt_tokens":3,"completion_tokens":2,"total_tokens":5}}"#
        ]],
    );
    whole(
        responses(),
        Finish::Length,
        &expect![[
            r#"{"id":"resp_r1","object":"response","created_at":7,"status":"incomplete","background":false,"error":null,"incomplete_details":{"reason":"max_output_tokens"},"instructions":null,"max_output_tokens":null,"metadata":{},"model":"m","output":[{"id":"msg_r1","type":"message","status":"incomplete","role":"assistant","content":[{"type":"output_text","text":"Hello","annotations":[],"logprobs":[]}]}],"parallel_tool_calls":true,"previous_response_id":null,"store":false,"temperature":0.7,"text":{"format":{"type":"text"}},"tool_choice":"auto","tools":[],"top_p":1.0,"truncation":"disabled","usage":{"input_tokens":3,"input_tokens_details":{"cached_tokens":0,"cache_write_tokens":0},"output_tokens":2,"output_tokens_details":{"reasoning_tokens":0},"total_tokens":5},"user":null}"#
        ]],
    );
}
