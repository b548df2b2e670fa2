//! `rollout-guard check`: is the installation sound?

use std::{
    collections::{BTreeMap, BTreeSet},
    process::ExitCode,
};

use clap::Args;
use jiff::{SignedDuration, Timestamp};
use serde::Serialize;

use super::{ClusterArgs, Output, certs::print};
use crate::{
    api::policy::RolloutPolicy,
    cluster::{
        Cluster, ClusterError,
        certificates::Configuration,
        installation::{Definition, FallbackObjects, Hook, Hooks, LABEL, Replica, Workload},
        leases::LeaseStore,
    },
    core::{
        lease::{BREAKER_CLOSED, Record, STOP_ANNOTATION, pod_of},
        message::plain,
    },
    webhook::certificates::issue::{Certificate, verify},
};

/// The CustomResourceDefinitions of this version, and the version that each must serve.
const DEFINITIONS: [(&str, &str); 2] =
    [("rolloutpolicies.rollout-guard.io", "v1alpha1"), ("rolloutrecords.rollout-guard.io", "v1alpha1")];

/// Own certificates are renewed 30 days before their end: with fewer days left nobody renews them.
const DAYS_TO_WORRY: i64 = 14;

/// Another replica takes a Lease that is not renewed within 18 s; the clock here may be another one than there.
const TAKEOVER: SignedDuration = SignedDuration::from_secs(30);

/// Says whether the installation in the cluster is sound, with a hint for each failure.
///
/// Nothing is written: the probe at the end is a dry run. What may not be read is skipped, and the missing right is
/// named.
///
/// Exit status: 0 sound, also with a warning, 1 not sound, 2 bad usage or a cluster that cannot be reached.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  rollout-guard check
  rollout-guard check -n rollout-guard
  rollout-guard check --probe-namespace shop --context staging
  rollout-guard check -o json | jq -r '.[] | select(.status == \"failed\") | .message'")]
pub struct CheckArgs {
    /// The namespace of the Deployment that the dry run creates; it must be one that is guarded.
    #[arg(long, value_name = "NAME", default_value = "default")]
    probe_namespace: String,

    #[command(flatten)]
    cluster: ClusterArgs,

    /// How to print the findings.
    #[arg(long, short = 'o', value_enum, default_value_t)]
    output: Output,
}

/// How a step went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Status {
    Ok,
    /// Nothing is broken, but the guard does not do all that it is there for.
    Warning,
    Failed,
    Skipped,
}

/// What one step found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Finding {
    step: &'static str,
    status: Status,
    message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    hint: Option<String>,
}

impl Finding {
    fn ok(step: &'static str, message: impl Into<String>) -> Self {
        Self { step, status: Status::Ok, message: message.into(), hint: None }
    }

    fn warning(step: &'static str, message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { step, status: Status::Warning, message: message.into(), hint: Some(hint.into()) }
    }

    fn failed(step: &'static str, message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { step, status: Status::Failed, message: message.into(), hint: Some(hint.into()) }
    }

    fn skipped(step: &'static str, message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { step, status: Status::Skipped, message: message.into(), hint: Some(hint.into()) }
    }

    /// What could not be read: a missing right is no fault of the installation.
    fn unread(step: &'static str, error: &ClusterError) -> Self {
        match (error.code(), error) {
            (Some(401 | 403), ClusterError::Api { what, .. }) => {
                Self::skipped(step, format!("may not {what}"), format!("ask for the right to {what}"))
            }
            _ => {
                Self::failed(step, error.to_string(), "is the API server healthy? kubectl get --raw /readyz")
            }
        }
    }
}

impl CheckArgs {
    /// Runs the command.
    ///
    /// # Errors
    /// When the cluster cannot be reached.
    pub async fn run(self) -> anyhow::Result<ExitCode> {
        let cluster = self.cluster.connect().await?;
        let version = cluster.version().await?;
        let mut findings = vec![Finding::ok("api-server", format!("reached, {version}"))];
        let check = Check { cluster: &cluster, args: &self, now: Timestamp::now() };
        check.run(&mut findings).await;
        print(&match self.output {
            Output::Json => serde_json::to_string_pretty(&findings)? + "\n",
            Output::Text => text(&findings),
        })?;
        Ok(ExitCode::from(exit_status(&findings)))
    }
}

/// 0 sound, 1 not sound, 2 where nothing at all could be read.
fn exit_status(findings: &[Finding]) -> u8 {
    let all = |status| findings.iter().skip(1).all(|finding| finding.status == status);
    if findings.iter().any(|finding| finding.status == Status::Failed) {
        1
    } else if all(Status::Skipped) {
        2
    } else {
        0
    }
}

struct Check<'a> {
    cluster: &'a Cluster,
    args: &'a CheckArgs,
    now: Timestamp,
}

