//! What the page shows of a RolloutRecord and of a RolloutPolicy: bounded, and harmless to whoever reads it.

use jiff::Timestamp;
use serde::Serialize;
use serde_json::Value;

use crate::{
    api::{
        policy::{Mode, RolloutPolicySpec},
        record::{Outcome, RecordCause, RecordPhase, RecordRollback},
    },
    cluster::{policies::StoredPolicy, records::StoredRecord},
    core::{
        key::Key,
        message::{harmless, plain},
        policy::Policy,
        record::revision,
    },
};

/// The most characters of a name, of a text, and of a line of evidence.
const NAME: usize = 253;
const TEXT: usize = 900;
const LINE: usize = 400;

/// The most lines of evidence, and the most images of a revision.
const LINES: usize = 12;
const IMAGES: usize = 8;

/// What becomes of a Deployment that is in trouble.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum Trouble {
    /// It is not given up yet.
    Failing,
    /// Its rollback is under way.
    RollingBack,
    /// It is stuck, and nothing is done but said.
    Held,
    /// What was put back is stuck as well.
    Latched,
}

/// A Deployment that is stuck, or about to be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct TroubleRow {
    namespace: String,
    name: String,
    pub(super) state: Trouble,
    cause: String,
    message: String,
    /// Why it is not rolled back.
    why_held: Option<String>,
    since: Timestamp,
    pushed_at: Option<Timestamp>,
    phase: Option<RecordPhase>,
    generation: Option<i64>,
    images: Vec<String>,
    evidence: Vec<String>,
    command: String,
}

/// The last rollback of a Deployment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct RollbackRow {
    namespace: String,
    name: String,
    outcome: Outcome,
    cause: String,
    message: String,
    pushed_at: Option<Timestamp>,
    started_at: Timestamp,
    finished_at: Option<Timestamp>,
    /// From the push until the template that was put back was complete.
    seconds_to_safety: Option<i64>,
    from_revision: Option<i64>,
    to_revision: Option<i64>,
    from_images: Vec<String>,
    to_images: Vec<String>,
    evidence: Vec<String>,
    command: String,
}

/// A RolloutPolicy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct PolicyRow {
    name: String,
    mode: Mode,
    guarded: Option<i64>,
    stuck: Option<i64>,
    /// Whether the policy as stored is in force; none where nobody has said so yet.
    valid: Option<bool>,
    why_not_valid: Option<String>,
    freeze: Option<FreezeRow>,
}

/// A freeze that is open.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct FreezeRow {
    name: String,
    reason: String,
    until: Timestamp,
}

/// Says whether a record is of the Deployment that it names: others are not shown.
pub(super) fn is_believed(record: &StoredRecord) -> bool {
    record.is_of(&Key::new(&record.namespace, &record.target.name), &record.target.uid)
}

impl TroubleRow {
    /// Returns the row of a Deployment that is in trouble by its record, and since when.
    pub(super) fn of(record: &StoredRecord) -> Option<(Timestamp, Self)> {
        let status = &record.status;
        let stalled = status.conditions.iter().find(|c| c.type_ == "Stalled" && c.status == "True");
        let cause = status.cause.clone().or_else(|| {
            let rollback = status.rollback.as_ref().filter(|r| r.outcome == Outcome::InProgress)?;
            Some(cause_of(rollback))
        });
        let state = match stalled.map(|stalled| stalled.reason.as_str()) {
            Some("RollingBack") => Trouble::RollingBack,
            Some("Latched") => Trouble::Latched,
            Some(_) => Trouble::Held,
            None => Trouble::Failing,
        };
        let under_way = matches!(
            status.phase,
            Some(RecordPhase::Unobserved | RecordPhase::Progressing | RecordPhase::Failed)
        );
        let (kind, message, why_held) = match (&cause, stalled) {
            (Some(cause), stalled) if stalled.is_some() || status.cause.is_some() && under_way => {
                let held = stalled.and_then(|stalled| hold(&stalled.message, cause));
                (cause.kind.word().to_owned(), cause.message.clone(), held)
            }
            // Nobody knows why but who wrote the condition.
            (None, Some(stalled)) => match stalled.message.split_once(": ") {
                Some((kind, rest)) => (kind.to_owned(), rest.to_owned(), None),
                None => ("Unknown".to_owned(), stalled.message.clone(), None),
            },
            _ => return None,
        };
        let since = match (stalled, &cause) {
            (Some(stalled), _) => stalled.last_transition_time.0,
            (None, cause) => cause.as_ref()?.since.0,
        };
        let images = status.template_hash.as_deref().and_then(|hash| revision(status, hash));
        let row = Self {
            namespace: plain(&record.namespace, NAME),
            name: plain(&record.target.name, NAME),
            state,
            cause: plain(&kind, NAME),
            message: plain(&message, TEXT),
            why_held: why_held.map(|why| plain(&why, TEXT)).filter(|_| state != Trouble::RollingBack),
            since,
            pushed_at: status.rollout_started_at.as_ref().map(|at| at.0),
            phase: status.phase,
            generation: status.generation,
            images: images.map(|revision| some(&revision.images, IMAGES)).unwrap_or_default(),
            evidence: cause.map(|cause| some(&cause.evidence, LINES)).unwrap_or_default(),
            command: command(record),
        };
        Some((since, row))
    }
}

