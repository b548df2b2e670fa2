//! Keeps the lead, or follows: the adapter of `core::lease`.
//!
//! One task per replica looks at the Lease every two seconds and does what [`Candidate::step`] says. Everybody else
//! asks a [`Leadership`], which answers from memory: the claim's end is compared with the clock at that moment, so a
//! process that was paused, or whose election hangs, does not lead when it wakes up.

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
/// `shutdown` must start only when nothing of this replica writes any more: who is next leads at once. `told` is called for
/// everything that counts or changes, and must not block.
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
                if let Some(until) = self.candidate.leads_until() {
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
            let Some(record) = self.candidate.release(Timestamp::now()) else { return };
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
    /// The same by the wall clock. It can only shorten the claim: a machine that was suspended has a monotonic clock that
    /// stood still.
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

    /// Returns for how long this replica leads if nothing is heard any more; zero where it does not lead. A write that gets no more time
    /// than this ends before another can lead.
    pub fn remaining(&self) -> Duration {
        let claim = self.0.borrow().claim.filter(Claim::holds);
        claim.map_or(Duration::ZERO, |claim| claim.until.saturating_duration_since(Instant::now()))
    }

    /// Returns the reason for which the whole guard is stopped, where it is, as of the last look that succeeded. Every
    /// replica sees it within its next look, leader or not.
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

    /// Completes when this replica has begun to lead, and returns the number of its term, which differs each time it
    /// begins. Never completes when the election has ended.
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

    /// Completes when this replica began or ceased to lead, the holder is another one, or the kill switch was turned
    /// since this handle was made or last looked at by this. Returns `false` when the election has ended.
    pub async fn changed(&mut self) -> bool {
        self.0.changed().await.is_ok()
    }
}
