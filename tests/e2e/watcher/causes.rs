//! Causes that are rolled back.

use std::fs;

use k8s_openapi::ByteString;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{by_deadline, container, missing_image, registry, without_settings};
use crate::harness::{
    Run, Scenario,
    cluster::kubectl,
    denial::denied,
    deployment,
    metrics::of_the_leader,
    record::{is_announced, outcome, short, verdict},
    restore,
    scenario::is_unobserved,
    seconds,
    wait::holds,
    wait_until,
    workload::image_of,
};

#[test]
fn an_image_that_is_not_found_is_rolled_back_and_told_once() {
    let s = Scenario::shared("image-not-found");
    let _policy = s.short_policy();
    s.create_good(&deployment("web", |_| {}));
    let before = of_the_leader().unwrap_or_else(|words| panic!("{words}"));
    let pushed = s.pushes("web", &missing_image());
    let record = pushed.is_safe("Image");
    wait_until("the rollback is counted by the leader", seconds(10), || {
        let now = of_the_leader()?;
        for series in [
            r#"rollout_guard_rollbacks_total{outcome="succeeded",cause="Image"}"#,
            "rollout_guard_time_to_detect_seconds_count",
            "rollout_guard_time_to_safety_seconds_count",
            "rollout_guard_records_written_total",
        ] {
            // By at least one: other scenarios run beside.
            let (before, now) = (before.value(series), now.value(series));
            holds(now >= before + 1.0, format!("{series}: {before} before, {now} now"))?;
        }
        Ok(())
    });
    assert!(words(&record).contains("not found"), "{record}");
    let said = s.is_told_once("web", "RolloutStuck");
    assert!(said.contains("not found"), "{said}");
    // Whoever still waits for the push hears of it, for as long as the policy says.
    assert!(is_announced(&s.deployment("web")), "{}", s.deployment("web")["status"]);
    s.announcement_ends("web");
    assert_eq!(image_of(&s.deployment("web")), "localhost/sample:v1");
    // Nothing of it was told again meanwhile.
    for reason in ["RolloutStuck", "RolledBack", "RollbackVerified"] {
        s.is_told_once("web", reason);
    }
}

#[test]
fn an_image_that_may_not_be_pulled_is_rolled_back() {
    let s = Scenario::shared("image-unauthorised");
    let _policy = s.short_policy();
    s.create_good(&deployment("web", |_| {}));
    let record = s.pushes("web", &container(json!({"image": registry::image("private")}))).is_safe("Image");
    assert!(words(&record).contains("401"), "{record}");
}

#[test]
fn a_crash_loop_is_rolled_back() {
    let s = Scenario::shared("crash-loop");
    let _policy = s.short_policy();
    s.create_good(&deployment("web", |d| {
        // Else the second before each crash would do for a good revision.
        d["spec"]["minReadySeconds"] = json!(2);
    }));
    s.pushes("web", &container(json!({"args": ["crash"]}))).is_safe("Application");
}

/// For containers that end at once: without a readiness probe they count as ready until they do, twice in a row as
/// the first restart comes at once, and `goodAfter` must be longer than that.
fn patient() -> Value {
    let mut policy = short();
    policy["watch"]["goodAfter"] = json!("4s");
    policy
}

/// Creates a Deployment that is good under [`patient`].
fn create_good_for_longer(s: &Scenario) {
    s.create_complete(&deployment("web", |_| {}));
    s.is_complete_for("web", seconds(6));
}

#[test]
fn a_container_that_runs_out_of_memory_is_rolled_back() {
    let s = Scenario::shared("out-of-memory");
    let _policy = s.put_in_force("short", patient());
    create_good_for_longer(&s);
    let limited = container(json!({"args": ["oom"], "resources": {"limits": {"memory": "16Mi"}}}));
    let record = s.pushes("web", &limited).is_safe("Application");
    assert!(words(&record).contains("memory") || words(&record).contains("OOMKilled"), "{record}");
}

/// What `exit` prints before it ends.
const LAST_WORDS: &str = "ending with status 3 on purpose";

/// Without a readiness probe the rollout is complete for a moment, and then for ever "successfully progressed".
#[test]
fn a_container_that_ends_at_once_is_rolled_back_and_its_last_words_are_kept() {
    let s = Scenario::shared("exit-logs");
    let mut policy = patient();
    policy["evidence"] = json!({"logs": true});
    let _policy = s.put_in_force("short", policy);
    create_good_for_longer(&s);
    let pushed = s.pushes("web", &container(json!({"args": ["exit", "3"]})));
    let record = s.wait_for_record("the last words are kept", "web", |record| {
        record["status"]["rollback"]["evidence"].to_string().contains(LAST_WORDS)
    });
    assert_eq!(record["status"]["rollback"]["cause"], "Application");
    let record = pushed.is_safe("Application");
    assert!(words(&record).contains("exit code 3"), "{record}");
}

