//! Who leads, by a Lease: pure.
//!
//! One Lease names the replica that leads. Who holds it renews it, all others look at it. What they do follows from
//! three times, which are those of client-go (`LeaderElectionConfig`):
//!
//! ```text
//!  renewal sent          claim ends                others may take over
//!  │◀── renew_deadline (10 s) ──▶│                  │
//!  ├────stored───────────────────┼──────────────────┼──▶ true time
//!       │◀──────── lease_duration (15 s), from when the change was seen ─▶│
//! ```
//!
//! - Expiry is judged by when *this* replica saw the Lease change, on its own monotonic clock. The wall-clock times in
//!   the Lease are for people; no decision reads them, so clocks may differ and jump.
//! - A change is a new resourceVersion. The times in the Lease would not do: those of a clock that stands still
//!   are the same after each renewal.
//! - A claim to lead counts from *before* the renewal was sent and is shorter than what others wait after it was
//!   stored, so at no time do two claim to lead, as long as clocks run at the same rate. It ends by itself.
//! - Only a write that is known to be stored gives a claim. After a lost answer the Lease is read again.
//! - Every write carries the resourceVersion of what was decided on; it fails when anything came between.
//!
//! A person who deletes the Lease, or empties its holder, takes the lead away from who has it, and that replica sees so at its
//! next renewal. A replica that has seen the Lease before waits as for an expired one; one that never saw it creates it at once.

use std::{
    collections::hash_map::DefaultHasher,
    hash::{Hash, Hasher},
    time::Duration,
};

use jiff::Timestamp;

/// The annotation on the Lease that stops every write of the guard; its value is the reason.
pub const STOP_ANNOTATION: &str = "rollout-guard.io/stop";

/// The times of an election.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// How long others wait after they saw the last change.
    pub lease_duration: Duration,
    /// How long a renewal counts for who sent it.
    pub renew_deadline: Duration,
    /// How long between two looks.
    pub retry_period: Duration,
}

impl Default for Terms {
    /// 15 s, 10 s and 2 s, the defaults of client-go and of Kubernetes' own components.
    fn default() -> Self {
        Self {
            lease_duration: Duration::from_secs(15),
            renew_deadline: Duration::from_secs(10),
            retry_period: Duration::from_secs(2),
        }
    }
}

impl Terms {
    /// How long a renewal counts: the renew deadline, but never more than two thirds of what others wait.
    fn validity(&self) -> Duration {
        self.renew_deadline.min(self.lease_duration * 2 / 3)
    }

    /// How long a record is waited for: its own duration where it is longer than ours, four times ours at most, so that a
    /// mistyped number does not leave the guard without a leader.
    fn wait(&self, record: &Record) -> Duration {
        let recorded = u64::try_from(record.lease_duration_seconds).unwrap_or_default();
        Duration::from_secs(recorded).clamp(self.lease_duration, self.lease_duration * 4)
    }
}

/// What is stored in the Lease.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Record {
    /// The identity of who holds it; empty where it was released.
    pub holder: String,
    /// `leaseDurationSeconds`: how long others wait, in seconds.
    pub lease_duration_seconds: i32,
    /// When the holder took it, by the holder's clock. For people.
    pub acquire_time: Option<Timestamp>,
    /// When the holder renewed it last, by the holder's clock. For people.
    pub renew_time: Option<Timestamp>,
    /// How often it went from one holder to another.
    pub lease_transitions: i32,
    /// The resourceVersion that was read, or that a write must meet; empty for one that is to be created.
    pub resource_version: String,
    /// The value of [`STOP_ANNOTATION`], where it is set. A write of a record that exists leaves it as it is.
    pub stop: Option<String>,
}

/// What to do after a look at the Lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// There is no Lease: create this one.
    Create(Record),
    /// Nobody holds it any more: replace it by this one.
    Acquire(Record),
    /// This replica holds it: replace it by this one.
    Renew(Record),
    /// Somebody else holds it.
    Follow {
        /// When it may be taken over if it does not change, on the observer's clock.
        until: Duration,
    },
}

