//! A cluster in memory: an API server over raw JSON, a deployment controller, kubelets and a clock, all by one seed.
//!
//! ```text
//!  Reconciler ─▶ Api ─▶ faults ─▶ State ◀─ controller, kubelets, users
//!                                   │
//!                                   └─▶ Truth: what really happened, and what of it must never happen
//! ```
//!
//! What happens to a pod is in the tag of its image: `good`, `slow`, `unready`, `flap`, `missing`, `crash`, `oom`,
//! `config`, `down` (its registry), `big` (no node), `quota` (no pod), `denied` (no ReplicaSet).

#![allow(dead_code, reason = "each test crate uses a part of it")]
#![allow(clippy::expect_used, clippy::panic, reason = "helpers of tests")]

mod controller;
mod fields;
mod pods;
mod truth;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::Poll,
};

use jiff::{SignedDuration, Timestamp};
use json_patch::{Patch, PatchErrorKind, PatchOperation};
use kube::core::response::Status;
use rollout_guard::{
    api::{
        OVERRIDE_ANNOTATION,
        record::{RolloutRecordStatus, TargetRef},
    },
    cluster::{
        ClusterError,
        records::{self, StoredRecord},
        rollouts::{Notice, Part, Rollouts},
    },
    core::{
        breaker::{ControllerManager, Health, Limits, NodeCount},
        key::Key,
        policy::{Policy, PolicySet, compile},
        rollout::{Phase, Snapshot, classify},
        template::TemplateHash,
    },
    notify::Notifier,
    telemetry::Metrics,
    watcher::{
        reconcile::{Gate, Memory, Reconciler},
        surroundings::Surroundings,
    },
    world::World,
};
use serde_json::{Value, json};

pub use self::{pods::Pod, truth::Truth};

/// When the clock starts.
pub fn start() -> Timestamp {
    "2026-11-23T12:00:00Z".parse().expect("a time")
}

pub const fn secs(seconds: i64) -> SignedDuration {
    SignedDuration::from_secs(seconds)
}

/// SplitMix64: the same numbers from the same seed.
#[derive(Clone, Debug)]
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }

    /// True so often in a thousand.
    pub fn chance(&mut self, per_mille: u32) -> bool {
        self.next() % 1000 < u64::from(per_mille)
    }

    pub fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.below(of.len())]
    }
}

/// How often in a thousand calls something goes wrong.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    /// A read gives an earlier version.
    pub stale: u32,
    /// 409 that nobody can explain.
    pub conflict: u32,
    /// 429 or 500, and nothing was done.
    pub refused: u32,
    /// No answer, and nothing was done.
    pub lost: u32,
    /// No answer, and it was done.
    pub unanswered: u32,
    /// The process is killed before the call is sent.
    pub killed_before: u32,
    /// The process is killed when the call was carried out.
    pub killed_after: u32,
    /// The call is on its way for a while.
    pub slow: u32,
    /// Somebody else acts right before.
    pub meddled: u32,
}

impl Faults {
    pub const NONE: Self = Self {
        stale: 0,
        conflict: 0,
        refused: 0,
        lost: 0,
        unanswered: 0,
        killed_before: 0,
        killed_after: 0,
        slow: 0,
        meddled: 0,
    };
    pub const MANY: Self = Self {
        stale: 30,
        conflict: 25,
        refused: 15,
        lost: 10,
        unanswered: 15,
        killed_before: 8,
        killed_after: 12,
        slow: 60,
        meddled: 12,
    };
}

/// What happens to one call, by plan.
pub enum Fault {
    /// This status, and nothing was done.
    Code(u16),
    /// No answer, and nothing was done.
    Lost,
    /// No answer, and it was done.
    Unanswered,
    /// The process is killed before.
    KilledBefore,
    /// The process is killed after.
    KilledAfter,
    /// Somebody acts right before.
    Before(Box<dyn FnOnce(&mut State) + Send>),
}

/// Parts of the API server or of the guard that are broken on purpose, to see that it is noticed.
#[derive(Clone, Copy, Debug, Default)]
pub struct Broken {
    /// Writes with an old resourceVersion go through.
    pub takes_stale_writes: bool,
    /// The gate says that it leads, always.
    pub gate_always_open: bool,
    /// The kill switch is not heeded.
    pub deaf: bool,
    /// Records are written, and are not there when they are read.
    pub forgetful: bool,
    /// A restore brings the ReplicaSet's number of replicas along.
    pub takes_replicas: bool,
    /// What the guard reads says Complete for all that is observed.
    pub rosy: bool,
}

