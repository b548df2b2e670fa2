//! Keeps the lead, or follows: the adapter of `core::lease`.
//!
//! One task per replica looks at the Lease every two seconds and does what [`Candidate::step`] says. Everybody
//! else asks a [`Leadership`], which answers from memory: the claim's end is compared with the clock at that
//! moment, so a process that was paused, or whose election hangs, does not lead when it wakes up.

use std::{
    future::Future,
    time::{Duration, SystemTime},
};

use jiff::Timestamp;
use tokio::{
    sync::watch,
    time::{Instant, sleep_until, timeout},
};

use crate::{
    cluster::{ClusterError, leases::LeaseStore},
    core::lease::{Candidate, Step, Terms},
    shutdown::Shutdown,
};

/// The least pause after a look that took long.
const BREATH: Duration = Duration::from_millis(500);

/// A conflict is looked at again at once, so often in a row.
const ATTEMPTS: usize = 3;

/// The shutdown waits no longer for the Lease to be released. Others take over without it, only later.
const RELEASE_LIMIT: Duration = Duration::from_secs(5);

/// Who stands for election, and by which times. The Lease itself is the store's.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The replica's identity, its own alone: the name of its pod and something that differs from start to start.
    pub identity: String,
    /// The times.
    pub terms: Terms,
}

/// What the election tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told {
    /// This replica leads from now on.
    Leads,
    /// It does not lead any more.
    Ended,
    /// Somebody else holds the Lease, or nobody (empty).
    Holder(String),
    /// The kill switch was set, with its reason, or taken away.
    Stop(Option<String>),
    /// A look at the Lease failed; it is tried again.
    Failed(String),
}

/// Stands for election until the shutdown starts, and then releases the Lease. Returns the handle that says who
/// leads, and the future that does the work, to be spawned.
///
/// `shutdown` must start only when nothing of this replica writes any more: who is next leads at once. `told`
/// is called for everything that counts or changes, and must not block.
pub fn elect<S: LeaseStore>(
    store: S,
    settings: Settings,
    shutdown: Shutdown,
    told: impl Fn(&Told) + Send + Sync,
) -> (Leadership, impl Future<Output = ()> + Send) {
    let (sender, receiver) = watch::channel(State::default());
    let origin = Instant::now();
    let work = async move {
        let published = Published { sender, told };
        let candidate = Candidate::new(settings.identity, settings.terms);
        let mut election = Election { store, candidate, origin, published: &published, complaint: None };
        tokio::select! {
            () = shutdown.started() => {}
            () = election.keep_looking() => {}
            () = published.expire() => {}
        }
        if timeout(RELEASE_LIMIT, election.release()).await.is_err() {
            tracing::warn!("the Lease could not be released in time, it expires by itself");
        }
    };
    (Leadership(receiver), work)
}

/// One replica's part in the election.
struct Election<'a, S, F: Fn(&Told)> {
    store: S,
    candidate: Candidate,
    /// Where the candidate's time begins.
    origin: Instant,
    published: &'a Published<F>,
    complaint: Option<String>,
}

