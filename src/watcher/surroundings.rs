//! What one Deployment cannot tell: how the cluster is, and what else is stuck. Shared by all reconciles.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Mutex, MutexGuard, PoisonError},
};

use jiff::{SignedDuration, Timestamp};

use crate::{
    api::policy::CauseType,
    core::{
        breaker::{Breaker, Busy, ControllerManager, Health, Limits, Started, Why},
        cause::{Liveness, host_of},
        key::Key,
        record::AtWork,
    },
};

/// So many Deployments that wait to be observed while no other is are no accident of one.
const NOBODY_OBSERVES: usize = 2;

/// Within which time images of one host must begin to fail to be the host's trouble.
const AT_ONCE: SignedDuration = SignedDuration::from_mins(10);

/// The cluster around a Deployment.
#[derive(Debug)]
pub struct Surroundings(Mutex<Inner>);

#[derive(Debug)]
struct Inner {
    breaker: Breaker<Key>,
    controller_manager: ControllerManager,
    manager: Option<AtWork>,
    nodes_not_ready: BTreeSet<String>,
    /// When any generation of any Deployment was last seen to be observed.
    observed_at: Option<Timestamp>,
    /// How many Deployments were written since then and wait to be observed for long.
    unobserved: usize,
    /// Which images each Deployment fails to pull, and since when, where that may be the registry's doing.
    failing_images: HashMap<Key, Vec<(String, Timestamp)>>,
    stuck: BTreeMap<Key, Stuck>,
    /// Those whose rollback waits for its turn.
    waiting: BTreeSet<Key>,
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
            observed_at: None,
            unobserved: 0,
            failing_images: HashMap::new(),
            stuck: BTreeMap::new(),
            waiting: BTreeSet::new(),
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

    /// Says whether kube-controller-manager is at work. Where its Lease does not tell, it is silent while several Deployments
    /// wait to be observed and no other was since they were written.
    pub fn controller_manager(&self) -> Liveness {
        let inner = self.lock();
        match inner.controller_manager {
            ControllerManager::Alive => Liveness::Alive,
            ControllerManager::Stale => Liveness::Silent,
            ControllerManager::Untold if inner.unobserved >= NOBODY_OBSERVES => Liveness::Silent,
            ControllerManager::Unsettled | ControllerManager::Untold => Liveness::Unknown,
        }
    }

    /// Takes in that a generation of some Deployment is observed.
    pub fn something_is_observed(&self, now: Timestamp) {
        let mut inner = self.lock();
        inner.observed_at = Some(now);
        inner.unobserved = 0;
    }

    /// Returns when a generation was last seen to be observed.
    pub fn last_observed(&self) -> Option<Timestamp> {
        self.lock().observed_at
    }

    /// Takes in how many Deployments were written since then and wait to be observed for long.
    pub fn set_unobserved(&self, count: usize) {
        self.lock().unobserved = count;
    }

    /// Returns how kube-controller-manager was seen to be at work; none where that cannot be told.
    pub fn manager(&self) -> Option<AtWork> {
        self.lock().manager
    }

    /// Says whether a node is known to be not ready.
    pub fn is_node_not_ready(&self, node: &str) -> bool {
        self.lock().nodes_not_ready.contains(node)
    }

    /// Takes in which images a Deployment fails to pull, where that may be the registry's doing.
    pub fn set_failing_images(&self, key: &Key, images: Vec<String>, now: Timestamp) {
        let mut inner = self.lock();
        let before = inner.failing_images.remove(key).unwrap_or_default();
        if images.is_empty() {
            return;
        }
        let since =
            |image: &String| before.iter().find(|(known, _)| known == image).map_or(now, |(_, at)| *at);
        let images = images.into_iter().map(|image| (image.clone(), since(&image))).collect();
        inner.failing_images.insert(key.clone(), images);
    }

    /// Returns how many images of `host`, other than those of `key`, other Deployments began to fail to pull at about the time
    /// that `key` did, which is `now` where it does not yet. One image that many ask for says nothing about its host, and
    /// neither does what had failed for long before.
    pub fn others_failing(&self, key: &Key, host: &str, now: Timestamp) -> usize {
        let inner = self.lock();
        let own = inner.failing_images.get(key).map(Vec::as_slice).unwrap_or_default();
        let others =
            inner.failing_images.iter().filter(|(other, _)| *other != key).flat_map(|(_, images)| images);
        let began = own.iter().map(|(_, since)| *since).min().unwrap_or(now);
        let at_once = others.filter(|(_, since)| began.duration_since(*since).abs() <= AT_ONCE);
        let of_the_host = at_once.map(|(image, _)| image).filter(|image| host_of(image) == host);
        let others: BTreeSet<&String> =
            of_the_host.filter(|image| !own.iter().any(|(own, _)| own == *image)).collect();
        others.len()
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
        inner.waiting.remove(key);
    }

