//! The kill switch of the whole guard.

use std::{collections::BTreeMap, time::Duration, time::Instant};

use jiff::Timestamp;

use super::{gates, guard};
use crate::{
    harness::{
        Scenario,
        cluster::kubectl,
        deployment, installation,
        record::{outcome, same_template},
        restore, seconds,
        wait::holds,
        wait_until,
    },
    watcher::without_settings,
};

/// As long as a stopped guard is looked at: many times longer than the policy's times.
const LONG: Duration = seconds(15);

#[test]
fn fault_46_a_guard_that_is_stopped_writes_nothing_from_10_seconds_on_until_it_may_go_on() {
    let s = Scenario::alone("stopped");
    let _policy = s.short_policy();
    for name in ["web", "restore", "hand-back"] {
        s.create_good(&deployment(name, |_| {}));
    }
    // One that is decided on and not carried out when the switch is pulled.
    let closed = gates::closed(&s);
    let decided = s.pushes("restore", &without_settings());
    gates::are_reached(&s, &["restore"]);
    let record = s.record("restore");
    assert_eq!(outcome(&record), "InProgress", "{record}");

    let go_on = stop();
    drop(closed);
    let since = guard::now_in_node();
    // And one that comes afterwards.
    let pushed = s.pushes("web", &without_settings());
    wait_until("the bad push is old", LONG + seconds(45), || {
        let pods = s.json(["get", "pods", "-l", "app=web"]);
        let pods = pods["items"].as_array().into_iter().flatten();
        let stuck = pods.filter(|pod| pod.to_string().contains("CreateContainerConfigError"));
        let times =
            stuck.filter_map(|pod| pod["metadata"]["creationTimestamp"].as_str()?.parse::<Timestamp>().ok());
        let age =
            times.filter_map(|time| Duration::try_from(Timestamp::now().duration_since(time)).ok()).max();
        holds(age >= Some(LONG), format!("{age:?}"))
    });
    pushed.is_untouched(&s.record("web"));
    assert!(!same_template(&s.deployment("restore"), &decided.good), "put back: {}", s.record("restore"));
    let mut counts = BTreeMap::<String, usize>::new();
    for request in guard::requests(guard::USER, Some(&since)).iter().filter(|request| request.writes()) {
        *counts.entry(format!("{} {}", request.verb, request.resource)).or_default() += 1;
        // Not the watcher's: what the policies and the certificates of every replica need.
        let apart = matches!(
            (request.group.as_str(), request.resource.as_str()),
            ("rollout-guard.io", "rolloutpolicies/status")
                | ("admissionregistration.k8s.io" | "authorization.k8s.io", _)
                | ("", "secrets")
        );
        let lease = request.resource == "leases" && request.name == installation::NAME;
        assert!(apart || lease, "written while it was stopped: {}", request.told());
    }
    s.say(&format!("written while it was stopped: {counts:?}"));
    assert!(counts.contains_key("update leases"), "nobody leads: {counts:?}");

    drop(go_on);
    for pushed in [pushed, decided].map(|pushed| pushed.counted_from_now()) {
        pushed.is_safe("Configuration");
    }
    for name in ["web", "restore"] {
        guard::wrote_once(&s.deployment(name));
    }
}

/// Pulls the switch and waits until every replica says that it stops; it may go on when the returned value is dropped.
fn stop() -> impl Drop {
    const STOP: &str = "rollout-guard.io/stop";
    let annotate = |value: &str| {
        kubectl(["annotate", "lease", installation::NAME, value, "-n", installation::NAME]).succeeds();
    };
    let go_on = restore("let the guard go on", move || annotate(&format!("{STOP}-")));
    let started = Instant::now();
    annotate(&format!("{STOP}=e2e"));
    wait_until("every replica stops", seconds(10), || {
        for pod in installation::ready_pods()? {
            let metrics = installation::metrics_of(&pod)?;
            holds(metrics.lines().any(|line| line == "rollout_guard_stopped 1"), pod)?;
        }
        Ok(())
    });
    crate::harness::say(
        "stopped",
        &format!("every replica stops after {:.1} s", started.elapsed().as_secs_f64()),
    );
    go_on
}
