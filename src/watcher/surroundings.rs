//! What one Deployment cannot tell: how the cluster is, and what else is stuck. Shared by all reconciles.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Mutex, MutexGuard, PoisonError},
};

use jiff::Timestamp;

use crate::{
    api::policy::CauseType,
    core::{
        breaker::{Breaker, Busy, ControllerManager, Health, Limits, Started, Why},
        cause::Liveness,
        key::Key,
        record::AtWork,
    },
};

/// The cluster around a Deployment.
#[derive(Debug)]
pub struct Surroundings(Mutex<Inner>);

#[derive(Debug)]
struct Inner {
    breaker: Breaker<Key>,
    controller_manager: ControllerManager,
    manager: Option<AtWork>,
    nodes_not_ready: BTreeSet<String>,
    /// From which hosts each Deployment fails to pull.
    failing_hosts: HashMap<Key, Vec<String>>,
    stuck: BTreeMap<Key, Stuck>,
}

/// A Deployment that is stuck.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stuck {
    /// The policy that applies to it.
    pub policy: String,
    /// Why it is stuck.
    pub cause: CauseType,
    /// Whether it is stuck on the revision that was put back: nothing more is done about it.
    pub latched: bool,
}

impl Surroundings {
    /// Returns surroundings of which nothing is known: nothing may be rolled back.
    pub fn new(limits: Limits) -> Self {
        Self(Mutex::new(Inner {
            breaker: Breaker::new(limits),
            controller_manager: ControllerManager::Unsettled,
            manager: Some(AtWork::No),
            nodes_not_ready: BTreeSet::new(),
            failing_hosts: HashMap::new(),
            stuck: BTreeMap::new(),
        }))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in the cluster's health, and how kube-controller-manager was seen to be at work; none where that cannot
    /// be told.
    pub fn set_health(
        &self,
        health: Health,
        manager: Option<AtWork>,
        nodes_not_ready: BTreeSet<String>,
        now: Timestamp,
    ) {
        let mut inner = self.lock();
        inner.controller_manager = health.controller_manager;
        inner.manager = manager;
        inner.nodes_not_ready = nodes_not_ready;
        inner.breaker.health(health, now);
    }

    /// Takes in how many Deployments are guarded.
    pub fn set_guarded(&self, count: u32) {
        self.lock().breaker.guarded(count);
    }

    /// Takes in which rollbacks the records tell of: after a change of the leader.
    pub fn set_started(&self, started: impl IntoIterator<Item = Started<Key>>, now: Timestamp) {
        self.lock().breaker.restore_from(started, now);
    }

    /// Says whether kube-controller-manager is at work.
    pub fn controller_manager(&self) -> Liveness {
        match self.lock().controller_manager {
            ControllerManager::Alive => Liveness::Alive,
            ControllerManager::Stale => Liveness::Silent,
            ControllerManager::Unsettled | ControllerManager::Untold => Liveness::Unknown,
        }
    }

    /// Returns how kube-controller-manager was seen to be at work; none where that cannot be told.
    pub fn manager(&self) -> Option<AtWork> {
        self.lock().manager
    }

    /// Says whether a node is known to be not ready.
    pub fn is_node_not_ready(&self, node: &str) -> bool {
        self.lock().nodes_not_ready.contains(node)
    }

    /// Takes in from which hosts a Deployment fails to pull.
    pub fn set_failing_hosts(&self, key: &Key, hosts: Vec<String>) {
        let mut inner = self.lock();
        if hosts.is_empty() {
            inner.failing_hosts.remove(key);
        } else {
            inner.failing_hosts.insert(key.clone(), hosts);
        }
    }

    /// Returns how many Deployments other than `key` fail to pull from `host`.
    pub fn others_failing(&self, key: &Key, host: &str) -> usize {
        let inner = self.lock();
        let fails = |hosts: &Vec<String>| hosts.iter().any(|failing| failing == host);
        inner.failing_hosts.iter().filter(|(other, hosts)| *other != key && fails(hosts)).count()
    }

    /// Takes in that a Deployment is stuck, since when, and why.
    pub fn is_stuck(&self, key: &Key, stuck: Stuck, since: Timestamp, now: Timestamp) {
        let mut inner = self.lock();
        inner.breaker.stuck(key.clone(), since, now);
        inner.stuck.insert(key.clone(), stuck);
    }

    /// Takes in that a Deployment is not stuck.
    pub fn is_not_stuck(&self, key: &Key) {
        let mut inner = self.lock();
        inner.breaker.forget(key);
        inner.stuck.remove(key);
    }

    /// Takes in that a Deployment is gone, or nobody's to guard.
    pub fn forget(&self, key: &Key) {
        let mut inner = self.lock();
        inner.breaker.forget(key);
        inner.breaker.finish(key);
        inner.stuck.remove(key);
        inner.failing_hosts.remove(key);
    }

    /// Takes a slot for a rollback; one that is in progress keeps the slot that it has.
    ///
    /// # Errors
    /// The breaker is open, or a cap is reached.
    pub fn start(&self, key: &Key, now: Timestamp) -> Result<(), Busy> {
        match self.lock().breaker.start(&key.namespace, key.clone(), now) {
            Err(Busy::Deployment) => Ok(()),
            other => other,
        }
    }

    /// Gives the slot back: the outcome is known.
    pub fn finish(&self, key: &Key) {
        self.lock().breaker.finish(key);
    }

    /// Gives the slot back as if it had not been taken: nothing was written.
    pub fn withdraw(&self, key: &Key) {
        self.lock().breaker.withdraw(key);
    }

    /// Returns how many rollbacks are in progress.
    pub fn in_progress(&self) -> usize {
        self.lock().breaker.in_progress()
    }

    /// Returns why no rollback may start at all.
    pub fn open(&self, now: Timestamp) -> Option<Why> {
        self.lock().breaker.open(now)
    }

    /// Returns what is stuck now.
    pub fn stuck(&self) -> BTreeMap<Key, Stuck> {
        self.lock().stuck.clone()
    }
}
