//! The command line: subcommands and what they share.

use std::{ffi::OsStr, path::Path, process::ExitCode};

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::{
    cluster::ClusterError,
    commands::{
        certs::CertsArgs,
        check::CheckArgs,
        completion::{self, CompletionArgs},
        diagnose::DiagnoseArgs,
        history::HistoryArgs,
        judge::JudgeArgs,
        man::ManArgs,
        notify::NotifyArgs,
        output::{is_closed, note},
        policy::PolicyArgs,
        run::RunArgs,
        status::StatusArgs,
        undo::UndoArgs,
        wait::WaitArgs,
        watcher::WatcherArgs,
        webhook::WebhookArgs,
    },
    core::message::plain,
    telemetry::{self, LogFormat},
};

/// Exit status for bad input and for errors of the API server.
const FAILURE: u8 = 2;

/// What a command logs by default: what the client would log is in the error that is printed.
const QUIET: &str = "error,kube_client=off,kube_runtime=off";

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
    Status(StatusArgs),
    Wait(WaitArgs),
    Diagnose(DiagnoseArgs),
    History(HistoryArgs),
    Undo(UndoArgs),
    Run(Box<RunArgs>),
    Watcher(Box<WatcherArgs>),
    Webhook(Box<WebhookArgs>),
    Judge(JudgeArgs),
    Notify(NotifyArgs),
    Policy(PolicyArgs),
    Check(CheckArgs),
    Certs(CertsArgs),
    Completion(CompletionArgs),
    Man(ManArgs),
}

impl Cli {
    /// Runs the command that the command line says and returns the exit status. A shell that asks for completions is
    /// answered instead.
    pub fn start() -> ExitCode {
        completion::answer(Self::command).unwrap_or_else(|| Self::read().run())
    }

    /// Reads the command line. As a plugin of kubectl it calls itself what was typed.
    fn read() -> Self {
        let program = std::env::args_os().next().unwrap_or_default();
        let command = Self::command();
        let command = if is_plugin(&program) { command.bin_name("kubectl rollout-guard") } else { command };
        Self::from_arg_matches(&command.get_matches()).unwrap_or_else(|error| error.exit())
    }

    /// Runs the command and returns the exit status: 2 for an error, which is printed.
    pub fn run(self) -> ExitCode {
        match self.try_run() {
            Ok(code) => code,
            // Whoever read has seen enough.
            Err(error) if is_closed(&error) => ExitCode::SUCCESS,
            Err(error) => {
                note(&one_line(&error));
                ExitCode::from(FAILURE)
            }
        }
    }

    fn try_run(self) -> anyhow::Result<ExitCode> {
        // What a server logs is its voice; a command speaks by what it prints.
        let serves = matches!(self.command, Command::Run(_) | Command::Watcher(_) | Command::Webhook(_));
        let level = self.log_level.as_deref().unwrap_or(if serves { "info" } else { QUIET });
        telemetry::start_logs(self.log_format, level)?;
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        runtime.block_on(async {
            match self.command {
                Command::Status(args) => args.run().await,
                Command::Wait(args) => args.run().await,
                Command::Diagnose(args) => args.run().await,
                Command::History(args) => args.run().await,
                Command::Undo(args) => args.run().await,
                Command::Run(args) => args.run().await,
                Command::Watcher(args) => args.run().await,
                Command::Webhook(args) => args.run().await,
                Command::Judge(args) => args.run().await,
                Command::Notify(args) => args.run().await,
                Command::Policy(args) => args.run().await,
                Command::Check(args) => args.run().await,
                Command::Certs(args) => args.run().await,
                Command::Completion(args) => args.run(),
                Command::Man(args) => args.run(Self::command()),
            }
        })
    }
}

/// Says whether kubectl has found this `program` as a plugin: by the name of its file, `kubectl-rollout_guard`.
fn is_plugin(program: &OsStr) -> bool {
    let name = Path::new(program).file_name().unwrap_or_default();
    name.to_string_lossy().starts_with("kubectl-")
}

/// Returns `error` and what caused it, on one line. A cause that stands in the text already is left out, and what
/// came from a file cannot steer the terminal.
fn one_line(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain() {
        let words = cause.to_string();
        let words = words.split_whitespace().collect::<Vec<_>>().join(" ");
        if text.is_empty() {
            text = words;
        } else if !text.contains(&words) {
            text = format!("{text}: {words}");
        }
        // It tells its causes itself, in words for people.
        if cause.is::<ClusterError>() {
            break;
        }
    }
    plain(&text, LONGEST_ERROR)
}
