//! Decides what the next pass computes.
