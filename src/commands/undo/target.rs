//! To which revision it goes back.

use std::fmt::Write as _;

use serde_json::Value;

use crate::{
    api::record::{RecordPhase, RolloutRecordStatus, Verdict},
    commands::look::Look,
    core::{
        message::plain,
        record::{Progress, Seen, Set},
        rollback,
        rollout::{Phase, Snapshot},
        template::TemplateHash,
        view::{DeploymentView, RevisionView},
    },
};

/// The most revisions that are listed.
const LISTED: usize = 10;

/// Where it goes back to, and why there.
#[derive(Clone, Debug)]
pub struct Target {
    /// The revision.
    pub revision: RevisionView,
    /// Its ReplicaSet as read.
    pub replica_set: Value,
    /// Why this one, in words.
    pub why: String,
    /// What speaks against it, in words.
    pub warning: Option<String>,
}

impl Target {
    /// `revision 3 (web:1.4.1)`.
    pub fn named(&self) -> String {
        named(&self.revision)
    }
}

/// `revision 3 (web:1.4.1)`.
pub fn named(revision: &RevisionView) -> String {
    let number = revision.revision.map_or_else(|| "a revision".to_owned(), |n| format!("revision {n}"));
    match revision.images.as_slice() {
        [] => number,
        [image] => format!("{number} ({image})"),
        [image, more @ ..] => format!("{number} ({image} and {} more)", more.len()),
    }
}

/// Chooses the revision with the number `wanted`; without one the last that the guard found good, else the one that still
/// serves: what the watcher would choose.
///
/// # Errors
/// In words, where it must not or cannot be.
pub fn choose(look: &Look, wanted: Option<i64>) -> Result<Target, String> {
    let view = &look.view;
    let (namespace, name) = (&view.namespace, &view.name);
    if view.phase == RecordPhase::Deleting {
        return Err(format!("deployment/{name} is being deleted"));
    }
    if view.paused {
        return Err(format!(
            "deployment/{name} is paused; resume it first (kubectl -n {namespace} rollout resume deployment/{name}) and try again"
        ));
    }
    let Some(sets) = &look.replica_sets else {
        let why = look.hidden.iter().map(ToString::to_string).next().unwrap_or_default();
        return Err(format!(
            "the ReplicaSets hold the earlier templates, and cannot be read: {}",
            plain(&why, 600)
        ));
    };
    let revision = match wanted {
        Some(number) => numbered(view, number)?,
        None => best(look)?,
    };
    let set = revision.replica_set.as_deref();
    let replica_set = sets.iter().find(|raw| raw["metadata"]["name"].as_str() == set);
    let replica_set = replica_set.ok_or_else(|| format!("{} has no ReplicaSet any more", named(revision)))?;
    Ok(Target {
        why: why(revision, wanted.is_some()),
        warning: warning(revision),
        revision: revision.clone(),
        replica_set: replica_set.clone(),
    })
}

fn numbered(view: &DeploymentView, number: i64) -> Result<&RevisionView, String> {
    let found = view.revisions.iter().filter(|revision| revision.revision == Some(number));
    let found = found.max_by_key(|revision| revision.replica_set.is_some());
    let Some(found) = found.filter(|revision| revision.replica_set.is_some()) else {
        return Err(format!("revision {number} has no ReplicaSet; there are {}", listed(view)));
    };
    if found.current || found.template_hash == view.template_hash {
        return Err(format!("{} is what deployment/{} has already", named(found), view.name));
    }
    Ok(found)
}

fn best(look: &Look) -> Result<&RevisionView, String> {
    let view = &look.view;
    let nothing = RolloutRecordStatus::default();
    let record = look.record.as_ref().map_or(&nothing, |record| &record.status);
    let sets: Vec<Set> = view.revisions.iter().filter_map(set).collect();
    let snapshot = Snapshot::of(&look.deployment);
    let seen = Seen {
        generation: snapshot.generation,
        observed_generation: snapshot.observed_generation,
        // Neither it nor what follows has a say in the choice.
        phase: Phase::Failed,
        paused: snapshot.paused,
        desired: snapshot.desired,
        template: TemplateHash::of(&look.deployment["spec"]["template"]),
        images: view.images.clone(),
        replica_sets: Some(&sets),
        before: None,
        cause: None,
        progress: Progress::begun(0, 0, jiff::Timestamp::UNIX_EPOCH),
        unobserved_since: None,
        progress_deadline: None,
        manager: None,
    };
    let found = rollback::target(record, &seen).map(|set| set.name.as_str());
    let found = found.and_then(|name| {
        view.revisions.iter().find(|revision| revision.replica_set.as_deref() == Some(name))
    });
    found.ok_or_else(|| {
        let others =
            view.revisions.iter().filter(|revision| !revision.current && revision.replica_set.is_some());
        if others.count() == 0 {
            return format!("deployment/{} has no earlier revision to go back to", view.name);
        }
        let why = if view.guarded {
            "no earlier revision is known to be good, and none of them serves"
        } else {
            "no guard has judged the earlier revisions, and none of them serves"
        };
        format!("{why}: name one with --to; there are {}", listed(view))
    })
}

fn set(revision: &RevisionView) -> Option<Set> {
    Some(Set {
        name: revision.replica_set.clone()?,
        template: TemplateHash::parse(&revision.template_hash)?,
        revision: revision.revision.unwrap_or_default(),
        available: revision.available,
        images: revision.images.clone(),
    })
}

fn why(revision: &RevisionView, asked: bool) -> String {
    match (asked, revision.verdict) {
        (true, _) => "as asked for".to_owned(),
        (false, Some(Verdict::Good)) => "the last one that was good".to_owned(),
        (false, _) => "the one that still serves".to_owned(),
    }
}

fn warning(revision: &RevisionView) -> Option<String> {
    let reason = revision.reason.map(|reason| format!(" ({})", reason.word())).unwrap_or_default();
    (revision.verdict == Some(Verdict::Bad))
        .then(|| format!("{} is Bad: the guard rolled back from it{reason}", named(revision)))
}

/// The revisions that can be named, newest first.
fn listed(view: &DeploymentView) -> String {
    let mut out = String::new();
    let all = || view.revisions.iter().filter(|revision| revision.replica_set.is_some());
    for revision in all().take(LISTED) {
        let comma = if out.is_empty() { "" } else { ", " };
        let verdict = match (revision.current, revision.verdict) {
            (true, _) => " [current]",
            (_, Some(Verdict::Good)) => " [Good]",
            (_, Some(Verdict::Bad)) => " [Bad]",
            _ => "",
        };
        let _ = write!(out, "{comma}{}{verdict}", named(revision));
    }
    match all().count() {
        0 => "none".to_owned(),
        count if count > LISTED => format!("{out} and {} more", count - LISTED),
        _ => out,
    }
}
