//! The real router over reviews that a real API server sent: verdicts, words, patches, and what is thrown at it.

#![allow(clippy::expect_used, clippy::panic, reason = "helpers of tests")]

mod support;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use axum::body::Body;
use bytes::Bytes;
use futures::{future::join_all, stream};
use http::{Request, StatusCode, header};
use jiff::{SignedDuration, Timestamp};
use rollout_guard::{
    api::record::TargetRef,
    cluster::records::{self, StoredRecord},
    core::template::TemplateHash,
    webhook::router::{BODY_LIMIT, Capacity},
};
use serde_json::{Value, json};
use support::{
    Answers, Door, GUARD, ROOMY, all_fixtures, fixture, logs::Logs, patched, policy, post, review,
};
use tokio::sync::Semaphore;

const ADMITTED: &str = "rollout-guard.io/admitted";
const OVERRIDE: &str = "rollout-guard.io/override";
const FREEZE: &str = "rollout-freeze";

fn default_door() -> Door {
    Door::new(json!({}), Answers::No)
}

/// The code of a verdict: 200 where it is allowed.
fn code(response: &Value) -> u64 {
    match response["allowed"].as_bool() {
        Some(true) => {
            assert_eq!(response["status"], Value::Null, "an allowed answer has no status");
            200
        }
        _ => response["status"]["code"].as_u64().expect("a code"),
    }
}

/// The id at the beginning of the message.
fn id(response: &Value) -> &str {
    response["status"]["message"].as_str().and_then(|text| text.split(' ').next()).unwrap_or_default()
}

fn message(response: &Value) -> &str {
    response["status"]["message"].as_str().expect("a message")
}

fn causes(response: &Value) -> BTreeMap<&str, &str> {
    let causes = response["status"]["details"]["causes"].as_array().expect("causes");
    causes
        .iter()
        .map(|c| (c["reason"].as_str().expect("text"), c["message"].as_str().expect("text")))
        .collect()
}

/// The review with the old object written so many seconds ago.
fn aged(name: &str, seconds: i64) -> Value {
    let mut review = review(name);
    let then = Timestamp::now() - SignedDuration::from_secs(seconds);
    for entry in review["request"]["oldObject"]["metadata"]["managedFields"].as_array_mut().expect("entries")
    {
        entry["time"] = json!(then.to_string());
    }
    review
}

fn set(mut review: Value, pointer: &str, value: Value) -> Value {
    let (parent, key) = pointer.rsplit_once('/').expect("a pointer");
    let key = key.replace("~1", "/").replace("~0", "~");
    review.pointer_mut(parent).unwrap_or_else(|| panic!("no {parent}"))[key] = value;
    review
}

// ---- verdicts -------------------------------------------------------------------------------------------------

#[tokio::test]
async fn every_captured_review_gets_the_verdict_of_the_table() {
    const ALLOW: (u64, &str) = (200, "");
    let expected = BTreeMap::from([
        ("annotation-only", ALLOW),
        ("create", ALLOW),
        ("create-server-side-apply", ALLOW),
        ("cronjob-create", ALLOW),
        ("cronjob-update", ALLOW),
        ("delete", ALLOW),
        ("dry-run-failed", (403, "RG002")),
        ("dry-run-healthy", ALLOW),
        ("dry-run-unobserved", (403, "RG001")),
        ("finalizer-removed", ALLOW),
        ("forged-admitted", (403, "RG001")),
        ("label-failed", ALLOW),
        ("label-only", ALLOW),
        ("no-op", ALLOW),
        ("override-failed", (403, "RG002")),
        ("override-spent", (403, "RG002")),
        ("override-unobserved", (403, "RG001")),
        ("pause", ALLOW),
        ("pause-failed", ALLOW),
        ("replace-without-annotations", ALLOW),
        ("restart", ALLOW),
        ("resume", ALLOW),
        ("scale-failed", ALLOW),
        ("scale-patch", ALLOW),
        ("scale-subresource", ALLOW),
        ("scale-unobserved", ALLOW),
        ("strategy-change", ALLOW),
        ("update-deleting", ALLOW),
        ("update-failed", (403, "RG002")),
        ("update-healthy", ALLOW),
        ("update-last-applied", ALLOW),
        ("update-paused", ALLOW),
        ("update-progressing", ALLOW),
        ("update-server-side-apply", ALLOW),
        ("update-unobserved", (429, "RG001")),
    ]);
    let captured: BTreeSet<String> =
        all_fixtures().iter().filter_map(|name| name.strip_suffix(".validate").map(str::to_owned)).collect();
    assert_eq!(captured, expected.keys().map(|name| (*name).to_owned()).collect(), "each is listed");

    let door = default_door();
    for (name, expected) in expected {
        let body = fixture(&format!("{name}.validate"));
        let response = door.call("/validate", body).await.response();
        assert_eq!((code(&response), id(&response)), expected, "{name}: {response}");
        assert_eq!(response["uid"], review(&format!("{name}.validate"))["request"]["uid"], "{name}");
        assert_eq!(response["patch"], Value::Null, "{name}");
        assert_eq!(response["warnings"], Value::Null, "{name}");
    }
}