    /// Takes in that a Deployment is gone, or nobody's to guard.
    pub fn forget(&self, key: &Key) {
        let mut inner = self.lock();
        inner.breaker.forget(key);
        inner.breaker.finish(key);
        inner.stuck.remove(key);
        inner.waiting.remove(key);
        inner.failing_images.remove(key);
    }

    /// Takes a slot for a rollback; one that is in progress keeps the slot that it has.
    ///
    /// # Errors
    /// The breaker is open, or a cap is reached.
    pub fn start(&self, key: &Key, now: Timestamp) -> Result<(), Busy> {
        let mut inner = self.lock();
        match inner.breaker.start(&key.namespace, key.clone(), now) {
            Ok(()) | Err(Busy::Deployment) => {
                inner.waiting.remove(key);
                Ok(())
            }
            Err(busy) => {
                inner.waiting.insert(key.clone());
                Err(busy)
            }
        }
    }

    /// Takes in that no rollback waits for its turn.
    pub fn does_not_wait(&self, key: &Key) {
        self.lock().waiting.remove(key);
    }

    /// Returns how many rollbacks wait for their turn.
    pub fn waiting(&self) -> usize {
        self.lock().waiting.len()
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::breaker::NodeCount;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).expect("in range")
    }

    fn key(name: &str) -> Key {
        Key::new("shop", name)
    }

    #[test]
    fn many_images_of_one_host_at_once_are_its_trouble_and_one_image_of_many_is_not() {
        let around = Surroundings::new(Limits::default());
        let fails = |name: &str, image: &str, now| {
            around.set_failing_images(&key(name), vec![image.to_owned()], at(now));
        };
        // One release of several parts, of which none is there.
        for name in ["a", "b", "c"] {
            fails(name, "registry.example/typo:1", 0);
        }
        assert_eq!(around.others_failing(&key("a"), "registry.example", at(0)), 0);
        fails("d", "registry.example/other:1", 0);
        fails("e", "registry.example/third:1", 0);
        fails("f", "elsewhere.example/fourth:1", 0);
        assert_eq!(around.others_failing(&key("a"), "registry.example", at(0)), 2);
        assert_eq!(around.others_failing(&key("d"), "registry.example", at(0)), 2);
        // What has failed for long, and goes on failing, says nothing about what begins to fail now.
        fails("d", "registry.example/other:1", 900);
        fails("new", "registry.example/new:1", 900);
        assert_eq!(around.others_failing(&key("new"), "registry.example", at(900)), 0);
        // An outage that lasts goes on being one for those that met it.
        assert_eq!(around.others_failing(&key("a"), "registry.example", at(9000)), 2);
        around.set_failing_images(&key("e"), Vec::new(), at(900));
        assert_eq!(around.others_failing(&key("a"), "registry.example", at(900)), 1);
    }

    #[test]
    fn where_no_lease_tells_it_kube_controller_manager_is_silent_when_nothing_is_observed_anywhere() {
        let around = Surroundings::new(Limits::default());
        let health =
            |controller_manager| Health { controller_manager, nodes: NodeCount { ready: 1, total: 1 } };
        around.set_health(health(ControllerManager::Untold), None, BTreeSet::new(), at(0));
        assert_eq!(around.controller_manager(), Liveness::Unknown);
        around.set_unobserved(1);
        assert_eq!(around.controller_manager(), Liveness::Unknown, "one may be stuck by itself");
        around.set_unobserved(2);
        assert_eq!(around.controller_manager(), Liveness::Silent);
        around.something_is_observed(at(1));
        assert_eq!(around.controller_manager(), Liveness::Unknown);
        around.set_unobserved(2);
        around.set_health(health(ControllerManager::Alive), None, BTreeSet::new(), at(2));
        assert_eq!(around.controller_manager(), Liveness::Alive, "its Lease says more");
    }

    #[test]
    fn a_rollback_that_waits_for_its_turn_is_counted_until_it_has_it() {
        let around = Surroundings::new(Limits::default());
        let health =
            Health { controller_manager: ControllerManager::Alive, nodes: NodeCount { ready: 1, total: 1 } };
        around.set_health(health, None, BTreeSet::new(), at(0));
        assert_eq!(around.start(&key("a"), at(0)), Ok(()));
        assert_eq!(around.start(&key("a"), at(0)), Ok(()), "it has its slot");
        assert_eq!(around.start(&key("b"), at(0)), Err(Busy::Namespace));
        assert_eq!((around.in_progress(), around.waiting()), (1, 1));
        around.finish(&key("a"));
        assert_eq!(around.start(&key("b"), at(0)), Ok(()));
        assert_eq!((around.in_progress(), around.waiting()), (1, 0));
        assert_eq!(around.start(&key("c"), at(0)), Err(Busy::Namespace));
        around.is_not_stuck(&key("c"));
        assert_eq!(around.waiting(), 0);
    }
}
