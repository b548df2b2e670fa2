//! A pod as `kubectl get pods` shows it.

use jiff::Timestamp;
use serde::Serialize;
use serde_json::Value;

use super::{LONG, SHORT};
use crate::core::{
    cause::{ContainerFacts, PodFacts, Scheduled, Terminated},
    message::{harmless, plain},
};

/// A pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PodView {
    /// Its name.
    pub name: String,
    /// `status.phase`, such as `Pending`.
    pub phase: String,
    /// What kubectl shows as its STATUS, such as `ImagePullBackOff`, `Init:0/1` or `Running`.
    pub reason: String,
    /// What goes with the reason; empty where nobody says more.
    pub message: String,
    /// Whether the condition `Ready` is true.
    pub ready: bool,
    /// How many containers are ready.
    pub ready_containers: usize,
    /// How many containers there are, sidecars among them.
    pub containers: usize,
    /// How often its containers were restarted.
    pub restarts: u64,
    /// Its node, once it is scheduled.
    pub node: Option<String>,
    /// `metadata.creationTimestamp`.
    pub created_at: Option<Timestamp>,
}

impl PodView {
    /// Reads a core/v1 Pod.
    pub fn of(pod: &Value) -> Self {
        let facts = PodFacts::of(pod);
        let initialized = pod["status"]["conditions"]
            .as_array()
            .into_iter()
            .flatten()
            .any(|condition| condition["type"] == "Initialized" && condition["status"] == "True");
        let (reason, message) = status(&facts, initialized);
        let counted = || facts.containers.iter().filter(|container| !container.init || container.sidecar);
        Self {
            reason: plain(&reason, SHORT),
            message: harmless(&plain(&message, LONG)),
            ready: facts.ready,
            ready_containers: counted().filter(|container| container.ready).count(),
            containers: counted().count(),
            restarts: counted().map(|container| container.restart_count).fold(0, u64::saturating_add),
            node: facts.node.as_deref().map(|node| plain(node, SHORT)),
            created_at: facts.created_at,
            name: plain(&facts.name, SHORT),
            phase: plain(&facts.phase, SHORT),
        }
    }

    /// Says whether it is as it should be: running and ready, or ended well.
    pub fn is_well(&self) -> bool {
        self.ready || self.reason == "Completed"
    }
}

/// The reason as `printPod` of `pkg/printers/internalversion` in Kubernetes finds it, and the message that goes with it.
fn status(pod: &PodFacts, initialized: bool) -> (String, String) {
    let unscheduled = match &pod.scheduled {
        Some(Scheduled::No(said)) => Some(said),
        _ => None,
    };
    let mut reason = pod.reason.clone().unwrap_or_else(|| pod.phase.clone());
    let mut message =
        pod.message.clone().or(unscheduled.map(|said| said.message.clone())).unwrap_or_default();
    if let Some(said) = unscheduled.filter(|said| said.reason == "SchedulingGated") {
        reason.clone_from(&said.reason);
    }
    let initializing = initializing(pod);
    if let Some(found) = &initializing {
        (reason, message) = found.clone();
    }
    if (initializing.is_none() || initialized)
        && let Some(found) = running(pod)
    {
        (reason, message) = found;
    }
    if pod.deleting && pod.reason.as_deref() == Some("NodeLost") {
        reason = "Unknown".to_owned();
    } else if pod.deleting && !matches!(pod.phase.as_str(), "Failed" | "Succeeded") {
        reason = "Terminating".to_owned();
    }
    (reason, message)
}

/// Where the init containers stand; none where all of them have done their work.
fn initializing(pod: &PodFacts) -> Option<(String, String)> {
    let all = || pod.containers.iter().filter(|container| container.init);
    for (place, container) in all().filter(|container| container.reported).enumerate() {
        match (&container.terminated, &container.waiting) {
            (Some(end), _) if end.exit_code == 0 => {}
            _ if container.sidecar && container.started == Some(true) => {}
            (Some(end), _) => return Some((format!("Init:{}", ended(end)), end.message.clone())),
            (None, Some(said)) if !said.reason.is_empty() && said.reason != "PodInitializing" => {
                return Some((format!("Init:{}", said.reason), told(container)));
            }
            _ => return Some((format!("Init:{place}/{}", all().count()), String::new())),
        }
    }
    None
}

/// What the containers say, the first of them last; none where they say nothing.
fn running(pod: &PodFacts) -> Option<(String, String)> {
    let containers = pod.containers.iter().filter(|container| !container.init && container.reported);
    let mut found = None;
    let mut runs = false;
    for container in containers.rev() {
        if let Some(said) = container.waiting.as_ref().filter(|said| !said.reason.is_empty()) {
            found = Some((said.reason.clone(), told(container)));
        } else if let Some(end) = &container.terminated {
            found = Some((ended(end), end.message.clone()));
        } else if container.ready && container.running_since.is_some() {
            runs = true;
        }
    }
    match found {
        // What goes on beside a container that is done is what counts.
        Some((reason, message)) if reason == "Completed" && runs => {
            Some((if pod.ready { "Running" } else { "NotReady" }.to_owned(), message))
        }
        found => found,
    }
}

/// How it ended, as one word.
fn ended(end: &Terminated) -> String {
    if end.reason.is_empty() { format!("ExitCode:{}", end.exit_code) } else { end.reason.clone() }
}

/// What a container that waits says, and how it ended before: a crash loop alone says nothing.
fn told(container: &ContainerFacts) -> String {
    let waits = container.waiting.as_ref().map_or("", |said| said.message.as_str());
    let Some(end) = &container.last_terminated else { return waits.to_owned() };
    let said = end.message.trim();
    let colon = if said.is_empty() { "" } else { ": " };
    format!("container {}: {}, exit code {}{colon}{said}", container.name, ended(end), end.exit_code)
}
