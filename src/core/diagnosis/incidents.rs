//! Events and pods: what happened.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

use super::model::{ContainerLine, EventLine, Log, LogLines, PodLine, Pods};
use crate::core::{
    cause::{Cause, ContainerFacts, LogSource, PodFacts, Terminated, log_evidence},
    message::{harmless, plain},
    view::PodView,
};

/// The most Events that are told.
const EVENTS: usize = 15;

/// The most pods that are told of, one by one.
const PODS: usize = 5;

/// The most logs that are read.
pub(super) const LOGS: usize = 3;

/// The most characters of a message.
const MESSAGE: usize = 600;

/// The most characters of a name.
const NAME: usize = 253;

/// What is told of every pod that starts: of no interest in one that does not.
const ROUTINE: [&str; 7] =
    ["Scheduled", "Pulling", "Pulled", "Created", "Started", "SuccessfulCreate", "SuccessfulDelete"];

/// How long ago a container that runs again may have crashed.
const LATELY: SignedDuration = SignedDuration::from_mins(10);

/// Returns what the Events say, those that say the same together, the newest last. What is told of every pod is left out;
/// where there are still too many, those of the type Normal go first, then the oldest.
pub(super) fn lines(events: &[Value]) -> Vec<EventLine> {
    let mut told: BTreeMap<_, (EventLine, Vec<String>)> = BTreeMap::new();
    for event in events.iter().filter_map(Told::of).filter(|event| !event.is_routine()) {
        let key = (event.kind.clone(), event.reason.clone(), event.object_kind.clone(), event.steady());
        let (line, names) = told.entry(key).or_insert_with(|| (event.line(), Vec::new()));
        if !names.contains(&event.name) {
            names.push(event.name.clone());
        }
        line.count = line.count.saturating_add(event.count);
        if line.last_at <= event.last_at {
            *line = EventLine { count: line.count, ..event.line() };
        }
        line.objects = names.len();
    }
    let mut lines: Vec<EventLine> = told.into_values().map(|(line, _)| line).collect();
    lines.sort_by(|a, b| (a.last_at, &a.object, &a.reason).cmp(&(b.last_at, &b.object, &b.reason)));
    let warnings = lines.iter().filter(|line| line.kind != "Normal").count();
    let mut normal_left = EVENTS.saturating_sub(warnings);
    let mut warnings_left = EVENTS;
    let mut kept: Vec<EventLine> = lines
        .into_iter()
        .rev()
        .filter(|line| {
            let left = if line.kind == "Normal" { &mut normal_left } else { &mut warnings_left };
            let keep = *left > 0;
            *left = left.saturating_sub(1);
            keep
        })
        .collect();
    kept.reverse();
    kept
}

/// An Event as it was read.
struct Told {
    kind: String,
    reason: String,
    object_kind: String,
    name: String,
    message: String,
    count: u64,
    last_at: Option<Timestamp>,
}

impl Told {
    /// Reads a core/v1 Event; none where it does not say what it is about.
    fn of(event: &Value) -> Option<Self> {
        let text = |value: &Value, most| plain(value.as_str().unwrap_or_default(), most);
        let about = &event["involvedObject"];
        let series = &event["series"];
        let times = [&series["lastObservedTime"], &event["lastTimestamp"], &event["eventTime"]];
        let last_at = times
            .into_iter()
            .chain([&event["metadata"]["creationTimestamp"]])
            .find_map(|time| time.as_str()?.parse().ok());
        let name = text(&about["name"], NAME);
        (!name.is_empty()).then(|| Self {
            kind: text(&event["type"], NAME),
            reason: text(&event["reason"], NAME),
            object_kind: text(&about["kind"], NAME),
            name,
            message: harmless(&text(&event["message"], MESSAGE)),
            count: series["count"].as_u64().or_else(|| event["count"].as_u64()).unwrap_or(1).max(1),
            last_at,
        })
    }

    fn is_routine(&self) -> bool {
        self.kind == "Normal" && ROUTINE.contains(&self.reason.as_str())
    }

    /// The message without the object's name: what differs from pod to pod.
    fn steady(&self) -> String {
        self.message.replace(&self.name, "*")
    }

    fn line(&self) -> EventLine {
        EventLine {
            kind: self.kind.clone(),
            reason: self.reason.clone(),
            object: format!("{}/{}", self.object_kind, self.name),
            objects: 1,
            message: self.message.clone(),
            count: 0,
            last_at: self.last_at,
        }
    }
}

