//! The table without names: page by page, so that ten thousand Deployments take the room of one page.

use std::collections::HashMap;

use jiff::Timestamp;
use serde_json::Value;

use super::{Rows, row};
use crate::{
    api::record::RolloutRecordStatus,
    cluster::{
        Cluster, ClusterError,
        reading::Scope,
        records::{self, StoredRecord},
    },
    commands::{
        look::{Hidden, readable},
        output::{self, Out, OutputFormat, Screen, note},
    },
    core::{
        key::Key,
        message::plain,
        view::{Around, DeploymentView},
    },
};

/// A table of Deployments.
pub struct List<'a> {
    /// Where they are.
    pub cluster: &'a Cluster,
    /// Which ones.
    pub scope: &'a Scope,
    /// How they are printed.
    pub output: OutputFormat,
    /// Whether only those are that are not settled.
    pub stuck: bool,
}

impl List<'_> {
    /// Prints it.
    pub async fn run(&self) -> anyhow::Result<()> {
        let mut hidden = Vec::new();
        let records = Records::read(self.cluster, self.scope.namespace.as_deref(), &mut hidden).await?;
        let now = Timestamp::now();
        let screen = Screen::stdout();
        let mut print = Print::new(self.output, self.scope.namespace.is_none());
        let mut next = None;
        loop {
            let read = |deployment: Value| view(&deployment, &records, now);
            let page = self.cluster.deployments_page(self.scope, next.as_deref(), read).await?;
            let wanted: Vec<DeploymentView> =
                page.items.into_iter().filter(|view| !self.stuck || !view.is_settled()).collect();
            print.page(&wanted, &screen, now)?;
            next = page.next;
            if next.is_none() {
                break;
            }
        }
        print.end()?;
        if !print.begun {
            note(&nothing(self.scope, self.stuck));
        }
        hidden.iter().for_each(|hidden| note(&hidden.to_string()));
        Ok(())
    }
}

/// Prints pages in a format, as one document.
struct Print {
    output: OutputFormat,
    rows: Rows,
    begun: bool,
}

impl Print {
    fn new(output: OutputFormat, namespaces: bool) -> Self {
        Self { output, rows: Rows::new(namespaces, output == OutputFormat::Wide), begun: false }
    }

    fn page(&mut self, views: &[DeploymentView], screen: &Screen, now: Timestamp) -> anyhow::Result<()> {
        if views.is_empty() {
            return Ok(());
        }
        let mut text = String::new();
        match self.output {
            OutputFormat::Table | OutputFormat::Wide => {
                views.iter().for_each(|view| self.rows.push(view, now));
                text = self.rows.take(screen);
            }
            OutputFormat::Name => views.iter().for_each(|view| text += &(row::name(view) + "\n")),
            // A list goes on where the one before ended.
            OutputFormat::Yaml => text = output::yaml(&views)?,
            OutputFormat::Json => {
                for view in views {
                    text += if self.begun { ",\n" } else { "[\n" };
                    text += &serde_json::to_string(view)?;
                    self.begun = true;
                }
            }
        }
        self.begun = true;
        Out.write(&text)
    }

    fn end(&self) -> anyhow::Result<()> {
        match (self.output, self.begun) {
            (OutputFormat::Json, true) => Out.write("\n]\n"),
            (OutputFormat::Json | OutputFormat::Yaml, false) => Out.write("[]\n"),
            _ => Ok(()),
        }
    }
}

/// Says that there is nothing to show.
pub fn nothing(scope: &Scope, stuck: bool) -> String {
    let what = if stuck { "no Deployment that is not settled" } else { "no Deployments" };
    let labels = scope.labels.as_ref().map(|labels| format!(" with {:?}", plain(labels, 100)));
    match &scope.namespace {
        Some(namespace) => format!("{what}{} in namespace {namespace:?}", labels.unwrap_or_default()),
        None => format!("{what}{}", labels.unwrap_or_default()),
    }
}

/// Reads a Deployment with what its record says; ReplicaSets and pods are not looked at.
pub fn view(deployment: &Value, records: &Records, now: Timestamp) -> DeploymentView {
    let text = |field: &str| deployment["metadata"][field].as_str().unwrap_or_default();
    let key = Key::new(text("namespace"), text("name"));
    let around = Around { record: records.of(&key, text("uid")), ..Around::default() };
    DeploymentView::of(deployment, around, now)
}

/// What is kept of the RolloutRecords for a table: what no line shows is dropped.
#[derive(Debug, Default)]
pub struct Records(HashMap<String, StoredRecord>);

impl Records {
    /// Reads all records of a namespace, or of all; none where the user may not, which is told.
    ///
    /// # Errors
    /// When the API server does not answer.
    pub async fn read(
        cluster: &Cluster,
        namespace: Option<&str>,
        hidden: &mut Vec<Hidden>,
    ) -> Result<Self, ClusterError> {
        let mut records = Self::default();
        let mut next = None;
        loop {
            let page = cluster.records_page(namespace, next.as_deref(), slim).await;
            let place =
                namespace.map_or_else(|| "in all namespaces".to_owned(), |n| format!("in namespace {n:?}"));
            let what = || format!("list rolloutrecords {place}");
            let Some(page) = readable(page, what, hidden)? else { return Ok(records) };
            for record in page.items {
                records.insert(record);
            }
            next = page.next;
            if next.is_none() {
                return Ok(records);
            }
        }
    }

    /// Takes in a record as it is now, and says whether that is new.
    pub fn put(&mut self, record: StoredRecord) -> bool {
        self.insert(slim(record))
    }

    /// Forgets a record.
    pub fn remove(&mut self, record: &StoredRecord) {
        self.0.remove(&record.target.uid);
    }

    fn insert(&mut self, record: StoredRecord) -> bool {
        // What a user planted must not stand in the way of the guard's own.
        if record.target.uid != record.owner_uid || record.name != records::name(&record.target.name) {
            return false;
        }
        match self.0.get(&record.target.uid) {
            Some(old) if old.status == record.status => false,
            _ => {
                self.0.insert(record.target.uid.clone(), record);
                true
            }
        }
    }

    fn of(&self, key: &Key, uid: &str) -> Option<&RolloutRecordStatus> {
        self.0.get(uid).filter(|record| record.is_of(key, uid)).map(|record| &record.status)
    }
}

fn slim(mut record: StoredRecord) -> StoredRecord {
    let status = &mut record.status;
    let current = status.template_hash.clone();
    status.revisions.retain(|revision| Some(&revision.template_hash) == current.as_ref());
    status.revisions.shrink_to_fit();
    if let Some(cause) = &mut status.cause {
        cause.evidence = Vec::new();
    }
    if let Some(rollback) = &mut status.rollback {
        rollback.evidence = Vec::new();
    }
    record
}
