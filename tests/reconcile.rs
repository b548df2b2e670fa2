//! The reconciler call by call: each story is one exact conversation with an API server in memory.
//!
//! Reads are left out of the lines where they are not the point: what is written, in which order, is.

#![allow(clippy::expect_used, clippy::panic, reason = "what a test needs is there, or the test fails")]

mod memory;

use std::{
    future::Future,
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, atomic::Ordering},
    task::{Context, Poll},
};

use futures::task::noop_waker_ref;
use jiff::Timestamp;
use memory::{Api, Broken, Fault, State, WELL, policy, reconciler, secs, short};
use rollout_guard::{
    api::record::{Outcome, Verdict},
    core::{
        key::Key,
        policy::PolicySet,
        record::{AtWork, Before},
        rollout::Phase,
        template::TemplateHash,
    },
    watcher::reconcile::{Memory, Next, ReconcileError, Reconciler},
};
use serde_json::json;

/// One Deployment, shop/web, followed by one process.
struct Story {
    state: Arc<Mutex<State>>,
    reconciler: Reconciler<Api>,
    memory: Memory,
    key: Key,
    /// Since when kube-controller-manager is at work.
    at_work: Timestamp,
}

impl Story {
    /// good-1 is complete; then `tag` is pushed, and it was seen.
    fn of(tag: &str) -> Self {
        Self::under(short("Enforce", "Automatic"), tag)
    }

    fn under(spec: serde_json::Value, tag: &str) -> Self {
        let mut state = State::new(1, 1, Broken::default());
        let key = Key::new("shop", "web");
        state.create(&key, "good-1", 2);
        state.good_after = secs(10);
        state.switches[0].leads.store(true, Ordering::SeqCst);
        let state = Arc::new(Mutex::new(state));
        let reconciler = reconciler(&state, 0, policy(spec));
        reconciler.surroundings.set_guarded(10);
        let mut story = Self { state, reconciler, memory: Memory::default(), key, at_work: memory::start() };
        story.pass(30);
        story.push(tag);
        story.state().calls = Some(Vec::new());
        story
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("not poisoned")
    }

    /// Pushes a template; the watch tells what was complete before.
    fn push(&mut self, tag: &str) {
        let mut state = self.state();
        let now = state.now;
        let complete = state.phase(&self.key) == Phase::Complete;
        let before = TemplateHash::of(&state.deployments[&self.key]["spec"]["template"]);
        state.push(&self.key, tag);
        drop(state);
        if complete {
            self.memory.before = Some(Before { template: before, complete: (now - secs(25), now) });
        }
    }

    /// The cluster goes on for so many seconds; the guard does not look.
    fn pass(&self, seconds: i64) {
        let mut state = self.state();
        for _ in 0..seconds {
            let now = state.now;
            state.advance(now + secs(1));
            for _ in 0..5 {
                if state.is_due(&self.key) {
                    state.sync(&self.key);
                }
            }
        }
        let now = state.now;
        drop(state);
        self.well(now);
    }

    fn well(&self, now: Timestamp) {
        let at_work = AtWork::Since { since: self.at_work, last: now };
        self.reconciler.surroundings.set_health(WELL, Some(at_work), Default::default(), now);
    }

    /// One look. None: the process was killed in it.
    fn try_look(&mut self) -> Option<Result<Next, ReconcileError>> {
        let now = self.state().now;
        self.well(now);
        let result = {
            let look = pin!(self.reconciler.reconcile(&self.key, &mut self.memory, now));
            let mut look = look;
            match look.as_mut().poll(&mut Context::from_waker(noop_waker_ref())) {
                Poll::Ready(result) => Some(result),
                Poll::Pending => None,
            }
        };
        if result.is_none() {
            // A new process, with nothing in mind.
            self.memory = Memory::default();
            let policies = self.reconciler.world.policies();
            self.reconciler = reconciler(&self.state, 0, policies.ranked()[0].clone());
            self.reconciler.surroundings.set_guarded(10);
            self.state().killed.clear();
        }
        result
    }

    /// One look that comes to its end.
    fn look(&mut self) -> Next {
        self.try_look().expect("alive").expect("a look")
    }

