//! The alerts of one Alertmanager: what is the case now, told again as long as it lasts.
//!
//! Alertmanager forgets an alert that is not told again. So each is sent with an end some minutes ahead, again and
//! again before that, and with the end of now when it is over. A guard that dies leaves nothing that burns for ever, and
//! the next leader goes on from what it finds itself.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use tokio::sync::Notify;

use super::config::Receiver;
use crate::core::{
    key::Key,
    notification::{Kind, Notification},
};

/// The most alerts at a time.
const MOST: usize = 1000;

/// The most alerts in one call.
pub const AT_ONCE: usize = 64;

/// How long an alert lasts that is not told again: five times the resend.
const LASTS: SignedDuration = SignedDuration::from_mins(5);

/// How long it is an alert that something was rolled back.
const ROLLED_BACK_FOR: SignedDuration = SignedDuration::from_hours(1);

/// What is over and cannot be told for so long is forgotten: Alertmanager has long ended it by itself.
const FORGOTTEN_AFTER: SignedDuration = SignedDuration::from_mins(15);

/// By what an alert is one and the same: all that goes into its labels.
type Label = (Kind, Option<(String, String)>, Option<&'static str>);

#[derive(Clone, Debug)]
struct Alert {
    told: Arc<Notification>,
    /// When it is over, or was.
    ends: Option<Timestamp>,
    /// When it was last sent.
    sent: Option<Timestamp>,
    /// Whether something has changed since.
    changed: bool,
    /// At how many looks in a row its Deployment was not among the stuck ones.
    missed: u8,
}

/// The alerts of one receiver.
#[derive(Debug, Default)]
pub struct Board {
    alerts: Mutex<BTreeMap<Label, Alert>>,
    changed: Notify,
}

/// Alerts that are to be sent, and what they are known by.
#[derive(Debug)]
pub struct Batch {
    /// The body's alerts.
    pub alerts: Vec<Value>,
    /// How many of them say something new.
    pub news: usize,
    labels: Vec<(Label, Arc<Notification>, Option<Timestamp>)>,
}

/// Returns what an alert of this kind is called; none where the kind is no state that lasts.
pub const fn alert_name(kind: Kind) -> Option<&'static str> {
    match kind {
        Kind::Stuck => Some("RolloutStuck"),
        Kind::Held => Some("RollbackHeld"),
        Kind::Latched => Some("RollbackLatched"),
        Kind::RolledBack => Some("RolledBack"),
        Kind::BreakerOpen => Some("RolloutGuardBreakerOpen"),
        Kind::Test => Some("RolloutGuardTest"),
        Kind::RollbackVerified | Kind::BreakerClosed => None,
    }
}

fn label(told: &Notification) -> Label {
    let about = told.deployment.as_ref().map(|about| (about.namespace.clone(), about.name.clone()));
    (told.kind, about, told.cause.as_ref().map(|cause| cause.kind.word()))
}

impl Board {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<Label, Alert>> {
        self.alerts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in what is the case. Returns false where there are too many alerts already.
    pub fn put(&self, told: &Arc<Notification>, now: Timestamp) -> bool {
        let lasts = told.kind == Kind::RolledBack;
        let ends = lasts.then(|| later(told.time, ROLLED_BACK_FOR));
        if alert_name(told.kind).is_none() || ends.is_some_and(|ends| ends <= now) {
            return true;
        }
        let label = label(told);
        let mut alerts = self.lock();
        let same = alerts.get(&label);
        if same.is_some_and(|same| same.told == *told && (lasts || same.ends.is_none())) {
            return true;
        }
        if same.is_none() && alerts.len() >= MOST {
            return false;
        }
        // With another cause it is another alert: the one before is over.
        for (_, other) in alerts
            .iter_mut()
            .filter(|(other, _)| (other.0, &other.1) == (label.0, &label.1) && **other != label)
        {
            other.end(now);
        }
        let sent = alerts.get(&label).and_then(|same| same.sent);
        alerts.insert(label, Alert { told: Arc::clone(told), ends, sent, changed: true, missed: 0 });
        drop(alerts);
        self.changed.notify_one();
        true
    }

