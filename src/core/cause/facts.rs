//! What is read of pods, ReplicaSets and events: leniently, as a shape that is not known must not hide the rest.
//!
//! The typed structs of k8s-openapi fail as a whole on one odd value. Here a field that is absent or of another
//! type is read as absent. Lists and texts are bounded when they are read.

use jiff::Timestamp;
use serde_json::Value;

/// The most containers, conditions and so on that are read of one list.
const LIST: usize = 64;

/// The most bytes that are read of one text. An error of a pull says at its end what went wrong.
const TEXT: usize = 4096;

/// What is known of one pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodFacts {
    /// `metadata.name`.
    pub name: String,
    /// `spec.nodeName`, once it is scheduled.
    pub node: Option<String>,
    /// `status.phase`, such as `Pending`.
    pub phase: String,
    /// `status.reason`, such as `Evicted`.
    pub reason: Option<String>,
    /// `status.message`, which goes with the reason.
    pub message: Option<String>,
    /// What the scheduler says, where the condition `PodScheduled` is there.
    pub scheduled: Option<Scheduled>,
    /// Whether the condition `Ready` is true.
    pub ready: bool,
    /// Whether `metadata.deletionTimestamp` is set.
    pub deleting: bool,
    /// `metadata.creationTimestamp`.
    pub created_at: Option<Timestamp>,
    /// The latest time that the status tells: of a condition or of the end of a container.
    pub changed_at: Option<Timestamp>,
    /// The init containers first, each in the order of the spec.
    pub containers: Vec<ContainerFacts>,
}

/// The condition `PodScheduled` of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scheduled {
    /// It is true.
    Yes,
    /// It is not, with the scheduler's reason (`Unschedulable`, `SchedulingGated`, `SchedulerError`) and message.
    No(Said),
}

/// A reason and a message.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Said {
    /// The reason in CamelCase.
    pub reason: String,
    /// The message, from outside: not trusted.
    pub message: String,
}

/// What is known of one container of a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ContainerFacts {
    /// Its name.
    pub name: String,
    /// The image as the spec names it.
    pub image: String,
    /// Whether it is an init container.
    pub init: bool,
    /// Whether it is a sidecar: an init container that goes on running (`restartPolicy: Always`).
    pub sidecar: bool,
    /// Whether the kubelet has reported a status of it.
    pub reported: bool,
    /// `ready`.
    pub ready: bool,
    /// `started`: the startup probe has succeeded, or there is none.
    pub started: Option<bool>,
    /// `restartCount`.
    pub restart_count: u64,
    /// `state.waiting`.
    pub waiting: Option<Said>,
    /// `state.running.startedAt`; the start of the epoch where it runs without saying since when.
    pub running_since: Option<Timestamp>,
    /// `state.terminated`.
    pub terminated: Option<Terminated>,
    /// `lastState.terminated`.
    pub last_terminated: Option<Terminated>,
    /// `resources.limits.memory` of the spec, as it is written.
    pub memory_limit: Option<String>,
}

/// How a container ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Terminated {
    /// The reason, such as `Error`, `OOMKilled`, `Completed` or `StartError`.
    pub reason: String,
    /// The exit code.
    pub exit_code: i64,
    /// What the runtime, or the container by its termination log, says: not trusted.
    pub message: String,
    /// When it had started.
    pub started_at: Option<Timestamp>,
    /// When it ended.
    pub finished_at: Option<Timestamp>,
}

/// What is known of the newest ReplicaSet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReplicaSetFacts {
    /// `metadata.name`.
    pub name: String,
    /// The condition `ReplicaFailure`, where it is true.
    pub failure: Option<Said>,
}

/// One event about a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodEvent {
    /// The pod's name, by `involvedObject`.
    pub pod: String,
    /// The container's name, where the event is about one.
    pub container: Option<String>,
    /// The reason, such as `FailedMount`.
    pub reason: String,
    /// The message, from outside: not trusted.
    pub message: String,
    /// How often it was seen.
    pub count: Option<u64>,
    /// When it was seen last.
    pub last_at: Option<Timestamp>,
}

impl PodFacts {
    /// Reads a core/v1 Pod.
    pub fn of(pod: &Value) -> Self {
        let (metadata, spec, status) = (&pod["metadata"], &pod["spec"], &pod["status"]);
        let conditions = || list(&status["conditions"]);
        let condition = |kind: &str| conditions().find(|c| c["type"].as_str() == Some(kind));
        let scheduled = condition("PodScheduled").map(|c| {
            if c["status"].as_str() == Some("True") { Scheduled::Yes } else { Scheduled::No(said(c)) }
        });

        let mut containers = Vec::new();
        containers.extend(read_containers(&spec["initContainers"], &status["initContainerStatuses"], true));
        containers.extend(read_containers(&spec["containers"], &status["containerStatuses"], false));
        let ends = containers.iter().flat_map(|c| c.terminated.iter().chain(&c.last_terminated));
        let changed_at = ends
            .filter_map(|end| end.finished_at)
            .chain(conditions().filter_map(|c| time(&c["lastTransitionTime"])))
            .max();

        Self {
            name: text(&metadata["name"]),
            node: filled(&spec["nodeName"]),
            phase: text(&status["phase"]),
            reason: filled(&status["reason"]),
            message: filled(&status["message"]),
            scheduled,
            ready: condition("Ready").is_some_and(|c| c["status"].as_str() == Some("True")),
            deleting: !metadata["deletionTimestamp"].is_null(),
            created_at: time(&metadata["creationTimestamp"]),
            changed_at,
            containers,
        }
    }

