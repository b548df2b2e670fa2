//! The conditions of a RolloutRecord, and what is told of it: by the conventions of Kubernetes, so that
//! `kubectl wait --for=condition=...` and kstatus can read them.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use super::{
    message::{harmless, plain},
    record::{is_put_back, revision, second},
    rollback::{Hold, Plan},
};
use crate::api::record::{Outcome, RecordPhase, RecordRollback, RolloutRecordStatus};

/// The most characters of a condition's message and of an Event.
const LONGEST: usize = 900;

/// Writes the conditions that follow from the record and the plan.
pub fn set(status: &mut RolloutRecordStatus, plan: &Plan, now: Timestamp) {
    let complete = status.phase == Some(RecordPhase::Complete);
    let generation = status.generation.unwrap_or_default();
    let phase = status.phase.map_or("Unknown", RecordPhase::word);
    let ready = (complete, phase, format!("generation {generation} is {}", phase.to_lowercase()));
    let stalled = stalled(status, plan);
    let on_its_way = status.settled_at.is_none()
        && matches!(status.phase, Some(RecordPhase::Unobserved | RecordPhase::Progressing));
    let reconciling = match (&stalled, on_its_way) {
        (Some(_), _) => (false, "Stalled", "see the condition Stalled".to_owned()),
        (None, true) if is_put_back(status) => {
            (true, "RollingBack", "the revision that was put back is rolling out".to_owned())
        }
        (None, true) => (true, "RollingOut", format!("generation {generation} is rolling out")),
        (None, false) => (false, phase, "nothing is rolling out".to_owned()),
    };
    let stalled = match stalled {
        Some((reason, message)) => (true, reason, message),
        None => (false, "NotStuck", "nothing is stuck".to_owned()),
    };
    let mut wanted = vec![("Ready", ready), ("Reconciling", reconciling), ("Stalled", stalled)];
    if let Some(rolled_back) = rolled_back(status, plan) {
        wanted.push(("RolledBack", rolled_back));
    }
    let before = std::mem::take(&mut status.conditions);
    status.conditions = wanted
        .into_iter()
        .map(|(kind, (holds, reason, message))| {
            let word = if holds { "True" } else { "False" };
            let same = before.iter().find(|c| c.type_ == kind && c.status == word);
            Condition {
                type_: kind.to_owned(),
                status: word.to_owned(),
                reason: reason.to_owned(),
                message: bounded(&message),
                // That would be of the record's own generation: that of the Deployment is in the status.
                observed_generation: None,
                last_transition_time: same
                    .map_or_else(|| Time(second(now)), |same| same.last_transition_time.clone()),
            }
        })
        .collect();
}

fn stalled(status: &RolloutRecordStatus, plan: &Plan) -> Option<(&'static str, String)> {
    let why = |cause: &crate::api::record::RecordCause| format!("{}: {}", cause.kind.word(), cause.message);
    match plan {
        Plan::Hold(cause, hold) => Some((hold.reason(), format!("{}; {hold}", why(cause)))),
        Plan::Restore(cause, set) => {
            Some(("RollingBack", format!("{}; rolling back to revision {}", why(cause), set.revision)))
        }
        Plan::Stay(_) | Plan::Wait(_) => {
            let rollback = status.rollback.as_ref()?;
            let under_way = rollback.outcome == Outcome::InProgress
                && Some(&rollback.from) == status.template_hash.as_ref();
            under_way.then(|| ("RollingBack", format!("{}: {}", rollback.cause.word(), rollback.message)))
        }
    }
}

fn rolled_back(status: &RolloutRecordStatus, plan: &Plan) -> Option<(bool, &'static str, String)> {
    if let Plan::Hold(_, hold @ Hold::Manual { .. }) = plan {
        return Some((false, "Manual", hold.to_string()));
    }
    let rollback = status.rollback.as_ref()?;
    let current = Some(&rollback.to) == status.template_hash.as_ref();
    let message = told(rollback, status);
    Some(match rollback.outcome {
        Outcome::Failed if rollback.generation.is_none() => (false, "Refused", message),
        Outcome::InProgress => (true, "InProgress", message),
        Outcome::Succeeded if current => (true, "Succeeded", message),
        Outcome::Succeeded => (false, "Replaced", "another template was pushed since".to_owned()),
        Outcome::Failed => (false, "Failed", message),
        Outcome::Superseded => (
            false,
            "Superseded",
            "it was not needed any more, or another template was pushed meanwhile".to_owned(),
        ),
    })
}

