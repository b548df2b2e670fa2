//! The guard itself: installed once in a run, looked at, disturbed and repaired.

use std::{
    env,
    path::Path,
    sync::{Mutex, OnceLock, PoisonError},
    time::Instant,
};

use serde_json::Value;

use super::{
    Run,
    cluster::{json, kubectl},
    deployment, kwok, reading, restore, say,
    scenario::{LABEL, condition},
    seconds,
    wait::holds,
    wait_until,
};

/// The release, its namespace, and the name of nearly everything in it.
pub const NAME: &str = "rollout-guard";

/// The Secret of the guard's own certificates.
pub const SECRET: &str = "rollout-guard-certificates";

/// How the chart is installed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Values {
    /// With the limits of the scenarios, and these values.
    Scenarios(Vec<String>),
    /// With the chart's own limits of rollbacks and of the breaker, as they are for whoever installs it.
    OwnLimits,
}

impl Values {
    pub fn of(settings: &[&str]) -> Self {
        Self::Scenarios(settings.iter().map(|setting| (*setting).to_owned()).collect())
    }
}

/// How it is installed at the moment; none where that is not known, as after a scenario that failed half-way.
static NOW: Mutex<Option<Values>> = Mutex::new(None);

/// Installs the chart with `values`, unless it is installed so: every scenario says what it wants, and what the one before
/// wanted is left as it is until then. Each time a rollout of the guard is waited for.
pub fn wants(values: &Values) {
    if env::var_os("INSTALLED").is_some() {
        return;
    }
    let mut now = NOW.lock().unwrap_or_else(PoisonError::into_inner);
    if now.as_ref() != Some(values) {
        *now = None;
        helm(values).succeeds();
        wait_ready();
        *now = Some(values.clone());
    }
}

/// What a scenario leaves behind that has failed half-way is not known.
pub fn is_unknown() {
    *NOW.lock().unwrap_or_else(PoisonError::into_inner) = None;
}

/// Installs the chart, the first time; panics each time where that did not work.
pub fn installed() {
    static INSTALLED: OnceLock<Result<(), String>> = OnceLock::new();
    let result = INSTALLED.get_or_init(|| {
        // One that a person looks after is used as it is.
        if env::var_os("INSTALLED").is_some() {
            return Ok(());
        }
        let started = Instant::now();
        let installing = std::panic::catch_unwind(|| {
            clean();
            install();
        });
        say("install", &format!("ready after {:.1} s", started.elapsed().as_secs_f64()));
        installing.map_err(|panic| {
            let text = panic.downcast_ref::<String>().cloned();
            text.unwrap_or_else(|| "see the first failure".to_owned())
        })
    });
    if let Err(why) = result {
        panic!("the guard could not be installed: {why}");
    }
}

/// Removes what an earlier run or a person left.
fn clean() {
    kubectl(["delete", "namespaces", "-l", LABEL, "--wait=false"]).succeeds();
    kwok::delete_nodes();
    if Run::new("helm").args(["status", NAME, "-n", NAME]).done().ok() {
        uninstall();
    }
    wait_until("no replica of an earlier installation is left", seconds(60), || {
        let left = pods()?;
        holds(left.is_empty(), format!("{left:?}"))
    });
    // Helm keeps the CRDs, and never updates them.
    for kind in ["rolloutpolicies", "rolloutrecords"] {
        let crd = format!("{kind}.rollout-guard.io");
        kubectl(["delete", "crd", &crd, "--ignore-not-found"]).succeeds();
    }
    kubectl(["delete", "secret", SECRET, "-n", NAME, "--ignore-not-found"]).succeeds();
}

/// Rollbacks of scenarios that run side by side: the chart's own limits would let them stop each other.
const LIMITS: [&str; 4] = [
    "watcher.limits.rollbacksPerCluster=50",
    "watcher.limits.rollbacksPerHour=10000",
    "watcher.limits.rollbacksPerNamespace=10",
    "watcher.limits.stuckAtLeast=1000",
];

