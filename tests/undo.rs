//! `undo` over an API server in memory: which revision it goes back to, what it writes, and what it does about others
//! who write at the same time. And the binary where nobody can be asked.

#![allow(clippy::expect_used, clippy::panic, reason = "what a test needs is there, or the test fails")]

mod memory;

use std::sync::{Arc, Mutex, MutexGuard, atomic::Ordering};

use assert_cmd::Command;
use memory::{Api, Broken, Fault, State, secs};
use rollout_guard::{
    api::record::{RecordRevision, RolloutRecordStatus, Verdict},
    cluster::rollouts::Rollouts,
    commands::{
        look::{Depth, Look, look},
        output::Screen,
        undo::{PutBack, UndoError, choose, hand_back, preview, put_back},
    },
    core::{key::Key, restore::template_of, template::TemplateHash},
};
use serde_json::Value;

/// shop/web, to which good-1, good-2 and bad-3 were pushed; bad-3 is there now.
struct Story {
    api: Api,
    key: Key,
}

impl Story {
    fn new() -> Self {
        Self::of(&["good-1", "good-2", "crash-3"])
    }

    fn of(tags: &[&str]) -> Self {
        let mut state = State::new(1, 1, Broken::default());
        let key = Key::new("shop", "web");
        state.switches[0].leads.store(true, Ordering::SeqCst);
        state.create(&key, tags[0], 2);
        let story = Self { api: Api { state: Arc::new(Mutex::new(state)), process: 0 }, key };
        story.pass(40);
        for tag in &tags[1..] {
            story.state().push(&story.key, tag);
            story.pass(40);
        }
        story.state().calls = Some(Vec::new());
        story
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.api.state.lock().expect("not poisoned")
    }

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
    }

    /// Says that the guard has found these templates good or bad.
    async fn judged(&self, verdicts: &[(&str, Verdict)]) {
        let uid = self.state().uid_of(&self.key).expect("it is there");
        let created = self.api.create_record(&self.key, &uid).await.expect("created");
        let revisions = verdicts.iter().rev().map(|(tag, verdict)| RecordRevision {
            template_hash: TemplateHash::of(&memory::template("web", tag)).to_string(),
            verdict: *verdict,
            ..RecordRevision::default()
        });
        let status = RolloutRecordStatus {
            template_hash: Some(TemplateHash::of(&memory::template("web", "crash-3")).to_string()),
            revisions: revisions.collect(),
            ..RolloutRecordStatus::default()
        };
        self.api.write_record(&created, &status).await.expect("written");
    }

    async fn look(&self) -> Look {
        let now = self.state().now;
        look(&self.api, &self.key, Depth::ReplicaSets, now).await.expect("it is there")
    }

    fn tag(&self) -> String {
        self.state().tag(&self.key)
    }

    fn deployment(&self) -> Value {
        (*self.state().deployments[&self.key]).clone()
    }

    /// Chooses revision `to`, lets `before` happen, and puts it back.
    async fn put_back(&self, to: i64, before: impl FnOnce(&mut State)) -> Result<PutBack, UndoError> {
        let seen = self.look().await;
        let target = choose(&seen, Some(to)).expect("a target");
        before(&mut self.state());
        put_back(&self.api, &self.key, &seen.deployment, &target.replica_set).await
    }
}

fn tag_of(set: &Value) -> String {
    memory::tag_of(&template_of(set).expect("a template")).to_owned()
}

#[tokio::test]
async fn it_goes_back_to_the_last_good_one_and_not_to_the_previous() {
    let story = Story::new();
    story
        .judged(&[("good-1", Verdict::Good), ("good-2", Verdict::Unknown), ("crash-3", Verdict::Unknown)])
        .await;
    let target = choose(&story.look().await, None).expect("a target");
    assert_eq!(tag_of(&target.replica_set), "good-1");
    assert_eq!(target.why, "the last one that was good");
}

#[tokio::test]
async fn without_a_guard_it_goes_back_to_what_still_serves() {
    let story = Story::new();
    let target = choose(&story.look().await, None).expect("a target");
    assert_eq!(
        (tag_of(&target.replica_set).as_str(), target.why.as_str()),
        ("good-2", "the one that still serves")
    );
    // All is well: nothing says which one would be meant.
    let story = Story::of(&["good-1", "good-2"]);
    let words = choose(&story.look().await, None).expect_err("no target");
    assert!(words.contains("--to") && words.contains("web:good-1") && words.contains("[current]"), "{words}");
    let story = Story::of(&["good-1"]);
    let words = choose(&story.look().await, None).expect_err("no target");
    assert!(words.contains("no earlier revision"), "{words}");
}

#[tokio::test]
async fn a_revision_that_is_named_must_be_there_and_be_another_and_a_bad_one_is_warned_of() {
    let story = Story::new();
    story.judged(&[("good-1", Verdict::Bad), ("good-2", Verdict::Good)]).await;
    let seen = story.look().await;
    let words = choose(&seen, Some(9)).expect_err("no such revision");
    assert!(words.contains("revision 9 has no ReplicaSet") && words.contains("[Good]"), "{words}");
    let words = choose(&seen, Some(3)).expect_err("the current one");
    assert!(words.contains("already"), "{words}");
    let target = choose(&seen, Some(1)).expect("a target");
    assert!(target.warning.is_some_and(|warning| warning.contains("Bad")));
    assert!(choose(&seen, Some(2)).expect("a target").warning.is_none());
}

