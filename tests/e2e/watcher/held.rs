//! What is not rolled back, and said instead.

use serde_json::json;

use super::{
    by_deadline, container, missing_image,
    registry::{self, Registry},
    without_settings,
};
use crate::harness::{
    Run, Scenario,
    cluster::json,
    deployment,
    metrics::of_the_leader,
    policy::InForce,
    record::{Pushed, is_announced, short},
    scenario::condition,
    seconds,
    wait::holds,
    wait_until,
};

#[test]
fn fault_38_a_registry_that_fails_is_no_reason_to_roll_back() {
    let s = Scenario::shared("registry-fails");
    let _policy = s.short_policy();
    s.create_good(&deployment("web", |_| {}));
    let pushed = s.pushes("web", &container(json!({"image": registry::image("broken")})));
    let words = pushed.is_held("Registry");
    assert!(words.contains("the registry answers with a server error"), "{words}");
    assert!(words.contains("the policy does not roll back for Registry"), "{words}");
    let cause = &s.record("web")["status"]["cause"];
    assert!(cause["evidence"].to_string().contains("503"), "{cause}");
}

/// The same image from the same registry: while it is stopped nobody can know that the image is not there.
#[test]
fn fault_38_a_registry_that_is_stopped_is_no_reason_to_roll_back_and_what_it_says_when_it_is_back_is_one() {
    let s = Scenario::shared("registry-stopped");
    let _policy = s.short_policy();
    let registry = Registry::start(&s);
    s.create_good(&deployment("web", |_| {}));
    registry.stop();
    let pushed = s.pushes("web", &container(json!({"image": registry.missing()}))).within(seconds(120));
    pushed.is_held("Registry");
    assert!(s.record("web")["status"]["cause"].to_string().contains("connection refused"));
    registry.start_again();
    // The kubelet asks again when its back-off is over.
    pushed.counted_from_now().is_safe("Image");
}

#[test]
fn fault_39_a_pod_that_fits_no_node_is_held() {
    let s = Scenario::shared("unschedulable");
    let _policy = s.short_policy();
    s.create_good(&deployment("web", |_| {}));
    let nowhere = json!({"spec": {"template": {"spec": {"nodeSelector": {"nobody": "has-this"}}}}});
    let words = s.pushes("web", &by_deadline(nowhere, 3)).is_held("Capacity");
    assert!(words.contains("node affinity/selector"), "{words}");
    assert!(words.contains("the policy does not roll back for Capacity"), "{words}");
}

#[test]
fn fault_39_a_quota_on_pods_is_held() {
    let s = Scenario::shared("pod-quota");
    let _policy = s.short_policy();
    s.create_good(&deployment("web", |_| {}));
    s.kubectl(["create", "quota", "pods", "--hard=pods=1"]).succeeds();
    wait_until("the quota counts", seconds(30), || {
        let quota = s.json(["get", "quota", "pods"]);
        holds(quota["status"]["used"]["pods"] == "1", quota["status"].to_string())
    });
    let more = by_deadline(container(json!({"image": "localhost/sample:v2"})), 3);
    s.pushes("web", &more).is_held("Capacity");
    assert!(s.record("web")["status"]["cause"].to_string().contains("exceeded quota"));
}

#[test]
fn fault_41_the_only_revision_is_held() {
    let s = Scenario::shared("only-revision");
    let _policy = s.short_policy();
    let image = registry::image("missing");
    let pushed = Pushed::first(&s, "web");
    s.create(&deployment("web", |d| {
        d["spec"]["template"]["spec"]["containers"][0]["image"] = json!(image);
    }));
    let words = pushed.is_held("Image");
    assert!(words.contains("no good revision"), "{words}");
    assert_eq!(s.generation("web"), 1);
}

/// The old ReplicaSet goes as soon as the new one is complete. It is so twice for two seconds, as the first restart
/// comes at once, and would be good only after eight.
#[test]
fn fault_41_without_a_history_a_late_failure_is_held() {
    let s = Scenario::shared("no-history");
    let mut policy = short();
    policy["watch"]["goodAfter"] = json!("8s");
    policy["defaults"] = json!({"minRevisionHistoryLimit": null});
    let _policy = s.put_in_force("short", policy);
    s.create_complete(&deployment("web", |d| d["spec"]["revisionHistoryLimit"] = json!(0)));
    s.is_complete_for("web", seconds(10));
    let pushed = s.pushes("web", &container(json!({"args": ["crash", "2"]})));
    wait_until("the old ReplicaSet is gone", seconds(30), || {
        let sets = s.json(["get", "replicasets"]);
        let images = sets["items"].as_array().map_or(0, Vec::len);
        holds(images == 1 && sets.to_string().contains("crash"), sets.to_string())
    });
    let words = pushed.is_held("Application");
    assert!(words.contains("no good revision"), "{words}");
    assert_eq!(s.deployment("web")["spec"]["revisionHistoryLimit"], 0);
}

