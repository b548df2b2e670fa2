//! The guard's own certificates, kept right: read all three objects, take one step, look again.
//!
//! Level-triggered. The watches only say that it is time to look; what is done follows from what is read
//! then. Every replica does the same, nobody leads: who loses a race reads what the winner wrote.

use std::time::Duration;

use futures::StreamExt;
use jiff::{SignedDuration, Timestamp};

use super::{
    Requirements, Settings, Upkeep,
    issue::{Certificate, IssueError, Leaf, bundle_pem},
    plan::{Allowance, Carried, Refusal, Step, Stored, Terms, View, apply, keys, may_serve, plan},
    readiness::{Finding, Judge},
};
use crate::{
    cluster::{
        Cluster, ClusterError,
        certificates::{Bundles, Configuration},
    },
    shutdown::Shutdown,
    telemetry::Metrics,
    tls::ServedCertificate,
};

/// After so many steps or lost races in a row it is left for the next look.
const MAX_STEPS: usize = 8;

/// A change is looked at at once, those that follow within so long are looked at together.
const COALESCE: Duration = Duration::from_millis(250);

/// Why a look at the certificates did not end well.
#[derive(Debug, thiserror::Error)]
enum KeepError {
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    #[error(transparent)]
    Issue(#[from] IssueError),
    #[error("the Secret changes too often")]
    Restless,
}

/// Keeps the guard's own certificates until the shutdown starts: the Secret, the caBundle of both
/// configurations, and the pair that is served. Trouble is logged, counted and tried again.
pub async fn keep_own(
    settings: Settings,
    cluster: Cluster,
    served: ServedCertificate,
    requirements: Requirements,
    metrics: Metrics,
    shutdown: Shutdown,
) {
    let upkeep = Upkeep { served, requirements, metrics };
    let mut changes = cluster.certificate_changes(
        Some((&settings.namespace, &settings.secret)),
        &[settings.validating(), settings.mutating()],
    );
    let mut keeper = Keeper::new(settings, cluster, upkeep);
    loop {
        let earliest = tokio::time::Instant::now() + COALESCE;
        let pause = tokio::select! {
            () = shutdown.started() => return,
            pause = keeper.look() => pause,
        };
        tokio::select! {
            () = shutdown.started() => return,
            () = tokio::time::sleep(pause) => {}
            Some(()) = changes.next() => {
                tokio::time::sleep_until(earliest).await;
                while let Some(Some(())) = futures::FutureExt::now_or_never(changes.next()) {}
            }
        }
    }
}

/// One configuration and what was last read of it.
struct Target {
    configuration: Configuration,
    bundles: Option<Bundles>,
    /// Why `bundles` is `None`.
    why: String,
    allowance: Allowance,
}

struct Keeper {
    settings: Settings,
    terms: Terms,
    names: Vec<String>,
    cluster: Cluster,
    upkeep: Upkeep,
    targets: [Target; 2],
    carried: Carried,
    secret_allowance: Allowance,
    remembered: Option<Stored>,
    serving: Option<Leaf>,
    judge: Judge,
    failures: u32,
    complaint: Option<String>,
    damage: Vec<String>,
}

impl Keeper {
    fn new(settings: Settings, cluster: Cluster, upkeep: Upkeep) -> Self {
        let target = |configuration| Target {
            configuration,
            bundles: None,
            why: "not read yet".to_owned(),
            allowance: Allowance::new(settings.write_every),
        };
        let write_every = settings.write_every;
        Self {
            terms: settings.terms,
            names: settings.names(),
            targets: [target(settings.validating()), target(settings.mutating())],
            settings,
            cluster,
            upkeep,
            carried: Carried::default(),
            secret_allowance: Allowance::new(write_every),
            remembered: None,
            serving: None,
            judge: Judge::default(),
            failures: 0,
            complaint: None,
            damage: Vec::new(),
        }
    }

    /// Looks once and sets right what is wrong. Returns how long to wait for the next look.
    async fn look(&mut self) -> Duration {
        let result = self.set_right().await;
        let now = Timestamp::now();
        self.tell(now);
        match result {
            Ok(pause) => {
                self.failures = 0;
                if self.complaint.take().is_some() {
                    tracing::info!("certificates are kept again");
                }
                let pause = Duration::try_from(pause).unwrap_or_default();
                pause.clamp(Duration::from_millis(100), self.settings.recheck)
            }
            Err(error) => {
                self.failures = self.failures.saturating_add(1);
                self.upkeep.metrics.certificate_errors.inc();
                let text = error.to_string();
                if self.complaint.as_ref() != Some(&text) {
                    tracing::warn!(error = %text, "certificates could not be kept, it is tried again");
                    self.complaint = Some(text);
                }
                backoff(self.failures, now).min(self.settings.recheck)
            }
        }
    }

