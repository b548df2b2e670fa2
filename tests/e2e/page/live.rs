//! The page of the guard that is installed, through a port-forward of `kubectl`.

use std::path::PathBuf;

use serde_json::{Value, json};

use super::{is_accessible, is_readable, tabs_through, take_pictures};
use crate::{
    harness::{
        Run, Scenario,
        browser::{Browser, DESK},
        cluster::{json as get, kubectl},
        deployment, installation,
        process::Background,
        seconds,
        wait::holds,
        wait_until,
    },
    watcher::{container, without_settings},
};

/// A forwarded port, and the address of the page behind it.
struct Forward {
    url: String,
    _kubectl: Background,
}

/// Forwards a port to `to`, such as `deployment/rollout-guard`, as the notes of the chart say it.
fn forward(to: &str) -> Forward {
    let log = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("{}.log", to.replace('/', "-")));
    let args = ["-n", installation::NAME, "port-forward", to, ":8080"];
    let kubectl = Background::start("kubectl", args, &log);
    let port = wait_until("the port is forwarded", seconds(20), || {
        let said = kubectl.log();
        let port = said.lines().find_map(|line| {
            let (port, _) = line.strip_prefix("Forwarding from 127.0.0.1:")?.split_once(' ')?;
            port.parse::<u16>().ok()
        });
        port.ok_or(said)
    });
    Forward { url: format!("http://localhost:{port}/ui"), _kubectl: kubectl }
}

/// Returns an expression that is the row of a Deployment in a section, or undefined.
fn row(section: &str, s: &Scenario, name: &str) -> String {
    let who = json!([s.namespace, name]);
    format!(
        "[...document.querySelectorAll('#{section} tbody tr')].find((row) => JSON.stringify([...row.querySelectorAll('th span')].map((e) => e.textContent)) === '{who}')"
    )
}

/// What `/ui/state.json` says by way of `forward`.
fn state(forward: &Forward) -> Value {
    let url = format!("{}/state.json", forward.url);
    let said = Run::new("curl").args(["-sS", "--max-time", "30", "--fail-with-body", &url]).done().succeeds();
    serde_json::from_str(&said).expect("JSON")
}

#[test]
fn a_bad_push_appears_by_itself_with_its_cause_and_moves_to_what_was_rolled_back() {
    let s = Scenario::shared("shop");
    let times = json!({"earlyFailureAfter": "4s", "goodAfter": "1s", "unobservedAfter": "5s"});
    let _policy = s.put_in_force("short", json!({"watch": times, "rollback": {"announceFor": "10s"}}));
    for name in ["web", "checkout"] {
        s.create_good(&deployment(name, |_| {}));
    }
    let forwarded = forward("deployment/rollout-guard");
    let mut browser = Browser::start();
    browser.look(DESK);
    browser.open(&forwarded.url);
    browser.wait_for(
        "it is live",
        seconds(30),
        "document.getElementById('connection').dataset.state === 'live'",
    );
    let read = "document.querySelectorAll('#policies tbody tr').length > 0";
    browser.wait_for("it has read what there is", seconds(30), read);
    browser.eval("window.loadedOnce = true");

    let pushed = s.pushes("web", &without_settings());
    let failing = row("trouble", &s, "web");
    browser.wait_for("the row is there", seconds(30), &format!("{failing} !== undefined"));
    let words = browser.eval(&format!("{failing}?.innerText ?? ''"));
    s.say(&format!("the page says: {words}"));
    assert!(words.as_str().is_some_and(|words| words.contains("Configuration")), "{words}");
    let record = pushed.is_safe("Configuration");
    let back = row("rollbacks", &s, "web");
    let succeeded = format!("{back}?.innerText.includes('Succeeded') && {failing} === undefined");
    browser.wait_for("it has moved", seconds(20), &succeeded);
    let words = browser.eval(&format!("{back}.innerText"));
    let words = words.as_str().unwrap_or_default();
    let message = record["status"]["rollback"]["message"].as_str().unwrap_or_default();
    assert!(words.contains(message) && words.contains("Configuration"), "{words}: {message}");

    // One that is held, and what is known of it by Enter.
    let mut nowhere = container(json!({"image": "localhost/sample:v2"}));
    nowhere["spec"]["progressDeadlineSeconds"] = json!(3);
    nowhere["spec"]["template"]["spec"]["nodeSelector"] = json!({"disk": "nvme"});
    s.pushes("checkout", &nowhere).is_held("Capacity");
    let held = row("trouble", &s, "checkout");
    browser.wait_for("it is held", seconds(20), &format!("{held}?.innerText.includes('Held')"));
    assert_eq!(browser.eval("window.loadedOnce"), true, "it was loaded again");
    browser.eval(&format!("{held}.querySelector('summary').focus()"));
    browser.press("Enter");
    browser.wait_for("it is open", seconds(5), &format!("{held}.querySelector('details').open"));
    let words = browser.eval(&format!("{held}.innerText"));
    let words = words.as_str().unwrap_or_default();
    assert!(words.contains("the policy does not roll back for Capacity"), "{words}");
    assert!(words.contains(&format!("rollout-guard diagnose checkout -n {}", s.namespace)), "{words}");
    let stuck = browser.eval("/^\\(\\d+ stuck\\) rollout-guard$/.test(document.title)");
    assert_eq!(stuck, true, "{}", browser.eval("document.title"));

    // The leader tells of the breaker by the Lease, and whichever replica answers shows it.
    let told =
        "['Open', 'Closed'].some((word) => document.getElementById('breaker').innerText.startsWith(word))";
    browser.wait_for("the breaker is known", seconds(20), told);
    let lease = get(["get", "lease", installation::NAME, "-n", installation::NAME]).expect("a lease");
    assert!(lease["metadata"]["annotations"]["rollout-guard.io/breaker"].is_string(), "{lease}");

    is_readable(&mut browser);
    is_accessible(&mut browser);
    tabs_through(&mut browser);
    // Closed again, so that a picture has all three lists.
    browser.eval("document.querySelectorAll('details').forEach((row) => { row.open = false; }); document.activeElement.blur()");
    take_pictures(&mut browser);
    assert_eq!(browser.complaints(), Vec::<String>::new());

    every_replica_shows_the_same(&s);
    nobody_else_is_let_in();
}

