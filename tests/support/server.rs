//! The real TLS port and the real plain port on the loopback, and a client that speaks HTTP by hand.

use std::{
    future::Future,
    io,
    net::SocketAddr,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair as Key};
use rollout_guard::{
    admin::{self, Admin, Readiness},
    shutdown::{Shutdown, Trigger},
    tls::{self, KeyPair, ServedCertificate},
    webhook::server::{self, Limits},
};
use rustls::{ClientConfig, RootCertStore, SupportedProtocolVersion};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::{Door, fixture};

/// The longest that anything may take that is to happen soon.
pub const SOON: Duration = Duration::from_secs(10);

/// Waits for `future`, not for ever.
pub async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(SOON, future).await.unwrap_or_else(|_| panic!("{what}: not within {SOON:?}"))
}

/// Waits until `holds`.
pub async fn until<F: Future<Output = bool>>(what: &str, mut holds: impl FnMut() -> F) {
    let start = Instant::now();
    while !holds().await {
        assert!(start.elapsed() < SOON, "{what}: not within {SOON:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A CA of a test.
pub struct Ca {
    pem: String,
    issuer: Issuer<'static, Key>,
}

impl Ca {
    pub fn new() -> Self {
        let key = Key::generate().expect("a key");
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).expect("signed").pem();
        Self { pem, issuer: Issuer::new(params, key) }
    }

    pub fn pem(&self) -> &str {
        &self.pem
    }

    fn leaf(&self, purpose: ExtendedKeyUsagePurpose) -> (String, String) {
        let key = Key::generate().expect("a key");
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).expect("a name");
        params.extended_key_usages = vec![purpose];
        let certificate = params.signed_by(&key, &self.issuer).expect("signed");
        (certificate.pem(), key.serialize_pem())
    }

    /// What the port serves.
    pub fn server_pair(&self) -> KeyPair {
        let (certificate, key) = self.leaf(ExtendedKeyUsagePurpose::ServerAuth);
        KeyPair::from_pem(&certificate, &key).expect("a pair")
    }

    fn roots(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        roots.add(der(&self.pem)).expect("usable");
        roots
    }

    /// A client that trusts this CA.
    pub fn client(&self) -> ClientConfig {
        ClientConfig::builder().with_root_certificates(self.roots()).with_no_client_auth()
    }

    /// A client that trusts this CA and speaks one version alone.
    pub fn client_of(&self, version: &'static SupportedProtocolVersion) -> ClientConfig {
        ClientConfig::builder_with_protocol_versions(&[version])
            .with_root_certificates(self.roots())
            .with_no_client_auth()
    }

    /// A client that trusts this CA and shows a certificate of another.
    pub fn client_with_certificate_of(&self, other: &Self) -> ClientConfig {
        let (certificate, key) = other.leaf(ExtendedKeyUsagePurpose::ClientAuth);
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).expect("a key");
        ClientConfig::builder()
            .with_root_certificates(self.roots())
            .with_client_auth_cert(vec![der(&certificate)], key)
            .expect("a pair")
    }
}

/// The first certificate of a PEM text.
pub fn der(pem: &str) -> CertificateDer<'static> {
    CertificateDer::from_pem_slice(pem.as_bytes()).expect("a certificate")
}

pub const LIMITS: Limits = Limits {
    connections: 100,
    header_timeout: Duration::from_millis(400),
    drain_delay: Duration::from_millis(0),
    drain_timeout: Duration::from_secs(5),
};

/// Both ports of a running guard.
pub struct Guard {
    pub address: SocketAddr,
    pub admin: SocketAddr,
    pub door: Door,
    pub ca: Ca,
    pub served: ServedCertificate,
    pub trigger: Trigger,
    pub task: JoinHandle<()>,
    _stop_admin: Trigger,
}

impl Guard {
    pub async fn start(door: Door, limits: Limits) -> Self {
        Self::start_with(door, limits, None).await
    }

