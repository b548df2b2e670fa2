//! When the watcher may not roll back at all, and how many rollbacks it may start: pure.
//!
//! Many Deployments that break at once, nodes that go, or a controller manager that is away point at the
//! cluster, not at a revision. Then the breaker is open and no rollback starts. It closes by itself when what
//! opened it has passed.
//!
//! A Deployment counts as stuck once, from when it became stuck, for [`Limits::stuck_within`], unless it is
//! forgotten before: because it is healthy again, is gone, or was given another generation. One that a rollback
//! brought back does not count either, as it has proven that the cluster can run it. So the breaker opens by a
//! burst, and closes when the burst heals or is older than the window. What is stuck for longer than that is
//! old news, and the caps hold what starts then to a trickle.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt,
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};

/// A reading of the cluster's health counts for so long.
const HEALTH_COUNTS_FOR: SignedDuration = SignedDuration::from_secs(30);

const HOUR: SignedDuration = SignedDuration::from_hours(1);

/// How long a rollback keeps others from starting: what has not come to an end by then waits for something that is no matter
/// of theirs. It is as long as Kubernetes' own progress deadline.
const SLOT_LASTS: SignedDuration = SignedDuration::from_mins(10);

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

impl Why {
    /// Returns the same without numbers, for texts that are to stay as they are while the trouble does.
    pub const fn brief(&self) -> &'static str {
        match self {
            Self::Unknown => "the health of the cluster is not known",
            Self::ControllerManager => "kube-controller-manager does not renew its lease",
            Self::Nodes { .. } => "too few nodes are ready",
            Self::ManyStuck { .. } => "too many Deployments became stuck at once",
        }
    }
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

