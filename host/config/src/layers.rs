//! Where values come from: defaults, a file, the environment, flags.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use figment::value::{Dict, Map, Value};
use figment::{Figment, Metadata, Profile, Provider};
use toml::de::{DeTable, DeValue};

use crate::keys::{ConfigKey, KeyKind, dotted, is_name};
use crate::values::{Unreadable, shortened, value, values};
use crate::{Config, Problem};

/// Longest configuration that is read. The default one, with a reason for every setting, has 30 KiB.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Most parts of a setting's name that a variable or a flag may have: no setting has as many.
const PARTS_MAX: usize = 16;

/// What to merge, lowest precedence first. The environment is part of the value, so that a test
/// has its own.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// A TOML file.
    pub file: Option<PathBuf>,
    /// Variables; those that do not begin with `INTERLOCK__` are ignored.
    pub env: Vec<(OsString, OsString)>,
    /// Flags, in the order they were given.
    pub flags: Vec<Flag>,
}

/// One setting from the command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flag {
    /// The flag as the user wrote it, for messages: `--bind`.
    pub flag: String,
    /// The key that the flag sets.
    pub key: String,
    /// The value, as text.
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
    /// The prefix of every environment variable that is a setting; two underscores stand for a dot.
    pub const ENV_PREFIX: &str = "INTERLOCK__";
    /// The environment variable that names the file when no flag does.
    pub const ENV_FILE: &str = "INTERLOCK_CONFIG";
    /// The paths at which a file is looked for when nothing names one; only the first that exists is read.
    pub const PLACES: [&str; 2] = ["interlock.toml", "/etc/interlock/interlock.toml"];

    /// What a command of this process reads: the file that `config` names, else
    /// `INTERLOCK_CONFIG`, else the first of [`Sources::PLACES`] that exists, else none; the
    /// environment; the flags.
    pub fn of_process(config: Option<PathBuf>, flags: Vec<Flag>) -> Self {
        let named = || std::env::var_os(Self::ENV_FILE).filter(|path| !path.is_empty());
        // A link that leads nowhere is there: to pass it over would be to serve with other settings.
        let is_there = |path: &PathBuf| path.symlink_metadata().is_ok();
        let found = || Self::PLACES.iter().map(PathBuf::from).find(is_there);
        Self {
            file: config.or_else(|| named().map(PathBuf::from)).or_else(found),
            env: std::env::vars_os().collect(),
            flags,
        }
    }

    /// A file alone.
    pub fn of_file(path: &Path) -> Self {
        Self { file: Some(path.to_owned()), ..Self::default() }
    }

    /// Everything merged, each value tagged with the layer it came from.
    pub(crate) fn merge(&self, root: &ConfigKey) -> Result<Merged, Vec<Problem>> {
        let (mut lines, mut wrong) = (BTreeMap::new(), Vec::new());
        let defaults =
            Value::serialize(Config::default()).expect("a configuration can be serialized");
        let mut layers =
            vec![Layer { origin: DEFAULT.into(), is_file: false, values: dict(defaults) }];
        if let Some(path) = &self.file {
            layers.push(Layer::file(path, &mut lines, &mut wrong)?);
        }
        let ours = |(name, _): &&(OsString, OsString)| {
            name.as_bytes().starts_with(Self::ENV_PREFIX.as_bytes())
        };
        let mut env: Vec<_> = self.env.iter().filter(ours).collect();
        env.sort();
        for (name, value) in env {
            let origin = format!("{ENV}{}", name.to_string_lossy());
            let place = ProblemPlace::Environment;
            // The value is not shown: it may be a secret.
            let (Some(name), Some(value)) = (name.to_str(), value.to_str()) else {
                let text = "a variable must be UTF-8, name and value, got bytes that are not";
                wrong.push(InvalidValue { key: vec![], text: text.to_owned(), place, origin });
                continue;
            };
            let key = name[Self::ENV_PREFIX.len()..].to_ascii_lowercase().replace("__", ".");
            layers.extend(Layer::single(origin, place, &key, value, root, &mut wrong));
        }
        for Flag { flag, key, value } in &self.flags {
            let (origin, place) = (flag.clone(), ProblemPlace::Flags);
            layers.extend(Layer::single(origin, place, key, value, root, &mut wrong));
        }
        let figment = layers.into_iter().fold(Figment::new(), Figment::merge);
        let value = figment.find_value("").map_err(|error| {
            error.into_iter().map(|error| Problem::new(error.to_string(), None)).collect::<Vec<_>>()
        })?;
        Ok(Merged { figment, value, lines, wrong })
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
    /// Values that are no values, which are in no layer.
    pub(crate) wrong: Vec<InvalidValue>,
}

/// A value that no key could have.
pub(crate) struct InvalidValue {
    /// The key of the value; empty if that is not known.
    pub(crate) key: Vec<String>,
    pub(crate) text: String,
    pub(crate) place: ProblemPlace,
    pub(crate) origin: String,
}

