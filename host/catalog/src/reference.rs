//! What a user writes to name a model.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use interlock_request::{ModelId, without_login};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{BUILT_IN, BuiltIn};

/// A model, as a flag, a setting or an argument names it. Parsing touches neither disk nor net.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(with = "String")]
pub enum ModelRef {
    /// `smollm2-135m-instruct`: one that we know how to get.
    Alias(&'static BuiltIn),
    /// `./qwen3`, `/models/qwen3`, `qwen3.gguf`: a folder with `config.json` and `.safetensors`
    /// files, or a GGUF file. Which of them it is, what lies there says, and not the name.
    Path(PathBuf),
    /// `hf:org/name[@revision]`: a repository on the Hugging Face hub.
    HuggingFace(HubRepo),
    /// `sim` or `sim:key=value,...`: no model at all, only its behaviour.
    Sim {
        /// The name by which clients ask for the model: that before `=`, or `sim`.
        name: String,
        /// The other settings; the simulated model itself reads them.
        settings: String,
    },
}

/// A repository on the hub, at a revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubRepo {
    /// The repository, as `org/name`.
    pub name: String,
    /// A branch, a tag or a commit; `main` unless given.
    pub revision: String,
}

impl HubRepo {
    /// The revision that is meant when none is written.
    pub const MAIN: &str = "main";
}

/// Why a text names no model.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadModelRef {
    /// The reference is empty.
    #[error("a model reference must not be empty; try `smollm2-135m-instruct`")]
    Empty,
    /// A bare word that is no alias.
    #[error(
        "{given:?} is no built-in model (did you mean `{nearest}`?); a folder is written with a \
         slash (`./{given}`), a repository as `hf:org/name`, a simulated model as `sim:...`"
    )]
    UnknownAlias {
        /// The reference as it was given.
        given: String,
        /// The built-in model closest to it.
        nearest: &'static str,
    },
    /// After `hf:`, something that is not `org/name[@revision]`.
    #[error("a Hugging Face reference is `hf:org/name` or `hf:org/name@revision`, got `hf:{0}`")]
    HubRepo(String),
    /// A scheme that we do not have.
    #[error("{0:?} has an unknown scheme; known are `hf:org/name` and `sim:settings`")]
    Scheme(String),
}

impl ModelRef {
    /// The name that clients use for this model.
    pub fn model_id(&self) -> ModelId {
        match self {
            Self::Alias(built_in) => ModelId::new(built_in.alias),
            Self::Path(path) => {
                // `.` and `..` have no name of their own until they are resolved.
                let named = path.file_name().map(PathBuf::from);
                let named = named.or_else(|| path.canonicalize().ok());
                let name = match &named {
                    Some(path) if is_called_gguf(path) => path.file_stem(),
                    path => path.as_deref().and_then(Path::file_name),
                };
                ModelId::new(name.map_or("model".into(), |name| name.to_string_lossy()))
            }
            Self::HuggingFace(repo) => ModelId::new(&repo.name),
            Self::Sim { name, .. } => ModelId::new(name),
        }
    }
}

impl Default for ModelRef {
    fn default() -> Self {
        Self::Alias(&BUILT_IN[0])
    }
}

impl FromStr for ModelRef {
    type Err = BadModelRef;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let text = text.trim();
        if text.is_empty() {
            return Err(BadModelRef::Empty);
        }
        if let Some(settings) = text.strip_prefix("sim:").or((text == "sim").then_some("")) {
            return Ok(simulated(settings));
        }
        if let Some(repo) = text.strip_prefix("hf:") {
            return hub_repo(repo)
                .map(Self::HuggingFace)
                .ok_or_else(|| BadModelRef::HubRepo(shown(repo)));
        }
        if let Some(built_in) = BUILT_IN.iter().find(|built_in| built_in.alias == text) {
            return Ok(Self::Alias(built_in));
        }
        if is_called_gguf(Path::new(text)) {
            return Ok(Self::Path(expand_home(text)));
        }
        if text.contains('/') || text.contains('\\') || matches!(text, "." | ".." | "~") {
            return match text.split_once(':') {
                Some((scheme, rest)) if rest.starts_with("//") => {
                    Err(BadModelRef::Scheme(format!("{scheme}:")))
                }
                _ => Ok(Self::Path(expand_home(text))),
            };
        }
        if let Some((scheme, _)) = text.split_once(':') {
            return Err(BadModelRef::Scheme(format!("{scheme}:")));
        }
        Err(BadModelRef::UnknownAlias { given: text.to_owned(), nearest: nearest_alias(text) })
    }
}

/// What was written in the place of a repository. Before a revision there is no colon, so what has one
/// there is a login.
fn shown(repo: &str) -> String {
    match repo.rsplit_once('@') {
        Some((before, _)) if before.contains(':') => without_login(repo),
        _ => repo.to_owned(),
    }
}

/// Whether a path is called as GGUF files are: nobody calls a repository or a built-in model so.
fn is_called_gguf(path: &Path) -> bool {
    path.extension().is_some_and(|kind| kind.eq_ignore_ascii_case("gguf"))
}

/// Takes the name out of the settings: it is ours, the others are the model's.
fn simulated(settings: &str) -> ModelRef {
    let (names, rest): (Vec<&str>, Vec<&str>) =
        settings.split(',').partition(|pair| pair.starts_with("name="));
    let name = names.last().map_or("", |pair| &pair["name=".len()..]);
    ModelRef::Sim {
        name: if name.is_empty() { "sim" } else { name }.to_owned(),
        settings: rest.join(","),
    }
}