/// Whether a process may write.
#[derive(Clone, Debug, Default)]
pub struct Switches {
    pub leads: Arc<AtomicBool>,
    pub stopped: Arc<AtomicBool>,
    broken: Broken,
}

impl Gate for Switches {
    fn leads(&self) -> bool {
        self.broken.gate_always_open || self.leads.load(Ordering::SeqCst)
    }

    fn stopped(&self) -> Option<String> {
        (!self.broken.deaf && self.stopped.load(Ordering::SeqCst)).then(|| "a test says so".to_owned())
    }
}

/// One version of a Deployment: a change that is told.
#[derive(Clone, Debug)]
pub struct Change {
    pub key: Key,
    /// None: it is gone.
    pub object: Option<Arc<Value>>,
}

/// Everything there is.
pub struct State {
    pub now: Timestamp,
    pub rng: Rng,
    pub faults: Faults,
    pub broken: Broken,
    pub planned: Vec<(&'static str, Fault)>,
    version: u64,
    ids: u64,
    pub deployments: BTreeMap<Key, Arc<Value>>,
    pub sets: BTreeMap<(String, String), Arc<Value>>,
    hashes: BTreeMap<(String, String), TemplateHash>,
    pub pods: BTreeMap<(String, String), Pod>,
    pub records: BTreeMap<Key, StoredRecord>,
    /// How often each Event was asked for, by what makes it one and the same.
    pub events: BTreeMap<String, (Notice, u32)>,
    old_deployments: BTreeMap<Key, VecDeque<Arc<Value>>>,
    old_records: BTreeMap<Key, VecDeque<StoredRecord>>,
    pub dirty: BTreeSet<Key>,
    denials: BTreeMap<Key, u32>,
    pub manager_alive: bool,
    pub truths: BTreeMap<String, Truth>,
    pub violations: Vec<String>,
    /// Calls, in words, where they are wanted.
    pub calls: Option<Vec<String>>,
    /// The last of what happened, in words.
    pub log: VecDeque<String>,
    pub writes: u64,
    pub restores: u64,
    pub switches: Vec<Switches>,
    pub killed: BTreeSet<usize>,
    pub inboxes: Vec<VecDeque<Change>>,
    /// Whether the policy lets the guard roll back, and whether it did when each look began.
    pub automatic: bool,
    pub began: BTreeMap<(usize, Key), bool>,
    pub good_after: SignedDuration,
    /// Since when all processes have the same time; none while they do not.
    pub in_step: Option<Timestamp>,
    pub limits: Limits,
    /// What a user does right before a call, by a name for the log.
    pub meddle: Option<fn(&mut Self)>,
}

impl State {
    pub fn new(seed: u64, processes: usize, broken: Broken) -> Self {
        let switches = || Switches { broken, ..Switches::default() };
        Self {
            now: start(),
            rng: Rng(seed),
            faults: Faults::NONE,
            broken,
            planned: Vec::new(),
            version: 100,
            ids: 0,
            deployments: BTreeMap::new(),
            sets: BTreeMap::new(),
            hashes: BTreeMap::new(),
            pods: BTreeMap::new(),
            records: BTreeMap::new(),
            events: BTreeMap::new(),
            old_deployments: BTreeMap::new(),
            old_records: BTreeMap::new(),
            dirty: BTreeSet::new(),
            denials: BTreeMap::new(),
            manager_alive: true,
            truths: BTreeMap::new(),
            violations: Vec::new(),
            calls: None,
            log: VecDeque::new(),
            writes: 0,
            restores: 0,
            switches: (0..processes).map(|_| switches()).collect(),
            killed: BTreeSet::new(),
            inboxes: vec![VecDeque::new(); processes],
            automatic: true,
            began: BTreeMap::new(),
            good_after: secs(30),
            in_step: Some(start()),
            limits: Limits::default(),
            meddle: None,
        }
    }

    pub fn note(&mut self, what: impl Into<String>) {
        let line = format!("{} {}", self.now, what.into());
        if std::env::var_os("SIM_LOG").is_some() {
            println!("{line}");
        }
        self.log.push_back(line);
        if self.log.len() > 80 {
            self.log.pop_front();
        }
    }

    fn id(&mut self, what: &str) -> String {
        self.ids += 1;
        format!("{what}-{}", self.ids)
    }

    /// The time as Kubernetes writes it.
    fn stamp(&self) -> String {
        format!("{:.0}", Timestamp::from_second(self.now.as_second()).expect("a time"))
    }

