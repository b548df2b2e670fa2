//! `rollout-guard man`: the manual.

use std::{path::PathBuf, process::ExitCode};

use anyhow::Context;
use clap::{Args, Command};
use clap_mangen::Man;

use super::output::Out;

/// Prints the manual page of a command, or writes all of them into a directory.
///
/// In the directory there is a page for the program and one for each of its commands: rollout-guard.1,
/// rollout-guard-status.1 and so on.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  rollout-guard man status | man -l -
  rollout-guard man --dir ~/.local/share/man/man1")]
pub struct ManArgs {
    /// The command, such as status or certs show. Without it: the whole program.
    #[arg(value_name = "COMMAND")]
    command: Vec<String>,

    /// The directory that all pages are written into. It is made where it is not there.
    #[arg(long, value_name = "DIR", conflicts_with = "command")]
    dir: Option<PathBuf>,
}

impl ManArgs {
    /// Prints or writes the manual of `command`, the whole command line.
    ///
    /// # Errors
    /// When there is no such command, or the pages cannot be written.
    pub fn run(self, mut command: Command) -> anyhow::Result<ExitCode> {
        command = command.disable_help_subcommand(true);
        match &self.dir {
            Some(dir) => {
                let written = || format!("cannot write the manual into {}", dir.display());
                std::fs::create_dir_all(dir).with_context(written)?;
                clap_mangen::generate_to(command, dir).with_context(written)?;
            }
            None => Out.write(&self.page(command)?)?,
        }
        Ok(ExitCode::SUCCESS)
    }

    fn page(&self, mut command: Command) -> anyhow::Result<String> {
        command.build();
        let mut found = &command;
        for name in &self.command {
            found = found.find_subcommand(name).with_context(|| format!("there is no command {name:?}"))?;
        }
        let mut page = Vec::new();
        let source = concat!("rollout-guard ", env!("CARGO_PKG_VERSION"));
        Man::new(found.clone()).source(source).render(&mut page)?;
        Ok(String::from_utf8(page)?)
    }
}