#[tokio::test]
async fn what_is_paused_is_refused_with_words_as_by_kubectl() {
    let story = Story::new();
    story.state().pause(&story.key, true);
    let words = choose(&story.look().await, Some(1)).expect_err("paused");
    assert!(words.contains("paused") && words.contains("rollout resume"), "{words}");
}

#[tokio::test]
async fn the_difference_is_shown_before_anything_is_written() {
    let story = Story::new();
    let seen = story.look().await;
    let target = choose(&seen, Some(1)).expect("a target");
    insta::assert_snapshot!(preview(&seen, &target, &Screen::default()));
    assert_eq!(story.state().writes, 0);
}

#[tokio::test]
async fn the_template_is_back_in_one_generation_and_nobody_can_tell_by_the_owners() {
    let story = Story::new();
    let before = story.deployment();
    let owners = story.state().managers(&story.key);
    let done = story.put_back(1, |_| {}).await.expect("put back");
    assert_eq!(story.tag(), "good-1");
    hand_back(&story.api, &story.key, &done).await.expect("handed back");
    let after = story.deployment();
    let generation = |object: &Value| object["metadata"]["generation"].as_i64();
    assert_eq!(generation(&after), generation(&before).map(|generation| generation + 1));
    assert_eq!(story.state().managers(&story.key), owners);
    // No announcement: nobody would take it away.
    assert!(!story.state().is_announced(&story.key));
    let writes = story.state().calls.clone().unwrap_or_default();
    let writes: Vec<String> =
        writes.into_iter().filter(|call| !call.starts_with("read") && !call.starts_with("list")).collect();
    assert_eq!(writes, ["restore good-1", "hand back"]);
}

#[tokio::test]
async fn a_write_that_meets_a_change_of_the_status_is_decided_anew() {
    let story = Story::new();
    let done = story
        .put_back(1, |state| {
            let scaled = |state: &mut State| {
                state.scale(&Key::new("shop", "web"), 3);
            };
            state.planned.push(("restore", Fault::Before(Box::new(scaled))));
            state.planned.push(("hand back", Fault::Code(409)));
        })
        .await
        .expect("put back");
    hand_back(&story.api, &story.key, &done).await.expect("handed back");
    assert_eq!(story.tag(), "good-1");
    // What came between stands.
    assert_eq!(story.deployment()["spec"]["replicas"], 3);
}

#[tokio::test]
async fn a_push_in_between_stands() {
    let story = Story::new();
    let pushed = |state: &mut State| {
        state.push(&Key::new("shop", "web"), "good-4");
    };
    let result =
        story.put_back(1, |state| state.planned.push(("restore", Fault::Before(Box::new(pushed))))).await;
    assert!(matches!(result, Err(UndoError::Superseded)), "{result:?}");
    assert_eq!(story.tag(), "good-4");
}

#[tokio::test]
async fn what_was_paused_or_deleted_in_between_is_left_alone() {
    let story = Story::new();
    let paused = |state: &mut State| {
        state.pause(&Key::new("shop", "web"), true);
    };
    let result =
        story.put_back(1, |state| state.planned.push(("restore", Fault::Before(Box::new(paused))))).await;
    assert!(matches!(result, Err(UndoError::Gone("paused"))), "{result:?}");
    assert_eq!(story.tag(), "crash-3");
    let story = Story::new();
    let deleted = |state: &mut State| state.delete(&Key::new("shop", "web"), true);
    let result =
        story.put_back(1, |state| state.planned.push(("restore", Fault::Before(Box::new(deleted))))).await;
    assert!(matches!(result, Err(UndoError::Gone("deleted"))), "{result:?}");
}

#[tokio::test]
async fn a_refusal_is_told_as_it_is_and_endless_conflicts_end() {
    let story = Story::new();
    let result = story.put_back(1, |state| state.planned.push(("restore", Fault::Code(403)))).await;
    assert!(matches!(&result, Err(UndoError::Cluster(error)) if error.code() == Some(403)), "{result:?}");
    let result = story
        .put_back(1, |state| state.planned.extend((0..100).map(|_| ("restore", Fault::Code(409)))))
        .await;
    assert!(matches!(result, Err(UndoError::Busy)), "{result:?}");
    assert_eq!(story.tag(), "crash-3");
}

// ---- the binary -----------------------------------------------------------------------------------------------

fn guard(args: &[&str]) -> (i32, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rollout-guard"));
    let output = command.args(args).env("KUBECONFIG", "/nonexistent").output().expect("runs");
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("UTF-8");
    (output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr))
}

#[test]
fn where_nobody_can_be_asked_it_must_be_told_yes() {
    let (code, stdout, stderr) = guard(&["undo", "web"]);
    assert_eq!((code, stdout.as_str()), (2, ""), "{stderr}");
    assert!(stderr.contains("--yes") && stderr.contains("--dry-run"), "{stderr}");
    for args in [&["undo", "web", "--yes"][..], &["undo", "web", "--dry-run"]] {
        let (code, _, stderr) = guard(args);
        assert_eq!(code, 2, "{stderr}");
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
        assert!(stderr.contains("cluster"), "{stderr}");
    }
    for args in
        [&["undo"][..], &["undo", "web", "api"], &["undo", "web", "--to", "0"], &["undo", "web", "--to", "x"]]
    {
        assert_eq!(guard(args).0, 2, "{args:?}");
    }
}
