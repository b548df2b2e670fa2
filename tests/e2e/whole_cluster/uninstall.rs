//! The guard goes, and takes with it all that would bite.

use serde_json::json;

use crate::harness::{
    Scenario,
    cluster::{json as get, kubectl},
    deployment, installation, restore, seconds,
    wait::holds,
    wait_until,
};

#[test]
fn fault_25_uninstall_leaves_nothing_that_bites() {
    let s = Scenario::alone("uninstall");
    s.create_unobserved(&[deployment("web", |_| {})]);
    // One that Helm does not know of, and that outlives the release.
    let policy = s.put_in_force("own", json!({"admission": {"maxWaitSeconds": 1}}));
    s.rejects("web", |push| push.image("v3").dry_run()).at_once("RG001");
    let again = restore("install the guard again", || installation::install());
    installation::uninstall();
    kubectl(["delete", "secret", installation::SECRET, "-n", installation::NAME]).succeeds();

    let started = std::time::Instant::now();
    let none = |kind: &str| {
        wait_until(&format!("no {kind} of the guard is left"), seconds(60), || {
            let list = get(["get", kind])?;
            let names = list["items"].as_array().into_iter().flatten();
            let left: Vec<_> = names.filter_map(|item| item["metadata"]["name"].as_str()).collect();
            let left: Vec<_> = left.into_iter().filter(|name| name.contains("rollout-guard")).collect();
            // The test's own bindings have other names.
            holds(left.is_empty(), format!("{left:?}"))
        });
    };
    for kind in [
        "validatingwebhookconfigurations",
        "mutatingwebhookconfigurations",
        "validatingadmissionpolicybindings",
        "clusterroles",
        "clusterrolebindings",
        "priorityclasses",
    ] {
        none(kind);
    }
    wait_until("the push over the unobserved generation passes", seconds(30), || {
        let done = s.push("web", |push| push.image("v3"));
        holds(done.ok(), done.report())
    });
    s.say(&format!("nothing bites {:.1} s after uninstall", started.elapsed().as_secs_f64()));
    wait_until("the namespace holds no workload", seconds(60), || {
        let left = get(["get", "all,poddisruptionbudgets,roles,rolebindings", "-n", installation::NAME])?;
        holds(left["items"].as_array().is_some_and(Vec::is_empty), left["items"].to_string())
    });
    // By the chart's word: the CRD stays, and with it the policies that people wrote.
    get(["get", "crd", "rolloutpolicies.rollout-guard.io"]).expect("the CRD stays");
    get(["get", "rolloutpolicy", &policy.name]).expect("a policy of one's own stays");
    // The notes say to delete the Secret by hand; no replica that was still draining has put it back.
    let secret = get(["get", "secret", installation::SECRET, "-n", installation::NAME]);
    assert!(secret.is_err(), "the Secret is there again: {secret:?}");

    // Installed again, it finds the policy that was left.
    drop(again);
    policy.settles();
    s.rejects("web", |push| push.image("v1").dry_run()).at_once("RG001");
    kubectl(["delete", "rolloutpolicy", &policy.name]).succeeds();
}
