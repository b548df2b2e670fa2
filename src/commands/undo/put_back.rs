//! The writes of an undo: the watcher's own, with its guards and its way with 409.
//!
//! What the watcher does and an undo does not is the announcement on the Deployment's status (`Stalled=True`,
//! `RolledBack`). It must be taken away again, or it fails the next, good push of whoever waits by kstatus. The
//! watcher takes it away by its record of the rollback, and does so at once with one that no record speaks of, as that is
//! left over from something. Where no watcher is at work nobody would take it away at all. A person who goes back knows that
//! the push is lost, and `rollout-guard wait` sees a rollback by its template, whoever made it.

use serde_json::Value;

use crate::{
    cluster::{
        ClusterError,
        rollouts::{Part, Rollouts},
    },
    core::{
        key::Key,
        restore::{self, RestoreError},
        rollout::Snapshot,
        template::TemplateHash,
    },
};

/// How often a write that meets 409 is tried again: the status changes all the time during a rollout.
const TRIES: u32 = 12;

/// Why an earlier template is not back.
#[derive(Debug, thiserror::Error)]
pub enum UndoError {
    /// The API server refuses or does not answer.
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    /// It cannot be put back as the objects are.
    #[error(transparent)]
    Restore(#[from] RestoreError),
    /// Somebody pushed meanwhile: theirs stands.
    #[error("another template was pushed meanwhile; nothing was done")]
    Superseded,
    /// It was deleted, or is being deleted, or was paused.
    #[error("it was {0} meanwhile; nothing was done")]
    Gone(&'static str),
    /// It changes faster than it can be written.
    #[error("it changes faster than it can be written; nothing was done")]
    Busy,
}

/// The Deployment right before the template was put back, and as it was then.
#[derive(Clone, Debug)]
pub struct PutBack {
    /// Before.
    pub before: Value,
    /// After.
    pub after: Value,
}

/// Puts the template of `replica_set` back onto `deployment`, as read. A write that meets 409 is decided anew: only if
/// the template is still the one that was read.
///
/// # Errors
/// [`UndoError`]; nothing is done then, unless the API server did not answer.
pub async fn put_back(
    cluster: &impl Rollouts,
    key: &Key,
    deployment: &Value,
    replica_set: &Value,
) -> Result<PutBack, UndoError> {
    let template = |deployment: &Value| TemplateHash::of(&deployment["spec"]["template"]);
    let uid = |deployment: &Value| deployment["metadata"]["uid"].as_str().unwrap_or_default().to_owned();
    let mut current = deployment.clone();
    for _ in 0..TRIES {
        let patch = restore::restore(&current, replica_set)?;
        match cluster.patch(key, Part::Object, &patch).await {
            Ok(after) => return Ok(PutBack { before: current, after }),
            Err(error) if error.code() == Some(409) => {
                current = cluster.deployment(key).await?.ok_or(UndoError::Gone("deleted"))?;
            }
            Err(error) => return Err(error.into()),
        }
        let snapshot = Snapshot::of(&current);
        if uid(&current) != uid(deployment) || snapshot.deleting {
            return Err(UndoError::Gone("deleted"));
        }
        if template(&current) != template(deployment) {
            return Err(UndoError::Superseded);
        }
        if snapshot.paused {
            return Err(UndoError::Gone("paused"));
        }
    }
    Err(UndoError::Busy)
}

/// Hands the fields that the write took over back to whoever applied them, so that the next push meets no conflict and
/// leaves nothing behind. Moves no generation. A watcher that is at work does the same: whoever is first.
///
/// # Errors
/// [`UndoError`]: the template is back all the same.
pub async fn hand_back(cluster: &impl Rollouts, key: &Key, done: &PutBack) -> Result<(), UndoError> {
    let mut current = done.after.clone();
    for _ in 0..TRIES {
        let Some(patch) = restore::hand_back_as_before(&current, &done.before) else { return Ok(()) };
        match cluster.patch(key, Part::Object, &patch).await {
            Ok(after) => current = after,
            Err(error) if error.code() == Some(409) => {
                current = cluster.deployment(key).await?.ok_or(UndoError::Gone("deleted"))?;
            }
            Err(error) => return Err(error.into()),
        }
    }
    Err(UndoError::Busy)
}