/// What one replica remembers of the Lease, and its claim to lead.
///
/// All times but those for people are on the replica's own monotonic clock, since an arbitrary start.
#[derive(Clone, Debug)]
pub struct Candidate {
    me: String,
    terms: Terms,
    observed: Option<Observed>,
    /// When the claim ends.
    claim: Option<Duration>,
    released: bool,
    rounds: u64,
}

#[derive(Clone, Debug)]
struct Observed {
    record: Record,
    /// When it was seen to change.
    since: Duration,
    /// It was there, and is no longer.
    gone: bool,
}

impl Candidate {
    /// Returns a replica that has seen nothing yet. `me` must be its own alone: a name that a process which died had, too,
    /// would inherit its Lease.
    pub fn new(me: impl Into<String>, terms: Terms) -> Self {
        Self { me: me.into(), terms, observed: None, claim: None, released: false, rounds: 0 }
    }

    /// Takes in what was read (`None`: there is no Lease) and returns what to do. `now` is when the answer was there,
    /// `wall` the time that people will read.
    pub fn step(&mut self, read: Option<Record>, now: Duration, wall: Timestamp) -> Step {
        self.observe(read, now);
        let Some(observed) = &self.observed else { return Step::Create(self.taken(None, wall)) };
        let record = &observed.record;
        if observed.gone {
            // Whoever held it may still claim to: it was renewed before it was seen to be gone.
            let until = observed.since + self.terms.wait(record);
            return if now < until {
                Step::Follow { until }
            } else {
                let mut record = self.taken(Some(record), wall);
                record.resource_version.clear();
                Step::Create(record)
            };
        }
        if record.holder == self.me {
            return Step::Renew(Record { renew_time: Some(wall), ..self.mine(record) });
        }
        let until = observed.since + self.terms.wait(record);
        if record.holder.is_empty() || now >= until {
            Step::Acquire(self.taken(Some(record), wall))
        } else {
            Step::Follow { until }
        }
    }

    /// Takes in what was read, as [`Candidate::step`] does, and decides nothing. A Lease that is gone or that
    /// somebody else holds ends the claim at once.
    pub fn observe(&mut self, read: Option<Record>, now: Duration) {
        if read.as_ref().is_none_or(|record| record.holder != self.me) {
            self.claim = None;
        }
        match (read, &mut self.observed) {
            (None, None) => {}
            (None, Some(observed)) => {
                if !observed.gone {
                    observed.gone = true;
                    observed.since = now;
                }
            }
            (Some(record), Some(observed))
                if !observed.gone && observed.record.resource_version == record.resource_version =>
            {
                observed.record = record;
            }
            (Some(record), observed) => *observed = Some(Observed { record, since: now, gone: false }),
        }
    }

    /// Takes in that a write was stored, and as what. `sent` is when it was decided to send it, `now` when the answer
    /// was there. A write whose answer is lost or is a conflict gives no claim: nothing is to be said of it, the next look
    /// finds what became of it.
    pub fn stored(&mut self, record: Record, sent: Duration, now: Duration) {
        if record.holder == self.me && !self.released {
            self.claim = Some(sent + self.terms.validity());
        }
        self.observed = Some(Observed { record, since: now, gone: false });
    }

    /// Gives the claim up for good and returns the record that lets the next one take over at once, where this replica
    /// holds the Lease by what it knows. After a conflict: [`Candidate::observe`] and call it again.
    pub fn release(&mut self, wall: Timestamp) -> Option<Record> {
        self.claim = None;
        self.released = true;
        let observed = self.observed.as_ref().filter(|o| !o.gone && o.record.holder == self.me)?;
        // As client-go releases: no holder, and a duration of a second, as it must not be zero.
        Some(Record {
            holder: String::new(),
            lease_duration_seconds: 1,
            acquire_time: Some(wall),
            renew_time: Some(wall),
            ..observed.record.clone()
        })
    }

