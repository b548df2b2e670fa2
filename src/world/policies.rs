//! Keeps the policies: watches them, puts the valid ones in force, says so in their status and keeps their
//! fallback in place.
//!
//! Every replica does this; all write the same, by server-side apply, and only where something differs. A process
//! without the webhook decides by the policies as well, and writes nothing of them but how many Deployments are
//! stuck: see [`Fallback`].

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use futures::StreamExt;
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::core::Selector;
use serde_json::Value;
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::{World, listing::Listing};
use crate::{
    admin::Requirement,
    api::{
        GROUP,
        policy::{LastValid, RolloutPolicySpec, RolloutPolicyStatus},
    },
    cluster::{
        Cluster, ClusterError,
        policies::{Event, Labelled, StoredPolicy},
    },
    core::{
        fallback::{self, Guard, Owner, Release},
        policy::{Labels, Policy, PolicyError, PolicySet, compile},
    },
    shutdown::Shutdown,
    telemetry::{Metrics, PolicyLabels},
};

/// How often something is looked at, at the most.
const TICK: Duration = Duration::from_secs(1);

/// How often the fallbacks are made sure of although nothing has changed: somebody may have deleted one.
const RESYNC: Duration = Duration::from_secs(60);

/// How often the number of guarded Deployments is written, at the most.
const COUNT_PERIOD: Duration = Duration::from_secs(5);

/// What becomes of the fallbacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fallback {
    /// They are generated and kept in place.
    Keep,
    /// They are switched off at installation, and removed.
    Remove,
    /// They and the conditions of the policies are the webhook's, which is another process.
    LeaveAlone,
}

/// How the policies are kept.
#[derive(Clone, Debug)]
pub struct Settings {
    /// What becomes of the fallbacks.
    pub fallback: Fallback,
    /// The validating webhook configuration of the release: it owns the bindings of the fallback.
    pub validating_configuration: String,
}

/// What must hold before the process is ready.
pub struct Requirements {
    /// The policies are listed.
    pub policies: Requirement,
    /// The labels of namespaces are listed.
    pub namespaces: Requirement,
}

/// Keeps the policies until the shutdown.
pub async fn keep(
    cluster: Cluster,
    world: World,
    settings: Settings,
    requirements: Requirements,
    metrics: Metrics,
    shutdown: Shutdown,
) {
    let mut policies = cluster.watch_policies();
    let mut namespaces = cluster.watch_namespaces();
    let mut deployments = match settings.fallback {
        // What is guarded is counted by whoever writes the status.
        Fallback::LeaveAlone => futures::stream::pending().boxed(),
        Fallback::Keep | Fallback::Remove => cluster.watch_deployments(),
    };
    let mut namespace_listing = Listing::default();
    let mut keeper = Keeper::new(world.clone(), settings, metrics);
    let mut tick = interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = shutdown.started() => return,
            Some(event) = policies.next() => {
                if let Event::Failed(why) = &event {
                    tracing::warn!(why, "watch of rolloutpolicies failed");
                    if !keeper.policies_synced {
                        requirements.policies.unmet(why.clone());
                    }
                }
                if keeper.policy_event(event) {
                    requirements.policies.met();
                }
            }
            Some(event) = namespaces.next() => match event {
                Event::Restarted => namespace_listing.restart(),
                Event::Applied(namespace) => {
                    namespace_listing.seen(|| namespace.name.clone());
                    world.set_namespace(&namespace.name, Some(namespace.labels));
                }
                Event::Deleted(namespace) => world.set_namespace(&namespace.name, None),
                Event::Synced => {
                    world.retain_namespaces(&namespace_listing.finish());
                    requirements.namespaces.met();
                }
                Event::Failed(why) => tracing::warn!(why, "watch of namespaces failed"),
            },
            Some(event) = deployments.next() => keeper.deployment_event(event),
            _ = tick.tick() => keeper.settle(&cluster).await,
        }
    }
}

/// One RolloutPolicy.
struct Entry {
    stored: StoredPolicy,
    /// What is wrong with the spec as stored.
    error: Option<PolicyError>,
    /// What is in force: the spec as stored, or the last valid one.
    in_force: Option<InForce>,
    fallback: FallbackState,
}

