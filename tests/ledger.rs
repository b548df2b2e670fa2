//! The ledger and the plan over random histories of one Deployment: what they may never do, and when they do it.

#![allow(clippy::expect_used, clippy::panic, reason = "what a test needs is there, or the test fails")]

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use proptest::prelude::*;
use rollout_guard::{
    api::{
        policy::CauseType,
        record::{Outcome, RecordPhase, RolloutRecordStatus, Verdict},
    },
    core::{
        cause::Cause,
        conditions,
        key::Key,
        policy::{Policy, compile},
        record::{self, AtWork, Before, Progress, Seen, Set, Stuck, fold, is_bad},
        rollback::{Hold, Plan, Stay, plan},
        rollout::{Condition, Phase, is_inherited},
        template::TemplateHash,
    },
};
use serde_json::{Value, json};

const fn secs(seconds: i64) -> SignedDuration {
    SignedDuration::from_secs(seconds)
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + second).expect("in range")
}

fn policy(spec: Value) -> Policy {
    compile("default", 1, &serde_json::from_value(spec).expect("a spec")).expect("a valid policy")
}

/// Unobserved for 100 s, a hard cause for 20 s, good after 30 s; the rest as by default.
fn usual() -> Policy {
    policy(json!({"watch": {"unobservedAfter": "100s", "earlyFailureAfter": "20s", "goodAfter": "30s"}}))
}

fn template(n: usize) -> TemplateHash {
    TemplateHash::of(&json!({"spec": {"containers": [{"image": format!("localhost/web:{n}")}]}}))
}

fn set(n: usize, available: i32) -> Set {
    Set {
        name: format!("web-{n}"),
        template: template(n),
        revision: i64::try_from(n).expect("few") + 1,
        available,
        images: vec![format!("localhost/web:{n}")],
    }
}

fn cause(kind: CauseType, early: bool) -> Cause {
    let mut cause = Cause::unknown(Phase::Progressing);
    cause.kind = kind;
    cause.early = early;
    cause.message = format!("because of {}", kind.word());
    cause
}

/// A Deployment as the guard sees it from one look to the next.
struct World {
    policy: Policy,
    now: i64,
    template: usize,
    generation: i64,
    observed: bool,
    phase: Phase,
    paused: bool,
    unobserved_at: i64,
    desired: i32,
    cause: Option<Cause>,
    sets: Vec<Set>,
    best: (i32, i32),
    counts: (i32, i32),
    progress_at: i64,
    available_at: i64,
    manager: Option<AtWork>,
    deadline: Option<i64>,
    before: Option<Before>,
    record: Option<RolloutRecordStatus>,
}

impl World {
    fn new(policy: Policy) -> Self {
        Self {
            policy,
            now: 0,
            template: 0,
            generation: 1,
            observed: true,
            phase: Phase::Complete,
            paused: false,
            unobserved_at: 0,
            desired: 2,
            cause: None,
            sets: vec![set(0, 2)],
            best: (2, 2),
            counts: (2, 2),
            progress_at: 0,
            available_at: 0,
            manager: Some(AtWork::Since { since: at(-1000), last: at(0) }),
            deadline: Some(600),
            before: None,
            record: None,
        }
    }

    fn push(&mut self, n: usize) {
        if n == self.template {
            return;
        }
        if self.phase == Phase::Complete {
            let complete = (at(self.now - 100), at(self.now));
            self.before = Some(Before { template: template(self.template), complete });
        }
        self.template = n;
        self.begin();
    }

    fn begin(&mut self) {
        self.generation += 1;
        self.observed = false;
        self.phase = Phase::Unobserved;
        self.unobserved_at = self.now;
        self.cause = None;
        (self.best, self.counts) = ((0, 0), (0, 0));
        self.progress_at = self.now;
        self.available_at = self.now;
    }

    fn observe(&mut self, phase: Phase) {
        self.observed = true;
        self.phase = phase;
        if !self.sets.iter().any(|set| set.template == template(self.template)) {
            self.sets.push(set(self.template, 0));
            let over = self.sets.len().saturating_sub(8);
            self.sets.drain(..over);
        }
    }

    fn pass(&mut self, seconds: i64) {
        self.now += seconds;
        if let Some(AtWork::Since { last, .. }) = &mut self.manager {
            *last = at(self.now);
        }
    }

