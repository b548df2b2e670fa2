//! `wait`: how a push ends, as a pipeline is told it.

use std::{
    fs,
    io::{BufRead, BufReader, Read},
    process::{Command, Stdio},
};

use serde_json::{Value, json};
use tempfile::TempDir;

use super::{Account, guard};
use crate::{
    harness::{
        Run, Scenario, deployment,
        policy::InForce,
        record::{generation, outcome, short},
        seconds,
        wait::holds,
        wait_until,
    },
    watcher::{container, registry, without_settings},
};

/// A policy under which no guard does anything.
pub fn off(s: &Scenario) -> InForce {
    s.put_in_force("off", json!({"mode": "Off"}))
}

/// A push of an image that a registry denies having.
pub fn missing_image() -> Value {
    container(json!({"image": registry::image("missing")}))
}

/// A push of pods that run and never get ready.
fn never_ready() -> Value {
    let probe = json!({"httpGet": {"path": "/ready", "port": 8080}, "periodSeconds": 1});
    container(json!({"args": ["unready"], "readinessProbe": probe}))
}

/// The last line of JSON lines.
fn result(stdout: &str) -> Value {
    serde_json::from_str(stdout.lines().last().unwrap_or_default()).expect("a JSON line")
}

/// A `wait` that has begun: it has told where the rollout stands.
pub struct Begun {
    child: std::process::Child,
    rest: BufReader<std::process::ChildStdout>,
    pub printed: String,
}

impl Begun {
    pub fn of(s: &Scenario, args: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_rollout-guard"));
        command.arg("wait").args(args).args(["-n", &s.namespace]);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("it starts");
        let mut rest = BufReader::new(child.stdout.take().expect("piped"));
        let mut printed = String::new();
        rest.read_line(&mut printed).expect("a line");
        Self { child, rest, printed }
    }

    /// The exit status, and all that was printed.
    pub fn ends(mut self) -> (Option<i32>, String) {
        self.rest.read_to_string(&mut self.printed).expect("UTF-8");
        (self.child.wait().expect("it ends").code(), std::mem::take(&mut self.printed))
    }
}

#[test]
fn a_push_that_gets_through_ends_with_0_for_one_and_for_several() {
    let s = Scenario::shared("wait-complete");
    s.create(&deployment("web", |_| {}));
    s.create(&deployment("api", |_| {}));
    let text = guard(&s, ["wait", "web", "deployment/api", "--stable", "1s"]).succeeds();
    assert!(
        text.contains("deployment/web: complete: revision 1 (localhost/sample:v1), generation 1"),
        "{text}"
    );
    assert!(text.contains("2 of 2 complete after"), "{text}");
    s.accepts("web", |push| push.image("v2"));
    let lines = guard(&s, ["wait", "web", "--format", "json-lines"]).succeeds();
    let last = result(&lines);
    assert_eq!((&last["event"], &last["exitCode"]), (&json!("result"), &json!(0)), "{lines}");
    assert_eq!(last["deployments"][0]["revision"], 2, "{lines}");
    assert!(guard(&s, ["wait", "web", "--quiet"]).succeeds().lines().count() == 1);
}

