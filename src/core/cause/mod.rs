//! Facts about ReplicaSets and pods -> why a generation is stuck.
//!
//! Each pod of the newest ReplicaSet has at most one trouble (`finding`). Equal troubles are counted together: by kind,
//! container and image. The one that most pods show is the cause; among equals the one that comes first here:
//!
//! ```text
//!  ControlPlane ▸ Node ▸ Registry ▸ Image ▸ Configuration ▸ Application (crash) ▸ Capacity (scheduling) ▸ Application (not ready)
//! ```
//!
//! Pods that cannot be created at all (quota) are the cause, unless half of those that could be fail by themselves.
//! An unobserved generation has no pods: what is there belongs to the one before, so only its conditions and the
//! signs of life of kube-controller-manager are looked at.
//!
//! A message holds nothing that changes while the same trouble goes on: no suffix of a pod's name, no time, no count
//! of restarts.

mod facts;
mod finding;
mod image;
mod words;

#[cfg(test)]
mod tests;

use std::{cmp::Reverse, collections::BTreeMap};

use jiff::{SignedDuration, Timestamp};

use self::finding::{Finding, Rank};
use super::rollout::{Condition, Phase, Snapshot};
use crate::api::policy::CauseType;

pub use facts::{ContainerFacts, PodEvent, PodFacts, ReplicaSetFacts, Said, Scheduled, Terminated};
pub use image::{DEFAULT_HOST, host_of};
pub use words::{LOG_BYTES, LOG_LINES, log_evidence};

/// The most characters of a cause's message.
pub const MESSAGE: usize = 300;

/// The most lines of evidence.
pub const EVIDENCE: usize = 8;

/// The most characters of a line of evidence.
const LINE: usize = 300;

/// The most pods that the evidence names.
const NAMED: usize = 3;

/// How long a pod that failed as a whole is remembered: the next one may do better.
const FAILED_LATELY: SignedDuration = SignedDuration::from_mins(5);

/// Whether something that works in the background gives signs of life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Liveness {
    /// It renews its lease.
    Alive,
    /// It has not renewed its lease for longer than it should.
    Silent,
    /// It cannot be told, such as where its lease is out of reach.
    #[default]
    Unknown,
}

/// All that a cause is found by.
#[derive(Clone, Copy)]
pub struct Input<'a> {
    /// What the Deployment says of itself.
    pub snapshot: &'a Snapshot<'a>,
    /// Where its generation stands.
    pub phase: Phase,
    /// The ReplicaSet of the current template, where there is one.
    pub replica_set: Option<&'a ReplicaSetFacts>,
    /// Pods of that ReplicaSet, in any order.
    pub pods: &'a [PodFacts],
    /// Events about these pods, in any order.
    pub events: &'a [PodEvent],
    /// Whether a node is known to be not ready.
    pub node_not_ready: &'a dyn Fn(&str) -> bool,
    /// How many other images of a registry's host other Deployments fail to pull right now.
    pub others_failing: &'a dyn Fn(&str) -> usize,
    /// Whether kube-controller-manager is at work.
    pub controller_manager: Liveness,
}

/// Why a generation is stuck.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cause {
    /// The kind.
    pub kind: CauseType,
    /// In words, on one line.
    pub message: String,
    /// Facts that anybody can check, a line each.
    pub evidence: Vec<String>,
    /// Whether it is so hard a fact that the progress deadline need not be waited for.
    pub early: bool,
    /// The container whose log would tell more, where one would.
    pub container: Option<LogSource>,
    /// The image of that container, or the one that cannot be pulled.
    pub image: Option<String>,
    key: String,
}

/// A container whose log would tell more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogSource {
    /// The pod's name.
    pub pod: String,
    /// The container's name.
    pub container: String,
    /// Whether it is the log of the run before.
    pub previous: bool,
}

impl Cause {
    /// Returns the cause of a generation that is stuck while nothing says why.
    pub fn unknown(phase: Phase) -> Self {
        let message = match phase {
            Phase::Unobserved => "the generation is not observed, and nothing says why",
            Phase::Failed => "the progress deadline has passed, and no pod says why",
            _ => "the rollout does not get on, and no pod says why",
        };
        Self::new(CauseType::Unknown, message, &[])
    }