    /// Returns the longest time after which it must be looked again.
    async fn set_right(&mut self) -> Result<SignedDuration, KeepError> {
        // The configurations come first: a write of them is refused when they changed since, and so a Secret
        // that is read after them is never older than what is written over.
        let unread = self.read_configurations().await;
        let (stored, delayed) = self.settle_secret().await?;
        let delayed = delayed.into_iter().chain(self.publish(&stored).await?);
        self.serve(&stored);
        if let Some(error) = unread {
            return Err(error.into());
        }
        let now = Timestamp::now();
        // What waits for a CA to settle goes on right when it has.
        let waiting = [
            stored.next.as_ref().map(|next| next.certificate()),
            stored.leaf.as_ref().map(Leaf::issuer).filter(|_| self.is_behind(&stored)),
        ];
        let settled = waiting
            .into_iter()
            .flatten()
            .filter_map(|certificate| self.carried.settles_at(certificate, self.terms.settle))
            .map(|moment| moment.duration_since(now))
            // What has settled for longer waits for something else.
            .filter(|pause| *pause > SignedDuration::from_secs(-1));
        let recheck = SignedDuration::try_from(self.settings.recheck).unwrap_or(SignedDuration::MAX);
        Ok(settled.chain(delayed).min().unwrap_or(recheck))
    }

    fn is_behind(&self, stored: &Stored) -> bool {
        let print = |leaf: &Leaf| leaf.certificate().fingerprint;
        stored.leaf.as_ref().map(print) != self.serving.as_ref().map(print)
    }

    /// Reads what both configurations carry. Returns the last error.
    async fn read_configurations(&mut self) -> Option<ClusterError> {
        let mut unread = None;
        for target in &mut self.targets {
            target.bundles = None;
            match self.cluster.ca_bundles(&target.configuration).await {
                Ok(Some(bundles)) => target.bundles = Some(bundles),
                Ok(None) => target.why = format!("{} does not exist", target.configuration),
                Err(error) => {
                    target.why = error.to_string();
                    unread = Some(error);
                }
            }
        }
        self.observe();
        unread
    }

    fn observe(&mut self) {
        let read: Vec<_> = self.targets.iter().filter_map(|target| target.bundles.as_ref()).collect();
        let webhooks: Vec<_> =
            read.iter().flat_map(|bundles| &bundles.webhooks).map(|(_, pem)| certificates_in(pem)).collect();
        self.carried.observe(&webhooks, read.len() == self.targets.len(), Timestamp::now());
    }

    /// Brings the Secret to where there is nothing to do. Returns its contents, and how long to wait where
    /// more is to be done than may be written now.
    async fn settle_secret(&mut self) -> Result<(Stored, Option<SignedDuration>), KeepError> {
        let (namespace, name) = (self.settings.namespace.clone(), self.settings.secret.clone());
        let mut secret = self.cluster.certificate_secret(&namespace, &name).await?;
        for _ in 0..MAX_STEPS {
            let now = Timestamp::now();
            let stored = secret.as_ref().map(|secret| Stored::parse(&secret.data()));
            self.complain_of(stored.as_ref());
            let view = View {
                stored: stored.as_ref(),
                remembered: self.remembered.as_ref(),
                serving: self.serving.as_ref(),
                carried: &self.carried,
                names: &self.names,
            };
            let step = plan(&view, &self.terms, now);
            if step == Step::Keep {
                let stored = stored.unwrap_or_default();
                self.remembered = Some(stored.clone());
                return Ok((stored, None));
            }
            if let Err(Refusal { wait, first }) = self.secret_allowance.take(now) {
                if first {
                    self.upkeep.metrics.certificate_errors.inc();
                    tracing::warn!(
                        secret = %name, ?step,
                        "something else keeps changing the Secret of the certificates, it is written less often"
                    );
                }
                // What can be used of it is used all the same.
                let usable = stored.filter(|stored| stored.live_leaf(now).is_some());
                let stored = usable.or_else(|| self.remembered.clone()).unwrap_or_default();
                return Ok((stored, Some(wait)));
            }
            let data = apply(step, &view, &self.terms, now)?.data();
            let written = match &secret {
                None => self.cluster.create_certificate_secret(&namespace, &name, data).await?,
                Some(read) => self.cluster.replace_certificate_secret(read, &keys::ALL, data).await?,
            };
            secret = match written {
                Some(written) => {
                    tracing::info!(secret = %name, "{}", step.describe());
                    Some(written)
                }
                None => self.cluster.certificate_secret(&namespace, &name).await?,
            };
        }
        Err(KeepError::Restless)
    }

    /// Logs and counts what is wrong with the Secret, once for each way it is wrong.
    fn complain_of(&mut self, stored: Option<&Stored>) {
        let damage = match stored {
            Some(stored) => stored.damage.clone(),
            None if self.remembered.is_some() => vec!["it was deleted".to_owned()],
            None => Vec::new(),
        };
        if !damage.is_empty() && damage != self.damage {
            self.upkeep.metrics.certificate_errors.inc();
            tracing::warn!(
                secret = %self.settings.secret, damage = %damage.join("; "),
                "the Secret of the certificates cannot be used as it is; what is served stays"
            );
        }
        self.damage = damage;
    }