    pub fn wrong(&mut self, what: impl Into<String>) {
        let what = what.into();
        self.violations.push(format!("{}: {what}", self.now));
    }

    /// Stores a Deployment under a new resourceVersion and tells everybody.
    fn put(&mut self, key: &Key, mut object: Value) -> Arc<Value> {
        self.version += 1;
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        let object = Arc::new(object);
        let old = self.deployments.insert(key.clone(), Arc::clone(&object));
        if let Some(old) = old {
            let history = self.old_deployments.entry(key.clone()).or_default();
            history.push_back(old);
            if history.len() > 4 {
                history.pop_front();
            }
        }
        self.dirty.insert(key.clone());
        for inbox in &mut self.inboxes {
            inbox.push_back(Change { key: key.clone(), object: Some(Arc::clone(&object)) });
        }
        self.learn(key, &object);
        object
    }

    // ---- what users do -------------------------------------------------------------------------------------------

    /// Creates a Deployment.
    pub fn create(&mut self, key: &Key, tag: &str, replicas: i32) {
        if self.deployments.contains_key(key) {
            return;
        }
        let uid = self.id("uid");
        let (name, time) = (key.name.clone(), self.stamp());
        let template = template(&name, tag);
        let object = json!({
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {
                "name": name,
                "namespace": key.namespace,
                "uid": uid,
                "generation": 1,
                "creationTimestamp": time,
                "labels": {"app": name, "team": "blue"},
                "annotations": {"note": "kept"},
                "managedFields": [{
                    "manager": "helm", "operation": "Apply", "apiVersion": "apps/v1", "time": time,
                    "fieldsType": "FieldsV1",
                    "fieldsV1": {"f:spec": {"f:template": fields::all(&template)}},
                }],
            },
            "spec": {
                "replicas": replicas,
                "selector": {"matchLabels": {"app": name}},
                "strategy": {"type": "RollingUpdate"},
                "revisionHistoryLimit": 3,
                "progressDeadlineSeconds": 60,
                "template": template,
            },
            "status": {},
        });
        self.pushed(key, &uid, TemplateHash::of(&object["spec"]["template"]));
        self.put(key, object);
    }

    /// Changes the main resource as `manager`. Returns whether there was something to change.
    pub fn update(
        &mut self,
        key: &Key,
        manager: &str,
        operation: &str,
        change: impl FnOnce(&mut Value),
    ) -> bool {
        let Some(old) = self.deployments.get(key).cloned() else { return false };
        let mut new = (*old).clone();
        change(&mut new);
        if new == *old {
            return false;
        }
        let time = self.stamp();
        fields::own(&old, &mut new, manager, operation, &time);
        bump(&old, &mut new);
        if new["spec"]["template"] != old["spec"]["template"] {
            let uid = text(&new["metadata"]["uid"]).to_owned();
            self.pushed(key, &uid, TemplateHash::of(&new["spec"]["template"]));
        }
        self.put(key, new);
        true
    }

    /// Applies a template.
    pub fn push(&mut self, key: &Key, tag: &str) -> bool {
        let template = template(&key.name, tag);
        self.update(key, "helm", "Apply", |object| object["spec"]["template"] = template)
    }

    pub fn scale(&mut self, key: &Key, replicas: i32) -> bool {
        self.update(key, "kubectl", "Update", |object| object["spec"]["replicas"] = json!(replicas))
    }

    pub fn pause(&mut self, key: &Key, paused: bool) -> bool {
        self.update(key, "kubectl", "Update", |object| object["spec"]["paused"] = json!(paused))
    }

    pub fn annotate(&mut self, key: &Key, value: u64) -> bool {
        self.update(key, "kubectl", "Update", |object| {
            object["metadata"]["annotations"]["noted"] = json!(value.to_string());
        })
    }

    pub fn override_with(&mut self, key: &Key, why: &str) -> bool {
        self.update(key, "kubectl", "Update", |object| {
            object["metadata"]["annotations"][OVERRIDE_ANNOTATION] = json!(why);
        })
    }

    /// `kubectl rollout undo`: the revision before the highest.
    pub fn undo(&mut self, key: &Key) -> bool {
        let Some(object) = self.deployments.get(key) else { return false };
        let uid = text(&object["metadata"]["uid"]).to_owned();
        let mut sets: Vec<_> = self.sets_of(&key.namespace, &uid).into_iter().map(|(_, set)| set).collect();
        sets.sort_by_key(|set| std::cmp::Reverse(revision(set)));
        let Some(set) = sets.get(1) else { return false };
        let mut template = set["spec"]["template"].clone();
        if let Some(labels) = template["metadata"]["labels"].as_object_mut() {
            labels.remove("pod-template-hash");
        }
        self.update(key, "kubectl-rollout", "Update", |object| object["spec"]["template"] = template)
    }

