//! Which models there are, under which names, and how each of them is.

use std::sync::{Arc, OnceLock};

use interlock_engine::{EngineExit, EngineHandle, EngineState, EngineView, ModelShape, NotStarted};
use interlock_policy_api::{Candidate, Facts, Load};
use interlock_request::{ModelId, SamplingDefaults};
use interlock_text::TextModel;

use crate::failure::Failure;
use crate::model_stats::ModelStats;

/// A model that is served.
pub struct ServedModel {
    /// The name that clients use, and answers give.
    pub id: ModelId,
    /// Other names that clients may use.
    pub aliases: Vec<String>,
    /// How to sample where a request does not say.
    pub sampling: SamplingDefaults,
    /// The model's text side; set when it is loaded. The server listens before that.
    pub text: Arc<OnceLock<Arc<TextModel>>>,
    /// The way to its engine.
    pub engine: EngineHandle,
}

/// How a model is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ModelState {
    /// The model loads, or one that shares its engine thread does.
    Starting,
    /// The model is served.
    Ready,
    /// The engine was told to stop.
    Stopped,
    /// The engine has stopped by itself.
    Failed,
}

impl ModelState {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::Stopped => "stopped",
            Self::Failed => "failed",
        }
    }
}

/// A model in the host's table.
pub(crate) struct HostedModel {
    served: ServedModel,
    /// What it did lately.
    pub(crate) stats: Arc<ModelStats>,
}

impl std::ops::Deref for HostedModel {
    type Target = ServedModel;

    fn deref(&self) -> &ServedModel {
        &self.served
    }
}

impl HostedModel {
    /// As policies see it that choose among several, for this request.
    fn candidate(&self, id: u32, facts: &Facts) -> Candidate {
        let shape = match self.engine.state() {
            EngineState::Ready(shape) => Some(shape),
            EngineState::Starting | EngineState::Exited(_) => None,
        };
        let (first_token, inter_token) = self.stats.medians();
        Candidate {
            id,
            model: self.id.clone(),
            asked: self.is_called(facts.model.as_str()),
            ready: self.state() == ModelState::Ready,
            context: shape.map_or(0, |shape| shape.context),
            load: self.load(),
            prefix_seen: self.stats.has_prefix(facts.prefix_key),
            first_token,
            inter_token,
        }
    }
}

impl ServedModel {
    /// How busy it is.
    pub(crate) fn load(&self) -> Load {
        let EngineView { waiting, waiting_max, running, running_max } = self.engine.view();
        Load { waiting, waiting_max, running, running_max }
    }

    /// The model's text side and its shape, when it is loaded.
    ///
    /// # Errors
    ///
    /// When it is not yet, or no longer, there.
    pub(crate) fn at_hand(&self) -> Result<(&Arc<TextModel>, ModelShape), Failure> {
        let shape = match self.engine.state() {
            EngineState::Ready(shape) => shape,
            EngineState::Starting => return Err(NotStarted::Loading.into()),
            EngineState::Exited(exit) => return Err(NotStarted::Stopped(exit).into()),
        };
        let text = self.text.get().ok_or(NotStarted::Loading)?;
        Ok((text, shape))
    }

    pub(crate) fn state(&self) -> ModelState {
        match self.engine.state() {
            EngineState::Exited(EngineExit::Asked) => ModelState::Stopped,
            EngineState::Exited(_) => ModelState::Failed,
            EngineState::Ready(_) if self.text.get().is_some() => ModelState::Ready,
            EngineState::Ready(_) | EngineState::Starting => ModelState::Starting,
        }
    }

    fn is_called(&self, name: &str) -> bool {
        self.id.as_str() == name || self.aliases.iter().any(|alias| alias == name)
    }
}

/// All that are served, the default one first.
pub(crate) struct HostedModels(Vec<Arc<HostedModel>>);

impl HostedModels {
    pub(crate) fn new(models: Vec<ServedModel>) -> Self {
        let model = |served| Arc::new(HostedModel { served, stats: Arc::default() });
        Self(models.into_iter().map(model).collect())
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<HostedModel>> {
        self.0.iter()
    }

    /// How the first of them failed whose engine has stopped without being told to.
    pub(crate) fn failed(&self) -> Option<EngineExit> {
        self.iter().find_map(|model| model.engine.state().failure())
    }

    /// The name that answers give of the model which a client leaves to us, or else the client's
    /// own name for the one it means.
    pub(crate) fn asked(&self, name: Option<&str>) -> ModelId {
        let default = || self.0.first().map_or_else(|| ModelId::new(""), |model| model.id.clone());
        name.map_or_else(default, ModelId::new)
    }

    /// The model that a client means.
    ///
    /// # Errors
    ///
    /// When none is called so.
    pub(crate) fn called(&self, name: &str) -> Result<&Arc<HostedModel>, Failure> {
        self.iter().find(|model| model.is_called(name)).ok_or_else(|| self.unknown(name))
    }

    /// No model is called so.
    pub(crate) fn unknown(&self, name: &str) -> Failure {
        let served = self.iter().map(|model| model.id.to_string()).collect();
        Failure::UnknownModel { asked: name.to_owned(), served }
    }

    /// All of them, for policies to choose from.
    pub(crate) fn candidates(&self, facts: &Facts) -> Vec<Candidate> {
        (0..).zip(self.iter()).map(|(id, model)| model.candidate(id, facts)).collect()
    }

    /// The model of a candidate.
    pub(crate) fn chosen(&self, id: u32) -> Option<&Arc<HostedModel>> {
        self.0.get(usize::try_from(id).ok()?)
    }
}
