//! The binary from outside: what it prints, where, and how it ends.

#![allow(clippy::expect_used, clippy::panic, reason = "helpers of tests")]

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Output, Stdio},
    time::{Duration, Instant},
};

use assert_cmd::Command;
use rollout_guard::core::template::TemplateHash;
use serde_json::{Value, json};

fn guard() -> Command {
    guard_by(env!("CARGO_BIN_EXE_rollout-guard"))
}

/// The guard, or what runs it.
fn guard_by(program: &str) -> Command {
    let mut command = Command::new(program);
    // Nothing of the machine's: no cluster, no settings.
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("ROLLOUT_GUARD_")) {
        command.env_remove(name);
    }
    command
        .env_remove("POD_NAMESPACE")
        .env_remove("POD_SERVICE_ACCOUNT")
        .env("KUBECONFIG", "/nonexistent/kubeconfig")
        .env("HOME", "/nonexistent");
    command
}

fn run(args: &[&str]) -> Output {
    guard().args(args).timeout(Duration::from_secs(20)).output().expect("runs")
}

fn fixture(name: &str) -> String {
    format!("{}/tests/fixtures/{name}.json", env!("CARGO_MANIFEST_DIR"))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("UTF-8")
}

/// Judges a captured review at a moment soon after it was captured.
fn judge(name: &str, args: &[&str]) -> (i32, String) {
    let file = fixture(name);
    let mut all = vec!["judge", "-f", &file, "--at", "2026-11-23T20:40:00Z"];
    all.extend(args);
    let output = run(&all);
    assert_eq!(text(&output.stderr), "", "a verdict is no error");
    (output.status.code().expect("a status"), text(&output.stdout))
}

/// Runs into an error of the input: status 2, nothing on standard output, one line that says all of `parts`.
fn refused(args: &[&str], parts: &[&str]) {
    let output = run(args);
    let error = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{args:?}: {error}");
    assert_eq!(text(&output.stdout), "", "{args:?}");
    assert_eq!(error.trim_end().lines().count(), 1, "{args:?}: {error}");
    assert!(error.starts_with("rollout-guard: "), "{args:?}: {error}");
    for part in parts {
        assert!(error.contains(part), "{args:?}: {part:?} is not in {error}");
    }
    let said: Vec<&str> = error.trim_end().split(": ").filter(|said| said.len() > 12).collect();
    let once: std::collections::BTreeSet<&str> = said.iter().copied().collect();
    assert_eq!(said.len(), once.len(), "said twice: {error}");
    assert!(!error.trim_end().chars().any(char::is_control), "{error:?}");
}

/// Runs into an error of the command line, which clap words: status 2, and it says all of `parts`.
fn misused(args: &[&str], parts: &[&str]) {
    let output = run(args);
    let error = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{args:?}: {error}");
    assert_eq!(text(&output.stdout), "", "{args:?}");
    assert!(error.starts_with("error: "), "{args:?}: {error}");
    for part in parts {
        assert!(error.contains(part), "{args:?}: {part:?} is not in {error}");
    }
}

/// A file with some text.
fn file(dir: &tempfile::TempDir, name: &str, text: &str) -> String {
    let path = dir.path().join(name);
    std::fs::write(&path, text).expect("written");
    path.to_str().expect("UTF-8").to_owned()
}

fn directory() -> tempfile::TempDir {
    tempfile::tempdir().expect("a directory")
}

// ---- judge ----------------------------------------------------------------------------------------------------

#[test]
fn judge_says_in_text_what_the_webhook_would_answer() {
    let (status, out) = judge("update-healthy.validate", &[]);
    assert_eq!(status, 0);
    insta::assert_snapshot!("judge_allowed", out);
    let (status, out) = judge("update-failed.validate", &[]);
    assert_eq!(status, 1);
    insta::assert_snapshot!("judge_failed", out);
    let (status, out) = judge("update-unobserved.validate", &[]);
    assert_eq!(status, 1);
    insta::assert_snapshot!("judge_unobserved", out);
    let (status, out) = judge("cronjob-create.validate", &[]);
    assert_eq!(status, 0);
    insta::assert_snapshot!("judge_other", out);
}

#[test]
fn judge_says_the_same_for_programs() {
    for (name, expected) in
        [("update-healthy", 0), ("update-failed", 1), ("update-unobserved", 1), ("cronjob-create", 0)]
    {
        let (status, out) = judge(&format!("{name}.validate"), &["-o", "json"]);
        assert_eq!(status, expected, "{name}");
        let value: Value = serde_json::from_str(&out).expect("JSON");
        assert_eq!(value["allowed"], expected == 0);
        insta::assert_json_snapshot!(format!("judge_{name}_json"), value);
    }
}

