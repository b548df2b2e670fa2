//! The Secret and the caBundles, destroyed.

use std::time::Instant;

use serde_json::json;

use crate::harness::{
    Scenario, Stream,
    cluster::{json as get, kubectl},
    installation::{self, Values},
    seconds,
    stream::failures,
    wait::holds,
    wait_until,
};

const CONFIGURATIONS: [&str; 2] = ["validatingwebhookconfiguration", "mutatingwebhookconfiguration"];

#[test]
fn a_certificate_secret_that_is_deleted_comes_back_and_no_update_fails_meanwhile_even_with_fail() {
    let s = Scenario::alone_with("secret", &Values::of(&["webhook.failurePolicy=Fail"]));
    let stream = Stream::start(&s);
    wait_until("the stream flows", seconds(20), || holds(stream.sent() >= 5, stream.sent().to_string()));
    let started = Instant::now();
    kubectl(["delete", "secret", installation::SECRET, "-n", installation::NAME]).succeeds();
    wait_until("the Secret is there again", seconds(30), || {
        get(["get", "secret", installation::SECRET, "-n", installation::NAME]).map(|_| ())
    });
    s.say(&format!("the Secret is back after {:.1} s", started.elapsed().as_secs_f64()));
    let at_least = stream.sent() + 60;
    wait_until("updates go on", seconds(60), || holds(stream.sent() >= at_least, stream.sent().to_string()));
    let updates = stream.finish();
    let failures = failures(&updates);
    s.say(&format!("{} updates, {} failed", updates.len(), failures.len()));
    assert!(failures.is_empty(), "{} of {} failed: {}", failures.len(), updates.len(), failures.join("\n"));
}

#[test]
fn fault_22_ca_bundles_that_are_wiped_are_back_within_30_seconds_and_no_update_is_lost() {
    let s = Scenario::alone("ca-bundle");
    let stream = Stream::start(&s);
    wait_until("the stream flows", seconds(20), || holds(stream.sent() >= 5, stream.sent().to_string()));
    let writes = || installation::metric("rollout_guard_ca_bundle_writes_total", &[]);
    let (before, errors) = (writes(), installation::metric("rollout_guard_certificate_errors_total", &[]));
    const TIMES: u32 = 3;
    for _ in 0..TIMES {
        wipe_ca_bundles(&s);
    }
    let at_least = stream.sent() + 30;
    wait_until("updates go on", seconds(60), || holds(stream.sent() >= at_least, stream.sent().to_string()));
    let updates = stream.finish();
    let failures = failures(&updates);
    assert!(failures.is_empty(), "{} of {} failed: {}", failures.len(), updates.len(), failures.join("\n"));
    // Two replicas, two configurations: what one has written the other may just be writing as well.
    let written = writes() - before;
    s.say(&format!("{} updates, {written} writes of caBundles", updates.len()));
    assert!(written <= f64::from(TIMES * 4), "{written} writes: the replicas fight");
    let errors = installation::metric("rollout_guard_certificate_errors_total", &[]) - errors;
    assert!(errors < 1.0, "{errors} certificate errors");
}

/// With Fail a call that cannot be trusted is an error for whoever made it, and nothing in the guard can change
/// that; so this holds down for how long, and that none of those updates is half done.
#[test]
fn under_fail_wiped_ca_bundles_cost_refusals_for_a_moment_only() {
    let s = Scenario::alone_with("ca-bundle-fail", &Values::of(&["webhook.failurePolicy=Fail"]));
    let stream = Stream::start(&s);
    wait_until("the stream flows", seconds(20), || holds(stream.sent() >= 5, stream.sent().to_string()));
    let started = Instant::now();
    wipe_ca_bundles(&s);
    let back = Instant::now();
    let at_least = stream.sent() + 30;
    wait_until("updates go on", seconds(60), || holds(stream.sent() >= at_least, stream.sent().to_string()));
    let updates = stream.finish();
    let failed: Vec<_> = updates.iter().filter(|update| !update.done.ok()).collect();
    s.say(&format!("{} updates, {} refused meanwhile", updates.len(), failed.len()));
    for update in failed {
        assert!(update.done.stderr.contains("x509"), "refused for another reason: {}", update.done.report());
        // A second for the API server to take notice.
        let meanwhile = update.sent_at + seconds(1) >= started && update.sent_at <= back + seconds(1);
        assert!(meanwhile, "refused though the caBundles were there: {}", update.done.report());
    }
}

/// Takes the caBundle out of both configurations, and waits until both have it again.
fn wipe_ca_bundles(s: &Scenario) {
    let started = Instant::now();
    for kind in CONFIGURATIONS {
        let patch = json!([{"op": "remove", "path": "/webhooks/0/clientConfig/caBundle"}]);
        kubectl(["patch", kind, installation::NAME, "--type=json", "-p", &patch.to_string()]).succeeds();
    }
    wait_until("the caBundles are back", seconds(30), || {
        for kind in CONFIGURATIONS {
            holds(!installation::ca_bundle(kind)?.is_empty(), format!("{kind} has none"))?;
        }
        Ok(())
    });
    s.say(&format!("caBundles wiped, and back after {:.1} s", started.elapsed().as_secs_f64()));
}
