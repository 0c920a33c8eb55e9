//! The server over real connections, on the simulated model.

mod answers;
mod ending;
mod hostile;
mod leaving;
mod limits;
mod rig;
mod stopping;
mod telling;
mod wire;