impl Check<'_> {
    async fn run(&self, findings: &mut Vec<Finding>) {
        for (name, version) in DEFINITIONS {
            findings.push(match self.cluster.definition(name).await {
                Ok(definition) => definition_finding(name, version, definition.as_ref()),
                Err(error) => Finding::unread("crd", &error),
            });
        }
        let workloads = self.workloads(findings).await;
        let mut namespaces: BTreeSet<String> =
            workloads.iter().map(|workload| workload.namespace.clone()).collect();
        if namespaces.is_empty() {
            namespaces.extend(self.args.cluster.namespace.clone());
        }
        let hooks = self.configurations(findings).await;
        let services: BTreeSet<_> =
            hooks.iter().flat_map(|hooks| &hooks.hooks).filter_map(|hook| hook.service.clone()).collect();
        for (namespace, service) in &services {
            namespaces.insert(namespace.clone());
            findings.push(match self.cluster.ready_endpoints(namespace, service).await {
                Ok(ready) => endpoints_finding(namespace, service, ready),
                Err(error) => Finding::unread("endpoints", &error),
            });
        }
        self.certificates(findings, &namespaces, &services, &hooks).await;
        self.watchers(findings, &workloads).await;
        self.policies(findings).await;
        self.probe(findings).await;
    }

    /// Returns the Deployments that the guard runs as.
    async fn workloads(&self, findings: &mut Vec<Finding>) -> Vec<Workload> {
        let namespace = self.args.cluster.namespace.as_deref();
        match self.cluster.guard_workloads(namespace).await {
            Ok(workloads) if workloads.is_empty() => findings.push(Finding::failed(
                "deployment",
                format!(
                    "there is no Deployment labelled {LABEL} {}",
                    namespace.map_or("in any namespace".to_owned(), |n| format!("in the namespace {n}"))
                ),
                "install the chart: helm install rollout-guard charts/rollout-guard -n rollout-guard --create-namespace",
            )),
            Ok(workloads) => {
                findings.extend(workloads.iter().map(workload_finding));
                return workloads;
            }
            Err(error) => findings.push(Finding::unread("deployment", &error)),
        }
        Vec::new()
    }

    /// Returns the configurations of the installation that is checked.
    async fn configurations(&self, findings: &mut Vec<Finding>) -> Vec<Hooks> {
        let mut all = Vec::new();
        let namespace = self.args.cluster.namespace.as_deref();
        let kinds = [
            ("validating-configuration", self.cluster.guard_validating_hooks().await),
            ("mutating-configuration", self.cluster.guard_mutating_hooks().await),
        ];
        for (step, found) in kinds {
            let mut found = match found {
                Ok(found) => found,
                Err(error) => {
                    findings.push(Finding::unread(step, &error));
                    continue;
                }
            };
            // Another release is another check's.
            found.retain(|hooks| {
                namespace.is_none_or(|namespace| {
                    hooks.hooks.iter().all(|hook| hook.service.as_ref().is_none_or(|(n, _)| n == namespace))
                })
            });
            if found.is_empty() {
                findings.push(Finding::failed(
                    step,
                    format!("there is none labelled {LABEL}: nothing is called"),
                    "helm upgrade puts it back; if it was deleted to open the door by hand, the door is open",
                ));
            }
            findings.extend(found.iter().map(|hooks| hooks_finding(step, hooks)));
            all.extend(found);
        }
        all
    }

    /// Compares what each replica serves with what the configurations trust.
    async fn certificates(
        &self,
        findings: &mut Vec<Finding>,
        namespaces: &BTreeSet<String>,
        services: &BTreeSet<(String, String)>,
        hooks: &[Hooks],
    ) {
        let mut served = Vec::new();
        for namespace in namespaces {
            let replicas = match self.cluster.guard_replicas(namespace).await {
                Ok(replicas) => replicas,
                Err(error) => {
                    findings.push(Finding::unread("certificate", &error));
                    continue;
                }
            };
            for replica in replicas.iter().filter(|replica| replica.ready) {
                match self.cluster.replica_certificate(namespace, replica).await {
                    Ok(pem) => served.push((namespace.clone(), replica.clone(), pem)),
                    Err(error) => findings.push(unreachable_finding(
                        "certificate",
                        "which certificate it serves",
                        namespace,
                        replica,
                        &error,
                    )),
                }
            }
        }
        for hooks in hooks {
            findings
                .extend(hooks.hooks.iter().map(|hook| bundle_finding(&hooks.configuration, hook, self.now)));
        }
        for (namespace, replica, pem) in &served {
            let service =
                services.iter().find(|(of, _)| of == namespace).map(|(_, service)| service.as_str());
            let name = service.map(|service| format!("{service}.{namespace}.svc"));
            findings.push(certificate_finding(&replica.pod, pem, name.as_deref(), hooks, self.now));
        }
    }

    async fn watchers(&self, findings: &mut Vec<Finding>, workloads: &[Workload]) {
        let step = "watcher";
        if workloads.is_empty() {
            findings.push(Finding::skipped(
                step,
                "the Deployment of the guard, which says how it watches, was not found",
                "see the step deployment",
            ));
        } else if workloads.iter().all(|workload| workload.lease.is_none()) {
            findings
                .push(Finding::ok(step, "not enabled: rollouts are not followed, nothing is rolled back"));
        }
        for Workload { namespace, lease, .. } in workloads {
            if let Some(lease) = lease {
                self.watcher(findings, namespace, lease).await;
            }
        }
    }

    /// Says who watches, and what keeps it from rolling back.
    async fn watcher(&self, findings: &mut Vec<Finding>, namespace: &str, lease: &str) {
        let record = match self.cluster.lease(namespace, lease).read().await {
            Ok(Some(record)) => record,
            Ok(None) => return findings.push(no_lease_finding(namespace, lease)),
            Err(error) => return findings.push(Finding::unread("watcher", &error)),
        };
        findings.extend(record.stop.as_deref().map(|why| stopped_finding(namespace, lease, why)));
        let replicas = match self.cluster.guard_replicas(namespace).await {
            Ok(replicas) => replicas,
            Err(error) => return findings.push(Finding::unread("watcher", &error)),
        };
        let pod = pod_of(&record.holder);
        let Some(replica) = replicas.iter().find(|replica| replica.pod == pod) else {
            return findings.push(no_leader_finding(namespace, lease, &record, self.now));
        };
        match self.cluster.replica_metrics(namespace, replica).await {
            Ok(text) => findings.extend(leader_findings(pod, &text)),
            Err(error) => {
                let what = "what it watches; it holds the Lease";
                findings.push(unreachable_finding("watcher", what, namespace, replica, &error));
                findings.extend(breaker_finding(record.breaker.as_deref()));
            }
        }
    }

    async fn policies(&self, findings: &mut Vec<Finding>) {
        let policies = match self.cluster.stored_policies().await {
            Ok(policies) => policies,
            // Without its CRD, which is told above.
            Err(error) if error.code() == Some(404) => return,
            Err(error) => return findings.push(Finding::unread("policies", &error)),
        };
        if policies.is_empty() {
            findings.push(Finding::failed(
                "policies",
                "there is no RolloutPolicy: nothing is guarded",
                "create one (kubectl explain rolloutpolicy.spec), or set defaultPolicy.create in the chart",
            ));
        }
        for policy in &policies {
            findings.push(policy_finding(policy));
            let Some(name) = &policy.metadata.name else { continue };
            if condition(policy, "FallbackReady").is_some_and(|(good, ..)| good) {
                findings.push(match self.cluster.fallback_objects(name).await {
                    Ok(objects) => fallback_finding(name, &objects),
                    Err(error) => Finding::unread("fallback", &error),
                });
            } else {
                findings.extend(no_fallback_finding(name, policy));
            }
        }
    }

    async fn probe(&self, findings: &mut Vec<Finding>) {
        let namespace = &self.args.probe_namespace;
        findings.push(match self.cluster.probe_webhook(namespace).await {
            Ok(answered) => probe_finding(namespace, answered),
            Err(error) => refused_probe_finding(namespace, &error),
        });
    }
}