    fn new(kind: CauseType, message: &str, evidence: &[String]) -> Self {
        Self {
            kind,
            message: words::one_line(message, MESSAGE),
            evidence: evidence.iter().map(|line| words::one_line(line, LINE)).take(EVIDENCE).collect(),
            early: false,
            container: None,
            image: None,
            key: kind.word().to_owned(),
        }
    }

    /// Returns what stays the same while the same trouble goes on: kind, container and image. The message may
    /// change meanwhile.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// Whether it is the same trouble as another.
    pub fn same(&self, other: &Self) -> bool {
        self.key == other.key
    }
}

/// Returns why the generation is stuck or about to be; none where nothing explains it, and where it is neither
/// under way nor stuck.
pub fn find(input: &Input<'_>, now: Timestamp) -> Option<Cause> {
    match input.phase {
        Phase::Deleting | Phase::Paused | Phase::Complete => None,
        Phase::Unobserved => unobserved(input),
        Phase::Failed | Phase::Progressing => observed(input, now),
    }
}

/// Returns the images that these pods fail to pull right now, sorted. Pulls that fail for the image alone do not
/// count: they say nothing about its host.
pub fn failing_images(pods: &[PodFacts]) -> Vec<String> {
    let active = pods.iter().filter(|pod| pod.active());
    let mut images: Vec<String> = active.flat_map(finding::failing_images).map(str::to_owned).collect();
    images.sort();
    images.dedup();
    images
}

/// Returns the pod whose Events are worth asking for: the first that does not say itself what keeps it, and is old enough to
/// have met with it. None where all say so, or are ready.
pub fn tells_by_events(pods: &[PodFacts], now: Timestamp) -> Option<&PodFacts> {
    let rank = |pod: &&PodFacts| finding::wants_events(pod, now);
    pods.iter().filter(|pod| rank(pod).is_some()).min_by_key(|pod| (rank(pod), pod.name.as_str()))
}

/// The deployment controller sets observedGeneration at the end of a sync that succeeded, so what has failed is either
/// the creation of the ReplicaSet (`pkg/controller/deployment/sync.go`), or the controller itself.
fn unobserved(input: &Input<'_>) -> Option<Cause> {
    let silent = input.controller_manager == Liveness::Silent;
    // The condition may be of an earlier generation: one that fails for the same reason leaves its time as it was. A
    // controller that is alive would have replaced it by now.
    let written_at = input.snapshot.written_at;
    let inherited = |condition: &Condition<'_>| {
        silent && written_at.zip(condition.updated_at).is_none_or(|(written, updated)| updated < written)
    };
    create_error(input)
        .filter(|condition| !inherited(condition))
        .map(|condition| replica_set_create(&condition.message))
        .or_else(|| silent.then(|| control_plane(input)))
}

fn observed(input: &Input<'_>, now: Timestamp) -> Option<Cause> {
    // Over a ReplicaSet that is there it is inherited.
    if input.replica_set.is_none()
        && input.pods.is_empty()
        && let Some(condition) = create_error(input)
    {
        return Some(replica_set_create(&condition.message));
    }
    let mut pods: Vec<&PodFacts> = input.pods.iter().filter(|pod| !pod.deleting).collect();
    pods.sort_by_key(|pod| &pod.name);
    let (active, failed): (Vec<&PodFacts>, Vec<&PodFacts>) = pods.into_iter().partition(|pod| pod.active());
    let groups = group(&active, input, |pod| finding::of_active(pod, input, now));
    let lately = |pod: &&PodFacts| {
        pod.changed_at.or(pod.created_at).is_none_or(|at| now.duration_since(at) <= FAILED_LATELY)
    };
    let failed: Vec<&PodFacts> = failed.into_iter().filter(lately).collect();
    let failed_groups = group(&failed, input, finding::of_failed);

    // A pod that was evicted says more than one that is not ready yet.
    let best = most(&groups);
    let weak = best.is_none_or(|best| best.rank >= Rank::Unscheduled);
    let best = match most(&failed_groups) {
        Some(failed) if weak && best.is_none_or(|best| failed.pods.len() >= best.pods.len()) => Some(failed),
        _ => best,
    };
    let explains = |best: &Group<'_>| match best.rank {
        Rank::ControlPlane | Rank::Node | Rank::Registry => true,
        Rank::Image | Rank::Configuration | Rank::Crash => best.pods.len() * 2 >= active.len(),
        Rank::Unscheduled | Rank::NotReady => false,
    };
    if let Some(failure) = replica_failure(input)
        && !best.is_some_and(explains)
    {
        return Some(not_created(&failure, input));
    }
    match best {
        Some(best) => Some(cause(best, &groups, active.len(), input)),
        None => (input.controller_manager == Liveness::Silent).then(|| control_plane(input)),
    }
}