fn every_replica_shows_the_same(s: &Scenario) {
    let pods = installation::ready_pods().expect("pods");
    assert!(pods.len() > 1, "{pods:?}");
    for pod in pods {
        let forwarded = forward(&format!("pod/{pod}"));
        let state = state(&forwarded);
        assert_eq!(state["guard"]["replica"], pod.as_str(), "{state}");
        let find = |part: &str, name: &str| {
            let rows = state[part]["rows"].as_array().cloned().unwrap_or_default();
            rows.into_iter().find(|row| row["namespace"] == s.namespace.as_str() && row["name"] == name)
        };
        let back = find("rollbacks", "web").unwrap_or_else(|| panic!("{pod}: {state}"));
        assert_eq!(
            (&back["outcome"], &back["cause"]),
            (&json!("Succeeded"), &json!("Configuration")),
            "{back}"
        );
        assert!(back["secondsToSafety"].as_i64().is_some_and(|s| (1..60).contains(&s)), "{back}");
        let held = find("stuck", "checkout").unwrap_or_else(|| panic!("{pod}: {state}"));
        assert_eq!((&held["state"], &held["cause"]), (&json!("held"), &json!("Capacity")), "{held}");
    }
}

/// Neither by way of the API server, nor from another pod or the node.
fn nobody_else_is_let_in() {
    let pod = installation::ready_pods().expect("pods").remove(0);
    let path = format!("/api/v1/namespaces/{}/pods/{pod}:8080/proxy/ui/", installation::NAME);
    let words = kubectl(["get", "--raw", &path]).done().fails();
    assert!(words.contains("forward a port into the pod") || words.contains("403"), "{words}");
    let stored = get(["get", "pod", &pod, "-n", installation::NAME]).expect("the pod");
    let url = format!("http://{}:8080/ui/", stored["status"]["podIP"].as_str().unwrap_or_default());
    for host in ["localhost", "guard"] {
        let host = format!("Host: {host}");
        let said = crate::harness::cluster::in_node(&[
            "curl",
            "-s",
            "--max-time",
            "5",
            "-w",
            "%{http_code}",
            "-H",
            &host,
            &url,
        ]);
        holds(said.stdout.contains("port-forward") && said.stdout.ends_with("403"), said.report())
            .unwrap_or_else(|words| panic!("{words}"));
    }
}