    fn seen(&self) -> Seen<'_> {
        Seen {
            generation: self.generation,
            observed_generation: if self.observed { self.generation } else { self.generation - 1 },
            phase: self.phase,
            paused: self.paused || self.phase == Phase::Paused,
            desired: self.desired,
            template: template(self.template),
            images: vec![format!("localhost/web:{}", self.template)],
            replica_sets: Some(&self.sets),
            before: self.before.clone(),
            // Nothing is looked for where nothing is under way.
            cause: self
                .cause
                .clone()
                .filter(|_| matches!(self.phase, Phase::Unobserved | Phase::Progressing | Phase::Failed)),
            progress: Progress {
                best: self.best,
                at: at(self.progress_at),
                available_at: at(self.available_at),
            }
            .with(self.counts.0, self.counts.1, at(self.now)),
            unobserved_since: (self.phase == Phase::Unobserved).then_some(at(self.unobserved_at)),
            progress_deadline: self.deadline.map(secs),
            manager: self.manager,
        }
    }

    /// One look: the record as it is to be, and the plan; none where nothing is remembered.
    fn look(&mut self) -> Option<Plan> {
        let now = at(self.now);
        let seen = self.seen();
        let progress = seen.progress;
        let mut status = fold(self.record.as_ref(), &seen, &self.policy, now)?;
        let plan = plan(&Key::new("shop", "web"), &status, &seen, &self.policy, None, now);
        if let Plan::Stay(_) | Plan::Wait(_) = &plan {
            record::not_stuck(&mut status, &seen);
        }
        if let Plan::Hold(cause, hold) = &plan {
            if *hold == Hold::Latched
                && let Some(rollback) = &mut status.rollback
            {
                rollback.outcome = Outcome::Failed;
            }
            if !record::is_put_back(&status) {
                status.cause = Some(cause.clone());
            }
        }
        conditions::set(&mut status, &plan, now);
        let _ = conditions::tellings(&status, &plan);
        self.record = Some(status);
        self.best = progress.best;
        self.progress_at = progress.at.as_second() - at(0).as_second();
        self.available_at = progress.available_at.as_second() - at(0).as_second();
        if self.before.as_ref().is_some_and(|before| before.template != template(self.template)) {
            self.before = None;
        }
        Some(plan)
    }

    /// Writes the intent down.
    fn intend(&mut self, plan: &Plan) {
        let Plan::Restore(cause, set) = plan else { panic!("no restore: {plan:?}") };
        let mut status = self.record.clone().expect("a record");
        let begun = status.rollback.as_ref().is_some_and(|rollback| {
            rollback.outcome == Outcome::InProgress && rollback.from == template(self.template).to_string()
        });
        if !begun {
            record::intend(&mut status, &self.seen(), set, cause, &self.policy, at(self.now));
        }
        self.record = Some(status);
    }

    /// Puts the template back, and writes it down where the process lives for so long.
    fn restore(&mut self, plan: &Plan, survives: bool) {
        let Plan::Restore(_, set) = plan else { panic!("no restore: {plan:?}") };
        self.template = (0..).find(|n| template(*n) == set.template).expect("a template");
        self.begin();
        if survives {
            let mut status = self.record.clone().expect("a record");
            record::restored(&mut status, &self.seen(), at(self.now));
            self.record = Some(status);
        }
    }

    fn status(&self) -> &RolloutRecordStatus {
        self.record.as_ref().expect("a record")
    }

    fn verdict(&self, n: usize) -> Option<Verdict> {
        record::revision(self.status(), &template(n).to_string()).map(|revision| revision.verdict)
    }
}

#[derive(Clone, Debug)]
enum Act {
    Pass(i64),
    Push(usize),
    Observe(Phase),
    Unobserve,
    Cause(Option<(CauseType, bool)>),
    Counts(i32, i32),
    Scale(i32),
    Serve(usize, i32),
    Prune(usize),
    Manager(bool),
    Forget,
}

fn act() -> impl Strategy<Value = Act> {
    let phase = prop_oneof![
        4 => Just(Phase::Progressing),
        3 => Just(Phase::Complete),
        3 => Just(Phase::Failed),
        1 => Just(Phase::Paused),
        1 => Just(Phase::Deleting),
    ];
    let kind = proptest::sample::select(CauseType::ALL.to_vec());
    prop_oneof![
        8 => (1..90_i64).prop_map(Act::Pass),
        1 => (500..2000_i64).prop_map(Act::Pass),
        4 => (0..6_usize).prop_map(Act::Push),
        6 => phase.prop_map(Act::Observe),
        1 => Just(Act::Unobserve),
        4 => proptest::option::weighted(0.7, (kind, any::<bool>())).prop_map(Act::Cause),
        2 => (0..3_i32, 0..3_i32).prop_map(|(updated, available)| Act::Counts(updated, available)),
        1 => (0..3_i32).prop_map(Act::Scale),
        1 => (0..6_usize, 0..3_i32).prop_map(|(n, available)| Act::Serve(n, available)),
        1 => (0..6_usize).prop_map(Act::Prune),
        1 => any::<bool>().prop_map(Act::Manager),
        1 => Just(Act::Forget),
    ]
}

