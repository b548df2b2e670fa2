//! What the API server itself refuses, by a ValidatingAdmissionPolicy.

use serde_json::{Value, json};

use super::{Run, Scenario, cluster::kubectl, restore, seconds, wait::holds, wait_until};

/// Puts a ValidatingAdmissionPolicy in force for the scenario's namespace alone, and waits until it answers `probe` with
/// `words`. It is gone when the returned value is dropped.
pub fn denied(s: &Scenario, mut spec: Value, words: &str, probe: &dyn Fn() -> Run) -> impl Drop + use<> {
    let name = s.namespace.clone();
    spec["matchConstraints"]["namespaceSelector"] =
        json!({"matchLabels": {"kubernetes.io/metadata.name": s.namespace}});
    let policy = json!({
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingAdmissionPolicy",
        "metadata": {"name": name},
        "spec": spec,
    });
    let binding = json!({
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingAdmissionPolicyBinding",
        "metadata": {"name": name},
        "spec": {"policyName": name, "validationActions": ["Deny"]},
    });
    let both = json!({"apiVersion": "v1", "kind": "List", "items": [policy, binding]});
    kubectl(["create", "-f", "-"]).input(both.to_string()).succeeds();
    let denial = restore("take the denial away", move || {
        let kinds = "validatingadmissionpolicies,validatingadmissionpolicybindings";
        kubectl(["delete", kinds, &name, "--ignore-not-found"]).succeeds();
    });
    wait_until("the denial is in force", seconds(20), || {
        let done = probe().done();
        holds(done.words().contains(words), done.report())
    });
    denial
}
