//! `rollout-guard status`: where Deployments stand, and why.

mod list;
mod row;
mod tree;
mod watch;

use std::process::ExitCode;

use anyhow::bail;
use clap::Args;
use jiff::Timestamp;
use serde::Serialize;

use self::{list::List, row::Rows, watch::Watch};
use super::{
    ClusterArgs, DeploymentName,
    look::{Depth, Hidden, Look, look},
    output::{self, Out, OutputFormat, Screen},
};
use crate::{
    cluster::{Cluster, ClusterError, reading::Scope},
    core::{key::Key, view::DeploymentView},
};

/// Shows where Deployments stand, and why those that do not get on do not.
///
/// Without a NAME: a table, a line for each Deployment. With one: its ReplicaSets by revision with the guard's verdict,
/// their pods with the reason of those that fail, and the last rollback. It needs no guard in the cluster; where there is
/// one, what it knows is shown as well. What you have no right to read is named and left out.
///
/// Exit status: 0, or 2 for bad usage, an error of the API server, or a Deployment that is not there.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  rollout-guard status
  rollout-guard status -A --stuck
  rollout-guard status web -n shop
  rollout-guard status deploy/web --watch
  rollout-guard status -l team=payments -o wide
  rollout-guard status -A -o json | jq -r '.[] | select(.phase == \"Failed\") | .name'
  rollout-guard status web -o json --watch | jq -c '{generation, phase}'")]
pub struct StatusArgs {
    /// Deployments: NAME, deployment/NAME or deploy/NAME.
    #[arg(value_name = "NAME")]
    names: Vec<DeploymentName>,

    #[command(flatten)]
    cluster: ClusterArgs,

    /// Deployments of all namespaces.
    #[arg(long, short = 'A', conflicts_with_all = ["names", "namespace"], help_heading = "Cluster")]
    all_namespaces: bool,

    /// Deployments with these labels, such as app=web,tier!=cache.
    #[arg(long, short = 'l', value_name = "SELECTOR", conflicts_with = "names")]
    selector: Option<String>,

    /// Only what is not settled: neither complete nor paused.
    #[arg(long, conflicts_with = "names")]
    stuck: bool,

    /// Keep showing it: redrawn in place on a terminal, a line for each change in a pipe. Ends by Ctrl-C.
    #[arg(long, short = 'w')]
    watch: bool,

    /// How to print it. In JSON a list is an array, and one NAME an object; with --watch each line is an object.
    #[arg(long, short = 'o', value_enum, default_value_t)]
    output: OutputFormat,
}

/// What is shown of one Deployment.
#[derive(Serialize)]
struct Shown<'a> {
    #[serde(flatten)]
    view: &'a DeploymentView,
    /// What the user may not read.
    hidden: &'a [Hidden],
}

impl<'a> Shown<'a> {
    fn of(look: &'a Look) -> Self {
        Self { view: &look.view, hidden: &look.hidden }
    }
}

impl StatusArgs {
    /// Runs the command.
    ///
    /// # Errors
    /// When the cluster cannot be reached or refuses, or a Deployment is not there.
    pub async fn run(self) -> anyhow::Result<ExitCode> {
        let cluster = self.cluster.connect().await?;
        let keys: Vec<Key> = self.names.iter().map(|name| self.cluster.key(&cluster, name)).collect();
        let scope = Scope {
            namespace: (!self.all_namespaces).then(|| self.cluster.namespace(&cluster).to_owned()),
            labels: self.selector.clone(),
            name: None,
        };
        if self.watch {
            let watch = Watch { cluster: &cluster, output: self.output, stuck: self.stuck };
            if keys.is_empty() { watch.list(&scope).await? } else { watch.named(&keys).await? }
        } else if keys.is_empty() {
            List { cluster: &cluster, scope: &scope, output: self.output, stuck: self.stuck }.run().await?;
        } else {
            self.show(&cluster, &keys).await?;
        }
        Ok(ExitCode::SUCCESS)
    }

    /// Shows those that are there, then says which are not.
    async fn show(&self, cluster: &Cluster, keys: &[Key]) -> anyhow::Result<()> {
        let now = Timestamp::now();
        let (mut looks, mut errors) = (Vec::new(), Vec::new());
        for key in keys {
            match look(cluster, key, Depth::Events, now).await {
                Ok(found) => looks.push(found),
                Err(error @ ClusterError::NotFound { .. }) => errors.push(error.to_string()),
                Err(error) => return Err(error.into()),
            }
        }
        if !looks.is_empty() {
            Out.write(&self.printed(&looks, now)?)?;
        }
        if !errors.is_empty() {
            bail!("{}", errors.join("; "));
        }
        Ok(())
    }

    fn printed(&self, looks: &[Look], now: Timestamp) -> anyhow::Result<String> {
        let shown: Vec<Shown<'_>> = looks.iter().map(Shown::of).collect();
        Ok(match (self.output, shown.as_slice()) {
            // One that was asked for by its name is no list.
            (OutputFormat::Json, [one]) if self.names.len() == 1 => output::json(one)?,
            (OutputFormat::Json, all) => output::json(&all)?,
            (OutputFormat::Yaml, [one]) if self.names.len() == 1 => output::yaml(one)?,
            (OutputFormat::Yaml, all) => output::yaml(&all)?,
            (OutputFormat::Name, _) => looks.iter().map(|look| row::name(&look.view) + "\n").collect(),
            (OutputFormat::Table | OutputFormat::Wide, _) => {
                let screen = Screen::stdout();
                let wide = self.output == OutputFormat::Wide;
                let trees = looks.iter().map(|look| tree::tree(look, wide, &screen, now));
                trees.collect::<Vec<_>>().join("\n")
            }
        })
    }
}