/// The other Deployment has the same trouble at the same time, and is the clock of this scenario.
#[test]
fn fault_44_while_a_deployment_is_paused_it_is_left_alone() {
    let s = Scenario::shared("paused");
    let mut policy = short();
    // Long enough to pause before it.
    policy["watch"]["earlyFailureAfter"] = json!("4s");
    let _policy = s.put_in_force("short", policy);
    s.create_complete(&deployment("other", |_| {}));
    s.create_good(&deployment("web", |_| {}));
    let pushed = s.pushes("web", &without_settings());
    s.kubectl(["rollout", "pause", "deployment/web"]).succeeds();
    let other = s.pushes("other", &without_settings());
    other.is_safe("Configuration");
    let record = s.wait_for_record("it is paused", "web", |r| r["status"]["phase"] == "Paused");
    let deployment = s.deployment("web");
    assert_eq!(deployment["spec"]["paused"], true);
    assert!(record["status"]["rollback"].is_null(), "{record}");
    assert!(deployment["spec"]["template"] != pushed.good["spec"]["template"], "put back: {deployment}");
    assert!(!is_announced(&deployment), "{}", deployment["status"]);
    assert!(s.events("web", "RolledBack").is_empty(), "told of a rollback");
    s.kubectl(["rollout", "resume", "deployment/web"]).succeeds();
    pushed.counted_from_now().is_safe("Configuration");
}

#[test]
fn in_manual_mode_the_command_is_said_and_works() {
    let s = Scenario::shared("manual");
    let mut policy = short();
    policy["rollback"]["mode"] = json!("Manual");
    let policy = s.put_in_force("manual", policy);
    s.create_good(&deployment("web", |_| {}));
    let pushed = s.pushes("web", &missing_image());
    let words = pushed.is_held("Image");
    are_stuck(1, &policy, "Image");
    let record = s.record("web");
    let told = condition(&record, "RolledBack");
    assert_eq!((&told["status"], &told["reason"]), (&json!("False"), &json!("Manual")), "{record}");
    let message = told["message"].as_str().unwrap_or_default();
    let (_, command) = message
        .split_once("kubectl rollout-guard ")
        .unwrap_or_else(|| panic!("no command: {message}; {words}"));
    Run::new(env!("CARGO_BIN_EXE_rollout-guard")).args(command.split_whitespace()).arg("--yes").succeeds();
    s.completes("web");
    are_stuck(0, &policy, "Image");
    assert_eq!(s.deployment("web")["spec"]["template"], pushed.good["spec"]["template"]);
    // It was a person's rollback: nothing is Bad.
    assert!(!s.record("web").to_string().contains("\"Bad\""), "{}", s.record("web"));
}

/// Waits until the leader's metrics and the policy's status say so.
fn are_stuck(count: u32, policy: &InForce, cause: &str) {
    let wanted = f64::from(count);
    wait_until(&format!("{count} of {} are told to be stuck", policy.name), seconds(20), || {
        let counted = of_the_leader()?;
        let series = format!("rollout_guard_policy_stuck_deployments{{policy=\"{}\"}}", policy.name);
        let of_the_policy = counted.value(&series);
        // Scenarios that run beside have policies of their own, but the same causes.
        let of_the_cause = counted.value(&format!("rollout_guard_stuck_deployments{{cause=\"{cause}\"}}"));
        let status = json(["get", "rolloutpolicy", &policy.name])?["status"].clone();
        let told = of_the_policy == wanted && of_the_cause >= wanted && status["stuck"] == count;
        holds(told, format!("policy {of_the_policy}, cause {of_the_cause}, status {status}"))
    });
}

/// The other Deployment has the same trouble at the same time, and is the clock of this scenario.
#[test]
fn fault_46_where_rollbacks_are_off_the_deployment_is_not_written() {
    let s = Scenario::shared("off");
    let mut on = short();
    on["selector"] = json!({"matchLabels": {"app": "other"}});
    let mut off = short();
    off["selector"] = json!({"matchLabels": {"app": "web"}});
    off["rollback"]["mode"] = json!("Off");
    let _policies = [s.put_in_force("on", on), s.put_in_force("off", off)];
    s.create_complete(&deployment("other", |_| {}));
    s.create_good(&deployment("web", |_| {}));
    let pushed = s.pushes("web", &without_settings());
    s.pushes("other", &without_settings()).is_safe("Configuration");
    pushed.is_untouched(&s.record("web"));
    assert!(s.events("web", "RollbackVerified").is_empty(), "told of a rollback");
}
