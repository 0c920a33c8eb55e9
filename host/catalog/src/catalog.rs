//! The places on this machine where models are stored.

use std::path::{Path, PathBuf};

use interlock_model_files::recognize;

use crate::built_in::{Installers, PackageFailure};
use crate::hub::{self, Hub, HubFailure};
use crate::{BUILT_IN, HubRepo, ModelRef, PullProgress};

/// The places on this machine where models are stored.
#[derive(Debug, Clone)]
pub struct Catalog {
    /// Interlock's own cache; built-in models are in its folder `models/`.
    pub cache: PathBuf,
    /// The Hugging Face hub and its cache, shared with every other tool.
    pub hub: Hub,
    installers: Installers,
}

/// The path of a model on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Located {
    /// A GGUF file, or a folder with `config.json` and `.safetensors` files.
    pub path: PathBuf,
}

/// A model in one of the caches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredModel {
    /// The reference that names the model.
    pub reference: ModelRef,
    /// The bytes that the model's files take on disk.
    pub bytes: u64,
    /// The path of the model's file or folder.
    pub path: PathBuf,
}

/// Why a model has no path.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotHere {
    /// The model is not on disk and can be pulled.
    #[error("{reference} is not in {}; run `interlock models pull {reference}`", place.display())]
    NotPulled {
        /// The reference of the model.
        reference: ModelRef,
        /// The path at which the model would lie.
        place: PathBuf,
    },
    /// A pull was interrupted.
    #[error(
        "{reference} lacks {missing} in {}; run `interlock models pull {reference}` to go on",
        place.display()
    )]
    Incomplete {
        /// The reference of the model.
        reference: ModelRef,
        /// What is missing.
        missing: String,
        /// The path at which the other files lie.
        place: PathBuf,
    },
    /// The user's own folder or file is not where the reference says.
    #[error("there is no file or folder {}{hint}", path.display())]
    NoSuchPath {
        /// The path that was looked at.
        path: PathBuf,
        /// A hint at what may have been meant; empty if there is none.
        hint: String,
    },
    /// What lies there is no model, or not the whole of one.
    #[error("{0}")]
    NotAModel(String),
    /// A simulated model has no files.
    #[error("{0} is simulated; it has no files")]
    Simulated(ModelRef),
}

impl NotHere {
    /// Whether a pull can help.
    pub fn can_be_pulled(&self) -> bool {
        matches!(self, Self::NotPulled { .. } | Self::Incomplete { .. })
    }
}

