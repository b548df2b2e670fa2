//! `rollout-guard status` from outside: a real process against an API server on the loopback that serves what the test
//! has for it.

#![allow(clippy::expect_used, clippy::panic, reason = "helpers of tests")]

use std::{
    fmt::Write as _,
    fs::File,
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    os::fd::OwnedFd,
    process::{Child, Command, Output, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use rustix::{
    fs::{Mode, OFlags},
    process::{Pid, Signal, kill_process},
    pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
    termios::{Winsize, tcsetwinsize},
};
use serde_json::{Value, json};

/// The longest that anything may take that is to happen soon.
const SOON: Duration = Duration::from_secs(90);

const DEPLOYMENTS: &str = "/apis/apps/v1/deployments";
const RECORDS: &str = "/apis/rollout-guard.io/v1alpha1/rolloutrecords";

// ---- an API server ----------------------------------------------------------------------------------------------

/// A request: its path, and its query by names, decoded as far as these tests need.
#[derive(Clone, Debug)]
struct Asked {
    path: String,
    query: String,
}

impl Asked {
    fn of(target: &str) -> Self {
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        Self { path: path.to_owned(), query: query.replace("%3D", "=").replace("%2C", ",") }
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.query
            .split('&')
            .filter_map(|pair| pair.split_once('='))
            .find(|(key, _)| *key == name)
            .map(|(_, v)| v)
    }

    fn watches(&self) -> bool {
        self.get("watch").is_some()
    }
}

enum Answer {
    Json(Value),
    Text(String),
    Refused(u16, &'static str),
    /// Events of a watch, each after so many milliseconds; then the connection stays open for as long as the test runs, or
    /// is closed.
    Watch(Vec<(u64, String)>, bool),
}

/// Serves what `answer` has for a request, each connection on its own, for as long as the test runs.
fn serve(answer: impl Fn(&Asked) -> Answer + Send + Sync + 'static) -> (String, Arc<Mutex<Vec<Asked>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("bound").to_string();
    let asked = Arc::new(Mutex::new(Vec::new()));
    let (kept, answer) = (asked.clone(), Arc::new(answer));
    thread::spawn(move || {
        for stream in listener.incoming() {
            let (kept, answer) = (kept.clone(), answer.clone());
            thread::spawn(move || converse(&stream.expect("a connection"), &kept, &*answer));
        }
    });
    (address, asked)
}

fn converse(stream: &TcpStream, kept: &Mutex<Vec<Asked>>, answer: &dyn Fn(&Asked) -> Answer) {
    let mut reader = BufReader::new(stream);
    let mut request = String::new();
    if reader.read_line(&mut request).unwrap_or(0) == 0 {
        return;
    }
    let mut line = String::new();
    while reader.read_line(&mut line).unwrap_or(0) > 2 {
        line.clear();
    }
    let asked = Asked::of(request.split(' ').nth(1).unwrap_or_default());
    kept.lock().expect("no panic").push(asked.clone());
    let mut stream = stream;
    let mut whole = |code: u16, body: &str| {
        let head = format!(
            "HTTP/1.1 {code} X\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
            body.len()
        );
        let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body.as_bytes()));
    };
    match answer(&asked) {
        Answer::Json(body) => whole(200, &body.to_string()),
        Answer::Text(body) => whole(200, &body),
        Answer::Refused(code, message) => {
            let reason = match code {
                403 => "Forbidden",
                404 => "NotFound",
                _ => "Other",
            };
            let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
                "code": code, "reason": reason, "message": message});
            whole(code, &status.to_string());
        }
        Answer::Watch(events, stays) => {
            let head =
                "HTTP/1.1 200 X\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n";
            let _ = stream.write_all(head.as_bytes());
            for (after, event) in events {
                thread::sleep(Duration::from_millis(after));
                let line = format!("{event}\n");
                let _ = stream.write_all(format!("{:x}\r\n{line}\r\n", line.len()).as_bytes());
            }
            if stays {
                thread::sleep(Duration::from_secs(60));
            } else {
                let _ = stream.write_all(b"0\r\n\r\n");
            }
        }
    }
}

fn list(kind: &str, items: &[Value]) -> Answer {
    Answer::Json(
        json!({"kind": kind, "apiVersion": "v1", "metadata": {"resourceVersion": "10"}, "items": items}),
    )
}

const fn none() -> Answer {
    Answer::Refused(404, "the server could not find the requested resource")
}

// ---- objects ----------------------------------------------------------------------------------------------------

