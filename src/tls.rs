//! The certificate that is served, and how it is swapped while connections stay open.

use std::{
    fmt,
    path::Path,
    sync::{Arc, Once},
};

use arc_swap::ArcSwapOption;
use rustls::{
    RootCertStore, ServerConfig,
    crypto::{CryptoProvider, ring},
    server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier},
    sign::CertifiedKey,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};

/// Installs ring as the process's crypto provider. Later calls change nothing.
pub fn install_provider() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // An error means that somebody installed one before, which is as good.
        let _ = ring::default_provider().install_default();
    });
}

/// Why a certificate, key or bundle cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The text is not PEM, or holds nothing of the wanted kind.
    #[error("{what}: {why}")]
    Pem {
        /// What was read.
        what: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// Certificate and key do not belong together, or rustls refuses them.
    #[error("certificate and key cannot be used: {0}")]
    Pair(#[from] rustls::Error),
    /// The certificate cannot be parsed.
    #[error("certificate cannot be parsed: {0}")]
    X509(String),
    /// The file of client CAs cannot be read or used.
    #[error("client CA {path}: {why}")]
    ClientCa {
        /// The file.
        path: String,
        /// What is wrong with it.
        why: String,
    },
}

/// A certificate chain and its key, as PEM, checked to belong together.
#[derive(Clone)]
pub struct KeyPair {
    key: Arc<CertifiedKey>,
    certificate_pem: String,
    not_before: i64,
    not_after: i64,
}

impl fmt::Debug for KeyPair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyPair").field("not_after", &self.not_after).finish_non_exhaustive()
    }
}

impl KeyPair {
    /// Parses a chain and its key.
    ///
    /// # Errors
    /// When either is not PEM, is empty, or the key is not that of the first certificate.
    pub fn from_pem(certificate: &str, key: &str) -> Result<Self, TlsError> {
        let chain = parse_certificates(certificate)?;
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes())
            .map_err(|e| TlsError::Pem { what: "private key", why: e.to_string() })?;
        let provider = ring::default_provider();
        let (not_before, not_after) = validity(&chain[0])?;
        let certified = CertifiedKey::from_der(chain, key, &provider)?;
        certified.keys_match()?;
        Ok(Self { key: Arc::new(certified), certificate_pem: certificate.to_owned(), not_before, not_after })
    }

    /// Returns the chain as PEM.
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// Returns when the certificate begins and ends, in seconds since 1970.
    pub fn validity(&self) -> (i64, i64) {
        (self.not_before, self.not_after)
    }
}

/// Returns the certificates in `pem`, at least one.
///
/// # Errors
/// When the text is not PEM or holds no certificate.
pub fn parse_certificates(pem: &str) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let chain = CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|e| TlsError::Pem { what: "certificate", why: e.to_string() })?;
    if chain.is_empty() {
        return Err(TlsError::Pem { what: "certificate", why: "holds no certificate".to_owned() });
    }
    Ok(chain)
}

/// Returns when `certificate` begins and ends, in seconds since 1970.
///
/// # Errors
/// When it cannot be parsed.
pub fn validity(certificate: &CertificateDer<'_>) -> Result<(i64, i64), TlsError> {
    let (_, parsed) =
        x509_parser::parse_x509_certificate(certificate).map_err(|e| TlsError::X509(e.to_string()))?;
    let validity = parsed.validity();
    Ok((validity.not_before.timestamp(), validity.not_after.timestamp()))
}

/// The pair that new handshakes get. Clones share it; open connections keep theirs.
#[derive(Clone, Debug, Default)]
pub struct ServedCertificate(Arc<ArcSwapOption<KeyPair>>);

impl ServedCertificate {
    /// Serves `pair` from the next handshake on. Returns false where it is the one that is served already.
    pub fn swap(&self, pair: KeyPair) -> bool {
        if self.0.load().as_ref().is_some_and(|old| old.certificate_pem == pair.certificate_pem) {
            return false;
        }
        self.0.store(Some(Arc::new(pair)));
        true
    }

    /// Returns the pair that is served.
    pub fn current(&self) -> Option<Arc<KeyPair>> {
        self.0.load_full()
    }

    /// Returns the served chain as PEM.
    pub fn pem(&self) -> Option<String> {
        self.current().map(|pair| pair.certificate_pem.clone())
    }
}

impl ResolvesServerCert for ServedCertificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.load().as_ref().map(|pair| Arc::clone(&pair.key))
    }
}

/// Returns how the webhook speaks TLS: 1.3 and 1.2, HTTP/1.1 alone, no session tickets (the API server
/// never resumes), and, with `client_ca`, only for clients that have a certificate of it.
///
/// # Errors
/// When the file of client CAs cannot be read or used.
pub fn server_config(
    certificate: ServedCertificate,
    client_ca: Option<&Path>,
) -> Result<ServerConfig, TlsError> {
    let provider: Arc<CryptoProvider> = Arc::new(ring::default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?;
    let builder = match client_ca {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let fail = |why: String| TlsError::ClientCa { path: path.display().to_string(), why };
            let pem = std::fs::read_to_string(path).map_err(|e| fail(e.to_string()))?;
            let mut roots = RootCertStore::empty();
            for certificate in parse_certificates(&pem).map_err(|e| fail(e.to_string()))? {
                roots.add(certificate).map_err(|e| fail(e.to_string()))?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                .build()
                .map_err(|e| fail(e.to_string()))?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let mut config = builder.with_cert_resolver(Arc::new(certificate));
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    Ok(config)
}
