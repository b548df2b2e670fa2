//! Alerts, dashboard and runbook: by promtool, and against what the guard really counts and can be asked.
//!
//! promtool is taken from the directory in `PROMETHEUS`, else from where `tests/kind/prometheus.sh` puts it; without it
//! these tests fail, as there is nothing to test then.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "the whole file is a test")]

use std::{
    collections::{BTreeMap, BTreeSet},
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::OnceLock,
};

use clap::CommandFactory as _;
use rollout_guard::telemetry::{
    BreakerLabels, CauseLabels, DecisionLabels, Endpoint, EndpointLabels, Metrics, OverrideLabels,
    PolicyLabels, ReconcileLabels, RejectedLabels, RollbackLabels, openmetrics,
};
use serde_json::{Value, json};

const RULES: &str = "charts/rollout-guard/files/rules.yaml";
const DASHBOARD: &str = "charts/rollout-guard/files/dashboard.json";
const RUNBOOK: &str = "docs/runbook.md";
const SECTIONS: [&str; 4] = ["Meaning", "Impact", "Diagnosis", "Mitigation"];

/// Series of others that alerts and dashboard go by.
const FOREIGN: [&str; 7] = [
    "up",
    "kube_deployment_metadata_generation",
    "kube_deployment_status_observed_generation",
    "apiserver_admission_webhook_fail_open_count",
    "apiserver_admission_webhook_rejection_count",
    "apiserver_admission_webhook_request_total",
    "apiserver_admission_webhook_admission_duration_seconds_bucket",
];

// Rules

#[test]
fn promtool_accepts_the_rules() {
    let output = promtool(&["check", "rules", &path(RULES)]);
    assert!(output.status.success(), "{}", words(&output));
    let count = format!("{} rules found", alerts().len());
    assert!(words(&output).contains(&count), "{}", words(&output));
}

#[test]
fn every_alert_fires_when_it_should_and_not_before() {
    let files = test_files();
    let files: Vec<&str> = files.iter().map(|file| file.to_str().unwrap()).collect();
    let output = promtool(&[&["test", "rules"], &files[..]].concat());
    assert!(output.status.success(), "{}", words(&output));
}

#[test]
fn every_alert_has_a_test_that_it_fires_and_a_test_in_which_it_never_does() {
    let (mut fires, mut never) = (BTreeSet::new(), BTreeSet::new());
    for test in test_files().iter().flat_map(|file| items(&yaml(&text_of(file))["tests"])) {
        let mut expected: BTreeMap<String, bool> = BTreeMap::new();
        for case in items(&test["alert_rule_test"]) {
            let is_expected = !items(&case["exp_alerts"]).is_empty();
            *expected.entry(string(&case["alertname"]).to_owned()).or_default() |= is_expected;
        }
        for (alert, fired) in expected {
            if fired { &mut fires } else { &mut never }.insert(alert);
        }
    }
    let all: BTreeSet<String> = alerts().iter().map(|alert| string(&alert["alert"]).to_owned()).collect();
    assert_eq!(fires, all, "fires");
    assert_eq!(never, all, "does not fire");
}

/// Rules that are wrong in one way each, all alerts at once: the tests above must complain about every one of them.
#[test]
fn the_tests_notice_alerts_that_fire_too_early_too_late_always_or_never() {
    type Break = fn(&mut Value);
    let wrong: [(&str, Break); 4] = [
        ("half a minute early", |alert| alert["for"] = json!(format!("{}s", time(alert) - 30))),
        ("half a minute late", |alert| alert["for"] = json!(format!("{}s", time(alert) + 30))),
        ("always", |alert| alert["expr"] = json!("vector(1)")),
        ("never", |alert| alert["expr"] = json!("vector(1) > 1")),
    ];
    for (what, break_it) in wrong {
        let mut rules = yaml(&text_of(RULES));
        for group in rules["groups"].as_array_mut().unwrap() {
            group["rules"].as_array_mut().unwrap().iter_mut().for_each(break_it);
        }
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("rules.yaml"), rules.to_string()).unwrap();
        let mut complaints = String::new();
        for (i, file) in test_files().iter().enumerate() {
            let mut tests = yaml(&text_of(file));
            tests["rule_files"] = json!(["rules.yaml"]);
            let file = dir.path().join(format!("{i}.yaml"));
            fs::write(&file, tests.to_string()).unwrap();
            complaints += &words(&promtool(&["test", "rules", file.to_str().unwrap()]));
        }
        for alert in alerts() {
            let name = string(&alert["alert"]);
            assert!(complaints.contains(&format!("alertname: {name},")), "{name}, {what}: {complaints}");
        }
    }
}

