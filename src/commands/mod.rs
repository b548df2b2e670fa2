//! The subcommands: one file each, with its arguments and its run.

pub mod certs;
pub mod check;
pub mod completion;
pub mod diagnose;
pub mod history;
pub mod judge;
pub mod look;
pub mod man;
pub mod notify;
pub mod output;
pub mod policy;
pub mod run;
pub mod status;
pub mod undo;
pub mod wait;
pub mod watcher;
pub mod webhook;

use std::{path::PathBuf, str::FromStr};

use anyhow::Context;
use clap::{Args, ValueEnum};

use crate::{cluster::Cluster, core::key::Key};

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
    #[arg(long, short = 'n', value_name = "NAME", value_parser = namespace)]
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

    /// Returns the namespace that is meant: the one given, else that of the kubeconfig's context, else `default`.
    pub fn namespace<'a>(&'a self, cluster: &'a Cluster) -> &'a str {
        self.namespace.as_deref().unwrap_or_else(|| cluster.default_namespace())
    }

    /// Returns the Deployment `name` in the namespace that is meant.
    pub fn key(&self, cluster: &Cluster, name: &DeploymentName) -> Key {
        Key::new(self.namespace(cluster), name.as_str())
    }
}

/// The name of a Deployment as kubectl takes it: `web`, `deployment/web`, `deploy/web`, `deployments.apps/web`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeploymentName(String);

impl DeploymentName {
    /// Returns the name alone.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for DeploymentName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const KINDS: [&str; 6] = [
            "deploy",
            "deployment",
            "deployments",
            "deployment.apps",
            "deployments.apps",
            "deployments.v1.apps",
        ];
        let name = match text.split_once('/') {
            Some((kind, name)) if KINDS.contains(&kind.to_ascii_lowercase().as_str()) => name,
            Some((kind, _)) => {
                return Err(format!("{kind:?} is no Deployment: write NAME or deployment/NAME"));
            }
            None => text,
        };
        named(name, 253)?;
        Ok(Self(name.to_owned()))
    }
}

/// Reads the name of a namespace.
fn namespace(text: &str) -> Result<String, String> {
    named(text, 63).map(|()| text.to_owned())
}

/// What Kubernetes takes for a name. It stands in paths, so nothing else may get there.
fn named(name: &str, longest: usize) -> Result<(), String> {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'.');
    let outer = |b: Option<&u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    let bytes = name.as_bytes();
    if bytes.len() > longest
        || !bytes.iter().copied().all(inner)
        || !outer(bytes.first())
        || !outer(bytes.last())
    {
        let rule = "lower-case letters, digits, '-' and '.', with a letter or digit at both ends";
        return Err(format!("a name consists of at most {longest} {rule}"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deployment_is_named_as_with_kubectl() {
        for text in ["web", "deploy/web", "deployment/web", "deployments.apps/web", "Deployment/web"] {
            assert_eq!(text.parse::<DeploymentName>().map(|name| name.0).as_deref(), Ok("web"), "{text}");
        }
    }

    #[test]
    fn what_is_no_name_never_gets_into_a_path() {
        for text in
            ["", "deploy/", "pod/web", "../web", "a/b", "web?x=1", "Web", "-web", "web.", "w b", "w%2f"]
        {
            assert!(text.parse::<DeploymentName>().is_err(), "{text}");
            assert!(namespace(text).is_err(), "{text}");
        }
        assert!("a".repeat(254).parse::<DeploymentName>().is_err());
        assert!(namespace(&"a".repeat(64)).is_err() && namespace("shop-1").is_ok());
    }
}
