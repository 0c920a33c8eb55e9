//! Finds, merges, checks and explains the configuration.
