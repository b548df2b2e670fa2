//! Rollbacks are switched off while a bad push is under way.

use serde_json::json;

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
    let by_the_guard = audit_events(&s.namespace).into_iter().filter(|event| {
        let verb = event["verb"].as_str().unwrap_or_default();
        let writes = !matches!(verb, "get" | "list" | "watch");
        event["user"]["username"] == "system:serviceaccount:rollout-guard:rollout-guard"
            && event["objectRef"]["resource"] == "deployments"
            && writes
    });
    let written: Vec<_> = by_the_guard.collect();
    assert!(written.is_empty(), "{written:?}");
    switch("Automatic");
    pushed.counted_from_now().is_safe("Configuration");
}
