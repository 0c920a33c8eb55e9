use expect_test::{Expect, expect};

use super::*;

fn message(role: &str, content: &str) -> Message {
    Message { role: role.into(), content: content.into(), name: None }
}

fn render(template: &str, messages: &[Message]) -> Result<String, RenderError> {
    ChatTemplate::new(template, "<s>".into(), "</s>".into()).unwrap().render(
        messages,
        usize::MAX,
        usize::MAX,
    )
}

fn check(template: &str, messages: &[Message], expected: Expect) {
    expected.assert_eq(&match render(template, messages) {
        Ok(text) => text,
        Err(error) => format!("{error:?}"),
    });
}

/// As SmolLM2's file has it.
const SMOLLM2: &str = "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

#[test]
fn a_chat_is_rendered_with_the_prompt_for_its_answer() {
    check(
        SMOLLM2,
        &[message("user", "Hi <b>&'\"")],
        expect![[r#"
        <|im_start|>system
        You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>
        <|im_start|>user
        Hi <b>&'"<|im_end|>
        <|im_start|>assistant
    "#]],
    );
}

#[test]
fn blocks_leave_no_lines_behind() {
    check(
        "{{ bos_token }}
        {% for m in messages %}
            {% generation %}
[{{ m.role }}] {{ m.content | trim }}{{ eos_token }}
            {%- endgeneration %}
        {% endfor %}
",
        &[message("user", " a "), message("assistant", "b\n")],
        expect![[r#"
            <s>
            [user] a</s>[assistant] b</s>"#]],
    );
}

#[test]
fn what_templates_expect_of_python_is_there() {
    check(
        "{% set ns = namespace(n=0) %}
{% for m in messages[::-1] %}{% if m.content.startswith('x') %}{% continue %}{% endif %}
{% set ns.n = ns.n + 1 %}{{ loop.index0 }}:{{ m.content.split('|')[-1].strip().upper() }} {% endfor %}
{{ ns.n }} {{ tools is none }} {{ m is defined }} {{ messages[0].name is defined }} {{ messages[0].get('role') }}
{% for key, value in messages[0].items() %}{{ key }}={{ value }};{% endfor %}",
        &[message("user", "a| b "), message("user", "xx"), message("tool", "c")],
        expect![[r#"
            0:C 2:B 2 True False False user
            role=user;content=a| b ;"#]],
    );
}

#[test]
fn json_is_pythons_and_not_for_html() {
    check(
        "{{ messages[0] | tojson }} {{ {'a': [1, 2.5, true, none, {}], 'b': []} | tojson(indent=2) }}",
        &[message("user", "<é>\"\n")],
        expect![[r#"
            {"role": "user", "content": "<é>\"\n"} {
              "a": [
                1,
                2.5,
                true,
                null,
                {}
              ],
              "b": []
            }"#]],
    );
}

#[test]
fn a_name_is_there_if_the_client_sent_one() {
    let named = Message { name: Some("Ada".into()), ..message("user", "") };
    check(
        "{{ messages[0].name }}{{ messages[1].name }}",
        &[named, message("user", "")],
        expect!["Ada"],
    );
}

#[test]
fn the_date_is_one_a_clock_would_show() {
    check("{{ strftime_now('%Y') | int >= 2026 }}", &[], expect!["True"]);
}

#[test]
fn a_refusal_is_the_templates_own_words_even_from_a_macro() {
    check(
        "{% macro no() %}{{ raise_exception('roles must alternate') }}{% endmacro %}{{ no() }}",
        &[],
        expect![[r#"Refused("roles must alternate")"#]],
    );
}

#[test]
fn a_template_that_fails_says_where() {
    check(
        "{{ messages[0].content.nope() }}",
        &[message("user", "secret")],
        expect![[
            r#"Template("unknown method: string has no method named nope (in chat_template:1)")"#
        ]],
    );
    check(
        "{% include 'other' %}",
        &[],
        expect![[
            r#"Template("template not found: tried to include non-existing template 'other' (in chat_template:1)")"#
        ]],
    );
}

/// Each would take forever, or all memory, without a bound. With 1 MB to work on. What the
/// budget does not stop is in the head comment of `chat.rs`; a test of that would not return.
#[test]
fn a_hostile_template_comes_to_an_end() {
    let long = [message("user", &"a".repeat(1 << 20))];
    let costly = Err(RenderError::TooCostly(RenderLimit::Steps(FUEL)));
    let forever = |body: &str| {
        format!(
            "{{% for i in range(99999) %}}{{% for j in range(99999) %}}{body}{{% endfor %}}{{% endfor %}}"
        )
    };
    for body in [
        "",
        "{{ messages[0].content }}",
        "{% set x = messages[0].content.find('b') %}",
        "{% set x = messages[0].content.replace('a', 'aa') %}",
        "{% set x = 'b' in messages[0].content %}",
        "{% set x = messages[0].content == messages[0].content ~ 'b' %}",
        "{% set x = messages[0].content | tojson | length %}",
        "{% set x = messages[0].content * 1000 %}",
        "{% set x = messages | map(attribute='content') | join | length %}",
    ] {
        assert_eq!(render(&forever(body), &long), costly, "{body}");
    }
    let doubling = "{% set ns = namespace(x='ab') %}{% for i in range(99) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}";
    assert_eq!(render(doubling, &[]), costly);
    // Short to hold, 2^99 items to write.
    let laughs = "{% set ns = namespace(x=[1]) %}{% for i in range(50) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x | tojson }}";
    assert_eq!(render(laughs, &[]), costly);
    let deep = "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}";
    assert!(matches!(render(deep, &[]), Err(RenderError::Template(_))));
    let nested = "{% set ns = namespace(x=[1]) %}{% for i in range(99) %}{% set ns.x = [ns.x] %}{% endfor %}{{ ns.x | tojson }}";
    assert!(matches!(render(nested, &[]), Err(RenderError::Template(_))));
}

#[test]
fn a_long_chat_stays_within_the_budget() {
    let many: Vec<_> = (0..5000).map(|_| message("user", "a few words of a message")).collect();
    assert!(render(SMOLLM2, &many).is_ok());
    assert!(render(SMOLLM2, &[message("user", &"a".repeat(8 << 20))]).is_ok());
}
