//! Gathers what the page shows, for as long as somebody looks.
//!
//! Every replica shows the same: the records tell what is stuck and what was rolled back, and the Lease who leads and
//! how the breaker is. The records are watched anew for the page, since nothing of what it shows is held otherwise, and
//! only while it is wanted.

mod rows;
mod shelf;

use std::{collections::BTreeMap, time::Duration};

use futures::StreamExt;
use jiff::Timestamp;
use serde::Serialize;
use tokio::{
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval, sleep_until},
};

use self::{
    rows::{PolicyRow, RollbackRow, Trouble, TroubleRow, is_believed},
    shelf::Shelf,
};
use super::{World, listing::Listing};
use crate::{
    admin::page::Page,
    cluster::{
        Cluster, ClusterError,
        leases::LeaseStore,
        policies::{Event, StoredPolicy},
        records::StoredRecord,
    },
    core::{
        lease::{BREAKER_CLOSED, Freshness, Record, Renewal, pod_of},
        message::plain,
    },
    shutdown::Shutdown,
    tls::ServedCertificate,
};

/// The most rows: of what is stuck, of what is failing, of rollbacks, and of policies.
const STUCK: usize = 500;
const FAILING: usize = 100;
const ROLLBACKS: usize = 200;
const POLICIES: usize = 100;

/// So long after the last one has gone away it is still kept up to date: a page that is loaded again is there at once.
const GRACE: Duration = Duration::from_secs(10);

/// Between two that are shown, at the least, and once more for each of so many bytes.
const PAUSE: Duration = Duration::from_millis(500);
const BYTES_PER_PAUSE: usize = 200_000;

/// It is shown again although nothing has changed, so that it is known how old it is: a freeze opens by itself.
const REFRESH: Duration = Duration::from_secs(10);

/// Between two looks at the Lease.
const LEASE_PERIOD: Duration = Duration::from_secs(2);

/// A Lease that did not change for so long is nobody's: it is renewed every two seconds, and taken after fifteen.
const LEASE_STALE: Duration = Duration::from_secs(20);

/// Between two lists for what there is room for again.
const RELIST: Duration = Duration::from_secs(30);

/// The most characters of what is wrong.
const PROBLEM: usize = 300;

/// Whose page it is.
#[derive(Clone, Debug, Default)]
pub struct Replica {
    /// The namespace of the Lease: the guard's own.
    pub namespace: String,
    /// The Lease, and what this process is called in it; none where it does not watch.
    pub lease: Option<(String, String)>,
    /// What it serves admission with, where it does.
    pub certificate: Option<ServedCertificate>,
}

/// Keeps `page` up to date until the shutdown, while somebody looks.
pub async fn keep(cluster: Cluster, world: World, replica: Replica, page: Page, shutdown: Shutdown) {
    loop {
        tokio::select! {
            () = page.wanted() => {}
            () = shutdown.started() => return,
        }
        let gatherer = Gatherer::new(&cluster, world.clone(), replica.clone());
        tokio::select! {
            () = gatherer.run(&page) => {}
            () = page.unwanted(GRACE) => {}
            () = shutdown.started() => return,
        }
        page.clear();
    }
}

/// What the records tell.
struct Told {
    stuck: Shelf<Name, TroubleRow>,
    failing: Shelf<Name, TroubleRow>,
    rollbacks: Shelf<Name, RollbackRow>,
}

/// A record by namespace and name.
type Name = (String, String);

impl Told {
    fn new() -> Self {
        Self { stuck: Shelf::new(STUCK), failing: Shelf::new(FAILING), rollbacks: Shelf::new(ROLLBACKS) }
    }

    /// Takes in a record; none: it is gone. Returns whether that changes what is to be seen.
    fn learn(&mut self, name: &Name, record: Option<&StoredRecord>) -> bool {
        let record = record.filter(|record| is_believed(record));
        let trouble = record.and_then(TroubleRow::of);
        let (failing, stuck) = match trouble {
            Some(row) if row.1.state == Trouble::Failing => (Some(row), None),
            row => (None, row),
        };
        let changed = [
            self.stuck.put(name, stuck),
            self.failing.put(name, failing),
            self.rollbacks.put(name, record.and_then(RollbackRow::of)),
        ];
        changed.contains(&true)
    }

    fn has_room(&self) -> bool {
        self.stuck.has_room() || self.failing.has_room() || self.rollbacks.has_room()
    }
}

struct Gatherer<'a> {
    cluster: &'a Cluster,
    world: World,
    replica: Replica,
    told: Told,
    /// What the list that comes in tells; it takes the place of the one before when it is complete.
    listed: Option<Told>,
    synced: bool,
    policies: BTreeMap<String, StoredPolicy>,
    policy_listing: Listing<String>,
    policies_synced: bool,
    lease: LeaseSeen,
    /// What does not work, by what it is about.
    problems: BTreeMap<&'static str, String>,
    dirty: bool,
}