impl<S: LeaseStore, F: Fn(&Told)> Election<'_, S, F> {
    /// Looks for ever.
    async fn keep_looking(&mut self) {
        loop {
            let begun = Instant::now();
            let takeover = match self.look().await {
                Ok(takeover) => {
                    if self.complaint.take().is_some() {
                        tracing::info!("the Lease can be read and written again");
                    }
                    takeover
                }
                Err(error) => {
                    self.complain(&error);
                    None
                }
            };
            let next = (begun + self.candidate.pause()).max(Instant::now() + BREATH);
            sleep_until(takeover.map_or(next, |takeover| next.min(takeover))).await;
        }
    }

    /// Looks once and does what is to be done. Returns when the Lease may be taken over, where somebody else
    /// holds it.
    async fn look(&mut self) -> Result<Option<Instant>, ClusterError> {
        for _ in 0..ATTEMPTS {
            let read = self.store.read().await?;
            let step = self.candidate.step(read, self.now(), Timestamp::now());
            self.publish_seen();
            // Taken before the write is sent: the claim counts from here.
            let (sent, wall) = (self.now(), SystemTime::now());
            let written = match step {
                Step::Follow { until } => return Ok(Some(self.origin + until)),
                Step::Create(record) => self.store.create(record).await?,
                Step::Acquire(record) | Step::Renew(record) => self.store.replace(record).await?,
            };
            if let Some(record) = written {
                self.candidate.stored(record, sent, self.now());
                self.publish_seen();
                if let Some(until) = self.candidate.leads_until().filter(|_| self.candidate.leads(self.now()))
                {
                    let wall_until = wall + until.saturating_sub(sent);
                    self.published.renewed(Claim { until: self.origin + until, wall_until });
                }
                break;
            }
        }
        Ok(None)
    }

    /// Ends the claim, and then lets the next one take over at once.
    async fn release(&mut self) {
        self.published.update(|state| state.claim = None);
        for _ in 0..ATTEMPTS {
            // What became of a write that was under way is not known.
            match self.store.read().await {
                Ok(read) => self.candidate.observe(read, self.now()),
                Err(error) => return self.complain(&error),
            }
            let Some(record) = self.candidate.release(self.now(), Timestamp::now()) else { return };
            match self.store.replace(record).await {
                Ok(Some(_)) => return tracing::info!("the Lease is released"),
                Ok(None) => {}
                Err(error) => return self.complain(&error),
            }
        }
    }

    fn now(&self) -> Duration {
        self.origin.elapsed()
    }

    fn publish_seen(&self) {
        let claims = self.candidate.leads_until().is_some();
        let seen = self.candidate.seen();
        self.published.update(|state| {
            if !claims {
                state.claim = None;
            }
            state.holder = seen.map(|record| record.holder.clone()).unwrap_or_default();
            state.stop = seen.and_then(|record| record.stop.clone());
        });
    }

    fn complain(&mut self, error: &ClusterError) {
        let text = error.to_string();
        if self.complaint.as_ref() != Some(&text) {
            tracing::warn!(error = %text, "the Lease could not be read or written, it is tried again");
            self.complaint = Some(text.clone());
        }
        (self.published.told)(&Told::Failed(text));
    }
}

/// What every [`Leadership`] sees.
struct Published<F: Fn(&Told)> {
    sender: watch::Sender<State>,
    told: F,
}

impl<F: Fn(&Told)> Published<F> {
    /// Ends the claim when its time is over, for ever: the election itself may be waiting for an answer.
    async fn expire(&self) {
        let mut receiver = self.sender.subscribe();
        loop {
            let claim = receiver.borrow_and_update().claim;
            match claim {
                Some(claim) => {
                    sleep_until(claim.until).await;
                    self.update(|state| {
                        if state.claim.is_some_and(|claim| claim.until <= Instant::now()) {
                            state.claim = None;
                        }
                    });
                }
                None => {
                    let _ = receiver.changed().await;
                }
            }
        }
    }

    fn renewed(&self, claim: Claim) {
        self.update(|state| {
            // Between two claims that do not touch, somebody else may have led.
            if state.claim.is_none_or(|before| before.until <= Instant::now()) {
                state.terms += 1;
            }
            state.claim = Some(claim);
        });
    }

    fn update(&self, change: impl FnOnce(&mut State)) {
        let mut news = Vec::new();
        self.sender.send_if_modified(|state| {
            let before = state.clone();
            change(state);
            let began = before.terms != state.terms;
            if before.claim.is_some() && (began || state.claim.is_none()) {
                news.push(Told::Ended);
            }
            if began {
                news.push(Told::Leads);
            }
            if before.holder != state.holder {
                news.push(Told::Holder(state.holder.clone()));
            }
            if before.stop != state.stop {
                news.push(Told::Stop(state.stop.clone()));
            }
            !news.is_empty()
        });
        for told in &news {
            match told {
                Told::Leads => tracing::info!("this replica leads"),
                Told::Ended => tracing::info!("this replica does not lead any more"),
                Told::Holder(holder) => tracing::debug!(holder, "the Lease has another holder"),
                Told::Stop(Some(reason)) => tracing::warn!(reason, "the guard is stopped by its Lease"),
                Told::Stop(None) => tracing::warn!("the guard is not stopped any more"),
                Told::Failed(_) => {}
            }
            (self.told)(told);
        }
    }
}

/// Whoever holds a [`Leadership`] learns of it when the election ends, however it does.
impl<F: Fn(&Told)> Drop for Published<F> {
    fn drop(&mut self) {
        self.update(|state| state.claim = None);
    }
}

/// Says whether this replica leads. Cheap to clone and to ask.
#[derive(Clone, Debug)]
pub struct Leadership(watch::Receiver<State>);

