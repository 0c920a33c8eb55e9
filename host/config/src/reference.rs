//! What `config/default.toml` and `config/REFERENCE.md` say, from the doc comments and defaults.

use crate::Config;
use crate::keys::{ConfigKey, KeyKind, dotted};

const WIDTH: usize = 96;

/// `config/default.toml`: every key at its default, each under its doc comment.
pub fn default_toml() -> String {
    let mut text = String::from(
        "# Every setting of interlock at its default, with the reason for it. Generated from the doc\n\
         # comments of the settings: change those and run `UPDATE=1 cargo test -p interlock-config`.\n\
         #\n\
         # Nothing here needs to be set. A file of your own holds what differs, and nothing else;\n\
         # `interlock config check FILE` reports every problem in it, `interlock config show` what\n\
         # is in effect and why. A flag (`--set server.bind=0.0.0.0:80`) wins over the environment\n\
         # (INTERLOCK__SERVER__BIND=0.0.0.0:80), the environment over a file, a file over this.\n",
    );
    let values = default_values();
    for section in ConfigKey::root::<Config>().inside() {
        text.push('\n');
        let doc = section_doc(section);
        match values.get(&section.name) {
            Some(toml::Value::Array(items)) if items.is_empty() => {
                text.push_str(&comment(&doc));
                text.push_str(&format!("\n# [[{}]]\n\n", section.name));
                let mut inside = String::new();
                let nothing = toml::Value::Table(toml::Table::new());
                table_toml(section, &nothing, &section.name, true, &mut inside);
                text.push_str(&inside);
            }
            Some(toml::Value::Array(items)) => {
                text.push_str(&comment(&format!("{doc}\n\n{REPLACES}")));
                for (at, item) in items.iter().enumerate() {
                    text.push_str(&format!("[[{}]]\n", section.name));
                    // Said once is enough.
                    table_toml(section, item, &section.name, at == 0, &mut text);
                }
            }
            Some(item) => {
                text.push_str(&comment(&doc));
                text.push_str(&format!("[{}]\n", section.name));
                table_toml(section, item, &section.name, true, &mut text);
            }
            None => {}
        }
    }
    text
}

const REPLACES: &str =
    "Naming any replaces the default ones: these are the policies, not additions to them.";

fn table_toml(key: &ConfigKey, value: &toml::Value, header: &str, docs: bool, text: &mut String) {
    let mut tables = Vec::new();
    let mut first = true;
    for inside in key.inside() {
        if matches!(inside.kind, KeyKind::Table(_) | KeyKind::Open) {
            tables.push(inside);
            continue;
        }
        if docs {
            text.push_str(if first { "" } else { "\n" });
            text.push_str(&comment(&plain(&inside.doc)));
        }
        first = false;
        match value.get(&inside.name) {
            Some(value) => text.push_str(&format!("{} = {value}\n", inside.name)),
            None => {
                let example = inside.example.as_ref().map_or_else(String::new, ToString::to_string);
                text.push_str(&format!("# {} = {example}\n", inside.name));
            }
        }
    }
    for inside in tables {
        text.push('\n');
        if docs {
            text.push_str(&comment(&plain(&inside.doc)));
        }
        let header = dotted([header, &inside.name]);
        text.push_str(&format!("[{header}]\n"));
        if let Some(value) = value.get(&inside.name) {
            table_toml(inside, value, &header, docs, text);
        }
    }
}

/// `config/REFERENCE.md`: the same as tables.
pub fn reference_md() -> String {
    let mut text = String::from(
        "# Settings\n\n\
         Generated from the doc comments of the settings; a test keeps it so. `config/default.toml` \
         is the same as a file to copy from.\n\n\
         A value comes from the last of these that names it: the default, the file, the environment, \
         the command line.\n\n\
         | where | how |\n| --- | --- |\n\
         | file | `--config FILE`, else `INTERLOCK_CONFIG`, else `./interlock.toml`, else \
         `/etc/interlock/interlock.toml`; the first one only |\n\
         | environment | `INTERLOCK__SERVER__BIND=0.0.0.0:8080`: two underscores stand for the dot |\n\
         | command line | `--set server.bind=0.0.0.0:8080`; `--bind` and `--model` for short |\n\n\
         In the environment and on the command line a text needs no quotes, and a list of texts may \
         be written `a,b`; everything else is written as in the file. Times are written `250ms`, \
         `30s`, `5m`. A key that does not exist is an error, wherever it stands.\n",
    );
    let values = default_values();
    for section in ConfigKey::root::<Config>().inside() {
        let many = matches!(section.kind, KeyKind::Tables(_));
        let title =
            if many { format!("[[{}]]", section.name) } else { format!("[{}]", section.name) };
        text.push_str(&format!("\n## `{title}`\n\n{}\n", unwrapped(&section_doc(section))));
        let replaces = values.get(&section.name).and_then(toml::Value::as_array);
        if replaces.is_some_and(|default| !default.is_empty()) {
            text.push_str(&format!("\n{REPLACES}\n"));
        }
        text.push_str("\n| key | type | default | meaning |\n| --- | --- | --- | --- |\n");
        // The default ones set what others leave alone, so their values are not the defaults.
        let (values, unset) = if many {
            (defaults_of(section), "must be set")
        } else {
            (values.get(&section.name).cloned(), "not set")
        };
        rows(section, values.as_ref(), unset, "", &mut text);
    }
    text
}