#[derive(Clone)]
struct InForce {
    policy: Arc<Policy>,
    spec: Value,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum FallbackState {
    Pending,
    Disabled,
    NotNeeded,
    NotInstalled,
    Failed(String),
    InPlace { narrowed_by: Vec<String> },
}

struct Keeper {
    world: World,
    settings: Settings,
    metrics: Metrics,
    entries: BTreeMap<String, Entry>,
    listing: Listing<String>,
    policies_synced: bool,
    deployments: HashMap<(String, String), Labels>,
    deployment_listing: Listing<(String, String)>,
    deployments_synced: bool,
    fallback_due: bool,
    fallback_done: Option<Instant>,
    count_due: bool,
    counted: Option<Instant>,
    guarded: HashMap<String, i64>,
    /// The namespaces that the webhook is called for at all.
    called_for: Selector,
}

impl Keeper {
    fn new(world: World, settings: Settings, metrics: Metrics) -> Self {
        Self {
            world,
            settings,
            metrics,
            entries: BTreeMap::new(),
            listing: Listing::default(),
            policies_synced: false,
            deployments: HashMap::new(),
            deployment_listing: Listing::default(),
            deployments_synced: false,
            fallback_due: true,
            fallback_done: None,
            count_due: true,
            counted: None,
            guarded: HashMap::new(),
            called_for: Selector::default(),
        }
    }

    /// Takes in what the watch of policies tells. Returns true when the list has become complete.
    fn policy_event(&mut self, event: Event<StoredPolicy>) -> bool {
        match event {
            Event::Restarted => self.listing.restart(),
            Event::Applied(stored) => {
                self.listing.seen(|| stored.name.clone());
                self.learn(stored);
                // While the first list comes in, a policy of lower rank must not stand in for one not told yet.
                if self.policies_synced {
                    self.publish();
                }
            }
            Event::Deleted(stored) => {
                self.forget(&stored.name);
                self.publish();
            }
            Event::Synced => {
                let seen = self.listing.finish();
                let gone: Vec<String> =
                    self.entries.keys().filter(|name| !seen.contains(*name)).cloned().collect();
                for name in gone {
                    self.forget(&name);
                }
                self.policies_synced = true;
                self.publish();
                return true;
            }
            Event::Failed(_) => {}
        }
        false
    }

    fn deployment_event(&mut self, event: Event<Labelled>) {
        let key = |d: &Labelled| (d.namespace.clone(), d.name.clone());
        match event {
            Event::Restarted => self.deployment_listing.restart(),
            Event::Applied(deployment) => {
                let key = key(&deployment);
                self.deployment_listing.seen(|| key.clone());
                let before = self.deployments.insert(key, deployment.labels.clone());
                self.count_due |= before.as_ref() != Some(&deployment.labels);
            }
            Event::Deleted(deployment) => {
                self.deployments.remove(&key(&deployment));
                self.count_due = true;
            }
            Event::Synced => {
                let seen = self.deployment_listing.finish();
                self.deployments.retain(|key, _| seen.contains(key));
                self.deployments_synced = true;
                self.count_due = true;
            }
            Event::Failed(why) => tracing::warn!(why, "watch of deployments failed"),
        }
    }

    fn learn(&mut self, stored: StoredPolicy) {
        let before = self.entries.remove(&stored.name).filter(|entry| entry.stored.uid == stored.uid);
        let unchanged = before.as_ref().is_some_and(|entry| {
            entry.stored.generation == stored.generation && entry.stored.spec == stored.spec
        });
        let entry = match before {
            Some(entry) if unchanged => Entry { stored, ..entry },
            before => {
                self.fallback_due = true;
                self.count_due = true;
                let compiled = read(&stored.name, stored.generation, &stored.spec);
                let (in_force, error) = match compiled {
                    Ok(in_force) => (Some(in_force), None),
                    Err(error) => {
                        tracing::warn!(policy = stored.name, %error, "policy is not valid, the last valid one goes on");
                        let known = before.as_ref().and_then(|entry| entry.in_force.clone());
                        (known.or_else(|| last_valid(&stored)), Some(error))
                    }
                };
                let fallback = before.map_or(FallbackState::Pending, |entry| entry.fallback);
                Entry { stored, error, in_force, fallback }
            }
        };
        let labels = PolicyLabels { policy: entry.stored.name.clone() };
        self.metrics.policy_valid.get_or_create(&labels).set(entry.error.is_none().into());
        self.entries.insert(entry.stored.name.clone(), entry);
    }

