//! What kubelets make of pods: by the pod's age and the fate in its image's tag alone.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{fate, secs};

/// A pod.
#[derive(Clone, Debug, PartialEq)]
pub struct Pod {
    pub set: String,
    pub set_uid: String,
    pub image: String,
    pub created: Timestamp,
}

impl Pod {
    fn fate(&self) -> &str {
        fate(self.image.rsplit(':').next().unwrap_or_default())
    }

    fn age(&self, now: Timestamp) -> i64 {
        now.duration_since(self.created).as_secs()
    }

    /// Whether it is ready, and so available.
    pub fn ready(&self, now: Timestamp) -> bool {
        let age = self.age(now);
        match self.fate() {
            "good" => age >= 2,
            "slow" => age >= 40,
            "flap" => age % 10 >= 7,
            _ => false,
        }
    }

    /// When that changes next.
    pub fn changes(&self, now: Timestamp) -> Option<Timestamp> {
        let age = self.age(now);
        let at = match self.fate() {
            "good" if age < 2 => 2,
            "slow" if age < 40 => 40,
            "flap" if age % 10 < 7 => age - age % 10 + 7,
            "flap" => age - age % 10 + 10,
            _ => return None,
        };
        Some(self.created + secs(at))
    }

    /// The pod as the API server gives it.
    pub fn object(&self, namespace: &str, name: &str, now: Timestamp) -> Value {
        let age = self.age(now);
        let at = |second: i64| format!("{:.0}", self.created + secs(second.max(0)));
        let node = if self.fate() == "big" { Value::Null } else { json!("node-1") };
        let waiting =
            |reason: &str, message: String| json!({"waiting": {"reason": reason, "message": message}});
        let ended = |reason: &str, code: i64| json!({"terminated": {"reason": reason, "exitCode": code, "startedAt": at(age - 3), "finishedAt": at(age - 1)}});
        let image = &self.image;
        let pull = |why: &str| {
            let text = format!(
                "failed to pull and unpack image \"{image}\": failed to resolve reference \"{image}\": {why}"
            );
            if age % 4 < 2 {
                waiting("ErrImagePull", format!("rpc error: code = NotFound desc = {text}"))
            } else {
                waiting(
                    "ImagePullBackOff",
                    format!("Back-off pulling image \"{image}\": ErrImagePull: {text}"),
                )
            }
        };
        let creating = || waiting("ContainerCreating", String::new());
        let ready = self.ready(now);
        let runs = json!({"running": {"startedAt": at(1)}});
        let restarts = age / 5;
        let (state, last, restarts) = match self.fate() {
            "big" => (Value::Null, Value::Null, 0),
            _ if age < 1 => (creating(), Value::Null, 0),
            "missing" => (pull(&format!("{image}: not found")), Value::Null, 0),
            "down" => (
                pull("failed to do request: Head: dial tcp 127.0.0.1:5000: connect: connection refused"),
                Value::Null,
                0,
            ),
            "config" => (
                waiting("CreateContainerConfigError", "configmap \"settings\" not found".to_owned()),
                Value::Null,
                0,
            ),
            "crash" | "oom" => {
                let end = if self.fate() == "oom" { ended("OOMKilled", 137) } else { ended("Error", 1) };
                let last = if restarts > 0 { end.clone() } else { Value::Null };
                // Running for two seconds, then ended for three, again and again.
                if age % 5 < 2 {
                    (json!({"running": {"startedAt": at(age - age % 5)}}), last, restarts)
                } else {
                    (end, last, restarts)
                }
            }
            _ => (runs, Value::Null, 0),
        };
        let scheduled = if node.is_null() {
            json!({
                "type": "PodScheduled", "status": "False", "reason": "Unschedulable",
                "message": "0/3 nodes are available: 3 Insufficient cpu.", "lastTransitionTime": at(0),
            })
        } else {
            json!({"type": "PodScheduled", "status": "True", "lastTransitionTime": at(0)})
        };
        let statuses = if node.is_null() {
            Value::Null
        } else {
            json!([{
                "name": "app", "image": image, "ready": ready, "started": state["running"].is_object(),
                "restartCount": restarts, "state": state,
                "lastState": if last.is_null() { json!({}) } else { last },
            }])
        };
        let word = if ready { "True" } else { "False" };
        json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": name, "namespace": namespace, "uid": name, "creationTimestamp": at(0),
                "ownerReferences": [{"kind": "ReplicaSet", "apiVersion": "apps/v1", "controller": true, "uid": self.set_uid}],
            },
            "spec": {"nodeName": node, "containers": [{"name": "app", "image": image}]},
            "status": {
                "phase": if state["running"].is_object() { "Running" } else { "Pending" },
                "conditions": [scheduled, {"type": "Ready", "status": word, "lastTransitionTime": at(1)}],
                "containerStatuses": statuses,
            },
        })
    }
}
