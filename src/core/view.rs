//! Deployments as people and programs are shown them: `status`, `wait`, `diagnose`, `history`, `undo` all print these.
//!
//! ```text
//!  Deployment ─┐
//!  ReplicaSets ┼─▶ DeploymentView ─▶ table, tree, JSON
//!  pods        ┤
//!  record ─────┘
//! ```
//!
//! Read leniently from raw JSON: what is absent or of another type is as Kubernetes takes it. All texts are on one
//! line, bounded and without control characters, so that they may be printed as they are. The JSON is stable: fields are
//! added and never renamed, lists are always there.

mod pod;

#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, HashMap};

use jiff::Timestamp;
use serde::Serialize;
use serde_json::Value;

use super::{
    cause::Cause,
    message::{harmless, plain},
    rollout::{Phase, Snapshot, classify, phase},
    template::TemplateHash,
};
use crate::api::{
    policy::CauseType,
    record::{
        Outcome, RecordCause, RecordPhase, RecordRevision, RecordRollback, RolloutRecordStatus, Verdict,
    },
};

pub use pod::PodView;

/// The annotation by which kube-controller-manager numbers revisions.
pub const REVISION_ANNOTATION: &str = "deployment.kubernetes.io/revision";

/// The annotation by which people say why they made a revision.
pub const CHANGE_CAUSE_ANNOTATION: &str = "kubernetes.io/change-cause";

/// The most characters of a name, an image or a reason.
const SHORT: usize = 512;

/// The most characters of a message.
const LONG: usize = 1000;

/// The most images that are shown of one template.
const IMAGES: usize = 16;

/// The most conditions that are shown.
const CONDITIONS: usize = 32;

/// A Deployment, where its generation stands and why.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DeploymentView {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its uid.
    pub uid: String,
    /// `metadata.generation`.
    pub generation: i64,
    /// `status.observedGeneration`; 0 where there is none yet.
    pub observed_generation: i64,
    /// Where the generation stands.
    pub phase: RecordPhase,
    /// `spec.paused`.
    pub paused: bool,
    /// Since when it stands there, as far as that can be told.
    pub since: Option<Timestamp>,
    /// `spec.replicas`, 1 where absent.
    pub desired: i32,
    /// `status.replicas`: pods of any revision.
    pub replicas: i32,
    /// `status.updatedReplicas`: pods of the current template.
    pub updated: i32,
    /// `status.readyReplicas`.
    pub ready: i32,
    /// `status.availableReplicas`.
    pub available: i32,
    /// `status.unavailableReplicas`.
    pub unavailable: i32,
    /// `metadata.creationTimestamp`.
    pub created_at: Option<Timestamp>,
    /// The images of the current template, each once.
    pub images: Vec<String>,
    /// The hash of the current template.
    pub template_hash: String,
    /// The revision of the current template; none before kube-controller-manager has numbered it.
    pub revision: Option<i64>,
    /// How pods are replaced.
    pub strategy: StrategyView,
    /// Whether a RolloutRecord of this very Deployment told something.
    pub guarded: bool,
    /// What the record says of the current template.
    pub verdict: Option<Verdict>,
    /// Why it does not get on.
    pub cause: Option<CauseView>,
    /// The last rollback.
    pub rollback: Option<RollbackView>,
    /// The conditions of the Deployment.
    pub conditions: Vec<ConditionView>,
    /// The conditions of the record: Ready, Reconciling, Stalled, RolledBack.
    pub guard_conditions: Vec<ConditionView>,
    /// The revisions, newest first; empty where ReplicaSets were not looked at, as in lists.
    pub revisions: Vec<RevisionView>,
}

/// How pods are replaced, and how long that may take.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct StrategyView {
    /// `RollingUpdate` or `Recreate`.
    #[serde(rename = "type")]
    pub kind: String,
    /// `maxSurge`, a number or a percentage.
    pub max_surge: Option<String>,
    /// `maxUnavailable`, a number or a percentage.
    pub max_unavailable: Option<String>,
    /// `spec.progressDeadlineSeconds`; none where there is no deadline.
    pub progress_deadline_seconds: Option<i64>,
    /// `spec.minReadySeconds`.
    pub min_ready_seconds: i64,
    /// `spec.revisionHistoryLimit`, 10 where absent.
    pub revision_history_limit: i64,
}

/// Why a generation does not get on.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CauseView {
    /// The kind of cause.
    #[serde(rename = "type")]
    pub kind: CauseType,
    /// In words.
    pub message: String,
    /// Since when it is known; none where no record says.
    pub since: Option<Timestamp>,
    /// Facts that anybody can check, a line each.
    pub evidence: Vec<String>,
    /// Whether it is so hard a fact that the progress deadline need not be waited for.
    pub early: bool,
}

