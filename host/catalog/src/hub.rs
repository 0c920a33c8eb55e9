//! Models from the Hugging Face hub, or from a mirror that speaks like it.
//!
//! The files lie where every other tool puts them, in the standard cache, so that what one has
//! downloaded the other finds. A model is pinned to the commit that its revision names when the
//! pull begins; the revision is only pointed at that commit once all of it is here, so an update
//! that was cut leaves the old model whole.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hf_hub::api::sync::{Api, ApiBuilder, ApiError, ApiRepo};
use hf_hub::{Cache, Repo, RepoType};
use interlock_files::read_text;
use interlock_model_files::{BadWeights, NotAModel, WeightFiles, recognize, weights_named_in};
use interlock_request::{Secret, UrlWithLogin, without_logins};

use crate::{HubRepo, PullProgress, verify};

/// Longest file that holds a token or a commit.
pub(crate) const LINE_BYTES_MAX: u64 = 64 << 10;

/// A client of a Hugging Face hub: its address, the token to show, and the cache to write.
#[derive(Debug, Clone)]
pub struct Hub {
    /// The hub's address, without a trailing slash.
    pub endpoint: UrlWithLogin,
    /// The token to show, for private and gated models.
    pub token: Option<Secret>,
    /// The folder with a `models--org--name` folder for each model.
    pub cache: PathBuf,
    /// How long to wait before going on with a file whose connection was cut; it doubles each
    /// time, and ends after [`Hub::RETRIES`] times.
    pub retry_pause: Duration,
    /// `HF_HUB_OFFLINE`: never to be asked.
    pub offline: bool,
}

/// Why a pull from the hub failed.
#[derive(Debug, thiserror::Error)]
pub enum HubFailure {
    /// The user asked for no network.
    #[error("{repo} must be pulled, and HF_HUB_OFFLINE says not to; unset it or pull elsewhere")]
    Offline {
        /// The repository of the model.
        repo: HubRepo,
    },
    /// The hub answered 401 or 403.
    #[error(
        "{endpoint} does not let {who} read {repo} ({status}): private, gated or misspelt; {cure}"
    )]
    Unauthorized {
        /// The address of the hub.
        endpoint: String,
        /// With or without a token.
        who: &'static str,
        /// The repository of the model.
        repo: HubRepo,
        /// The status with which the hub answered.
        status: u16,
        /// What the operator can do about it.
        cure: &'static str,
    },
    /// The hub answered 404.
    #[error(
        "{endpoint} has no {what} of {repo}; check the name and the revision, or set HF_ENDPOINT \
         if it lives on another hub"
    )]
    NotFound {
        /// The address of the hub.
        endpoint: String,
        /// The part that is missing.
        what: String,
        /// The repository of the model.
        repo: HubRepo,
    },
    /// No connection, or one that kept breaking.
    #[error(
        "{endpoint} cannot be reached for {repo} ({why}); what arrived is kept, so pull again; \
         set HF_ENDPOINT for a mirror, HTTPS_PROXY for a proxy"
    )]
    Unreachable {
        /// The address of the hub.
        endpoint: String,
        /// The repository of the model.
        repo: HubRepo,
        /// In the client's words.
        why: String,
    },
    /// Another process downloads the same file.
    #[error("another process is downloading {repo} (it holds {}); wait for it", lock.display())]
    Busy {
        /// The repository of the model.
        repo: HubRepo,
        /// The file that it locked.
        lock: PathBuf,
    },
    /// The bytes are not those the hub announced. They have been removed.
    #[error("{file} of {repo} arrived damaged (SHA-256 {got}, announced {announced}); pull again")]
    Damaged {
        /// The repository of the model.
        repo: HubRepo,
        /// The name of the file.
        file: String,
        /// The property of the file that came.
        got: String,
        /// The property that the hub had announced.
        announced: String,
    },
    /// Nothing that we can load.
    #[error("{repo} has no {missing}; interlock loads config.json with .safetensors weights{hint}")]
    NoModel {
        /// The repository of the model.
        repo: HubRepo,
        /// What the repository lacks.
        missing: String,
        /// What else the operator could do.
        hint: &'static str,
    },
    /// The hub said something that we do not understand.
    #[error("{endpoint} answered for {repo}: {answer}")]
    Answer {
        /// The address of the hub.
        endpoint: String,
        /// The repository of the model.
        repo: HubRepo,
        /// In the client's words.
        answer: String,
    },
    /// The disk failed us.
    #[error("{}: {source}", path.display())]
    Disk {
        /// The path that was read or written.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
}

