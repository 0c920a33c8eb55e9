//! What became of an engine: it starts, it serves, it has exited.

use crate::ModelShape;

/// The state of an engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EngineState {
    /// The model is loading.
    Starting,
    /// The engine serves, with a model of this shape.
    Ready(ModelShape),
    /// The engine has ended and will not come back.
    Exited(EngineExit),
}

impl EngineState {
    /// How the engine failed, if it did. An engine that ended because another one failed has not: that
    /// other one reports the failure.
    pub fn failure(self) -> Option<EngineExit> {
        match self {
            Self::Exited(EngineExit::Asked | EngineExit::OtherLoadFailed) => None,
            Self::Exited(exit) => Some(exit),
            Self::Starting | Self::Ready(_) => None,
        }
    }
}

/// How an engine ended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EngineExit {
    /// The engine was asked to stop.
    #[error("it was asked to stop")]
    Asked,
    /// The model could not be loaded.
    #[error("the model could not be loaded: {0}")]
    LoadFailed(String),
    /// Another model of the same thread could not be loaded. A host serves all of its models or none,
    /// so that an operator need not find out which are missing.
    #[error("another model could not be loaded")]
    OtherLoadFailed,
    /// The device, or its memory, has failed for good: the caches were lost and cannot be made anew.
    /// Every request that waited or ran was told so. The process should end on purpose, so that
    /// another can start afresh.
    #[error("the device has failed: {0}")]
    DeviceFailed(String),
    /// The thread panicked: a bug. The process should end on purpose and say so.
    #[error("its thread panicked: {0}")]
    Panicked(String),
}

impl EngineExit {
    /// The name of the variant, without the message, which is only for our log.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Asked => "asked",
            Self::LoadFailed(_) => "load_failed",
            Self::OtherLoadFailed => "other_load_failed",
            Self::DeviceFailed(_) => "device_failed",
            Self::Panicked(_) => "panicked",
        }
    }
}