    fn forget(&mut self, name: &str) {
        if self.entries.remove(name).is_some() {
            let labels = PolicyLabels { policy: name.to_owned() };
            self.metrics.policy_valid.remove(&labels);
            self.metrics.policy_guarded.remove(&labels);
            self.metrics.fallback_ready.remove(&labels);
            self.fallback_due = true;
            self.count_due = true;
        }
    }

    fn publish(&self) {
        let in_force = self.entries.values().filter_map(|e| e.in_force.as_ref());
        self.world.set_policies(PolicySet::new(in_force.map(|i| Arc::clone(&i.policy))));
    }

    /// Brings fallbacks and statuses up to date, where that is due.
    async fn settle(&mut self, cluster: &Cluster) {
        if !self.policies_synced {
            return;
        }
        if self.settings.fallback == Fallback::LeaveAlone {
            if self.fallback_done.is_none_or(|done| done.elapsed() >= RESYNC) {
                self.fallback_done = Some(Instant::now());
                if let Err(error) = self.release(cluster).await {
                    tracing::warn!(%error, "the namespaces of the webhook are not known, tried again");
                    self.fallback_done = None;
                }
            }
            return self.settle_stuck(cluster).await;
        }
        let resync = self.fallback_done.is_none_or(|done| done.elapsed() >= RESYNC);
        if self.fallback_due || resync {
            self.fallback_due = false;
            self.fallback_done = Some(Instant::now());
            self.settle_fallbacks(cluster).await;
        }
        let period_over = self.counted.is_none_or(|then| then.elapsed() >= COUNT_PERIOD);
        if self.count_due && self.deployments_synced && period_over {
            self.count_due = false;
            self.counted = Some(Instant::now());
            self.count();
        }
        let now = Timestamp::now();
        for entry in self.entries.values() {
            let guarded = if self.deployments_synced && self.counted.is_some() {
                Some(self.guarded.get(&entry.stored.name).copied().unwrap_or_default())
            } else {
                entry.stored.status.guarded
            };
            let stuck = self.stuck(entry);
            let status = status(entry, guarded, stuck, now);
            if status == entry.stored.status {
                continue;
            }
            if let Err(error) = cluster.write_policy_status(&entry.stored, &status).await {
                // 404 and 409: gone, or another one of this name, which the watch will tell.
                if !matches!(error.code(), Some(404 | 409)) {
                    tracing::warn!(%error, "status not written, tried again");
                }
            }
        }
    }

    /// How many Deployments of the policy are stuck: what this process counts, else what stands there.
    fn stuck(&self, entry: &Entry) -> Option<i64> {
        self.world.stuck(&entry.stored.name).or(entry.stored.status.stuck)
    }

    /// Brings the one field of the statuses up to date that is not the webhook's.
    async fn settle_stuck(&self, cluster: &Cluster) {
        for entry in self.entries.values() {
            let Some(stuck) = self.world.stuck(&entry.stored.name) else { continue };
            if entry.stored.status.stuck == Some(stuck) {
                continue;
            }
            if let Err(error) = cluster.write_policy_stuck(&entry.stored, stuck).await
                && !matches!(error.code(), Some(404 | 409))
            {
                tracing::warn!(%error, "status not written, tried again");
            }
        }
    }

    /// Reads the release, and takes in for which namespaces its webhook is called.
    async fn release(&mut self, cluster: &Cluster) -> Result<Option<Release>, ClusterError> {
        let release = cluster.release(&self.settings.validating_configuration).await?;
        if let Some(release) = &release {
            self.count_due |= release.namespaces != self.called_for;
            self.called_for = release.namespaces.clone();
            self.world.set_called_for(release.namespaces.clone());
        }
        Ok(release)
    }

