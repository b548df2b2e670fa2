//! A line of the table.

use jiff::Timestamp;

use crate::{
    api::record::Verdict,
    commands::output::{Cell, Screen, Table, Tone, ago, cause_word, phase_tone, verdict_tone},
    core::view::DeploymentView,
};

/// The table of Deployments.
pub struct Rows {
    table: Table,
    namespaces: bool,
    wide: bool,
}

impl Rows {
    /// Returns an empty table, with a column for the namespace where there are several.
    pub fn new(namespaces: bool, wide: bool) -> Self {
        let mut headers = Vec::new();
        if namespaces {
            headers.push("NAMESPACE");
        }
        headers.extend(["NAME", "PHASE", "GENERATION", "OBSERVED", "READY", "UPDATED", "VERDICT", "SINCE"]);
        if wide {
            headers.extend(["AGE", "REVISION", "IMAGES"]);
        }
        headers.push("CAUSE");
        let mut table = Table::new(&headers);
        // The longest phase and the longest ages: rows that come later keep the columns.
        table.reserve("PHASE", "Progressing".len());
        table.reserve("SINCE", "179m".len());
        table.reserve("AGE", "179m".len());
        Self { table, namespaces, wide }
    }

    /// Adds a Deployment.
    pub fn push(&mut self, view: &DeploymentView, now: Timestamp) {
        let phase = Cell::toned(view.phase.word(), phase_tone(view.phase));
        self.add(view, phase, now);
    }

    /// Adds a Deployment that is gone.
    pub fn push_gone(&mut self, view: &DeploymentView, now: Timestamp) {
        self.add(view, Cell::toned("Deleted", Tone::Dim), now);
    }

    /// Returns the lines that were added and not taken yet, under the headers the first time.
    pub fn take(&mut self, screen: &Screen) -> String {
        self.table.take(screen)
    }

    fn add(&mut self, view: &DeploymentView, phase: Cell, now: Timestamp) {
        let behind = view.observed_generation < view.generation;
        let mut row: Vec<Cell> = Vec::new();
        if self.namespaces {
            row.push(view.namespace.as_str().into());
        }
        row.extend([
            view.name.as_str().into(),
            phase,
            view.generation.to_string().into(),
            Cell::toned(view.observed_generation.to_string(), if behind { Tone::Warn } else { Tone::Plain }),
            format!("{}/{}", view.ready, view.desired).into(),
            view.updated.to_string().into(),
            Cell::toned(view.verdict.map_or("", Verdict::word), verdict_tone(view.verdict)),
            ago(view.since, now).into(),
        ]);
        if self.wide {
            row.push(ago(view.created_at, now).into());
            row.push(view.revision.map(|revision| revision.to_string()).unwrap_or_default().into());
            row.push(view.images.join(",").into());
        }
        row.push(Cell::toned(self.cause(view), phase_tone(view.phase)));
        self.table.push(row);
    }

    fn cause(&self, view: &DeploymentView) -> String {
        match &view.cause {
            Some(cause) if self.wide => format!("{}: {}", cause.kind.word(), cause.message),
            _ => cause_word(view).to_owned(),
        }
    }
}

/// Returns the name as kubectl takes it.
pub fn name(view: &DeploymentView) -> String {
    format!("deployment.apps/{}", view.name)
}

/// Returns what a line of the table says, without what changes by the mere passing of time.
pub fn state(view: &DeploymentView) -> String {
    let generations = (view.generation, view.observed_generation);
    let counts = (view.ready, view.desired, view.updated);
    format!(
        "{} {:?} {generations:?} {counts:?} {:?} {}",
        view.uid,
        view.phase,
        view.verdict,
        cause_word(view)
    )
}