/// A rollback that the guard carried out, or is about to.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RollbackView {
    /// The revision that was rolled back from, where it had a ReplicaSet.
    pub from_revision: Option<i64>,
    /// The revision that was put back.
    pub to_revision: Option<i64>,
    /// The hash of the template that was rolled back from.
    pub from: String,
    /// The hash of the template that was put back.
    pub to: String,
    /// The generation that was rolled back from.
    pub from_generation: i64,
    /// The generation that the restore made; none before it was made.
    pub generation: Option<i64>,
    /// Why.
    pub cause: CauseType,
    /// Why, in words.
    pub message: String,
    /// Facts that anybody could check then, a line each.
    pub evidence: Vec<String>,
    /// When the template that was rolled back from was first seen.
    pub pushed_at: Option<Timestamp>,
    /// When it was decided on.
    pub started_at: Timestamp,
    /// When its outcome was known.
    pub finished_at: Option<Timestamp>,
    /// What became of it.
    pub outcome: Outcome,
    /// Whether the template that was put back is the current one.
    pub current: bool,
}

/// A condition.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ConditionView {
    /// The type in CamelCase.
    #[serde(rename = "type")]
    pub kind: String,
    /// `True`, `False` or `Unknown`.
    pub status: String,
    /// The reason in CamelCase.
    pub reason: String,
    /// In words.
    pub message: String,
    /// When it was last written.
    pub updated_at: Option<Timestamp>,
    /// When its status last changed.
    pub since: Option<Timestamp>,
}

/// A pod template that the Deployment has or had.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RevisionView {
    /// Its number; none where neither its ReplicaSet nor the record has one.
    pub revision: Option<i64>,
    /// Its ReplicaSet; none where that is gone and the record alone remembers it.
    pub replica_set: Option<String>,
    /// The hash of its template.
    pub template_hash: String,
    /// The images of its template, each once.
    pub images: Vec<String>,
    /// Whether it is the current template.
    pub current: bool,
    /// What the record says of it; none where it says nothing.
    pub verdict: Option<Verdict>,
    /// Why it is Bad.
    pub reason: Option<CauseType>,
    /// Since when the verdict holds.
    pub since: Option<Timestamp>,
    /// Until when it is refused, where it is Bad.
    pub until: Option<Timestamp>,
    /// `spec.replicas` of its ReplicaSet.
    pub desired: i32,
    /// `status.replicas` of its ReplicaSet.
    pub replicas: i32,
    /// `status.readyReplicas` of its ReplicaSet.
    pub ready: i32,
    /// `status.availableReplicas` of its ReplicaSet.
    pub available: i32,
    /// When its ReplicaSet was created.
    pub created_at: Option<Timestamp>,
    /// The annotation `kubernetes.io/change-cause`.
    pub change_cause: Option<String>,
    /// Why its pods cannot be created: the condition `ReplicaFailure`.
    pub failure: Option<String>,
    /// Its pods by name; empty where they were not looked at.
    pub pods: Vec<PodView>,
}

/// What is known around a Deployment.
#[derive(Clone, Copy, Debug, Default)]
pub struct Around<'a> {
    /// The ReplicaSets that it controls; none where they were not looked at.
    pub replica_sets: Option<&'a [Value]>,
    /// Pods of these ReplicaSets, by the ReplicaSet's name.
    pub pods: Option<&'a HashMap<String, Vec<Value>>>,
    /// The status of the RolloutRecord, which must be of this very Deployment.
    pub record: Option<&'a RolloutRecordStatus>,
    /// Why it does not get on, by what can be seen now.
    pub cause: Option<&'a Cause>,
}

