//! `undo`: back to the last good one, and the next push is none the wiser.

use serde_json::{Value, json};

use super::{
    Account, guard,
    wait::{Begun, missing_image, off},
};
use crate::{
    harness::{
        Scenario, deployment,
        record::{generation, is_announced, is_complete, outcome, same_template, short},
        seconds,
        workload::image_of,
    },
    watcher::{appliers::Applier, container, registry, without_settings},
};

/// Whether the guard's name is left among those who own fields of the object itself.
fn is_owner(deployment: &Value) -> bool {
    let entries = deployment["metadata"]["managedFields"].as_array();
    entries
        .into_iter()
        .flatten()
        .any(|entry| entry["manager"] == "rollout-guard" && entry["subresource"].is_null())
}

#[test]
fn it_goes_back_to_the_last_good_revision_and_not_to_the_previous_one() {
    let s = Scenario::shared("undo-good");
    let mut policy = short();
    policy["rollback"]["mode"] = json!("Manual");
    policy["admission"] = json!({"failed": "Allow"});
    let _policy = s.put_in_force("manual", policy);
    s.create_good(&deployment("web", |_| {}));
    s.pushes("web", &without_settings()).is_held("Configuration");
    s.pushes("web", &missing_image());
    let before = s.deployment("web");
    let done = guard(&s, ["undo", "web", "--yes"]).done();
    s.say(&done.report());
    assert_eq!(done.code, Some(0), "{}", done.report());
    let after = s.deployment("web");
    assert_eq!(image_of(&after), "localhost/sample:v1");
    assert!(!after["spec"]["template"].to_string().contains("settings"), "{after}");
    assert!(is_complete(&after) && !is_announced(&after) && !is_owner(&after), "{after}");
    assert_eq!(generation(&after), generation(&before) + 1);
    let said = format!(
        "deployment/web: is back at revision 1 (localhost/sample:v1), which is revision 4 now, generation {} observed, complete after",
        generation(&after)
    );
    assert!(done.stdout.contains(&said), "{}", done.report());
    assert!(done.stdout.contains("the last one that was good"), "{}", done.report());
    assert!(done.stdout.contains("+  - image: localhost/sample:v1"), "{}", done.report());
}

/// The image, and the environment where there is one.
fn manifest(image: &str, environment: Option<&str>) -> Value {
    deployment("web", |d| {
        let container = &mut d["spec"]["template"]["spec"]["containers"][0];
        container["image"] = json!(image);
        if let Some(name) = environment {
            container["env"] = json!([{"name": name, "value": "set"}]);
        }
    })
}

/// The good manifest has what the bad one removes and the fix leaves out. No guard is there to help.
fn leaves_no_trace(s: &Scenario, applier: &Applier) {
    let _policy = off(s);
    applier.run(s, &manifest("localhost/sample:v1", Some("COLOUR")), &[]).succeeds();
    s.completes("web");
    applier.run(s, &manifest(&registry::image("missing"), None), &[]).succeeds();
    s.wait_for("the bad push is observed", "web", |d| d["status"]["updatedReplicas"] == 1);
    // Whoever waits for it hears of it.
    let begun = Begun::of(s, &["web", "--fail-fast=false"]);
    let done = guard(s, ["undo", "web", "--yes"]).done();
    assert_eq!(done.code, Some(0), "{}", done.report());
    assert!(done.stdout.contains("the one that still serves"), "{}", done.report());
    let (code, printed) = begun.ends();
    assert_eq!(code, Some(3), "{printed}");
    let back = s.deployment("web");
    assert!(back["spec"]["template"].to_string().contains("COLOUR"), "not put back: {back}");
    assert!(!is_owner(&back), "{}", back["metadata"]["managedFields"]);
    let fix = manifest("localhost/sample:v2", None);
    applier.run(s, &fix, &[]).succeeds();
    s.recovers("web");
    let after = s.deployment("web");
    // What the API server makes of the manifest where nothing was before.
    let mut fresh = fix;
    fresh["metadata"]["name"] = json!("fresh");
    let fresh = s.kubectl(["create", "--dry-run=server", "-o", "json", "-f", "-"]).input(fresh.to_string());
    let fresh: Value = serde_json::from_str(&fresh.succeeds()).expect("a Deployment");
    assert!(same_template(&after, &fresh), "{}\nand fresh: {}", after["spec"], fresh["spec"]);
}