/// The seconds that an alert must hold.
fn time(alert: &Value) -> i64 {
    let text = string(&alert["for"]);
    let (number, unit) = text.split_at(text.len() - 1);
    let unit = [("s", 1), ("m", 60), ("h", 3600)].into_iter().find(|(name, _)| *name == unit).unwrap();
    number.parse::<i64>().unwrap() * unit.1
}

#[test]
fn every_alert_says_how_bad_it_is_what_it_means_and_what_to_type() {
    for alert in alerts() {
        let name = string(&alert["alert"]);
        let annotations = &alert["annotations"];
        assert!(["critical", "warning"].contains(&string(&alert["labels"]["severity"])), "{name}");
        let summary = string(&annotations["summary"]);
        assert!(
            summary.len() < 100 && !summary.ends_with('.') && !summary.contains("{{"),
            "{name}: {summary}"
        );
        let description = string(&annotations["description"]);
        assert!(!description.contains('\n'), "{name}: not one line: {description}");
        let command = description.rsplit_once(": ").map(|(_, command)| command).unwrap_or_default();
        let starts = ["rollout-guard ", "kubectl "].iter().any(|program| command.starts_with(program));
        assert!(starts, "{name} does not end with a command: {description}");
        assert_eq!(
            string(&annotations["runbook_url"]),
            format!("{RUNBOOK}#{}", name.to_lowercase()),
            "{name}"
        );
    }
}

#[test]
fn the_list_of_alerts_in_the_docs_is_that_of_the_rules() {
    let text = text_of("docs/metrics.md");
    let list = text.split("## Alerts and dashboard").nth(1).unwrap();
    let rows = list.lines().filter(|line| line.starts_with("| `"));
    let listed: Vec<String> =
        rows.map(|row| row.split(" | ").take(3).collect::<Vec<_>>().join(" | ")).collect();
    let expected: Vec<String> = alerts()
        .iter()
        .map(|alert| {
            let severity = string(&alert["labels"]["severity"]);
            format!("| `{}` | {severity} | {}", string(&alert["alert"]), string(&alert["for"]))
        })
        .collect();
    assert_eq!(listed, expected);
}

// Runbook

#[test]
fn the_runbook_has_a_section_for_every_alert_and_for_nothing_else() {
    let runbook = text_of(RUNBOOK);
    let mut chapters: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    let mut current = "";
    for line in runbook.lines() {
        if let Some(alert) = line.strip_prefix("## ") {
            current = alert;
            assert!(chapters.insert(alert, Vec::new()).is_none(), "{alert} stands twice");
        } else if let Some(section) = line.strip_prefix("### ") {
            chapters.get_mut(current).unwrap().push(section);
        }
    }
    let alerts = alerts();
    let names: BTreeSet<&str> = alerts.iter().map(|alert| string(&alert["alert"])).collect();
    assert_eq!(chapters.keys().copied().collect::<BTreeSet<_>>(), names);
    for (alert, sections) in chapters {
        assert_eq!(sections, SECTIONS, "{alert}");
    }
}

