//! One Deployment, one look: read, judge, remember, act.
//!
//! ```text
//!  read ─▶ phase, cause ─▶ record (written before anything is done) ─▶ plan ─▶ may I? ─▶ act ─▶ record
//! ```
//!
//! Each look starts from what the API server says and from the record, so that it does not matter what came
//! between two of them: a crash, another leader, a person. The intent to roll back is written down before, the outcome
//! after, and each write is guarded by what was read.

use std::{
    collections::{BTreeSet, HashSet},
    sync::Arc,
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

use super::surroundings::{Stuck, Surroundings};
use crate::{
    api::{
        policy::{Mode, RollbackMode},
        record::{Outcome, RecordRollback, RolloutRecordStatus},
    },
    cluster::{
        ClusterError,
        records::StoredRecord,
        rollouts::{Notice, Part, Rollouts},
    },
    core::{
        breaker::{Busy, Why},
        cause::{self, Cause, PodEvent, PodFacts, ReplicaSetFacts},
        conditions::{self, Telling},
        key::Key,
        notification::Notification,
        policy::{Labels, Policy},
        record::{self, Before, Progress, Seen, Set, later, span},
        restore,
        rollback::{Hold, Plan, Stay, plan},
        rollout::{self, Phase, Snapshot, classify, is_inherited},
        template::TemplateHash,
    },
    notify::Notifier,
    telemetry::{Metrics, RollbackLabels, traces::RollbackSpan},
    world::World,
};

/// How often a write that meets 409 is tried again within one look: the status changes all the time during a rollout.
const TRIES: u32 = 8;

/// What is older than this is not told again as an Event, such as after a restart.
const TOLD_WITHIN: SignedDuration = SignedDuration::from_mins(10);

/// Between two looks at what is held: what it waits for may have changed without the Deployment saying so.
const HELD: SignedDuration = SignedDuration::from_secs(15);

/// A rollback that the API server has refused for so long is given up: at first another replica's webhook may not have
/// heard of the record yet.
const REFUSED_FOR_GOOD: SignedDuration = SignedDuration::from_mins(5);

/// Until the cluster's health is asked about again.
const SOON: SignedDuration = SignedDuration::from_secs(1);

/// `progressDeadlineSeconds` of a Deployment that has none.
const NO_DEADLINE: i64 = i32::MAX as i64;

/// Says whether this process may write, asked right before each write.
pub trait Gate: Send + Sync {
    /// Whether it leads.
    fn leads(&self) -> bool;
    /// The reason that was given with the kill switch of the whole guard, where it is pulled.
    fn stopped(&self) -> Option<String>;
}

/// Why a look came to no end.
#[derive(Debug, thiserror::Error)]
pub enum ReconcileError {
    /// The API server refuses or does not answer.
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    /// Another process leads.
    #[error("another process leads")]
    NotLeading,
    /// The kill switch is pulled.
    #[error("stopped: {0}")]
    Stopped(String),
    /// The template cannot be put back as the objects are.
    #[error(transparent)]
    Restore(#[from] restore::RestoreError),
    /// The Deployment changes faster than it can be written.
    #[error("changed while it was written")]
    Changed,
    /// The webhook has taken the announcement away: it admits a push at this very moment, which is about to be stored.
    #[error("somebody pushes at this moment")]
    Pushed,
}

impl ReconcileError {
    /// Says whether somebody else was faster: read again, decide again.
    pub fn is_conflict(&self) -> bool {
        match self {
            Self::Cluster(error) => error.code() == Some(409),
            Self::Changed => true,
            Self::NotLeading | Self::Stopped(_) | Self::Restore(_) | Self::Pushed => false,
        }
    }

    /// Says whether the API server refuses what was asked, and not for the moment only.
    pub fn is_refusal(&self) -> bool {
        matches!(self, Self::Cluster(error) if matches!(error.code(), Some(400 | 403 | 422)))
    }
}

/// When a Deployment is to be looked at again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// When something about it changes.
    Idle,
    /// Then, or when something about it changes.
    At(Timestamp),
}

/// What is remembered of a Deployment from one look to the next, and may be lost.
#[derive(Clone, Debug, Default)]
pub struct Memory {
    /// What was complete right before the template of now.
    pub before: Option<Before>,
    /// Of which Deployment: one of the same name made later is another one.
    uid: String,
    /// Of which template, whether that was observed, and how far it has come.
    progress: Option<(TemplateHash, bool, Progress)>,
    told: HashSet<String>,
    desired: Option<i32>,
    detected: Option<String>,
    /// Since when this generation was seen not to be observed.
    unobserved: Option<(i64, Timestamp)>,
    /// Which rollback the API server refuses, by when that was decided on, and since when.
    refused: Option<(Timestamp, Timestamp)>,
}

/// Looks at Deployments.
pub struct Reconciler<R> {
    /// The API server.
    pub rollouts: R,
    /// The policies in force.
    pub world: World,
    /// The cluster around.
    pub surroundings: Arc<Surroundings>,
    /// Whether this process may write.
    pub gate: Arc<dyn Gate>,
    /// What is counted.
    pub metrics: Metrics,
    /// Who is told beyond the cluster.
    pub notifier: Notifier,
}

/// One look at one Deployment.
struct Look<'a> {
    key: &'a Key,
    uid: String,
    policy: &'a Policy,
    now: Timestamp,
}

