//! What admission must know of a RolloutRecord, and no more: which templates are Good or Bad.
//!
//! Every replica holds one for each record, so it is small: 64 bytes a template. What belongs together is read once,
//! when the record changes; a review then costs a look at a few hashes.

use std::num::NonZeroI64;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::{message::plain, template::TemplateHash};
use crate::api::{
    policy::CauseType,
    record::{RecordRevision, RolloutRecordStatus, Verdict},
};

/// The most characters that are kept of why a template was rolled back from.
const LONGEST_MESSAGE: usize = 400;

/// The templates of one Deployment that are Good or Bad, and what its last rollback was about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ledger {
    uid: Box<str>,
    /// Newest first, as in the record.
    templates: Box<[Remembered]>,
    rollback: Option<Box<Rollback>>,
}

/// One template with a verdict.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Remembered {
    hash: TemplateHash,
    since: Option<Second>,
    until: Option<Second>,
    /// 0 where it is not known: Kubernetes counts from 1.
    revision: i64,
    /// None: Good.
    bad: Option<BadFor>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct BadFor(Option<CauseType>);

/// Seconds since 1970, with room for a none beside it: what is stored is one more where it is not negative.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Second(NonZeroI64);

impl Second {
    fn of(time: &Time) -> Option<Self> {
        let second = time.0.as_second();
        NonZeroI64::new(if second < 0 { second } else { second + 1 }).map(Self)
    }

    fn time(self) -> Option<Timestamp> {
        let stored = self.0.get();
        Timestamp::from_second(if stored < 0 { stored } else { stored - 1 }).ok()
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Rollback {
    from: Option<TemplateHash>,
    to: Option<TemplateHash>,
    message: Box<str>,
}

/// What is recorded of a template.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Recorded<'a> {
    /// Nothing that admission goes by.
    #[default]
    Nothing,
    /// The last rollback puts it back; there is no verdict on it.
    PutBack,
    /// It was good.
    Good,
    /// It was rolled back from.
    Bad(Bad<'a>),
}

/// A template that was rolled back from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bad<'a> {
    /// When.
    pub since: Option<Timestamp>,
    /// Until when it is refused: before this and not at it. None: for ever.
    pub until: Option<Timestamp>,
    /// Why.
    pub cause: Option<CauseType>,
    /// The revision of its ReplicaSet, where it had one.
    pub revision: Option<i64>,
    /// Why, in words; empty where another rollback came after.
    pub message: &'a str,
}

impl Bad<'_> {
    /// Says whether the template is refused at `now`.
    pub fn holds_at(&self, now: Timestamp) -> bool {
        self.until.is_none_or(|until| now < until)
    }
}

impl Ledger {
    /// Reads the record of the Deployment with this `uid`; none where nothing in it matters to admission. What cannot be
    /// read is left out.
    pub fn of(uid: &str, status: &RolloutRecordStatus) -> Option<Self> {
        let templates: Box<[_]> = status.revisions.iter().filter_map(remembered).collect();
        let rollback = status.rollback.as_ref().map(|rollback| {
            Box::new(Rollback {
                from: TemplateHash::parse(&rollback.from),
                to: TemplateHash::parse(&rollback.to),
                message: plain(&rollback.message, LONGEST_MESSAGE).into(),
            })
        });
        let anything = !templates.is_empty() || rollback.is_some();
        anything.then(|| Self { uid: uid.into(), templates, rollback })
    }

    /// Returns the uid of the Deployment.
    pub fn uid(&self) -> &str {
        &self.uid
    }

    /// Returns what is recorded of the template with this hash.
    pub fn recorded(&self, hash: TemplateHash) -> Recorded<'_> {
        let rollback = self.rollback.as_deref();
        let Some(found) = self.templates.iter().find(|template| template.hash == hash) else {
            let put_back = rollback.is_some_and(|rollback| rollback.to == Some(hash));
            return if put_back { Recorded::PutBack } else { Recorded::Nothing };
        };
        let Some(BadFor(cause)) = found.bad else { return Recorded::Good };
        Recorded::Bad(Bad {
            since: found.since.and_then(Second::time),
            until: found.until.and_then(Second::time),
            cause,
            revision: (found.revision > 0).then_some(found.revision),
            message: rollback.filter(|last| last.from == Some(hash)).map_or("", |last| &last.message),
        })
    }
}

