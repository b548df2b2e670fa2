//! Making certificates and reading them: rcgen writes, x509-parser reads, rustls verifies.

use std::{fmt, sync::Arc};

use jiff::{SignedDuration, Timestamp};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair as SigningKey, KeyUsagePurpose,
};
use rustls::{
    RootCertStore,
    client::{WebPkiServerVerifier, danger::ServerCertVerifier},
    crypto::ring,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use x509_parser::{extensions::GeneralName, prelude::X509Certificate};

use crate::tls::{KeyPair, TlsError, parse_certificates};

/// How long certificates live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lifetimes {
    /// Of a CA.
    pub authority: SignedDuration,
    /// Of a leaf; never beyond the end of its CA.
    pub leaf: SignedDuration,
    /// How far a beginning lies in the past, for API servers whose clock is behind.
    pub backdated: SignedDuration,
}

impl Default for Lifetimes {
    fn default() -> Self {
        Self {
            authority: SignedDuration::from_hours(10 * 365 * 24),
            leaf: SignedDuration::from_hours(90 * 24),
            backdated: SignedDuration::from_mins(10),
        }
    }
}

/// Why a certificate could not be made or read.
#[derive(Debug, thiserror::Error)]
pub enum IssueError {
    /// The key or certificate could not be made.
    #[error("certificate cannot be made: {0}")]
    Make(#[from] rcgen::Error),
    /// What was made or read cannot be used.
    #[error(transparent)]
    Use(#[from] TlsError),
    /// No CA whose key is known.
    #[error("there is no certificate authority to sign with")]
    NoAuthority,
}

/// SHA-256 over a certificate's DER.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fingerprint([u8; 32]);

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, byte) in self.0.iter().enumerate() {
            write!(f, "{}{byte:02X}", if index == 0 { "" } else { ":" })?;
        }
        Ok(())
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02x}{:02x}{:02x}{:02x}", self.0[0], self.0[1], self.0[2], self.0[3])
    }
}

/// One certificate and what the guard reads out of it. Equal where the bytes are.
#[derive(Clone)]
pub struct Certificate {
    der: CertificateDer<'static>,
    /// SHA-256 of it.
    pub fingerprint: Fingerprint,
    /// Whose it is.
    pub subject: String,
    /// Who signed it.
    pub issuer: String,
    /// The serial number, in hexadecimal.
    pub serial: String,
    /// The DNS names and addresses it is for.
    pub names: Vec<String>,
    /// Says whether it may sign others.
    pub authority: bool,
    /// When it begins.
    pub not_before: Timestamp,
    /// When it ends.
    pub not_after: Timestamp,
    public_key: Vec<u8>,
}

impl PartialEq for Certificate {
    fn eq(&self, other: &Self) -> bool {
        self.fingerprint == other.fingerprint
    }
}

impl Eq for Certificate {}

impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?} until {}", self.subject, self.fingerprint, self.not_after)
    }
}

impl Certificate {
    /// Returns the certificates in `pem`, at least one.
    ///
    /// # Errors
    /// When the text is not PEM, holds no certificate, or one that cannot be parsed.
    pub fn parse_all(pem: &str) -> Result<Vec<Self>, TlsError> {
        parse_certificates(pem)?.into_iter().map(Self::parse).collect()
    }

    /// Reads one certificate.
    ///
    /// # Errors
    /// When it cannot be parsed.
    pub fn parse(der: CertificateDer<'static>) -> Result<Self, TlsError> {
        let digest = ::ring::digest::digest(&::ring::digest::SHA256, &der);
        let mut fingerprint = [0; 32];
        fingerprint.copy_from_slice(digest.as_ref());
        let (_, parsed) =
            x509_parser::parse_x509_certificate(&der).map_err(|e| TlsError::X509(e.to_string()))?;
        let moment = |seconds| Timestamp::from_second(seconds).unwrap_or(Timestamp::MAX);
        let (not_before, not_after) = (
            moment(parsed.validity().not_before.timestamp()),
            moment(parsed.validity().not_after.timestamp()),
        );
        let (subject, issuer) = (parsed.subject().to_string(), parsed.issuer().to_string());
        let (serial, names) = (parsed.raw_serial_as_string(), names_of(&parsed));
        let (authority, public_key) = (parsed.is_ca(), parsed.public_key().raw.to_vec());
        Ok(Self {
            fingerprint: Fingerprint(fingerprint),
            subject,
            issuer,
            serial,
            names,
            authority,
            not_before,
            not_after,
            public_key,
            der,
        })
    }

