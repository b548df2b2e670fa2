//! The election never has two leaders, whatever clocks and network do, and has one when they do well.
//!
//! Several replicas of the real `core::lease` run against one Lease, event by event, in simulated true time.
//! Each has a clock of its own: the rates are equal, the offsets are not, and what it takes for the time of day
//! is made up anew at each look. Messages are lost, late or served twice, processes pause, die, come back and
//! release, and people annotate the Lease and delete it.

#![allow(clippy::expect_used, clippy::panic, reason = "helpers of tests")]

use std::{cmp::Reverse, collections::BinaryHeap, time::Duration};

use jiff::Timestamp;
use proptest::{prelude::*, sample::select};
use rollout_guard::core::lease::{Candidate, Freshness, Record, Renewal, Step, Terms};

// ---- what happens ---------------------------------------------------------------------------------------------

/// What becomes of one message to the API server, all in milliseconds.
#[derive(Clone, Copy, Debug)]
struct Fate {
    /// Until it is served; `None`: never.
    there: Option<u64>,
    /// Until its answer arrives after that; `None`: never.
    back: Option<u64>,
    /// Until it is served once more, as by a proxy that repeats it.
    again: Option<u64>,
    /// How long the process pauses after it took the answer in.
    pause: u64,
    /// The time of day, as the process has it then, in seconds since 1970.
    wall: i64,
}

const WELL: Fate = Fate { there: Some(20), back: Some(20), again: None, pause: 0, wall: 1_800_000_000 };

fn delay() -> impl Strategy<Value = u64> {
    prop_oneof![6 => 0..200_u64, 2 => 200..6_000_u64, 1 => 6_000..40_000_u64]
}

fn fate() -> impl Strategy<Value = Fate> {
    (
        prop_oneof![9 => delay().prop_map(Some), 1 => Just(None)],
        prop_oneof![8 => delay().prop_map(Some), 2 => Just(None)],
        prop_oneof![8 => Just(None), 1 => delay().prop_map(Some)],
        prop_oneof![8 => Just(0), 1 => 0..4_000_u64, 1 => 4_000..60_000_u64],
        // Often one and the same: a clock that stands still.
        prop_oneof![2 => Just(1_800_000_000), 1 => 1_700_000_000..1_900_000_000_i64],
    )
        .prop_map(|(there, back, again, pause, wall)| Fate { there, back, again, pause, wall })
}

fn short_ways() -> impl Strategy<Value = Vec<Fate>> {
    let way = || 0..500_u64;
    prop::collection::vec((way(), way()), 1..60).prop_map(|all| {
        all.into_iter().map(|(there, back)| Fate { there: Some(there), back: Some(back), ..WELL }).collect()
    })
}

#[derive(Clone, Copy, Debug)]
enum Act {
    /// The process dies without a word.
    Kill(usize),
    /// It dies and another takes its place.
    Restart(usize),
    /// It ends properly.
    Release(usize),
    /// A person sets an annotation on the Lease.
    Annotate,
    /// A person deletes the Lease.
    Delete,
}

fn act() -> impl Strategy<Value = Act> {
    let replica = 0..REPLICAS;
    prop_oneof![
        1 => replica.clone().prop_map(Act::Kill),
        3 => replica.clone().prop_map(Act::Restart),
        1 => replica.prop_map(Act::Release),
        2 => Just(Act::Annotate),
        2 => Just(Act::Delete),
    ]
}

fn offsets() -> impl Strategy<Value = Vec<u64>> {
    prop::collection::vec(prop_oneof![0..100_u64, 0..10_000_000_u64], REPLICAS)
}

// ---- the world ------------------------------------------------------------------------------------------------

const REPLICAS: usize = 4;

#[derive(Clone)]
enum Request {
    Read,
    Create(Record),
    Replace(Record),
}

enum Answer {
    Read(Option<Record>),
    Stored(Record),
    Conflict,
}

enum Event {
    /// It is time to look at the Lease.
    Look,
    /// A request arrives at the API server; `back` is how long its answer takes.
    Serve { number: u64, back: Option<u64>, request: Request },
    /// An answer arrives.
    Answer { number: u64, answer: Answer },
    /// The answer is not waited for any longer.
    GiveUp { number: u64 },
    /// Something happens from outside.
    Act(Act),
}