/// The same trouble in several pods.
struct Group<'a> {
    kind: CauseType,
    /// Name and image.
    container: Option<(String, String)>,
    /// The rank of the first finding.
    rank: Rank,
    /// The pod and the finding which speak for all.
    first: (&'a PodFacts, Finding),
    /// All, by the pods' names.
    pods: Vec<(&'a PodFacts, Finding)>,
}

fn group<'a>(
    pods: &[&'a PodFacts],
    input: &Input<'_>,
    find: impl Fn(&PodFacts) -> Option<Finding>,
) -> Vec<Group<'a>> {
    let mut groups = BTreeMap::<_, Vec<_>>::new();
    for &pod in pods {
        if let Some(mut finding) = find(pod) {
            let replica_set =
                input.replica_set.map_or_else(|| words::replica_set_of(&pod.name), |set| set.name.as_str());
            finding.words = words::steady(&finding.words, replica_set);
            finding.said = words::steady(&finding.said, replica_set);
            groups.entry((finding.kind, finding.container.clone())).or_default().push((pod, finding));
        }
    }
    let group = |((kind, container), pods): (_, Vec<(&'a PodFacts, Finding)>)| {
        // The hardest fact speaks; of several in the same rank the most frequent.
        let count = |words: &str| pods.iter().filter(|(_, other)| other.words == words).count();
        let first = pods
            .iter()
            .min_by_key(|(_, f)| (f.rank, Reverse(f.early), Reverse(count(&f.words)), f.words.as_str()))?
            .clone();
        Some(Group { kind, container, rank: first.1.rank, first, pods })
    };
    groups.into_iter().filter_map(group).collect()
}

/// The group of most pods; among equals the one that ranks first, then the first by kind and name.
fn most<'g, 'a>(groups: &'g [Group<'a>]) -> Option<&'g Group<'a>> {
    groups.iter().min_by_key(|group| (Reverse(group.pods.len()), group.rank))
}

fn cause(group: &Group<'_>, groups: &[Group<'_>], active: usize, input: &Input<'_>) -> Cause {
    let (pod, finding) = &group.first;
    let mut evidence = vec![if pod.active() {
        format!("seen in {} of {active} pods", group.pods.len())
    } else {
        format!("seen in {} pods that have failed", group.pods.len())
    }];
    let told = |(pod, finding): &(&PodFacts, Finding)| {
        let container = finding.container.as_ref().map(|(name, _)| format!("container {name}: "));
        format!("pod {}: {}{}", pod.name, container.unwrap_or_default(), finding.said)
    };
    evidence.push(told(&group.first));
    evidence.extend(group.pods.iter().filter(|(other, _)| other.name != pod.name).take(NAMED - 1).map(told));
    if group.kind == CauseType::Application {
        evidence.extend(unhealthy(group, input));
    }
    evidence.extend(progressing(input));
    if let (CauseType::Registry | CauseType::Image, Some((_, image))) = (group.kind, &group.container) {
        let host = host_of(image);
        let others = (input.others_failing)(&host);
        if others > 0 {
            evidence.push(format!("{others} other images of {host} cannot be pulled"));
        }
    }
    let others =
        groups.iter().filter(|other| (other.kind, &other.container) != (group.kind, &group.container));
    evidence.extend(others.map(|other| {
        let (count, kind) = (other.pods.len(), other.kind.word());
        format!("also {kind} in {count} of {active} pods: {}", other.first.1.words)
    }));

    let mut cause = Cause::new(group.kind, &finding.words, &evidence);
    let early = group.pods.iter().filter(|(_, finding)| finding.early).count();
    cause.early = early > 0 && early * 2 >= active;
    if let Some((name, image)) = &group.container {
        cause.key = words::one_line(&format!("{}/{name}/{image}", group.kind.word()), 2 * LINE);
        cause.image = (!image.is_empty()).then(|| words::one_line(image, LINE));
        cause.container = finding.log.map(|previous| LogSource {
            pod: pod.name.clone(),
            container: name.clone(),
            previous,
        });
    }
    cause
}

