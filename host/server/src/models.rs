//! Which models there are, under which names, and how each of them is.

use std::sync::{Arc, OnceLock};

use interlock_engine::{EngineExit, EngineHandle, EngineState, ModelShape, NotStarted};
use interlock_request::{ModelId, SamplingDefaults};
use interlock_text::TextModel;

use crate::failure::Failure;

/// A model that is served.
pub struct ServedModel {
    /// The name that clients use, and answers give.
    pub id: ModelId,
    /// Other names that clients may use.
    pub aliases: Vec<String>,
    /// How to sample where a request does not say.
    pub sampling: SamplingDefaults,
    /// Its text side; set when it is loaded. The server listens before that.
    pub text: Arc<OnceLock<Arc<TextModel>>>,
    /// The way to its engine.
    pub engine: EngineHandle,
}

/// How a model is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ModelState {
    /// It loads, or one that shares the engine thread does.
    Starting,
    /// It is served.
    Ready,
    /// Its engine was told to stop.
    Stopped,
    /// Its engine has stopped, and nobody told it to.
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

impl ServedModel {
    /// Its text side and its shape, when it is loaded.
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
pub(crate) struct Models(Vec<ServedModel>);

impl Models {
    pub(crate) fn new(models: Vec<ServedModel>) -> Self {
        Self(models)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &ServedModel> {
        self.0.iter()
    }

    /// The model that a client means.
    ///
    /// # Errors
    ///
    /// When none is called so.
    pub(crate) fn called(&self, name: &str) -> Result<&ServedModel, Failure> {
        self.iter().find(|model| model.is_called(name)).ok_or_else(|| {
            let served = self.iter().map(|model| model.id.to_string()).collect();
            Failure::UnknownModel { asked: name.to_owned(), served }
        })
    }
}
