//! `rollout-guard completion`: completions for a shell.

use std::{io::Write, process::ExitCode};

use clap::{Args, Command};
use clap_complete::Shell;

/// Prints completions for a shell.
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  source <(rollout-guard completion bash)\n  rollout-guard completion fish > ~/.config/fish/completions/rollout-guard.fish"
)]
pub struct CompletionArgs {
    /// The shell.
    shell: Shell,
}

impl CompletionArgs {
    /// Prints the completions of `command`, the whole command line.
    ///
    /// # Errors
    /// When standard output cannot be written.
    pub fn run(self, mut command: Command) -> anyhow::Result<ExitCode> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut command, "rollout-guard", &mut script);
        std::io::stdout().write_all(&script)?;
        Ok(ExitCode::SUCCESS)
    }
}