fn definition_finding(name: &str, version: &str, found: Option<&Definition>) -> Finding {
    let step = "crd";
    match found {
        None => Finding::failed(
            step,
            format!("{name} does not exist"),
            "Helm installs CRDs with the first install only: kubectl apply --server-side --force-conflicts -f manifests/crds",
        ),
        Some(found) if !found.established => Finding::failed(
            step,
            format!("{name} is not established"),
            format!("kubectl describe crd {name} says why"),
        ),
        Some(found) if !found.served.iter().any(|served| served == version) => Finding::failed(
            step,
            format!("{name} serves {}, not {version}", found.served.join(", ")),
            "the CRD is of another version of rollout-guard: kubectl apply --server-side --force-conflicts -f manifests/crds",
        ),
        Some(_) => Finding::ok(step, format!("{name} is established and serves {version}")),
    }
}

fn workload_finding(workload: &Workload) -> Finding {
    let Workload { namespace, name, wanted, available, .. } = workload;
    let message = format!("{namespace}/{name}: {available} of {wanted} replicas are available");
    if *available >= *wanted && *wanted > 0 {
        Finding::ok("deployment", message)
    } else {
        Finding::failed(
            "deployment",
            message,
            format!(
                "kubectl -n {namespace} get pods -l {LABEL}; what a replica waits for is in its log and at its \
                 /readyz"
            ),
        )
    }
}

fn hooks_finding(step: &'static str, hooks: &Hooks) -> Finding {
    let name = hooks.configuration.name();
    if hooks.hooks.is_empty() {
        return Finding::failed(step, format!("{name} has no webhooks"), "helm upgrade puts them back");
    }
    if let Some(hook) = hooks.hooks.iter().find(|hook| hook.service.is_none()) {
        return Finding::failed(
            step,
            format!("{name}: {} calls a URL, not the Service of the guard", hook.name),
            "helm upgrade puts the Service back",
        );
    }
    let told = hooks.hooks.iter().map(|hook| {
        let (namespace, service) = hook.service.clone().unwrap_or_default();
        format!("{} calls {namespace}/{service}, failurePolicy {}", hook.name, hook.failure_policy)
    });
    Finding::ok(step, format!("{name}: {}", told.collect::<Vec<_>>().join("; ")))
}

fn endpoints_finding(namespace: &str, service: &str, ready: usize) -> Finding {
    let message = format!("{namespace}/{service} has {}", plural(ready, "ready endpoint"));
    if ready > 0 {
        Finding::ok("endpoints", message)
    } else {
        Finding::failed(
            "endpoints",
            message,
            format!(
                "no replica is ready, or the Service selects none: kubectl -n {namespace} get pods -l {LABEL}"
            ),
        )
    }
}

