//! Who leads, by a Lease: pure.
//!
//! One Lease names the replica that leads. Who holds it renews it, all others look at it. What they do follows
//! from three times, which are those of client-go (`LeaderElectionConfig`):
//!
//! ```text
//!  renewal is sent                 the claim ends
//!  ├───────── renew_deadline, 10 s ──────┤
//!       stored    seen by another                              it takes over
//!  ─────┴─────────┼──────────── lease_duration, 15 s ────────────────┼───────▶ true time
//! ```
//!
//! - Expiry is judged by when *this* replica saw the Lease change, on its own monotonic clock. The wall-clock
//!   times in the Lease are for people; no decision reads them, so clocks may differ and jump.
//! - A change is a new resourceVersion. The times in the Lease would not do: those of a clock that stands still
//!   are the same after each renewal.
//! - A claim to lead counts from *before* the renewal was sent and is shorter than what others wait after it was
//!   stored, so at no time do two claim to lead, as long as clocks run at the same rate. It ends by itself.
//! - Only a write that is known to be stored gives a claim. After a lost answer the Lease is read again.
//! - Every write carries the resourceVersion of what was decided on; it fails when anything came between.
//! - Who creates the Lease claims nothing for as long as a claim lasts: it may have been deleted while somebody
//!   led.
//!
//! A person who empties or changes the holder by hand can make two lead for some seconds, until who led sees so
//! at its next renewal. The annotation [`STOP_ANNOTATION`] is the way to stop the guard. Any change of the
//! Lease starts the wait of the others anew.

use std::{
    collections::hash_map::DefaultHasher,
    hash::{Hash, Hasher},
    time::Duration,
};

use jiff::Timestamp;

/// The annotation on the Lease that stops every write of the guard; its value is the reason.
pub const STOP_ANNOTATION: &str = "rollout-guard.io/stop";

/// The annotation on the Lease by which the leader tells how the breaker is: [`BREAKER_CLOSED`], or why it is open. None:
/// nobody knows.
pub const BREAKER_ANNOTATION: &str = "rollout-guard.io/breaker";

/// The value of [`BREAKER_ANNOTATION`] while rollbacks may start.
pub const BREAKER_CLOSED: &str = "closed";

