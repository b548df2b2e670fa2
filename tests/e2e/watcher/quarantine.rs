//! A template that was rolled back from, and comes again.

use std::{
    io::{BufRead, BufReader},
    process::{Command, Stdio},
    sync::mpsc::{self, Receiver},
    thread,
};

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use super::{missing_image, without_settings};
use crate::{
    harness::{
        Run, Scenario, deployment, installation,
        record::{generation, judged_by, refused_by, revision, same_template, short, verdict},
        restore, seconds,
        workload::image_of,
    },
    overrides::may_override,
};

#[test]
fn fault_42_a_bad_template_that_gitops_applies_again_is_refused_and_the_fix_is_not() {
    let s = Scenario::shared("gitops");
    let _policy = s.short_policy();
    let apply = |manifest: &Value| -> Run {
        s.kubectl(["apply", "--server-side", "--field-manager=gitops", "-f", "-"]).input(manifest.to_string())
    };
    let of = |image: &str| {
        deployment("web", |d| d["spec"]["template"]["spec"]["containers"][0]["image"] = json!(image))
    };
    apply(&of("localhost/sample:v1")).succeeds();
    s.completes("web");
    s.becomes_good("web");
    let bad = missing_image()["spec"]["template"]["spec"]["containers"][0]["image"].clone();
    let bad = of(bad.as_str().unwrap_or_default());
    let pushed = s.about_to_push("web");
    apply(&bad).succeeds();
    let record = pushed.is_safe("Image");
    let generation = s.generation("web");
    for _ in 0..3 {
        let words = apply(&bad).done().fails();
        assert!(words.contains("RG004 ") && words.contains("(Forbidden)"), "{words}");
        assert!(words.contains("Fix: ") && words.contains("Override: "), "{words}");
        // As Flux asks, before each write.
        let words = apply(&bad).arg("--dry-run=server").done().fails();
        assert!(words.contains("RG004 "), "{words}");
    }
    assert_eq!(s.generation("web"), generation, "refused, and yet it moved");
    assert_eq!(s.record("web")["status"]["rollback"], record["status"]["rollback"]);
    apply(&of("localhost/sample:v2")).succeeds();
    s.completes("web");
    assert_eq!(image_of(&s.deployment("web")), "localhost/sample:v2");
    s.wait_for_record("the fix is good", "web", |record| verdict(record) == "Good");
}

#[test]
fn an_overridden_bad_template_that_completes_is_good_again() {
    let s = Scenario::shared("good-again");
    let _policy = s.short_policy();
    let (chief, clerk) = (s.editor("chief"), s.editor("clerk"));
    let _right = may_override(&chief);
    s.create_good(&deployment("web", |_| {}));
    let pushed = s.pushes("web", &without_settings());
    pushed.is_safe("Configuration");
    // The template was never what was wrong.
    s.kubectl(["create", "configmap", "settings", "--from-literal=COLOUR=blue"]).succeeds();
    let mut again = without_settings();
    let words = s.patch("web", &again).args(["--as", &clerk]).done().fails();
    assert!(words.contains("RG004 "), "{words}");
    again["metadata"]["annotations"]["rollout-guard.io/override"] = json!("the ConfigMap is there now");
    let words = s.patch("web", &again).args(["--as", &clerk]).done().fails();
    assert!(words.contains("RG004 ") && words.contains("Override refused"), "{words}");
    s.patch("web", &again).args(["--as", &chief]).succeeds();
    s.completes("web");
    let overridden = s.deployment("web");
    assert!(!same_template(&overridden, &pushed.good), "{overridden}");
    let record = s.wait_for_record("it is good again", "web", |record| verdict(record) == "Good");
    let hash = &record["status"]["templateHash"];
    assert!(revision(&record, hash)["until"].is_null(), "{record}");
    // Away from it and back again, by anybody and without a word.
    s.accepts("web", |push| push.image("v2").by(&clerk));
    s.completes("web");
    s.patch("web", &json!({"spec": {"template": overridden["spec"]["template"]}}))
        .args(["--as", &clerk])
        .succeeds();
    s.completes("web");
    assert!(same_template(&s.deployment("web"), &overridden));
}

