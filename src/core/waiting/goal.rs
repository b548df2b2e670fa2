//! Which push is waited for, and what took its place.
//!
//! A pipeline pushes and then waits, and in between the guard may have put the good template back. What is there at the
//! start is then well, and not what was pushed. It is told apart so:
//!
//! - The record says that the template of now is what a rollback put back, and nobody has written the Deployment since.
//! - And it began within [`JUST_NOW`] before the start, or is still announced. Without that, a pipeline whose
//!   push changed nothing would be told of the rollback of last week.
//!
//! A pipeline that knows the generation that its push made says so, and nothing needs to be guessed.

use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

use super::{Decided, End, Observed, Push, Waiting};
use crate::{
    api::record::{Outcome, RolloutRecordStatus},
    core::{
        conditions::told,
        message::plain,
        record::is_put_back,
        restore::{ANNOUNCED_REASON, ANNOUNCED_TYPE, FIELD_MANAGER},
        view::{DeploymentView, RevisionView},
    },
};

/// A rollback that began so long before the start may be that of the push that is waited for.
pub const JUST_NOW: SignedDuration = SignedDuration::from_mins(10);

/// The most images that are named.
const IMAGES: usize = 3;

/// The push that is waited for.
#[derive(Clone, Debug)]
pub(super) struct Goal {
    pub(super) uid: String,
    /// The hash of its template.
    pub(super) template: String,
    pub(super) revision: Option<i64>,
    images: Vec<String>,
    /// The hashes of the templates before it.
    earlier: Vec<String>,
    /// When the object was written last; none where that was not by this push.
    written: Option<Timestamp>,
}

impl Goal {
    /// Takes what is there at the start; how it ended, where it has ended before.
    pub(super) fn of(waiting: &Waiting, seen: &Observed<'_>, now: Timestamp) -> Result<Self, Box<Decided>> {
        let view = seen.view;
        let error = |why: String| Err(waiting.ended(End::Error, why));
        match waiting.terms.push {
            Push::Undone => {}
            Push::Current => {
                if let Some(words) = was_just_rolled_back(seen, now) {
                    return Err(rolled_back(waiting, seen, words));
                }
            }
            Push::Generation(wanted) if view.generation < wanted => {
                let is = view.generation;
                return error(format!("generation {wanted} was never written: the Deployment is at {is}"));
            }
            Push::Generation(wanted) => {
                if let Some(words) = was_rolled_back_since(seen, wanted) {
                    return Err(rolled_back(waiting, seen, words));
                }
                if let Some(begun) = begun(seen).filter(|begun| *begun > wanted) {
                    let what = named(view.revision, &view.images);
                    let message =
                        format!("superseded: generation {begun} has another template, {what}, and it stands");
                    return Err(waiting.ended(End::Superseded, message));
                }
            }
            Push::Revision(wanted) => {
                let found = view.revisions.iter().find(|revision| revision.revision == Some(wanted));
                let Some(found) = found else {
                    return error(format!("there is no ReplicaSet of revision {wanted}"));
                };
                return Ok(Self::of_revision(view, found));
            }
        }
        let template = view.template_hash.clone();
        Ok(Self {
            uid: view.uid.clone(),
            revision: view.revision,
            images: view.images.clone(),
            earlier: hashes(view, |revision| revision.template_hash != template),
            written: main_entries(seen.raw).map(|(_, at)| at).max(),
            template,
        })
    }

    fn of_revision(view: &DeploymentView, wanted: &RevisionView) -> Self {
        // A revision that is put back gets a new number, so that the age of its ReplicaSet tells which came first.
        let is_older = |other: &RevisionView| {
            other.template_hash != wanted.template_hash
                && (wanted.current || other.created_at.is_some() && other.created_at < wanted.created_at)
        };
        Self {
            uid: view.uid.clone(),
            template: wanted.template_hash.clone(),
            revision: wanted.revision,
            images: wanted.images.clone(),
            earlier: hashes(view, is_older),
            written: None,
        }
    }

    /// What is waited for, in words: `revision 4 (web:1.4.2)`.
    pub(super) fn named(&self) -> String {
        named(self.revision, &self.images)
    }
}

fn hashes(view: &DeploymentView, which: impl Fn(&RevisionView) -> bool) -> Vec<String> {
    let revisions = view.revisions.iter().filter(|revision| which(revision));
    revisions.map(|revision| revision.template_hash.clone()).collect()
}

/// `revision 4 (web:1.4.2)`.
fn named(revision: Option<i64>, images: &[String]) -> String {
    let number = revision.map_or_else(|| "a new revision".to_owned(), |n| format!("revision {n}"));
    let more = if images.len() > IMAGES { ", …" } else { "" };
    let shown = images.iter().take(IMAGES).map(String::as_str).collect::<Vec<_>>().join(", ");
    if shown.is_empty() { number } else { format!("{number} ({shown}{more})") }
}

/// The generation in which the template of now was first seen.
fn begun(seen: &Observed<'_>) -> Option<i64> {
    let record = seen.record?;
    (record.template_hash.as_deref() == Some(seen.view.template_hash.as_str()))
        .then_some(record.rollout_generation)
        .flatten()
}

