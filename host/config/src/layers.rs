//! Where values come from: defaults, a file, the environment, flags.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use figment::value::{Dict, Map, Value};
use figment::{Figment, Metadata, Profile, Provider};
use toml::de::{DeTable, DeValue};

use crate::keys::{Key, Kind, dotted, is_name};
use crate::{Config, Problem};

/// What to merge, lowest precedence first. The environment is part of the value, so that a test
/// has its own.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// A TOML file.
    pub file: Option<PathBuf>,
    /// Variables; those that do not begin with `INTERLOCK__` are ignored.
    pub env: Vec<(String, String)>,
    /// Flags, in the order they were given.
    pub flags: Vec<Flag>,
}

/// One setting from the command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flag {
    /// How it was written, for messages: `--bind`.
    pub flag: String,
    /// Which key it sets.
    pub key: String,
    /// To what, as text.
    pub value: String,
}

impl Flag {
    /// A dedicated flag, such as `--bind`.
    pub fn new(flag: &str, key: &str, value: impl Into<String>) -> Self {
        Self { flag: flag.to_owned(), key: key.to_owned(), value: value.into() }
    }

    /// `--set section.key=value`; `None` when there is no `=`, or no name where one belongs.
    pub fn set(text: &str) -> Option<Self> {
        let (key, value) = text.split_once('=')?;
        let key = key.trim();
        let named = key.split('.').all(|part| !part.trim().is_empty() && is_name(part));
        named.then(|| Self::new(&format!("--set {key}"), key, value.trim()))
    }
}

impl Sources {
    /// Begins every variable of ours that is a setting; two underscores stand for a dot.
    pub const ENV_PREFIX: &str = "INTERLOCK__";
    /// Names the file when no flag does.
    pub const ENV_FILE: &str = "INTERLOCK_CONFIG";
    /// Where a file is looked for when nothing names one; the first that exists is read, alone.
    pub const PLACES: [&str; 2] = ["interlock.toml", "/etc/interlock/interlock.toml"];

    /// What a command of this process reads: the file that `config` names, else
    /// `INTERLOCK_CONFIG`, else the first of [`Sources::PLACES`] that exists, else none; the
    /// environment; the flags.
    pub fn of_process(config: Option<PathBuf>, flags: Vec<Flag>) -> Self {
        let named = || std::env::var_os(Self::ENV_FILE).filter(|path| !path.is_empty());
        let found = || Self::PLACES.iter().map(PathBuf::from).find(|path| path.exists());
        let env = std::env::vars_os()
            .map(|(name, value)| (name.to_string_lossy().into(), value.to_string_lossy().into()));
        Self {
            file: config.or_else(|| named().map(PathBuf::from)).or_else(found),
            env: env.collect(),
            flags,
        }
    }

    /// A file alone.
    pub fn of_file(path: &Path) -> Self {
        Self { file: Some(path.to_owned()), ..Self::default() }
    }

    /// Everything merged, each value tagged with the layer it came from.
    pub(crate) fn merge(&self, root: &Key) -> Result<Merged, Vec<Problem>> {
        let mut lines = BTreeMap::new();
        let defaults =
            Value::serialize(Config::default()).expect("a configuration can be serialized");
        let mut layers =
            vec![Layer { origin: DEFAULT.into(), is_file: false, values: dict(defaults) }];
        if let Some(path) = &self.file {
            layers.push(Layer::file(path, &mut lines)?);
        }
        let mut env: Vec<_> = self.env.iter().collect();
        env.sort();
        for (name, value) in env {
            if let Some(key) = name.strip_prefix(Self::ENV_PREFIX) {
                let key = key.to_ascii_lowercase().replace("__", ".");
                layers.push(Layer::single(format!("{ENV}{name}"), &key, value, root));
            }
        }
        for flag in &self.flags {
            layers.push(Layer::single(flag.flag.clone(), &flag.key, &flag.value, root));
        }
        let figment = layers.into_iter().fold(Figment::new(), Figment::merge);
        let value = figment.find_value("").map_err(|error| {
            error.into_iter().map(|error| Problem::new(error.to_string(), None)).collect::<Vec<_>>()
        })?;
        Ok(Merged { figment, value, lines })
    }
}

const DEFAULT: &str = "default";
const ENV: &str = "env ";

/// All layers, merged.
pub(crate) struct Merged {
    figment: Figment,
    pub(crate) value: Value,
    /// Lines of the file's keys, by dotted name.
    lines: BTreeMap<String, usize>,
}

impl Merged {
    /// Where the value at a path came from.
    pub(crate) fn origin(&self, path: &[String]) -> String {
        let (depth, value) = self.deepest(path);
        let found = if depth == path.len() { self.describe(path, value).1 } else { None };
        found.unwrap_or_else(|| DEFAULT.to_owned())
    }

    /// Where a reader should look for what is wrong at a path: at its value, or, where it has
    /// none, at the table that lacks it. Places sort as they are met.
    pub(crate) fn place(&self, path: &[String]) -> (Place, Option<String>) {
        let (_, value) = self.deepest(path);
        self.describe(path, value)
    }

    /// The value at a path, or at the longest part of it that has one, and how long that is.
    fn deepest(&self, path: &[String]) -> (usize, &Value) {
        let mut value = &self.value;
        for (depth, part) in path.iter().enumerate() {
            let inside = match value {
                Value::Dict(_, dict) => dict.get(part),
                Value::Array(_, items) => part.parse().ok().and_then(|at: usize| items.get(at)),
                _ => None,
            };
            let Some(inside) = inside else { return (depth, value) };
            value = inside;
        }
        (path.len(), value)
    }

