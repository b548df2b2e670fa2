//! Ways back that people and Helm take by themselves, over a rollout that has failed.

use serde_json::json;

use super::{appliers::Applier, by_deadline, missing_image, registry};
use crate::harness::{
    Scenario, deployment,
    policy::InForce,
    record::{same_template, short, verdict},
    scenario::condition,
    seconds,
    workload::image_of,
};

/// A policy that leaves rollbacks to people: else the guard would be first.
fn manual(s: &Scenario) -> InForce {
    let mut policy = short();
    policy["rollback"]["mode"] = json!("Manual");
    s.put_in_force("manual", policy)
}

#[test]
fn rollout_undo_of_a_failed_rollout_is_admitted() {
    let s = Scenario::shared("undo");
    let _policy = manual(&s);
    s.create_good(&deployment("web", |_| {}));
    s.accepts("web", |push| push.image("v2"));
    s.completes("web");
    s.becomes_good("web");
    s.wait_for_record("v2 is good", "web", |record| verdict(record) == "Good");
    let pushed = s.pushes("web", &by_deadline(missing_image(), 3));
    pushed.is_held("Image");
    s.wait_for("the progress deadline is over", "web", |d| {
        condition(d, "Progressing")["reason"] == "ProgressDeadlineExceeded"
    });
    // Anything new is refused, the way back is not.
    s.rejects("web", |push| push.image("v3")).at_once("RG002");
    s.kubectl(["rollout", "undo", "deployment/web"]).succeeds();
    s.recovers("web");
    let after = s.deployment("web");
    assert_eq!(image_of(&after), "localhost/sample:v2");
    assert!(same_template(&after, &pushed.good), "{after}");
}

#[test]
fn helms_own_rollback_of_a_failed_rollout_is_admitted() {
    let s = Scenario::shared("helm-rollback");
    let _policy = manual(&s);
    let helm = Applier::helm();
    helm.run(&s, &deployment("web", |_| {}), &[]).succeeds();
    s.completes("web");
    s.becomes_good("web");
    let good = s.deployment("web");
    let bad = deployment("web", |d| {
        d["spec"]["progressDeadlineSeconds"] = json!(4);
        d["spec"]["template"]["spec"]["containers"][0]["image"] = json!(registry::image("missing"));
    });
    let flags = ["--wait", "--rollback-on-failure", "--timeout=40s"];
    let done = helm.run(&s, &bad, &flags).limit(seconds(120)).done();
    s.say(&format!("helm failed and rolled back after {:.1} s", done.took.as_secs_f64()));
    let words = done.fails();
    assert!(!words.contains("RG0"), "its way back was refused: {words}");
    s.recovers("web");
    let after = s.deployment("web");
    assert!(same_template(&after, &good), "{words}\n{after}");
    // Helm may still call its way back failed: for a moment the condition of the passed deadline is inherited.
    let history = Applier::history(&s);
    assert!(history.lines().any(|line| line.starts_with('3')), "Helm has not rolled back: {history}");
}