/// The small files of a model; all but the first may be absent.
const SMALL_FILES: [&str; 6] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "special_tokens_map.json",
];

impl Hub {
    /// How often a cut connection is taken up again before the pull gives up.
    pub const RETRIES: u32 = 4;

    /// The hub that the environment names, by the variables that Hugging Face's own tools read.
    #[expect(clippy::disallowed_methods, reason = "these variables are not ours to name")]
    pub fn from_env() -> Self {
        let set = |name: &str| std::env::var(name).ok().filter(|value| !value.trim().is_empty());
        let home = set("HF_HOME").map(PathBuf::from).unwrap_or_else(|| {
            let cache = set("XDG_CACHE_HOME").map(PathBuf::from);
            let cache = cache.or_else(|| std::env::home_dir().map(|home| home.join(".cache")));
            cache.unwrap_or_else(std::env::temp_dir).join("huggingface")
        });
        let token_path = set("HF_TOKEN_PATH").map_or_else(|| home.join("token"), PathBuf::from);
        let token = set("HF_TOKEN").or_else(|| read_text(&token_path, LINE_BYTES_MAX).ok());
        let endpoint = set("HF_ENDPOINT");
        let endpoint = endpoint.as_deref().unwrap_or("https://huggingface.co");
        Self {
            endpoint: endpoint.trim().trim_end_matches('/').to_owned().into(),
            token: token.filter(|token| !token.trim().is_empty()).map(|token| token.trim().into()),
            cache: set("HF_HUB_CACHE").map_or_else(|| home.join("hub"), PathBuf::from),
            retry_pause: Duration::from_secs(1),
            offline: set("HF_HUB_OFFLINE")
                .is_some_and(|value| !matches!(value.to_ascii_lowercase().as_str(), "0" | "false")),
        }
    }

    /// The folder of a model's files at a commit, whether it exists or not.
    fn snapshot(&self, repo: &HubRepo, commit: &str) -> PathBuf {
        let repo = Repo::new(repo.name.clone(), RepoType::Model);
        Cache::new(self.cache.clone()).repo(repo).pointer_path(commit)
    }

    /// The folder that the revision points at: a branch through its ref, a commit by its name.
    pub(crate) fn folder(&self, repo: &HubRepo) -> Option<PathBuf> {
        let root = Repo::new(repo.name.clone(), RepoType::Model).folder_name();
        let named_in = self.cache.join(root).join("refs").join(&repo.revision);
        let commit = read_text(&named_in, LINE_BYTES_MAX);
        let commit = commit.ok().map(|commit| commit.trim().to_owned());
        let folder = self.snapshot(repo, commit.as_deref().unwrap_or(&repo.revision));
        folder.is_dir().then_some(folder)
    }