struct Replica {
    candidate: Candidate,
    /// Its clock at true time zero.
    offset: u64,
    /// The number of what it waits for, and when that was sent by its own clock.
    waits_for: Option<(u64, Duration)>,
    paused_until: u64,
    alive: bool,
    /// It looks no more, and is still there to take answers in.
    released: bool,
    /// How many processes were in its place before.
    before: u64,
}

fn replica(index: usize, before: u64, offset: u64) -> Replica {
    Replica {
        candidate: Candidate::new(format!("replica-{index}-{before}"), Terms::default()),
        offset,
        waits_for: None,
        paused_until: 0,
        alive: true,
        released: false,
        before,
    }
}

struct World {
    /// True time, in milliseconds.
    now: u64,
    lease: Option<Record>,
    version: u64,
    replicas: Vec<Replica>,
    fates: Vec<Fate>,
    drawn: usize,
    /// How long a replica waits for an answer.
    limit: u64,
    /// What was ever to happen: to which replica and which process in its place.
    events: Vec<Option<(usize, u64, Event)>>,
    queue: BinaryHeap<Reverse<(u64, usize)>>,
    /// Who led from when on, at each change.
    history: Vec<(u64, Option<usize>)>,
}

impl World {
    fn new(offsets: &[u64], fates: Vec<Fate>, limit: u64) -> Self {
        let mut world = Self {
            now: 0,
            lease: None,
            version: 0,
            replicas: Vec::new(),
            fates,
            drawn: 0,
            limit,
            events: Vec::new(),
            queue: BinaryHeap::new(),
            history: Vec::new(),
        };
        for (index, offset) in offsets.iter().enumerate() {
            world.replicas.push(replica(index, 0, *offset));
            world.at(37 * index as u64, index, Event::Look);
        }
        world
    }

    fn at(&mut self, time: u64, index: usize, event: Event) {
        let before = self.replicas[index].before;
        self.push(time, index, before, event);
    }

    fn push(&mut self, time: u64, index: usize, before: u64, event: Event) {
        self.queue.push(Reverse((time, self.events.len())));
        self.events.push(Some((index, before, event)));
    }

    fn fate(&mut self) -> Fate {
        self.drawn += 1;
        self.fates[self.drawn % self.fates.len()]
    }

    fn clock(&self, index: usize) -> Duration {
        Duration::from_millis(self.now + self.replicas[index].offset)
    }

    /// Lets everything happen up to `end`, and checks after each event. In between claims only end, but for
    /// that of who created the Lease, which begins: so it is checked right before the next event, too.
    fn run(&mut self, end: u64) -> Result<(), TestCaseError> {
        while let Some(&Reverse((time, number))) = self.queue.peek() {
            if time > end {
                break;
            }
            self.queue.pop();
            self.now = time;
            self.check()?;
            if let Some((index, before, event)) = self.events[number].take() {
                self.happen(index, before, event);
            }
            self.check()?;
        }
        self.now = end;
        self.check()
    }

    fn check(&mut self) -> Result<(), TestCaseError> {
        let leaders = self.leaders();
        prop_assert!(leaders.len() <= 1, "at {} lead {leaders:?}: {:?}", self.now, self.lease);
        let leader = leaders.first().copied();
        if self.history.last().map(|(_, leader)| *leader) != Some(leader) {
            self.history.push((self.now, leader));
        }
        Ok(())
    }

    /// Who would say that it leads. The paused ones are asked as well.
    fn leaders(&self) -> Vec<usize> {
        let leads = |index: &usize| {
            let replica = &self.replicas[*index];
            replica.alive && replica.candidate.leads(self.clock(*index))
        };
        (0..self.replicas.len()).filter(leads).collect()
    }

    fn leader(&self) -> Option<usize> {
        self.leaders().first().copied()
    }