/// What the looks find out by the API server besides the Deployment itself.
struct Found {
    raw: Vec<Value>,
    sets: Vec<Set>,
    /// The ReplicaSet of the current template, by its place.
    current: Option<usize>,
}

impl Found {
    /// Returns the name of the ReplicaSet of the current template.
    fn current_name(&self) -> Option<&str> {
        self.current.and_then(|at| self.sets.get(at)).map(|set| set.name.as_str())
    }
}

impl<R: Rollouts> Reconciler<R> {
    /// Looks at `key` once, and says when to look again.
    ///
    /// # Errors
    /// When the API server refuses or does not answer, or this process may not write (any more).
    pub async fn reconcile(
        &self,
        key: &Key,
        memory: &mut Memory,
        now: Timestamp,
    ) -> Result<Next, ReconcileError> {
        let Some(deployment) = self.rollouts.deployment(key).await? else {
            self.surroundings.forget(key);
            return Ok(Next::Idle);
        };
        let Some(policy) = self.policy(key, &deployment) else {
            self.surroundings.forget(key);
            self.leave(key, deployment).await?;
            return Ok(Next::Idle);
        };
        let uid = text(&deployment["metadata"]["uid"]).to_owned();
        if memory.uid != uid {
            let before = memory.before.take().filter(|_| memory.uid.is_empty());
            *memory = Memory { before, uid: uid.clone(), ..Memory::default() };
        }
        let look = Look { key, uid, policy: &policy, now };
        let stored = self.rollouts.record(key).await?;
        let (own, planted): (Option<StoredRecord>, Option<StoredRecord>) = match stored {
            Some(record) if record.is_of(key, &look.uid) => (Some(record), None),
            other => (None, other),
        };
        let known = own.as_ref().and_then(|record| record.status.generation);
        if known > deployment["metadata"]["generation"].as_i64() {
            // Generations only grow: this is what was there before.
            return Err(ReconcileError::Changed);
        }
        let deployment = self.keep_promises(&look, own.as_ref(), deployment).await?;

        let snapshot = Snapshot::of(&deployment);
        let template = TemplateHash::of(&deployment["spec"]["template"]);
        // A record that was created, and not written to yet, is as good as none.
        let old = own.as_ref().map(|record| &record.status).filter(|old| old.template_hash.is_some());
        let nothing_known = old.is_none() && memory.before.as_ref().is_none_or(|b| b.template == template);
        if nothing_known && classify(&snapshot) == Phase::Complete {
            self.surroundings.forget(key);
            return Ok(Next::Idle);
        }
        let found = self.replica_sets(&look, &deployment, template).await?;
        let phase = rollout::phase(&snapshot, found.current_name());
        let settled = old.is_some_and(|old| {
            old.settled_at.is_some() && old.template_hash.as_deref() == Some(template.to_string().as_str())
        });
        // What was complete once and is without a record is no rollout: a node is lost, say.
        let once_complete = old.is_none()
            && memory.before.is_none()
            && phase == Phase::Progressing
            && snapshot.updated == snapshot.replicas
            && snapshot.progressing.as_ref().is_some_and(|c| c.reason == "NewReplicaSetAvailable");
        if once_complete {
            self.surroundings.is_not_stuck(key);
            return Ok(Next::Idle);
        }
        memory.unobserved = match memory.unobserved {
            _ if phase != Phase::Unobserved => None,
            Some((generation, since)) if generation == snapshot.generation => Some((generation, since)),
            _ => Some((snapshot.generation, now)),
        };
        let cause = if settled && phase != Phase::Unobserved {
            self.surroundings.set_failing_images(key, Vec::new(), now);
            None
        } else {
            self.cause(&look, &snapshot, phase, &found).await?
        };
        let progress = progress(memory, old, template, &deployment, &snapshot, now);
        let seen = Seen {
            generation: snapshot.generation,
            observed_generation: snapshot.observed_generation,
            phase,
            paused: snapshot.paused,
            desired: snapshot.desired,
            template,
            images: images(&deployment["spec"]["template"]),
            replica_sets: Some(&found.sets),
            before: memory.before.clone(),
            cause,
            progress,
            unobserved_since: memory.unobserved.map(|(_, since)| since),
            progress_deadline: deadline(&deployment),
            manager: self.surroundings.manager(),
        };
        let Some(mut status) = record::fold(old, &seen, &policy, now) else {
            self.surroundings.is_not_stuck(key);
            // Resumed or scaled it is heard of again.
            let rests = matches!(phase, Phase::Paused | Phase::Deleting | Phase::Complete);
            return Ok(if rests { Next::Idle } else { self.pace(&look, None) });
        };

        let mut plan = self.plan(&look, &status, &seen);
        if let Plan::Stay(_) | Plan::Wait(_) = &plan {
            record::not_stuck(&mut status, &seen);
        }
        self.count(&look, &mut status, &seen, &plan, memory);
        if let Plan::Hold(cause, _) | Plan::Restore(cause, _) = &mut plan
            && !record::is_put_back(&status)
            && status.rollback.as_ref().is_none_or(|rollback| rollback.outcome != Outcome::InProgress)
        {
            self.add_log(&look, &seen, &mut cause.evidence).await;
            status.cause = Some(cause.clone());
        }
        let mut busy = None;
        let begins = status.rollback.as_ref().is_none_or(|rollback| {
            rollback.outcome != Outcome::InProgress || rollback.from != template.to_string()
        });
        plan = match plan {
            Plan::Restore(cause, set) => match self.surroundings.start(key, now) {
                Err(why) => {
                    busy = Some(Next::At(retry(&why, now)));
                    Plan::Hold(cause, Hold::Breaker(why.brief().to_owned()))
                }
                Ok(()) => {
                    // Written down before anything is done.
                    if begins {
                        record::intend(&mut status, &seen, &set, &cause, &policy, now);
                    }
                    Plan::Restore(cause, set)
                }
            },
            plan => plan,
        };
        conditions::set(&mut status, &plan, now);
        let record = match self.remember(&look, own, planted, &status).await {
            Ok(record) => record,
            Err(error) => {
                if begins && error.is_conflict() {
                    self.surroundings.withdraw(key);
                }
                return Err(error);
            }
        };
        // What somebody has paused, or deletes, may stay so for long: it takes no slot from others.
        let rests = snapshot.paused || snapshot.deleting;
        if rests || status.rollback.as_ref().is_none_or(|rollback| rollback.outcome != Outcome::InProgress) {
            self.surroundings.finish(key);
        }
        let mut tellings = conditions::tellings(&status, &plan);
        let mut done = plan;
        if let (Plan::Restore(_, set), None) = (&done, busy) {
            let restored = self.restore(&look, &deployment, &mut status, &found, &seen, set).await;
            let (before, restored) = match restored {
                Ok(both) => both,
                Err(error) => {
                    let started = status.rollback.as_ref().map(|rollback| rollback.started_at.0);
                    if let (true, Some(started)) = (error.is_refusal(), started) {
                        let known = memory.refused.filter(|(of, _)| *of == started);
                        let (_, since) = *memory.refused.insert(known.unwrap_or((started, now)));
                        if now.duration_since(since) >= REFUSED_FOR_GOOD {
                            memory.refused = None;
                            record::give_up(&mut status, Outcome::Failed, now);
                            self.write(&look, record, &status).await?;
                        }
                    }
                    self.tell(&look, &status, tellings, memory).await;
                    return Err(error);
                }
            };
            memory.refused = None;
            done = Plan::Wait(now);
            conditions::set(&mut status, &done, now);
            self.write(&look, record, &status).await?;
            tellings.extend(conditions::tellings(&status, &done));
            let handed_back = self.hand_back(key, restored, Some(&before)).await;
            self.tell(&look, &status, tellings, memory).await;
            handed_back?;
        } else {
            self.tell(&look, &status, tellings, memory).await;
        }
        if memory.before.as_ref().is_some_and(|before| before.template != template) {
            memory.before = None;
        }
        Ok(busy.unwrap_or_else(|| self.next(&look, &status, &done, &deployment)))
    }

