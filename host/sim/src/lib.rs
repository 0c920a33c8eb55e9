//! A simulated model: tokens are a pure function of history.
