//! rollout-guard: an admission webhook and rollout guard for Kubernetes Deployments.
//!
//! Kubernetes lets a new rollout start on top of one that is broken. The guard stands at the door: every update
//! of a Deployment that changes the pod template is judged by where the current generation stands. While it
//! is not observed the update queues, while it has failed the update is refused, with words that a pipeline's
//! log can show as they are.
//!
//! # The map
//!
//! ```text
//!  main ─▶ cli ─▶ commands ─▶ { webhook, watcher } ─▶ world
//!       ─▶ { cluster, admin, notify, telemetry, post, tls, shutdown } ─▶ { core, api }
//! ```
//!
//! - [`core`] decides. It is pure: no async, clock, client, logging or metrics; `now` is an argument.
//! - [`api`] holds the custom resources.
//! - [`cluster`] is the only place that talks to the API server.
//! - [`world`] holds in memory what every process decides by, and keeps it up to date: policies, namespaces, records.
//! - [`webhook`] turns reviews into decisions, serves them by TLS, and keeps its certificates.
//! - [`watcher`] follows every generation until it settles and rolls back what is stuck. It and [`webhook`] never
//!   see each other: what one must know of the other is in RolloutRecords.
//! - [`notify`] tells people beyond the cluster, and is never in the way of a rollback; [`post`] is its way out, and that
//!   of traces.
//! - [`commands`] holds one file for each subcommand; [`cli`] their arguments.
//!
//! # The one rule
//!
//! Dependencies point to the right in the picture above and never back; `core` uses nothing of the crate but the types
//! of `api`. `tests/architecture.rs` holds this.

pub mod admin;
pub mod api;
pub mod cli;
pub mod cluster;
pub mod commands;
pub mod core;
pub mod notify;
pub mod post;
pub mod shutdown;
pub mod telemetry;
pub mod tls;
pub mod watcher;
pub mod webhook;
pub mod world;
