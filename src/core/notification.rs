//! What people are told of beyond the cluster: the same that is written as Events, and the breaker. Pure.
//!
//! A notification is told once: its id follows from the Deployment's uid and from what makes an Event one and the same,
//! so that it is the same id whoever leads. What it says is bounded, and on one line each.

use std::fmt::Write as _;

use jiff::{SignedDuration, Timestamp};
use ring::digest::{SHA256, digest};
use serde::{Deserialize, Serialize};

use super::{
    breaker::Why,
    conditions::Telling,
    key::Key,
    message::{harmless, plain},
    record::revision,
};
use crate::api::{
    policy::CauseType,
    record::{Outcome, RolloutRecordStatus},
};

/// The most characters of a line of evidence.
const LINE: usize = 512;

/// The most lines of evidence: those of the cause, and the end of a log.
const LINES: usize = 20;

/// The most characters of a message.
const MESSAGE: usize = 900;

/// That the cluster's health is not known is told when it has been so for this long: at the beginning of a lead it
/// always is.
const UNKNOWN_FOR: SignedDuration = SignedDuration::from_secs(60);

/// What has happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Kind {
    /// A generation is stuck.
    Stuck,
    /// It is stuck, and the guard leaves it so.
    Held,
    /// The revision that was put back is stuck as well.
    Latched,
    /// An earlier revision was put back.
    RolledBack,
    /// It is complete.
    RollbackVerified,
    /// Nothing is rolled back: the cluster itself is not well.
    BreakerOpen,
    /// It is well again.
    BreakerClosed,
    /// Nothing: somebody tries a receiver.
    Test,
}

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Good to know.
    Info,
    /// Somebody should look at it.
    Warning,
    /// Nothing helps but a person.
    Critical,
}

impl Severity {
    /// Returns the word.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Warning => "warning",
            Self::Critical => "critical",
        }
    }
}

impl Kind {
    /// Returns the word.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Stuck => "Stuck",
            Self::Held => "Held",
            Self::Latched => "Latched",
            Self::RolledBack => "RolledBack",
            Self::RollbackVerified => "RollbackVerified",
            Self::BreakerOpen => "BreakerOpen",
            Self::BreakerClosed => "BreakerClosed",
            Self::Test => "Test",
        }
    }

    /// Returns how bad it is.
    pub const fn severity(self) -> Severity {
        match self {
            Self::RollbackVerified | Self::BreakerClosed | Self::Test => Severity::Info,
            Self::Stuck | Self::Held | Self::RolledBack => Severity::Warning,
            Self::Latched | Self::BreakerOpen => Severity::Critical,
        }
    }

    /// Returns what it is called for people, as in `Rollout stuck`.
    pub const fn title(self) -> &'static str {
        match self {
            Self::Stuck => "Rollout stuck",
            Self::Held => "Rollout stuck, not rolled back",
            Self::Latched => "Rolled back, and stuck as well",
            Self::RolledBack => "Rolled back",
            Self::RollbackVerified => "Rollback verified",
            Self::BreakerOpen => "Breaker open, nothing is rolled back",
            Self::BreakerClosed => "Breaker closed",
            Self::Test => "Test",
        }
    }

    /// Returns the kind of what is told as an Event with this reason.
    fn of(reason: &str) -> Option<Self> {
        Some(match reason {
            "RolloutStuck" => Self::Stuck,
            "RollbackHeld" => Self::Held,
            "RollbackLatched" => Self::Latched,
            "RolledBack" => Self::RolledBack,
            "RollbackVerified" => Self::RollbackVerified,
            _ => return None,
        })
    }
}

/// One thing that people are told.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Notification {
    /// The same each time that the same is told: 32 hexadecimal digits.
    pub id: String,
    /// What has happened.
    pub kind: Kind,
    /// How bad it is.
    pub severity: Severity,
    /// Since when it is so.
    pub time: Timestamp,
    /// In words, on one line: 900 characters at the most.
    pub message: String,
    /// The Deployment that it is about, where it is about one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deployment: Option<Subject>,
    /// Why, where it is about a stuck generation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cause: Option<Reason>,
    /// The rollback, where there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rollback: Option<Move>,
}

/// A Deployment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Subject {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its uid.
    pub uid: String,
    /// The generation that is spoken of.
    pub generation: i64,
}

/// Why a generation is, or was, stuck.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Reason {
    /// The type of cause.
    #[serde(rename = "type")]
    pub kind: CauseType,
    /// In words.
    pub message: String,
    /// Facts that anybody can check, a line each.
    pub evidence: Vec<String>,
}

/// A rollback.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Move {
    /// What was rolled back from.
    pub from: Revision,
    /// What was put back.
    pub to: Revision,
    /// What became of it.
    pub outcome: Outcome,
    /// When it was decided on.
    pub started_at: Timestamp,
    /// When its outcome was known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<Timestamp>,
}

