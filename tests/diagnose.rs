//! `rollout-guard diagnose` from outside: the real binary against an API server on the loopback.

#![allow(clippy::expect_used, clippy::panic, reason = "helpers of tests")]

#[path = "diagnose/canned.rs"]
mod canned;

use std::time::Duration;

use canned::{Answer, failing, refused, run, serve, succeeds};
use serde_json::Value;

/// What differs from one day to the next: the time of the diagnosis, and ages.
fn redacted(text: &str) -> String {
    let is_age = |word: &str| {
        word.len() > 1
            && word.starts_with(|c: char| c.is_ascii_digit())
            && word.ends_with(|c| "smhdy".contains(c))
            && word.chars().all(|c| c.is_ascii_digit() || "smhdy".contains(c))
    };
    let words = |line: &str| {
        line.split(' ').map(|word| if is_age(word) { "AGE" } else { word }).collect::<Vec<_>>().join(" ")
    };
    text.lines().map(words).collect::<Vec<_>>().join("\n")
}

#[test]
fn a_crash_loop_is_shown_in_five_steps_with_its_cause_and_the_next_command() {
    let address = serve(failing);
    let page = succeeds(&address, &["diagnose", "deploy/web"]);
    for heading in ["1. Status", "2. Generations", "3. Strategy", "4. Events", "5. Health", "Cause: ", "Next"]
    {
        assert!(page.contains(heading), "{heading:?} is not in {page}");
    }
    assert!(page.contains("exit code 1") && page.contains("| fatal: no database"), "{page}");
    assert!(page.contains("rollout-guard undo web -n shop"), "{page}");
    assert!(page.lines().all(|line| line.chars().count() <= 80), "{page}");
    // No line is broken there, as ages grow.
    insta::assert_snapshot!("page", redacted(&succeeds(&address, &["diagnose", "web", "-o", "wide"])));
}

#[test]
fn without_logs_no_line_of_them_is_shown() {
    let address = serve(failing);
    let page = succeeds(&address, &["diagnose", "web", "--logs=false"]);
    assert!(!page.contains("fatal"), "{page}");
}

#[test]
fn json_and_yaml_say_the_same_in_keys_that_stay() {
    let address = serve(failing);
    let mut json: Value =
        serde_json::from_str(&succeeds(&address, &["diagnose", "web", "-o", "json"])).expect("JSON");
    let yaml: Value =
        serde_yaml_ng::from_str(&succeeds(&address, &["diagnose", "web", "-o", "yaml"])).expect("YAML");
    assert_eq!(json["cause"], yaml["cause"]);
    // The time of the diagnosis.
    json["at"] = "NOW".into();
    insta::assert_json_snapshot!("json", json);
    assert_eq!(succeeds(&address, &["diagnose", "web", "-o", "name"]), "deployment.apps/web\n");
}

#[test]
fn the_commands_that_are_proposed_reach_the_same_cluster() {
    let address = serve(failing);
    let page = succeeds(&address, &["diagnose", "web", "--context", "staging"]);
    assert!(page.contains("rollout-guard undo web -n shop --context staging"), "{page}");
}

#[test]
fn with_the_right_to_read_deployments_alone_it_says_what_is_hidden() {
    let address = serve(|path, query| match path {
        "/apis/apps/v1/namespaces/shop/deployments/web" => failing(path, query),
        _ => Answer::Refused(403),
    });
    let page = succeeds(&address, &["diagnose", "web"]);
    for hidden in ["may not list nodes", "may not list replicasets", "may not list events"] {
        assert!(page.contains(hidden), "{hidden:?} is not in {page}");
    }
    assert!(page.contains("Failed") && page.contains("Next"), "{page}");
}

#[test]
fn whatever_does_not_answer_the_rest_is_shown_in_time() {
    let address = serve(|path, query| match path {
        "/api/v1/nodes" | "/api/v1/namespaces/shop/pods/web-3-abcde/log" => Answer::Silence,
        "/api/v1/namespaces/shop/events" => Answer::Silence,
        _ => failing(path, query),
    });
    let (output, took) = run(&address, &["diagnose", "web"]);
    let page = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{page}");
    assert!(took < Duration::from_secs(20), "{took:?}");
    for hidden in ["nodes: no answer in time", "events: no answer in time", "logs: no answer in time"] {
        assert!(page.contains(hidden), "{hidden:?} is not in {page}");
    }
    assert!(page.contains("Cause: Application"), "{page}");
}

#[test]
fn what_cannot_be_diagnosed_is_one_line() {
    refused("127.0.0.1:9", &["diagnose", "web"], &["refused"]);
    let address = serve(failing);
    refused(&address, &["diagnose", "api"], &["deployment \"api\" not found in namespace \"shop\""]);
    let forbidden = serve(|_, _| Answer::Refused(403));
    refused(&forbidden, &["diagnose", "web"], &["User \"dev\" cannot do this"]);
}
