//! The only place that talks to the API server: every `kube::Client` and `Api` of the crate is in here.
//!
//! Each file is one concern of the guard's, with plain values going in and out, and a time limit around
//! every call: the client's own retries may take minutes.

pub mod access;
pub mod announcements;
pub mod certificates;
pub mod deployments;
pub mod diagnosis;
pub mod dry_run;
pub mod health;
pub mod installation;
pub mod leases;
pub mod policies;
pub mod reading;
pub mod records;
pub mod rollouts;

use std::{future::Future, path::Path, time::Duration};

use futures::{Stream, StreamExt, stream::BoxStream};
use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
    runtime::watcher,
};

use crate::core::key::Key;

/// The field manager and Event source of everything the guard writes.
pub use crate::core::restore::FIELD_MANAGER;

/// The longest a single call may take.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// Why the API server could not be asked, or what it said.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// No way to the API server is configured.
    #[error("no cluster to talk to: {0}")]
    Config(String),
    /// The API server did not answer in time.
    #[error("{what}: no answer within {seconds} s")]
    Timeout {
        /// What was asked.
        what: String,
        /// How long was waited.
        seconds: u64,
    },
    /// The API server refused, or could not be reached.
    #[error("{what}: {}", said(source))]
    Api {
        /// What was asked.
        what: String,
        /// The client's error.
        source: Box<kube::Error>,
    },
    /// There is no such Deployment.
    #[error("deployment {:?} not found in namespace {:?}", key.name, key.namespace)]
    NotFound {
        /// Which one.
        key: Key,
    },
    /// What came back is not what it should be.
    #[error("{what}: {why}")]
    Unexpected {
        /// What was asked.
        what: String,
        /// What is wrong with the answer.
        why: String,
    },
}

impl ClusterError {
    /// Returns the HTTP status that the API server answered with, where it answered.
    pub fn code(&self) -> Option<u16> {
        match self {
            Self::Api { source, .. } => match source.as_ref() {
                kube::Error::Api(status) => Some(status.code),
                _ => None,
            },
            Self::NotFound { .. } => Some(404),
            _ => None,
        }
    }

    /// Returns what the API server or the client says, without what was asked.
    pub fn message(&self) -> String {
        match self {
            Self::Api { source, .. } => match source.as_ref() {
                kube::Error::Api(status) => status.message.clone(),
                other => with_causes(other),
            },
            other => other.to_string(),
        }
    }
}

/// The message alone of what the API server answered: the client's own text repeats it as a debug dump.
fn said(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => format!("{} ({})", status.message, status.code),
        other => with_causes(other),
    }
}

/// Returns the text of an error and of what caused it: the client's own says "client error (Connect)" and leaves
/// out that the connection was refused.
fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        next = cause.source();
    }
    text
}

/// Follows a watch for ever, with pauses that grow from failure to failure, up to half a minute. The runtime's own
/// backoff starts anew whenever a list begins, and so never grows while every list fails.
fn patiently<K: Send + 'static>(
    stream: impl Stream<Item = Result<watcher::Event<K>, watcher::Error>> + Send + 'static,
) -> BoxStream<'static, Result<watcher::Event<K>, watcher::Error>> {
    futures::stream::unfold((stream.boxed(), 0_u32), |(mut stream, failures)| async move {
        if failures > 0 {
            tokio::time::sleep(pause_after(failures)).await;
        }
        // A list that begins is no success yet: it stays quiet and keeps the count.
        let event = stream.next().await?;
        let failures = match &event {
            Err(_) => failures + 1,
            Ok(watcher::Event::Init) => failures,
            Ok(_) => 0,
        };
        Some((event, (stream, failures)))
    })
    .boxed()
}

/// Half a second, doubled with each failure, half a minute at most.
fn pause_after(failures: u32) -> Duration {
    Duration::from_millis(500 << failures.saturating_sub(1).min(6)).min(Duration::from_secs(30))
}