fn policies() -> impl Strategy<Value = Policy> {
    let specs = [
        json!({}),
        json!({"rollback": {"mode": "Manual"}}),
        json!({"rollback": {"mode": "Off"}}),
        json!({"mode": "Audit"}),
        json!({"watch": {"progressingAfter": "30s", "goodAfter": "0s", "unobservedAfter": "0s", "earlyFailureAfter": "0s"}}),
        json!({"rollback": {"causes": ["Image"], "quarantineFor": "5m"}}),
        json!({"watch": {"failedAfter": "40s", "goodAfter": "30s", "earlyFailureAfter": "20s"}}),
    ];
    proptest::sample::select(specs.to_vec()).prop_map(policy)
}

fn apply(world: &mut World, act: &Act) {
    match *act {
        Act::Pass(seconds) => world.pass(seconds),
        Act::Push(n) => world.push(n),
        Act::Observe(phase) => world.observe(phase),
        Act::Unobserve => {
            world.generation += 1;
            world.observed = false;
            world.phase = Phase::Unobserved;
            world.unobserved_at = world.now;
        }
        Act::Cause(found) => world.cause = found.map(|(kind, early)| cause(kind, early)),
        Act::Counts(updated, available) => world.counts = (updated, available),
        Act::Scale(desired) => world.desired = desired,
        Act::Serve(n, available) => {
            if let Some(set) = world.sets.iter_mut().find(|set| set.template == template(n)) {
                set.available = available;
            }
        }
        Act::Prune(n) if n != world.template => world.sets.retain(|set| set.template != template(n)),
        Act::Prune(_) => {}
        Act::Manager(works) => {
            let since = at(world.now);
            world.manager = Some(if works { AtWork::Since { since, last: since } } else { AtWork::No });
        }
        Act::Forget => world.progress_at = world.progress_at.min(world.now),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn no_history_leads_to_two_rollbacks_from_one_push_or_to_one_onto_what_is_bad_or_current(
        policy in policies(),
        history in prop::collection::vec((act(), 0..4_u8), 1..80),
    ) {
        let mut world = World::new(policy);
        // The push that is there, and those that were rolled back from.
        let (mut push, mut put_back) = (0_u32, false);
        let mut rolled_back = Vec::new();
        // Until when each template that was rolled back from is Bad, unless it is found good in between.
        let mut bad = BTreeMap::<usize, i64>::new();
        let quarantine = i64::try_from(world.policy.rollback.quarantine_for.get().as_secs()).expect("short");
        let mut complete_since = None;
        for (act, fortune) in history {
            let before = world.template;
            apply(&mut world, &act);
            if world.template != before {
                push += 1;
                put_back = false;
                complete_since = None;
            }
            complete_since = match world.phase {
                Phase::Complete => complete_since.or(Some(world.now)),
                _ => None,
            };
            let verdicts: Vec<(String, Verdict)> = world.record.iter().flat_map(|record| &record.revisions)
                .map(|revision| (revision.template_hash.clone(), revision.verdict)).collect();
            let Some(plan) = world.look() else { continue };
            let status = world.status().clone();
            let seen = world.seen();
            prop_assert!(status.revisions.len() <= 24);
            prop_assert!(status.revisions.iter().filter(|r| r.verdict == Verdict::Bad).count() <= 14);
            if status.phase == Some(RecordPhase::Complete) && status.settled_at.is_none() {
                prop_assert_eq!(seen.phase, Phase::Complete);
                prop_assert!(seen.observed_generation >= seen.generation);
            }
            if matches!(seen.phase, Phase::Complete | Phase::Paused | Phase::Deleting) {
                prop_assert!(matches!(plan, Plan::Stay(_) | Plan::Wait(_)), "{:?}", plan);
            }
            if let Plan::Wait(due) = &plan {
                prop_assert!(*due > at(world.now) , "{:?} at {}", due, at(world.now));
            }
            // What becomes Good was complete for so long, or was so right before.
            for revision in &status.revisions {
                let was = verdicts.iter().any(|(hash, verdict)| *hash == revision.template_hash && *verdict == Verdict::Good);
                if revision.verdict == Verdict::Good && !was && revision.template_hash == seen.template.to_string() {
                    let span = complete_since.map(|since| world.now - since);
                    let least = i64::try_from(world.policy.watch.good_after.get().as_secs()).expect("short");
                    prop_assert!(span >= Some(least), "Good after {:?} s", span);
                    prop_assert!(seen.desired > 0);
                }
            }
            bad.retain(|n, _| world.verdict(*n) != Some(Verdict::Good));
            // The same look once more is worth no write.
            let mut again = fold(Some(&status), &seen, &world.policy, at(world.now)).expect("a record");
            let once_more = plan_of(&world, &again);
            if let Plan::Stay(_) | Plan::Wait(_) = &once_more {
                record::not_stuck(&mut again, &seen);
            }
            conditions::set(&mut again, &once_more, at(world.now));
            if let Plan::Hold(cause, _) = &once_more && !record::is_put_back(&again) {
                again.cause = Some(cause.clone());
            }
            if !matches!(plan, Plan::Restore(..)) {
                prop_assert!(!record::differ(&status, &again), "{:#?} {:#?}", status, again);
            }
            if let Plan::Restore(_, target) = &plan {
                let current = template(world.template);
                prop_assert_ne!(target.template, current);
                prop_assert!(world.sets.contains(target));
                let known = record::revision(&status, &target.template.to_string());
                prop_assert!(!known.is_some_and(|revision| is_bad(revision, at(world.now))), "onto a Bad one");
                prop_assert!(!put_back, "what was put back is not rolled back from");
                prop_assert!(!rolled_back.contains(&push), "twice from one push");
                let until = bad.get(&world.template);
                prop_assert!(until.is_none_or(|until| world.now >= *until), "twice from one template");
                prop_assert!(world.policy.mode == rollout_guard::api::policy::Mode::Enforce);
                prop_assert!(world.policy.rollback.mode == rollout_guard::api::policy::RollbackMode::Automatic);
                world.intend(&plan);
                prop_assert_eq!(world.verdict(world.template), Some(Verdict::Bad), "the intent makes it Bad");
                match fortune {
                    // Killed before the restore: the next look goes on.
                    0 => {}
                    // Killed after the restore, before that was written down, or not killed.
                    _ => {
                        // Where nobody wrote it down, the webhook alone keeps it away until the next look.
                        if fortune > 1 {
                            bad.insert(world.template, world.now + quarantine);
                        }
                        world.restore(&plan, fortune > 1);
                        (put_back, complete_since) = (true, None);
                        rolled_back.push(push);
                    }
                }
            }
        }
    }

}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 12, ..ProptestConfig::default() })]

    #[test]
    fn however_many_templates_come_and_go_the_record_stays_small(
        pushes in prop::collection::vec((0..200_usize, any::<bool>()), 1..120),
    ) {
        let mut world = World::new(usual());
        for (n, bad) in pushes {
            world.push(n);
            world.look();
            world.observe(if bad { Phase::Failed } else { Phase::Complete });
            for _ in 0..3 {
                world.pass(40);
                let Some(plan @ Plan::Restore(..)) = world.look() else { continue };
                world.intend(&plan);
                world.restore(&plan, true);
                world.observe(Phase::Complete);
            }
            if let Some(status) = &world.record {
                prop_assert!(status.revisions.len() <= 24, "{}", status.revisions.len());
                prop_assert!(serde_json::to_string(status).expect("JSON").len() < 16 * 1024);
            }
        }
    }
}

