//! Where the current generation of a Deployment stands.

use std::borrow::Cow;

use jiff::Timestamp;
use serde_json::Value;

/// What a Deployment says of itself: its generations, counts and conditions.
///
/// Texts are borrowed from the review where that is possible.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Snapshot<'a> {
    /// `metadata.generation`.
    pub generation: i64,
    /// `status.observedGeneration`, 0 where kube-controller-manager has not written a status yet.
    pub observed_generation: i64,
    /// Whether `metadata.deletionTimestamp` is set.
    pub deleting: bool,
    /// `spec.paused`.
    pub paused: bool,
    /// `spec.replicas`, 1 where absent.
    pub desired: i32,
    /// `status.replicas`: pods of any revision.
    pub replicas: i32,
    /// `status.updatedReplicas`: pods of the current template.
    pub updated: i32,
    /// `status.availableReplicas`.
    pub available: i32,
    /// The condition `Progressing`.
    pub progressing: Option<Condition<'a>>,
    /// The condition `ReplicaFailure`.
    pub replica_failure: Option<Condition<'a>>,
    /// When the object (not its status) was last written, by its managedFields.
    pub written_at: Option<Timestamp>,
}

/// One condition of a Deployment's status.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Condition<'a> {
    /// `True`, `False` or `Unknown`.
    pub status: Cow<'a, str>,
    /// The reason in CamelCase, such as `ProgressDeadlineExceeded`.
    pub reason: Cow<'a, str>,
    /// The message, from Kubernetes or from an admission plugin: not trusted.
    pub message: Cow<'a, str>,
    /// `lastUpdateTime`.
    pub updated_at: Option<Timestamp>,
}

/// Where the current generation stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Phase {
    /// The Deployment is being deleted.
    Deleting,
    /// kube-controller-manager has not seen the current generation, or could not act on it.
    Unobserved,
    /// The rollout is paused.
    Paused,
    /// Every replica runs the current template and is available.
    Complete,
    /// Kubernetes has given the rollout up (until it makes progress again).
    Failed,
    /// On its way.
    Progressing,
}

/// Returns the phase: by counts and conditions, never by conditions alone, as those carry over from one
/// generation to the next.
///
/// Complete is `DeploymentComplete` of `pkg/controller/deployment/util` in Kubernetes. A `Progressing=False`
/// is `ProgressDeadlineExceeded` or `ReplicaSetCreateError`, and believed only while the counts do not say
/// that the rollout is complete.
pub fn classify(snapshot: &Snapshot<'_>) -> Phase {
    if snapshot.deleting {
        return Phase::Deleting;
    }
    if snapshot.observed_generation < snapshot.generation {
        return Phase::Unobserved;
    }
    if snapshot.paused {
        return Phase::Paused;
    }
    let Snapshot { desired, replicas, updated, available, .. } = snapshot;
    if updated == desired && replicas == desired && available == desired {
        return Phase::Complete;
    }
    match &snapshot.progressing {
        Some(condition) if condition.status == "False" => Phase::Failed,
        _ => Phase::Progressing,
    }
}

impl<'a> Snapshot<'a> {
    /// Reads a Deployment as the API server gives it; what is missing is as Kubernetes takes it.
    pub fn of(deployment: &'a Value) -> Self {
        let (spec, status) = (&deployment["spec"], &deployment["status"]);
        let count = |field: &str| status[field].as_i64().and_then(|n| i32::try_from(n).ok()).unwrap_or(0);
        let condition = |kind: &str| {
            let found = status["conditions"].as_array()?.iter().find(|c| c["type"] == kind)?;
            let text = |field: &str| Cow::Borrowed(found[field].as_str().unwrap_or_default());
            Some(Condition {
                status: text("status"),
                reason: text("reason"),
                message: text("message"),
                updated_at: found["lastUpdateTime"].as_str().and_then(|text| text.parse().ok()),
            })
        };
        let entries = deployment["metadata"]["managedFields"].as_array();
        // A write of the subresource `scale` is one of the object.
        let of_object = |entry: &&Value| entry["subresource"] != "status";
        Self {
            generation: deployment["metadata"]["generation"].as_i64().unwrap_or_default(),
            observed_generation: status["observedGeneration"].as_i64().unwrap_or_default(),
            deleting: deployment["metadata"]["deletionTimestamp"].is_string(),
            paused: spec["paused"].as_bool().unwrap_or_default(),
            desired: spec["replicas"].as_i64().and_then(|n| i32::try_from(n).ok()).unwrap_or(1),
            replicas: count("replicas"),
            updated: count("updatedReplicas"),
            available: count("availableReplicas"),
            progressing: condition("Progressing"),
            replica_failure: condition("ReplicaFailure"),
            written_at: entries
                .into_iter()
                .flatten()
                .filter(of_object)
                .filter_map(|entry| entry["time"].as_str()?.parse().ok())
                .max(),
        }
    }
}

