//! Templates that packages ship, rendered here and by Jinja2: the same, byte for byte.
//!
//! `make templates` fetches the packages and asks Jinja2; see `tests/templates/judge.py`.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value as Json;

use super::*;

/// Renders that differ, and why that stays so for now. Each must differ.
const EXCEPTIONS: [(&str, &str, &str); 6] = [
    (
        "ai-sage-GigaChat3.1-Audio-10B-A1.8B",
        "tools",
        "calls dict.from_keys, which only seems to be there",
    ),
    ("ai-sage-GigaChat3.1-Audio-10B-A1.8B", "tool call", "the same"),
    ("llama-cpp-deepseek-r1", "tools", "writes a generator as JSON, an error that nobody misses"),
    ("llama-cpp-deepseek-r1", "tool call", "the same"),
    ("meetkai-functionary-medium-v3.1", "tools", "marks texts as safe, so that HTML is escaped"),
    ("meetkai-functionary-medium-v3.1", "tool call", "the same"),
];

fn judged() -> Json {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/templates/judged.json");
    let text = std::fs::read_to_string(&path);
    let text =
        text.unwrap_or_else(|error| panic!("{}: {error}: run make templates", path.display()));
    serde_json::from_str(&text).unwrap()
}

/// A template as the judge had it, with the judge's clock.
fn template(source: &str) -> Result<ChatTemplate, TextError> {
    const NOW: u64 = 1_795_878_245;

    let mut template = ChatTemplate::new(source, &serde_json::Map::new())?;
    template
        .environment
        .add_function("strftime_now", |format: String| python::strftime(&format, NOW));
    Ok(template)
}

/// What came of it, in the judge's words. What an error says is each one's own.
fn outcome(template: &Result<ChatTemplate, TextError>, variables: &Json) -> Json {
    match template.as_ref().map(|template| template.run(options::from_json(variables.clone()))) {
        Ok(Ok(text)) => serde_json::json!({ "text": text }),
        Ok(Err(RenderError::Refused(message))) => serde_json::json!({ "refused": message }),
        Ok(Err(_)) | Err(_) => serde_json::json!({ "error": null }),
    }
}

/// How two renders differ, from the first letter that does.
fn difference(expected: &Json, got: &Json) -> String {
    let [expected, got] = [expected, got].map(|json| json.to_string().chars().collect::<Vec<_>>());
    let same = expected.iter().zip(&got).take_while(|(one, other)| one == other).count();
    let part =
        |text: &[char]| text.iter().skip(same.saturating_sub(30)).take(90).collect::<String>();
    format!("\n    Jinja2: {}\n    here:   {}", part(&expected), part(&got))
}

#[test]
fn templates_that_packages_ship_give_what_jinja2_gives() {
    let judged = judged();
    let contexts = judged["contexts"].as_array().unwrap();
    let (mut table, mut wrong) = (BTreeMap::new(), Vec::new());
    let mut excepted = Vec::new();
    for shipped in judged["templates"].as_array().unwrap() {
        let [package, name] = ["package", "name"].map(|key| shipped[key].as_str().unwrap());
        let template = template(shipped["source"].as_str().unwrap());
        let row: &mut [usize; 3] = table.entry(package).or_default();
        row[0] += 1;
        for (context, expected) in contexts.iter().zip(shipped["outcomes"].as_array().unwrap()) {
            let got = outcome(&template, &context["variables"]);
            let context = context["name"].as_str().unwrap();
            let exception =
                EXCEPTIONS.iter().position(|known| (known.0, known.1) == (name, context));
            match (got == *expected, exception) {
                (true, None) => row[1] += 1,
                (false, Some(exception)) => excepted.push(exception),
                _ => {
                    row[2] += 1;
                    wrong.push(format!(
                        "{package}/{name}, {context}:{}",
                        difference(expected, &got)
                    ));
                }
            }
        }
    }
    eprintln!("package     templates    equal  different");
    for (package, [templates, equal, different]) in &table {
        eprintln!("{package:10} {templates:10} {equal:8} {different:10}");
    }
    for (template, context, reason) in EXCEPTIONS {
        eprintln!("except {template}, {context}: {reason}");
    }
    excepted.sort_unstable();
    assert!(
        wrong.is_empty(),
        "{} differ:\n{}",
        wrong.len(),
        wrong[..wrong.len().min(20)].join("\n")
    );
    let all: Vec<_> = (0..EXCEPTIONS.len()).collect();
    assert_eq!(excepted, all, "an exception is none any more");
    assert!(table.len() == 3 && table.values().all(|row| row[1] > 1000), "{table:?}");
}

#[test]
fn expressions_give_what_jinja2_gives() {
    let judged = judged();
    let variables = &judged["variables"];
    let expressions = judged["expressions"].as_array().unwrap();
    let mut wrong = Vec::new();
    for expression in expressions {
        let source = expression["source"].as_str().unwrap();
        let got = outcome(&template(source), variables);
        if got != expression["outcome"] {
            wrong.push(format!("{source}{}", difference(&expression["outcome"], &got)));
        }
    }
    assert!(expressions.len() > 1000);
    assert!(
        wrong.is_empty(),
        "{} differ:\n{}",
        wrong.len(),
        wrong[..wrong.len().min(40)].join("\n")
    );
}
