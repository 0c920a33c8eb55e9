mod limits;

use expect_test::{Expect, expect};

use super::*;

fn message(role: &str, content: &str) -> Message {
    Message { role: role.into(), content: content.into(), name: None }
}

fn render(template: &str, messages: &[Message]) -> Result<String, RenderError> {
    render_with(template, messages, &ChatOptions::default())
}

fn render_with(
    template: &str,
    messages: &[Message],
    options: &ChatOptions,
) -> Result<String, RenderError> {
    template_of(template).unwrap().render(messages, options, usize::MAX, usize::MAX)
}

/// A template of a model with two special tokens.
fn template_of(source: &str) -> Result<ChatTemplate, TextError> {
    let special_tokens = serde_json::json!({"bos_token": "<s>", "eos_token": "</s>"});
    ChatTemplate::new(source, special_tokens.as_object().unwrap())
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

/// What Jinja2 makes of each; minijinja alone makes something else, or nothing.
#[test]
fn values_print_as_python_prints_them() {
    let all = |cases: &[(&str, &str)]| {
        for (expression, expected) in cases {
            // Of literals alone minijinja makes what it likes, when it reads them.
            let literals = "{% set big, small, one, a = 1e16, 1e-5, 1, 'a' %}";
            let template = format!("{literals}{{{{ {expression} }}}}");
            let got = render(&template, &[message("user", "it's\u{a0}\u{7f}")]);
            assert_eq!(got.as_deref(), Ok(*expected), "{expression}");
        }
    };
    all(&[
        ("big ~ '|' ~ small ~ '|' ~ one * 123456.5", "1e+16|1e-05|123456.5"),
        ("[1e16, undefined, none, true, (1,)]", "[1e+16, Undefined, None, True, (1,)]"),
        ("[messages[0].content]", r#"["it's\xa0\x7f"]"#),
        ("namespace(a=1)", "<Namespace {'a': 1}>"),
        ("1e16 | upper", "1E+16"),
        ("'a%sb%5.1f%%' % ('x', 2) ~ '%s' % 3", "axb  2.0%3"),
        ("'%(a)r' % {'a': 'x'}", "'x'"),
        ("\"it's\" | e", "it&#39;s"),
        ("'\\/'", "\\/"),
    ]);
    // json.dumps
    all(&[
        (
            "{'b': 1, 'a': [1e16]} | tojson(separators=(',', ':'), sort_keys=true)",
            r#"{"a":[1e+16],"b":1}"#,
        ),
        ("'é🎉' | tojson(ensure_ascii=true)", r#""\u00e9\ud83c\udf89""#),
        ("[1] | tojson(false, 1)", "[\n 1\n]"),
        ("[1] | tojson(indent='>')", "[\n>1\n]"),
        ("{1: 1, none: 2, true: 3, 1.5: 4} | tojson", r#"{"1": 3, "null": 2, "1.5": 4}"#),
    ]);
    // str
    all(&[
        ("'a b c'.rsplit(' ', 1)", "['a b', 'c']"),
        ("'a b c'.split(maxsplit=1)", "['a', 'b c']"),
        ("'\u{1c} a \u{1f}'.strip() ~ '|' ~ '\u{1c}a' | trim", "a|a"),
        ("'a\u{b}b\u{1c}c\rd'.splitlines()", "['a', 'b', 'c', 'd']"),
        ("'x=1'.partition('=') ~ 'xyz'.removeprefix('x')", "('x', '=', '1')yz"),
        ("'they\\'re a-b' | title ~ '|' ~ 'they\\'re a-b'.title()", "They're A-B|They'Re A-B"),
        (
            "'ab'.center(5, '*') ~ 'ab'.zfill(4) ~ 'ab'.find('b', 1) ~ 'b'.isdecimal()",
            "**ab*00ab1False",
        ),
        ("'ß' | capitalize ~ 'abc'.startswith(('x', 'a'))", "SsTrue"),
    ]);
    // Filters and tests.
    all(&[
        (
            "'x' | int ~ '|' ~ '0x1f' | int(base=16) ~ '|' ~ [] | int(7) ~ '|' ~ 'y' | float",
            "0|31|7|0.0",
        ),
        ("'' | d('D', boolean=true) ~ none | default('x')", "DNone"),
        ("'a\nb' | indent('> ', first=true)", "> a\n> b"),
        ("3 | round(1, 'floor') ~ '|' ~ 2.5 | round ~ '|' ~ true | round", "3.0|2.0|1"),
        ("'Hello you all' | truncate(7) ~ 'a b' | wordcount ~ 'a b' | urlencode", "Hell...2a%20b"),
        (
            "none is iterable ~ 'a' is sequence ~ {} is sequence ~ true is number",
            "FalseTrueTrueTrue",
        ),
        (
            "raise_exception is callable ~ 'a' is callable ~ namespace() is mapping",
            "TrueFalseFalse",
        ),
        ("{'items': 1}.items is defined ~ {'items': 1}['items']", "True1"),
    ]);
}

#[test]
fn what_python_raises_for_is_an_error() {
    for template in [
        "{% for x in none %}{% endfor %}",
        "{{ none | list }}",
        "{{ none | join }}",
        "{{ bos_token < 1 }}",
        "{{ undefined < 1 }}",
        "{{ tools > 1 }}",
        "{{ 1 < 2 < bos_token }}",
        "{{ 1 in bos_token }}",
        "{{ 'a' in tools }}",
        "{{ messages in {} }}",
        "{{ bos_token * 2.0 }}",
        "{{ bos_token % 1 }}",
        "{{ '%d' % bos_token }}",
        "{{ undefined | tojson }}",
        "{{ 1 | indent }}",
        "{{ 'a' is odd }}",
        "{{ none[1:] }}",
        "{{ 'a'.startswith(['a']) }}",
        "{{ '-'.join([1]) }}",
        "{{ 'a' | bool }}",
        "{{ 'a' | lines }}",
    ] {
        let got = render(template, &[]);
        assert!(matches!(got, Err(RenderError::Template(_))), "{template}: {got:?}");
    }
}

#[test]
fn a_templates_text_is_read_as_jinja2_reads_it() {
    for (template, expected) in [
        ("a\r\n{% if true %}\r\nb\r\n{% endif %}\rc\r\n", "a\nb\nc"),
        ("{% raw %}\n{{ x }}\n{% endraw %}\nb", "\n{{ x }}\nb"),
        ("{# {% raw %} #}{% raw -%}\n {% x %}{% endraw %}{{ '{% raw %}' }}", "{% x %}{% raw %}"),
        ("{%generation%}x{%endgeneration%}", "x"),
        ("{%-  generation  -%} x {%- endgeneration -%} y", "xy"),
        ("{% set x = 0 %}{% generation %}{% set x = 1 %}{{ x }}{% endgeneration %}{{ x }}", "10"),
        ("{{ '{% generation %}' }}{% set generation = 1 %}{{ generation }}", "{% generation %}1"),
    ] {
        assert_eq!(render(template, &[]).as_deref(), Ok(expected), "{template}");
    }
}
