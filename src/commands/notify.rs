//! `rollout-guard notify`: tries who would be told.

use std::{
    io::{self, Write},
    path::PathBuf,
    process::ExitCode,
};

use anyhow::bail;
use clap::{Args, Subcommand};

use crate::{
    core::message::plain,
    notify::{self, Tried},
};

/// The most characters of what a receiver says.
const LONGEST: usize = 400;

/// Tries the notifications.
#[derive(Args, Debug)]
pub struct NotifyArgs {
    #[command(subcommand)]
    command: NotifyCommand,
}

#[derive(Subcommand, Debug)]
enum NotifyCommand {
    Test(TestArgs),
}

/// Sends a test message to the receivers of a configuration, once each, and prints what they say.
///
/// Exit status: 0 when all took it, 1 when one did not, 2 when the configuration cannot be used.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  rollout-guard notify test --config notifications.yaml
  rollout-guard notify test --config notifications.yaml --receiver slack")]
struct TestArgs {
    /// The configuration, as in the Secret of the chart.
    #[arg(long, short = 'c', env = "ROLLOUT_GUARD_NOTIFY_CONFIG", value_name = "FILE")]
    config: PathBuf,

    /// Only this receiver.
    #[arg(long, value_name = "NAME")]
    receiver: Option<String>,
}

impl NotifyArgs {
    /// Runs the command.
    ///
    /// # Errors
    /// When the configuration cannot be used, names no such receiver, or standard output cannot be written.
    pub async fn run(self) -> anyhow::Result<ExitCode> {
        let NotifyCommand::Test(TestArgs { config, receiver }) = self.command;
        let shown = config.display().to_string();
        let tried = notify::try_out(config, receiver.as_deref()).await?;
        if tried.is_empty() {
            match receiver {
                Some(name) => bail!("{shown}: there is no receiver {name:?}"),
                None => bail!("{shown}: there are no receivers"),
            }
        }
        let mut out = io::stdout().lock();
        for Tried { receiver, sort, result } in &tried {
            match result {
                Ok(status) => writeln!(out, "{receiver} ({sort}): delivered, answered {status}")?,
                Err(why) => {
                    writeln!(
                        out,
                        "{receiver} ({sort}): not delivered: {}",
                        plain(&why.to_string(), LONGEST)
                    )?;
                }
            }
        }
        Ok(ExitCode::from(u8::from(tried.iter().any(|tried| tried.result.is_err()))))
    }
}
