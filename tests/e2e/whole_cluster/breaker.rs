//! What no push is to blame for: the breaker holds all rollbacks, and the caps hold them to a few at a time.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Instant,
};

use serde_json::{Value, json};

use super::{gates, guard, records};
use crate::{
    harness::{
        Run, Scenario,
        cluster::{self, kubectl},
        deployment,
        installation::{self, Values},
        metrics::of_the_leader,
        policy::InForce,
        record::{generation, is_complete, outcome, same_template, short, unchanged_for},
        restore,
        scenario::{LABEL, condition, is_unobserved},
        seconds,
        wait::holds,
        wait_until,
        workload::image_of,
    },
    watcher::{container, without_settings},
};

#[test]
fn fault_37_while_kube_controller_manager_is_away_nothing_is_rolled_back_and_its_return_completes_the_push() {
    let s = Scenario::alone("manager-away");
    let _policy = s.short_policy();
    s.create_good(&deployment("web", |_| {}));
    s.create_good(&deployment("other", |_| {}));
    let stopped = cluster::without_controller_manager();
    let away = Instant::now();
    let pushed = s.pushes("web", &container(json!({"image": "localhost/sample:v2"}))).within(seconds(90));
    // This one is bad, which nobody can know yet.
    let bad = s.pushes("other", &without_settings()).within(seconds(90));
    for (name, pushed) in [("web", &pushed), ("other", &bad)] {
        let words = pushed.is_held("ControlPlane");
        assert!(words.contains("kube-controller-manager shows no sign of life"), "{words}");
        assert!(is_unobserved(&s.deployment(name)), "observed by nobody");
    }
    is_open("controller_manager", true);
    let leader = guard::pod_of(&guard::holder().expect("a leader"));
    let metrics = installation::metrics_of(&leader).expect("metrics");
    assert!(metrics.contains("rollout_guard_breaker_open{reason=\"controller_manager\"} 1"), "{metrics}");
    // `check` says so, and the Lease: for whoever may read no metrics.
    let checked = Run::new(env!("CARGO_BIN_EXE_rollout-guard"))
        .args(["check", "-n", installation::NAME])
        .done()
        .words();
    assert!(checked.contains("kube-controller-manager does not renew its lease"), "{checked}");
    s.say(&format!("the leader knew at the latest {:.1} s after it was gone", away.elapsed().as_secs_f64()));

    let back = Instant::now();
    drop(stopped);
    let bad = bad.counted_from_now();
    s.completes("web");
    s.say(&format!(
        "the push was complete {:.1} s after the manifest was back",
        back.elapsed().as_secs_f64()
    ));
    let record = s.wait_for_record("web is ready", "web", |record| {
        condition(record, "Ready")["status"] == "True" && condition(record, "Stalled")["status"] == "False"
    });
    let after = s.deployment("web");
    assert_eq!((generation(&after), image_of(&after)), (2, "localhost/sample:v2"), "{record}");
    assert!(record["status"]["rollback"].is_null(), "{record}");
    assert!(s.events("web", "RolledBack").is_empty(), "told of a rollback");
    bad.is_safe("Configuration");
    is_open("controller_manager", false);
}