#[test]
fn every_command_of_ours_that_alerts_and_runbook_name_can_be_typed() {
    let cli = rollout_guard::cli::Cli::command();
    let alerts = alerts();
    let described = alerts.iter().map(|alert| string(&alert["annotations"]["description"]).to_owned());
    let mut count = 0;
    for text in described.chain([text_of(RUNBOOK)]) {
        for line in commands(&text) {
            // `<name>` and the like stand for a word.
            let words: Vec<String> = line
                .split_whitespace()
                .take_while(|word| !["#", "|"].contains(word))
                .map(placeholder)
                .collect();
            let parsed = cli.clone().try_get_matches_from(&words);
            let error = parsed.err().map(|error| error.to_string()).unwrap_or_default();
            assert!(error.is_empty(), "{line}: {error}");
            count += 1;
        }
    }
    assert!(count > 20, "{count} commands");
}

/// Returns what follows `rollout-guard ` at the start of a line of code, in backquotes, or at the end of a sentence.
fn commands(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let text = text.replace("{{ $labels.", "").replace(" }}", "");
    for line in text.lines() {
        let after =
            |prefix: &'static str| line.split(prefix).skip(1).map(|rest| format!("rollout-guard {rest}"));
        let code = line.starts_with("    ").then(|| line.trim_start());
        if let Some(rest) = code.and_then(|code| code.strip_prefix("rollout-guard ")) {
            found.push(format!("rollout-guard {rest}"));
        } else {
            let quoted = after("`rollout-guard ").map(|rest| rest.split('`').next().unwrap().to_owned());
            found.extend(quoted.chain(after(": rollout-guard ")));
        }
    }
    found
}

fn placeholder(word: &str) -> String {
    match word.trim_matches(['<', '>']) {
        "revision" => "2".to_owned(),
        bare => bare.to_owned(),
    }
}

// Metrics

#[test]
fn alerts_and_dashboard_go_by_metrics_that_are_there_and_documented() {
    let (real, documented) = (registered(), documented());
    let mut ours = 0;
    for query in rule_queries().into_iter().chain(dashboard_queries()) {
        for name in metrics_of(&query) {
            if name.starts_with("rollout_guard_") {
                let stem = name.trim_end_matches("_bucket");
                assert!(real.contains(stem), "the guard has no {name}, in {query}");
                assert!(documented.contains(stem), "docs/metrics.md has no {name}, in {query}");
                ours += 1;
            } else {
                assert!(FOREIGN.contains(&name.as_str()), "{name} is nobody's, in {query}");
            }
        }
    }
    assert!(ours > 30, "{ours} uses of our metrics");
}

#[test]
fn every_metric_of_the_guard_is_documented() {
    let missing: Vec<String> = registered().difference(&documented()).cloned().collect();
    assert_eq!(missing, [""; 0]);
}

#[test]
fn metric_names_are_found_in_queries_of_all_shapes() {
    let query = r#"sum by (le, verdict) (rate(a_total{x=~"b{c}", y="d"}[5m]) unless e offset 10m) and on (job) f == 1"#;
    assert_eq!(metrics_of(query), ["a_total", "e", "f"]);
}

/// Returns the names of the guard's own metrics, as they are scraped.
fn registered() -> BTreeSet<String> {
    let m = Metrics::default();
    let policy = PolicyLabels { policy: String::new() };
    // A family without a series is not scraped.
    drop(m.decisions.get_or_create(&DecisionLabels { verdict: "", reason: "", mode: "" }));
    drop(m.duration.get_or_create(&EndpointLabels { endpoint: Endpoint::Validate }));
    drop(m.rejected.get_or_create(&RejectedLabels { cause: "" }));
    drop(m.overrides.get_or_create(&OverrideLabels { outcome: "" }));
    drop(m.policy_valid.get_or_create(&policy));
    drop(m.policy_guarded.get_or_create(&policy));
    drop(m.fallback_ready.get_or_create(&policy));
    drop(m.stuck.get_or_create(&CauseLabels { cause: "" }));
    drop(m.policy_stuck.get_or_create(&policy));
    drop(m.rollbacks.get_or_create(&RollbackLabels { outcome: "", cause: "" }));
    drop(m.breaker_open.get_or_create(&BreakerLabels { reason: "" }));
    drop(m.reconciles.get_or_create(&ReconcileLabels { result: "" }));
    let text = openmetrics(&m.registry()).unwrap();
    let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    types
        .map(|line| {
            let (name, kind) = line.split_once(' ').unwrap();
            let suffix = [("counter", "_total"), ("info", "_info")];
            let suffix = suffix.into_iter().find(|(of, _)| *of == kind).map_or("", |(_, suffix)| suffix);
            format!("{name}{suffix}")
        })
        .collect()
}