fn plan_of(world: &World, status: &RolloutRecordStatus) -> Plan {
    plan(&Key::new("shop", "web"), status, &world.seen(), &world.policy, None, at(world.now))
}

/// Good 0, then 1 is pushed and was seen.
fn pushed() -> World {
    let mut world = World::new(usual());
    assert_eq!(world.look(), None, "what has only ever been complete is not remembered");
    world.pass(10);
    world.push(1);
    world.look().expect("a record");
    assert_eq!(world.verdict(0), Some(Verdict::Good), "what was complete before is remembered");
    world
}

#[test]
fn a_template_is_good_when_it_was_complete_for_so_long_and_not_before() {
    let mut world = pushed();
    world.pass(5);
    world.observe(Phase::Complete);
    assert!(matches!(world.look(), Some(Plan::Wait(due)) if due == at(15 + 30)));
    world.pass(29);
    world.look();
    assert_eq!(world.verdict(1), Some(Verdict::Unknown));
    // Incomplete for a moment: it counts from the start again.
    world.observe(Phase::Progressing);
    world.look();
    world.pass(1);
    world.observe(Phase::Complete);
    world.look();
    world.pass(29);
    world.look();
    assert_eq!(world.verdict(1), Some(Verdict::Unknown));
    world.pass(1);
    assert_eq!(world.look(), Some(Plan::Stay(Stay::Settled)));
    assert_eq!(world.verdict(1), Some(Verdict::Good));
    assert!(world.status().settled_at.is_some());
}

#[test]
fn without_replicas_nothing_is_known_to_be_good() {
    let mut world = pushed();
    world.desired = 0;
    world.observe(Phase::Complete);
    world.look();
    world.pass(300);
    world.look();
    assert_eq!(world.verdict(1), Some(Verdict::Unknown));
}

