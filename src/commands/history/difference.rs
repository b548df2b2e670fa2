//! What differs between two revisions.

use serde::Serialize;
use serde_json::Value;

use super::API_VERSION;
use crate::{
    commands::{
        output::{Screen, Tone},
        undo::named,
    },
    core::{
        difference::{self, Kind},
        restore::template_of,
        view::{DeploymentView, RevisionView, revision_of},
    },
};

/// The most revisions that an error lists.
const LISTED: usize = 12;

/// The difference from one revision to another.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Between {
    api_version: &'static str,
    kind: &'static str,
    /// The number of the one.
    from: i64,
    /// The number of the other; none for a template that has none yet.
    to: Option<i64>,
    /// In words.
    #[serde(skip)]
    titles: (String, String),
    /// As `diff -u` prints it; empty where they are the same.
    lines: Vec<String>,
    #[serde(skip)]
    kinds: Vec<Kind>,
}

impl Between {
    /// Returns it for people.
    pub fn text(&self, screen: &Screen) -> String {
        let (from, to) = &self.titles;
        if self.lines.is_empty() {
            return format!("{from} and {to} have the same template\n");
        }
        let mut out = screen.paint(&format!("--- {from}"), Tone::Strong) + "\n";
        out += &(screen.paint(&format!("+++ {to}"), Tone::Strong) + "\n");
        for (line, kind) in self.lines.iter().zip(&self.kinds) {
            let tone = match kind {
                Kind::Added => Tone::Good,
                Kind::Removed => Tone::Bad,
                Kind::Place | Kind::Note => Tone::Dim,
                Kind::Same => Tone::Plain,
            };
            out += &(screen.paint(line, tone) + "\n");
        }
        out
    }
}

/// Returns what differs from the revision with the number `from` to the one with the number `to`, or to the current
/// template.
///
/// # Errors
/// In words, where one of them has no ReplicaSet (any more).
pub fn difference(
    view: &DeploymentView,
    deployment: &Value,
    replica_sets: &[Value],
    from: i64,
    to: Option<i64>,
) -> Result<Between, String> {
    let (before, from_title) = numbered(view, replica_sets, from)?;
    let (after, to_title) = match to {
        Some(number) => numbered(view, replica_sets, number)?,
        None => (deployment["spec"]["template"].clone(), current(view)),
    };
    let lines = difference::between(&before, &after);
    Ok(Between {
        api_version: API_VERSION,
        kind: "Difference",
        from,
        to: to.or_else(|| view.current().and_then(|revision| revision.revision)),
        titles: (from_title, to_title),
        kinds: lines.iter().map(|line| line.kind).collect(),
        lines: lines.iter().map(ToString::to_string).collect(),
    })
}

fn current(view: &DeploymentView) -> String {
    let known = view.current().filter(|revision| revision.revision.is_some());
    known.map_or_else(
        || format!("generation {} ({}), now", view.generation, view.images.join(", ")),
        |revision| format!("{}, now", named(revision)),
    )
}

fn numbered(view: &DeploymentView, replica_sets: &[Value], number: i64) -> Result<(Value, String), String> {
    let with_number = || view.revisions.iter().filter(move |revision| revision.revision == Some(number));
    let set = replica_sets.iter().find(|set| revision_of(set) == Some(number));
    if let Some(template) = set.and_then(template_of) {
        let title = with_number().find(|revision| revision.replica_set.is_some());
        let title = title.map_or_else(|| format!("revision {number}"), named);
        return Ok((template, title));
    }
    // The record keeps hashes and images, and no templates.
    let remembered = match with_number().next() {
        Some(revision) => format!("{} has no ReplicaSet any more", named(revision)),
        None => format!("there is no revision {number}"),
    };
    Err(format!("{remembered}; there are {}", listed(view)))
}

/// The revisions that can be compared, newest first.
fn listed(view: &DeploymentView) -> String {
    let all: Vec<&RevisionView> = view.revisions.iter().filter(|r| r.replica_set.is_some()).collect();
    let numbers = all.iter().filter_map(|revision| revision.revision).take(LISTED).map(|n| n.to_string());
    let numbers = numbers.collect::<Vec<_>>().join(", ");
    match all.len() {
        _ if numbers.is_empty() => "none".to_owned(),
        count if count > LISTED => format!("{numbers} and {} more", count - LISTED),
        _ => numbers,
    }
}
