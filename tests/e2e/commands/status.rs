//! `status`: what is shown of real rollouts, and to whom.

use std::{
    io::{BufRead, BufReader},
    process::{Command, Stdio},
};

use serde_json::{Value, json};

use super::{
    Account, guard,
    wait::{missing_image, off},
};
use crate::harness::{Scenario, deployment, seconds, wait::holds, wait_until};

fn status(s: &Scenario, name: &str) -> Value {
    let text = guard(s, ["status", name, "-o", "json"]).succeeds();
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

#[test]
fn without_a_guard_the_tree_of_a_failing_rollout_shows_its_cause_and_the_pod_that_fails() {
    let s = Scenario::shared("status-tree");
    let _policy = off(&s);
    s.create_complete(&deployment("web", |_| {}));
    s.patch("web", &missing_image()).succeeds();
    wait_until("the cause is found", seconds(60), || {
        let found = status(&s, "web");
        holds(found["cause"]["type"] == "Image", found.to_string())
    });
    let tree = guard(&s, ["status", "deploy/web"]).succeeds();
    s.say(&tree);
    assert!(tree.starts_with(&format!("Deployment {}/web", s.namespace)), "{tree}");
    assert!(tree.contains("Image: ") && tree.contains("not found"), "{tree}");
    assert!(tree.contains("revision 2") && tree.contains("revision 1"), "{tree}");
    assert!(tree.contains("ImagePull"), "{tree}");
    assert!(!tree.contains('\u{1b}'), "no colour in a pipe: {tree:?}");
    let table = guard(&s, ["status", "--stuck"]).succeeds();
    assert_eq!(table.lines().count(), 2, "{table}");
    assert!(table.lines().any(|line| line.starts_with("web ")), "{table}");
}

#[test]
fn after_a_rollback_the_tree_and_the_table_tell_of_it() {
    let s = Scenario::shared("status-rolled-back");
    let _policy = s.short_policy();
    s.create_good(&deployment("web", |_| {}));
    s.pushes("web", &missing_image()).is_safe("Image");
    let found = status(&s, "web");
    assert_eq!(found["guarded"], true, "{found}");
    assert_eq!(found["rollback"]["current"], true, "{found}");
    let tree = guard(&s, ["status", "web"]).succeeds();
    s.say(&tree);
    assert!(tree.contains("Bad (Image)"), "{tree}");
    assert!(tree.contains("rolled back"), "{tree}");
    assert!(tree.lines().next().is_some_and(|line| line.contains("Complete")), "{tree}");
}

#[test]
fn an_account_without_rights_is_told_so_in_one_line() {
    let s = Scenario::shared("status-no-rights");
    s.create_complete(&deployment("web", |_| {}));
    let nobody = Account::with_rules(&s, "nobody", &json!([]));
    for args in [&["status"][..], &["status", "web"], &["status", "--watch"], &["status", "web", "--watch"]] {
        let done = nobody.guard(&s, args.iter().copied()).done();
        assert_eq!(done.code, Some(2), "{}", done.report());
        assert_eq!(done.stdout, "", "{}", done.report());
        assert_eq!(done.stderr.lines().count(), 1, "{}", done.report());
        assert!(done.stderr.contains("forbidden") && done.stderr.contains("nobody"), "{}", done.report());
    }
}

#[test]
fn an_account_that_may_read_deployments_alone_sees_them_and_is_told_what_is_hidden() {
    let s = Scenario::shared("status-some-rights");
    s.create_complete(&deployment("web", |_| {}));
    let verbs = ["get", "list", "watch"];
    let rules = json!([{"apiGroups": ["apps"], "resources": ["deployments"], "verbs": verbs}]);
    let reader = Account::with_rules(&s, "reader", &rules);
    let tree = reader.guard(&s, ["status", "web"]).succeeds();
    s.say(&tree);
    assert!(tree.contains("Complete"), "{tree}");
    assert!(tree.contains("may not list replicasets"), "{tree}");
    assert!(tree.contains("may not get rolloutrecords"), "{tree}");
    let list = reader.guard(&s, ["status"]).done();
    assert!(list.ok() && list.stdout.contains("web"), "{}", list.report());
    assert!(list.stderr.contains("may not list rolloutrecords"), "{}", list.report());
}

#[test]
fn a_watch_in_a_pipe_appends_a_line_for_each_change() {
    let s = Scenario::shared("status-watch");
    let _policy = off(&s);
    s.create_complete(&deployment("web", |_| {}));
    let mut watch = Command::new(env!("CARGO_BIN_EXE_rollout-guard"))
        .args(["status", "--watch", "-o", "json", "-n", &s.namespace])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .expect("it starts");
    let mut lines = BufReader::new(watch.stdout.take().expect("piped"))
        .lines()
        .map(|line| serde_json::from_str::<Value>(&line.expect("UTF-8")).expect("JSON"));
    let first = lines.next().expect("a line");
    assert_eq!((&first["phase"], &first["generation"]), (&json!("Complete"), &json!(1)));
    s.accepts("web", |push| push.image("v2"));
    let mut told = Vec::new();
    for line in lines.by_ref().take(50) {
        told.push(line["phase"].clone());
        if line["phase"] == "Complete" && line["generation"] == 2 {
            break;
        }
    }
    assert!(told.contains(&json!("Progressing")), "{told:?}");
    assert_eq!(told.last(), Some(&json!("Complete")), "{told:?}");
    watch.kill().expect("it runs");
    watch.wait().expect("it ends");
}