#[test]
fn a_hard_cause_is_waited_for_as_long_as_the_policy_says_and_then_rolled_back_once() {
    let mut world = pushed();
    world.observe(Phase::Progressing);
    world.cause = Some(cause(CauseType::Image, true));
    assert_eq!(world.look(), Some(Plan::Wait(at(10 + 20))));
    world.pass(19);
    assert_eq!(world.look(), Some(Plan::Wait(at(30))));
    world.pass(1);
    let plan = world.look().expect("a plan");
    assert!(
        matches!(&plan, Plan::Restore(cause, set) if cause.kind == CauseType::Image && *set == world.sets[0])
    );
    world.intend(&plan);
    world.restore(&plan, true);
    assert_eq!(world.verdict(1), Some(Verdict::Bad));
    // The very same trouble, of the ReplicaSet that is gone in a moment.
    world.cause = Some(cause(CauseType::Image, true));
    world.observe(Phase::Progressing);
    world.look();
    world.pass(25);
    assert!(matches!(world.look(), Some(Plan::Hold(_, Hold::Latched))), "no second rollback");
}

#[test]
fn fault_40_under_readiness_that_comes_and_goes_the_own_deadline_fires_once() {
    let mut world = pushed();
    world.deadline = Some(100);
    world.observe(Phase::Progressing);
    world.counts = (1, 0);
    let mut restores = Vec::new();
    for _ in 0..100 {
        world.pass(2);
        world.counts.1 = i32::from(world.counts.1 == 0);
        if let Some(plan @ Plan::Restore(..)) = world.look() {
            restores.push(world.now);
            world.intend(&plan);
            world.restore(&plan, true);
            world.observe(Phase::Complete);
        }
    }
    // The best was reached at 12 s: 120 % of the deadline later, and five seconds.
    assert_eq!(restores, [138]);
    assert_eq!(world.status().rollback.as_ref().map(|r| r.outcome), Some(Outcome::Succeeded));
}

#[test]
fn a_rollout_that_gets_on_slowly_is_left_alone() {
    let mut world = pushed();
    world.deadline = Some(100);
    world.observe(Phase::Progressing);
    for updated in 0..20 {
        world.counts = (updated, 0);
        for _ in 0..9 {
            world.pass(10);
            let plan = world.look();
            assert!(matches!(plan, Some(Plan::Wait(_))), "{plan:?}");
        }
    }
}

#[test]
fn fault_40_no_own_deadline_fires_where_kubernetes_has_none() {
    let mut world = pushed();
    world.deadline = None;
    world.observe(Phase::Progressing);
    world.pass(100_000);
    assert_eq!(world.look(), Some(Plan::Stay(Stay::UnderWay)));
}

#[test]
fn fault_37_what_is_not_observed_is_blamed_only_while_somebody_is_at_work() {
    let mut world = pushed();
    world.manager = Some(AtWork::No);
    for _ in 0..30 {
        world.pass(60);
        let plan = world.look();
        assert!(matches!(plan, Some(Plan::Wait(_))), "nobody is at work: {plan:?}");
    }
    // At work again: it has as long as any other.
    world.manager = Some(AtWork::Since { since: at(world.now), last: at(world.now) });
    world.pass(99);
    assert!(matches!(world.look(), Some(Plan::Wait(_))));
    world.pass(1);
    let plan = world.look();
    assert!(matches!(plan, Some(Plan::Restore(..))), "{plan:?}");
}

#[test]
fn what_was_not_observed_while_nobody_was_at_work_gets_its_time_when_somebody_is() {
    let mut world = pushed();
    world.manager = Some(AtWork::No);
    world.pass(3000);
    world.look();
    world.manager = Some(AtWork::Since { since: at(world.now), last: at(world.now) });
    world.observe(Phase::Progressing);
    world.deadline = Some(600);
    for _ in 0..10 {
        world.pass(60);
        let plan = world.look();
        assert!(matches!(plan, Some(Plan::Wait(_))), "{plan:?}");
    }
}

#[test]
fn fault_47_a_replicaset_that_cannot_be_created_is_a_cause_though_nothing_is_observed() {
    let mut world = pushed();
    world.cause = Some(cause(CauseType::ReplicaSetCreate, true));
    world.look();
    world.pass(20);
    let plan = world.look();
    assert!(matches!(&plan, Some(Plan::Restore(_, set)) if *set == world.sets[0]), "{plan:?}");
}

#[test]
fn fault_48_a_condition_of_the_generation_before_is_known_by_the_replicaset_it_names() {
    let condition = |reason: &'static str, message: &'static str| Condition {
        status: "False".into(),
        reason: reason.into(),
        message: message.into(),
        ..Condition::default()
    };
    let exceeded = condition("ProgressDeadlineExceeded", "ReplicaSet \"web-1\" has timed out progressing.");
    let created = condition("ReplicaSetCreateError", "Failed to create new replica set \"web-1\": quota");
    let own = condition("ProgressDeadlineExceeded", "Deployment \"web\" has timed out progressing.");
    for (condition, current, inherited) in [
        (&exceeded, Some("web-0"), true),
        (&exceeded, Some("web-1"), false),
        (&exceeded, None, true),
        (&created, Some("web-0"), true),
        (&created, None, false),
        (&own, Some("web-0"), false),
        (&own, None, false),
    ] {
        assert_eq!(is_inherited(condition, current), inherited, "{condition:?} {current:?}");
    }
    assert!(!is_inherited(&Condition { status: "True".into(), ..exceeded }, Some("web-0")));
}

