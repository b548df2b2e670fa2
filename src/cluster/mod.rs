//! The only place that talks to the API server: every `kube::Client` and `Api` of the crate is in here.
//!
//! Each file is one concern of the guard's, with plain values going in and out, and a time limit around
//! every call: the client's own retries may take minutes.

pub mod access;
pub mod certificates;
pub mod installation;
pub mod policies;

use std::{future::Future, path::Path, time::Duration};

use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};

/// The field manager and Event source of everything the guard writes.
pub const FIELD_MANAGER: &str = "rollout-guard";

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
            _ => None,
        }
    }
}

/// The message alone of what the API server answered: the client's own text repeats it as a debug dump.
fn said(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => format!("{} ({})", status.message, status.code),
        other => other.to_string(),
    }
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