#[derive(Clone, Debug, Default)]
struct State {
    claim: Option<Claim>,
    /// How often this replica began to lead.
    terms: u64,
    holder: String,
    stop: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Claim {
    until: Instant,
    /// The same by the wall clock. It can only shorten the claim: a machine that was suspended has a monotonic
    /// clock that stood still.
    wall_until: SystemTime,
}

impl Claim {
    fn holds(&self) -> bool {
        Instant::now() < self.until && SystemTime::now() < self.wall_until
    }
}

impl Leadership {
    /// Says whether this replica leads right now. Ask right before each write.
    pub fn leads(&self) -> bool {
        self.0.borrow().claim.is_some_and(|claim| claim.holds())
    }

    /// Returns for how long this replica leads if nothing is heard any more; zero where it does not lead. A
    /// write that gets no more time than this ends before another can lead.
    pub fn remaining(&self) -> Duration {
        let claim = self.0.borrow().claim.filter(Claim::holds);
        claim.map_or(Duration::ZERO, |claim| claim.until.saturating_duration_since(Instant::now()))
    }

    /// Returns the reason for which the whole guard is stopped, where it is, as of the last look that
    /// succeeded. Every replica sees it within its next look, leader or not.
    pub fn stopped(&self) -> Option<String> {
        self.0.borrow().stop.clone()
    }

    /// Says whether this replica leads and the guard is not stopped.
    pub fn may_write(&self) -> bool {
        let state = self.0.borrow();
        state.stop.is_none() && state.claim.is_some_and(|claim| claim.holds())
    }

    /// Returns who holds the Lease as of the last look; empty where nobody does or it is not known.
    pub fn holder(&self) -> String {
        self.0.borrow().holder.clone()
    }

    /// Completes when this replica has begun to lead, and returns the number of its term, which differs each
    /// time it begins. Never completes when the election has ended.
    pub async fn begins(&self) -> u64 {
        let mut receiver = self.0.clone();
        let term = receiver.wait_for(|state| state.claim.is_some()).await.map(|state| state.terms);
        match term {
            Ok(term) => term,
            Err(_) => std::future::pending().await,
        }
    }

    /// Completes when `term` is over, also when the election itself has ended.
    pub async fn ends(&self, term: u64) {
        let mut receiver = self.0.clone();
        let _ = receiver.wait_for(|state| state.terms != term || state.claim.is_none()).await;
    }

    /// Completes when this replica began or ceased to lead, the holder is another one, or the kill switch was
    /// turned since this handle was made or last looked at by this. Returns `false` when the election has
    /// ended.
    pub async fn changed(&mut self) -> bool {
        self.0.changed().await.is_ok()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use futures::{FutureExt, future::BoxFuture};
    use tokio::{task::JoinHandle, time::sleep};

    use super::*;
    use crate::{
        core::lease::{Record, STOP_ANNOTATION},
        shutdown::Trigger,
    };

    /// One Lease in memory. Every call takes 10 ms.
    #[derive(Clone, Default)]
    struct Memory(Arc<Mutex<Inner>>);

    #[derive(Default)]
    struct Inner {
        lease: Option<Record>,
        version: u64,
        way: Way,
    }

    /// How the way to the store is for whoever is named so.
    #[derive(Clone, Default, PartialEq)]
    enum Way {
        #[default]
        Well,
        /// Answers come never, and nothing arrives.
        Hangs(&'static str),
        /// Writes are stored, and answered by an error.
        AnswersLost,
        /// Answers are errors.
        Refuses,
    }

    /// The store as one replica has it.
    struct At(Memory, &'static str);

    impl Inner {
        fn put(&mut self, record: Record) -> Option<Record> {
            self.version += 1;
            self.lease = Some(Record { resource_version: self.version.to_string(), ..record });
            self.lease.clone()
        }
    }

    impl Memory {
        fn set(&self, way: Way) {
            self.0.lock().expect("no panic").way = way;
        }

        fn annotate(&self, stop: Option<&str>) {
            let mut inner = self.0.lock().expect("no panic");
            let lease = inner.lease.clone().expect("there");
            inner.put(Record { stop: stop.map(str::to_owned), ..lease });
        }

        fn lease(&self) -> Option<Record> {
            self.0.lock().expect("no panic").lease.clone()
        }
    }

    impl At {
        async fn call(
            &self,
            write: bool,
            serve: impl FnOnce(&mut Inner) -> Option<Record>,
        ) -> Result<Option<Record>, ClusterError> {
            sleep(Duration::from_millis(10)).await;
            let way = self.0.0.lock().expect("no panic").way.clone();
            let failed = || ClusterError::Timeout { what: "call".to_owned(), seconds: 4 };
            match way {
                Way::Hangs(who) if who == self.1 => std::future::pending().await,
                Way::Refuses => Err(failed()),
                _ => {
                    let answer = serve(&mut self.0.0.lock().expect("no panic"));
                    if write && way == Way::AnswersLost { Err(failed()) } else { Ok(answer) }
                }
            }
        }
    }

    impl LeaseStore for At {
        fn read(&self) -> BoxFuture<'_, Result<Option<Record>, ClusterError>> {
            self.call(false, |inner| inner.lease.clone()).boxed()
        }

        fn create(&self, record: Record) -> BoxFuture<'_, Result<Option<Record>, ClusterError>> {
            let record = Record { uid: "uid".to_owned(), ..record };
            self.call(true, |inner| if inner.lease.is_some() { None } else { inner.put(record) }).boxed()
        }

        fn replace(&self, record: Record) -> BoxFuture<'_, Result<Option<Record>, ClusterError>> {
            self.call(true, |inner| {
                let now = inner.lease.as_ref()?;
                (now.resource_version == record.resource_version).then(|| inner.put(record)).flatten()
            })
            .boxed()
        }
    }