#[test]
fn without_the_policys_permission_no_line_of_a_log_is_kept() {
    let s = Scenario::shared("exit");
    let _policy = s.put_in_force("short", patient());
    create_good_for_longer(&s);
    let pushed = s.pushes("web", &container(json!({"args": ["exit", "3"]})));
    // Looked at each time: what is kept while it is stuck may be gone afterwards.
    let record = s.wait_for_record("the rollback is verified", "web", |record| {
        assert!(!record.to_string().contains("on purpose"), "{record}");
        outcome(record) == "Succeeded"
    });
    let rollback = &record["status"]["rollback"];
    assert_eq!(rollback["cause"], "Application", "{rollback}");
    pushed.is_safe("Application");
    let events = s.json(["get", "events"]).to_string();
    assert!(!events.contains("on purpose"), "{events}");
}

#[test]
fn a_pod_that_never_gets_ready_is_rolled_back_at_the_progress_deadline() {
    let s = Scenario::shared("never-ready");
    let _policy = s.short_policy();
    s.create_good(&deployment("web", |d| {
        let probe = json!({"httpGet": {"path": "/ready", "port": 8080}, "periodSeconds": 1});
        d["spec"]["template"]["spec"]["containers"][0]["readinessProbe"] = probe;
    }));
    s.pushes("web", &by_deadline(container(json!({"args": ["unready"]})), 5)).is_safe("Application");
}

#[test]
fn a_deadline_that_passes_without_a_cause_is_rolled_back() {
    let s = Scenario::shared("deadline");
    let _policy = s.short_policy();
    s.create_good(&deployment("web", |_| {}));
    // All containers are well; the pod is not, as nobody says the word that it waits for.
    let gate =
        json!({"spec": {"template": {"spec": {"readinessGates": [{"conditionType": "example.com/word"}]}}}});
    s.pushes("web", &by_deadline(gate, 5)).is_safe("Unknown");
}

#[test]
fn a_missing_configmap_is_rolled_back() {
    let s = Scenario::shared("missing-configmap");
    let _policy = s.short_policy();
    s.create_good(&deployment("web", |_| {}));
    let record = s.pushes("web", &without_settings()).is_safe("Configuration");
    assert!(words(&record).contains("settings"), "{record}");
}

#[test]
fn a_missing_secret_of_a_volume_is_rolled_back() {
    let s = Scenario::shared("missing-secret");
    let _policy = s.short_policy();
    s.create_good(&deployment("web", |_| {}));
    let mut mounts = container(json!({"volumeMounts": [{"name": "keys", "mountPath": "/keys"}]}));
    mounts["spec"]["template"]["spec"]["volumes"] =
        json!([{"name": "keys", "secret": {"secretName": "keys"}}]);
    let record = s.pushes("web", &mounts).is_safe("Configuration");
    // The pod itself does not say so: the only words are those of an event.
    assert!(words(&record).contains("secret") && words(&record).contains("not found"), "{record}");
}

#[test]
fn fault_47_a_quota_on_replica_sets_is_rolled_back_to_the_last_good_revision_and_not_one_further() {
    let s = Scenario::shared("replicaset-quota");
    let _policy = s.short_policy();
    s.create_good(&deployment("web", |_| {}));
    s.accepts("web", |push| push.image("v2"));
    s.completes("web");
    s.becomes_good("web");
    s.wait_for_record("v2 is good", "web", |record| verdict(record) == "Good");
    s.allow_no_more_replica_sets();
    let pushed = s.pushes("web", &container(json!({"image": "localhost/sample:v3"})));
    s.wait_for("the push is unobserved", "web", is_unobserved);
    let record = pushed.is_safe("ReplicaSetCreate");
    assert!(words(&record).contains("exceeded quota"), "{record}");
    let after = s.deployment("web");
    assert_eq!(image_of(&after), "localhost/sample:v2");
    assert!(!is_unobserved(&after), "{}", after["status"]);
    assert_eq!(record["status"]["rollback"]["toRevision"], 2, "{record}");
    // The quota still stands; nothing more is needed than what is there.
    let sets = s.json(["get", "replicasets"]);
    assert_eq!(sets["items"].as_array().map(Vec::len), Some(2), "{sets}");
}

#[test]
fn fault_47_a_replica_set_that_an_admission_policy_denies_is_rolled_back() {
    let s = Scenario::shared("replicaset-policy");
    let _policy = s.short_policy();
    s.create_good(&deployment("web", |_| {}));
    let _denial = denies_replica_sets_of(&s, "localhost/sample:v3");
    pushes_what_gets_no_replica_set(&s, "v3 is not allowed here");
}

#[test]
fn fault_47_a_replica_set_that_another_webhook_denies_is_rolled_back() {
    let s = Scenario::shared("replicaset-denied");
    let _policy = s.short_policy();
    s.create_good(&deployment("web", |_| {}));
    let words = "no new ReplicaSets on Fridays";
    let _webhook = another_webhook_denies_replica_sets(&s, words);
    let record = pushes_what_gets_no_replica_set(&s, words);
    assert!(
        self::words(&record).contains("admission webhook \"deny.example.com\" denied the request"),
        "{record}"
    );
}

