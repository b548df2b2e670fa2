//! `rollout-guard run`: webhook and watcher in one process.

use std::process::ExitCode;

use clap::Args;

use super::{watcher::WatchArgs, webhook::WebhookArgs};

/// Serves the admission webhook and follows rollouts, in one process.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  rollout-guard run
  rollout-guard run --rollbacks-per-hour 100 --certificates mounted --certificate-dir /certificates

Every flag is an environment variable as well: --admin-listen is ROLLOUT_GUARD_ADMIN_LISTEN.")]
pub struct RunArgs {
    #[command(flatten)]
    webhook: WebhookArgs,

    #[command(flatten)]
    watch: WatchArgs,
}

impl RunArgs {
    /// Serves and follows until a signal, then drains.
    ///
    /// # Errors
    /// As those of the webhook.
    pub async fn run(self) -> anyhow::Result<ExitCode> {
        self.webhook.serve(Some(&self.watch)).await
    }
}
