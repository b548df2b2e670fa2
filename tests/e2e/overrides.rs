//! One-shot permission by a person who may.

use serde_json::json;

use crate::harness::{
    Scenario, cluster,
    cluster::{kubectl, unique},
    deployment, installation, restore, seconds,
    wait::holds,
    wait_until,
    workload::image_of,
};

/// Gives a user the right to override every policy, until the returned value is dropped.
pub fn may_override(user: &str) -> impl Drop + use<> {
    let binding = format!("e2e-override-{}", unique());
    let flag = format!("--user={user}");
    kubectl(["create", "clusterrolebinding", &binding, "--clusterrole=rollout-guard-override", &flag])
        .succeeds();
    let asked = ["auth", "can-i", "override", "rolloutpolicies.rollout-guard.io", "--as", user];
    let unbind = restore("unbind", move || {
        kubectl(["delete", "clusterrolebinding", &binding]).done();
    });
    wait_until("the right to override", seconds(10), || {
        let asked = kubectl(asked).done();
        holds(asked.ok(), asked.report())
    });
    unbind
}

#[test]
fn an_override_takes_the_right_and_a_reason_and_counts_once() {
    let s = Scenario::shared("override");
    s.create_unobserved(&[deployment("web", |_| {})]);
    let policy = s.put_in_force("deny", json!({"admission": {"unobserved": "Deny"}}));
    let (chief, clerk) = (s.editor("chief"), s.editor("clerk"));
    let _right = may_override(&chief);

    let without =
        s.rejects("web", |p| p.image("v3").override_because("I want to").by(&clerk)).at_once("RG001");
    let refused = format!("Override refused: user {clerk} may not override rolloutpolicies/{}", policy.name);
    assert!(without.text.contains(&refused), "{}", without.text);

    let empty = s.rejects("web", |p| p.image("v3").override_because("").by(&chief)).at_once("RG001");
    assert!(empty.text.contains("Override refused: the annotation holds no reason"), "{}", empty.text);
    s.rejects("web", |p| p.image("v3").override_because("   ").by(&chief)).at_once("RG001");

    let granted = installation::metric("rollout_guard_overrides_total", &[r#"outcome="granted""#]);
    s.accepts("web", |p| p.image("v3").override_because("incident 42").by(&chief));
    assert_eq!(image_of(&s.deployment("web")), "localhost/sample:v3");
    let now = installation::metric("rollout_guard_overrides_total", &[r#"outcome="granted""#]);
    assert!(now > granted, "not counted");
    let events = cluster::audit_events(&s.namespace);
    let audited = events.iter().any(|event| {
        event["annotations"]["validate.rollout-guard.io/override"] == "incident 42"
            && event["annotations"]["validate.rollout-guard.io/override-by"] == chief.as_str()
    });
    assert!(audited, "not in the audit log");

    // The annotation still stands there: it is spent.
    s.rejects("web", |p| p.image("v1").by(&chief)).at_once("RG001");
    s.rejects("web", |p| p.image("v1").override_because("incident 42").by(&chief)).at_once("RG001");
    s.accepts("web", |p| p.image("v1").override_because("incident 43").by(&chief));
}

#[test]
fn an_override_ends_the_queueing_at_once() {
    let s = Scenario::shared("override-wait");
    s.create_unobserved(&[deployment("web", |_| {})]);
    let chief = s.editor("chief");
    let _right = may_override(&chief);
    // Under the default policy the same push would queue for a minute.
    s.accepts("web", |p| p.image("v3").override_because("incident 42").by(&chief));
}
