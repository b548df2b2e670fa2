//! Many Deployments, many rollouts at once, and a few bad ones among them.
//!
//! The pods run on nodes that kwok plays; everything else is real. `SCALE=5000` says how many Deployments.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    env,
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use super::guard::{self, Request, holder, pod_of};
use crate::harness::{
    Scenario,
    cluster::{in_node, json as get, kubectl},
    deployment,
    installation::{self, Values},
    kwok,
    policy::InForce,
    record::verdict,
    restore,
    scenario::LABEL,
    seconds,
    wait::holds,
    wait_until,
};

/// As many as two cores bring up in half a minute.
const DEPLOYMENTS: usize = 1000;
const NAMESPACES: usize = 20;
const NODES: usize = 3;
/// kubectl processes side by side, for what is said to each namespace.
const WORKERS: usize = 4;
/// On namespaces: of which scenario. On Deployments: the part it plays, [`Part`].
const KEY: &str = "rollout-guard-e2e-scale";
const IMAGE: &str = "registry.example/app";

#[test]
fn of_200_rollouts_at_once_the_20_bad_ones_are_restored_and_nothing_else_is_written() {
    // The chart's own but for one: all are restored at once, one in each namespace, and the breaker stays closed
    // at two in a hundred.
    let values = [
        "watcher.limits.rollbacksPerNamespace=1",
        "watcher.limits.rollbacksPerCluster=20",
        "watcher.limits.stuckAtLeast=3",
    ];
    let s = Scenario::alone_with("scale", &Values::of(&values));
    let fleet = Fleet::of(&s);
    let _nodes = kwok::nodes(NODES);
    let _gone = restore("delete the namespaces", || fleet.delete());
    fleet.create_namespaces();
    let _policy = fleet.put_policy_in_force(&s);

    let watch = Watch::start(&s.namespace);
    let started = Instant::now();
    fleet.create();
    s.say(&format!("{} Deployments created after {:.1} s", fleet.size, started.elapsed().as_secs_f64()));
    let enough = seconds(60 + fleet.size as u64 / 5);
    wait_until("all Deployments are complete", enough, || {
        let complete = watch.count(|d| d.complete);
        holds(complete == fleet.size, format!("{complete} of {}", fleet.size))
    });
    s.say(&format!("all complete after {:.1} s", started.elapsed().as_secs_f64()));
    let leader = watched_by_the_leader(fleet.size);
    fleet.wait_written_down();

    let since = guard::now_in_node();
    let before = Process::of(&leader);
    let started = Instant::now();
    fleet.push();
    s.say(&format!("{} pushes after {:.1} s", fleet.pushed(), started.elapsed().as_secs_f64()));
    wait_until("all rollouts have settled", seconds(180), || {
        let good = watch.count(|d| d.part == Part::Good && d.complete && d.tag == "v2");
        let open = watch.told(|d| d.part == Part::Bad && d.safe.is_none());
        let state = format!("{good} of {} good ones complete, not restored: {open:?}", fleet.good);
        holds(good == fleet.good && open.is_empty(), state)
    });
    s.say(&format!("all settled after {:.1} s", started.elapsed().as_secs_f64()));
    let verified = fleet.wait_verified();
    let after = Process::of(&leader);

    s.say(&watch.times_to_safety());
    s.say(&format!("leader {leader}: {}", after.since(&before)));
    if let Ok(now) = self::leader()
        && now != leader
    {
        s.say(&format!("the leader is {now} now"));
    }
    let requests = guard::requests(guard::USER, Some(&since));
    s.say(&format!("{} requests of both replicas meanwhile:\n{}", requests.len(), table(&requests)));

    // One more generation for each push, one more for each rollback, and none for anybody else.
    for (part, tag, generation) in [(Part::Bad, "v1", 3), (Part::Good, "v2", 2), (Part::Still, "v1", 1)] {
        let other = |d: &Seen| d.part == part && (d.tag != tag || d.generation != generation || !d.complete);
        let other = watch.told(other);
        assert!(other.is_empty(), "{part:?}, and not complete at {tag}, generation {generation}: {other:#?}");
    }
    let bad = watch.names(|d| d.part == Part::Bad);
    assert_eq!(verified, bad, "the records tell of other rollbacks");
    only_these_are_written(&requests, &bad, &watch.names(|d| d.part != Part::Still));
}

/// What is pushed to a Deployment.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Part {
    Bad,
    Good,
    Still,
}

impl Part {
    fn label(self) -> &'static str {
        match self {
            Self::Bad => "bad",
            Self::Good => "good",
            Self::Still => "still",
        }
    }
}

/// Deployments over some namespaces, of which a part is pushed.
struct Fleet {
    /// Of the scenario, and the prefix of the fleet's namespaces.
    name: String,
    size: usize,
    good: usize,
    bad: usize,
}

