//! `rollout-guard wait`: the end of a push, for pipelines.

mod follow;
mod github;
mod gitlab;
mod lines;
mod report;

use std::{collections::BTreeSet, process::ExitCode, time::Duration as StdDuration};

use clap::{Args, ValueEnum};
use futures::{StreamExt, stream::FuturesUnordered};
use jiff::{SignedDuration, Timestamp};

use super::{
    ClusterArgs, DeploymentName,
    output::{Out, Screen},
};
use crate::{
    api::duration::Duration,
    cluster::reading::Scope,
    core::waiting::{Decided, End, Push, Terms, Waiting, worst},
};

pub use follow::{News, What, follow};
pub use github::{annotation, step_summary};
pub use report::{Report, Reporter};

/// The most Deployments that one command waits for: each is read every few seconds.
const MOST: usize = 64;

/// Between two looks at one Deployment: pods change without the Deployment saying so.
const PACE: StdDuration = StdDuration::from_secs(2);

/// So many Deployments are looked at in a second at the most.
const LOOKS_PER_SECOND: u32 = 5;

const AFTER_HELP: &str = "\
Exit status, of several Deployments the worst, which is the first one here:
  1    failed: it cannot succeed, as is said with the evidence
  3    rolled back: an earlier template was put back, by the guard or by anybody
  2    bad usage, no such Deployment, or an API server that refuses or does not answer
  124  not complete within --timeout
  4    superseded: another template was pushed
  0    complete

Examples:
  kubectl apply -f web.yaml && rollout-guard wait web
  rollout-guard wait web api worker -n shop --timeout 15m
  rollout-guard wait web --format github
  rollout-guard wait web --generation \"$(kubectl apply -f web.yaml -o jsonpath='{.metadata.generation}')\"
  rollout-guard wait web --format json-lines | jq -r 'select(.event == \"result\").deployments[].message'";

/// How the progress and the end are told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people.
    #[default]
    Text,
    /// For GitHub Actions: annotations, groups, and a summary in the file that $GITHUB_STEP_SUMMARY names.
    Github,
    /// For GitLab CI: collapsible sections.
    Gitlab,
    /// For programs: one JSON object on each line.
    JsonLines,
}

/// Waits until a push has come to its end: complete, failed, rolled back, or superseded.
///
/// The push is the pod template that is there at the start; with --generation or --revision that one. A rollout that
/// cannot succeed ends the waiting without the progress deadline being waited for: an image that does not exist, a
/// missing ConfigMap, a crash loop, a quota. Where the guard follows the rollout, it is waited for what it does.
#[derive(Args, Debug)]
#[command(after_help = AFTER_HELP)]
pub struct WaitArgs {
    /// The Deployments.
    #[arg(value_name = "NAME", required = true)]
    names: Vec<DeploymentName>,

    /// How long to wait.
    #[arg(long, value_name = "DURATION", default_value = "10m")]
    timeout: Duration,

    /// How progress and end are told.
    #[arg(long, value_enum, default_value_t)]
    format: Format,

    /// Whether to end where the rollout cannot succeed any more; without it only time, a rollback or another push
    /// ends it.
    #[arg(
        long,
        value_name = "BOOL",
        default_value_t = true,
        default_missing_value = "true",
        num_args = 0..=1,
        require_equals = true,
        action = clap::ArgAction::Set
    )]
    fail_fast: bool,

    /// How long it must have been complete without a break.
    #[arg(long, value_name = "DURATION", default_value = "0s")]
    stable: Duration,

    /// The generation that the push made, where the pipeline knows it: what was rolled back before the waiting began is
    /// then told for certain.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i64).range(1..), conflicts_with = "revision")]
    generation: Option<i64>,

    /// The revision that the push made, where the pipeline knows it.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i64).range(1..))]
    revision: Option<i64>,

    /// Tell the end alone.
    #[arg(long, short = 'q')]
    quiet: bool,

    #[command(flatten)]
    cluster: ClusterArgs,
}

impl WaitArgs {
    /// Runs the command.
    ///
    /// # Errors
    /// When no cluster is configured, or the usage is wrong.
    pub async fn run(self) -> anyhow::Result<ExitCode> {
        let names: BTreeSet<&str> = self.names.iter().map(DeploymentName::as_str).collect();
        anyhow::ensure!(names.len() <= MOST, "at most {MOST} Deployments can be waited for at once");
        let push = self.push()?;
        let cluster = self.cluster.connect().await?;
        let started = Timestamp::now();
        let terms = terms(started, self.timeout, self.stable, self.fail_fast, push);
        let mut reporter = Reporter::new(self.format, Screen::stdout(), self.quiet, started, std::env::vars);

        let mut keys = Vec::new();
        for name in &self.names {
            let key = self.cluster.key(&cluster, name);
            if !keys.contains(&key) {
                keys.push(key);
            }
        }
        let pace = pace(keys.len());
        let (tell, mut told) = tokio::sync::mpsc::channel(64);
        let mut following: FuturesUnordered<_> = keys
            .iter()
            .map(|key| {
                let scope = Scope {
                    namespace: Some(key.namespace.clone()),
                    name: Some(key.name.clone()),
                    labels: None,
                };
                let wakes = cluster.watch_scope(&scope).map(|_| ()).boxed();
                follow(&cluster, wakes, Waiting::new(key.clone(), terms), pace, tell.clone())
            })
            .collect();
        drop(tell);
        let mut ends: Vec<Decided> = Vec::new();
        while ends.len() < keys.len() {
            tokio::select! {
                biased;
                Some(news) = told.recv() => reporter.news(&news),
                Some(decided) = following.next() => {
                    // What was told before the end is shown before it.
                    while let Ok(news) = told.try_recv() {
                        reporter.news(&news);
                    }
                    reporter.decided(&decided, Timestamp::now());
                    ends.push(*decided);
                }
            }
        }
        ends.sort_by_key(|decided| keys.iter().position(|key| *key == decided.key));
        reporter.result(&ends, Timestamp::now());
        let worst = worst(ends.iter().map(|decided| decided.end)).unwrap_or(End::Complete);
        Ok(ExitCode::from(worst.code()))
    }

    fn push(&self) -> anyhow::Result<Push> {
        let push = match (self.generation, self.revision) {
            (Some(generation), _) => Push::Generation(generation),
            (None, Some(revision)) => Push::Revision(revision),
            (None, None) => Push::Current,
        };
        anyhow::ensure!(
            push == Push::Current || self.names.len() == 1,
            "--generation and --revision are of one Deployment: name one"
        );
        Ok(push)
    }
}

/// Returns what is waited for from `started` on.
pub fn terms(started: Timestamp, timeout: Duration, stable: Duration, fail_fast: bool, push: Push) -> Terms {
    let span = |duration: Duration| SignedDuration::try_from(duration.get()).unwrap_or(SignedDuration::MAX);
    let deadline = started.checked_add(span(timeout)).unwrap_or(Timestamp::MAX);
    Terms { started, deadline, fail_fast, stable: span(stable), push }
}

/// Between two looks at one of so many Deployments.
fn pace(count: usize) -> StdDuration {
    let count = u32::try_from(count).unwrap_or(u32::MAX);
    PACE.max(StdDuration::from_secs(1).saturating_mul(count) / LOOKS_PER_SECOND)
}

/// Writes to standard output. Nobody need read it: the exit status counts, so it is waited on.
fn show(text: &str) {
    if !text.is_empty() {
        let _ = Out.write(text);
    }
}
