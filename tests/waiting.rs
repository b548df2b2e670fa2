//! `wait`: the state machine alone, what it prints, and the binary where there is no cluster.

#![allow(clippy::expect_used, clippy::panic, reason = "what a test needs is there, or the test fails")]

use std::time::{Duration, Instant};

use assert_cmd::Command;
use jiff::{SignedDuration, Timestamp};
use proptest::prelude::*;
use rollout_guard::{
    api::{
        policy::CauseType,
        record::{Outcome, RecordRollback, RolloutRecordStatus},
    },
    commands::{
        output::Screen,
        wait::{Format, News, Report, What, step_summary},
    },
    core::{
        cause::Cause,
        key::Key,
        rollout::Phase,
        template::TemplateHash,
        view::{Around, DeploymentView},
        waiting::{Decided, End, GUARD_DECIDES, Observed, Position, Push, Step, Terms, Waiting, worst},
    },
};
use serde_json::{Value, json};

fn at(seconds: i64) -> Timestamp {
    let start: Timestamp = "2026-11-24T12:00:00Z".parse().expect("a time");
    start + SignedDuration::from_secs(seconds)
}

fn time(seconds: i64) -> String {
    format!("{:.0}", at(seconds))
}

fn template(tag: &str) -> Value {
    json!({"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "app", "image": format!("web:{tag}")}]}})
}

fn hash(tag: &str) -> String {
    TemplateHash::of(&template(tag)).to_string()
}

/// A cluster of one Deployment: shop/web with two replicas, of which v1 was there before.
#[derive(Clone, Debug)]
struct World {
    uid: &'static str,
    generation: i64,
    observed: i64,
    tag: &'static str,
    /// Tag, revision, and when its ReplicaSet was made.
    sets: Vec<(&'static str, i64, i64)>,
    updated: i32,
    available: i32,
    replicas: i32,
    paused: bool,
    deleting: bool,
    conditions: Vec<Value>,
    written: i64,
    record: Option<RolloutRecordStatus>,
    cause: Option<Cause>,
}

impl World {
    /// v2 was pushed and is on its way.
    fn pushed() -> Self {
        Self {
            uid: "u",
            generation: 7,
            observed: 7,
            tag: "v2",
            sets: vec![("v1", 1, -9000), ("v2", 2, -1)],
            updated: 1,
            available: 2,
            replicas: 3,
            paused: false,
            deleting: false,
            conditions: Vec::new(),
            written: -1,
            record: None,
            cause: None,
        }
    }

    fn complete(mut self) -> Self {
        (self.updated, self.available, self.replicas) = (2, 2, 2);
        self.cause = None;
        self
    }

    fn failing(mut self, kind: CauseType, early: bool) -> Self {
        let mut cause = Cause::unknown(Phase::Progressing);
        (cause.kind, cause.early) = (kind, early);
        cause.message = "image web:v2 cannot be pulled: not found".to_owned();
        cause.evidence = vec!["seen in 1 of 1 pods".to_owned()];
        self.cause = Some(cause);
        self
    }

    /// Kubernetes has given up the ReplicaSet of `tag`.
    fn given_up(mut self, tag: &str) -> Self {
        let message = format!("ReplicaSet \"web-{tag}\" has timed out progressing.");
        self.conditions.push(json!({
            "type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded", "message": message,
        }));
        self
    }

    /// The guard follows the current template since it was pushed.
    fn followed(mut self) -> Self {
        self.record = Some(RolloutRecordStatus {
            generation: Some(self.generation),
            template_hash: Some(hash(self.tag)),
            rollout_generation: Some(self.generation),
            ..RolloutRecordStatus::default()
        });
        self
    }

    fn stalled(mut self, reason: &str, message: &str) -> Self {
        let condition = json!({
            "type": "Stalled", "status": "True", "reason": reason, "message": message, "lastTransitionTime": time(0),
        });
        let record = self.record.as_mut().expect("followed");
        record.conditions = vec![serde_json::from_value(condition).expect("a condition")];
        self
    }

    /// The guard has put v1 back in the next generation, at `started`.
    fn rolled_back(mut self, started: i64) -> Self {
        let from = self.generation;
        self.generation += 1;
        self.observed = self.generation;
        self.written = started - 60;
        self.tag = "v1";
        self.sets = vec![("v2", 2, -1), ("v1", 3, -9000)];
        self = self.complete();
        let time = |seconds: i64| serde_json::from_value(json!(time(seconds))).expect("a time");
        self.record = Some(RolloutRecordStatus {
            generation: Some(self.generation),
            template_hash: Some(hash("v1")),
            rollout_generation: Some(self.generation),
            rollback: Some(RecordRollback {
                from: hash("v2"),
                to: hash("v1"),
                from_generation: from,
                generation: Some(self.generation),
                from_revision: Some(2),
                to_revision: Some(1),
                cause: CauseType::Image,
                message: "image web:v2 cannot be pulled: not found".to_owned(),
                evidence: vec!["seen in 1 of 1 pods".to_owned()],
                pushed_at: Some(time(-1)),
                started_at: time(started),
                restored_at: None,
                finished_at: None,
                outcome: Outcome::Succeeded,
            }),
            ..RolloutRecordStatus::default()
        });
        self
    }

    fn announced(mut self) -> Self {
        self.conditions.push(json!({
            "type": "Stalled", "status": "True", "reason": "RolledBack", "message": "rolled back, says the guard",
            "lastUpdateTime": time(0), "lastTransitionTime": time(0),
        }));
        self
    }

    fn raw(&self) -> Value {
        let mut raw = json!({
            "metadata": {
                "name": "web", "namespace": "shop", "uid": self.uid, "resourceVersion": "5", "generation": self.generation,
                "managedFields": [
                    {"manager": "helm", "operation": "Apply", "time": time(self.written)},
                    {"manager": "kube-controller-manager", "operation": "Update", "subresource": "status", "time": time(9000)},
                ],
            },
            "spec": {"replicas": 2, "paused": self.paused, "template": template(self.tag)},
            "status": {
                "observedGeneration": self.observed, "replicas": self.replicas, "updatedReplicas": self.updated,
                "availableReplicas": self.available, "conditions": self.conditions,
            },
        });
        if self.deleting {
            raw["metadata"]["deletionTimestamp"] = json!(time(0));
        }
        raw
    }

    fn observe(&self, waiting: &mut Waiting, seconds: i64) -> Step {
        let raw = self.raw();
        let sets: Vec<Value> = self
            .sets
            .iter()
            .map(|(tag, revision, made)| {
                json!({
                    "metadata": {
                        "name": format!("web-{tag}"), "creationTimestamp": time(*made),
                        "annotations": {"deployment.kubernetes.io/revision": revision.to_string()},
                    },
                    "spec": {"replicas": 1, "template": template(tag)},
                })
            })
            .collect();
        let around = Around {
            replica_sets: Some(&sets),
            pods: None,
            record: self.record.as_ref(),
            cause: self.cause.as_ref(),
        };
        let view = DeploymentView::of(&raw, around, at(seconds));
        waiting.observe(Some(&Observed { raw: &raw, view: &view, record: self.record.as_ref() }), at(seconds))
    }

    /// The end, where it is the end.
    fn ends(&self, waiting: &mut Waiting, seconds: i64) -> Option<Decided> {
        match self.observe(waiting, seconds) {
            Step::Done(decided) => Some(*decided),
            Step::Same | Step::Changed(_) => None,
        }
    }
}

fn key() -> Key {
    Key::new("shop", "web")
}

fn terms() -> Terms {
    Terms {
        started: at(0),
        deadline: at(600),
        fail_fast: true,
        stable: SignedDuration::ZERO,
        push: Push::Current,
    }
}

fn waiting() -> Waiting {
    Waiting::new(key(), terms())
}

fn waiting_for(push: Push) -> Waiting {
    Waiting::new(key(), Terms { push, ..terms() })
}

#[track_caller]
fn is(decided: Option<Decided>, end: End, words: &str) -> Decided {
    let decided = decided.expect("the end");
    assert_eq!(decided.end, end, "{decided:?}");
    assert!(decided.message.contains(words), "{decided:?}");
    decided
}

#[test]
fn each_change_is_told_once_and_the_end_is_complete() {
    let mut waiting = waiting();
    let mut world = World::pushed();
    world.observed = 6;
    let Step::Changed(position) = world.observe(&mut waiting, 0) else { panic!("a change") };
    assert_eq!(position.to_string(), "generation 7 is not observed yet (observed: 6)");
    assert_eq!(world.observe(&mut waiting, 1), Step::Same);
    world.observed = 7;
    let Step::Changed(position) = world.observe(&mut waiting, 2) else { panic!("a change") };
    assert_eq!(position.to_string(), "1 of 2 updated, 2 available, 2 old");
    let decided = is(world.complete().ends(&mut waiting, 12), End::Complete, "");
    assert_eq!(decided.message, "complete: revision 2 (web:v2), generation 7, 2 replicas, after 12 s");
    assert_eq!((decided.cause, decided.evidence.len(), decided.next), (None, 0, None));
}

#[test]
fn a_generation_that_is_not_observed_is_not_complete_whatever_its_counts_say() {
    let mut world = World::pushed().complete();
    world.observed = 6;
    assert_eq!(world.ends(&mut waiting(), 0), None);
}

#[test]
fn a_generation_that_only_scales_is_the_same_push() {
    let mut waiting = waiting();
    let mut world = World::pushed();
    assert_eq!(world.ends(&mut waiting, 0), None);
    (world.generation, world.observed) = (8, 8);
    is(world.complete().ends(&mut waiting, 3), End::Complete, "generation 8");
}

#[test]
fn without_a_guard_a_cause_that_cannot_heal_fails_it_once_it_stands() {
    let mut waiting = waiting();
    let world = World::pushed().failing(CauseType::Image, true);
    assert_eq!(world.ends(&mut waiting, 0), None);
    assert_eq!(world.ends(&mut waiting, 9), None);
    let decided = is(world.ends(&mut waiting, 10), End::Failed, "Image: image web:v2 cannot be pulled");
    assert_eq!(decided.cause, Some(CauseType::Image));
    assert_eq!(decided.evidence, ["seen in 1 of 1 pods"]);
    assert_eq!(decided.next.as_deref(), Some("rollout-guard undo -n shop web"));
}

#[test]
fn a_cause_that_went_away_meanwhile_begins_anew() {
    let mut waiting = waiting();
    let failing = World::pushed().failing(CauseType::Image, true);
    assert_eq!(failing.ends(&mut waiting, 0), None);
    assert_eq!(World::pushed().ends(&mut waiting, 8), None);
    assert_eq!(failing.ends(&mut waiting, 12), None);
    assert_eq!(failing.ends(&mut waiting, 20), None);
    is(failing.ends(&mut waiting, 22), End::Failed, "Image");
}

#[test]
fn what_may_heal_is_shown_and_waited_for() {
    for kind in [CauseType::Capacity, CauseType::Registry, CauseType::Node, CauseType::ControlPlane] {
        let mut waiting = waiting();
        let world = World::pushed().failing(kind, true);
        let Step::Changed(position) = world.observe(&mut waiting, 0) else { panic!("a change") };
        assert!(position.to_string().contains(kind.word()), "{position}");
        assert_eq!(world.ends(&mut waiting, 599), None, "{kind:?}");
        let decided = is(world.ends(&mut waiting, 600), End::TimedOut, "not complete within 600 s");
        assert_eq!(decided.next.as_deref(), Some("rollout-guard diagnose -n shop web"));
        is(World::pushed().complete().ends(&mut Waiting::new(key(), terms()), 600), End::Complete, "");
    }
}

#[test]
fn a_pod_that_is_not_ready_yet_is_no_failure() {
    let world = World::pushed().failing(CauseType::Application, false);
    let mut waiting = waiting();
    assert!((0..599).all(|second| world.ends(&mut waiting, second).is_none()));
}

#[test]
fn what_kubernetes_has_given_up_fails_at_once_but_not_by_the_condition_of_the_generation_before() {
    let decided =
        is(World::pushed().given_up("v2").ends(&mut waiting(), 0), End::Failed, "given up by Kubernetes");
    assert!(decided.message.contains("ProgressDeadlineExceeded"), "{decided:?}");
    let mut waiting = waiting();
    assert_eq!(World::pushed().given_up("v1").ends(&mut waiting, 0), None);
    assert_eq!(World::pushed().given_up("v1").ends(&mut waiting, 300), None);
}

#[test]
fn a_guard_that_follows_is_given_the_time_to_roll_back_and_the_end_is_the_true_one() {
    let mut waiting = waiting();
    let world = World::pushed().followed().failing(CauseType::Image, true);
    assert_eq!(world.ends(&mut waiting, 0), None);
    assert_eq!(world.ends(&mut waiting, 59), None);
    let world = world.stalled("RollingBack", "Image: not found; rolling back to revision 1");
    let Step::Changed(position) = world.observe(&mut waiting, 61) else { panic!("a change") };
    assert!(position.to_string().ends_with("the guard is rolling it back"), "{position}");
    let decided = is(
        world.rolled_back(61).ends(&mut waiting, 62),
        End::RolledBack,
        "rolled back from revision 2 to revision 1: Image: image web:v2 cannot be pulled: not found",
    );
    assert_eq!(
        (decided.cause, decided.revision, decided.generation),
        (Some(CauseType::Image), Some(2), Some(8))
    );
    assert_eq!(decided.evidence, ["seen in 1 of 1 pods"]);
}

#[test]
fn a_guard_that_says_nothing_is_not_waited_for_for_ever() {
    let mut waiting = waiting();
    let world = World::pushed().followed().failing(CauseType::Image, true);
    let seconds = GUARD_DECIDES.as_secs();
    assert_eq!(world.ends(&mut waiting, 0), None);
    assert_eq!(world.ends(&mut waiting, seconds - 1), None);
    is(world.ends(&mut waiting, seconds), End::Failed, "the guard has not acted on it so far");
    // Decided on, and not carried out.
    let mut waiting = Waiting::new(key(), terms());
    let world = world.stalled("RollingBack", "Image: not found; rolling back to revision 1");
    assert_eq!(world.ends(&mut waiting, 0), None);
    is(world.ends(&mut waiting, 30), End::Failed, "not carried it out");
}

#[test]
fn what_the_guard_holds_has_failed_at_once_with_its_words() {
    let words = "Image: image web:v2 cannot be pulled: not found; would be rolled back to revision 1: kubectl rollout-guard undo web -n shop --to 1";
    for reason in ["Held", "Latched"] {
        let world = World::pushed().followed().stalled(reason, words).failing(CauseType::Image, true);
        let decided = is(world.ends(&mut waiting(), 0), End::Failed, "");
        assert_eq!(decided.message, format!("failed: {words}"));
    }
    // Held for a cause that may heal: it is no end.
    let world = World::pushed().followed().stalled("Held", "no rollback for Capacity");
    assert_eq!(world.failing(CauseType::Capacity, false).ends(&mut waiting(), 300), None);
}

#[test]
fn what_is_paused_cannot_get_on_unless_it_is_complete_as_it_is() {
    let paused = World { paused: true, ..World::pushed() };
    let decided = is(paused.ends(&mut waiting(), 0), End::Failed, "paused");
    assert_eq!(decided.next.as_deref(), Some("kubectl -n shop rollout resume deployment/web"));
    is(paused.complete().ends(&mut waiting(), 0), End::Complete, "");
}

#[test]
fn a_deployment_that_is_not_there_is_an_error_and_one_that_goes_away_a_failure() {
    let mut waiting = waiting();
    let Step::Done(missing) = waiting.observe(None, at(0)) else { panic!("an end") };
    assert_eq!(missing.end, End::Error);
    let started = || {
        let mut waiting = Waiting::new(key(), terms());
        assert_eq!(World::pushed().ends(&mut waiting, 0), None);
        waiting
    };
    let Step::Done(gone) = started().observe(None, at(1)) else { panic!("an end") };
    is(Some(*gone), End::Failed, "deleted while it was waited for");
    is(World { deleting: true, ..World::pushed() }.ends(&mut started(), 1), End::Failed, "being deleted");
    let anew = World { uid: "other", ..World::pushed() }.complete();
    is(anew.ends(&mut started(), 1), End::Failed, "made anew");
}

#[test]
fn another_template_supersedes_it_and_an_earlier_one_is_a_rollback_whoever_did_it() {
    let started = || {
        let mut waiting = waiting();
        assert_eq!(World::pushed().ends(&mut waiting, 0), None);
        waiting
    };
    let mut world = World { generation: 8, observed: 8, tag: "v3", written: 5, ..World::pushed() };
    world.sets.push(("v3", 3, 5));
    let decided = is(world.clone().complete().ends(&mut started(), 6), End::Superseded, "generation 8");
    assert!(
        decided.message.contains("revision 2 (web:v2) was replaced by revision 3 (web:v3)"),
        "{decided:?}"
    );

    let undone = World { tag: "v1", sets: vec![("v2", 2, -1), ("v1", 3, -9000)], ..world }.complete();
    let decided = is(undone.ends(&mut started(), 6), End::RolledBack, "by helm");
    assert!(decided.message.contains("from revision 2 (web:v2) to revision 3 (web:v1)"), "{decided:?}");
    // Nobody is named where the fields were handed back, as then the last entry is that of the push itself.
    let handed_back = World { written: -1, ..undone.clone() };
    assert!(!is(handed_back.ends(&mut started(), 6), End::RolledBack, "").message.contains("helm"));
    // Where records cannot be read the announcement has the words.
    is(undone.announced().ends(&mut started(), 6), End::RolledBack, "rolled back, says the guard");
}

#[test]
fn what_the_guard_rolled_back_before_the_waiting_began_is_told_at_once() {
    is(
        World::pushed().rolled_back(-30).ends(&mut waiting(), 0),
        End::RolledBack,
        "rolled back from revision 2",
    );
    // Announced, and older than the clocks of the cluster and of this machine may differ.
    is(World::pushed().rolled_back(-7200).announced().ends(&mut waiting(), 0), End::RolledBack, "");
    // Nobody may read the record: the announcement says enough.
    let unread = World { record: None, ..World::pushed().rolled_back(-30).announced() };
    is(unread.ends(&mut waiting(), 0), End::RolledBack, "rolled back, says the guard");
}

#[test]
fn an_old_rollback_is_not_the_failure_of_what_came_after_it() {
    // Last week's, and this push changed nothing.
    is(World::pushed().rolled_back(-7200).ends(&mut waiting(), 0), End::Complete, "");
    // Somebody applied the good template since.
    let applied = World { written: -10, ..World::pushed().rolled_back(-30) };
    is(applied.ends(&mut waiting(), 0), End::Complete, "");
    // Another template was pushed since.
    let mut world = World::pushed().rolled_back(-30);
    (world.generation, world.observed, world.tag) = (9, 9, "v3");
    world.written = -5;
    world.sets.push(("v3", 4, -5));
    if let Some(record) = &mut world.record {
        (record.template_hash, record.rollout_generation) = (Some(hash("v3")), Some(9));
    }
    is(world.ends(&mut waiting(), 0), End::Complete, "web:v3");
}

#[test]
fn a_pipeline_that_knows_its_generation_is_told_for_certain() {
    let of = |world: &World, generation| world.ends(&mut waiting_for(Push::Generation(generation)), 0);
    let old = World::pushed().rolled_back(-7200);
    is(of(&old, 7), End::RolledBack, "rolled back from revision 2");
    // The restore's own generation, and those after it, are no push that was rolled back.
    is(of(&old, 8), End::Complete, "");
    is(of(&old, 9), End::Error, "generation 9 was never written");
    let next = World { generation: 9, observed: 9, ..World::pushed() }.followed().complete();
    is(of(&next, 9), End::Complete, "");
    is(of(&next, 8), End::Superseded, "generation 9 has another template");
}

#[test]
fn a_pipeline_that_knows_its_revision_is_told_what_became_of_it() {
    let of = |world: &World, revision| world.ends(&mut waiting_for(Push::Revision(revision)), 0);
    is(of(&World::pushed().complete(), 2), End::Complete, "");
    is(of(&World::pushed().rolled_back(-7200), 2), End::RolledBack, "rolled back from revision 2");
    // By a person, before anybody waited: the older ReplicaSet is the one of now.
    let undone = World { record: None, ..World::pushed().rolled_back(-7200) };
    is(of(&undone, 2), End::RolledBack, "from revision 2 (web:v2) to revision 3 (web:v1)");
    is(of(&World::pushed().complete(), 1), End::Superseded, "");
    is(of(&World::pushed(), 9), End::Error, "no ReplicaSet of revision 9");
}

#[test]
fn without_failing_fast_only_time_and_what_takes_its_place_end_it() {
    let patient = || Waiting::new(key(), Terms { fail_fast: false, ..terms() });
    let mut waiting = patient();
    let world = World::pushed().failing(CauseType::Image, true).given_up("v2");
    assert_eq!(world.ends(&mut waiting, 0), None);
    assert_eq!(world.ends(&mut waiting, 599), None);
    is(world.ends(&mut waiting, 600), End::TimedOut, "Image");
    let mut waiting = patient();
    assert_eq!(World { paused: true, ..World::pushed() }.ends(&mut waiting, 0), None);
    is(World::pushed().rolled_back(5).ends(&mut waiting, 6), End::RolledBack, "");
}

#[test]
fn an_api_server_that_fails_for_long_is_an_error_and_one_that_comes_back_is_none() {
    let mut waiting = waiting();
    assert_eq!(World::pushed().ends(&mut waiting, 0), None);
    assert_eq!(waiting.fails("connection refused", at(10)), None);
    assert_eq!(waiting.fails("connection refused", at(39)), None);
    assert_eq!(World::pushed().ends(&mut waiting, 40), None);
    assert_eq!(waiting.fails("connection refused", at(41)), None);
    let decided = waiting.fails("connection\nrefused", at(71)).expect("the end");
    assert_eq!(decided.end, End::Error);
    assert_eq!(decided.message, "connection\\nrefused");
    // What was never read is not late.
    let mut waiting = Waiting::new(key(), Terms { deadline: at(5), ..terms() });
    assert_eq!(waiting.fails("connection refused", at(0)), None);
    assert_eq!(waiting.late(at(5)).map(|decided| decided.end), Some(End::Error));
}

#[test]
fn it_must_be_complete_for_as_long_as_is_wanted_without_a_break() {
    let mut waiting = Waiting::new(key(), Terms { stable: SignedDuration::from_secs(10), ..terms() });
    let complete = World::pushed().complete();
    assert_eq!(complete.ends(&mut waiting, 0), None);
    assert_eq!(World::pushed().ends(&mut waiting, 5), None);
    assert_eq!(complete.ends(&mut waiting, 6), None);
    assert_eq!(complete.ends(&mut waiting, 15), None);
    is(complete.ends(&mut waiting, 16), End::Complete, "");
}

#[test]
fn of_several_the_worst_is_the_exit_status() {
    let order = [End::Failed, End::RolledBack, End::Error, End::TimedOut, End::Superseded, End::Complete];
    assert_eq!(order.map(End::code), [1, 3, 2, 124, 4, 0]);
    for (at, end) in order.iter().enumerate() {
        assert_eq!(worst(order[at..].iter().rev().copied()), Some(*end));
    }
    assert_eq!(worst([]), None);
}

/// Any state that a Deployment can be read in.
fn any_world() -> impl Strategy<Value = World> {
    let kinds = prop_oneof![
        Just(None),
        Just(Some((CauseType::Image, true))),
        Just(Some((CauseType::Registry, true))),
        Just(Some((CauseType::Application, false))),
    ];
    let guard =
        prop_oneof![Just(""), Just("follows"), Just("Held"), Just("RollingBack"), Just("rolled back")];
    let tags = prop_oneof![4 => Just("v2"), 1 => Just("v1"), 1 => Just("v3")];
    (0..3_i32, 0..3_i32, 0..4_i32, 5..9_i64, any::<bool>(), kinds, guard, tags).prop_map(
        |(updated, available, replicas, observed, paused, cause, guard, tag)| {
            let mut world = World { updated, available, replicas, observed, paused, tag, ..World::pushed() };
            if let Some((kind, early)) = cause {
                world = world.failing(kind, early);
            }
            match guard {
                "" => world,
                "follows" => world.followed(),
                "rolled back" => World { observed, ..world.rolled_back(3) },
                reason => world.followed().stalled(reason, "it is stuck"),
            }
        },
    )
}

proptest! {
    #[test]
    fn whatever_is_read_success_is_told_of_what_is_complete_alone_and_there_is_an_end(
        worlds in prop::collection::vec(any_world(), 1..40), lost in prop::collection::vec(any::<bool>(), 40),
    ) {
        let mut waiting = waiting();
        let mut goal = None;
        for (second, world) in worlds.iter().enumerate() {
            let now = i64::try_from(second * 16).expect("small");
            if lost[second] {
                if let Some(decided) = waiting.fails("lost", at(now)) {
                    prop_assert!(matches!(decided.end, End::Error | End::TimedOut));
                    return Ok(());
                }
                continue;
            }
            let decided = world.ends(&mut waiting, now);
            goal.get_or_insert(world.tag);
            let Some(decided) = decided else { continue };
            let counts = world.updated == 2 && world.available == 2 && world.replicas == 2;
            let observed = world.observed >= world.generation;
            if decided.end == End::Complete {
                prop_assert!(counts && observed && goal == Some(world.tag), "{world:?}");
            }
            if decided.end == End::Superseded {
                prop_assert!(goal != Some(world.tag), "{world:?}");
            }
            prop_assert!(!decided.message.chars().any(char::is_control));
            return Ok(());
        }
        prop_assert!(waiting.late(at(600)).is_some());
    }
}

// ---- what is printed ------------------------------------------------------------------------------------------

fn decided(end: End) -> Decided {
    let hostile = "image web:v2,x: 100% \u{1f980} | <b>not</b> found ##[error]x `y` @all";
    let evidence = vec!["pod web-1: ErrImagePull: <a> 50%".to_owned(), "::error::forged".to_owned()];
    let is_bad = end != End::Complete;
    Decided {
        key: key(),
        end,
        message: if is_bad {
            format!("failed: Image: {hostile}")
        } else {
            "complete: revision 2 (web:v2), generation 7, 2 replicas, after 12 s".to_owned()
        },
        cause: is_bad.then_some(CauseType::Image),
        evidence: if is_bad { evidence } else { Vec::new() },
        next: is_bad.then(|| "rollout-guard undo -n shop web".to_owned()),
        generation: Some(7),
        revision: Some(2),
    }
}

fn position() -> Position {
    Position {
        phase: rollout_guard::api::record::RecordPhase::Progressing,
        generation: 7,
        observed_generation: 7,
        desired: 2,
        replicas: 3,
        updated: 1,
        available: 2,
        cause: Some((CauseType::Image, "image web:v2 cannot be pulled: ##[error]not found".to_owned())),
        guard: Some("the guard follows it and is to decide".to_owned()),
    }
}

/// All that a format prints, escape sequences made visible.
fn printed(format: Format) -> String {
    let screen = Screen { colour: format == Format::Gitlab, ..Screen::default() };
    let report = Report::new(format, screen, false, at(0));
    let ends = [decided(End::Complete), decided(End::Failed)];
    let mut out = report.news(&News { key: key(), at: at(12), what: What::Changed(position()) });
    out += &report.news(&News { key: key(), at: at(125), what: What::Note("may not list pods".to_owned()) });
    for end in &ends {
        out += &report.decided(end, at(130));
    }
    (out + &report.result(&ends, at(131))).replace('\u{1b}', "\\e").replace('\r', "\\r")
}

#[test]
fn text_is_a_line_for_each_change_and_the_end_with_its_evidence() {
    insta::assert_snapshot!(printed(Format::Text));
}

#[test]
fn github_is_told_by_annotations_that_no_text_of_the_cluster_can_forge() {
    let text = printed(Format::Github);
    insta::assert_snapshot!(text);
    assert!(!text.contains("##["), "{text}");
    for line in text.lines().filter(|line| line.trim_start().starts_with("::")) {
        let ours = ["::error title=", "::notice title=", "::group::", "::endgroup::"];
        assert!(ours.iter().any(|start| line.starts_with(start)), "{line}");
    }
}

#[test]
fn gitlab_is_told_in_colour_with_the_evidence_in_a_section() {
    insta::assert_snapshot!(printed(Format::Gitlab));
}

#[test]
fn programs_are_told_by_one_json_object_on_each_line() {
    let text = printed(Format::JsonLines);
    insta::assert_snapshot!(text);
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let events: Vec<&str> = lines.iter().filter_map(|line| line["event"].as_str()).collect();
    assert_eq!(events, ["progress", "note", "decided", "decided", "result"]);
    assert_eq!(lines[4]["exitCode"], 1);
    assert_eq!(lines[3]["message"], decided(End::Failed).message);
}

#[test]
fn the_summary_of_a_step_is_a_table_that_no_text_of_the_cluster_can_break() {
    let summary = step_summary(&[decided(End::Complete), decided(End::Failed)], at(0), at(130));
    insta::assert_snapshot!(summary);
    let rows: Vec<&str> = summary.lines().filter(|line| line.starts_with('|')).collect();
    assert_eq!(rows.len(), 4);
    for row in rows {
        let bars = row.match_indices('|').filter(|(at, _)| !row[..*at].ends_with('\\'));
        assert_eq!(bars.count(), 6, "{row}");
        assert!(!row.contains('<'), "{row}");
    }
}

// ---- the binary -----------------------------------------------------------------------------------------------

fn guard(args: &[&str]) -> (i32, String, String) {
    let dir = tempfile::tempdir().expect("temporary directory");
    let kubeconfig = dir.path().join("kubeconfig");
    // A port that nobody listens on.
    let port =
        std::net::TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a port").port();
    let text = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "none",
        "clusters": [{"name": "none", "cluster": {"server": format!("http://127.0.0.1:{port}")}}],
        "contexts": [{"name": "none", "context": {"cluster": "none", "user": "none", "namespace": "shop"}}],
        "users": [{"name": "none", "user": {}}],
    });
    std::fs::write(&kubeconfig, text.to_string()).expect("a kubeconfig");
    let mut command = Command::new(env!("CARGO_BIN_EXE_rollout-guard"));
    command.args(args).env("KUBECONFIG", &kubeconfig).env_remove("GITHUB_STEP_SUMMARY");
    let output = command.timeout(Duration::from_secs(40)).output().expect("runs");
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("UTF-8");
    (output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr))
}