#[test]
fn fault_30_killed_between_restore_and_record_it_is_one_rollback_that_succeeds() {
    let mut world = pushed();
    world.observe(Phase::Failed);
    let plan = world.look().expect("a plan");
    world.intend(&plan);
    world.restore(&plan, false);
    // The next process finds the intent and the template that is back.
    assert!(matches!(world.look(), Some(Plan::Wait(_))));
    world.pass(5);
    world.observe(Phase::Complete);
    world.look();
    let rollback = world.status().rollback.clone().expect("a rollback");
    assert_eq!((rollback.outcome, rollback.generation), (Outcome::Succeeded, Some(3)));
}

#[test]
fn fault_43_a_template_that_comes_in_between_supersedes_the_rollback() {
    let mut world = pushed();
    world.observe(Phase::Failed);
    let plan = world.look().expect("a plan");
    world.intend(&plan);
    world.push(2);
    assert!(matches!(world.look(), Some(Plan::Wait(_))));
    assert_eq!(world.status().rollback.as_ref().map(|r| r.outcome), Some(Outcome::Superseded));
    assert_eq!(world.template, 2);
}

#[test]
fn fault_42_a_bad_template_that_comes_again_is_held_until_its_quarantine_is_over() {
    let mut world = pushed();
    world.policy = policy(json!({"watch": {"goodAfter": "30s"}, "rollback": {"quarantineFor": "1h"}}));
    world.observe(Phase::Failed);
    let plan = world.look().expect("a plan");
    world.intend(&plan);
    world.restore(&plan, true);
    world.observe(Phase::Complete);
    world.look();
    world.pass(40);
    world.look();
    world.push(1);
    world.look();
    world.observe(Phase::Failed);
    assert!(matches!(world.look(), Some(Plan::Hold(_, Hold::Again))));
    // Let in by an override, it works now: it is Good.
    world.observe(Phase::Complete);
    world.look();
    world.pass(31);
    world.look();
    assert_eq!(world.verdict(1), Some(Verdict::Good));
}

#[test]
fn what_is_held_is_written_once_however_often_it_is_looked_at() {
    for kind in [None, Some(CauseType::Capacity), Some(CauseType::Unknown), Some(CauseType::Application)] {
        let mut world = pushed();
        world.policy = policy(json!({"rollback": {"mode": "Manual"}}));
        world.deadline = Some(60);
        world.observe(Phase::Progressing);
        world.cause = kind.map(|kind| cause(kind, false));
        world.pass(200);
        assert!(matches!(world.look(), Some(Plan::Hold(..))));
        let first = world.status().clone();
        for _ in 0..20 {
            world.pass(15);
            assert!(matches!(world.look(), Some(Plan::Hold(..))));
            assert!(!record::differ(&first, world.status()), "{kind:?}: {first:#?} {:#?}", world.status());
        }
    }
}

#[test]
fn a_record_that_was_created_and_not_written_to_is_as_good_as_none() {
    let mut world = World::new(usual());
    world.record = Some(RolloutRecordStatus::default());
    world.pass(10);
    world.push(1);
    world.look().expect("a record");
    assert_eq!(world.verdict(0), Some(Verdict::Good), "what was complete before is not lost");
}

#[test]
fn what_a_clock_ahead_has_written_is_not_waited_for() {
    let mut world = pushed();
    world.observe(Phase::Progressing);
    world.cause = Some(cause(CauseType::Image, true));
    world.pass(600);
    world.look();
    // The next process has a clock that is ten minutes behind.
    world.now -= 600;
    world.look();
    world.pass(21);
    let plan = world.look();
    assert!(matches!(plan, Some(Plan::Restore(..))), "{plan:?}");
}

#[test]
fn stuck_is_said_of_no_settled_template() {
    let mut world = pushed();
    world.observe(Phase::Complete);
    world.look();
    world.pass(31);
    world.look();
    world.observe(Phase::Failed);
    world.cause = Some(cause(CauseType::Image, true));
    world.pass(5000);
    assert_eq!(world.look(), Some(Plan::Stay(Stay::Settled)));
    assert_eq!(record::stuck(world.status(), &world.seen(), &world.policy, at(world.now)), Stuck::No);
}