/// What makes the scenarios quicker, or is asked about.
const QUICK: [&str; 3] = [
    "rbac.podLogs=true",
    // Many restarts, and no pushes meanwhile; the scenario of restarts has the chart's own.
    "shutdown.drainDelaySeconds=2",
    "shutdown.preStopSeconds=1",
];

/// Installs or upgrades the chart as most scenarios want it, whatever was done to it, and waits until everything about it is
/// ready.
pub fn install() {
    is_unknown();
    wants(&Values::of(&[]));
}

/// `helm upgrade --install` with the chart's own values but for the image, [`LIMITS`], [`QUICK`] and `settings`.
pub fn upgrade(settings: &[&str]) -> Run {
    is_unknown();
    helm(&Values::of(settings))
}

fn helm(values: &Values) -> Run {
    let ours = || Path::new(env!("CARGO_MANIFEST_DIR")).join("charts/rollout-guard");
    let chart = env::var_os("CHART").map_or_else(ours, Into::into);
    let image = image();
    let (repository, tag) = image.rsplit_once(':').unwrap_or((&image, "latest"));
    let (limits, own): (&[&str], &[String]) = match values {
        Values::Scenarios(settings) => (&LIMITS, settings),
        Values::OwnLimits => (&[], &[]),
    };
    // Of two that set the same the last counts.
    let settings = QUICK.iter().chain(limits).copied().chain(own.iter().map(String::as_str));
    let settings = settings.flat_map(|setting| ["--set", setting]);
    Run::new("helm")
        .args(["upgrade", "--install", NAME])
        .arg(chart)
        .args(["--namespace", NAME, "--create-namespace", "--reset-values", "--wait", "--timeout", "120s"])
        .args(["--set", &format!("image.repository={repository}"), "--set", &format!("image.tag={tag}")])
        .args(settings)
}

/// Returns the reference of the guard's image.
pub fn image() -> String {
    env::var("IMAGE").unwrap_or_else(|_| "localhost/rollout-guard:dev".to_owned())
}

pub fn uninstall() {
    Run::new("helm").args(["uninstall", NAME, "-n", NAME]).succeeds();
}

/// Waits until both replicas are ready, the default policy is in force with its fallback, and both
/// configurations have their caBundle.
pub fn wait_ready() {
    rolled_out();
    wait_until("the default policy and its fallback are ready", seconds(60), || {
        let policy = json(["get", "rolloutpolicy", "default"])?;
        let ready =
            ["Ready", "FallbackReady"].iter().all(|kind| condition(&policy, kind)["status"] == "True");
        holds(ready, policy["status"].to_string())
    });
    wait_until("both configurations have a caBundle", seconds(60), || {
        for kind in ["validatingwebhookconfiguration", "mutatingwebhookconfiguration"] {
            holds(!ca_bundle(kind)?.is_empty(), format!("{kind} has none"))?;
        }
        Ok(())
    });
    wait_until("a replica leads and follows", seconds(60), || {
        let of = |name: &str| {
            ready_pods().map(|pods| {
                pods.iter()
                    .filter_map(|pod| metrics_of(pod).ok())
                    .map(|text| sum(&text, name, &[]))
                    .sum::<f64>()
            })
        };
        let (leaders, watched) = (of("rollout_guard_leader")?, of("rollout_guard_watched_deployments")?);
        holds(leaders == 1.0 && watched > 0.0, format!("{leaders} lead, {watched} watched"))
    });
    reached();
}

/// Waits until the API server reaches the webhook: that a pod is ready is known before the node's rules for
/// the Service say so.
fn reached() {
    // Below the default policy's minRevisionHistoryLimit, so the answer shows whether the webhook was asked.
    let probe = deployment("e2e-probe", |d| d["spec"]["revisionHistoryLimit"] = 0.into()).to_string();
    wait_until("the API server reaches the webhook", seconds(30), || {
        let done =
            kubectl(["create", "--dry-run=server", "-n", "default", "-o", "json", "-f", "-"]).input(&probe);
        let done = done.done();
        let answer: Value = serde_json::from_str(&done.stdout).unwrap_or_default();
        holds(answer["spec"]["revisionHistoryLimit"] == 2, done.report())
    });
}

