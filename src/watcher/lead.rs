//! What the leader does: feeds the queue from the watch, looks at what is due, and keeps an eye on the cluster.

use std::{
    collections::{BTreeSet, HashMap},
    panic::AssertUnwindSafe,
    sync::Arc,
    time::Duration,
};

use futures::{FutureExt, StreamExt};
use jiff::{SignedDuration, Timestamp};
use tokio::{
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval},
};

use super::{
    complete::CompleteOnce,
    queue::Queue,
    reconcile::{Memory, Next, ReconcileError, Reconciler},
    store::{Change, Store, View},
};
use crate::{
    api::{
        policy::{CauseType, Mode},
        record::{Outcome, RecordRollback},
    },
    cluster::{
        Cluster, ClusterError,
        deployments::RawDeployment,
        health::{ControllerManagerLease, Nodes},
        policies::Event,
        records::StoredRecord,
    },
    core::{
        breaker::{ControllerManager, Health, Started, Why},
        key::Key,
        lease::{BREAKER_CLOSED, Freshness, Renewal},
        record::AtWork,
        rollout::Phase,
        template::TemplateHash,
    },
    telemetry::{BreakerLabels, CauseLabels, Metrics, PolicyLabels, ReconcileLabels},
};

/// Looks at a time.
const AT_ONCE: usize = 16;

/// How often the cluster's health is read.
const HEALTH_PERIOD: Duration = Duration::from_secs(5);

/// kube-controller-manager is silent when its lease did not change for so long: it is renewed every two seconds, and
/// lost after fifteen.
const SILENT_AFTER: Duration = Duration::from_secs(20);

/// How often everything that is not complete is looked at although nothing was heard of it: policies change, too.
const SWEEP_PERIOD: Duration = Duration::from_secs(30);

/// Since when a Deployment must have been written to count as one that nobody observes.
const UNOBSERVED_FOR: SignedDuration = SignedDuration::from_secs(60);

/// How often the gauges are set.
const GAUGE_PERIOD: Duration = Duration::from_secs(2);

/// After which pause the kill switch is looked at again.
const STOPPED_PAUSE: Duration = Duration::from_secs(2);

/// Follows all Deployments for as long as it is polled.
pub async fn lead(cluster: &Cluster, reconciler: Arc<Reconciler<Cluster>>) {
    let records = known(cluster).await;
    let now = Timestamp::now();
    let started = records.iter().filter_map(|(key, known)| known.started(key));
    reconciler.surroundings.set_started(started, now);
    let mut leader = Leader {
        store: Store::new(),
        queue: Queue::default(),
        running: JoinSet::new(),
        records,
        complete: CompleteOnce::default(),
        synced: false,
        health: Monitor::new(),
        reconciler,
    };
    leader.run(cluster).await;
}

struct Leader {
    reconciler: Arc<Reconciler<Cluster>>,
    store: Store,
    queue: Queue,
    running: JoinSet<Looked>,
    /// What the records said when the lead began; taken up by the first list.
    records: HashMap<Key, Known>,
    complete: CompleteOnce,
    synced: bool,
    health: Monitor,
}

/// A look that is over.
struct Looked {
    key: Key,
    memory: Memory,
    /// None where it panicked.
    result: Option<Result<Next, ReconcileError>>,
}

impl Leader {
    async fn run(&mut self, cluster: &Cluster) {
        let mut deployments = cluster.watch_deployments_raw();
        let mut health = ticks(HEALTH_PERIOD);
        let mut sweep = ticks(SWEEP_PERIOD);
        let mut gauges = ticks(GAUGE_PERIOD);
        let mut asked = JoinSet::new();
        loop {
            self.start_looks();
            tokio::select! {
                Some(event) = deployments.next() => self.take_in(event),
                Some(looked) = self.running.join_next() => match looked {
                    Ok(looked) => self.looked(looked),
                    // Only at the end of the process.
                    Err(error) => tracing::error!(%error, "a look ended early"),
                },
                () = self.queue.due() => {}
                _ = health.tick(), if asked.is_empty() => {
                    let cluster = cluster.clone();
                    asked.spawn(async move { ask(&cluster).await });
                }
                Some(answer) = asked.join_next() => if let Ok(answer) = answer {
                    self.learn_health(answer);
                },
                _ = sweep.tick() => self.sweep(),
                _ = gauges.tick() => self.set_gauges(),
            }
        }
    }