    /// Takes in which Deployments are stuck: alerts of all others are over. What is missed once may have come between.
    pub fn stuck_are(&self, stuck: &BTreeSet<Key>, now: Timestamp) {
        let mut any = false;
        for ((kind, about, _), alert) in self.lock().iter_mut() {
            let Some((namespace, name)) = about else { continue };
            if !matches!(kind, Kind::Stuck | Kind::Held | Kind::Latched) || alert.ends.is_some() {
                continue;
            }
            let missed = !stuck.contains(&Key::new(namespace.as_str(), name.as_str()));
            alert.missed = if missed { alert.missed.saturating_add(1) } else { 0 };
            if alert.missed >= 2 {
                alert.end(now);
                any = true;
            }
        }
        if any {
            self.changed.notify_one();
        }
    }

    /// Takes in that the breaker is closed.
    pub fn breaker_is_closed(&self, now: Timestamp) {
        for ((kind, ..), alert) in self.lock().iter_mut() {
            if *kind == Kind::BreakerOpen && alert.ends.is_none() {
                alert.end(now);
            }
        }
        self.changed.notify_one();
    }

    /// Forgets everything and tells nobody: another process leads.
    pub fn clear(&self) {
        self.lock().clear();
    }

    /// Completes when something has changed.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    #[cfg(test)]
    fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    /// Returns how many alerts there are.
    pub fn len(&self) -> usize {
        self.lock().len()
    }

    /// Returns what is to be sent now: what has changed, and what was last sent before `resend`.
    pub fn due(&self, receiver: &Receiver, resend: SignedDuration, now: Timestamp) -> Batch {
        let mut batch = Batch { alerts: Vec::new(), news: 0, labels: Vec::new() };
        let mut alerts = self.lock();
        alerts.retain(|_, alert| alert.ends.is_none_or(|ends| now.duration_since(ends) < FORGOTTEN_AFTER));
        for (label, alert) in alerts.iter_mut() {
            // What ends by itself is told once more then.
            alert.changed |= alert.ends.is_some_and(|ends| ends <= now);
            let old = alert.sent.is_none_or(|sent| now.duration_since(sent) >= resend);
            if !(alert.changed || old) || batch.alerts.len() >= AT_ONCE {
                continue;
            }
            let ends = alert.ends.filter(|ends| *ends <= now).unwrap_or_else(|| later(now, LASTS));
            batch.alerts.push(json(&alert.told, ends, receiver));
            batch.news += usize::from(alert.changed);
            batch.labels.push((label.clone(), Arc::clone(&alert.told), alert.ends));
        }
        batch
    }