impl DeploymentView {
    /// Reads a Deployment, and what is known around it.
    pub fn of(deployment: &Value, around: Around<'_>, now: Timestamp) -> Self {
        let (metadata, spec, status) = (&deployment["metadata"], &deployment["spec"], &deployment["status"]);
        let snapshot = Snapshot::of(deployment);
        let template = TemplateHash::of(&spec["template"]);
        let hash = template.to_string();
        let known = around.record.filter(|record| record.template_hash.is_some());
        let current = around.replica_sets.and_then(|sets| current_set(sets, template));
        let name = current.map(|set| text(&set["metadata"]["name"]));
        let phase = match around.replica_sets {
            Some(_) => phase(&snapshot, name),
            None => classify(&snapshot),
        };
        // What the record says of an earlier template or phase is no word on this one.
        let of_now = known.filter(|record| record.template_hash.as_deref() == Some(hash.as_str()));
        let revisions = around.replica_sets.map(|sets| revisions(sets, template, &around));
        Self {
            namespace: short(&metadata["namespace"]),
            name: short(&metadata["name"]),
            uid: short(&metadata["uid"]),
            generation: snapshot.generation,
            observed_generation: snapshot.observed_generation,
            phase: phase.into(),
            paused: snapshot.paused,
            since: of_now
                .filter(|record| record.phase == Some(phase.into()))
                .and_then(|record| record.since.as_ref())
                .map(|since| since.0)
                .or_else(|| since(&snapshot, phase, metadata))
                .map(|since| since.min(now)),
            desired: snapshot.desired,
            replicas: snapshot.replicas,
            updated: snapshot.updated,
            ready: count(&status["readyReplicas"]),
            available: snapshot.available,
            unavailable: count(&status["unavailableReplicas"]),
            created_at: time(&metadata["creationTimestamp"]),
            images: images(&spec["template"]),
            template_hash: hash.clone(),
            revision: observed_revision(&snapshot, metadata, current),
            strategy: StrategyView::of(spec),
            guarded: known.is_some(),
            verdict: known.and_then(|record| verdict(record, &hash)).map(|revision| revision.verdict),
            cause: cause_of(phase, of_now, around.cause, &snapshot, around.replica_sets.is_some(), now),
            rollback: known.and_then(|record| record.rollback.as_ref()).map(|last| RollbackView {
                current: last.to == hash && last.generation.is_some(),
                ..RollbackView::of(last)
            }),
            conditions: conditions(&status["conditions"]),
            guard_conditions: known.map(guard_conditions).unwrap_or_default(),
            revisions: revisions.unwrap_or_default(),
        }
    }

    /// Says whether nothing is left to wait for: Complete, or Paused.
    pub fn is_settled(&self) -> bool {
        matches!(self.phase, RecordPhase::Complete | RecordPhase::Paused)
    }

    /// Returns the revision of the current template; none where ReplicaSets were not looked at, or it has none yet.
    pub fn current(&self) -> Option<&RevisionView> {
        self.revisions.iter().find(|revision| revision.current)
    }

    /// Returns the condition of the Deployment of this type.
    pub fn condition(&self, kind: &str) -> Option<&ConditionView> {
        self.conditions.iter().find(|condition| condition.kind == kind)
    }

    /// Returns the condition of the record of this type.
    pub fn guard_condition(&self, kind: &str) -> Option<&ConditionView> {
        self.guard_conditions.iter().find(|condition| condition.kind == kind)
    }
}

impl StrategyView {
    fn of(spec: &Value) -> Self {
        let rolling = &spec["strategy"]["rollingUpdate"];
        let either = |value: &Value| match value {
            Value::Number(number) => Some(number.to_string()),
            Value::String(text) => Some(plain(text, SHORT)),
            _ => None,
        };
        let deadline = spec["progressDeadlineSeconds"].as_i64();
        Self {
            kind: filled(&spec["strategy"]["type"]).unwrap_or_else(|| "RollingUpdate".to_owned()),
            max_surge: either(&rolling["maxSurge"]),
            max_unavailable: either(&rolling["maxUnavailable"]),
            // The highest number means none.
            progress_deadline_seconds: deadline.filter(|seconds| *seconds < i64::from(i32::MAX)),
            min_ready_seconds: spec["minReadySeconds"].as_i64().unwrap_or_default(),
            revision_history_limit: spec["revisionHistoryLimit"].as_i64().unwrap_or(10),
        }
    }
}

impl CauseView {
    /// Returns what was found now; since when is not known.
    pub fn of(found: &Cause) -> Self {
        Self {
            kind: found.kind,
            message: found.message.clone(),
            since: None,
            evidence: found.evidence.clone(),
            early: found.early,
        }
    }

    fn recorded(recorded: &RecordCause, found: Option<&Cause>) -> Self {
        Self {
            kind: recorded.kind,
            message: long(&recorded.message),
            since: Some(recorded.since.0),
            evidence: recorded.evidence.iter().map(|line| long(line)).collect(),
            early: found.is_some_and(|found| found.early && found.kind == recorded.kind),
        }
    }
}

