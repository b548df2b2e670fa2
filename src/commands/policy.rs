//! `rollout-guard policy`: RolloutPolicies before they are in force.

mod documents;
mod in_force;
mod log;
mod report;
mod trial;

use std::{
    io::{self, ErrorKind, Write},
    path::PathBuf,
    process::ExitCode,
};

use anyhow::{Context, bail};
use clap::{Args, Subcommand, ValueEnum};
use jiff::Timestamp;

use super::output::Closed;
use crate::core::{
    policy::PolicySet,
    replay::{Event, History, Taken},
};

use self::{
    documents::Documents,
    log::{Line, Log},
    report::Report,
    trial::Trial,
};

/// How much is kept of what Deployments were like. The rest of the command takes a few megabytes.
const ROOM: usize = 64 << 20;

/// Tries RolloutPolicies out, without a cluster.
#[derive(Args, Debug)]
pub struct PolicyArgs {
    #[command(subcommand)]
    command: PolicyCommand,
}

#[derive(Subcommand, Debug)]
enum PolicyCommand {
    Test(Box<TestArgs>),
}

impl PolicyArgs {
    /// Runs the command.
    ///
    /// # Errors
    /// When a file cannot be read, or standard output cannot be written.
    pub async fn run(self) -> anyhow::Result<ExitCode> {
        let PolicyCommand::Test(args) = self.command;
        args.run().await.map_err(or_closed)
    }
}

/// Says whether policies are valid, and what they would have done with the updates in an audit log.
///
/// Without --history: checks the policies, says which is asked first, which overlap, and when the freezes come.
///
/// With --history: judges each update of a Deployment that the API server wrote down, by the webhook's own code, as of
/// the time when it happened. The log must hold objects: level RequestResponse for deployments and deployments/status
/// (apps), and for namespaces where policies select by their labels. Level Request does with less certainty, level
/// Metadata does not. Several logs (rotated ones, or those of several API servers) are read in the order of time.
/// Each update is judged by what really was before it: what an earlier refusal, or a rollback, would have changed is
/// not played through. That a template was rolled back from (RG004) is not in an audit log.
///
/// Exit status: 0; 1 where a policy is invalid (without --history), or where --fail-on says so; 2 bad input.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  rollout-guard policy test -f policy.yaml
  helm template rollout-guard charts/rollout-guard | rollout-guard policy test -f -
  rollout-guard policy test -f policy.yaml --history audit.log
  rollout-guard policy test -f policy.yaml --history audit.log --history audit-2026-11-24T02-07-31.442.log.gz --only denied
  kubectl get namespaces -o json > ns.json; rollout-guard policy test -f policy.yaml --history audit.log --namespace-labels ns.json
  zstdcat audit.log.zst | rollout-guard policy test -f policy.yaml --history - -o json --fail-on deny")]
struct TestArgs {
    /// RolloutPolicies as YAML or JSON, several in one file or by several flags; other kinds are passed over; - reads standard input.
    #[arg(long, short = 'f', value_name = "FILE", required = true)]
    filename: Vec<PathBuf>,

    /// An audit log: JSON lines, plain or gzip, several by several flags; - reads standard input.
    #[arg(long, value_name = "FILE")]
    history: Vec<PathBuf>,

    /// Namespaces with their labels, as `kubectl get namespaces -o json` (or yaml) prints them. Without it: those in the log.
    #[arg(long, value_name = "FILE", requires = "history")]
    namespace_labels: Option<PathBuf>,

    /// The guard's own namespace: Deployments in it are not guarded, and what its ServiceAccount writes is the guard's.
    #[arg(long, value_name = "NAME", default_value = "rollout-guard", requires = "history")]
    guard_namespace: String,

    /// Which updates are listed. Without it: judged.
    #[arg(long, value_enum, default_value_t, requires = "history", hide_default_value = true)]
    only: Only,

    /// End with status 1 if an update would have been refused in this way.
    #[arg(long, value_enum, requires = "history")]
    fail_on: Option<FailOn>,

    /// The time from which the next freezes are told (RFC 3339). Without it: now.
    #[arg(long, value_name = "TIME", conflicts_with = "history")]
    at: Option<Timestamp>,