    /// Deletes a Deployment, or marks it as being deleted where a finalizer holds it.
    pub fn delete(&mut self, key: &Key, held: bool) {
        let time = self.stamp();
        if held {
            self.update(key, "kubectl", "Update", |object| {
                if object["metadata"]["deletionTimestamp"].is_null() {
                    object["metadata"]["deletionTimestamp"] = json!(time);
                    object["metadata"]["finalizers"] = json!(["test/held"]);
                    object["metadata"]["generation"] =
                        json!(object["metadata"]["generation"].as_i64().expect("a generation") + 1);
                }
            });
        } else if self.deployments.remove(key).is_some() {
            self.old_deployments.remove(key);
            for inbox in &mut self.inboxes {
                inbox.push_back(Change { key: key.clone(), object: None });
            }
        }
    }

    /// Puts a record of nobody in the way, or takes one away.
    pub fn tamper_with_record(&mut self, key: &Key, plant: bool) {
        let uid = self.uid_of(key);
        if let Some(truth) = uid.and_then(|uid| self.truths.get_mut(&uid)) {
            truth.record_lost = true;
        }
        self.records.remove(key);
        self.old_records.remove(key);
        if plant {
            self.version += 1;
            let record = StoredRecord {
                namespace: key.namespace.clone(),
                name: records::name(&key.name),
                uid: self.id("record"),
                resource_version: self.version.to_string(),
                target: TargetRef {
                    name: key.name.clone(),
                    uid: "planted".to_owned(),
                    ..TargetRef::default()
                },
                owner_uid: "planted".to_owned(),
                status: RolloutRecordStatus::default(),
            };
            self.records.insert(key.clone(), record);
        }
    }

    /// Garbage collection.
    pub fn collect(&mut self) {
        let uids: BTreeSet<String> =
            self.deployments.values().map(|object| text(&object["metadata"]["uid"]).to_owned()).collect();
        self.sets.retain(|_, set| uids.contains(owner(set)));
        self.hashes.retain(|name, _| self.sets.contains_key(name));
        let sets = &self.sets;
        self.pods.retain(|(namespace, _), pod| sets.contains_key(&(namespace.clone(), pod.set.clone())));
        self.records.retain(|_, record| uids.contains(&record.owner_uid) || record.owner_uid == "planted");
    }

    // ---- what is asked -------------------------------------------------------------------------------------------

    pub fn uid_of(&self, key: &Key) -> Option<String> {
        self.deployments.get(key).map(|object| text(&object["metadata"]["uid"]).to_owned())
    }

    pub fn phase(&self, key: &Key) -> Phase {
        classify(&Snapshot::of(&self.deployments[key]))
    }

    /// The tag of the image of a Deployment.
    pub fn tag(&self, key: &Key) -> String {
        let object = &self.deployments[key];
        tag_of(&object["spec"]["template"]).to_owned()
    }

    /// The guard's own record of a Deployment.
    pub fn own_record(&self, key: &Key) -> Option<&StoredRecord> {
        let uid = self.uid_of(key)?;
        self.records.get(key).filter(|record| record.is_of(key, &uid))
    }

    pub fn is_announced(&self, key: &Key) -> bool {
        let conditions = self.deployments[key]["status"]["conditions"].as_array();
        conditions.into_iter().flatten().any(|c| c["type"] == "Stalled" && c["reason"] == "RolledBack")
    }

    pub fn managers(&self, key: &Key) -> Vec<String> {
        let entries = self.deployments[key]["metadata"]["managedFields"].as_array();
        entries.into_iter().flatten().map(|entry| text(&entry["manager"]).to_owned()).collect()
    }

    fn sets_of(&self, namespace: &str, uid: &str) -> Vec<(String, Arc<Value>)> {
        let here = (namespace.to_owned(), String::new());
        self.sets
            .range(here..)
            .take_while(|((of, _), _)| of == namespace)
            .filter(|(_, set)| owner(set) == uid)
            .map(|((_, name), set)| (name.clone(), Arc::clone(set)))
            .collect()
    }

