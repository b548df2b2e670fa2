//! When the watcher may not roll back at all, and how many rollbacks it may start: pure.
//!
//! Many Deployments that break at once, nodes that go, or a controller manager that is away point at the cluster, not at a
//! revision. Then the breaker is open and no rollback starts. It closes by itself when what opened it has passed.
//!
//! A Deployment counts as stuck once, from when it became stuck, for [`Limits::stuck_within`], unless it is forgotten before:
//! because it is healthy again, is gone, or was given another generation. One that a rollback brought back does
//! not count either, as it has proven that the cluster can run it. So the breaker opens by a burst, and closes when the burst
//! heals or is older than the window. What is stuck for longer than that is old news, and the caps hold what
//! starts then to a trickle.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt,
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};

/// A reading of the cluster's health counts for so long.
const HEALTH_COUNTS_FOR: SignedDuration = SignedDuration::from_secs(30);

const HOUR: SignedDuration = SignedDuration::from_hours(1);

/// The thresholds of the breaker, and the caps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Rollbacks in progress in one namespace.
    pub per_namespace: u32,
    /// Rollbacks in progress in the cluster.
    pub per_cluster: u32,
    /// Rollbacks started within any hour.
    pub per_hour: u32,
    /// So many Deployments that became stuck open the breaker, however few are guarded.
    pub stuck_at_least: u32,
    /// So many percent of the guarded Deployments that became stuck open it, if that is more.
    pub stuck_percent: u32,
    /// Within which time they became stuck.
    pub stuck_within: Duration,
    /// Fewer percent of nodes that are ready open it.
    pub nodes_ready_percent: u32,
}

impl Default for Limits {
    /// 1 in a namespace, 3 in the cluster, 10 an hour; 3 or 10 % within 10 minutes; 51 % of the nodes.
    fn default() -> Self {
        Self {
            per_namespace: 1,
            per_cluster: 3,
            per_hour: 10,
            stuck_at_least: 3,
            stuck_percent: 10,
            stuck_within: Duration::from_secs(600),
            nodes_ready_percent: 51,
        }
    }
}

/// How many nodes there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeCount {
    /// Whose condition `Ready` is `True`.
    pub ready: u32,
    /// All.
    pub total: u32,
}

/// What the Lease of kube-controller-manager says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ControllerManager {
    /// It is renewed.
    Alive,
    /// It was not renewed for too long.
    Stale,
    /// It is there, and was not looked at for long enough to tell.
    Unsettled,
    /// There is none, or it may not be read, as in some managed clusters. That is no reason for suspicion.
    Untold,
}

/// The cluster's health as it was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Health {
    /// Whether kube-controller-manager does its work.
    pub controller_manager: ControllerManager,
    /// The nodes. A cluster without any is one that was not read rightly.
    pub nodes: NodeCount,
}

/// Why the breaker is open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Why {
    /// The cluster's health was not read, or not lately enough.
    Unknown,
    /// kube-controller-manager does not renew its Lease.
    ControllerManager,
    /// Too few nodes are ready.
    Nodes {
        /// So many are ready.
        ready: u32,
        /// Of so many.
        total: u32,
    },
    /// Too many Deployments became stuck at once.
    ManyStuck {
        /// So many became stuck within the window and still are.
        stuck: u32,
        /// Of so many.
        guarded: u32,
        /// So many open the breaker.
        limit: u32,
    },
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown => write!(f, "the health of the cluster is not known"),
            Self::ControllerManager => write!(f, "kube-controller-manager does not renew its lease"),
            Self::Nodes { ready, total } => write!(f, "only {ready} of {total} nodes are ready"),
            Self::ManyStuck { stuck, guarded, limit } => write!(
                f,
                "{stuck} of {guarded} guarded Deployments became stuck at once (the breaker opens at {limit})"
            ),
        }
    }
}

/// Why a rollback may not start now.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Busy {
    /// The breaker is open.
    #[error("the breaker is open: {0}")]
    Open(Why),
    /// One of this Deployment is in progress.
    #[error("a rollback of this Deployment is in progress")]
    Deployment,
    /// As many as may be are in progress in its namespace.
    #[error("as many rollbacks as allowed are in progress in this namespace")]
    Namespace,
    /// As many as may be are in progress in the cluster.
    #[error("as many rollbacks as allowed are in progress in the cluster")]
    Cluster,
    /// As many as may be were started within the last hour.
    #[error("as many rollbacks as allowed were started within the last hour; the next may start at {until}")]
    Hour {
        /// When the next may start.
        until: Timestamp,
    },
}

