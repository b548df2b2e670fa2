//! The command line: subcommands and what they share.

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

use crate::{
    commands::{
        certs::CertsArgs, check::CheckArgs, completion::CompletionArgs, judge::JudgeArgs, run::RunArgs,
        watcher::WatcherArgs, webhook::WebhookArgs,
    },
    core::message::plain,
    telemetry::{self, LogFormat},
};

/// Exit status for bad input and for errors of the API server.
const FAILURE: u8 = 2;

/// The most characters of an error.
const LONGEST_ERROR: usize = 2000;

/// Guards the rollouts of Kubernetes Deployments.
#[derive(Parser, Debug)]
#[command(name = "rollout-guard", version, arg_required_else_help = true)]
pub struct Cli {
    /// How log lines are written to standard error.
    #[arg(
        long,
        global = true,
        env = "ROLLOUT_GUARD_LOG_FORMAT",
        value_enum,
        default_value_t,
        help_heading = "Logs"
    )]
    log_format: LogFormat,

    /// What is logged: error, warn, info, debug, trace, or a filter such as info,rollout_guard=debug.
    #[arg(
        long,
        global = true,
        env = "ROLLOUT_GUARD_LOG_LEVEL",
        value_name = "FILTER",
        help_heading = "Logs"
    )]
    log_level: Option<String>,

    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    Run(Box<RunArgs>),
    Watcher(Box<WatcherArgs>),
    Webhook(Box<WebhookArgs>),
    Judge(JudgeArgs),
    Check(CheckArgs),
    Certs(CertsArgs),
    Completion(CompletionArgs),
}

impl Cli {
    /// Runs the command and returns the exit status: 2 for an error, which is printed.
    pub fn run(self) -> ExitCode {
        match self.try_run() {
            Ok(code) => code,
            Err(error) => {
                eprintln!("rollout-guard: {}", one_line(&error));
                ExitCode::from(FAILURE)
            }
        }
    }

    fn try_run(self) -> anyhow::Result<ExitCode> {
        // What a server logs is its voice; a command speaks by what it prints.
        let serves = matches!(self.command, Command::Run(_) | Command::Watcher(_) | Command::Webhook(_));
        let level = self.log_level.as_deref().unwrap_or(if serves { "info" } else { "error" });
        telemetry::start_logs(self.log_format, level)?;
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        runtime.block_on(async {
            match self.command {
                Command::Run(args) => args.run().await,
                Command::Watcher(args) => args.run().await,
                Command::Webhook(args) => args.run().await,
                Command::Judge(args) => args.run().await,
                Command::Check(args) => args.run().await,
                Command::Certs(args) => args.run().await,
                Command::Completion(args) => args.run(Self::command()),
            }
        })
    }
}

/// Returns `error` and what caused it, on one line. A cause that stands in the text already is left out, and what
/// came from a file cannot steer the terminal.
fn one_line(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        let cause = cause.split_whitespace().collect::<Vec<_>>().join(" ");
        if text.is_empty() {
            text = cause;
        } else if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    plain(&text, LONGEST_ERROR)
}
