//! What the runbook of the alert KubernetesDeploymentGenerationMismatch has a person find out, in its five steps, and
//! what to do then.
//!
//! ```text
//!  Deployment ───────▶ 1 status and conditions, 2 generations, 3 strategy and configuration ─┐
//!  Events, pods, logs ─▶ 4 what happened                                                     ├─▶ cause ─▶ next command
//!  nodes, quotas, … ───▶ 5 health of the cluster, and of the guard                           ┘
//! ```
//!
//! Phase and cause are found as the watcher finds them. What could not be read is left out and told: nothing is concluded
//! from what is not known. All texts are on one line, bounded, and without control characters.

mod configuration;
mod guard;
mod health;
mod incidents;
mod model;
mod next;
mod quantity;
mod quota;

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;

use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

use self::{next::Situation, quota::Quota};
use super::{
    cause::{self, Cause, Liveness, LogSource, PodEvent, PodFacts, ReplicaSetFacts},
    message::plain,
    rollout::{self, Phase, Snapshot, classify, is_inherited},
    template::TemplateHash,
    view::{self, Around, CauseView, ConditionView, DeploymentView, RollbackView},
};
use crate::api::record::RecordPhase;

pub use model::{
    API_VERSION, Admission, CauseLine, ClusterState, ConditionLine, Configuration, ContainerLine,
    ControllerManager, ControllerManagerState, Diagnosis, EventLine, Finding, FreezeLine, Generations,
    GuardState, Hidden, Installation, Log, LogLines, Material, Next, NodeFacts, NodeState, Of, Part, PodLine,
    Pods, QuotaState, Replicas, Severity, Status, Step, UsedUp,
};

/// How long a generation may go without being observed before that is trouble: kube-controller-manager takes less than a
/// second where it has nothing else to do.
const NOT_OBSERVED: SignedDuration = SignedDuration::from_secs(60);

/// The most ReplicaSets, and the most pods, whose Events are asked for.
const TOLD_OF: usize = 2;

/// The most characters of a name.
const NAME: usize = 253;

/// An object that Events may be about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Object {
    /// `Deployment`, `ReplicaSet` or `Pod`.
    pub kind: &'static str,
    /// Its name.
    pub name: String,
}

/// Returns the ReplicaSet whose pods are to be looked at: that of the current template, else the newest.
pub fn replica_set_to_look_at<'a>(deployment: &Value, replica_sets: &'a [Value]) -> Option<&'a Value> {
    let template = TemplateHash::of(&deployment["spec"]["template"]);
    let newest = || replica_sets.iter().max_by_key(|set| view::revision_of(set));
    view::current_set(replica_sets, template).or_else(newest)
}

/// Returns what Events are to be asked for about: the Deployment, its newest ReplicaSets, pods that are not well.
pub fn objects_to_ask_about(material: &Material, now: Timestamp) -> Vec<Object> {
    let mut objects = vec![Object { kind: "Deployment", name: material.key.name.clone() }];
    let mut sets: Vec<&Value> = material.replica_sets.iter().flatten().collect();
    sets.sort_by_key(|set| std::cmp::Reverse(view::revision_of(set)));
    objects.extend(
        sets.into_iter().take(TOLD_OF).map(|set| Object { kind: "ReplicaSet", name: name(set).to_owned() }),
    );
    let pods = material.pods.as_deref().unwrap_or_default();
    let failing = incidents::failing(pods, now).into_iter().take(TOLD_OF + 1);
    objects.extend(failing.map(|(_, pod)| Object { kind: "Pod", name: pod.name }));
    objects
}

/// Returns the logs that would tell more: three at the most.
pub fn logs_to_read(material: &Material, now: Timestamp) -> Vec<LogSource> {
    let pods = material.pods.as_deref().unwrap_or_default();
    incidents::logs_to_read(pods, find(material, now).as_ref(), now)
}

/// Returns the Services that webhooks call which refuse everything while they cannot be reached, by namespace and name.
pub fn services_to_ask_about(material: &Material) -> BTreeSet<(String, String)> {
    health::services(material)
}