impl RollbackView {
    fn of(rollback: &RecordRollback) -> Self {
        Self {
            from_revision: rollback.from_revision,
            to_revision: rollback.to_revision,
            from: plain(&rollback.from, SHORT),
            to: plain(&rollback.to, SHORT),
            from_generation: rollback.from_generation,
            generation: rollback.generation,
            cause: rollback.cause,
            message: long(&rollback.message),
            evidence: rollback.evidence.iter().map(|line| long(line)).collect(),
            pushed_at: rollback.pushed_at.as_ref().map(|at| at.0),
            started_at: rollback.started_at.0,
            finished_at: rollback.finished_at.as_ref().map(|at| at.0),
            outcome: rollback.outcome,
            current: false,
        }
    }
}

/// Returns the ReplicaSet of this template: of several the oldest, which is the one that Kubernetes uses
/// (`FindNewReplicaSet` of `pkg/controller/deployment/util`).
pub fn current_set(sets: &[Value], template: TemplateHash) -> Option<&Value> {
    let age = |set: &&Value| {
        (text(&set["metadata"]["creationTimestamp"]).to_owned(), text(&set["metadata"]["name"]).to_owned())
    };
    sets.iter().filter(|set| TemplateHash::of(&set["spec"]["template"]) == template).min_by_key(age)
}

/// Returns the number that kube-controller-manager gave a Deployment or a ReplicaSet.
pub fn revision_of(object: &Value) -> Option<i64> {
    object["metadata"]["annotations"][REVISION_ANNOTATION].as_str()?.parse().ok()
}

/// Returns the images of a pod template, init containers first, each once.
pub fn images(template: &Value) -> Vec<String> {
    let containers = ["initContainers", "containers"].map(|kind| template["spec"][kind].as_array());
    let images = containers.into_iter().flatten().flatten().filter_map(|c| c["image"].as_str());
    let mut seen = BTreeSet::new();
    images.filter(|image| seen.insert(*image)).map(|image| plain(image, SHORT)).take(IMAGES).collect()
}

/// Before a generation is observed the Deployment carries the number of another template.
fn observed_revision(snapshot: &Snapshot<'_>, metadata: &Value, current: Option<&Value>) -> Option<i64> {
    let own = || metadata["annotations"][REVISION_ANNOTATION].as_str()?.parse().ok();
    let observed = snapshot.observed_generation >= snapshot.generation;
    current.and_then(revision_of).or_else(|| observed.then(own).flatten())
}

/// Since when it stands there, by the Deployment alone.
fn since(snapshot: &Snapshot<'_>, phase: Phase, metadata: &Value) -> Option<Timestamp> {
    let got_on = snapshot.progressing.as_ref().and_then(|condition| condition.updated_at);
    let created = time(&metadata["creationTimestamp"]);
    match phase {
        Phase::Deleting => time(&metadata["deletionTimestamp"]),
        Phase::Failed | Phase::Complete => got_on.or(snapshot.written_at).or(created),
        Phase::Unobserved | Phase::Paused | Phase::Progressing => snapshot.written_at.or(created),
    }
}

/// The guard's word on a cause counts before what is found now: it has seen more, such as logs, and knows since when.
fn cause_of(
    phase: Phase,
    record: Option<&RolloutRecordStatus>,
    found: Option<&Cause>,
    snapshot: &Snapshot<'_>,
    looked: bool,
    now: Timestamp,
) -> Option<CauseView> {
    if matches!(phase, Phase::Complete | Phase::Paused | Phase::Deleting) {
        return None;
    }
    if let Some(recorded) = record.and_then(|record| record.cause.as_ref()) {
        return Some(CauseView::recorded(recorded, found));
    }
    if let Some(found) = found {
        return Some(CauseView::of(found));
    }
    // A failure without any reason to be seen is told as such, but not where nobody has looked.
    let unexplained = looked && phase == Phase::Failed;
    by_conditions(snapshot, phase, now)
        .or_else(|| unexplained.then(|| Cause::unknown(phase)))
        .map(|cause| CauseView::of(&cause))
}

/// The cause as far as the Deployment's own conditions tell it.
fn by_conditions(snapshot: &Snapshot<'_>, phase: Phase, now: Timestamp) -> Option<Cause> {
    let input = super::cause::Input {
        snapshot,
        phase,
        replica_set: None,
        pods: &[],
        events: &[],
        node_not_ready: &|_| false,
        others_failing: &|_| 0,
        controller_manager: super::cause::Liveness::Unknown,
    };
    super::cause::find(&input, now)
}

fn revisions(sets: &[Value], template: TemplateHash, around: &Around<'_>) -> Vec<RevisionView> {
    let current = current_set(sets, template).map(|set| text(&set["metadata"]["name"]));
    let mut all: Vec<RevisionView> = sets
        .iter()
        .map(|set| revision(set, current == Some(text(&set["metadata"]["name"])), around))
        .collect();
    let recorded = around.record.into_iter().flat_map(|record| &record.revisions);
    let gone: Vec<RevisionView> = recorded
        .filter(|recorded| !all.iter().any(|revision| revision.template_hash == recorded.template_hash))
        .map(|recorded| remembered(recorded, template))
        .collect();
    all.extend(gone);
    all.sort_by_key(|revision| std::cmp::Reverse((revision.revision, revision.created_at)));
    all
}

