//! Enforce is everywhere else; here are Warn, Audit and Off.

use serde_json::{Value, json};

use crate::harness::{Scenario, cluster, deployment, installation};

fn labelled(mode: &str) -> Value {
    deployment(mode, |d| d["metadata"]["labels"]["mode"] = json!(mode))
}

#[test]
fn warn_prints_audit_only_writes_down_and_off_does_nothing() {
    let s = Scenario::shared("modes");
    s.create_unobserved(&[labelled("warn"), labelled("audit"), labelled("off")]);
    let in_force = |mode: &str, word: &str| {
        let selector = json!({"matchLabels": {"mode": mode}});
        s.put_in_force(mode, json!({"mode": word, "selector": selector}))
    };
    let _policies = [in_force("warn", "Warn"), in_force("audit", "Audit"), in_force("off", "Off")];

    let warned = s.accepts("warn", |push| push.image("v3"));
    assert!(warned.stderr.contains("Warning: RG001 "), "{}", warned.report());
    assert!(warned.stderr.contains("Warning: Fix: "), "{}", warned.report());

    let counted = || {
        let labels = [r#"verdict="audit""#, r#"reason="RG001""#, r#"mode="audit""#];
        installation::metric("rollout_guard_admission_decisions_total", &labels)
    };
    let before = counted();
    let audited = s.accepts("audit", |push| push.image("v3"));
    assert_eq!(audited.stderr, "", "Audit is silent");
    assert!(counted() > before, "not counted");
    assert_eq!(annotation_of_last(&s, "audit", "verdict"), "audit");
    assert_eq!(annotation_of_last(&s, "audit", "mode"), "audit");
    assert_eq!(annotation_of_last(&s, "audit", "reason"), "RG001");
    assert!(annotation_of_last(&s, "audit", "message").starts_with("RG001 "));
    assert_eq!(annotation_of_last(&s, "warn", "verdict"), "warn");

    let off = s.accepts("off", |push| push.image("v3"));
    assert_eq!(off.stderr, "", "Off is silent");
    assert_eq!(annotation_of_last(&s, "off", "verdict"), "");
    let mark = &s.deployment("off")["metadata"]["annotations"]["rollout-guard.io/admitted"];
    assert_eq!(mark, "1", "Off leaves the mark of the push before as it is");
}

#[test]
fn a_refusal_is_in_the_api_servers_audit_log() {
    let s = Scenario::shared("audit-log");
    s.create_unobserved(&[deployment("web", |_| {})]);
    let _policy = s.put_in_force("deny", json!({"admission": {"unobserved": "Deny"}}));
    s.rejects("web", |push| push.image("v3")).at_once("RG001");
    assert_eq!(annotation_of_last(&s, "web", "verdict"), "deny");
    assert_eq!(annotation_of_last(&s, "web", "reason"), "RG001");
    // The guard's own requests are in there, too.
    let of_it = |event: &Value| {
        event["objectRef"]["resource"] == "deployments" && event["user"]["username"] == "kubernetes-admin"
    };
    let last = cluster::audit_events(&s.namespace).into_iter().rfind(of_it).unwrap_or_default();
    assert_eq!(last["responseStatus"]["code"], 403, "{last}");
}

/// Returns an audit annotation of the guard on the last change of a Deployment; empty where there is none.
fn annotation_of_last(s: &Scenario, name: &str, key: &str) -> String {
    let events = cluster::audit_events(&s.namespace);
    let of_it = |event: &&Value| event["objectRef"]["name"] == name && event["verb"] == "patch";
    // The controllers' own writes are of the status.
    let by_us = |event: &&Value| event["objectRef"]["subresource"].is_null();
    let event = events.iter().filter(of_it).rfind(by_us).cloned().unwrap_or_default();
    let key = format!("validate.rollout-guard.io/{key}");
    event["annotations"][key].as_str().unwrap_or_default().to_owned()
}
