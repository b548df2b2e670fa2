//! A generation that kube-controller-manager cannot act on: a quota lets no ReplicaSet be made.

use std::{fs, thread};

use serde_json::json;
use tempfile::TempDir;

use crate::harness::{Done, Run, Scenario, deployment, scenario::is_unobserved, seconds, workload::image_of};

#[test]
fn helm_upgrade_waits_and_then_fails_with_the_reason() {
    let s = Scenario::shared("helm-waits");
    let chart = chart();
    let _policy = s.put_in_force("short", json!({"admission": {"maxWaitSeconds": 2}}));
    helm(&s, &chart, "v1").succeeds();
    s.completes("web");
    s.allow_no_more_replica_sets();
    helm(&s, &chart, "v2").succeeds();
    s.wait_for("the push is unobserved", "web", is_unobserved);
    let done = helm(&s, &chart, "v3");
    s.say(&format!("helm gave up after {:.1} s", done.took.as_secs_f64()));
    assert!((seconds(10)..seconds(60)).contains(&done.took), "{}", done.report());
    let words = done.fails();
    assert!(words.contains("RG001 ") && words.contains("Fix: "), "{words}");
    assert_eq!(image_of(&s.deployment("web")), "localhost/sample:v2");
}

#[test]
fn what_waits_goes_through_by_itself_when_the_quota_is_lifted() {
    let s = Scenario::shared("lifted");
    let chart = chart();
    s.create_complete(&deployment("other", |_| {}));
    helm(&s, &chart, "v1").succeeds();
    s.completes("web");
    s.allow_no_more_replica_sets();
    // Both first pushes at once: kube-controller-manager tries again ever more rarely.
    thread::scope(|scope| {
        scope.spawn(|| helm(&s, &chart, "v2").succeeds());
        scope.spawn(|| s.accepts("other", |push| push.image("v2")));
    });
    for name in ["web", "other"] {
        s.wait_for("the push is unobserved", name, is_unobserved);
    }
    let (kubectl, helm) = thread::scope(|scope| {
        let kubectl =
            scope.spawn(|| s.kubectl(["set", "image", "deployment/other", "app=localhost/sample:v3"]).done());
        let helm = scope.spawn(|| helm(&s, &chart, "v3"));
        // Both have been told to wait, before the reason goes away.
        s.is_told_to_wait("web");
        s.is_told_to_wait("other");
        assert!(!kubectl.is_finished() && !helm.is_finished(), "did not wait");
        s.lift_quota();
        (kubectl.join().expect("thread"), helm.join().expect("thread"))
    });
    for done in [kubectl, helm] {
        s.say(&format!("went through after {:.1} s", done.took.as_secs_f64()));
        assert!(done.took > seconds(1), "did not wait: {}", done.report());
        done.succeeds();
    }
    for name in ["web", "other"] {
        s.completes(name);
        assert_eq!(image_of(&s.deployment(name)), "localhost/sample:v3");
    }
}

/// A chart of one Deployment, as anybody's.
fn chart() -> TempDir {
    let dir = TempDir::new().expect("temporary directory");
    let manifest = deployment("web", |d| {
        d["spec"]["template"]["spec"]["containers"][0]["image"] = json!("localhost/sample:{{ .Values.tag }}");
    });
    fs::create_dir(dir.path().join("templates")).expect("templates");
    fs::write(dir.path().join("templates/web.yaml"), manifest.to_string()).expect("template");
    fs::write(dir.path().join("values.yaml"), "tag: v1\n").expect("values");
    fs::write(dir.path().join("Chart.yaml"), "apiVersion: v2\nname: web\nversion: 0.1.0\n").expect("chart");
    dir
}

fn helm(s: &Scenario, chart: &TempDir, tag: &str) -> Done {
    Run::new("helm")
        .args(["upgrade", "--install", "web"])
        .arg(chart.path())
        .args(["-n", &s.namespace, "--set", &format!("tag={tag}")])
        .done()
}