#[test]
fn judge_goes_by_policies_namespace_labels_and_time() {
    let dir = directory();
    let policies = file(
        &dir,
        "policies.yaml",
        r#"---
apiVersion: rollout-guard.io/v1alpha1
kind: RolloutPolicy
metadata: {name: default}
spec: {mode: Warn}
---
---
apiVersion: rollout-guard.io/v1alpha1
kind: RolloutPolicy
metadata: {name: production}
spec:
  priority: 10
  namespaceSelector: {matchLabels: {env: production}}
  freezes:
  - {name: weekend, schedule: "0 18 * * FRI", duration: 62h, timeZone: Europe/Berlin, reason: "no pushes at the weekend"}
"#,
    );
    let healthy = fixture("update-healthy.validate");
    let with = |args: &[&str]| {
        let mut all = vec!["judge", "-f", healthy.as_str(), "--policy", policies.as_str(), "-o", "json"];
        all.extend(args);
        let output = run(&all);
        let value: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        (output.status.code(), value["policy"].clone(), value["reason"].clone())
    };
    let (saturday, tuesday) = ("2026-11-21T12:00:00Z", "2026-11-24T12:00:00Z");
    assert_eq!(with(&["--at", saturday]), (Some(0), "default".into(), "none".into()));
    let production = ["--namespace-labels", "env=production,tier=web"];
    assert_eq!(
        with(&[&production[..], &["--at", tuesday]].concat()),
        (Some(0), "production".into(), "none".into())
    );
    assert_eq!(
        with(&[&production[..], &["--at", saturday]].concat()),
        (Some(1), "production".into(), "RG005".into())
    );

    let (status, out) = judge("update-failed.validate", &["--policy", &policies]);
    assert_eq!(status, 0, "only warned");
    assert!(out.starts_with("warn: policy default\nRG002 "), "{out}");
}

#[test]
fn judge_grants_an_override_by_a_flag_alone() {
    let (status, out) = judge("override-failed.validate", &[]);
    assert_eq!(status, 1);
    assert!(out.contains("Override refused: user kubernetes-admin may not override"), "{out}");
    let (status, out) = judge("override-failed.validate", &["--may-override"]);
    assert_eq!(status, 0);
    assert!(out.starts_with("override"), "{out}");
    let (status, _) = judge("override-spent.validate", &["--may-override"]);
    assert_eq!(status, 1, "it counts once");
}

/// A record of the Deployment in the captured review that says so of the template which it asks for.
fn record(name: &str, verdict: &str) -> String {
    let review: Value =
        serde_json::from_str(&std::fs::read_to_string(fixture(name)).expect("a fixture")).expect("JSON");
    let request = &review["request"];
    let hash = TemplateHash::of(&request["object"]["spec"]["template"]);
    let uid = request["oldObject"]["metadata"]["uid"].as_str().expect("a uid");
    let (namespace, name) = (request["namespace"].as_str(), request["name"].as_str());
    let (namespace, name) = (namespace.expect("a namespace"), name.expect("a name"));
    format!(
        r#"apiVersion: rollout-guard.io/v1alpha1
kind: RolloutRecord
metadata:
  name: deployment-{name}
  namespace: {namespace}
  ownerReferences: [{{apiVersion: apps/v1, kind: Deployment, name: {name}, uid: {uid}, controller: true}}]
spec: {{targetRef: {{apiVersion: apps/v1, kind: Deployment, name: {name}, uid: {uid}}}}}
status:
  revisions:
  - {{templateHash: {hash}, revision: 7, verdict: {verdict}, reason: Image, since: "2026-11-23T20:30:00Z", until: "2026-12-23T20:30:00Z"}}
"#
    )
}

#[test]
fn judge_goes_by_what_a_record_says_is_good_or_bad() {
    let dir = directory();
    let bad = file(&dir, "bad.yaml", &record("update-healthy.validate", "Bad"));
    let (status, out) = judge("update-healthy.validate", &["--record", &bad]);
    assert_eq!(status, 1);
    insta::assert_snapshot!("judge_quarantined", out);
    let review = fixture("update-healthy.validate");
    let late = run(&["judge", "-f", &review, "--record", &bad, "--at", "2026-12-23T20:30:00Z"]);
    assert_eq!(late.status.code(), Some(0), "it is over");

    let good = record("update-failed.validate", "Good");
    let (status, out) = judge("update-failed.validate", &["--record", &file(&dir, "good.yaml", &good)]);
    assert_eq!((status, out.as_str()), (0, "allow (known-good): policy default\n"));

    // As JSON, and from standard input.
    let json: Value = serde_yaml_ng::from_str(&good).expect("YAML");
    let review = fixture("update-failed.validate");
    let args = ["judge", "-f", &review, "--record", "-"];
    let output = guard().args(args).write_stdin(json.to_string()).output().expect("runs");
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
}

