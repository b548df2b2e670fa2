//! From a failed condition in the watch to the rollback that the API server has acknowledged (goal G9).
//!
//! The API server of this file is in the same process, behind HTTP on the loopback and on a runtime of its own. It
//! tells of 1,000 changes a second that call for nothing, and now and then of a rollout that has failed; it
//! answers what the reconciler asks, applies the patches as JSON patches, and notes when it has answered the one
//! that puts the template back.

use std::{
    collections::{BTreeSet, HashMap},
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use axum::{
    Router,
    body::{Body, Bytes},
    extract::State,
    http::{Method, StatusCode, Uri},
    response::{IntoResponse, Response},
};
use futures::{StreamExt, channel::mpsc};
use jiff::Timestamp;
use kube::Config;
use rollout_guard::{
    cluster::{Cluster, policies::Event},
    core::{
        breaker::{ControllerManager, Health, Limits, NodeCount},
        key::Key,
        policy::PolicySet,
        record::Before,
        rollout::Phase,
    },
    notify::Notifier,
    telemetry::Metrics,
    watcher::{
        reconcile::{Gate, Memory, Next, Reconciler},
        store::{Change, Store},
        surroundings::Surroundings,
    },
    world::World,
};
use serde::Serialize;
use serde_json::{Value, json};
use tokio::{net::TcpListener, runtime::Builder};

use crate::{
    api::{event, page, parameter, streamed},
    common, host,
    objects::{Objects, uid},
};

/// Events that call for nothing, a second.
const NOISE: usize = 1_000;

/// Between two failures.
const PAUSE: Duration = Duration::from_millis(100);

/// Milliseconds.
#[derive(Debug, Serialize)]
pub struct Spread {
    pub p50: f64,
    pub p90: f64,
    pub p99: f64,
    pub max: f64,
}

impl Spread {
    fn of(mut times: Vec<Duration>) -> Self {
        times.sort_unstable();
        let at = |percent: usize| {
            let index = (times.len() * percent).div_ceil(100).clamp(1, times.len().max(1)) - 1;
            times.get(index).map_or(f64::NAN, |time| time.as_secs_f64() * 1e3)
        };
        Self { p50: at(50), p90: at(90), p99: at(99), max: at(100) }
    }
}

/// What was measured.
#[derive(Debug, Serialize)]
pub struct Safety {
    pub watched: usize,
    pub rollbacks: usize,
    /// Events a second that the watch has told, and that the store has taken in.
    pub events_per_second: f64,
    /// From the event written into the watch to the answer to the restoring patch.
    pub restored_ms: Spread,
    /// From the event taken in by the store to that answer.
    pub seen_to_restored_ms: Spread,
    /// CPU of the whole process, API server included, as a share of one core.
    pub cores: f64,
}

impl Safety {
    /// Prints it.
    pub fn print(&self) {
        let Self { watched, rollbacks, events_per_second, restored_ms, seen_to_restored_ms, cores } = self;
        println!(
            "\n{rollbacks} rollbacks with {watched} watched and {events_per_second:.0} events/s; watcher and API server \
             together took {cores:.2} cores."
        );
        for (what, Spread { p50, p90, p99, max }) in [
            ("failure sent -> rollback answered, ms", restored_ms),
            ("failure in the store -> rollback answered, ms", seen_to_restored_ms),
        ] {
            println!("  {what:46} p50 {p50:>7.2}  p90 {p90:>7.2}  p99 {p99:>7.2}  max {max:>7.2}");
        }
    }
}

/// Measures `rollbacks` rollbacks among `watched` Deployments.
pub fn measure(watched: usize, rollbacks: usize) -> anyhow::Result<Safety> {
    let (ticks, lines) = mpsc::unbounded();
    let server = Arc::new(Server {
        objects: Objects::new()?,
        watched,
        lines: Mutex::new(Some(lines)),
        ticks,
        state: Mutex::new(Cases::default()),
    });
    let theirs = Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let address = theirs.block_on(Arc::clone(&server).serve())?;
    let ours = Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    ours.block_on(async {
        let (server, handle) = (Arc::clone(&server), theirs.handle().clone());
        tokio::spawn(follow(server, address, rollbacks, handle)).await?
    })
}

// ---- the watcher ----------------------------------------------------------------------------------------------

/// May always write.
struct Leader;

impl Gate for Leader {
    fn leads(&self) -> bool {
        true
    }

    fn stopped(&self) -> Option<String> {
        None
    }
}

/// Follows the watch with the guard's own stream, store and reconciler.
async fn follow(
    server: Arc<Server>,
    address: SocketAddr,
    rollbacks: usize,
    theirs: tokio::runtime::Handle,
) -> anyhow::Result<Safety> {
    let cluster = Cluster::new(Config::new(format!("http://{address}").parse()?))?;
    let reconciler = Arc::new(reconciler(cluster.clone(), server.watched)?);
    let mut stream = cluster.watch_deployments_raw();
    let mut store = Store::new();
    let mut seen = HashMap::new();
    let mut begun = None;
    let mut events = 0_u64;
    let me = std::process::id();
    let deadline = Instant::now() + Duration::from_secs(60) + PAUSE * 3 * u32::try_from(rollbacks)?;
    let mut health = tokio::time::interval(Duration::from_secs(1));
    loop {
        let event = tokio::select! {
            event = stream.next() => event.context("the watch has ended")?,
            _ = health.tick() => {
                set_health(&reconciler.surroundings);
                if Instant::now() > deadline {
                    bail!("{} of {rollbacks} rollbacks within the time", server.restored());
                }
                if server.restored() == rollbacks {
                    break;
                }
                continue;
            }
        };
        match event {
            Event::Restarted => store.restart(),
            Event::Applied(object) => {
                let change = store.apply(object.raw())?;
                events += u64::from(begun.is_some());
                // One look at a time, as in the watcher's queue: the announcement is a change of its own.
                if let Some(memory) = look_at(&change)
                    && !seen.contains_key(&change.key)
                {
                    seen.insert(change.key.clone(), Instant::now());
                    let reconciler = Arc::clone(&reconciler);
                    tokio::spawn(look(reconciler, change.key, memory));
                }
            }
            Event::Deleted(object) => {
                store.delete(&object.key());
            }
            Event::Synced => {
                begun = Some((Instant::now(), host::cpu(me)?));
                theirs.spawn(Arc::clone(&server).feed(rollbacks));
            }
            Event::Failed(why) => bail!(why),
        }
    }
    let (at, cpu) = begun.context("no list")?;
    let elapsed = at.elapsed().as_secs_f64();
    let cores = (host::cpu(me)? - cpu).as_secs_f64() / elapsed;
    let times = server.times();
    let seen = times.iter().filter_map(|(key, (_, restored))| Some(*restored - *seen.get(key)?)).collect();
    Ok(Safety {
        watched: store.len(),
        rollbacks: times.len(),
        events_per_second: events as f64 / elapsed,
        restored_ms: Spread::of(times.values().map(|(sent, restored)| *restored - *sent).collect()),
        seen_to_restored_ms: Spread::of(seen),
        cores,
    })
}

/// What the watcher's loop makes of a change: none where it calls for nothing, else what the first look remembers.
fn look_at(Change { before, after, .. }: &Change) -> Option<Memory> {
    if after.phase != Phase::Failed {
        return None;
    }
    let now = Timestamp::now();
    let complete = before.as_ref().filter(|before| before.phase == Phase::Complete);
    let mut memory = Memory::default();
    memory.before = complete.map(|before| Before {
        template: before.template,
        complete: (before.complete_since.unwrap_or(now), now),
    });
    Some(memory)
}

/// Looks as the queue of the watcher does: again when the look says so. (What comes after the restore, which is to
/// verify it, is not measured.)
async fn look(reconciler: Arc<Reconciler<Cluster>>, key: Key, mut memory: Memory) {
    for _ in 0..3 {
        match reconciler.reconcile(&key, &mut memory, Timestamp::now()).await {
            Ok(Next::At(then)) => {
                let pause = then.duration_since(Timestamp::now());
                tokio::time::sleep(pause.try_into().unwrap_or_default()).await;
            }
            Ok(Next::Idle) => return,
            Err(error) => return eprintln!("{key}: {error}"),
        }
    }
}

fn reconciler(rollouts: Cluster, watched: usize) -> anyhow::Result<Reconciler<Cluster>> {
    let world = World::new("rollout-guard");
    world.set_policies(PolicySet::new([common::policy()?]));
    // The caps are lifted: they hold rollbacks back on purpose.
    let limits = Limits {
        per_namespace: u32::MAX,
        per_cluster: u32::MAX,
        per_hour: u32::MAX,
        stuck_at_least: u32::MAX,
        ..Limits::default()
    };
    let surroundings = Arc::new(Surroundings::new(limits));
    surroundings.set_guarded(u32::try_from(watched)?);
    set_health(&surroundings);
    Ok(Reconciler {
        rollouts,
        world,
        surroundings,
        gate: Arc::new(Leader),
        metrics: Metrics::default(),
        notifier: Notifier::off(),
    })
}

fn set_health(surroundings: &Surroundings) {
    let now = Timestamp::now();
    let health =
        Health { controller_manager: ControllerManager::Alive, nodes: NodeCount { ready: 3, total: 3 } };
    surroundings.set_health(health, None, BTreeSet::new(), now);
}

// ---- the API server -------------------------------------------------------------------------------------------

struct Server {
    objects: Objects,
    watched: usize,
    /// What the watch tells; taken by the first watch.
    lines: Mutex<Option<mpsc::UnboundedReceiver<String>>>,
    ticks: mpsc::UnboundedSender<String>,
    state: Mutex<Cases>,
}

/// The Deployments that fail, by name, and their records.
#[derive(Default)]
struct Cases {
    version: u64,
    deployments: HashMap<String, Case>,
    records: HashMap<String, Value>,
}

struct Case {
    key: Key,
    current: Value,
    good: Value,
    bad: Value,
    sent: Instant,
    restored: Option<Instant>,
}

impl Cases {
    fn version(&mut self) -> String {
        self.version += 1;
        (2_000_000 + self.version).to_string()
    }
}

impl Server {
    async fn serve(self: Arc<Self>) -> anyhow::Result<SocketAddr> {
        let router = Router::new().fallback(answer).with_state(self);
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        tokio::spawn(async move { axum::serve(listener, router).await });
        Ok(address)
    }

    fn state(&self) -> std::sync::MutexGuard<'_, Cases> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn restored(&self) -> usize {
        self.state().deployments.values().filter(|case| case.restored.is_some()).count()
    }

    /// When each failure was sent, and when its rollback was answered.
    fn times(&self) -> HashMap<Key, (Instant, Instant)> {
        let state = self.state();
        let times = state.deployments.values();
        times.filter_map(|case| Some((case.key.clone(), (case.sent, case.restored?)))).collect()
    }

    /// Tells of changes that call for nothing, and of failures, evenly.
    async fn feed(self: Arc<Self>, failures: usize) {
        let every = Duration::from_millis(10);
        let mut interval = tokio::time::interval(every);
        let (mut told, mut failed) = (0, 0);
        let started = Instant::now();
        loop {
            interval.tick().await;
            let due = (started.elapsed().as_secs_f64() * NOISE as f64) as usize;
            for n in told..due {
                // Spread over all that do not fail.
                let n = failures + n.wrapping_mul(7919) % (self.watched - failures);
                self.tell(&self.objects.complete(n, 3_000_000 + n as u64));
            }
            told = due;
            if failed < failures && started.elapsed() > PAUSE * u32::try_from(failed + 5).unwrap_or(u32::MAX)
            {
                self.fail(failed);
                failed += 1;
            }
        }
    }

    fn tell(&self, object: &str) {
        // Nobody watches any more: it is over.
        let _ = self.ticks.unbounded_send(event("MODIFIED", object));
    }

    /// Number `n` has got a new image, and Kubernetes has given its rollout up.
    fn fail(&self, n: usize) {
        let Ok(good) = serde_json::from_str::<Value>(&self.objects.complete(n, 1_000_000)) else { return };
        let key = Objects::key(n);
        let mut state = self.state();
        let mut bad = good.clone();
        let now = Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        bad["metadata"]["generation"] = json!(42);
        bad["metadata"]["resourceVersion"] = json!(state.version());
        bad["metadata"]["managedFields"][0]["time"] = json!(now);
        bad["spec"]["template"]["spec"]["containers"][0]["image"] =
            json!("images.example.com/shop/app:broken");
        bad["status"] = json!({
            "observedGeneration": 42, "replicas": 5, "updatedReplicas": 2, "readyReplicas": 4,
            "availableReplicas": 4, "unavailableReplicas": 1,
            "conditions": [{
                "type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded",
                "message": format!("ReplicaSet \"{}-bad\" has timed out progressing.", key.name),
                "lastUpdateTime": now, "lastTransitionTime": now
            }]
        });
        let text = bad.to_string();
        let case =
            Case { key: key.clone(), current: bad.clone(), good, bad, sent: Instant::now(), restored: None };
        state.deployments.insert(key.name, case);
        self.tell(&text);
    }

    fn replica_sets(&self, name: &str) -> Option<Value> {
        let state = self.state();
        let case = state.deployments.get(name)?;
        let set = |object: &Value, suffix: &str, revision: &str, available: i64, desired: i64| {
            let mut template = object["spec"]["template"].clone();
            template["metadata"]["labels"]["pod-template-hash"] = json!(suffix);
            json!({
                "metadata": {
                    "name": format!("{name}-{suffix}"), "namespace": case.key.namespace,
                    "uid": format!("{suffix}-{}", object["metadata"]["uid"]),
                    "creationTimestamp": "2026-03-02T08:10:55Z",
                    "labels": template["metadata"]["labels"],
                    "annotations": {"deployment.kubernetes.io/revision": revision},
                    "ownerReferences": [{
                        "apiVersion": "apps/v1", "kind": "Deployment", "name": name, "controller": true,
                        "uid": object["metadata"]["uid"]
                    }]
                },
                "spec": {
                    "replicas": desired,
                    "selector": {"matchLabels": {"app.kubernetes.io/name": name, "pod-template-hash": suffix}},
                    "template": template
                },
                "status": {"replicas": desired, "availableReplicas": available, "readyReplicas": available}
            })
        };
        Some(json!({"metadata": {}, "items": [
            set(&case.good, "good", "36", 4, 4), set(&case.bad, "bad", "37", 0, 2)
        ]}))
    }

    fn pods(&self, name: &str) -> Option<Value> {
        let state = self.state();
        let case = state.deployments.get(name)?;
        let now = Timestamp::now().to_string();
        let image = &case.bad["spec"]["template"]["spec"]["containers"][0]["image"];
        let pods = (0..2).map(|n| {
            json!({
                "metadata": {
                    "name": format!("{name}-bad-{n}"), "namespace": case.key.namespace, "creationTimestamp": now,
                    "ownerReferences": [{
                        "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": format!("{name}-bad"),
                        "controller": true, "uid": format!("bad-{}", case.bad["metadata"]["uid"])
                    }]
                },
                "spec": case.bad["spec"]["template"]["spec"],
                "status": {"phase": "Pending", "containerStatuses": [{
                    "name": "app", "image": image, "ready": false, "restartCount": 0,
                    "state": {"waiting": {
                        "reason": "ImagePullBackOff",
                        "message": format!("Back-off pulling image {image}: ErrImagePull: not found")
                    }}
                }]}
            })
        });
        Some(json!({"metadata": {}, "items": pods.collect::<Vec<_>>()}))
    }

    /// Applies a JSON patch to a Deployment, as the API server does: the resourceVersion that a patch brings must be
    /// the stored one, and a new template makes a new generation.
    fn patch(&self, name: &str, body: &[u8]) -> Option<Response> {
        let mut state = self.state();
        let version = state.version();
        let case = state.deployments.get_mut(name)?;
        let Ok(patch) = serde_json::from_slice::<json_patch::Patch>(body) else {
            return Some(status(StatusCode::BAD_REQUEST));
        };
        let mut patched = case.current.clone();
        if json_patch::patch(&mut patched, &patch).is_err() {
            return Some(status(StatusCode::UNPROCESSABLE_ENTITY));
        }
        if patched["metadata"]["resourceVersion"] != case.current["metadata"]["resourceVersion"] {
            return Some(status(StatusCode::CONFLICT));
        }
        patched["metadata"]["resourceVersion"] = json!(version);
        let restores = patched["spec"]["template"] != case.current["spec"]["template"];
        if restores {
            patched["metadata"]["generation"] = json!(43);
        }
        let text = patched.to_string();
        case.current = patched;
        self.tell(&text);
        if restores {
            case.restored = Some(Instant::now());
        }
        Some(text.into_response())
    }

    fn record(&self, method: &Method, name: &str, body: &[u8]) -> Option<Value> {
        let mut state = self.state();
        let version = state.version();
        let mut sent: Value = serde_json::from_slice(body).unwrap_or_default();
        match *method {
            Method::GET => state.records.get(name).cloned(),
            Method::POST => {
                let name = sent["metadata"]["name"].as_str().unwrap_or_default().to_owned();
                sent["metadata"]["uid"] = json!(uid(name.len()));
                sent["metadata"]["resourceVersion"] = json!(version);
                state.records.insert(name, sent.clone());
                Some(sent)
            }
            Method::PUT => {
                let stored = state.records.get_mut(name)?;
                stored["status"] = sent["status"].take();
                stored["metadata"]["resourceVersion"] = json!(version);
                Some(stored.clone())
            }
            _ => None,
        }
    }
}

