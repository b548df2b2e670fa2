//! `rollout-guard diagnose`: the five steps of the runbook's diagnosis in one page.

mod text;

use std::process::ExitCode;

use clap::Args;
use jiff::Timestamp;

use super::{
    ClusterArgs, DeploymentName,
    output::{self, Out, OutputFormat, Screen},
};
use crate::core::diagnosis::diagnose;

pub use text::text;

/// The columns that a page is broken at where there is no terminal.
const PAGE: usize = 80;

/// Longer lines are hard to read, however wide the terminal is.
const WIDEST: usize = 110;

/// Says what is wrong with a Deployment, and what to do next.
///
/// The five steps of the runbook of the alert KubernetesDeploymentGenerationMismatch: status and conditions, generations,
/// strategy and configuration, events and logs of pods that fail, health of the cluster. It ends with the cause and the
/// next command. It needs no guard in the cluster. What you have no right to read is named and left out; nothing takes
/// longer than about 15 s, whatever does not answer.
///
/// Exit status: 0 once the diagnosis is made, whatever it found; 2 for bad usage, an error of the API server, or a
/// Deployment that is not there.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  rollout-guard diagnose web
  rollout-guard diagnose deploy/web -n shop --context staging
  rollout-guard diagnose web --logs=false > for-the-ticket.txt
  rollout-guard diagnose web -o json | jq -r '.cause.type, .next.command'
  rollout-guard diagnose web -o json | jq -r '.configuration.findings[] | select(.severity == \"problem\") | .text'")]
pub struct DiagnoseArgs {
    /// The Deployment: NAME, deployment/NAME or deploy/NAME.
    #[arg(value_name = "NAME")]
    name: DeploymentName,

    /// Whether to show the last lines of the logs of containers that fail. They may hold secrets.
    #[arg(
        long,
        value_name = "BOOL",
        default_value_t = true,
        default_missing_value = "true",
        num_args = 0..=1,
        require_equals = true,
        action = clap::ArgAction::Set
    )]
    logs: bool,

    #[command(flatten)]
    cluster: ClusterArgs,

    /// How to print it. wide breaks no line; json and yaml have keys that stay.
    #[arg(long, short = 'o', value_enum, default_value_t)]
    output: OutputFormat,
}

impl DiagnoseArgs {
    /// Runs the command.
    ///
    /// # Errors
    /// When the cluster cannot be reached, the Deployment may not be read or is not there.
    pub async fn run(self) -> anyhow::Result<ExitCode> {
        let cluster = self.cluster.connect().await?;
        let key = self.cluster.key(&cluster, &self.name);
        let now = Timestamp::now();
        let material = cluster.diagnosis_material(&key, flags(&self.cluster), self.logs, now).await?;
        let diagnosis = diagnose(&material, now);
        Out.write(&match self.output {
            OutputFormat::Json => output::json(&diagnosis)?,
            OutputFormat::Yaml => output::yaml(&diagnosis)?,
            OutputFormat::Name => format!("deployment.apps/{}\n", diagnosis.name),
            OutputFormat::Wide => text(&diagnosis, &Screen { width: None, ..Screen::stdout() }),
            OutputFormat::Table => text(&diagnosis, &page(Screen::stdout())),
        })?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Where there is no terminal it is a page all the same.
fn page(screen: Screen) -> Screen {
    Screen { width: Some(screen.width.unwrap_or(PAGE).min(WIDEST)), ..screen }
}

/// What a command that is proposed needs to reach the same cluster.
fn flags(cluster: &ClusterArgs) -> String {
    let kubeconfig = cluster.kubeconfig.as_ref().map(|path| ("kubeconfig", path.display().to_string()));
    let context = cluster.context.as_ref().map(|name| ("context", name.clone()));
    let flags = kubeconfig.into_iter().chain(context);
    flags.map(|(flag, value)| format!(" --{flag} {}", quoted(&value))).collect()
}

/// Returns `word` as a shell takes it for one word.
fn quoted(word: &str) -> String {
    let plain =
        |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/' | ':' | '@' | '+' | ',');
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_that_is_proposed_reaches_the_same_cluster() {
        let args = ClusterArgs {
            kubeconfig: Some("/home/a b/config".into()),
            context: Some("arn:aws:eks/it's".to_owned()),
            namespace: None,
        };
        assert_eq!(flags(&args), r" --kubeconfig '/home/a b/config' --context 'arn:aws:eks/it'\''s'");
        assert_eq!(flags(&ClusterArgs { kubeconfig: None, context: None, ..args }), "");
        assert_eq!(quoted("kind-test_1.eu"), "kind-test_1.eu");
    }
}
