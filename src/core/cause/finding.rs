//! What one pod says of its trouble.
//!
//! ```text
//!  lost with its node ─▶ its node is not ready ─▶ not scheduled ─▶ its containers ─▶ its mounts, its sandbox
//! ```
//!
//! The reasons of `state.waiting` are those of `pkg/kubelet/images/types.go`,
//! `pkg/kubelet/container/sync_result.go` and `pkg/kubelet/kuberuntime/kuberuntime_container.go`.

use jiff::{SignedDuration, Timestamp};

use super::{
    Input,
    facts::{ContainerFacts, PodEvent, PodFacts, Said, Scheduled, Terminated},
    image::{Pull, error, host_of, is_pull, pull},
};
use crate::{api::policy::CauseType, core::rollout::Phase};

/// How long a container must run after a restart until the crash before is not held against it.
const STEADY: SignedDuration = SignedDuration::from_secs(30);

/// The longest run of a container that still counts as a part of a crash loop.
const SLOWEST_LOOP: SignedDuration = SignedDuration::from_mins(15);

/// How long the scheduler, the kubelet and the network of a node may take before they are suspected.
const PATIENCE: SignedDuration = SignedDuration::from_secs(60);

/// The same once the progress deadline has passed, which may be shorter.
const PATIENCE_AT_THE_END: SignedDuration = SignedDuration::from_secs(5);

/// How old an event may be. One that repeats is sent each five minutes at least: `EventSourceObjectSpamFilter` of
/// client-go.
const EVENT_AGE: SignedDuration = SignedDuration::from_mins(10);

/// How many other images of a host must fail until it is the host's trouble.
const MANY: usize = 2;

/// What comes first where as many pods show it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Rank {
    ControlPlane,
    Node,
    Registry,
    Image,
    Configuration,
    Crash,
    Unscheduled,
    NotReady,
}

/// The trouble of one pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Finding {
    pub(super) rank: Rank,
    pub(super) kind: CauseType,
    /// In words that stay the same while the trouble goes on.
    pub(super) words: String,
    /// What Kubernetes says, for the evidence.
    pub(super) said: String,
    pub(super) early: bool,
    /// Name and image.
    pub(super) container: Option<(String, String)>,
    /// Where the log would tell more: whether that of the run before would.
    pub(super) log: Option<bool>,
}

impl Finding {
    fn new(rank: Rank, kind: CauseType, words: String, said: String) -> Self {
        Self { rank, kind, words, said, early: false, container: None, log: None }
    }

    fn node(words: String, said: String) -> Self {
        Self::new(Rank::Node, CauseType::Node, words, said)
    }

    fn configuration(words: String, said: String) -> Self {
        Self::new(Rank::Configuration, CauseType::Configuration, words, said)
    }

    fn early(mut self, early: bool) -> Self {
        self.early = early;
        self
    }

    fn log(mut self, previous: bool) -> Self {
        self.log = Some(previous);
        self
    }

    fn of(mut self, container: &ContainerFacts) -> Self {
        // What the node does wrong to one container it does to all.
        if self.kind != CauseType::Node {
            self.container = Some((container.name.clone(), container.image.clone()));
        }
        self
    }
}

/// Returns the trouble of a pod that its ReplicaSet counts.
pub(super) fn of_active(pod: &PodFacts, input: &Input<'_>, now: Timestamp) -> Option<Finding> {
    let Some(node) = pod.node.as_deref() else { return unscheduled(pod, input, now) };
    // `NodeUnreachablePodReason` of `pkg/util/node`.
    if pod.reason.as_deref() == Some("NodeLost") {
        return Some(Finding::node(format!("node {node} is lost"), "NodeLost".to_owned()));
    }
    if (input.node_not_ready)(node) {
        let words = format!("node {node} is not ready");
        return Some(Finding::node(words.clone(), words));
    }
    pod.containers
        .iter()
        .filter_map(|container| of_container(pod, container, input, now))
        // The first one of the spec, where several have the same trouble.
        .min_by_key(|finding| finding.rank)
        .or_else(|| not_created(pod, input, now))
}

