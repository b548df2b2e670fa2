//! Pushes over a Deployment that is well, and dry runs.

use serde_json::json;

use crate::harness::{
    Scenario, deployment,
    scenario::{condition, is_unobserved},
    workload::image_of,
};

#[test]
fn a_push_over_a_complete_generation_goes_through_and_is_marked() {
    let s = Scenario::shared("healthy");
    s.create_complete(&deployment("web", |d| d["spec"]["replicas"] = json!(2)));
    let before = s.generation("web");
    let done = s.accepts("web", |push| push.image("v2"));
    s.completes("web");
    let after = s.deployment("web");
    assert_eq!(image_of(&after), "localhost/sample:v2");
    assert_eq!(after["metadata"]["generation"], before + 1);
    assert_eq!(after["metadata"]["annotations"]["rollout-guard.io/admitted"], before.to_string());
    assert!(!is_unobserved(&after) && condition(&after, "Available")["status"] == "True");
    assert_eq!(done.stderr, "", "nothing is said about a push that is fine");
}

#[test]
fn two_pushes_within_the_same_second_both_arrive() {
    let s = Scenario::shared("two-pushes");
    s.create_complete(&deployment("web", |_| {}));
    let (one, other) = std::thread::scope(|scope| {
        let one = scope.spawn(|| s.push("web", |push| push.template_annotation("one", "1")));
        let other = scope.spawn(|| s.push("web", |push| push.template_annotation("other", "2")));
        (one.join().expect("thread"), other.join().expect("thread"))
    });
    let longest = one.took.max(other.took);
    one.succeeds();
    other.succeeds();
    s.say(&format!("the later one took {:.1} s", longest.as_secs_f64()));
    assert!(longest.as_secs() < 15, "{longest:?}");
    s.completes("web");
    let stored = s.deployment("web");
    let annotations = &stored["spec"]["template"]["metadata"]["annotations"];
    assert_eq!((&annotations["one"], &annotations["other"]), (&json!("1"), &json!("2")));
}

#[test]
fn fault_53_a_dry_run_over_an_unobserved_generation_is_refused_at_once_and_writes_nothing() {
    let s = Scenario::shared("dry-run");
    s.create_unobserved(&[deployment("web", |_| {})]);
    s.rejects("web", |push| push.image("v3").dry_run()).at_once("RG001");

    // kustomize-controller asks like this before each write.
    let manifest = deployment("web", |d| {
        d["spec"]["template"]["spec"]["containers"][0]["image"] = json!("localhost/sample:v3");
    });
    let generation = s.generation("web");
    let flux = |manifest: &serde_json::Value| {
        s.kubectl(["apply", "--server-side", "--force-conflicts", "--field-manager=kustomize-controller"])
            .args(["--dry-run=server", "-f", "-"])
            .input(manifest.to_string())
            .done()
    };
    let refused = flux(&manifest);
    assert!(refused.took.as_secs() < 5, "{}", refused.report());
    let words = refused.fails();
    assert!(words.contains("(Forbidden)") && words.contains("RG001") && words.contains("Fix:"), "{words}");
    assert_eq!(s.generation("web"), generation);
    let managers = s.deployment("web")["metadata"]["managedFields"].to_string();
    assert!(!managers.contains("kustomize-controller"), "a dry run left its mark: {managers}");
    // What is there already may be asked for, unobserved or not.
    let same = deployment("web", |d| {
        d["spec"]["template"]["spec"]["containers"][0]["image"] = json!("localhost/sample:v2");
    });
    flux(&same).succeeds();
}

#[test]
fn a_dry_run_over_a_complete_generation_passes_and_writes_nothing() {
    let s = Scenario::shared("dry-run-healthy");
    s.create_complete(&deployment("web", |_| {}));
    let before = s.deployment("web");
    s.accepts("web", |push| push.image("v2").dry_run());
    let after = s.deployment("web");
    assert_eq!(before["metadata"]["resourceVersion"], after["metadata"]["resourceVersion"]);
    assert_eq!(image_of(&after), "localhost/sample:v1");
}

#[test]
fn what_does_not_start_a_rollout_passes_over_an_unobserved_generation() {
    let s = Scenario::shared("no-rollout");
    s.create_unobserved(&[deployment("web", |_| {})]);
    s.accepts("web", |change| change.spec("replicas", json!(2)));
    s.kubectl(["scale", "deployment/web", "--replicas=1"]).succeeds();
    s.accepts("web", |change| change.annotation("note", "seen"));
    s.kubectl(["label", "deployment/web", "seen=yes"]).succeeds();
    // Not to Recreate: kube-controller-manager then takes the old pods away and calls the generation observed.
    s.accepts("web", |change| change.spec("strategy", json!({"rollingUpdate": {"maxSurge": 2}})));
    // A paused one may be edited: nothing starts. That it is resumed later is the user's word.
    s.kubectl(["rollout", "pause", "deployment/web"]).succeeds();
    s.accepts("web", |change| change.image("v3"));
    s.kubectl(["rollout", "resume", "deployment/web"]).succeeds();
    s.rejects("web", |change| change.image("v1").dry_run()).at_once("RG001");
    // Deleting is never judged.
    s.kubectl(["delete", "deployment/web", "--wait=false"]).succeeds();
}
