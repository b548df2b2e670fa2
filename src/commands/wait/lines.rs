//! The JSON lines: their keys are relied on, and only ever added to.

use jiff::Timestamp;
use serde::Serialize;

use super::follow::{News, What};
use crate::core::waiting::{Decided, End};

/// One line: `event` tells which.
#[derive(Debug, Serialize)]
#[serde(tag = "event", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub(super) enum Line {
    /// A Deployment stands elsewhere than before.
    Progress {
        time: String,
        namespace: String,
        name: String,
        generation: i64,
        observed_generation: i64,
        phase: crate::api::record::RecordPhase,
        desired: i32,
        replicas: i32,
        updated: i32,
        available: i32,
        cause: Option<CauseLine>,
        guard: Option<String>,
        message: String,
    },
    /// Something about the waiting itself.
    Note { time: String, namespace: String, name: String, message: String },
    /// A Deployment has come to its end.
    Decided {
        time: String,
        #[serde(flatten)]
        end: EndLine,
    },
    /// All have: the last line.
    Result {
        time: String,
        elapsed_seconds: i64,
        outcome: &'static str,
        exit_code: u8,
        deployments: Vec<EndLine>,
    },
}

#[derive(Debug, Serialize)]
pub(super) struct CauseLine {
    #[serde(rename = "type")]
    kind: &'static str,
    message: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct EndLine {
    namespace: String,
    name: String,
    outcome: &'static str,
    exit_code: u8,
    message: String,
    cause: Option<&'static str>,
    evidence: Vec<String>,
    next: Option<String>,
    generation: Option<i64>,
    revision: Option<i64>,
}

impl EndLine {
    pub(super) fn of(decided: &Decided) -> Self {
        Self {
            namespace: decided.key.namespace.clone(),
            name: decided.key.name.clone(),
            outcome: decided.end.word(),
            exit_code: decided.end.code(),
            message: decided.message.clone(),
            cause: decided.cause.map(|cause| cause.word()),
            evidence: decided.evidence.clone(),
            next: decided.next.clone(),
            generation: decided.generation,
            revision: decided.revision,
        }
    }
}

impl Line {
    pub(super) fn of_news(news: &News) -> Self {
        let (time, namespace, name) = (stamp(news.at), news.key.namespace.clone(), news.key.name.clone());
        match &news.what {
            What::Note(message) => Self::Note { time, namespace, name, message: message.clone() },
            What::Changed(position) => Self::Progress {
                time,
                namespace,
                name,
                generation: position.generation,
                observed_generation: position.observed_generation,
                phase: position.phase,
                desired: position.desired,
                replicas: position.replicas,
                updated: position.updated,
                available: position.available,
                cause: position
                    .cause
                    .as_ref()
                    .map(|(kind, message)| CauseLine { kind: kind.word(), message: message.clone() }),
                guard: position.guard.clone(),
                message: position.to_string(),
            },
        }
    }

    pub(super) fn of_end(decided: &Decided, now: Timestamp) -> Self {
        Self::Decided { time: stamp(now), end: EndLine::of(decided) }
    }

    pub(super) fn of_all(worst: End, ends: &[Decided], started: Timestamp, now: Timestamp) -> Self {
        Self::Result {
            time: stamp(now),
            elapsed_seconds: now.duration_since(started).as_secs(),
            outcome: worst.word(),
            exit_code: worst.code(),
            deployments: ends.iter().map(EndLine::of).collect(),
        }
    }

    /// As one line of JSON.
    pub(super) fn text(&self) -> String {
        // Strings, numbers and lists of them: there is nothing that cannot be written.
        serde_json::to_string(self).unwrap_or_default() + "\n"
    }
}

/// RFC 3339 in UTC, whole seconds.
fn stamp(time: Timestamp) -> String {
    format!("{time:.0}")
}
