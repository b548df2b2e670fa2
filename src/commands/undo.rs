//! `rollout-guard undo`: back to the last good template, so that the next push gives what it would have given.

mod put_back;
mod target;

use std::{
    fmt::Write as _,
    io::{self, BufRead, IsTerminal, Write as _},
    process::ExitCode,
    time::Duration as StdDuration,
};

use anyhow::Context;
use clap::Args;
use futures::StreamExt;
use jiff::Timestamp;

use super::{
    ClusterArgs, DeploymentName,
    look::{Depth, Look, look},
    output::{Out, Screen, Tone, note},
    wait::{self, Format, News, Reporter, follow},
};
use crate::{
    api::duration::Duration,
    cluster::{Cluster, ClusterError, dry_run::DryRun, reading::Scope},
    core::{
        difference::{self, Kind, Line},
        key::Key,
        message::plain,
        restore,
        view::RevisionView,
        waiting::{Decided, End, Push, Waiting},
    },
};

pub use put_back::{PutBack, UndoError, hand_back, put_back};
pub use target::{Target, choose, named};

/// Between two looks.
const PACE: StdDuration = StdDuration::from_secs(1);

/// Exit status where it is not done, or not complete afterwards.
const FAILED: u8 = 1;

/// Exit status for bad usage.
const USAGE: u8 = 2;

/// Exit status where somebody pushed meanwhile.
const SUPERSEDED: u8 = 4;

/// The most characters of a line of a refusal.
const LINE: usize = 2000;

const AFTER_HELP: &str = "\
Exit status: 0 back and complete, 1 refused or stuck as well, 2 bad usage or an API server that does not answer,
3 put back again by somebody else, 4 another template was pushed, 124 not complete within --timeout.

Examples:
  rollout-guard undo web
  rollout-guard undo web --to 3 -n shop
  rollout-guard undo web --dry-run
  rollout-guard undo web --yes --timeout 2m";

/// Puts an earlier pod template back: the last one that was good, not just the previous one.
///
/// Without --to that is the last revision that the guard found good, else the one that still serves. Field ownership and
/// kubectl's last-applied-configuration are kept as the appliers left them, so that the next push by any of
/// them gives what it would have given (`kubectl rollout undo` does not).
#[derive(Args, Debug)]
#[command(after_help = AFTER_HELP)]
pub struct UndoArgs {
    /// The Deployment.
    #[arg(value_name = "NAME")]
    name: DeploymentName,

    /// The revision to go back to.
    #[arg(long, value_name = "REVISION", value_parser = clap::value_parser!(i64).range(1..))]
    to: Option<i64>,

    /// Show what would be done; nothing is written. The API server tries it, so that a refusal is seen.
    #[arg(long)]
    dry_run: bool,

    /// Do not ask.
    #[arg(long, short = 'y')]
    yes: bool,

    /// Whether to wait until it is complete.
    #[arg(
        long,
        value_name = "BOOL",
        default_value_t = true,
        default_missing_value = "true",
        num_args = 0..=1,
        require_equals = true,
        action = clap::ArgAction::Set
    )]
    wait: bool,

    /// How long to wait until it is complete.
    #[arg(long, value_name = "DURATION", default_value = "5m")]
    timeout: Duration,

    #[command(flatten)]
    cluster: ClusterArgs,
}

impl UndoArgs {
    /// Runs the command.
    ///
    /// # Errors
    /// When the usage is wrong, or the API server refuses to show the Deployment or does not answer.
    pub async fn run(self) -> anyhow::Result<ExitCode> {
        let screen = Screen::stdout();
        let asks = !self.yes && !self.dry_run;
        if asks && !(io::stdin().is_terminal() && screen.terminal) {
            anyhow::bail!(
                "nobody can be asked here, as this is no terminal: say --yes, or --dry-run to look only"
            );
        }
        let cluster = self.cluster.connect().await?;
        let key = self.cluster.key(&cluster, &self.name);
        let seen = look(&cluster, &key, Depth::ReplicaSets, Timestamp::now()).await?;
        for hidden in &seen.hidden {
            note(&format!("note: {hidden}; less is known of which revision was good"));
        }
        let target = choose(&seen, self.to).map_err(|why| anyhow::anyhow!(why))?;
        show(&preview(&seen, &target, &screen));
        if self.dry_run {
            return Ok(rehearse(&cluster, &key, &seen, &target).await);
        }
        if asks && !confirmed().await? {
            note("nothing was done");
            return Ok(ExitCode::from(FAILED));
        }
        let done = match put_back(&cluster, &key, &seen.deployment, &target.replica_set).await {
            Ok(done) => done,
            Err(error) => return Ok(refused(&error)),
        };
        let handed_back = hand_back(&cluster, &key, &done).await;
        if let Err(error) = &handed_back {
            let why = plain(&error.to_string(), LINE);
            note(&format!(
                "note: field ownership was not handed back ({why}); the next server-side apply may meet a conflict with \"rollout-guard\", which --force-conflicts settles"
            ));
        }
        let code = if self.wait {
            self.verify(&cluster, &key, &target, screen).await
        } else {
            let generation = done.after["metadata"]["generation"].as_i64().unwrap_or_default();
            show(&format!(
                "deployment/{} has the template of {} again, in generation {generation}\n",
                key.name,
                target.named()
            ));
            End::Complete.code()
        };
        if handed_back.is_ok() && code == End::Complete.code() {
            show(
                "The next push needs nothing more: field ownership and last-applied-configuration are as their appliers left them.\n",
            );
        }
        Ok(ExitCode::from(code))
    }

