//! One scenario: a namespace of its own, and the right to disturb nobody or everybody.

use std::{
    cell::Cell,
    sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
    thread,
    time::Instant,
};

use serde_json::{Value, json};

use super::{
    Change, Done, Run,
    cluster::{self, kubectl, unique},
    installation::{self, Values},
    say, seconds,
    wait::holds,
    wait_until,
};

/// On the namespaces and policies of the scenarios, so that the next run finds what one that was killed left.
pub const LABEL: &str = "rollout-guard-e2e=scenario";

/// Held for reading by scenarios that disturb nobody, for writing by those that disturb the whole cluster.
static CLUSTER: RwLock<()> = RwLock::new(());

#[allow(dead_code, reason = "held, not read")]
enum Lock {
    Shared(RwLockReadGuard<'static, ()>),
    Alone(RwLockWriteGuard<'static, ()>),
}

pub struct Scenario {
    pub name: &'static str,
    pub namespace: String,
    started: Instant,
    waited: f64,
    // The last field: dropped after the namespace is given up.
    lock: Lock,
}

impl Scenario {
    /// Begins a scenario that runs beside others.
    pub fn shared(name: &'static str) -> Self {
        let lock = || Lock::Shared(CLUSTER.read().unwrap_or_else(PoisonError::into_inner));
        Self::begin(name, &Values::of(&[]), lock)
    }

    /// Begins a scenario that has the cluster for itself.
    pub fn alone(name: &'static str) -> Self {
        Self::alone_with(name, &Values::of(&[]))
    }

    /// Begins a scenario that has the cluster for itself, and the guard installed with these values.
    pub fn alone_with(name: &'static str, values: &Values) -> Self {
        Self::begin(name, values, || Lock::Alone(CLUSTER.write().unwrap_or_else(PoisonError::into_inner)))
    }

    fn begin(name: &'static str, values: &Values, lock: impl FnOnce() -> Lock) -> Self {
        let asked = Instant::now();
        installation::installed();
        let lock = lock();
        let waited = asked.elapsed().as_secs_f64();
        let started = Instant::now();
        installation::wants(values);
        let namespace = format!("{name}-{}", unique());
        let (key, value) = LABEL.split_once('=').unwrap_or_default();
        let object = json!({
            "apiVersion": "v1",
            "kind": "Namespace",
            "metadata": {"name": namespace, "labels": {key: value}},
        });
        kubectl(["create", "-f", "-"]).input(object.to_string()).succeeds();
        Self { name, namespace, started, waited, lock }
    }

    pub fn say(&self, text: &str) {
        say(self.name, text);
    }

    /// Returns `kubectl ARGS` in the scenario's namespace.
    pub fn kubectl<A: AsRef<std::ffi::OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Run {
        kubectl(args).args(["-n", &self.namespace])
    }

    /// Creates an object in the scenario's namespace.
    pub fn create(&self, object: &Value) {
        self.kubectl(["create", "-f", "-"]).input(object.to_string()).succeeds();
    }

    /// Creates a Deployment and waits until it is complete.
    pub fn create_complete(&self, deployment: &Value) {
        self.create(deployment);
        self.completes(deployment["metadata"]["name"].as_str().unwrap_or_default());
    }

    /// Returns a Deployment as stored.
    pub fn deployment(&self, name: &str) -> Value {
        self.json(["get", "deployment", name])
    }

    /// Returns what `kubectl ARGS -o json` prints in the scenario's namespace.
    pub fn json<'a>(&'a self, args: impl IntoIterator<Item = &'a str>) -> Value {
        let args = args.into_iter().chain(["-n", self.namespace.as_str()]);
        cluster::json(args).unwrap_or_else(|words| panic!("{words}"))
    }

    pub fn generation(&self, name: &str) -> i64 {
        self.deployment(name)["metadata"]["generation"].as_i64().unwrap_or_default()
    }

    /// Waits until the current generation of a Deployment is complete.
    #[track_caller]
    pub fn completes(&self, name: &str) {
        let name = format!("deployment/{name}");
        self.kubectl(["rollout", "status", &name, "--timeout=90s"]).done().succeeds();
    }

    /// Waits until a Deployment is as `holds` wants it, and returns it.
    #[track_caller]
    pub fn wait_for(&self, what: &str, name: &str, is: impl Fn(&Value) -> bool) -> Value {
        wait_until(what, seconds(60), || {
            let deployment = self.deployment(name);
            holds(is(&deployment), deployment["status"].to_string()).map(|()| deployment)
        })
    }

    /// Sends a change of a Deployment.
    pub fn push(&self, name: &str, change: impl FnOnce(Change) -> Change) -> Done {
        self.kubectl(change(Change::of(name)).arguments()).done()
    }

    /// Sends a change that must go through without waiting.
    #[track_caller]
    pub fn accepts(&self, name: &str, change: impl FnOnce(Change) -> Change) -> Done {
        let done = self.push(name, change);
        assert!(done.ok(), "expected to be accepted: {}", done.report());
        assert!(done.took < seconds(8), "accepted, but not at once: {}", done.report());
        done
    }

    /// Sends a change that must be refused and leave no trace, and returns the words.
    #[track_caller]
    pub fn rejects(&self, name: &str, change: impl FnOnce(Change) -> Change) -> Refused {
        let before = self.deployment(name);
        let done = self.push(name, change);
        assert!(!done.ok(), "expected to be refused: {}", done.report());
        let after = self.deployment(name);
        for pointer in ["/metadata/generation", "/metadata/annotations", "/spec"] {
            assert_eq!(
                before.pointer(pointer),
                after.pointer(pointer),
                "refused, and yet it changed {pointer}"
            );
        }
        Refused { text: done.words(), took: done.took.as_secs_f64() }
    }

    /// Lets no more ReplicaSets be made in the namespace than there are: a push stays unobserved.
    pub fn allow_no_more_replica_sets(&self) {
        let there = self.json(["get", "replicasets"]);
        let count = there["items"].as_array().map_or(0, Vec::len);
        let hard = format!("--hard=count/replicasets.apps={count}");
        self.kubectl(["create", "quota", "replicasets", &hard]).succeeds();
        wait_until("the quota counts", seconds(30), || {
            let quota = self.json(["get", "quota", "replicasets"]);
            let used = &quota["status"]["used"]["count/replicasets.apps"];
            holds(used.as_str() == Some(&count.to_string()), quota["status"].to_string())
        });
    }

    pub fn lift_quota(&self) {
        self.kubectl(["delete", "quota", "replicasets"]).succeeds();
    }

    /// Creates Deployments that are complete, then pushes v2 to each, which stays unobserved.
    pub fn create_unobserved(&self, deployments: &[Value]) {
        let names = || deployments.iter().filter_map(|d| d["metadata"]["name"].as_str());
        deployments.iter().for_each(|deployment| self.create(deployment));
        names().for_each(|name| self.completes(name));
        self.allow_no_more_replica_sets();
        for name in names() {
            self.accepts(name, |push| push.image("v2"));
            self.wait_for("ReplicaSetCreateError", name, |d| {
                condition(d, "Progressing")["reason"] == "ReplicaSetCreateError" && is_unobserved(d)
            });
        }
    }

    /// Gives a user the right to edit in the namespace, and returns the name.
    pub fn editor(&self, name: &str) -> String {
        let user = format!("{name}@{}", self.namespace);
        let flag = format!("--user={user}");
        self.kubectl(["create", "rolebinding", name, "--clusterrole=edit", &flag]).succeeds();
        wait_until("the right to edit", seconds(10), || {
            let asked = self.kubectl(["auth", "can-i", "patch", "deployments.apps", "--as", &user]).done();
            holds(asked.ok(), asked.report())
        });
        user
    }

    /// Waits until the guard has told somebody who pushes to wait.
    pub fn is_told_to_wait(&self, name: &str) {
        wait_until(&format!("a push to {name} is told to wait"), seconds(15), || {
            let log = installation::logs(400);
            let decisions = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
            let ours = |d: &Value| d["namespace"] == self.namespace.as_str() && d["name"] == name;
            holds(decisions.filter(ours).any(|d| d["verdict"] == "wait"), log)
        });
    }

    fn tell_what_is_there(&self) {
        let look = |args: &[&str]| self.say(&self.kubectl(args).limit(seconds(20)).done().report());
        look(&["get", "deployments,replicasets,pods,quota", "-o", "wide"]);
        look(&["get", "events", "--sort-by=.lastTimestamp"]);
        look(&["get", "rolloutpolicies", "-o", "wide"]);
        look(&["get", "rolloutrecords", "-o", "yaml"]);
        self.say(&installation::logs(60));
    }
}

impl Drop for Scenario {
    fn drop(&mut self) {
        let again = if thread::panicking() { Vec::new() } else { self.told_again() };
        let failed = thread::panicking() || !again.is_empty();
        let outcome = if failed { "FAILED" } else { "ok" };
        if failed {
            self.tell_what_is_there();
        }
        kubectl(["delete", "namespace", &self.namespace, "--wait=false"]).done();
        let alone = if matches!(self.lock, Lock::Alone(_)) { ", alone" } else { "" };
        if thread::panicking() && !alone.is_empty() {
            installation::is_unknown();
        }
        let took = self.started.elapsed().as_secs_f64();
        self.say(&format!("{outcome} in {took:.1} s{alone} (after {:.1} s in the queue)", self.waited));
        // Not a second panic, which would end the process.
        assert!(again.is_empty(), "told more than once: {again:#?}");
    }
}

/// A change that was refused.
pub struct Refused {
    /// What kubectl printed.
    pub text: String,
    /// Seconds until it did.
    pub took: f64,
}

impl Refused {
    /// Says that it is a 403 for `reason`, at once.
    #[track_caller]
    pub fn at_once(self, reason: &str) -> Self {
        assert!(self.text.contains("(Forbidden)"), "not a 403: {}", self.text);
        assert!(self.took < 5.0, "refused after {:.1} s", self.took);
        self.because(reason)
    }