fn defaults_of(item: &ConfigKey) -> Option<toml::Value> {
    let set = item.inside().iter().filter_map(|key| {
        Some((key.name.clone(), toml::Value::try_from(key.default.as_ref()?).ok()?))
    });
    Some(toml::Value::Table(set.collect()))
}

fn rows(
    key: &ConfigKey,
    value: Option<&toml::Value>,
    unset: &str,
    before: &str,
    text: &mut String,
) {
    for inside in key.inside() {
        let name = dotted([before, &inside.name]);
        let value = value.and_then(|value| value.get(&inside.name));
        if let KeyKind::Table(_) = inside.kind {
            rows(inside, value, unset, &name, text);
            continue;
        }
        let unset = if inside.optional { "not set" } else { unset };
        let default = value.map_or_else(|| unset.into(), |value| format!("`{value}`"));
        let meaning = unwrapped(&plain(&inside.doc)).replace("\n\n", "<br>").replace('|', "\\|");
        let kind = if inside.is_time(value) { "time".into() } else { type_name(&inside.kind) };
        text.push_str(&format!("| `{name}` | {kind} | {default} | {meaning} |\n"));
    }
}

fn type_name(kind: &KeyKind) -> String {
    match kind {
        KeyKind::Table(_) | KeyKind::Open => "table".into(),
        KeyKind::Tables(_) => "tables".into(),
        KeyKind::Text => "text".into(),
        KeyKind::Flag => "true or false".into(),
        KeyKind::Whole { least: least @ 1.., .. } => format!("whole number, at least {least}"),
        KeyKind::Whole { .. } => "whole number".into(),
        KeyKind::Number => "number".into(),
        KeyKind::Choice(choices) => {
            choices.iter().map(|choice| format!("`\"{choice}\"`")).collect::<Vec<_>>().join(", ")
        }
        KeyKind::List(item) => format!("list of {}", type_name(item)),
    }
}

pub(crate) fn default_values() -> toml::Table {
    toml::Table::try_from(Config::default()).expect("a configuration is a table")
}

/// A struct's doc comment begins with the name of its section, for whoever reads the code; under
/// the section's header that would be said twice.
fn section_doc(section: &ConfigKey) -> String {
    let doc = plain(&section.doc);
    let rest = doc.split_once("`: ").filter(|(name, _)| name.starts_with("`["));
    let mut rest = rest.map_or(doc.as_str(), |(_, rest)| rest).chars();
    let first = rest.next().map(|first| first.to_uppercase().to_string()).unwrap_or_default();
    format!("{first}{}", rest.as_str())
}

/// Without rustdoc's links, which lead nowhere in these files.
fn plain(doc: &str) -> String {
    doc.replace("[`", "`").replace("`]", "`")
}

/// Paragraphs on a line each.
fn unwrapped(doc: &str) -> String {
    doc.split("\n\n").map(|paragraph| words(paragraph).join(" ")).collect::<Vec<_>>().join("\n\n")
}

fn words(paragraph: &str) -> Vec<&str> {
    paragraph.split_whitespace().collect()
}

/// As a comment of whole words in lines of at most [`WIDTH`].
fn comment(doc: &str) -> String {
    let mut text = String::new();
    for (at, paragraph) in doc.split("\n\n").enumerate() {
        text.push_str(if at == 0 { "" } else { "#\n" });
        let mut line = String::from("#");
        for word in words(paragraph) {
            if line.chars().count() + 1 + word.chars().count() > WIDTH {
                text.push_str(&format!("{line}\n"));
                line = String::from("#");
            }
            line.push(' ');
            line.push_str(word);
        }
        text.push_str(&format!("{line}\n"));
    }
    text
}