    /// Waits until it is observed and complete, and says so. Returns the exit status.
    async fn verify(&self, cluster: &Cluster, key: &Key, target: &Target, screen: Screen) -> u8 {
        let started = Timestamp::now();
        let terms = wait::terms(started, self.timeout, Duration::default(), true, Push::Undone);
        let scope =
            Scope { namespace: Some(key.namespace.clone()), name: Some(key.name.clone()), labels: None };
        let wakes = cluster.watch_scope(&scope).map(|_| ()).boxed();
        let (tell, mut told) = tokio::sync::mpsc::channel::<News>(64);
        let mut reporter = Reporter::new(Format::Text, screen, false, started, std::env::vars);
        let following = follow(cluster, wakes, Waiting::new(key.clone(), terms), PACE, tell);
        tokio::pin!(following);
        let decided = loop {
            tokio::select! {
                biased;
                Some(news) = told.recv() => reporter.news(&news),
                decided = &mut following => break decided,
            }
        };
        let now = Timestamp::now();
        let told = if decided.end == End::Complete {
            Decided { message: back(&decided, target, started, now), ..*decided }
        } else {
            *decided
        };
        reporter.decided(&told, now);
        told.end.code()
    }
}

/// `is back at revision 3 (web:1.4.1), which is revision 5 now, generation 9 observed, complete after 12 s`.
fn back(decided: &Decided, target: &Target, started: Timestamp, now: Timestamp) -> String {
    let mut text = format!("is back at {}", target.named());
    if let Some(revision) = decided.revision.filter(|revision| Some(*revision) != target.revision.revision) {
        let _ = write!(text, ", which is revision {revision} now");
    }
    let (generation, took) = (decided.generation.unwrap_or_default(), now.duration_since(started).as_secs());
    let _ = write!(text, ", generation {generation} observed, complete after {took} s");
    text
}

/// Returns from where to where it goes, why there, and the difference of the templates.
pub fn preview(seen: &Look, target: &Target, screen: &Screen) -> String {
    let view = &seen.view;
    let current = view
        .current()
        .map_or_else(|| format!("generation {} ({})", view.generation, view.images.join(", ")), named);
    let mut out =
        format!("deployment/{}: back from {current} to {}, {}\n", view.name, target.named(), target.why);
    if let Some(warning) = &target.warning {
        let _ = writeln!(out, "{}", screen.paint(&format!("warning: {warning}"), Tone::Warn));
    }
    let _ = writeln!(out, "{}", screen.paint(&format!("--- {current}, now"), Tone::Strong));
    let _ = writeln!(out, "{}", screen.paint(&format!("+++ {}", since(&target.revision)), Tone::Strong));
    let good = restore::template_of(&target.replica_set).unwrap_or_default();
    for line in difference::between(&seen.deployment["spec"]["template"], &good) {
        let _ = writeln!(out, "{}", screen.paint(&line.to_string(), tone(&line)));
    }
    out
}

/// `revision 3 (web:1.4.1), Good since 2026-11-23T17:16:39Z`.
fn since(revision: &RevisionView) -> String {
    let verdict = revision
        .verdict
        .zip(revision.since)
        .map(|(verdict, since)| format!(", {verdict:?} since {since:.0}"));
    format!("{}{}", named(revision), verdict.unwrap_or_default())
}

const fn tone(line: &Line) -> Tone {
    match line.kind {
        Kind::Added => Tone::Good,
        Kind::Removed => Tone::Bad,
        Kind::Place | Kind::Note => Tone::Dim,
        Kind::Same => Tone::Plain,
    }
}

/// Lets the API server try the write.
async fn rehearse(cluster: &impl DryRun, key: &Key, seen: &Look, target: &Target) -> ExitCode {
    let patch = match restore::restore(&seen.deployment, &target.replica_set) {
        Ok(patch) => patch,
        Err(error) => return refused(&error.into()),
    };
    match cluster.dry_run(key, &patch).await {
        Ok(()) => {
            show(&format!(
                "deployment/{} would be put back to {} (dry run: nothing was written)\n",
                key.name,
                target.named()
            ));
            ExitCode::SUCCESS
        }
        Err(error) => refused(&error.into()),
    }
}

/// Says why it was not done, as it was said: a refusal by admission has several lines. Returns the exit status.
fn refused(error: &UndoError) -> ExitCode {
    let code = match error {
        UndoError::Superseded => SUPERSEDED,
        UndoError::Cluster(error) if error.code().is_none_or(|code| code >= 500) => USAGE,
        _ => FAILED,
    };
    let text = match error {
        UndoError::Cluster(error @ ClusterError::Api { .. }) if error.code().is_some() => error.message(),
        other => other.to_string(),
    };
    for (at, line) in text.lines().enumerate() {
        let line = plain(line, LINE);
        note(&if at == 0 { format!("not put back: {line}") } else { line });
    }
    ExitCode::from(code)
}

/// Asks on the terminal.
async fn confirmed() -> anyhow::Result<bool> {
    let ask = || -> io::Result<bool> {
        let mut stdout = io::stdout();
        write!(stdout, "Roll back? [y/N] ")?;
        stdout.flush()?;
        let mut answer = String::new();
        io::stdin().lock().read_line(&mut answer)?;
        Ok(matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes"))
    };
    tokio::task::spawn_blocking(ask).await?.context("cannot ask on the terminal")
}

/// Nobody need read it: it is done, and the exit status counts.
fn show(text: &str) {
    let _ = Out.write(text);
}