#[test]
fn without_a_guard_an_image_that_is_not_found_ends_with_1_long_before_the_deadline() {
    let s = Scenario::shared("wait-failed");
    let _policy = off(&s);
    s.create_complete(&deployment("web", |_| {}));
    s.patch("web", &missing_image()).succeeds();
    let dir = TempDir::new().expect("temporary directory");
    let summary = dir.path().join("summary.md");
    let done = Run::new("env")
        .arg(format!("GITHUB_STEP_SUMMARY={}", summary.display()))
        .arg(env!("CARGO_BIN_EXE_rollout-guard"))
        .args(["wait", "web", "--format", "github", "-n", &s.namespace])
        .done();
    s.say(&format!("failed after {:.1} s", done.took.as_secs_f64()));
    assert_eq!(done.code, Some(1), "{}", done.report());
    assert!(done.took < seconds(45), "{}", done.report());
    assert!(
        done.stdout.contains("::error title=deployment/web failed::failed: Image: "),
        "{}",
        done.report()
    );
    assert!(done.stdout.contains("not found"), "{}", done.report());
    assert!(done.stdout.contains("::group::") && done.stdout.contains("::endgroup::"), "{}", done.report());
    let summary = fs::read_to_string(summary).expect("a summary");
    assert!(summary.contains("| ❌ Failed |") && summary.contains("<details>"), "{summary}");
    // The same in GitLab's words.
    let done = guard(&s, ["wait", "web", "--format", "gitlab"]).done();
    assert_eq!(done.code, Some(1), "{}", done.report());
    assert!(done.stdout.contains("\u{1b}[0Ksection_start:"), "{}", done.report());
    assert!(done.stdout.contains("next: rollout-guard undo -n "), "{}", done.report());
}

#[test]
fn a_push_that_the_guard_rolls_back_ends_with_3_before_and_after_and_the_fix_with_0() {
    let s = Scenario::shared("wait-rolled-back");
    let _policy = s.short_policy();
    s.create_good(&deployment("web", |_| {}));
    let pushed = s.pushes("web", &missing_image());
    let bad = generation(&s.deployment("web")).to_string();
    let done = guard(&s, ["wait", "web", "--format", "json-lines"]).done();
    s.say(&format!("rolled back after {:.1} s", done.took.as_secs_f64()));
    assert_eq!(done.code, Some(3), "{}", done.report());
    let end = &result(&done.stdout)["deployments"][0];
    assert_eq!((&end["outcome"], &end["cause"]), (&json!("RolledBack"), &json!("Image")), "{end}");
    assert!(end["message"].as_str().is_some_and(|words| words.contains("not found")), "{end}");
    assert!(end["evidence"].as_array().is_some_and(|lines| !lines.is_empty()), "{end}");
    pushed.is_safe("Image");
    // A pipeline that comes late is told all the same.
    for args in
        [&["wait", "web"][..], &["wait", "web", "--generation", &bad], &["wait", "web", "--revision", "2"]]
    {
        let done = guard(&s, args.iter().copied()).done();
        assert_eq!(done.code, Some(3), "{}", done.report());
        assert!(done.took < seconds(10), "{}", done.report());
    }
    s.accepts("web", |push| push.image("v2"));
    guard(&s, ["wait", "web"]).succeeds();
    // And a late one for the first push hears that another one stands.
    let late = guard(&s, ["wait", "web", "--generation", &bad]).done();
    assert_eq!(late.code, Some(4), "{}", late.report());
}

#[test]
fn a_push_that_is_held_for_a_person_ends_with_1_and_the_command() {
    let s = Scenario::shared("wait-held");
    let mut policy = short();
    policy["rollback"]["mode"] = json!("Manual");
    let _policy = s.put_in_force("manual", policy);
    s.create_good(&deployment("web", |_| {}));
    s.pushes("web", &without_settings());
    let done = guard(&s, ["wait", "web"]).done();
    assert_eq!(done.code, Some(1), "{}", done.report());
    assert!(done.took < seconds(40), "{}", done.report());
    assert!(done.stdout.contains("would be rolled back to revision 1"), "{}", done.report());
    assert!(done.stdout.contains("settings"), "{}", done.report());
}

#[test]
fn a_push_that_is_replaced_while_it_is_waited_for_ends_with_4_and_one_undone_with_3() {
    let s = Scenario::shared("wait-replaced");
    let _policy = off(&s);
    s.create_complete(&deployment("web", |_| {}));
    s.patch("web", &never_ready()).succeeds();
    let begun = Begun::of(&s, &["web"]);
    s.patch("web", &container(json!({"image": "localhost/sample:v3"}))).succeeds();
    let (code, printed) = begun.ends();
    assert_eq!(code, Some(4), "{printed}");
    assert!(
        printed.contains("superseded: revision 2 ") && printed.contains("localhost/sample:v3"),
        "{printed}"
    );

    let begun = Begun::of(&s, &["web"]);
    s.kubectl(["rollout", "undo", "deployment/web", "--to-revision=1"]).succeeds();
    let (code, printed) = begun.ends();
    assert_eq!(code, Some(3), "{printed}");
    assert!(printed.contains("rolled back from revision 3 "), "{printed}");
    assert!(printed.contains("localhost/sample:v1"), "{printed}");
}

