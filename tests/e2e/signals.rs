//! What the guard tells: logs and metrics.

use serde_json::{Value, json};

use crate::harness::{Scenario, deployment, installation, seconds, wait::holds, wait_until};

#[test]
fn each_decision_is_one_json_line_in_the_log() {
    let s = Scenario::shared("log");
    s.create_unobserved(&[deployment("web", |_| {})]);
    let _policy = s.put_in_force("deny", json!({"admission": {"unobserved": "Deny"}}));
    let user = s.editor("pusher");
    s.rejects("web", |push| push.image("v3").by(&user)).at_once("RG001");
    let line = wait_until("the decision is in the log", seconds(10), || {
        let log = installation::logs(400);
        let decisions = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let mut ours = decisions.filter(|d| d["namespace"] == s.namespace.as_str() && d["verdict"] == "deny");
        ours.next().ok_or(log)
    });
    for field in ["uid", "namespace", "name", "user", "verdict", "reason", "latency_us"] {
        assert!(!line[field].is_null(), "no {field}: {line}");
    }
    assert_eq!((&line["name"], &line["user"]), (&json!("web"), &json!(user)));
    assert_eq!((&line["reason"], &line["message"]), (&json!("RG001"), &json!("decision")));
    assert!(line["uid"].as_str().is_some_and(|uid| uid.len() == 36), "{line}");
    assert!(line["latency_us"].as_u64().is_some_and(|us| us < 1_000_000), "{line}");
}

#[test]
fn every_replica_has_metrics() {
    let s = Scenario::shared("metrics");
    s.create_complete(&deployment("web", |_| {}));
    let counted = || installation::metric("rollout_guard_admission_decisions_total", &[r#"verdict="allow""#]);
    let before = counted();
    s.accepts("web", |push| push.image("v2"));
    assert!(counted() > before, "an admitted push is not counted");
    for pod in installation::ready_pods().expect("pods") {
        let text = installation::metrics_of(&pod).expect("metrics");
        for name in [
            "rollout_guard_build_info",
            "rollout_guard_admission_in_flight",
            "rollout_guard_policy_valid{policy=\"default\"} 1",
            "rollout_guard_policy_fallback_ready{policy=\"default\"} 1",
            "rollout_guard_certificate_expiry_timestamp_seconds",
        ] {
            assert!(text.contains(name), "{pod} has no {name}: {text}");
        }
        let ends = text.lines().find_map(|line| {
            let value = line.strip_prefix("rollout_guard_certificate_expiry_timestamp_seconds ")?;
            value.parse::<f64>().ok()
        });
        assert!(ends.is_some_and(|ends| ends > 1.7e9), "the certificate ends {ends:?}: {text}");
    }
}

/// The image is FROM scratch and its binary static, so names are resolved by what glibc has built in, with
/// nothing but the pod's /etc/resolv.conf. The guard itself goes by the address that Kubernetes puts into the
/// environment; a pod that is given a name there instead has only this name to go by, so an answer of the API
/// server (that it has no rights) shows that the cluster's DNS was asked and understood.
#[test]
fn names_are_resolved_in_the_empty_image() {
    let s = Scenario::shared("names");
    let container = json!({
        "name": "guard", "image": installation::image(), "imagePullPolicy": "IfNotPresent",
        "args": ["webhook", "--namespace", s.namespace],
        "env": [{"name": "KUBERNETES_SERVICE_HOST", "value": "kubernetes.default.svc"}],
    });
    s.create(&json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "guard"},
        "spec": {"terminationGracePeriodSeconds": 0, "enableServiceLinks": false, "containers": [container]},
    }));
    wait_until("the API server has answered", seconds(60), || {
        let log = s.kubectl(["logs", "guard"]).done().words();
        holds(log.contains("is forbidden: User \\\"system:serviceaccount:"), log)
    });
}
