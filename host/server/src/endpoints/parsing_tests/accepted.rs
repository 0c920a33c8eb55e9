//! Requests that are taken, and how their values are read.

use expect_test::expect;
use interlock_request::{Endpoint, SamplingDefaults};

use super::super::{ApiRequest, MaxTokens, MinTokens, PromptInput, StopRules};
use super::{errors, parse};

#[test]
fn completions_takes_one_prompt_in_four_forms() {
    let input = |prompt: &str| {
        parse(Endpoint::Completions, &format!(r#"{{"model":"m","prompt":{prompt}}}"#)).input
    };
    let tokens = |path: &str| PromptInput::Tokens { path: path.into(), ids: vec![1, 2] };
    assert_eq!(input(r#""hi""#), PromptInput::Text("hi".into()));
    assert_eq!(input(r#"["hi"]"#), PromptInput::Text("hi".into()));
    assert_eq!(input("[1,2]"), tokens("prompt"));
    assert_eq!(input("[[1,2]]"), tokens("prompt[0]"));
    errors(
        Endpoint::Completions,
        &[
            r#"{"model":"m"}"#,
            r#"{"model":"m","prompt":{}}"#,
            r#"{"model":"m","prompt":[]}"#,
            r#"{"model":"m","prompt":[[]]}"#,
            r#"{"model":"m","prompt":["a","b"]}"#,
            r#"{"model":"m","prompt":[[1],[2]]}"#,
            r#"{"model":"m","prompt":[1,"a"]}"#,
            r#"{"model":"m","prompt":[1,"2"]}"#,
            r#"{"model":"m","prompt":[1,-1]}"#,
            r#"{"model":"m","prompt":[4294967296]}"#,
            r#"{"model":"m","prompt":"a","best_of":2}"#,
            r#"{"model":"m","prompt":"a","echo":true}"#,
            r#"{"model":"m","prompt":"a","suffix":"b"}"#,
            r#"{"model":"m","prompt":"a","logprobs":null}"#,
            r#"{"model":"m","prompt":"a","logprobs":20}"#,
            r#"{"model":"m","prompt":"a","logprobs":21}"#,
            r#"{"model":"m","prompt":"a","logprobs":true}"#,
            r#"{"model":"m","prompt":"a","logprobs":false}"#,
            r#"{"model":"m","prompt":[1.0,2e0]}"#,
        ],
        &expect![[r#"
            {"model":"m"}
                missing_required_parameter prompt: prompt is required
            {"model":"m","prompt":{}}
                invalid_type prompt: prompt must be a string, an array of token ids, or an array of one of these, got {}
            {"model":"m","prompt":[]}
                invalid_value prompt: prompt must be a string, an array of token ids, or an array of one of these, got []
            {"model":"m","prompt":[[]]}
                invalid_value prompt[0]: prompt[0] must be an array of at least one token id, got []
            {"model":"m","prompt":["a","b"]}
                unsupported_parameter prompt: prompt is not supported: one prompt per request is served, got ["a","b"]
            {"model":"m","prompt":[[1],[2]]}
                unsupported_parameter prompt: prompt is not supported: one prompt per request is served, got [[1],[2]]
            {"model":"m","prompt":[1,"a"]}
                invalid_type prompt[1]: prompt[1] must be an integer from 0 to 4294967295, got "a"
            {"model":"m","prompt":[1,"2"]}
                invalid_type prompt[1]: prompt[1] must be an integer from 0 to 4294967295, got "2"
            {"model":"m","prompt":[1,-1]}
                invalid_value prompt[1]: prompt[1] must be an integer from 0 to 4294967295, got -1
            {"model":"m","prompt":[4294967296]}
                invalid_value prompt[0]: prompt[0] must be an integer from 0 to 4294967295, got 4294967296
            {"model":"m","prompt":"a","best_of":2}
                unsupported_parameter best_of: best_of is not supported: one answer per request is served, got 2
            {"model":"m","prompt":"a","echo":true}
                unsupported_parameter echo: echo is not supported: the prompt is not repeated, got true
            {"model":"m","prompt":"a","suffix":"b"}
                unsupported_parameter suffix: suffix is not supported: text is only generated at the end, got "b"
            {"model":"m","prompt":"a","logprobs":null}
                accepted
            {"model":"m","prompt":"a","logprobs":20}
                accepted
            {"model":"m","prompt":"a","logprobs":21}
                invalid_value logprobs: logprobs must be an integer from 0 to 20, got 21
            {"model":"m","prompt":"a","logprobs":true}
                invalid_type logprobs: logprobs must be an integer from 0 to 20, got true
            {"model":"m","prompt":"a","logprobs":false}
                accepted
            {"model":"m","prompt":[1.0,2e0]}
                accepted
        "#]],
    );
}

#[test]
fn responses_takes_a_text_or_messages() {
    errors(
        Endpoint::Responses,
        &[
            r#"{"model":"m"}"#,
            r#"{"model":"m","input":7}"#,
            r#"{"model":"m","input":[]}"#,
            r#"{"model":"m","input":[{"type":"function_call_output"}]}"#,
            r#"{"model":"m","input":[{"role":"user","content":[{"type":"input_image"}]}]}"#,
            r#"{"model":"m","input":[{"role":"user","content":[{"type":"input_text","text":"x"}]}]}"#,
            r#"{"model":"m","input":"x","previous_response_id":"resp_1"}"#,
            r#"{"model":"m","input":"x","background":true,"stream":true}"#,
            r#"{"model":"m","input":"x","background":false,"store":true}"#,
            r#"{"model":"m","input":"x","text":{"format":{"type":"json_schema"}}}"#,
            r#"{"model":"m","input":"x","truncation":"auto"}"#,
            r#"{"model":"m","input":"x","metadata":{"a":1}}"#,
            r#"{"model":"m","input":"x","max_output_tokens":0}"#,
            r#"{"model":"m","input":"x","include":["reasoning.encrypted_content"]}"#,
            r#"{"model":"m","input":"x","include":["a","message.output_text.logprobs"]}"#,
            r#"{"model":"m","input":"x","include":["a",7]}"#,
            r#"{"model":"m","input":"x","include":["a"],"top_logprobs":1}"#,
            r#"{"model":"m","input":"x","include":["message.output_text.logprobs"],"top_logprobs":21}"#,
        ],
        &expect![[r#"
            {"model":"m"}
                missing_required_parameter input: input is required
            {"model":"m","input":7}
                invalid_type input: input must be a string or an array of messages, got 7
            {"model":"m","input":[]}
                invalid_value input: input must be a string or an array of at least one message, got []
            {"model":"m","input":[{"type":"function_call_output"}]}
                unsupported_parameter input[0].type: input[0].type is not supported: only message is, got "function_call_output"
            {"model":"m","input":[{"role":"user","content":[{"type":"input_image"}]}]}
                unsupported_parameter input[0].content[0].type: input[0].content[0].type is not supported: only parts of type input_text or output_text are, got "input_image"
            {"model":"m","input":[{"role":"user","content":[{"type":"input_text","text":"x"}]}]}
                accepted
            {"model":"m","input":"x","previous_response_id":"resp_1"}
                unsupported_parameter previous_response_id: previous_response_id is not supported: responses are not continued, got "resp_1"
            {"model":"m","input":"x","background":true,"stream":true}
                unsupported_parameter background: background is not supported: a response in the background is not streamed, got true
            {"model":"m","input":"x","background":false,"store":true}
                accepted
            {"model":"m","input":"x","text":{"format":{"type":"json_schema"}}}
                unsupported_parameter text.format.type: text.format.type is not supported: only text is, got "json_schema"
            {"model":"m","input":"x","truncation":"auto"}
                unsupported_parameter truncation: truncation is not supported: a prompt that does not fit is refused, not cut, got "auto"
            {"model":"m","input":"x","metadata":{"a":1}}
                invalid_type metadata.a: metadata.a must be a string, got 1
            {"model":"m","input":"x","max_output_tokens":0}
                invalid_value max_output_tokens: max_output_tokens must be an integer of at least 1, got 0
            {"model":"m","input":"x","include":["reasoning.encrypted_content"]}
                accepted
            {"model":"m","input":"x","include":["a","message.output_text.logprobs"]}
                accepted
            {"model":"m","input":"x","include":["a",7]}
                invalid_type include[1]: include[1] must be a string, got 7
            {"model":"m","input":"x","include":["a"],"top_logprobs":1}
                invalid_value top_logprobs: top_logprobs must be absent or 0 unless include has "message.output_text.logprobs", got 1
            {"model":"m","input":"x","include":["message.output_text.logprobs"],"top_logprobs":21}
                invalid_value top_logprobs: top_logprobs must be an integer from 0 to 20, got 21
        "#]],
    );
    let ask = parse(
        Endpoint::Responses,
        r#"{"model":"m","instructions":"be brief","input":[
            {"role":"user","content":"a"},
            {"type":"message","role":"assistant","content":[{"type":"output_text","text":"b"}]}]}"#,
    );
    let PromptInput::Chat { messages, .. } = ask.input else { panic!("messages become a chat") };
    let said: Vec<_> = messages.iter().map(|m| format!("{}: {}", m.role, m.content)).collect();
    assert_eq!(said, ["system: be brief", "user: a", "assistant: b"]);
}

#[test]
fn the_younger_name_for_max_tokens_wins() {
    let ask = parse(
        Endpoint::Chat,
        r#"{"model":"m","messages":[{"role":"user","content":"hi"}],
            "max_tokens":5,"max_completion_tokens":6}"#,
    );
    assert_eq!(
        ask.max_tokens,
        MaxTokens::Asked { param: "max_completion_tokens", tokens: 6, shown: "6".into() }
    );
}

#[test]
fn what_a_request_does_not_say_of_sampling_the_model_does() {
    let advice = SamplingDefaults {
        temperature: 0.2,
        top_p: 0.9,
        top_k: 40,
        min_p: 0.1,
        repetition_penalty: 1.1,
    };
    let sampling = |body: &str| {
        ApiRequest::parse(Endpoint::Completions, body.as_bytes())
            .expect("good")
            .sampling
            .or(&advice)
    };
    let silent = sampling(r#"{"model":"m","prompt":"x"}"#);
    assert_eq!((silent.temperature, silent.top_p, silent.top_k), (0.2, 0.9, 40));
    assert_eq!((silent.min_p, silent.penalties.repetition), (0.1, 1.1));
    let outspoken = sampling(
        r#"{"model":"m","prompt":"x","temperature":1,"top_p":1,"top_k":-1,"min_p":0,"repetition_penalty":1}"#,
    );
    assert_eq!((outspoken.temperature, outspoken.top_p, outspoken.top_k), (1.0, 1.0, 0));
    assert_eq!((outspoken.min_p, outspoken.penalties.repetition), (0.0, 1.0));
}

#[test]
fn a_seed_is_any_integer_but_the_one_that_says_random() {
    let seed = |value: &str| {
        let body = format!(r#"{{"model":"m","prompt":"x","seed":{value}}}"#);
        parse(Endpoint::Completions, &body).sampling.or(&SamplingDefaults::OPENAI).seed
    };
    assert_eq!((seed("7"), seed("7.0"), seed("0")), (Some(7), Some(7), Some(0)));
    assert_eq!(seed("-2"), Some(u64::MAX - 1));
    assert_eq!((seed("-1"), seed("-1.0"), seed("null")), (None, None, None));
}

#[test]
fn a_bias_is_the_same_as_an_object_and_as_pairs() {
    let biased = |value: &str| {
        let body = format!(r#"{{"model":"m","prompt":"x","logit_bias":{value}}}"#);
        parse(Endpoint::Completions, &body).sampling.or(&SamplingDefaults::OPENAI).logit_bias
    };
    assert_eq!(biased(r#"{"7":1.5,"8":-100}"#), biased("[[8,-100],[7,1.5]]"));
    assert_eq!(biased("[[8,-100],[7,1.5]]").len(), 2);
}

#[test]
fn a_repeat_penalty_is_a_repetition_penalty() {
    let penalty = |field: &str| {
        let body = format!(r#"{{"model":"m","prompt":"x",{field}}}"#);
        parse(Endpoint::Completions, &body).sampling.or(&SamplingDefaults::OPENAI).penalties
    };
    assert_eq!(penalty(r#""repeat_penalty":1.25"#), penalty(r#""repetition_penalty":1.25"#));
    assert_eq!(penalty(r#""repeat_penalty":1.25"#).repetition, 1.25);
}

#[test]
fn how_likely_tokens_were_is_asked_for_in_each_endpoints_own_words() {
    let asked = |endpoint, fields: &str| {
        let input = match endpoint {
            Endpoint::Chat => r#""messages":[{"role":"user","content":"x"}]"#,
            Endpoint::Completions => r#""prompt":"x""#,
            Endpoint::Responses => r#""input":"x""#,
        };
        parse(endpoint, &format!(r#"{{"model":"m",{input}{fields}}}"#)).logprobs
    };
    let included = r#","include":["message.output_text.logprobs"]"#;
    for endpoint in [Endpoint::Chat, Endpoint::Completions, Endpoint::Responses] {
        assert_eq!(asked(endpoint, ""), None);
    }
    assert_eq!(asked(Endpoint::Chat, r#","logprobs":true"#), Some(0));
    assert_eq!(asked(Endpoint::Chat, r#","logprobs":true,"top_logprobs":5"#), Some(5));
    assert_eq!(asked(Endpoint::Chat, r#","logprobs":false,"top_logprobs":0"#), None);
    assert_eq!(asked(Endpoint::Completions, r#","logprobs":0"#), Some(0));
    assert_eq!(asked(Endpoint::Completions, r#","logprobs":5"#), Some(5));
    assert_eq!(asked(Endpoint::Responses, included), Some(0));
    let both = format!(r#"{included},"top_logprobs":5"#);
    assert_eq!(asked(Endpoint::Responses, &both), Some(5));
}

#[test]
fn every_endpoint_takes_what_vllms_clients_say_of_the_end() {
    for (endpoint, input) in [
        (Endpoint::Chat, r#""messages":[{"role":"user","content":"x"}]"#),
        (Endpoint::Completions, r#""prompt":"x""#),
        (Endpoint::Responses, r#""input":"x""#),
    ] {
        let ask = |fields: &str| parse(endpoint, &format!(r#"{{"model":"m",{input}{fields}}}"#));
        let StopRules { ignore_eos, min_tokens, .. } = ask("").stop;
        assert_eq!((ignore_eos, min_tokens), (false, None));
        let StopRules { ignore_eos, min_tokens, .. } =
            ask(r#","ignore_eos":true,"min_tokens":7"#).stop;
        assert_eq!(
            (ignore_eos, min_tokens),
            (true, Some(MinTokens { tokens: 7, shown: "7".into() }))
        );
    }
}

/// As in llama.cpp and mlx_lm, where a window without a penalty, or of no tokens, penalizes nothing.
#[test]
fn a_window_turns_off_what_the_model_would_penalize_by_default() {
    let advice = SamplingDefaults { repetition_penalty: 1.05, ..SamplingDefaults::OPENAI };
    let repetition = |fields: &str| {
        let body = format!(r#"{{"model":"m","prompt":"x"{fields}}}"#);
        parse(Endpoint::Completions, &body).sampling.or(&advice).penalties.repetition
    };
    assert_eq!(repetition(""), 1.05);
    assert_eq!(repetition(r#","repeat_last_n":-1"#), 1.05);
    assert_eq!(repetition(r#","repeat_last_n":64"#), 1.0);
    assert_eq!(repetition(r#","repetition_context_size":20"#), 1.0);
    assert_eq!(repetition(r#","repeat_last_n":0,"repeat_penalty":1.3"#), 1.0);
}
