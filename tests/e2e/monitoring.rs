//! The alert that this project exists for, by a real Prometheus and a real kube-state-metrics: it fires without the guard,
//! and is silent with it. And the dashboard shows what happened.

use std::{fs, path::Path, time::Instant};

use serde_json::{Value, json};

use crate::harness::{
    Scenario, deployment,
    prometheus::{JOB, NAMESPACE, Prometheus},
    record::short,
    scenario::is_unobserved,
    seconds,
    wait::holds,
    wait_until,
};

const ALERT: &str = "KubernetesDeploymentGenerationMismatch";

#[test]
fn the_generation_alert_fires_without_the_guard_and_not_with_it() {
    let s = Scenario::shared("generation-alert");
    let of_those = |guarded: &str, mut spec: Value| {
        spec["selector"] = json!({"matchLabels": {"guarded": guarded}});
        s.put_in_force(guarded, spec)
    };
    let _policies = [of_those("yes", short()), of_those("no", json!({"mode": "Off"}))];
    let named =
        |name: &str, guarded: &str| deployment(name, |d| d["metadata"]["labels"]["guarded"] = json!(guarded));
    let both = [named("with", "yes"), named("without", "no")];
    both.iter().for_each(|deployment| s.create(deployment));
    let prometheus = Prometheus::beside(&s);
    for name in ["with", "without"] {
        s.completes(name);
        s.becomes_good(name);
    }
    s.allow_no_more_replica_sets();

    let started = Instant::now();
    let pushed = s.about_to_push("with");
    for name in ["without", "with"] {
        s.accepts(name, |push| push.image("v2"));
    }
    pushed.is_safe("ReplicaSetCreate");
    let alert = |name: &str, state: &str| {
        let labels = format!(r#"alertname="{ALERT}", deployment="{name}", alertstate="{state}""#);
        format!(r#"count_over_time(ALERTS{{{labels}, namespace="{}"}}[10m])"#, s.namespace)
    };
    let seen = |query: &str| prometheus.query(query).unwrap_or_else(|words| panic!("{words}"));
    wait_until("the alert fires for the Deployment that is not guarded", seconds(60), || {
        let firing = prometheus.query(&alert("without", "firing"))?;
        holds(!firing.is_empty(), prometheus.logs())
    });
    s.say(&format!("push to alert, not guarded: {:.1} s", started.elapsed().as_secs_f64()));
    assert!(is_unobserved(&s.deployment("without")));
    // It was on its way there, too, and by now it would fire.
    assert!(!seen(&alert("with", "pending")).is_empty(), "the mismatch was never seen");
    assert!(seen(&alert("with", "firing")).is_empty(), "fired for the Deployment that is guarded");

    shows_what_happened(&s, &prometheus);

    s.lift_quota();
    // Kubernetes may have given up looking.
    s.kubectl(["annotate", "deployment", "without", "look=again"]).succeeds();
    s.completes("without");
    wait_until("the alert ends", seconds(20), || {
        let now =
            prometheus.query(&format!(r#"ALERTS{{alertname="{ALERT}", namespace="{}"}}"#, s.namespace))?;
        holds(now.is_empty(), format!("{now:?}"))
    });
    assert!(seen(&alert("with", "firing")).is_empty(), "fired for the Deployment that is guarded");
    let failures = seen("sum(prometheus_rule_evaluation_failures_total)");
    assert_eq!(failures[0]["value"][1], "0", "a rule could not be evaluated: {}", prometheus.logs());
}

/// Every query of the dashboard has series.
fn shows_what_happened(s: &Scenario, prometheus: &Prometheus) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("charts/rollout-guard/files/dashboard.json");
    let dashboard: Value =
        serde_json::from_str(&fs::read_to_string(path).expect("a dashboard")).expect("JSON");
    let mut queries = 0;
    let mut series = 0;
    for panel in dashboard["panels"].as_array().into_iter().flatten() {
        for target in panel["targets"].as_array().into_iter().flatten() {
            let query = substituted(target["expr"].as_str().unwrap_or_default());
            let what = format!("{} shows {query}", panel["title"]);
            series += wait_until(&what, seconds(20), || {
                let series = prometheus.query(&query)?;
                holds(!series.is_empty(), "no series").map(|()| series.len())
            });
            queries += 1;
        }
    }
    assert!(queries > 30, "{queries} queries");
    s.say(&format!("the dashboard's {queries} queries return {series} series"));
}

/// A query as Grafana sends it.
fn substituted(query: &str) -> String {
    let query = [("$namespace", NAMESPACE), ("$job", JOB), ("$__rate_interval", "30s")]
        .into_iter()
        .fold(query.to_owned(), |query, (variable, value)| query.replace(variable, value));
    assert!(!query.contains('$'), "a variable that is not known: {query}");
    query
}