impl<'a> Gatherer<'a> {
    fn new(cluster: &'a Cluster, world: World, replica: Replica) -> Self {
        Self {
            cluster,
            world,
            replica,
            told: Told::new(),
            listed: None,
            synced: false,
            policies: BTreeMap::new(),
            policy_listing: Listing::default(),
            policies_synced: false,
            lease: LeaseSeen::new(),
            problems: BTreeMap::new(),
            dirty: true,
        }
    }

    /// Gathers and shows for ever.
    async fn run(mut self, page: &Page) {
        let mut records = self.cluster.watch_records();
        let mut policies = self.cluster.watch_policies();
        let mut looks = JoinSet::new();
        let mut look = interval(LEASE_PERIOD);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut shown, mut listed) = (Instant::now(), Instant::now());
        let mut next = shown;
        loop {
            let due = if self.dirty { next } else { shown + REFRESH };
            tokio::select! {
                Some(event) = records.next() => self.record(event),
                Some(event) = policies.next() => self.policy(event),
                Some(Ok(answer)) = looks.join_next() => self.lease(answer),
                _ = look.tick(), if looks.is_empty() => self.look_at_lease(&mut looks),
                () = sleep_until(due) => {
                    let state = self.state(Timestamp::now());
                    let pauses = u32::try_from(state.len() / BYTES_PER_PAUSE).unwrap_or(u32::MAX);
                    page.show(state, self.is_complete());
                    shown = Instant::now();
                    next = shown + PAUSE.saturating_mul(pauses.saturating_add(1));
                    self.dirty = false;
                }
            }
            if self.told.has_room() && self.listed.is_none() && listed.elapsed() >= RELIST {
                listed = Instant::now();
                records = self.cluster.watch_records();
            }
        }
    }

    fn is_complete(&self) -> bool {
        self.synced && self.policies_synced && self.lease.looked
    }

    fn record(&mut self, event: Event<StoredRecord>) {
        match event {
            Event::Restarted => self.listed = Some(Told::new()),
            Event::Applied(record) => {
                let name = (record.namespace.clone(), record.name.clone());
                let into = self.listed.as_mut().unwrap_or(&mut self.told);
                let changed = into.learn(&name, Some(&record));
                // What a list tells is seen when it is complete.
                self.dirty |= changed && self.listed.is_none();
                self.well("records");
            }
            Event::Deleted(record) => {
                self.dirty |= self.told.learn(&(record.namespace, record.name), None);
            }
            Event::Synced => {
                if let Some(listed) = self.listed.take() {
                    self.told = listed;
                }
                self.synced = true;
                self.dirty = true;
                self.well("records");
            }
            Event::Failed(why) => self.problem("records", format!("the records cannot be read: {why}")),
        }
    }

    fn policy(&mut self, event: Event<StoredPolicy>) {
        match event {
            Event::Restarted => self.policy_listing.restart(),
            Event::Applied(policy) => {
                self.policy_listing.seen(|| policy.name.clone());
                self.policies.insert(policy.name.clone(), policy);
                self.dirty = true;
                self.well("policies");
            }
            Event::Deleted(policy) => self.dirty |= self.policies.remove(&policy.name).is_some(),
            Event::Synced => {
                let seen = self.policy_listing.finish();
                self.policies.retain(|name, _| seen.contains(name));
                self.policies_synced = true;
                self.dirty = true;
                self.well("policies");
            }
            Event::Failed(why) => self.problem("policies", format!("the policies cannot be read: {why}")),
        }
    }

    fn look_at_lease(&mut self, looks: &mut JoinSet<Result<Option<Record>, ClusterError>>) {
        let Some((lease, _)) = &self.replica.lease else {
            self.dirty |= !std::mem::replace(&mut self.lease.looked, true);
            return;
        };
        let lease = self.cluster.lease(&self.replica.namespace, lease);
        looks.spawn(async move { lease.read().await });
    }

    fn lease(&mut self, answer: Result<Option<Record>, ClusterError>) {
        match answer {
            Ok(record) => {
                self.dirty |= self.lease.saw(record);
                self.well("lease");
            }
            Err(error) => {
                self.lease.looked = true;
                self.problem("lease", error.to_string());
            }
        }
    }

    fn problem(&mut self, about: &'static str, why: String) {
        let why = plain(&why, PROBLEM);
        self.dirty |= self.problems.get(about) != Some(&why);
        self.problems.insert(about, why);
    }

    fn well(&mut self, about: &'static str) {
        self.dirty |= self.problems.remove(about).is_some();
    }

    /// Returns what is shown, as JSON.
    fn state(&self, now: Timestamp) -> String {
        let in_force = self.world.policies();
        let policies: Vec<PolicyRow> = self
            .policies
            .values()
            .take(POLICIES)
            .map(|stored| {
                let in_force = in_force.ranked().iter().find(|policy| policy.name == stored.name);
                PolicyRow::of(stored, in_force.map(AsRef::as_ref), now)
            })
            .collect();
        let state = State {
            at: now,
            listing: !self.is_complete(),
            problems: self.problems.values().collect(),
            stuck: Part::of(&self.told.stuck),
            failing: Part::of(&self.told.failing),
            rollbacks: Part::of(&self.told.rollbacks),
            policies: Part { count: self.policies.len(), rows: policies.iter().collect() },
            guard: self.guard(),
        };
        // It holds nothing that could not be written.
        serde_json::to_string(&state).unwrap_or_default()
    }

    fn guard(&self) -> GuardState {
        let me = self.replica.lease.as_ref().map(|(_, identity)| identity.as_str());
        let ends = self.replica.certificate.as_ref().and_then(ServedCertificate::current);
        let lease = self.lease.record.as_ref();
        GuardState {
            version: env!("CARGO_PKG_VERSION"),
            replica: me.map(|me| plain(pod_of(me), PROBLEM)),
            watches: me.is_some(),
            leader: self.lease.leader().map(|holder| plain(pod_of(holder), PROBLEM)),
            leads: me.is_some() && self.lease.leader() == me,
            breaker: self.lease.breaker(),
            stopped: lease.and_then(|lease| lease.stop.clone()),
            certificate_ends: ends.and_then(|pair| Timestamp::from_second(pair.validity().1).ok()),
        }
    }
}