    fn happen(&mut self, index: usize, before: u64, event: Event) {
        match event {
            Event::Act(act) => return self.act(act),
            // What is under way does not know that its sender died.
            Event::Serve { number, back, request } => {
                let answer = self.serve(request);
                if let Some(back) = back {
                    self.push(self.now + back, index, before, Event::Answer { number, answer });
                }
                return;
            }
            _ => {}
        }
        let replica = &mut self.replicas[index];
        if !replica.alive || replica.before != before {
            return;
        }
        if self.now < replica.paused_until {
            let later = replica.paused_until;
            return self.at(later, index, event);
        }
        match event {
            Event::Look if !replica.released && replica.waits_for.is_none() => {
                self.send(index, Request::Read);
            }
            Event::GiveUp { number } if replica.waits_for.is_some_and(|(n, _)| n == number) => {
                replica.waits_for = None;
                self.at(self.now + 500, index, Event::Look);
            }
            Event::Answer { number, answer } => self.take_in(index, number, answer),
            _ => {}
        }
    }

    fn serve(&mut self, request: Request) -> Answer {
        match (request, &self.lease) {
            (Request::Read, lease) => Answer::Read(lease.clone()),
            (Request::Create(record), None) => {
                let uid = format!("uid-{}", self.version);
                Answer::Stored(self.store(Record { uid, ..record }))
            }
            (Request::Replace(record), Some(lease)) if lease.resource_version == record.resource_version => {
                let stop = lease.stop.clone();
                Answer::Stored(self.store(Record { stop, ..record }))
            }
            _ => Answer::Conflict,
        }
    }

    fn store(&mut self, record: Record) -> Record {
        self.version += 1;
        let record = Record { resource_version: self.version.to_string(), ..record };
        self.lease = Some(record.clone());
        record
    }

    fn send(&mut self, index: usize, request: Request) {
        let fate = self.fate();
        let (sent, number) = (self.clock(index), self.events.len() as u64);
        self.replicas[index].waits_for = Some((number, sent));
        if let Some(again) = fate.again {
            // Either answer may be the one that arrives.
            let back = fate.back.map(|back| back / 2);
            self.at(self.now + again, index, Event::Serve { number, back, request: request.clone() });
        }
        if let Some(there) = fate.there {
            self.at(self.now + there, index, Event::Serve { number, back: fate.back, request });
        }
        self.at(self.now + self.limit, index, Event::GiveUp { number });
    }

    fn take_in(&mut self, index: usize, number: u64, answer: Answer) {
        let Some((_, sent)) = self.replicas[index].waits_for.filter(|(n, _)| *n == number) else { return };
        let fate = self.fate();
        let now = self.clock(index);
        let wall = Timestamp::from_second(fate.wall).expect("in range");
        let replica = &mut self.replicas[index];
        replica.waits_for = None;
        replica.paused_until = self.now + fate.pause;
        let pause = millis(replica.candidate.pause());
        match answer {
            Answer::Read(record) => match replica.candidate.step(record, now, wall) {
                Step::Create(record) => self.send(index, Request::Create(record)),
                Step::Acquire(record) | Step::Renew(record) => self.send(index, Request::Replace(record)),
                Step::Follow { until } => {
                    let takeover = millis(until.saturating_sub(now));
                    self.at(self.now + pause.min(takeover), index, Event::Look);
                }
            },
            Answer::Stored(record) => {
                replica.candidate.stored(record, sent, now);
                self.at(self.now + pause, index, Event::Look);
            }
            Answer::Conflict => self.at(self.now, index, Event::Look),
        }
    }

    fn act(&mut self, act: Act) {
        match act {
            Act::Kill(index) => self.replicas[index].alive = false,
            Act::Restart(index) => {
                let before = self.replicas[index].before + 1;
                let offset = self.replicas[index].offset / 2 + 7919 * before;
                self.replicas[index] = replica(index, before, offset);
                self.at(self.now, index, Event::Look);
            }
            Act::Release(index) => {
                let now = self.clock(index);
                let replica = &mut self.replicas[index];
                if !replica.alive || replica.released || replica.paused_until > self.now {
                    return;
                }
                replica.released = true;
                // The answer to what was under way may still come.
                let waits_for = replica.waits_for;
                if let Some(record) = replica.candidate.release(now, Timestamp::UNIX_EPOCH) {
                    self.send(index, Request::Replace(record));
                }
                if waits_for.is_some() {
                    self.replicas[index].waits_for = waits_for;
                }
            }
            Act::Annotate => {
                if let Some(lease) = self.lease.clone() {
                    self.store(Record { stop: Some("incident".to_owned()), ..lease });
                }
            }
            Act::Delete => self.lease = None,
        }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).expect("small")
}