    /// Brings the revision's files here, and returns their folder.
    pub(crate) fn pull(
        &self,
        repo: &HubRepo,
        progress: PullProgress,
    ) -> Result<PathBuf, HubFailure> {
        if self.offline {
            return Err(HubFailure::Offline { repo: repo.clone() });
        }
        let cache = Cache::new(self.cache.clone());
        let api = ApiBuilder::from_cache(cache.clone())
            .with_endpoint(self.endpoint.reveal().to_owned())
            .with_token(self.token.as_ref().map(|token| token.reveal().to_owned()))
            .with_user_agent("interlock", env!("CARGO_PKG_VERSION"))
            .build()
            .map_err(|error| self.failure(repo, "client", error))?;
        let at = |revision: &str| {
            Repo::with_revision(repo.name.clone(), RepoType::Model, revision.to_owned())
        };
        let what = format!("revision {}", repo.revision);
        // Asked once: whoever misspelt the endpoint should not wait for the retries of a download.
        let info = api.repo(at(&repo.revision)).info();
        let info = info.map_err(|error| self.failure(repo, &what, error))?;

        let names: BTreeSet<&str> =
            info.siblings.iter().map(|file| file.rfilename.as_str()).collect();
        let pull = Pull {
            hub: self,
            repo,
            api: &api,
            remote: api.repo(at(&info.sha)),
            commit: &info.sha,
            progress,
        };
        if !names.contains("config.json") {
            return Err(no_model(repo, "config.json", &names));
        }
        for name in SMALL_FILES.iter().filter(|name| names.contains(*name)) {
            pull.file(name)?;
        }
        let weights = match WeightFiles::among(names.iter().copied()) {
            Ok(WeightFiles::Index(name)) => {
                let index = pull.file(&name)?;
                let named = weights_named_in(&index);
                named.map_err(|bad| HubFailure::Disk {
                    path: index,
                    source: io::Error::other(bad),
                })?
            }
            Ok(WeightFiles::Files(files)) => files,
            Err(BadWeights::None) => return Err(no_model(repo, ".safetensors file", &names)),
            Err(BadWeights::Lacks(missing)) => return Err(no_model(repo, missing, &names)),
            Err(BadWeights::Several(what)) => {
                let missing = format!("one model: {what}");
                return Err(no_model(repo, missing, &names));
            }
        };
        for name in &weights {
            pull.file(name)?;
        }

        let folder = self.snapshot(repo, &info.sha);
        cache
            .repo(at(&repo.revision))
            .create_ref(&info.sha)
            .map_err(|source| HubFailure::Disk { path: folder.clone(), source })?;
        Ok(folder)
    }

    /// Asks again while the connection breaks, each time after a longer pause.
    ///
    /// Not hf-hub's own retries: those take up a file at offset 0 when the first attempt broke
    /// before its first byte, and append the whole of it to what was already there.
    fn patiently<T>(
        &self,
        repo: &HubRepo,
        what: &str,
        mut attempt: impl FnMut() -> Result<T, ApiError>,
    ) -> Result<T, HubFailure> {
        let mut pause = self.retry_pause;
        for left in (0..=Self::RETRIES).rev() {
            match attempt().map_err(|error| self.failure(repo, what, error)) {
                Err(HubFailure::Unreachable { why, .. }) if left > 0 => {
                    tracing::warn!(%repo, what, why, left, "the connection broke; the download continues");
                    std::thread::sleep(pause);
                    pause *= 2;
                }
                ended => return ended,
            }
        }
        unreachable!("the last attempt returns whatever it got")
    }

    fn failure(&self, repo: &HubRepo, what: &str, error: ApiError) -> HubFailure {
        // Its words may quote a URL, and a proxy's has a login in it.
        let (endpoint, repo) = (self.endpoint.to_string(), repo.clone());
        let words = |error: &dyn std::fmt::Display| without_logins(&error.to_string());
        let request = match error {
            ApiError::RequestError(request) => *request,
            ApiError::TooManyRetries(inner) => return self.failure(&repo, what, *inner),
            ApiError::LockAcquisition(lock) => return HubFailure::Busy { repo, lock },
            // Reading a body fails as plain I/O; so does writing it, and then going on fails too.
            ApiError::IoError(source) if source.raw_os_error() != Some(28) => {
                return HubFailure::Unreachable { endpoint, repo, why: words(&source) };
            }
            ApiError::IoError(source) => {
                return HubFailure::Disk { path: self.cache.clone(), source };
            }
            other => {
                let answer = format!("{what}: {}", words(&other));
                return HubFailure::Answer { endpoint, repo, answer };
            }
        };
        match request {
            ureq::Error::StatusCode(status @ (401 | 403)) => {
                let (who, cure) = match self.token {
                    None => ("us, without a token,", "set HF_TOKEN to a token that may read it"),
                    Some(_) => {
                        ("the owner of HF_TOKEN", "accept its terms there, or set another HF_TOKEN")
                    }
                };
                HubFailure::Unauthorized { endpoint, who, repo, status, cure }
            }
            ureq::Error::StatusCode(404) => {
                HubFailure::NotFound { endpoint, what: what.to_owned(), repo }
            }
            error @ (ureq::Error::StatusCode(500..=599)
            | ureq::Error::Io(_)
            | ureq::Error::Timeout(_)
            | ureq::Error::HostNotFound
            | ureq::Error::ConnectionFailed
            | ureq::Error::Protocol(_)
            | ureq::Error::ConnectProxyFailed(_)) => HubFailure::Unreachable {
                endpoint,
                repo,
                why: format!("{what}: {}", words(&error)),
            },
            error => {
                HubFailure::Answer { endpoint, repo, answer: format!("{what}: {}", words(&error)) }
            }
        }
    }
}