    /// Returns the policy that the watcher follows the Deployment by; none where nobody guards it.
    fn policy(&self, key: &Key, deployment: &Value) -> Option<Arc<Policy>> {
        self.effective(key, deployment).filter(|policy| policy.mode != Mode::Off)
    }

    fn effective(&self, key: &Key, deployment: &Value) -> Option<Arc<Policy>> {
        let labels = || -> Labels {
            serde_json::from_value(deployment["metadata"]["labels"].clone()).unwrap_or_default()
        };
        if !self.world.is_called_for(&key.namespace) {
            return None;
        }
        self.world.effective(&key.namespace, labels)
    }

    /// Nobody guards the Deployment any more: what the guard has put on it goes. Not where the policy's mode is Off, which
    /// stops every write.
    async fn leave(&self, key: &Key, deployment: Value) -> Result<(), ReconcileError> {
        if self.effective(key, &deployment).is_some() {
            return Ok(());
        }
        let deployment = self.hand_back(key, deployment, None).await?;
        if let Some(patch) = restore::retract(&deployment) {
            self.may_write()?;
            self.rollouts.patch(key, Part::Status, &patch).await?;
        }
        Ok(())
    }

    /// What was begun at an earlier look and is due whatever is found now: ownership is handed back, the announcement
    /// is taken away. Returns the Deployment as it is then.
    async fn keep_promises(
        &self,
        look: &Look<'_>,
        record: Option<&StoredRecord>,
        deployment: Value,
    ) -> Result<Value, ReconcileError> {
        if look.policy.rollback.mode == RollbackMode::Off {
            return Ok(deployment);
        }
        let rollback = record.and_then(|record| record.status.rollback.as_ref());
        let template = TemplateHash::of(&deployment["spec"]["template"]).to_string();
        let in_progress = rollback.filter(|rollback| rollback.outcome == Outcome::InProgress);
        // Where it is paused meanwhile nothing is put back.
        let paused = deployment["spec"]["paused"] == true;
        if in_progress.is_some_and(|rollback| rollback.from == template) && !paused {
            return Ok(deployment);
        }
        let deployment = self.hand_back(look.key, deployment, None).await?;
        // Put back, and killed before that was written down: since when is told by the next look.
        let just_restored = in_progress.is_some_and(|rollback| rollback.generation.is_none());
        let over = rollback.is_none_or(|rollback| {
            let ends = announced_until(rollback, look.policy);
            rollback.to != template || !just_restored && ends <= look.now
        });
        match restore::retract(&deployment).filter(|_| over) {
            None => Ok(deployment),
            Some(patch) => {
                self.may_write()?;
                Ok(self.rollouts.patch(look.key, Part::Status, &patch).await?)
            }
        }
    }

