//! The admission webhook, as it runs in every replica.
//!
//! ```text
//!  API server ──TLS──▶ server ─▶ router ─▶ review ─▶ judge ─▶ core::{admission, mutation}
//!                        ▲                             │
//!              certificates (issue, rotate, publish)   └─▶ world (policies, namespaces, records)
//! ```
//!
//! A decision needs the review and what [`crate::world`] holds in memory; no call to the API server, except one to
//! ask whether somebody may override. One write follows a decision, and never changes it: the announcement of a rollback
//! is taken off a Deployment whose new template is let through.

pub mod certificates;
pub mod judge;
pub mod review;
pub mod router;
pub mod server;
