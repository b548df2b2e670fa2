//! How the waiting for a push ended.

use crate::{api::policy::CauseType, core::key::Key};

/// How it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum End {
    /// It is complete.
    Complete,
    /// It cannot be told: the API server refuses or does not answer, or there is no such Deployment.
    Error,
    /// It cannot succeed.
    Failed,
    /// An earlier template was put back.
    RolledBack,
    /// Another template was pushed.
    Superseded,
    /// None of it in time.
    TimedOut,
}

impl End {
    /// Returns the exit status.
    pub const fn code(self) -> u8 {
        match self {
            Self::Complete => 0,
            Self::Failed => 1,
            Self::Error => 2,
            Self::RolledBack => 3,
            Self::Superseded => 4,
            Self::TimedOut => 124,
        }
    }

    /// Returns the word for it, which programs rely on.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Complete => "Complete",
            Self::Failed => "Failed",
            Self::Error => "Error",
            Self::RolledBack => "RolledBack",
            Self::Superseded => "Superseded",
            Self::TimedOut => "TimedOut",
        }
    }

    /// The order of [`worst`]: what is broken now comes first, then what was, then what is not known.
    const fn badness(self) -> u8 {
        match self {
            Self::Failed => 5,
            Self::RolledBack => 4,
            Self::Error => 3,
            Self::TimedOut => 2,
            Self::Superseded => 1,
            Self::Complete => 0,
        }
    }
}

/// Returns the worst of several ends: Failed, RolledBack, Error, TimedOut, Superseded, Complete; none of none.
pub fn worst(ends: impl IntoIterator<Item = End>) -> Option<End> {
    ends.into_iter().max_by_key(|end| end.badness())
}

/// How the waiting for one Deployment ended, and why.
#[derive(Clone, Debug, PartialEq)]
pub struct Decided {
    /// The Deployment.
    pub key: Key,
    /// How.
    pub end: End,
    /// In words, on one line and without control characters.
    pub message: String,
    /// What was wrong, where something was.
    pub cause: Option<CauseType>,
    /// Facts that anybody can check, a line each.
    pub evidence: Vec<String>,
    /// The command to go on with.
    pub next: Option<String>,
    /// The generation that was seen last.
    pub generation: Option<i64>,
    /// The revision that was waited for, where it has one.
    pub revision: Option<i64>,
}