/// What the kubelet says last of the probes of the group's container.
fn unhealthy(group: &Group<'_>, input: &Input<'_>) -> Option<String> {
    let name = group.container.as_ref().map(|(name, _)| name.as_str());
    let about = |event: &&PodEvent| {
        event.reason == "Unhealthy"
            && event.container.as_deref().is_none_or(|container| Some(container) == name)
            && group.pods.iter().any(|(pod, _)| pod.name == event.pod)
    };
    let last = input.events.iter().filter(about);
    let last = last.max_by_key(|event| (event.last_at, event.message.as_str(), event.pod.as_str()))?;
    let message = words::steady(&last.message, words::replica_set_of(&last.pod));
    Some(format!("event Unhealthy: {message}"))
}

fn progressing(input: &Input<'_>) -> Option<String> {
    let condition = input.snapshot.progressing.as_ref().filter(|condition| condition.status == "False")?;
    Some(format!("Deployment: Progressing=False ({}): {}", condition.reason, condition.message))
}

fn create_error<'a>(input: &Input<'a>) -> Option<&'a Condition<'a>> {
    let condition = input.snapshot.progressing.as_ref()?;
    (condition.status == "False" && condition.reason == "ReplicaSetCreateError").then_some(condition)
}

fn replica_set_create(message: &str) -> Cause {
    // `Failed to create new replica set "web-6fff4b7674": replicasets.apps ...`
    let why = match message.split_once("\": ") {
        Some((head, why)) if head.starts_with("Failed to create new replica set") => why,
        _ => message,
    };
    let words = format!("the ReplicaSet cannot be created: {}", words::steady(why, ""));
    let evidence = format!("Deployment: Progressing=False (ReplicaSetCreateError): {message}");
    Cause { early: true, ..Cause::new(CauseType::ReplicaSetCreate, &words, &[evidence]) }
}

fn control_plane(input: &Input<'_>) -> Cause {
    let Snapshot { generation, observed_generation, .. } = input.snapshot;
    let evidence = [
        "kube-controller-manager has not renewed its lease".to_owned(),
        format!("generation {generation}, observed generation {observed_generation}"),
    ];
    Cause::new(CauseType::ControlPlane, "kube-controller-manager shows no sign of life", &evidence)
}

/// The failure to create pods. The Deployment's condition may be that of an older ReplicaSet (`getReplicaFailures` of
/// `pkg/controller/deployment/progress.go`), so that of the newest counts where it is known.
fn replica_failure(input: &Input<'_>) -> Option<Said> {
    let failure = match input.replica_set {
        Some(replica_set) => replica_set.failure.clone()?,
        None => {
            let condition = input.snapshot.replica_failure.as_ref().filter(|c| c.status == "True")?;
            Said { reason: condition.reason.to_string(), message: condition.message.to_string() }
        }
    };
    (failure.reason == "FailedCreate").then_some(failure)
}

fn not_created(failure: &Said, input: &Input<'_>) -> Cause {
    // A name that the template gives: no capacity helps. It may be on its way, so the deadline is waited for.
    let missing = failure.message.contains("serviceaccount \"") && failure.message.contains("not found");
    let kind = if missing { CauseType::Configuration } else { CauseType::Capacity };
    let name = input.replica_set.map_or("", |replica_set| replica_set.name.as_str());
    let message = words::steady(&failure.message, name);
    let mut evidence = vec![format!("ReplicaSet {name}: ReplicaFailure=True (FailedCreate): {message}")];
    evidence.extend(progressing(input));
    Cause::new(kind, &format!("pods cannot be created: {message}"), &evidence)
}
