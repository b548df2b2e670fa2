//! What is wrong with how a Deployment is rolled out. On a good one nothing is.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::{
    model::{Configuration, Finding, Severity},
    quota::{Quota, demand_of},
};
use crate::core::{
    message::plain,
    view::{DeploymentView, StrategyView},
};

/// Kubernetes' default of `spec.progressDeadlineSeconds`.
const DEFAULT_DEADLINE: i64 = 600;

/// A liveness probe that gives a container less than this to start is harsh: the defaults give it 30 s.
const HARSH_SECONDS: i64 = 15;

/// The most characters of a name or an image.
const NAME: usize = 253;

/// Returns how the Deployment is rolled out, and what is wrong with it. `quotas` are those of its namespace, as far as
/// they are known.
pub(super) fn configuration(
    deployment: &Value,
    view: &DeploymentView,
    quotas: &[Quota],
    flags: &str,
) -> Configuration {
    let look = Look { deployment, view, strategy: &view.strategy, flags };
    let mut findings = Vec::new();
    findings.extend(look.paused());
    findings.extend(look.no_deadline());
    findings.extend(look.short_deadline());
    findings.extend(look.no_history());
    findings.extend(look.no_room(quotas));
    findings.extend(look.recreate());
    findings.extend(look.no_replicas());
    findings.extend(look.no_readiness());
    findings.extend(look.containers().iter().filter_map(|container| look.harsh_liveness(container)));
    findings.extend(look.mutable_images());
    findings.extend(look.mixed_pulls());
    findings.sort_by_key(|finding| finding.severity);
    Configuration {
        strategy: view.strategy.clone(),
        paused: view.paused,
        images: view.images.clone(),
        findings,
    }
}

struct Look<'a> {
    deployment: &'a Value,
    view: &'a DeploymentView,
    strategy: &'a StrategyView,
    flags: &'a str,
}

fn problem(id: &'static str, text: impl Into<String>, hint: impl Into<String>) -> Finding {
    Finding { severity: Severity::Problem, id, text: text.into(), hint: hint.into() }
}

fn note(id: &'static str, text: impl Into<String>, hint: impl Into<String>) -> Finding {
    Finding { severity: Severity::Note, id, text: text.into(), hint: hint.into() }
}