/// Returns the pods that are not well, those first of which most is to be told.
pub(super) fn failing(pods: &[Value], now: Timestamp) -> Vec<(&Value, PodFacts)> {
    let mut failing: Vec<(&Value, PodFacts)> = pods
        .iter()
        .map(|pod| (pod, PodFacts::of(pod)))
        .filter(|(_, facts)| !facts.deleting && facts.phase != "Succeeded")
        .filter(|(_, facts)| !facts.ready || facts.containers.iter().any(|c| crashed_lately(c, now)))
        .collect();
    let told = |facts: &PodFacts| facts.containers.iter().filter(|c| is_not_well(c, now)).count();
    failing.sort_by(|(_, a), (_, b)| (b.active(), told(b), &a.name).cmp(&(a.active(), told(a), &b.name)));
    failing
}

/// Returns whose logs would tell more: the cause's container first, then one of each other container that is not well.
pub(super) fn logs_to_read(pods: &[Value], cause: Option<&Cause>, now: Timestamp) -> Vec<LogSource> {
    let mut wanted: Vec<LogSource> = cause.and_then(|cause| cause.container.clone()).into_iter().collect();
    for (_, pod) in failing(pods, now) {
        for container in pod.containers.iter().filter(|c| is_not_well(c, now) && has_run(c)) {
            if wanted.len() < LOGS && !wanted.iter().any(|source| source.container == container.name) {
                wanted.push(LogSource {
                    pod: pod.name.clone(),
                    container: container.name.clone(),
                    // Between two runs the log of now is that of the run that ended.
                    previous: container.running_since.is_some() && container.last_terminated.is_some(),
                });
            }
        }
    }
    wanted
}

/// Returns what is told of the pods.
pub(super) fn pods(replica_set: Option<&str>, pods: &[Value], logs: &[Log], now: Timestamp) -> Pods {
    let failing = failing(pods, now);
    let count = |which: fn(&PodFacts) -> bool| pods.iter().map(PodFacts::of).filter(which).count();
    let line = |(pod, facts): &(&Value, PodFacts)| PodLine {
        pod: PodView::of(pod),
        containers: facts
            .containers
            .iter()
            .filter(|container| is_not_well(container, now))
            .map(|container| container_line(&facts.name, container, logs))
            .collect(),
    };
    Pods {
        replica_set: replica_set.map(|name| plain(name, NAME)),
        total: count(|pod| !pod.deleting),
        ready: count(|pod| !pod.deleting && pod.ready),
        omitted: failing.len().saturating_sub(PODS),
        failing: failing.iter().take(PODS).map(line).collect(),
    }
}

fn container_line(pod: &str, container: &ContainerFacts, logs: &[Log]) -> ContainerLine {
    let filled = |text: &str| Some(harmless(&plain(text.trim(), MESSAGE))).filter(|text| !text.is_empty());
    let end = container.last_end();
    let (state, reason, message) = match (&container.waiting, &container.terminated) {
        (Some(said), _) => ("waiting", said.reason.as_str(), said.message.as_str()),
        (None, Some(end)) => ("terminated", end.reason.as_str(), end.message.as_str()),
        (None, None) if container.running_since.is_some() => ("running", "", ""),
        (None, None) => ("waiting", "", ""),
    };
    let log = logs.iter().find(|log| log.source.pod == pod && log.source.container == container.name);
    ContainerLine {
        name: plain(&container.name, NAME),
        image: plain(&container.image, NAME),
        state,
        reason: filled(reason),
        message: filled(message),
        restarts: container.restart_count,
        exit_code: end.map(|end| end.exit_code),
        exit_reason: end.and_then(|end| filled(&end.reason)),
        exited_at: end.and_then(|end: &Terminated| end.finished_at),
        log: log.and_then(|log| {
            let lines = log_evidence(log.text.as_deref().ok()?);
            Some(LogLines { previous: log.source.previous, lines })
        }),
    }
}

/// An init container that has done its work is well.
fn is_not_well(container: &ContainerFacts, now: Timestamp) -> bool {
    let done = container.init && !container.sidecar && container.terminated.as_ref().is_some_and(ended_well);
    !done && (!container.ready || crashed_lately(container, now))
}

fn ended_well(end: &Terminated) -> bool {
    end.exit_code == 0
}

fn crashed_lately(container: &ContainerFacts, now: Timestamp) -> bool {
    let end = container.last_terminated.as_ref().filter(|end| !ended_well(end));
    end.and_then(|end| end.finished_at).is_some_and(|at| now.duration_since(at) < LATELY)
}

fn has_run(container: &ContainerFacts) -> bool {
    container.running_since.is_some() || container.last_end().is_some()
}
