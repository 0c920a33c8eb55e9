//! From merged values to a configuration, or to everything that is wrong with them.

use std::collections::BTreeSet;
use std::time::Duration;

use figment::error::Kind as Cause;
use figment::value::Value;
use interlock_catalog::ExtraModelConfig;
use interlock_policy_wasm::PolicyConfig;
use interlock_request::{Secret, is_secret, without_logins};
use serde::Deserialize;

use crate::keys::{ConfigKey, KeyKind, NOT_SHOWN, dotted, spoken, spoken_part};
use crate::layers::{InvalidValue, Merged, ProblemPlace};
use crate::reference::default_values;
use crate::values::shortened;
use crate::{Config, Problem, Problems, Sources};

/// A configuration without problems, and where each of its values came from.
pub struct Effective {
    /// The values in effect.
    pub config: Config,
    pub(crate) merged: Merged,
}

impl std::fmt::Debug for Effective {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Effective").field("config", &self.config).finish_non_exhaustive()
    }
}

impl Effective {
    /// A problem with a key that shows later, when the value is used.
    pub fn problem(&self, key: &str, text: String) -> Problem {
        Problem::new(text, self.merged.place(&split(key)).1)
    }

    /// The source of a value: `default`, `interlock.toml:3`, `env INTERLOCK__SERVER__BIND`,
    /// `--bind`.
    pub fn origin(&self, key: &str) -> String {
        self.merged.origin(&split(key))
    }
}

/// The positions, in the configuration's lists, of the tables that could be read.
#[derive(Debug, Default)]
struct TablePositions {
    policy: Vec<usize>,
    extra_model: Vec<usize>,
}

/// A configuration and its problems. Whoever knows more than this crate can add problems.
pub struct ConfigDraft {
    /// The values that could be read. Other values are at their defaults; a policy that could not be
    /// read is left out.
    pub config: Config,
    /// The positions of `config.policy` and `config.extra_model` in the configuration.
    places: TablePositions,
    merged: Merged,
    problems: Vec<(ProblemPlace, Problem)>,
}

impl std::fmt::Debug for ConfigDraft {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { config, problems, .. } = self;
        f.debug_struct("ConfigDraft")
            .field("config", config)
            .field("problems", problems)
            .finish_non_exhaustive()
    }
}

impl ConfigDraft {
    /// The policies that could be read, each with its number in the list.
    pub fn policies(&self) -> impl Iterator<Item = (usize, &PolicyConfig)> {
        self.places.policy.iter().copied().zip(&self.config.policy)
    }

    /// The extra models that could be read, each with its number in the list.
    pub fn extra_models(&self) -> impl Iterator<Item = (usize, &ExtraModelConfig)> {
        self.places.extra_model.iter().copied().zip(&self.config.extra_model)
    }

    /// Adds a problem with a key, such as `model.reference` or `policy.0.settings`: from that we
    /// know where it stands.
    pub fn add(&mut self, key: &str, text: String) {
        let (place, origin) = self.merged.place(&split(key));
        self.problems.push((place, Problem::new(text, origin)));
    }

    /// The configuration, if nobody found a problem.
    ///
    /// # Errors
    ///
    /// Every problem, in the order of the configuration.
    pub fn finish(self) -> Result<Effective, Problems> {
        let Self { config, merged, mut problems, .. } = self;
        // As the reader will meet them: the file from top to bottom, then the environment, then
        // flags.
        problems.sort_by_key(|(place, _)| *place);
        let problems: Vec<_> = problems.into_iter().map(|(_, problem)| problem).collect();
        if problems.is_empty() { Ok(Effective { config, merged }) } else { Err(Problems(problems)) }
    }
}

/// Merges and checks.
///
/// # Errors
///
/// Every problem there is: a file that cannot be read or is not TOML; keys that nobody knows;
/// values of a wrong type; what the sections say about their values, alone and together.
pub fn load(sources: &Sources) -> Result<Effective, Problems> {
    draft(sources)?.finish()
}