/// Returns the pod of a replica, by what the replica calls itself in the Lease.
pub fn pod_of(holder: &str) -> &str {
    holder.rsplit_once('_').map_or(holder, |(pod, _)| pod)
}

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

    /// How long a record is waited for: its own duration where it is longer than ours, four times ours at most,
    /// so that a mistyped number does not leave the guard without a leader.
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
    /// The uid of the Lease; empty for one that is to be created.
    pub uid: String,
    /// The resourceVersion that was read, or that a write must meet; empty for one that is to be created.
    pub resource_version: String,
    /// The value of [`STOP_ANNOTATION`], where it is set. A write of a record that exists leaves it as it is.
    pub stop: Option<String>,
    /// The value of [`BREAKER_ANNOTATION`], where it is set. What is written is the store's to know: no decision here
    /// goes by it.
    pub breaker: Option<String>,
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
    /// Before this no claim counts: the Lease is this replica's own creation.
    quiet_until: Duration,
    /// The uid of the Lease that `quiet_until` is about, or that was seen with another holder, and so is taken
    /// only when that one does not lead.
    known: Option<String>,
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
    /// Returns a replica that has seen nothing yet. `me` must be its own alone, and another one after each start:
    /// two of one name would both lead.
    pub fn new(me: impl Into<String>, terms: Terms) -> Self {
        Self {
            me: me.into(),
            terms,
            observed: None,
            claim: None,
            quiet_until: Duration::ZERO,
            known: None,
            released: false,
            rounds: 0,
        }
    }

    /// Takes in what was read (`None`: there is no Lease) and returns what to do. `now` is when the answer was
    /// there, `wall` the time that people will read.
    pub fn step(&mut self, read: Option<Record>, now: Duration, wall: Timestamp) -> Step {
        self.observe(read, now);
        let Some(observed) = &self.observed else { return Step::Create(self.taken(None, wall)) };
        let record = &observed.record;
        if observed.gone {
            // What people had set on it is not lost with it: the reason to stop.
            let before = Record { resource_version: String::new(), uid: String::new(), ..record.clone() };
            return Step::Create(self.taken(Some(&before), wall));
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
        match &read {
            Some(record) => self.know(record, now),
            None => self.claim = None,
        }
        match (read, &mut self.observed) {
            (None, None) => {}
            (None, Some(observed)) => observed.gone = true,
            (Some(record), Some(observed))
                if !observed.gone && observed.record.resource_version == record.resource_version =>
            {
                observed.record = record;
            }
            (Some(record), observed) => *observed = Some(Observed { record, since: now, gone: false }),
        }
    }

    /// Takes in that a write was stored, and as what. `sent` is when it was decided to send it, `now` when the
    /// answer was there. A write whose answer is lost or is a conflict gives no claim: nothing is to be said of
    /// it, the next look finds what became of it.
    pub fn stored(&mut self, record: Record, sent: Duration, now: Duration) {
        self.know(&record, now);
        if record.holder == self.me && !self.released {
            self.claim = Some(sent + self.terms.validity());
        }
        self.observed = Some(Observed { record, since: now, gone: false });
    }

    /// Gives the claim up for good and returns the record that lets the next one take over at once, where this
    /// replica holds the Lease by what it knows. After a conflict: [`Candidate::observe`] and call it again.
    pub fn release(&mut self, now: Duration, wall: Timestamp) -> Option<Record> {
        self.claim = None;
        self.released = true;
        let observed = self.observed.as_ref().filter(|o| !o.gone && o.record.holder == self.me)?;
        // Who takes it over would claim at once, and may not yet.
        if now < self.quiet_until {
            return None;
        }
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
        now >= self.quiet_until && self.claim.is_some_and(|until| now < until)
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

    /// Learns whose Lease it is. One that names this replica without having named another before is its own
    /// creation, whatever became of the answer.
    fn know(&mut self, record: &Record, now: Duration) {
        if record.holder != self.me {
            self.claim = None;
        } else if self.known.as_ref() != Some(&record.uid) {
            self.quiet_until = now + self.terms.validity();
        }
        self.known = Some(record.uid.clone());
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

    /// Takes in what was read at `now`, on the observer's monotonic clock: the renewTime, and whatever else
    /// changes with a renewal.
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

    /// Returns how it stands by the last look. Time in which nobody looked counts only when the next look finds
    /// the same value.
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

#[cfg(test)]
mod tests {
    use super::*;

    const WALL: Timestamp = Timestamp::UNIX_EPOCH;

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn held_by(holder: &str, resource_version: &str) -> Record {
        Record {
            holder: holder.to_owned(),
            lease_duration_seconds: 15,
            uid: "uid".to_owned(),
            resource_version: resource_version.to_owned(),
            ..Record::default()
        }
    }

    /// One that took a released Lease at second 1.
    fn leader() -> Candidate {
        let mut candidate = Candidate::new("me", Terms::default());
        let step = candidate.step(Some(held_by("", "1")), seconds(1), WALL);
        assert!(matches!(step, Step::Acquire(ref record) if record.lease_transitions == 1), "{step:?}");
        candidate.stored(held_by("me", "2"), seconds(1), seconds(2));
        candidate
    }

    #[test]
    fn a_claim_counts_from_before_the_write_was_sent() {
        let candidate = leader();
        assert!(candidate.leads(seconds(10)) && !candidate.leads(seconds(11)));
        assert_eq!(candidate.leads_until(), Some(seconds(11)));
    }

    #[test]
    fn a_follower_waits_from_when_it_saw_the_last_change() {
        let mut candidate = Candidate::new("me", Terms::default());
        let mut look =
            |version: &str, now| candidate.step(Some(held_by("other", version)), seconds(now), WALL);
        assert_eq!(look("1", 0), Step::Follow { until: seconds(15) });
        assert_eq!(look("1", 14), Step::Follow { until: seconds(15) });
        assert_eq!(look("2", 15), Step::Follow { until: seconds(30) });
        let step = look("2", 30);
        assert!(
            matches!(step, Step::Acquire(ref record) if record.holder == "me" && record.resource_version == "2")
        );
    }

    #[test]
    fn a_longer_duration_in_the_record_is_waited_for_but_not_for_ever() {
        for (recorded, until) in [(-1, 15), (1, 15), (40, 40), (i32::MAX, 60)] {
            let mut candidate = Candidate::new("me", Terms::default());
            let record = Record { lease_duration_seconds: recorded, ..held_by("other", "1") };
            let step = candidate.step(Some(record), Duration::ZERO, WALL);
            assert_eq!(step, Step::Follow { until: seconds(until) }, "{recorded}");
        }
    }

    #[test]
    fn who_creates_the_lease_leads_when_any_claim_before_it_has_ended() {
        let mut candidate = Candidate::new("me", Terms::default());
        assert!(matches!(candidate.step(None, seconds(1), WALL), Step::Create(_)));
        candidate.stored(held_by("me", "1"), seconds(1), seconds(2));
        assert!(!candidate.leads(seconds(2)));
        assert_eq!(candidate.clone().release(seconds(11), WALL), None, "the next one would lead too early");
        candidate.stored(held_by("me", "2"), seconds(11), seconds(11));
        assert!(!candidate.leads(seconds(11)) && candidate.leads(seconds(12)));
    }

    #[test]
    fn one_that_was_lost_and_found_again_is_held_without_a_claim() {
        let mut candidate = Candidate::new("me", Terms::default());
        candidate.step(Some(held_by("", "1")), seconds(1), WALL);
        // The answer to the write got lost.
        let step = candidate.step(Some(held_by("me", "2")), seconds(6), WALL);
        assert!(matches!(step, Step::Renew(_)) && !candidate.leads(seconds(6)));
        candidate.stored(held_by("me", "3"), seconds(6), seconds(6));
        assert!(candidate.leads(seconds(6)));
    }

    #[test]
    fn a_late_answer_after_the_release_gives_no_claim() {
        let mut candidate = leader();
        let released = candidate.release(seconds(3), WALL).expect("it holds the Lease");
        assert_eq!((released.holder.as_str(), released.lease_duration_seconds), ("", 1));
        assert_eq!(released.resource_version, "2");
        candidate.stored(held_by("me", "3"), seconds(2), seconds(4));
        assert!(!candidate.leads(seconds(4)));
    }

    #[test]
    fn the_reason_to_stop_outlives_the_lease_it_was_set_on() {
        let mut candidate = Candidate::new("me", Terms::default());
        let stopped = Record { stop: Some("incident 42".to_owned()), ..held_by("other", "1") };
        candidate.step(Some(stopped), seconds(1), WALL);
        let step = candidate.step(None, seconds(2), WALL);
        let Step::Create(record) = step else { panic!("{step:?}") };
        assert_eq!(record.stop.as_deref(), Some("incident 42"));
        assert_eq!((record.uid.as_str(), record.resource_version.as_str()), ("", ""));
    }

    #[test]
    fn pauses_differ_and_stay_within_a_fifth() {
        let mut candidate = Candidate::new("me", Terms::default());
        let pauses: Vec<Duration> = (0..20).map(|_| candidate.pause()).collect();
        assert!(pauses.iter().all(|pause| (2000..2400).contains(&pause.as_millis())), "{pauses:?}");
        assert!(pauses.iter().any(|pause| *pause != pauses[0]));
    }

    #[test]
    fn a_lease_is_judged_by_looks_at_it() {
        let mut freshness = Freshness::new(seconds(30));
        assert_eq!(freshness.renewal(), Renewal::Unknown);
        freshness.seen(1, seconds(5));
        freshness.seen(1, seconds(34));
        assert_eq!(freshness.renewal(), Renewal::Unknown);
        freshness.seen(1, seconds(35));
        assert_eq!(freshness.renewal(), Renewal::Stale);
        freshness.seen(2, seconds(100));
        assert_eq!((freshness.renewal(), freshness.changed_at()), (Renewal::Fresh, Some(seconds(100))));
    }
}
