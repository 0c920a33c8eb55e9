//! The known keys, read off the structs: their names, types and doc comments.

use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use serde_json::Value;

/// A key: a setting, or a table of them.
#[derive(Debug, Clone)]
pub(crate) struct ConfigKey {
    /// The last part of the key's name; empty for the root.
    pub(crate) name: String,
    /// The doc comment of the key's field.
    pub(crate) doc: String,
    pub(crate) kind: KeyKind,
    /// What it is in a list of tables where it is not set; the sections' own defaults are in
    /// `Config::default()`.
    pub(crate) default: Option<Value>,
    /// What to show for it where nothing is set.
    pub(crate) example: Option<Value>,
    /// Whether the key may be left out, and then has no value: its default, null, may not be in the schema.
    pub(crate) optional: bool,
    /// Whether the key's value is never shown, even where it could not be read.
    pub(crate) secret: bool,
}

/// What a key holds.
#[derive(Debug, Clone)]
pub(crate) enum KeyKind {
    /// `[name]`
    Table(Vec<ConfigKey>),
    /// `[[name]]`
    Tables(Vec<ConfigKey>),
    /// A table whose keys are somebody else's.
    Open,
    Text,
    Flag,
    Whole {
        least: i64,
        most: Option<i64>,
    },
    Number,
    Choice(Vec<String>),
    List(Box<KeyKind>),
}

impl ConfigKey {
    /// The root of a configuration.
    pub(crate) fn root<C: JsonSchema>() -> Self {
        let settings = SchemaSettings::draft2020_12().with(|with| with.inline_subschemas = true);
        let schema = settings.into_generator().into_root_schema_for::<C>();
        Self::of("", schema.as_value())
    }

    fn of(name: &str, schema: &Value) -> Self {
        let doc = |schema: &Value| schema.get("description")?.as_str().map(str::to_owned);
        // A list has the doc comment of its items, unless it has one of its own.
        let doc = doc(schema).or_else(|| doc(schema.get("items")?)).unwrap_or_default();
        let example = schema.get("examples").and_then(|examples| examples.get(0)).cloned();
        let default = schema.get("default").cloned();
        let value = without_null(schema);
        let secret = [schema, &value].iter().any(|it| it.get("writeOnly") == Some(&true.into()));
        let (name, kind, optional) = (name.to_owned(), KeyKind::of(&value), value != *schema);
        Self { name, doc, kind, default, example, optional, secret }
    }

    /// Whether the value is a time. The schema says that it is a text; its default or example tells.
    pub(crate) fn is_time(&self, default: Option<&toml::Value>) -> bool {
        let is_time = |text: &str| humantime::parse_duration(text).is_ok();
        let shown = [self.default.as_ref(), self.example.as_ref()];
        let shown = shown.into_iter().flatten().filter_map(Value::as_str);
        let default = default.and_then(toml::Value::as_str);
        matches!(self.kind, KeyKind::Text) && default.into_iter().chain(shown).any(is_time)
    }

    /// The keys inside, if it is a table or a list of tables.
    pub(crate) fn inside(&self) -> &[Self] {
        match &self.kind {
            KeyKind::Table(keys) | KeyKind::Tables(keys) => keys,
            _ => &[],
        }
    }

    pub(crate) fn get(&self, name: &str) -> Option<&Self> {
        self.inside().iter().find(|key| key.name == name)
    }

    /// The key at a path; indices into lists are skipped.
    pub(crate) fn find(&self, path: &[String]) -> Option<&Self> {
        path.iter()
            .filter(|part| part.parse::<usize>().is_err())
            .try_fold(self, |key, part| key.get(part))
    }

    /// The full name of the key closest to one that does not exist.
    ///
    /// Either the whole name is nearly right, or the last part is right and the section wrong.
    pub(crate) fn nearest(&self, unknown: &[String]) -> Option<String> {
        // No key of ours is as long, and comparing takes as long as both.
        let start = |text: &str| text.chars().take(80).collect::<String>();
        let last = &start(unknown.last()?);
        let named = unknown.iter().filter(|part| part.parse::<usize>().is_err());
        let whole = start(&dotted(named.take(8)));
        let mut known = Vec::new();
        self.collect("", &mut known);
        let closeness = |candidate: &String| {
            let tail = candidate.rsplit('.').next().unwrap_or_default();
            let by_name = strsim::normalized_damerau_levenshtein(&whole, candidate);
            by_name.max(0.9 * strsim::normalized_damerau_levenshtein(last, tail))
        };
        known.into_iter().max_by(|a, b| closeness(a).total_cmp(&closeness(b)))
    }

    fn collect(&self, before: &str, known: &mut Vec<String>) {
        for key in self.inside() {
            let name = dotted([before, key.name.as_str()]);
            known.push(name.clone());
            key.collect(&name, known);
        }
    }
}

