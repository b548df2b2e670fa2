//! RolloutPolicy: what is guarded and how.
//!
//! The doc comments of the fields are what `kubectl explain rolloutpolicy.spec` shows.

#![allow(clippy::duplicated_attributes, reason = "each printer column of the derive has the same keys")]

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, LabelSelector};
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::duration::Duration;

/// A RolloutPolicy says which Deployments are guarded, and what happens to an update of one while its
/// current generation is not settled. Of the policies that match a Deployment the one with the highest
/// priority applies, of equals the first by name.
#[derive(CustomResource, JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[kube(
    group = "rollout-guard.io",
    version = "v1alpha1",
    kind = "RolloutPolicy",
    plural = "rolloutpolicies",
    singular = "rolloutpolicy",
    shortname = "rpol",
    category = "rollout-guard",
    status = "RolloutPolicyStatus",
    derive = "PartialEq",
    derive = "Default",
    doc = "RolloutPolicy says which Deployments rollout-guard guards, and how.",
    printcolumn(
        name = "Mode",
        type_ = "string",
        json_path = ".spec.mode",
        description = "Enforce, Warn, Audit or Off"
    ),
    printcolumn(
        name = "Priority",
        type_ = "integer",
        json_path = ".spec.priority",
        description = "The highest that matches applies"
    ),
    printcolumn(
        name = "Guarded",
        type_ = "integer",
        json_path = ".status.guarded",
        description = "Deployments that this policy guards"
    ),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Ready")].status"#,
        description = "Whether the policy as stored is in force"
    ),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Ready")].reason"#,
        priority = 1
    ),
    printcolumn(
        name = "Fallback",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="FallbackReady")].status"#,
        priority = 1
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase", default)]
pub struct RolloutPolicySpec {
    /// Of the policies that match a Deployment the one with the highest priority applies; of equals the first
    /// by name.
    #[schemars(range(min = -1_000_000, max = 1_000_000))]
    pub priority: i32,

    /// Labels of the namespaces whose Deployments this policy is for. Absent or empty: every namespace. The
    /// namespaces kube-system, kube-public, kube-node-lease and the guard's own are never guarded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace_selector: Option<LabelSelector>,

    /// Labels of the Deployments that this policy is for, as they are before the update. Absent or empty: all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub selector: Option<LabelSelector>,

    /// Enforce refuses; Warn lets through with a warning that kubectl and Helm print; Audit lets through and
    /// only counts and writes an audit annotation; Off does nothing at all (write "Off" in quotes, as YAML takes
    /// the bare word for a boolean).
    pub mode: Mode,

    /// What happens to an update that changes the pod template while the current generation is in a phase.
    pub admission: AdmissionSpec,

    /// Times in which no pod template may change.
    #[schemars(length(max = 32))]
    #[schemars(extend("x-kubernetes-validations" = [{"rule": "self.all(f, self.exists_one(g, g.name == f.name))", "message": "freezes must have names that differ"}]))]
    pub freezes: Vec<FreezeSpec>,

    /// When a generation counts as stuck or good. The watcher goes by it; admission does not.
    pub watch: WatchSpec,

    /// What is done about a stuck generation. The watcher goes by it; admission does not.
    pub rollback: RollbackSpec,

    /// What is kept as evidence of a failure. The watcher goes by it; admission does not.
    pub evidence: EvidenceSpec,

    /// What the mutating webhook fills in, in the modes Enforce and Warn.
    pub defaults: DefaultsSpec,
}

/// How a verdict is carried out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[allow(missing_docs, reason = "described at the field `mode`")]
pub enum Mode {
    #[default]
    Enforce,
    Warn,
    Audit,
    Off,
}

impl Mode {
    /// Returns the mode in lower case, for labels of metrics and logs.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Enforce => "enforce",
            Self::Warn => "warn",
            Self::Audit => "audit",
            Self::Off => "off",
        }
    }
}

/// What happens to an update.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[allow(missing_docs, reason = "described at the fields of AdmissionSpec")]
pub enum Action {
    Allow,
    Wait,
    Deny,
}

/// What happens to an update that changes the pod template. Allow lets it through; Deny refuses it with 403;
/// Wait answers 429, so that kubectl, Helm and every client-go client ask again by themselves, up to ten times.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct AdmissionSpec {
    /// While kube-controller-manager has not observed the current generation (RG001).
    pub unobserved: Action,
    /// While the current generation has failed, such as by its progress deadline (RG002).
    pub failed: Action,
    /// While the current generation is rolling out (RG003).
    pub progressing: Action,
    /// Where the new template is one that was rolled back from, until quarantineFor is over (RG004).
    pub quarantined: Action,
    /// The longest that a client is told to wait before it asks again, in seconds. It starts at 1 and grows
    /// with the age of the generation that is waited for.
    #[schemars(with = "i32", range(min = 1, max = 60))]
    pub max_wait_seconds: u32,
}

impl Default for AdmissionSpec {
    fn default() -> Self {
        Self {
            unobserved: Action::Wait,
            failed: Action::Deny,
            progressing: Action::Allow,
            quarantined: Action::Deny,
            max_wait_seconds: 10,
        }
    }
}