#[test]
fn fault_38_when_most_deployments_break_at_once_the_breaker_opens_and_it_closes_when_they_are_put_right() {
    const ALL: usize = 8;
    const BROKEN: usize = 6;
    let s = Scenario::alone_with("most-broken", &Values::OwnLimits);
    let _policy = s.short_policy();
    let names: Vec<String> = (0..ALL).map(|i| format!("web-{i}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let list: Vec<Value> = names.iter().map(|name| deployment(name, |_| {})).collect();
    s.create(&json!({"apiVersion": "v1", "kind": "List", "items": list}));
    names.iter().for_each(|name| s.completes(name));
    names.iter().for_each(|name| s.becomes_good(name));
    let (broken, whole) = names.split_at(BROKEN);

    let pushed: Vec<_> = broken.iter().map(|name| s.about_to_push(name)).collect();
    // However slowly the kubelet says so, all are stuck before one is put back.
    let closed = gates::closed_to_restores(&s, whole[0]);
    let started = Instant::now();
    patch_all(&s, broken, &without_settings());
    is_open("many_stuck", true);
    drop(closed);
    let opened_by = |record: &Value| {
        let stalled = condition(record, "Stalled");
        let words = stalled["message"].as_str().unwrap_or_default();
        stalled["status"] == "True" && stalled["reason"] == "Held" && words.contains("became stuck at once")
    };
    let held: BTreeSet<&str> = wait_until("each is held or was rolled back before", seconds(60), || {
        let records: Vec<(&str, Value)> = broken.iter().map(|name| (*name, s.record(name))).collect();
        let open = |record: &Value| !opened_by(record) && outcome(record) != "Succeeded";
        let open: Vec<_> = records.iter().filter(|(_, record)| open(record)).map(|(name, _)| *name).collect();
        holds(open.is_empty(), format!("neither: {open:?}"))?;
        Ok(records.iter().filter(|(_, record)| opened_by(record)).map(|(name, _)| *name).collect())
    });
    let took = started.elapsed().as_secs_f64();
    s.say(&format!("push to held: {}: {took:.1} s, cause Configuration, {} of {BROKEN}", s.name, held.len()));
    assert_eq!(held.len(), BROKEN, "rolled back though the breaker is open");
    is_open("many_stuck", true);
    // Decided on before the breaker opened, and then held as well.
    let begun = |name: &str| !s.record(name)["status"]["rollback"].is_null();
    let never_begun = |name: &str| held.contains(name) && !begun(name);
    assert!(held.iter().any(|name| never_begun(name)), "all were begun: {held:?}");
    for pushed in pushed.iter().filter(|pushed| never_begun(name_of(&pushed.good))) {
        // Held by the breaker, and the cause is the push's own.
        let words = pushed.is_held("Configuration");
        assert!(words.contains("no rollback while"), "{words}");
    }
    for name in held.iter().filter(|name| !begun(name)) {
        // Told once: by the breaker, or as it waited for its turn before.
        let told = s.is_told_once(name, "RollbackHeld");
        assert!(told.contains("no rollback while"), "{told}");
    }

    // The way back is admitted, over what is stuck and without a word.
    let held: Vec<&str> = held.into_iter().collect();
    patch_all(&s, &held, &container(json!({"envFrom": null})));
    for pushed in &pushed {
        let name = name_of(&pushed.good);
        s.completes(name);
        assert!(same_template(&s.deployment(name), &pushed.good), "{name} is not as it was");
    }
    is_open("many_stuck", false);
    for name in &held {
        s.wait_for_record(&format!("{name} is ready"), name, |r| condition(r, "Ready")["status"] == "True");
    }

    s.pushes(whole[0], &without_settings()).is_safe("Configuration");
}

fn name_of(deployment: &Value) -> &str {
    deployment["metadata"]["name"].as_str().unwrap_or_default()
}

/// Sends one patch to several Deployments by one command.
fn patch_all(s: &Scenario, names: &[&str], patch: &Value) {
    let patch = patch.to_string();
    s.kubectl(["patch", "deployment"]).args(names).args(["--type=strategic", "-p", &patch]).succeeds();
}

/// Waits until the leader says that the breaker is open, or closed, for this reason.
#[track_caller]
fn is_open(reason: &str, open: bool) {
    let label = format!("reason=\"{reason}\"");
    wait_until(&format!("the breaker is open for {reason}: {open}"), seconds(45), || {
        // Where nobody leads nobody knows.
        let value = of_the_leader()?.value(&format!("rollout_guard_breaker_open{{{label}}}"));
        holds((value.round() as i64 == 1) == open && value < 1.5, value.to_string())
    });
}

/// Rollbacks that take a while: the old pod is gone when it is put back, and a new one counts after some seconds only.
fn slow(namespace: &str, name: &str) -> Value {
    deployment(name, |d| {
        d["metadata"]["namespace"] = json!(namespace);
        d["spec"]["strategy"] = json!({"type": "Recreate"});
        d["spec"]["minReadySeconds"] = json!(4);
    })
}

#[test]
fn rollbacks_go_one_by_one_in_each_namespace_and_two_by_two_in_the_cluster_where_the_caps_say_so() {
    let values = ["watcher.limits.rollbacksPerNamespace=1", "watcher.limits.rollbacksPerCluster=2"];
    let s = Scenario::alone_with("caps", &Values::of(&values));
    let own = s.namespace.clone();
    let (second, third) = (format!("{own}-2"), format!("{own}-3"));
    let others = [second.clone(), third.clone()];
    let _gone = restore("delete the namespaces", move || {
        kubectl(["delete", "namespaces", "--ignore-not-found", "--wait=false"]).args(others).succeeds();
    });
    for namespace in [&second, &third] {
        kubectl(["create", "namespace", namespace]).succeeds();
        kubectl(["label", "namespace", namespace, LABEL]).succeeds();
    }
    let _policy = policy_of(&s, &[&own, &second, &third]);
    let all = [(&own, "a"), (&own, "b"), (&own, "c"), (&second, "d"), (&third, "e")];
    let get = |namespace: &str, name: &str| cluster::json(["get", "deployment", name, "-n", namespace]);
    let list: Vec<Value> = all.iter().map(|(namespace, name)| slow(namespace, name)).collect();
    kubectl(["create", "-f", "-"])
        .input(json!({"apiVersion": "v1", "kind": "List", "items": list}).to_string())
        .succeeds();
    let mut good = BTreeMap::new();
    for (namespace, name) in all {
        let deployment = wait_until(&format!("{name} is good"), seconds(90), || {
            let deployment = get(namespace, name)?;
            let is_good = is_complete(&deployment) && unchanged_for(&deployment) >= seconds(3);
            holds(is_good, deployment["status"].to_string()).map(|()| deployment)
        });
        good.insert(name, deployment);
    }

    let watch = records::Watch::start();
    let started = Instant::now();
    let patch = without_settings().to_string();
    for (namespace, names) in [(&own, vec!["a", "b", "c"]), (&second, vec!["d"]), (&third, vec!["e"])] {
        kubectl(["patch", "deployment", "-n", namespace, "--type=strategic", "-p", &patch])
            .args(names)
            .succeeds();
    }
    let (mut under_way, mut ended, mut most) = (BTreeSet::new(), BTreeSet::new(), 0);
    watch.until("all are rolled back", seconds(180), |change| {
        let Some((namespace, name)) =
            all.into_iter().find(|(namespace, name)| **namespace == change.namespace && *name == change.name)
        else {
            return false;
        };
        match change.outcome.as_str() {
            "InProgress" => under_way.insert((namespace, name)),
            _ => under_way.remove(&(namespace, name)),
        };
        if change.outcome == "Succeeded" {
            ended.insert(name);
        }
        most = most.max(under_way.len());
        let here = under_way.iter().filter(|(of, _)| *of == namespace).count();
        assert!(here <= 1 && under_way.len() <= 2, "at a time: {under_way:?}");
        ended.len() == all.len()
    });
    let took = started.elapsed().as_secs_f64();
    s.say(&format!("push to safe: {}: {took:.1} s, cause Configuration, all {} of them", s.name, all.len()));
    assert_eq!(most, 2, "two at a time were allowed");
    for (namespace, name) in all {
        let after = get(namespace, name).unwrap_or_else(|words| panic!("{words}"));
        assert!(same_template(&after, &good[name]) && is_complete(&after), "{after}");
        assert_eq!(generation(&after), generation(&good[name]) + 2, "{after}");
    }
}

/// Puts a policy with short times in force in several namespaces.
fn policy_of(s: &Scenario, namespaces: &[&String]) -> InForce {
    let mut policy = s.policy("caps", short());
    let names = json!({"key": "kubernetes.io/metadata.name", "operator": "In", "values": namespaces});
    policy["spec"]["namespaceSelector"] = json!({"matchExpressions": [names]});
    kubectl(["create", "-f", "-"]).input(policy.to_string()).succeeds();
    let name = policy["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    let policy = InForce { name };
    policy.settles();
    policy
}
