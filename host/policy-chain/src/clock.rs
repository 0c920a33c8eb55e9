//! What time it is for a request: the clock that tokio can pause, so that a simulation's requests
//! age with the simulation. How long a policy takes is measured by the machine's own.

use std::time::Instant;

/// Now. The machine's clock where no runtime has paused it, or there is no runtime.
pub(crate) fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}
