//! The subcommands: one file each, with its arguments and its run.

pub mod certs;
pub mod check;
pub mod completion;
pub mod judge;
pub mod run;
pub mod watcher;
pub mod webhook;

use std::path::PathBuf;

use anyhow::Context;
use clap::{Args, ValueEnum};

use crate::cluster::Cluster;

/// How a command prints what it found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people.
    #[default]
    Text,
    /// For programs.
    Json,
}

/// Which cluster a command talks to.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Cluster")]
pub struct ClusterArgs {
    /// The kubeconfig file. Without it: $KUBECONFIG, ~/.kube/config, or the pod's ServiceAccount.
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,

    /// The context of the kubeconfig.
    #[arg(long, value_name = "NAME")]
    pub context: Option<String>,

    /// The namespace.
    #[arg(long, short = 'n', value_name = "NAME")]
    pub namespace: Option<String>,
}

impl ClusterArgs {
    /// Connects to the cluster.
    ///
    /// # Errors
    /// When no kubeconfig can be read or used.
    pub async fn connect(&self) -> anyhow::Result<Cluster> {
        Cluster::connect(self.kubeconfig.as_deref(), self.context.as_deref())
            .await
            .context("cannot connect to a cluster (--kubeconfig, --context or $KUBECONFIG name one)")
    }
}
