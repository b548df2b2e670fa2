//! `rollout-guard policy test` from outside: over audit logs of a real API server (1.37.2), shortened, and over what is
//! no log at all.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "helpers of tests")]

use std::{
    fmt::Write as _,
    io::{Read, Write},
    path::PathBuf,
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use flate2::{Compression, write::GzEncoder};
use serde_json::{Value, json};

/// A guard of all defaults but for the wait.
const DEFAULT: &str =
    "kind: RolloutPolicy\nmetadata: {name: default}\nspec: {admission: {maxWaitSeconds: 1}}\n";

fn guard() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rollout-guard"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("ROLLOUT_GUARD_")) {
        command.env_remove(name);
    }
    command.env("KUBECONFIG", "/nonexistent/kubeconfig").env("HOME", "/nonexistent");
    command.stdin(Stdio::null()).args(["policy", "test"]);
    command
}

fn fixture(name: &str) -> String {
    format!("{}/tests/fixtures/audit/{name}.log", env!("CARGO_MANIFEST_DIR"))
}

/// A directory with files of a test.
struct Files(tempfile::TempDir);

impl Files {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a directory"))
    }

    fn write(&self, name: &str, text: impl AsRef<[u8]>) -> String {
        let path: PathBuf = self.0.path().join(name);
        std::fs::write(&path, text).expect("written");
        path.to_str().expect("UTF-8").to_owned()
    }

    fn policy(&self, text: &str) -> String {
        self.write("policy.yaml", text)
    }
}

/// What a run came to.
struct Done {
    code: i32,
    out: String,
    err: String,
}

fn done(output: Output) -> Done {
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    Done { code: output.status.code().expect("a status"), out: text(output.stdout), err: text(output.stderr) }
}

fn run(args: &[&str]) -> Done {
    done(guard().args(args).output().expect("runs"))
}

fn run_with(args: &[&str], input: &[u8]) -> Done {
    let mut command = guard();
    command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("runs");
    let mut stdin = child.stdin.take().expect("piped");
    let input = input.to_vec();
    let writer = std::thread::spawn(move || {
        let _ = stdin.write_all(&input);
    });
    let output = child.wait_with_output().expect("ends");
    writer.join().expect("written");
    done(output)
}

/// Judges logs by a policy and returns the rows and the summary.
fn judged(policy: &str, logs: &[&str], more: &[&str]) -> (Vec<Value>, Value) {
    let files = Files::new();
    let policy = files.policy(policy);
    let mut args = vec!["-f", &policy, "-o", "json"];
    args.extend(logs.iter().flat_map(|log| ["--history", log]));
    args.extend(more);
    let done = run(&args);
    assert_eq!((done.code, done.err.as_str()), (0, ""), "{}", done.out);
    rows(&done.out)
}

fn rows(out: &str) -> (Vec<Value>, Value) {
    let mut rows: Vec<Value> = out.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let summary = rows.pop().expect("a summary")["summary"].clone();
    assert!(summary.is_object(), "{out}");
    (rows, summary)
}

fn verdicts(rows: &[Value]) -> Vec<String> {
    let text = |row: &Value, field: &str| row[field].as_str().unwrap_or_default().to_owned();
    rows.iter().map(|row| [text(row, "name"), text(row, "verdict"), text(row, "reason")].join(" ")).collect()
}