    /// Starts looks at what is due, so many at a time.
    fn start_looks(&mut self) {
        // Before the first list is complete it is not known how many are guarded.
        while self.synced && self.running.len() < AT_ONCE {
            let Some((key, mut memory)) = self.queue.take() else { return };
            let reconciler = Arc::clone(&self.reconciler);
            self.running.spawn(async move {
                let look = reconciler.reconcile(&key, &mut memory, Timestamp::now());
                // A panic is logged, and that of one Deployment is nobody else's.
                let result = AssertUnwindSafe(look).catch_unwind().await.ok();
                Looked { key, memory, result }
            });
        }
    }

    fn looked(&mut self, looked: Looked) {
        let Looked { key, memory, result } = looked;
        let count =
            |result| self.reconciler.metrics.reconciles.get_or_create(&ReconcileLabels { result }).inc();
        let Some(result) = result else {
            count("error");
            self.queue.failed(&key, Memory::default());
            return;
        };
        match result {
            Ok(Next::Idle) => {
                count("ok");
                self.queue.looked(&key, memory, None);
            }
            Ok(Next::At(at)) => {
                count("ok");
                let pause = Duration::try_from(at.duration_since(Timestamp::now())).unwrap_or_default();
                self.queue.looked(&key, memory, Some(pause));
            }
            Err(ReconcileError::NotLeading) => self.queue.looked(&key, memory, Some(STOPPED_PAUSE)),
            Err(ReconcileError::Stopped(why)) => {
                tracing::debug!(%key, why, "stopped");
                self.queue.looked(&key, memory, Some(STOPPED_PAUSE));
            }
            // Once that push is stored, there is nothing left to do as a rule.
            Err(error @ ReconcileError::Pushed) => {
                count("conflict");
                tracing::debug!(%key, %error, "left alone for a moment");
                self.queue.looked(&key, memory, Some(Duration::from_secs(1)));
            }
            Err(error) if error.is_conflict() => {
                count("conflict");
                tracing::debug!(%key, %error, "read again");
                self.queue.looked(&key, memory, Some(Duration::from_millis(100)));
            }
            Err(error) => {
                count("error");
                let pause = self.queue.failed(&key, memory);
                tracing::warn!(%key, %error, pause_ms = pause.as_millis(), "not looked at, tried again");
            }
        }
    }

    fn take_in(&mut self, event: Event<RawDeployment>) {
        match event {
            Event::Restarted => self.store.restart(),
            Event::Applied(deployment) => match self.store.apply(deployment.raw()) {
                Ok(change) => self.changed(change),
                Err(error) => tracing::warn!(%error, "a Deployment cannot be read, it is left alone"),
            },
            Event::Deleted(deployment) => self.gone(&deployment.key()),
            Event::Synced => {
                let synced = self.store.synced();
                if synced.is_suspicious() {
                    // Nothing is done by a list alone: each look reads the Deployment itself.
                    tracing::warn!(gone = synced.gone.len(), "the list of deployments came back empty");
                } else {
                    for key in synced.gone {
                        self.gone(&key);
                    }
                }
                if !self.synced {
                    self.synced = true;
                    self.begin();
                }
            }
            Event::Failed(why) => tracing::warn!(why, "watch of deployments failed"),
        }
    }

    fn gone(&mut self, key: &Key) {
        self.store.delete(key);
        self.complete.forget(key);
        self.reconciler.surroundings.forget(key);
        if self.queue.follows(key) {
            self.queue.notice(key, true);
        }
    }

    /// Takes in what has changed about a Deployment, and has it looked at where that matters.
    fn changed(&mut self, change: Change) {
        let Change { key, before, after } = change;
        let now = Timestamp::now();
        let was_complete = self.complete.take_in(&key, before.as_ref(), &after, now);
        if before.as_ref().is_some_and(|before| before.observed_generation < after.observed_generation) {
            self.reconciler.surroundings.something_is_observed(now);
        }
        let pushed = before.as_ref().is_some_and(|before| before.template != after.template);
        let turned = before
            .as_ref()
            .is_none_or(|before| before.phase != after.phase || before.generation != after.generation);
        let follows = self.queue.follows(&key);
        if !(pushed || follows || wants_a_look(&after)) {
            return;
        }
        self.queue.notice(&key, pushed || turned);
        if let Some(before) = was_complete {
            self.queue.was_complete(&key, before);
        }
    }

    /// The first list is complete: what was under way when the lead began is taken up.
    fn begin(&mut self) {
        let records = std::mem::take(&mut self.records);
        for (key, view) in self.store.iter() {
            let record = records.get(&key);
            let unfinished = record.is_some_and(|known| {
                let in_progress = known.rollback.is_some_and(|(_, in_progress)| in_progress);
                !known.settled || in_progress || known.template != Some(view.template)
            });
            if unfinished || wants_a_look(&view) {
                self.queue.notice(&key, true);
            }
        }
        for key in records.keys().filter(|key| self.store.get(key).is_none()) {
            self.reconciler.surroundings.forget(key);
        }
        self.count_guarded();
        tracing::info!(deployments = self.store.len(), records = records.len(), "follows");
    }

