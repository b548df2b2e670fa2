//! The chart without the protection of records.

use serde_json::{Value, json};

use crate::{
    harness::{
        Scenario, deployment,
        installation::{self, Values},
        record::{revision, verdict},
        scenario::condition,
        seconds,
        wait::holds,
        wait_until,
    },
    watcher::without_settings,
};

#[test]
fn faults_11_and_45_a_planted_record_that_nothing_keeps_away_is_not_believed_and_is_replaced() {
    let s = Scenario::alone_with("unprotected", &Values::of(&["records.protect=false"]));
    let _policy = s.short_policy();
    s.create_good(&deployment("web", |_| {}));
    s.accepts("web", |push| push.image("v2"));
    s.completes("web");
    let known = s.wait_for_record("v2 is good", "web", |record| verdict(record) == "Good");
    s.becomes_good("web");

    // It says that the way back is Bad, and has everything but its owner.
    s.kubectl(["delete", "rolloutrecord", "deployment-web"]).succeeds();
    let uid = plant(&s, &planted(&known));
    let replicas = installation::ready_pods().expect("pods").len();
    wait_until("every replica has seen it, with its status", seconds(20), || {
        let log = installation::logs(400);
        let ignored = |line: &&str| line.contains(&s.namespace) && line.contains("is not of the deployment");
        holds(log.lines().filter(ignored).count() >= 2 * replicas, log)
    });
    let record = s.record("web");
    assert_eq!(record["metadata"]["uid"], uid.as_str(), "replaced before it could do harm: {record}");
    for _ in 0..4 {
        s.accepts("web", |push| push.image("v1").dry_run());
    }
    s.accepts("web", |push| push.image("v1"));
    s.completes("web");
    let own = s.wait_for_record("v1 is good", "web", |record| {
        verdict(record) == "Good" && record["metadata"]["uid"] != uid.as_str()
    });
    let owner = &own["metadata"]["ownerReferences"][0];
    let deployment = s.deployment("web");
    assert_eq!(
        (&owner["kind"], &owner["uid"]),
        (&json!("Deployment"), &deployment["metadata"]["uid"]),
        "{own}"
    );
    assert!(!own.to_string().contains("\"Bad\""), "taken over from what was planted: {own}");
    assert_eq!(condition(&own, "Ready")["status"], "True", "{own}");
    s.becomes_good("web");
    s.pushes("web", &without_settings()).is_safe("Configuration");
}

/// Returns a record like the guard's own without its owner, and with every template but the current one Bad.
fn planted(known: &Value) -> Value {
    let mut status = known["status"].clone();
    let current = status["templateHash"].clone();
    assert!(!revision(known, &current).is_null(), "{known}");
    for revision in status["revisions"].as_array_mut().into_iter().flatten() {
        if revision["templateHash"] != current {
            revision["verdict"] = json!("Bad");
            revision["reason"] = json!("Application");
        }
    }
    assert!(status.to_string().contains("\"Bad\""), "nothing to lie about: {known}");
    json!({
        "apiVersion": known["apiVersion"],
        "kind": known["kind"],
        "metadata": {"name": known["metadata"]["name"]},
        "spec": known["spec"],
        "status": status,
    })
}

/// Creates a record as an administrator, with its status, and returns its uid.
fn plant(s: &Scenario, record: &Value) -> String {
    // The protection goes a moment after the chart says so.
    let made = wait_until("anybody may write records", seconds(30), || {
        let done = s.kubectl(["create", "-o", "json", "-f", "-"]).input(record.to_string()).done();
        holds(done.ok(), done.report()).map(|()| done.stdout)
    });
    let status = json!({"status": record["status"]}).to_string();
    let name = record["metadata"]["name"].as_str().unwrap_or_default();
    s.kubectl(["patch", "rolloutrecord", name, "--subresource=status", "--type=merge", "-p", &status])
        .succeeds();
    let made: Value = serde_json::from_str(&made).expect("the record");
    made["metadata"]["uid"].as_str().unwrap_or_default().to_owned()
}
