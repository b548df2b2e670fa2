//! What somebody puts in the guard's way to have it restore, or refuse, something else.

use serde_json::{Value, json};

use super::{container, without_settings};
use crate::harness::{
    Run, Scenario, deployment, record::verdict, scenario::condition, seconds, wait::holds, wait_until,
    workload::image_of,
};

/// Also by somebody who may do everything.
#[test]
fn faults_11_and_45_records_are_written_by_the_guard_alone() {
    let s = Scenario::shared("forged-record");
    let _policy = s.short_policy();
    s.create_good(&deployment("web", |_| {}));
    s.pushes("web", &without_settings()).is_safe("Configuration");
    let record = s.record("web");
    let refused = |run: Run| {
        let words = run.done().fails();
        assert!(words.contains("Only rollout-guard writes RolloutRecords"), "{words}");
    };
    let patch = |change: Value, flags: &[&str]| {
        let change = change.to_string();
        s.kubectl(["patch", "rolloutrecord", "deployment-web", "--type=merge", "-p", &change]).args(flags)
    };
    // The bad template would be good, and the record another Deployment's.
    let mut revisions = record["status"]["revisions"].clone();
    revisions.as_array_mut().into_iter().flatten().for_each(|revision| revision["verdict"] = json!("Good"));
    refused(patch(json!({"status": {"revisions": revisions}}), &["--subresource=status"]));
    refused(patch(json!({"spec": {"targetRef": {"name": "other"}}}), &[]));
    let mut other = record.clone();
    other["metadata"] = json!({"name": "deployment-other"});
    refused(s.kubectl(["create", "-f", "-"]).input(other.to_string()));
    assert_eq!(s.record("web")["status"]["revisions"], record["status"]["revisions"]);
    let words = s.patch("web", &without_settings()).done().fails();
    assert!(words.contains("RG004 "), "{words}");

    // What gives nobody anything: a label, and to have it forgotten.
    patch(json!({"metadata": {"labels": {"seen": "yes"}}}), &[]).succeeds();
    s.kubectl(["delete", "rolloutrecord", "deployment-web"]).succeeds();
    wait_until("the template is forgotten", seconds(20), || {
        let done = s.patch("web", &without_settings()).arg("--dry-run=server").done();
        holds(done.ok(), done.report())
    });
}

/// The Deployment controller takes it for one of its own, and so for the newest but one.
#[test]
fn fault_45_a_planted_replica_set_is_not_what_is_put_back() {
    let s = Scenario::shared("planted");
    let _policy = s.short_policy();
    s.create_good(&deployment("web", |_| {}));
    let web = s.deployment("web");
    s.create(&planted(&web));
    wait_until("it passes for the Deployment's own", seconds(20), || {
        let history = s.kubectl(["rollout", "history", "deployment/web", "--revision=99"]).done();
        holds(history.ok() && history.stdout.contains("sample:v3"), history.report())
    });
    let record = s
        .pushes("web", &container(json!({"envFrom": [{"configMapRef": {"name": "settings"}}]})))
        .is_safe("Configuration");
    assert_eq!(image_of(&s.deployment("web")), image_of(&web), "{record}");
    // Kubernetes' own undo would have taken it.
    let sets = s.json(["get", "replicasets", "planted"]);
    assert_eq!(sets["status"]["replicas"].as_i64().unwrap_or_default(), 0, "{sets}");
    let record =
        s.wait_for_record("web is ready", "web", |record| condition(record, "Ready")["status"] == "True");
    assert_eq!(verdict(&record), "Good", "{record}");
}

/// Returns a ReplicaSet that says it is the Deployment's revision 99, with another image.
fn planted(web: &Value) -> Value {
    let mut template = web["spec"]["template"].clone();
    template["spec"]["containers"][0]["image"] = json!("localhost/sample:v3");
    template["metadata"]["labels"]["pod-template-hash"] = json!("planted");
    let labels = template["metadata"]["labels"].clone();
    json!({
        "apiVersion": "apps/v1",
        "kind": "ReplicaSet",
        "metadata": {
            "name": "planted",
            "labels": labels,
            "annotations": {"deployment.kubernetes.io/revision": "99"},
            "ownerReferences": [{
                "apiVersion": "apps/v1", "kind": "Deployment", "name": "web", "uid": web["metadata"]["uid"],
                "controller": true,
            }],
        },
        "spec": {"replicas": 0, "selector": {"matchLabels": labels}, "template": template},
    })
}