    fn describe(&self, path: &[String], value: &Value) -> (Place, Option<String>) {
        let Some(from) = self.figment.get_metadata(value.tag()) else {
            return (Place::Nowhere, None);
        };
        let name = from.name.to_string();
        if from.source.is_some() {
            let line = (0..=path.len()).rev().find_map(|end| self.lines.get(&dotted(&path[..end])));
            let line = line.copied().unwrap_or(0);
            return (Place::File { line }, Some(format!("{name}:{line}")));
        }
        match name.as_str() {
            DEFAULT => (Place::Nowhere, None),
            name if name.starts_with(ENV) => (Place::Environment, Some(name.to_owned())),
            name => (Place::Flags, Some(name.to_owned())),
        }
    }
}

/// Where something is wrong, in the order in which it is reported.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Place {
    File {
        line: usize,
    },
    Environment,
    Flags,
    /// Between settings of several places, or in a default.
    Nowhere,
}

/// One provider. Its origin is the name that messages give it.
struct Layer {
    origin: String,
    is_file: bool,
    values: Dict,
}

impl Layer {
    fn file(path: &Path, lines: &mut BTreeMap<String, usize>) -> Result<Self, Vec<Problem>> {
        let origin = path.display().to_string();
        let text = std::fs::read_to_string(path).map_err(|error| {
            vec![Problem::new(format!("{origin} cannot be read: {error}"), None)]
        })?;
        let (table, errors) = DeTable::parse_recoverable(&text);
        let line_at = |offset: usize| text[..offset.min(text.len())].matches('\n').count() + 1;
        // What follows a syntax error would be reported for the wrong reason.
        if !errors.is_empty() {
            let line = |error: &toml::de::Error| line_at(error.span().map_or(0, |span| span.start));
            let mut lines: Vec<_> =
                errors.iter().map(|error| (line(error), error.message())).collect();
            lines.sort();
            let problem = |(line, message): (usize, &str)| {
                // The line may have a secret in it; its key, if it begins with one, says enough.
                let written = text.lines().nth(line - 1).unwrap_or_default();
                let key = written.split_once('=').map(|(key, _)| key.trim());
                let what = match key.filter(|key| !key.is_empty() && is_name(key)) {
                    Some(key) => format!("the line of {key}"),
                    None => "this line".to_owned(),
                };
                let message = message.replace('\n', ", ");
                let text = format!("{what} is not TOML: {message}");
                Problem::new(text, Some(format!("{origin}:{line}")))
            };
            return Err(lines.into_iter().map(problem).collect());
        }
        note_lines(table.get_ref(), "", &line_at, lines);
        let table: toml::Table = toml::from_str(&text).expect("it was parsed just now");
        let values = Value::serialize(table).expect("TOML is no richer than a figment value");
        Ok(Self { origin, is_file: true, values: dict(values) })
    }

    /// A layer of one key, whose value is text that the key's type says how to read.
    fn single(origin: String, key: &str, text: &str, root: &Key) -> Self {
        let path: Vec<String> = key.split('.').map(str::to_owned).collect();
        let value = read(text, root.find(&path).map(|key| &key.kind));
        let value = Value::serialize(value).expect("TOML is no richer than a figment value");
        let value =
            path.into_iter().rev().fold(value, |value, part| Dict::from([(part, value)]).into());
        Self { origin, is_file: false, values: dict(value) }
    }
}

impl Provider for Layer {
    fn metadata(&self) -> Metadata {
        let metadata = Metadata::named(self.origin.clone());
        if self.is_file { metadata.source(Path::new(&self.origin)) } else { metadata }
    }

    fn data(&self) -> Result<Map<Profile, Dict>, figment::Error> {
        Ok(Map::from([(Profile::Default, self.values.clone())]))
    }
}

fn dict(value: Value) -> Dict {
    match value {
        Value::Dict(_, dict) => dict,
        _ => Dict::new(),
    }
}

/// Reads a variable's or a flag's text as what its key wants: a text needs no quotes, a list of
/// texts may do without brackets, everything else is TOML. What cannot be read stays a text, and
/// is reported with the other wrong types.
fn read(text: &str, kind: Option<&Kind>) -> toml::Value {
    let as_toml = || {
        let mut table: toml::Table = toml::from_str(&format!("value = {text}")).ok()?;
        table.remove("value")
    };
    let plain = || toml::Value::String(text.to_owned());
    match kind {
        None | Some(Kind::Text | Kind::Choice(_)) => {
            as_toml().filter(toml::Value::is_str).unwrap_or_else(plain)
        }
        Some(Kind::List(_)) if !text.starts_with('[') => {
            let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
            items.map(|item| toml::Value::String(item.to_owned())).collect::<Vec<_>>().into()
        }
        Some(_) => as_toml().unwrap_or_else(plain),
    }
}

fn note_lines(
    table: &DeTable<'_>,
    before: &str,
    line_at: &impl Fn(usize) -> usize,
    lines: &mut BTreeMap<String, usize>,
) {
    for (key, value) in table {
        let name = dotted([before, key.get_ref()]);
        lines.insert(name.clone(), line_at(key.span().start));
        match value.get_ref() {
            DeValue::Table(inside) => note_lines(inside, &name, line_at, lines),
            DeValue::Array(items) => {
                for (at, item) in items.iter().enumerate() {
                    let name = format!("{name}.{at}");
                    lines.insert(name.clone(), line_at(item.span().start));
                    if let DeValue::Table(inside) = item.get_ref() {
                        note_lines(inside, &name, line_at, lines);
                    }
                }
            }
            _ => {}
        }
    }
}
