use expect_test::{Expect, expect};

use super::*;

fn refused(json: &str, expected: Expect) {
    expected.assert_eq(&TemplateVariables::parse(json).unwrap_err().to_string());
}

#[test]
fn what_is_no_object_or_beyond_its_bounds_is_refused_with_them() {
    refused("[1]", expect!["an object"]);
    refused(r#""x""#, expect!["an object"]);
    let nested = |levels: usize| format!(r#"{{"a":{}{}}}"#, "[".repeat(levels), "]".repeat(levels));
    refused(&nested(16), expect!["nested at most 16 levels deep"]);
    assert!(TemplateVariables::parse(&nested(15)).is_ok());
    let brackets = format!(r#"{{"a":"{}\"[[["}}"#, "[{".repeat(99));
    assert!(TemplateVariables::parse(&brackets).is_ok(), "those in a text nest nothing");
    let long = |bytes: usize| format!(r#"{{"a":"{}"}}"#, "x".repeat(bytes - 8));
    refused(&long(65537), expect!["at most 65536 bytes long"]);
    assert!(TemplateVariables::parse(&long(65536)).is_ok());
    refused(
        r#"{"a":1e999}"#,
        expect![
            "made of numbers and texts that can be represented: number out of range at line 1 column 10"
        ],
    );
}

#[test]
fn names_that_are_not_the_clients_are_refused_with_the_reason() {
    refused(
        r#"{"messages":[]}"#,
        expect!["without messages: the messages are a field of the request"],
    );
    refused(r#"{"tools":[]}"#, expect!["without tools: tool calls are not served"]);
    refused(
        r#"{"enable_thinking":true,"eos_token":"x"}"#,
        expect!["without eos_token: special tokens are the model's own"],
    );
    refused(
        r#"{"namespace":1}"#,
        expect!["without namespace: it is a function that templates call"],
    );
    refused(
        r#"{"chat_template":"x"}"#,
        expect!["without chat_template: the template is the model's own"],
    );
    refused(
        r#"{"add_generation_prompt":false}"#,
        expect!["without add_generation_prompt: it is a field of the request itself"],
    );
}
