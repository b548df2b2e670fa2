//! One look at a Deployment and what belongs to it, with the rights that the user has.
//!
//! Phase and cause are found by the same code as the watcher's. Where a guard is at work its record is believed first;
//! without one the cause is found here, from what can be read. What may not be read is told and does no harm.

use std::collections::{BTreeSet, HashMap};

use jiff::Timestamp;
use serde::Serialize;
use serde_json::Value;

use crate::{
    cluster::{ClusterError, records::StoredRecord, rollouts::Rollouts},
    core::{
        cause::{self, Cause, Liveness, PodEvent, PodFacts, ReplicaSetFacts},
        key::Key,
        message::plain,
        rollout::{self, Snapshot, is_inherited},
        template::TemplateHash,
        view::{self, Around, DeploymentView},
    },
};

/// The most ReplicaSets whose pods are listed: each takes a call.
const MOST_SETS: usize = 8;

/// The most pods whose Events are read.
const MOST_TOLD: usize = 3;

/// The most characters of why something is hidden.
const WHY: usize = 400;

/// How much is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Depth {
    /// The Deployment, its ReplicaSets and its record.
    ReplicaSets,
    /// The pods as well: the cause is found by them.
    Pods,
    /// The Events on pods that are not well as well.
    Events,
}

/// What the user may not read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Hidden {
    /// What it is, such as `list pods in namespace "shop"`.
    pub what: String,
    /// What the API server says.
    pub why: String,
}

impl std::fmt::Display for Hidden {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "may not {}: {}", self.what, self.why)
    }
}

/// How the cluster around the Deployment is, as far as the caller knows.
#[derive(Clone, Debug, Default)]
pub struct Surroundings {
    /// The nodes that are not ready.
    pub nodes_not_ready: BTreeSet<String>,
    /// Whether kube-controller-manager is at work.
    pub controller_manager: Liveness,
}

/// What one look found.
#[derive(Clone, Debug)]
pub struct Look {
    /// For people and programs.
    pub view: DeploymentView,
    /// The Deployment, raw.
    pub deployment: Value,
    /// Its ReplicaSets, raw; none where they are hidden.
    pub replica_sets: Option<Vec<Value>>,
    /// Pods, raw, by the name of their ReplicaSet, 50 of each at the most; none where they are hidden or were not
    /// looked at.
    pub pods: Option<HashMap<String, Vec<Value>>>,
    /// Events on pods that are not well.
    pub events: Vec<PodEvent>,
    /// The RolloutRecord of this very Deployment, where there is one.
    pub record: Option<StoredRecord>,
    /// Why it does not get on by what was seen now, with the container whose log would tell more.
    pub cause: Option<Cause>,
    /// What may not be read.
    pub hidden: Vec<Hidden>,
}

/// Looks at the Deployment `key`.
///
/// # Errors
/// [`ClusterError::NotFound`] where it is not there; when the API server refuses to show the Deployment itself, or does
/// not answer.
pub async fn look(
    cluster: &impl Rollouts,
    key: &Key,
    depth: Depth,
    now: Timestamp,
) -> Result<Look, ClusterError> {
    look_within(cluster, key, depth, &Surroundings::default(), now).await
}

/// Like [`look`], in surroundings that are known.
///
/// # Errors
/// As with [`look`].
pub async fn look_within(
    cluster: &impl Rollouts,
    key: &Key,
    depth: Depth,
    surroundings: &Surroundings,
    now: Timestamp,
) -> Result<Look, ClusterError> {
    let found = cluster.deployment(key).await?;
    let deployment = found.ok_or_else(|| ClusterError::NotFound { key: key.clone() })?;
    let mut hidden = Vec::new();
    let (sets, record) = tokio::join!(cluster.replica_sets(key, &deployment), cluster.record(key));
    let place = format!("in namespace {:?}", key.namespace);
    let replica_sets = readable(sets, || format!("list replicasets {place}"), &mut hidden)?;
    let record = readable(record, || format!("get rolloutrecords {place}"), &mut hidden)?.flatten();
    let uid = deployment["metadata"]["uid"].as_str().unwrap_or_default();
    let record = record.filter(|record| record.is_of(key, uid));

    let template = TemplateHash::of(&deployment["spec"]["template"]);
    let current = replica_sets.as_deref().and_then(|sets| view::current_set(sets, template));
    let mut pods = None;
    if let (Some(sets), Depth::Pods | Depth::Events) = (&replica_sets, depth) {
        pods = pods_of(cluster, key, sets, current, &mut hidden).await?;
    }
    let facts: Vec<PodFacts> = current
        .and_then(|set| pods.as_ref()?.get(name(set)))
        .map(|pods| pods.iter().map(PodFacts::of).collect())
        .unwrap_or_default();
    let mut events = Vec::new();
    if depth == Depth::Events {
        events = events_on(cluster, key, &facts, &mut hidden).await?;
    }
    let cause = find(&deployment, current, &facts, &events, surroundings, now);
    let around = Around {
        replica_sets: replica_sets.as_deref(),
        pods: pods.as_ref(),
        record: record.as_ref().map(|record| &record.status),
        cause: cause.as_ref(),
    };
    let view = DeploymentView::of(&deployment, around, now);
    Ok(Look { view, deployment, replica_sets, pods, events, record, cause, hidden })
}