    /// A Deployment and its ReplicaSets, for a person to read.
    pub fn describe(&self, key: &Key) -> String {
        let object = &self.deployments[key];
        let sets = self.sets_of(&key.namespace, text(&object["metadata"]["uid"]));
        let sets = sets.iter().map(|(_, set)| {
            format!(
                "{} revision {} wants {} has {}",
                tag_of(&set["spec"]["template"]),
                revision(set),
                set["spec"]["replicas"],
                set["status"]["replicas"]
            )
        });
        let sets: Vec<String> = sets.collect();
        format!("{:#} {} {sets:#?}", object["status"], object["spec"])
    }

    // ---- what goes wrong -----------------------------------------------------------------------------------------

    /// What happens before and after a call.
    fn moods(&mut self, process: usize, line: &str, write: bool) -> (Mood, Mood) {
        if write {
            self.writes += 1;
            let switches = &self.switches[process];
            let (leads, stopped) =
                (switches.leads.load(Ordering::SeqCst), switches.stopped.load(Ordering::SeqCst));
            if !leads {
                self.wrong(format!("process {process} does not lead and sends: {line}"));
            }
            if stopped {
                self.wrong(format!("the kill switch is pulled and process {process} sends: {line}"));
            }
        }
        if let Some(calls) = &mut self.calls {
            calls.push(line.to_owned());
        }
        if let Some(at) = self.planned.iter().position(|(prefix, _)| line.starts_with(prefix)) {
            return match self.planned.remove(at).1 {
                Fault::Code(code) => (Mood::Code(code), Mood::Fine),
                Fault::Lost => (Mood::Timeout, Mood::Fine),
                Fault::Unanswered => (Mood::Fine, Mood::Timeout),
                Fault::KilledBefore => (Mood::Killed, Mood::Fine),
                Fault::KilledAfter => (Mood::Fine, Mood::Killed),
                Fault::Before(act) => {
                    act(self);
                    (Mood::Fine, Mood::Fine)
                }
            };
        }
        let faults = self.faults;
        if faults.meddled > 0
            && self.rng.chance(faults.meddled)
            && let Some(meddle) = self.meddle
        {
            meddle(self);
        }
        let rng = &mut self.rng;
        let mut before = Mood::Fine;
        let mut after = Mood::Fine;
        if faults.slow > 0 && rng.chance(faults.slow) {
            before = Mood::Slow;
        }
        if faults.refused > 0 && rng.chance(faults.refused) {
            before = Mood::Code(*rng.pick(&[429, 500, 503]));
        }
        if faults.lost > 0 && rng.chance(faults.lost) {
            before = Mood::Timeout;
        }
        if write {
            if faults.conflict > 0 && rng.chance(faults.conflict) {
                before = Mood::Code(409);
            }
            if faults.unanswered > 0 && rng.chance(faults.unanswered) {
                after = Mood::Timeout;
            }
            if faults.killed_before > 0 && rng.chance(faults.killed_before) {
                before = Mood::Killed;
            }
            if faults.killed_after > 0 && rng.chance(faults.killed_after) {
                after = Mood::Killed;
            }
            if faults.slow > 0 && rng.chance(faults.slow) {
                after = Mood::Slow;
            }
        }
        (before, after)
    }

    /// An earlier version, now and then.
    fn earlier<T: Clone>(rng: &mut Rng, faults: Faults, old: Option<&VecDeque<T>>) -> Option<T> {
        let old = old.filter(|old| !old.is_empty())?;
        if faults.stale == 0 || !rng.chance(faults.stale) {
            return None;
        }
        old.get(rng.below(old.len())).cloned()
    }
}

#[derive(Clone, Copy, Debug)]
enum Mood {
    Fine,
    Code(u16),
    Timeout,
    Killed,
    Slow,
}

/// The API server as one process sees it.
#[derive(Clone)]
pub struct Api {
    pub state: Arc<Mutex<State>>,
    pub process: usize,
}

impl Api {
    pub fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn call<T>(
        &self,
        line: String,
        write: bool,
        act: impl FnOnce(&mut State) -> Result<T, ClusterError>,
    ) -> Result<T, ClusterError> {
        let (before, after) = self.lock().moods(self.process, &line, write);
        self.mood(&line, before).await?;
        let result = {
            let mut state = self.lock();
            let result = act(&mut state);
            if write {
                let end = result.as_ref().err().map(ToString::to_string).unwrap_or_default();
                state.note(format!("    process {}: {line} {end}", self.process));
            }
            result?
        };
        self.mood(&line, after).await?;
        Ok(result)
    }