#[test]
fn what_takes_too_long_ends_with_124_and_what_cannot_get_on_with_1() {
    let s = Scenario::shared("wait-late");
    let _policy = off(&s);
    s.create_complete(&deployment("web", |_| {}));
    s.patch("web", &never_ready()).succeeds();
    // Until the kubelet says something of it.
    wait_until("its pod runs", seconds(60), || {
        let pods = s.json(["get", "pods", "-l", "app=web"]);
        let all = pods["items"].as_array().into_iter().flatten();
        let running = all.filter(|pod| pod["status"]["phase"] == "Running").count();
        holds(running == 2, pods["items"].to_string())
    });
    let done = guard(&s, ["wait", "web", "--timeout", "6s"]).done();
    assert_eq!(done.code, Some(124), "{}", done.report());
    assert!(done.took < seconds(15), "{}", done.report());
    assert!(
        done.stdout.contains("not complete within 6 s") && done.stdout.contains("not ready"),
        "{}",
        done.report()
    );

    s.kubectl(["rollout", "pause", "deployment/web"]).succeeds();
    let done = guard(&s, ["wait", "web"]).done();
    assert_eq!(done.code, Some(1), "{}", done.report());
    assert!(done.stdout.contains("rollout resume deployment/web"), "{}", done.report());

    s.kubectl(["rollout", "resume", "deployment/web"]).succeeds();
    let begun = Begun::of(&s, &["web"]);
    s.kubectl(["delete", "deployment", "web"]).succeeds();
    let (code, printed) = begun.ends();
    assert_eq!(code, Some(1), "{printed}");
    assert!(printed.contains("deleted"), "{printed}");
    let done = guard(&s, ["wait", "web"]).done();
    assert_eq!(done.code, Some(2), "{}", done.report());
    assert!(done.stdout.contains("no such Deployment"), "{}", done.report());
}

#[test]
fn a_missing_right_to_deployments_ends_with_2_and_one_to_what_tells_more_only_hides_that() {
    let s = Scenario::shared("wait-rights");
    s.create_complete(&deployment("web", |_| {}));
    let nobody = Account::with_rules(&s, "nobody", &json!([]));
    let done = nobody.guard(&s, ["wait", "web"]).done();
    assert_eq!(done.code, Some(2), "{}", done.report());
    assert!(done.took < seconds(10), "{}", done.report());
    assert!(done.stdout.contains("cannot get resource \"deployments\""), "{}", done.report());
    let rules = json!([{"apiGroups": ["apps"], "resources": ["deployments"], "verbs": ["get"]}]);
    let deployer = Account::with_rules(&s, "deployer", &rules);
    let done = deployer.guard(&s, ["wait", "web"]).done();
    assert_eq!(done.code, Some(0), "{}", done.report());
    assert_eq!(done.stdout.matches("may not list replicasets").count(), 1, "{}", done.report());
    assert_eq!(done.stdout.matches("may not get rolloutrecords").count(), 1, "{}", done.report());
}

#[test]
fn the_waiting_survives_a_rollback_that_is_still_under_way() {
    let s = Scenario::shared("wait-under-way");
    let _policy = s.short_policy();
    s.create_good(&deployment("web", |_| {}));
    s.pushes("web", &without_settings());
    // Without failing fast the end is the same, as the template is another one.
    let done = guard(&s, ["wait", "web", "--fail-fast=false", "--timeout", "60s"]).done();
    assert_eq!(done.code, Some(3), "{}", done.report());
    s.wait_for_record("the rollback is verified", "web", |record| outcome(record) == "Succeeded");
}