    async fn settle_fallbacks(&mut self, cluster: &Cluster) {
        let set = self.world.policies();
        let world = self.world.clone();
        let guard = Guard { namespace: world.own_namespace(), user: world.own_user() };
        let release = match self.release(cluster).await {
            Ok(release) => release,
            Err(error) => {
                tracing::warn!(%error, "fallback not looked at, tried again");
                self.fallback_due = true;
                return;
            }
        };
        let mut keep = Vec::new();
        for entry in self.entries.values_mut() {
            let policy = entry.in_force.as_ref().map(|i| Arc::clone(&i.policy));
            entry.fallback = match (policy, &release) {
                _ if self.settings.fallback == Fallback::Remove => FallbackState::Disabled,
                (Some(policy), _) if !fallback::wanted(&policy) => FallbackState::NotNeeded,
                (None, _) => FallbackState::NotNeeded,
                (_, None) => FallbackState::NotInstalled,
                (Some(policy), Some(release)) => {
                    let owner = Owner {
                        api_version: format!("{GROUP}/v1alpha1"),
                        kind: "RolloutPolicy".to_owned(),
                        name: entry.stored.name.clone(),
                        uid: entry.stored.uid.clone(),
                    };
                    let generated = fallback::generate(&policy, &set, &owner, release, &guard);
                    keep.push(generated.name.clone());
                    match cluster.apply_fallback(&generated).await {
                        Ok(()) => FallbackState::InPlace { narrowed_by: generated.narrowed_by },
                        Err(error) => {
                            tracing::warn!(%error, "fallback not in place, tried again");
                            self.fallback_due = true;
                            FallbackState::Failed(error.to_string())
                        }
                    }
                }
            };
            let labels = PolicyLabels { policy: entry.stored.name.clone() };
            let ready = matches!(entry.fallback, FallbackState::InPlace { .. });
            self.metrics.fallback_ready.get_or_create(&labels).set(ready.into());
        }
        if let Err(error) = cluster.prune_fallbacks(&self.settings.validating_configuration, &keep).await {
            tracing::warn!(%error, "fallbacks that are not wanted may be left, tried again");
            self.fallback_due = true;
        }
    }

