//! A registry of the tests' own, in the node: without one a missing image cannot be told from an outage.

use std::sync::{
    OnceLock,
    atomic::{AtomicU8, Ordering},
};

use serde_json::json;

use crate::harness::{
    cluster::{kubectl, unique},
    scenario::LABEL,
    wait::holds,
    workload::{deployment, image_of},
};

/// Returns an image of the tests' registry: it denies having `missing`, wants to know who asks for `private`, and
/// fails with 503 for `broken`.
pub fn image(kind: &str) -> String {
    static RUNS: OnceLock<Result<(), String>> = OnceLock::new();
    if let Err(why) = RUNS.get_or_init(start) {
        panic!("the tests' registry does not run: {why}");
    }
    format!("{}:5000/{kind}/app:v9", host())
}

/// Returns an image of a registry that does not answer.
pub fn image_of_nobody() -> String {
    format!("{}:5999/app:v9", host())
}

/// Returns an address of the node's own that no other call returned: images of one host that fail all at once are
/// rightly taken for its outage, and scenarios run side by side.
fn host() -> String {
    static HOSTS: AtomicU8 = AtomicU8::new(1);
    format!("127.0.0.{}", HOSTS.fetch_add(1, Ordering::Relaxed).max(1))
}

fn start() -> Result<(), String> {
    let namespace = format!("registry-{}", unique());
    kubectl(["create", "namespace", &namespace]).succeeds();
    kubectl(["label", "namespace", &namespace, LABEL]).succeeds();
    let sample = deployment("registry", |_| {});
    let pod = json!({
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
                "args": ["registry"],
                // Waits for the port where the registry of an earlier run still ends.
                "ports": [{"containerPort": 5000, "hostPort": 5000}],
                "readinessProbe": {"httpGet": {"path": "/v2/", "port": 5000}, "periodSeconds": 1},
            }],
        },
    });
    kubectl(["create", "-f", "-", "-n", &namespace]).input(pod.to_string()).succeeds();
    let ready = ["wait", "pod/registry", "--for=condition=Ready", "--timeout=90s", "-n", &namespace];
    let done = kubectl(ready).done();
    holds(done.ok(), done.report())
}