/// Returns the trouble of a pod that has failed as a whole: with `restartPolicy: Always` that is its node's doing, or a
/// limit of its own (`pkg/kubelet`: eviction, preemption, nodeshutdown, lifecycle).
pub(super) fn of_failed(pod: &PodFacts) -> Option<Finding> {
    let reason = pod.reason.as_deref()?;
    let message = pod.message.as_deref().unwrap_or_default();
    let said = format!("{reason}: {message}");
    // The words of `pkg/kubelet/eviction/helpers.go` for a limit of the pod's own.
    let own =
        ["exceeded its local ephemeral storage limit", "exceeds the total limit", "Usage of EmptyDir volume"];
    // The sentences after the first hold quantities.
    let first = message.split(". ").next().unwrap_or_default().trim_end_matches('.');
    let node = pod.node.as_deref().unwrap_or("unknown");
    match reason {
        "Evicted" if own.iter().any(|words| message.contains(words)) => {
            let words = format!("pods are evicted: {first}");
            Some(Finding::new(Rank::Crash, CauseType::Application, words, said))
        }
        "Evicted" => Some(Finding::node(format!("pods are evicted from node {node}: {first}"), said)),
        "NodeLost"
        | "NodeAffinity"
        | "NodeShutdown"
        | "Shutdown"
        | "Terminated"
        | "Preempting"
        | "UnexpectedAdmissionError"
        | "NodePorts"
        | "NodeName" => Some(Finding::node(format!("node {node} does not keep the pods: {reason}"), said)),
        _ if reason.starts_with("OutOf") => {
            Some(Finding::node(format!("node {node} does not keep the pods: {reason}"), said))
        }
        _ => None,
    }
}

/// Returns the images that the pod fails to pull, unless it is for a reason of the image alone.
pub(super) fn failing_images(pod: &PodFacts) -> impl Iterator<Item = &str> {
    pod.containers.iter().filter_map(|container| {
        let waiting = container.waiting.as_ref().filter(|waiting| is_pull(&waiting.reason))?;
        match pull(&waiting.reason, &waiting.message, &container.image) {
            Pull::Image(_) | Pull::Node(_) => None,
            Pull::Unauthorised | Pull::Registry(_) | Pull::Undecided => Some(container.image.as_str()),
        }
    })
}

/// How long a pod may be without a word on its containers before its Events are asked for.
const QUIET_FOR: SignedDuration = SignedDuration::from_secs(2);

/// How long a pod whose containers say something may be without being ready before its Events are asked for.
const UNREADY_FOR: SignedDuration = SignedDuration::from_secs(10);

/// Returns how much the Events of a pod would tell, least first; none where they would tell nothing that it does not say.
pub(super) fn wants_events(pod: &PodFacts, now: Timestamp) -> Option<u8> {
    if pod.deleting || pod.node.is_none() || !pod.active() {
        return None;
    }
    let reported =
        |container: &ContainerFacts| container.running_since.is_some() || container.last_end().is_some();
    let creating = |said: &Said| matches!(said.reason.as_str(), "ContainerCreating" | "PodInitializing" | "");
    let is_creating = |container: &ContainerFacts| container.waiting.as_ref().is_none_or(creating);
    if !pod.containers.iter().any(reported) && pod.containers.iter().all(is_creating) {
        return older(pod, QUIET_FOR, now).then_some(0);
    }
    let undecided = |container: &ContainerFacts| {
        let waiting = container.waiting.as_ref().filter(|waiting| is_pull(&waiting.reason));
        waiting.is_some_and(|said| pull(&said.reason, &said.message, &container.image) == Pull::Undecided)
    };
    if pod.containers.iter().any(undecided) {
        return older(pod, QUIET_FOR, now).then_some(1);
    }
    // Which probe has killed it, what its probes answer.
    let unready = |container: &ContainerFacts| {
        reported(container) && !container.ready && (!container.init || container.sidecar)
    };
    (pod.containers.iter().any(unready) && older(pod, UNREADY_FOR, now)).then_some(2)
}

fn unscheduled(pod: &PodFacts, input: &Input<'_>, now: Timestamp) -> Option<Finding> {
    match &pod.scheduled {
        Some(Scheduled::No(Said { reason, message })) => {
            let words = if reason == "SchedulingGated" {
                "pods wait for their scheduling gates".to_owned()
            } else {
                // What preemption would do is a second sentence, and says nothing new.
                let message = message.split(" preemption:").next().unwrap_or_default();
                format!("pods cannot be scheduled: {message}")
            };
            let said = format!("PodScheduled=False ({reason}): {message}");
            Some(Finding::new(Rank::Unscheduled, CauseType::Capacity, words, said))
        }
        // Nobody has looked at it.
        None if older(pod, patience(input), now) => Some(Finding::new(
            Rank::ControlPlane,
            CauseType::ControlPlane,
            "no scheduler has looked at the pods".to_owned(),
            "no node, and no condition PodScheduled".to_owned(),
        )),
        _ => None,
    }
}

