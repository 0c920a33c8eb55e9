//! The page that says what becomes of each field.

use std::fmt::Write;

use super::harmless::NOTHING;
use super::{
    BODY, CHAT, COMPLETIONS, EndpointSet, FieldRow, FieldRule, FieldTable, LLAMA_CPP, MLX_LM,
    OLLAMA, OPENAI, RESPONSES, SGLANG, ServerSet, TABLES, VLLM,
};

const INTRODUCTION: &str = "\
# Request fields

What becomes of each field of a request to `/v1/chat/completions`, `/v1/completions` and
`/v1/responses`. The table has every field of OpenAI's API, of the OpenAI endpoints of vLLM,
llama.cpp's server, mlx_lm.server and Ollama, and some of SGLang's. This page is made from it, as are
the parser and the refusals: `UPDATE=1 cargo test -p interlock-server --test request_fields`.

- **Honoured**: it does what it says.
- **Ignored**: it changes nothing in an answer of this host.
- **Refused**: it would change the answer and is not served. The answer is a 400 of the code
  `unsupported_parameter` that names the field in `param`, unless the value asks for nothing: null
  always does, and so do those in the column *accepted*. *Empty* there is `\"\"`, `[]`, `{}`, `false`,
  or an object of nothing but these.
- **In no table**: it is ignored, and the answer's header `x-ignored-fields` names it, such as
  `x-ignored-fields: frobnicate, messages[].mood`. The header has at most 16 names of at most 64
  printable characters; `...` at its end stands for all others. The log has the same at level debug.

What clients write in several ways is read in all of them: an integer as `8` or `8.0`; a number also in
quotes (`\"0.5\"`), but not the ids of a prompt and of `logit_bias`, among which llama.cpp takes texts;
true and false also as `1` and `0`, and in quotes as these, `yes` and `no`, `on` and `off`, or their first
letters; null for a field that is absent; a `stop` that is empty for none; -1 for a random `seed`, for all
of `top_k` and for no limit of `max_tokens`. A number that is out of bounds is refused with the limit.
Paths may lack `/v1` or have slashes too many: `/chat/completions`, `/v1/models/`; `/health` and
`/v1/health` are `/health/ready`.
";

/// `docs/request-fields.md`.
pub fn request_fields_md() -> String {
    let mut page = INTRODUCTION.to_owned();
    write_sections(&mut page, &BODY);
    for table in TABLES.iter().filter(|table| !table.at.is_empty()) {
        let places: Vec<_> = table.at.split(", ").map(|place| format!("`{place}`")).collect();
        writeln!(page, "\n## Inside {}", places.join(" and ")).expect("a string");
        write_sections(&mut page, table);
    }
    page
}

fn write_sections(page: &mut String, table: &FieldTable) {
    let in_body = table.at.is_empty();
    for (title, columns, cells) in [
        ("Honoured", "note", honoured as fn(FieldRule) -> Option<String>),
        ("Ignored", "why", ignored),
        ("Refused", "accepted | why", refused),
    ] {
        let rows: Vec<_> = table.rows().filter_map(|row| Some((row, cells(row.fate)?))).collect();
        if rows.is_empty() {
            continue;
        }
        let level = if in_body { "##" } else { "###" };
        let rules = " --- |".repeat(3 + columns.split('|').count());
        writeln!(page, "\n{level} {title}\n").expect("a string");
        writeln!(page, "| field | endpoints | clients of | {columns} |\n|{rules}")
            .expect("a string");
        for (row, cells) in rows {
            let FieldRow { name, endpoints, servers, .. } = row;
            let (endpoints, servers) = (spelled_endpoints(endpoints), spelled_servers(servers));
            writeln!(page, "| `{name}` | {endpoints} | {servers} | {cells} |").expect("a string");
        }
    }
}

fn honoured(fate: FieldRule) -> Option<String> {
    match fate {
        FieldRule::Honoured(note) => Some(note.to_owned()),
        FieldRule::Alias(of) => Some(format!("the same as `{of}`")),
        FieldRule::Ignored(_) | FieldRule::Refused { .. } => None,
    }
}

fn ignored(fate: FieldRule) -> Option<String> {
    match fate {
        FieldRule::Ignored(why) => Some(why.to_owned()),
        _ => None,
    }
}

fn refused(fate: FieldRule) -> Option<String> {
    match fate {
        FieldRule::Refused { why, harmless } => {
            Some(format!("{} | {why}", spelled_values(harmless)))
        }
        _ => None,
    }
}

fn spelled_values(harmless: &[&str]) -> String {
    if harmless == NOTHING {
        return "empty".into();
    }
    let values: Vec<_> = harmless.iter().map(|value| format!("`{value}`")).collect();
    values.join(", ")
}

fn spelled_endpoints(endpoints: EndpointSet) -> String {
    let names = [(CHAT, "chat"), (COMPLETIONS, "completions"), (RESPONSES, "responses")];
    spelled(endpoints, &names)
}

fn spelled_servers(servers: ServerSet) -> String {
    let names = [
        (OPENAI, "OpenAI"),
        (VLLM, "vLLM"),
        (LLAMA_CPP, "llama.cpp"),
        (MLX_LM, "mlx_lm"),
        (OLLAMA, "Ollama"),
        (SGLANG, "SGLang"),
    ];
    spelled(servers, &names)
}

fn spelled(set: u8, names: &[(u8, &str)]) -> String {
    let members = names.iter().filter(|(bit, _)| set & bit != 0).map(|(_, name)| *name);
    let members: Vec<_> = members.collect();
    if members.len() == names.len() { "all".into() } else { members.join(", ") }
}
