//! Scenarios that disturb the whole cluster: each runs alone and puts back what it changed.

mod certificates;
mod control_plane;
mod down;
mod failure_policy;
mod restarts;
mod uninstall;