    /// Whether the ReplicaSet counts it: `IsPodActive` of `pkg/controller` in Kubernetes.
    pub fn active(&self) -> bool {
        !self.deleting && !matches!(self.phase.as_str(), "Failed" | "Succeeded")
    }
}

impl ReplicaSetFacts {
    /// Reads an apps/v1 ReplicaSet.
    pub fn of(replica_set: &Value) -> Self {
        let failure = list(&replica_set["status"]["conditions"])
            .find(|c| c["type"].as_str() == Some("ReplicaFailure") && c["status"].as_str() == Some("True"));
        Self { name: text(&replica_set["metadata"]["name"]), failure: failure.map(said) }
    }
}

impl PodEvent {
    /// Reads a core/v1 or an events.k8s.io/v1 Event; none where it is not about a pod or has no reason.
    pub fn of(event: &Value) -> Option<Self> {
        let about = [&event["involvedObject"], &event["regarding"]]
            .into_iter()
            .find(|about| about["kind"].as_str() == Some("Pod"))?;
        let series = &event["series"];
        let last_at =
            [&series["lastObservedTime"], &event["lastTimestamp"], &event["deprecatedLastTimestamp"]]
                .into_iter()
                .chain([&event["eventTime"], &event["metadata"]["creationTimestamp"]])
                .find_map(time);
        let count = [&series["count"], &event["count"], &event["deprecatedCount"]].into_iter();
        let message = if event["message"].is_string() { &event["message"] } else { &event["note"] };
        Some(Self {
            pod: filled(&about["name"])?,
            container: about["fieldPath"]
                .as_str()
                .and_then(|path| path.split_once('{'))
                .and_then(|(_, rest)| rest.strip_suffix('}'))
                .map(|name| bounded(name).to_owned()),
            reason: filled(&event["reason"])?,
            message: text(message),
            count: count.filter_map(Value::as_u64).next(),
            last_at,
        })
    }
}

impl ContainerFacts {
    /// Returns how it ended last, if it ever did.
    pub fn last_end(&self) -> Option<&Terminated> {
        self.terminated.as_ref().or(self.last_terminated.as_ref())
    }
}

fn read_containers<'a>(
    specs: &'a Value,
    statuses: &'a Value,
    init: bool,
) -> impl Iterator<Item = ContainerFacts> + 'a {
    let named = |list_: &'a Value, name: &str| list(list_).find(|c| c["name"].as_str() == Some(name));
    let of_spec = list(specs).map(move |spec| {
        let name = text(&spec["name"]);
        let status = named(statuses, &name).unwrap_or(&Value::Null);
        container(spec, status, init)
    });
    // A status without its spec is odd, but tells as much.
    let others = list(statuses)
        .filter(move |status| status["name"].as_str().is_none_or(|name| named(specs, name).is_none()))
        .map(move |status| container(&Value::Null, status, init));
    of_spec.chain(others)
}

fn container(spec: &Value, status: &Value, init: bool) -> ContainerFacts {
    let state = &status["state"];
    let either = |key: &str| filled(&spec[key]).or_else(|| filled(&status[key])).unwrap_or_default();
    let waiting = state["waiting"].is_object().then(|| said(&state["waiting"]));
    let running = state["running"].is_object();
    ContainerFacts {
        name: either("name"),
        image: either("image"),
        init,
        sidecar: init && spec["restartPolicy"].as_str() == Some("Always"),
        reported: status.is_object(),
        ready: status["ready"].as_bool().unwrap_or(false),
        started: status["started"].as_bool(),
        restart_count: status["restartCount"].as_u64().unwrap_or(0),
        waiting,
        running_since: running.then(|| time(&state["running"]["startedAt"]).unwrap_or(Timestamp::UNIX_EPOCH)),
        terminated: terminated(&state["terminated"]),
        last_terminated: terminated(&status["lastState"]["terminated"]),
        memory_limit: filled(&spec["resources"]["limits"]["memory"]),
    }
}

fn terminated(value: &Value) -> Option<Terminated> {
    value.is_object().then(|| Terminated {
        reason: text(&value["reason"]),
        exit_code: value["exitCode"].as_i64().unwrap_or(0),
        message: text(&value["message"]),
        started_at: time(&value["startedAt"]),
        finished_at: time(&value["finishedAt"]),
    })
}

fn said(value: &Value) -> Said {
    Said { reason: text(&value["reason"]), message: text(&value["message"]) }
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().map(Vec::as_slice).unwrap_or_default().iter().take(LIST)
}

fn text(value: &Value) -> String {
    bounded(value.as_str().unwrap_or_default()).to_owned()
}

fn filled(value: &Value) -> Option<String> {
    value.as_str().filter(|text| !text.is_empty()).map(|text| bounded(text).to_owned())
}

fn bounded(text: &str) -> &str {
    &text[..text.floor_char_boundary(TEXT)]
}

fn time(value: &Value) -> Option<Timestamp> {
    value.as_str()?.parse().ok()
}