/// The words of the rollback that put the template of now there, where the record tells of one.
fn put_back<'a>(seen: &Observed<'a>) -> Option<(&'a RolloutRecordStatus, String)> {
    let record = seen.record.filter(|record| is_put_back(record))?;
    let rollback = record.rollback.as_ref()?;
    let now = rollback.to == seen.view.template_hash && rollback.outcome != Outcome::Superseded;
    now.then(|| (record, told(rollback, record)))
}

fn was_rolled_back_since(seen: &Observed<'_>, generation: i64) -> Option<String> {
    let (record, words) = put_back(seen)?;
    let rollback = record.rollback.as_ref()?;
    (rollback.from_generation >= generation).then_some(words)
}

fn was_just_rolled_back(seen: &Observed<'_>, now: Timestamp) -> Option<String> {
    let announced = announced(seen.view);
    if let Some((record, words)) = put_back(seen) {
        let started = record.rollback.as_ref()?.started_at.0;
        let lately = now.duration_since(started) <= JUST_NOW;
        return ((lately || announced.is_some()) && !is_written_after(seen.raw, started)).then_some(words);
    }
    // Without a record that can be read there is only the announcement, which the next push takes away.
    let (words, since) = announced.filter(|_| seen.record.is_none())?;
    (!since.is_some_and(|since| is_written_after(seen.raw, since))).then_some(words)
}

/// What the guard says on the Deployment's status to whoever waits for a push that it rolled back, and since when.
fn announced(view: &DeploymentView) -> Option<(String, Option<Timestamp>)> {
    let condition = view.condition(ANNOUNCED_TYPE)?;
    (condition.status == "True" && condition.reason == ANNOUNCED_REASON)
        .then(|| (condition.message.clone(), condition.updated_at.or(condition.since)))
}

/// Says whether anybody but the guard wrote the Deployment after `time`. Neither its status nor its scale counts.
fn is_written_after(deployment: &Value, time: Timestamp) -> bool {
    main_entries(deployment).filter(|(manager, _)| *manager != FIELD_MANAGER).any(|(_, at)| at > time)
}

/// Who wrote the object itself, and when.
fn main_entries(deployment: &Value) -> impl Iterator<Item = (&str, Timestamp)> {
    let entries = deployment["metadata"]["managedFields"].as_array();
    entries
        .into_iter()
        .flatten()
        .filter(|entry| entry["subresource"].as_str().is_none_or(str::is_empty))
        .filter_map(|entry| Some((entry["manager"].as_str()?, entry["time"].as_str()?.parse().ok()?)))
}

/// How it ended where another template is there than the one that is waited for.
pub(super) fn replaced(waiting: &Waiting, goal: &Goal, seen: &Observed<'_>) -> Box<Decided> {
    let view = seen.view;
    let by_guard = seen.record.filter(|record| {
        record.rollback.as_ref().is_some_and(|rollback| {
            rollback.from == goal.template
                && rollback.to == view.template_hash
                && rollback.outcome != Outcome::Superseded
        })
    });
    if let Some((record, rollback)) =
        by_guard.and_then(|record| record.rollback.as_ref().map(|r| (record, r)))
    {
        return rolled_back(waiting, seen, told(rollback, record));
    }
    let earlier = goal.earlier.contains(&view.template_hash);
    if let Some((words, _)) = announced(view).filter(|_| earlier || goal.earlier.is_empty()) {
        return rolled_back(waiting, seen, words);
    }
    // After a rollback that handed its fields back the last entry is that of the push that was rolled back.
    let since = |(_, at): &(&str, Timestamp)| goal.written.is_some_and(|written| *at > written);
    let who = main_entries(seen.raw).filter(since).max_by_key(|(_, at)| *at);
    let who = who.map(|(manager, _)| plain(manager, 128));
    let who = who.map(|who| format!(" by {who}")).unwrap_or_default();
    let (from, to) = (goal.named(), named(view.revision, &view.images));
    if earlier {
        return rolled_back(waiting, seen, format!("rolled back from {from} to {to}{who}"));
    }
    let generation = view.generation;
    let message = format!("superseded: {from} was replaced by {to} in generation {generation}{who}");
    let mut decided = waiting.ended(End::Superseded, message);
    decided.generation = Some(generation);
    decided
}

/// `words` say from where to where, and why.
fn rolled_back(waiting: &Waiting, seen: &Observed<'_>, words: String) -> Box<Decided> {
    let mut decided = waiting.ended(End::RolledBack, words);
    decided.generation = Some(seen.view.generation);
    let from = waiting.goal.as_ref().map(|goal| goal.template.as_str());
    let rollback = seen.view.rollback.as_ref().filter(|rollback| {
        rollback.to == seen.view.template_hash && from.is_none_or(|from| from == rollback.from)
    });
    if let Some(rollback) = rollback {
        decided.cause = Some(rollback.cause);
        decided.evidence.clone_from(&rollback.evidence);
        decided.revision = rollback.from_revision.or(decided.revision);
    }
    let (namespace, name) = waiting.names();
    decided.next = Some(format!("rollout-guard history -n {namespace} {name}"));
    decided
}
