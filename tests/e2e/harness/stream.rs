//! A steady stream of real updates.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use super::{
    Change, Done, Scenario,
    cluster::{json, kubectl},
    deployment,
};

/// Deployments that the updates are spread over: a Deployment must settle before its next turn.
const DEPLOYMENTS: usize = 24;
const WORKERS: usize = 3;
/// Between two updates of a worker: the next turn of a Deployment comes after three seconds, which is enough to settle
/// in, also on a machine that is busy.
const PACE: Duration = Duration::from_millis(400);

/// Changes templates of healthy Deployments until it is told to stop.
pub struct Stream {
    namespace: String,
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicUsize>,
    workers: Vec<JoinHandle<Vec<Update>>>,
}

/// One update.
pub struct Update {
    pub sent_at: Instant,
    pub done: Done,
    deployment: String,
    value: String,
}

impl Stream {
    pub fn start(scenario: &Scenario) -> Self {
        let name = |i: usize| format!("stream-{i}");
        // Without replicas a push settles as soon as it is observed.
        let idle = |i| deployment(&name(i), |d| d["spec"]["replicas"] = json!(0));
        let list: Vec<Value> = (0..DEPLOYMENTS).map(idle).collect();
        scenario.create(&json!({"apiVersion": "v1", "kind": "List", "items": list}));
        let all_observed = ["wait", "deployments", "--all", "--for=condition=Available", "--timeout=60s"];
        scenario.kubectl(all_observed).succeeds();
        let stop = Arc::new(AtomicBool::new(false));
        let sent = Arc::new(AtomicUsize::new(0));
        let worker = |worker: usize| {
            let (namespace, stop, sent) = (scenario.namespace.clone(), Arc::clone(&stop), Arc::clone(&sent));
            thread::spawn(move || {
                let mut updates = Vec::new();
                let mine = (0..DEPLOYMENTS).filter(|i| i % WORKERS == worker).cycle();
                for (count, i) in mine.enumerate() {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    updates.push(update(&namespace, name(i), count.to_string()));
                    sent.fetch_add(1, Ordering::Relaxed);
                    thread::sleep(PACE);
                }
                updates
            })
        };
        Self {
            namespace: scenario.namespace.clone(),
            workers: (0..WORKERS).map(worker).collect(),
            stop,
            sent,
        }
    }

    /// How many updates have had their answer.
    pub fn sent(&self) -> usize {
        self.sent.load(Ordering::Relaxed)
    }

    /// Stops, makes sure that the last update of each Deployment is what is stored, and returns all updates.
    pub fn finish(self) -> Vec<Update> {
        self.stop.store(true, Ordering::Relaxed);
        let updates: Vec<Update> =
            self.workers.into_iter().flat_map(|worker| worker.join().expect("worker")).collect();
        let stored =
            json(["get", "deployments", "-n", &self.namespace]).unwrap_or_else(|words| panic!("{words}"));
        for deployment in stored["items"].as_array().into_iter().flatten() {
            let name = deployment["metadata"]["name"].as_str().unwrap_or_default();
            let mut of_it = updates.iter().filter(|update| update.deployment == name && update.done.ok());
            if let Some(last) = of_it.next_back() {
                let value = &deployment["spec"]["template"]["metadata"]["annotations"]["update"];
                assert_eq!(value.as_str(), Some(last.value.as_str()), "an update of {name} is lost");
            }
        }
        updates
    }
}

/// Returns the words of every update that failed.
pub fn failures(updates: &[Update]) -> Vec<String> {
    updates.iter().filter(|update| !update.done.ok()).map(|update| update.done.report()).collect()
}

fn update(namespace: &str, deployment: String, value: String) -> Update {
    let sent_at = Instant::now();
    let change = Change::of(&deployment).template_annotation("update", &value);
    let done = kubectl(change.arguments()).args(["-n", namespace]).done();
    Update { sent_at, done, deployment, value }
}
