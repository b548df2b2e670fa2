//! Certificates that something else makes and a volume brings: followed by content, every few seconds.
//!
//! A Secret volume is swapped by a rename of the symlink `..data`, of which a watch on the files says
//! nothing; reading twenty kilobytes now and then costs nothing.

use std::{
    io::Read,
    path::{Path, PathBuf},
    time::Duration,
};

use jiff::Timestamp;

use super::{
    Requirements, Settings, Upkeep,
    issue::{Certificate, verify},
    keep::certificates_in,
    readiness::{Finding, Judge},
};
use crate::{
    cluster::Cluster,
    shutdown::Shutdown,
    telemetry::Metrics,
    tls::{KeyPair, ServedCertificate, TlsError},
};

/// Longer than any certificate or key.
const MAX_FILE: u64 = 1 << 20;

/// How soon a pair that did not fit is read again: the volume was being swapped.
const RETRY: Duration = Duration::from_millis(500);

/// Why the mounted certificate could not be loaded.
#[derive(Debug, thiserror::Error)]
enum MountedError {
    #[error("{path}: {source}")]
    Read { path: String, source: std::io::Error },
    #[error("{dir}: {source}")]
    Use { dir: String, source: TlsError },
}

/// Follows `tls.crt` and `tls.key` in `dir` until the shutdown starts and serves what is there. What cannot
/// be used never replaces what is served. The caBundle is somebody else's to write; it is only looked at.
pub async fn keep_mounted(
    dir: PathBuf,
    settings: Settings,
    cluster: Cluster,
    served: ServedCertificate,
    requirements: Requirements,
    metrics: Metrics,
    shutdown: Shutdown,
) {
    let upkeep = Upkeep { served, requirements, metrics };
    let mut follower =
        Follower { dir, upkeep, complaint: None, attempts: 0, judge: Judge::default(), bundles: None };
    loop {
        let pause = tokio::select! {
            () = shutdown.started() => return,
            pause = follower.look(&settings, &cluster) => pause,
        };
        tokio::select! {
            () = shutdown.started() => return,
            () = tokio::time::sleep(pause) => {}
        }
    }
}

struct Follower {
    dir: PathBuf,
    upkeep: Upkeep,
    complaint: Option<String>,
    attempts: u32,
    judge: Judge,
    /// When the caBundles were last looked at and which certificate was served then.
    bundles: Option<(tokio::time::Instant, Option<String>)>,
}

impl Follower {
    async fn look(&mut self, settings: &Settings, cluster: &Cluster) -> Duration {
        let loaded = self.load().await;
        self.tell(Timestamp::now());
        let served = self.upkeep.served.pem();
        // Until the caBundle is right it is looked at each time; then once a minute, and for a new certificate.
        let due =
            self.bundles.as_ref().is_none_or(|(at, of)| at.elapsed() >= settings.recheck || *of != served);
        if let Some(pem) = served.as_deref().filter(|_| due) {
            let right = self.look_at_bundles(pem, settings, cluster).await;
            self.bundles = right.then(|| (tokio::time::Instant::now(), served));
        }
        if loaded { settings.poll } else { RETRY.min(settings.poll) }
    }

    /// Returns false where it is to be tried again at once.
    async fn load(&mut self) -> bool {
        let dir = self.dir.clone();
        let read = tokio::task::spawn_blocking(move || read_pair(&dir)).await;
        let error = match read {
            Ok(Ok(pair)) => {
                let first = self.upkeep.served.current().is_none();
                let not_after = pair.validity().1;
                if self.upkeep.served.swap(pair) {
                    if !first {
                        self.upkeep.metrics.certificate_reloads.inc();
                    }
                    tracing::info!(dir = %self.dir.display(), not_after, "serving a new certificate");
                }
                self.attempts = 0;
                self.complaint = None;
                return true;
            }
            Ok(Err(error)) => error.to_string(),
            Err(error) => error.to_string(),
        };
        self.attempts = self.attempts.saturating_add(1);
        // The first failure may be a swap that is under way.
        if self.attempts > 1 && self.complaint.as_ref() != Some(&error) {
            self.upkeep.metrics.certificate_errors.inc();
            tracing::warn!(%error, "the mounted certificate cannot be used; what is served stays");
            self.complaint = Some(error);
        }
        self.attempts > 3
    }

    fn tell(&self, now: Timestamp) {
        let requirement = &self.upkeep.requirements.certificates;
        match self.upkeep.served.current() {
            Some(pair) => {
                let (_, not_after) = pair.validity();
                #[allow(clippy::cast_precision_loss, reason = "seconds since 1970 are far below 2^52")]
                self.upkeep.metrics.certificate_expiry.set(not_after as f64);
                if now.as_second() < not_after {
                    requirement.met();
                } else {
                    requirement.unmet("the mounted certificate has expired");
                }
            }
            None => requirement.unmet(self.complaint.as_deref().unwrap_or("none is loaded yet")),
        }
    }

    /// Says whether both configurations trust the certificate that is served.
    async fn look_at_bundles(&mut self, pem: &str, settings: &Settings, cluster: &Cluster) -> bool {
        let chain = Certificate::parse_all(pem).unwrap_or_default();
        let name = settings.server_name();
        let mut findings = Vec::new();
        for configuration in [settings.validating(), settings.mutating()] {
            findings.push(match cluster.ca_bundles(&configuration).await {
                Err(error) => Finding::Unknown(error.to_string()),
                Ok(None) => Finding::Missing(format!("{configuration} does not exist")),
                Ok(Some(bundles)) if bundles.webhooks.is_empty() => {
                    Finding::Wrong(format!("{configuration} has no webhooks"))
                }
                Ok(Some(bundles)) => {
                    let refusals = bundles.webhooks.iter().filter_map(|(webhook, bundle)| {
                        verify(&chain, &certificates_in(bundle), &name, Timestamp::now())
                            .err()
                            .map(|why| format!("{configuration}: caBundle of {webhook}: {why}"))
                    });
                    refusals.map(Finding::Wrong).next().unwrap_or(Finding::Right)
                }
            });
        }
        self.judge.judge(&findings, &self.upkeep.requirements.ca_bundle, Timestamp::now());
        findings.iter().all(|finding| *finding == Finding::Right)
    }
}

/// Reads the pair from one and the same version of the volume, where it is a Secret's.
fn read_pair(dir: &Path) -> Result<KeyPair, MountedError> {
    let dir = dir.join("..data").canonicalize().unwrap_or_else(|_| dir.to_owned());
    let certificate = read(&dir.join("tls.crt"))?;
    let key = read(&dir.join("tls.key"))?;
    KeyPair::from_pem(&certificate, &key)
        .map_err(|source| MountedError::Use { dir: dir.display().to_string(), source })
}

fn read(path: &Path) -> Result<String, MountedError> {
    let fail = |source| MountedError::Read { path: path.display().to_string(), source };
    let mut text = String::new();
    std::fs::File::open(path).map_err(fail)?.take(MAX_FILE).read_to_string(&mut text).map_err(fail)?;
    Ok(text)
}