/// Diagnoses.
pub fn diagnose(material: &Material, now: Timestamp) -> Diagnosis {
    let found = find(material, now);
    let around = Around {
        replica_sets: material.replica_sets.as_deref().ok(),
        pods: None,
        record: material.record.as_ref().ok().and_then(Option::as_ref),
        cause: found.as_ref(),
    };
    let view = DeploymentView::of(&material.deployment, around, now);
    let quotas: Option<Vec<Quota>> =
        material.quotas.as_ref().ok().map(|quotas| quotas.iter().map(Quota::of).collect());
    let known_quotas = quotas.as_deref().unwrap_or_default();
    let cluster = health::cluster(material, quotas.as_deref());
    let guard = guard::guard(material, &view, now);
    let cause = cause_line(material, &view, found.as_ref(), now);
    let raw_pods = material.pods.as_deref().unwrap_or_default();
    let failing = incidents::failing(raw_pods, now);
    let is_full = |name: &str| {
        let quota = known_quotas.iter().find(|quota| quota.name == name)?;
        Some(!quota.state().used_up.is_empty())
    };
    let next = next::next(&Situation {
        material,
        view: &view,
        cause: cause.as_ref(),
        log: found.as_ref().and_then(|cause| cause.container.as_ref()),
        pod: failing.first().map(|(_, pod)| pod.name.as_str()),
        nodes: cluster.nodes.as_ref(),
        guard: &guard,
        quota_is_full: &is_full,
    });
    Diagnosis {
        api_version: API_VERSION,
        kind: "Diagnosis",
        namespace: view.namespace.clone(),
        name: view.name.clone(),
        at: now,
        status: status(material, &view),
        generations: generations(material, &view),
        configuration: configuration::configuration(
            &material.deployment,
            &view,
            known_quotas,
            &material.flags,
        ),
        events: material.events.as_ref().ok().map(|events| incidents::lines(events)),
        pods: pods(material, now),
        cluster,
        guard,
        rollback: view.rollback.clone(),
        cause,
        next,
        hidden: hidden(material),
    }
}

/// Finds out why the generation does not get on, as the watcher does.
fn find(material: &Material, now: Timestamp) -> Option<Cause> {
    let mut snapshot = Snapshot::of(&material.deployment);
    let current = current(material);
    let sets_known = material.replica_sets.is_ok();
    let mut phase = classify(&snapshot);
    if sets_known {
        phase = rollout::phase(&snapshot, current.map(name));
        // What the generation before left behind explains nothing.
        if snapshot.progressing.as_ref().is_some_and(|c| is_inherited(c, current.map(name))) {
            snapshot.progressing = None;
        }
    }
    // Without a readiness probe it is complete for a moment between two crashes.
    let complete = phase == Phase::Complete;
    if complete {
        phase = Phase::Progressing;
    }
    let of_current = current.is_some() || !sets_known;
    let pods: Vec<PodFacts> =
        material.pods.iter().flatten().filter(|_| of_current).map(PodFacts::of).collect();
    let events: Vec<PodEvent> = material.events.iter().flatten().filter_map(PodEvent::of).collect();
    let not_ready =
        |wanted: &str| material.nodes.iter().flatten().any(|node| node.name == wanted && !node.ready);
    let facts = current.map(ReplicaSetFacts::of);
    let input = cause::Input {
        snapshot: &snapshot,
        phase,
        replica_set: facts.as_ref(),
        pods: &pods,
        events: &events,
        node_not_ready: &not_ready,
        others_failing: &|_| 0,
        controller_manager: liveness(material),
    };
    cause::find(&input, now).filter(|cause| !complete || cause.early)
}

/// The ReplicaSet of the current template.
fn current(material: &Material) -> Option<&Value> {
    let template = TemplateHash::of(&material.deployment["spec"]["template"]);
    view::current_set(material.replica_sets.as_deref().ok()?, template)
}

fn liveness(material: &Material) -> Liveness {
    material.controller_manager.as_ref().map_or(Liveness::Unknown, |lease| lease.liveness)
}

/// The cause of the current template; where that is complete after a rollback, that of the rollback.
fn cause_line(
    material: &Material,
    view: &DeploymentView,
    found: Option<&Cause>,
    now: Timestamp,
) -> Option<CauseLine> {
    let of = |cause, of| Some(CauseLine { cause, of });
    let stuck = view.cause.clone().or_else(|| found.filter(|cause| cause.early).map(CauseView::of));
    if let Some(stuck) = stuck {
        return of(stuck, Of::Current);
    }
    let written = Snapshot::of(&material.deployment).written_at;
    let long = written.is_none_or(|at| now.duration_since(at) >= NOT_OBSERVED);
    let phase = match view.phase {
        RecordPhase::Unobserved if long => Phase::Unobserved,
        RecordPhase::Failed => Phase::Failed,
        _ => {
            let rollback = view.rollback.as_ref().filter(|last| last.current)?;
            return of(of_rollback(rollback), Of::RolledBack);
        }
    };
    let mut unknown = CauseView::of(&Cause::unknown(phase));
    if material.pods.is_err() || material.replica_sets.is_err() {
        unknown.message = match phase {
            Phase::Failed => {
                "the progress deadline has passed; why is not shown, as its pods may not be read"
            }
            _ => "the generation is not observed; its ReplicaSets or pods may not be read",
        }
        .to_owned();
    }
    of(unknown, Of::Current)
}

fn of_rollback(rollback: &RollbackView) -> CauseView {
    CauseView {
        kind: rollback.cause,
        message: rollback.message.clone(),
        since: Some(rollback.started_at),
        evidence: rollback.evidence.clone(),
        early: false,
    }
}

fn status(material: &Material, view: &DeploymentView) -> Status {
    let replicas = Replicas {
        desired: view.desired,
        total: view.replicas,
        updated: view.updated,
        ready: view.ready,
        available: view.available,
    };
    let line = |condition: &ConditionView| ConditionLine {
        inherited: inherited(material, view, condition),
        condition: condition.clone(),
    };
    Status {
        phase: view.phase,
        summary: summary(view),
        since: view.since,
        replicas,
        conditions: view.conditions.iter().map(line).collect(),
    }
}

