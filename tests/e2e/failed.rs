//! A generation that Kubernetes has given up.

use serde_json::{Value, json};

use crate::harness::{
    Scenario, deployment, scenario::condition, seconds, wait::holds, wait_until, workload::image_of,
};

/// Returns once the image pull has really failed and the progress deadline is over.
fn failed(s: &Scenario, name: &str) {
    s.create_complete(&deployment(name, |_| {}));
    s.accepts(name, |push| push.image("missing").spec("progressDeadlineSeconds", json!(3)));
    s.wait_for("the progress deadline is over", name, |d| {
        condition(d, "Progressing")["reason"] == "ProgressDeadlineExceeded"
    });
    // The kubelet may be later than the deadline.
    wait_until("the image is not pulled", seconds(60), || {
        let pods = s.json(["get", "pods", "-l", &format!("app={name}")]);
        let waits = pods["items"].to_string();
        holds(waits.contains("ErrImagePull") || waits.contains("ImagePullBackOff"), waits)
    });
}

#[test]
fn a_push_over_a_failed_generation_is_refused_with_words_that_help() {
    let s = Scenario::shared("failed");
    failed(&s, "web");
    let refused = s.rejects("web", |push| push.image("v2")).at_once("RG002");
    insta::assert_snapshot!(redacted(&s, &refused.text), @r#"
    Error from server (Forbidden): admission webhook "validate.rollout-guard.io" denied the request: RG002 NAMESPACE/web is blocked: generation 2 failed since TIME (ProgressDeadlineExceeded)
    Kubernetes says: ReplicaSet "REPLICASET" has timed out progressing.
    Fix: make generation 2 complete (kubectl -n NAMESPACE describe deployment web), then push again; or push the correction with an override.
    Override: set the annotation rollout-guard.io/override: "<why>" in the same update; it takes the verb override on rolloutpolicies/default.
    Docs: docs/reasons.md#rg002
    "#);
}

#[test]
fn over_a_failed_generation_everything_but_a_new_template_still_works() {
    let s = Scenario::shared("failed-else");
    failed(&s, "web");
    s.kubectl(["scale", "deployment/web", "--replicas=2"]).succeeds();
    s.accepts("web", |change| change.spec("replicas", json!(1)));
    s.kubectl(["annotate", "deployment/web", "note=seen"]).succeeds();
    s.kubectl(["label", "deployment/web", "seen=yes"]).succeeds();
    s.kubectl(["rollout", "pause", "deployment/web"]).succeeds();
    s.kubectl(["rollout", "resume", "deployment/web"]).succeeds();
    s.accepts("web", |change| change.spec("strategy", json!({"type": "Recreate", "rollingUpdate": null})));
    // Others are not concerned.
    s.create_complete(&deployment("other", |_| {}));
    s.accepts("other", |push| push.image("v2"));
    s.kubectl(["delete", "deployment/web", "--wait=false"]).succeeds();
}

#[test]
fn a_crash_loop_that_runs_into_its_deadline_is_failed_too() {
    let s = Scenario::shared("crash");
    // Else it would be rolled back before its deadline.
    let _policy = s.put_in_force("by-hand", json!({"rollback": {"mode": "Off"}}));
    s.create_complete(&deployment("web", |d| {
        // Else the moment before the first crash would do for a complete rollout.
        d["spec"]["minReadySeconds"] = json!(2);
    }));
    let crash = json!([
        {"op": "add", "path": "/spec/template/spec/containers/0/args", "value": ["exit", "3"]},
        {"op": "add", "path": "/spec/progressDeadlineSeconds", "value": 4},
    ]);
    s.kubectl(["patch", "deployment/web", "--type=json", "-p", &crash.to_string()]).succeeds();
    s.wait_for("the progress deadline is over", "web", |d| {
        condition(d, "Progressing")["reason"] == "ProgressDeadlineExceeded"
    });
    // Ready for a moment before each crash it gets on, as Kubernetes sees it, and is failed again after that.
    wait_until("a push is refused", seconds(60), || {
        let done = s.push("web", |push| push.image("v2").dry_run());
        holds(!done.ok() && done.words().contains("RG002 "), done.report())
    });
    assert_eq!(image_of(&s.deployment("web")), "localhost/sample:v1");
}

/// Takes out of a refusal what differs from run to run.
fn redacted(s: &Scenario, text: &str) -> String {
    let sets = s.json(["get", "replicasets"]);
    let names = sets["items"].as_array().into_iter().flatten();
    let names: Vec<&str> = names.filter_map(|set: &Value| set["metadata"]["name"].as_str()).collect();
    let text = names
        .iter()
        .fold(text.replace(&s.namespace, "NAMESPACE"), |text, name| text.replace(name, "REPLICASET"));
    let words = text.split(' ').map(|word| if is_time(word) { "TIME" } else { word });
    words.collect::<Vec<_>>().join(" ").trim_end().to_owned()
}

/// `2026-11-23T17:16:39Z`
fn is_time(word: &str) -> bool {
    word.len() == 20 && word.starts_with("20") && word.ends_with('Z') && word.as_bytes()[10] == b'T'
}