fn revision(set: &Value, current: bool, around: &Around<'_>) -> RevisionView {
    let (metadata, spec, status) = (&set["metadata"], &set["spec"], &set["status"]);
    let hash = TemplateHash::of(&spec["template"]).to_string();
    let recorded = around.record.and_then(|record| verdict(record, &hash));
    let name = text(&metadata["name"]);
    let mut pods: Vec<PodView> =
        around.pods.and_then(|pods| pods.get(name)).into_iter().flatten().map(PodView::of).collect();
    pods.sort_by(|a, b| a.name.cmp(&b.name));
    let failure = conditions(&status["conditions"])
        .into_iter()
        .find(|condition| condition.kind == "ReplicaFailure" && condition.status == "True");
    RevisionView {
        revision: revision_of(set),
        replica_set: Some(plain(name, SHORT)),
        images: images(&spec["template"]),
        current,
        desired: spec["replicas"].as_i64().and_then(|n| i32::try_from(n).ok()).unwrap_or(1),
        replicas: count(&status["replicas"]),
        ready: count(&status["readyReplicas"]),
        available: count(&status["availableReplicas"]),
        created_at: time(&metadata["creationTimestamp"]),
        change_cause: filled(&metadata["annotations"][CHANGE_CAUSE_ANNOTATION]),
        failure: failure.map(|condition| condition.message),
        pods,
        ..with_verdict(hash, recorded)
    }
}

/// A template that the record remembers and that has no ReplicaSet.
fn remembered(recorded: &RecordRevision, template: TemplateHash) -> RevisionView {
    RevisionView {
        revision: recorded.revision,
        images: recorded.images.iter().map(|image| plain(image, SHORT)).collect(),
        current: recorded.template_hash == template.to_string(),
        ..with_verdict(plain(&recorded.template_hash, SHORT), Some(recorded))
    }
}

fn with_verdict(template_hash: String, recorded: Option<&RecordRevision>) -> RevisionView {
    RevisionView {
        revision: None,
        replica_set: None,
        template_hash,
        images: Vec::new(),
        current: false,
        verdict: recorded.map(|recorded| recorded.verdict),
        reason: recorded.and_then(|recorded| recorded.reason),
        since: recorded.and_then(|recorded| recorded.since.as_ref()).map(|since| since.0),
        until: recorded.and_then(|recorded| recorded.until.as_ref()).map(|until| until.0),
        desired: 0,
        replicas: 0,
        ready: 0,
        available: 0,
        created_at: None,
        change_cause: None,
        failure: None,
        pods: Vec::new(),
    }
}

fn verdict<'a>(record: &'a RolloutRecordStatus, hash: &str) -> Option<&'a RecordRevision> {
    super::record::revision(record, hash)
}

fn conditions(conditions: &Value) -> Vec<ConditionView> {
    let all = conditions.as_array().into_iter().flatten().take(CONDITIONS);
    all.map(|condition| ConditionView {
        kind: short(&condition["type"]),
        status: short(&condition["status"]),
        reason: short(&condition["reason"]),
        message: long(text(&condition["message"])),
        updated_at: time(&condition["lastUpdateTime"]),
        since: time(&condition["lastTransitionTime"]),
    })
    .collect()
}

fn guard_conditions(record: &RolloutRecordStatus) -> Vec<ConditionView> {
    let all = record.conditions.iter().take(CONDITIONS);
    all.map(|condition| ConditionView {
        kind: plain(&condition.type_, SHORT),
        status: plain(&condition.status, SHORT),
        reason: plain(&condition.reason, SHORT),
        message: long(&condition.message),
        updated_at: None,
        since: Some(condition.last_transition_time.0),
    })
    .collect()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn short(value: &Value) -> String {
    plain(text(value), SHORT)
}

fn long(text: &str) -> String {
    harmless(&plain(text, LONG))
}

fn filled(value: &Value) -> Option<String> {
    value.as_str().filter(|text| !text.is_empty()).map(|text| plain(text, SHORT))
}

fn count(value: &Value) -> i32 {
    value.as_i64().and_then(|n| i32::try_from(n).ok()).unwrap_or_default()
}

fn time(value: &Value) -> Option<Timestamp> {
    value.as_str()?.parse().ok()
}