/// Merges and checks, and leaves room for what others know to be wrong.
///
/// # Errors
///
/// Where there is nothing to read values from: a file that cannot be read or is not TOML.
pub fn draft(sources: &Sources) -> Result<ConfigDraft, Problems> {
    let root = ConfigKey::root::<Config>();
    let merged = sources.merge(&root).map_err(Problems)?;
    let mut reader = ValueReader { root: &root, merged: &merged, problems: Vec::new() };
    reader.problems.extend(merged.wrong.iter().map(
        |InvalidValue { text, place, origin, .. }| {
            (*place, Problem::new(text.clone(), Some(origin.clone())))
        },
    ));
    let (config, places) = reader.config();
    reader.times(&root, Some(&default_values().into()), &merged.value, &mut Vec::new());
    for text in config.problems() {
        // A section's problem begins with the key it is about; where that came from we add.
        let path = split(text.split_whitespace().next().unwrap_or_default());
        reader.note(&path, text);
    }
    let problems = reader.problems;
    Ok(ConfigDraft { config, places, merged, problems })
}

fn split(key: &str) -> Vec<String> {
    key.split('.').map(str::to_owned).collect()
}

/// Longest time that any setting takes, a year: whoever means no limit says so with less.
const TIME_MAX: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// Keys that once were, and what to do instead.
const RETIRED: [(&str, &str); 1] = [(
    "server.policy_headers",
    "grant a header to the policy that needs it, as in grants = [\"headers:x-tenant\"]",
)];

/// Reads values, and goes on where one cannot be read: what is wrong is noted and taken out.
struct ValueReader<'a> {
    root: &'a ConfigKey,
    merged: &'a Merged,
    problems: Vec<(ProblemPlace, Problem)>,
}

