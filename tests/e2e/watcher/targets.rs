//! What happens between the restore and its end.

use serde_json::{Value, json};

use super::{container, missing_image, without_settings};
use crate::harness::{
    Scenario, deployment,
    record::{generation, is_complete, outcome, same_template, short},
    scenario::condition,
    seconds,
    wait::holds,
    wait_until,
    workload::image_of,
};

/// A Deployment whose restore takes a while: the old pod is gone by then, and a new one counts only after 8 s.
fn slow() -> Value {
    deployment("web", |d| {
        d["spec"]["strategy"] = json!({"type": "Recreate"});
        d["spec"]["minReadySeconds"] = json!(8);
    })
}

/// Returns the record once the template is back and not yet verified.
fn in_mid_rollback(s: &Scenario, good: &Value) -> Value {
    s.wait_for("the template is back", "web", |d| {
        same_template(d, good) && generation(d) > generation(good) && !is_complete(d)
    });
    let record = s.record("web");
    assert_eq!(outcome(&record), "InProgress", "{record}");
    record
}

#[test]
fn fault_41_a_target_that_fails_as_well_is_latched_and_nothing_more_is_written() {
    let s = Scenario::shared("target-fails");
    let _policy = s.short_policy();
    s.kubectl(["create", "configmap", "settings", "--from-literal=COLOUR=blue"]).succeeds();
    s.create_good(&deployment("web", |d| {
        // The old pod would go on with what it has.
        d["spec"]["strategy"] = json!({"type": "Recreate"});
        let from = json!([{"configMapRef": {"name": "settings"}}]);
        d["spec"]["template"]["spec"]["containers"][0]["envFrom"] = from;
    }));
    s.kubectl(["delete", "configmap", "settings"]).succeeds();
    let pushed = s.pushes("web", &missing_image());
    let record = s.wait_for_record("it is latched", "web", |record| {
        outcome(record) == "Failed" && condition(record, "Stalled")["reason"] == "Latched"
    });
    let after = s.deployment("web");
    assert!(same_template(&after, &pushed.good), "{after}");
    let written = generation(&after);
    assert_eq!(written, generation(&pushed.good) + 2, "{record}");
    let told = condition(&record, "RolledBack");
    assert_eq!((&told["status"], &told["reason"]), (&json!("False"), &json!("Failed")), "{record}");
    s.is_told_once("web", "RollbackLatched");
    s.is_told_once("web", "RolledBack");
    assert!(s.events("web", "RollbackVerified").is_empty(), "told as verified");
    // What was missing comes back: the Deployment heals by itself, and the guard has not touched it.
    s.kubectl(["create", "configmap", "settings", "--from-literal=COLOUR=blue"]).succeeds();
    s.wait_for("it heals", "web", is_complete);
    s.wait_for_record("it is ready", "web", |record| condition(record, "Ready")["status"] == "True");
    assert_eq!(s.generation("web"), written);
}

#[test]
fn fault_44_a_deployment_that_is_deleted_during_its_rollback_stays_deleted() {
    let s = Scenario::shared("deleted");
    let _policy = s.short_policy();
    s.create_complete(&slow());
    s.becomes_good("web");
    let pushed = s.pushes("web", &without_settings());
    in_mid_rollback(&s, &pushed.good);
    s.kubectl(["delete", "deployment/web"]).succeeds();
    // The record goes with its owner.
    wait_until("the record is gone", seconds(60), || {
        let record = s.record("web");
        holds(record.is_null(), record.to_string())
    });
    let left = s.json(["get", "deployments,rolloutrecords"]);
    assert_eq!(left["items"].as_array().map(Vec::len), Some(0), "{left}");
    // One of the same name is another one: what is recorded as Bad was the other's.
    s.create_good(&deployment("web", |_| {}));
    s.pushes("web", &container(json!({"image": "localhost/sample:v2"})));
    s.completes("web");
    let record = s.wait_for_record("it is good", "web", |r| condition(r, "Ready")["status"] == "True");
    assert!(record["status"]["rollback"].is_null(), "{record}");
    assert_eq!(record["spec"]["targetRef"]["uid"], s.deployment("web")["metadata"]["uid"]);
}

#[test]
fn fault_43_a_fix_that_a_person_pushes_during_the_rollback_stands() {
    let s = Scenario::shared("fix-meanwhile");
    let _policy = s.short_policy();
    s.create_complete(&slow());
    s.becomes_good("web");
    let pushed = s.pushes("web", &without_settings());
    in_mid_rollback(&s, &pushed.good);
    // Kubernetes may not have observed the restore yet: then the push is told to wait, and goes through.
    let done = s.push("web", |push| push.image("v2"));
    done.succeeds();
    let fixed = s.generation("web");
    s.completes("web");
    let record = s.wait_for_record("theirs stands", "web", |r| !["", "InProgress"].contains(&outcome(r)));
    assert_eq!(outcome(&record), "Superseded", "{record}");
    let record = s.wait_for_record("the fix is good", "web", |r| condition(r, "Ready")["status"] == "True");
    let after = s.deployment("web");
    assert_eq!((generation(&after), image_of(&after)), (fixed, "localhost/sample:v2"), "{record}");
    s.is_told_once("web", "RolledBack");
    assert!(s.events("web", "RollbackVerified").is_empty(), "told as verified");
}

/// A real HorizontalPodAutoscaler: without metrics it does nothing but keep its Deployment above the least.
#[test]
fn fault_44_the_replicas_that_an_autoscaler_set_meanwhile_are_kept() {
    let s = Scenario::shared("replicas-kept");
    let mut policy = short();
    // Long enough to scale before it.
    policy["watch"]["earlyFailureAfter"] = json!("8s");
    let _policy = s.put_in_force("short", policy);
    s.create_good(&deployment("web", |_| {}));
    s.kubectl(["autoscale", "deployment", "web", "--min=1", "--max=5", "--cpu=80%"]).succeeds();
    let pushed = s.pushes("web", &without_settings());
    s.kubectl(["patch", "hpa", "web", "-p", r#"{"spec": {"minReplicas": 3}}"#]).succeeds();
    let scaled = s.wait_for("it is scaled", "web", |d| d["spec"]["replicas"] == 3);
    assert!(!same_template(&scaled, &pushed.good), "rolled back before it was scaled");
    let by_the_autoscaler = |entry: &&Value| {
        entry["manager"] == "kube-controller-manager"
            && entry["subresource"] == "scale"
            && entry["fieldsV1"]["f:spec"].get("f:replicas").is_some()
    };
    let mut entries = scaled["metadata"]["managedFields"].as_array().into_iter().flatten();
    assert!(entries.any(|entry| by_the_autoscaler(&entry)), "scaled by somebody else: {scaled}");
    // The scaling is a generation of its own.
    let generation = generation(&scaled);
    let record = pushed.is_safe("Configuration");
    assert_eq!(record["status"]["rollback"]["fromGeneration"], generation, "{record}");
    let after = s.deployment("web");
    assert_eq!(after["spec"]["replicas"], 3);
    assert_eq!(after["status"]["availableReplicas"], 3);
}