/// A rollback as the records tell of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Started<K> {
    /// The Deployment's namespace.
    pub namespace: String,
    /// The Deployment.
    pub key: K,
    /// When it was started.
    pub at: Timestamp,
    /// Whether it has not ended yet.
    pub in_progress: bool,
}

/// Remembers what is stuck, how the cluster is, and what was started. `K` names a Deployment.
#[derive(Clone, Debug)]
pub struct Breaker<K> {
    limits: Limits,
    health: Option<(Health, Timestamp)>,
    guarded: u32,
    stuck: BTreeMap<K, Timestamp>,
    /// The namespace of each in progress, and when it was started.
    in_progress: BTreeMap<K, (String, Timestamp)>,
    /// When each was started, the earliest first.
    started: VecDeque<Timestamp>,
}

impl<K: Ord + Clone> Breaker<K> {
    /// Returns a breaker that has seen nothing. It is open until [`Breaker::health`] is called.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            health: None,
            guarded: 0,
            stuck: BTreeMap::new(),
            in_progress: BTreeMap::new(),
            started: VecDeque::new(),
        }
    }

    /// Takes in the cluster's health as it was read at `now`. What could not be read is not told: the last
    /// reading counts for 30 s.
    pub fn health(&mut self, health: Health, now: Timestamp) {
        self.health = Some((health, now));
    }

    /// Takes in how many Deployments are guarded.
    pub fn guarded(&mut self, count: u32) {
        self.guarded = count;
    }

    /// Takes in that a Deployment is stuck, and since when, which is not when it was noticed: what was stuck long
    /// before a new leader looks is no burst. Told again before [`Breaker::forget`], nothing changes.
    pub fn stuck(&mut self, key: K, since: Timestamp, now: Timestamp) {
        self.stuck.entry(key).or_insert(since.min(now));
    }

    /// Takes in that a Deployment is not stuck: it is healthy, gone, or has another generation that is under way.
    pub fn forget(&mut self, key: &K) {
        self.stuck.remove(key);
    }

    /// Returns why no rollback may start at `now`, or `None`. Nothing has to be done for it to close.
    pub fn open(&self, now: Timestamp) -> Option<Why> {
        let known = self.health.filter(|(_, at)| now.duration_since(*at) < HEALTH_COUNTS_FOR);
        let Some((Health { controller_manager, nodes: NodeCount { ready, total } }, _)) = known else {
            return Some(Why::Unknown);
        };
        if controller_manager == ControllerManager::Unsettled || total == 0 {
            return Some(Why::Unknown);
        }
        if controller_manager == ControllerManager::Stale {
            return Some(Why::ControllerManager);
        }
        if u64::from(ready) * 100 < u64::from(total) * u64::from(self.limits.nodes_ready_percent) {
            return Some(Why::Nodes { ready, total });
        }
        let (stuck, limit) = (self.lately_stuck(now), self.stuck_limit());
        (stuck >= limit).then_some(Why::ManyStuck { stuck, guarded: self.guarded, limit })
    }

    /// Returns when a breaker that is open by [`Why::ManyStuck`] closes if nothing heals and nothing more
    /// becomes stuck; `None` where it is not.
    pub fn closes_at(&self, now: Timestamp) -> Option<Timestamp> {
        let mut since: Vec<Timestamp> =
            self.stuck.values().copied().filter(|since| self.is_late(*since, now)).collect();
        let limit = usize::try_from(self.stuck_limit()).unwrap_or(usize::MAX);
        // The window holds fewer than the limit when all but the last `limit - 1` have left it.
        let leaves = since.len().checked_sub(limit)?;
        since.sort_unstable();
        Some(after(*since.get(leaves)?, self.window()))
    }

    /// Takes a slot for a rollback of `key`, or says why it may not start. The slot is held until [`Breaker::finish`].
    ///
    /// # Errors
    /// The breaker is open, or a cap is reached.
    pub fn start(&mut self, namespace: &str, key: K, now: Timestamp) -> Result<(), Busy> {
        if let Some(why) = self.open(now) {
            return Err(Busy::Open(why));
        }
        if self.in_progress.contains_key(&key) {
            return Err(Busy::Deployment);
        }
        let here = self.in_progress.values().filter(|(of, _)| of == namespace).count();
        if reached(here, self.limits.per_namespace) {
            return Err(Busy::Namespace);
        }
        if reached(self.in_progress.len(), self.limits.per_cluster) {
            return Err(Busy::Cluster);
        }
        self.drop_old(now);
        if reached(self.started.len(), self.limits.per_hour) {
            let most = usize::try_from(self.limits.per_hour).unwrap_or(usize::MAX);
            // The next may start when fewer than the cap are left within the hour.
            let leaves = self.started.get(self.started.len() - most).copied().unwrap_or(now);
            return Err(Busy::Hour { until: after(leaves, HOUR) });
        }
        self.note_start(now);
        self.in_progress.insert(key, (namespace.to_owned(), now));
        Ok(())
    }

    /// Says whether a rollback of `key` is in progress.
    pub fn holds(&self, key: &K) -> bool {
        self.in_progress.contains_key(key)
    }

    /// Gives the slot of `key` back: its rollback has ended, however it did, or its Deployment is gone.
    pub fn finish(&mut self, key: &K) {
        self.in_progress.remove(key);
    }

    /// Gives the slot of `key` back as if it had not been taken, where it is certain that nothing was written: a
    /// conflict, or another decision at the last look.
    pub fn withdraw(&mut self, key: &K) {
        if let Some((_, at)) = self.in_progress.remove(key)
            && let Some(index) = self.started.iter().position(|started| *started == at)
        {
            self.started.remove(index);
        }
    }

    /// Takes the caps from what the records say, in place of what was known. A new leader calls it before it
    /// starts anything.
    pub fn restore_from(&mut self, rollbacks: impl IntoIterator<Item = Started<K>>, now: Timestamp) {
        self.in_progress.clear();
        self.started.clear();
        for Started { namespace, key, at, in_progress } in rollbacks {
            // A record written by a clock ahead of ours must not hold the cap for longer than an hour.
            let at = at.min(now);
            if in_progress {
                self.in_progress.insert(key, (namespace, at));
            }
            self.started.push_back(at);
        }
        self.started.make_contiguous().sort_unstable();
        self.drop_old(now);
    }

    /// Returns how many rollbacks are in progress.
    pub fn in_progress(&self) -> usize {
        self.in_progress.len()
    }

    /// Returns how many Deployments became stuck within the window and still are.
    pub fn lately_stuck(&self, now: Timestamp) -> u32 {
        let count = self.stuck.values().filter(|since| self.is_late(**since, now)).count();
        u32::try_from(count).unwrap_or(u32::MAX)
    }

    /// Returns how many of them open the breaker: the share of the guarded ones, rounded up, or the least number.
    pub fn stuck_limit(&self) -> u32 {
        let share = (u64::from(self.guarded) * u64::from(self.limits.stuck_percent)).div_ceil(100);
        u32::try_from(share).unwrap_or(u32::MAX).max(self.limits.stuck_at_least).max(1)
    }

    fn is_late(&self, since: Timestamp, now: Timestamp) -> bool {
        now.duration_since(since) < self.window()
    }

    fn window(&self) -> SignedDuration {
        SignedDuration::try_from(self.limits.stuck_within).unwrap_or(SignedDuration::MAX)
    }

    /// Forgets what was started an hour ago or before. Nothing is remembered of the future: a clock that is set
    /// back makes what it wrote count from now.
    fn drop_old(&mut self, now: Timestamp) {
        while self.started.front().is_some_and(|at| now.duration_since(*at) >= HOUR) {
            self.started.pop_front();
        }
    }

    fn note_start(&mut self, now: Timestamp) {
        // Kept in order even when the clock is set back.
        let index = self.started.partition_point(|at| *at <= now);
        self.started.insert(index, now);
    }
}

fn reached(count: usize, cap: u32) -> bool {
    u32::try_from(count).is_ok_and(|count| count >= cap) || u32::try_from(count).is_err()
}

/// The end of time where it would lie beyond.
fn after(time: Timestamp, duration: SignedDuration) -> Timestamp {
    time.checked_add(duration).unwrap_or(Timestamp::MAX)
}