fn remembered(revision: &RecordRevision) -> Option<Remembered> {
    let bad = match revision.verdict {
        Verdict::Good => None,
        Verdict::Bad => Some(BadFor(revision.reason)),
        Verdict::Unknown => return None,
    };
    Some(Remembered {
        hash: TemplateHash::parse(&revision.template_hash)?,
        since: revision.since.as_ref().and_then(Second::of),
        until: revision.until.as_ref().and_then(Second::of),
        revision: revision.revision.unwrap_or_default(),
        bad,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn hash(template: &str) -> TemplateHash {
        TemplateHash::of(&json!(template))
    }

    fn ledger(status: serde_json::Value) -> Option<Ledger> {
        Ledger::of("u", &serde_json::from_value(status).expect("a status"))
    }

    fn rollback(from: &str, to: &str) -> serde_json::Value {
        json!({
            "from": hash(from).to_string(), "to": hash(to).to_string(), "fromGeneration": 7, "cause": "Image",
            "message": "localhost/web:1.4.2: not found", "startedAt": "2026-11-23T17:16:39Z", "outcome": "InProgress",
        })
    }

    #[test]
    fn what_is_good_bad_or_put_back_is_told_by_its_hash() {
        let ledger = ledger(json!({
            "revisions": [
                {"templateHash": hash("bad").to_string(), "revision": 7, "verdict": "Bad", "reason": "Image",
                 "since": "2026-11-23T17:16:39Z", "until": "2026-12-23T17:16:39Z"},
                {"templateHash": hash("good").to_string(), "verdict": "Good"},
                {"templateHash": hash("other").to_string(), "verdict": "Unknown"},
                {"templateHash": "3f9c", "verdict": "Bad"},
            ],
            "rollback": rollback("bad", "before"),
        }))
        .expect("something");
        let at = |text: &str| text.parse::<Timestamp>().ok();
        assert_eq!(
            ledger.recorded(hash("bad")),
            Recorded::Bad(Bad {
                since: at("2026-11-23T17:16:39Z"),
                until: at("2026-12-23T17:16:39Z"),
                cause: Some(CauseType::Image),
                revision: Some(7),
                message: "localhost/web:1.4.2: not found",
            })
        );
        assert_eq!(ledger.recorded(hash("good")), Recorded::Good);
        assert_eq!(ledger.recorded(hash("before")), Recorded::PutBack);
        assert_eq!(ledger.recorded(hash("other")), Recorded::Nothing);
        assert_eq!(ledger.recorded(hash("new")), Recorded::Nothing);
    }

    #[test]
    fn the_words_of_a_rollback_are_those_of_its_own_template_alone() {
        let revisions = json!([
            {"templateHash": hash("a").to_string(), "verdict": "Bad"},
            {"templateHash": hash("b").to_string(), "verdict": "Bad"},
        ]);
        let ledger =
            ledger(json!({"revisions": revisions, "rollback": rollback("b", "c")})).expect("something");
        assert_eq!(ledger.recorded(hash("a")), Recorded::Bad(Bad::default()));
        assert!(
            matches!(ledger.recorded(hash("b")), Recorded::Bad(Bad { message, .. }) if !message.is_empty())
        );
    }

    #[test]
    fn a_record_without_verdicts_takes_no_room() {
        assert_eq!(ledger(json!({})), None);
        let unknown = json!([{"templateHash": hash("a").to_string(), "verdict": "Unknown"}]);
        assert_eq!(ledger(json!({"revisions": unknown})), None);
        assert!(size_of::<Remembered>() <= 64, "{}", size_of::<Remembered>());
    }

    #[test]
    fn a_quarantine_ends_when_it_says() {
        let at = |second| Timestamp::from_second(second).expect("a time");
        let bad = Bad { until: Some(at(100)), ..Bad::default() };
        assert!(bad.holds_at(at(99)) && !bad.holds_at(at(100)));
        assert!(Bad::default().holds_at(Timestamp::MAX));
        for second in [i64::from(i32::MIN), -1, 0, 1, Timestamp::MAX.as_second()] {
            assert_eq!(Second::of(&Time(at(second))).and_then(Second::time), Some(at(second)));
        }
    }
}