fn events(name: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(fixture(name)).expect("readable");
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

fn lines(events: &[Value]) -> String {
    events.iter().fold(String::new(), |mut all, event| {
        let _ = writeln!(all, "{event}");
        all
    })
}

// ---- without a log --------------------------------------------------------------------------------------------

const SEVERAL: &str = r#"---
kind: RolloutPolicy
metadata: {name: default}
---
---
kind: ConfigMap
metadata: {name: other}
---
kind: List
items:
- kind: RolloutPolicy
  metadata: {name: shop, labels: {a: b}}
  spec:
    priority: 5
    mode: Audit
    namespaceSelector: {matchLabels: {team: shop}}
    freezes:
    - {name: weekend, schedule: "0 18 * * FRI", duration: 62h, timeZone: Europe/Berlin, reason: "no pushes at the weekend"}
- kind: RolloutPolicy
  metadata: {name: pay}
  spec: {priority: 5, mode: Warn, namespaceSelector: {matchExpressions: [{key: team, operator: In, values: [pay]}]}}
"#;

#[test]
fn policies_alone_are_told_in_their_order_with_overlaps_and_the_next_freezes() {
    let files = Files::new();
    let policy = files.policy(SEVERAL);
    let at = ["--at", "2026-11-21T12:00:00Z"];
    let done = run(&["-f", &policy, at[0], at[1]]);
    assert_eq!((done.code, done.err.as_str()), (0, ""));
    insta::assert_snapshot!("policy_in_force", done.out);
    let done = run(&["-f", &policy, "-o", "json", at[0], at[1]]);
    let told: Vec<Value> = done.out.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    insta::assert_json_snapshot!("policy_in_force_json", told);
    let read = run_with(&["-f", "-", at[0], at[1]], SEVERAL.as_bytes());
    assert_eq!(
        (read.code, read.out),
        (0, run(&["-f", &policy, at[0], at[1]]).out),
        "from standard input as well"
    );
}

#[test]
fn the_rendered_chart_can_be_tried_as_it_is() {
    let install = format!("{}/manifests/install.yaml", env!("CARGO_MANIFEST_DIR"));
    let done = run(&["-f", &install]);
    assert_eq!((done.code, done.err.as_str()), (0, ""));
    assert!(done.out.contains("1. default: priority 0, mode Enforce"), "{}", done.out);
    assert!(done.out.contains("1 Deployment"), "other kinds are named: {}", done.out);
}

#[test]
fn what_is_wrong_with_a_policy_is_said_and_the_status_is_one() {
    let files = Files::new();
    let cases = [
        (
            "kind: RolloutPolicy\nmetadata: {name: a}\nspec: {modus: Warn}",
            "RolloutPolicy \"a\": there is no field spec.modus",
        ),
        (
            "kind: RolloutPolicy\nmetadata: {name: a}\nspec: {mode: Of}",
            "RolloutPolicy \"a\": unknown variant `Of`, expected one of `Enforce`",
        ),
        (
            "kind: RolloutPolicy\nmetadata: {name: a}\nspec: {freezes: [{name: f, schedule: '0 0 30 2 *', duration: 1h}]}",
            "never comes",
        ),
        ("kind: RolloutPolicy\nspec: {}", "a RolloutPolicy without a name"),
        (
            "kind: RolloutPolicy\nmetadata: {name: a}\n---\nkind: RolloutPolicy\nmetadata: {name: a}",
            "one of this name already",
        ),
        ("kind: RolloutPolicy\nmetadata: {name: \"a\\u001b[2J\"}\nspec: [", "policy.yaml: "),
    ];
    for (text, words) in cases {
        let policy = files.policy(text);
        let done = run(&["-f", &policy]);
        assert_eq!(done.code, 1, "{text}: {}{}", done.out, done.err);
        assert!(done.out.starts_with("invalid: ") && done.out.contains(words), "{text}: {}", done.out);
        assert!(!done.out.contains('\u{1b}'), "{}", done.out);
        let log = fixture("open");
        let with_log = run(&["-f", &policy, "--history", &log]);
        assert_eq!(
            (with_log.code, with_log.out.as_str()),
            (2, ""),
            "nothing is judged by it: {}",
            with_log.err
        );
    }
    let valid = files.write("valid.yaml", "kind: RolloutPolicy\nmetadata: {name: b}\nspec: {}");
    let invalid = files.policy(cases[0].0);
    let done = run(&["-f", &invalid, "-f", &valid]);
    assert_eq!(done.code, 1);
    assert!(done.out.contains("1. b: "), "the valid one is told all the same: {}", done.out);
}

#[test]
fn what_cannot_be_read_is_an_error_of_one_line() {
    let files = Files::new();
    let policy = files.policy(DEFAULT);
    let (none, log) = (files.write("none.yaml", "kind: ConfigMap\n"), fixture("open"));
    let binary = files.write("binary.yaml", [0xff, 0xfe, 0xff]);
    let dir = files.0.path().to_str().expect("UTF-8").to_owned();
    let cases: [(&[&str], &str); 7] = [
        (&["-f", "/nonexistent.yaml"], "cannot read /nonexistent.yaml"),
        (&["-f", &none], "none.yaml: holds no RolloutPolicy"),
        (&["-f", &binary], "binary.yaml: not UTF-8"),
        (&["-f", "-", "--history", "-"], "standard input can be read once"),
        (&["-f", &policy, "--history", "/nonexistent.log"], "cannot read /nonexistent.log"),
        (&["-f", &policy, "--history", &dir], "is a directory"),
        (&["-f", &policy, "--history", &log, "--namespace-labels", &policy], "want a list of namespaces"),
    ];
    for (args, words) in cases {
        let done = run(args);
        assert_eq!((done.code, done.out.as_str()), (2, ""), "{args:?}: {}", done.err);
        assert_eq!(done.err.trim_end().lines().count(), 1, "{}", done.err);
        assert!(done.err.contains(words), "{args:?}: {}", done.err);
    }
    assert_eq!(run(&["-f", &policy, "--only", "all"]).code, 2, "--only is for --history");
    assert_eq!(run(&[]).code, 2, "a policy is wanted");
}

// ---- over real logs -------------------------------------------------------------------------------------------

#[test]
fn a_log_of_an_unguarded_namespace_says_what_would_have_been() {
    let files = Files::new();
    let (policy, log) = (files.policy(DEFAULT), fixture("open"));
    let done = run(&["-f", &policy, "--history", &log]);
    assert_eq!((done.code, done.err.as_str()), (0, ""));
    insta::assert_snapshot!("policy_over_an_unguarded_namespace", done.out);
    let (mut rows, summary) = judged(DEFAULT, &[&log], &["--only", "denied"]);
    assert_eq!(verdicts(&rows), ["api deny RG002", "web wait RG001", "web wait RG001"]);
    assert_eq!(summary["unreadableLines"], 0);
    assert_eq!(rows[0]["file"].take(), log);
    let told = json!({"first": rows[0], "summary": summary});
    insta::assert_json_snapshot!("policy_over_an_unguarded_namespace_json", told);
}

#[test]
fn in_a_guarded_namespace_each_verdict_and_its_words_are_those_of_the_webhook() {
    let (rows, summary) = judged(DEFAULT, &[&fixture("kept")], &[]);
    let told: Vec<Value> = events("kept")
        .into_iter()
        .filter(|event| event["annotations"]["validate.rollout-guard.io/verdict"].is_string())
        .collect();
    assert!(told.len() >= 6, "{}", told.len());
    assert_eq!((&summary["asTheGuardSaid"], &summary["notAsTheGuardSaid"]), (&json!(told.len()), &json!(0)));
    let refused: Vec<&Value> = rows.iter().filter(|row| row["reason"] != "none").collect();
    assert_eq!(refused.len(), told.len());
    for (row, event) in refused.into_iter().zip(&told) {
        let said = |key: &str| &event["annotations"][format!("validate.rollout-guard.io/{key}")];
        assert_eq!(
            (&row["verdict"], &row["reason"], &row["message"]),
            (said("verdict"), said("reason"), said("message"))
        );
        assert_eq!(row["code"], event["responseStatus"]["code"]);
    }
    // A patch, a PUT, a JSON patch, an override, and a queue.
    assert_eq!(
        verdicts(&rows),
        [
            "pay allow none",
            "api allow none",
            "api deny RG002",
            "api deny RG002",
            "api deny RG002",
            "api override RG002",
            "api allow none",
            "web allow none",
            "web wait RG001",
            "web wait RG001",
            "web wait RG001"
        ]
    );
}

#[test]
fn a_log_of_level_request_gives_the_same_verdicts() {
    let files = Files::new();
    let requests: Vec<Value> = events("kept")
        .into_iter()
        .map(|mut event| {
            // What the API server leaves out at that level, and what the fixture leaves out where both were there.
            let answer = event["responseObject"].take();
            if event["objectRef"]["subresource"] == "status" {
                event["requestObject"] = answer;
            }
            event["level"] = json!("Request");
            event.as_object_mut().expect("an event").remove("responseObject");
            event
        })
        .collect();
    let log = files.write("request.log", lines(&requests));
    let (rows, summary) = judged(DEFAULT, &[&log], &[]);
    assert_eq!(verdicts(&rows), verdicts(&judged(DEFAULT, &[&fixture("kept")], &[]).0));
    assert_eq!(summary["notAsTheGuardSaid"], 0);
}

#[test]
fn a_log_of_level_metadata_makes_up_no_verdicts() {
    let files = Files::new();
    let (policy, log) = (files.policy(DEFAULT), fixture("metadata"));
    let done = run(&["-f", &policy, "--history", &log]);
    assert_eq!(done.code, 0);
    assert!(done.out.contains("0 judged") && done.out.contains("level Metadata"), "{}", done.out);
    assert!(done.out.contains("RequestResponse"), "{}", done.out);
    assert!(!done.out.contains("would be"), "{}", done.out);
    let (rows, summary) = judged(DEFAULT, &[&log], &["--only", "all"]);
    assert!(!rows.is_empty() && rows.iter().all(|row| row["verdict"] == "unknown"), "{rows:?}");
    assert_eq!(summary["notJudged"]["level-metadata"], rows.len());
}

#[test]
fn the_mode_and_the_freezes_are_those_of_the_policy_at_the_time_of_the_event() {
    let with = |spec: &str| format!("kind: RolloutPolicy\nmetadata: {{name: p}}\nspec: {spec}\n");
    let of = |spec: &str| verdicts(&judged(&with(spec), &[&fixture("open")], &["--only", "denied"]).0);
    let all = |verdict: &str| {
        [("api", "RG002"), ("web", "RG001"), ("web", "RG001")].map(|(n, r)| format!("{n} {verdict} {r}"))
    };
    assert_eq!(of("{mode: Audit}"), all("audit"));
    assert_eq!(of("{mode: Warn}"), all("warn"));
    assert_eq!(of("{mode: 'Off'}"), [""; 0]);
    // The log is of a quarter past two, UTC.
    let frozen = of(r#"{freezes: [{name: now, schedule: "0 2 * * *", duration: 1h}]}"#);
    let refused = |row: &String| row.ends_with("deny RG005") || row == "api override RG005";
    assert!(frozen.iter().all(refused) && frozen.len() > 5, "{frozen:?}");
    let later =
        of(r#"{freezes: [{name: later, schedule: "0 2 * * *", duration: 1h, timeZone: Europe/Berlin}]}"#);
    assert_eq!(later, ["api deny RG002", "web wait RG001", "web wait RG001"]);
}

#[test]
fn namespaces_are_selected_by_the_labels_in_the_log_or_in_a_file() {
    let policy =
        "kind: RolloutPolicy\nmetadata: {name: p}\nspec: {namespaceSelector: {matchLabels: {team: shop}}}\n";
    let judged_rows = |logs: &[&str], more: &[&str]| {
        let (rows, summary) = judged(policy, logs, more);
        (rows.len(), summary["notes"].to_string().contains("labels are not known"))
    };
    let (known, assumed) = judged_rows(&[&fixture("open")], &[]);
    assert!(known > 5 && !assumed, "{known}");
    let files = Files::new();
    let without: Vec<Value> =
        events("open").into_iter().filter(|event| event["objectRef"]["resource"] != "namespaces").collect();
    let log = files.write("without.log", lines(&without));
    assert_eq!(judged_rows(&[&log], &[]), (0, true));
    let list = json!({"kind": "List", "items": [{"kind": "Namespace", "metadata": {"name": "open", "labels": {"team": "shop"}}}]});
    let labels = files.write("ns.json", list.to_string());
    assert_eq!(judged_rows(&[&log], &["--namespace-labels", &labels]), (known, false));
}

#[test]
fn rotated_logs_are_read_in_the_order_of_time_plain_or_packed() {
    let files = Files::new();
    let all = events("open");
    let (first, second) = all.split_at(all.len() / 2);
    let mut packed = GzEncoder::new(Vec::new(), Compression::fast());
    packed.write_all(lines(first).as_bytes()).expect("packs");
    let first = files.write("audit-1.log.gz", packed.finish().expect("packs"));
    let second = files.write("audit.log", lines(second));
    let whole = verdicts(&judged(DEFAULT, &[&fixture("open")], &["--only", "all"]).0);
    assert_eq!(verdicts(&judged(DEFAULT, &[&first, &second], &["--only", "all"]).0), whole);
    assert_eq!(verdicts(&judged(DEFAULT, &[&second, &first], &["--only", "all"]).0), whole);
}

#[test]
fn two_api_servers_logs_are_one_history() {
    let files = Files::new();
    let (mut a, mut b) = (Vec::new(), Vec::new());
    for (i, event) in events("open").into_iter().enumerate() {
        if i % 3 == 0 { a.push(event) } else { b.push(event) }
    }
    let (a, b) = (files.write("a.log", lines(&a)), files.write("b.log", lines(&b)));
    let whole = verdicts(&judged(DEFAULT, &[&fixture("open")], &["--only", "all"]).0);
    assert_eq!(verdicts(&judged(DEFAULT, &[&a, &b], &["--only", "all"]).0), whole);
}

#[test]
fn a_way_back_to_what_was_good_long_enough_is_allowed() {
    let files = Files::new();
    // What was complete for goodAfter is good, by the policy's own word.
    let with = |after: &str| {
        format!("kind: RolloutPolicy\nmetadata: {{name: p}}\nspec: {{watch: {{goodAfter: {after}}}}}\n")
    };
    let log = files.write("open.log", lines(&events("open")));
    let of =
        |after: &str| verdicts(&judged(&with(after), &[&log], &[]).0).pop().expect("the push back to v1");
    assert_eq!(of("1s"), "web allow none");
    assert_eq!(of("10m"), "web wait RG001");
}

#[test]
fn lines_that_are_broken_are_counted_and_named_and_the_rest_is_judged() {
    let files = Files::new();
    let mut text = lines(&events("open"));
    let half = text.find("\n").expect("a line") / 2;
    text.insert_str(0, &format!("{}\n\n[1]\n\u{0}\u{1b}[2J\n", &text[..half].to_owned()));
    text.push_str(r#"{"kind":"Event","apiVersion":"audit.k8s.io/v1","requestObject":""#);
    text.push_str(&"x".repeat(17 << 20));
    let log = files.write("broken.log", text);
    let (rows, summary) = judged(DEFAULT, &[&log], &["--only", "denied"]);
    assert_eq!(rows.len(), 3);
    assert_eq!(summary["unreadableLines"], 4);
    let named = summary["unreadable"].to_string();
    for part in ["broken.log:1: ", "broken.log:3: ", "broken.log:4: ", "longer than 16 MiB"] {
        assert!(named.contains(part), "{part}: {named}");
    }
    assert!(!named.contains("\\u001b"), "{named}");

    let mut packed = GzEncoder::new(Vec::new(), Compression::fast());
    packed.write_all(lines(&events("open")).as_bytes()).expect("packs");
    let mut packed = packed.finish().expect("packs");
    packed.truncate(packed.len() / 2);
    let log = files.write("cut.log.gz", packed);
    let (_, summary) = judged(DEFAULT, &[&log], &[]);
    assert!(summary["updates"].as_u64() > Some(0), "{summary}");
    assert!(summary["unreadable"].to_string().contains("cut.log.gz"), "{summary}");
}

#[test]
fn a_pipeline_can_fail_by_it() {
    let files = Files::new();
    let (policy, open) = (files.policy(DEFAULT), fixture("open"));
    let web: Vec<Value> =
        events("open").into_iter().filter(|event| event["objectRef"]["name"] == "web").collect();
    let web = files.write("web.log", lines(&web));
    let code = |log: &str, on: &str| run(&["-f", &policy, "--history", log, "--fail-on", on]).code;
    assert_eq!((code(&open, "deny"), code(&web, "deny"), code(&web, "wait")), (1, 0, 1));
    assert_eq!(run(&["-f", &policy, "--history", &open]).code, 0, "without it nothing fails");
}

#[test]
fn a_reader_that_leaves_is_no_error() {
    let files = Files::new();
    let policy = files.policy(DEFAULT);
    // More than the pipe and our own buffer hold.
    let log = files.write("long.log", lines(&events("open")).repeat(40));
    for (more, expected) in [(&[][..], 0), (&["--fail-on", "deny"][..], 1)] {
        let mut child = guard();
        child.args(["-f", &policy, "--history", &log, "--only", "all"]).args(more);
        let mut child = child.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("runs");
        let mut first = [0; 10];
        child.stdout.take().expect("piped").read_exact(&mut first).expect("a line");
        let output = child.wait_with_output().expect("ends");
        assert_eq!(output.status.code(), Some(expected));
        assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    }
}

#[test]
fn what_is_printed_of_a_log_cannot_steer_the_terminal() {
    let files = Files::new();
    let mut all = events("open");
    for event in &mut all {
        event["user"]["username"] = json!("ann\u{1b}[2J\u{202e}\nfake line");
    }
    let (policy, log) = (files.policy(DEFAULT), files.write("a.log", lines(&all)));
    for format in ["table", "json"] {
        let done = run(&["-f", &policy, "--history", &log, "-o", format]);
        assert_eq!(done.code, 0);
        assert!(done.out.chars().all(|c| c == '\n' || !c.is_control()), "{format}");
        assert!(!done.out.lines().any(|line| line.starts_with("fake")), "{format}");
    }
}

// ---- bounds ---------------------------------------------------------------------------------------------------

/// The most memory that the process has had, in KiB.
fn peak(child: &Child) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).expect("alive");
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).expect("VmHWM");
    line.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).expect("a number")
}