fn of_container(
    pod: &PodFacts,
    container: &ContainerFacts,
    input: &Input<'_>,
    now: Timestamp,
) -> Option<Finding> {
    let waits = container.waiting.as_ref().and_then(|waiting| waits(pod, container, waiting, input));
    waits
        .or_else(|| crashes(pod, container, input, now))
        .or_else(|| not_ready(container))
        .map(|finding| finding.of(container))
}

fn waits(pod: &PodFacts, container: &ContainerFacts, waiting: &Said, input: &Input<'_>) -> Option<Finding> {
    let Said { reason, message } = waiting;
    let said = format!("{reason}: {message}");
    let name = &container.name;
    match reason.as_str() {
        reason if is_pull(reason) => Some(not_pulled(pod, container, waiting, input, said)),
        "CreateContainerConfigError" | "CreateContainerError" | "RunContainerError" => {
            Some(not_made(name, message, said))
        }
        "CreatePodSandboxError" | "ConfigPodSandboxError" | "KillPodSandboxError" => {
            Some(Finding::node("the node cannot make the pods' sandbox".to_owned(), said))
        }
        "PostStartHookError" => {
            let words = format!("the postStart hook of container {name} fails");
            let again = container.restart_count >= 1;
            Some(Finding::new(Rank::Crash, CauseType::Application, words, said).early(again).log(false))
        }
        _ => None,
    }
}

/// What a runtime says when it is the node that is in trouble, and not what it is told to do.
const RUNTIME: &[&str] = &[
    "no space left on device",
    "deadline exceeded",
    "timed out",
    "failed to reserve container name",
    "cannot allocate memory",
    "too many open files",
    "resource temporarily unavailable",
    "input/output error",
    "connection refused",
    "transport is closing",
    "code = unavailable",
    "failed to start shim",
];

/// A container that the node cannot make: because of what it is told, or because of the node.
fn not_made(name: &str, message: &str, said: String) -> Finding {
    let lower = message.to_lowercase();
    let words = format!("container {name} cannot be started: {}", innermost(message));
    if RUNTIME.iter().any(|words| lower.contains(words)) {
        return Finding::node(words, said);
    }
    Finding::configuration(words, said).early(true)
}

/// Returns the end of a runtime's error, which says what went wrong: `exec: "x": executable file not found in $PATH`.
fn innermost(message: &str) -> &str {
    let message = message.trim().trim_end_matches(": unknown");
    ["unable to start container process: ", "error during container init: "]
        .iter()
        .filter_map(|start| message.rfind(start).map(|at| at + start.len()))
        .max()
        .map_or(message, |at| &message[at..])
}

fn not_pulled(
    pod: &PodFacts,
    container: &ContainerFacts,
    waiting: &Said,
    input: &Input<'_>,
    said: String,
) -> Finding {
    let image = &container.image;
    let own = pull(&waiting.reason, &waiting.message, image);
    let (found, said) = match own {
        Pull::Undecided => elsewhere(pod, image, input).unwrap_or((own, said)),
        _ => (own, said),
    };
    let host = host_of(image);
    let many = || (input.others_failing)(&host) >= MANY;
    let because = |why: &str| format!("image {image} cannot be pulled: {why}");
    let of_image = |why: &str, said| Finding::new(Rank::Image, CauseType::Image, because(why), said);
    let of_registry =
        |why: &str, said| Finding::new(Rank::Registry, CauseType::Registry, because(why), said).early(true);
    match found {
        Pull::Image(why) => of_image(why, said).early(true),
        Pull::Registry(why) => of_registry(&format!("{why} ({host})"), said),
        Pull::Node(why) => Finding::node(because(why), said),
        Pull::Unauthorised if many() => {
            of_registry(&format!("unauthorised, as other images of {host} are"), said)
        }
        Pull::Unauthorised => of_image("unauthorised", said).early(true),
        Pull::Undecided if many() => of_registry(&format!("nor can other images of {host}"), said),
        // Nothing is known for sure: the deadline is waited for.
        Pull::Undecided => of_image("the node does not say why", said),
    }
}