    async fn replica_sets(
        &self,
        look: &Look<'_>,
        deployment: &Value,
        template: TemplateHash,
    ) -> Result<Found, ReconcileError> {
        let mut raw = self.rollouts.replica_sets(look.key, deployment).await?;
        // Of several with one template the oldest is the one that Kubernetes uses.
        raw.sort_by_cached_key(|set| {
            let metadata = &set["metadata"];
            (text(&metadata["creationTimestamp"]).to_owned(), text(&metadata["name"]).to_owned())
        });
        let sets: Vec<Set> = raw.iter().map(set).collect();
        let current = sets.iter().position(|set| set.template == template);
        Ok(Found { raw, sets, current })
    }

    /// Finds out why it does not get on.
    async fn cause(
        &self,
        look: &Look<'_>,
        snapshot: &Snapshot<'_>,
        phase: Phase,
        found: &Found,
    ) -> Result<Option<Cause>, ReconcileError> {
        if !matches!(phase, Phase::Unobserved | Phase::Progressing | Phase::Failed) {
            self.surroundings.set_failing_images(look.key, Vec::new(), look.now);
            return Ok(None);
        }
        // What the generation before left behind explains nothing.
        let set = found.current_name();
        let inherited = snapshot.progressing.as_ref().is_some_and(|c| is_inherited(c, set));
        let own = inherited.then(|| Snapshot { progressing: None, ..snapshot.clone() });
        let snapshot = own.as_ref().unwrap_or(snapshot);
        let raw = found.current.and_then(|at| found.raw.get(at));
        let pods: Vec<PodFacts> = match raw {
            Some(raw) => self.rollouts.pods(look.key, raw).await?.iter().map(PodFacts::of).collect(),
            None => Vec::new(),
        };
        let mut events = Vec::new();
        // Of one pod: as all have one template, it tells of all.
        if let Some(pod) = cause::tells_by_events(&pods, look.now) {
            let told = self.rollouts.pod_events(&look.key.namespace, &pod.name).await?;
            events.extend(told.iter().filter_map(PodEvent::of));
        }
        self.surroundings.set_failing_images(look.key, cause::failing_images(&pods), look.now);
        let facts = raw.map(ReplicaSetFacts::of);
        let input = cause::Input {
            snapshot,
            phase,
            replica_set: facts.as_ref(),
            pods: &pods,
            events: &events,
            node_not_ready: &|node| self.surroundings.is_node_not_ready(node),
            others_failing: &|host| self.surroundings.others_failing(look.key, host, look.now),
            controller_manager: self.surroundings.controller_manager(),
        };
        Ok(cause::find(&input, look.now))
    }