/// Finds out why it does not get on, as the watcher does.
fn find(
    deployment: &Value,
    current: Option<&Value>,
    pods: &[PodFacts],
    events: &[PodEvent],
    surroundings: &Surroundings,
    now: Timestamp,
) -> Option<Cause> {
    let mut snapshot = Snapshot::of(deployment);
    let phase = rollout::phase(&snapshot, current.map(name));
    // What the generation before left behind explains nothing.
    if snapshot.progressing.as_ref().is_some_and(|c| is_inherited(c, current.map(name))) {
        snapshot.progressing = None;
    }
    let facts = current.map(ReplicaSetFacts::of);
    let input = cause::Input {
        snapshot: &snapshot,
        phase,
        replica_set: facts.as_ref(),
        pods,
        events,
        node_not_ready: &|node| surroundings.nodes_not_ready.contains(node),
        others_failing: &|_| 0,
        controller_manager: surroundings.controller_manager,
    };
    cause::find(&input, now)
}

/// Lists the pods of the ReplicaSets that have any, the current one first.
async fn pods_of(
    cluster: &impl Rollouts,
    key: &Key,
    sets: &[Value],
    current: Option<&Value>,
    hidden: &mut Vec<Hidden>,
) -> Result<Option<HashMap<String, Vec<Value>>>, ClusterError> {
    let has_any = |set: &&Value| {
        let count = |value: &Value| value.as_i64().unwrap_or_default();
        count(&set["status"]["replicas"]) > 0 || count(&set["spec"]["replicas"]) > 0
    };
    let mut wanted: Vec<&Value> = sets.iter().filter(has_any).collect();
    wanted.sort_by_key(|set| {
        let is_current = current.is_some_and(|current| name(current) == name(set));
        (!is_current, std::cmp::Reverse(view::revision_of(set)))
    });
    wanted.truncate(MOST_SETS);
    let lists = futures::future::join_all(wanted.iter().map(|set| cluster.pods(key, set))).await;
    let mut pods = HashMap::new();
    for (set, list) in wanted.into_iter().zip(lists) {
        let what = || format!("list pods in namespace {:?}", key.namespace);
        match readable(list, what, hidden)? {
            Some(list) => pods.insert(name(set).to_owned(), list),
            // One right for all of them.
            None => return Ok(None),
        };
    }
    Ok(Some(pods))
}

/// Reads what is told of pods that are not well.
async fn events_on(
    cluster: &impl Rollouts,
    key: &Key,
    pods: &[PodFacts],
    hidden: &mut Vec<Hidden>,
) -> Result<Vec<PodEvent>, ClusterError> {
    let mut events = Vec::new();
    for pod in pods.iter().filter(|pod| pod.active() && !pod.ready).take(MOST_TOLD) {
        let what = || format!("list events in namespace {:?}", key.namespace);
        match readable(cluster.pod_events(&key.namespace, &pod.name).await, what, hidden)? {
            Some(told) => events.extend(told.iter().filter_map(PodEvent::of)),
            None => break,
        }
    }
    Ok(events)
}

/// None, and a word on it, where the user has no right to it.
pub fn readable<T>(
    result: Result<T, ClusterError>,
    what: impl Fn() -> String,
    hidden: &mut Vec<Hidden>,
) -> Result<Option<T>, ClusterError> {
    match result {
        Err(error) if error.code() == Some(403) => {
            hidden.push(Hidden { what: what(), why: plain(&error.message(), WHY) });
            Ok(None)
        }
        other => other.map(Some),
    }
}

fn name(object: &Value) -> &str {
    object["metadata"]["name"].as_str().unwrap_or_default()
}