#[test]
fn judge_says_in_one_line_what_is_wrong_with_a_record() {
    let dir = directory();
    let review = fixture("update-healthy.validate");
    let judge = |name: &str, text: &str, parts: &[&str]| {
        let path = file(&dir, name, text);
        refused(&["judge", "-f", &review, "--record", &path], &[&[name], parts].concat());
    };
    let good = record("update-healthy.validate", "Good");
    judge("empty.yaml", "", &["want kind RolloutRecord"]);
    judge("syntax.yaml", "kind: [\n", &["line"]);
    judge("pod.yaml", "kind: Pod\n", &["want kind RolloutRecord", "Pod"]);
    judge("verdict.yaml", &good.replace("verdict: Good", "verdict: Fine"), &["Fine", "Unknown"]);
    judge(
        "other.yaml",
        &record("update-failed.validate", "Good"),
        &["record of orders/broken", "orders/web"],
    );
    let uid = "00000000-0000-0000-0000-000000000000";
    let of_another = good.replace("uid: 055c6642-7d2f-4aa2-9ae8-a30419598dfc", &format!("uid: {uid}"));
    judge("before.yaml", &of_another, &["record of orders/web", uid, "055c6642"]);
    let owner = good.replace("  ownerReferences:", "  others:");
    judge("orphan.yaml", &owner, &["owned by nothing"]);
    refused(
        &["judge", "-f", &review, "--record", "/nonexistent/r.yaml"],
        &["/nonexistent/r.yaml", "No such file"],
    );
    refused(&["judge", "-f", "-", "--record", "-"], &["standard input can be read once"]);
}