/// What else tells of the pull of an image: events of the pod, other containers and pods, events of those.
fn elsewhere(pod: &PodFacts, image: &str, input: &Input<'_>) -> Option<(Pull, String)> {
    let quoted = format!("\"{image}\"");
    let latest = |own: bool| {
        input
            .events
            .iter()
            .filter(|event| event.reason == "Failed" && (event.pod == pod.name) == own)
            .filter(|event| event.message.contains(&quoted))
            .map(|event| (event.last_at, &event.message, error(&event.message, image)))
            .filter(|(_, _, found)| *found != Pull::Undecided)
            .max()
            .map(|(_, message, found)| (found, format!("event Failed: {message}")))
    };
    let others = || {
        let containers = input.pods.iter().filter(|pod| pod.active()).flat_map(|pod| &pod.containers);
        containers
            .filter(|container| container.image == image)
            .filter_map(|container| container.waiting.as_ref().filter(|waiting| is_pull(&waiting.reason)))
            .map(|said| {
                let found = pull(&said.reason, &said.message, image);
                (found, format!("{}: {}", said.reason, said.message))
            })
            .filter(|(found, _)| *found != Pull::Undecided)
            .min()
    };
    latest(true).or_else(others).or_else(|| latest(false))
}

/// A container that ended and will be started again, or that was and has not run for long since.
///
/// From one crash to the next it is waiting, running and terminated by turns; the finding holds through all of it. Since
/// Kubernetes 1.37 `CrashLoopBackOff` shows for a moment only, so it is not asked for.
fn crashes(pod: &PodFacts, container: &ContainerFacts, input: &Input<'_>, now: Timestamp) -> Option<Finding> {
    let end = container.last_end()?;
    let to_end = container.init && !container.sidecar;
    // The kubelet lost sight of it, such as when the node was started anew: nothing is known of how it ended.
    let lost = matches!(end.reason.as_str(), "Unknown" | "ContainerStatusUnknown");
    if lost || (to_end && end.exit_code == 0) {
        return None;
    }
    let before = match (end.started_at, end.finished_at) {
        (Some(start), Some(finish)) => finish.duration_since(start).max(SignedDuration::ZERO),
        _ => SignedDuration::ZERO,
    };
    if let Some(since) = container.running_since {
        // A liveness probe may take longer than that to kill what never gets ready: twice the run before is waited for.
        let twice = before.saturating_mul(2).saturating_add(SignedDuration::from_secs(10));
        let enough = if container.ready { STEADY } else { twice.clamp(STEADY, SLOWEST_LOOP) };
        if now.duration_since(since) >= enough {
            return None;
        }
    }
    let name = &container.name;
    let told = end.message.trim();
    let colon = if told.is_empty() { "" } else { ": " };
    let said = format!("terminated: {}, exit code {}{colon}{told}", end.reason, end.exit_code);

    // The runtime could not start it at all.
    if matches!(end.reason.as_str(), "StartError" | "ContainerCannotRun") {
        return container.running_since.is_none().then(|| not_made(name, &end.message, said));
    }
    let words = match killed_by(pod, container, end, input, now) {
        Some(probe) => format!("container {name} is killed by its {probe} probe"),
        None => how(container, end),
    };
    // The run that has ended is counted as a restart only when the next one begins.
    let ends = container.restart_count.saturating_add(u64::from(container.running_since.is_none()));
    let crash = Finding::new(Rank::Crash, CauseType::Application, words, said);
    Some(crash.early(ends >= 2 && before < SLOWEST_LOOP).log(container.running_since.is_some()))
}

fn how(container: &ContainerFacts, end: &Terminated) -> String {
    let name = &container.name;
    let what = if container.init && !container.sidecar { "init container" } else { "container" };
    let code = end.exit_code;
    if end.reason == "OOMKilled" {
        let limit =
            container.memory_limit.as_ref().map(|limit| format!(", limit {limit}")).unwrap_or_default();
        return format!(
            "{what} {name} needs more memory than it may have (OOMKilled, exit code {code}{limit})"
        );
    }
    // 128 + the number of the signal, as shells have it.
    let signal = match code {
        134 => " (SIGABRT)",
        137 => " (SIGKILL)",
        139 => " (SIGSEGV)",
        143 => " (SIGTERM)",
        _ => "",
    };
    match code {
        0 => format!("{what} {name} ends with exit code 0, and is meant to go on"),
        _ => format!("{what} {name} ends with exit code {code}{signal}"),
    }
}

/// Which probe had the container killed: an event `Killing`, `Container app failed liveness probe, will be restarted`, of
/// `pkg/kubelet/kuberuntime/kuberuntime_manager.go`.
fn killed_by(
    pod: &PodFacts,
    container: &ContainerFacts,
    end: &Terminated,
    input: &Input<'_>,
    now: Timestamp,
) -> Option<&'static str> {
    if end.reason == "OOMKilled" {
        return None;
    }
    let name = format!("ontainer {} failed ", container.name);
    events(input, "Killing", now)
        .filter(|event| event.pod == pod.name)
        .filter_map(|event| {
            let (_, rest) = event.message.split_once(name.as_str())?;
            ["liveness", "startup"].into_iter().find(|probe| rest.starts_with(probe))
        })
        .min()
}

