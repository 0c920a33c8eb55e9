//! What is expected here is what `render_jinja_template` of transformers 4.57 gives.

use expect_test::{Expect, expect};

use crate::chat::{ChatOptions, ChatTemplate, PromptEnd, TemplateVariables};
use crate::{Message, RenderError};

/// As SmolLM2's file has it, without the system message that it adds.
const CHATML: &str = "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";
/// As Llama 3's file does it: messages are trimmed.
const TRIMMING: &str = "{{ bos_token }}{% for m in messages %}{{ '<|' + m['role'] + '|>\n\n' + m['content'] | trim + '<|eot_id|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n\n' }}{% endif %}";
/// The end of Qwen3's file.
const THINKING: &str = "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}
{%- if add_generation_prompt %}
    {{- 'assistant:' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\n\n</think>\n\n' }}
    {%- endif %}
{%- endif %}";

fn rendered(
    template: &str,
    messages: &[(&str, &str)],
    options: &ChatOptions,
) -> Result<String, RenderError> {
    let message = |&(role, content): &(&str, &str)| Message {
        role: role.into(),
        content: content.into(),
        name: None,
    };
    let messages: Vec<Message> = messages.iter().map(message).collect();
    let special_tokens = serde_json::json!({"bos_token": "<s>"});
    let template = ChatTemplate::new(template, special_tokens.as_object().unwrap()).unwrap();
    template.render(&messages, options, usize::MAX, usize::MAX)
}

fn continued(template: &str, content: &str, expected: Expect) {
    let options = ChatOptions { end: PromptEnd::WithinLastMessage, ..ChatOptions::default() };
    let rendered = rendered(template, &[("user", "Hi"), ("assistant", content)], &options);
    expected.assert_eq(&format!("{rendered:?}"));
}

#[test]
fn a_continued_message_is_where_the_prompt_ends() {
    let chatml = |content: &str, expected| continued(CHATML, content, expected);
    chatml(
        "The capital is",
        expect![[r#"Ok("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nThe capital is")"#]],
    );
    chatml(
        "  The capital is \n",
        expect![[
            r#"Ok("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n  The capital is \n")"#
        ]],
    );
    chatml("", expect![[r#"Ok("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")"#]]);
    // Its text is in another message as well.
    chatml("Hi", expect![[r#"Ok("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHi")"#]]);
}

#[test]
fn a_continued_message_that_a_template_trims_ends_without_space() {
    let trimming = |content: &str, expected| continued(TRIMMING, content, expected);
    trimming(
        "The capital is",
        expect![[r#"Ok("<s><|user|>\n\nHi<|eot_id|><|assistant|>\n\nThe capital is")"#]],
    );
    trimming(
        " The capital is \n",
        expect![[r#"Ok("<s><|user|>\n\nHi<|eot_id|><|assistant|>\n\nThe capital is")"#]],
    );
    trimming(" ", expect![[r#"Ok("<s><|user|>\n\nHi<|eot_id|><|assistant|>")"#]]);
}

#[test]
fn a_message_that_the_template_leaves_out_changes_or_repeats_is_not_continued() {
    for template in [
        "{% for m in messages[:-1] %}{{ m.content }}{% endfor %}",
        "{{ messages[-1].content | upper }}",
        "{{ messages[-1].content }} in short: {{ messages[-1].content }}",
        "{{ messages[-1].content | length }}",
    ] {
        continued(template, "The capital is", expect!["Err(NotContinued)"]);
    }
}

#[test]
fn a_prompt_ends_behind_the_last_message_where_no_answer_is_to_begin() {
    let options = ChatOptions { end: PromptEnd::LastMessage, ..ChatOptions::default() };
    assert_eq!(
        rendered(CHATML, &[("user", "Hi")], &options).unwrap(),
        "<|im_start|>user\nHi<|im_end|>\n"
    );
}

fn with(json: &str) -> ChatOptions {
    let variables = TemplateVariables::parse(json).unwrap();
    ChatOptions { variables, ..ChatOptions::default() }
}

#[test]
fn a_template_sees_the_clients_variables() {
    let rendered = |json: &str| rendered(THINKING, &[("user", "Hi")], &with(json)).unwrap();
    assert_eq!(rendered("{}"), "user: Hi\nassistant:");
    assert_eq!(rendered(r#"{"enable_thinking":true}"#), "user: Hi\nassistant:");
    assert_eq!(
        rendered(r#"{"enable_thinking":false}"#),
        "user: Hi\nassistant:<think>\n\n</think>\n\n"
    );
}

#[test]
fn variables_are_what_json_says() {
    let template = "{{ b }} {{ d | tojson }} {% for k, v in d.items() %}{{ k }}={{ v }};{% endfor %}{{ n is none }} {{ f }} {{ i }} {{ documents[0].title }} {{ other is defined }}";
    let options = with(
        r#"{"b":true,"d":{"z":[1,"é",null],"a":{"x":1.5}},"n":null,"f":2.0,
            "i":18446744073709551615,"documents":[{"title":"Paris"}]}"#,
    );
    expect![[r#"True {"z": [1, "é", null], "a": {"x": 1.5}} z=[1, 'é', None];a={'x': 1.5};True 2.0 18446744073709551615 Paris False"#]]
        .assert_eq(&rendered(template, &[], &options).unwrap());
}

#[test]
fn a_special_token_that_the_model_does_not_name_is_undefined() {
    let template = "{{ bos_token }}[{{ eos_token }}]{{ eos_token is defined }}";
    assert_eq!(rendered(template, &[], &ChatOptions::default()).unwrap(), "<s>[]False");
}

#[test]
fn variables_that_nest_as_deep_as_they_may_cost_what_is_in_them() {
    // In a list, which is in the object.
    let nested = format!("{}{}", "[".repeat(14), "]".repeat(14));
    let options = with(&format!(r#"{{"x":[{}]}}"#, vec![nested; 2000].join(",")));
    for look in ["x", "x == x", "x < x", "x | tojson", "x ~ ''", "x | string", "x | unique | list"]
    {
        let look = format!("{{% set y = {look} %}}{{{{ y }}}}");
        let often = format!("{{% for i in range(1999) %}}{look}{{% endfor %}}");
        let refused = rendered(&often, &[], &options).unwrap_err();
        assert!(matches!(refused, RenderError::TooCostly(_)), "{look}: {refused:?}");
    }
}