    /// The guard looks, the cluster goes on, for so many seconds. Looks that fail are tried again.
    fn go(&mut self, seconds: i64) {
        for _ in 0..seconds {
            let _ = self.try_look();
            self.pass(1);
        }
    }

    /// What was written since this was asked last.
    fn written(&self) -> Vec<String> {
        let mut state = self.state();
        assert_eq!(state.violations, Vec::<String>::new());
        let calls = state.calls.replace(Vec::new()).expect("calls are kept");
        calls.into_iter().filter(|call| !call.starts_with("read ") && !call.starts_with("list ")).collect()
    }

    /// All calls since this was asked last.
    fn called(&self) -> Vec<String> {
        self.state().calls.replace(Vec::new()).expect("calls are kept")
    }

    fn plan(&self, on: &'static str, fault: Fault) {
        self.state().planned.push((on, fault));
    }

    fn tag(&self) -> String {
        self.state().tag(&self.key)
    }

    fn outcome(&self) -> Option<Outcome> {
        self.state().own_record(&self.key)?.status.rollback.as_ref().map(|rollback| rollback.outcome)
    }

    /// Each Event that was told, and how often it was asked for.
    fn events(&self) -> Vec<(&'static str, u32)> {
        let mut events: Vec<_> =
            self.state().events.values().map(|(notice, count)| (notice.reason, *count)).collect();
        events.sort_unstable();
        events
    }

    fn is_safe(&self) {
        assert_eq!(self.tag(), "good-1");
        let state = self.state();
        assert_eq!(state.phase(&self.key), Phase::Complete);
        assert_eq!(state.restores, 1, "one restore");
        assert!(!state.is_announced(&self.key));
        assert_eq!(state.managers(&self.key), ["helm"], "fields are handed back");
        assert_eq!(state.violations, Vec::<String>::new());
        drop(state);
        assert_eq!(self.outcome(), Some(Outcome::Succeeded));
    }
}

#[test]
fn what_is_complete_and_unknown_costs_two_reads_and_no_write() {
    let mut story = Story::of("good-1");
    assert_eq!(story.look(), Next::Idle);
    assert_eq!(story.called(), ["read Deployment", "read record"]);
}