impl<'a> Look<'a> {
    fn template(&self) -> &'a Value {
        &self.deployment["spec"]["template"]["spec"]
    }

    /// The containers that run for as long as the pod does.
    fn containers(&self) -> Vec<Container<'a>> {
        let of = |kind: &str| self.template()[kind].as_array().into_iter().flatten();
        let sidecars = of("initContainers").filter(|c| c["restartPolicy"] == "Always");
        sidecars.chain(of("containers")).map(Container).collect()
    }

    fn paused(&self) -> Option<Finding> {
        let DeploymentView { namespace, name, .. } = self.view;
        let hint = format!("kubectl -n {namespace} rollout resume deployment/{name}{}", self.flags);
        self.view.paused.then(|| {
            problem("paused", "it is paused: a new template is not rolled out until it is resumed", hint)
        })
    }

    fn no_deadline(&self) -> Option<Finding> {
        self.strategy.progress_deadline_seconds.is_none().then(|| {
            problem(
                "no-deadline",
                "it has no progress deadline: Kubernetes never calls a rollout of it failed",
                format!("set spec.progressDeadlineSeconds; Kubernetes' default is {DEFAULT_DEADLINE}"),
            )
        })
    }

    /// What the probes leave a pod to get ready in, against the deadline for any progress at all.
    fn short_deadline(&self) -> Option<Finding> {
        let deadline = self.strategy.progress_deadline_seconds?;
        let min_ready = self.strategy.min_ready_seconds;
        let containers = self.containers();
        let least =
            containers.iter().map(Container::least_start).max().unwrap_or(0).saturating_add(min_ready);
        if deadline <= least {
            return Some(problem(
                "deadline-too-short",
                format!(
                    "its progress deadline of {deadline} s cannot be met: by minReadySeconds and its probes a pod takes at least {least} s to be available"
                ),
                format!("set spec.progressDeadlineSeconds well above {least}"),
            ));
        }
        let most = containers.iter().filter_map(Container::most_start).max()?.saturating_add(min_ready);
        (deadline < most).then(|| {
            note(
                "deadline-short",
                format!(
                    "its progress deadline of {deadline} s is shorter than the {most} s that its startup probe and minReadySeconds allow: a slow start counts as failed"
                ),
                format!("set spec.progressDeadlineSeconds above {most}, or let the startup probe allow less"),
            )
        })
    }

    fn no_history(&self) -> Option<Finding> {
        (self.strategy.revision_history_limit == 0).then(|| {
            problem(
                "no-history",
                "revisionHistoryLimit is 0: no earlier ReplicaSet is kept, so there is nothing to return to",
                "set spec.revisionHistoryLimit to 2 or more",
            )
        })
    }

    /// With `maxUnavailable: 0` a pod more must fit before one of the old may go.
    fn no_room(&self, quotas: &[Quota]) -> Option<Finding> {
        if self.strategy.kind == "Recreate" || self.max_unavailable() > 0 || self.view.desired == 0 {
            return None;
        }
        let demand = demand_of(self.template());
        let (quota, resource) =
            quotas.iter().find_map(|quota| Some((quota, quota.without_room_for(&demand)?)))?;
        Some(problem(
            "no-room",
            format!(
                "no old pod may go before a new one is available (maxUnavailable 0), and the ResourceQuota {} has no room for one more ({resource})",
                quota.name
            ),
            "raise the quota, or let spec.strategy.rollingUpdate.maxUnavailable be 1",
        ))
    }

    /// As `ResolveFenceposts` of `pkg/controller/deployment/util` has it: maxSurge rounded up, maxUnavailable down, and 1
    /// where both are 0.
    fn max_unavailable(&self) -> i64 {
        let desired = i64::from(self.view.desired);
        let resolve = |text: Option<&str>, up: bool| {
            let text = text.unwrap_or("25%");
            match text.strip_suffix('%') {
                Some(percent) => {
                    let product = percent.parse::<i64>().unwrap_or(25).saturating_mul(desired);
                    if up { product.saturating_add(99) / 100 } else { product / 100 }
                }
                None => text.parse().unwrap_or(0),
            }
        };
        let surge = resolve(self.strategy.max_surge.as_deref(), true);
        let unavailable = resolve(self.strategy.max_unavailable.as_deref(), false);
        if surge == 0 && unavailable == 0 { 1 } else { unavailable }
    }

    fn recreate(&self) -> Option<Finding> {
        (self.strategy.kind == "Recreate").then(|| {
            note(
                "recreate",
                "its strategy is Recreate: each rollout, and each way back, begins with no pod at all",
                "spec.strategy.type RollingUpdate keeps the old pods until the new ones are available",
            )
        })
    }

    fn no_replicas(&self) -> Option<Finding> {
        let DeploymentView { namespace, name, .. } = self.view;
        let hint = format!("kubectl -n {namespace} scale deployment/{name} --replicas=N{}", self.flags);
        (self.view.desired == 0).then(|| {
            note("no-replicas", "it is scaled to 0: nothing runs, and a rollout of it proves nothing", hint)
        })
    }

    fn no_readiness(&self) -> Option<Finding> {
        let containers = self.containers();
        if containers.is_empty() || containers.iter().any(|c| !c.0["readinessProbe"].is_null()) {
            return None;
        }
        let at_once = if self.strategy.min_ready_seconds == 0 {
            ", and with minReadySeconds 0 one that crashes a second later has been available"
        } else {
            ""
        };
        Some(note(
            "no-readiness-probe",
            format!("no container has a readiness probe: a pod counts as ready as soon as it runs{at_once}"),
            "add a readinessProbe, or set spec.minReadySeconds",
        ))
    }

    /// Without a startup probe the liveness probe counts from the start of the container.
    fn harsh_liveness(&self, container: &Container<'_>) -> Option<Finding> {
        let liveness = container.probe("livenessProbe")?;
        let name = container.name();
        if container.probe("startupProbe").is_some() {
            return None;
        }
        let limit = liveness.gives_up_after();
        if let Some(readiness) = container.probe("readinessProbe")
            && limit <= readiness.first_success()
        {
            return Some(problem(
                "liveness-before-readiness",
                format!(
                    "the liveness probe of container {name} kills it {limit} s after its start, and its readiness probe does not succeed before {} s",
                    readiness.first_success()
                ),
                "add a startupProbe that allows for a slow start",
            ));
        }
        (limit < HARSH_SECONDS).then(|| {
            note(
                "liveness-harsh",
                format!("the liveness probe of container {name} kills it where its start takes longer than {limit} s"),
                "add a startupProbe that allows for a slow start",
            )
        })
    }

    fn mutable_images(&self) -> Option<Finding> {
        let latest: BTreeMap<String, &str> = self
            .all_containers()
            .filter(|container| is_latest(container.image()))
            .map(|container| (plain(container.image(), NAME), container.pull_policy()))
            .collect();
        let (image, policy) = latest.first_key_value()?;
        let more = match latest.len() {
            1 => String::new(),
            count => format!(" (and {} more)", count - 1),
        };
        let so = if *policy == "Always" {
            "an earlier revision pulls the same image as this one"
        } else {
            "each node runs the one that it pulled first"
        };
        Some(note(
            "image-latest",
            format!("image {image}{more} is named by the tag latest: {so}"),
            "name a version or a digest, so that a revision is what it says",
        ))
    }

    /// One image that one container pulls each time and another does not.
    fn mixed_pulls(&self) -> Option<Finding> {
        let mut policies: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        for container in self.all_containers() {
            policies.entry(container.image()).or_default().insert(container.pull_policy());
        }
        let (image, policies) =
            policies.into_iter().find(|(image, policies)| policies.len() > 1 && !image.contains('@'))?;
        let policies: Vec<String> = policies.into_iter().map(|policy| plain(policy, NAME)).collect();
        Some(note(
            "pull-policies-differ",
            format!(
                "image {} is pulled by different policies in one pod ({}): its containers may run different images",
                plain(image, NAME),
                policies.join(", ")
            ),
            "give them one imagePullPolicy, or name the image by its digest",
        ))
    }

    fn all_containers(&self) -> impl Iterator<Item = Container<'a>> {
        let of = |kind: &str| self.template()[kind].as_array().into_iter().flatten();
        of("initContainers").chain(of("containers")).map(Container)
    }
}

