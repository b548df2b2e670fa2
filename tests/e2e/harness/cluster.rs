//! kubectl and the node.

use std::env;

use serde_json::Value;

use super::{Done, Run, reading, restore, seconds, wait::holds, wait_until};

/// Returns `kubectl ARGS`.
pub fn kubectl<A: AsRef<std::ffi::OsStr>>(args: impl IntoIterator<Item = A>) -> Run {
    Run::new("kubectl").args(args)
}

/// Returns what `kubectl ARGS -o json` prints, or its words where it fails.
pub fn json<A: AsRef<str>>(args: impl IntoIterator<Item = A>) -> Result<Value, String> {
    let args: Vec<String> = args.into_iter().map(|arg| arg.as_ref().to_owned()).collect();
    if let Some(path) = reading::path_of(&args) {
        return reading::read(&path);
    }
    let done = kubectl(args).args(["-o", "json"]).done();
    if !done.ok() {
        return Err(done.report());
    }
    serde_json::from_str(&done.stdout).map_err(|error| format!("{error}: {}", done.report()))
}

/// Runs a command in the cluster's node.
pub fn in_node(args: &[&str]) -> Done {
    let required = |name: &str| {
        env::var(name).unwrap_or_else(|_| {
            panic!("{name} is not set: eval \"$(tests/kind/cluster.sh env rollout-guard-test)\"")
        })
    };
    let exec = required("NODE_EXEC");
    let mut words = exec.split_whitespace();
    Run::new(words.next().unwrap_or("docker")).args(words).arg(required("NODE")).args(args).done()
}

/// Returns the events of the API server's audit log in which `text` occurs, oldest first.
pub fn audit_events(text: &str) -> Vec<Value> {
    // Rotated files sort before the current one.
    let found = in_node(&["sh", "-c", "grep -hF -- \"$0\" /var/log/kubernetes/audit*.log", text]);
    found.stdout.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

/// Stops kube-controller-manager; it comes back when the returned value is dropped.
pub fn without_controller_manager() -> impl Drop {
    const MANIFEST: &str = "/etc/kubernetes/manifests/kube-controller-manager.yaml";
    const ASIDE: &str = "/etc/kubernetes/kube-controller-manager.aside";
    let back = restore("start kube-controller-manager", || {
        in_node(&["mv", ASIDE, MANIFEST]).succeeds();
        // It leads again when the lease of the one before has run out.
        wait_until("kube-controller-manager acts again", seconds(90), controller_manager_acts);
    });
    in_node(&["mv", MANIFEST, ASIDE]).succeeds();
    wait_until("kube-controller-manager is gone", seconds(60), || {
        let found = in_node(&["pgrep", "-x", "kube-controller"]);
        holds(found.code == Some(1), found.report())
    });
    back
}

/// A new ConfigMap with the cluster's CA appears in a namespace only by its hand.
fn controller_manager_acts() -> Result<(), String> {
    let namespace = format!("e2e-alive-{}", unique());
    kubectl(["create", "namespace", &namespace]).succeeds();
    let _gone = restore("", || {
        kubectl(["delete", "namespace", &namespace, "--wait=false"]).done();
    });
    let made = kubectl(["wait", "--for=create", "configmap/kube-root-ca.crt", "--timeout=10s"])
        .args(["-n", &namespace])
        .done();
    holds(made.ok(), made.report())
}

/// Returns a word that no other call returned, also in other runs.
pub fn unique() -> String {
    use std::{
        sync::atomic::{AtomicU32, Ordering},
        time::{SystemTime, UNIX_EPOCH},
    };
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    format!("{:x}-{}", now & 0xff_ffff, COUNT.fetch_add(1, Ordering::Relaxed))
}