#[test]
fn judge_reads_standard_input() {
    let review = std::fs::read(fixture("update-failed.validate")).expect("a fixture");
    let output = guard().args(["judge", "-f", "-"]).write_stdin(review).output().expect("runs");
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stdout).contains("RG002 orders/broken is blocked"));
    let output = guard().args(["judge", "-f", "-"]).write_stdin("").output().expect("runs");
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn judge_says_in_one_line_what_is_wrong_with_a_review() {
    let dir = directory();
    let judge = |name: &str, text: &str, parts: &[&str]| {
        let path = file(&dir, name, text);
        refused(&["judge", "-f", &path], &[&[name], parts].concat());
    };
    judge("empty.json", "", &["not an AdmissionReview", "EOF"]);
    judge("text.json", "hello", &["not an AdmissionReview", "line 1 column 1"]);
    judge("yaml.json", "kind: AdmissionReview\n", &["not an AdmissionReview"]);
    judge("pod.json", r#"{"apiVersion":"v1","kind":"Pod"}"#, &["AdmissionReview, got", "Pod"]);
    judge("forged.json", "{\"kind\":\"a\\nrollout-guard: fine\\u001b[31m\"}", &["AdmissionReview, got"]);
    judge("beta.json", r#"{"apiVersion":"admission.k8s.io/v1beta1","kind":"AdmissionReview"}"#, &["v1beta1"]);
    judge(
        "none.json",
        r#"{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview"}"#,
        &["holds no request"],
    );
    let shaped = std::fs::read_to_string(fixture("update-failed.validate")).expect("a fixture");
    judge("shape.json", &shaped.replace(r#""generation":4"#, r#""generation":"four""#), &["expected i64"]);
    refused(&["judge", "-f", "/nonexistent/review.json"], &["/nonexistent/review.json", "No such file"]);
    let here = dir.path().to_str().expect("UTF-8");
    refused(&["judge", "-f", here], &["cannot read", "directory"]);
}

#[test]
fn judge_says_in_one_line_what_is_wrong_with_a_policy() {
    let dir = directory();
    let review = fixture("update-healthy.validate");
    let judge = |name: &str, text: &str, parts: &[&str]| {
        let path = file(&dir, name, text);
        refused(&["judge", "-f", &review, "--policy", &path], &[&[name], parts].concat());
    };
    let policy = |spec: &str| {
        format!(
            "apiVersion: rollout-guard.io/v1alpha1\nkind: RolloutPolicy\nmetadata: {{name: p}}\nspec: {spec}\n"
        )
    };
    let freeze = |fields: &str| policy(&format!("{{freezes: [{{name: f, {fields}}}]}}"));
    judge("none.yaml", "", &["holds no RolloutPolicy"]);
    judge("syntax.yaml", "kind: [\n", &["line"]);
    judge("tabs.yaml", "kind:\n\t- x\n", &["line 2"]);
    judge("pod.yaml", "kind: Pod\n", &["want kind RolloutPolicy", "Pod"]);
    judge("list.yaml", "- a\n- b\n", &[]);
    judge("unknown.yaml", &policy("{mod: Off}"), &["there is no field spec.mod"]);
    judge("mode.yaml", &policy("{mode: Loud}"), &["Loud", "Enforce"]);
    judge("action.yaml", &policy("{admission: {failed: Maybe}}"), &["Maybe", "Deny"]);
    judge(
        "cron.yaml",
        &freeze(r#"schedule: "61 * * * *", duration: 1h"#),
        &[r#"freeze "f""#, "61 * * * *", "cron"],
    );
    judge("cron6.yaml", &freeze(r#"schedule: "0 0 0 * * *", duration: 1h"#), &["five fields"]);
    judge("never.yaml", &freeze(r#"schedule: "0 0 31 2 *", duration: 1h"#), &["0 0 31 2 *"]);
    judge(
        "zone.yaml",
        &freeze(r#"schedule: "0 0 * * *", duration: 1h, timeZone: Europe/Atlantis"#),
        &["Europe/Atlantis"],
    );
    judge("short.yaml", &freeze(r#"schedule: "0 0 * * *", duration: 0s"#), &["longer than zero"]);
    judge("length.yaml", &freeze(r#"schedule: "0 0 * * *", duration: 1 day"#), &["1 day", "duration"]);
    let selector = policy("{selector: {matchExpressions: [{key: a, operator: Is}]}}");
    judge("selector.yaml", &selector, &["spec.selector", "DoesNotExist"]);
    std::fs::write(dir.path().join("binary.yaml"), [0xff, 0xfe, 0x00]).expect("written");
    let binary = dir.path().join("binary.yaml");
    refused(&["judge", "-f", &review, "--policy", binary.to_str().expect("UTF-8")], &["not UTF-8"]);
    refused(&["judge", "-f", &review, "--policy", "/nonexistent/p.yaml"], &["/nonexistent/p.yaml"]);
    refused(&["judge", "-f", &review, "--namespace-labels", "production"], &["production", "want key=value"]);
}

// ---- usage ----------------------------------------------------------------------------------------------------

#[test]
fn what_is_no_command_or_flag_is_named() {
    misused(&["juge"], &["'juge'", "'judge'"]);
    misused(&["judge", "--flie", "x"], &["'--flie'"]);
    misused(&["judge"], &["--filename"]);
    misused(&["judge", "-f", "x", "-o", "yaml"], &["'yaml'", "text, json"]);
    misused(&["judge", "-f", "x", "--at", "tomorrow"], &["'tomorrow'", "--at"]);
    misused(&["completion", "csh"], &["'csh'", "bash"]);
    misused(&["--log-format", "xml", "completion", "bash"], &["'xml'"]);
    misused(&["webhook", "--listen", "everywhere"], &["'everywhere'", "--listen"]);
    misused(&["webhook", "--drain-delay", "soon"], &["'soon'", "such as 30s"]);
    misused(&["webhook", "--max-in-flight", "0"], &["--max-in-flight"]);
    for args in [&[][..], &["certs"]] {
        let output = run(args);
        assert_eq!((output.status.code(), text(&output.stdout).as_str()), (Some(2), ""), "{args:?}");
        assert!(text(&output.stderr).contains("Usage: rollout-guard"), "{args:?}");
    }
}

/// All commands, as the help lists them.
fn commands(of: &[&str]) -> Vec<String> {
    let output = run(&[of, &["--help"]].concat());
    let help = text(&output.stdout);
    help.lines()
        .skip_while(|line| *line != "Commands:")
        .skip(1)
        .take_while(|line| !line.is_empty())
        // A long description goes on in the next line, further in.
        .filter(|line| line.starts_with("  ") && !line.starts_with("   "))
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| *name != "help")
        .map(str::to_owned)
        .collect()
}

#[test]
fn the_help_of_each_command_says_what_it_does_and_shows_examples() {
    let names = commands(&[]);
    assert!(
        ["status", "run", "watcher", "webhook", "judge", "check", "certs", "completion", "man"]
            .iter()
            .all(|name| names.contains(&(*name).to_owned())),
        "{names:?}"
    );
    for name in names {
        let below = commands(&[&name]);
        let leaves: Vec<Vec<&str>> = if below.is_empty() {
            vec![vec![&name]]
        } else {
            below.iter().map(|leaf| vec![name.as_str(), leaf.as_str()]).collect()
        };
        for leaf in leaves {
            let output = run(&[&leaf[..], &["--help"]].concat());
            let help = text(&output.stdout);
            assert_eq!(output.status.code(), Some(0), "{leaf:?}");
            let first = help.lines().next().unwrap_or_default();
            assert!(first.len() > 10, "{leaf:?}: {first}");
            let example = format!("rollout-guard {}", leaf.join(" "));
            let examples =
                help.split("Examples:").nth(1).unwrap_or_else(|| panic!("{leaf:?} has no examples"));
            assert!(examples.contains(&example), "{leaf:?}: {examples}");
        }
    }
    let version = text(&run(&["--version"]).stdout);
    assert_eq!(version, format!("rollout-guard {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn completion_prints_a_script_that_asks_this_program_for_candidates() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let output = run(&["completion", shell]);
        let script = text(&output.stdout);
        assert_eq!((output.status.code(), text(&output.stderr).as_str()), (Some(0), ""), "{shell}");
        for word in ["rollout-guard", "_ROLLOUT_GUARD_COMPLETE"] {
            assert!(script.contains(word), "{shell}: {word}");
        }
    }
    let script = run(&["completion", "bash"]).stdout;
    let check = Command::new("bash").args(["-n"]).write_stdin(script).output().expect("bash is there");
    assert!(check.status.success(), "{}", text(&check.stderr));
}

/// As bash does it: the script is read, then its function is called with the words that were typed.
#[test]
fn in_bash_commands_flags_and_values_are_completed() {
    let dir = directory();
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_rollout-guard"), dir.path().join("rollout-guard"))
        .expect("linked");
    let complete = |words: &str| {
        let script = format!(
            "source <(rollout-guard completion bash); words=({words}); COMP_WORDS=(\"${{words[@]}}\"); \
             COMP_CWORD=$((${{#words[@]}} - 1)); COMP_TYPE=9; \
             $(complete -p rollout-guard | sed 's/.*-F \\([^ ]*\\).*/\\1/') rollout-guard \"${{words[-1]}}\" ''; \
             printf '%s\\n' \"${{COMPREPLY[@]}}\""
        );
        let path = format!("{}:{}", dir.path().display(), std::env::var("PATH").expect("a path"));
        let output =
            guard_by("bash").args(["-c", &script]).env("PATH", path).output().expect("bash is there");
        assert_eq!(text(&output.stderr), "", "{words}");
        text(&output.stdout).lines().map(|line| line.trim().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(complete("rollout-guard stat"), ["status"]);
    assert_eq!(complete("rollout-guard status --all"), ["--all-namespaces"]);
    assert_eq!(complete("rollout-guard status -o wi"), ["wide"]);
    assert_eq!(complete("rollout-guard status web"), [""], "no cluster, no candidates, no words");
}

#[test]
fn man_prints_a_page_and_writes_one_for_each_command() {
    let page = text(&run(&["man", "status"]).stdout);
    assert!(page.contains(".TH rollout-guard-status 1") && page.contains("deploy/web"), "{page}");
    assert!(text(&run(&["man"]).stdout).contains(".TH rollout-guard 1"));
    refused(&["man", "statsu"], &["there is no command \"statsu\""]);
    let dir = directory();
    let man = dir.path().join("man/man1");
    let output = run(&["man", "--dir", man.to_str().expect("UTF-8")]);
    assert_eq!((output.status.code(), text(&output.stderr).as_str()), (Some(0), ""));
    for name in commands(&[]) {
        let page = man.join(format!("rollout-guard-{name}.1"));
        assert!(page.is_file(), "{}", page.display());
    }
    refused(&["man", "--dir", "/dev/null/man"], &["cannot write the manual into /dev/null/man"]);
}

#[test]
fn a_log_level_that_is_none_is_an_error_for_every_command() {
    refused(
        &["--log-level", "rollout_guard=loud", "completion", "bash"],
        &["rollout_guard=loud", "such as info"],
    );
    let output = guard().env("ROLLOUT_GUARD_LOG_LEVEL", "a=b=c").arg("webhook").output().expect("runs");
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("a=b=c"), "{}", text(&output.stderr));
}

// ---- webhook --------------------------------------------------------------------------------------------------

/// A kubeconfig of a cluster that does not answer.
fn kubeconfig(dir: &tempfile::TempDir) -> String {
    kubeconfig_of(dir, "127.0.0.1:9")
}

fn kubeconfig_of(dir: &tempfile::TempDir, address: &str) -> String {
    let text = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: c\nclusters: [{{name: c, cluster: {{server: 'http://{address}'}}}}]\n\
         contexts: [{{name: c, context: {{cluster: c, user: u}}}}]\nusers: [{{name: u, user: {{}}}}]\n",
    );
    file(dir, "kubeconfig", &text)
}

#[test]
fn the_webhook_says_in_one_line_why_it_cannot_start() {
    let dir = directory();
    let good = kubeconfig(&dir);
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let taken = taken.local_addr().expect("bound").to_string();
    let no_ca = file(&dir, "ca.crt", "no certificate");
    let rubbish = file(&dir, "rubbish", "{[");
    let cases: [(&str, &[&str], &[&str]); 6] = [
        ("/nonexistent/kubeconfig", &[], &["cluster"]),
        (&rubbish, &[], &["cluster"]),
        (&good, &["--admin-listen", "192.0.2.1:80"], &["cannot listen on 192.0.2.1:80"]),
        (
            &good,
            &["--admin-listen", "127.0.0.1:0", "--listen", &taken],
            &["cannot listen on", &taken, "in use"],
        ),
        (&good, &["--client-ca", &no_ca], &["client CA", "ca.crt", "no certificate"]),
        (&good, &["--client-ca", "/nonexistent/ca.crt"], &["client CA", "/nonexistent/ca.crt"]),
    ];
    for (kubeconfig, args, parts) in cases {
        let mut command = guard();
        command.args(["webhook", "--log-level", "error"]).args(args).env("KUBECONFIG", kubeconfig);
        let output = command.timeout(Duration::from_secs(20)).output().expect("runs");
        let error = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {error}");
        assert_eq!(error.trim_end().lines().count(), 1, "{args:?}: {error}");
        for part in parts {
            assert!(error.contains(part), "{args:?}: {part:?} is not in {error}");
        }
    }
}

/// A process that does not outlive the test.
struct Running(std::process::Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn get(address: &str, path: &str) -> String {
    let mut stream = TcpStream::connect(address).expect("connected");
    write!(stream, "GET {path} HTTP/1.1\r\nHost: guard\r\nConnection: close\r\n\r\n").expect("written");
    let mut reply = String::new();
    stream.read_to_string(&mut reply).expect("read");
    reply
}

#[test]
fn the_webhook_without_an_answering_cluster_lives_is_not_ready_and_ends_by_a_signal() {
    let dir = directory();
    let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let admin = free.local_addr().expect("bound").to_string();
    drop(free);
    let mut child = Running(
        std::process::Command::new(env!("CARGO_BIN_EXE_rollout-guard"))
            .args(["webhook", "--listen", "127.0.0.1:0", "--admin-listen", &admin, "--drain-delay", "0s"])
            .env("KUBECONFIG", kubeconfig(&dir))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("starts"),
    );
    let mut log = BufReader::new(child.0.stderr.take().expect("piped"));
    let mut line = String::new();
    while !line.contains("\"starting\"") {
        line.clear();
        assert!(log.read_line(&mut line).expect("read") > 0, "it ended before it started");
        let _: Value = serde_json::from_str(&line).expect("one JSON object a line");
    }
    let start = Instant::now();
    while TcpStream::connect(&admin).is_err() {
        assert!(start.elapsed() < Duration::from_secs(10), "the plain port is open");
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(get(&admin, "/livez").starts_with("HTTP/1.1 200 "));
    let ready = get(&admin, "/readyz");
    assert!(ready.starts_with("HTTP/1.1 503 "), "{ready}");
    for missing in ["certificates: ", "policies: ", "namespaces: "] {
        assert!(ready.contains(missing), "{missing} is not in {ready}");
    }
    assert!(get(&admin, "/metrics").contains("rollout_guard_build_info"));
    let killed = std::process::Command::new("kill").args(["-TERM", &child.0.id().to_string()]).status();
    assert!(killed.expect("kill is there").success());
    let mut rest = String::new();
    log.read_to_string(&mut rest).expect("read");
    let status = child.0.wait().expect("ended");
    assert_eq!(status.code(), Some(0), "{rest}");
    assert!(rest.contains("\"draining\"") || rest.contains("signal received, draining"), "{rest}");
    assert!(rest.contains("\"drained\""), "{rest}");
}

// ---- check, certs ---------------------------------------------------------------------------------------------

#[test]
fn check_without_a_cluster_ends_with_2_and_says_so() {
    refused(&["check"], &["cluster"]);
    refused(&["check", "--kubeconfig", "/nonexistent/other"], &["/nonexistent/other"]);
}

/// Serves what `answer` has for a path, for as long as the test runs, and 404 for all else.
fn api_server(answer: impl Fn(&str) -> Option<(u16, String)> + Send + 'static) -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("bound").to_string();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = BufReader::new(stream.expect("a connection"));
            let (mut request, mut line, mut length) = (String::new(), String::new(), 0);
            stream.read_line(&mut request).expect("read");
            while {
                line.clear();
                stream.read_line(&mut line).expect("read") > 2
            } {
                if let Some(given) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                    length = given.trim().parse().expect("a length");
                }
            }
            stream.read_exact(&mut vec![0; length]).expect("read");
            let path = request.split(' ').nth(1).unwrap_or_default();
            let refusal = |code| {
                let reason = if code == 404 { "NotFound" } else { "Other" };
                json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason})
            };
            let (code, body) = match answer(path) {
                Some((200, body)) => (200, body),
                Some((code, _)) => (code, refusal(code).to_string()),
                None => (404, refusal(404).to_string()),
            };
            let length = body.len();
            let head = format!("HTTP/1.1 {code} X\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n");
            let _ = stream.get_mut().write_all((head + &body).as_bytes());
        }
    });
    address
}

/// What `check` says of the watcher in a cluster with one replica, which runs by `args`.
fn check_watcher(args: &[&str], lease: Option<Value>, metrics: (u16, &str)) -> Vec<(String, String)> {
    let deployments = json!({"kind": "DeploymentList", "apiVersion": "apps/v1", "metadata": {}, "items": [{
        "metadata": {"name": "guard", "namespace": "ns"},
        "spec": {"replicas": 1, "selector": {}, "template": {"spec": {"containers": [{"name": "c", "args": args}]}}},
        "status": {"availableReplicas": 1},
    }]});
    let pods = json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": [{
        "metadata": {"name": "guard-1-x", "namespace": "ns"},
        "status": {"conditions": [{"type": "Ready", "status": "True"}]},
    }]});
    let version = json!({"major": "1", "minor": "37", "gitVersion": "v1.37.2", "gitCommit": "", "gitTreeState": "",
        "buildDate": "", "goVersion": "", "compiler": "", "platform": ""});
    let metrics = (metrics.0, metrics.1.to_owned());
    let address = api_server(move |path| {
        let path = path.split('?').next().unwrap_or_default();
        let found = match path {
            "/version" => Some(&version),
            "/apis/apps/v1/namespaces/ns/deployments" => Some(&deployments),
            "/api/v1/namespaces/ns/pods" => Some(&pods),
            "/apis/coordination.k8s.io/v1/namespaces/ns/leases/the-lease" => lease.as_ref(),
            "/api/v1/namespaces/ns/pods/guard-1-x:8080/proxy/metrics" => return Some(metrics.clone()),
            _ => None,
        };
        found.map(|json| (200, json.to_string()))
    });
    let dir = directory();
    let output = run(&["check", "-n", "ns", "-o", "json", "--kubeconfig", &kubeconfig_of(&dir, &address)]);
    assert_eq!(output.status.code(), Some(1), "the rest is not there: {}", text(&output.stderr));
    let findings: Vec<Value> = serde_json::from_slice(&output.stdout).expect("JSON");
    let of_watcher = findings.into_iter().filter(|finding| finding["step"] == "watcher");
    let told = |finding: Value| {
        let word = |key: &str| finding[key].as_str().unwrap_or_default().to_owned();
        assert_eq!(finding["status"] == "ok", finding["hint"].is_null(), "{finding}");
        (word("status"), word("message") + "; " + &word("hint"))
    };
    of_watcher.map(told).collect()
}

#[test]
fn check_says_who_watches_and_what_keeps_it_from_rolling_back() {
    let lease = |holder: &str, stop: Option<&str>| {
        let annotations = stop.map(|why| json!({"rollout-guard.io/stop": why}));
        Some(json!({"kind": "Lease", "apiVersion": "coordination.k8s.io/v1",
            "metadata": {"name": "the-lease", "namespace": "ns", "annotations": annotations},
            "spec": {"holderIdentity": holder, "renewTime": "2026-11-23T20:40:00.000000Z"}}))
    };
    let run = ["run", "--lease=the-lease"];
    let held = || lease("guard-1-x_19a2b", None);
    let says = "rollout_guard_leader 1\nrollout_guard_watched_deployments 5\n\
                rollout_guard_breaker_open{reason=\"nodes\"} 0\n# EOF\n";
    let well =
        ("ok".to_owned(), "guard-1-x: leads and watches 5 Deployments, the breaker is closed; ".to_owned());
    assert_eq!(check_watcher(&run, held(), (200, says)), std::slice::from_ref(&well));

    let told = check_watcher(&run, lease("guard-1-x_19a2b", Some("INC-42")), (200, says));
    assert_eq!((told.len(), told[0].0.as_str(), &told[1]), (2, "warning", &well), "{told:?}");
    assert!(told[0].1.contains("INC-42") && told[0].1.contains("annotate lease the-lease"), "{told:?}");

    let told = check_watcher(&run, held(), (200, &says.replace("} 0", "} 1")));
    assert_eq!((told.len(), told[0].0.as_str(), told[1].0.as_str()), (2, "ok", "warning"), "{told:?}");
    assert!(told[1].1.contains("too few nodes are ready"), "{told:?}");

    for (args, lease, metrics, status, words) in [
        (&run[..], held(), (403, ""), "skipped", "the right to get pods/proxy in ns"),
        (&run, held(), (502, ""), "skipped", "must reach port 8080"),
        (&run, None, (200, says), "failed", "there is no Lease ns/the-lease"),
        (&run, lease("guard-0-y_1", None), (200, says), "failed", "guard-0-y holds it"),
        (&["webhook"], None, (200, says), "ok", "not enabled"),
    ] {
        let told = check_watcher(args, lease, metrics);
        assert_eq!((told.len(), told[0].0.as_str()), (1, status), "{told:?}");
        assert!(told[0].1.contains(words), "{words:?} is not in {told:?}");
    }
}

#[test]
fn generated_certificates_fit_together_and_their_keys_are_for_the_owner_alone() {
    use std::os::unix::fs::PermissionsExt;
    let dir = directory();
    let out = dir.path().join("made").to_str().expect("UTF-8").to_owned();
    let generate = ["certs", "generate", "--out-dir", &out, "--dns", "localhost,guard.test", "--days", "7"];
    let output = run(&generate);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert!(!text(&output.stdout).contains("PRIVATE"), "{}", text(&output.stdout));
    let read = |name: &str| std::fs::read_to_string(Path::new(&out).join(name)).expect(name);
    let mode = |path: PathBuf| std::fs::metadata(path).expect("there").permissions().mode() & 0o777;
    for key in ["ca.key", "tls.key"] {
        assert_eq!(mode(Path::new(&out).join(key)), 0o600, "{key}");
    }
    rollout_guard::tls::KeyPair::from_pem(&read("tls.crt"), &read("tls.key")).expect("a pair");
    rollout_guard::tls::KeyPair::from_pem(&read("ca.crt"), &read("ca.key")).expect("a pair");

    let before = read("tls.crt");
    refused(&generate, &["is there already", "--force"]);
    assert_eq!(read("tls.crt"), before, "untouched");
    assert_eq!(run(&[&generate[..], &["--force"]].concat()).status.code(), Some(0));
    assert_ne!(read("tls.crt"), before);

    let shown = run(&["certs", "show", Path::new(&out).join("tls.crt").to_str().expect("UTF-8")]);
    assert_eq!(shown.status.code(), Some(0), "{}", text(&shown.stderr));
    assert!(text(&shown.stdout).contains("guard.test"), "{}", text(&shown.stdout));
}

#[test]
fn certs_says_in_one_line_what_is_wrong() {
    let dir = directory();
    let out = dir.path().to_str().expect("UTF-8");
    refused(&["certs", "generate", "--out-dir", out, "--dns", "not a name"], &["not a name", "DNS name"]);
    refused(&["certs", "generate", "--out-dir", "/proc/nowhere", "--dns", "localhost"], &["/proc/nowhere"]);
    assert_eq!(std::fs::read_dir(dir.path()).expect("there").count(), 0, "nothing is left behind");
    misused(&["certs", "generate"], &["--dns"]);
    misused(&["certs", "generate", "--dns", "localhost", "--days", "0"], &["--days"]);
    let empty = file(&dir, "empty.pem", "");
    refused(&["certs", "show", &empty], &["empty.pem"]);
    refused(&["certs", "show", "/nonexistent.pem"], &["/nonexistent.pem"]);
}