    async fn mood(&self, line: &str, mood: Mood) -> Result<(), ClusterError> {
        if !matches!(mood, Mood::Fine) {
            self.lock().note(format!("    process {}: {line}: {mood:?}", self.process));
        }
        match mood {
            Mood::Fine => Ok(()),
            Mood::Code(code) => Err(refused(line, code, "by the seed")),
            Mood::Timeout => Err(ClusterError::Timeout { what: line.to_owned(), seconds: 10 }),
            Mood::Slow => {
                let mut polled = false;
                std::future::poll_fn(|_| {
                    if std::mem::replace(&mut polled, true) { Poll::Ready(()) } else { Poll::Pending }
                })
                .await;
                Ok(())
            }
            Mood::Killed => {
                self.lock().killed.insert(self.process);
                std::future::pending::<()>().await;
                Ok(())
            }
        }
    }
}

impl Rollouts for Api {
    async fn deployment(&self, key: &Key) -> Result<Option<Value>, ClusterError> {
        self.call("read Deployment".to_owned(), false, |state| {
            let (rng, faults) = (&mut state.rng, state.faults);
            let old = State::earlier(rng, faults, state.old_deployments.get(key));
            if old.is_some() {
                // What is read is of any time before.
                state.looked(key, secs(3600));
            }
            if old.is_some() {
                state.looked(key, secs(3600));
            }
            let mut object = old.or_else(|| state.deployments.get(key).cloned()).map(|o| (*o).clone());
            if let Some(object) = object.as_mut().filter(|_| state.broken.rosy) {
                let replicas = object["spec"]["replicas"].clone();
                for count in ["replicas", "updatedReplicas", "availableReplicas"] {
                    object["status"][count] = replicas.clone();
                }
            }
            Ok(object)
        })
        .await
    }

    async fn replica_sets(&self, key: &Key, deployment: &Value) -> Result<Vec<Value>, ClusterError> {
        let uid = text(&deployment["metadata"]["uid"]).to_owned();
        self.call("list ReplicaSets".to_owned(), false, |state| {
            Ok(state.sets_of(&key.namespace, &uid).into_iter().map(|(_, set)| (*set).clone()).collect())
        })
        .await
    }

    async fn pods(&self, key: &Key, replica_set: &Value) -> Result<Vec<Value>, ClusterError> {
        let uid = text(&replica_set["metadata"]["uid"]).to_owned();
        self.call("list pods".to_owned(), false, |state| {
            let now = state.now;
            let here = state
                .pods
                .iter()
                .filter(|((namespace, _), pod)| *namespace == key.namespace && pod.set_uid == uid);
            Ok(here.take(50).map(|((namespace, name), pod)| pod.object(namespace, name, now)).collect())
        })
        .await
    }

    async fn pod_events(&self, _namespace: &str, _pod: &str) -> Result<Vec<Value>, ClusterError> {
        self.call("list Events of a pod".to_owned(), false, |_| Ok(Vec::new())).await
    }

    async fn log(&self, _: &str, _: &str, _: &str, _: bool) -> Result<String, ClusterError> {
        self.call("read a log".to_owned(), false, |_| Ok("it went wrong".to_owned())).await
    }

    async fn record(&self, key: &Key) -> Result<Option<StoredRecord>, ClusterError> {
        self.call("read record".to_owned(), false, |state| {
            if state.broken.forgetful {
                return Ok(None);
            }
            let (rng, faults) = (&mut state.rng, state.faults);
            let old = State::earlier(rng, faults, state.old_records.get(key));
            Ok(old.or_else(|| state.records.get(key).cloned()))
        })
        .await
    }

    async fn create_record(&self, key: &Key, uid: &str) -> Result<StoredRecord, ClusterError> {
        self.call("create record".to_owned(), true, |state| {
            if state.records.contains_key(key) && !state.broken.forgetful {
                return Err(refused("create record", 409, "it is there"));
            }
            state.version += 1;
            let record = StoredRecord {
                namespace: key.namespace.clone(),
                name: records::name(&key.name),
                uid: state.id("record"),
                resource_version: state.version.to_string(),
                target: TargetRef {
                    api_version: "apps/v1".to_owned(),
                    kind: "Deployment".to_owned(),
                    name: key.name.clone(),
                    uid: uid.to_owned(),
                },
                owner_uid: uid.to_owned(),
                status: RolloutRecordStatus::default(),
            };
            state.records.insert(key.clone(), record.clone());
            Ok(record)
        })
        .await
    }