fn status(code: StatusCode) -> Response {
    let body = json!({
        "kind": "Status", "apiVersion": "v1", "status": "Failure", "message": code.as_str(),
        "reason": code.canonical_reason(), "code": code.as_u16()
    });
    (code, body.to_string()).into_response()
}

async fn answer(State(server): State<Arc<Server>>, method: Method, uri: Uri, body: Bytes) -> Response {
    let query = uri.query().unwrap_or_default();
    let path: Vec<&str> = uri.path().trim_matches('/').split('/').collect();
    let of_selector = || {
        let selector = parameter(query, "labelSelector")?;
        let (_, value) = selector.split_once("%3D")?;
        Some(value.split("%2C").next().unwrap_or_default().to_owned())
    };
    let json = |value: Option<Value>| {
        value.map_or_else(
            || status(StatusCode::NOT_FOUND),
            |value| Body::from(value.to_string()).into_response(),
        )
    };
    match path.as_slice() {
        ["apis", "apps", "v1", "deployments"] if parameter(query, "watch").is_some() => {
            let lines = server.lines.lock().unwrap_or_else(PoisonError::into_inner).take();
            lines.map_or_else(|| status(StatusCode::GONE), streamed)
        }
        ["apis", "apps", "v1", "deployments"] => {
            let number = |name: &str| parameter(query, name).and_then(|text| text.parse::<usize>().ok());
            let start = number("continue").unwrap_or_default();
            let end = (start + number("limit").unwrap_or(server.watched)).min(server.watched);
            Response::new(page(start..end, server.watched, |n| server.objects.complete(n, 1_000_000)))
        }
        ["apis", "apps", "v1", "namespaces", _, "deployments", name, ..] if method == Method::PATCH => {
            server.patch(name, &body).unwrap_or_else(|| status(StatusCode::NOT_FOUND))
        }
        ["apis", "apps", "v1", "namespaces", _, "deployments", name] => {
            json(server.state().deployments.get(*name).map(|case| case.current.clone()))
        }
        ["apis", "apps", "v1", "namespaces", _, "replicasets"] => {
            json(of_selector().and_then(|name| server.replica_sets(&name)))
        }
        ["api", "v1", "namespaces", _, "pods"] => json(of_selector().and_then(|name| server.pods(&name))),
        ["api", "v1", "namespaces", _, "events"] => json(Some(json!({"metadata": {}, "items": []}))),
        ["apis", "rollout-guard.io", "v1alpha1", "namespaces", _, "rolloutrecords", rest @ ..] => {
            json(server.record(&method, rest.first().unwrap_or(&""), &body))
        }
        _ => status(StatusCode::NOT_FOUND),
    }
}
