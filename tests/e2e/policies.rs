//! RolloutPolicy as people meet it.

use serde_json::{Value, json};

use crate::harness::{
    Scenario,
    cluster::{json as get, kubectl},
    deployment, installation,
    policy::settled,
    scenario::condition,
    seconds,
    wait::holds,
    wait_until,
};

#[test]
fn explain_and_get_tell_what_a_policy_is() {
    let s = Scenario::shared("explain");
    let mode = kubectl(["explain", "rolloutpolicy.spec.mode"]).succeeds();
    assert!(mode.contains("Enforce refuses") && mode.contains("ENUM") || mode.contains("enum"), "{mode}");
    let freezes = kubectl(["explain", "rpol.spec.freezes.schedule"]).succeeds();
    assert!(freezes.contains("cron expression of five fields"), "{freezes}");
    let narrow = kubectl(["get", "rpol"]).succeeds();
    for column in ["NAME", "MODE", "PRIORITY", "GUARDED", "READY", "AGE"] {
        assert!(narrow.contains(column), "no column {column}: {narrow}");
    }
    let wide = kubectl(["get", "rollout-guard", "-o", "wide"]).succeeds();
    assert!(wide.contains("REASON") && wide.contains("FALLBACK") && wide.contains("default"), "{wide}");
    s.say("explain, columns, short name and category are there");
}

#[test]
fn the_status_counts_the_deployments_that_a_policy_guards() {
    let s = Scenario::shared("guarded");
    let policy = s.put_in_force("count", json!({"selector": {"matchLabels": {"tier": "web"}}}));
    let tier = |name: &str, tier: &str| deployment(name, |d| d["metadata"]["labels"]["tier"] = json!(tier));
    s.create(&tier("one", "web"));
    s.create(&tier("two", "web"));
    s.create(&tier("three", "db"));
    let counts = |expected: i64| {
        wait_until("status.guarded", seconds(20), || {
            let policy = get(["get", "rolloutpolicy", &policy.name])?;
            holds(policy["status"]["guarded"] == expected, policy["status"].to_string())
        });
    };
    counts(2);
    s.kubectl(["delete", "deployment", "one", "--wait=false"]).succeeds();
    counts(1);
}

#[test]
fn a_schedule_that_cannot_be_read_is_told_and_the_last_valid_spec_stays_in_force() {
    let s = Scenario::shared("invalid");
    s.create_complete(&deployment("web", |_| {}));
    let freeze = |schedule: &str| json!([{"name": "now", "schedule": schedule, "duration": "1h"}]);
    let policy = s.put_in_force("freeze", json!({"freezes": freeze("* * * * *")}));
    let patch = json!({"spec": {"freezes": freeze("every now and then")}});
    kubectl(["patch", "rolloutpolicy", &policy.name, "--type=merge", "-p", &patch.to_string()]).succeeds();
    let stored = settled(&policy.name);
    let ready = condition(&stored, "Ready");
    assert_eq!((&ready["status"], &ready["reason"]), (&json!("False"), &json!("InvalidSchedule")), "{ready}");
    assert!(ready["message"].as_str().is_some_and(|m| m.contains("generation 1 stays in force")), "{ready}");
    wait_until("every replica says that it is not valid", seconds(20), || {
        let label = format!("policy=\"{}\"", policy.name);
        let valid = installation::metric("rollout_guard_policy_valid", &[&label]);
        holds(valid == 0.0, format!("policy_valid is {valid}"))
    });
    s.rejects("web", |push| push.image("v2")).at_once("RG005");

    let patch = json!({"spec": {"freezes": []}});
    kubectl(["patch", "rolloutpolicy", &policy.name, "--type=merge", "-p", &patch.to_string()]).succeeds();
    assert_eq!(condition(&settled(&policy.name), "Ready")["status"], "True");
    wait_until("every replica says that it is valid", seconds(20), || {
        let label = format!("policy=\"{}\"", policy.name);
        let valid = installation::metric("rollout_guard_policy_valid", &[&label]);
        holds(valid >= 2.0, format!("policy_valid is {valid}"))
    });
    s.accepts("web", |push| push.image("v2"));
}

#[test]
fn the_crd_refuses_what_makes_no_sense_and_says_why() {
    let s = Scenario::shared("crd");
    let refuses = |spec: Value, why: &str| {
        let policy = s.policy("bad", spec);
        let words =
            kubectl(["create", "--dry-run=server", "-f", "-"]).input(policy.to_string()).done().fails();
        assert!(words.contains(why), "not {why:?}: {words}");
    };
    let freeze =
        |name: &str, duration: &str| json!({"name": name, "schedule": "0 0 * * *", "duration": duration});
    refuses(json!({"freezes": [freeze("one", "-1h")]}), "duration");
    refuses(json!({"freezes": [freeze("one", "0s")]}), "duration must be longer than zero");
    refuses(
        json!({"freezes": [freeze("one", "1h"), freeze("one", "2h")]}),
        "freezes must have names that differ",
    );
    refuses(json!({"freezes": [freeze("One", "1h")]}), "name must consist of lower case letters");
    refuses(json!({"watch": {"goodAfter": "-30s"}}), "goodAfter");
    refuses(json!({"mode": "Sometimes"}), "supported values");
    refuses(json!({"admission": {"unobserved": "Queue"}}), "supported values");
    refuses(json!({"admission": {"maxWaitSeconds": 0}}), "maxWaitSeconds");
    refuses(json!({"modus": "Warn"}), "unknown field");
}