// ---- the properties -------------------------------------------------------------------------------------------

/// How long a history is, in milliseconds.
const RUN: u64 = 300_000;

fn config() -> ProptestConfig {
    ProptestConfig { failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn fault_34_never_do_two_replicas_claim_to_lead_at_the_same_time(
        offsets in offsets(),
        fates in prop::collection::vec(fate(), 1..120),
        acts in prop::collection::vec((0..RUN, act()), 0..12),
        // The time limit of the adapter, and hardly any, so that answers come very late.
        limit in select(vec![4_000, 90_000]),
    ) {
        let mut world = World::new(&offsets, fates, limit);
        for (time, act) in acts {
            world.push(time, 0, 0, Event::Act(act));
        }
        world.run(RUN)?;
    }

    #[test]
    fn one_goes_on_to_lead_and_when_it_dies_another_does_soon(
        offsets in offsets(),
        fates in short_ways(),
        dies_at in 16_000..60_000_u64,
        // Any change of the Lease starts the wait anew, so not after the death.
        annotated_at in 0..16_000_u64,
    ) {
        let mut world = World::new(&offsets, fates, 4_000);
        world.push(annotated_at, 0, 0, Event::Act(Act::Annotate));
        world.run(dies_at)?;
        let first = world.leader();
        prop_assert!(first.is_some() && world.history.len() <= 2, "{:?}", world.history);

        world.act(Act::Kill(first.expect("one leads")));
        // 15 s from when the last renewal was seen, at most 2.4 s and two ways after it was stored, and a read
        // and a write.
        world.run(dies_at + 21_500)?;
        let second = world.leader();
        prop_assert!(second.is_some() && second != first, "{:?}", world.history);
    }

    #[test]
    fn after_a_release_another_leads_at_once(
        offsets in offsets(),
        fates in short_ways(),
        released_at in 16_000..60_000_u64,
    ) {
        let mut world = World::new(&offsets, fates, 4_000);
        world.run(released_at)?;
        let first = world.leader().expect("one leads");
        // Not while something is under way: then it is read again first, as after a conflict.
        while world.replicas[first].waits_for.is_some() {
            world.run(world.now + 10)?;
        }
        world.act(Act::Release(first));
        prop_assert_eq!(world.leader(), None);
        world.run(world.now + 6_000)?;
        let second = world.leader();
        prop_assert!(second.is_some() && second != Some(first), "{:?}", world.history);
    }

    #[test]
    fn when_the_network_heals_one_leads_again(
        offsets in offsets(),
        fates in prop::collection::vec(fate(), 1..120),
        acts in prop::collection::vec((0..120_000_u64, prop_oneof![Just(Act::Annotate), Just(Act::Delete)]), 0..4),
        well in short_ways(),
    ) {
        let mut world = World::new(&offsets, fates, 4_000);
        for (time, act) in acts {
            world.push(time, 0, 0, Event::Act(act));
        }
        world.run(120_000)?;
        world.fates = well;
        // The longest pause, the longest way of a late message, and then as after a death.
        world.run(120_000 + 60_000 + 80_000 + 21_500)?;
        prop_assert!(world.leader().is_some(), "{:?}", world.history);
    }

    #[test]
    fn a_lease_is_stale_only_when_two_looks_that_far_apart_found_the_same(
        looks in prop::collection::vec((0..40_u64, any::<bool>()), 1..60),
    ) {
        let mut freshness = Freshness::new(Duration::from_secs(30));
        let (mut now, mut value, mut same_since) = (0, 0_u32, 0);
        for (pause, changes) in looks {
            now += pause;
            if changes || value == 0 {
                value += 1;
                same_since = now;
            }
            freshness.seen(value, Duration::from_secs(now));
            let stale = now - same_since >= 30;
            prop_assert_eq!(freshness.renewal() == Renewal::Stale, stale);
            prop_assert_eq!(freshness.renewal() == Renewal::Unknown, !stale && value == 1);
        }
    }
}
