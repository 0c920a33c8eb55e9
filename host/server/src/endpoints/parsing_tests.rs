//! What clients send, well or badly, and what they are told.

mod accepted;

use expect_test::{Expect, expect};
use interlock_request::Endpoint;

use super::ApiRequest;

/// Bodies, one a line, each followed by what the client would be told.
fn errors(endpoint: Endpoint, bodies: &[&str], expected: &Expect) {
    let told: Vec<String> = bodies
        .iter()
        .map(|body| match ApiRequest::parse(endpoint, body.as_bytes()) {
            Ok(_) => format!("{body}\n    accepted\n"),
            Err(invalid) => {
                let param = invalid.param.as_deref().unwrap_or("-");
                format!("{body}\n    {} {param}: {}\n", invalid.code, invalid.message)
            }
        })
        .collect();
    expected.assert_eq(&told.concat());
}

/// The same for fields of an otherwise good chat request.
fn chat_fields(fields: &[&str], expected: &Expect) {
    let told: Vec<String> = fields
        .iter()
        .map(|field| {
            let body =
                format!(r#"{{"model":"m","messages":[{{"role":"user","content":"hi"}}],{field}}}"#);
            match ApiRequest::parse(Endpoint::Chat, body.as_bytes()) {
                Ok(_) => format!("{field}\n    accepted\n"),
                Err(invalid) => {
                    let param = invalid.param.as_deref().unwrap_or("-");
                    format!("{field}\n    {} {param}: {}\n", invalid.code, invalid.message)
                }
            }
        })
        .collect();
    expected.assert_eq(&told.concat());
}

fn parse(endpoint: Endpoint, body: &str) -> ApiRequest {
    ApiRequest::parse(endpoint, body.as_bytes()).expect("a good request")
}

#[test]
fn a_body_that_is_no_request_says_what_is_missing_or_wrong() {
    errors(
        Endpoint::Chat,
        &[
            "",
            "{",
            "[]",
            "\"chat\"",
            "{}",
            r#"{"model":7}"#,
            r#"{"model":"m"}"#,
            r#"{"model":"m","messages":null}"#,
            r#"{"model":"m","messages":"hi"}"#,
            r#"{"model":"m","messages":[]}"#,
            r#"{"model":"m","messages":["hi"]}"#,
            r#"{"model":"m","messages":[{}]}"#,
            r#"{"model":"m","messages":[{"role":"wizard","content":"x"}]}"#,
            r#"{"model":"m","messages":[{"role":"tool","content":"x"}]}"#,
            r#"{"model":"m","messages":[{"role":"user"}]}"#,
            r#"{"model":"m","messages":[{"role":"user","content":7}]}"#,
            r#"{"model":"m","messages":[{"role":"user","content":[]}]}"#,
            r#"{"model":"m","messages":[{"role":"user","content":[{"type":"image_url"}]}]}"#,
            r#"{"model":"m","messages":[{"role":"user","content":[{"type":"text"}]}]}"#,
            r#"{"model":"m","messages":[{"role":"user","content":"\ud800"}]}"#,
            r#"{"model":"m","messages":[{"role":"user","content":"x","\ud800":1}]}"#,
            r#"{"model":"m","messages":[{"role":"user","content":"x","name":1}]}"#,
            r#"{"model":"m","messages":[{"role":"assistant","content":"x","tool_calls":[{}]}]}"#,
            r#"{"model":"m","messages":[{"role":"developer","content":"x","tool_calls":[]}]}"#,
        ],
        &expect![[r#"

                invalid_json -: the body is not valid JSON: EOF while parsing a value at line 1 column 0
            {
                invalid_json -: the body is not valid JSON: EOF while parsing an object at line 1 column 1
            []
                invalid_type -: the body must be an object, got []
            "chat"
                invalid_type -: the body must be an object, got "chat"
            {}
                missing_required_parameter messages: messages is required
            {"model":7}
                invalid_type model: model must be a string, got 7
            {"model":"m"}
                missing_required_parameter messages: messages is required
            {"model":"m","messages":null}
                missing_required_parameter messages: messages is required
            {"model":"m","messages":"hi"}
                invalid_type messages: messages must be an array, got "hi"
            {"model":"m","messages":[]}
                invalid_value messages: messages must be an array of at least one message, got []
            {"model":"m","messages":["hi"]}
                invalid_type messages[0]: messages[0] must be an object, got "hi"
            {"model":"m","messages":[{}]}
                missing_required_parameter messages[0].role: messages[0].role is required
            {"model":"m","messages":[{"role":"wizard","content":"x"}]}
                invalid_value messages[0].role: messages[0].role must be "system", "developer", "user" or "assistant", got "wizard"
            {"model":"m","messages":[{"role":"tool","content":"x"}]}
                unsupported_parameter messages[0].role: messages[0].role is not supported: tool calls are not served, got "tool"
            {"model":"m","messages":[{"role":"user"}]}
                missing_required_parameter messages[0].content: messages[0].content is required
            {"model":"m","messages":[{"role":"user","content":7}]}
                invalid_type messages[0].content: messages[0].content must be a string or an array of text parts, got 7
            {"model":"m","messages":[{"role":"user","content":[]}]}
                invalid_value messages[0].content: messages[0].content must be a string or at least one text part, got []
            {"model":"m","messages":[{"role":"user","content":[{"type":"image_url"}]}]}
                unsupported_parameter messages[0].content[0].type: messages[0].content[0].type is not supported: only parts of type text are, got "image_url"
            {"model":"m","messages":[{"role":"user","content":[{"type":"text"}]}]}
                missing_required_parameter messages[0].content[0].text: messages[0].content[0].text is required
            {"model":"m","messages":[{"role":"user","content":"\ud800"}]}
                invalid_value messages[0].content: messages[0].content must be a string of valid Unicode characters, got "\ud800"
            {"model":"m","messages":[{"role":"user","content":"x","\ud800":1}]}
                invalid_value messages[0]: messages[0] must be an object whose fields' names are valid Unicode characters, got {"role":"user","content":"x","\ud800":1}
            {"model":"m","messages":[{"role":"user","content":"x","name":1}]}
                invalid_type messages[0].name: messages[0].name must be a string, got 1
            {"model":"m","messages":[{"role":"assistant","content":"x","tool_calls":[{}]}]}
                unsupported_parameter messages[0].tool_calls: messages[0].tool_calls is not supported: tool calls are not served, got [{}]
            {"model":"m","messages":[{"role":"developer","content":"x","tool_calls":[]}]}
                accepted
        "#]],
    );
}

#[test]
fn a_value_outside_its_range_is_named_with_the_range() {
    chat_fields(
        &[
            r#""temperature":-0.1"#,
            r#""temperature":2.1"#,
            r#""temperature":"hot""#,
            r#""temperature":1e400"#,
            r#""temperature":null"#,
            r#""top_p":0"#,
            r#""top_p":-0.1"#,
            r#""top_p":1.01"#,
            r#""top_k":-2"#,
            r#""top_k":-1"#,
            r#""top_k":1.5"#,
            r#""top_k":40.0"#,
            r#""top_k":4e9"#,
            r#""top_k":5e9"#,
            r#""min_p":1.5"#,
            r#""presence_penalty":2.5"#,
            r#""frequency_penalty":-2.5"#,
            r#""repetition_penalty":0"#,
            r#""repeat_penalty":2.5"#,
            r#""repeat_penalty":1.1,"repeat_last_n":64"#,
            r#""repeat_last_n":-2"#,
            r#""seed":"x""#,
            r#""seed":-1"#,
            r#""seed":7.0"#,
            r#""seed":null"#,
            r#""seed":9223372036854775808"#,
            r#""max_tokens":0"#,
            r#""max_tokens":1.0"#,
            r#""max_tokens":-1"#,
            r#""max_tokens":1e400"#,
            r#""n_predict":-2"#,
            r#""max_completion_tokens":-5"#,
            r#""logit_bias":[]"#,
            r#""logit_bias":[[7,1.5],[8,-100]]"#,
            r#""logit_bias":[[7,false]]"#,
            r#""logit_bias":[["cat",1]]"#,
            r#""logit_bias":[["7",1]]"#,
            r#""logit_bias":[[7]]"#,
            r#""logit_bias":null"#,
            r#""logit_bias":{"cat":1}"#,
            r#""logit_bias":{"7":101}"#,
            r#""stop":"""#,
            r#""stop":["","a"]"#,
            r#""stop":null"#,
            r#""stop":["a","b","c","d","e"]"#,
            r#""stop":[1]"#,
            r#""stop":[]"#,
            r#""stream":"maybe""#,
            r#""stream_options":{"include_usage":true}"#,
            r#""stream":true,"stream_options":{"include_usage":1}"#,
            r#""ignore_eos":1"#,
            r#""ignore_eos":"false""#,
            r#""ignore_eos":2"#,
            r#""ignore_eos":null"#,
            r#""min_tokens":-1"#,
            r#""min_tokens":0.5"#,
            r#""min_tokens":"3""#,
            r#""min_tokens":null"#,
            r#""min_tokens":99999999999999999999"#,
            r#""logprobs":2"#,
            r#""logprobs":null"#,
            r#""logprobs":true"#,
            r#""logprobs":true,"top_logprobs":20"#,
            r#""logprobs":true,"top_logprobs":21"#,
            r#""logprobs":true,"top_logprobs":-1"#,
            r#""logprobs":true,"top_logprobs":"5""#,
            r#""top_logprobs":0"#,
            r#""top_logprobs":3"#,
            r#""logprobs":false,"top_logprobs":3"#,
        ],
        &expect![[r#"
            "temperature":-0.1
                invalid_value temperature: temperature must be a number from 0 to 2, got -0.1
            "temperature":2.1
                invalid_value temperature: temperature must be a number from 0 to 2, got 2.1
            "temperature":"hot"
                invalid_type temperature: temperature must be a number from 0 to 2, got "hot"
            "temperature":1e400
                invalid_value temperature: temperature must be a number from 0 to 2, got 1e400
            "temperature":null
                accepted
            "top_p":0
                accepted
            "top_p":-0.1
                invalid_value top_p: top_p must be a number from 0 to 1, got -0.1
            "top_p":1.01
                invalid_value top_p: top_p must be a number from 0 to 1, got 1.01
            "top_k":-2
                invalid_value top_k: top_k must be an integer from -1 to 4294967295, got -2
            "top_k":-1
                accepted
            "top_k":1.5
                invalid_type top_k: top_k must be an integer from -1 to 4294967295, got 1.5
            "top_k":40.0
                accepted
            "top_k":4e9
                accepted
            "top_k":5e9
                invalid_value top_k: top_k must be an integer from -1 to 4294967295, got 5e9
            "min_p":1.5
                invalid_value min_p: min_p must be a number from 0 to 1, got 1.5
            "presence_penalty":2.5
                invalid_value presence_penalty: presence_penalty must be a number from -2 to 2, got 2.5
            "frequency_penalty":-2.5
                invalid_value frequency_penalty: frequency_penalty must be a number from -2 to 2, got -2.5
            "repetition_penalty":0
                invalid_value repetition_penalty: repetition_penalty must be a number above 0 and at most 2, got 0
            "repeat_penalty":2.5
                invalid_value repeat_penalty: repeat_penalty must be a number above 0 and at most 2, got 2.5
            "repeat_penalty":1.1,"repeat_last_n":64
                unsupported_parameter repeat_last_n: repeat_last_n is not supported: penalties look at the prompt and the answer as a whole, which is -1, got 64
            "repeat_last_n":-2
                invalid_value repeat_last_n: repeat_last_n must be an integer of at least -1, got -2
            "seed":"x"
                invalid_type seed: seed must be an integer of at most 64 bits, got "x"
            "seed":-1
                accepted
            "seed":7.0
                accepted
            "seed":null
                accepted
            "seed":9223372036854775808
                invalid_value seed: seed must be an integer of at most 64 bits, got 9223372036854775808
            "max_tokens":0
                invalid_value max_tokens: max_tokens must be an integer of at least 1, got 0
            "max_tokens":1.0
                accepted
            "max_tokens":-1
                accepted
            "max_tokens":1e400
                invalid_value max_tokens: max_tokens must be an integer of at least 1, got 1e400
            "n_predict":-2
                invalid_value n_predict: n_predict must be an integer of at least 1, got -2
            "max_completion_tokens":-5
                invalid_value max_completion_tokens: max_completion_tokens must be an integer of at least 1, got -5
            "logit_bias":[]
                accepted
            "logit_bias":[[7,1.5],[8,-100]]
                accepted
            "logit_bias":[[7,false]]
                invalid_type logit_bias[0][1]: logit_bias[0][1] must be a number from -100 to 100, got false
            "logit_bias":[["cat",1]]
                invalid_type logit_bias[0][0]: logit_bias[0][0] must be an integer from 0 to 4294967295, got "cat"
            "logit_bias":[["7",1]]
                invalid_type logit_bias[0][0]: logit_bias[0][0] must be an integer from 0 to 4294967295, got "7"
            "logit_bias":[[7]]
                invalid_value logit_bias[0]: logit_bias[0] must be a token id and a number, got [7]
            "logit_bias":null
                accepted
            "logit_bias":{"cat":1}
                invalid_value logit_bias.cat: logit_bias.cat must be named by a token id, got "cat"
            "logit_bias":{"7":101}
                invalid_value logit_bias.7: logit_bias.7 must be a number from -100 to 100, got 101
            "stop":""
                accepted
            "stop":["","a"]
                accepted
            "stop":null
                accepted
            "stop":["a","b","c","d","e"]
                invalid_value stop: stop must be at most 4 strings, got ["a","b","c","d","e"]
            "stop":[1]
                invalid_type stop[0]: stop[0] must be a string, got 1
            "stop":[]
                accepted
            "stream":"maybe"
                invalid_type stream: stream must be true or false, got "maybe"
            "stream_options":{"include_usage":true}
                invalid_value stream_options: stream_options must be absent unless stream is true, got {"include_usage":true}
            "stream":true,"stream_options":{"include_usage":1}
                accepted
            "ignore_eos":1
                accepted
            "ignore_eos":"false"
                accepted
            "ignore_eos":2
                invalid_type ignore_eos: ignore_eos must be true or false, got 2
            "ignore_eos":null
                accepted
            "min_tokens":-1
                invalid_value min_tokens: min_tokens must be an integer of at least 0, got -1
            "min_tokens":0.5
                invalid_type min_tokens: min_tokens must be an integer of at least 0, got 0.5
            "min_tokens":"3"
                accepted
            "min_tokens":null
                accepted
            "min_tokens":99999999999999999999
                accepted
            "logprobs":2
                invalid_type logprobs: logprobs must be true or false, got 2
            "logprobs":null
                accepted
            "logprobs":true
                accepted
            "logprobs":true,"top_logprobs":20
                accepted
            "logprobs":true,"top_logprobs":21
                invalid_value top_logprobs: top_logprobs must be an integer from 0 to 20, got 21
            "logprobs":true,"top_logprobs":-1
                invalid_value top_logprobs: top_logprobs must be an integer from 0 to 20, got -1
            "logprobs":true,"top_logprobs":"5"
                accepted
            "top_logprobs":0
                accepted
            "top_logprobs":3
                invalid_value top_logprobs: top_logprobs must be absent or 0 unless logprobs is true, got 3
            "logprobs":false,"top_logprobs":3
                invalid_value top_logprobs: top_logprobs must be absent or 0 unless logprobs is true, got 3
        "#]],
    );
}

#[test]
fn a_feature_that_is_not_served_is_refused_rather_than_ignored() {
    chat_fields(
        &[
            r#""n":1"#,
            r#""n":2"#,
            r#""n":0"#,
            r#""tools":[]"#,
            r#""tools":[{"type":"function"}]"#,
            r#""tool_choice":"auto""#,
            r#""tool_choice":"required""#,
            r#""response_format":{"type":"text"}"#,
            r#""response_format":{"type":"json_object"}"#,
            r#""modalities":["text","audio"]"#,
            r#""audio":{"voice":"x"}"#,
            r#""something_new":{"deep":[1,2,3]}"#,
        ],
        &expect![[r#"
            "n":1
                accepted
            "n":2
                unsupported_parameter n: n is not supported: one answer per request is served, got 2
            "n":0
                unsupported_parameter n: n is not supported: one answer per request is served, got 0
            "tools":[]
                accepted
            "tools":[{"type":"function"}]
                unsupported_parameter tools: tools is not supported: tool calls are not served, got [{"type":"function"}]
            "tool_choice":"auto"
                accepted
            "tool_choice":"required"
                unsupported_parameter tool_choice: tool_choice is not supported: tool calls are not served, got "required"
            "response_format":{"type":"text"}
                accepted
            "response_format":{"type":"json_object"}
                unsupported_parameter response_format.type: response_format.type is not supported: only text is, got "json_object"
            "modalities":["text","audio"]
                unsupported_parameter modalities[1]: modalities[1] is not supported: only text is served, got "audio"
            "audio":{"voice":"x"}
                unsupported_parameter audio: audio is not supported: only text is served, got {"voice":"x"}
            "something_new":{"deep":[1,2,3]}
                accepted
        "#]],
    );
}

#[test]
fn a_body_that_is_not_utf8_says_where() {
    let invalid =
        ApiRequest::parse(Endpoint::Chat, b"{\"model\":\"\xff\"}").expect_err("not UTF-8");
    assert_eq!(invalid.message, "the body is not valid UTF-8 from byte 10 on");
}

#[test]
fn a_deep_or_wide_body_is_refused_without_unfolding_it() {
    let many = 100_000;
    let unclosed = format!(r#"{{"model":{}}}"#, "[".repeat(many));
    assert_eq!(
        ApiRequest::parse(Endpoint::Chat, unclosed.as_bytes()).unwrap_err().code,
        "invalid_json"
    );
    // Each of these is read up to where it is not what belongs there.
    for [open, close] in [["[", "]"], [r#"{"a":"#, "}"]] {
        let deep = format!("{}0{}", open.repeat(many), close.repeat(many));
        for (body, param) in [
            (format!(r#"{{"model":{deep}}}"#), "model"),
            (format!(r#"{{"model":"m","messages":{deep}}}"#), "messages"),
            (
                format!(r#"{{"model":"m","messages":[{{"role":"user","content":{deep}}}]}}"#),
                "messages[0].content",
            ),
            (
                format!(
                    r#"{{"model":"m","messages":[{{"role":"user","content":"x"}}],"stop":{deep}}}"#
                ),
                "stop",
            ),
        ] {
            let invalid = ApiRequest::parse(Endpoint::Chat, body.as_bytes()).unwrap_err();
            let told = invalid.param.as_deref().unwrap_or_default();
            assert!(told.starts_with(param), "{param}: {told:?}: {}", invalid.message);
            assert!(invalid.message.len() < 1000, "{param}: {} bytes", invalid.message.len());
        }
    }
    let fields: Vec<_> = (0..2000).map(|n| format!(r#""f{n}":0"#)).collect();
    let wide = format!("{{{}}}", fields.join(","));
    let invalid = ApiRequest::parse(Endpoint::Chat, wide.as_bytes()).unwrap_err();
    assert!(invalid.message.contains("at most 1024 fields"), "{}", invalid.message);
}