    struct Replica {
        leadership: Leadership,
        trigger: Trigger,
        told: Arc<Mutex<Vec<Told>>>,
        task: JoinHandle<()>,
    }

    impl Replica {
        fn told(&self) -> Vec<Told> {
            self.told.lock().expect("no panic").clone()
        }
    }

    fn stand(memory: &Memory, identity: &'static str) -> Replica {
        let (trigger, shutdown) = Shutdown::new();
        let told = Arc::new(Mutex::new(Vec::new()));
        let settings = Settings { identity: identity.to_owned(), terms: Terms::default() };
        let tells = {
            let told = told.clone();
            move |what: &Told| told.lock().expect("no panic").push(what.clone())
        };
        let (leadership, work) = elect(At(memory.clone(), identity), settings, shutdown, tells);
        Replica { leadership, trigger, told, task: tokio::spawn(work) }
    }

    /// A Lease that somebody left properly.
    fn released() -> Memory {
        let memory = Memory::default();
        let lease = Record { uid: "uid".to_owned(), lease_duration_seconds: 1, ..Record::default() };
        memory.0.lock().expect("no panic").put(lease);
        memory
    }

    async fn seconds(seconds: f64) {
        sleep(Duration::from_secs_f64(seconds)).await;
    }

    /// `a` leads, `b` follows.
    async fn two() -> (Memory, Replica, Replica) {
        let memory = released();
        let a = stand(&memory, "a");
        a.leadership.begins().await;
        let b = stand(&memory, "b");
        seconds(5.0).await;
        assert!(a.leadership.leads() && !b.leadership.leads());
        assert_eq!(b.leadership.holder(), "a");
        (memory, a, b)
    }

    #[tokio::test(start_paused = true)]
    async fn a_released_lease_is_taken_at_once_and_kept() {
        let (memory, a, b) = two().await;
        for _ in 0..600 {
            seconds(1.0).await;
            assert!(a.leadership.leads() && a.leadership.remaining() > Duration::from_secs(7));
            assert!(!b.leadership.leads() && b.leadership.remaining() == Duration::ZERO);
        }
        assert_eq!(a.told(), [Told::Holder("a".to_owned()), Told::Leads]);
        assert_eq!(memory.lease().expect("there").lease_transitions, 1);
    }

    #[tokio::test(start_paused = true)]
    async fn who_creates_the_lease_leads_ten_seconds_later() {
        let memory = Memory::default();
        let started = Instant::now();
        let a = stand(&memory, "a");
        a.leadership.begins().await;
        let took = started.elapsed().as_secs_f64();
        assert!((10.0..13.0).contains(&took), "{took}");
        assert!(a.leadership.leads());
    }

