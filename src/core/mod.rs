//! The decisions, pure: no async, clock, client, logging or metrics. `now` is an argument.

pub mod admission;
pub mod breaker;
pub mod cause;
pub mod conditions;
pub mod diagnosis;
pub mod difference;
pub mod fallback;
pub mod key;
pub mod lease;
pub mod ledger;
pub mod message;
pub mod mutation;
pub mod notification;
pub mod policy;
pub mod record;
pub mod replay;
pub mod restore;
pub mod rollback;
pub mod rollout;
pub mod template;
pub mod view;
pub mod waiting;
