//! The API server killed: whatever the guard was about to do, it does once.

use std::time::Instant;

use serde_json::{Value, json};

use super::guard;
use crate::{
    harness::{
        Scenario,
        cluster::{in_node, kubectl},
        deployment, installation,
        record::{generation, outcome, same_template, short},
        seconds,
        wait::holds,
        wait_until,
    },
    watcher::without_settings,
};

#[test]
fn faults_32_and_35_an_api_server_that_is_killed_during_bad_pushes_delays_their_rollbacks_and_repeats_none() {
    let s = Scenario::alone("api-server");
    let mut policy = short();
    // Long enough to kill the API server before it.
    policy["watch"]["earlyFailureAfter"] = json!("6s");
    let _policy = s.put_in_force("short", policy);
    s.create_good(&deployment("web", |_| {}));
    s.create_good(&deployment("begun", |d| {
        // The old pod is gone when it is put back, and a new one counts after this only.
        d["spec"]["strategy"] = json!({"type": "Recreate"});
        d["spec"]["minReadySeconds"] = json!(10);
    }));
    s.is_complete_for("begun", seconds(3));

    let begun = s.pushes("begun", &without_settings()).within(seconds(150));
    s.wait_for("the template is back", "begun", |d| {
        same_template(d, &begun.good) && generation(d) > generation(&begun.good)
    });
    let pushed = s.pushes("web", &without_settings()).within(seconds(150));
    let record =
        s.wait_for_record("the bad push is noticed", "web", |record| !record["status"]["cause"].is_null());
    assert!(record["status"]["rollback"].is_null(), "rolled back before the API server was killed: {record}");
    let other = s.record("begun");
    assert_eq!(outcome(&other), "InProgress", "{other}");
    let restarts = guard::restarts();
    let killed = guard::now_in_node();
    kill_api_server(&s);
    let (begun_again, pushed) = (begun.is_safe("Configuration"), pushed.is_safe("Configuration"));
    let started = |record: &Value| record["status"]["rollback"]["startedAt"].as_str().map(str::to_owned);
    let killed = Some(killed.as_str());
    assert!(started(&begun_again).as_deref() < killed, "not begun before: {begun_again}");
    assert!(started(&pushed).as_deref() > killed, "begun before: {pushed}");
    for name in ["web", "begun"] {
        s.announcement_ends(name);
        guard::wrote_once(&s.deployment(name));
    }
    assert_eq!(guard::restarts(), restarts, "the guard itself ended");
    // Whoever comes next finds everything as it was.
    installation::wait_ready();
}

/// Kills the API server and waits until another process of it is ready.
fn kill_api_server(s: &Scenario) {
    let process = || in_node(&["pgrep", "-x", "kube-apiserver"]).stdout.trim().to_owned();
    let before = process();
    assert!(!before.is_empty() && !before.contains('\n'), "one process of it: {before}");
    let started = Instant::now();
    in_node(&["kill", "-9", &before]).succeeds();
    wait_until("the API server is ready again", seconds(120), || {
        let now = process();
        holds(!now.is_empty() && now != before, format!("process {now}"))?;
        let ready = kubectl(["get", "--raw", "/readyz"]).limit(seconds(5)).done();
        holds(ready.ok(), ready.report())
    });
    s.say(&format!("the API server was away for {:.1} s", started.elapsed().as_secs_f64()));
}