/// A template.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Revision {
    /// The revision of its ReplicaSet, where it has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revision: Option<i64>,
    /// The hash of the template, as in the RolloutRecord.
    pub template_hash: String,
    /// The images of its containers.
    pub images: Vec<String>,
}

impl Notification {
    /// Returns what is told of the Deployment `key` with this `uid`, besides the Event; none where an Event is enough.
    pub fn of(key: &Key, uid: &str, status: &RolloutRecordStatus, telling: &Telling) -> Option<Self> {
        let kind = Kind::of(telling.reason)?;
        let about_rollback = matches!(kind, Kind::RolledBack | Kind::RollbackVerified | Kind::Latched);
        let rollback = status.rollback.as_ref().filter(|_| about_rollback);
        let of_rollback = rollback.filter(|_| kind != Kind::Latched);
        let cause = match of_rollback {
            Some(rollback) => Some((rollback.cause, &rollback.message, &rollback.evidence)),
            None => status.cause.as_ref().map(|cause| (cause.kind, &cause.message, &cause.evidence)),
        };
        let generation = of_rollback.and_then(|rollback| rollback.generation).or(status.generation);
        let side = |hash: &str, number: Option<i64>| Revision {
            revision: number,
            template_hash: hash.to_owned(),
            images: revision(status, hash).map(|known| known.images.clone()).unwrap_or_default(),
        };
        Some(Self {
            id: id(uid, &telling.once),
            kind,
            severity: kind.severity(),
            time: telling.since,
            message: bounded(&telling.message, MESSAGE),
            deployment: Some(Subject {
                namespace: key.namespace.clone(),
                name: key.name.clone(),
                uid: uid.to_owned(),
                generation: generation.unwrap_or_default(),
            }),
            cause: cause.map(|(kind, message, evidence)| Reason {
                kind,
                message: bounded(message, MESSAGE),
                evidence: evidence.iter().take(LINES).map(|line| bounded(line, LINE)).collect(),
            }),
            rollback: rollback.map(|rollback| Move {
                from: side(&rollback.from, rollback.from_revision),
                to: side(&rollback.to, rollback.to_revision),
                outcome: rollback.outcome,
                started_at: rollback.started_at.0,
                finished_at: rollback.finished_at.as_ref().map(|finished| finished.0),
            }),
        })
    }

    /// Returns a message that says nothing but that it arrives.
    pub fn test(now: Timestamp) -> Self {
        let message = "this is a test of rollout-guard: nothing has happened".to_owned();
        Self::plain(Kind::Test, message, "test", now)
    }

    /// One that is about no Deployment.
    fn plain(kind: Kind, message: String, of: &str, time: Timestamp) -> Self {
        let id = id(of, &format!("{}/{time}", kind.word()));
        let severity = kind.severity();
        Self { id, kind, severity, time, message, deployment: None, cause: None, rollback: None }
    }
}

/// Finds out when the breaker opens and closes, from looks at it.
#[derive(Debug, Default)]
pub struct BreakerNews {
    /// Since when it is open, and whether that was told.
    open: Option<(Timestamp, bool)>,
}

impl BreakerNews {
    /// Takes in why the breaker is open, or that it is not, and returns what is to be told: once for each time that it
    /// opens, and once when it closes after that.
    pub fn look(&mut self, open: Option<&Why>, now: Timestamp) -> Option<Notification> {
        let Some(why) = open else {
            let (_, told) = self.open.take()?;
            let message = "the breaker is closed: rollbacks may start again".to_owned();
            return told.then(|| Notification::plain(Kind::BreakerClosed, message, "breaker", now));
        };
        let (since, told) = self.open.get_or_insert((now, false));
        let certain = *why != Why::Unknown || now.duration_since(*since) >= UNKNOWN_FOR;
        if *told || !certain {
            return None;
        }
        *told = true;
        let message = format!("the breaker is open: {why}; nothing is rolled back");
        Some(Notification::plain(Kind::BreakerOpen, message, "breaker", *since))
    }
}