fn documented() -> BTreeSet<String> {
    let text = text_of("docs/metrics.md");
    let rows = text.lines().filter_map(|line| line.strip_prefix("| `")?.split_once('`'));
    rows.map(|(name, _)| name.to_owned()).filter(|name| name.starts_with("rollout_guard_")).collect()
}

/// Returns the names in a query that are neither labels nor PromQL's own, in their order.
fn metrics_of(query: &str) -> Vec<String> {
    const WORDS: [&str; 26] = [
        "absent",
        "and",
        "avg",
        "bool",
        "by",
        "count",
        "histogram_quantile",
        "ignoring",
        "increase",
        "max",
        "max_over_time",
        "min",
        "offset",
        "on",
        "or",
        "rate",
        "sum",
        "time",
        "unless",
        "vector",
        "without",
        "group_left",
        "group_right",
        "topk",
        "clamp_min",
        "count_over_time",
    ];
    let mut found = Vec::new();
    let mut rest = without_matchers(query);
    while let Some(start) = rest.find(|c: char| c.is_ascii_alphanumeric() || c == '_') {
        let tail = &rest[start..];
        let length =
            tail.find(|c: char| !(c.is_ascii_alphanumeric() || "_.".contains(c))).unwrap_or(tail.len());
        let (word, after) = tail.split_at(length);
        let mut after = after.trim_start();
        if ["by", "on", "without", "ignoring"].contains(&word) {
            after = after.split_once(')').unwrap().1;
        } else if !word.starts_with(|c: char| c.is_ascii_digit()) && !WORDS.contains(&word) {
            found.push(word.to_owned());
        }
        rest = after.to_owned();
    }
    found
}

/// A query without comments, `{...}` and `[...]`.
fn without_matchers(query: &str) -> String {
    let mut bare = String::new();
    let (mut quoted, mut depth) = (false, 0);
    for c in query.chars() {
        match c {
            '"' => quoted = !quoted,
            '{' | '[' if !quoted => depth += 1,
            '}' | ']' if !quoted => depth -= 1,
            _ if !quoted && depth == 0 => bare.push(c),
            _ => {}
        }
    }
    bare
}

// Dashboard

#[test]
fn every_panel_of_the_dashboard_is_whole_and_has_a_place_of_its_own() {
    let dashboard = dashboard();
    assert!(dashboard["schemaVersion"].as_u64().unwrap() >= 39, "Grafana 10.3");
    assert!(dashboard["id"].is_null(), "an id of one Grafana");
    let mut ids = BTreeSet::new();
    let mut places = BTreeMap::new();
    for panel in panels() {
        let title = string(&panel["title"]);
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "{title}: an id that another has");
        let place = |side: &str| panel["gridPos"][side].as_u64().unwrap();
        assert!(place("x") + place("w") <= 24, "{title} is too wide");
        for x in place("x")..place("x") + place("w") {
            for y in place("y")..place("y") + place("h") {
                if let Some(other) = places.insert((x, y), title.to_owned()) {
                    panic!("{title} lies over {other}");
                }
            }
        }
        if panel["type"] == "row" {
            continue;
        }
        for field in ["/description", "/fieldConfig/defaults/unit"] {
            assert!(
                panel.pointer(field).and_then(Value::as_str).is_some_and(|text| !text.is_empty()),
                "{title}: {field}"
            );
        }
        let mut refs = BTreeSet::new();
        for target in items(&panel["targets"]) {
            assert!(refs.insert(string(&target["refId"]).to_owned()), "{title}: a refId twice");
            assert_eq!(target["datasource"]["uid"], "${datasource}", "{title}");
        }
        assert!(!refs.is_empty(), "{title} asks nothing");
    }
    assert!(ids.len() > 20, "{} panels", ids.len());
}