#[test]
fn a_rollback_that_was_held_up_until_the_template_was_good_is_not_made_up_for() {
    let mut world = pushed();
    world.observe(Phase::Failed);
    let plan = world.look().expect("a plan");
    world.intend(&plan);
    // Killed, or stopped; meanwhile it gets well by itself.
    world.observe(Phase::Complete);
    world.look();
    world.pass(31);
    assert_eq!(world.look(), Some(Plan::Stay(Stay::Settled)));
    assert_eq!(world.status().rollback.as_ref().map(|r| r.outcome), Some(Outcome::Superseded));
    // A node is lost, much later.
    world.pass(5000);
    world.observe(Phase::Failed);
    assert_eq!(world.look(), Some(Plan::Stay(Stay::Settled)));
}

#[test]
fn a_template_that_is_back_later_than_it_may_has_succeeded_all_the_same() {
    let mut world = pushed();
    world.observe(Phase::Failed);
    let plan = world.look().expect("a plan");
    world.intend(&plan);
    world.restore(&plan, true);
    world.pass(101);
    assert!(matches!(world.look(), Some(Plan::Hold(_, Hold::Latched))));
    assert_eq!(world.status().rollback.as_ref().map(|r| r.outcome), Some(Outcome::Failed));
    world.observe(Phase::Complete);
    world.look();
    assert_eq!(world.status().rollback.as_ref().map(|r| r.outcome), Some(Outcome::Succeeded));
}

#[test]
fn fault_47_an_error_of_the_template_before_is_not_blamed_on_a_fix_that_nobody_has_looked_at() {
    let mut world = pushed();
    world.policy = policy(json!({"watch": {"unobservedAfter": "100s", "earlyFailureAfter": "5s"}}));
    world.cause = Some(cause(CauseType::ReplicaSetCreate, true));
    world.look();
    // kube-controller-manager has renewed its lease last when the fix came.
    world.manager = Some(AtWork::Since { since: at(-1000), last: at(world.now) });
    world.now += 15;
    assert!(matches!(world.look(), Some(Plan::Wait(_))));
    world.manager = Some(AtWork::Since { since: at(-1000), last: at(world.now) });
    assert!(matches!(world.look(), Some(Plan::Restore(..))));
}

// ---- what nobody followed -------------------------------------------------------------------------------------

#[test]
fn what_was_complete_before_a_push_is_the_target_though_the_record_knows_of_an_earlier_one_alone() {
    let mut world = World::new(usual());
    world.push(1);
    world.observe(Phase::Complete);
    world.pass(40);
    world.look();
    world.pass(40);
    world.look();
    assert_eq!(world.verdict(1), Some(Verdict::Good));
    // Rolled out while the policy was off; it has been complete for long when the bad one is pushed.
    world.push(2);
    world.observe(Phase::Complete);
    world.sets = vec![set(0, 0), set(1, 0), set(2, 2)];
    world.pass(1000);
    world.push(3);
    world.observe(Phase::Failed);
    let Some(Plan::Restore(_, target)) = world.look() else { panic!("{:?}", world.record) };
    assert_eq!(target, set(2, 2));
    assert_eq!(world.verdict(2), Some(Verdict::Good));
}

#[test]
fn what_serves_and_is_unknown_is_the_target_before_what_was_good_long_ago_and_serves_no_more() {
    let mut world = World::new(usual());
    world.push(1);
    world.observe(Phase::Complete);
    world.pass(40);
    world.look();
    world.pass(40);
    world.look();
    // Two pushes while nobody led: what was complete in between was seen by nobody.
    world.push(3);
    world.before = None;
    world.observe(Phase::Failed);
    for (there, expected) in [
        (vec![set(1, 0), set(2, 2), set(3, 0)], set(2, 2)),
        // Half rolled out, it is no better than what was good.
        (vec![set(1, 2), set(2, 1), set(3, 0)], set(1, 2)),
        (vec![set(1, 0), set(2, 0), set(3, 0)], set(1, 0)),
    ] {
        let record = world.record.clone();
        world.sets = there;
        let Some(Plan::Restore(_, target)) = world.look() else { panic!("{:?}", world.record) };
        assert_eq!(target, expected);
        world.record = record;
    }
}