/// A container that runs and is not ready: it may be slow, so the deadline is waited for.
fn not_ready(container: &ContainerFacts) -> Option<Finding> {
    container.running_since?;
    let name = &container.name;
    let words = if container.init && !container.sidecar {
        format!("init container {name} has not finished")
    } else if container.ready {
        return None;
    } else if container.started == Some(false) {
        format!("container {name} is running, but its startup probe has not succeeded")
    } else {
        format!("container {name} is running but not ready")
    };
    let said = "running, not ready".to_owned();
    Some(Finding::new(Rank::NotReady, CauseType::Application, words, said).log(false))
}

/// A pod on a node, of which no container has been made yet: events tell why.
fn not_created(pod: &PodFacts, input: &Input<'_>, now: Timestamp) -> Option<Finding> {
    let made = |c: &ContainerFacts| c.running_since.is_some() || c.last_end().is_some();
    if pod.containers.is_empty() || pod.containers.iter().any(made) {
        return None;
    }
    let own = |reason| events(input, reason, now).filter(|event| event.pod == pod.name);
    let moved_on = ["Pulling", "Pulled", "Created", "Started"]
        .into_iter()
        .flat_map(own)
        .filter_map(|event| event.last_at)
        .max();
    let holds = |event: &&PodEvent| moved_on.is_none_or(|moved| event.last_at.is_none_or(|at| at > moved));

    // What one pod lacks all lack, as they have one template: the events of one are enough.
    let missing = events(input, "FailedMount", now).filter(holds).filter(|event| is_missing(&event.message));
    if let Some(event) = missing.min_by_key(|event| mount_error(&event.message)) {
        let words = format!("a volume cannot be mounted: {}", mount_error(&event.message));
        let said = format!("event FailedMount: {}", event.message);
        return Some(Finding::configuration(words, said).early(true));
    }
    if !older(pod, patience(input), now) {
        return None;
    }
    let last = |reason| own(reason).filter(holds).max_by_key(|event| (event.last_at, event.message.as_str()));
    if let Some(event) = last("FailedCreatePodSandBox") {
        let said = format!("event {}: {}", event.reason, event.message);
        return Some(Finding::node("the node cannot make the pods' sandbox".to_owned(), said));
    }
    if let Some(event) = ["FailedAttachVolume", "FailedMount", "FailedMapVolume"].into_iter().find_map(last) {
        let said = format!("event {}: {}", event.reason, event.message);
        let words = format!("a volume cannot be mounted: {}", mount_error(&event.message));
        return Some(if event.message.contains("hostPath type check failed") {
            Finding::configuration(words, said)
        } else {
            Finding::node(words, said)
        });
    }
    let silent = !pod.containers.iter().any(|container| container.reported);
    let node = pod.node.as_deref().unwrap_or_default();
    let said = "no status of any container".to_owned();
    silent.then(|| Finding::node(format!("node {node} has not begun with the pods"), said))
}

/// Whether a mount fails for want of an object or of a key in it: `pkg/volume/{configmap,secret,projected}`.
fn is_missing(message: &str) -> bool {
    let lower = message.to_lowercase();
    let about = ["configmap", "secret"].iter().any(|what| lower.contains(what));
    about && (lower.contains("not found") || lower.contains("references non-existent"))
}

/// Returns why a mount fails: what comes after `MountVolume.SetUp failed for volume "config" : `.
fn mount_error(message: &str) -> &str {
    message.split_once(" : ").map_or(message, |(_, rest)| rest).trim()
}

fn events<'a>(
    input: &Input<'a>,
    reason: &'static str,
    now: Timestamp,
) -> impl Iterator<Item = &'a PodEvent> + use<'a> {
    let recent = move |at: Timestamp| now.duration_since(at) <= EVENT_AGE;
    input.events.iter().filter(move |event| event.reason == reason && event.last_at.is_none_or(recent))
}

fn patience(input: &Input<'_>) -> SignedDuration {
    if input.phase == Phase::Failed { PATIENCE_AT_THE_END } else { PATIENCE }
}

fn older(pod: &PodFacts, than: SignedDuration, now: Timestamp) -> bool {
    pod.created_at.is_some_and(|at| now.duration_since(at) >= than)
}