    #[track_caller]
    pub fn because(self, reason: &str) -> Self {
        assert!(self.text.contains(&format!("{reason} ")), "not {reason}: {}", self.text);
        self
    }
}

/// Returns a condition of a Deployment or policy; null where it has none.
pub fn condition<'a>(object: &'a Value, kind: &str) -> &'a Value {
    let conditions = object["status"]["conditions"].as_array();
    conditions.and_then(|all| all.iter().find(|c| c["type"] == kind)).unwrap_or(&Value::Null)
}

pub fn is_unobserved(deployment: &Value) -> bool {
    deployment["status"]["observedGeneration"].as_i64() < deployment["metadata"]["generation"].as_i64()
}

/// Does something when it is dropped, also by a panic.
pub struct Restore<F: FnOnce()> {
    what: &'static str,
    action: Cell<Option<F>>,
}

/// Returns what runs `action` when it is dropped.
#[must_use = "the action runs when this is dropped"]
pub fn restore<F: FnOnce()>(what: &'static str, action: F) -> Restore<F> {
    Restore { what, action: Cell::new(Some(action)) }
}

impl<F: FnOnce()> Drop for Restore<F> {
    fn drop(&mut self) {
        let Some(action) = self.action.take() else { return };
        if !thread::panicking() {
            return action();
        }
        // A second panic would end the process and leave everything as it is.
        if std::panic::catch_unwind(std::panic::AssertUnwindSafe(action)).is_err() {
            say("harness", &format!("could not {}", self.what));
        }
    }
}