    /// Returns it as PEM.
    pub fn pem(&self) -> String {
        let config = pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF);
        pem::encode_config(&pem::Pem::new("CERTIFICATE", self.der.to_vec()), config)
    }

    /// Says whether `now` lies between its beginning and its end.
    pub fn is_valid(&self, now: Timestamp) -> bool {
        self.not_before <= now && now < self.not_after
    }

    /// Says whether two thirds of its life are over at `now`, or it has not begun.
    pub fn is_due(&self, now: Timestamp) -> bool {
        let life = self.not_after.duration_since(self.not_before);
        now < self.not_before || now.duration_since(self.not_before) >= life / 3 * 2
    }
}

fn names_of(certificate: &X509Certificate<'_>) -> Vec<String> {
    let Ok(Some(names)) = certificate.subject_alternative_name() else { return Vec::new() };
    names
        .value
        .general_names
        .iter()
        .filter_map(|name| match name {
            GeneralName::DNSName(name) => Some((*name).to_owned()),
            GeneralName::IPAddress(bytes) => match bytes.len() {
                4 => <[u8; 4]>::try_from(*bytes).ok().map(|b| std::net::Ipv4Addr::from(b).to_string()),
                16 => <[u8; 16]>::try_from(*bytes).ok().map(|b| std::net::Ipv6Addr::from(b).to_string()),
                _ => None,
            },
            _ => None,
        })
        .collect()
}

/// Writes `certificates` as one PEM text.
pub fn bundle_pem(certificates: &[Certificate]) -> String {
    certificates.iter().map(Certificate::pem).collect()
}

/// Says why a TLS client that trusts `anchors`, and nothing else, would refuse `chain` as `name` at `now`.
///
/// The API server's own verifier looks at the end of a CA, too, which rustls does not: an anchor that is not
/// valid at `now` is left out.
///
/// # Errors
/// The reason, in words.
pub fn verify(
    chain: &[Certificate],
    anchors: &[Certificate],
    name: &str,
    now: Timestamp,
) -> Result<(), String> {
    let valid: Vec<_> = anchors.iter().filter(|a| a.is_valid(now)).collect();
    if valid.is_empty() {
        return Err(if anchors.is_empty() {
            "there is no CA to verify it by".to_owned()
        } else {
            "every CA to verify it by has expired, or has not begun".to_owned()
        });
    }
    verify_at(chain, &valid, name, now)
}

/// Says whether `signer` signed `certificate`, whatever the dates and names.
pub fn is_signed_by(certificate: &Certificate, signer: &Certificate) -> bool {
    let (Ok((_, signed)), Ok((_, by))) = (
        x509_parser::parse_x509_certificate(&certificate.der),
        x509_parser::parse_x509_certificate(&signer.der),
    ) else {
        return false;
    };
    signed.issuer() == by.subject() && signed.verify_signature(Some(by.public_key())).is_ok()
}

fn verify_at(
    chain: &[Certificate],
    anchors: &[&Certificate],
    name: &str,
    now: Timestamp,
) -> Result<(), String> {
    let Some((leaf, intermediates)) = chain.split_first() else {
        return Err("there is no certificate".to_owned());
    };
    // A certificate that is its own CA is fine for the API server, not for rustls.
    if anchors.contains(&leaf) {
        return if !leaf.is_valid(now) {
            Err("it has expired, or has not begun".to_owned())
        } else if !leaf.names.iter().any(|n| n == name) {
            Err(format!("it is not for {name}"))
        } else {
            Ok(())
        };
    }
    let mut roots = RootCertStore::empty();
    for anchor in anchors {
        // One that rustls cannot use verifies nothing; the others may.
        let _ = roots.add(anchor.der.clone());
    }
    let provider = Arc::new(ring::default_provider());
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider)
        .build()
        .map_err(|e| e.to_string())?;
    let server = ServerName::try_from(name.to_owned()).map_err(|e| format!("{name}: {e}"))?;
    let seconds = u64::try_from(now.as_second()).unwrap_or_default();
    let now = UnixTime::since_unix_epoch(std::time::Duration::from_secs(seconds));
    let intermediates: Vec<_> = intermediates.iter().map(|c| c.der.clone()).collect();
    verifier
        .verify_server_cert(&leaf.der, &intermediates, &server, &[], now)
        .map(|_| ())
        .map_err(|e| e.to_string())
}

/// A CA and its key.
#[derive(Clone)]
pub struct Authority {
    certificate: Certificate,
    key_pem: String,
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.certificate.fmt(f)
    }
}

