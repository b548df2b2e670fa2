//! `history`: the revisions of real Deployments, by whom and why.

use serde_json::{Value, json};

use super::{
    guard,
    wait::{missing_image, off},
};
use crate::harness::{Scenario, deployment};

fn history(s: &Scenario, name: &str) -> Vec<Value> {
    let text = guard(s, ["history", name, "-o", "json"]).succeeds();
    let found: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
    found["revisions"].as_array().cloned().unwrap_or_default()
}

#[test]
fn after_a_rollback_the_bad_revision_is_told_from_the_good_one() {
    let s = Scenario::shared("history-rolled-back");
    let _policy = s.short_policy();
    s.create_good(&deployment("web", |_| {}));
    s.pushes("web", &missing_image()).is_safe("Image");
    s.becomes_good("web");
    let table = guard(&s, ["history", "web"]).succeeds();
    s.say(&table);
    let revisions = history(&s, "web");
    let verdicts: Vec<&str> = revisions.iter().filter_map(|r| r["verdict"].as_str()).collect();
    assert_eq!(verdicts, ["Good", "Bad"], "{table}");
    assert_eq!((&revisions[0]["current"], &revisions[0]["by"]), (&json!(true), &json!("rollout-guard")));
    assert!(table.contains("Bad (Image)") && table.contains("rolled back"), "{table}");
}

#[test]
fn without_a_guard_the_revisions_and_what_differs_are_shown() {
    let s = Scenario::shared("history-unguarded");
    let _policy = off(&s);
    s.create_complete(&deployment("web", |_| {}));
    s.kubectl(["annotate", "deployment/web", "kubernetes.io/change-cause=release 2"]).succeeds();
    s.accepts("web", |push| push.image("v2"));
    s.completes("web");
    let table = guard(&s, ["history", "web"]).succeeds();
    s.say(&table);
    assert!(table.contains("2 (current)") && table.contains("release 2"), "{table}");
    let shown = guard(&s, ["history", "web", "--diff", "1", "2"]).succeeds();
    assert!(shown.contains("localhost/sample:v1") && shown.contains("localhost/sample:v2"), "{shown}");
    let refused = guard(&s, ["history", "web", "--diff", "9"]).done();
    assert_eq!(refused.code, Some(2), "{}", refused.report());
    assert!(refused.stderr.contains("there are 2, 1"), "{}", refused.report());
}
