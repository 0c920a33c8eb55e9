//! The server over real connections, on the simulated model.

mod admin;
mod answers;
mod browsers;
mod connections;
mod crowds;
mod deciding;
mod detached;
mod ending;
mod guarding;
mod hostile;
mod least;
mod leaving;
mod likelihood;
mod limits;
mod metrics;
mod models;
mod rig;
mod shapes;
mod stopping;
mod telling;
mod watching;
mod wire;
mod work;