fn bundle_finding(configuration: &Configuration, hook: &Hook, now: Timestamp) -> Finding {
    let step = "ca-bundle";
    let what = format!("{configuration}, {}", hook.name);
    let hint = "the guard (or cert-manager) writes it within a minute: its log says what keeps it from that";
    if hook.ca_bundle.is_empty() {
        return Finding::failed(step, format!("{what}: there is no caBundle"), hint);
    }
    match certificates(&hook.ca_bundle) {
        Err(why) => Finding::failed(step, format!("{what}: the caBundle cannot be read: {why}"), hint),
        Ok(found) => {
            let valid: Vec<_> = found.iter().filter(|certificate| certificate.is_valid(now)).collect();
            match valid.iter().map(|certificate| certificate.not_after).max() {
                None => Finding::failed(step, format!("{what}: every CA in the caBundle has expired"), hint),
                Some(end) => {
                    Finding::ok(step, format!("{what}: {}, valid until {end}", plural(valid.len(), "CA")))
                }
            }
        }
    }
}

/// `1 CA`, `2 CAs`.
fn plural(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

fn certificates(pem: &[u8]) -> Result<Vec<Certificate>, String> {
    let text = std::str::from_utf8(pem).map_err(|e| e.to_string())?;
    Certificate::parse_all(text).map_err(|e| e.to_string())
}

fn certificate_finding(pod: &str, pem: &str, name: Option<&str>, hooks: &[Hooks], now: Timestamp) -> Finding {
    let step = "certificate";
    let chain = match certificates(pem.as_bytes()) {
        Ok(chain) => chain,
        Err(why) => {
            return Finding::failed(
                step,
                format!("{pod}: what it says it serves cannot be read: {why}"),
                "is the port that /certificate was asked of the guard's own plain port?",
            );
        }
    };
    let Some(leaf) = chain.first() else { return Finding::failed(step, format!("{pod}: serves none"), "") };
    for hooks in hooks {
        for hook in &hooks.hooks {
            let name = name.map_or_else(|| leaf.names.first().cloned().unwrap_or_default(), str::to_owned);
            let anchors = certificates(&hook.ca_bundle).unwrap_or_default();
            if let Err(why) = verify(&chain, &anchors, &name, now) {
                return Finding::failed(
                    step,
                    format!(
                        "{pod}: {} ({}) does not trust it as {name}: {why}",
                        hooks.configuration, hook.name
                    ),
                    "certificate and caBundle are not of the same CA, or it has expired: see the log of the guard, \
                     and rollout-guard certs show",
                );
            }
        }
    }
    let days = leaf.not_after.duration_since(now).as_hours().div_euclid(24);
    let message = format!("{pod}: trusted, until {} ({days} days left)", leaf.not_after);
    let life = leaf.not_after.duration_since(leaf.not_before).as_hours().div_euclid(24);
    // Certificates that live for some days only are renewed that late by design.
    if days < DAYS_TO_WORRY.min(life / 4) {
        return Finding::failed(
            step,
            message,
            "it should have been renewed by now: see the log of the guard, or cert-manager's Certificate",
        );
    }
    Finding::ok(step, message)
}

fn unreachable_finding(
    step: &'static str,
    asked: &str,
    namespace: &str,
    replica: &Replica,
    error: &ClusterError,
) -> Finding {
    let pod = &replica.pod;
    match error.code() {
        Some(401 | 403) => Finding::skipped(
            step,
            format!("{pod}: may not ask it {asked}"),
            format!("ask for the right to get pods/proxy in {namespace}"),
        ),
        _ => Finding::skipped(
            step,
            format!("{pod}: {error}"),
            format!(
                "the API server must reach port {} of the pod; a NetworkPolicy may forbid it",
                replica.admin_port
            ),
        ),
    }
}

fn no_lease_finding(namespace: &str, lease: &str) -> Finding {
    Finding::failed(
        "watcher",
        format!("there is no Lease {namespace}/{lease}: nobody watches"),
        "a replica makes it when it starts: may the guard create leases there? its log says",
    )
}

fn stopped_finding(namespace: &str, lease: &str, why: &str) -> Finding {
    let why = if why.is_empty() { "no reason is given" } else { why };
    Finding::warning(
        "watcher",
        format!("stopped by the annotation {STOP_ANNOTATION} on the Lease {namespace}/{lease}: {why}"),
        format!("to go on: kubectl -n {namespace} annotate lease {lease} {STOP_ANNOTATION}-"),
    )
}

/// Nobody holds the Lease, or a pod that is gone: for some seconds that is in order.
fn no_leader_finding(namespace: &str, lease: &str, record: &Record, now: Timestamp) -> Finding {
    let step = "watcher";
    let who = match pod_of(&record.holder) {
        "" => "nobody holds it".to_owned(),
        pod => format!("{pod} holds it, which is no running pod of the guard"),
    };
    let message = |what: &str| format!("{what}, by the Lease {namespace}/{lease}: {who}");
    match record.renew_time.filter(|at| now.duration_since(*at) < TAKEOVER) {
        Some(_) => Finding::warning(
            step,
            message("nobody watches at the moment"),
            "another replica takes it within 18 s: check again",
        ),
        None => Finding::failed(
            step,
            message("nobody watches"),
            "does a replica run, and may it update the Lease? its log says",
        ),
    }
}

/// What a replica says of its watching.
#[derive(Debug, PartialEq)]
struct Watching {
    /// It may write.
    leads: bool,
    /// So many Deployments are followed.
    deployments: f64,
    /// The reasons for which the breaker is open; `None` where it is not looked after yet.
    open: Option<Vec<String>>,
    /// So many rollbacks are in progress.
    in_progress: f64,
    /// So many wait for their turn.
    waiting: f64,
}

impl Watching {
    /// Reads it from the metrics; `None` where they are not those of a watcher.
    fn read(text: &str) -> Option<Self> {
        let series = |name: &'static str| text.lines().filter_map(move |line| sample(line, name));
        let value = |name| series(name).next().map(|(_, value)| value);
        let breaker: Vec<_> = series("rollout_guard_breaker_open").collect();
        let reasons = breaker.iter().filter(|(_, value)| *value > 0.0);
        let reasons = reasons.map(|(labels, _)| labels.get("reason").cloned().unwrap_or_default()).collect();
        Some(Self {
            leads: value("rollout_guard_leader")? > 0.0,
            deployments: value("rollout_guard_watched_deployments")?,
            open: (!breaker.is_empty()).then_some(reasons),
            in_progress: value("rollout_guard_rollbacks_in_progress").unwrap_or_default(),
            waiting: value("rollout_guard_rollbacks_waiting").unwrap_or_default(),
        })
    }
}

/// Labels and value of a line of OpenMetrics text, where it is of the series `name`.
fn sample(line: &str, name: &str) -> Option<(BTreeMap<String, String>, f64)> {
    let rest = line.strip_prefix(name)?;
    let (labels, rest) = match rest.strip_prefix('{') {
        Some(rest) => labels(rest)?,
        None => (BTreeMap::new(), rest.strip_prefix(' ')?),
    };
    // A timestamp may follow.
    Some((labels, rest.split_ascii_whitespace().next()?.parse().ok()?))
}

/// The labels of a series, and what comes after the brace that closes them.
fn labels(mut rest: &str) -> Option<(BTreeMap<String, String>, &str)> {
    let mut found = BTreeMap::new();
    loop {
        rest = rest.trim_start_matches([',', ' ']);
        if let Some(after) = rest.strip_prefix('}') {
            return Some((found, after));
        }
        let (name, quoted) = rest.split_once("=\"")?;
        let mut value = String::new();
        let mut chars = quoted.chars();
        loop {
            match chars.next()? {
                '"' => break,
                '\\' => match chars.next()? {
                    'n' => value.push('\n'),
                    escaped => value.push(escaped),
                },
                plain => value.push(plain),
            }
        }
        found.insert(name.to_owned(), value);
        rest = chars.as_str();
    }
}

fn leader_findings(pod: &str, metrics: &str) -> Vec<Finding> {
    let step = "watcher";
    let Some(Watching { leads, deployments, open, in_progress, waiting }) = Watching::read(metrics) else {
        return vec![Finding::failed(
            step,
            format!("{pod}: holds the Lease, and its metrics do not say whether it leads"),
            "is the port that /metrics was asked of the guard's own plain port?",
        )];
    };
    let soon = "a first Lease gives the lead after 10 to 13 s, and all Deployments are listed first: check again; if \
                that stays, its log says why";
    match open {
        _ if !leads => {
            vec![Finding::warning(step, format!("{pod}: holds the Lease and does not lead"), soon)]
        }
        None => vec![Finding::warning(step, format!("{pod}: leads and does not watch yet"), soon)],
        Some(open) => {
            let breaker = if open.is_empty() { "closed" } else { "open" };
            let watched = format!("{deployments:.0} Deployment{}", if deployments == 1.0 { "" } else { "s" });
            let rollbacks =
                |count: f64| format!("{count:.0} rollback{}", if count == 1.0 { "" } else { "s" });
            let under_way = if in_progress > 0.0 {
                format!(", {} in progress", rollbacks(in_progress))
            } else {
                String::new()
            };
            let leader = Finding::ok(
                step,
                format!("{pod}: leads and watches {watched}, the breaker is {breaker}{under_way}"),
            );
            let waiting = (waiting > 0.0).then(|| {
                let hint = "kubectl get rolloutrecords -A says which; watcher.limits of the chart says how many";
                let queue = format!(
                    "{}: as many as allowed are in progress, or were started within the hour; waiting for their turn",
                    rollbacks(waiting)
                );
                Finding::warning(step, queue, hint)
            });
            let open = open.iter().map(|reason| open_finding(reason));
            [leader].into_iter().chain(open).chain(waiting).collect()
        }
    }
}

/// What the Lease says of the breaker, for who may not read metrics; none where it is closed, or nobody says.
fn breaker_finding(breaker: Option<&str>) -> Option<Finding> {
    let why = breaker.filter(|said| *said != BREAKER_CLOSED)?;
    let hint = "docs/operations.md, Limits and the breaker";
    Some(Finding::warning(
        "watcher",
        format!("nothing is rolled back, the breaker is open: {}", plain(why, 256)),
        hint,
    ))
}

fn open_finding(reason: &str) -> Finding {
    let (why, hint) = match reason {
        "many_stuck" => (
            "many Deployments became stuck at once",
            "kubectl get rolloutrecords -A says which, and why; watcher.limits of the chart says how many are many",
        ),
        "nodes" => ("too few nodes are ready", "kubectl get nodes"),
        "controller_manager" => (
            "kube-controller-manager does not renew its lease",
            "is it running? kubectl -n kube-system get lease kube-controller-manager -o yaml",
        ),
        "unknown" => (
            "the health of the cluster is not known",
            "for some seconds after a start: check again; if that stays, may the guard list nodes? its log says",
        ),
        other => (other, "docs/metrics.md, rollout_guard_breaker_open"),
    };
    Finding::warning("watcher", format!("nothing is rolled back, the breaker is open: {why}"), hint)
}

/// Status, reason and message of a condition.
fn condition<'a>(policy: &'a RolloutPolicy, kind: &str) -> Option<(bool, &'a str, &'a str)> {
    let conditions = &policy.status.as_ref()?.conditions;
    let found = conditions.iter().find(|condition| condition.type_ == kind)?;
    Some((found.status == "True", &found.reason, &found.message))
}