#[tokio::test]
async fn a_refusal_says_in_words_and_for_machines_what_is_blocked_and_why() {
    let response = default_door().validate(&review("update-failed.validate")).await;
    let status = &response["status"];
    assert_eq!(status["status"], "Failure");
    assert_eq!((status["code"].as_u64(), status["reason"].as_str()), (Some(403), Some("Forbidden")));
    assert_eq!(status["details"]["kind"], "deployments");
    assert_eq!(status["details"]["group"], "apps");
    assert_eq!(status["details"]["name"], "broken");
    assert_eq!(status["details"]["retryAfterSeconds"], Value::Null);
    let lines: Vec<&str> = message(&response).lines().collect();
    let first = "RG002 orders/broken is blocked: generation 4 failed since 2026-11-23T20:33:16Z (ProgressDeadlineExceeded)";
    assert_eq!(lines[0], first);
    assert!(lines[0].chars().count() <= 120, "{}", lines[0]);
    assert_eq!(lines[1], r#"Kubernetes says: ReplicaSet "broken-6bc95b4578" has timed out progressing."#);
    let starts: Vec<&str> = lines[2..].iter().filter_map(|line| line.split(' ').next()).collect();
    assert_eq!(starts, ["Fix:", "Override:", "Docs:"]);
    assert_eq!(lines[4], "Docs: docs/reasons.md#rg002");
    let causes = causes(&response);
    assert_eq!(causes["Reason"], "RG002 Failed");
    assert_eq!(causes["Policy"], "default");
    assert_eq!((causes["Generation"], causes["ObservedGeneration"]), ("4", "4"));
    assert_eq!(causes["KubernetesReason"], "ProgressDeadlineExceeded");
    assert!(causes["KubernetesMessage"].contains("timed out progressing"));
    assert_eq!(
        response["auditAnnotations"],
        json!({"reason": "RG002", "policy": "default", "mode": "enforce", "verdict": "deny", "message": first})
    );
}

#[tokio::test]
async fn an_unobserved_generation_is_waited_for_as_long_as_it_is_old_within_the_policys_limit() {
    let door = default_door();
    for (age, expected) in [(0, 1..=2), (4, 4..=6), (3600, 10..=10), (-3600, 1..=1)] {
        let response = door.validate(&aged("update-unobserved.validate", age)).await;
        let status = &response["status"];
        assert_eq!(
            (status["code"].as_u64(), status["reason"].as_str()),
            (Some(429), Some("TooManyRequests"))
        );
        let seconds = status["details"]["retryAfterSeconds"].as_u64().expect("seconds");
        assert!(expected.contains(&seconds), "age {age}: {seconds} s");
        assert_eq!(response["auditAnnotations"]["verdict"], "wait");
    }
    let short = Door::new(json!({"admission": {"maxWaitSeconds": 3}}), Answers::No);
    let response = short.validate(&aged("update-unobserved.validate", 3600)).await;
    assert_eq!(response["status"]["details"]["retryAfterSeconds"], 3);

    let response = door.validate(&review("update-unobserved.validate")).await;
    let text = message(&response);
    assert!(
        text.starts_with("RG001 orders-quota/web is blocked: generation 2 is not observed since 2026-11-23T20:33:25Z (ReplicaSetCreateError)\n"),
        "{text}"
    );
    assert!(text.contains("exceeded quota: one-replicaset"), "{text}");
    assert_eq!(causes(&response)["ObservedGeneration"], "1");
}

#[tokio::test]
async fn a_message_is_the_same_whenever_it_is_asked_for() {
    let door = default_door();
    let first = door.validate(&review("update-unobserved.validate")).await;
    let again = set(review("update-unobserved.validate"), "/request/uid", json!("another"));
    assert_eq!(door.validate(&again).await["status"]["message"], first["status"]["message"]);
}

#[tokio::test]
async fn the_policy_says_what_happens_in_each_phase() {
    for (name, phase, reason) in [
        ("update-unobserved.validate", "unobserved", "RG001"),
        ("update-failed.validate", "failed", "RG002"),
        ("update-progressing.validate", "progressing", "RG003"),
    ] {
        for (action, expected) in [("Allow", 200), ("Wait", 429), ("Deny", 403)] {
            let door = Door::new(json!({"admission": {phase: action}}), Answers::No);
            let response = door.validate(&review(name)).await;
            assert_eq!(code(&response), expected, "{phase} {action}");
            if expected != 200 {
                assert_eq!(id(&response), reason);
            }
        }
    }
}

#[tokio::test]
async fn a_freeze_refuses_a_healthy_update_and_lets_through_what_changes_no_template() {
    let freeze = json!({"name": FREEZE, "schedule": "* * * * *", "duration": "24h", "reason": "inventory"});
    let door = Door::new(json!({"freezes": [freeze]}), Answers::No);
    for name in ["update-healthy", "dry-run-healthy", "restart", "update-paused", "update-unobserved"] {
        let response = door.validate(&review(&format!("{name}.validate"))).await;
        assert_eq!((code(&response), id(&response)), (403, "RG005"), "{name}");
        assert!(message(&response).contains("\nReason given: inventory\n"), "{}", message(&response));
        assert_eq!(causes(&response)["Freeze"], FREEZE);
    }
    for name in [
        "scale-patch",
        "label-only",
        "pause",
        "resume",
        "strategy-change",
        "no-op",
        "update-deleting",
        "create",
    ] {
        let response = door.validate(&review(&format!("{name}.validate"))).await;
        assert_eq!(code(&response), 200, "{name}");
    }
}

#[tokio::test]
async fn warn_lets_through_with_the_words_as_warnings() {
    let door = Door::new(json!({"mode": "Warn"}), Answers::Yes);
    let enforced = default_door().validate(&review("update-unobserved.validate")).await;
    let response = door.validate(&review("update-unobserved.validate")).await;
    assert_eq!(code(&response), 200);
    let warnings: Vec<&str> =
        response["warnings"].as_array().expect("warnings").iter().filter_map(Value::as_str).collect();
    assert_eq!(warnings.join("\n"), message(&enforced));
    assert!(
        warnings.iter().all(|line| !line.contains('\n')),
        "the API server drops a warning with line breaks"
    );
    assert_eq!(response["auditAnnotations"]["verdict"], "warn");
    // An override is not needed, so nobody is asked.
    let response = door.validate(&review("override-failed.validate")).await;
    assert_eq!((code(&response), door.access.count()), (200, 0));
}

#[tokio::test]
async fn audit_lets_through_silently_and_tells_the_audit_log() {
    let door = Door::new(json!({"mode": "Audit"}), Answers::Yes);
    let response = door.validate(&review("update-failed.validate")).await;
    assert_eq!((code(&response), &response["warnings"]), (200, &Value::Null));
    let audit = &response["auditAnnotations"];
    assert_eq!(
        (&audit["verdict"], &audit["mode"], &audit["reason"]),
        (&json!("audit"), &json!("audit"), &json!("RG002"))
    );
    let counted = r#"rollout_guard_admission_decisions_total{verdict="audit",reason="RG002",mode="audit"}"#;
    assert_eq!(door.metric(counted), Some(1));
    assert_eq!(door.mutate(&review("update-failed.mutate")).await, Value::Null, "nor is the object changed");
}

#[tokio::test]
async fn off_says_nothing_at_all() {
    let door = Door::new(json!({"mode": "Off"}), Answers::Yes);
    for name in ["update-failed.validate", "update-unobserved.validate"] {
        let response = door.validate(&review(name)).await;
        assert_eq!(response, json!({"uid": review(name)["request"]["uid"], "allowed": true}));
    }
    assert_eq!(door.mutate(&review("update-unobserved.mutate")).await, Value::Null);
}

#[tokio::test]
async fn a_namespace_that_is_never_guarded_is_let_through() {
    let door = default_door();
    for namespace in ["kube-system", "kube-public", "kube-node-lease", "rollout-guard"] {
        let review = set(review("update-failed.validate"), "/request/namespace", json!(namespace));
        assert_eq!(code(&door.validate(&review).await), 200, "{namespace}");
    }
    let other = set(review("update-failed.validate"), "/request/namespace", json!("kube-system-2"));
    assert_eq!(code(&door.validate(&other).await), 403);
}

// ---- the ledger -----------------------------------------------------------------------------------------------

const GUARD_RECORD: &str = "2026-11-23T20:30:00Z";

/// The hash of the template that the review asks for.
fn new_template(review: &Value) -> String {
    TemplateHash::of(&review["request"]["object"]["spec"]["template"]).to_string()
}

/// A record of the review's Deployment, as the watcher writes it.
fn record(review: &Value, status: Value) -> StoredRecord {
    let request = &review["request"];
    let text = |value: &Value| value.as_str().expect("text").to_owned();
    let (name, uid) = (text(&request["name"]), text(&request["oldObject"]["metadata"]["uid"]));
    StoredRecord {
        namespace: text(&request["namespace"]),
        name: records::name(&name),
        target: TargetRef { name, uid: uid.clone(), ..TargetRef::default() },
        owner_uid: uid,
        status: serde_json::from_value(status).expect("a status"),
        ..StoredRecord::default()
    }
}

/// A status that says so of the template that the review asks for.
fn verdict(review: &Value, verdict: &str, until: Option<Timestamp>) -> Value {
    let hash = new_template(review);
    json!({
        "revisions": [
            {"templateHash": "00".repeat(32), "verdict": "Unknown"},
            {"templateHash": hash, "revision": 7, "verdict": verdict, "reason": "Image", "since": GUARD_RECORD,
             "until": until.map(|until| until.to_string())},
        ],
        "rollback": {"from": hash, "to": "00".repeat(32), "fromGeneration": 7, "cause": "Image",
                     "message": "container web: image \"localhost/web:1.4.2\" is not found", "startedAt": GUARD_RECORD,
                     "outcome": "Succeeded"},
    })
}

/// Seconds from now.
fn hence(seconds: i64) -> Option<Timestamp> {
    Some(Timestamp::now() + SignedDuration::from_secs(seconds))
}

const ALL_PHASES: [&str; 6] = [
    "update-healthy",
    "update-failed",
    "update-unobserved",
    "update-progressing",
    "update-paused",
    "update-server-side-apply",
];

#[tokio::test]
async fn fault_42_a_template_that_was_rolled_back_from_is_refused_in_every_phase() {
    for name in ALL_PHASES {
        let door = default_door();
        let review = review(&format!("{name}.validate"));
        door.world.learn_record(&record(&review, verdict(&review, "Bad", hence(3600))));
        let response = door.validate(&review).await;
        assert_eq!((code(&response), id(&response)), (403, "RG004"), "{name}");
        assert_eq!(response["auditAnnotations"]["reason"], "RG004");
        let counted =
            r#"rollout_guard_admission_decisions_total{verdict="deny",reason="RG004",mode="enforce"}"#;
        assert_eq!(door.metric(counted), Some(1), "{name}");
        // A dry run hears the same, as Flux asks first.
        let dry = set(review, "/request/dryRun", json!(true));
        assert_eq!(door.validate(&dry).await["status"], response["status"], "{name}");
    }
}

#[tokio::test]
async fn a_quarantine_says_in_words_and_for_machines_what_was_wrong() {
    let door = default_door();
    let review = review("update-healthy.validate");
    let until: Timestamp = "2126-12-23T20:30:00Z".parse().expect("a time");
    door.world.learn_record(&record(&review, verdict(&review, "Bad", Some(until))));
    let response = door.validate(&review).await;
    let lines: Vec<&str> = message(&response).lines().collect();
    assert_eq!(
        lines,
        [
            "RG004 orders/web is blocked: this template was rolled back at 2026-11-23T20:30:00Z (Image)",
            "What was wrong: container web: image \"localhost/web:1.4.2\" is not found",
            "Fix: push a corrected template; this one is refused until 2126-12-23T20:30:00Z. A template that was good always goes through.",
            "Override: set the annotation rollout-guard.io/override: \"<why>\" in the same update; it takes the verb override on rolloutpolicies/default.",
            "Docs: docs/reasons.md#rg004",
        ]
    );
    assert_eq!(response["status"]["details"]["retryAfterSeconds"], Value::Null);
    let causes = causes(&response);
    assert_eq!((causes["Reason"], causes["Cause"]), ("RG004 Quarantined", "Image"));
    assert_eq!((causes["RolledBackAt"], causes["Revision"]), (GUARD_RECORD, "7"));
    assert_eq!(causes["Until"], "2126-12-23T20:30:00Z");
    assert!(causes["CauseMessage"].contains("localhost/web:1.4.2"));
}

#[tokio::test]
async fn a_quarantine_is_carried_out_as_the_policy_says_and_ends() {
    let review = review("update-healthy.validate");
    let dry = set(review.clone(), "/request/dryRun", json!(true));
    for (action, expected, of_dry_run) in [("Deny", 403, 403), ("Wait", 429, 403), ("Allow", 200, 200)] {
        let door = Door::new(json!({"admission": {"quarantined": action}}), Answers::No);
        door.world.learn_record(&record(&review, verdict(&review, "Bad", None)));
        let (response, dry) = (door.validate(&review).await, door.validate(&dry).await);
        assert_eq!((code(&response), code(&dry)), (expected, of_dry_run), "{action}");
    }
    let door = default_door();
    door.world.learn_record(&record(&review, verdict(&review, "Bad", hence(-1))));
    assert_eq!(code(&door.validate(&review).await), 200, "it is over");
    door.world.learn_record(&record(&review, verdict(&review, "Bad", None)));
    assert_eq!(code(&door.validate(&review).await), 403, "this one never is");
    door.world.learn_record(&record(&review, json!({})));
    assert_eq!(code(&door.validate(&review).await), 200, "it was forgotten");

    let warn = Door::new(json!({"mode": "Warn"}), Answers::No);
    warn.world.learn_record(&record(&review, verdict(&review, "Bad", None)));
    let response = warn.validate(&review).await;
    assert_eq!(code(&response), 200);
    assert!(response["warnings"][0].as_str().expect("a warning").starts_with("RG004 "), "{response}");
}

#[tokio::test]
async fn a_quarantine_may_be_overridden_and_that_is_counted() {
    let door = Door::new(json!({}), Answers::Yes);
    let review = review("override-failed.validate");
    door.world.learn_record(&record(&review, verdict(&review, "Bad", None)));
    let response = door.validate(&review).await;
    assert_eq!((code(&response), door.access.count()), (200, 1));
    let audit = &response["auditAnnotations"];
    assert_eq!((&audit["verdict"], &audit["reason"]), (&json!("override"), &json!("RG004")));
    assert_eq!(door.metric(r#"rollout_guard_overrides_total{outcome="granted"}"#), Some(1));
    let counted =
        r#"rollout_guard_admission_decisions_total{verdict="override",reason="RG004",mode="enforce"}"#;
    assert_eq!(door.metric(counted), Some(1));
}

#[tokio::test]
async fn a_way_back_to_what_was_good_goes_through_over_any_phase_and_in_a_freeze() {
    let freeze = json!({"name": FREEZE, "schedule": "* * * * *", "duration": "24h", "reason": "inventory"});
    let spec = json!({"freezes": [freeze], "admission": {"unobserved": "Deny", "failed": "Deny", "progressing": "Deny"}});
    let logs = Logs::text();
    for name in ALL_PHASES {
        let door = Door::new(spec.clone(), Answers::No);
        let review = review(&format!("{name}.validate"));
        assert_eq!(code(&door.validate(&review).await), 403, "{name}: not without a record");
        door.world.learn_record(&record(&review, verdict(&review, "Good", None)));
        assert_eq!(code(&door.validate(&review).await), 200, "{name}");
        let dry = set(review, "/request/dryRun", json!(true));
        assert_eq!(code(&door.validate(&dry).await), 200, "{name}");
        assert_eq!(door.access.count(), 0);
    }
    assert!(logs.read().contains("known-good"), "the log says why");
}

#[tokio::test]
async fn fault_11_a_record_of_another_deployment_or_that_was_planted_has_no_effect() {
    let failed = review("update-failed.validate");
    let healthy = review("update-healthy.validate");
    let good = record(&failed, verdict(&failed, "Good", None));
    let bad = record(&healthy, verdict(&healthy, "Bad", None));
    let with = |record: &StoredRecord, uid: &str| StoredRecord {
        target: TargetRef { uid: uid.into(), ..record.target.clone() },
        owner_uid: uid.into(),
        ..record.clone()
    };
    let forged = |record: &StoredRecord| {
        [
            // Of a Deployment of the same name that was there before, or of one that is not there at all.
            with(record, "00000000-0000-0000-0000-000000000000"),
            with(record, ""),
            // Planted: not owned, or owned by something else than it says.
            StoredRecord { owner_uid: String::new(), ..record.clone() },
            StoredRecord { owner_uid: "other".into(), ..record.clone() },
            // Under another name, in another namespace.
            StoredRecord { name: format!("{}-2", record.name), ..record.clone() },
            StoredRecord { namespace: "elsewhere".into(), ..record.clone() },
        ]
    };
    for planted in forged(&good) {
        let door = default_door();
        door.world.learn_record(&planted);
        assert_eq!(code(&door.validate(&failed).await), 403, "{planted:?}");
    }
    for planted in forged(&bad) {
        let door = default_door();
        door.world.learn_record(&planted);
        assert_eq!(code(&door.validate(&healthy).await), 200, "{planted:?}");
    }
    // It goes by the uid of what is stored, not of what the user sends.
    let door = default_door();
    door.world.learn_record(&bad);
    let claimed = set(healthy.clone(), "/request/object/metadata/uid", json!("other"));
    assert_eq!(code(&door.validate(&claimed).await), 403);
    let nameless = set(healthy, "/request/oldObject/metadata/uid", Value::Null);
    assert_eq!(code(&door.validate(&nameless).await), 200, "no uid, no record");
}

#[tokio::test]
async fn the_guard_puts_back_what_is_recorded_and_nothing_else() {
    let freeze = json!({"name": FREEZE, "schedule": "* * * * *", "duration": "24h"});
    let spec = json!({"freezes": [freeze], "admission": {"unobserved": "Deny"}});
    let by = |review: &Value, user: &str| set(review.clone(), "/request/userInfo/username", json!(user));
    for name in ["update-failed", "update-unobserved", "update-progressing"] {
        let review = review(&format!("{name}.validate"));
        let mut put_back = verdict(&review, "Unknown", None);
        put_back["rollback"]["to"] = json!(new_template(&review));
        put_back["rollback"]["from"] = json!("00".repeat(32));
        for status in [put_back, verdict(&review, "Good", None), verdict(&review, "Bad", None)] {
            let door = Door::new(spec.clone(), Answers::No);
            let own = by(&review, GUARD);
            assert_eq!(code(&door.validate(&own).await), 403, "{name}: not recorded");
            door.world.learn_record(&record(&review, status));
            let response = door.validate(&own).await;
            assert_eq!(code(&response), 200, "{name}: {response}");
        }
        // Somebody else is no guard, by whatever name.
        let door = Door::new(spec.clone(), Answers::No);
        let mut put_back = verdict(&review, "Unknown", None);
        put_back["rollback"]["to"] = json!(new_template(&review));
        door.world.learn_record(&record(&review, put_back));
        for user in [
            "system:serviceaccount:orders:rollout-guard",
            "rollout-guard",
            "",
            "system:serviceaccount:rollout-guard:",
        ] {
            assert_eq!(code(&door.validate(&by(&review, user)).await), 403, "{user}");
        }
    }
}

// ---- the announcement of a rollback ---------------------------------------------------------------------------

/// The review over a Deployment on which a rollback stands announced.
fn announced(name: &str) -> Value {
    let mut review = review(name);
    let condition = json!({
        "type": "Stalled", "status": "True", "reason": "RolledBack", "message": "rolled back to revision 6",
        "lastUpdateTime": GUARD_RECORD, "lastTransitionTime": GUARD_RECORD,
    });
    for side in ["object", "oldObject"] {
        let conditions = review["request"][side]["status"]["conditions"].as_array_mut().expect("conditions");
        conditions.push(condition.clone());
    }
    review
}

#[tokio::test]
async fn fault_51_the_announcement_is_taken_away_once_before_a_new_template_is_let_through() {
    for (name, mode) in [
        ("update-healthy", "Enforce"),
        ("update-progressing", "Enforce"),
        ("update-failed", "Warn"),
        ("update-unobserved", "Audit"),
        ("override-failed", "Enforce"),
        // What stands there is the guard's own, whatever the policy says meanwhile.
        ("update-failed", "Off"),
    ] {
        let door = Door::new(json!({"mode": mode}), Answers::Yes);
        let review = announced(&format!("{name}.validate"));
        assert_eq!(code(&door.validate(&review).await), 200, "{name}");
        let request = &review["request"];
        let text = |value: &Value| value.as_str().expect("text").to_owned();
        let key = format!("{}/{}", text(&request["namespace"]), text(&request["name"]));
        let uid = text(&request["oldObject"]["metadata"]["uid"]);
        assert_eq!(door.retracted.calls(), [(key, uid)], "{name}");
    }
}

/// The same review, written under this name.
fn written_by(mut review: Value, manager: &str) -> Value {
    review["request"]["options"]["fieldManager"] = json!(manager);
    review
}

#[tokio::test]
async fn fault_51_the_announcement_is_taken_away_by_a_push_of_what_was_put_back() {
    // Who owns containers of these is kubectl-create, and kubectl-set the image.
    for (name, manager, pushes) in [
        // As server-side apply of what is there already.
        ("no-op", "kubectl-create", true),
        ("annotation-only", "kubectl-set", true),
        ("scale-patch", "kubectl-set", true),
        ("no-op", "kubectl-annotate", false),
        ("annotation-only", "", false),
        ("dry-run-healthy", "kubectl-set", false),
    ] {
        let door = default_door();
        let review = written_by(announced(&format!("{name}.validate")), manager);
        assert_eq!(code(&door.validate(&review).await), 200, "{name}");
        assert_eq!(door.retracted.calls().len(), usize::from(pushes), "{name} by {manager:?}");
    }
}

#[tokio::test]
async fn fault_51_the_announcement_stays_where_nothing_new_is_let_through() {
    let door = default_door();
    for (name, expected) in [
        // Denied, told to wait, a dry run.
        ("update-failed", 403),
        ("update-unobserved", 429),
        ("override-failed", 403),
        ("dry-run-healthy", 200),
        // No new template.
        ("scale-patch", 200),
        ("annotation-only", 200),
        ("label-only", 200),
        ("no-op", 200),
        ("pause", 200),
        ("strategy-change", 200),
        ("update-deleting", 200),
    ] {
        assert_eq!(code(&door.validate(&announced(&format!("{name}.validate"))).await), expected, "{name}");
    }
    let bad = announced("update-healthy.validate");
    door.world.learn_record(&record(&bad, verdict(&bad, "Bad", None)));
    assert_eq!(code(&door.validate(&bad).await), 403, "what was rolled back from comes again");
    // The guard's own restore comes right after the announcement.
    let own = set(announced("update-progressing.validate"), "/request/userInfo/username", json!(GUARD));
    assert_eq!(code(&door.validate(&own).await), 200);
    // Not the guard's words, or not standing any more.
    for (field, value) in [("reason", "Other"), ("type", "Progressing"), ("status", "False")] {
        let mut review = announced("update-progressing.validate");
        let conditions = &mut review["request"]["oldObject"]["status"]["conditions"];
        conditions.as_array_mut().expect("conditions").last_mut().expect("ours")[field] = json!(value);
        assert_eq!(code(&door.validate(&review).await), 200, "{field}");
    }
    assert_eq!(door.retracted.calls(), Vec::new());
    // Nor does the mutating webhook write anything.
    let mut mutate = review("update-healthy.mutate");
    mutate["request"]["oldObject"]["status"] = bad["request"]["oldObject"]["status"].clone();
    door.mutate(&mutate).await;
    assert_eq!(door.retracted.calls(), Vec::new());
}

#[tokio::test]
async fn an_announcement_that_cannot_be_taken_away_denies_nothing() {
    let door = default_door();
    door.retracted.fail();
    let logs = Logs::text();
    let review = announced("update-healthy.validate");
    let response = door.validate(&review).await;
    assert_eq!(response, json!({"uid": review["request"]["uid"], "allowed": true}));
    assert_eq!(door.retracted.calls().len(), 1);
    assert!(logs.read().contains("announcement of a rollback not taken away"), "{}", logs.read());
}

// ---- override -------------------------------------------------------------------------------------------------

#[tokio::test]
async fn an_override_lets_through_who_may_and_tells_the_audit_log() {
    let door = Door::new(json!({}), Answers::Yes);
    let response = door.validate(&review("override-failed.validate")).await;
    assert_eq!(code(&response), 200);
    let audit = &response["auditAnnotations"];
    assert_eq!(audit["verdict"], "override");
    assert_eq!(audit["override"], "the fix for OPS-1");
    assert_eq!(audit["override-by"], "kubernetes-admin");
    assert_eq!(audit["reason"], "RG002");
    // The question is about the user of the review, as the API server authenticated them.
    let (user, policy) = door.access.last().expect("asked");
    assert_eq!((policy.as_str(), user.name.as_str()), ("default", "kubernetes-admin"));
    assert_eq!(user.groups, ["kubeadm:cluster-admins", "system:authenticated"]);
    assert!(user.extra.contains_key("authentication.kubernetes.io/credential-id"), "{user:?}");
    assert_eq!(door.metric(r#"rollout_guard_overrides_total{outcome="granted"}"#), Some(1));
}

#[tokio::test]
async fn an_override_is_refused_to_who_may_not_and_to_all_while_nobody_answers() {
    for (answer, outcome, line) in [
        (
            Answers::No,
            "refused",
            "Override refused: user kubernetes-admin may not override rolloutpolicies/default.",
        ),
        (
            Answers::Failure,
            "failed",
            "Override refused: the API server did not say in time whether it is permitted; try again.",
        ),
    ] {
        let door = Door::new(json!({}), answer);
        let response = door.validate(&review("override-failed.validate")).await;
        assert_eq!((code(&response), id(&response)), (403, "RG002"));
        assert_eq!(message(&response).lines().last(), Some(line));
        assert_eq!(response["auditAnnotations"]["override-refused"], "the fix for OPS-1");
        assert_eq!(response["auditAnnotations"]["override"], Value::Null);
        let counted = format!("rollout_guard_overrides_total{{outcome=\"{outcome}\"}}");
        assert_eq!(door.metric(&counted), Some(1));
        // Nothing else is denied for it.
        assert_eq!(code(&door.validate(&review("update-healthy.validate")).await), 200);
    }
}

#[tokio::test]
async fn an_override_without_a_reason_is_refused_without_asking() {
    for reason in ["", "  ", "\n\t"] {
        let door = Door::new(json!({}), Answers::Yes);
        let pointer = "/request/object/metadata/annotations/rollout-guard.io~1override";
        let response = door.validate(&set(review("override-failed.validate"), pointer, json!(reason))).await;
        assert_eq!((code(&response), door.access.count()), (403, 0));
        let last = message(&response).lines().last();
        assert_eq!(last, Some("Override refused: the annotation holds no reason."));
    }
}

#[tokio::test]
async fn an_override_counts_once() {
    let door = Door::new(json!({}), Answers::Yes);
    let spent = review("override-spent.validate");
    assert_eq!(spent["request"]["object"]["metadata"]["annotations"][OVERRIDE], "the fix for OPS-1");
    assert_eq!((code(&door.validate(&spent).await), door.access.count()), (403, 0));
    let changed = "/request/object/metadata/annotations/rollout-guard.io~1override";
    let again = set(spent, changed, json!("another reason"));
    assert_eq!((code(&door.validate(&again).await), door.access.count()), (200, 1));
}

#[tokio::test]
async fn nobody_is_asked_unless_an_override_would_decide() {
    let door = Door::new(json!({}), Answers::Yes);
    for name in all_fixtures() {
        if name == "override-failed.validate" || name == "override-unobserved.validate" {
            continue;
        }
        let path = if name.ends_with(".mutate") { "/mutate" } else { "/validate" };
        door.call(path, fixture(&name)).await.response();
    }
    // Not needed: the update is let through as it is.
    let pointer = "/request/object/metadata/annotations/rollout-guard.io~1override";
    door.validate(&set(review("update-healthy.validate"), pointer, json!("why"))).await;
    assert_eq!(door.access.count(), 0);
}

#[tokio::test]
async fn a_verdict_takes_milliseconds() {
    let door = default_door();
    let body = Bytes::from(fixture("update-failed.validate"));
    let mut times: Vec<Duration> = Vec::new();
    for _ in 0..200 {
        let started = Instant::now();
        assert_eq!(door.call("/validate", body.clone()).await.status, StatusCode::OK);
        times.push(started.elapsed());
    }
    times.sort();
    // Unoptimised and beside other tests; an API call or a sleep would be far beyond.
    assert!(times[100] < Duration::from_millis(10), "median {:?}", times[100]);
}

// ---- the mutating path ----------------------------------------------------------------------------------------

#[tokio::test]
async fn a_new_template_is_marked_with_the_generation_it_goes_over() {
    let door = default_door();
    for (name, generation) in [
        ("update-healthy", "1"),
        ("update-unobserved", "2"),
        ("update-failed", "4"),
        ("update-server-side-apply", "1"),
        ("update-last-applied", "1"),
        ("update-paused", "8"),
        ("dry-run-healthy", "6"),
        ("replace-without-annotations", "10"),
        ("forged-admitted", "2"),
    ] {
        let review = review(&format!("{name}.mutate"));
        let object = &review["request"]["object"];
        let out = patched(object, &door.mutate(&review).await);
        let mut wanted = object.clone();
        wanted["metadata"]["annotations"][ADMITTED] = json!(generation);
        assert_eq!(out, wanted, "{name}: the mark and nothing else");
    }
    for name in [
        "create",
        "create-server-side-apply",
        "no-op",
        "annotation-only",
        "label-only",
        "scale-patch",
        "strategy-change",
    ] {
        assert_eq!(door.mutate(&review(&format!("{name}.mutate"))).await, Value::Null, "{name}");
    }
}

#[tokio::test]
async fn defaults_are_filled_in_and_nothing_else_changes() {
    let spec = json!({"defaults": {"progressDeadlineSeconds": 120, "minRevisionHistoryLimit": 3}});
    let door = Door::new(spec, Answers::No);
    let created = set(review("create.mutate"), "/request/object/spec/revisionHistoryLimit", json!(0));
    let object = &created["request"]["object"];
    let mut wanted = object.clone();
    wanted["spec"]["progressDeadlineSeconds"] = json!(120);
    wanted["spec"]["revisionHistoryLimit"] = json!(3);
    assert_eq!(patched(object, &door.mutate(&created).await), wanted);
    // Ten revisions and a deadline of one's own are left alone, as is everything while the spec stays.
    assert_eq!(door.mutate(&review("label-only.mutate")).await, Value::Null);
    let own = set(created.clone(), "/request/object/spec/progressDeadlineSeconds", json!(45));
    assert_eq!(patched(object, &door.mutate(&own).await)["spec"]["progressDeadlineSeconds"], 600);
}

#[tokio::test]
async fn fault_6_fields_newer_or_older_than_ours_are_preserved_by_the_mutation() {
    let door = Door::new(json!({"defaults": {"progressDeadlineSeconds": 120}}), Answers::No);
    let mut review = review("update-healthy.mutate");
    let object = &mut review["request"]["object"];
    object["spec"]["newerField"] =
        json!({"b": [1, 2.50, 1e3, 18_446_744_073_709_551_615_u64, null], "a": "\u{0}\u{2028}é"});
    object["spec"]["template"]["spec"]["containers"][0]["newer"] = json!([{}, [], ""]);
    object["spec"]["rollbackTo"] = json!({"revision": 3});
    object["metadata"]["newerMetadata"] = json!({"x/y~z": true});
    object["status"]["newerStatus"] = json!(-0.0);
    object["topLevel"] = json!("kept");
    let object = review["request"]["object"].clone();

    let out = patched(&object, &door.mutate(&review).await);
    let mut back = out.clone();
    assert_eq!(back["metadata"]["annotations"][ADMITTED].take(), "1");
    assert_eq!(back["spec"]["progressDeadlineSeconds"].take(), 120);
    back["spec"]["progressDeadlineSeconds"] = json!(600);
    back["metadata"]["annotations"].as_object_mut().expect("a map").remove(ADMITTED);
    assert_eq!(back.to_string(), object.to_string(), "to the byte");
}

#[tokio::test]
async fn fault_7_its_own_output_sent_again_five_times_gives_an_empty_patch() {
    let spec = json!({"defaults": {"progressDeadlineSeconds": 120, "minRevisionHistoryLimit": 20}});
    let door = Door::new(spec, Answers::No);
    let mut changed = 0;
    for name in all_fixtures().iter().filter(|name| name.ends_with(".mutate")) {
        let mut review = review(name);
        let patch = door.mutate(&review).await;
        changed += usize::from(!patch.is_null());
        if review["request"]["object"].is_null() {
            continue;
        }
        let out = patched(&review["request"]["object"], &patch);
        review["request"]["object"] = out.clone();
        for round in 1..=5 {
            assert_eq!(door.mutate(&review).await, Value::Null, "{name}, round {round}");
        }
        // Stored, and applied again as it is stored: no generation of its own either.
        if review["request"]["operation"] == "UPDATE" {
            review["request"]["oldObject"] = out;
            assert_eq!(door.mutate(&review).await, Value::Null, "{name}, stored");
        }
    }
    assert!(changed >= 10, "{changed} fixtures are changed at all");
}

#[tokio::test]
async fn fault_9_the_patch_is_valid_onto_absent_maps_and_beside_keys_with_slash_and_tilde() {
    let door = default_door();
    let absent = review("replace-without-annotations.mutate");
    assert_eq!(absent["request"]["object"]["metadata"].get("annotations"), None, "as captured");
    let null = set(absent.clone(), "/request/object/metadata/annotations", Value::Null);
    let empty = set(absent.clone(), "/request/object/metadata/annotations", json!({}));
    let keys = json!({"a/b~c": "1", "~0": "2", "~1/": "3", "rollout-guard.io~1admitted": "4"});
    let strange = set(absent.clone(), "/request/object/metadata/annotations", keys.clone());
    for (review, before) in [(&absent, json!({})), (&null, json!({})), (&empty, json!({})), (&strange, keys)]
    {
        let patch = door.mutate(review).await;
        let out = patched(&review["request"]["object"], &patch);
        let mut wanted = before;
        wanted[ADMITTED] = json!("10");
        assert_eq!(out["metadata"]["annotations"], wanted);
        let paths: Vec<&str> =
            patch.as_array().expect("operations").iter().filter_map(|op| op["path"].as_str()).collect();
        assert_eq!(paths.last(), Some(&"/metadata/annotations/rollout-guard.io~1admitted"));
        assert!(paths.iter().all(|path| path.starts_with("/metadata/annotations")), "{paths:?}");
    }
}

// ---- bad input ------------------------------------------------------------------------------------------------

/// A review padded with white space to so many bytes.
fn padded(length: usize) -> Vec<u8> {
    let mut body = fixture("update-failed.validate");
    body.resize(length, b' ');
    body
}

#[tokio::test]
async fn fault_1_a_body_over_seven_mebibytes_is_refused_and_read_no_further() {
    const CHUNK: usize = 64 * 1024;
    let door = default_door();
    for path in ["/validate", "/mutate"] {
        assert_eq!(door.call(path, padded(BODY_LIMIT)).await.status, StatusCode::OK, "{path}");
        assert_eq!(
            door.call(path, padded(BODY_LIMIT + 1)).await.status,
            StatusCode::PAYLOAD_TOO_LARGE,
            "{path}"
        );
        let read = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&read);
        let chunks =
            stream::iter(std::iter::repeat_n(Bytes::from(vec![b' '; CHUNK]), 1024)).map_counting(counter);
        let answer = door.call(path, Body::from_stream(chunks)).await;
        assert_eq!(answer.status, StatusCode::PAYLOAD_TOO_LARGE, "{path}, chunked");
        assert_eq!(answer.text(), "body is larger than 7 MiB\n");
        let read = read.load(Ordering::SeqCst);
        assert!(read * CHUNK <= BODY_LIMIT + 2 * CHUNK, "{read} chunks were read of 1024");
    }
    assert_eq!(door.metric(r#"rollout_guard_admission_rejected_total{cause="too_large"}"#), Some(4));
    assert_eq!(code(&door.validate(&review("update-healthy.validate")).await), 200);
}

/// Counts what is taken out of a stream of chunks.
trait MapCounting: Sized {
    fn map_counting(self, count: Arc<AtomicUsize>) -> impl stream::Stream<Item = std::io::Result<Bytes>>;
}

impl<S: stream::Stream<Item = Bytes>> MapCounting for S {
    fn map_counting(self, count: Arc<AtomicUsize>) -> impl stream::Stream<Item = std::io::Result<Bytes>> {
        futures::StreamExt::map(self, move |chunk| {
            count.fetch_add(1, Ordering::SeqCst);
            Ok(chunk)
        })
    }
}

#[tokio::test]
async fn fault_2_what_is_no_review_gets_a_4xx_in_one_line() {
    let door = default_door();
    let cut = fixture("update-failed.validate")[..2000].to_vec();
    let wrong_version =
        r#"{"apiVersion":"admission.k8s.io/v1beta1","kind":"AdmissionReview","request":{"uid":"a"}}"#;
    let bodies: Vec<Vec<u8>> = vec![
        Vec::new(),
        b"   ".to_vec(),
        b"hello".to_vec(),
        b"null".to_vec(),
        b"[]".to_vec(),
        b"{}".to_vec(),
        b"1".to_vec(),
        b"\x00\xff\xfe".to_vec(),
        cut,
        [fixture("update-failed.validate"), b"{}".to_vec()].concat(),
        wrong_version.into(),
        br#"{"apiVersion":"v1","kind":"Pod"}"#.to_vec(),
        br#"{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","request":[]}"#.to_vec(),
    ];
    for path in ["/validate", "/mutate"] {
        for body in &bodies {
            let shown = String::from_utf8_lossy(&body[..body.len().min(60)]).into_owned();
            let answer = door.call(path, body.clone()).await;
            assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{path} {shown:?}");
            let text = answer.text();
            assert!(text.lines().count() == 1 && text.len() <= 400, "{text}");
        }
        let typed = |content_type: Option<&str>| {
            let mut request = Request::post(path);
            if let Some(content_type) = content_type {
                request = request.header(header::CONTENT_TYPE, content_type);
            }
            request.body(Body::from(fixture("update-healthy.validate"))).expect("a request")
        };
        for wrong in [None, Some("text/plain"), Some("application/yaml"), Some("application/jsonp"), Some("")]
        {
            assert_eq!(door.send(typed(wrong)).await.status, StatusCode::UNSUPPORTED_MEDIA_TYPE, "{wrong:?}");
        }
        for right in ["application/json", "application/json; charset=utf-8", "Application/JSON"] {
            assert_eq!(door.send(typed(Some(right))).await.status, StatusCode::OK, "{right}");
        }
        let get = Request::get(path).body(Body::empty()).expect("a request");
        assert_eq!(door.send(get).await.status, StatusCode::METHOD_NOT_ALLOWED);
    }
    for path in ["/", "/validate/", "/validate/../mutate", "/metrics"] {
        assert_eq!(
            door.call(path, fixture("update-healthy.validate")).await.status,
            StatusCode::NOT_FOUND,
            "{path}"
        );
    }
    let rejected = r#"rollout_guard_admission_rejected_total{cause="malformed"}"#;
    assert_eq!(door.metric(rejected), Some(2 * bodies.len() as u64));
    assert_eq!(door.metric(r#"rollout_guard_admission_rejected_total{cause="panic"}"#), None);
}

/// The review with raw text in the place of a value.
fn raw(review: Value, pointer: &str, text: &[u8]) -> Vec<u8> {
    const MARK: &[u8] = b"\"@@HERE@@\"";
    let body = set(review, pointer, json!("@@HERE@@")).to_string().into_bytes();
    let at = body.windows(MARK.len()).position(|window| window == MARK).expect("marked");
    [&body[..at], text, &body[at + MARK.len()..]].concat()
}

fn nested(depth: usize, inner: &str) -> Vec<u8> {
    ("[".repeat(depth) + inner + &"]".repeat(depth)).into_bytes()
}

#[tokio::test]
async fn fault_3_json_ten_thousand_deep_is_refused_or_judged_rightly() {
    let door = default_door();
    let deep = nested(10_000, "");
    let base = || review("update-failed.validate");
    // Where it does not matter, the verdict is the same; where a Deployment cannot be read, it is a 400.
    for (pointer, expected) in [
        ("/request/newer", Ok(403)),
        ("/request/options", Ok(403)),
        ("/request/object/newer", Ok(403)),
        ("/request/object/metadata/newer", Ok(403)),
        ("/request/object/metadata/labels", Ok(403)),
        ("/request/object/metadata/annotations/x", Ok(403)),
        ("/request/oldObject/metadata/managedFields/0/fieldsV1", Ok(403)),
        ("/request/oldObject/spec/newer", Ok(403)),
        ("/request/object/spec/template", Ok(403)),
        ("/request/object/spec/template/spec/newer", Ok(403)),
        ("/request/oldObject/spec/template", Ok(403)),
        ("/request/oldObject/status/newer", Ok(403)),
        ("/request/oldObject/status", Err(())),
        ("/request/oldObject/status/conditions", Err(())),
        ("/request/oldObject/spec/replicas", Err(())),
        ("/request/object/metadata", Err(())),
        ("/request/object", Err(())),
        ("/request/uid", Err(())),
        ("/request", Err(())),
    ] {
        let body = raw(base(), pointer, &deep);
        let answer = door.call("/validate", body.clone()).await;
        match expected {
            Ok(expected) => assert_eq!(code(&answer.response()), expected, "{pointer}"),
            Err(()) => assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{pointer}"),
        }
        let mutated = door.call("/mutate", body).await.status;
        assert!(mutated == StatusCode::OK || mutated == StatusCode::BAD_REQUEST, "{pointer}: {mutated}");
    }
    assert_eq!(door.call("/validate", deep.clone()).await.status, StatusCode::BAD_REQUEST);
    assert_eq!(door.call("/validate", "{\"a\":".repeat(1_000_000)).await.status, StatusCode::BAD_REQUEST);

    // The same deep template on both sides is no change, another one is.
    let both = |other: &str| {
        let body = raw(base(), "/request/object/spec/template", &nested(10_000, ""));
        let review = String::from_utf8(body).expect("UTF-8");
        let old = base()["request"]["oldObject"]["spec"]["template"].to_string();
        assert!(review.contains(&old));
        review.replace(&old, &String::from_utf8(nested(10_000, other)).expect("UTF-8"))
    };
    assert_eq!(code(&door.call("/validate", both("")).await.response()), 200);
    assert_eq!(code(&door.call("/validate", both("1")).await.response()), 403);
}

#[tokio::test]
async fn fault_3_duplicate_keys_are_refused_or_read_as_the_api_server_reads_them() {
    let door = Door::new(json!({}), Answers::Yes);
    let text = String::from_utf8(fixture("update-failed.validate")).expect("UTF-8");
    let doubled = |from: &str, to: &str| {
        assert!(text.contains(from), "{from}");
        text.replacen(from, to, 1)
    };
    for body in [
        doubled(r#""operation":"UPDATE""#, r#""operation":"UPDATE","operation":"DELETE""#),
        doubled(r#""operation":"UPDATE""#, r#""operation":"DELETE","operation":"UPDATE""#),
        doubled(r#""request":{"#, r#""request":{"uid":"a"},"request":{"#),
        doubled(r#""namespace":"orders""#, r#""namespace":"orders","namespace":"kube-system""#),
        doubled(r#""observedGeneration":4"#, r#""observedGeneration":3,"observedGeneration":4"#),
    ] {
        assert_eq!(door.call("/validate", body).await.status, StatusCode::BAD_REQUEST);
    }
    // In a map the last one counts.
    let text = String::from_utf8(fixture("update-unobserved.validate")).expect("UTF-8");
    let twice = |first: &str, second: &str| {
        let annotations = format!(r#""annotations":{{"{OVERRIDE}":"{first}","{OVERRIDE}":"{second}","#);
        text.replacen(r#""annotations":{"#, &annotations, 1)
    };
    assert_eq!(code(&door.call("/validate", twice("", "why")).await.response()), 200);
    assert_eq!(code(&door.call("/validate", twice("why", "")).await.response()), 429);
}

#[tokio::test]
async fn fault_3_invalid_utf_8_and_huge_integers_are_refused_or_judged_rightly() {
    let door = default_door();
    let base = || review("update-failed.validate");
    for pointer in [
        "/request/uid",
        "/request/userInfo/username",
        "/request/object/metadata/annotations/x",
        "/request/object/spec/template/spec/hostname",
        "/request/oldObject/status/conditions/0/message",
    ] {
        for bytes in [&b"\"\xff\xfe\""[..], b"\"\xc3\"", b"\"\xed\xa0\x80\"", b"\"\\ud800\""] {
            let answer = door.call("/validate", raw(base(), pointer, bytes)).await;
            // What nothing reads may be passed over; the verdict is right all the same.
            let skipped = pointer.ends_with("/x") || (bytes[1] == b'\\' && pointer.ends_with("hostname"));
            if skipped && answer.status == StatusCode::OK {
                assert_eq!(code(&answer.response()), 403, "{pointer} {bytes:?}");
            } else {
                assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{pointer} {bytes:?}");
            }
        }
    }
    let huge = ["99999999999999999999999", "-9223372036854775809", "1e400", "18446744073709551616"];
    for pointer in [
        "/request/object/metadata/generation",
        "/request/oldObject/metadata/generation",
        "/request/oldObject/status/observedGeneration",
        "/request/oldObject/status/replicas",
        "/request/oldObject/spec/replicas",
    ] {
        for number in huge {
            let answer = door.call("/validate", raw(base(), pointer, number.as_bytes())).await;
            assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{pointer} {number}");
        }
    }
    for number in huge {
        let template = raw(base(), "/request/object/spec/template/spec/hostname", number.as_bytes());
        assert_eq!(code(&door.call("/validate", template).await.response()), 403, "{number} is a change");
        let elsewhere = raw(base(), "/request/object/spec/newer", number.as_bytes());
        assert_eq!(code(&door.call("/validate", elsewhere).await.response()), 403, "{number}");
    }
    // The greatest that is one is judged.
    let most = set(base(), "/request/object/metadata/generation", json!(i64::MAX));
    assert_eq!(code(&door.validate(&most).await), 403);
}

#[tokio::test]
async fn fault_4_what_is_missing_gets_a_well_formed_answer_that_echoes_the_uid() {
    let door = default_door();
    let base = || review("update-failed.validate");
    let without = |pointer: &str| {
        let mut review = base();
        let (parent, key) = pointer.rsplit_once('/').expect("a pointer");
        review
            .pointer_mut(parent)
            .and_then(Value::as_object_mut)
            .expect("a map")
            .remove(key)
            .expect("was there");
        review
    };
    let null = |pointer: &str| set(base(), pointer, Value::Null);
    for review in [
        without("/request/object"),
        without("/request/oldObject"),
        null("/request/object"),
        null("/request/oldObject"),
        without("/request/operation"),
        without("/request/resource"),
        null("/request/operation"),
        review("delete.validate"),
        review("create.validate"),
        set(base(), "/request/operation", json!("CONNECT")),
        set(base(), "/request/operation", json!("DELETE")),
        json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": {"uid": "only a uid"}}),
    ] {
        for path in ["/validate", "/mutate"] {
            let answer = door.call(path, review.to_string()).await;
            let response = answer.response();
            assert_eq!(response["uid"], review["request"]["uid"], "{path}");
            assert_eq!(code(&response), 200, "{path}: {review:.300}");
        }
    }
    // What is judged does not need more than it reads.
    for pointer in [
        "/request/userInfo",
        "/request/options",
        "/request/dryRun",
        "/request/name",
        "/request/kind",
        "/request/object/status",
        "/request/object/metadata/annotations",
        "/request/object/metadata/labels",
        "/request/oldObject/metadata/managedFields",
        "/request/oldObject/spec/replicas",
    ] {
        assert_eq!(code(&door.validate(&without(pointer)).await), 403, "without {pointer}");
    }
    // Nothing can be echoed: said in words.
    for (review, why) in [
        (without("/request"), "the AdmissionReview holds no request\n"),
        (null("/request"), "the AdmissionReview holds no request\n"),
        (without("/request/uid"), "the request holds no uid\n"),
        (null("/request/uid"), "the request holds no uid\n"),
        (set(base(), "/request/uid", json!("")), "the request holds no uid\n"),
    ] {
        for path in ["/validate", "/mutate"] {
            let answer = door.call(path, review.to_string()).await;
            assert_eq!((answer.status, answer.text().as_str()), (StatusCode::BAD_REQUEST, why));
        }
    }
}

#[tokio::test]
async fn fault_5_other_kinds_subresources_and_versions_are_let_through_untouched_and_counted() {
    let door = default_door();
    let base = || review("update-failed.validate");
    let resource =
        |pointer: &str, value: &str| set(base(), &format!("/request/resource/{pointer}"), json!(value));
    let mut reviews = vec![
        review("cronjob-create.validate"),
        review("cronjob-update.validate"),
        review("scale-subresource.validate"),
        resource("resource", "statefulsets"),
        resource("group", "extensions"),
        resource("version", "v1beta1"),
        resource("version", "v2"),
        set(base(), "/request/subResource", json!("scale")),
        set(base(), "/request/subResource", json!("status")),
        set(base(), "/request/subResource", json!("newer")),
    ];
    // Objects of kinds that have nothing of the shape of a Deployment.
    for object in
        [json!({"status": "running", "metadata": {"generation": "x"}}), json!([]), json!("text"), json!(1)]
    {
        let other = set(resource("resource", "widgets"), "/request/object", object.clone());
        reviews.push(set(other.clone(), "/request/oldObject", object));
        reviews.push(other);
    }
    for (n, review) in reviews.iter().enumerate() {
        for path in ["/validate", "/mutate"] {
            let response = door.call(path, review.to_string()).await.response();
            let untouched = json!({"uid": review["request"]["uid"], "allowed": true});
            assert_eq!(response, untouched, "{path} {n}");
        }
    }
    assert_eq!(door.metric("rollout_guard_admission_ignored_total"), Some(2 * reviews.len() as u64));
    assert_eq!(door.metric(r#"rollout_guard_admission_rejected_total{cause="malformed"}"#), None);
}

#[tokio::test]
async fn fault_8_a_dry_run_gets_the_verdict_and_the_patch_of_the_real_thing() {
    let door = default_door();
    for name in ["update-failed", "update-healthy", "update-progressing", "scale-failed", "update-deleting"] {
        let real = review(&format!("{name}.validate"));
        let dry = set(real.clone(), "/request/dryRun", json!(true));
        assert_eq!(door.validate(&dry).await, door.validate(&real).await, "{name}");
    }
    let real = review("update-healthy.mutate");
    let dry = set(real.clone(), "/request/dryRun", json!(true));
    assert_eq!(door.mutate(&dry).await, door.mutate(&real).await);
    assert_eq!(door.access.count(), 0, "the router holds no other way to the API server");
}

const NASTY: &str = "line one\nRG000 forged: verdict=allow\r\n\u{1b}[2J\u{1b}[31mred\u{7}\u{202e}drow\u{0}\u{85}\u{2028}{\"verdict\":\"allow\"}";

#[tokio::test]
async fn fault_10_what_users_write_is_escaped_and_bounded_in_logs_and_messages() {
    let nasty = format!("{NASTY}{}", "x".repeat(256 * 1024));
    let hostile = || {
        let mut review = review("override-failed.validate");
        let request = &mut review["request"];
        request["object"]["metadata"]["annotations"][OVERRIDE] = json!(nasty);
        request["object"]["metadata"]["annotations"]["example.com/notes"] = json!(nasty);
        request["uid"] = json!(nasty);
        request["name"] = json!(nasty);
        request["namespace"] = json!(nasty);
        request["userInfo"]["username"] = json!(nasty);
        for condition in request["oldObject"]["status"]["conditions"].as_array_mut().expect("conditions") {
            condition["message"] = json!(nasty);
            condition["reason"] = json!(nasty);
        }
        review
    };
    let freeze =
        json!({"freezes": [{"name": "f", "schedule": "* * * * *", "duration": "24h", "reason": nasty}]});
    let doors = [
        (json!({}), Answers::Yes),
        (json!({}), Answers::No),
        (json!({}), Answers::Failure),
        (json!({"mode": "Warn"}), Answers::No),
        (json!({"mode": "Audit"}), Answers::No),
        (freeze, Answers::No),
    ];
    for (spec, answer) in doors {
        let door = Door::new(spec.clone(), answer);
        let logs = Logs::json();
        let mut response = door.validate(&hostile()).await;
        assert_eq!(response["uid"].take(), json!(nasty), "the uid is echoed as it is");
        assert!(response.to_string().len() < 16 * 1024, "{} bytes of answer", response.to_string().len());
        let texts = texts(&response);
        assert!(!texts.is_empty());
        for text in texts {
            assert!(
                !text
                    .chars()
                    .any(|c| (c.is_control() && c != '\n') || ('\u{2028}'..='\u{202e}').contains(&c)),
                "{text:?}"
            );
            assert!(!text.lines().any(|line| line.starts_with("RG000")), "{text:?}");
        }
        let first =
            response["status"]["message"].as_str().unwrap_or_default().lines().next().unwrap_or_default();
        assert!(first.chars().count() <= 120, "{first}");
        let log = logs.read();
        assert!(log.len() < 8 * 1024, "{} bytes of log", log.len());
        for line in log.lines() {
            let line: Value = serde_json::from_str(line).expect("one JSON object a line");
            assert!(!texts_of(&line).iter().any(|text| text.chars().any(char::is_control)), "{line}");
        }
        assert!(log.lines().any(|line| line.contains("\"decision\"")), "{log}");
        drop(logs);

        let logs = Logs::text();
        door.validate(&hostile()).await;
        let log = logs.read();
        assert!(log.contains("decision") && log.len() < 8 * 1024, "{} bytes of log", log.len());
        assert!(
            log.lines().all(|line| line.starts_with("20") && !line.chars().any(char::is_control)),
            "{log}"
        );
    }
}

#[tokio::test]
async fn fault_10_a_body_that_is_refused_is_quoted_escaped_and_bounded() {
    let nasty = format!("{NASTY}{}", "x".repeat(256 * 1024));
    let door = default_door();
    let logs = Logs::text();
    for body in [
        json!({"apiVersion": nasty, "kind": nasty}),
        set(review("update-failed.validate"), "/request/object/metadata/generation", json!(nasty)),
        set(review("update-failed.validate"), "/request/dryRun", json!(nasty)),
    ] {
        let answer = door.call("/validate", body.to_string()).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST);
        let text = answer.text();
        assert!(text.len() < 1024 && text.lines().count() == 1, "{text}");
        assert!(!text.trim_end().chars().any(char::is_control), "{text:?}");
    }
    let log = logs.read();
    assert_eq!(log.lines().count(), 3, "{log}");
    assert!(log.len() < 4096 && !log.chars().any(|c| c.is_control() && c != '\n'), "{log:?}");
}

/// All texts that an answer shows to somebody.
fn texts(response: &Value) -> Vec<String> {
    let mut shown = response.clone();
    shown["uid"] = Value::Null;
    shown["patch"] = Value::Null;
    texts_of(&shown)
}

fn texts_of(value: &Value) -> Vec<String> {
    match value {
        Value::String(text) => vec![text.clone()],
        Value::Array(items) => items.iter().flat_map(texts_of).collect(),
        Value::Object(map) => map.values().flat_map(texts_of).collect(),
        _ => Vec::new(),
    }
}

#[tokio::test]
async fn fault_11_forged_marks_labels_and_names_have_no_effect() {
    let door = default_door();
    // The mark: put right whatever is claimed, and never a way around the verdict.
    let mark = "/request/object/metadata/annotations/rollout-guard.io~1admitted";
    let old_mark = "/request/oldObject/metadata/annotations/rollout-guard.io~1admitted";
    let admitted = |review: &Value, patch: &Value| {
        patched(&review["request"]["object"], patch)["metadata"]["annotations"].get(ADMITTED).cloned()
    };
    let forged = review("forged-admitted.mutate");
    assert_eq!(admitted(&forged, &door.mutate(&forged).await), Some(json!("2")));
    let planted = set(review("annotation-only.mutate"), mark, json!("4"));
    assert_eq!(admitted(&planted, &door.mutate(&planted).await), None);
    let changed = set(planted, old_mark, json!("1"));
    assert_eq!(admitted(&changed, &door.mutate(&changed).await), Some(json!("1")));
    let dropped = set(review("label-only.mutate"), old_mark, json!("1"));
    assert_eq!(admitted(&dropped, &door.mutate(&dropped).await), Some(json!("1")));
    let created = set(review("create.mutate"), mark, json!("0"));
    assert_eq!(admitted(&created, &door.mutate(&created).await), None);
    for value in ["4", "5", "999", ""] {
        let review = set(review("update-failed.validate"), mark, json!(value));
        assert_eq!(code(&door.validate(&review).await), 403, "{value:?}");
    }

    // Guard labels, other annotations of the group, another manager, the guard's own name.
    let mut review = review("update-failed.validate");
    for side in ["object", "oldObject"] {
        let metadata = &mut review["request"][side]["metadata"];
        metadata["labels"]["rollout-guard.io/policy"] = json!("none");
        metadata["annotations"]["rollout-guard.io/allow"] = json!("true");
        metadata["annotations"]["rollout-guard.io/verdict"] = json!("Good");
        metadata["managedFields"][0]["manager"] = json!("rollout-guard");
    }
    review["request"]["userInfo"]["username"] = json!("system:serviceaccount:rollout-guard:rollout-guard");
    assert_eq!(code(&door.validate(&review).await), 403);

    // A status in the new object is not the status.
    review["request"]["object"]["status"] =
        json!({"observedGeneration": 99, "replicas": 3, "updatedReplicas": 3, "availableReplicas": 3});
    assert_eq!(code(&door.validate(&review).await), 403);
}

#[tokio::test]
async fn fault_11_labels_that_leave_the_policy_in_the_same_update_have_no_effect() {
    let strict = policy("strict", json!({"selector": {"matchLabels": {"team": "checkout"}}}));
    let off = policy("off", json!({"mode": "Off", "priority": -1}));
    let door = Door::with([strict, off], Answers::No, ROOMY);
    let labels = "/request/object/metadata/labels/team";
    let leaving = set(review("update-failed.validate"), labels, json!("elsewhere"));
    let response = door.validate(&leaving).await;
    assert_eq!((code(&response), causes(&response)["Policy"]), (403, "strict"));
    let joining =
        set(review("update-failed.validate"), "/request/oldObject/metadata/labels/team", json!("elsewhere"));
    assert_eq!(code(&door.validate(&joining).await), 200, "the labels before the update count");
    // The mark is of the same policy, or the fallback would take one for the other.
    assert_ne!(
        door.mutate(&set(review("update-failed.mutate"), labels, json!("elsewhere"))).await,
        Value::Null
    );
}

#[tokio::test]
async fn fault_12_a_panic_in_a_handler_is_a_500_for_that_call_alone() {
    let door = Door::new(json!({}), Answers::Panic);
    for round in 1..=3 {
        let calls = [
            door.call("/validate", fixture("update-healthy.validate")),
            door.call("/validate", fixture("override-failed.validate")),
            door.call("/mutate", fixture("update-healthy.mutate")),
        ];
        let status: Vec<u16> = join_all(calls).await.iter().map(|answer| answer.status.as_u16()).collect();
        assert_eq!(status, [200, 500, 200], "round {round}");
    }
    let answer = door.call("/validate", fixture("override-failed.validate")).await;
    assert_eq!(answer.text(), "internal error\n", "nothing of the panic gets out");
    assert_eq!(door.metric(r#"rollout_guard_admission_rejected_total{cause="panic"}"#), Some(4));
    assert_eq!(door.metric("rollout_guard_admission_in_flight"), Some(0), "its place is given back");
    // Beyond the capacity, had the places been lost.
    let small =
        Door::with([policy("default", json!({}))], Answers::Panic, Capacity { in_flight: 1, queued: 0 });
    for _ in 0..5 {
        assert_eq!(small.call("/validate", fixture("override-failed.validate")).await.status.as_u16(), 500);
    }
    assert_eq!(code(&small.validate(&review("update-healthy.validate")).await), 200);
}

#[tokio::test]
async fn fault_17_ten_times_the_capacity_is_a_bounded_queue_and_a_quick_refusal() {
    const CAPACITY: Capacity = Capacity { in_flight: 4, queued: 4 };
    let hold = Arc::new(Semaphore::new(0));
    let door = Door::with([policy("default", json!({}))], Answers::Held(Arc::clone(&hold)), CAPACITY);
    // A body is only read by a call that is let in or queued: what is refused costs no memory.
    let bodies_read = Arc::new(AtomicUsize::new(0));
    let refused = Arc::new(AtomicUsize::new(0));
    let call = || async {
        let chunks = stream::iter([Bytes::from(fixture("override-failed.validate"))]);
        let body = Body::from_stream(chunks.map_counting(Arc::clone(&bodies_read)));
        let started = Instant::now();
        let answer = door.send(post("/validate", body)).await;
        if answer.status == StatusCode::SERVICE_UNAVAILABLE {
            refused.fetch_add(1, Ordering::SeqCst);
            assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
        }
        answer
    };
    let check_and_release = async {
        while refused.load(Ordering::SeqCst) < 72 {
            tokio::task::yield_now().await;
        }
        assert_eq!((door.access.count(), bodies_read.load(Ordering::SeqCst)), (4, 8), "four are answered");
        assert_eq!(door.metric("rollout_guard_admission_in_flight"), Some(4));
        assert_eq!(call().await.status, StatusCode::SERVICE_UNAVAILABLE, "the queue is full");
        hold.add_permits(1);
    };
    let all = async { tokio::join!(join_all((0..80).map(|_| call())), check_and_release) };
    let (answers, ()) =
        tokio::time::timeout(Duration::from_secs(10), all).await.expect("nobody waits for ever");
    let answered: Vec<_> = answers.iter().filter(|answer| answer.status == StatusCode::OK).collect();
    assert_eq!(answered.len(), 8, "what was let in and what was queued");
    assert!(answered.iter().all(|answer| code(&answer.response()) == 200));
    let overload = r#"rollout_guard_admission_rejected_total{cause="overload"}"#;
    assert_eq!(door.metric(overload), Some(73));
    assert_eq!(door.metric("rollout_guard_admission_in_flight"), Some(0));
    assert_eq!(call().await.status, StatusCode::OK, "and all is well afterwards");
}

#[tokio::test]
async fn fault_17_a_caller_that_goes_away_gives_its_place_back() {
    let hold = Arc::new(Semaphore::new(0));
    let capacity = Capacity { in_flight: 1, queued: 1 };
    let door = Door::with([policy("default", json!({}))], Answers::Held(hold), capacity);
    for round in 1..=5 {
        {
            let calls =
                [(); 2].map(|()| Box::pin(door.call("/validate", fixture("override-failed.validate"))));
            let mut calls = futures::future::select_all(calls);
            assert!(futures::poll!(&mut calls).is_pending(), "round {round}: one answered, one queued");
            assert_eq!(door.call("/mutate", fixture("update-healthy.mutate")).await.status.as_u16(), 503);
        }
        let answer = door.call("/mutate", fixture("update-healthy.mutate")).await;
        assert_eq!(answer.status, StatusCode::OK, "round {round}: both places are free");
    }
    assert_eq!(door.metric("rollout_guard_admission_in_flight"), Some(0));
}

#[tokio::test]
async fn bodies_that_are_sent_slowly_take_no_place_from_the_others() {
    let capacity = Capacity { in_flight: 1, queued: 4 };
    let door = Door::with([policy("default", json!({}))], Answers::Panic, capacity);
    let slow = || door.call("/validate", Body::from_stream(stream::pending::<std::io::Result<Bytes>>()));
    let mut slow = futures::future::join_all([slow(), slow(), slow()]);
    assert!(futures::poll!(&mut slow).is_pending());
    let started = Instant::now();
    assert_eq!(code(&door.validate(&review("update-healthy.validate")).await), 200);
    assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
}

#[tokio::test]
async fn fault_1_bodies_together_hold_no_more_than_64_mebibytes() {
    let door = default_door();
    // Seven mebibytes each, of which the end does not come: nine of them fit, and what is only announced counts nothing.
    let chunk = Bytes::from(vec![b' '; 7 * 1024 * 1024]);
    let unfinished = || {
        let body = futures::StreamExt::chain(
            stream::iter([Ok::<_, std::io::Error>(chunk.clone())]),
            stream::pending(),
        );
        Box::pin(door.call("/validate", Body::from_stream(body)))
    };
    let mut nine = futures::future::join_all((0..9).map(|_| unfinished()));
    assert!(futures::poll!(&mut nine).is_pending());
    let tenth = unfinished().await;
    assert_eq!(
        (tenth.status, tenth.text()),
        (StatusCode::SERVICE_UNAVAILABLE, "too many bytes at once\n".to_owned())
    );
    assert_eq!(code(&door.validate(&review("update-healthy.validate")).await), 200, "a usual one still fits");
    drop(nine);
    let mut tenth = unfinished();
    assert!(futures::poll!(&mut tenth).is_pending(), "their bytes are given back");
}

#[tokio::test]
async fn a_body_that_does_not_come_holds_its_place_for_five_seconds_at_most() {
    let door = default_door();
    let started = Instant::now();
    let never = Body::from_stream(stream::pending::<std::io::Result<Bytes>>());
    assert_eq!(door.call("/validate", never).await.status, StatusCode::REQUEST_TIMEOUT);
    assert!(started.elapsed() < Duration::from_secs(8), "{:?}", started.elapsed());
    let broken = Body::from_stream(stream::iter([Err::<Bytes, _>(std::io::Error::other("reset"))]));
    assert_eq!(door.call("/validate", broken).await.status, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn fault_52_no_answer_says_the_words_that_make_flux_delete_and_recreate() {
    for words in [
        "field is immutable",
        "spec.selector: Invalid value: IS IMMUTABLE",
        "immutable field",
        "is\timmutable field",
        "is\nimmutable\nfield",
    ] {
        let hostile = || {
            let mut review = review("override-failed.validate");
            let request = &mut review["request"];
            request["object"]["metadata"]["annotations"][OVERRIDE] = json!(words);
            request["userInfo"]["username"] = json!(words);
            request["name"] = json!(words);
            request["namespace"] = json!(words);
            for condition in request["oldObject"]["status"]["conditions"].as_array_mut().expect("conditions")
            {
                condition["message"] = json!(words);
                condition["reason"] = json!(words);
            }
            review
        };
        let freeze = json!([{"name": "f", "schedule": "* * * * *", "duration": "24h", "reason": words}]);
        for spec in [json!({}), json!({"freezes": freeze}), json!({"mode": "Warn"}), json!({"mode": "Audit"})]
        {
            for answer in [Answers::Yes, Answers::No, Answers::Failure] {
                let response = Door::new(spec.clone(), answer).validate(&hostile()).await;
                let texts = texts(&response);
                assert!(
                    texts.iter().any(|text| text.to_lowercase().contains("immutable")),
                    "quoted: {response}"
                );
                for text in texts {
                    let lower = text.to_lowercase().replace(['\t', '\n', '\r', '\u{c}'], " ");
                    assert!(
                        !lower.contains("is immutable") && !lower.contains("immutable field"),
                        "{text:?}"
                    );
                }
            }
        }
    }
}

#[tokio::test]
async fn fault_53_a_dry_run_over_an_unobserved_generation_is_a_403_at_once_and_never_a_429() {
    let door = default_door();
    let response = door.validate(&review("dry-run-unobserved.validate")).await;
    assert_eq!((code(&response), id(&response)), (403, "RG001"));
    assert_eq!(response["status"]["reason"], "Forbidden");
    assert_eq!(response["status"]["details"]["retryAfterSeconds"], Value::Null);
    for phase in ["update-unobserved", "update-failed", "update-progressing"] {
        let waits = Door::new(
            json!({"admission": {"unobserved": "Wait", "failed": "Wait", "progressing": "Wait"}}),
            Answers::No,
        );
        let real = review(&format!("{phase}.validate"));
        assert_eq!(code(&waits.validate(&real).await), 429, "{phase}");
        let dry = set(real, "/request/dryRun", json!(true));
        assert_eq!(code(&waits.validate(&dry).await), 403, "{phase}");
    }
    assert_eq!(door.access.count(), 0);
}