    async fn delete_record(&self, record: &StoredRecord) -> Result<(), ClusterError> {
        self.call("delete record".to_owned(), true, |state| {
            let at = state
                .records
                .iter()
                .find(|(_, stored)| stored.name == record.name && stored.namespace == record.namespace);
            let Some((key, stored)) = at else { return Ok(()) };
            if stored.uid != record.uid || stored.resource_version != record.resource_version {
                return Err(refused("delete record", 409, "it has changed"));
            }
            let key = key.clone();
            state.records.remove(&key);
            Ok(())
        })
        .await
    }

    async fn write_record(
        &self,
        record: &StoredRecord,
        status: &RolloutRecordStatus,
    ) -> Result<StoredRecord, ClusterError> {
        let line = format!("write record {}", summary(status));
        let process = self.process;
        self.call(line, true, |state| {
            let at = state.records.iter().find(|(_, stored)| stored.uid == record.uid);
            let Some((key, stored)) = at.map(|(key, stored)| (key.clone(), stored.clone())) else {
                return Err(refused("write record", 404, "it is gone"));
            };
            if stored.resource_version != record.resource_version && !state.broken.takes_stale_writes {
                return Err(refused("write record", 409, "it has changed"));
            }
            state.version += 1;
            let json = serde_json::to_value(status).expect("JSON");
            let written = StoredRecord {
                resource_version: state.version.to_string(),
                status: serde_json::from_value(json).expect("what was written"),
                ..stored.clone()
            };
            if std::env::var_os("SIM_LOG").is_some() {
                println!("{}", differences(&stored.status, &written.status));
            }
            state.judge_record(process, &key, &stored, &written);
            state.records.insert(key.clone(), written.clone());
            let history = state.old_records.entry(key).or_default();
            history.push_back(stored);
            if history.len() > 4 {
                history.pop_front();
            }
            Ok(written)
        })
        .await
    }

    async fn patch(&self, key: &Key, part: Part, patch: &Patch) -> Result<Value, ClusterError> {
        let what = named(part, patch);
        let process = self.process;
        self.call(what.clone(), true, |state| {
            let Some(old) = state.deployments.get(key).cloned() else {
                return Err(refused(&what, 404, "it is gone"));
            };
            let mut patched = (*old).clone();
            if let Err(error) = json_patch::patch(&mut patched, patch) {
                let why = if matches!(error.kind, PatchErrorKind::TestFailed) {
                    "test failed"
                } else {
                    "no such path"
                };
                return Err(refused(&what, 422, why));
            }
            let version = old["metadata"]["resourceVersion"].clone();
            if patched["metadata"]["resourceVersion"] != version && !state.broken.takes_stale_writes {
                return Err(refused(&what, 409, "it has changed"));
            }
            let mut new = (*old).clone();
            match part {
                Part::Status => new["status"] = patched["status"].take(),
                Part::Object => {
                    patched["status"] = new["status"].take();
                    new = patched;
                    let given = new["metadata"]["managedFields"] != old["metadata"]["managedFields"];
                    let time = state.stamp();
                    if !given {
                        fields::own(&old, &mut new, "rollout-guard", "Update", &time);
                    }
                    if state.broken.takes_replicas && new["spec"] != old["spec"] {
                        new["spec"]["replicas"] = json!(7);
                    }
                    bump(&old, &mut new);
                }
            }
            if new == *old {
                return Ok(new);
            }
            state.judge_patch(process, key, part, &old, &new);
            Ok((*state.put(key, new)).clone())
        })
        .await
    }