fn policy_finding(policy: &RolloutPolicy) -> Finding {
    let step = "policies";
    let name = policy.metadata.name.as_deref().unwrap_or_default();
    match condition(policy, "Ready") {
        Some((true, _, message)) => Finding::ok(step, format!("{name}: {message}")),
        Some((false, reason, message)) => Finding::failed(
            step,
            format!("{name}: {reason}: {message}"),
            format!("mend the RolloutPolicy: kubectl edit rolloutpolicy {name}"),
        ),
        None => Finding::failed(
            step,
            format!("{name}: the guard has not said anything about it"),
            "does a replica run, and may it write rolloutpolicies/status? its log says",
        ),
    }
}

fn fallback_finding(policy: &str, objects: &FallbackObjects) -> Finding {
    let FallbackObjects { name, policy: has_policy, binding } = objects;
    let lacks = match (has_policy, binding) {
        (true, true) => {
            return Finding::ok("fallback", format!("{policy}: {name} and its binding are in place"));
        }
        (false, true) => format!("ValidatingAdmissionPolicy {name} is missing"),
        (true, false) => format!("ValidatingAdmissionPolicyBinding {name} is missing"),
        (false, false) => format!("ValidatingAdmissionPolicy and binding {name} are missing"),
    };
    Finding::failed(
        "fallback",
        format!("{policy}: its status says that the fallback is in place, but {lacks}"),
        "the guard puts it back; if it does not, its log says why",
    )
}