    fn sweep(&mut self) {
        if !self.synced {
            return;
        }
        let (last, now) = (self.reconciler.surroundings.last_observed(), Timestamp::now());
        let mut unobserved = 0;
        for (key, view) in self.store.iter() {
            let waits = |written: Timestamp| {
                last.is_none_or(|last| last < written) && now.duration_since(written) >= UNOBSERVED_FOR
            };
            unobserved += usize::from(view.phase == Phase::Unobserved && view.written_at.is_some_and(waits));
            if wants_a_look(&view) && !self.queue.follows(&key) {
                self.queue.notice(&key, false);
            }
        }
        self.reconciler.surroundings.set_unobserved(unobserved);
        self.count_guarded();
    }

    fn count_guarded(&self) {
        let world = &self.reconciler.world;
        let guarded = |(key, view): &(Key, View)| {
            let policy = || world.effective(&key.namespace, || view.labels.as_ref().clone());
            world.is_called_for(&key.namespace) && policy().is_some_and(|policy| policy.mode != Mode::Off)
        };
        let count = self.store.iter().filter(guarded).count();
        self.reconciler.surroundings.set_guarded(u32::try_from(count).unwrap_or(u32::MAX));
    }

    fn learn_health(&mut self, answer: Result<Answer, ClusterError>) {
        match answer {
            Ok(answer) => {
                let (health, at_work, not_ready) = self.health.read(answer);
                self.reconciler.surroundings.set_health(health, at_work, not_ready, Timestamp::now());
            }
            Err(error) => tracing::warn!(%error, "the cluster's health cannot be read"),
        }
    }

    fn set_gauges(&self) {
        let Reconciler { metrics, surroundings, world, notifier, .. } = &*self.reconciler;
        metrics.watched.set(i64::try_from(self.store.len()).unwrap_or(i64::MAX));
        metrics.queue_depth.set(i64::try_from(self.queue.depth()).unwrap_or(i64::MAX));
        metrics.rollbacks_in_progress.set(i64::try_from(surroundings.in_progress()).unwrap_or(i64::MAX));
        metrics.rollbacks_waiting.set(i64::try_from(surroundings.waiting()).unwrap_or(i64::MAX));
        let stuck = surroundings.stuck();
        let latched = stuck.values().filter(|stuck| stuck.latched).count();
        metrics.latched.set(i64::try_from(latched).unwrap_or(i64::MAX));
        for cause in CauseType::ALL {
            let count = stuck.values().filter(|stuck| stuck.cause == cause).count();
            let labels = CauseLabels { cause: cause.word() };
            metrics.stuck.get_or_create(&labels).set(i64::try_from(count).unwrap_or(i64::MAX));
        }
        let mut by_policy: HashMap<String, i64> = HashMap::new();
        for policy in world.policies().ranked() {
            by_policy.insert(policy.name.clone(), 0);
        }
        let open = surroundings.open(Timestamp::now());
        notifier.look(stuck.keys().cloned(), open.as_ref(), Timestamp::now());
        for stuck in stuck.into_values() {
            *by_policy.entry(stuck.policy).or_default() += 1;
        }
        for (policy, count) in &by_policy {
            metrics.policy_stuck.get_or_create(&PolicyLabels { policy: policy.clone() }).set(*count);
        }
        world.set_stuck(Some(by_policy));
        world.set_breaker(Some(open.as_ref().map_or_else(|| BREAKER_CLOSED.to_owned(), Why::to_string)));
        for (reason, is) in breaker_reasons(open.as_ref()) {
            metrics.breaker_open.get_or_create(&BreakerLabels { reason }).set(is.into());
        }
    }
}

/// Clears what only a leader says.
pub fn step_down(metrics: &Metrics, world: &crate::world::World) {
    world.set_stuck(None);
    world.set_breaker(None);
    metrics.watched.set(0);
    metrics.queue_depth.set(0);
    metrics.rollbacks_in_progress.set(0);
    metrics.rollbacks_waiting.set(0);
    metrics.latched.set(0);
    metrics.stuck.clear();
    metrics.policy_stuck.clear();
    metrics.breaker_open.clear();
}