    async fn tell(&self, notice: &Notice) -> Result<bool, ClusterError> {
        let line = format!("tell {}", notice.reason);
        self.call(line, true, |state| {
            let told = state.events.entry(notice.once.clone()).or_insert_with(|| (notice.clone(), 0));
            told.1 += 1;
            // One that is there already is a 409, and no write.
            state.writes -= u64::from(told.1 > 1);
            Ok(told.1 == 1)
        })
        .await
    }
}

/// What a patch does, in words.
fn named(part: Part, patch: &Patch) -> String {
    let image = |template: &Value| tag_of(template).to_owned();
    for operation in &patch.0 {
        match (part, operation) {
            (Part::Status, PatchOperation::Remove(_)) => return "retract".to_owned(),
            (Part::Status, PatchOperation::Add(_)) => return "announce".to_owned(),
            (Part::Status, PatchOperation::Replace(replace))
                if replace.path.to_string().starts_with("/status") =>
            {
                return "announce again".to_owned();
            }
            (Part::Object, PatchOperation::Replace(replace)) => match replace.path.to_string().as_str() {
                "/spec/template" => return format!("restore {}", image(&replace.value)),
                "/metadata/managedFields" => return "hand back".to_owned(),
                _ => {}
            },
            _ => {}
        }
    }
    format!("patch {part:?} {}", serde_json::to_string(patch).expect("JSON"))
}

/// The most important of a record on one line.
fn summary(status: &RolloutRecordStatus) -> String {
    let mut words = vec![status.phase.map_or("-".to_owned(), |phase| format!("{phase:?}"))];
    words.extend(status.cause.as_ref().map(|cause| cause.kind.word().to_owned()));
    words.extend(status.rollback.as_ref().map(|rollback| format!("{:?}", rollback.outcome)));
    words.extend(
        status
            .conditions
            .iter()
            .filter(|c| c.type_ == "Stalled" && c.status == "True")
            .map(|c| c.reason.clone()),
    );
    words.extend(status.settled_at.is_some().then(|| "settled".to_owned()));
    words.join(" ")
}

/// What a write of a record changes, for a person to read.
fn differences(old: &RolloutRecordStatus, new: &RolloutRecordStatus) -> String {
    let (old, new) = (format!("{old:#?}"), format!("{new:#?}"));
    let only = |a: &str, b: &str, sign: &str| {
        let lines = a.lines().filter(|line| !b.lines().any(|other| other == *line));
        lines.map(|line| format!("        {sign} {}\n", line.trim())).collect::<String>()
    };
    only(&old, &new, "-") + &only(&new, &old, "+")
}

fn bump(old: &Value, new: &mut Value) {
    let generation = old["metadata"]["generation"].as_i64().expect("a generation");
    let same = new["spec"] == old["spec"] && new["metadata"]["annotations"] == old["metadata"]["annotations"];
    let given = new["metadata"]["generation"].as_i64().expect("a generation");
    new["metadata"]["generation"] = json!(given.max(if same { generation } else { generation + 1 }));
}

pub fn refused(what: &str, code: u16, why: &str) -> ClusterError {
    let status = Status { code, message: why.to_owned(), ..Status::default() };
    ClusterError::Api { what: what.to_owned(), source: Box::new(kube::Error::Api(Box::new(status))) }
}

pub fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn owner(object: &Value) -> &str {
    text(&object["metadata"]["ownerReferences"][0]["uid"])
}

fn revision(set: &Value) -> i64 {
    text(&set["metadata"]["annotations"]["deployment.kubernetes.io/revision"]).parse().unwrap_or(0)
}

/// A pod template; the tag of its image is what becomes of it.
pub fn template(name: &str, tag: &str) -> Value {
    json!({
        "metadata": {"labels": {"app": name}},
        "spec": {"containers": [{"name": "app", "image": format!("localhost:5000/{name}:{tag}")}]},
    })
}

/// The tag of a template's image.
pub fn tag_of(template: &Value) -> &str {
    let image = text(&template["spec"]["containers"][0]["image"]);
    image.rsplit(':').next().unwrap_or_default()
}

/// What becomes of pods with this tag: the word before the dash.
pub fn fate(tag: &str) -> &str {
    tag.split('-').next().unwrap_or_default()
}

pub fn policy(spec: Value) -> Arc<Policy> {
    Arc::new(compile("default", 1, &serde_json::from_value(spec).expect("a spec")).expect("a valid policy"))
}

/// The policy of the tests: short times.
pub fn short(mode: &str, rollback: &str) -> Value {
    json!({
        "mode": mode,
        "watch": {
            "unobservedAfter": "40s", "failedAfter": "0s", "earlyFailureAfter": "8s", "goodAfter": "10s",
        },
        "rollback": {"mode": rollback, "announceFor": "30s"},
    })
}

/// A guard over the cluster in memory, as one process has it.
pub fn reconciler(state: &Arc<Mutex<State>>, process: usize, policy: Arc<Policy>) -> Reconciler<Api> {
    let (limits, switches) = {
        let state = state.lock().expect("not poisoned");
        (state.limits, state.switches[process].clone())
    };
    let world = World::new("rollout-guard");
    world.set_policies(PolicySet::new([policy]));
    Reconciler {
        rollouts: Api { state: Arc::clone(state), process },
        world,
        surroundings: Arc::new(Surroundings::new(limits)),
        gate: Arc::new(switches),
        metrics: Metrics::default(),
        notifier: Notifier::off(),
    }
}

/// A cluster that is well.
pub const WELL: Health =
    Health { controller_manager: ControllerManager::Alive, nodes: NodeCount { ready: 3, total: 3 } };

/// What a process keeps of a Deployment.
pub type Memories = BTreeMap<Key, Memory>;
