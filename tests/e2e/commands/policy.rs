//! `rollout-guard policy test` over the audit log of the API server that all scenarios run against.
//!
//! The log holds the objects of Deployments called `audited`, and of no others: `tests/kind/audit-policy.yaml`.

use serde_json::{Value, json};

use crate::harness::{
    Run, Scenario,
    cluster::{audit_events, in_node},
    deployment, seconds,
};

/// The name of the Deployments whose objects are in the log.
const NAME: &str = "audited";

/// Judges the node's whole audit log by a policy for every namespace, and returns the rows of the scenario's.
fn tried(s: &Scenario, spec: &Value) -> Vec<Value> {
    let policy = json!({"kind": "RolloutPolicy", "metadata": {"name": "on-trial"}, "spec": spec});
    let file = std::env::temp_dir().join(format!("rollout-guard-e2e-{}.json", s.namespace));
    std::fs::write(&file, policy.to_string()).expect("written");
    let log = in_node(&["sh", "-c", "cat /var/log/kubernetes/audit*.log"]).succeeds();
    let run = Run::new(env!("CARGO_BIN_EXE_rollout-guard")).args([
        "policy",
        "test",
        "--history",
        "-",
        "-o",
        "json",
    ]);
    let out = run.arg("-f").arg(&file).input(log).limit(seconds(120)).succeeds();
    let _ = std::fs::remove_file(&file);
    let rows: Vec<Value> = out.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    s.say(&rows.last().expect("a summary").to_string());
    rows.into_iter().filter(|row| row["namespace"] == s.namespace.as_str()).collect()
}

fn verdicts(rows: &[Value]) -> Vec<(&str, &str)> {
    rows.iter()
        .map(|row| (row["verdict"].as_str().unwrap_or_default(), row["reason"].as_str().unwrap_or_default()))
        .collect()
}

#[test]
fn what_went_through_unguarded_would_have_been_refused() {
    let s = Scenario::shared("policy-test-open");
    let _policy = s.put_in_force("off", json!({"mode": "Off"}));
    s.create_unobserved(&[deployment(NAME, |_| {})]);
    s.accepts(NAME, |push| push.image("v3"));
    let rows = tried(&s, &json!({"admission": {"unobserved": "Deny"}}));
    assert_eq!(verdicts(&rows), [("allow", "none"), ("deny", "RG001")], "{rows:?}");
    assert_eq!(rows[1]["code"], 200, "it went through: {}", rows[1]);
    let message = rows[1]["message"].as_str().unwrap_or_default();
    assert!(message.contains("generation 2 is not observed"), "{message}");
    let rows = tried(&s, &json!({"mode": "Audit"}));
    assert_eq!(verdicts(&rows), [("allow", "none"), ("audit", "RG001")], "{rows:?}");
}

#[test]
fn the_verdict_over_the_log_is_the_one_that_the_webhook_gave() {
    let s = Scenario::shared("policy-test-kept");
    let spec = json!({"admission": {"unobserved": "Deny"}});
    let _policy = s.put_in_force("deny", spec.clone());
    s.create_unobserved(&[deployment(NAME, |_| {})]);
    s.rejects(NAME, |push| push.image("v3")).at_once("RG001");
    let rows = tried(&s, &spec);
    assert_eq!(verdicts(&rows), [("allow", "none"), ("deny", "RG001")], "{rows:?}");

    let refused =
        |event: &Value| event["responseStatus"]["code"] == 403 && event["objectRef"]["name"] == NAME;
    let event = audit_events(&s.namespace).into_iter().rfind(refused).expect("in the audit log");
    let said = |key: &str| &event["annotations"][format!("validate.rollout-guard.io/{key}")];
    let row = &rows[1];
    assert_eq!(
        (&row["verdict"], &row["reason"], &row["message"]),
        (said("verdict"), said("reason"), said("message"))
    );
    assert_eq!(row["guard"], json!({"verdict": "deny", "reason": "RG001"}));
    assert_eq!(row["code"], 403);
}