fn nearest_alias(text: &str) -> &'static str {
    let distance = |built_in: &&BuiltIn| strsim::damerau_levenshtein(text, built_in.alias);
    BUILT_IN.iter().min_by_key(distance).map_or("", |built_in| built_in.alias)
}

/// `org/name[@revision]`. The hub allows no other characters, and none of these can leave the
/// folder that a cache makes of the name.
fn hub_repo(text: &str) -> Option<HubRepo> {
    let (name, revision) = text.split_once('@').unwrap_or((text, HubRepo::MAIN));
    let word = |word: &str, extra: &str| {
        !word.is_empty()
            && !word.split('/').any(|part| matches!(part, "" | "." | ".."))
            && word
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c) || extra.contains(c))
    };
    let (org, repo) = name.split_once('/')?;
    (word(org, "") && word(repo, "") && word(revision, "/"))
        .then(|| HubRepo { name: name.to_owned(), revision: revision.to_owned() })
}

/// A shell expands `~`, a configuration file does not.
fn expand_home(text: &str) -> PathBuf {
    let home = || std::env::home_dir().filter(|home| !home.as_os_str().is_empty());
    match text.strip_prefix('~').map(|rest| (rest, home())) {
        Some(("", Some(home))) => home,
        Some((rest, Some(home))) if rest.starts_with('/') => home.join(&rest[1..]),
        _ => PathBuf::from(text),
    }
}

impl fmt::Display for ModelRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Alias(built_in) => f.write_str(built_in.alias),
            Self::Path(path) => path.display().fmt(f),
            Self::HuggingFace(repo) => write!(f, "hf:{repo}"),
            Self::Sim { name, settings } => {
                let name = if name == "sim" { String::new() } else { format!("name={name}") };
                let parts = [settings.as_str(), &name];
                let parts: Vec<_> = parts.into_iter().filter(|part| !part.is_empty()).collect();
                let colon = if parts.is_empty() { "" } else { ":" };
                write!(f, "sim{colon}{}", parts.join(","))
            }
        }
    }
}

impl fmt::Display for HubRepo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)?;
        if self.revision == Self::MAIN { Ok(()) } else { write!(f, "@{}", self.revision) }
    }
}

impl TryFrom<String> for ModelRef {
    type Error = BadModelRef;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<ModelRef> for String {
    fn from(reference: ModelRef) -> Self {
        reference.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> ModelRef {
        text.parse().unwrap_or_else(|error| panic!("{text:?} was refused: {error}"))
    }

    #[test]
    fn a_reference_reads_as_it_is_written_and_names_the_model_for_clients() {
        for (text, id) in [
            ("smollm2-135m-instruct", "smollm2-135m-instruct"),
            ("./models/qwen3", "qwen3"),
            ("/models/Qwen3-0.6B/", "Qwen3-0.6B"),
            ("org/name", "name"),
            ("here.gguf", "here"),
            ("HERE.GGUF", "HERE"),
            ("./blobs/sha256-0a1b", "sha256-0a1b"),
            ("/models/SmolLM2-135M-Instruct.Q4_1.gguf", "SmolLM2-135M-Instruct.Q4_1"),
            ("hf:Qwen/Qwen3-0.6B", "Qwen/Qwen3-0.6B"),
            ("hf:Qwen/Qwen3-0.6B@refs/pr/7", "Qwen/Qwen3-0.6B"),
            ("sim", "sim"),
            ("sim:decode=5ms", "sim"),
            ("sim:decode=5ms,name=slow", "slow"),
            ("sim:name=slow", "slow"),
        ] {
            let reference = parse(text);
            assert_eq!(reference.to_string(), text);
            assert_eq!(reference.model_id().as_str(), id, "id of {text}");
        }
    }

    #[test]
    fn main_is_the_revision_that_need_not_be_written() {
        assert_eq!(parse("hf:a/b"), parse("hf:a/b@main"));
        assert_eq!(parse("hf:a/b@main").to_string(), "hf:a/b");
    }

    #[test]
    fn a_misspelt_alias_is_told_its_nearest_neighbour() {
        let error = "smollm2-135m".parse::<ModelRef>().expect_err("no such alias");
        assert_eq!(
            error.to_string(),
            "\"smollm2-135m\" is no built-in model (did you mean `smollm2-135m-instruct`?); a \
             folder is written with a slash (`./smollm2-135m`), a repository as `hf:org/name`, a \
             simulated model as `sim:...`"
        );
    }

    #[test]
    fn a_hub_repository_that_could_leave_its_cache_folder_is_refused() {
        for text in [
            "hf:",
            "hf:name",
            "hf:a/b/c",
            "hf:a/..",
            "hf:../b",
            "hf:a/b@",
            "hf:a/b@../x",
            "hf:a/b c",
        ] {
            assert!(
                matches!(text.parse::<ModelRef>(), Err(BadModelRef::HubRepo(_))),
                "{text:?} was taken"
            );
        }
    }

    #[test]
    fn an_address_is_not_taken_for_a_folder() {
        for text in ["https://example.com/x", "ollama:llama3"] {
            assert!(matches!(text.parse::<ModelRef>(), Err(BadModelRef::Scheme(_))), "{text}");
        }
    }
}
