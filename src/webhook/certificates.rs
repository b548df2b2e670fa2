//! The certificate that the webhook serves, and the caBundle by which the API server trusts it.
//!
//! Either the guard makes its own ([`keep_own`]): a CA and a leaf in one Secret that all replicas share,
//! and the caBundle of both webhook configurations. Or something else does, such as cert-manager, and the
//! guard follows the files it mounts ([`keep_mounted`]).

pub mod issue;
mod keep;
mod mounted;
pub mod plan;
mod readiness;

use std::time::Duration;

use jiff::SignedDuration;

use self::plan::Terms;
pub use self::{keep::keep_own, mounted::keep_mounted};
use crate::{
    admin::Requirement, cluster::certificates::Configuration, telemetry::Metrics, tls::ServedCertificate,
};

/// Where the guard's certificates and webhook configurations are, and how often they are looked at.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The namespace of the guard.
    pub namespace: String,
    /// The Service that the API server calls.
    pub service: String,
    /// The Secret of the guard's own certificates.
    pub secret: String,
    /// The name of the ValidatingWebhookConfiguration.
    pub validating_configuration: String,
    /// The name of the MutatingWebhookConfiguration.
    pub mutating_configuration: String,
    /// How long certificates live, and how long a new CA is published before it signs.
    pub terms: Terms,
    /// The longest time without a look at the cluster, whatever the watches say or do not say.
    pub recheck: Duration,
    /// How often something is written that somebody else keeps changing, after the first few times.
    pub write_every: SignedDuration,
    /// How often mounted files are read.
    pub poll: Duration,
}

impl Settings {
    /// Returns the settings for objects of these names, with certificates of 90 days by a CA of 10 years, a
    /// look at the cluster at least every 50 s and at mounted files every 10 s, and one write each 10 s of
    /// what somebody else keeps changing.
    pub fn new(
        namespace: impl Into<String>,
        service: impl Into<String>,
        secret: impl Into<String>,
        validating_configuration: impl Into<String>,
        mutating_configuration: impl Into<String>,
    ) -> Self {
        Self {
            namespace: namespace.into(),
            service: service.into(),
            secret: secret.into(),
            validating_configuration: validating_configuration.into(),
            mutating_configuration: mutating_configuration.into(),
            terms: Terms { settle: SignedDuration::from_secs(10), ..Terms::default() },
            recheck: Duration::from_secs(50),
            write_every: SignedDuration::from_secs(10),
            poll: Duration::from_secs(10),
        }
    }

    /// Returns the name that the API server asks for.
    pub fn server_name(&self) -> String {
        format!("{}.{}.svc", self.service, self.namespace)
    }

    /// Returns the DNS names of the certificate.
    pub fn names(&self) -> Vec<String> {
        let server = self.server_name();
        let full = format!("{server}.cluster.local");
        vec![server, full, format!("{}.{}", self.service, self.namespace)]
    }

    fn validating(&self) -> Configuration {
        Configuration::Validating(self.validating_configuration.clone())
    }

    fn mutating(&self) -> Configuration {
        Configuration::Mutating(self.mutating_configuration.clone())
    }
}

/// What certificates make ready.
#[derive(Clone, Debug)]
pub struct Requirements {
    /// A certificate is loaded.
    pub certificates: Requirement,
    /// Both configurations trust it.
    pub ca_bundle: Requirement,
}

/// What the keeping of certificates has an effect on.
struct Upkeep {
    served: ServedCertificate,
    requirements: Requirements,
    metrics: Metrics,
}
