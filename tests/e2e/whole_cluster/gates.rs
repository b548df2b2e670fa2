//! Gates at the steps of a rollback: each holds the Deployments of its name right before its step, so that whatever
//! happens then happens at that very moment.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::guard;
use crate::harness::{Scenario, denial::denied, seconds, wait::holds, wait_until};

/// The steps in their order: the intent is written down, announced, carried out and written down, and the fields go
/// back to their owners. A Deployment that has the name of a step is held before it.
pub const STEPS: [&str; 5] = ["intent", "announce", "restore", "note", "hand-back"];

/// What the guard asks for at each step.
fn asks(step: &str) -> String {
    let deployment = |subresource: &str, more: &str| {
        format!(
            "request.resource.resource == 'deployments' && request.?subResource.orValue('') == '{subresource}' \
             && object.metadata.name == '{step}'{more}"
        )
    };
    let record = |more: &str| {
        format!(
            "request.resource.resource == 'rolloutrecords' && object.metadata.name == 'deployment-{step}' \
             && has(object.status) && has(object.status.rollback){more}"
        )
    };
    match step {
        "intent" => record(""),
        "announce" => deployment("status", ""),
        "restore" => deployment("", " && object.spec.template != oldObject.spec.template"),
        "note" => record(" && has(object.status.rollback.generation)"),
        _ => deployment("", " && object.spec.template == oldObject.spec.template"),
    }
}

/// Closes all gates in the scenario's namespace, to the guard alone; they are gone when the returned value is
/// dropped. The Deployment `hand-back` must be there.
pub fn closed(s: &Scenario) -> impl Drop + use<> {
    let gate = |step: &str| {
        json!({
            "expression": format!("!({})", asks(step)),
            "message": format!("held before {step}"),
            "reason": "Forbidden",
        })
    };
    let rule = |group: &str, version: &str, resource: &str| {
        json!({
            "apiGroups": [group], "apiVersions": [version], "operations": ["CREATE", "UPDATE"],
            "resources": [resource, format!("{resource}/status")],
        })
    };
    let spec = json!({
        "matchConstraints": {"resourceRules": [
            rule("apps", "v1", "deployments"),
            rule("rollout-guard.io", "v1alpha1", "rolloutrecords"),
        ]},
        "matchConditions": [{
            "name": "the-guard",
            "expression": format!("request.userInfo.username == '{}'", guard::USER),
        }],
        "validations": STEPS.map(gate),
    });
    let label = json!({"metadata": {"labels": {"gate": "closed"}}}).to_string();
    denied(s, spec, "held before hand-back", &|| {
        s.kubectl(["patch", "deployment", "hand-back", "--as", guard::USER, "--dry-run=server", "-p", &label])
    })
}

/// Lets the guard put back no template at all in the scenario's namespace, until the returned value is dropped. The
/// Deployment `probe` must be there.
pub fn closed_to_restores(s: &Scenario, probe: &str) -> impl Drop + use<> {
    let spec = json!({
        "matchConstraints": {"resourceRules": [{
            "apiGroups": ["apps"], "apiVersions": ["v1"], "operations": ["UPDATE"], "resources": ["deployments"],
        }]},
        "matchConditions": [{
            "name": "the-guard",
            "expression": format!("request.userInfo.username == '{}'", guard::USER),
        }],
        "validations": [{
            "expression": "object.spec.template == oldObject.spec.template",
            "message": "no template is put back",
            "reason": "Forbidden",
        }],
    });
    let template = json!({"spec": {"template": {"metadata": {"labels": {"probe": "yes"}}}}}).to_string();
    let probe = probe.to_owned();
    denied(s, spec, "no template is put back", &|| {
        s.kubectl(["patch", "deployment", &probe, "--as", guard::USER, "--dry-run=server", "-p", &template])
    })
}

/// Waits until the guard stands before each of `steps`.
#[track_caller]
pub fn are_reached(s: &Scenario, steps: &[&str]) {
    wait_until("the guard stands before each gate", seconds(60), || {
        let requests = guard::requests(&s.namespace, None);
        let held = requests.iter().filter(|request| request.namespace == s.namespace && request.code == 403);
        let held: BTreeSet<&str> =
            held.map(|request| request.name.strip_prefix("deployment-").unwrap_or(&request.name)).collect();
        holds(steps.iter().all(|step| held.contains(step)), format!("{held:?}"))
    });
}

/// Whether the record and the Deployment are as they must be right before `step`.
pub fn stands_before(step: &str, record: &Value, restored: bool, announced: bool) -> bool {
    let rollback = &record["status"]["rollback"];
    let (intended, noted) = (rollback["outcome"] == "InProgress", !rollback["generation"].is_null());
    let at = STEPS.iter().position(|other| *other == step).unwrap_or_default();
    [intended, announced, restored, noted] == [at > 0, at > 1, at > 2, at > 3]
}