impl Authority {
    /// Makes a new CA.
    ///
    /// # Errors
    /// When the key or the certificate cannot be made.
    pub fn issue(lifetimes: &Lifetimes, now: Timestamp) -> Result<Self, IssueError> {
        let key = SigningKey::generate()?;
        let digest = ::ring::digest::digest(&::ring::digest::SHA256, key.public_key_raw());
        let id: String = digest.as_ref().iter().take(4).map(|byte| format!("{byte:02x}")).collect();
        let mut params = CertificateParams::default();
        // Each CA has a name of its own: a client that finds issuers by name then never tries the wrong one.
        params.distinguished_name = common_name(&format!("rollout-guard CA {id}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        params.not_before = date(before(now, lifetimes.backdated));
        params.not_after = date(after(now, lifetimes.authority));
        let made = params.self_signed(&key)?;
        Ok(Self { certificate: Certificate::parse(made.der().clone())?, key_pem: key.serialize_pem() })
    }

    /// Finds the certificate of `key_pem` among `certificates`.
    ///
    /// # Errors
    /// When the key cannot be read, or belongs to none of them.
    pub fn find(key_pem: &str, certificates: &[Certificate]) -> Result<Self, TlsError> {
        let what = "CA key";
        let key = SigningKey::from_pem(key_pem).map_err(|e| TlsError::Pem { what, why: e.to_string() })?;
        let public = rcgen::PublicKeyData::subject_public_key_info(&key);
        let certificate = certificates
            .iter()
            .find(|certificate| certificate.authority && certificate.public_key == public)
            .ok_or_else(|| TlsError::Pem {
                what,
                why: "belongs to none of the CA certificates".to_owned(),
            })?;
        Ok(Self { certificate: certificate.clone(), key_pem: key_pem.to_owned() })
    }

    /// Returns its certificate.
    pub fn certificate(&self) -> &Certificate {
        &self.certificate
    }

    /// Returns its key as PEM.
    pub fn key_pem(&self) -> &str {
        &self.key_pem
    }

    /// Returns when a leaf that is signed at `now` ends.
    pub fn leaf_end(&self, lifetimes: &Lifetimes, now: Timestamp) -> Timestamp {
        after(now, lifetimes.leaf).min(self.certificate.not_after)
    }

    /// Signs a new leaf for `names`, the first of which is its common name.
    ///
    /// # Errors
    /// When a name is no DNS name, or the key or the certificate cannot be made.
    pub fn sign(&self, names: &[String], lifetimes: &Lifetimes, now: Timestamp) -> Result<Leaf, IssueError> {
        let key = SigningKey::generate()?;
        let mut params = CertificateParams::new(names)?;
        // A common name holds 64 characters at most; clients read the alternative names only.
        let common = names.iter().find(|name| name.len() <= 64).map_or("rollout-guard", String::as_str);
        params.distinguished_name = common_name(common);
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        params.not_before = date(before(now, lifetimes.backdated).max(self.certificate.not_before));
        params.not_after = date(self.leaf_end(lifetimes, now));
        let authority_key = SigningKey::from_pem(&self.key_pem)?;
        let issuer = Issuer::from_ca_cert_der(&self.certificate.der, authority_key)?;
        let made = params.signed_by(&key, &issuer)?;
        Ok(Leaf::new(&made.pem(), &key.serialize_pem(), std::slice::from_ref(&self.certificate))?)
    }
}

/// A certificate to serve, its key, and the CA that vouches for it.
#[derive(Clone)]
pub struct Leaf {
    pair: KeyPair,
    chain: Vec<Certificate>,
    key_pem: String,
    issuer: Certificate,
}

impl fmt::Debug for Leaf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} by {:?}", self.certificate(), self.issuer.fingerprint)
    }
}

impl Leaf {
    /// Reads a chain and its key, and finds who among `anchors` vouches for it, whatever the time.
    ///
    /// # Errors
    /// When they cannot be read, do not belong together, name nobody, or none of `anchors` vouches for them.
    pub fn new(certificate: &str, key: &str, anchors: &[Certificate]) -> Result<Self, TlsError> {
        let pair = KeyPair::from_pem(certificate, key)?;
        let chain = Certificate::parse_all(certificate)?;
        let refused = |why: &str| TlsError::Pem { what: "certificate", why: why.to_owned() };
        let Some(leaf) = chain.first() else { return Err(refused("holds no certificate")) };
        let Some(name) = leaf.names.first() else { return Err(refused("is for no name")) };
        let issuer = anchors
            .iter()
            .find(|anchor| verify_at(&chain, &[*anchor], name, leaf.not_before).is_ok())
            .cloned()
            .ok_or_else(|| refused("is signed by none of the CA certificates"))?;
        Ok(Self { pair, key_pem: key.to_owned(), chain, issuer })
    }