#[derive(Clone, Copy)]
struct Container<'a>(&'a Value);

impl<'a> Container<'a> {
    fn name(&self) -> String {
        plain(self.0["name"].as_str().unwrap_or_default(), NAME)
    }

    fn image(&self) -> &'a str {
        self.0["image"].as_str().unwrap_or_default()
    }

    fn pull_policy(&self) -> &'a str {
        let fallback = if is_latest(self.image()) { "Always" } else { "IfNotPresent" };
        self.0["imagePullPolicy"].as_str().unwrap_or(fallback)
    }

    fn probe(&self, kind: &str) -> Option<Probe> {
        let probe = &self.0[kind];
        let number = |key: &str, default| probe[key].as_i64().unwrap_or(default);
        probe.is_object().then(|| Probe {
            delay: number("initialDelaySeconds", 0),
            period: number("periodSeconds", 10),
            failures: number("failureThreshold", 3),
            successes: number("successThreshold", 1),
        })
    }

    /// The seconds that its probes take at least.
    fn least_start(&self) -> i64 {
        let probes = ["startupProbe", "readinessProbe"].into_iter().filter_map(|kind| self.probe(kind));
        probes.map(|probe| probe.first_success()).max().unwrap_or(0)
    }

    /// The seconds that its startup probe allows at most.
    fn most_start(&self) -> Option<i64> {
        self.probe("startupProbe").map(|probe| probe.gives_up_after())
    }
}

/// The times of a probe, in seconds and in turns.
struct Probe {
    delay: i64,
    period: i64,
    failures: i64,
    successes: i64,
}

impl Probe {
    /// When it may have succeeded at the earliest.
    fn first_success(&self) -> i64 {
        self.delay.saturating_add(self.period.saturating_mul(self.successes.saturating_sub(1)))
    }

    /// After how long it has failed for good, as the documentation of Kubernetes counts it.
    fn gives_up_after(&self) -> i64 {
        self.delay.saturating_add(self.period.saturating_mul(self.failures))
    }
}

/// Whether an image is named by the tag `latest`, or by none.
fn is_latest(image: &str) -> bool {
    if image.is_empty() || image.contains('@') {
        return false;
    }
    // A colon before the last slash is that of a port.
    let name = image.rsplit('/').next().unwrap_or_default();
    name.split_once(':').is_none_or(|(_, tag)| tag == "latest")
}