/// Waits until all replicas of the guard run its current template.
pub fn rolled_out() {
    kubectl(["rollout", "status", "deployment", NAME, "-n", NAME, "--timeout=120s"]).succeeds();
}

/// Returns the caBundle of the `kind` of configuration; empty where there is none.
pub fn ca_bundle(kind: &str) -> Result<String, String> {
    let configuration = json(["get", kind, NAME])?;
    Ok(configuration["webhooks"][0]["clientConfig"]["caBundle"].as_str().unwrap_or_default().to_owned())
}

/// Takes all replicas away; they are back when the returned value is dropped.
pub fn without_replicas() -> impl Drop {
    let back = restore("scale the guard up again", || scale(2));
    scale(0);
    back
}

/// Scales the guard, and waits until so many pods are there and ready, and no other.
pub fn scale(replicas: usize) {
    let flag = format!("--replicas={replicas}");
    kubectl(["scale", "deployment", NAME, "-n", NAME, &flag]).succeeds();
    wait_until("the guard is scaled", seconds(90), || {
        let all = pods()?;
        let ready = ready_pods()?;
        holds(all.len() == replicas && ready.len() == replicas, format!("pods {all:?}, ready {ready:?}"))
    });
    if replicas > 0 {
        reached();
    }
}

/// Returns the names of the guard's pods, those that end included.
pub fn pods() -> Result<Vec<String>, String> {
    Ok(pod_list()?.iter().map(name).collect())
}

/// Returns the names of the guard's pods that are ready and stay.
pub fn ready_pods() -> Result<Vec<String>, String> {
    let stays = |pod: &&Value| pod["metadata"]["deletionTimestamp"].is_null();
    let ready = |pod: &&Value| condition(pod, "Ready")["status"] == "True";
    Ok(pod_list()?.iter().filter(stays).filter(ready).map(name).collect())
}

fn pod_list() -> Result<Vec<Value>, String> {
    let list = json(["get", "pods", "-n", NAME, "-l", "app.kubernetes.io/name=rollout-guard"])?;
    Ok(list["items"].as_array().cloned().unwrap_or_default())
}

fn name(object: &Value) -> String {
    object["metadata"]["name"].as_str().unwrap_or_default().to_owned()
}

/// Returns the metrics of one replica, through the API server.
pub fn metrics_of(pod: &str) -> Result<String, String> {
    let path = format!("/api/v1/namespaces/{NAME}/pods/{pod}:8080/proxy/metrics");
    reading::text(&path)
}

/// Returns the sum over all replicas of every series of `name` that has all of `labels`, such as `mode="audit"`.
pub fn metric(name: &str, labels: &[&str]) -> f64 {
    let pods = ready_pods().unwrap_or_else(|words| panic!("{words}"));
    let texts = pods.iter().map(|pod| metrics_of(pod).unwrap_or_else(|words| panic!("{words}")));
    texts.map(|text| sum(&text, name, labels)).sum()
}

fn sum(text: &str, name: &str, labels: &[&str]) -> f64 {
    let of_name = |line: &&str| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']));
    let has_all = |line: &&str| labels.iter().all(|label| line.contains(label));
    let value = |line: &str| line.rsplit(' ').next().and_then(|value| value.parse::<f64>().ok());
    text.lines().filter(of_name).filter(has_all).filter_map(value).sum()
}

/// Returns the last lines of the guard's log, of all replicas.
pub fn logs(lines: u32) -> String {
    let tail = format!("--tail={lines}");
    let selector = "app.kubernetes.io/name=rollout-guard";
    kubectl(["logs", "-n", NAME, "-l", selector, &tail]).limit(seconds(20)).done().words()
}