#[test]
fn where_no_api_server_answers_it_says_so_at_once_and_ends_with_2() {
    let started = Instant::now();
    let (code, stdout, stderr) = guard(&["wait", "web", "--timeout", "1s"]);
    assert_eq!((code, stderr.as_str()), (2, ""), "{stdout}");
    assert!(
        stdout.lines().next().is_some_and(|line| line.contains("refused") && line.contains("tried again")),
        "{stdout}"
    );
    assert!(stdout.lines().last().is_some_and(|line| line.starts_with("deployment/web: ")), "{stdout}");
    assert!(started.elapsed() < Duration::from_secs(20));
    let (code, stdout, _) = guard(&["wait", "web", "api", "--timeout", "1s", "--format", "json-lines"]);
    let last: Value = serde_json::from_str(stdout.lines().last().unwrap_or_default()).expect("JSON");
    assert_eq!((code, &last["exitCode"], &last["outcome"]), (2, &json!(2), &json!("Error")), "{stdout}");
    assert_eq!(last["deployments"].as_array().map(Vec::len), Some(2));
}

#[test]
fn bad_usage_is_refused_with_2_and_words() {
    for (args, words) in [
        (&["wait"][..], "NAME"),
        (&["wait", "web", "--timeout", "soon"], "duration"),
        (&["wait", "Web"], "letter or digit"),
        (&["wait", "pod/web"], "is no Deployment"),
        (&["wait", "web", "api", "--generation", "7"], "name one"),
        (&["wait", "web", "--generation", "7", "--revision", "2"], "cannot be used with"),
        (&["wait", "web", "--generation", "0"], "0"),
        (&["wait", "web", "--format", "xml"], "json-lines"),
    ] {
        let (code, stdout, stderr) = guard(args);
        assert_eq!((code, stdout.as_str()), (2, ""), "{args:?}: {stderr}");
        assert!(stderr.contains(words), "{args:?}: {stderr}");
    }
}