/// A time that comes again, in which no pod template may change (RG005).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [{"rule": "!self.duration.matches('^(0|(0+(\\\\.0+)?(ms|s|m|h))+)$')", "message": "duration must be longer than zero"}]))]
pub struct FreezeSpec {
    /// The freeze's name, shown to whoever is refused.
    #[schemars(length(min = 1, max = 63))]
    #[schemars(extend("x-kubernetes-validations" = [{"rule": "self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')", "message": "name must consist of lower case letters, digits and '-', and start and end with a letter or digit"}]))]
    pub name: String,
    /// When the freeze starts: a cron expression of five fields (minute, hour, day of month, month, day of
    /// week), such as "0 18 * * FRI".
    #[schemars(length(min = 1, max = 128))]
    pub schedule: String,
    /// How long the freeze lasts from each start, such as 62h.
    pub duration: Duration,
    /// The IANA name of the time zone of the schedule, such as Europe/Berlin. Absent: UTC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub time_zone: Option<String>,
    /// Why, shown to whoever is refused.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 256))]
    pub reason: String,
}

/// When a generation counts as stuck or good.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct WatchSpec {
    /// How long a generation may stay unobserved.
    pub unobserved_after: Duration,
    /// How long a failure that Kubernetes reports must last.
    pub failed_after: Duration,
    /// How long a rollout may take. Absent: as long as Kubernetes' own progress deadline lets it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub progressing_after: Option<Duration>,
    /// How long the cause of a failure must hold before the deadline is not waited for.
    pub early_failure_after: Duration,
    /// How long a revision must be complete to count as good.
    pub good_after: Duration,
}

impl Default for WatchSpec {
    fn default() -> Self {
        Self {
            unobserved_after: Duration::from_secs(600),
            failed_after: Duration::from_secs(0),
            progressing_after: None,
            early_failure_after: Duration::from_secs(60),
            good_after: Duration::from_secs(30),
        }
    }
}

/// What is done about a stuck generation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct RollbackSpec {
    /// Automatic rolls back; Manual only says what it would do; Off does nothing.
    pub mode: RollbackMode,
    /// The causes that are rolled back.
    #[schemars(length(max = 16))]
    #[schemars(extend("x-kubernetes-validations" = [{"rule": "self.all(c, self.exists_one(d, d == c))", "message": "causes must differ"}]))]
    pub causes: Vec<CauseType>,
    /// How long a template that was rolled back from is refused.
    pub quarantine_for: Duration,
    /// How long the rollback stays announced on the Deployment's status.
    pub announce_for: Duration,
}

impl Default for RollbackSpec {
    fn default() -> Self {
        use CauseType::{Application, Configuration, Image, ReplicaSetCreate, Unknown};
        Self {
            mode: RollbackMode::Automatic,
            causes: vec![ReplicaSetCreate, Image, Configuration, Application, Unknown],
            quarantine_for: Duration::from_secs(720 * 3600),
            announce_for: Duration::from_secs(120),
        }
    }
}

/// Whether the watcher rolls back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[allow(missing_docs, reason = "described at the field `mode`")]
pub enum RollbackMode {
    Automatic,
    Manual,
    Off,
}

/// Why a generation is stuck.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[allow(missing_docs, reason = "the words are those of the documentation")]
pub enum CauseType {
    ReplicaSetCreate,
    Image,
    Configuration,
    Application,
    Capacity,
    Registry,
    Node,
    ControlPlane,
    Unknown,
}

impl CauseType {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::ReplicaSetCreate,
        Self::Image,
        Self::Configuration,
        Self::Application,
        Self::Capacity,
        Self::Registry,
        Self::Node,
        Self::ControlPlane,
        Self::Unknown,
    ];

    /// Returns the word.
    pub const fn word(self) -> &'static str {
        match self {
            Self::ReplicaSetCreate => "ReplicaSetCreate",
            Self::Image => "Image",
            Self::Configuration => "Configuration",
            Self::Application => "Application",
            Self::Capacity => "Capacity",
            Self::Registry => "Registry",
            Self::Node => "Node",
            Self::ControlPlane => "ControlPlane",
            Self::Unknown => "Unknown",
        }
    }
}

/// What is kept as evidence of a failure.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct EvidenceSpec {
    /// Whether the last lines of a failed container's log are kept. They may hold secrets.
    pub logs: bool,
}

/// What the mutating webhook fills in when a Deployment is created or its spec changes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct DefaultsSpec {
    /// The progress deadline in seconds in place of Kubernetes' own default of 600. A 600 that was written
    /// cannot be told from one that was filled in, so it is replaced as well. Absent: left alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 2_147_483_646))]
    pub progress_deadline_seconds: Option<i32>,
    /// The least revisionHistoryLimit: with 0 there is nothing to return to. null: left alone.
    #[schemars(range(min = 0, max = 100))]
    pub min_revision_history_limit: Option<i32>,
}

impl Default for DefaultsSpec {
    fn default() -> Self {
        Self { progress_deadline_seconds: None, min_revision_history_limit: Some(2) }
    }
}

/// What the guard says about a policy.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct RolloutPolicyStatus {
    /// The generation that the rest of the status speaks of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Deployments that this policy guards.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub guarded: Option<i64>,
    /// Guarded Deployments that are stuck. Written by the watcher.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stuck: Option<i64>,
    /// Ready: whether the policy as stored is in force. FallbackReady: whether the ValidatingAdmissionPolicy
    /// that stands in for the webhook is in place.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// The last valid spec, kept while the policy as stored is not valid: it is what is in force.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_valid: Option<LastValid>,
}

/// A spec that was valid.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LastValid {
    /// The generation that the spec was stored as.
    pub generation: i64,
    /// The spec.
    #[schemars(schema_with = "any_object")]
    pub spec: Value,
}

fn any_object(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({ "type": "object", "x-kubernetes-preserve-unknown-fields": true })
}
