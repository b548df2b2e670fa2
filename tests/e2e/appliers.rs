//! Manifests that are applied again and again, as GitOps and pipelines do.

use serde_json::{Value, json};

use crate::harness::{Scenario, deployment, workload::image_of};

fn manifest(tag: &str) -> Value {
    deployment("web", |d| {
        d["spec"]["template"]["spec"]["containers"][0]["image"] = json!(format!("localhost/sample:{tag}"));
        // Below what the default policy asks for: the webhook raises it each time, and that is no change either.
        d["spec"]["revisionHistoryLimit"] = json!(0);
    })
}

/// Applies v1, then v2, then v2 ten times more; says that only the first two moved the generation.
fn repeated(s: &Scenario, apply: impl Fn(&Value)) {
    apply(&manifest("v1"));
    s.completes("web");
    apply(&manifest("v2"));
    s.completes("web");
    let before = s.deployment("web");
    assert_eq!(before["metadata"]["generation"], 2);
    for _ in 0..10 {
        apply(&manifest("v2"));
    }
    let after = s.deployment("web");
    assert_eq!(after["metadata"]["generation"], 2);
    assert_eq!(after["metadata"]["annotations"], before["metadata"]["annotations"]);
    assert_eq!(after["metadata"]["annotations"]["rollout-guard.io/admitted"], "1");
    assert_eq!(after["spec"]["revisionHistoryLimit"], 2);
}

#[test]
fn server_side_apply_repeated_ten_times_leaves_the_generation_alone() {
    let s = Scenario::shared("server-side");
    repeated(&s, |manifest| {
        // revisionHistoryLimit is the guard's from the first apply on, so there is a conflict to force.
        s.kubectl(["apply", "--server-side", "--force-conflicts", "-f", "-"])
            .input(manifest.to_string())
            .succeeds();
    });
}

#[test]
fn client_side_apply_repeated_ten_times_leaves_the_generation_alone() {
    let s = Scenario::shared("client-side");
    repeated(&s, |manifest| {
        s.kubectl(["apply", "-f", "-"]).input(manifest.to_string()).succeeds();
    });
}

#[test]
fn replace_repeated_ten_times_leaves_the_generation_alone_even_without_the_mark() {
    let s = Scenario::shared("replace");
    s.create_complete(&manifest("v1"));
    s.accepts("web", |push| push.image("v2"));
    s.completes("web");
    let before = s.deployment("web");
    let mut sent = before.clone();
    let metadata = sent["metadata"].as_object_mut().expect("metadata");
    for field in ["resourceVersion", "uid", "generation", "managedFields", "creationTimestamp"] {
        metadata.remove(field);
    }
    // The revision stays: that one is kube-controller-manager's, and dropping it is a change.
    metadata["annotations"].as_object_mut().expect("annotations").remove("rollout-guard.io/admitted");
    for _ in 0..10 {
        s.kubectl(["replace", "-f", "-"]).input(sent.to_string()).succeeds();
    }
    let after = s.deployment("web");
    assert_eq!(after["metadata"]["generation"], before["metadata"]["generation"]);
    assert_eq!(after["metadata"]["annotations"]["rollout-guard.io/admitted"], "1");
    assert_eq!(image_of(&after), "localhost/sample:v2");
}

#[test]
fn a_mark_that_a_user_forges_is_put_right() {
    let s = Scenario::shared("forged");
    s.create_unobserved(&[deployment("web", |_| {})]);
    let generation = s.generation("web").to_string();
    // What the fallback would take for the webhook's word.
    s.rejects("web", |p| p.image("v3").annotation("rollout-guard.io/admitted", &generation).dry_run())
        .at_once("RG001");
    s.accepts("web", |change| change.annotation("rollout-guard.io/admitted", "999"));
    assert_eq!(s.deployment("web")["metadata"]["annotations"]["rollout-guard.io/admitted"], "1");
}
