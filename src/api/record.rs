//! RolloutRecord: what the guard knows of one Deployment.
//!
//! Only the guard writes it, and only when something must be remembered. The doc comments of the fields are what
//! `kubectl explain rolloutrecord.status` shows.

#![allow(clippy::duplicated_attributes, reason = "each printer column of the derive has the same keys")]

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::policy::CauseType;

/// Which Deployment a RolloutRecord is of.
#[derive(CustomResource, JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[kube(
    group = "rollout-guard.io",
    version = "v1alpha1",
    kind = "RolloutRecord",
    plural = "rolloutrecords",
    singular = "rolloutrecord",
    shortname = "rr",
    category = "rollout-guard",
    namespaced,
    status = "RolloutRecordStatus",
    derive = "PartialEq",
    derive = "Default",
    doc = "RolloutRecord is what rollout-guard knows of one Deployment. Only the guard writes it.",
    printcolumn(name = "Deployment", type_ = "string", json_path = ".spec.targetRef.name"),
    printcolumn(
        name = "Phase",
        type_ = "string",
        json_path = ".status.phase",
        description = "Where the generation stands"
    ),
    printcolumn(name = "Generation", type_ = "integer", json_path = ".status.generation"),
    printcolumn(name = "Observed", type_ = "integer", json_path = ".status.deploymentObservedGeneration"),
    printcolumn(
        name = "Cause",
        type_ = "string",
        json_path = ".status.cause.type",
        description = "Why the generation is stuck"
    ),
    printcolumn(
        name = "Good",
        type_ = "string",
        json_path = r#".status.revisions[?(@.verdict=="Good")].revision"#,
        description = "The newest revision that was good"
    ),
    printcolumn(
        name = "Rollback",
        type_ = "string",
        json_path = ".status.rollback.outcome",
        description = "What became of the last rollback"
    ),
    printcolumn(name = "Since", type_ = "date", json_path = ".status.since"),
    printcolumn(name = "Message", type_ = "string", json_path = ".status.cause.message", priority = 1)
)]
#[serde(rename_all = "camelCase", default)]
pub struct RolloutRecordSpec {
    /// The Deployment, with its uid: a Deployment of the same name made later is another one.
    pub target_ref: TargetRef,
}

/// One object, by name and uid.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct TargetRef {
    /// `apps/v1`.
    pub api_version: String,
    /// `Deployment`.
    pub kind: String,
    /// Its name.
    pub name: String,
    /// Its uid.
    pub uid: String,
}

/// What the guard knows of the Deployment.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct RolloutRecordStatus {
    /// Where the generation stands.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub phase: Option<RecordPhase>,
    /// The generation of the Deployment that the status speaks of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub generation: Option<i64>,
    /// The generation of the Deployment that kube-controller-manager had observed then. Not called observedGeneration: by the
    /// conventions, and so for kstatus, that is of the record's own generation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deployment_observed_generation: Option<i64>,
    /// When this phase of this template was first seen.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<Time>,
    /// The hash of the current pod template.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub template_hash: Option<String>,
    /// When the current template was first seen on the Deployment: the start of its rollout.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rollout_started_at: Option<Time>,
    /// The generation in which the current template was first seen.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rollout_generation: Option<i64>,
    /// When the rollout of the current template was found good; absent while it is under way.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub settled_at: Option<Time>,
    /// Why the generation is stuck, or about to be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cause: Option<RecordCause>,
    /// The templates that are remembered, newest first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub revisions: Vec<RecordRevision>,
    /// The last rollback.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rollback: Option<RecordRollback>,
    /// Ready: the current template is complete. Reconciling: its rollout is under way. Stalled: it is stuck.
    /// RolledBack: the guard put an earlier template back.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}

/// Where a generation stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[allow(missing_docs, reason = "the words are those of core::rollout::Phase")]
pub enum RecordPhase {
    Unobserved,
    Progressing,
    Complete,
    Failed,
    Paused,
    Deleting,
}

impl RecordPhase {
    /// Returns its name, as records have it.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Unobserved => "Unobserved",
            Self::Progressing => "Progressing",
            Self::Complete => "Complete",
            Self::Failed => "Failed",
            Self::Paused => "Paused",
            Self::Deleting => "Deleting",
        }
    }
}

/// Why a generation is stuck.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RecordCause {
    /// The kind of cause.
    #[serde(rename = "type")]
    pub kind: CauseType,
    /// In words.
    pub message: String,
    /// Since when it holds.
    pub since: Time,
    /// Facts that anybody can check, a line each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub evidence: Vec<String>,
}

/// What is known of a template.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum Verdict {
    /// It was complete for as long as the policy's `goodAfter`.
    Good,
    /// The guard rolled back from it.
    Bad,
    /// Neither.
    #[default]
    Unknown,
}

impl Verdict {
    /// Returns its name, as records have it.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Good => "Good",
            Self::Bad => "Bad",
            Self::Unknown => "Unknown",
        }
    }
}

/// One pod template that the Deployment has or had.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RecordRevision {
    /// SHA-256 over the canonical JSON of the template without the label pod-template-hash.
    pub template_hash: String,
    /// The revision of its ReplicaSet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<i64>,
    /// Its ReplicaSet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replica_set: Option<String>,
    /// The images of its containers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub images: Vec<String>,
    /// What is known of it.
    pub verdict: Verdict,
    /// Why it is Bad.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<CauseType>,
    /// Since when the verdict holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Time>,
    /// Until when it is refused, where it is Bad.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Time>,
}

/// What became of a rollback.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum Outcome {
    /// It is decided on; the template may or may not be back yet.
    InProgress,
    /// The earlier template is back and complete.
    Succeeded,
    /// The earlier template is back and stuck as well, or the API server refused to put it back.
    Failed,
    /// Somebody changed the template meanwhile: theirs stands.
    Superseded,
}

/// A rollback.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RecordRollback {
    /// The hash of the template that was rolled back from.
    pub from: String,
    /// The hash of the template that was put back.
    pub to: String,
    /// The generation that was rolled back from.
    pub from_generation: i64,
    /// The generation that the restore made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<i64>,
    /// The revision that was rolled back from, where it had a ReplicaSet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from_revision: Option<i64>,
    /// The revision that was put back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to_revision: Option<i64>,
    /// Why.
    pub cause: CauseType,
    /// Why, in words.
    pub message: String,
    /// Facts that anybody could check then, a line each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub evidence: Vec<String>,
    /// When the template that was rolled back from was first seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pushed_at: Option<Time>,
    /// When it was decided on.
    pub started_at: Time,
    /// When the earlier template was put back; none where that was never done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restored_at: Option<Time>,
    /// When its outcome was known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<Time>,
    /// What became of it.
    pub outcome: Outcome,
}

impl RecordRollback {
    /// Returns when it was carried out, as far as that is known: when it was decided on else.
    pub fn carried_out_at(&self) -> Timestamp {
        self.restored_at.as_ref().unwrap_or(&self.started_at).0
    }
}
