//! What a diagnosis is made of, and what it says. The keys of the JSON are kept: programs read them.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::Serialize;
use serde_json::Value;

use crate::{
    api::{
        policy::{Mode, RollbackMode, RolloutPolicy},
        record::{RecordPhase, RolloutRecordStatus},
    },
    core::{
        cause::{Liveness, LogSource},
        key::Key,
        lease,
        policy::Labels,
        view::{CauseView, ConditionView, PodView, RollbackView, StrategyView},
    },
};

/// The version of the JSON. A key is added without a new version, and never taken away or given another meaning.
pub const API_VERSION: &str = "rollout-guard.io/diagnosis/v1";

/// A part of what is looked at, or why it could not be.
pub type Part<T> = Result<T, Hidden>;

/// Something that could not be read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Hidden {
    /// What, such as `nodes`.
    pub what: String,
    /// Why, such as `may not list nodes`.
    pub why: String,
}

/// All that was read. Objects are raw JSON, as the API server gives them.
#[derive(Clone, Debug)]
pub struct Material {
    /// Which Deployment.
    pub key: Key,
    /// What is added to each command that is proposed, such as ` --context staging`; empty for nothing.
    pub flags: String,
    /// The Deployment.
    pub deployment: Value,
    /// The ReplicaSets that it controls.
    pub replica_sets: Part<Vec<Value>>,
    /// Pods of the ReplicaSet that [`super::replica_set_to_look_at`] names.
    pub pods: Part<Vec<Value>>,
    /// Events about what [`super::objects_to_ask_about`] names.
    pub events: Part<Vec<Value>>,
    /// The logs that [`super::logs_to_read`] names.
    pub logs: Vec<Log>,
    /// What the guard remembers of it.
    pub record: Part<Option<RolloutRecordStatus>>,
    /// The Lease of kube-controller-manager.
    pub controller_manager: Part<ControllerManager>,
    /// The nodes.
    pub nodes: Part<Vec<NodeFacts>>,
    /// The ResourceQuotas of the namespace.
    pub quotas: Part<Vec<Value>>,
    /// The LimitRanges of the namespace.
    pub limit_ranges: Part<Vec<Value>>,
    /// The ValidatingWebhookConfigurations and MutatingWebhookConfigurations.
    pub webhooks: Part<Vec<Value>>,
    /// How many ready endpoints the Services have that [`super::services_to_ask_about`] names.
    pub endpoints: BTreeMap<(String, String), Part<usize>>,
    /// The ValidatingAdmissionPolicies and their bindings.
    pub admission_policies: Part<(Vec<Value>, Vec<Value>)>,
    /// The labels of the namespace.
    pub namespace_labels: Part<Labels>,
    /// The guard's installation; none where there is none.
    pub guard: Part<Option<Installation>>,
    /// The RolloutPolicies; none of them where the guard is not installed.
    pub policies: Part<Vec<RolloutPolicy>>,
}

/// The log of a container.
#[derive(Clone, Debug)]
pub struct Log {
    /// Whose.
    pub source: LogSource,
    /// Its end.
    pub text: Part<String>,
}

/// What the Lease of kube-controller-manager tells.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ControllerManager {
    /// Whether it is renewed; unknown where there is none, as with a control plane that somebody else runs.
    pub liveness: Liveness,
    /// Who holds it; empty where nobody does.
    pub holder: String,
    /// When it was last renewed, by the holder's clock.
    pub renewed_at: Option<Timestamp>,
}

/// What is known of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeFacts {
    /// Its name.
    pub name: String,
    /// Whether its condition `Ready` is `True`.
    pub ready: bool,
    /// Whether no more pods are scheduled to it: `spec.unschedulable`.
    pub cordoned: bool,
    /// Its other conditions of Kubernetes that are `True`, such as `MemoryPressure`.
    pub pressure: Vec<String>,
}

/// An installation of the guard.
#[derive(Clone, Debug)]
pub struct Installation {
    /// Its namespace.
    pub namespace: String,
    /// How many replicas are wanted and available.
    pub replicas: (i32, i32),
    /// The Lease by which its replicas agree on who watches; none where nobody is to, or where there is none.
    pub lease: Part<Option<lease::Record>>,
}

