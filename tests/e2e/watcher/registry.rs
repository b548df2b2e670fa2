//! Registries of the tests' own, in the node: without one a missing image cannot be told from an outage.

use std::sync::{
    OnceLock,
    atomic::{AtomicU8, AtomicU16, Ordering},
};

use serde_json::{Value, json};

use crate::harness::{
    Scenario,
    cluster::{kubectl, unique},
    scenario::LABEL,
    wait::holds,
    workload::{deployment, image_of},
};

/// The port of the one that all scenarios share.
const PORT: u16 = 5000;

/// Returns an image of the tests' registry: it denies having `missing`, wants to know who asks for `private`, and
/// fails with 503 for `broken`.
pub fn image(kind: &str) -> String {
    static RUNS: OnceLock<Result<(), String>> = OnceLock::new();
    let start = || {
        let namespace = format!("registry-{}", unique());
        kubectl(["create", "namespace", &namespace]).succeeds();
        kubectl(["label", "namespace", &namespace, LABEL]).succeeds();
        start(&namespace, PORT)
    };
    if let Err(why) = RUNS.get_or_init(start) {
        panic!("the tests' registry does not run: {why}");
    }
    format!("{}:{PORT}/{kind}/app:v9", host())
}

/// Returns an address of the node's own that no other call returned: images of one host that fail all at once are
/// rightly taken for its outage, and scenarios run side by side.
fn host() -> String {
    static HOSTS: AtomicU8 = AtomicU8::new(1);
    format!("127.0.0.{}", HOSTS.fetch_add(1, Ordering::Relaxed).max(1))
}

/// A registry of one scenario, that can be stopped.
pub struct Registry<'a> {
    s: &'a Scenario,
    host: String,
    port: u16,
}

impl<'a> Registry<'a> {
    /// Starts one, on a port that no other has.
    pub fn start(s: &'a Scenario) -> Self {
        static PORTS: AtomicU16 = AtomicU16::new(PORT + 1);
        let registry = Self { s, host: host(), port: PORTS.fetch_add(1, Ordering::Relaxed) };
        registry.start_again();
        registry
    }

    /// Starts it again, and waits until it answers.
    pub fn start_again(&self) {
        if let Err(why) = start(&self.s.namespace, self.port) {
            panic!("the registry does not run: {why}");
        }
    }

    /// Ends it, and waits until it is gone.
    pub fn stop(&self) {
        self.s.kubectl(["delete", "pod", "registry"]).succeeds();
    }

    /// Returns an image that it denies having, where it runs.
    pub fn missing(&self) -> String {
        format!("{}:{}/missing/app:v9", self.host, self.port)
    }
}

fn start(namespace: &str, port: u16) -> Result<(), String> {
    let pod = pod(port).to_string();
    kubectl(["create", "-f", "-", "-n", namespace]).input(pod).succeeds();
    let ready = ["wait", "pod/registry", "--for=condition=Ready", "--timeout=90s", "-n", namespace];
    let done = kubectl(ready).done();
    holds(done.ok(), done.report())
}

fn pod(port: u16) -> Value {
    let sample = deployment("registry", |_| {});
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "registry"},
        "spec": {
            // The node pulls, so it must listen in the node.
            "hostNetwork": true,
            "terminationGracePeriodSeconds": 0,
            "automountServiceAccountToken": false,
            "containers": [{
                "name": "registry",
                "image": image_of(&sample),
                "imagePullPolicy": "IfNotPresent",
                "args": ["registry", port.to_string()],
                // Waits for the port where the registry of an earlier run still ends.
                "ports": [{"containerPort": port, "hostPort": port}],
                "readinessProbe": {"httpGet": {"path": "/v2/", "port": port}, "periodSeconds": 1},
            }],
        },
    })
}
