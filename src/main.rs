//! The entry point: installs the crypto provider, parses the arguments, runs the command.

use std::process::ExitCode;

use rollout_guard::{cli::Cli, tls};

fn main() -> ExitCode {
    tls::install_provider();
    Cli::start()
}
