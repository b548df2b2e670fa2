//! failurePolicy Fail, and nobody there to answer.

use serde_json::{Value, json};

use crate::harness::{
    Scenario,
    cluster::{json as get, kubectl},
    deployment,
    installation::{self, Values},
    restore, seconds,
    wait::holds,
    wait_until,
};

#[test]
fn with_all_replicas_killed_under_fail_the_guard_comes_back_by_itself() {
    let s = Scenario::alone_with("killed", &Values::of(&["webhook.failurePolicy=Fail"]));
    s.create_complete(&deployment("web", |_| {}));
    let before = installation::ready_pods().expect("pods");
    let started = std::time::Instant::now();
    let selector = "app.kubernetes.io/name=rollout-guard";
    kubectl(["delete", "pods", "-n", installation::NAME, "-l", selector, "--force", "--grace-period=0"])
        .succeeds();
    wait_until("two other replicas are ready", seconds(60), || {
        let now = installation::ready_pods()?;
        holds(
            now.len() == 2 && now.iter().all(|pod| !before.contains(pod)),
            format!("{now:?}, before {before:?}"),
        )
    });
    s.say(&format!("two other replicas after {:.1} s", started.elapsed().as_secs_f64()));
    wait_until("pushes are judged again", seconds(20), || {
        let done = s.push("web", |push| push.image("v2"));
        holds(done.ok(), done.report())
    });
    s.completes("web");
}

#[test]
fn fault_28_with_no_replica_under_fail_the_system_namespaces_and_the_guards_own_still_work() {
    let s = Scenario::alone_with("closed-door", &Values::of(&["webhook.failurePolicy=Fail"]));
    s.create_complete(&deployment("web", |_| {}));
    let down = installation::without_replicas();

    // The door is shut for everybody else, so what passes below was never matched.
    let refused = s.rejects("web", |push| push.image("v2"));
    assert!(
        refused.text.contains("failed calling webhook \"validate.rollout-guard.io\""),
        "{}",
        refused.text
    );
    s.accepts("web", |change| change.spec("replicas", json!(2)));
    s.create(&deployment("other", |_| {}));

    // A Deployment of kube-system rolls, and so does the guard's own, which comes back by that.
    let stamp = |namespace: &str, name: &str, value: Value| {
        let patch = json!({"spec": {"template": {"metadata": {"annotations": {"e2e": value}}}}});
        kubectl(["patch", "deployment", name, "-n", namespace, "-p", &patch.to_string()]).succeeds();
    };
    let _unstamp = restore("take the annotations off", || {
        stamp(installation::NAME, installation::NAME, Value::Null);
        stamp("kube-system", "coredns", Value::Null);
        kubectl(["rollout", "status", "deployment/coredns", "-n", "kube-system", "--timeout=90s"]).succeeds();
    });
    stamp("kube-system", "coredns", json!(s.namespace));
    kubectl(["rollout", "status", "deployment/coredns", "-n", "kube-system", "--timeout=90s"]).succeeds();
    stamp(installation::NAME, installation::NAME, json!(s.namespace));

    let idle = deployment("e2e-idle", |d| d["spec"]["replicas"] = json!(0)).to_string();
    kubectl(["create", "-n", "kube-node-lease", "-f", "-"]).input(idle).succeeds();
    let _gone = restore("delete the Deployment in kube-node-lease", || {
        kubectl(["delete", "deployment", "e2e-idle", "-n", "kube-node-lease", "--wait=false"]).succeeds();
    });
    stamp("kube-node-lease", "e2e-idle", json!(s.namespace));

    // Deployments are all that it is ever asked about, so nodes, leases, certificate requests and token reviews
    // are nothing to it.
    for kind in ["validatingwebhookconfiguration", "mutatingwebhookconfiguration"] {
        let configuration = get(["get", kind, installation::NAME]).expect(kind);
        assert_eq!(configuration["webhooks"].as_array().map(Vec::len), Some(1), "{configuration}");
        let rules = &configuration["webhooks"][0]["rules"];
        assert_eq!(rules.as_array().map(Vec::len), Some(1), "{rules}");
        assert_eq!(
            (&rules[0]["apiGroups"], &rules[0]["resources"]),
            (&json!(["apps"]), &json!(["deployments"]))
        );
    }
    let renewed = || {
        let leases =
            get(["get", "leases", "-n", "kube-node-lease"]).unwrap_or_else(|words| panic!("{words}"));
        leases["items"][0]["spec"]["renewTime"].as_str().unwrap_or_default().to_owned()
    };
    let before = renewed();
    wait_until("the node's lease is renewed", seconds(30), || {
        let now = renewed();
        holds(now != before, now)
    });
    let node = get(["get", "nodes"]).expect("nodes")["items"][0]["metadata"]["name"].clone();
    let node = node.as_str().unwrap_or_default().to_owned();
    kubectl(["label", "node", &node, "e2e=seen"]).succeeds();
    kubectl(["label", "node", &node, "e2e-"]).succeeds();
    let review =
        json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": "x"}});
    kubectl(["create", "-f", "-"]).input(review.to_string()).succeeds();
    s.kubectl(["create", "token", "default"]).succeeds();

    drop(down);
    s.accepts("web", |push| push.image("v2"));
}

#[test]
fn fault_25_a_bad_update_of_the_guard_itself_is_never_blocked_and_the_old_replicas_serve_on() {
    let s = Scenario::alone("bad-update");
    s.create_complete(&deployment("healthy", |_| {}));
    s.create_unobserved(&[deployment("web", |_| {})]);
    let back = restore("put the guard's image back", || installation::install());
    let bad =
        installation::upgrade(&["image.tag=missing", "image.pullPolicy=Never", "webhook.failurePolicy=Fail"])
            .args(["--timeout", "5s"])
            .done();
    assert!(!bad.ok(), "the missing image is not noticed: {}", bad.report());
    wait_until("the bad pod is there", seconds(30), || {
        let pods = get(["get", "pods", "-n", installation::NAME])?.to_string();
        holds(pods.contains("ErrImageNeverPull"), pods)
    });
    // The old replicas judge.
    s.rejects("web", |push| push.image("v3").dry_run()).at_once("RG001");
    s.accepts("healthy", |push| push.template_annotation("seen", "yes"));
    // The correction of the guard is a push over its own failed generation.
    drop(back);
}