    /// How to print: a table, or JSON with one object a line.
    #[arg(long, short = 'o', value_enum, default_value_t)]
    output: Format,
}

/// Which updates are listed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Only {
    /// Those that would be refused, also where the mode is Warn or Audit, or an override asked for.
    Denied,
    /// Those that change the pod template of a Deployment that a policy guards.
    #[default]
    Judged,
    /// All, also those that could not be judged.
    All,
}

/// What makes the command fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum FailOn {
    /// An update would have been denied (403).
    Deny,
    /// An update would have been denied, or told to wait (429).
    Wait,
}

/// How to print.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Format {
    /// For people.
    #[default]
    Table,
    /// For programs.
    Json,
}

impl TestArgs {
    async fn run(self) -> anyhow::Result<ExitCode> {
        let inputs = self.filename.iter().chain(&self.history).chain(&self.namespace_labels);
        if inputs.filter(|path| documents::is_stdin(path)).count() > 1 {
            bail!("standard input can be read once: want - for one file only");
        }
        let policies = Documents::read(&self.filename)?;
        let mut out = Out {
            inner: io::BufWriter::new(io::stdout().lock()),
            closed: false,
            // Whoever asks for a status wants to know of the whole log.
            goes_on: self.fail_on.is_some(),
        };
        let code = if self.history.is_empty() {
            let now = self.at.unwrap_or_else(Timestamp::now);
            in_force::print(&mut out, &policies, self.output, now)?;
            u8::from(!policies.problems.is_empty())
        } else {
            if let Some(problem) = policies.problems.first() {
                bail!("{problem}");
            }
            self.replay(policies.valid, &mut out).await?
        };
        out.flush().context("cannot write to standard output")?;
        Ok(ExitCode::from(code))
    }

    async fn replay(&self, policies: PolicySet, out: &mut impl Write) -> anyhow::Result<u8> {
        let mut trial = Trial::new(policies, &self.guard_namespace);
        if let Some(path) = &self.namespace_labels {
            trial.learn_namespaces(&documents::namespaces(path)?);
        }
        let mut log = Log::open(&self.history)?;
        let mut history = History::with_room(ROOM);
        let mut report = Report::new(self.output, self.only);
        report.begin(out)?;
        while let Some((line, place)) = log.next() {
            match line {
                Line::Text(text) => match Event::parse(text) {
                    Ok(event) => {
                        report.event(&event);
                        match history.take(&event) {
                            Taken::Other | Taken::Learned => {}
                            Taken::Namespace { name, labels } => trial.namespace(&name, labels),
                            Taken::Update(update) => {
                                let row = trial.judge(&update).await;
                                report.row(out, &row, &place)?;
                            }
                        }
                    }
                    Err(why) => report.broken(&place, &why),
                },
                Line::Unreadable(why) => report.broken(&place, why),
            }
        }
        report.end(out, &history, &trial)?;
        Ok(u8::from(self.fail_on.is_some_and(|on| report.refused(on == FailOn::Wait))))
    }
}

/// Standard output, buffered, as a log may have a million updates. Whoever reads it may have seen enough (`| head`).
struct Out<W: Write> {
    inner: W,
    closed: bool,
    goes_on: bool,
}

impl<W: Write> Out<W> {
    fn or_closed<T>(&mut self, result: io::Result<T>, as_if: T) -> io::Result<T> {
        match result {
            Err(error) if error.kind() == ErrorKind::BrokenPipe && self.goes_on => {
                self.closed = true;
                Ok(as_if)
            }
            result => result,
        }
    }
}

/// Says of an error of standard output whether it is that nobody reads it any more.
fn or_closed(error: anyhow::Error) -> anyhow::Error {
    match error.downcast_ref::<io::Error>() {
        Some(io) if io.kind() == ErrorKind::BrokenPipe => Closed.into(),
        _ => error,
    }
}

impl<W: Write> Write for Out<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.closed {
            return Ok(bytes.len());
        }
        let result = self.inner.write(bytes);
        self.or_closed(result, bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.closed {
            return Ok(());
        }
        let result = self.inner.flush();
        self.or_closed(result, ())
    }
}