#[test]
fn a_settled_template_whose_scaling_nobody_observes_is_told_and_not_rolled_back() {
    let mut world = World::new(usual());
    world.push(1);
    world.observe(Phase::Complete);
    world.pass(40);
    world.look();
    world.pass(40);
    world.look();
    world.pass(1000);
    world.look();
    // Scaled, or annotated: a generation of the same template.
    world.generation += 1;
    world.observed = false;
    world.phase = Phase::Unobserved;
    world.unobserved_at = world.now;
    let written = world.now;
    while world.now < written + 100 {
        assert!(
            !matches!(world.look(), Some(Plan::Hold(..) | Plan::Restore(..))),
            "after {} s",
            world.now - written
        );
        world.pass(10);
    }
    let plan = world.look();
    assert!(matches!(plan, Some(Plan::Hold(_, Hold::SameTemplate))), "{plan:?}");
    let record = world.record.clone().expect("a record");
    assert_eq!(record.phase, Some(RecordPhase::Unobserved));
    assert!(record.conditions.iter().any(|c| c.type_ == "Stalled" && c.status == "True"), "{record:?}");
    // It stays so, and ends when it is observed.
    world.pass(10);
    assert!(matches!(world.look(), Some(Plan::Hold(_, Hold::SameTemplate))));
    world.observe(Phase::Progressing);
    assert_eq!(world.look(), Some(Plan::Stay(Stay::Settled)));
    world.observe(Phase::Complete);
    assert_eq!(world.look(), Some(Plan::Stay(Stay::Settled)));
    let record = world.record.expect("a record");
    assert_eq!((record.phase, record.cause), (Some(RecordPhase::Complete), None));
    assert!(record.conditions.iter().any(|c| c.type_ == "Stalled" && c.status == "False"));
}

#[test]
fn fault_44_what_is_paused_and_not_observed_yet_is_left_alone() {
    let mut world = World::new(usual());
    world.push(1);
    world.observe(Phase::Failed);
    assert!(matches!(world.look(), Some(Plan::Restore(..))));
    world.generation += 1;
    world.observed = false;
    world.phase = Phase::Unobserved;
    world.paused = true;
    world.cause = Some(cause(CauseType::ReplicaSetCreate, true));
    for _ in 0..20 {
        world.pass(30);
        assert_eq!(world.look(), Some(Plan::Stay(Stay::Paused)));
    }
}

#[test]
fn fault_37_a_deadline_that_passed_while_kube_controller_manager_was_away_is_not_believed_at_once() {
    let mut world = World::new(usual());
    world.push(1);
    world.observe(Phase::Progressing);
    world.look();
    world.pass(700);
    let back = world.now;
    world.phase = Phase::Failed;
    world.manager = Some(AtWork::No);
    assert!(matches!(world.look(), Some(Plan::Wait(_))), "{:?}", world.record);
    world.manager = Some(AtWork::Since { since: at(back), last: at(back) });
    world.pass(20);
    assert!(matches!(world.look(), Some(Plan::Wait(_))), "{:?}", world.record);
    // What was said by what it had not seen yet is taken back; else it is meant.
    world.pass(10);
    assert!(matches!(world.look(), Some(Plan::Restore(..))), "{:?}", world.record);
}

#[test]
fn pods_that_crash_some_times_and_then_run_one_after_the_other_are_left_alone() {
    let mut world = World::new(usual());
    world.push(1);
    world.observe(Phase::Progressing);
    for available in 1..=5 {
        world.cause = Some(cause(CauseType::Application, true));
        for _ in 0..3 {
            let plan = world.look();
            assert!(!matches!(plan, Some(Plan::Restore(..))), "at {available}: {plan:?}");
            world.pass(5);
        }
        world.counts = (5, available);
    }
    // And where no more come up, it is what it seems.
    for _ in 0..5 {
        world.pass(5);
        if matches!(world.look(), Some(Plan::Restore(..))) {
            return;
        }
    }
    panic!("{:?}", world.record);
}

#[test]
fn a_quarantine_that_is_over_is_forgotten_whenever_the_template_comes_again() {
    let mut world =
        World::new(policy(json!({"watch": {"goodAfter": "30s"}, "rollback": {"quarantineFor": "1h"}})));
    world.push(1);
    world.observe(Phase::Failed);
    let plan = world.look().expect("a plan");
    world.intend(&plan);
    world.push(0);
    world.observe(Phase::Complete);
    world.look();
    assert_eq!(world.verdict(1), Some(Verdict::Bad));
    // Nobody looks meanwhile.
    world.pass(3601);
    world.push(1);
    world.observe(Phase::Progressing);
    world.look();
    assert_eq!(world.verdict(1), Some(Verdict::Unknown));
}

/// Without a readiness probe it is complete for a moment after each crash.
#[test]
fn a_crash_loop_that_is_held_does_not_become_good_by_the_push_that_follows_it() {
    let mut world =
        World::new(policy(json!({"watch": {"goodAfter": "30s"}, "rollback": {"mode": "Manual"}})));
    world.push(1);
    world.observe(Phase::Complete);
    world.look();
    for _ in 0..10 {
        world.pass(10);
        world.phase = Phase::Progressing;
        world.cause = Some(cause(CauseType::Application, true));
        world.look();
        world.pass(10);
        world.phase = Phase::Complete;
        world.look();
    }
    world.pass(10);
    world.push(2);
    // As the store tells it: from its first completion to its last moment.
    let before = Before { template: template(1), complete: (at(0), at(world.now)) };
    world.before = Some(before);
    world.observe(Phase::Failed);
    world.look();
    assert_eq!(world.verdict(1), Some(Verdict::Unknown));
}