/// Returns where the Deployment stands, a failure of the generation before left out. `current` is the ReplicaSet of the
/// current template, where it has one.
pub fn phase(snapshot: &Snapshot<'_>, current: Option<&str>) -> Phase {
    let inherited = snapshot.progressing.as_ref().is_some_and(|c| is_inherited(c, current));
    match classify(snapshot) {
        Phase::Failed if inherited => Phase::Progressing,
        phase => phase,
    }
}

/// Says whether a failure that Kubernetes reports is that of the generation before: the condition stands over until
/// there is progress, and its message names the ReplicaSet it is about. `current` is the ReplicaSet of the template
/// of now, where it has one.
pub fn is_inherited(progressing: &Condition<'_>, current: Option<&str>) -> bool {
    if progressing.status != "False" {
        return false;
    }
    let named = progressing.message.split('"').nth(1).unwrap_or_default();
    match (&*progressing.reason, current) {
        // About the ReplicaSet that could not be created: where there is one, that is another.
        ("ReplicaSetCreateError", current) => current.is_some(),
        // Kubernetes names the Deployment itself where the template has no ReplicaSet.
        (_, None) => progressing.message.starts_with("ReplicaSet "),
        (_, Some(current)) => progressing.message.starts_with("ReplicaSet ") && named != current,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complete() -> Snapshot<'static> {
        Snapshot {
            generation: 2,
            observed_generation: 2,
            desired: 3,
            replicas: 3,
            updated: 3,
            available: 3,
            ..Snapshot::default()
        }
    }

    fn progressing(status: &'static str, reason: &'static str) -> Option<Condition<'static>> {
        Some(Condition { status: status.into(), reason: reason.into(), ..Condition::default() })
    }

    #[test]
    fn the_phase_is_read_from_counts_and_conditions() {
        let failed = progressing("False", "ProgressDeadlineExceeded");
        let cases = [
            (complete(), Phase::Complete),
            (Snapshot { deleting: true, observed_generation: 1, ..complete() }, Phase::Deleting),
            (Snapshot { observed_generation: 1, ..complete() }, Phase::Unobserved),
            (Snapshot { observed_generation: 0, ..complete() }, Phase::Unobserved),
            (Snapshot { paused: true, updated: 0, ..complete() }, Phase::Paused),
            (Snapshot { updated: 1, ..complete() }, Phase::Progressing),
            (Snapshot { replicas: 4, ..complete() }, Phase::Progressing),
            (Snapshot { available: 2, ..complete() }, Phase::Progressing),
            (Snapshot { available: 2, progressing: failed.clone(), ..complete() }, Phase::Failed),
            (
                Snapshot {
                    updated: 1,
                    progressing: progressing("Unknown", "DeploymentResumed"),
                    ..complete()
                },
                Phase::Progressing,
            ),
        ];
        for (snapshot, phase) in cases {
            assert_eq!(classify(&snapshot), phase, "{snapshot:?}");
        }
    }

    #[test]
    fn a_failure_inherited_by_a_generation_that_is_complete_is_not_believed() {
        let snapshot =
            Snapshot { progressing: progressing("False", "ProgressDeadlineExceeded"), ..complete() };
        assert_eq!(classify(&snapshot), Phase::Complete);
    }

    #[test]
    fn a_success_inherited_by_a_new_generation_is_not_believed() {
        let snapshot =
            Snapshot { updated: 0, progressing: progressing("True", "NewReplicaSetAvailable"), ..complete() };
        assert_eq!(classify(&snapshot), Phase::Progressing);
    }

    #[test]
    fn a_replicaset_that_cannot_be_created_for_an_unobserved_generation_is_unobserved() {
        let snapshot = Snapshot {
            observed_generation: 1,
            progressing: progressing("False", "ReplicaSetCreateError"),
            ..complete()
        };
        assert_eq!(classify(&snapshot), Phase::Unobserved);
    }
}
