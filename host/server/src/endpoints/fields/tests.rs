//! The table, and that the parser does what it says.

use std::collections::BTreeSet;

use interlock_request::Endpoint;

use super::harmless::NOTHING;
use super::{
    BODY, CHAT, COMPLETIONS, EndpointSet, FieldRow, FieldRule, FieldTable, RESPONSES, TABLES,
};
use crate::endpoints::ApiRequest;
use crate::failure::InvalidRequest;

const ENDPOINTS: [(EndpointSet, Endpoint, &str); 3] = [
    (CHAT, Endpoint::Chat, r#""messages":[{"role":"user","content":"x"}]"#),
    (COMPLETIONS, Endpoint::Completions, r#""prompt":"x""#),
    (RESPONSES, Endpoint::Responses, r#""input":"x""#),
];

/// A value that no field takes.
const NONSENSE: &str = r#"[[["?"]]]"#;

/// What becomes of a good request with one more field in its body. What it had of that name counts
/// less, since it comes first.
fn with_field(endpoint: Endpoint, field: &str) -> Result<ApiRequest, InvalidRequest> {
    let (_, _, input) = ENDPOINTS[ENDPOINTS.iter().position(|one| one.1 == endpoint).unwrap()];
    ApiRequest::parse(endpoint, format!(r#"{{"model":"m",{input},{field}}}"#).as_bytes())
}

/// Each row of the body's table at each of its endpoints.
fn each_row() -> impl Iterator<Item = (FieldRow, Endpoint)> {
    BODY.rows().flat_map(|row| {
        let at = ENDPOINTS.iter().filter(move |(bit, ..)| row.endpoints & bit != 0);
        at.map(move |(_, endpoint, _)| (row, *endpoint))
    })
}

#[test]
fn no_table_has_a_field_twice_for_one_endpoint() {
    for table in TABLES {
        let mut seen = BTreeSet::new();
        for FieldRow { name, endpoints, .. } in table.rows() {
            for (bit, _, _) in ENDPOINTS.iter().filter(|(bit, ..)| endpoints & bit != 0) {
                assert!(seen.insert((name, *bit)), "{:?} has {name} twice", table.at);
            }
        }
    }
}

#[test]
fn an_alias_stands_for_a_field_that_is_honoured_at_the_same_endpoints() {
    for row in BODY.rows() {
        let FieldRule::Alias(of) = row.fate else { continue };
        let honoured = BODY
            .rows()
            .filter(|row| row.name == of && matches!(row.fate, FieldRule::Honoured(_)))
            .fold(0, |all, row| all | row.endpoints);
        assert_eq!(row.endpoints & !honoured, 0, "{} is an alias of {of}", row.name);
    }
}

/// A field that the table calls honoured and nobody reads would take anything.
#[test]
fn every_honoured_field_is_read_and_complains_of_nonsense_by_its_own_name() {
    let mut read = 0;
    for (row, endpoint) in each_row() {
        if !matches!(row.fate, FieldRule::Honoured(_) | FieldRule::Alias(_)) {
            continue;
        }
        let (streaming, name) = (r#""stream":true"#, row.name);
        let field = format!(r#"{streaming},"{name}":{NONSENSE}"#);
        let invalid = with_field(endpoint, &field).expect_err(name);
        let param = invalid.param.expect("a field");
        assert!(param.starts_with(name), "{endpoint:?}: {name} was called {param}");
        read += 1;
    }
    assert!(read > 60, "{read}");
}

#[test]
fn every_refused_field_is_named_unless_it_asks_for_nothing() {
    let mut refused = 0;
    for (row, endpoint) in each_row() {
        let (name, FieldRule::Refused { why, harmless }) = (row.name, row.fate) else { continue };
        let invalid = with_field(endpoint, &format!(r#""{name}":{NONSENSE}"#)).expect_err(name);
        assert_eq!((invalid.param.as_deref(), invalid.code), (Some(name), "unsupported_parameter"));
        assert_eq!(
            invalid.message,
            format!("{name} is not supported: {why}, got {NONSENSE}"),
            "{endpoint:?}"
        );
        for value in harmless.iter().chain(&["null"]) {
            let asked = with_field(endpoint, &format!(r#""{name}":{value}"#));
            let asked = asked.unwrap_or_else(|why| panic!("{endpoint:?} {name}: {value}: {why}"));
            assert_eq!(asked.unknown.listed(), None);
        }
        refused += 1;
    }
    assert!(refused > 200, "{refused}");
}

#[test]
fn an_ignored_field_may_say_anything_and_changes_nothing() {
    let mut ignored = 0;
    for (row, endpoint) in each_row() {
        let (name, FieldRule::Ignored(_)) = (row.name, row.fate) else { continue };
        let without = with_field(endpoint, r#""user":null"#);
        assert_eq!(with_field(endpoint, &format!(r#""{name}":{NONSENSE}"#)), without, "{name}");
        ignored += 1;
    }
    assert!(ignored > 100, "{ignored}");
}

/// What clients send that write out a whole type with its defaults.
#[test]
fn what_asks_for_nothing_may_be_written_in_any_way() {
    for field in [
        r#""n":1.0"#,
        r#""n":"1""#,
        r#""echo":0"#,
        r#""echo":"No""#,
        r#""skip_special_tokens":1"#,
        r#""typical_p":1e0"#,
        r#""guided_choice":[ ]"#,
        r#""tool_choice":"\u006eone""#,
        r#""structured_outputs":{"json":null,"regex":"","choice":[],"json_object":false}"#,
        r#""reasoning":{"effort":null,"summary":null}"#,
        r#""tools":[],"parallel_tool_calls":true,"tool_choice":"auto""#,
        r#""dry_multiplier":0,"dry_base":1.75,"dry_sequence_breakers":["\n",":"]"#,
        r#""repeat_last_n":64,"repeat_penalty":1.0,"presence_penalty":0,"frequency_penalty":0"#,
        r#""repetition_penalty":1.1,"repeat_last_n":-1"#,
    ] {
        for (_, endpoint, _) in ENDPOINTS {
            let asked = with_field(endpoint, field);
            assert_eq!(asked.err().map(|why| why.message), None, "{endpoint:?} {field}");
        }
    }
}

#[test]
fn what_asks_for_something_is_refused_however_little_it_says() {
    for (field, name) in [
        // Any JSON, which is less than any text.
        (r#""json_schema":{}"#, "json_schema"),
        (r#""guided_json":{}"#, "guided_json"),
        (r#""structured_outputs":{"json":{}}"#, "structured_outputs"),
        (r#""structured_outputs":{"json":{"type":"object"}}"#, "structured_outputs"),
        // No JSON at all, which no text is.
        (r#""structured_outputs":{"json":false}"#, "structured_outputs"),
        (r#""structured_outputs":{"json":true}"#, "structured_outputs"),
        (r#""structured_outputs":{"regex":null,"structural_tag":[]}"#, "structured_outputs"),
        (r#""guided_json":false"#, "guided_json"),
        (r#""guided_regex":"0""#, "guided_regex"),
        // A search with the defaults.
        (r#""web_search_options":{}"#, "web_search_options"),
        // The log probabilities of the prompt, without alternatives.
        (r#""prompt_logprobs":0"#, "prompt_logprobs"),
        // No token at all.
        (r#""allowed_token_ids":[]"#, "allowed_token_ids"),
        (r#""repeat_penalty":1.1,"repeat_last_n":64"#, "repeat_last_n"),
        (r#""presence_penalty":1,"presence_context_size":20"#, "presence_context_size"),
        (r#""echo":true"#, "echo"),
        (r#""skip_special_tokens":false"#, "skip_special_tokens"),
    ] {
        for (_, endpoint, _) in ENDPOINTS {
            let invalid = with_field(endpoint, field).expect_err(field);
            assert_eq!(
                (invalid.param.as_deref(), invalid.code),
                (Some(name), "unsupported_parameter")
            );
        }
    }
}

#[test]
fn fields_inside_of_objects_are_sorted_as_those_of_the_body_are() {
    let told = |endpoint, field| match with_field(endpoint, field) {
        Ok(asked) => asked.unknown.listed().unwrap_or_default(),
        Err(invalid) => invalid.message,
    };
    let chat = |field| told(Endpoint::Chat, field);
    assert_eq!(
        chat(r#""stream":true,"stream_options":{"include_usage":true,"new":1}"#),
        "stream_options.new"
    );
    assert_eq!(
        chat(r#""stream":true,"stream_options":{"continuous_usage_stats":true}"#),
        "",
        "it is about figures beside the answer"
    );
    assert_eq!(
        chat(r#""response_format":{"type":"text","json_schema":{"name":"x"}}"#),
        "response_format.json_schema is not supported: structured output is not served, got \
         {\"name\":\"x\"}"
    );
    let messages = r#""messages":[{"role":"user","content":"x","mood":1},
        {"role":"user","content":[{"type":"text","text":"x","size":2}],"mood":3}]"#;
    assert_eq!(chat(messages), "messages[].mood, messages[].content[].size");
    let replayed = r#""messages":[{"role":"user","content":"x"},{"role":"assistant","content":"y",
        "refusal":null,"annotations":[],"audio":null,"function_call":null,"tool_calls":null,
        "reasoning_content":"z"}]"#;
    assert_eq!(chat(replayed), "");
    let responses = |field| told(Endpoint::Responses, field);
    assert_eq!(
        responses(r#""text":{"verbosity":"low"}"#),
        "text.verbosity is not supported: how long a model talks is not controlled here, got \"low\""
    );
    let output = r#""input":[{"id":"msg_1","type":"message","status":"completed",
        "role":"assistant","content":[{"type":"output_text","text":"y","annotations":[],
        "logprobs":[]}]}]"#;
    assert_eq!(responses(output), "");
}

#[test]
fn of_a_field_that_nobody_knows_the_name_is_kept() {
    for (_, endpoint, _) in ENDPOINTS {
        let asked = with_field(endpoint, r#""frobnicate":{"deep":1},"temperature":1"#).unwrap();
        assert_eq!(asked.unknown.listed().as_deref(), Some("frobnicate"), "{endpoint:?}");
    }
}

#[test]
fn names_that_are_kept_are_few_short_and_printable() {
    let fields: Vec<_> = (0..40).map(|n| format!(r#""f{n:02}":0"#)).collect();
    let listed = with_field(Endpoint::Chat, &fields.join(",")).unwrap().unknown.listed().unwrap();
    assert_eq!(listed.split(", ").count(), 17, "{listed}");
    assert!(listed.ends_with("f15, ..."), "{listed}");
    for name in [r"a b", r"a,b", r"\r\nx-evil: 1", "\u{e4}", "", &"x".repeat(65)] {
        let asked = with_field(Endpoint::Chat, &format!(r#""{name}":0,"ok":0"#)).unwrap();
        assert_eq!(asked.unknown.listed().as_deref(), Some("ok, ..."), "{name:?}");
    }
}

#[test]
fn of_several_names_for_one_limit_the_first_of_the_table_counts() {
    let asked = |field| with_field(Endpoint::Chat, field).unwrap().tokens_asked();
    assert_eq!(asked(r#""max_tokens":1,"max_output_tokens":2"#), Some(2));
    assert_eq!(asked(r#""max_output_tokens":2,"max_completion_tokens":3"#), Some(3));
    assert_eq!(asked(r#""max_completion_tokens":3,"n_predict":4"#), Some(4));
    assert_eq!(asked(r#""max_completion_tokens":null,"max_tokens":1"#), Some(1));
    assert_eq!(asked(r#""n_predict":-1,"max_tokens":5"#), None);
}

#[test]
fn every_row_says_whose_clients_send_it_and_why_it_becomes_what_it_does() {
    for (table, row) in TABLES.iter().flat_map(|table: &&FieldTable| {
        let table = *table;
        table.rows().map(move |row| (table.at, row))
    }) {
        assert_ne!((row.endpoints, row.servers), (0, 0), "{table} {}", row.name);
        if let FieldRule::Ignored(why) | FieldRule::Refused { why, .. } = row.fate {
            assert!(!why.is_empty(), "{table} {}", row.name);
        }
        if let FieldRule::Refused { harmless, .. } = row.fate {
            let bad =
                harmless.iter().find(|one| serde_json::from_str::<serde_json::Value>(one).is_err());
            assert_eq!(bad, None, "{table} {}: not JSON", row.name);
        }
    }
    assert!(NOTHING.contains(&"{}"), "the page calls it empty");
}