/// The five steps, the cause and what to do next.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Diagnosis {
    /// [`API_VERSION`].
    pub api_version: &'static str,
    /// `Diagnosis`.
    pub kind: &'static str,
    /// The Deployment's namespace.
    pub namespace: String,
    /// The Deployment's name.
    pub name: String,
    /// When it was made.
    pub at: Timestamp,
    /// Step 1.
    pub status: Status,
    /// Step 2.
    pub generations: Generations,
    /// Step 3.
    pub configuration: Configuration,
    /// Step 4: Events, the newest last; none where they may not be read.
    pub events: Option<Vec<EventLine>>,
    /// Step 4: the pods that were looked at; none where they may not be read.
    pub pods: Option<Pods>,
    /// Step 5.
    pub cluster: ClusterState,
    /// Step 5: the guard, where anything is known of it.
    pub guard: GuardState,
    /// The last rollback that the guard remembers.
    pub rollback: Option<RollbackView>,
    /// Why the generation is stuck, or why the one before was rolled back.
    pub cause: Option<CauseLine>,
    /// What to do next.
    pub next: Next,
    /// What could not be read.
    pub hidden: Vec<Hidden>,
}

/// Step 1: status and conditions.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// Where the generation stands.
    pub phase: RecordPhase,
    /// The phase in a sentence.
    pub summary: String,
    /// Since when it stands there, as far as that can be told.
    pub since: Option<Timestamp>,
    /// The counts.
    pub replicas: Replicas,
    /// The conditions as they stand.
    pub conditions: Vec<ConditionLine>,
}

/// How many replicas there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[allow(missing_docs, reason = "as in the status of a Deployment")]
pub struct Replicas {
    pub desired: i32,
    pub total: i32,
    pub updated: i32,
    pub ready: i32,
    pub available: i32,
}

/// A condition of the Deployment.
#[derive(Clone, Debug, Serialize)]
pub struct ConditionLine {
    /// The condition.
    #[serde(flatten)]
    pub condition: ConditionView,
    /// Whether it speaks of the generation before.
    pub inherited: bool,
}

/// Step 2: generations.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Generations {
    /// `metadata.generation`.
    pub generation: i64,
    /// `status.observedGeneration`.
    pub observed: i64,
    /// By how many kube-controller-manager is behind.
    pub lag: i64,
    /// When the object, not its status, was last written.
    pub written_at: Option<Timestamp>,
    /// By which field manager.
    pub written_by: Option<String>,
    /// Whether kube-controller-manager is at work.
    pub controller_manager: ControllerManagerState,
}

/// kube-controller-manager's Lease.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ControllerManagerState {
    /// `alive`, `silent` or `unknown`.
    pub state: &'static str,
    /// Who holds the Lease.
    pub holder: Option<String>,
    /// When it was last renewed, by the holder's clock.
    pub renewed_at: Option<Timestamp>,
}

/// Step 3: strategy and configuration.
#[derive(Clone, Debug, Serialize)]
pub struct Configuration {
    /// How pods are replaced, and how long that may take.
    pub strategy: StrategyView,
    /// `spec.paused`.
    pub paused: bool,
    /// The images of the template, each once.
    pub images: Vec<String>,
    /// What is wrong with it.
    pub findings: Vec<Finding>,
}

/// How grave a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// It keeps rollouts from working, or from being undone.
    Problem,
    /// It is worth knowing.
    Note,
}

/// Something that was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How grave it is.
    pub severity: Severity,
    /// What it is called; stays the same.
    pub id: &'static str,
    /// In words.
    pub text: String,
    /// What to do about it.
    pub hint: String,
}

/// Events that say the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct EventLine {
    /// `Normal` or `Warning`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The reason in CamelCase.
    pub reason: String,
    /// What it is about, such as `Pod/web-6fff4b7674-x7k2p`; of several the last.
    pub object: String,
    /// How many objects it was told of.
    pub objects: usize,
    /// The message.
    pub message: String,
    /// How often it was told.
    pub count: u64,
    /// When it was told last.
    pub last_at: Option<Timestamp>,
}

/// Step 4: the pods that were looked at.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Pods {
    /// Whose they are; none where there is no ReplicaSet.
    pub replica_set: Option<String>,
    /// How many there are.
    pub total: usize,
    /// How many are ready.
    pub ready: usize,
    /// Those that are not, or that crashed a short while ago.
    pub failing: Vec<PodLine>,
    /// How many of those are not listed.
    pub omitted: usize,
}

/// A pod that is not well.
#[derive(Clone, Debug, Serialize)]
pub struct PodLine {
    /// The pod.
    #[serde(flatten)]
    pub pod: PodView,
    /// Those of its containers that are not well.
    #[serde(rename = "notWell")]
    pub containers: Vec<ContainerLine>,
}

