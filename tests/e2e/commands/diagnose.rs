//! `diagnose`: real trouble, its cause and the next command, without a guard that acts.

use serde_json::{Value, json};

use super::{
    Account, guard,
    wait::{missing_image, off},
};
use crate::{
    harness::{
        Scenario, deployment, record::is_complete, scenario::is_unobserved, seconds, wait::holds, wait_until,
    },
    watcher::{container, without_settings},
};

fn diagnosis(s: &Scenario, name: &str) -> Value {
    let text = guard(s, ["diagnose", name, "-o", "json"]).succeeds();
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// Waits until the diagnosis names the cause, and returns it.
fn names(s: &Scenario, name: &str, cause: &str) -> Value {
    wait_until(&format!("the cause {cause} is found"), seconds(60), || {
        let found = diagnosis(s, name);
        holds(found["cause"]["type"] == cause, found["cause"].to_string()).map(|()| found)
    })
}

fn next(diagnosis: &Value) -> &str {
    diagnosis["next"]["command"].as_str().unwrap_or_default()
}

/// The page as a person sees it.
fn page(s: &Scenario, name: &str) -> String {
    let page = guard(s, ["diagnose", name]).succeeds();
    s.say(&page);
    page
}

#[test]
fn a_missing_image_is_named_and_the_way_back_is_proposed() {
    let s = Scenario::shared("diagnose-image");
    let _policy = off(&s);
    s.create_complete(&deployment("web", |_| {}));
    s.patch("web", &missing_image()).succeeds();
    let found = names(&s, "web", "Image");
    assert_eq!(next(&found), format!("rollout-guard undo web -n {}", s.namespace));
    assert_eq!(found["guard"]["mode"], "Off", "{}", found["guard"]);
    let page = page(&s, "web");
    assert!(page.contains("Cause: Image") && page.contains("not found"), "{page}");
}

#[test]
fn a_quota_on_replica_sets_is_named_and_shown_by_the_next_command() {
    let s = Scenario::shared("diagnose-quota");
    let _policy = off(&s);
    s.create_unobserved(&[deployment("web", |_| {})]);
    let found = names(&s, "web", "ReplicaSetCreate");
    assert_eq!(found["generations"]["lag"], 1, "{}", found["generations"]);
    assert_eq!(found["generations"]["controllerManager"]["state"], "alive", "{}", found["generations"]);
    assert_eq!(next(&found), format!("kubectl -n {} describe quota replicasets", s.namespace));
    // The command is one to be pasted: so it is.
    let told = s.kubectl(["describe", "quota", "replicasets"]).succeeds();
    assert!(told.contains("count/replicasets.apps"), "{told}");
    let page = page(&s, "web");
    assert!(page.contains("1 behind") && page.contains("quota replicasets"), "{page}");
    assert!(is_unobserved(&s.deployment("web")), "nothing was written");
}

#[test]
fn a_crash_loop_shows_its_exit_code_and_its_last_words() {
    let s = Scenario::shared("diagnose-crash");
    let _policy = off(&s);
    s.create_complete(&deployment("web", |d| d["spec"]["minReadySeconds"] = json!(5)));
    s.patch("web", &container(json!({"args": ["exit", "3"]}))).succeeds();
    names(&s, "web", "Application");
    // Between two runs there is a moment when the node has the log of neither.
    wait_until("its last words", seconds(30), || {
        let page = page(&s, "web");
        let told = page.contains("exit code 3") && page.contains("ending with status 3 on purpose");
        if told { Ok(()) } else { Err(page) }
    });
    let silent = guard(&s, ["diagnose", "web", "--logs=false"]).succeeds();
    assert!(!silent.contains("on purpose"), "{silent}");
}

#[test]
fn a_missing_configmap_is_to_be_created_and_then_it_is_well() {
    let s = Scenario::shared("diagnose-configmap");
    let _policy = off(&s);
    s.create_complete(&deployment("web", |_| {}));
    s.patch("web", &without_settings()).succeeds();
    let found = names(&s, "web", "Configuration");
    let create = format!("kubectl -n {} create configmap settings --from-literal=KEY=VALUE", s.namespace);
    assert_eq!(next(&found), create);
    s.kubectl(["create", "configmap", "settings", "--from-literal=KEY=VALUE"]).succeeds();
    s.wait_for("it is complete", "web", is_complete);
    let found = diagnosis(&s, "web");
    assert_eq!((&found["status"]["phase"], &found["next"]["command"]), (&json!("Complete"), &Value::Null));
}

#[test]
fn pods_that_no_node_takes_are_said_to_be_so() {
    let s = Scenario::shared("diagnose-unschedulable");
    let _policy = off(&s);
    s.create_complete(&deployment("web", |_| {}));
    let nowhere = json!({"spec": {"template": {"spec": {"nodeSelector": {"example.com/disk": "fast"}}}}});
    s.patch("web", &nowhere).succeeds();
    let found = names(&s, "web", "Capacity");
    assert!(next(&found).contains("describe pod web-"), "{}", found["next"]);
    let page = page(&s, "web");
    assert!(page.contains("cannot be scheduled"), "{page}");
}

#[test]
fn an_account_that_may_read_deployments_alone_is_told_what_is_hidden() {
    let s = Scenario::shared("diagnose-some-rights");
    s.create_complete(&deployment("web", |_| {}));
    let rules = json!([{"apiGroups": ["apps"], "resources": ["deployments"], "verbs": ["get", "list"]}]);
    let reader = Account::with_rules(&s, "reader", &rules);
    let page = reader.guard(&s, ["diagnose", "web"]).succeeds();
    s.say(&page);
    for hidden in ["may not list nodes", "may not list replicasets", "may not list events", "Not shown"] {
        assert!(page.contains(hidden), "{hidden:?} is not in {page}");
    }
    assert!(page.contains("Complete"), "{page}");
}

#[test]
fn after_a_rollback_it_is_well_and_the_next_command_shows_what_was_wrong() {
    let s = Scenario::shared("diagnose-rolled-back");
    let _policy = s.short_policy();
    s.create_good(&deployment("web", |_| {}));
    s.pushes("web", &missing_image()).is_safe("Image");
    let found = diagnosis(&s, "web");
    assert_eq!((&found["cause"]["type"], &found["cause"]["of"]), (&json!("Image"), &json!("rolledBack")));
    let command = next(&found);
    assert!(command.contains("history web") && command.contains("--diff 3 2"), "{command}");
    let shown = guard(&s, ["history", "web", "--diff", "3", "2"]).succeeds();
    assert!(shown.contains("+  - ") || shown.contains("+    image: "), "{shown}");
    page(&s, "web");
}