impl RollbackRow {
    /// Returns the row of a record's last rollback, and when it was started.
    pub(super) fn of(record: &StoredRecord) -> Option<(Timestamp, Self)> {
        let status = &record.status;
        let rollback = status.rollback.as_ref()?;
        let images = |hash: &str| {
            revision(status, hash).map(|revision| some(&revision.images, IMAGES)).unwrap_or_default()
        };
        let time = |time: &k8s_openapi::apimachinery::pkg::apis::meta::v1::Time| time.0;
        let (pushed_at, finished_at) =
            (rollback.pushed_at.as_ref().map(time), rollback.finished_at.as_ref().map(time));
        let safe_at = finished_at.filter(|_| rollback.outcome == Outcome::Succeeded);
        let row = Self {
            namespace: plain(&record.namespace, NAME),
            name: plain(&record.target.name, NAME),
            outcome: rollback.outcome,
            cause: rollback.cause.word().to_owned(),
            message: plain(&rollback.message, TEXT),
            pushed_at,
            started_at: rollback.started_at.0,
            finished_at,
            seconds_to_safety: pushed_at.zip(safe_at).map(|(from, to)| to.duration_since(from).as_secs()),
            from_revision: rollback.from_revision,
            to_revision: rollback.to_revision,
            from_images: images(&rollback.from),
            to_images: images(&rollback.to),
            evidence: some(&rollback.evidence, LINES),
            command: command(record),
        };
        Some((rollback.started_at.0, row))
    }
}

impl PolicyRow {
    /// Returns the row of a policy as it is stored, and as it is in force at `now`, where it is.
    pub(super) fn of(stored: &StoredPolicy, in_force: Option<&Policy>, now: Timestamp) -> Self {
        let ready = stored.status.conditions.iter().find(|condition| condition.type_ == "Ready");
        let valid = ready.map(|ready| ready.status == "True");
        let freeze = in_force.and_then(|policy| policy.open_freeze(now)).map(|freeze| FreezeRow {
            name: plain(freeze.name, NAME),
            reason: plain(freeze.reason, TEXT),
            until: freeze.until,
        });
        Self {
            name: plain(&stored.name, NAME),
            mode: in_force.map_or_else(|| mode(&stored.spec), |policy| policy.mode),
            guarded: stored.status.guarded,
            stuck: stored.status.stuck,
            valid,
            why_not_valid: ready.filter(|_| valid == Some(false)).map(|ready| plain(&ready.message, TEXT)),
            freeze,
        }
    }
}

/// The mode of a policy that is not in force, the default's where it cannot be read.
fn mode(spec: &Value) -> Mode {
    let mode = spec.get("mode").cloned().and_then(|mode| serde_json::from_value(mode).ok());
    mode.unwrap_or_else(|| RolloutPolicySpec::default().mode)
}

fn cause_of(rollback: &RecordRollback) -> RecordCause {
    RecordCause {
        kind: rollback.cause,
        message: rollback.message.clone(),
        since: rollback.started_at.clone(),
        evidence: rollback.evidence.clone(),
    }
}

/// What the condition says beyond the cause: why nothing is done.
fn hold(told: &str, cause: &RecordCause) -> Option<String> {
    let known = harmless(&plain(&format!("{}: {}", cause.kind.word(), cause.message), TEXT));
    let rest = told.strip_prefix(known.as_str())?.strip_prefix("; ")?;
    Some(rest.to_owned())
}

fn some(lines: &[String], most: usize) -> Vec<String> {
    lines.iter().take(most).map(|line| plain(line, LINE)).collect()
}

