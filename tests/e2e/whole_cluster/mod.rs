//! Scenarios that disturb the whole cluster: each runs alone and puts back what it changed.

mod api_server;
mod breaker;
mod certificates;
mod control_plane;
mod down;
mod failure_policy;
mod gates;
mod guard;
mod killed;
mod records;
mod restarts;
mod scale;
mod stop;
mod uninstall;
mod unprotected;
