//! What a policy may say to the operator. The host tags each line with the policy and the request.

use std::fmt::Display;

use crate::bindings::base::interlock::policy::log::{Level, write};

/// For following a decision step by step.
pub fn trace(message: impl Display) {
    say(Level::Trace, message);
}

/// For finding out why.
pub fn debug(message: impl Display) {
    say(Level::Debug, message);
}

/// Worth knowing.
pub fn info(message: impl Display) {
    say(Level::Info, message);
}

/// Worth a look.
pub fn warn(message: impl Display) {
    say(Level::Warn, message);
}

/// Broken. The host takes the last one before a trap as the trap's message.
pub fn error(message: impl Display) {
    say(Level::Error, message);
}

fn say(level: Level, message: impl Display) {
    // In a native test there is no host to hear it.
    if cfg!(target_arch = "wasm32") {
        write(level, &message.to_string());
    }
}