fn template(image: &str) -> Value {
    json!({"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "app", "image": image}]}})
}

fn deployment(name: &str, complete: bool) -> Value {
    let available = if complete { 2 } else { 1 };
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": name, "namespace": "shop", "uid": format!("uid-{name}"), "generation": 7,
            "resourceVersion": "9", "creationTimestamp": "2026-11-01T10:00:00Z",
            "annotations": {"deployment.kubernetes.io/revision": "7"}},
        "spec": {"replicas": 2, "selector": {"matchLabels": {"app": "web"}}, "template": template("localhost/web:7")},
        "status": {"observedGeneration": 7, "replicas": 2, "updatedReplicas": available, "readyReplicas": available,
            "availableReplicas": available, "conditions": [
                {"type": "Progressing", "status": if complete { "True" } else { "False" },
                 "reason": if complete { "NewReplicaSetAvailable" } else { "ProgressDeadlineExceeded" },
                 "message": "ReplicaSet \"web-7\" has timed out progressing.", "lastUpdateTime": "2026-11-02T10:00:00Z"}]},
    })
}

fn replica_set(revision: u32, replicas: u32) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "ReplicaSet",
        "metadata": {"name": format!("web-{revision}"), "namespace": "shop", "uid": format!("uid-set-{revision}"),
            "creationTimestamp": "2026-11-02T09:50:00Z",
            "annotations": {"deployment.kubernetes.io/revision": revision.to_string()},
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "Deployment", "name": "web", "uid": "uid-web",
                "controller": true}]},
        "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": "web", "set": revision.to_string()}},
            "template": template(&format!("localhost/web:{revision}"))},
        "status": {"replicas": replicas, "readyReplicas": replicas - u32::from(revision == 7)},
    })
}

fn pod(name: &str, set: u32, status: &Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": "shop", "creationTimestamp": "2026-11-02T09:50:00Z",
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": format!("web-{set}"),
                "uid": format!("uid-set-{set}"), "controller": true}]},
        "spec": {"nodeName": "node-1", "containers": [{"name": "app", "image": format!("localhost/web:{set}")}]},
        "status": status,
    })
}

/// A Deployment whose newest ReplicaSet has a pod that cannot pull its image.
fn failing(asked: &Asked) -> Answer {
    match asked.path.as_str() {
        "/apis/apps/v1/namespaces/shop/deployments/web" => Answer::Json(deployment("web", false)),
        "/apis/apps/v1/namespaces/shop/deployments" if asked.watches() => Answer::Watch(Vec::new(), true),
        "/apis/apps/v1/namespaces/shop/deployments" => list("DeploymentList", &[deployment("web", false)]),
        "/apis/apps/v1/namespaces/shop/replicasets" => {
            list("ReplicaSetList", &[replica_set(6, 1), replica_set(7, 1), replica_set(5, 0)])
        }
        "/api/v1/namespaces/shop/pods" if asked.query.contains("set=7") => {
            let message = "Back-off pulling image \"localhost/web:7\": not found\u{1b}[31m";
            let waiting = json!({"reason": "ImagePullBackOff", "message": message});
            let status = json!({"phase": "Pending", "containerStatuses": [
                {"name": "app", "image": "localhost/web:7", "ready": false, "restartCount": 0, "state": {"waiting": waiting}}]});
            list("PodList", &[pod("web-7-aaaaa", 7, &status)])
        }
        "/api/v1/namespaces/shop/pods" => {
            let status = json!({"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}],
                "containerStatuses": [{"name": "app", "ready": true, "restartCount": 3,
                    "state": {"running": {"startedAt": "2026-11-02T09:51:00Z"}}}]});
            list("PodList", &[pod("web-6-bbbbb", 6, &status)])
        }
        "/api/v1/namespaces/shop/events" => list("EventList", &[]),
        _ => none(),
    }
}

// ---- the program ------------------------------------------------------------------------------------------------

/// `rollout-guard ARGS` by a kubeconfig of the server at `address` with the namespace shop.
fn guard(address: &str, args: &[&str]) -> (Command, tempfile::TempDir) {
    let dir = tempfile::tempdir().expect("a directory");
    let kubeconfig = dir.path().join("kubeconfig");
    let text = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: staging\nclusters: [{{name: c, cluster: {{server: 'http://{address}'}}}}]\n\
         contexts: [{{name: staging, context: {{cluster: c, user: u, namespace: shop}}}}]\nusers: [{{name: u, user: {{}}}}]\n",
    );
    std::fs::write(&kubeconfig, text).expect("written");
    let mut command = Command::new(env!("CARGO_BIN_EXE_rollout-guard"));
    for name in ["NO_COLOR", "CLICOLOR", "CLICOLOR_FORCE", "LC_ALL", "LC_CTYPE", "LANG", "COLUMNS"] {
        command.env_remove(name);
    }
    command.args(args).env("KUBECONFIG", kubeconfig).env("TERM", "xterm").env("HOME", "/nonexistent");
    (command, dir)
}