impl ValueReader<'_> {
    /// What can be read, and where each policy and model stood; the rest is at its default, and a
    /// problem.
    fn config(&mut self) -> (Config, TablePositions) {
        let mut value = self.merged.value.clone();
        self.drop_unknown(&mut value, &mut Vec::new(), self.root);
        let policies = take_tables(&mut value, "policy");
        let extra_models = take_tables(&mut value, "extra_model");
        let mut config: Config = self.read(value, &[]).unwrap_or_default();
        let mut places = TablePositions::default();
        match policies {
            Some(items) => {
                (places.policy, config.policy) = self.each::<PolicyConfig>("policy", items);
            }
            None => places.policy = (0..config.policy.len()).collect(),
        }
        if let Some(items) = extra_models {
            (places.extra_model, config.extra_model) =
                self.each::<ExtraModelConfig>("extra_model", items);
        }
        (config, places)
    }

    /// Reads tables one by one: they have settings without a default, so a bad one must leave as a
    /// whole without taking its neighbours along or changing their numbers.
    fn each<T: for<'de> Deserialize<'de>>(
        &mut self,
        name: &str,
        items: Vec<Value>,
    ) -> (Vec<usize>, Vec<T>) {
        let read = items.into_iter().enumerate().filter_map(|(at, item)| {
            Some((at, self.read::<T>(item, &[name.to_owned(), at.to_string()])?))
        });
        read.unzip()
    }

    /// Deserializes until nothing is wrong any more, taking out what is.
    fn read<T: for<'de> Deserialize<'de>>(&mut self, mut value: Value, at: &[String]) -> Option<T> {
        let mut taken: BTreeSet<_> =
            self.merged.wrong.iter().map(|wrong| dotted(&wrong.key)).collect();
        loop {
            let error = match value.deserialize::<T>() {
                Ok(read) => return Some(read),
                Err(error) => error,
            };
            let mut path = [at, &error.path].concat();
            path.truncate(self.value_ends(&path));
            match &error.kind {
                Cause::MissingField(name) => {
                    let whole = dotted([&path[..], &[name.to_string()]].concat());
                    if !taken.contains(&whole) {
                        let text = format!("{} must be set, got nothing", spoken(&split(&whole)));
                        self.note(&path, text);
                    }
                    return None;
                }
                cause => {
                    let text = self.wrong(&path, cause);
                    self.note(&path, text);
                }
            }
            taken.insert(dotted(&path));
            take(&mut value, &path[at.len()..])?;
        }
    }

    /// How much of a path leads to a value: serde looks for an enum's name inside a table, too.
    fn value_ends(&self, path: &[String]) -> usize {
        let is_value =
            |end: &usize| self.root.find(&path[..*end]).is_some_and(|key| key.kind.is_value());
        (1..path.len()).find(is_value).unwrap_or(path.len())
    }

    fn drop_unknown(&mut self, value: &mut Value, path: &mut Vec<String>, key: &ConfigKey) {
        match (value, &key.kind) {
            (Value::Dict(_, dict), KeyKind::Table(_)) => {
                let names: Vec<String> = dict.keys().cloned().collect();
                for name in names {
                    path.push(name.clone());
                    match (key.get(&name), dict.get_mut(&name)) {
                        (Some(known), Some(inside)) => self.drop_unknown(inside, path, known),
                        _ => {
                            let text = self.unknown(path);
                            self.note(path, text);
                            dict.remove(&name);
                        }
                    }
                    path.pop();
                }
            }
            (Value::Array(_, items), KeyKind::Tables(keys)) => {
                let item_key = ConfigKey { kind: KeyKind::Table(keys.clone()), ..key.clone() };
                for (at, item) in items.iter_mut().enumerate() {
                    path.push(at.to_string());
                    self.drop_unknown(item, path, &item_key);
                    path.pop();
                }
            }
            _ => {}
        }
    }

    fn unknown(&self, path: &[String]) -> String {
        let key = spoken(path);
        if path.iter().any(String::is_empty) {
            return format!("a setting's name must be section.key, got {key:?}");
        }
        if let Some((_, instead)) = RETIRED.iter().find(|(retired, _)| *retired == key) {
            return format!("{key} is no key any more: {instead}");
        }
        let key = shortened(&key);
        let nearest = self.root.nearest(path).unwrap_or_default();
        format!("{key} is not a known key, the nearest is {nearest}")
    }

    /// No time is longer than a clock can count to: whoever adds it to now would panic.
    fn times(
        &mut self,
        key: &ConfigKey,
        default: Option<&toml::Value>,
        value: &Value,
        path: &mut Vec<String>,
    ) {
        match value {
            Value::Dict(_, dict) => {
                for (name, inside) in dict {
                    let Some(key) = key.get(name) else { continue };
                    let default = default.and_then(|table| table.get(name));
                    path.push(name.clone());
                    self.times(key, default, inside, path);
                    path.pop();
                }
            }
            Value::Array(_, items) => {
                for (at, item) in items.iter().enumerate() {
                    path.push(at.to_string());
                    self.times(key, None, item, path);
                    path.pop();
                }
            }
            Value::String(_, text) if key.is_time(default) => {
                let time = humantime::parse_duration(text).unwrap_or_default();
                if time > TIME_MAX {
                    let days = TIME_MAX.as_secs() / (24 * 60 * 60);
                    let (key, got) = (spoken(path), shortened(&format!("{text:?}")));
                    self.note(path, format!("{key} must be at most {days}days, got {got}"));
                }
            }
            _ => {}
        }
    }

    fn note(&mut self, path: &[String], text: String) {
        let (place, origin) = self.merged.place(path);
        self.problems.push((place, Problem::new(text, origin)));
    }

    /// Key, relation, value.
    fn wrong(&self, path: &[String], cause: &Cause) -> String {
        let key = spoken(path);
        let known = self.root.find(path);
        let found = value_at(&self.merged.value, path);
        // What stands in place of a table of secrets may be one.
        let is_hidden = |key: &ConfigKey| key.secret || key.inside().iter().any(|key| key.secret);
        let secret = known.is_some_and(is_hidden) || path.iter().any(|name| is_secret(name));
        if let Some(inside) = found.and_then(Value::as_dict).and_then(|dict| dict.keys().next())
            && known.is_some_and(|key| key.kind.is_value())
        {
            let inside = if secret { NOT_SHOWN } else { spoken_part(inside) };
            return format!("{key} has no keys inside, got {key}.{inside}");
        }
        let value = match found {
            Some(_) if secret => HIDDEN.to_owned(),
            found => found.map_or_else(|| "nothing".into(), literal),
        };
        let expected = match known.map(|key| &key.kind) {
            Some(KeyKind::List(item))
                if path.last().is_some_and(|part| part.parse::<usize>().is_ok()) =>
            {
                item.expected()
            }
            Some(kind) => kind.expected(),
            None => None,
        };
        let why = match (cause, expected) {
            (_, Some(expected)) => return format!("{key} must be {expected}, got {value}"),
            (Cause::InvalidType(_, expected) | Cause::InvalidValue(_, expected), None) => {
                return format!("{key} must be {expected}, got {value}");
            }
            (other, None) => without_logins(&other.to_string()),
        };
        if value == HIDDEN && found.and_then(Value::as_str).is_some_and(|text| why.contains(text)) {
            return format!("{key} cannot be read, got {value}");
        }
        // Many types quote the text that they could not read.
        let quoted = why.contains(&value) || (value == HIDDEN && why.contains(Secret::MASK));
        match (secret, quoted) {
            // A secret's type says what is wrong and quotes nothing of it; other types may quote.
            (true, _) if known.is_some_and(|key| key.secret) => {
                format!("{key} cannot be read: {why}, got {value}")
            }
            (true, _) => format!("{key} cannot be read, got {value}"),
            (false, true) => format!("{key} cannot be read: {why}"),
            (false, false) => format!("{key} cannot be read: {why}, got {value}"),
        }
    }
}