/// A container that is not well.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ContainerLine {
    /// Its name.
    pub name: String,
    /// Its image.
    pub image: String,
    /// `waiting`, `running` or `terminated`.
    pub state: &'static str,
    /// Why it is in this state.
    pub reason: Option<String>,
    /// That in words.
    pub message: Option<String>,
    /// How often it was started again.
    pub restarts: u64,
    /// How it ended last.
    pub exit_code: Option<i64>,
    /// Why it ended last, such as `OOMKilled`.
    pub exit_reason: Option<String>,
    /// When it ended last.
    pub exited_at: Option<Timestamp>,
    /// The last lines of its log; none where it was not read.
    pub log: Option<LogLines>,
}

/// The end of a log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LogLines {
    /// Whether it is that of the run before.
    pub previous: bool,
    /// The lines.
    pub lines: Vec<String>,
}

/// Step 5: health of the cluster.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ClusterState {
    /// The nodes; none where they may not be read.
    pub nodes: Option<NodeState>,
    /// The ResourceQuotas of the namespace; none where they may not be read.
    pub quotas: Option<Vec<QuotaState>>,
    /// The names of the namespace's LimitRanges; none where they may not be read.
    pub limit_ranges: Option<Vec<String>>,
    /// What else may refuse the Deployment, its ReplicaSets or pods; none where it may not be read.
    pub webhooks: Option<Admission>,
    /// The ValidatingAdmissionPolicies that may; none where they may not be read.
    pub admission_policies: Option<Vec<String>>,
    /// What is wrong.
    pub findings: Vec<Finding>,
}

/// The nodes in numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeState {
    /// All.
    pub total: usize,
    /// Those that are ready.
    pub ready: usize,
    /// The names of those that are not; the first of many.
    pub not_ready: Vec<String>,
    /// The names of those that take no more pods; the first of many.
    pub cordoned: Vec<String>,
    /// Node and condition, such as `worker-1: DiskPressure`; the first of many.
    pub pressure: Vec<String>,
}

/// A ResourceQuota.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct QuotaState {
    /// Its name.
    pub name: String,
    /// What of it is used up.
    pub used_up: Vec<UsedUp>,
}

/// A resource of which nothing is left.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[allow(missing_docs, reason = "as in the status of a ResourceQuota")]
pub struct UsedUp {
    pub resource: String,
    pub used: String,
    pub hard: String,
}

/// The webhooks that are called for the Deployment, its ReplicaSets or pods.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Admission {
    /// How many are.
    pub matching: usize,
    /// How many of them refuse everything while they cannot be reached: `failurePolicy: Fail`.
    pub fail_closed: usize,
    /// Those of them that cannot be reached.
    pub unreachable: Vec<String>,
}

/// What the guard does about the Deployment.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct GuardState {
    /// Whether it is installed; none where that may not be read.
    pub installed: Option<bool>,
    /// Its namespace.
    pub namespace: Option<String>,
    /// How many replicas are wanted.
    pub wanted: Option<i32>,
    /// How many replicas are available.
    pub available: Option<i32>,
    /// The pod that watches.
    pub leader: Option<String>,
    /// When it last renewed its Lease.
    pub leader_renewed_at: Option<Timestamp>,
    /// The reason that was given with the kill switch.
    pub stopped: Option<String>,
    /// The RolloutPolicy that applies.
    pub policy: Option<String>,
    /// Its mode.
    pub mode: Option<Mode>,
    /// What it says about rollbacks.
    pub rollback_mode: Option<RollbackMode>,
    /// `closed`, or why no rollback may start; none where that is not known.
    pub breaker: Option<String>,
    /// The freeze that is open.
    pub freeze: Option<FreezeLine>,
    /// What it says about this Deployment while it is stuck.
    pub says: Option<String>,
    /// What is wrong.
    pub findings: Vec<Finding>,
}

/// A freeze that is open.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[allow(missing_docs, reason = "as in a RolloutPolicy")]
pub struct FreezeLine {
    pub name: String,
    pub reason: String,
    pub until: Timestamp,
}

/// Which template a cause is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Of {
    /// The current one.
    Current,
    /// The one that was rolled back from.
    RolledBack,
}

/// A cause.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CauseLine {
    /// The cause.
    #[serde(flatten)]
    pub cause: CauseView,
    /// Which template it is of.
    pub of: Of,
}

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Next {
    /// In words.
    pub text: String,
    /// The command, to be pasted as it is; none where nothing is to be done.
    pub command: Option<String>,
    /// What else there is to be done.
    pub others: Vec<Step>,
}

/// One more thing to be done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Step {
    /// What it is for.
    pub text: String,
    /// The command.
    pub command: String,
}