    fn count(&mut self) {
        self.guarded.clear();
        for ((namespace, _), labels) in &self.deployments {
            if self.world.is_called_for(namespace)
                && let Some(policy) = self.world.effective(namespace, || labels.clone())
            {
                *self.guarded.entry(policy.name.clone()).or_default() += 1;
            }
        }
        for name in self.entries.keys() {
            let labels = PolicyLabels { policy: name.clone() };
            let guarded = self.guarded.get(name).copied().unwrap_or_default();
            self.metrics.policy_guarded.get_or_create(&labels).set(guarded);
        }
    }
}

fn read(name: &str, generation: i64, spec: &Value) -> Result<InForce, PolicyError> {
    let parsed: RolloutPolicySpec = if spec.is_null() {
        RolloutPolicySpec::default()
    } else {
        serde_json::from_value(spec.clone()).map_err(|e| PolicyError::Unreadable(e.to_string()))?
    };
    Ok(InForce { policy: Arc::new(compile(name, generation, &parsed)?), spec: spec.clone() })
}

/// What another replica, or this one before a restart, had in force.
fn last_valid(stored: &StoredPolicy) -> Option<InForce> {
    let LastValid { generation, spec } = stored.status.last_valid.as_ref()?;
    read(&stored.name, *generation, spec).ok()
}

fn status(entry: &Entry, guarded: Option<i64>, stuck: Option<i64>, now: Timestamp) -> RolloutPolicyStatus {
    let generation = entry.stored.generation;
    let condition = |kind: &str, good: bool, reason: &str, message: String| {
        let status = if good { "True" } else { "False" };
        let before = entry.stored.status.conditions.iter().find(|c| c.type_ == kind && c.status == status);
        Condition {
            type_: kind.to_owned(),
            status: status.to_owned(),
            reason: reason.to_owned(),
            message,
            observed_generation: Some(generation),
            last_transition_time: before.map_or(Time(whole_second(now)), |c| c.last_transition_time.clone()),
        }
    };
    let ready = match (&entry.error, &entry.in_force) {
        (None, _) => condition("Ready", true, "Valid", "the policy is in force".to_owned()),
        (Some(error), Some(in_force)) => {
            let stays = in_force.policy.generation;
            condition("Ready", false, error.reason(), format!("{error}; generation {stays} stays in force"))
        }
        (Some(error), None) => condition(
            "Ready",
            false,
            error.reason(),
            format!("{error}; no valid spec is known, so the policy has no effect"),
        ),
    };
    let mut conditions = vec![ready];
    let fallback = match &entry.fallback {
        FallbackState::Pending => None,
        FallbackState::Disabled => Some((false, "Disabled", "switched off at installation".to_owned())),
        FallbackState::NotNeeded => {
            Some((false, "NotNeeded", "the policy refuses nothing over an unobserved generation".to_owned()))
        }
        FallbackState::NotInstalled => {
            Some((false, "NotInstalled", "the webhook configuration is not there".to_owned()))
        }
        FallbackState::Failed(why) => Some((false, "ApplyFailed", why.clone())),
        FallbackState::InPlace { narrowed_by } if narrowed_by.is_empty() => Some((
            true,
            "InPlace",
            "refuses updates over an unobserved generation while no webhook answers".to_owned(),
        )),
        FallbackState::InPlace { narrowed_by } => Some((
            true,
            "Narrowed",
            format!(
                "in place, without the Deployments that policies of higher rank take: {}",
                narrowed_by.join(", ")
            ),
        )),
    };
    conditions
        .extend(fallback.map(|(good, reason, message)| condition("FallbackReady", good, reason, message)));
    RolloutPolicyStatus {
        observed_generation: Some(generation),
        guarded,
        stuck,
        conditions,
        last_valid: match (&entry.error, &entry.in_force) {
            (Some(_), Some(in_force)) => {
                Some(LastValid { generation: in_force.policy.generation, spec: in_force.spec.clone() })
            }
            _ => None,
        },
    }
}

/// The API server keeps whole seconds; more would look like a difference for ever.
fn whole_second(now: Timestamp) -> Timestamp {
    Timestamp::from_second(now.as_second()).unwrap_or(now)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn stored(generation: i64, spec: Value) -> StoredPolicy {
        StoredPolicy {
            name: "default".into(),
            uid: "u".into(),
            generation,
            spec,
            status: RolloutPolicyStatus::default(),
        }
    }

    fn keeper() -> Keeper {
        let settings =
            Settings { fallback: Fallback::Keep, validating_configuration: "rollout-guard".into() };
        Keeper::new(World::new("rollout-guard"), settings, Metrics::default())
    }

    fn bad() -> Value {
        json!({"freezes": [{"name": "f", "schedule": "whenever", "duration": "1h"}]})
    }

    fn mode(keeper: &Keeper) -> Option<crate::api::policy::Mode> {
        keeper.world.effective("shop", Labels::new).map(|policy| policy.mode)
    }

    #[test]
    fn an_invalid_policy_leaves_the_last_valid_one_in_force_and_says_so() {
        let mut keeper = keeper();
        keeper.policy_event(Event::Restarted);
        keeper.policy_event(Event::Applied(stored(1, json!({"mode": "Warn"}))));
        assert!(keeper.policy_event(Event::Synced));
        keeper.policy_event(Event::Applied(stored(2, bad())));
        assert_eq!(mode(&keeper), Some(crate::api::policy::Mode::Warn));
        let entry = &keeper.entries["default"];
        let status = status(entry, Some(0), None, Timestamp::UNIX_EPOCH);
        assert_eq!(
            (status.conditions[0].status.as_str(), status.conditions[0].reason.as_str()),
            ("False", "InvalidSchedule")
        );
        assert!(status.conditions[0].message.contains("generation 1 stays in force"));
        assert_eq!(status.last_valid.as_ref().map(|l| l.generation), Some(1));

        // A replica that starts now knows it from the status.
        let mut fresh = self::keeper();
        fresh.policy_event(Event::Restarted);
        fresh.policy_event(Event::Applied(StoredPolicy { status, ..stored(2, bad()) }));
        fresh.policy_event(Event::Synced);
        assert_eq!(mode(&fresh), Some(crate::api::policy::Mode::Warn));
    }

    #[test]
    fn a_policy_that_cannot_even_be_read_does_not_end_the_watch() {
        let mut keeper = keeper();
        keeper.policy_event(Event::Restarted);
        keeper.policy_event(Event::Applied(stored(1, json!({"mode": "Sometimes"}))));
        keeper.policy_event(Event::Synced);
        assert_eq!(mode(&keeper), None);
        let status = status(&keeper.entries["default"], None, None, Timestamp::UNIX_EPOCH);
        assert_eq!(status.conditions[0].reason, "InvalidSpec");
    }

    #[test]
    fn a_list_that_starts_again_drops_what_is_gone() {
        let mut keeper = keeper();
        keeper.policy_event(Event::Restarted);
        keeper.policy_event(Event::Applied(stored(1, json!({}))));
        keeper.policy_event(Event::Synced);
        keeper.policy_event(Event::Restarted);
        assert!(mode(&keeper).is_some(), "the policies go on while the list comes in");
        keeper.policy_event(Event::Synced);
        assert_eq!(mode(&keeper), None);
    }

    #[test]
    fn a_policy_of_the_same_name_made_anew_does_not_inherit() {
        let mut keeper = keeper();
        keeper.policy_event(Event::Restarted);
        keeper.policy_event(Event::Applied(stored(1, json!({}))));
        keeper.policy_event(Event::Synced);
        keeper.policy_event(Event::Applied(StoredPolicy { uid: "other".into(), ..stored(1, bad()) }));
        assert_eq!(mode(&keeper), None);
    }

    #[test]
    fn guarded_deployments_are_counted_by_the_policy_that_applies() {
        let mut keeper = keeper();
        keeper.policy_event(Event::Restarted);
        keeper.policy_event(Event::Applied(stored(1, json!({}))));
        keeper.policy_event(Event::Synced);
        keeper.deployment_event(Event::Restarted);
        for (namespace, name) in [("shop", "web"), ("shop", "api"), ("kube-system", "coredns")] {
            keeper.deployment_event(Event::Applied(Labelled {
                namespace: namespace.into(),
                name: name.into(),
                labels: Labels::new(),
            }));
        }
        keeper.deployment_event(Event::Synced);
        keeper.count();
        assert_eq!(keeper.guarded.get("default"), Some(&2));
    }

    #[test]
    fn how_many_are_stuck_is_told_by_whoever_leads_and_left_alone_by_the_others() {
        let mut keeper = keeper();
        let told = RolloutPolicyStatus { stuck: Some(4), ..RolloutPolicyStatus::default() };
        keeper.policy_event(Event::Applied(StoredPolicy { status: told, ..stored(1, json!({})) }));
        assert_eq!(keeper.stuck(&keeper.entries["default"]), Some(4));
        keeper.world.set_stuck(Some(HashMap::from([("default".to_owned(), 2)])));
        assert_eq!(keeper.stuck(&keeper.entries["default"]), Some(2));
        keeper.world.set_stuck(Some(HashMap::new()));
        assert_eq!(keeper.stuck(&keeper.entries["default"]), Some(0));
        keeper.world.set_stuck(None);
        assert_eq!(keeper.stuck(&keeper.entries["default"]), Some(4));
    }

    #[test]
    fn a_status_that_says_the_same_keeps_its_transition_time() {
        let mut keeper = keeper();
        keeper.policy_event(Event::Restarted);
        keeper.policy_event(Event::Applied(stored(1, json!({}))));
        let first = status(&keeper.entries["default"], None, None, Timestamp::UNIX_EPOCH);
        let again = StoredPolicy { status: first.clone(), ..stored(1, json!({})) };
        keeper.policy_event(Event::Applied(again));
        assert_eq!(status(&keeper.entries["default"], None, None, Timestamp::now()), first);
    }
}