impl Busy {
    /// Returns the same without what changes while it lasts.
    pub const fn brief(&self) -> &'static str {
        match self {
            Self::Open(why) => why.brief(),
            Self::Deployment => "a rollback of this Deployment is in progress",
            Self::Namespace => "as many rollbacks as allowed are in progress in this namespace",
            Self::Cluster => "as many rollbacks as allowed are in progress in the cluster",
            Self::Hour { .. } => "as many rollbacks as allowed were started within the last hour",
        }
    }
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

    /// Takes a slot for a rollback of `key`, or says why it may not start. The slot is held until
    /// [`Breaker::finish`], for ten minutes at most.
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
        let lately = || self.in_progress.values().filter(|(_, at)| now.duration_since(*at) < SLOT_LASTS);
        if reached(lately().filter(|(of, _)| of == namespace).count(), self.limits.per_namespace) {
            return Err(Busy::Namespace);
        }
        if reached(lately().count(), self.limits.per_cluster) {
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

    /// Forgets what was started an hour ago or before.
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).expect("in range")
    }

    const WELL: Health =
        Health { controller_manager: ControllerManager::Alive, nodes: NodeCount { ready: 3, total: 3 } };

    /// A breaker of a cluster that is well now.
    fn breaker(guarded: u32) -> Breaker<u32> {
        let mut breaker = Breaker::new(Limits::default());
        breaker.health(WELL, at(0));
        breaker.guarded(guarded);
        breaker
    }

    fn well_at(breaker: &mut Breaker<u32>, second: i64) -> Timestamp {
        breaker.health(WELL, at(second));
        at(second)
    }

    #[test]
    fn it_is_open_until_health_is_read_and_when_it_was_not_read_for_half_a_minute() {
        let mut breaker = Breaker::<u32>::new(Limits::default());
        assert_eq!(breaker.open(at(0)), Some(Why::Unknown));
        breaker.health(WELL, at(0));
        assert_eq!(breaker.open(at(29)), None);
        assert_eq!(breaker.open(at(30)), Some(Why::Unknown));
        breaker.health(WELL, at(31));
        assert_eq!(breaker.open(at(31)), None);
    }

    #[test]
    fn fault_36_a_cluster_without_nodes_was_not_read_rightly() {
        let mut breaker = breaker(10);
        breaker.health(Health { nodes: NodeCount { ready: 0, total: 0 }, ..WELL }, at(0));
        assert_eq!(breaker.open(at(0)), Some(Why::Unknown));
    }

    #[test]
    fn fault_37_it_is_open_while_the_controller_manager_is_away() {
        let mut breaker = breaker(10);
        for (controller_manager, why) in [
            (ControllerManager::Stale, Some(Why::ControllerManager)),
            (ControllerManager::Unsettled, Some(Why::Unknown)),
            (ControllerManager::Untold, None),
            (ControllerManager::Alive, None),
        ] {
            breaker.health(Health { controller_manager, ..WELL }, at(0));
            assert_eq!(breaker.open(at(0)), why, "{controller_manager:?}");
        }
    }

    #[test]
    fn it_is_open_when_fewer_than_51_percent_of_the_nodes_are_ready() {
        let mut breaker = breaker(10);
        for (ready, total, open) in
            [(1, 1, false), (0, 1, true), (1, 2, true), (2, 3, false), (50, 100, true), (51, 100, false)]
        {
            breaker.health(Health { nodes: NodeCount { ready, total }, ..WELL }, at(0));
            assert_eq!(breaker.open(at(0)), open.then_some(Why::Nodes { ready, total }));
        }
    }

    #[test]
    fn in_a_small_cluster_one_or_two_bad_pushes_do_not_open_it() {
        for (guarded, bad, open) in [(3, 1, false), (4, 2, false), (4, 3, true), (3, 3, true), (0, 3, true)] {
            let mut breaker = breaker(guarded);
            (0..bad).for_each(|key| breaker.stuck(key, at(0), at(0)));
            let why = Why::ManyStuck { stuck: bad, guarded, limit: 3 };
            assert_eq!(breaker.open(at(1)), open.then_some(why), "{bad} of {guarded}");
        }
    }

    #[test]
    fn in_a_large_cluster_a_tenth_opens_it() {
        let mut breaker = breaker(95);
        (0..9).for_each(|key| breaker.stuck(key, at(0), at(0)));
        assert_eq!(breaker.open(at(1)), None);
        breaker.stuck(9, at(1), at(1));
        assert_eq!(breaker.open(at(1)), Some(Why::ManyStuck { stuck: 10, guarded: 95, limit: 10 }));
    }

    #[test]
    fn fault_38_half_of_all_stuck_opens_it_and_it_closes_when_they_heal() {
        let mut breaker = breaker(40);
        (0..20).for_each(|key| breaker.stuck(key, at(0), at(0)));
        assert!(matches!(breaker.start("shop", 1, at(1)), Err(Busy::Open(Why::ManyStuck { .. }))));
        (0..16).for_each(|key| breaker.forget(&key));
        assert!(breaker.open(at(2)).is_some(), "four are left");
        breaker.forget(&16);
        assert_eq!(breaker.open(at(2)), None);
    }

    #[test]
    fn it_closes_when_the_burst_is_older_than_the_window_though_nothing_healed() {
        let mut breaker = breaker(4);
        for key in 0..4 {
            breaker.stuck(key, at(i64::from(key) * 60), at(200));
        }
        // The second one leaves the window at 660 s, two are left then.
        assert_eq!(breaker.closes_at(at(200)), Some(at(660)));
        let now = well_at(&mut breaker, 659);
        assert!(breaker.open(now).is_some());
        let now = well_at(&mut breaker, 660);
        assert_eq!((breaker.open(now), breaker.closes_at(now)), (None, None));
    }

    #[test]
    fn what_is_told_again_does_not_become_stuck_again() {
        let mut breaker = breaker(4);
        for second in 0..700 {
            let now = well_at(&mut breaker, second);
            (0..4).for_each(|key| breaker.stuck(key, now, now));
            assert_eq!(breaker.open(now).is_some(), second < 600, "{second}");
        }
        (0..4).for_each(|key| breaker.forget(&key));
        let now = well_at(&mut breaker, 700);
        (0..4).for_each(|key| breaker.stuck(key, now, now));
        assert!(breaker.open(now).is_some(), "this is another time");
    }

    #[test]
    fn what_was_stuck_long_before_a_new_leader_looks_is_no_burst() {
        let mut breaker = breaker(10);
        (0..8).for_each(|key| breaker.stuck(key, at(-3600), at(0)));
        assert_eq!(breaker.open(at(0)), None);
    }

    #[test]
    fn a_slot_is_given_back_by_its_end() {
        let mut breaker = breaker(10);
        assert_eq!(breaker.start("shop", 1, at(0)), Ok(()));
        assert_eq!(breaker.start("shop", 1, at(0)), Err(Busy::Deployment));
        assert_eq!(breaker.start("shop", 2, at(0)), Err(Busy::Namespace));
        assert_eq!(breaker.start("bank", 3, at(0)), Ok(()));
        assert_eq!(breaker.start("mail", 4, at(0)), Ok(()));
        assert_eq!(breaker.start("news", 5, at(0)), Err(Busy::Cluster));
        breaker.finish(&1);
        assert_eq!(breaker.start("shop", 2, at(0)), Ok(()));
    }

    #[test]
    fn the_eleventh_of_an_hour_waits_until_the_first_is_an_hour_ago() {
        let mut breaker = breaker(10);
        for n in 0..10 {
            let now = well_at(&mut breaker, i64::from(n) * 60);
            assert_eq!(breaker.start("shop", n, now), Ok(()));
            breaker.finish(&n);
        }
        let now = well_at(&mut breaker, 3599);
        assert_eq!(breaker.start("shop", 10, now), Err(Busy::Hour { until: at(3600) }));
        let now = well_at(&mut breaker, 3600);
        assert_eq!(breaker.start("shop", 10, now), Ok(()));
        breaker.finish(&10);
        assert_eq!(breaker.start("shop", 11, now), Err(Busy::Hour { until: at(3660) }));
    }

    #[test]
    fn one_that_wrote_nothing_is_not_counted() {
        let mut breaker = breaker(10);
        for n in 0..30 {
            assert_eq!(breaker.start("shop", n, at(0)), Ok(()));
            breaker.withdraw(&n);
        }
    }

    #[test]
    fn a_new_leader_takes_the_caps_from_the_records() {
        let started = |key, namespace: &str, second, in_progress| Started {
            namespace: namespace.to_owned(),
            key,
            at: at(second),
            in_progress,
        };
        let mut breaker = breaker(10);
        assert_eq!(breaker.start("old", 99, at(0)), Ok(()));
        let mut records = vec![started(0, "shop", -30, true), started(1, "bank", -7200, true)];
        // One by a clock that is ahead.
        records.extend((2..9).map(|key| started(key, "mail", 900, false)));
        breaker.restore_from(records, at(0));
        assert!(breaker.holds(&0) && breaker.holds(&1) && !breaker.holds(&99));
        assert_eq!(breaker.in_progress(), 2);
        assert_eq!(breaker.start("shop", 20, at(0)), Err(Busy::Namespace));
        assert_eq!(
            breaker.start("bank", 21, at(0)),
            Ok(()),
            "the one before waits for two hours: others go on"
        );
        assert_eq!(breaker.start("news", 22, at(0)), Ok(()), "nine within the hour before");
        breaker.finish(&22);
        assert_eq!(breaker.start("news", 23, at(0)), Err(Busy::Hour { until: at(3570) }));
    }

    #[test]
    fn a_rollback_that_comes_to_no_end_holds_others_up_for_ten_minutes_only() {
        let mut breaker = breaker(10);
        assert_eq!(breaker.start("shop", 0, at(0)), Ok(()));
        well_at(&mut breaker, 599);
        assert_eq!(breaker.start("shop", 1, at(599)), Err(Busy::Namespace));
        well_at(&mut breaker, 600);
        assert_eq!(breaker.start("shop", 1, at(600)), Ok(()));
        assert_eq!(
            breaker.start("shop", 0, at(600)),
            Err(Busy::Deployment),
            "it is in progress all the same"
        );
    }

    #[test]
    fn the_words_are_plain_and_the_same_each_time() {
        let words = [
            Why::Unknown.to_string(),
            Why::ControllerManager.to_string(),
            Why::Nodes { ready: 1, total: 3 }.to_string(),
            Busy::Open(Why::ManyStuck { stuck: 20, guarded: 40, limit: 4 }).to_string(),
            Busy::Hour { until: at(0) }.to_string(),
        ];
        assert_eq!(
            words,
            [
                "the health of the cluster is not known",
                "kube-controller-manager does not renew its lease",
                "only 1 of 3 nodes are ready",
                "the breaker is open: 20 of 40 guarded Deployments became stuck at once (the breaker opens at 4)",
                "as many rollbacks as allowed were started within the last hour; the next may start at \
                 2027-01-15T08:00:00Z",
            ]
        );
    }

    #[derive(Clone, Debug)]
    enum Act {
        Pass(i64),
        Start(u32),
        Finish(u32),
        Stuck(u32),
        Forget(u32),
        NodesReady(u32),
    }

    fn act() -> impl Strategy<Value = Act> {
        let key = 0..12_u32;
        prop_oneof![
            2 => (-5..900_i64).prop_map(Act::Pass),
            4 => key.clone().prop_map(Act::Start),
            3 => key.clone().prop_map(Act::Finish),
            1 => key.clone().prop_map(Act::Stuck),
            1 => key.prop_map(Act::Forget),
            1 => (1..4_u32).prop_map(Act::NodesReady),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn the_caps_hold_whatever_happens(
            acts in prop::collection::vec(act(), 1..200),
            caps in (0..3_u32, 0..5_u32, 0..8_u32),
        ) {
            let (per_namespace, per_cluster, per_hour) = caps;
            let limits = Limits { per_namespace, per_cluster, per_hour, ..Limits::default() };
            let mut breaker = Breaker::new(limits);
            let (mut second, mut health, mut started, mut running) = (0, WELL, Vec::new(), Vec::new());
            for act in acts {
                breaker.health(health, at(second));
                match act {
                    Act::Pass(seconds) => second += seconds,
                    Act::Start(key) => {
                        let open = breaker.open(at(second));
                        let answer = breaker.start(&(key % 3).to_string(), key, at(second));
                        if let Err(Busy::Hour { until }) = &answer {
                            prop_assert!(*until > at(second));
                        }
                        if answer.is_ok() {
                            prop_assert_eq!(open, None);
                            started.push(second);
                            running.push((key, second));
                        }
                    }
                    Act::Finish(key) => {
                        breaker.finish(&key);
                        running.retain(|(other, _)| *other != key);
                    }
                    Act::Stuck(key) => breaker.stuck(key, at(second), at(second)),
                    Act::Forget(key) => breaker.forget(&key),
                    Act::NodesReady(ready) => health.nodes.ready = ready,
                }
                let lately = || running.iter().filter(|(_, at)| second - *at < 600);
                prop_assert!(lately().count() <= per_cluster as usize);
                for namespace in 0..3 {
                    let here = lately().filter(|(key, _)| *key % 3 == namespace).count();
                    prop_assert!(here <= per_namespace as usize);
                }
                let lately = started.iter().filter(|at| second - **at < 3600).count();
                prop_assert!(lately <= per_hour as usize);
            }
        }

        #[test]
        fn when_nothing_more_becomes_stuck_it_is_closed_ten_minutes_later(
            stuck in prop::collection::vec((0..60_u32, 0..3600_i64), 0..80),
            guarded in 0..200_u32,
        ) {
            let mut breaker = breaker(guarded);
            for (key, since) in &stuck {
                breaker.stuck(*key, at(*since), at(3600));
            }
            let now = well_at(&mut breaker, 3600);
            let open = breaker.open(now).is_some();
            prop_assert_eq!(open, breaker.closes_at(now).is_some());
            if let Some(closes) = breaker.closes_at(now) {
                let just_before = closes.as_second() - 1 - at(0).as_second();
                let now = well_at(&mut breaker, just_before.max(3600));
                prop_assert!(breaker.open(now).is_some());
                breaker.health(WELL, closes);
                prop_assert_eq!(breaker.open(closes), None);
            }
            let now = well_at(&mut breaker, 3600 + 600);
            prop_assert_eq!(breaker.open(now), None);
        }
    }
}
