//! The server over real connections, on the simulated model.

mod admin;
mod answers;
mod cancelling;
mod crowds;
mod deciding;
mod detached;
mod ending;
mod fields;
mod guarding;
mod hostile;
mod least;
mod leaving;
mod likelihood;
mod limits;
mod models;
mod operator;
mod rig;
mod stopping;
mod telling;
mod tenants;
mod texts;
mod watching;
mod wire;
mod work;