#[test]
fn a_good_push_costs_a_record_and_one_write_for_each_phase() {
    let mut story = Story::of("good-2");
    story.go(40);
    insta::assert_snapshot!(story.written().join("\n"), @r"
    create record
    write record Unobserved
    write record Progressing
    write record Complete
    write record Complete settled
    ");
    assert_eq!(story.look(), Next::Idle);
    assert_eq!(story.events(), []);
}

#[test]
fn a_bad_image_is_rolled_back_verified_and_told_once() {
    let mut story = Story::of("missing-2");
    story.go(90);
    insta::assert_snapshot!(story.written().join("\n"), @r"
    create record
    write record Unobserved
    write record Progressing
    write record Progressing Image
    write record Progressing Image InProgress RollingBack
    announce
    restore good-1
    write record Unobserved InProgress
    hand back
    tell RolloutStuck
    tell RolledBack
    write record Complete Succeeded
    tell RollbackVerified
    write record Complete Succeeded settled
    retract
    ");
    story.is_safe();
    assert_eq!(story.events(), [("RollbackVerified", 1), ("RolledBack", 1), ("RolloutStuck", 1)]);
    assert_eq!(story.look(), Next::Idle);
}

#[test]
fn the_look_that_restores_reads_first_writes_the_intent_and_then_acts() {
    let mut story = Story::of("missing-2");
    story.go(5);
    story.pass(10);
    story.called();
    story.look();
    insta::assert_snapshot!(story.called().join("\n"), @r"
    read Deployment
    read record
    list ReplicaSets
    list pods
    write record Progressing Image InProgress RollingBack
    announce
    restore good-1
    write record Unobserved InProgress
    hand back
    tell RolloutStuck
    tell RolledBack
    ");
}

#[test]
fn fault_47_a_replicaset_that_may_not_be_created_is_rolled_back_from_though_nothing_is_observed() {
    let mut story = Story::of("denied-2");
    story.go(90);
    insta::assert_snapshot!(story.written().join("\n"), @r"
    create record
    write record Unobserved
    write record Unobserved ReplicaSetCreate
    write record Unobserved ReplicaSetCreate InProgress RollingBack
    announce
    restore good-1
    write record Unobserved InProgress
    hand back
    tell RolloutStuck
    tell RolledBack
    write record Complete Succeeded
    tell RollbackVerified
    write record Complete Succeeded settled
    retract
    ");
    story.is_safe();
}

#[test]
fn fault_39_pods_beyond_their_quota_are_held_and_told_once() {
    let mut story = Story::of("quota-2");
    story.go(120);
    assert_eq!(story.tag(), "quota-2");
    insta::assert_snapshot!(story.written().join("\n"), @r"
    create record
    write record Unobserved
    write record Progressing
    write record Failed Capacity Held
    tell RolloutStuck
    tell RollbackHeld
    ");
    assert_eq!(story.events(), [("RollbackHeld", 1), ("RolloutStuck", 1)]);
}

#[test]
fn fault_41_without_a_good_revision_it_is_held() {
    let mut story = Story::of("good-1");
    let key = Key::new("shop", "new");
    story.state().create(&key, "crash-1", 2);
    story.key = key;
    story.memory = Memory::default();
    story.go(120);
    assert_eq!(story.tag(), "crash-1");
    let state = story.state();
    let record = state.own_record(&story.key).expect("a record");
    let stalled = record.status.conditions.iter().find(|c| c.type_ == "Stalled").expect("a condition");
    assert!(stalled.message.ends_with("there is no good revision to return to"), "{}", stalled.message);
}

#[test]
fn fault_41_a_revision_that_is_stuck_as_well_is_latched() {
    let mut story = Story::of("missing-2");
    story.go(5);
    // The nodes lose the good one.
    let taken = |state: &mut State| {
        for pod in state.pods.values_mut() {
            pod.image = pod.image.replace("good", "missing");
        }
    };
    story.plan("restore", Fault::Before(Box::new(taken)));
    story.go(150);
    assert_eq!(story.outcome(), Some(Outcome::Failed));
    assert_eq!(story.state().restores, 1);
    assert!(story.events().contains(&("RollbackLatched", 1)), "{:?}", story.events());
}

#[test]
fn under_manual_the_command_is_told_and_nothing_is_touched() {
    let mut story = Story::under(short("Enforce", "Manual"), "missing-2");
    story.go(120);
    insta::assert_snapshot!(story.written().join("\n"), @r"
    create record
    write record Unobserved
    write record Progressing
    write record Progressing Image
    write record Progressing Image Held
    tell RolloutStuck
    tell RollbackHeld
    write record Failed Image Held
    ");
    let state = story.state();
    let (notice, _) = state.events.values().find(|(n, _)| n.reason == "RollbackHeld").expect("told");
    assert!(notice.message.ends_with("kubectl rollout-guard undo web -n shop --to 1"), "{}", notice.message);
}

#[test]
fn under_audit_nothing_is_touched_either() {
    let mut story = Story::under(short("Audit", "Automatic"), "missing-2");
    story.go(120);
    assert_eq!((story.tag(), story.state().restores), ("missing-2".to_owned(), 0));
}

#[test]
fn fault_46_with_the_kill_switch_pulled_nothing_is_written_and_afterwards_all_goes_on() {
    let mut story = Story::of("missing-2");
    story.go(4);
    story.written();
    story.state().switches[0].stopped.store(true, Ordering::SeqCst);
    story.go(60);
    assert_eq!(story.written(), Vec::<String>::new());
    assert!(matches!(story.try_look(), Some(Err(ReconcileError::Stopped(_)))));
    story.state().switches[0].stopped.store(false, Ordering::SeqCst);
    story.go(90);
    story.is_safe();
}

#[test]
fn fault_33_a_process_that_leads_no_more_writes_nothing() {
    let mut story = Story::of("missing-2");
    story.go(4);
    story.written();
    story.state().switches[0].leads.store(false, Ordering::SeqCst);
    story.go(60);
    assert_eq!(story.written(), Vec::<String>::new());
    assert!(matches!(story.try_look(), Some(Err(ReconcileError::NotLeading))));
}

#[test]
fn fault_30_killed_before_and_after_every_write_it_is_one_restore() {
    let mut story = Story::of("missing-2");
    story.go(90);
    let mut steps: Vec<&'static str> = vec!["create record", "announce", "restore", "hand back", "retract"];
    steps.extend(["tell RolloutStuck", "tell RolledBack", "tell RollbackVerified"]);
    steps.extend([
        "write record Unobserved",
        "write record Progressing",
        "write record Progressing Image",
        "write record Progressing Image InProgress",
        "write record Unobserved InProgress",
        "write record Complete Succeeded",
        "write record Complete Succeeded settled",
    ]);
    for step in steps {
        for fault in
            [Fault::KilledBefore, Fault::KilledAfter, Fault::Lost, Fault::Unanswered, Fault::Code(500)]
        {
            let mut story = Story::of("missing-2");
            story.plan(step, fault);
            story.go(120);
            assert!(story.state().planned.is_empty(), "{step} was reached");
            story.is_safe();
            let twice: Vec<_> = story.state().events.values().map(|(n, _)| n.reason).collect();
            let mut once = twice.clone();
            once.sort_unstable();
            once.dedup();
            assert_eq!(once.len(), twice.len(), "{step}: {twice:?}");
        }
    }
}

#[test]
fn fault_31_a_409_on_any_write_is_read_again_and_done_again() {
    for step in ["write record Progressing Image InProgress", "announce", "restore", "hand back", "retract"] {
        let mut story = Story::of("missing-2");
        story.plan(step, Fault::Code(409));
        story.go(120);
        assert!(story.state().planned.is_empty(), "{step} was reached");
        story.is_safe();
    }
}

#[test]
fn fault_31_a_status_that_changes_between_announcement_and_restore_costs_one_more_read() {
    let mut story = Story::of("missing-2");
    story.go(5);
    story.pass(10);
    let key = story.key.clone();
    story.plan(
        "restore",
        Fault::Before(Box::new(move |state| {
            state.scale(&key, 3);
        })),
    );
    story.written();
    story.look();
    let calls = story.called();
    let at = calls.iter().position(|call| call.starts_with("restore")).expect("a restore");
    assert_eq!(calls[at..at + 3], ["restore good-1", "read Deployment", "restore good-1"]);
    assert_eq!(
        story.state().deployments[&story.key]["spec"]["replicas"],
        json!(3),
        "an autoscaler's replicas are kept"
    );
}

#[test]
fn fault_43_a_fix_that_comes_between_announcement_and_restore_wins() {
    let mut story = Story::of("missing-2");
    story.go(5);
    story.pass(10);
    let key = story.key.clone();
    story.plan(
        "restore",
        Fault::Before(Box::new(move |state| {
            state.push(&key, "good-3");
        })),
    );
    story.go(120);
    assert_eq!((story.tag(), story.state().restores), ("good-3".to_owned(), 0));
    assert_eq!(story.outcome(), Some(Outcome::Superseded));
    assert!(!story.state().is_announced(&story.key), "what was announced is taken back");
    assert!(!story.events().iter().any(|(reason, _)| *reason == "RolledBack"), "{:?}", story.events());
}

#[test]
fn fault_44_paused_or_deleted_between_announcement_and_restore_it_is_left_alone() {
    for held in [false, true] {
        let mut story = Story::of("missing-2");
        story.go(5);
        story.pass(10);
        let key = story.key.clone();
        story.plan(
            "restore",
            Fault::Before(Box::new(move |state| {
                if held {
                    state.delete(&key, true);
                } else {
                    state.pause(&key, true);
                }
            })),
        );
        story.go(60);
        assert_eq!((story.tag(), story.state().restores), ("missing-2".to_owned(), 0));
    }
}

#[test]
fn fault_11_a_record_that_somebody_planted_is_replaced() {
    let mut story = Story::of("good-1");
    story.state().tamper_with_record(&story.key.clone(), true);
    story.push("missing-2");
    story.go(2);
    assert_eq!(story.written()[..2], ["delete record", "create record"]);
    story.go(90);
    story.is_safe();
}

#[test]
fn fault_45_a_replicaset_that_somebody_planted_is_no_target() {
    let mut story = Story::of("missing-2");
    let key = story.key.clone();
    story.state().plant_set(&key, "good-9");
    story.go(90);
    story.is_safe();
}

#[test]
fn fault_42_a_bad_template_that_is_pushed_again_is_held() {
    let mut story = Story::of("missing-2");
    story.go(90);
    story.push("missing-2");
    story.written();
    story.go(120);
    assert_eq!((story.tag(), story.state().restores), ("missing-2".to_owned(), 1));
    let state = story.state();
    let record = state.own_record(&story.key).expect("a record");
    assert_eq!(record.status.revisions[0].verdict, Verdict::Bad);
}

#[test]
fn fault_42_a_fix_after_a_rollback_is_left_alone_and_becomes_good() {
    let mut story = Story::of("missing-2");
    story.go(90);
    story.push("good-3");
    story.written();
    story.go(60);
    assert_eq!(
        story.written(),
        [
            "write record Unobserved Succeeded",
            "write record Progressing Succeeded",
            "write record Complete Succeeded",
            "write record Complete Succeeded settled",
        ]
    );
    assert_eq!(story.tag(), "good-3");
}

#[test]
fn a_push_while_nobody_observes_is_not_rolled_back_as_soon_as_it_is_observed() {
    let mut story = Story::of("slow-2");
    let silent = AtWork::No;
    for _ in 0..200 {
        let now = story.state().now;
        story.state().advance(now + secs(1));
        let health = rollout_guard::core::breaker::Health {
            controller_manager: rollout_guard::core::breaker::ControllerManager::Stale,
            ..WELL
        };
        let now = story.state().now;
        story.reconciler.surroundings.set_health(health, Some(silent), Default::default(), now);
        let look = story.reconciler.reconcile(&story.key, &mut story.memory, now);
        let _ = pin!(look).as_mut().poll(&mut Context::from_waker(noop_waker_ref()));
    }
    let now = story.state().now;
    story.at_work = now;
    story.go(200);
    assert_eq!((story.tag(), story.state().restores), ("slow-2".to_owned(), 0));
    assert_eq!(story.state().phase(&story.key), Phase::Complete);
}

#[test]
fn a_slow_rollout_is_left_alone_by_a_process_that_takes_over_in_the_middle_of_it() {
    let mut story = Story::of("good-1");
    story.state().scale(&story.key.clone(), 5);
    story.pass(20);
    story.push("slow-2");
    for _ in 0..300 {
        story.go(1);
        // Each process knows the record alone.
        story.memory = Memory::default();
    }
    assert_eq!((story.tag(), story.state().restores), ("slow-2".to_owned(), 0));
    assert_eq!(story.state().phase(&story.key), Phase::Complete);
}

#[test]
fn policies_that_change_are_heeded_at_the_next_look() {
    let mut story = Story::of("missing-2");
    story.go(5);
    story.reconciler.world.set_policies(PolicySet::new([policy(short("Enforce", "Off"))]));
    story.go(100);
    assert_eq!(story.state().restores, 0);
    story.reconciler.world.set_policies(PolicySet::new([policy(short("Enforce", "Automatic"))]));
    story.go(100);
    story.is_safe();
}

#[test]
fn what_is_known_of_a_deployment_is_not_taken_for_another_of_its_name() {
    let mut story = Story::under(short("Enforce", "Manual"), "crash-2");
    story.go(60);
    assert!(story.events().contains(&("RolloutStuck", 1)));
    let key = story.key.clone();
    story.state().delete(&key, false);
    story.state().collect();
    story.state().create(&key, "crash-2", 2);
    story.go(7);
    let told = |story: &Story| story.events().iter().filter(|(reason, _)| *reason == "RolloutStuck").count();
    assert_eq!(told(&story), 1, "it has its own time");
    story.go(60);
    assert_eq!(told(&story), 2, "it is told of as well");
}
