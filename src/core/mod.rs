//! The decisions, pure: no async, clock, client, logging or metrics. `now` is an argument.

pub mod admission;
pub mod fallback;
pub mod message;
pub mod mutation;
pub mod policy;
pub mod rollout;
pub mod template;