fn run(address: &str, args: &[&str]) -> Output {
    let (mut command, _dir) = guard(address, args);
    ended(command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("starts"))
}

/// Waits for its end, not for ever.
fn ended(child: Child) -> Output {
    let pid = Pid::from_child(&child);
    let (done, waits) = std::sync::mpsc::channel::<()>();
    let watchdog = thread::spawn(move || {
        if waits.recv_timeout(SOON).is_err() {
            let _ = kill_process(pid, Signal::KILL);
            panic!("it did not end within {SOON:?}");
        }
    });
    let output = child.wait_with_output().expect("ended");
    let _ = done.send(());
    watchdog.join().expect("in time");
    output
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("UTF-8")
}

fn succeeds(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    text(&output.stdout)
}

/// Ends with status 2, nothing on standard output and one line that says all of `parts`.
fn refused(output: &Output, parts: &[&str]) {
    let error = text(&output.stderr);
    assert_eq!((output.status.code(), text(&output.stdout).as_str()), (Some(2), ""), "{error}");
    assert_eq!(error.trim_end().lines().count(), 1, "{error}");
    for part in parts {
        assert!(error.contains(part), "{part:?} is not in {error}");
    }
}

/// What differs from one day to the next: ages.
fn redacted(text: &str) -> String {
    let is_age = |word: &str| {
        let word = word.trim_end_matches(',');
        word.len() > 1
            && word.starts_with(|c: char| c.is_ascii_digit())
            && word.chars().all(|c| c.is_ascii_digit() || "smhdy".contains(c))
            && word.ends_with(|c| "smhdy".contains(c))
    };
    let lines = text.lines().map(|line| {
        let words: Vec<&str> = line.split(' ').map(|word| if is_age(word) { "AGE" } else { word }).collect();
        words.join(" ")
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// A terminal of this size: what is shown on it, and the side that the program has.
fn terminal(columns: u16, rows: u16) -> (File, File) {
    let ours: OwnedFd = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a terminal");
    grantpt(&ours).expect("granted");
    unlockpt(&ours).expect("unlocked");
    let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    tcsetwinsize(&ours, size).expect("sized");
    let path = ptsname(&ours, Vec::new()).expect("a name");
    let theirs =
        rustix::fs::open(path.as_c_str(), OFlags::RDWR | OFlags::NOCTTY, Mode::empty()).expect("opened");
    (File::from(ours), File::from(theirs))
}

/// Runs on a terminal until it ends and returns what it wrote there, its line breaks as they were written.
fn on_terminal(address: &str, args: &[&str], size: (u16, u16), environment: &[(&str, &str)]) -> String {
    let (ours, theirs) = terminal(size.0, size.1);
    let (mut command, _dir) = guard(address, args);
    command.envs(environment.iter().copied());
    command.stdin(Stdio::null()).stdout(theirs).stderr(Stdio::piped());
    let child = command.spawn().expect("starts");
    // The command holds the program's side of the terminal too.
    drop(command);
    let shown = thread::spawn(move || drained(ours));
    let output = ended(child);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    shown.join().expect("read").replace("\r\n", "\n")
}

/// Reads a terminal until nobody has its other side open.
fn drained(mut terminal: File) -> String {
    let (mut all, mut part) = (Vec::new(), [0; 4096]);
    while let Ok(read @ 1..) = terminal.read(&mut part) {
        all.extend_from_slice(&part[..read]);
    }
    text(&all)
}

// ---- one Deployment ---------------------------------------------------------------------------------------------

#[test]
fn the_tree_shows_revisions_pods_and_why_it_fails() {
    let (address, _) = serve(failing);
    insta::assert_snapshot!("tree", redacted(&succeeds(&run(&address, &["status", "deploy/web"]))));
}

#[test]
fn where_the_locale_has_more_than_ascii_so_has_the_tree() {
    let (address, _) = serve(failing);
    let (mut command, _dir) = guard(&address, &["status", "web"]);
    let output = command.env("LANG", "C.UTF-8").output().expect("runs");
    let tree = succeeds(&output);
    assert!(tree.contains("├─ revision 7") && tree.contains("└─ "), "{tree}");
    assert!(!tree.contains('\u{1b}'), "{tree:?}");
}

#[test]
fn for_programs_a_deployment_is_an_object_and_several_are_an_array() {
    let (address, _) = serve(failing);
    let one: Value =
        serde_json::from_str(&succeeds(&run(&address, &["status", "web", "-o", "json"]))).expect("JSON");
    assert_eq!(one["phase"], "Failed");
    assert_eq!(one["cause"]["type"], "Image");
    assert_eq!(one["guarded"], false);
    assert_eq!(one["revisions"][0]["pods"][0]["reason"], "ImagePullBackOff");
    assert_eq!(one["hidden"], json!([]));
    let yaml = succeeds(&run(&address, &["status", "web", "-o", "yaml"]));
    let of_yaml: Value = serde_yaml_ng::from_str(&yaml).expect("YAML");
    assert_eq!(of_yaml["revisions"], one["revisions"]);
    assert_eq!(succeeds(&run(&address, &["status", "web", "-o", "name"])), "deployment.apps/web\n");
    let all = succeeds(&run(&address, &["status", "web", "web", "-o", "json"]));
    assert_eq!(serde_json::from_str::<Value>(&all).expect("JSON").as_array().map(Vec::len), Some(2));
}

#[test]
fn a_deployment_that_is_not_there_is_named_and_the_others_are_shown() {
    let (address, _) = serve(failing);
    refused(&run(&address, &["status", "api"]), &["deployment \"api\" not found in namespace \"shop\""]);
    let output = run(&address, &["status", "api", "web"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stdout).starts_with("Deployment shop/web"), "{}", text(&output.stdout));
    assert!(text(&output.stderr).contains("\"api\" not found"), "{}", text(&output.stderr));
}

#[test]
fn what_may_not_be_read_is_told_and_the_rest_is_shown() {
    let (address, _) = serve(|asked| {
        let hidden = ["replicasets", "rolloutrecords", "pods", "events"];
        match failing(asked) {
            _ if hidden.iter().any(|kind| asked.path.contains(kind)) => {
                Answer::Refused(403, "User \"dev\" cannot do this in the namespace \"shop\"")
            }
            other => other,
        }
    });
    let tree = succeeds(&run(&address, &["status", "web"]));
    assert!(tree.contains("Deployment shop/web  Failed"), "{tree}");
    assert!(tree.contains("may not list replicasets in namespace \"shop\": User \"dev\" cannot"), "{tree}");
    assert!(tree.contains("may not get rolloutrecords in namespace \"shop\""), "{tree}");
    let output = run(&address, &["status"]);
    assert!(succeeds(&output).contains("web"));
    assert!(text(&output.stderr).contains("may not list rolloutrecords"), "{}", text(&output.stderr));
}

#[test]
fn without_any_right_the_refusal_is_one_line() {
    let (address, _) =
        serve(|_| Answer::Refused(403, "deployments.apps is forbidden: User \"dev\" cannot list"));
    for args in [&["status"][..], &["status", "web"], &["status", "--watch"], &["status", "web", "--watch"]] {
        refused(&run(&address, args), &["User \"dev\" cannot list"]);
    }
}

#[test]
fn without_a_cluster_it_says_so() {
    for args in [&["status"][..], &["status", "web"], &["status", "--watch"]] {
        refused(&run("127.0.0.1:9", args), &["refused"]);
    }
}

#[test]
fn what_was_planted_as_a_record_counts_for_nothing() {
    let (address, _) = serve(|asked| {
        if asked.path.ends_with("/rolloutrecords/deployment-web") || asked.path.ends_with("/rolloutrecords") {
            let record = json!({
                "metadata": {"name": "deployment-web", "namespace": "shop", "uid": "r"},
                "spec": {"targetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "web", "uid": "uid-web"}},
                "status": {"templateHash": "x", "cause": {"type": "Node", "message": "planted", "since": "2026-11-02T10:00:00Z"}},
            });
            return if asked.path.ends_with('s') {
                list("RolloutRecordList", &[record])
            } else {
                Answer::Json(record)
            };
        }
        failing(asked)
    });
    let one = succeeds(&run(&address, &["status", "web", "-o", "json"]));
    assert!(!one.contains("planted") && one.contains("\"guarded\": false"), "{one}");
    let all = succeeds(&run(&address, &["status", "-o", "wide"]));
    assert!(!all.contains("planted"), "{all}");
}

#[test]
fn names_that_are_none_never_reach_the_cluster() {
    let (address, asked) = serve(failing);
    for args in
        [&["status", "../x"][..], &["status", "pod/web"], &["status", "-n", "a/b"], &["status", "web", "-A"]]
    {
        let output = run(&address, args);
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(text(&output.stderr).starts_with("error: "), "{args:?}: {}", text(&output.stderr));
    }
    assert_eq!(asked.lock().expect("no panic").len(), 0);
}

// ---- many -------------------------------------------------------------------------------------------------------

/// Ten thousand Deployments in pages of 500; every hundredth is failing.
fn many(asked: &Asked) -> Answer {
    const ALL: usize = 10_000;
    const PAGE: usize = 500;
    if asked.path != DEPLOYMENTS {
        return none();
    }
    assert_eq!(asked.get("limit"), Some("500"), "{asked:?}");
    let from: usize = asked.get("continue").map_or(0, |token| token.parse().expect("our token"));
    let mut items = String::new();
    for n in from..ALL.min(from + PAGE) {
        let mut object = deployment(&format!("web-{n:05}"), n % 100 != 99);
        // As large as they are in real clusters.
        object["metadata"]["annotations"]["filler"] = json!("x".repeat(4000));
        let _ = write!(items, "{}{object}", if items.is_empty() { "" } else { "," });
    }
    let next = if from + PAGE < ALL { (from + PAGE).to_string() } else { String::new() };
    Answer::Text(format!(
        r#"{{"kind":"DeploymentList","apiVersion":"apps/v1","metadata":{{"resourceVersion":"9","continue":"{next}"}},"items":[{items}]}}"#
    ))
}

/// The most memory that the process had at any time until now, in KiB.
fn high_water_mark(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).expect("a line");
    line.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).expect("a number")
}

#[test]
fn ten_thousand_deployments_are_listed_by_pages_in_the_room_of_a_few() {
    for format in ["table", "json"] {
        let pid = Arc::new(AtomicU32::new(0));
        let marks = Arc::new(Mutex::new(Vec::new()));
        let (of, kept) = (pid.clone(), marks.clone());
        let (address, asked) = serve(move |asked| {
            if asked.path == DEPLOYMENTS {
                let started = Instant::now();
                while of.load(Ordering::Acquire) == 0 && started.elapsed() < SOON {
                    thread::yield_now();
                }
                kept.lock().expect("no panic").push(high_water_mark(of.load(Ordering::Acquire)));
            }
            many(asked)
        });
        let (mut command, _dir) = guard(&address, &["status", "-A", "-o", format]);
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("starts");
        pid.store(child.id(), Ordering::Release);
        let out = succeeds(&ended(child));
        if format == "json" {
            let all: Value = serde_json::from_str(&out).expect("JSON");
            assert_eq!(all.as_array().map(Vec::len), Some(10_000));
        } else {
            assert_eq!(out.lines().count(), 10_001);
            let failed = out.lines().filter(|line| line.contains("Failed")).count();
            assert_eq!(failed, 100);
        }
        let pages = asked.lock().expect("no panic").iter().filter(|asked| asked.path == DEPLOYMENTS).count();
        assert_eq!(pages, 20);
        let marks = marks.lock().expect("no panic");
        let (idle, peak) = (marks[0], marks[marks.len() - 1]);
        println!("{format}: {idle} KiB before the first page, {peak} KiB at the last");
        assert!(peak - idle < 60 * 1024, "{format}: {idle} KiB, then {peak} KiB");
    }
}

#[test]
fn a_reader_that_has_seen_enough_ends_it_without_a_word() {
    let (address, asked) = serve(many);
    for args in [&["status", "-A"][..], &["status", "-A", "-o", "json"], &["status", "-A", "-o", "name"]] {
        let (mut command, _dir) = guard(&address, args);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("starts");
        let mut first = String::new();
        BufReader::new(child.stdout.take().expect("piped")).read_line(&mut first).expect("read");
        assert!(!first.is_empty());
        let output = ended(child);
        assert_eq!((output.status.code(), text(&output.stderr).as_str()), (Some(0), ""), "{args:?}");
    }
    let pages = asked.lock().expect("no panic").len();
    assert!(pages < 40, "it goes on asking for nobody: {pages} requests");
}

#[test]
fn standard_output_that_is_full_is_an_error() {
    let (address, _) = serve(failing);
    let (mut command, _dir) = guard(&address, &["status"]);
    let full = File::options().write(true).open("/dev/full").expect("there");
    let output = ended(command.stdout(full).stderr(Stdio::piped()).spawn().expect("starts"));
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("cannot write to standard output"), "{}", text(&output.stderr));
}

#[test]
fn only_what_is_not_settled_is_listed_where_that_is_wanted() {
    let (address, _) = serve(many);
    let out = succeeds(&run(&address, &["status", "-A", "--stuck", "-o", "name"]));
    assert_eq!(out.lines().count(), 100);
    assert!(out.starts_with("deployment.apps/web-00099\n"), "{out}");
}

#[test]
fn an_empty_list_is_told_and_no_error() {
    let (address, _) = serve(|asked| match asked.path.as_str() {
        "/apis/apps/v1/namespaces/shop/deployments" => list("DeploymentList", &[]),
        _ => none(),
    });
    let output = run(&address, &["status", "-l", "app=web"]);
    assert_eq!(succeeds(&output), "");
    assert!(text(&output.stderr).contains("no Deployments with \"app=web\" in namespace \"shop\""));
    assert_eq!(succeeds(&run(&address, &["status", "-o", "json"])), "[]\n");
}

#[test]
fn a_page_whose_token_has_expired_goes_on_by_the_one_that_is_offered() {
    let (address, asked) = serve(|asked| match (asked.path.as_str(), asked.get("continue")) {
        (DEPLOYMENTS, None) => {
            Answer::Json(json!({"metadata": {"continue": "old"}, "items": [deployment("a", true)]}))
        }
        (DEPLOYMENTS, Some("old")) => Answer::Refused(410, "The provided continue parameter is too old"),
        _ => none(),
    });
    // This server offers none, so it is an error and not half a list that looks whole.
    let output = run(&address, &["status", "-A", "-o", "name"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("too old"), "{}", text(&output.stderr));
    assert!(asked.lock().expect("no panic").iter().any(|asked| asked.path == RECORDS));
}

// ---- a terminal -------------------------------------------------------------------------------------------------

#[test]
fn on_a_narrow_terminal_no_line_is_broken() {
    let (address, _) = serve(failing);
    for columns in [20, 40, 63, 200] {
        for args in [&["status"][..], &["status", "-o", "wide"], &["status", "web"]] {
            let shown = on_terminal(&address, args, (columns, 50), &[("NO_COLOR", "1"), ("LANG", "C.UTF-8")]);
            assert!(!shown.contains('\u{1b}'), "{shown:?}");
            for line in shown.lines() {
                assert!(line.chars().count() <= usize::from(columns), "{columns}: {line:?}");
            }
        }
    }
}

#[test]
fn colour_is_for_terminals_that_have_it_and_people_who_want_it() {
    let (address, _) = serve(failing);
    let shown = |environment: &[(&str, &str)]| on_terminal(&address, &["status"], (100, 30), environment);
    assert!(shown(&[]).contains("\u{1b}[31mFailed\u{1b}[0m"), "{:?}", shown(&[]));
    for plain in [&[("NO_COLOR", "1")][..], &[("TERM", "dumb")]] {
        assert!(!shown(plain).contains('\u{1b}'), "{plain:?}");
    }
    assert!(!succeeds(&run(&address, &["status"])).contains('\u{1b}'), "in a pipe");
}

/// What comes from the cluster cannot steer the terminal.
#[test]
fn no_escape_sequence_of_the_cluster_gets_through() {
    let (address, _) = serve(failing);
    let tree = on_terminal(&address, &["status", "web"], (200, 50), &[("NO_COLOR", "1")]);
    assert!(tree.contains("\\u{1b}[31m") && !tree.contains('\u{1b}'), "{tree:?}");
}

// ---- watch ------------------------------------------------------------------------------------------------------

/// An event of a watch, its type first as the API server writes it.
fn event(kind: &str, object: &Value) -> String {
    format!(r#"{{"type":"{kind}","object":{object}}}"#)
}

fn changed(kind: &str, complete: bool, version: u32) -> String {
    let mut object = deployment("web", complete);
    object["metadata"]["resourceVersion"] = json!(version.to_string());
    event(kind, &object)
}

/// Reads lines until `enough` have come, then ends the process as Ctrl-C does, and returns the lines.
fn lines_until(mut command: Command, enough: usize) -> Vec<String> {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("starts");
    let pid = Pid::from_child(&child);
    let stdout = BufReader::new(child.stdout.take().expect("piped"));
    let (send, lines) = std::sync::mpsc::channel();
    thread::spawn(move || stdout.lines().map_while(Result::ok).try_for_each(|line| send.send(line)));
    let mut found = Vec::new();
    let started = Instant::now();
    while found.len() < enough {
        match lines.recv_timeout(SOON.saturating_sub(started.elapsed())) {
            Ok(line) => found.push(line),
            Err(error) => {
                let _ = kill_process(pid, Signal::KILL);
                let output = child.wait_with_output().expect("ended");
                panic!("{error} after {found:?}: {}", text(&output.stderr));
            }
        }
    }
    kill_process(pid, Signal::INT).expect("it runs");
    assert_eq!(ended(child).status.code(), Some(0), "Ctrl-C is the way to end it");
    found
}

#[test]
fn in_a_pipe_a_watch_appends_a_line_for_each_change_and_survives_that_it_breaks() {
    let lists = Arc::new(AtomicU32::new(0));
    let (address, _) = serve(move |asked| match asked.path.as_str() {
        "/apis/apps/v1/namespaces/shop/deployments" if asked.watches() => {
            // The first watch tells one change, and then that it has forgotten what came since.
            let gone = json!({"kind": "Status", "code": 410, "reason": "Expired", "message": "too old",
                "status": "Failure", "metadata": {}});
            let gone = event("ERROR", &gone);
            match lists.load(Ordering::Acquire) {
                0..=2 => Answer::Watch(vec![(300, changed("MODIFIED", false, 11)), (300, gone)], false),
                _ => Answer::Watch(vec![(300, changed("DELETED", true, 13))], true),
            }
        }
        "/apis/apps/v1/namespaces/shop/deployments" => {
            lists.fetch_add(1, Ordering::AcqRel);
            list("DeploymentList", &[deployment("web", true)])
        }
        _ => none(),
    });
    let (command, _dir) = guard(&address, &["status", "--watch"]);
    let lines = lines_until(command, 5);
    let phases: Vec<&str> = lines.iter().filter_map(|line| line.split_whitespace().nth(1)).collect();
    assert_eq!(phases, ["PHASE", "Complete", "Failed", "Complete", "Deleted"], "{lines:?}");
}

#[test]
fn for_programs_a_watch_is_an_object_on_each_line() {
    let (address, _) = serve(|asked| match asked.path.as_str() {
        "/apis/apps/v1/namespaces/shop/deployments" if asked.watches() => {
            Answer::Watch(vec![(300, changed("MODIFIED", false, 11))], true)
        }
        "/apis/apps/v1/namespaces/shop/deployments" => list("DeploymentList", &[deployment("web", true)]),
        _ => none(),
    });
    let (command, _dir) = guard(&address, &["status", "--watch", "-o", "json"]);
    let lines = lines_until(command, 2);
    let phase = |line: &str| serde_json::from_str::<Value>(line).expect("JSON")["phase"].clone();
    assert_eq!((phase(&lines[0]), phase(&lines[1])), (json!("Complete"), json!("Failed")));
}

#[test]
fn by_name_a_watch_tells_what_changes_and_that_it_is_gone() {
    let looks = Arc::new(AtomicU32::new(0));
    let (address, _) = serve(move |asked| match asked.path.as_str() {
        "/apis/apps/v1/namespaces/shop/deployments/web" => match looks.fetch_add(1, Ordering::AcqRel) {
            0 => Answer::Json(deployment("web", false)),
            1 => Answer::Refused(500, "etcd is away"),
            2 => Answer::Json(deployment("web", true)),
            _ => none(),
        },
        "/apis/apps/v1/namespaces/shop/deployments" if asked.watches() => {
            Answer::Watch((0..20).map(|n| (400, changed("MODIFIED", true, 11 + n))).collect(), true)
        }
        _ => failing(asked),
    });
    let (command, _dir) = guard(&address, &["status", "web", "--watch"]);
    let lines = lines_until(command, 4);
    let phases: Vec<&str> = lines.iter().filter_map(|line| line.split_whitespace().nth(1)).collect();
    assert_eq!(phases, ["PHASE", "Failed", "Complete", "Deleted"], "{lines:?}");
}

#[test]
fn on_a_terminal_a_watch_redraws_in_place_and_stays_within_its_height() {
    let (address, _) = serve(|asked| match asked.path.as_str() {
        "/apis/apps/v1/namespaces/shop/deployments" if asked.watches() => Answer::Watch(Vec::new(), true),
        "/apis/apps/v1/namespaces/shop/deployments" => {
            let all: Vec<Value> = (0..30).map(|n| deployment(&format!("web-{n:02}"), n != 29)).collect();
            list("DeploymentList", &all)
        }
        _ => none(),
    });
    let (ours, theirs) = terminal(60, 10);
    let (mut command, _dir) = guard(&address, &["status", "--watch"]);
    command.env("NO_COLOR", "1").stdin(Stdio::null()).stdout(theirs).stderr(Stdio::piped());
    let child = command.spawn().expect("starts");
    drop(command);
    let pid = Pid::from_child(&child);
    let shown = thread::spawn(move || drained(ours));
    // Two drawings, a second apart; there is no other way to see them than to let that second pass.
    thread::sleep(Duration::from_millis(3500));
    kill_process(pid, Signal::INT).expect("it runs");
    assert_eq!(ended(child).status.code(), Some(0));
    let shown = shown.join().expect("read").replace("\r\n", "\n");
    let drawings: Vec<&str> = shown.split("\u{1b}[9A\r").collect();
    assert!(drawings.len() >= 2, "{shown:?}");
    let lines: Vec<&str> = drawings[0].lines().map(|line| line.trim_end_matches("\u{1b}[K")).collect();
    assert!(lines[1].starts_with("web-29"), "what is not settled comes first: {lines:?}");
    assert_eq!(lines[8], "and 23 more", "{lines:?}");
}

// ---- completion -------------------------------------------------------------------------------------------------

fn complete(address: &str, words: &[&str]) -> Vec<String> {
    let (mut command, _dir) = guard(address, &["--", "rollout-guard"]);
    command.args(words).env("_ROLLOUT_GUARD_COMPLETE", "bash").env("_CLAP_IFS", "\n");
    command.env("_CLAP_COMPLETE_INDEX", words.len().to_string());
    let output = command.output().expect("runs");
    assert_eq!((output.status.code(), text(&output.stderr).as_str()), (Some(0), ""), "{words:?}");
    text(&output.stdout).lines().map(str::to_owned).collect()
}

fn names(kind: &str, names: &[&str]) -> Answer {
    let items: Vec<Value> = names
        .iter()
        .map(|name| json!({"apiVersion": "v1", "kind": kind, "metadata": {"name": name}}))
        .collect();
    Answer::Json(json!({"kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1",
        "metadata": {"resourceVersion": "1"}, "items": items}))
}

fn cluster_of_names(asked: &Asked) -> Answer {
    match asked.path.as_str() {
        "/api/v1/namespaces" => names("Namespace", &["shop", "staging"]),
        "/apis/apps/v1/namespaces/shop/deployments" => names("Deployment", &["web", "worker", "api"]),
        "/apis/apps/v1/namespaces/staging/deployments" => names("Deployment", &["webhook"]),
        _ => none(),
    }
}

#[test]
fn completion_knows_deployments_namespaces_and_contexts() {
    let (address, _) = serve(cluster_of_names);
    assert_eq!(complete(&address, &["status", "w"]), ["web", "worker"]);
    assert_eq!(complete(&address, &["status", "deploy/we"]), ["deploy/web"]);
    assert_eq!(complete(&address, &["status", "-n", "staging", "w"]), ["webhook"]);
    assert_eq!(complete(&address, &["status", "-n", "s"]), ["shop", "staging"]);
    assert_eq!(complete(&address, &["status", "--context", ""]), ["staging"]);
    assert_eq!(complete(&address, &["stat"]), ["status"]);
}

#[test]
fn completion_for_kubectl_speaks_as_its_own_commands_do() {
    let (address, _) = serve(cluster_of_names);
    let answer = |words: &[&str]| {
        let (mut command, _dir) = guard(&address, &["__complete"]);
        let output = command.args(words).output().expect("runs");
        assert_eq!(text(&output.stderr), "");
        succeeds(&output)
    };
    assert_eq!(answer(&["status", "-n", "shop", "w"]), "web\nworker\n:4\n");
    assert!(answer(&["stat"]).starts_with("status\tShows where Deployments stand"), "{}", answer(&["stat"]));
    assert!(answer(&[""]).contains("completion\t"));
}

#[test]
fn completion_without_a_cluster_is_quick_quiet_and_empty() {
    // One that takes the connection and never answers.
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let hanging = listener.local_addr().expect("bound").to_string();
    for address in ["127.0.0.1:9", &hanging] {
        let started = Instant::now();
        assert_eq!(complete(address, &["status", "w"]), Vec::<String>::new());
        assert!(started.elapsed() < Duration::from_secs(6), "{:?}", started.elapsed());
    }
}