    /// Writes the bundle where it differs. Returns how long to wait for what may not be written now.
    async fn publish(&mut self, stored: &Stored) -> Result<Vec<SignedDuration>, KeepError> {
        if stored.bundle.is_empty() {
            return Ok(Vec::new());
        }
        let wanted = bundle_pem(&stored.bundle);
        let (mut delayed, mut failed) = (Vec::new(), None);
        for target in &mut self.targets {
            let Some(read) = &target.bundles else { continue };
            if read.webhooks.iter().all(|(_, bundle)| bundle == wanted.as_bytes()) {
                continue;
            }
            if let Err(Refusal { wait, first }) = target.allowance.take(Timestamp::now()) {
                if first {
                    self.upkeep.metrics.certificate_errors.inc();
                    tracing::warn!(
                        configuration = %target.configuration,
                        "something else keeps changing the caBundle, it is written less often"
                    );
                }
                delayed.push(wait);
                continue;
            }
            match self.cluster.publish_ca_bundle(&target.configuration, read, &wanted).await {
                Ok(Some(bundles)) => {
                    self.upkeep.metrics.ca_bundle_writes.inc();
                    tracing::info!(configuration = %target.configuration, "wrote the caBundle");
                    target.bundles = Some(bundles);
                }
                // It changed since it was read: look again at once.
                Ok(None) => delayed.push(SignedDuration::ZERO),
                Err(error) => failed = Some(error),
            }
        }
        self.observe();
        match failed {
            Some(error) => Err(error.into()),
            None => Ok(delayed),
        }
    }

    /// Goes over to the leaf of the Secret, if that loses no call.
    fn serve(&mut self, stored: &Stored) {
        let now = Timestamp::now();
        let Some(leaf) = stored.leaf.as_ref().filter(|_| self.is_behind(stored)) else { return };
        if !may_serve(leaf, self.serving.as_ref(), &self.carried, self.terms.settle, now) {
            return;
        }
        let first = self.serving.is_none();
        if self.upkeep.served.swap(leaf.pair().clone()) && !first {
            self.upkeep.metrics.certificate_reloads.inc();
        }
        tracing::info!(
            not_after = %leaf.certificate().not_after, fingerprint = %leaf.certificate().fingerprint,
            "serving a new certificate"
        );
        self.serving = Some(leaf.clone());
    }

    /// Tells readiness and metrics how things are.
    fn tell(&mut self, now: Timestamp) {
        let Some(serving) = &self.serving else {
            let why = self.complaint.as_deref().unwrap_or("none is loaded yet");
            return self.upkeep.requirements.certificates.unmet(why);
        };
        #[allow(clippy::cast_precision_loss, reason = "seconds since 1970 are far below 2^52")]
        self.upkeep.metrics.certificate_expiry.set(serving.certificate().not_after.as_second() as f64);
        if serving.is_alive(now) {
            self.upkeep.requirements.certificates.met();
        } else {
            let why = format!("the certificate ended at {}", serving.certificate().not_after);
            self.upkeep.requirements.certificates.unmet(why);
        }
        let findings = self.targets.iter().map(|target| match &target.bundles {
            None if target.why.ends_with("does not exist") => Finding::Missing(target.why.clone()),
            None => Finding::Unknown(target.why.clone()),
            Some(bundles) => {
                let lacks = |(_, pem): &&(String, Vec<u8>)| !certificates_in(pem).contains(serving.issuer());
                match bundles.webhooks.iter().find(lacks) {
                    None if !bundles.webhooks.is_empty() => Finding::Right,
                    None => Finding::Wrong(format!("{} has no webhooks", target.configuration)),
                    Some((webhook, _)) => Finding::Wrong(format!(
                        "{}: the caBundle of {webhook} does not hold the CA of the served certificate",
                        target.configuration
                    )),
                }
            }
        });
        self.judge.judge(&findings.collect::<Vec<_>>(), &self.upkeep.requirements.ca_bundle, now);
    }
}

/// Returns the certificates in a caBundle; none where it cannot be read.
pub(super) fn certificates_in(pem: &[u8]) -> Vec<Certificate> {
    std::str::from_utf8(pem).ok().and_then(|pem| Certificate::parse_all(pem).ok()).unwrap_or_default()
}

/// Half a second, doubled with each failure up to half a minute, and up to half as much again so that the
/// replicas do not all come at once.
fn backoff(failures: u32, now: Timestamp) -> Duration {
    let base =
        Duration::from_millis(500 << failures.clamp(1, 7).saturating_sub(1)).min(Duration::from_secs(30));
    base + base.mul_f64(f64::from(now.subsec_nanosecond().unsigned_abs() % 1000) / 2000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backoff_grows_to_half_a_minute_and_a_bit() {
        let now = Timestamp::from_second(1).expect("a time");
        assert_eq!(backoff(1, now), Duration::from_millis(500));
        assert_eq!(backoff(3, now), Duration::from_secs(2));
        assert_eq!(backoff(100, now), Duration::from_secs(30));
    }
}
