//! Rollbacks are switched off while a bad push is under way.

use serde_json::{Value, json};

use super::without_settings;
use crate::harness::{
    Scenario,
    cluster::{audit_events, kubectl},
    deployment,
    record::short,
};

#[test]
fn fault_46_where_a_policy_switches_rollbacks_off_during_a_bad_push_the_deployment_is_not_written() {
    let s = Scenario::shared("switched-off");
    let mut policy = short();
    // Long enough to switch it off before that.
    policy["watch"]["earlyFailureAfter"] = json!("12s");
    let policy = s.put_in_force("short", policy);
    let switch = |mode: &str| {
        let change = json!({"spec": {"rollback": {"mode": mode}}}).to_string();
        kubectl(["patch", "rolloutpolicy", &policy.name, "--type=merge", "-p", &change]).succeeds();
        policy.settles();
    };
    s.create_good(&deployment("web", |_| {}));
    let pushed = s.pushes("web", &without_settings());
    let record = s.wait_for_record("the bad push is noticed", "web", |r| !r["status"]["cause"].is_null());
    switch("Off");
    assert!(record["status"]["rollback"].is_null(), "rolled back before it was switched off: {record}");
    let words = pushed.is_held("Configuration");
    assert!(words.contains("Off"), "{words}");
    let (by_the_guard, by_others) = written(&s.namespace);
    let is_the_push = |event: &&Value| {
        let agent = event["userAgent"].as_str().unwrap_or_default();
        event["verb"] == "patch" && agent.starts_with("kubectl")
    };
    assert_eq!(by_others.iter().filter(is_the_push).count(), 1, "the audit log has no push: {by_others:?}");
    assert!(by_the_guard.is_empty(), "{by_the_guard:?}");
    switch("Automatic");
    pushed.counted_from_now().is_safe("Configuration");
    let (by_the_guard, _) = written(&s.namespace);
    assert!(!by_the_guard.is_empty(), "rolled back, and the audit log does not tell by whom");
}

/// Returns what the audit log tells of writes of the Deployment `web`: those of the guard, and all others.
fn written(namespace: &str) -> (Vec<Value>, Vec<Value>) {
    let of_it = audit_events(namespace).into_iter().filter(|event| {
        let of = &event["objectRef"];
        let verb = event["verb"].as_str().unwrap_or_default();
        of["resource"] == "deployments"
            && of["namespace"] == namespace
            && of["name"] == "web"
            && !matches!(verb, "get" | "list" | "watch")
    });
    of_it.partition(|event| event["user"]["username"] == "system:serviceaccount:rollout-guard:rollout-guard")
}