    /// Says whether this replica leads at `now`. It needs no word from anybody: the claim ends by itself.
    pub fn leads(&self, now: Duration) -> bool {
        self.claim.is_some_and(|until| now < until)
    }

    /// Returns when the claim ends, where there is one; it may have ended.
    pub fn leads_until(&self) -> Option<Duration> {
        self.claim
    }

    /// Returns what was last seen of the Lease, also when it is gone.
    pub fn seen(&self) -> Option<&Record> {
        self.observed.as_ref().map(|observed| &observed.record)
    }

    /// Returns how long to wait from one look to the next: the retry period and up to a fifth more, differently
    /// for each replica and look.
    pub fn pause(&mut self) -> Duration {
        self.rounds = self.rounds.wrapping_add(1);
        let mut hasher = DefaultHasher::new();
        (&self.me, self.rounds).hash(&mut hasher);
        let thousandths = u32::try_from(hasher.finish() % 200).unwrap_or_default();
        self.terms.retry_period + self.terms.retry_period * thousandths / 1000
    }

    /// The record by which this replica takes the Lease from `before`.
    fn taken(&self, before: Option<&Record>, wall: Timestamp) -> Record {
        let before = before.cloned().unwrap_or_default();
        let from_other = !before.resource_version.is_empty() && before.holder != self.me;
        Record {
            lease_transitions: before.lease_transitions.max(0).saturating_add(from_other.into()),
            acquire_time: Some(wall),
            renew_time: Some(wall),
            ..self.mine(&before)
        }
    }

    fn mine(&self, record: &Record) -> Record {
        let seconds = self.terms.lease_duration.as_secs().max(1);
        Record {
            holder: self.me.clone(),
            lease_duration_seconds: i32::try_from(seconds).unwrap_or(i32::MAX),
            ..record.clone()
        }
    }
}

/// Whether somebody else's Lease is renewed, judged by when it was seen to change.
#[derive(Clone, Debug)]
pub struct Freshness<T> {
    stale_after: Duration,
    value: Option<T>,
    first_seen: Duration,
    last_seen: Duration,
    changed_at: Option<Duration>,
}

/// What [`Freshness`] says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Renewal {
    /// It was seen to change, and not too long ago.
    Fresh,
    /// It did not change for too long while it was looked at.
    Stale,
    /// It has not been looked at for long enough to tell.
    Unknown,
}

impl<T: PartialEq> Freshness<T> {
    /// Returns one that has seen nothing; a value that stays the same for `stale_after` is stale.
    pub fn new(stale_after: Duration) -> Self {
        let zero = Duration::ZERO;
        Self { stale_after, value: None, first_seen: zero, last_seen: zero, changed_at: None }
    }

    /// Takes in what was read at `now`, on the observer's monotonic clock: the renewTime, and whatever else changes with
    /// a renewal.
    pub fn seen(&mut self, value: T, now: Duration) {
        self.last_seen = now;
        match &self.value {
            None => self.first_seen = now,
            Some(before) if *before != value => self.changed_at = Some(now),
            Some(_) => return,
        }
        self.value = Some(value);
    }

    /// Returns when it was last seen to change; `None` where it never was.
    pub fn changed_at(&self) -> Option<Duration> {
        self.changed_at
    }

    /// Returns how it stands by the last look. Time in which nobody looked counts only when the next look finds the
    /// same value.
    pub fn renewal(&self) -> Renewal {
        let since = self.changed_at.unwrap_or(self.first_seen);
        if self.value.is_some() && self.last_seen.saturating_sub(since) >= self.stale_after {
            Renewal::Stale
        } else if self.changed_at.is_some() {
            Renewal::Fresh
        } else {
            Renewal::Unknown
        }
    }
}