/// Thousands of Deployments with large templates: as text twice what is kept of them.
#[test]
fn memory_is_bounded_however_many_deployments_a_log_has() {
    let files = Files::new();
    let policy = files.policy(DEFAULT);
    let mut child = guard();
    child.args(["-f", &policy, "--history", "-"]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = child.spawn().expect("runs");
    let mut stdin = child.stdin.take().expect("piped");
    let created = events("open")
        .into_iter()
        .find(|event| event["verb"] == "create" && event["objectRef"]["name"] == "web");
    let mut event = created.expect("a create");
    event["responseObject"]["spec"]["template"]["metadata"]["annotations"] =
        json!({"large": "x".repeat(56 << 10)});
    let text = event.to_string();
    let many = 2500;
    for number in 0..many {
        let name = format!("\"name\":\"web-{number}\"");
        writeln!(stdin, "{}", text.replace("\"name\":\"web\"", &name)).expect("reads");
    }
    // What is in the pipe is read in the end: the last line says so.
    let started = Instant::now();
    let mut seen = peak(&child);
    let unread = |child: &Child| {
        let io = std::fs::read_to_string(format!("/proc/{}/io", child.id())).unwrap_or_default();
        let read = io.lines().find_map(|line| line.strip_prefix("rchar: ")?.trim().parse::<usize>().ok());
        read.is_some_and(|read| read < many * text.len())
    };
    while unread(&child) && started.elapsed() < Duration::from_secs(60) {
        seen = seen.max(peak(&child));
        std::thread::yield_now();
    }
    seen = seen.max(peak(&child));
    drop(stdin);
    let output = done(child.wait_with_output().expect("ends"));
    assert_eq!(output.code, 0);
    assert!(output.out.contains(&format!("{many} lines")), "{}", output.out);
    println!("{} MiB of log, at most {} MiB of memory", (many * text.len()) >> 20, seen >> 10);
    assert!(seen < 116 << 10, "{seen} KiB");
}
