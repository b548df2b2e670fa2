//! Signals: the first one drains, the second one ends the process at once.

use tokio::sync::watch;

/// Tells everyone who holds a clone that the process is to end.
#[derive(Clone, Debug)]
pub struct Shutdown(watch::Receiver<bool>);

/// Starts a [`Shutdown`]. Dropping the trigger starts it, too.
#[derive(Debug)]
pub struct Trigger(watch::Sender<bool>);

impl Trigger {
    /// Starts the shutdown.
    pub fn start(&self) {
        self.0.send_replace(true);
    }
}

impl Shutdown {
    /// Returns a trigger and the shutdown it starts.
    pub fn new() -> (Trigger, Self) {
        let (sender, receiver) = watch::channel(false);
        (Trigger(sender), Self(receiver))
    }

    /// Completes when the shutdown has started.
    pub async fn started(&self) {
        let mut receiver = self.0.clone();
        // An error means that the trigger is gone, which is a shutdown as well.
        let _ = receiver.wait_for(|started| *started).await;
    }

    /// Says whether the shutdown has started.
    pub fn has_started(&self) -> bool {
        *self.0.borrow() || self.0.has_changed().is_err()
    }
}

/// Starts `trigger` on the first SIGTERM or SIGINT; a second one ends the process with status 130.
///
/// # Errors
/// When the signal handlers cannot be installed.
pub fn on_signals(trigger: Trigger) -> std::io::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::spawn(async move {
        let mut first = true;
        loop {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            if !first {
                tracing::warn!("second signal, ending at once");
                std::process::exit(130);
            }
            tracing::info!("signal received, draining");
            trigger.start();
            first = false;
        }
    });
    Ok(())
}
