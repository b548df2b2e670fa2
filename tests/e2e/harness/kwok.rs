//! Nodes that kwok plays: a pod costs nothing there, and its fate is in the tag of its image
//! (`tests/kind/kwok/stages.yaml`).

use std::{env, fs, path::Path};

use serde_json::{Value, json};

use super::{
    cluster::{json as get, kubectl},
    process::Background,
    restore,
    scenario::condition,
    seconds,
    wait::holds,
    wait_until,
};

/// The label that kwok's own documents use, and by which `cluster.sh` leaves these nodes out.
const KEY: &str = "type";
const VALUE: &str = "kwok";
/// kwok manages nodes with this annotation and no other; the taint keeps all other pods away.
const MARK: &str = "rollout-guard-e2e";

/// Starts kwok and gives it some nodes; both are gone when the returned value is dropped.
pub fn nodes(count: usize) -> impl Drop {
    let log = Path::new(env!("CARGO_TARGET_TMPDIR")).join("kwok.log");
    let kwok = start(&log);
    let gone = restore("take kwok's nodes away", move || {
        delete_nodes();
        drop(kwok);
    });
    let list: Vec<Value> = (0..count).map(node).collect();
    let list = json!({"apiVersion": "v1", "kind": "List", "items": list});
    kubectl(["create", "-f", "-"]).input(list.to_string()).succeeds();
    wait_until("kwok's nodes are ready", seconds(60), || {
        let nodes = get(["get", "nodes", "-l", &format!("{KEY}={VALUE}")])?;
        let nodes = nodes["items"].as_array().cloned().unwrap_or_default();
        let ready = nodes.iter().filter(|node| condition(node, "Ready")["status"] == "True").count();
        holds(ready == count, format!("{ready}; {}", fs::read_to_string(&log).unwrap_or_default()))
    });
    gone
}

/// Puts a pod template on kwok's nodes, and on no other.
pub fn place(template: &mut Value) {
    template["spec"]["nodeSelector"] = json!({KEY: VALUE});
    template["spec"]["tolerations"] = json!([{"key": MARK, "operator": "Exists"}]);
}

fn start(log: &Path) -> Background {
    let kwok =
        env::var_os("KWOK").unwrap_or_else(|| panic!("KWOK is not set: export KWOK=$(tests/kind/kwok.sh)"));
    let stages = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/kind/kwok/stages.yaml");
    let args = [
        format!("--config={}", stages.display()),
        format!("--manage-nodes-with-annotation-selector={MARK}={VALUE}"),
        // Without leases its nodes count as lost after 40 seconds.
        "--node-lease-duration-seconds=40".to_owned(),
    ];
    Background::start(kwok, args, log)
}

fn node(i: usize) -> Value {
    let room = json!({"cpu": "1k", "memory": "1Ti", "pods": "10k"});
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": format!("kwok-{i}"), "labels": {KEY: VALUE}, "annotations": {MARK: VALUE}},
        "spec": {"taints": [{"key": MARK, "value": VALUE, "effect": "NoSchedule"}]},
        "status": {"capacity": &room, "allocatable": &room},
    })
}

/// Also those that a run which was killed has left: never ready again, they count for the guard's breaker.
pub fn delete_nodes() {
    kubectl(["delete", "nodes", "-l", &format!("{KEY}={VALUE}")]).succeeds();
}