/// The first half of the digest: the same for the same, and no more than an id needs.
fn id(of: &str, once: &str) -> String {
    let digest = digest(&SHA256, format!("{of}/{once}").as_bytes());
    digest.as_ref().iter().take(16).fold(String::with_capacity(32), |mut hex, byte| {
        // Writing to a String does not fail.
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

fn bounded(text: &str, most: usize) -> String {
    harmless(&plain(text, most))
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    use super::*;
    use crate::api::record::{RecordCause, RecordRevision, RecordRollback};

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).expect("in range")
    }

    fn status() -> RolloutRecordStatus {
        let revision = |hash: &str, image: &str| RecordRevision {
            template_hash: hash.to_owned(),
            images: vec![image.to_owned()],
            ..RecordRevision::default()
        };
        RolloutRecordStatus {
            generation: Some(8),
            cause: Some(RecordCause {
                kind: CauseType::Image,
                message: "image is not found".to_owned(),
                since: Time(at(0)),
                evidence: vec![format!("pod web-1\u{1b}[31m {}", "x".repeat(4000)); 50],
            }),
            revisions: vec![revision("bad", "web:2"), revision("good", "web:1")],
            rollback: Some(RecordRollback {
                from: "bad".to_owned(),
                to: "good".to_owned(),
                from_generation: 7,
                generation: Some(8),
                from_revision: Some(2),
                to_revision: Some(1),
                cause: CauseType::Application,
                message: "it crashed".to_owned(),
                evidence: vec!["exit code 1".to_owned()],
                pushed_at: None,
                started_at: Time(at(5)),
                restored_at: Some(Time(at(6))),
                finished_at: None,
                outcome: Outcome::InProgress,
            }),
            ..RolloutRecordStatus::default()
        }
    }

    fn telling(reason: &'static str) -> Telling {
        Telling {
            warning: true,
            reason,
            message: "words".to_owned(),
            once: format!("t/8/{reason}"),
            since: at(9),
        }
    }

    fn told(reason: &'static str) -> Notification {
        let key = Key::new("shop", "web");
        Notification::of(&key, "uid-1", &status(), &telling(reason)).expect("it is told")
    }

    #[test]
    fn every_event_has_its_kind_and_an_id_that_stays() {
        let kinds = ["RolloutStuck", "RollbackHeld", "RollbackLatched", "RolledBack", "RollbackVerified"];
        let ids: std::collections::BTreeSet<String> = kinds.iter().map(|reason| told(reason).id).collect();
        assert_eq!(ids.len(), 5);
        assert_eq!(told("RolloutStuck"), told("RolloutStuck"));
        assert_eq!(told("RolloutStuck").id.len(), 32);
        let other = Notification::of(&Key::new("shop", "web"), "uid-2", &status(), &telling("RolloutStuck"));
        assert!(other.is_some_and(|other| other.id != told("RolloutStuck").id));
        assert_eq!(Notification::of(&Key::default(), "", &status(), &telling("Scaled")), None);
    }

    #[test]
    fn a_rollback_is_told_with_its_own_cause_and_both_sides() {
        let stuck = told("RolloutStuck");
        assert_eq!(stuck.cause.as_ref().map(|cause| cause.kind), Some(CauseType::Image));
        assert_eq!((stuck.rollback, stuck.severity), (None, Severity::Warning));
        let back = told("RolledBack");
        assert_eq!(back.cause.as_ref().map(|cause| cause.kind), Some(CauseType::Application));
        let rollback = back.rollback.expect("a rollback");
        assert_eq!((rollback.from.revision, rollback.from.images), (Some(2), vec!["web:2".to_owned()]));
        assert_eq!((rollback.to.revision, rollback.to.images), (Some(1), vec!["web:1".to_owned()]));
        let latched = told("RollbackLatched");
        assert_eq!(latched.cause.as_ref().map(|cause| cause.kind), Some(CauseType::Image));
        assert!(latched.rollback.is_some() && latched.severity == Severity::Critical);
    }

    #[test]
    fn what_is_told_is_bounded_and_cannot_steer_a_terminal() {
        let json = serde_json::to_string(&told("RolloutStuck")).expect("JSON");
        assert!(json.len() < 14_000, "{}", json.len());
        assert!(!json.contains('\u{1b}') && !json.contains("\\u001b["), "{json}");
    }

    #[test]
    fn the_breaker_is_told_once_when_it_opens_and_once_when_it_closes() {
        let mut news = BreakerNews::default();
        let nodes = Why::Nodes { ready: 1, total: 3 };
        assert_eq!(news.look(None, at(0)), None);
        let open = news.look(Some(&nodes), at(1)).expect("told");
        assert_eq!((open.kind, open.time), (Kind::BreakerOpen, at(1)));
        assert_eq!(open.message, "the breaker is open: only 1 of 3 nodes are ready; nothing is rolled back");
        assert_eq!(news.look(Some(&Why::ControllerManager), at(2)), None);
        assert_eq!(news.look(None, at(3)).map(|told| told.kind), Some(Kind::BreakerClosed));
        assert_eq!(news.look(None, at(4)), None);
        let again = news.look(Some(&nodes), at(5)).expect("told again");
        assert_ne!(again.id, open.id);
    }

    #[test]
    fn the_first_seconds_of_a_lead_are_no_news() {
        let mut news = BreakerNews::default();
        assert_eq!(news.look(Some(&Why::Unknown), at(0)), None);
        assert_eq!(news.look(None, at(5)), None, "what was not told does not end");
        assert_eq!(news.look(Some(&Why::Unknown), at(10)), None);
        assert_eq!(news.look(Some(&Why::Unknown), at(69)), None);
        assert_eq!(news.look(Some(&Why::Unknown), at(70)).map(|told| told.time), Some(at(10)));
    }
}