impl Merged {
    /// The source of the value at a path.
    pub(crate) fn origin(&self, path: &[String]) -> String {
        let (depth, value) = self.deepest(path);
        let found = if depth == path.len() { self.describe(path, value).1 } else { None };
        found.unwrap_or_else(|| DEFAULT.to_owned())
    }

    /// The place of a problem at a path: that of the value, or, if there is none, that of the table that
    /// lacks it. Places sort in the order in which problems are reported.
    pub(crate) fn place(&self, path: &[String]) -> (ProblemPlace, Option<String>) {
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

    fn describe(&self, path: &[String], value: &Value) -> (ProblemPlace, Option<String>) {
        let Some(from) = self.figment.get_metadata(value.tag()) else {
            return (ProblemPlace::Nowhere, None);
        };
        let name = from.name.to_string();
        if from.source.is_some() {
            let line = (0..=path.len()).rev().find_map(|end| self.lines.get(&dotted(&path[..end])));
            let line = line.copied().unwrap_or(0);
            return (ProblemPlace::File { line }, Some(format!("{name}:{line}")));
        }
        match name.as_str() {
            DEFAULT => (ProblemPlace::Nowhere, None),
            name if name.starts_with(ENV) => (ProblemPlace::Environment, Some(name.to_owned())),
            name => (ProblemPlace::Flags, Some(name.to_owned())),
        }
    }
}

/// The place of a problem. Problems are reported in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum ProblemPlace {
    File {
        line: usize,
    },
    Environment,
    Flags,
    /// No single place: the problem is between several settings, or in a default.
    Nowhere,
}

/// One source of values. Messages call it by its origin.
struct Layer {
    origin: String,
    is_file: bool,
    values: Dict,
}

impl Layer {
    fn file(
        path: &Path,
        lines: &mut BTreeMap<String, usize>,
        wrong: &mut Vec<InvalidValue>,
    ) -> Result<Self, Vec<Problem>> {
        let origin = path.display().to_string();
        let text = interlock_files::read_text(path, FILE_BYTES_MAX).map_err(|error| {
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
                    Some(key) => format!("the line of {}", shortened(key)),
                    None => "this line".to_owned(),
                };
                let message = message.replace('\n', ", ");
                let text = format!("{what} is not TOML: {message}");
                Problem::new(text, Some(format!("{origin}:{line}")))
            };
            return Err(lines.into_iter().map(problem).collect());
        }
        note_lines(table.get_ref(), "", &line_at, lines);
        let mut unreadable = Vec::new();
        let values = values(table.get_ref(), &mut Vec::new(), &mut unreadable);
        wrong.extend(unreadable.into_iter().map(|Unreadable { key, text, at }| {
            let line = line_at(at);
            let origin = format!("{origin}:{line}");
            InvalidValue { key, text, place: ProblemPlace::File { line }, origin }
        }));
        Ok(Self { origin, is_file: true, values })
    }

    /// A layer of one key, whose value is text that the key's type says how to read.
    fn single(
        origin: String,
        place: ProblemPlace,
        key: &str,
        text: &str,
        root: &ConfigKey,
        wrong: &mut Vec<InvalidValue>,
    ) -> Option<Self> {
        let mut path: Vec<String> = key.split('.').map(str::to_owned).collect();
        let parts = path.len();
        if parts > PARTS_MAX {
            let (key, origin) = (shortened(key), shortened(&origin));
            let text = format!(
                "{key} is not a known key: a key has at most {PARTS_MAX} parts, got {parts}"
            );
            wrong.push(InvalidValue { key: vec![], text, place, origin });
            return None;
        }
        let mut unreadable = Vec::new();
        let kind = root.find(&path).map(|key| &key.kind);
        let value = read(text, kind, &mut path, &mut unreadable);
        wrong.extend(unreadable.into_iter().map(|Unreadable { key, text, .. }| InvalidValue {
            key,
            text,
            place,
            origin: origin.clone(),
        }));
        let value =
            path.into_iter().rev().fold(value?, |value, part| Dict::from([(part, value)]).into());
        Some(Self { origin, is_file: false, values: dict(value) })
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
fn read(
    text: &str,
    kind: Option<&KeyKind>,
    path: &mut Vec<String>,
    unreadable: &mut Vec<Unreadable>,
) -> Option<Value> {
    let as_toml = DeValue::parse(text.trim()).ok();
    match (kind, as_toml) {
        (None | Some(KeyKind::Text | KeyKind::Choice(_)), Some(parsed)) => {
            match parsed.into_inner() {
                DeValue::String(quoted) => Some(quoted.into_owned().into()),
                _ => Some(text.into()),
            }
        }
        (Some(KeyKind::List(_)), _) if !text.starts_with('[') => {
            let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
            Some(items.map(Value::from).collect::<Vec<_>>().into())
        }
        (Some(_), Some(parsed)) => value(&parsed, path, unreadable),
        (_, None) => Some(text.into()),
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