    fn plan(&self, look: &Look<'_>, status: &RolloutRecordStatus, seen: &Seen<'_>) -> Plan {
        let calm = plan(look.key, status, seen, look.policy, None, look.now);
        match &calm {
            Plan::Hold(cause, _) | Plan::Restore(cause, _) => {
                let latched = matches!(calm, Plan::Hold(_, Hold::Latched));
                let stuck = Stuck { policy: look.policy.name.clone(), cause: cause.kind, latched };
                self.surroundings.is_stuck(look.key, stuck, cause.since.0, look.now);
            }
            Plan::Stay(_) | Plan::Wait(_) => self.surroundings.is_not_stuck(look.key),
        }
        if !matches!(calm, Plan::Restore(..)) {
            self.surroundings.does_not_wait(look.key);
        }
        match (calm, self.surroundings.open(look.now)) {
            // Not for long: the health is read every few seconds.
            (Plan::Restore(..), Some(Why::Unknown)) => Plan::Wait(later(look.now, SOON).unwrap_or(look.now)),
            (Plan::Restore(..), Some(why)) => {
                plan(look.key, status, seen, look.policy, Some(why.brief()), look.now)
            }
            (calm, _) => calm,
        }
    }

    /// Counts what came to an end, and gives back its slot.
    fn count(
        &self,
        look: &Look<'_>,
        status: &mut RolloutRecordStatus,
        seen: &Seen<'_>,
        plan: &Plan,
        memory: &mut Memory,
    ) {
        let begun = status.rollout_started_at.as_ref().map_or(look.now, |begun| begun.0);
        if let Plan::Hold(..) | Plan::Restore(..) = plan {
            let rollout = format!("{}/{:?}", seen.template, status.rollout_generation);
            let of_the_rollout = status.settled_at.is_none() && !record::is_put_back(status);
            if memory.detected.as_ref() != Some(&rollout) && of_the_rollout {
                memory.detected = Some(rollout);
                self.metrics.time_to_detect.observe(seconds(begun, look.now));
            }
        }
        let waits = status.rollback.as_ref().is_some_and(|rollback| {
            rollback.outcome == Outcome::InProgress && rollback.from == seen.template.to_string()
        });
        // What is paused meanwhile is judged anew when it goes on.
        if let (
            true,
            Plan::Hold(_, Hold::NoTarget | Hold::Manual { .. } | Hold::Off) | Plan::Stay(Stay::Paused),
        ) = (waits, plan)
        {
            record::give_up(status, Outcome::Superseded, look.now);
        }
        if let (Plan::Hold(_, Hold::Latched), Some(rollback)) = (plan, &mut status.rollback)
            && rollback.outcome != Outcome::Failed
        {
            rollback.outcome = Outcome::Failed;
            rollback.finished_at = Some(k8s_time(look.now));
        }
    }

    /// The last lines of the log of the container that fails, where the policy wants them.
    async fn add_log(&self, look: &Look<'_>, seen: &Seen<'_>, evidence: &mut Vec<String>) {
        let Some(source) = seen.cause.as_ref().and_then(|cause| cause.container.as_ref()) else { return };
        if !look.policy.evidence.logs {
            return;
        }
        let log = self.rollouts.log(&look.key.namespace, &source.pod, &source.container, source.previous);
        match log.await {
            Ok(log) => evidence.extend(cause::log_evidence(&log)),
            Err(error) => {
                tracing::debug!(key = %look.key, %error, "no log to be had");
                if error.code() == Some(403) {
                    evidence.push("the guard may not read logs (the chart's rbac.podLogs)".to_owned());
                }
            }
        }
    }

    /// Writes the record where it differs from what is stored.
    async fn remember(
        &self,
        look: &Look<'_>,
        own: Option<StoredRecord>,
        planted: Option<StoredRecord>,
        status: &RolloutRecordStatus,
    ) -> Result<StoredRecord, ReconcileError> {
        if let Some(own) = own {
            if !record::differ(&own.status, status) {
                return Ok(own);
            }
            return self.write(look, own, status).await;
        }
        self.may_write()?;
        if let Some(planted) = planted {
            tracing::warn!(
                key = %look.key,
                owner = planted.owner_uid,
                "a record that is not of this Deployment stands in the way, it is deleted"
            );
            self.rollouts.delete_record(&planted).await?;
        }
        let created = self.rollouts.create_record(look.key, &look.uid).await?;
        self.write(look, created, status).await
    }