fn command(record: &StoredRecord) -> String {
    let (name, namespace) = (plain(&record.target.name, NAME), plain(&record.namespace, NAME));
    format!("rollout-guard diagnose {name} -n {namespace}")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn record(status: Value) -> StoredRecord {
        let object = json!({
            "metadata": {"namespace": "shop", "name": "deployment-web", "uid": "r", "resourceVersion": "5",
                "ownerReferences": [{"apiVersion": "apps/v1", "kind": "Deployment", "name": "web", "uid": "u"}]},
            "spec": {"targetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "web", "uid": "u"}},
            "status": status,
        });
        StoredRecord::read(object)
    }

    fn stalled(reason: &str, message: &str) -> Value {
        json!([{"type": "Stalled", "status": "True", "reason": reason, "message": message,
            "lastTransitionTime": "2027-01-15T08:00:30Z"}])
    }

    fn cause() -> Value {
        json!({"type": "Image", "message": "a <b>bad</b>\nimage", "since": "2027-01-15T08:00:00Z",
            "evidence": ["pod web-1: ImagePullBackOff"]})
    }

    fn trouble(status: Value) -> Option<Value> {
        TroubleRow::of(&record(status)).map(|(_, row)| serde_json::to_value(row).expect("JSON"))
    }

    #[test]
    fn a_deployment_is_shown_while_it_is_in_trouble_and_with_why_it_is_held() {
        let held = "Image: a <b>bad</b>\\nimage; the policy's rollback is Off";
        let row = trouble(json!({"phase": "Failed", "generation": 7, "cause": cause(), "templateHash": "a",
            "rolloutStartedAt": "2027-01-15T07:59:00Z", "revisions": [{"templateHash": "a", "images": ["x:2"], "verdict": "Unknown"}],
            "conditions": stalled("Held", held)}))
        .expect("shown");
        assert_eq!((&row["state"], &row["cause"]), (&json!("held"), &json!("Image")));
        assert_eq!(row["message"], "a <b>bad</b>\\nimage", "as text on one line");
        assert_eq!(row["whyHeld"], "the policy's rollback is Off");
        assert_eq!(row["since"], "2027-01-15T08:00:30Z");
        assert_eq!((&row["images"], &row["generation"]), (&json!(["x:2"]), &json!(7)));
        assert_eq!(row["command"], "rollout-guard diagnose web -n shop");
        assert_eq!(row["evidence"], json!(["pod web-1: ImagePullBackOff"]));

        let failing = trouble(json!({"phase": "Progressing", "cause": cause()})).expect("shown");
        assert_eq!(
            (&failing["state"], &failing["since"]),
            (&json!("failing"), &json!("2027-01-15T08:00:00Z"))
        );
        for calm in [
            json!({"phase": "Progressing"}),
            json!({"phase": "Complete", "cause": cause()}),
            json!({}),
            json!({"phase": "Complete", "conditions": [{"type": "Stalled", "status": "False", "reason": "NotStuck",
                "message": "nothing is stuck", "lastTransitionTime": "2027-01-15T08:00:30Z"}]}),
        ] {
            assert_eq!(trouble(calm.clone()), None, "{calm}");
        }
    }

    #[test]
    fn what_only_the_condition_tells_is_shown_too() {
        let row = trouble(
            json!({"phase": "Failed", "conditions": stalled("Latched", "Unknown: it is slow; and so on")}),
        );
        let row = row.expect("shown");
        assert_eq!((&row["state"], &row["cause"]), (&json!("latched"), &json!("Unknown")));
        assert_eq!(row["message"], "it is slow; and so on");
    }

    fn rollback(outcome: &str) -> Value {
        json!({"phase": "Complete", "templateHash": "a", "conditions": [],
            "revisions": [{"templateHash": "a", "images": ["x:1"], "verdict": "Good"},
                {"templateHash": "b", "images": ["x:2"], "verdict": "Bad"}],
            "rollback": {"from": "b", "to": "a", "fromGeneration": 2, "fromRevision": 2, "toRevision": 1, "cause": "Image",
                "message": "no such image", "pushedAt": "2027-01-15T08:00:00Z", "startedAt": "2027-01-15T08:00:10Z",
                "finishedAt": "2027-01-15T08:00:14Z", "outcome": outcome}})
    }

    #[test]
    fn a_rollback_is_shown_from_where_to_where_and_with_the_seconds_to_safety() {
        let row = |status| {
            RollbackRow::of(&record(status)).map(|(at, row)| (at, serde_json::to_value(row).expect("JSON")))
        };
        let (at, shown) = row(rollback("Succeeded")).expect("shown");
        assert_eq!(at.to_string(), "2027-01-15T08:00:10Z");
        assert_eq!((&shown["fromImages"], &shown["toImages"]), (&json!(["x:2"]), &json!(["x:1"])));
        assert_eq!((&shown["secondsToSafety"], &shown["outcome"]), (&json!(14), &json!("Succeeded")));
        let (_, failed) = row(rollback("Failed")).expect("shown");
        assert_eq!(failed["secondsToSafety"], Value::Null, "it is not safe");
        assert_eq!(row(json!({"phase": "Complete"})), None);
    }

    #[test]
    fn every_text_is_bounded() {
        let long = "x".repeat(100_000);
        let lines = vec![long.clone(); 100];
        let row = trouble(json!({"phase": "Failed", "templateHash": "a",
            "revisions": [{"templateHash": "a", "images": lines.clone(), "verdict": "Unknown"}],
            "cause": {"type": "Image", "message": long, "since": "2027-01-15T08:00:00Z", "evidence": lines}}));
        let size = row.expect("shown").to_string().len();
        assert!(size < 12_000, "{size}");
    }

    #[test]
    fn a_record_that_somebody_planted_is_not_believed() {
        assert!(is_believed(&record(json!({}))));
        let planted = StoredRecord { owner_uid: String::new(), ..record(json!({})) };
        assert!(!is_believed(&planted));
    }
}