/// Each replica is asked by itself, as the API server asks whichever it likes.
#[test]
fn fault_27_every_replica_knows_a_bad_template_within_a_second() {
    let s = Scenario::shared("every-replica");
    let mut policy = short();
    // Longer than it takes to ask each replica once before.
    policy["watch"]["earlyFailureAfter"] = json!("8s");
    let _policy = s.put_in_force("short", policy);
    // Before there is a record, so that the watch is there in time.
    let (_watch, told) = first_bad(&s);
    s.create_good(&deployment("web", |_| {}));
    let pods = installation::ready_pods().expect("pods");
    assert!(pods.len() > 1, "one replica alone proves nothing: {pods:?}");
    let pushed = s.about_to_push("web");
    let bad = s.patch("web", &without_settings()).args(["-o", "json"]).succeeds();
    let bad: Value = serde_json::from_str(&bad).expect("the patched Deployment");
    let review = review(&pushed.good, &bad);
    for pod in &pods {
        let answer = judged_by(pod, &review).unwrap_or_else(|words| panic!("{words}"));
        assert_eq!(answer["response"]["allowed"], true, "{pod} knows too early: {answer}");
    }
    let refused: Vec<Timestamp> = thread::scope(|scope| {
        let asking: Vec<_> =
            pods.iter().map(|pod| scope.spawn(|| refused_by(pod, &review, "RG004"))).collect();
        asking.into_iter().map(|asked| asked.join().expect("thread")).collect()
    });
    let recorded = told.recv_timeout(seconds(20)).expect("the watch of the record tells of it");
    for (pod, refused) in pods.iter().zip(refused) {
        let took = refused.duration_since(recorded);
        s.say(&format!("{pod} refuses {:.2} s after a watch of the record told Bad", took.as_secs_f64()));
        assert!(took <= SignedDuration::from_secs(1), "{pod} took {took:?}");
    }
    pushed.is_safe("Configuration");
    // And so by the API server, whichever it asks.
    let before = s.generation("web");
    for flag in ["--dry-run=server", "--dry-run=none"].repeat(5) {
        let words = s.patch("web", &without_settings()).arg(flag).done().fails();
        assert!(words.contains("RG004 "), "{words}");
    }
    assert_eq!(s.generation("web"), before, "refused, and yet it moved");
}

/// Watches the scenario's records until the first returned value is dropped; the second one receives when a template was
/// first told to be Bad.
fn first_bad(s: &Scenario) -> (impl Drop + use<>, Receiver<Timestamp>) {
    let mut kubectl = Command::new("kubectl")
        .args(["get", "rolloutrecords.rollout-guard.io", "-n", &s.namespace, "--watch", "-o"])
        .arg(r#"jsonpath={.status.revisions[*].verdict}{"\n"}"#)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .expect("kubectl");
    let lines = BufReader::new(kubectl.stdout.take().expect("a pipe")).lines();
    let (tell, told) = mpsc::channel();
    thread::spawn(move || {
        if lines.map_while(Result::ok).any(|line| line.contains("Bad")) {
            // Nobody hears it where the scenario has failed.
            let _ = tell.send(Timestamp::now());
        }
    });
    let watch = restore("end the watch", move || {
        let _ = kubectl.kill();
        let _ = kubectl.wait();
    });
    (watch, told)
}

/// What the API server would ask about a push of `bad` over `good`.
fn review(good: &Value, bad: &Value) -> Value {
    let mut object = good.clone();
    object["spec"]["template"] = bad["spec"]["template"].clone();
    object["metadata"]["generation"] = json!(generation(good) + 1);
    let kind = json!({"group": "apps", "version": "v1", "kind": "Deployment"});
    let resource = json!({"group": "apps", "version": "v1", "resource": "deployments"});
    json!({
        "apiVersion": "admission.k8s.io/v1",
        "kind": "AdmissionReview",
        "request": {
            "uid": "11111111-2222-4333-8444-555555555555",
            "kind": kind, "resource": resource, "requestKind": kind, "requestResource": resource,
            "name": good["metadata"]["name"], "namespace": good["metadata"]["namespace"],
            "operation": "UPDATE", "userInfo": {"username": "somebody", "groups": ["system:authenticated"]},
            "object": object, "oldObject": good, "dryRun": true,
            "options": {"apiVersion": "meta.k8s.io/v1", "kind": "PatchOptions"},
        },
    })
}