    async fn write(
        &self,
        look: &Look<'_>,
        record: StoredRecord,
        status: &RolloutRecordStatus,
    ) -> Result<StoredRecord, ReconcileError> {
        self.may_write()?;
        let before = record.status.rollback.as_ref().map(|rollback| rollback.outcome);
        let written = self.rollouts.write_record(&record, status).await?;
        self.metrics.records_written.inc();
        let ended = |outcome| match before {
            Some(Outcome::InProgress) => outcome != Outcome::InProgress,
            // It was complete for a moment only.
            Some(Outcome::Succeeded) => outcome == Outcome::Failed,
            _ => false,
        };
        if let Some(rollback) = status.rollback.as_ref().filter(|rollback| ended(rollback.outcome)) {
            let outcome = match rollback.outcome {
                Outcome::Succeeded | Outcome::InProgress => "succeeded",
                Outcome::Failed => "failed",
                Outcome::Superseded => "superseded",
            };
            let labels = RollbackLabels { outcome, cause: rollback.cause.word() };
            self.metrics.rollbacks.get_or_create(&labels).inc();
            self.metrics.traces.rollback(&span_of(look, status, rollback, outcome));
            if rollback.outcome == Outcome::Succeeded {
                let pushed = rollback.pushed_at.as_ref().unwrap_or(&rollback.started_at);
                self.metrics.time_to_safety.observe(seconds(pushed.0, look.now));
            }
        }
        Ok(written)
    }

    /// Puts the template of `set` back: announces it, then restores. Returns the Deployment as it was right before, and as it
    /// is then.
    async fn restore(
        &self,
        look: &Look<'_>,
        deployment: &Value,
        status: &mut RolloutRecordStatus,
        found: &Found,
        seen: &Seen<'_>,
        set: &Set,
    ) -> Result<(Value, Value), ReconcileError> {
        let Some(raw) = found.raw.iter().find(|raw| text(&raw["metadata"]["name"]) == set.name) else {
            return Err(ReconcileError::Changed);
        };
        let told = status.rollback.as_ref().map(|rollback| conditions::told(rollback, status));
        let mut current = deployment.clone();
        let mut announced = false;
        for _ in 0..TRIES {
            self.may_write()?;
            let stands = restore::retract(&current).is_some();
            if announced && !stands {
                // Announced once more it would fail the push that takes it away, such as Helm's own way back.
                return Err(ReconcileError::Pushed);
            }
            announced = stands;
            let written = match restore::announce(&current, told.as_deref().unwrap_or_default(), look.now) {
                // Announced first, so that nobody who waits takes the old template for the new one's success.
                Some(patch) => self.rollouts.patch(look.key, Part::Status, &patch).await,
                None => match restore::restore(&current, raw) {
                    Err(error) => return Err(error.into()),
                    Ok(patch) => self.rollouts.patch(look.key, Part::Object, &patch).await,
                },
            };
            let before = current;
            match written {
                Ok(written) => current = written,
                Err(error) if error.code() == Some(409) => {
                    current = self.rollouts.deployment(look.key).await?.ok_or(ReconcileError::Changed)?;
                }
                Err(error) => return Err(error.into()),
            }
            // It takes a while where the API server is slow: what the policy says now counts.
            let policy = self.policy(look.key, &current);
            if policy.is_none_or(|policy| {
                policy.mode != Mode::Enforce || policy.rollback.mode != RollbackMode::Automatic
            }) && TemplateHash::of(&current["spec"]["template"]) != set.template
            {
                return Err(ReconcileError::Changed);
            }
            if text(&current["metadata"]["uid"]) != look.uid {
                return Err(ReconcileError::Changed);
            }
            let snapshot = Snapshot::of(&current);
            let template = TemplateHash::of(&current["spec"]["template"]);
            if template == set.template && snapshot.generation > seen.generation {
                let images = set.images.clone();
                let (generation, observed_generation) = (snapshot.generation, snapshot.observed_generation);
                let phase = Phase::Unobserved;
                let seen = Seen {
                    generation,
                    observed_generation,
                    phase,
                    template,
                    images,
                    cause: None,
                    ..seen.clone()
                };
                record::restored(status, &seen, look.now);
                tracing::warn!(
                    key = %look.key,
                    generation,
                    revision = set.revision,
                    told = told.as_deref().unwrap_or_default(),
                    "rolled back"
                );
                return Ok((before, current));
            }
            // A person, or a tool of theirs, was faster: theirs stands.
            let healed = classify(&snapshot) == Phase::Complete;
            if template != seen.template || snapshot.deleting || snapshot.paused || healed {
                return Err(ReconcileError::Changed);
            }
        }
        Err(ReconcileError::Changed)
    }

    /// Hands the fields that the restore took over back to whoever applied them, as they were shared `before` it where
    /// that is known. Moves no generation.
    async fn hand_back(
        &self,
        key: &Key,
        mut deployment: Value,
        before: Option<&Value>,
    ) -> Result<Value, ReconcileError> {
        for _ in 0..TRIES {
            let patch = match before {
                Some(before) => restore::hand_back_as_before(&deployment, before),
                None => restore::hand_back(&deployment),
            };
            let Some(patch) = patch else { return Ok(deployment) };
            self.may_write()?;
            match self.rollouts.patch(key, Part::Object, &patch).await {
                Ok(after) => deployment = after,
                Err(error) if error.code() == Some(409) => {
                    deployment = self.rollouts.deployment(key).await?.ok_or(ReconcileError::Changed)?;
                }
                Err(error) => return Err(error.into()),
            }
        }
        Err(ReconcileError::Changed)
    }