fn breaker_reasons(open: Option<&Why>) -> [(&'static str, bool); 4] {
    [
        ("unknown", matches!(open, Some(Why::Unknown))),
        ("controller_manager", matches!(open, Some(Why::ControllerManager))),
        ("nodes", matches!(open, Some(Why::Nodes { .. }))),
        ("many_stuck", matches!(open, Some(Why::ManyStuck { .. }))),
    ]
}

/// Says whether a Deployment wants a look for what it is, not for what has changed.
fn wants_a_look(view: &View) -> bool {
    let under_way = matches!(view.phase, Phase::Unobserved | Phase::Progressing | Phase::Failed);
    under_way || view.announced || view.hand_back_due
}

/// What a new leader must know of a record: all of them are there at once, so it is little.
struct Known {
    settled: bool,
    template: Option<TemplateHash>,
    /// When the last rollback was started, and whether it is in progress.
    rollback: Option<(Timestamp, bool)>,
}

impl Known {
    fn of(record: &StoredRecord) -> Self {
        let status = &record.status;
        let started =
            |rollback: &RecordRollback| (rollback.started_at.0, rollback.outcome == Outcome::InProgress);
        Self {
            settled: status.settled_at.is_some(),
            template: status.template_hash.as_deref().and_then(TemplateHash::parse),
            rollback: status.rollback.as_ref().map(started),
        }
    }

    fn started(&self, key: &Key) -> Option<Started<Key>> {
        let (at, in_progress) = self.rollback?;
        Some(Started { namespace: key.namespace.clone(), key: key.clone(), at, in_progress })
    }
}

/// Lists the records, for as long as it takes.
async fn known(cluster: &Cluster) -> HashMap<Key, Known> {
    loop {
        let mut records = HashMap::new();
        let take = |record: StoredRecord| {
            // What somebody planted is no record.
            if !record.owner_uid.is_empty() && record.owner_uid == record.target.uid {
                records.insert(Key::new(&record.namespace, &record.target.name), Known::of(&record));
            }
        };
        match cluster.each_record(take).await {
            Ok(()) => return records,
            Err(error) => {
                tracing::warn!(%error, "the records cannot be listed, tried again");
                tokio::time::sleep(Duration::from_secs(2)).await;
            }
        }
    }
}

fn ticks(period: Duration) -> tokio::time::Interval {
    let mut ticks = interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

/// What the API server says of the cluster's health.
struct Answer {
    manager: Option<ControllerManagerLease>,
    nodes: Nodes,
}

async fn ask(cluster: &Cluster) -> Result<Answer, ClusterError> {
    let manager = cluster.controller_manager_lease().await?;
    let nodes = cluster.nodes().await?;
    Ok(Answer { manager, nodes })
}

/// Judges by what was read before.
struct Monitor {
    origin: Instant,
    manager: Freshness<ControllerManagerLease>,
    /// Since when the lease is renewed without a break, and when that was last seen.
    at_work: Option<(Timestamp, Timestamp)>,
    was_silent: bool,
}

impl Monitor {
    fn new() -> Self {
        let manager = Freshness::new(SILENT_AFTER);
        Self { origin: Instant::now(), manager, at_work: None, was_silent: false }
    }

    fn read(&mut self, answer: Answer) -> (Health, Option<AtWork>, BTreeSet<String>) {
        let Answer { manager, nodes } = answer;
        let (controller_manager, at_work) = match manager {
            None => (ControllerManager::Untold, None),
            Some(value) => {
                let renewal = self.renewed(value);
                let at_work = self.at_work.map_or(AtWork::No, |(since, last)| AtWork::Since { since, last });
                let judged = match renewal {
                    Renewal::Fresh => ControllerManager::Alive,
                    Renewal::Stale => ControllerManager::Stale,
                    Renewal::Unknown => ControllerManager::Unsettled,
                };
                (judged, Some(at_work))
            }
        };
        (Health { controller_manager, nodes: nodes.count() }, at_work, nodes.not_ready)
    }

    fn renewed(&mut self, value: ControllerManagerLease) -> Renewal {
        let before = self.manager.changed_at();
        let acquired = value.acquire_time;
        self.manager.seen(value, self.origin.elapsed());
        let now = Timestamp::now();
        if self.manager.changed_at() != before {
            // At first sight since it took the Lease, which a process that was away takes anew: a leader that is new waits no
            // longer for it than the one before. After a silence that was heard, since now.
            let first = if self.was_silent { now } else { acquired.unwrap_or(now).min(now) };
            let since = self.at_work.map_or(first, |(since, _)| since);
            self.at_work = Some((since, now));
        }
        let renewal = self.manager.renewal();
        if renewal == Renewal::Stale {
            self.at_work = None;
            self.was_silent = true;
        }
        renewal
    }
}
