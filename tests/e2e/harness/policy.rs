//! RolloutPolicies of scenarios.

use serde_json::{Value, json};

use super::{
    Scenario,
    cluster::{json, kubectl},
    installation,
    scenario::{LABEL, condition},
    seconds,
    wait::holds,
    wait_until,
};

/// A RolloutPolicy that is in force; removed when this is dropped.
pub struct InForce {
    pub name: String,
}

impl Scenario {
    /// Returns a RolloutPolicy for the scenario's namespace alone, above the default one; `part` sets several of
    /// one scenario apart.
    pub fn policy(&self, part: &str, mut spec: Value) -> Value {
        spec["priority"] = json!(100);
        spec["namespaceSelector"] = json!({"matchLabels": {"kubernetes.io/metadata.name": self.namespace}});
        let (key, value) = LABEL.split_once('=').unwrap_or_default();
        let mut name = format!("{}-{part}", self.namespace);
        name.truncate(63);
        json!({
            "apiVersion": "rollout-guard.io/v1alpha1",
            "kind": "RolloutPolicy",
            "metadata": {"name": name.trim_end_matches('-'), "labels": {key: value}},
            "spec": spec,
        })
    }

    /// Puts a policy for the scenario's namespace in force, in every replica.
    pub fn put_in_force(&self, part: &str, spec: Value) -> InForce {
        let policy = self.policy(part, spec);
        let name = policy["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        kubectl(["create", "-f", "-"]).input(policy.to_string()).succeeds();
        let policy = InForce { name };
        policy.settles();
        policy
    }
}

impl InForce {
    /// Returns the policy once the guard has said what it thinks of the current generation, and the default
    /// policy's fallback leaves out what this one takes.
    pub fn settles(&self) -> Value {
        let policy = settled(&self.name);
        wait_until("the policy is known to every replica", seconds(20), || {
            let pods = installation::ready_pods()?;
            for pod in &pods {
                let text = installation::metrics_of(pod)?;
                let known = format!("rollout_guard_policy_valid{{policy=\"{}\"}}", self.name);
                holds(text.contains(&known), format!("{pod} does not know {}", self.name))?;
            }
            let default = json(["get", "rolloutpolicy", "default"])?;
            let fallback = condition(&default, "FallbackReady");
            let narrowed = fallback["message"].as_str().is_some_and(|text| text.contains(&self.name));
            holds(narrowed, format!("the default policy's fallback: {fallback}"))
        });
        policy
    }
}

impl Drop for InForce {
    fn drop(&mut self) {
        kubectl(["delete", "rolloutpolicy", &self.name, "--ignore-not-found", "--wait=false"]).done();
    }
}

/// Waits until a policy's status speaks of its current generation, and returns it.
pub fn settled(name: &str) -> Value {
    wait_until(&format!("RolloutPolicy {name} has a status"), seconds(30), || {
        let policy = json(["get", "rolloutpolicy", name])?;
        let current = policy["metadata"]["generation"] == policy["status"]["observedGeneration"];
        let told = !condition(&policy, "FallbackReady").is_null();
        holds(current && told, policy["status"].to_string()).map(|()| policy)
    })
}