fn no_fallback_finding(name: &str, policy: &RolloutPolicy) -> Option<Finding> {
    let (_, reason, message) = condition(policy, "FallbackReady")?;
    Some(match reason {
        "Disabled" | "NotNeeded" => Finding::ok("fallback", format!("{name}: none, {message}")),
        _ => Finding::failed(
            "fallback",
            format!("{name}: {reason}: {message}"),
            "may the guard write validatingadmissionpolicies? its log says",
        ),
    })
}

fn probe_finding(namespace: &str, answered: bool) -> Finding {
    if answered {
        Finding::ok(
            "probe",
            format!("a Deployment created in {namespace} as a dry run went through the webhook"),
        )
    } else {
        Finding::failed(
            "probe",
            format!(
                "a Deployment created in {namespace} as a dry run did not go through the mutating webhook"
            ),
            "the call failed and failurePolicy Ignore let it through (the API server's log and its metric \
             apiserver_admission_webhook_fail_open_count tell), or the namespace is not matched \
             (--probe-namespace names another)",
        )
    }
}

fn refused_probe_finding(namespace: &str, error: &ClusterError) -> Finding {
    match error.code() {
        Some(401) => Finding::unread("probe", error),
        Some(404) => Finding::skipped(
            "probe",
            format!("there is no namespace {namespace}"),
            "--probe-namespace names one that is guarded",
        ),
        // RBAC and admission both say 403; only RBAC says which right is missing.
        Some(403) if error.to_string().contains("cannot create resource") => Finding::skipped(
            "probe",
            format!("may not create deployments.apps in {namespace}, not even as a dry run"),
            format!(
                "ask for the right to create deployments.apps in {namespace}, or name another by --probe-namespace"
            ),
        ),
        Some(403 | 422) => Finding::skipped(
            "probe",
            format!("other admission of {namespace} refuses it: {error}"),
            "--probe-namespace names another",
        ),
        _ => Finding::failed(
            "probe",
            error.to_string(),
            "the API server could not call a webhook whose failurePolicy is Fail, or is itself in trouble",
        ),
    }
}

