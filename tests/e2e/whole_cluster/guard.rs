//! The guard as others see it: who leads, what it asked of the API server, and its sudden end.

use std::{
    env,
    io::{BufRead, BufReader, Write},
    process::{Child, Command, Stdio},
};

use serde_json::Value;

use crate::harness::{
    cluster::{audit_events, in_node, json as get},
    installation::NAME,
    seconds,
    wait::holds,
    wait_until,
};

/// As whom it asks.
pub const USER: &str = "system:serviceaccount:rollout-guard:rollout-guard";

/// Returns which process holds the guard's lease: `<pod>_<when it started>`.
pub fn holder() -> Result<String, String> {
    let lease = get(["get", "lease", NAME, "-n", NAME])?;
    let holder = lease["spec"]["holderIdentity"].as_str().unwrap_or_default();
    holds(!holder.is_empty(), lease.to_string()).map(|()| holder.to_owned())
}

/// Returns the pod of a holder.
pub fn pod_of(holder: &str) -> String {
    holder.rsplit_once('_').map_or(holder, |(pod, _)| pod).to_owned()
}

/// Waits until another process than `before` leads, and returns it. The lease of one that was killed has to run out.
#[track_caller]
pub fn another_leads(before: &str) -> String {
    wait_until("another process leads", seconds(60), || {
        let now = holder()?;
        holds(now != before, now.clone()).map(|()| now)
    })
}

/// A command in the node that waits for the word to send the guard's processes of some pods a signal, all at once:
/// to begin a command there takes longer than a rollback.
pub struct Kill {
    command: Child,
    said: BufReader<std::process::ChildStdout>,
}

impl Kill {
    /// By SIGKILL.
    #[track_caller]
    pub fn prepared(pods: &[String]) -> Self {
        Self::by("KILL", pods)
    }

    #[track_caller]
    pub fn by(signal: &str, pods: &[String]) -> Self {
        const SCRIPT: &str = r#"
            signal=$1; shift
            for pid in $(pgrep -x rollout-guard); do
              pod=$(tr '\0' '\n' < /proc/$pid/environ | sed -n 's/^POD_NAME=//p')
              case " $* " in *" $pod "*) pids="$pids $pid" ;; esac
            done
            set -- $pids
            echo "$#"
            read -r word && kill -"$signal" "$@" && echo "$word""#;
        let required = |name: &str| env::var(name).unwrap_or_else(|_| panic!("{name} is not set"));
        let exec = required("NODE_EXEC");
        let mut words = exec.split_whitespace();
        let mut command = Command::new(words.next().unwrap_or("docker"))
            .args(words)
            .args(["-i", &required("NODE"), "sh", "-c", SCRIPT, "sh", signal])
            .args(pods)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("a command in the node");
        let said = BufReader::new(command.stdout.take().expect("a pipe"));
        let mut kill = Self { command, said };
        let found = kill.line();
        assert_eq!(found, pods.len().to_string(), "processes of {pods:?}");
        kill
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.said.read_line(&mut line).expect("a pipe");
        line.trim().to_owned()
    }

    #[track_caller]
    pub fn now(mut self) {
        self.command.stdin.take().expect("a pipe").write_all(b"killed\n").expect("a pipe");
        assert_eq!(self.line(), "killed");
    }
}

impl Drop for Kill {
    fn drop(&mut self) {
        // At the end of its input it ends as well, and kills nobody.
        drop(self.command.stdin.take());
        let _ = self.command.wait();
    }
}

/// What the guard asked of the API server, by the audit log.
pub struct Request {
    pub verb: String,
    pub group: String,
    /// With its subresource.
    pub resource: String,
    pub namespace: String,
    pub name: String,
    pub code: u64,
}

impl Request {
    pub fn writes(&self) -> bool {
        !matches!(self.verb.as_str(), "get" | "list" | "watch")
    }

    pub fn told(&self) -> String {
        format!("{} {}/{} {}", self.verb, self.resource, self.name, self.code)
    }
}

/// Returns the requests of all replicas in which `text` occurs, since a time of [`now_in_node`] where there is one.
pub fn requests(text: &str, since: Option<&str>) -> Vec<Request> {
    let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let of_it = audit_events(text).into_iter().filter(|event| event["user"]["username"] == USER);
    // A watch is told of twice, at its begin and at its end; nothing else is.
    let ended = of_it.filter(|event| event["stage"] == "ResponseComplete");
    let lately = ended.filter(|event| event["requestReceivedTimestamp"].as_str() >= since);
    lately
        .map(|event| {
            let of = &event["objectRef"];
            let resource = [word(&of["resource"]), word(&of["subresource"])];
            Request {
                verb: word(&event["verb"]),
                group: word(&of["apiGroup"]),
                resource: resource.join("/").trim_matches('/').to_owned(),
                namespace: word(&of["namespace"]),
                name: word(&of["name"]),
                code: event["responseStatus"]["code"].as_u64().unwrap_or_default(),
            }
        })
        .collect()
}

/// The API server's own clock, as its audit log writes it.
pub fn now_in_node() -> String {
    in_node(&["date", "-u", "+%FT%T.%6NZ"]).succeeds().trim().to_owned()
}

/// Says that a Deployment was written as one rollback writes it: once to put the template back, and once to hand its
/// fields back, which makes no generation; and that nothing of the guard's is left in it.
#[track_caller]
pub fn wrote_once(deployment: &Value) {
    let word = |field: &str| deployment["metadata"][field].as_str().unwrap_or_default();
    let (namespace, name) = (word("namespace"), word("name"));
    let requests = requests(namespace, None);
    let written = requests.iter().filter(|request| {
        let of_it =
            request.resource == "deployments" && request.namespace == namespace && request.name == name;
        of_it && request.writes() && request.code < 300
    });
    let written: Vec<String> = written.map(Request::told).collect();
    // Created, pushed, put back. Fields are handed back, without a generation, only where the way back added some.
    assert_eq!(deployment["metadata"]["generation"], 3, "{name}: {written:?}");
    assert!((1..=2).contains(&written.len()), "{name}: {written:?}");
    let owners = deployment["metadata"]["managedFields"].as_array().into_iter().flatten();
    let ours: Vec<_> = owners
        .filter(|entry| entry["manager"] == "rollout-guard" && entry["subresource"].is_null())
        .collect();
    assert!(ours.is_empty(), "{name}: not handed back: {ours:?}");
}

/// How often the containers of the guard's pods were started again.
pub fn restarts() -> Vec<(String, i64)> {
    let pods = get(["get", "pods", "-n", NAME]).unwrap_or_else(|words| panic!("{words}"));
    let each = pods["items"].as_array().into_iter().flatten().map(|pod| {
        let count = pod["status"]["containerStatuses"][0]["restartCount"].as_i64().unwrap_or_default();
        (pod["metadata"]["name"].as_str().unwrap_or_default().to_owned(), count)
    });
    each.collect()
}