    /// Returns what is served.
    pub fn pair(&self) -> &KeyPair {
        &self.pair
    }

    /// Returns the certificate itself.
    pub fn certificate(&self) -> &Certificate {
        // `new` is the only way to make one, and it refuses an empty chain.
        &self.chain[0]
    }

    /// Returns the chain.
    pub fn chain(&self) -> &[Certificate] {
        &self.chain
    }

    /// Returns the key as PEM.
    pub fn key_pem(&self) -> &str {
        &self.key_pem
    }

    /// Returns the CA that vouches for it.
    pub fn issuer(&self) -> &Certificate {
        &self.issuer
    }

    /// Says whether a client could accept it at `now`, going by the dates.
    pub fn is_alive(&self, now: Timestamp) -> bool {
        self.certificate().is_valid(now) && self.issuer.is_valid(now)
    }

    /// Says whether it is for all of `names`.
    pub fn is_for(&self, names: &[String]) -> bool {
        names.iter().all(|name| self.certificate().names.contains(name))
    }
}

fn common_name(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::CommonName, name);
    distinguished
}

/// Returns `moment + duration`, or the last moment there is.
pub fn after(moment: Timestamp, duration: SignedDuration) -> Timestamp {
    moment.checked_add(duration).unwrap_or(Timestamp::MAX)
}

fn before(moment: Timestamp, duration: SignedDuration) -> Timestamp {
    moment.checked_sub(duration).unwrap_or(Timestamp::MIN)
}

fn date(moment: Timestamp) -> time::OffsetDateTime {
    time::OffsetDateTime::from_unix_timestamp(moment.as_second()).unwrap_or(time::OffsetDateTime::UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names() -> Vec<String> {
        vec!["guard.rollout-guard.svc".to_owned(), "guard.rollout-guard.svc.cluster.local".to_owned()]
    }

    fn now() -> Timestamp {
        "2026-11-23T12:00:00Z".parse().expect("a time")
    }

    #[test]
    fn a_leaf_is_accepted_for_its_names_by_its_ca_while_both_live() {
        let lifetimes = Lifetimes::default();
        let ca = Authority::issue(&lifetimes, now()).expect("issued");
        let other = Authority::issue(&lifetimes, now()).expect("issued");
        let leaf = ca.sign(&names(), &lifetimes, now()).expect("signed");
        let anchors = [other.certificate().clone(), ca.certificate().clone()];
        for name in names() {
            verify(leaf.chain(), &anchors, &name, now()).expect("verifies");
        }
        assert!(verify(leaf.chain(), &anchors, "other.svc", now()).is_err());
        assert!(verify(leaf.chain(), &anchors[..1], &names()[0], now()).is_err());
        let end = after(now(), lifetimes.leaf + SignedDuration::from_secs(1));
        assert!(verify(leaf.chain(), &anchors, &names()[0], end).is_err(), "after its end");
        let behind = before(now(), SignedDuration::from_mins(9));
        verify(leaf.chain(), &anchors, &names()[0], behind).expect("a clock 9 minutes behind");
    }

    #[test]
    fn a_leaf_never_outlives_its_ca() {
        let lifetimes = Lifetimes { authority: SignedDuration::from_hours(1), ..Lifetimes::default() };
        let ca = Authority::issue(&lifetimes, now()).expect("issued");
        let leaf = ca.sign(&names(), &lifetimes, now()).expect("signed");
        assert_eq!(leaf.certificate().not_after, ca.certificate().not_after);
    }

    #[test]
    fn a_key_finds_its_certificate_and_no_other() {
        let lifetimes = Lifetimes::default();
        let ca = Authority::issue(&lifetimes, now()).expect("issued");
        let other = Authority::issue(&lifetimes, now()).expect("issued");
        let both = [other.certificate().clone(), ca.certificate().clone()];
        assert_eq!(Authority::find(ca.key_pem(), &both).expect("found").certificate(), ca.certificate());
        assert!(Authority::find(ca.key_pem(), &both[..1]).is_err());
    }

    #[test]
    fn pem_survives_a_round_trip() {
        let ca = Authority::issue(&Lifetimes::default(), now()).expect("issued");
        let again = Certificate::parse_all(&ca.certificate().pem()).expect("parses");
        assert_eq!(again, [ca.certificate().clone()]);
    }
}