    #[tokio::test(start_paused = true)]
    async fn when_the_leader_dies_another_leads_within_twenty_seconds() {
        let (_memory, a, b) = two().await;
        a.task.abort();
        let died = Instant::now();
        let _ = a.task.await;
        assert!(!a.leadership.leads(), "its handle knows that the election has ended");
        b.leadership.begins().await;
        let took = died.elapsed().as_secs_f64();
        assert!((12.0..20.0).contains(&took), "{took}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_leader_that_hears_nothing_ceases_to_lead_before_another_begins() {
        let (memory, mut a, b) = two().await;
        a.leadership.changed().await;
        memory.set(Way::Hangs("a"));
        let term = a.leadership.begins().await;
        a.leadership.ends(term).await;
        assert!(!a.leadership.leads() && !b.leadership.leads());
        assert_eq!(a.told().last(), Some(&Told::Ended));
        b.leadership.begins().await;
        assert!(!a.leadership.leads());
    }

    #[tokio::test(start_paused = true)]
    async fn a_write_whose_answer_is_lost_gives_no_claim_and_costs_no_lead_that_others_could_take() {
        let (memory, a, b) = two().await;
        memory.set(Way::AnswersLost);
        seconds(11.0).await;
        assert!(!a.leadership.leads(), "nothing is known to be stored");
        seconds(60.0).await;
        assert!(!b.leadership.leads(), "the Lease is renewed nevertheless");
        memory.set(Way::Well);
        seconds(3.0).await;
        assert!(a.leadership.leads());
        assert_eq!(a.leadership.begins().await, 2, "a new term");
        assert!(a.told().iter().any(|told| matches!(told, Told::Failed(_))));
    }

    #[tokio::test(start_paused = true)]
    async fn at_the_shutdown_the_next_one_leads_at_once() {
        let (memory, a, b) = two().await;
        a.trigger.start();
        a.task.await.expect("no panic");
        assert!(!a.leadership.leads());
        assert_eq!(memory.lease().expect("there").holder, "");
        let released = Instant::now();
        b.leadership.begins().await;
        assert!(released.elapsed() < Duration::from_secs(3), "{:?}", released.elapsed());
        assert_eq!(memory.lease().expect("there").lease_transitions, 2);
    }

    #[tokio::test(start_paused = true)]
    async fn the_shutdown_of_one_that_follows_leaves_the_lease_alone() {
        let (memory, a, b) = two().await;
        b.trigger.start();
        b.task.await.expect("no panic");
        assert_eq!(memory.lease().expect("there").holder, "a");
        assert!(a.leadership.leads());
    }

    #[tokio::test(start_paused = true)]
    async fn the_shutdown_does_not_wait_for_a_store_that_hangs() {
        let (memory, a, _b) = two().await;
        memory.set(Way::Hangs("a"));
        a.trigger.start();
        let started = Instant::now();
        a.task.await.expect("no panic");
        assert!(started.elapsed() <= RELEASE_LIMIT + Duration::from_millis(1));
    }

    #[tokio::test(start_paused = true)]
    async fn fault_46_the_kill_switch_is_seen_by_every_replica_within_three_seconds() {
        let (memory, a, b) = two().await;
        assert!(a.leadership.may_write());
        memory.annotate(Some("incident 42"));
        seconds(3.0).await;
        for replica in [&a, &b] {
            assert_eq!(replica.leadership.stopped().as_deref(), Some("incident 42"), "{STOP_ANNOTATION}");
            assert!(!replica.leadership.may_write());
        }
        assert!(a.leadership.leads(), "it goes on to hold the Lease");
        memory.annotate(None);
        seconds(3.0).await;
        assert!(a.leadership.may_write() && b.leadership.stopped().is_none());
        let stops = a.told().into_iter().filter(|told| matches!(told, Told::Stop(_))).count();
        assert_eq!(stops, 2);
    }

    #[tokio::test(start_paused = true)]
    async fn fault_46_who_cannot_read_the_lease_for_ten_seconds_does_not_write() {
        let (memory, a, _b) = two().await;
        memory.set(Way::Refuses);
        memory.annotate(Some("incident 42"));
        seconds(10.1).await;
        assert!(!a.leadership.may_write());
    }

    #[tokio::test(start_paused = true)]
    async fn a_deleted_lease_is_created_anew_and_the_stop_with_it() {
        let (memory, a, b) = two().await;
        memory.annotate(Some("incident 42"));
        seconds(3.0).await;
        memory.0.lock().expect("no panic").lease = None;
        seconds(3.0).await;
        let lease = memory.lease().expect("created");
        assert_eq!(lease.stop.as_deref(), Some("incident 42"));
        let leaders = [&a, &b].iter().filter(|replica| replica.leadership.leads()).count();
        assert!(leaders <= 1);
        seconds(13.0).await;
        let leaders = [&a, &b].iter().filter(|replica| replica.leadership.leads()).count();
        assert_eq!(leaders, 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_term_that_has_ended_is_told_to_who_waits_for_it() {
        let (memory, a, _b) = two().await;
        let term = a.leadership.begins().await;
        let waits = {
            let leadership = a.leadership.clone();
            tokio::spawn(async move { leadership.ends(term).await })
        };
        seconds(30.0).await;
        assert!(!waits.is_finished());
        memory.set(Way::Refuses);
        seconds(11.0).await;
        assert!(waits.is_finished());
    }
}