    /// Takes in that a batch was sent: what is over is forgotten, unless something came between.
    pub fn sent(&self, batch: Batch, now: Timestamp) {
        let mut alerts = self.lock();
        for (label, told, ends) in batch.labels {
            let Some(alert) = alerts.get_mut(&label).filter(|alert| alert.told == told) else { continue };
            alert.sent = Some(now);
            if alert.ends != ends {
                continue;
            }
            alert.changed = false;
            if ends.is_some_and(|ends| ends <= now) {
                alerts.remove(&label);
            }
        }
    }
}

impl Alert {
    fn end(&mut self, now: Timestamp) {
        if self.ends.is_none_or(|ends| ends > now) {
            self.ends = Some(now);
            self.changed = true;
        }
    }
}

/// Returns an alert as Alertmanager's API v2 takes it. The labels hold nothing that changes while it lasts.
pub fn json(told: &Notification, ends: Timestamp, receiver: &Receiver) -> Value {
    let mut labels = BTreeMap::from([
        ("alertname", alert_name(told.kind).unwrap_or_default()),
        ("severity", told.severity.word()),
    ]);
    let title = told.kind.title();
    let mut annotations = BTreeMap::from([("description", told.message.clone())]);
    match &told.deployment {
        Some(about) => {
            labels.extend([("namespace", about.namespace.as_str()), ("deployment", about.name.as_str())]);
            annotations.insert("summary", format!("{title}: {}/{}", about.namespace, about.name));
            annotations.insert("generation", about.generation.to_string());
        }
        None => {
            annotations.insert("summary", title.to_owned());
        }
    }
    if let Some(cause) = &told.cause {
        labels.insert("cause", cause.kind.word());
        annotations.insert("evidence", cause.evidence.join("\n"));
    }
    labels.extend(receiver.cluster.as_deref().map(|cluster| ("cluster", cluster)));
    json!({
        "labels": labels,
        "annotations": annotations,
        "startsAt": told.time.min(ends),
        "endsAt": ends,
        "generatorURL": receiver.external_url.as_deref().unwrap_or_default(),
    })
}

fn later(time: Timestamp, span: SignedDuration) -> Timestamp {
    time.checked_add(span).unwrap_or(Timestamp::MAX)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{
        api::policy::CauseType,
        core::notification::{Reason, Subject},
        notify::config::{Filter, Sort},
    };

    const RESEND: SignedDuration = SignedDuration::from_secs(60);

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).expect("in range")
    }

    fn receiver() -> Receiver {
        Receiver {
            name: "am".to_owned(),
            sort: Sort::Alertmanager,
            uri: http::Uri::from_static("http://127.0.0.1:9093/api/v2/alerts"),
            secret: None,
            headers: Vec::new(),
            filter: Filter::default(),
            timeout: Duration::from_secs(1),
            roots: None,
            cluster: Some("prod".to_owned()),
            external_url: None,
        }
    }

    fn told(kind: Kind, cause: CauseType, since: i64) -> Arc<Notification> {
        Arc::new(Notification {
            kind,
            severity: kind.severity(),
            deployment: Some(Subject {
                namespace: "shop".to_owned(),
                name: "web".to_owned(),
                uid: "uid-1".to_owned(),
                generation: 8,
            }),
            cause: Some(Reason { kind: cause, message: "why".to_owned(), evidence: vec!["line".to_owned()] }),
            ..Notification::test(at(since))
        })
    }

    fn stuck() -> BTreeSet<Key> {
        BTreeSet::from([Key::new("shop", "web")])
    }

    /// Sends what is due, and returns what is on and what is over.
    fn send(board: &Board, second: i64) -> (Vec<String>, Vec<String>) {
        let batch = board.due(&receiver(), RESEND, at(second));
        let (mut on, mut over) = (Vec::new(), Vec::new());
        for alert in &batch.alerts {
            let labels = &alert["labels"];
            let name = format!("{}/{}", labels["alertname"], labels["cause"]).replace('"', "");
            let ends: Timestamp = alert["endsAt"].as_str().expect("text").parse().expect("a time");
            if ends <= at(second) { over.push(name) } else { on.push(name) }
        }
        board.sent(batch, at(second));
        (on, over)
    }

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn an_alert_has_labels_that_stay_and_everything_else_in_annotations() {
        let told = told(Kind::Stuck, CauseType::Image, 0);
        insta::assert_json_snapshot!(json(&told, at(300), &receiver()));
    }

    #[test]
    fn what_is_stuck_is_told_again_each_minute_and_ended_when_it_is_over() {
        let board = Board::default();
        board.put(&told(Kind::Stuck, CauseType::Image, 0), at(0));
        assert_eq!(send(&board, 0), (names(&["RolloutStuck/Image"]), vec![]));
        board.put(&told(Kind::Stuck, CauseType::Image, 0), at(10));
        board.stuck_are(&stuck(), at(10));
        assert_eq!(send(&board, 10), (vec![], vec![]), "nothing new");
        assert_eq!(send(&board, 60), (names(&["RolloutStuck/Image"]), vec![]));
        board.stuck_are(&BTreeSet::new(), at(62));
        assert_eq!(send(&board, 62), (vec![], vec![]), "missed once it may come back");
        board.stuck_are(&BTreeSet::new(), at(64));
        assert_eq!(send(&board, 64), (vec![], names(&["RolloutStuck/Image"])));
        assert!(board.is_empty());
    }

    #[test]
    fn another_cause_ends_the_alert_of_the_one_before() {
        let board = Board::default();
        board.put(&told(Kind::Stuck, CauseType::Unknown, 0), at(0));
        send(&board, 0);
        board.put(&told(Kind::Stuck, CauseType::Image, 0), at(5));
        assert_eq!(send(&board, 5), (names(&["RolloutStuck/Image"]), names(&["RolloutStuck/Unknown"])));
        assert_eq!(board.len(), 1);
    }

    #[test]
    fn a_rollback_is_an_alert_for_an_hour() {
        let board = Board::default();
        let back = told(Kind::RolledBack, CauseType::Image, 0);
        board.put(&back, at(0));
        assert_eq!(send(&board, 0), (names(&["RolledBack/Image"]), vec![]));
        board.stuck_are(&BTreeSet::new(), at(2));
        board.stuck_are(&BTreeSet::new(), at(4));
        board.put(&back, at(5));
        assert_eq!(send(&board, 5), (vec![], vec![]));
        assert_eq!(send(&board, 3600), (vec![], names(&["RolledBack/Image"])));
        board.put(&back, at(3700));
        assert!(board.is_empty(), "it is old news");
    }

    #[test]
    fn what_changed_while_it_was_sent_is_sent_again() {
        let board = Board::default();
        board.put(&told(Kind::Held, CauseType::Image, 0), at(0));
        let batch = board.due(&receiver(), RESEND, at(0));
        board.stuck_are(&BTreeSet::new(), at(0));
        board.stuck_are(&BTreeSet::new(), at(0));
        board.sent(batch, at(1));
        assert_eq!(send(&board, 2), (vec![], names(&["RollbackHeld/Image"])));
    }

    #[test]
    fn one_that_comes_back_before_its_end_was_told_goes_on() {
        let board = Board::default();
        board.put(&told(Kind::Stuck, CauseType::Image, 0), at(0));
        send(&board, 0);
        board.stuck_are(&BTreeSet::new(), at(1));
        board.stuck_are(&BTreeSet::new(), at(2));
        board.put(&told(Kind::Stuck, CauseType::Image, 0), at(3));
        assert_eq!(send(&board, 3), (names(&["RolloutStuck/Image"]), vec![]));
    }

    #[test]
    fn there_are_never_more_than_a_thousand() {
        let board = Board::default();
        for n in 0..1200 {
            let told = Notification {
                deployment: Some(Subject {
                    namespace: "shop".to_owned(),
                    name: format!("web-{n}"),
                    uid: String::new(),
                    generation: 1,
                }),
                ..(*told(Kind::Stuck, CauseType::Image, 0)).clone()
            };
            assert_eq!(board.put(&Arc::new(told), at(0)), n < 1000, "{n}");
        }
        assert_eq!(board.due(&receiver(), RESEND, at(0)).alerts.len(), AT_ONCE);
    }

    #[test]
    fn what_is_over_and_cannot_be_told_is_forgotten() {
        let board = Board::default();
        board.put(&told(Kind::Stuck, CauseType::Image, 0), at(0));
        board.stuck_are(&BTreeSet::new(), at(1));
        board.stuck_are(&BTreeSet::new(), at(2));
        assert_eq!(board.due(&receiver(), RESEND, at(800)).alerts.len(), 1);
        assert!(board.due(&receiver(), RESEND, at(1000)).alerts.is_empty() && board.is_empty());
    }
}