    /// Writes what is to be told as Events, each once, and hands it to the notifier, which never waits. What cannot be
    /// written is in nobody's way.
    async fn tell(
        &self,
        look: &Look<'_>,
        status: &RolloutRecordStatus,
        tellings: Vec<Telling>,
        memory: &mut Memory,
    ) {
        for telling in tellings {
            if self.may_write().is_err() {
                return;
            }
            let notification = self.notification(look, status, &telling);
            let fresh = look.now.duration_since(telling.since) < TOLD_WITHIN;
            if !fresh || memory.told.contains(&telling.once) {
                continue;
            }
            let notice = Notice {
                key: look.key.clone(),
                uid: look.uid.clone(),
                warning: telling.warning,
                reason: telling.reason,
                message: telling.message,
                once: format!("{}/{}", look.uid, telling.once),
            };
            let written = self.rollouts.tell(&notice).await;
            // An Event that was there already is of the leader before, who has told it.
            if !matches!(written, Ok(false))
                && let Some(notification) = notification
            {
                self.notifier.tell(notification);
            }
            match written {
                Ok(_) => {
                    memory.told.insert(telling.once);
                }
                Err(error) => tracing::warn!(key = %look.key, %error, "Event not written, tried again"),
            }
        }
    }

    /// Returns what the notifier is to tell, if it tells anybody anything, and lets it know that it is so.
    fn notification(
        &self,
        look: &Look<'_>,
        status: &RolloutRecordStatus,
        telling: &Telling,
    ) -> Option<Notification> {
        if !self.notifier.has_receivers() {
            return None;
        }
        let notification = Notification::of(look.key, &look.uid, status, telling)?;
        self.notifier.lasts(&notification, look.now);
        Some(notification)
    }

    fn may_write(&self) -> Result<(), ReconcileError> {
        if !self.gate.leads() {
            return Err(ReconcileError::NotLeading);
        }
        self.gate.stopped().map_or(Ok(()), |why| Err(ReconcileError::Stopped(why)))
    }

    /// When to look again.
    fn next(&self, look: &Look<'_>, status: &RolloutRecordStatus, plan: &Plan, deployment: &Value) -> Next {
        let rollback = status.rollback.as_ref();
        let announced = rollback
            .filter(|rollback| Some(&rollback.to) == status.template_hash.as_ref())
            .map(|rollback| announced_until(rollback, look.policy))
            .filter(|until| *until > look.now && restore::retract(deployment).is_some());
        let due = match plan {
            Plan::Stay(Stay::UnderWay) | Plan::Hold(..) => Some(HELD),
            Plan::Stay(_) | Plan::Restore(..) | Plan::Wait(_) => None,
        };
        let planned = match plan {
            Plan::Wait(at) => Some(*at),
            _ => None,
        };
        let paced = match self.pace(look, planned) {
            Next::At(at) if matches!(plan, Plan::Wait(_) | Plan::Restore(..)) => Some(at),
            _ => due.and_then(|span| later(look.now, span)),
        };
        match paced.into_iter().chain(announced).min() {
            Some(at) => Next::At(at),
            None => Next::Idle,
        }
    }

    /// While it is under way it is looked at again and again: pods change without the Deployment saying so.
    fn pace(&self, look: &Look<'_>, planned: Option<Timestamp>) -> Next {
        let early = span(look.policy.watch.early_failure_after);
        let pace = (early / 4).clamp(SignedDuration::from_secs(1), SignedDuration::from_secs(5));
        let paced = later(look.now, pace).unwrap_or(look.now);
        Next::At(planned.map_or(paced, |at| at.clamp(look.now, paced)))
    }
}

/// The rollback as a whole, from what the record says of it.
fn span_of<'a>(
    look: &'a Look<'_>,
    status: &'a RolloutRecordStatus,
    rollback: &'a RecordRollback,
    outcome: &'static str,
) -> RollbackSpan<'a> {
    let back = rollback.generation.is_some() && Some(&rollback.to) == status.template_hash.as_ref();
    RollbackSpan {
        namespace: &look.key.namespace,
        name: &look.key.name,
        uid: &look.uid,
        cause: rollback.cause.word(),
        outcome,
        from: (rollback.from_revision, &rollback.from),
        to: (rollback.to_revision, &rollback.to),
        intended: rollback.started_at.0,
        restored: status.rollout_started_at.as_ref().filter(|_| back).map(|restored| restored.0),
        finished: rollback.finished_at.as_ref().map_or(look.now, |finished| finished.0),
    }
}

