//! What a policy may say to the operator. The host tags each line with the policy and the request.

use std::fmt::Display;

use crate::bindings::base::interlock::policy::log::Level;
#[cfg(target_arch = "wasm32")]
use crate::bindings::base::interlock::policy::log::write;

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
    #[cfg(target_arch = "wasm32")]
    write(level, &message.to_string());
    // In a native test, whoever asks `testing::Host::log` hears it.
    #[cfg(not(target_arch = "wasm32"))]
    crate::testing::hear(level, message.to_string());
}