    pub async fn start_with(door: Door, limits: Limits, client_ca: Option<&Path>) -> Self {
        tls::install_provider();
        let (ca, served) = (Ca::new(), ServedCertificate::default());
        served.swap(ca.server_pair());
        let config = tls::server_config(served.clone(), client_ca).expect("configured");
        let readiness = Readiness::default();
        let serving = readiness.require("serving");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let admin_listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let (address, admin) =
            (listener.local_addr().expect("bound"), admin_listener.local_addr().expect("bound"));
        let (stop_admin, admin_stopped) = Shutdown::new();
        let plain = Admin::new(readiness, door.metrics.registry(), Some(served.clone()));
        tokio::spawn(admin::serve(admin_listener, plain, admin_stopped));
        let (trigger, shutdown) = Shutdown::new();
        let task = tokio::spawn(server::serve(
            listener,
            config,
            door.router.clone(),
            limits,
            serving,
            door.metrics.clone(),
            shutdown,
        ));
        Self { address, admin, door, ca, served, trigger, task, _stop_admin: stop_admin }
    }

    /// A connection of a client that trusts the guard's CA.
    pub async fn connect(&self) -> Client<TlsStream<TcpStream>> {
        Client::tls(self.address, self.ca.client()).await.expect("connected")
    }

    /// Asks the plain port.
    pub async fn probe(&self, path: &str) -> Reply {
        let stream = soon("connect", TcpStream::connect(self.admin)).await.expect("connected");
        let mut client = Client::new(stream);
        let request = format!("GET {path} HTTP/1.1\r\nHost: guard\r\nConnection: close\r\n\r\n");
        client.write(request.as_bytes()).await.expect("written");
        client.reply().await.expect("answered")
    }
}

/// One connection.
pub struct Client<S> {
    pub stream: S,
    buffer: Vec<u8>,
}

/// What came back.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl Reply {
    /// Says whether the server closes the connection.
    pub fn closes(&self) -> bool {
        self.head.to_ascii_lowercase().contains("\r\nconnection: close")
    }
}

impl Client<TlsStream<TcpStream>> {
    pub async fn tls(address: SocketAddr, config: ClientConfig) -> io::Result<Self> {
        let handshake = async {
            let stream = TcpStream::connect(address).await?;
            let name = ServerName::try_from("localhost").expect("a name");
            TlsConnector::from(Arc::new(config)).connect(name, stream).await
        };
        Ok(Self::new(soon("handshake", handshake).await?))
    }

    /// The certificate that the server showed.
    pub fn peer(&self) -> CertificateDer<'static> {
        self.stream.get_ref().1.peer_certificates().expect("a chain")[0].clone().into_owned()
    }
}

impl<S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin> Client<S> {
    pub fn new(stream: S) -> Self {
        Self { stream, buffer: Vec::new() }
    }

    pub async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes).await?;
        self.stream.flush().await
    }

    /// Sends a captured review and waits for the answer.
    pub async fn post(&mut self, path: &str, name: &str) -> io::Result<Reply> {
        self.write(&request(path, &fixture(name))).await?;
        self.reply().await
    }

    /// Reads one answer.
    pub async fn reply(&mut self) -> io::Result<Reply> {
        soon("a reply", async {
            let end = loop {
                if let Some(at) = self.buffer.windows(4).position(|window| window == b"\r\n\r\n") {
                    break at + 4;
                }
                self.fill().await?;
            };
            let head = String::from_utf8(self.buffer[..end].to_vec()).expect("UTF-8");
            let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status");
            let length: usize = head
                .lines()
                .find_map(|line| {
                    line.to_ascii_lowercase().strip_prefix("content-length: ").map(str::to_owned)
                })
                .map_or(0, |length| length.parse().expect("a number"));
            while self.buffer.len() < end + length {
                self.fill().await?;
            }
            let body = String::from_utf8(self.buffer[end..end + length].to_vec()).expect("UTF-8");
            self.buffer.drain(..end + length);
            Ok(Reply { status, head, body })
        })
        .await
    }

    async fn fill(&mut self) -> io::Result<()> {
        match self.stream.read_buf(&mut self.buffer).await? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    }

    /// Waits until the server closes the connection without a further byte.
    pub async fn closed(&mut self) {
        let mut byte = [0; 1];
        let read = soon("closed", self.stream.read(&mut byte)).await;
        assert!(matches!(read, Ok(0) | Err(_)), "a byte came instead of the end");
    }
}

/// The bytes of a call.
pub fn request(path: &str, body: &[u8]) -> Vec<u8> {
    let length = body.len();
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
    );
    [head.as_bytes(), body].concat()
}