/// Whether a key can have this name, as a part or as a whole.
pub(crate) fn is_name(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte))
}

/// `a.b.c`; a part in front that is empty leaves no dot.
pub(crate) fn dotted<S: AsRef<str>>(parts: impl IntoIterator<Item = S>) -> String {
    parts.into_iter().fold(String::new(), |mut name, part| {
        if !name.is_empty() {
            name.push('.');
        }
        name.push_str(part.as_ref());
        name
    })
}

/// Stands for a name that may be a secret.
pub(crate) const NOT_SHOWN: &str = "(a name that is not shown)";

/// `policy[0].deadline`
pub(crate) fn spoken(path: &[String]) -> String {
    path.iter().fold(String::new(), |name, part| match part.parse::<usize>() {
        Ok(at) => format!("{name}[{at}]"),
        Err(_) if name.is_empty() => spoken_part(part).to_owned(),
        Err(_) => format!("{name}.{}", spoken_part(part)),
    })
}

/// A part of a key as a message may quote it: what no key looks like is perhaps a value, and a secret.
pub(crate) fn spoken_part(part: &str) -> &str {
    if is_name(part) { part } else { NOT_SHOWN }
}

/// An `Option` in schemars' words, unwrapped.
fn without_null(schema: &Value) -> Value {
    let is_null = |schema: &Value| schema.get("type").is_some_and(|kind| kind == "null");
    if let Some(options) = schema.get("anyOf").and_then(Value::as_array)
        && options.iter().any(is_null)
        && let Some(inner) = options.iter().find(|option| !is_null(option))
    {
        return inner.clone();
    }
    let mut schema = schema.clone();
    let kinds = schema.get("type").and_then(Value::as_array).cloned().unwrap_or_default();
    if let Some(kind) = kinds.into_iter().find(|kind| kind != "null") {
        schema["type"] = kind;
    }
    schema
}

impl KeyKind {
    fn of(schema: &Value) -> Self {
        if let Some(choices) = choices(schema) {
            return Self::Choice(choices);
        }
        if let Some(properties) = schema.get("properties").and_then(Value::as_object) {
            return Self::Table(
                properties.iter().map(|(name, schema)| ConfigKey::of(name, schema)).collect(),
            );
        }
        match schema.get("type").and_then(Value::as_str) {
            Some("array") => match Self::of(schema.get("items").unwrap_or(&Value::Null)) {
                Self::Table(keys) => Self::Tables(keys),
                item => Self::List(Box::new(item)),
            },
            Some("boolean") => Self::Flag,
            Some("integer") => {
                let number = |at: &str| schema.get(at).and_then(Value::as_i64);
                let narrow = schema.get("format").is_some_and(|format| format == "uint32");
                Self::Whole {
                    least: number("minimum").unwrap_or(i64::MIN),
                    // schemars states the bounds of narrower integers, and of no wider ones.
                    most: number("maximum").or(narrow.then_some(i64::from(u32::MAX))),
                }
            }
            Some("number") => Self::Number,
            Some("object") => Self::Open,
            // Whatever reads itself from a text: addresses, times, sizes, references.
            _ => Self::Text,
        }
    }

    /// Whether the key has a single value, and not a table or a list.
    pub(crate) fn is_value(&self) -> bool {
        !matches!(self, Self::Table(_) | Self::Tables(_) | Self::Open | Self::List(_))
    }

    /// What the value must be, for a message. `None`: serde knows better.
    pub(crate) fn expected(&self) -> Option<String> {
        Some(match self {
            Self::Table(_) | Self::Open => "a table".into(),
            Self::Tables(_) => "a list of tables".into(),
            Self::Text => return None,
            Self::Flag => "true or false".into(),
            Self::Whole { least: i64::MIN, .. } => "a whole number".into(),
            Self::Whole { least, most: None } => format!("a whole number of at least {least}"),
            Self::Whole { least, most: Some(most) } => {
                format!("a whole number from {least} to {most}")
            }
            Self::Number => "a number".into(),
            Self::Choice(choices) => {
                choices.iter().map(|c| format!("{c:?}")).collect::<Vec<_>>().join(" or ")
            }
            Self::List(item) => match &**item {
                Self::Text => "a list of texts".into(),
                _ => "a list".into(),
            },
        })
    }
}

/// The values of an enum of plain names, with or without doc comments of their own.
fn choices(schema: &Value) -> Option<Vec<String>> {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    if let Some(names) = schema.get("enum").and_then(Value::as_array) {
        return names.iter().map(text).collect();
    }
    if let Some(name) = schema.get("const") {
        return Some(vec![text(name)?]);
    }
    let variants = schema.get("oneOf")?.as_array()?;
    let nested: Option<Vec<Vec<String>>> = variants.iter().map(choices).collect();
    Some(nested?.into_iter().flatten().collect())
}