fn text(findings: &[Finding]) -> String {
    let mut out = String::new();
    for Finding { step, status, message, hint } in findings {
        let status = match status {
            Status::Ok => "ok",
            Status::Warning => "WARNING",
            Status::Failed => "FAILED",
            Status::Skipped => "skipped",
        };
        let clean =
            |text: &str| text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect::<String>();
        out.push_str(&format!("{status:<8} {step:<25} {}\n", clean(message)));
        if let Some(hint) = hint.as_ref().filter(|hint| !hint.is_empty()) {
            out.push_str(&format!("{:<8} {:<25} Hint: {}\n", "", "", clean(hint)));
        }
    }
    let count = |wanted| findings.iter().filter(|finding| finding.status == wanted).count();
    let warned = match count(Status::Warning) {
        0 => String::new(),
        warnings => format!(", with {}", plural(warnings, "warning")),
    };
    out.push_str(&match (count(Status::Failed), count(Status::Skipped)) {
        (0, 0) => format!("The installation is sound{warned}.\n"),
        (0, skipped) if skipped + 1 >= findings.len() => "Nothing could be read.\n".to_owned(),
        (0, skipped) => format!(
            "Nothing is wrong as far as could be seen{warned}; {} skipped.\n",
            plural(skipped, "step")
        ),
        (failed, _) => format!("The installation is not sound: {}.\n", plural(failed, "failure")),
    });
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::webhook::certificates::issue::{Authority, Lifetimes};

    const NAME: &str = "guard.ns.svc";

    fn hooks(ca: &Authority) -> Hooks {
        Hooks {
            configuration: Configuration::Validating("guard".to_owned()),
            hooks: vec![Hook {
                name: "validate.rollout-guard.io".to_owned(),
                failure_policy: "Ignore".to_owned(),
                service: Some(("ns".to_owned(), "guard".to_owned())),
                ca_bundle: ca.certificate().pem().into_bytes(),
            }],
        }
    }

    #[test]
    fn a_certificate_is_sound_only_where_every_configuration_trusts_it() {
        let (now, lifetimes) = (Timestamp::now(), Lifetimes::default());
        let ca = Authority::issue(&lifetimes, now).expect("issued");
        let other = Authority::issue(&lifetimes, now).expect("issued");
        let leaf = ca.sign(&[NAME.to_owned()], &lifetimes, now).expect("signed");
        let pem = leaf.pair().certificate_pem();
        let find = |hooks: &[Hooks], now| certificate_finding("pod", pem, Some(NAME), hooks, now);
        assert_eq!(find(&[hooks(&ca)], now).status, Status::Ok);
        let finding = find(&[hooks(&ca), hooks(&other)], now);
        assert_eq!(finding.status, Status::Failed);
        assert!(finding.message.contains("does not trust it"), "{finding:?}");
        let late = now + SignedDuration::from_hours(80 * 24);
        assert_eq!(find(&[hooks(&ca)], late).status, Status::Failed, "nobody renewed it");
        let other_name = certificate_finding("pod", pem, Some("other.ns.svc"), &[hooks(&ca)], now);
        assert_eq!(other_name.status, Status::Failed);
    }

    #[test]
    fn a_ca_bundle_that_is_missing_broken_or_expired_is_told_apart() {
        let now = Timestamp::now();
        let ca = Authority::issue(&Lifetimes::default(), now).expect("issued");
        let Hooks { configuration, mut hooks } = hooks(&ca);
        let mut hook = hooks.remove(0);
        assert_eq!(bundle_finding(&configuration, &hook, now).status, Status::Ok);
        let expired = bundle_finding(&configuration, &hook, Timestamp::MAX);
        assert!(expired.message.contains("has expired"), "{expired:?}");
        hook.ca_bundle = b"rubbish".to_vec();
        assert!(bundle_finding(&configuration, &hook, now).message.contains("cannot be read"));
        hook.ca_bundle.clear();
        assert!(bundle_finding(&configuration, &hook, now).message.contains("there is no caBundle"));
    }

    #[test]
    fn a_definition_of_another_version_fails() {
        let found = Definition { established: true, served: vec!["v1beta1".to_owned()] };
        assert_eq!(definition_finding("x", "v1alpha1", Some(&found)).status, Status::Failed);
        let found = Definition { established: true, served: vec!["v1alpha1".to_owned()] };
        assert_eq!(definition_finding("x", "v1alpha1", Some(&found)).status, Status::Ok);
        assert_eq!(definition_finding("x", "v1alpha1", None).status, Status::Failed);
    }

    #[test]
    fn what_may_not_be_read_is_no_failure_but_seeing_nothing_is_no_success() {
        let reached = Finding::ok("api-server", "reached");
        let skipped = Finding::skipped("crd", "may not", "ask");
        assert_eq!(exit_status(&[reached.clone(), skipped.clone()]), 2);
        assert_eq!(exit_status(&[reached.clone(), skipped.clone(), Finding::ok("probe", "")]), 0);
        let warned = Finding::warning("watcher", "stopped", "go on");
        assert_eq!(exit_status(&[reached.clone(), skipped.clone(), warned]), 0);
        assert_eq!(exit_status(&[reached, skipped, Finding::failed("probe", "", "")]), 1);
    }

    #[test]
    fn the_text_has_no_control_characters_and_a_verdict_at_its_end() {
        let shown = text(&[
            Finding::ok("crd", "fine"),
            Finding::failed("probe", "bad\u{1b}[31m\nworse", "mend it"),
            Finding::skipped("policies", "may not list", "ask"),
        ]);
        assert!(!shown.contains('\u{1b}'));
        assert!(shown.contains("Hint: mend it"));
        assert!(shown.ends_with("The installation is not sound: 1 failure.\n"), "{shown}");
    }

    /// What the leader's metrics say where the breaker is open by `reason`.
    fn metrics(leads: bool, watched: i64, reason: &str) -> String {
        use crate::telemetry::{BreakerLabels, Metrics, openmetrics};
        let metrics = Metrics::default();
        metrics.leader.set(leads.into());
        metrics.watched.set(watched);
        for known in ["unknown", "controller_manager", "nodes", "many_stuck"] {
            metrics
                .breaker_open
                .get_or_create(&BreakerLabels { reason: known })
                .set((known == reason).into());
        }
        openmetrics(&metrics.registry()).expect("encodes")
    }

    #[test]
    fn the_metrics_say_who_watches_and_why_nothing_is_rolled_back() {
        let read = |text: &str| Watching::read(text);
        let closed = Watching {
            leads: true,
            deployments: 42.0,
            open: Some(Vec::new()),
            in_progress: 0.0,
            waiting: 0.0,
        };
        assert_eq!(read(&metrics(true, 42, "")), Some(closed));
        let open = read(&metrics(true, 42, "nodes")).expect("a watcher").open;
        assert_eq!(open, Some(vec!["nodes".to_owned()]));
        assert!(!read(&metrics(false, 0, "")).expect("a watcher").leads);
        for other in
            ["", "nothing here", "# TYPE rollout_guard_leader gauge\n", "rollout_guard_leader many\n"]
        {
            assert_eq!(read(other), None, "{other}");
        }
        let others = "rollout_guard_leader 1\nrollout_guard_leaders 7\nrollout_guard_watched_deployments 3\n";
        let begun = Watching { leads: true, deployments: 3.0, open: None, in_progress: 0.0, waiting: 0.0 };
        assert_eq!(read(others), Some(begun));
    }

    #[test]
    fn a_series_is_read_with_its_labels_and_without_its_timestamp() {
        let line = r#"series{a="x, y}",b="\"q\" \\ \n"} 1.5e3 1717000000"#;
        let (labels, value) = sample(line, "series").expect("a sample");
        let expected = [("a", "x, y}"), ("b", "\"q\" \\ \n")].map(|(k, v)| (k.to_owned(), v.to_owned()));
        assert_eq!((labels, value), (BTreeMap::from(expected), 1500.0));
        for broken in
            ["serie 1", "series_other 1", "series", "series{a=\"x\"", "series{a=\"x 1", "series{a} 1"]
        {
            assert_eq!(sample(broken, "series"), None, "{broken}");
        }
    }

    #[test]
    fn an_open_breaker_is_a_warning_beside_the_leader() {
        let of = |text: &str| leader_findings("pod", text);
        let told = of(&metrics(true, 1, ""));
        assert_eq!(
            told,
            [Finding::ok("watcher", "pod: leads and watches 1 Deployment, the breaker is closed")]
        );
        let told = of(&metrics(true, 2, "many_stuck"));
        assert_eq!(told.iter().map(|f| f.status).collect::<Vec<_>>(), [Status::Ok, Status::Warning]);
        assert!(told[1].message.contains("many Deployments became stuck"), "{told:?}");
        let capped = metrics(true, 2, "")
            .replace("rollbacks_in_progress 0", "rollbacks_in_progress 1")
            .replace("rollbacks_waiting 0", "rollbacks_waiting 2");
        let told = of(&capped);
        assert!(told[0].message.ends_with("closed, 1 rollback in progress"), "{told:?}");
        assert!(told[1].message.starts_with("2 rollbacks: as many as allowed"), "{told:?}");
        assert_eq!(told[1].status, Status::Warning);
        assert_eq!(breaker_finding(Some("closed")), None);
        assert!(breaker_finding(Some("only 1 of 3 nodes are ready")).is_some());
        assert_eq!(of(&metrics(false, 0, ""))[0].status, Status::Warning);
        assert_eq!(of("<html>")[0].status, Status::Failed);
    }

    #[test]
    fn a_lease_that_nobody_holds_is_a_failure_only_when_nobody_takes_it() {
        let now = Timestamp::now();
        let at = |holder: &str, seconds: i64| {
            let renew_time = Some(now - SignedDuration::from_secs(seconds));
            let record = Record { holder: holder.to_owned(), renew_time, ..Record::default() };
            no_leader_finding("ns", "guard", &record, now)
        };
        assert_eq!(at("", 2).status, Status::Warning);
        assert_eq!(at("", 40).status, Status::Failed);
        let gone = at("guard-1-x_19a", 40);
        assert_eq!(gone.status, Status::Failed);
        assert!(gone.message.contains("guard-1-x holds it"), "{gone:?}");
        assert_eq!(no_leader_finding("ns", "guard", &Record::default(), now).status, Status::Failed);
    }
}
