//! The effective configuration, with where each value came from.

use interlock_request::{Secret, is_secret, without_logins};

use crate::keys::{ConfigKey, KeyKind, dotted};
use crate::{Config, Effective};

/// Comments further right than this are worse than crooked ones.
const COMMENT_COLUMN_MAX: usize = 60;

impl Effective {
    /// The configuration as TOML, each value followed by a comment that says where it came from.
    ///
    /// Secrets are masked, so that the output can go into a bug report.
    pub fn show(&self) -> String {
        let mut lines = Vec::new();
        let values = toml::Table::try_from(&self.config).expect("a configuration is a table");
        for section in ConfigKey::root::<Config>().inside() {
            match (values.get(&section.name), &section.kind) {
                (Some(toml::Value::Array(items)), KeyKind::Tables(_)) => {
                    for (at, item) in items.iter().enumerate() {
                        lines.push(TomlLine::header(format!("[[{}]]", section.name)));
                        let path = vec![section.name.clone(), at.to_string()];
                        self.table(section, item, &section.name, &path, &mut lines);
                    }
                    // In front of every header, behind which it would belong to that.
                    if items.is_empty() {
                        let origin = self.merged.origin(std::slice::from_ref(&section.name));
                        lines.insert(0, TomlLine::value(format!("{} = []", section.name), origin));
                    }
                }
                (Some(item), _) => {
                    lines.push(TomlLine::header(format!("[{}]", section.name)));
                    let path = vec![section.name.clone()];
                    self.table(section, item, &section.name, &path, &mut lines);
                }
                (None, _) => {}
            }
        }
        render(&lines)
    }

    fn table(
        &self,
        key: &ConfigKey,
        value: &toml::Value,
        header: &str,
        path: &[String],
        lines: &mut Vec<TomlLine>,
    ) {
        let mut tables = Vec::new();
        for inside in key.inside() {
            let path = [path, std::slice::from_ref(&inside.name)].concat();
            match value.get(&inside.name) {
                Some(table @ toml::Value::Table(_)) => tables.push((inside, table, path)),
                Some(value) => {
                    let shown = masked(value, is_secret(&inside.name));
                    lines.push(TomlLine::value(
                        format!("{} = {shown}", inside.name),
                        self.merged.origin(&path),
                    ));
                }
                None => {
                    lines.push(TomlLine::value(format!("# {} =", inside.name), "not set".into()));
                }
            }
        }
        // After the plain values: in TOML everything behind a header belongs to it.
        for (inside, table, path) in tables {
            let header = dotted([header, &inside.name]);
            match &inside.kind {
                KeyKind::Open => {
                    let shown = masked(table, is_secret(&inside.name));
                    let origin = self.merged.origin(&path);
                    if shown.as_table().is_some_and(|table| !table.is_empty()) {
                        let open = ConfigKey { kind: open_keys(&shown), ..inside.clone() };
                        lines.push(TomlLine::header(format!("[{header}]")));
                        self.table(&open, &shown, &header, &path, lines);
                    } else {
                        lines.push(TomlLine::value(format!("[{header}]"), origin));
                    }
                }
                _ => {
                    lines.push(TomlLine::header(format!("[{header}]")));
                    self.table(inside, table, &header, &path, lines);
                }
            }
        }
    }
}

/// Somebody else's keys, as if they were ours.
fn open_keys(table: &toml::Value) -> KeyKind {
    let names = table.as_table().into_iter().flat_map(|table| table.keys());
    KeyKind::Table(
        names
            .map(|name| ConfigKey {
                name: name.clone(),
                doc: String::new(),
                kind: KeyKind::Open,
                default: None,
                example: None,
                optional: false,
                secret: false,
            })
            .collect(),
    )
}

/// A value without the secrets in it. Tables stay tables: whoever reads the output must see which
/// keys there are, and where a secret has a table, all its values are taken for secrets.
fn masked(value: &toml::Value, secret: bool) -> toml::Value {
    match value {
        toml::Value::Table(table) => {
            let mask = |(name, value): (&String, &toml::Value)| {
                (name.clone(), masked(value, secret || is_secret(name)))
            };
            toml::Value::Table(table.iter().map(mask).collect())
        }
        toml::Value::Array(items) => {
            items.iter().map(|item| masked(item, secret)).collect::<Vec<_>>().into()
        }
        _ if secret => Secret::MASK.into(),
        toml::Value::String(text) => without_logins(text).into(),
        other => other.clone(),
    }
}

struct TomlLine {
    text: String,
    comment: Option<String>,
}

impl TomlLine {
    fn header(text: String) -> Self {
        Self { text, comment: None }
    }

    fn value(text: String, comment: String) -> Self {
        Self { text, comment: Some(comment) }
    }
}

fn render(lines: &[TomlLine]) -> String {
    let commented = lines.iter().filter(|line| line.comment.is_some());
    let widths = commented.map(|line| line.text.chars().count());
    let column = widths.filter(|width| *width <= COMMENT_COLUMN_MAX).max().unwrap_or(0);
    let mut text = String::new();
    for line in lines {
        if line.text.starts_with('[') && !text.is_empty() {
            text.push('\n');
        }
        match &line.comment {
            Some(comment) => text.push_str(&format!("{:column$}  # {comment}\n", line.text)),
            None => text.push_str(&format!("{}\n", line.text)),
        }
    }
    text
}