impl Fleet {
    fn of(s: &Scenario) -> Self {
        let size = env::var("SCALE").map_or(DEPLOYMENTS, |size| size.parse().expect("SCALE is a number"));
        assert!(size >= 50, "SCALE={size} leaves no bad rollout");
        let pushed = (size / 5).min(200);
        Self { name: s.namespace.clone(), size, good: pushed - pushed / 10, bad: pushed / 10 }
    }

    fn pushed(&self) -> usize {
        self.good + self.bad
    }

    fn namespace(&self, i: usize) -> String {
        format!("{}-{}", self.name, i % NAMESPACES)
    }

    fn create_namespaces(&self) {
        let (key, value) = LABEL.split_once('=').unwrap_or_default();
        let namespace = |i| {
            json!({
                "apiVersion": "v1",
                "kind": "Namespace",
                "metadata": {"name": self.namespace(i), "labels": {key: value, KEY: self.name}},
            })
        };
        let list: Vec<Value> = (0..NAMESPACES).map(namespace).collect();
        kubectl(["create", "-f", "-"]).input(list_of(&list)).succeeds();
    }

    /// Waits until they are gone, so that the next scenario has a quiet cluster; not where this is the last one of a cluster that
    /// is deleted itself.
    fn delete(&self) {
        if env::var_os("THROWAWAY").is_some() {
            return;
        }
        let limit = seconds(120 + self.size as u64 / 10);
        let selector = format!("{KEY}={}", self.name);
        let started = Instant::now();
        kubectl(["delete", "namespaces", "-l", &selector]).limit(limit).succeeds();
        crate::harness::say("scale", &format!("all deleted after {:.1} s", started.elapsed().as_secs_f64()));
    }

