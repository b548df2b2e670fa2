//! The revisions as rows: what is known of each, by whom and why.

use jiff::Timestamp;
use serde::Serialize;
use serde_json::Value;

use crate::{
    api::record::{Outcome, Verdict},
    commands::output::{Cell, Screen, Table, Tone, ago, verdict_of, verdict_tone},
    core::{
        message::plain,
        view::{DeploymentView, RevisionView},
    },
};

/// By which `kubectl rollout restart` makes a new template.
const RESTARTED: &str = "kubectl.kubernetes.io/restartedAt";

/// The most characters of a name.
const NAME: usize = 253;

/// The digits of a template's hash that are shown.
const DIGITS: usize = 12;

/// A revision, by whom and why.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// The revision.
    #[serde(flatten)]
    pub revision: RevisionView,
    /// The field manager that wrote its template; none where that is not known.
    pub by: Option<String>,
    /// What is known of why it is there, or not any more.
    pub why: Vec<String>,
}

impl Row {
    /// Returns the name as kubectl takes it; none where it has no ReplicaSet.
    pub fn name(&self) -> Option<String> {
        self.revision.replica_set.as_ref().map(|name| format!("replicaset.apps/{name}"))
    }
}

/// Returns the revisions, newest first. A current template that has no ReplicaSet yet is the first of them.
pub fn rows(view: &DeploymentView, deployment: &Value, replica_sets: &[Value], now: Timestamp) -> Vec<Row> {
    let unnumbered = view.current().is_none().then(|| without_replica_set(view));
    let mut all: Vec<&RevisionView> = unnumbered.iter().chain(&view.revisions).collect();
    all.sort_by_key(|revision| !(revision.current && revision.replica_set.is_none()));
    let restarts: Vec<Option<String>> =
        all.iter().map(|revision| restarted_at(revision, deployment, replica_sets)).collect();
    let mut rows = Vec::new();
    for (place, revision) in all.iter().enumerate() {
        let before = restarts[place + 1..].iter().flatten().next();
        let restart = restarts[place].clone().filter(|at| Some(at) != before);
        rows.push(Row {
            revision: (*revision).clone(),
            by: if revision.current { by(view, deployment) } else { None },
            why: why(view, revision, restart, now),
        });
    }
    rows
}

/// Returns the rows as a table.
pub fn table(rows: &[Row], wide: bool, screen: &Screen, now: Timestamp) -> String {
    let narrow = ["REVISION", "VERDICT", "IMAGES", "CREATED", "BY", "WHY"];
    let more = ["REVISION", "VERDICT", "IMAGES", "CREATED", "BY", "READY", "REPLICASET", "TEMPLATE", "WHY"];
    let mut table = Table::new(if wide { &more } else { &narrow });
    for Row { revision, by, why } in rows {
        let number = revision.revision.map(|n| n.to_string()).unwrap_or_default();
        let number = match (number.is_empty(), revision.current) {
            (false, true) => Cell::toned(format!("{number} (current)"), Tone::Strong),
            (true, true) => Cell::toned("(current)", Tone::Strong),
            (_, false) => number.into(),
        };
        let mut cells = vec![
            number,
            Cell::toned(verdict_of(revision), verdict_tone(revision.verdict)),
            revision.images.join(",").into(),
            ago(revision.created_at, now).into(),
            by.clone().unwrap_or_default().into(),
        ];
        if wide {
            cells.push(format!("{}/{}", revision.ready, revision.desired).into());
            cells.push(revision.replica_set.clone().unwrap_or_default().into());
            cells.push(revision.template_hash.chars().take(DIGITS).collect::<String>().into());
        }
        cells.push(why.join("; ").into());
        table.push(cells);
    }
    table.take(screen)
}

/// The current template, while kube-controller-manager has made no ReplicaSet of it.
fn without_replica_set(view: &DeploymentView) -> RevisionView {
    RevisionView {
        revision: None,
        replica_set: None,
        template_hash: view.template_hash.clone(),
        images: view.images.clone(),
        current: true,
        verdict: view.verdict,
        reason: None,
        since: None,
        until: None,
        desired: view.desired,
        replicas: 0,
        ready: 0,
        available: 0,
        created_at: None,
        change_cause: None,
        failure: None,
        pods: Vec::new(),
    }
}

/// Who wrote the template: the manager that owns fields of it and wrote last. Once the guard has put a template back it
/// hands the fields to whoever had applied them, so that they do not tell who wrote last.
fn by(view: &DeploymentView, deployment: &Value) -> Option<String> {
    if view.rollback.as_ref().is_some_and(|last| last.current) {
        return Some("rollout-guard".to_owned());
    }
    let entries = deployment["metadata"]["managedFields"].as_array().into_iter().flatten();
    let owns = |entry: &&Value| {
        entry["subresource"].as_str().is_none_or(str::is_empty)
            && entry["fieldsV1"]["f:spec"]["f:template"].is_object()
    };
    let at = |entry: &&Value| entry["time"].as_str().and_then(|time| time.parse::<Timestamp>().ok());
    let last = entries.filter(owns).max_by_key(at)?;
    last["manager"].as_str().filter(|manager| !manager.is_empty()).map(|manager| plain(manager, NAME))
}

fn why(
    view: &DeploymentView,
    revision: &RevisionView,
    restart: Option<String>,
    now: Timestamp,
) -> Vec<String> {
    let mut why: Vec<String> = revision.change_cause.clone().into_iter().collect();
    if revision.current && revision.replica_set.is_none() {
        why.push(match revision.revision {
            None => format!("generation {} has no ReplicaSet", view.generation),
            Some(_) => "its ReplicaSet is gone".to_owned(),
        });
    }
    why.extend(restart.map(|at| format!("restarted at {at}")));
    if let Some(last) = &view.rollback {
        let done = last.outcome != Outcome::Superseded && last.generation.is_some();
        let ago = ago(Some(last.started_at), now);
        if last.from == revision.template_hash && done {
            why.push(format!("rolled back {ago} ago: {}", last.message));
        } else if last.to == revision.template_hash && done {
            why.push(format!("put back {ago} ago"));
        }
    }
    if let (Some(Verdict::Bad), Some(until)) = (revision.verdict, revision.until) {
        why.push(if until > now {
            format!("refused until {until:.0}")
        } else {
            "refused no more".to_owned()
        });
    }
    why
}

/// When `kubectl rollout restart` made this template.
fn restarted_at(revision: &RevisionView, deployment: &Value, replica_sets: &[Value]) -> Option<String> {
    let name = revision.replica_set.as_deref();
    let set = replica_sets.iter().find(|set| set["metadata"]["name"].as_str() == name && name.is_some());
    let object = set.or(revision.current.then_some(deployment))?;
    let at = object["spec"]["template"]["metadata"]["annotations"][RESTARTED].as_str()?;
    Some(plain(at, NAME))
}