/// One pull under way.
struct Pull<'a> {
    hub: &'a Hub,
    repo: &'a HubRepo,
    api: &'a Api,
    remote: ApiRepo,
    commit: &'a str,
    progress: PullProgress,
}

impl Pull<'_> {
    /// Brings one file here unless it is here.
    fn file(&self, name: &str) -> Result<PathBuf, HubFailure> {
        let place = self.hub.snapshot(self.repo, self.commit).join(name);
        if place.exists() {
            return Ok(place);
        }
        let place = self.hub.patiently(self.repo, name, || {
            match self.remote.download_with_progress(name, self.progress.bar()) {
                // A pull that was killed between the last byte and the renaming leaves a part
                // with nothing to fetch behind it; one of an older version may even be too long.
                Err(error) if nothing_behind(&error) => {
                    self.forget_part(name)?;
                    self.remote.download_with_progress(name, self.progress.bar())
                }
                ended => ended,
            }
        })?;
        self.check(name, &place)?;
        tracing::info!(repo = %self.repo, file = name, "here");
        Ok(place)
    }

    fn forget_part(&self, name: &str) -> Result<(), ApiError> {
        let etag = self.api.metadata(&self.remote.url(name))?.etag().to_owned();
        let repo = Repo::new(self.repo.name.clone(), RepoType::Model);
        let blob = Cache::new(self.hub.cache.clone()).repo(repo).blob_path(&etag);
        Ok(std::fs::remove_file(blob.with_extension("part"))?)
    }

    /// Large files are stored under their own SHA-256, which makes checking them free of trust in
    /// what lies between the hub and us.
    fn check(&self, name: &str, place: &Path) -> Result<(), HubFailure> {
        let disk = |source| HubFailure::Disk { path: place.to_owned(), source };
        let blob = place.canonicalize().map_err(disk)?;
        let announced = blob.file_name().map(|name| name.to_string_lossy().into_owned());
        let Some(announced) = announced
            .filter(|name| name.len() == 64 && name.bytes().all(|byte| byte.is_ascii_hexdigit()))
        else {
            return Ok(());
        };
        let got = verify::sha256(&blob, &self.progress.bar()).map_err(disk)?;
        if got == announced {
            return Ok(());
        }
        std::fs::remove_file(place).and_then(|()| std::fs::remove_file(&blob)).map_err(disk)?;
        Err(HubFailure::Damaged { repo: self.repo.clone(), file: name.to_owned(), got, announced })
    }
}

fn nothing_behind(error: &ApiError) -> bool {
    match error {
        ApiError::InvalidResume => true,
        ApiError::RequestError(request) => matches!(**request, ureq::Error::StatusCode(416)),
        _ => false,
    }
}

fn no_model(repo: &HubRepo, missing: impl Into<String>, names: &BTreeSet<&str>) -> HubFailure {
    let gguf = names.iter().any(|name| name.ends_with(".gguf"));
    let hint = if gguf { "; it has .gguf files: download one and name its path" } else { "" };
    HubFailure::NoModel { repo: repo.clone(), missing: missing.into(), hint }
}

/// What a model's folder still lacks, or `None` when it is whole.
pub(crate) fn missing_in(folder: &Path) -> Option<String> {
    match recognize(folder) {
        Ok(_) => None,
        Err(NotAModel::Incomplete { missing, .. }) => Some(missing),
        Err(NotAModel::Neither { .. }) => Some("config.json".into()),
        Err(NotAModel::Index { path, .. } | NotAModel::Read { path, .. }) => {
            let name = path.file_name().unwrap_or(path.as_os_str());
            Some(name.to_string_lossy().into_owned())
        }
        // It is all there, and `models` says what is wrong with it.
        Err(NotAModel::Ambiguous { .. }) => None,
    }
}