    fn put_policy_in_force(&self, s: &Scenario) -> InForce {
        let watch = json!({"earlyFailureAfter": "3s", "goodAfter": "1s", "unobservedAfter": "60s"});
        let mut policy = s.policy("fleet", json!({"watch": watch}));
        policy["spec"]["namespaceSelector"] = json!({"matchLabels": {KEY: self.name}});
        kubectl(["create", "-f", "-"]).input(policy.to_string()).succeeds();
        let name = policy["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        let policy = InForce { name };
        policy.settles();
        policy
    }

    fn create(&self) {
        self.in_each_namespace(|n| {
            let of_it: Vec<Value> = (n..self.size).step_by(NAMESPACES).map(|i| self.deployment(i)).collect();
            kubectl(["create", "-f", "-"])
                .input(list_of(&of_it))
                .limit(seconds(60 + self.size as u64 / 5))
                .succeeds();
        });
    }

    fn deployment(&self, i: usize) -> Value {
        let part = match i {
            i if i < self.bad => Part::Bad,
            i if i < self.pushed() => Part::Good,
            _ => Part::Still,
        };
        deployment(&format!("web-{i}"), |d| {
            d["metadata"]["namespace"] = json!(self.namespace(i));
            d["metadata"]["labels"][KEY] = json!(part.label());
            d["spec"]["template"]["spec"]["containers"][0]["image"] = json!(format!("{IMAGE}:v1"));
            kwok::place(&mut d["spec"]["template"]);
        })
    }

    fn push(&self) {
        self.in_each_namespace(|n| {
            for (part, tag) in [(Part::Bad, "missing"), (Part::Good, "v2")] {
                let (image, selector) = (format!("app={IMAGE}:{tag}"), format!("{KEY}={}", part.label()));
                kubectl(["set", "image", "deployments", "-l", &selector, &image, "-n", &self.namespace(n)])
                    .succeeds();
            }
        });
    }

    fn in_each_namespace(&self, act: impl Fn(usize) + Sync) {
        thread::scope(|scope| {
            for worker in 0..WORKERS {
                let act = &act;
                scope.spawn(move || (worker..NAMESPACES).step_by(WORKERS).for_each(act));
            }
        });
    }

    /// Waits until the guard has written down what it has to say of the creation: where that takes a while on a busy
    /// machine, records are made for it.
    fn wait_written_down(&self) {
        wait_until("what there is to say of the creation is written down", seconds(120), || {
            let records = get(["get", "rolloutrecords", "--all-namespaces"])?;
            let of_it = records["items"].as_array().into_iter().flatten().filter(|record| {
                record["metadata"]["namespace"].as_str().is_some_and(|name| name.starts_with(&self.name))
            });
            let open: Vec<_> = of_it.filter(|record| verdict(record) != "Good").collect();
            holds(open.is_empty(), format!("{open:?}"))
        });
    }

    /// Waits until the guard has verified as many rollbacks as there are bad pushes, and returns of which
    /// Deployments its records tell a rollback.
    fn wait_verified(&self) -> BTreeSet<String> {
        wait_until("every rollback is verified", seconds(30), || {
            let records = get(["get", "rolloutrecords", "--all-namespaces"])?;
            let mut outcomes = BTreeMap::new();
            for record in records["items"].as_array().into_iter().flatten() {
                let namespace = record["metadata"]["namespace"].as_str().unwrap_or_default();
                let name = record["spec"]["targetRef"]["name"].as_str().unwrap_or_default();
                let outcome = &record["status"]["rollback"]["outcome"];
                if namespace.starts_with(&self.name) && !outcome.is_null() {
                    outcomes.insert(format!("{namespace}/{name}"), outcome.clone());
                }
            }
            let succeeded = outcomes.values().filter(|outcome| **outcome == "Succeeded").count();
            holds(succeeded >= self.bad, format!("{outcomes:?}"))?;
            Ok(outcomes.into_keys().collect())
        })
    }
}

fn list_of(items: &[Value]) -> String {
    json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string()
}

/// What one watch of all Deployments of the fleet has said: asking for them again and again would load the API
/// server more than the guard does.
struct Watch {
    kubectl: Child,
    seen: Arc<Mutex<HashMap<String, Seen>>>,
}

/// One Deployment.
struct Seen {
    part: Part,
    tag: String,
    generation: u64,
    complete: bool,
    /// When the bad image was seen first.
    pushed: Option<Instant>,
    /// When another one was seen complete after that.
    safe: Option<Instant>,
}

impl Watch {
    fn start(fleet: &str) -> Self {
        let fields = [
            ".metadata.namespace",
            ".metadata.name",
            &format!(".metadata.labels.{KEY}"),
            ".metadata.generation",
            ".status.observedGeneration",
            ".status.replicas",
            ".status.updatedReplicas",
            ".status.availableReplicas",
            ".spec.template.spec.containers[0].image",
        ];
        let template = fields.map(|field| format!("{{{field}}}")).join(" ") + r#"{"\n"}"#;
        let mut kubectl = Command::new("kubectl")
            .args(["get", "deployments", "--all-namespaces", "--watch", "-l", KEY, "-o"])
            .arg(format!("jsonpath={template}"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("kubectl");
        let lines = BufReader::new(kubectl.stdout.take().expect("a pipe")).lines();
        let seen = Arc::new(Mutex::new(HashMap::new()));
        let (into, prefix) = (Arc::clone(&seen), format!("{fleet}-"));
        thread::spawn(move || {
            for line in lines.map_while(Result::ok).filter(|line| line.starts_with(&prefix)) {
                take(&mut into.lock().unwrap_or_else(PoisonError::into_inner), &line);
            }
        });
        Self { kubectl, seen }
    }

    fn with<T>(&self, look: impl FnOnce(&HashMap<String, Seen>) -> T) -> T {
        look(&self.seen.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn count(&self, is: impl Fn(&Seen) -> bool) -> usize {
        self.with(|all| all.values().filter(|d| is(d)).count())
    }

    /// Returns `namespace/name` of each Deployment that `is`.
    fn names(&self, is: impl Fn(&Seen) -> bool) -> BTreeSet<String> {
        self.with(|all| all.iter().filter(|(_, d)| is(d)).map(|(name, _)| name.clone()).collect())
    }

    fn told(&self, is: impl Fn(&Seen) -> bool) -> Vec<String> {
        let tell = |(name, d): (&String, &Seen)| {
            let state = if d.complete { "complete" } else { "not complete" };
            format!("{name} at {}, generation {}, {state}", d.tag, d.generation)
        };
        self.with(|all| all.iter().filter(|(_, d)| is(d)).map(tell).collect())
    }

    fn times_to_safety(&self) -> String {
        let took = |d: &Seen| Some(d.safe?.duration_since(d.pushed?));
        let mut times: Vec<Duration> = self.with(|all| all.values().filter_map(took).collect());
        times.sort();
        let (Some(least), Some(most)) = (times.first(), times.last()) else {
            return "no rollback".to_owned();
        };
        let median = times[times.len() / 2];
        let [least, median, most] = [*least, median, *most].map(|time| time.as_secs_f64());
        let count = times.len();
        format!("push to safety, {count} times: p50 {median:.1} s, max {most:.1} s, min {least:.1} s")
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let _ = self.kubectl.kill();
        let _ = self.kubectl.wait();
    }
}

/// Takes a line of the watch in; what is not there yet is an empty word.
fn take(all: &mut HashMap<String, Seen>, line: &str) {
    let words: Vec<&str> = line.split(' ').collect();
    let &[namespace, name, part, generation, observed, replicas, updated, available, image] = &words[..]
    else {
        return;
    };
    let parts = [Part::Bad, Part::Good, Part::Still];
    let Some(part) = parts.into_iter().find(|known| known.label() == part) else { return };
    let tag = image.rsplit(':').next().unwrap_or_default();
    let complete = observed == generation && [replicas, updated, available] == ["1"; 3];
    let seen = all.entry(format!("{namespace}/{name}")).or_insert_with(|| Seen {
        part,
        tag: String::new(),
        generation: 0,
        complete: false,
        pushed: None,
        safe: None,
    });
    if tag == "missing" {
        seen.pushed.get_or_insert_with(Instant::now);
    } else if complete && seen.pushed.is_some() {
        seen.safe.get_or_insert_with(Instant::now);
    }
    tag.clone_into(&mut seen.tag);
    seen.generation = generation.parse().unwrap_or_default();
    seen.complete = complete;
}

/// Waits until the leader follows so many Deployments, and returns its pod.
fn watched_by_the_leader(size: usize) -> String {
    wait_until("the leader watches all Deployments", seconds(60), || {
        let leader = leader()?;
        let metrics = installation::metrics_of(&leader)?;
        let value = metrics.lines().find_map(|line| line.strip_prefix("rollout_guard_watched_deployments "));
        let watched: f64 = value.and_then(|value| value.parse().ok()).unwrap_or_default();
        holds(watched >= size as f64, format!("{leader} watches {watched} of {size}"))?;
        Ok(leader)
    })
}

/// Returns the pod that leads.
fn leader() -> Result<String, String> {
    holder().map(|holder| pod_of(&holder))
}

/// The process of one replica, by the node's `/proc`.
struct Process {
    rss_kib: f64,
    peak_kib: f64,
    cpu_seconds: f64,
}

impl Process {
    fn of(pod: &str) -> Self {
        const SCRIPT: &str = r#"
            for pid in $(pgrep -x rollout-guard); do
              tr '\0' '\n' < /proc/$pid/environ | grep -qx "HOSTNAME=$0" || continue
              awk '/^VmRSS:|^VmHWM:/ { print $1, $2 }' /proc/$pid/status
              awk -v hz="$(getconf CLK_TCK)" '{ print "cpu", ($14 + $15) / hz }' /proc/$pid/stat
            done"#;
        let said = in_node(&["sh", "-c", SCRIPT, pod]).succeeds();
        let value = |key: &str| {
            let mut pairs = said.lines().filter_map(|line| line.split_once(' '));
            let found = pairs.find(|pair| pair.0 == key).and_then(|pair| pair.1.parse().ok());
            found.unwrap_or_else(|| panic!("no {key} of {pod}: {said}"))
        };
        Self { rss_kib: value("VmRSS:"), peak_kib: value("VmHWM:"), cpu_seconds: value("cpu") }
    }

    fn since(&self, before: &Self) -> String {
        let mib = |kib: f64| kib / 1024.0;
        format!(
            "RSS {:.1} MiB (before the pushes {:.1}, peak {:.1}), CPU {:.2} s for the pushes, {:.2} s in all",
            mib(self.rss_kib),
            mib(before.rss_kib),
            mib(self.peak_kib),
            self.cpu_seconds - before.cpu_seconds,
            self.cpu_seconds,
        )
    }
}

fn table(requests: &[Request]) -> String {
    let mut counts = BTreeMap::<_, usize>::new();
    for request in requests {
        *counts.entry((&request.resource, &request.verb)).or_default() += 1;
    }
    let line = |((resource, verb), count): ((&String, &String), usize)| {
        let resource = if resource.is_empty() { "(no resource)" } else { resource };
        format!("{count:7} {verb:7} {resource}")
    };
    counts.into_iter().map(line).collect::<Vec<_>>().join("\n")
}

/// The audit log tells also of what failed, so this holds for what the guard attempted.
fn only_these_are_written(requests: &[Request], bad: &BTreeSet<String>, pushed: &BTreeSet<String>) {
    let mut restored = BTreeSet::new();
    for request in requests.iter().filter(|request| request.writes()) {
        let Request { verb, group, resource, namespace, name, .. } = request;
        let object = format!("{namespace}/{name}");
        let main = resource.split('/').next().unwrap_or_default();
        let expected = match (group.as_str(), main) {
            ("apps", "deployments") => bad.contains(&object),
            ("rollout-guard.io", "rolloutrecords") => pushed.contains(&object.replace("/deployment-", "/")),
            ("rollout-guard.io", "rolloutpolicies") | ("coordination.k8s.io", "leases") => true,
            // The fallbacks, which it applies again and again.
            ("admissionregistration.k8s.io", _) => object.starts_with("/rollout-guard-"),
            ("" | "events.k8s.io", "events") => true,
            // A question.
            ("authorization.k8s.io", _) => true,
            _ => false,
        };
        assert!(expected, "the guard did {verb} {resource} {object}");
        if resource == "deployments" {
            restored.insert(object);
        }
    }
    assert_eq!(&restored, bad, "restored by the audit log, and bad");
}