fn summary(view: &DeploymentView) -> String {
    let DeploymentView { desired, updated, available, replicas, generation, observed_generation, .. } = view;
    let old = replicas.saturating_sub(*updated);
    let old = if old > 0 { format!(", {old} of an earlier template still run") } else { String::new() };
    let counts =
        format!("{updated} of {desired} replicas are updated{old}, {available} are available in all");
    match view.phase {
        RecordPhase::Complete if *desired == 0 => "it is scaled to 0".to_owned(),
        RecordPhase::Complete => {
            format!("all {desired} replicas run the current template and are available")
        }
        RecordPhase::Progressing => format!("the rollout is under way: {counts}"),
        RecordPhase::Failed => format!("Kubernetes has given the rollout up: {counts}"),
        RecordPhase::Unobserved => format!(
            "kube-controller-manager has not taken up generation {generation}: what the status says is of generation {observed_generation}"
        ),
        RecordPhase::Paused => "the rollout is paused".to_owned(),
        RecordPhase::Deleting => "it is being deleted".to_owned(),
    }
}

/// Whether a condition speaks of the generation before.
fn inherited(material: &Material, view: &DeploymentView, condition: &ConditionView) -> bool {
    let own = ["Progressing", "Available", "ReplicaFailure"].contains(&condition.kind.as_str());
    if view.phase == RecordPhase::Unobserved {
        return own && condition.reason != "ReplicaSetCreateError";
    }
    let snapshot = Snapshot::of(&material.deployment);
    let progressing = snapshot.progressing.filter(|_| condition.kind == "Progressing");
    material.replica_sets.is_ok()
        && progressing.is_some_and(|progressing| is_inherited(&progressing, current(material).map(name)))
}

fn generations(material: &Material, view: &DeploymentView) -> Generations {
    let entries = material.deployment["metadata"]["managedFields"].as_array();
    let of_object = |entry: &&Value| entry["subresource"].as_str().is_none_or(str::is_empty);
    let at = |entry: &Value| -> Option<Timestamp> { entry["time"].as_str()?.parse().ok() };
    let last = entries.into_iter().flatten().filter(of_object).max_by_key(|entry| at(entry));
    let lease = material.controller_manager.as_ref().ok();
    Generations {
        generation: view.generation,
        observed: view.observed_generation,
        lag: view.generation.saturating_sub(view.observed_generation).max(0),
        written_at: last.and_then(at),
        written_by: last.and_then(|entry| entry["manager"].as_str()).map(|manager| plain(manager, NAME)),
        controller_manager: ControllerManagerState {
            state: match liveness(material) {
                Liveness::Alive => "alive",
                Liveness::Silent => "silent",
                Liveness::Unknown => "unknown",
            },
            holder: lease.map(|lease| plain(&lease.holder, NAME)).filter(|holder| !holder.is_empty()),
            renewed_at: lease.and_then(|lease| lease.renewed_at),
        },
    }
}

fn pods(material: &Material, now: Timestamp) -> Option<Pods> {
    let pods = material.pods.as_deref().ok()?;
    let sets = material.replica_sets.as_deref().unwrap_or_default();
    let set = replica_set_to_look_at(&material.deployment, sets).map(name);
    Some(incidents::pods(set, pods, &material.logs, now))
}

/// What could not be read, each once.
fn hidden(material: &Material) -> Vec<Hidden> {
    let mut hidden = Vec::new();
    let Material {
        key: _,
        flags: _,
        deployment: _,
        replica_sets,
        pods,
        events,
        logs,
        record,
        controller_manager,
        nodes,
        quotas,
        limit_ranges,
        webhooks,
        endpoints,
        admission_policies,
        namespace_labels,
        guard,
        policies,
    } = material;
    let mut add = |error: Option<&Hidden>| {
        if let Some(error) = error.filter(|error| !hidden.contains(*error)) {
            hidden.push(error.clone());
        }
    };
    add(replica_sets.as_ref().err());
    add(pods.as_ref().err());
    add(events.as_ref().err());
    logs.iter().for_each(|log| add(log.text.as_ref().err()));
    add(record.as_ref().err());
    add(controller_manager.as_ref().err());
    add(nodes.as_ref().err());
    add(quotas.as_ref().err());
    add(limit_ranges.as_ref().err());
    add(webhooks.as_ref().err());
    endpoints.values().for_each(|endpoints| add(endpoints.as_ref().err()));
    add(admission_policies.as_ref().err());
    add(namespace_labels.as_ref().err());
    add(guard.as_ref().err());
    if let Ok(Some(installation)) = guard {
        add(installation.lease.as_ref().err());
    }
    add(policies.as_ref().err());
    hidden
}

fn name(object: &Value) -> &str {
    object["metadata"]["name"].as_str().unwrap_or_default()
}