fn value_at<'a>(value: &'a Value, path: &[String]) -> Option<&'a Value> {
    path.iter().try_fold(value, |value, part| match value {
        Value::Dict(_, dict) => dict.get(part),
        Value::Array(_, items) => part.parse().ok().and_then(|at: usize| items.get(at)),
        _ => None,
    })
}

/// Takes a list of tables out, if it is one.
fn take_tables(value: &mut Value, name: &str) -> Option<Vec<Value>> {
    let Value::Dict(_, sections) = value else { return None };
    match sections.remove(name)? {
        Value::Array(_, items) => Some(items),
        other => {
            sections.insert(name.into(), other);
            None
        }
    }
}

/// Removes the value at a path from its table. Inside a list the whole list goes: a list is one
/// value. `None` when there is nothing to remove.
fn take(value: &mut Value, path: &[String]) -> Option<()> {
    let (name, rest) = path.split_first()?;
    let Value::Dict(_, dict) = value else { return None };
    if rest.is_empty() || !matches!(dict.get(name), Some(Value::Dict(..))) {
        return dict.remove(name).map(|_| ());
    }
    take(dict.get_mut(name)?, rest)
}

/// A value as the file would write it, unless it may have a login in it.
fn literal(value: &Value) -> String {
    let literal = toml::Value::try_from(value).map(|value| value.to_string());
    let shown = literal.map_or_else(|_| "nothing".into(), |literal| without_logins(&literal));
    // Whatever has a login in it that is no URL: nobody can tell where it begins.
    let hidden = shown.replace(&format!("{}@", Secret::MASK), "").contains('@');
    if hidden { HIDDEN.to_owned() } else { shortened(&shown) }
}

/// Stands for a value that may be a secret.
const HIDDEN: &str = "a value that is not shown";