/// Pushes v3, whose ReplicaSet nobody may create, until it is rolled back for these words, and returns the record.
fn pushes_what_gets_no_replica_set(s: &Scenario, why: &str) -> Value {
    let pushed = s.pushes("web", &container(json!({"image": "localhost/sample:v3"})));
    let record = pushed.is_safe("ReplicaSetCreate");
    assert!(words(&record).contains(why), "{record}");
    let after = s.deployment("web");
    assert!(!is_unobserved(&after), "{}", after["status"]);
    record
}

/// Lets nobody create a ReplicaSet of `image` in the scenario's namespace, until the returned value is dropped.
fn denies_replica_sets_of(s: &Scenario, image: &str) -> impl Drop + use<> {
    let version = image.rsplit(':').next().unwrap_or_default();
    let spec = json!({
        "matchConstraints": {"resourceRules": [creations_of_replica_sets()]},
        "validations": [{
            "expression": format!("object.spec.template.spec.containers.all(c, c.image != '{image}')"),
            "message": format!("{version} is not allowed here"),
        }],
    });
    denied(s, spec, "is not allowed here", &|| creates_a_replica_set(s, image))
}

/// Puts a webhook of somebody else in force that denies each new ReplicaSet in the scenario's namespace in these words,
/// until the returned value is dropped.
fn another_webhook_denies_replica_sets(s: &Scenario, words: &str) -> impl Drop + use<> {
    let host = format!("deny.{}.svc", s.namespace);
    let certificates = TempDir::new().expect("a directory");
    let file = |name: &str| certificates.path().join(name);
    Run::new(env!("CARGO_BIN_EXE_rollout-guard"))
        .args(["certs", "generate", "--dns", &host, "--out-dir"])
        .arg(certificates.path())
        .succeeds();
    s.kubectl(["create", "secret", "tls", "deny"])
        .arg(format!("--cert={}", file("tls.crt").display()))
        .arg(format!("--key={}", file("tls.key").display()))
        .succeeds();
    let mut server = deployment("deny", |d| {
        let pod = &mut d["spec"]["template"]["spec"];
        pod["containers"][0]["args"] = json!(["deny", words]);
        pod["containers"][0]["volumeMounts"] = json!([{"name": "certs", "mountPath": "/certs"}]);
        pod["containers"][0]["readinessProbe"] = json!({"tcpSocket": {"port": 8443}, "periodSeconds": 1});
        pod["volumes"] = json!([{"name": "certs", "secret": {"secretName": "deny"}}]);
    });
    server["metadata"]["labels"] = json!({});
    s.create_complete(&server);
    s.kubectl(["expose", "deployment", "deny", "--port=443", "--target-port=8443"]).succeeds();

    let authority = ByteString(fs::read(file("ca.crt")).expect("a CA"));
    let name = s.namespace.clone();
    let configuration = json!({
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingWebhookConfiguration",
        "metadata": {"name": name},
        "webhooks": [{
            "name": "deny.example.com",
            "clientConfig": {
                "service": {"name": "deny", "namespace": s.namespace},
                "caBundle": authority,
            },
            "rules": [creations_of_replica_sets()],
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": s.namespace}},
            "admissionReviewVersions": ["v1"],
            "sideEffects": "None",
        }],
    });
    kubectl(["create", "-f", "-"]).input(configuration.to_string()).succeeds();
    let gone = restore("take the webhook away", move || {
        kubectl(["delete", "validatingwebhookconfiguration", &name, "--ignore-not-found"]).succeeds();
    });
    wait_until("the webhook denies", seconds(30), || {
        let done = creates_a_replica_set(s, "localhost/sample:v3").done();
        holds(done.words().contains(words), done.report())
    });
    gone
}

fn creations_of_replica_sets() -> Value {
    json!({"apiGroups": ["apps"], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["replicasets"]})
}

/// Returns the command that would create a ReplicaSet of `image`, as a dry run.
fn creates_a_replica_set(s: &Scenario, image: &str) -> Run {
    let template = deployment("probe", |d| {
        d["spec"]["template"]["spec"]["containers"][0]["image"] = json!(image);
    });
    let set = json!({
        "apiVersion": "apps/v1",
        "kind": "ReplicaSet",
        "metadata": {"name": "probe"},
        "spec": {"selector": template["spec"]["selector"], "template": template["spec"]["template"]},
    });
    s.kubectl(["create", "--dry-run=server", "-f", "-"]).input(set.to_string())
}

/// What a record says of why it was rolled back, a line each.
fn words(record: &Value) -> String {
    let rollback = &record["status"]["rollback"];
    let evidence = rollback["evidence"].as_array().into_iter().flatten();
    let lines = std::iter::once(&rollback["message"]).chain(evidence).filter_map(Value::as_str);
    lines.collect::<Vec<_>>().join("\n")
}