/// Why a model could not be pulled.
#[derive(Debug, thiserror::Error)]
pub enum NotPulled {
    /// A built-in model's package.
    #[error(transparent)]
    Package(#[from] PackageFailure),
    /// A repository on the hub.
    #[error(transparent)]
    Hub(#[from] HubFailure),
    /// A folder or a file that is not there, or a simulated model: nothing can be fetched.
    #[error(transparent)]
    NotHere(#[from] NotHere),
}

impl Catalog {
    /// A catalog of the given places.
    pub fn new(cache: PathBuf, hub: Hub) -> Self {
        Self { cache, hub, installers: Installers::default() }
    }

    /// The places that the environment names: `INTERLOCK_CACHE`, else `XDG_CACHE_HOME/interlock`,
    /// else `~/.cache/interlock`; for the hub see [`Hub::from_env`].
    pub fn from_env() -> Self {
        let set = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        let cache = set("INTERLOCK_CACHE").map(PathBuf::from).unwrap_or_else(|| {
            let home = set("XDG_CACHE_HOME").map(PathBuf::from);
            let home = home.or_else(|| std::env::home_dir().map(|home| home.join(".cache")));
            home.unwrap_or_else(std::env::temp_dir).join("interlock")
        });
        Self::new(cache, Hub::from_env())
    }

    /// Finds the model on disk, without asking the hub.
    ///
    /// # Errors
    ///
    /// When it is not here, or not whole; [`NotHere::can_be_pulled`] tells whether a pull helps.
    pub fn locate(&self, reference: &ModelRef) -> Result<Located, NotHere> {
        let path = match reference {
            ModelRef::Alias(built_in) => {
                let place = built_in.path_in(&self.cache);
                if !built_in.is_at(&place) {
                    return Err(NotHere::NotPulled { reference: reference.clone(), place });
                }
                place
            }
            ModelRef::HuggingFace(repo) => {
                let reference = reference.clone();
                let Some(folder) = self.hub.folder(repo) else {
                    return Err(NotHere::NotPulled { reference, place: self.hub.cache.clone() });
                };
                if let Some(missing) = hub::missing_in(&folder) {
                    return Err(NotHere::Incomplete { reference, missing, place: folder });
                }
                folder
            }
            ModelRef::Path(path) if path.exists() => {
                recognize(path).map_err(|refused| NotHere::NotAModel(refused.to_string()))?;
                path.clone()
            }
            ModelRef::Path(path) => {
                // `org/name` without `hf:` is the most common slip of all.
                let text = path.to_string_lossy();
                let hint = format!("hf:{text}").parse::<ModelRef>().ok();
                let hint =
                    hint.map_or_else(String::new, |meant| format!("; for the hub write {meant}"));
                return Err(NotHere::NoSuchPath { path: path.clone(), hint });
            }
            ModelRef::Sim { .. } => return Err(NotHere::Simulated(reference.clone())),
        };
        Ok(Located { path })
    }

    /// Brings the model here, or up to date: a branch on the hub may have moved.
    ///
    /// Blocks for as long as it takes. What a cut pull brought is kept and not fetched again. The
    /// user's own folder or file is here already, and only located.
    ///
    /// # Errors
    ///
    /// When it is nowhere, or the pull fails; the message says what to do about it.
    pub fn pull(&self, reference: &ModelRef, progress: PullProgress) -> Result<Located, NotPulled> {
        let path = match reference {
            ModelRef::Alias(built_in) => built_in.pull(&self.cache, &self.installers, progress)?,
            ModelRef::HuggingFace(repo) => self.hub.pull(repo, progress)?,
            ModelRef::Path(_) | ModelRef::Sim { .. } => {
                return Ok(self.locate(reference)?);
            }
        };
        Ok(Located { path })
    }

    /// Every whole model in our cache and in the hub's, built-in ones first.
    pub fn list(&self) -> Vec<StoredModel> {
        let built_in = BUILT_IN.iter().filter_map(|built_in| {
            let reference = ModelRef::Alias(built_in);
            let path = self.locate(&reference).ok()?.path;
            Some(StoredModel { reference, bytes: built_in.bytes, path })
        });
        let mut entries: Vec<StoredModel> = built_in.collect();
        let mut folders: Vec<PathBuf> = children(&self.hub.cache).collect();
        folders.sort();
        for folder in folders {
            let name = folder.file_name().map(|name| name.to_string_lossy().into_owned());
            let Some(name) = name.as_deref().and_then(|name| name.strip_prefix("models--")) else {
                continue;
            };
            // The cache writes `org/name` as `org--name`; an organisation has no double hyphen.
            entries.extend(snapshots(&folder, &name.replacen("--", "/", 1)));
        }
        entries
    }
}

/// The whole models in one `models--org--name` folder, each under every revision it is known by.
fn snapshots(folder: &Path, name: &str) -> Vec<StoredModel> {
    let mut entries = Vec::new();
    let refs_root = folder.join("refs");
    let mut refs = Vec::new();
    files_under(&refs_root, &mut refs);
    for path in children(&folder.join("snapshots")).filter(|path| hub::missing_in(path).is_none()) {
        let commit =
            path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into());
        let points_here = |file: &&PathBuf| {
            let named = interlock_files::read_text(file, hub::LINE_BYTES_MAX);
            named.is_ok_and(|text| text.trim() == commit)
        };
        let mut revisions: Vec<String> = refs
            .iter()
            .filter(points_here)
            .filter_map(|file| Some(file.strip_prefix(&refs_root).ok()?.to_string_lossy().into()))
            // hf-hub writes a ref for each commit that it downloads by name; that is no name.
            .filter(|revision: &String| *revision != commit)
            .collect();
        revisions.sort();
        if revisions.is_empty() {
            revisions.push(commit);
        }
        let bytes = children(&path).filter_map(|file| Some(file.metadata().ok()?.len())).sum();
        entries.extend(revisions.into_iter().map(|revision| StoredModel {
            reference: ModelRef::HuggingFace(HubRepo { name: name.to_owned(), revision }),
            bytes,
            path: path.clone(),
        }));
    }
    entries
}

fn children(folder: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    std::fs::read_dir(folder).into_iter().flatten().flatten().map(|child| child.path())
}

/// Files at any depth: a revision may contain slashes.
fn files_under(folder: &Path, found: &mut Vec<PathBuf>) {
    for child in children(folder) {
        if child.is_dir() { files_under(&child, found) } else { found.push(child) }
    }
}
