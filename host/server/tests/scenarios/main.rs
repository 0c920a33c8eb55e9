//! The server over real connections, on the simulated model.

mod answers;
mod crowds;
mod ending;
mod hostile;
mod least;
mod leaving;
mod likelihood;
mod limits;
mod models;
mod rig;
mod stopping;
mod telling;
mod wire;