/// The Lease as it is looked at.
struct LeaseSeen {
    origin: Instant,
    looked: bool,
    record: Option<Record>,
    renewed: Freshness<String>,
}

impl LeaseSeen {
    fn new() -> Self {
        Self { origin: Instant::now(), looked: false, record: None, renewed: Freshness::new(LEASE_STALE) }
    }

    /// Takes in what was read. Returns whether that changes what is to be seen.
    fn saw(&mut self, record: Option<Record>) -> bool {
        let seen = |lease: &Self| {
            let stop = lease.record.as_ref().and_then(|record| record.stop.clone());
            (lease.looked, lease.leader().map(str::to_owned), lease.breaker(), stop)
        };
        let before = seen(self);
        let version = record.as_ref().map(|record| record.resource_version.clone());
        self.renewed.seen(version.unwrap_or_default(), self.origin.elapsed());
        self.record = record;
        self.looked = true;
        seen(self) != before
    }

    /// Who holds it and renews it.
    fn leader(&self) -> Option<&str> {
        let held = self.record.as_ref().filter(|record| !record.holder.is_empty())?;
        (self.renewed.renewal() != Renewal::Stale).then_some(held.holder.as_str())
    }

    /// What the leader tells of the breaker; what one told that leads no more counts for nothing.
    fn breaker(&self) -> BreakerState {
        let told = self.leader().and(self.record.as_ref()).and_then(|record| record.breaker.clone());
        match told {
            None => BreakerState::Unknown,
            Some(told) if told == BREAKER_CLOSED => BreakerState::Closed,
            Some(why) => BreakerState::Open { why },
        }
    }
}

/// What the page shows: the JSON of `/ui/state.json`.
#[derive(Serialize)]
struct State<'a> {
    /// When it was gathered.
    at: Timestamp,
    /// The lists are not complete yet.
    listing: bool,
    /// What does not work.
    problems: Vec<&'a String>,
    stuck: Part<'a, TroubleRow>,
    failing: Part<'a, TroubleRow>,
    rollbacks: Part<'a, RollbackRow>,
    policies: Part<'a, PolicyRow>,
    guard: GuardState,
}

/// The rows that are shown, and how many there are.
#[derive(Serialize)]
struct Part<'a, R> {
    count: usize,
    rows: Vec<&'a R>,
}

impl<'a, R: PartialEq> Part<'a, R> {
    fn of(shelf: &'a Shelf<Name, R>) -> Self {
        Self { count: shelf.count(), rows: shelf.rows().collect() }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct GuardState {
    version: &'static str,
    /// The pod that answers.
    replica: Option<String>,
    /// Whether it stands for election at all.
    watches: bool,
    leader: Option<String>,
    /// Whether the pod that answers leads.
    leads: bool,
    breaker: BreakerState,
    /// Why the kill switch is pulled, where it is.
    stopped: Option<String>,
    certificate_ends: Option<Timestamp>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase", tag = "state")]
enum BreakerState {
    Unknown,
    Closed,
    Open { why: String },
}