#[test]
fn the_fix_by_helm_after_it_meets_no_conflict_and_leaves_nothing_behind() {
    let s = Scenario::shared("undo-helm");
    leaves_no_trace(&s, &Applier::helm());
}

#[test]
fn the_fix_by_server_side_apply_after_it_meets_no_conflict_and_leaves_nothing_behind() {
    let s = Scenario::shared("undo-server-side");
    leaves_no_trace(&s, &Applier::ServerSide);
}

#[test]
fn the_fix_by_client_side_apply_after_it_leaves_nothing_behind() {
    let s = Scenario::shared("undo-client-side");
    leaves_no_trace(&s, &Applier::ClientSide);
}

#[test]
fn a_dry_run_and_a_question_that_nobody_can_answer_write_nothing() {
    let s = Scenario::shared("undo-dry-run");
    s.create_complete(&deployment("web", |_| {}));
    s.accepts("web", |push| push.image("v2"));
    s.completes("web");
    let version = |d: &Value| d["metadata"]["resourceVersion"].as_str().unwrap_or_default().to_owned();
    // The record is written beside it; the Deployment itself rests.
    let before = s.wait_for("it rests", "web", is_complete);
    let done = guard(&s, ["undo", "web", "--to", "1", "--dry-run"]).done();
    assert_eq!(done.code, Some(0), "{}", done.report());
    assert!(done.stdout.contains("-  - image: localhost/sample:v2"), "{}", done.report());
    assert!(done.stdout.contains("+  - image: localhost/sample:v1"), "{}", done.report());
    assert!(done.stdout.contains("nothing was written"), "{}", done.report());
    let done = guard(&s, ["undo", "web", "--to", "1"]).done();
    assert_eq!(done.code, Some(2), "{}", done.report());
    assert!(done.stderr.contains("--yes"), "{}", done.report());
    assert_eq!(version(&s.deployment("web")), version(&before), "written");
    // Nor with a current template, a revision that is not there, or while it is paused.
    for (args, words) in [(["--to", "2"], "already"), (["--to", "9"], "revision 9 has no ReplicaSet")] {
        let done = guard(&s, ["undo", "web", "--yes"].into_iter().chain(args)).done();
        assert_eq!(done.code, Some(2), "{}", done.report());
        assert!(done.stderr.contains(words), "{}", done.report());
    }
    s.kubectl(["rollout", "pause", "deployment/web"]).succeeds();
    let done = guard(&s, ["undo", "web", "--to", "1", "--yes"]).done();
    assert_eq!(done.code, Some(2), "{}", done.report());
    assert!(done.stderr.contains("paused"), "{}", done.report());
}

#[test]
fn a_bad_revision_must_be_named_and_the_guards_refusal_is_told_as_it_is() {
    let s = Scenario::shared("undo-refused");
    let _policy = s.short_policy();
    s.create_good(&deployment("web", |_| {}));
    s.pushes("web", &without_settings()).is_safe("Configuration");
    for extra in ["--yes", "--dry-run"] {
        let done = guard(&s, ["undo", "web", "--to", "2", extra]).done();
        assert_eq!(done.code, Some(1), "{}", done.report());
        assert!(done.stderr.contains("RG004 ") && done.stderr.contains("Fix: "), "{}", done.report());
        assert!(
            done.stdout.contains("warning: revision 2") && done.stdout.contains("Bad"),
            "{}",
            done.report()
        );
    }
    s.wait_for_record("nothing has changed", "web", |record| outcome(record) == "Succeeded");
}

#[test]
fn whoever_may_only_look_is_refused_with_the_right_that_is_missing() {
    let s = Scenario::shared("undo-rights");
    s.create_complete(&deployment("web", |_| {}));
    s.patch("web", &container(json!({"image": "localhost/sample:v2"}))).succeeds();
    s.completes("web");
    let rules = json!([
        {"apiGroups": ["apps"], "resources": ["replicasets"], "verbs": ["list"]},
        {"apiGroups": ["apps"], "resources": ["deployments"], "verbs": ["get"]},
    ]);
    let viewer = Account::with_rules(&s, "viewer", &rules);
    for extra in ["--yes", "--dry-run"] {
        let done = viewer.guard(&s, ["undo", "web", "--to", "1", extra]).done();
        assert_eq!(done.code, Some(1), "{}", done.report());
        assert!(done.stderr.contains("cannot patch resource \"deployments\""), "{}", done.report());
        assert!(done.took < seconds(20), "{}", done.report());
    }
    assert_eq!(image_of(&s.deployment("web")), "localhost/sample:v2");
}