/// Returns what a rollback is told with: from where to where, and why.
pub fn told(rollback: &RecordRollback, status: &RolloutRecordStatus) -> String {
    let name = |hash: &str, number: Option<i64>| {
        let images = revision(status, hash).map(|revision| revision.images.join(", ")).unwrap_or_default();
        let number =
            number.map_or_else(|| "a revision without a ReplicaSet".to_owned(), |n| format!("revision {n}"));
        if images.is_empty() { number } else { format!("{number} ({images})") }
    };
    let refused = rollback.outcome == Outcome::Failed && rollback.generation.is_none();
    let done = if refused { "could not be rolled back" } else { "rolled back" };
    bounded(&format!(
        "{done} from {} to {}: {}: {}",
        name(&rollback.from, rollback.from_revision),
        name(&rollback.to, rollback.to_revision),
        rollback.cause.word(),
        rollback.message
    ))
}

/// Something to be told as an Event, once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Telling {
    /// Whether it is a Warning.
    pub warning: bool,
    /// The reason in CamelCase.
    pub reason: &'static str,
    /// In words.
    pub message: String,
    /// What makes it one and the same.
    pub once: String,
    /// Since when it is so.
    pub since: Timestamp,
}

/// Returns what the record gives to tell.
pub fn tellings(status: &RolloutRecordStatus, plan: &Plan) -> Vec<Telling> {
    let rollout = format!(
        "{}/{}",
        status.template_hash.as_deref().unwrap_or_default(),
        status.rollout_generation.unwrap_or_default()
    );
    let generation = status.generation.unwrap_or_default();
    let condition = |kind: &str| status.conditions.iter().find(|c| c.type_ == kind && c.status == "True");
    let mut tellings = Vec::new();
    if let (Some(stalled), Plan::Hold(cause, _) | Plan::Restore(cause, _)) = (condition("Stalled"), plan) {
        let since = stalled.last_transition_time.0;
        let mut tell = |reason, message: String| {
            let once = match plan {
                // To wait for a turn is soon over, and not what it may be held for after that.
                Plan::Hold(_, Hold::Breaker(_)) if reason == "RollbackHeld" => {
                    format!("{rollout}/{reason}/Breaker")
                }
                _ => format!("{rollout}/{reason}"),
            };
            tellings.push(Telling { warning: true, reason, message: bounded(&message), once, since });
        };
        if !is_put_back(status) {
            let why = format!("{}: {}", cause.kind.word(), cause.message);
            tell("RolloutStuck", format!("generation {generation} is stuck: {why}"));
        }
        match plan {
            Plan::Hold(_, hold) if hold.reason() == "Latched" => {
                tell("RollbackLatched", stalled.message.clone());
            }
            Plan::Hold(..) => tell("RollbackHeld", stalled.message.clone()),
            _ => {}
        }
    }
    if let Some(rollback) = &status.rollback {
        let once = |reason: &str| format!("{}/{}/{reason}", rollback.from, rollback.started_at.0);
        if rollback.generation.is_some() {
            tellings.push(Telling {
                warning: true,
                reason: "RolledBack",
                message: told(rollback, status),
                once: once("RolledBack"),
                since: rollback.carried_out_at(),
            });
        }
        if let (Outcome::Succeeded, Some(finished)) = (rollback.outcome, &rollback.finished_at) {
            let revision = rollback.to_revision.map(|n| format!(" {n}")).unwrap_or_default();
            let generation = rollback.generation.unwrap_or_default();
            tellings.push(Telling {
                warning: false,
                reason: "RollbackVerified",
                message: format!(
                    "revision{revision} is back: generation {generation} is observed and complete"
                ),
                once: once("RollbackVerified"),
                since: finished.0,
            });
        }
    }
    tellings
}

/// Text for a condition or an Event: on one line, bounded, and never in words that make a client delete.
fn bounded(text: &str) -> String {
    harmless(&plain(text, LONGEST))
}