/// The best that the rollout has come to. What was not seen to begin began when the object was last written, and got on
/// last when Kubernetes says so. Before it is observed the counts are those of another template.
fn progress(
    memory: &mut Memory,
    old: Option<&RolloutRecordStatus>,
    template: TemplateHash,
    deployment: &Value,
    snapshot: &Snapshot<'_>,
    now: Timestamp,
) -> Progress {
    let observed = snapshot.observed_generation >= snapshot.generation;
    // How many are ready and available beyond those of earlier templates: that grows until the last of those is gone.
    let ready = deployment["status"]["readyReplicas"].as_i64().unwrap_or_default();
    let ready = i32::try_from(ready).unwrap_or_default();
    let available = snapshot.available + ready - 2 * (snapshot.replicas - snapshot.updated);
    // Nothing is expected of a rollout that is paused or has no replicas, and one that is scaled has another way to go.
    let scaled = memory.desired.replace(snapshot.desired).is_some_and(|desired| desired != snapshot.desired);
    if snapshot.paused || snapshot.desired == 0 || scaled {
        let mut progress = Progress::begun(snapshot.updated, available, now);
        if let Some((_, _, before)) = memory.progress.filter(|(of, ..)| *of == template) {
            // None of this makes those run that fail.
            progress.available_at = before.available_at;
            progress.best.1 = progress.best.1.max(before.best.1);
        }
        // It was observed before, and is so but for the number.
        let before = memory.progress.is_some_and(|(of, before, _)| of == template && before);
        memory.progress = Some((template, observed || before, progress));
        return progress;
    }
    let (observed, progress) = match memory.progress {
        Some((of, before, progress)) if of == template && (before || !observed) => (before, progress),
        Some((of, ..)) if of == template => (true, Progress::begun(0, 0, now)),
        _ => {
            let hash = template.to_string();
            let known = old.filter(|old| old.template_hash.as_deref() == Some(hash.as_str()));
            let begun = known.and_then(|old| old.rollout_started_at.as_ref()).map(|begun| begun.0);
            let written = if memory.before.is_none() && old.is_none() { snapshot.written_at } else { None };
            // What is known, and has not begun, was paused until now.
            let begun = if known.is_some() { begun.or(Some(now)) } else { begun };
            let start = begun.or(written).unwrap_or(now).min(now);
            let got_on = snapshot.progressing.as_ref().and_then(|c| c.updated_at).filter(|_| observed);
            let at = got_on.map_or(start, |at| at.clamp(start, now));
            (observed, Progress { available_at: start, ..Progress::begun(snapshot.updated, available, at) })
        }
    };
    let progress = if observed { progress.with(snapshot.updated, available, now) } else { progress };
    memory.progress = Some((template, observed, progress));
    progress
}

fn deadline(deployment: &Value) -> Option<SignedDuration> {
    let seconds = deployment["spec"]["progressDeadlineSeconds"].as_i64()?;
    (seconds < NO_DEADLINE).then(|| SignedDuration::from_secs(seconds))
}

fn set(raw: &Value) -> Set {
    let annotation = &raw["metadata"]["annotations"]["deployment.kubernetes.io/revision"];
    let available = raw["status"]["availableReplicas"].as_i64().unwrap_or_default();
    Set {
        name: text(&raw["metadata"]["name"]).to_owned(),
        template: TemplateHash::of(&raw["spec"]["template"]),
        revision: text(annotation).parse().unwrap_or_default(),
        available: i32::try_from(available).unwrap_or_default(),
        images: images(&raw["spec"]["template"]),
    }
}

/// The images of a template, each once.
fn images(template: &Value) -> Vec<String> {
    let containers = ["initContainers", "containers"].map(|kind| template["spec"][kind].as_array());
    let images = containers.into_iter().flatten().flatten().filter_map(|c| c["image"].as_str());
    let mut seen = BTreeSet::new();
    images.filter(|image| seen.insert(*image)).map(str::to_owned).take(16).collect()
}

fn announced_until(rollback: &RecordRollback, policy: &Policy) -> Timestamp {
    later(rollback.carried_out_at(), span(policy.rollback.announce_for)).unwrap_or(Timestamp::MAX)
}

fn retry(busy: &Busy, now: Timestamp) -> Timestamp {
    let soon = later(now, SignedDuration::from_secs(2)).unwrap_or(now);
    match busy {
        Busy::Hour { until } => (*until).clamp(soon, later(now, HELD).unwrap_or(soon)),
        _ => soon,
    }
}

fn seconds(from: Timestamp, to: Timestamp) -> f64 {
    Duration::try_from(to.duration_since(from)).map_or(0.0, |span| span.as_secs_f64())
}

fn k8s_time(now: Timestamp) -> k8s_openapi::apimachinery::pkg::apis::meta::v1::Time {
    k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(record::second(now))
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}
