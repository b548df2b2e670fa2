//! `rollout-guard history`: the revisions of a Deployment, and what differs between two of them.

mod difference;
mod rows;

use std::process::ExitCode;

use anyhow::bail;
use clap::Args;
use jiff::Timestamp;
use serde::Serialize;

use super::{
    ClusterArgs, DeploymentName,
    look::{Depth, Hidden, Look, look},
    output::{self, Out, OutputFormat, Screen, note},
};

pub use difference::{Between, difference};
pub use rows::{Row, rows, table};

/// The version of the JSON. A key is added without a new version, and never taken away or given another meaning.
pub const API_VERSION: &str = "rollout-guard.io/history/v1";

/// Lists the revisions of a Deployment, with the guard's verdict on each, or shows what differs between two.
///
/// BY is the field manager that wrote the template; it is known for the current revision alone. WHY is the annotation
/// kubernetes.io/change-cause, and what the guard did and found. Templates that were refused or rolled back from are listed
/// as long as the guard remembers them, also without a ReplicaSet. Without a guard there are no verdicts.
///
/// Exit status: 0, or 2 for bad usage, an error of the API server, or a Deployment or revision that is not there.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  rollout-guard history web
  rollout-guard history web -n shop -o wide
  rollout-guard history web --diff 3 4
  rollout-guard history web --diff 3
  rollout-guard history web -o json | jq -r '.revisions[] | select(.verdict == \"Good\") | .revision'")]
pub struct HistoryArgs {
    /// The Deployment: NAME, deployment/NAME or deploy/NAME.
    #[arg(value_name = "NAME")]
    name: DeploymentName,

    /// Show what differs from revision A to revision B; with one number, from that to the current template.
    #[arg(
        long,
        value_names = ["A", "B"],
        num_args = 1..=2,
        value_parser = clap::value_parser!(i64).range(1..)
    )]
    diff: Option<Vec<i64>>,

    #[command(flatten)]
    cluster: ClusterArgs,

    /// How to print it.
    #[arg(long, short = 'o', value_enum, default_value_t)]
    output: OutputFormat,
}

/// What programs are given.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct History<'a> {
    api_version: &'static str,
    kind: &'static str,
    namespace: &'a str,
    name: &'a str,
    /// Newest first.
    revisions: &'a [Row],
    /// What the user may not read.
    hidden: &'a [Hidden],
}

impl HistoryArgs {
    /// Runs the command.
    ///
    /// # Errors
    /// When the cluster cannot be reached, the Deployment or its ReplicaSets may not be read or are not there.
    pub async fn run(self) -> anyhow::Result<ExitCode> {
        let cluster = self.cluster.connect().await?;
        let key = self.cluster.key(&cluster, &self.name);
        let now = Timestamp::now();
        let seen = look(&cluster, &key, Depth::ReplicaSets, now).await?;
        if seen.replica_sets.is_none() {
            let why = seen.hidden.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
            bail!("the ReplicaSets hold the revisions: {why}");
        }
        let printed = match self.diff.as_deref() {
            None => self.list(&seen, now)?,
            Some([from]) => self.compare(&seen, *from, None)?,
            Some([from, to, ..]) => self.compare(&seen, *from, Some(*to))?,
            Some([]) => bail!("--diff takes one or two revisions"),
        };
        if self.output.is_for_people() {
            seen.hidden.iter().for_each(|hidden| note(&format!("note: {hidden}")));
        }
        Out.write(&printed)?;
        Ok(ExitCode::SUCCESS)
    }

    fn list(&self, seen: &Look, now: Timestamp) -> anyhow::Result<String> {
        let rows = rows(&seen.view, &seen.deployment, seen.replica_sets.as_deref().unwrap_or_default(), now);
        let history = History {
            api_version: API_VERSION,
            kind: "History",
            namespace: &seen.view.namespace,
            name: &seen.view.name,
            revisions: &rows,
            hidden: &seen.hidden,
        };
        let wide = self.output == OutputFormat::Wide;
        Ok(match self.output {
            OutputFormat::Json => output::json(&history)?,
            OutputFormat::Yaml => output::yaml(&history)?,
            OutputFormat::Name => rows.iter().filter_map(Row::name).map(|name| name + "\n").collect(),
            OutputFormat::Table | OutputFormat::Wide => table(&rows, wide, &Screen::stdout(), now),
        })
    }

    fn compare(&self, seen: &Look, from: i64, to: Option<i64>) -> anyhow::Result<String> {
        let sets = seen.replica_sets.as_deref().unwrap_or_default();
        let between = difference(&seen.view, &seen.deployment, sets, from, to).map_err(anyhow::Error::msg)?;
        Ok(match self.output {
            OutputFormat::Json => output::json(&between)?,
            OutputFormat::Yaml => output::yaml(&between)?,
            OutputFormat::Name => bail!("--diff has no names to print: -o table, wide, json or yaml"),
            OutputFormat::Table | OutputFormat::Wide => between.text(&Screen::stdout()),
        })
    }
}