/// A way to one API server.
#[derive(Clone)]
pub struct Cluster {
    client: Client,
}

impl Cluster {
    /// Connects by the kubeconfig and context given; without either, as the pod's ServiceAccount or by the
    /// kubeconfig of the environment (`KUBECONFIG`, `~/.kube/config`).
    ///
    /// # Errors
    /// When none can be read or used.
    pub async fn connect(kubeconfig: Option<&Path>, context: Option<&str>) -> Result<Self, ClusterError> {
        let unusable = |e: &dyn std::fmt::Display| ClusterError::Config(e.to_string());
        let options =
            KubeConfigOptions { context: context.map(str::to_owned), ..KubeConfigOptions::default() };
        let config = match kubeconfig {
            Some(path) => {
                let file = Kubeconfig::read_from(path).map_err(|e| unusable(&e))?;
                Config::from_custom_kubeconfig(file, &options).await.map_err(|e| unusable(&e))?
            }
            None if context.is_some() => Config::from_kubeconfig(&options).await.map_err(|e| unusable(&e))?,
            None => Config::infer().await.map_err(|e| unusable(&e))?,
        };
        Self::new(config)
    }

    /// Connects by `config`.
    ///
    /// # Errors
    /// When its certificates or credentials cannot be used.
    pub fn new(mut config: Config) -> Result<Self, ClusterError> {
        config.connect_timeout = Some(Duration::from_secs(5));
        let client = Client::try_from(config).map_err(|e| ClusterError::Config(e.to_string()))?;
        Ok(Self { client })
    }

    /// Talks by `client`, such as one over a service that a test has made up.
    pub const fn with_client(client: Client) -> Self {
        Self { client }
    }
}

/// How long a watch lasts until it is begun anew, in seconds. A connection that is broken without a word is noticed when the
/// API server should have ended the watch: with kube's default of nearly five minutes a push, or that a template is Bad, would go
/// unseen for as long.
const WATCH_SECONDS: u32 = 60;

fn watch_config() -> watcher::Config {
    watcher::Config::default().timeout(WATCH_SECONDS)
}

/// Runs one call with the time limit; `what` names it in the error.
async fn call<T>(
    what: impl Into<String>,
    future: impl Future<Output = Result<T, kube::Error>>,
) -> Result<T, ClusterError> {
    call_within(CALL_TIMEOUT, what, future).await
}

/// Like [`call`], with a limit of its own.
async fn call_within<T>(
    limit: Duration,
    what: impl Into<String>,
    future: impl Future<Output = Result<T, kube::Error>>,
) -> Result<T, ClusterError> {
    match tokio::time::timeout(limit, future).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(source)) => Err(ClusterError::Api { what: what.into(), source: Box::new(source) }),
        Err(_) => Err(ClusterError::Timeout { what: what.into(), seconds: limit.as_secs() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_watch_that_keeps_failing_is_tried_less_and_less_often() {
        let lost = || Err(watcher::Error::NoResourceVersion);
        let failing = futures::stream::iter(0..20)
            .flat_map(move |_| futures::stream::iter([Ok(watcher::Event::<()>::Init), lost()]));
        let started = tokio::time::Instant::now();
        let mut watch = patiently(failing);
        let mut errors = Vec::new();
        while let Some(event) = watch.next().await {
            if event.is_err() {
                errors.push(started.elapsed());
            }
        }
        assert_eq!(errors.len(), 20, "no failure is lost");
        let last = errors[19] - errors[18];
        assert!(last >= Duration::from_secs(30), "{last:?}");
    }

    #[test]
    fn the_cause_of_an_error_is_told_with_it() {
        let refused = std::io::Error::new(std::io::ErrorKind::ConnectionRefused, "connection refused");
        let error = kube::Error::Service(Box::new(ClusterError::Config(refused.to_string())));
        assert!(said(&error).ends_with("connection refused"), "{}", said(&error));
    }
}
