//! The watcher: follows every generation until it settles, and rolls back what is stuck.

pub mod election;
pub mod reconcile;
pub mod surroundings;