#[test]
fn the_dashboards_queries_can_be_read_and_use_its_own_variables() {
    let dashboard = dashboard();
    let names: Vec<String> =
        items(&dashboard["templating"]["list"]).iter().map(|v| string(&v["name"]).to_owned()).collect();
    assert_eq!(names, ["datasource", "namespace", "job"]);
    let rules: Vec<Value> = dashboard_queries()
        .into_iter()
        .enumerate()
        .map(|(i, query)| {
            let ours = metrics_of(&query).iter().any(|name| name.starts_with("rollout_guard_"));
            let selected = query.matches("namespace=~\"$namespace\", job=~\"$job\"").count();
            assert_eq!(
                selected > 0,
                ours,
                "the guard's series are those of the chosen namespace and job: {query}"
            );
            let query =
                query.replace("$namespace", ".*").replace("$job", ".*").replace("$__rate_interval", "1m");
            assert!(!query.contains('$'), "a variable that is not there: {query}");
            json!({"record": format!("query:{i}"), "expr": query})
        })
        .collect();
    let count = rules.len();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("queries.yaml");
    fs::write(&file, json!({"groups": [{"name": "dashboard", "rules": rules}]}).to_string()).unwrap();
    let output = promtool(&["check", "rules", file.to_str().unwrap()]);
    assert!(output.status.success(), "{}", words(&output));
    assert!(words(&output).contains(&format!("{count} rules found")), "{}", words(&output));
}

// What there is

fn alerts() -> Vec<Value> {
    let groups = yaml(&text_of(RULES))["groups"].clone();
    items(&groups).iter().flat_map(|group| items(&group["rules"])).collect()
}

fn rule_queries() -> Vec<String> {
    alerts().iter().map(|alert| string(&alert["expr"]).to_owned()).collect()
}

fn dashboard() -> Value {
    serde_json::from_str(&text_of(DASHBOARD)).unwrap()
}

fn panels() -> Vec<Value> {
    items(&dashboard()["panels"])
}

fn dashboard_queries() -> Vec<String> {
    let targets = panels().into_iter().flat_map(|panel| items(&panel["targets"]));
    targets.map(|target| string(&target["expr"]).to_owned()).collect()
}

fn test_files() -> Vec<PathBuf> {
    let dir = fs::read_dir(path("tests/monitoring")).unwrap();
    let mut files: Vec<PathBuf> = dir.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(!files.is_empty());
    files
}

/// Returns the items of a list; none where there is no list.
fn items(value: &Value) -> Vec<Value> {
    value.as_array().cloned().unwrap_or_default()
}

fn string(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("not a string: {value}"))
}

/// The path of a file of this tree.
fn path(file: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(file).into_os_string().into_string().unwrap()
}

fn text_of(file: impl AsRef<Path>) -> String {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
    fs::read_to_string(&file).unwrap_or_else(|error| panic!("cannot read {}: {error}", file.display()))
}

/// Reads YAML, anchors included.
fn yaml(text: &str) -> Value {
    serde_yaml_ng::from_str(text).unwrap()
}

// promtool

fn promtool(args: &[&str]) -> Output {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    let program = PROGRAM.get_or_init(|| {
        let dir = env::var_os("PROMETHEUS").map_or_else(by_script, PathBuf::from);
        dir.join("promtool")
    });
    let run = Command::new(program).args(args).output();
    run.unwrap_or_else(|error| panic!("cannot run {}: {error}", program.display()))
}

fn by_script() -> PathBuf {
    let output = Command::new(path("tests/kind/prometheus.sh")).output().unwrap();
    assert!(
        output.status.success(),
        "there is no promtool: {}\nName the directory that has it in PROMETHEUS",
        words(&output)
    );
    PathBuf::from(String::from_utf8(output.stdout).unwrap().trim())
}

fn words(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stderr), String::from_utf8_lossy(&output.stdout))
}
