//! The load: connections that each send a request and wait for its answer, over and over.
//!
//! It speaks just enough HTTP/1.1, with the request written once beforehand, so that the client's core is not what is
//! measured.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use futures::future::try_join_all;
use rollout_guard::tls;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::ServerName;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

/// How to connect: TLS that trusts one CA and resumes nothing, as the API server does.
#[derive(Clone)]
pub struct Client(TlsConnector);

impl Client {
    /// Trusts `authority`.
    pub fn new(authority: &str) -> anyhow::Result<Self> {
        let mut roots = RootCertStore::empty();
        for certificate in tls::parse_certificates(authority)? {
            roots.add(certificate)?;
        }
        let mut config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        config.resumption = rustls::client::Resumption::disabled();
        Ok(Self(TlsConnector::from(Arc::new(config))))
    }

    /// Opens a connection.
    pub async fn open(&self, address: SocketAddr) -> anyhow::Result<Connection> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let stream = self.0.connect(ServerName::try_from("localhost")?, stream).await?;
        Ok(Connection { stream, buffer: vec![0; 64 * 1024] })
    }

    /// Opens `count` connections.
    pub async fn open_all(&self, address: SocketAddr, count: usize) -> anyhow::Result<Vec<Connection>> {
        try_join_all((0..count).map(|_| self.open(address))).await
    }

    /// Opens `count` connections at once, each for one request, and returns how long it was until the last answer.
    pub async fn burst(&self, address: SocketAddr, count: usize, request: &[u8]) -> anyhow::Result<Duration> {
        let started = Instant::now();
        let call = async || self.open(address).await?.call(request).await.map(|answer| answer.len());
        let answers = try_join_all((0..count).map(|_| call())).await?;
        ensure!(answers.len() == count, "{} of {count} answered", answers.len());
        Ok(started.elapsed())
    }
}

/// Returns the bytes of a POST of `body` to `/validate`, as the API server's client writes its header.
pub fn request(body: &[u8]) -> Vec<u8> {
    let header = format!(
        "POST /validate?timeout=3s HTTP/1.1\r\nHost: rollout-guard.rollout-guard.svc:443\r\n\
         User-Agent: kube-apiserver-admission\r\nContent-Length: {}\r\nAccept: application/json, */*\r\n\
         Content-Type: application/json\r\nAccept-Encoding: gzip\r\n\r\n",
        body.len()
    );
    [header.as_bytes(), body].concat()
}

/// An open connection.
pub struct Connection {
    stream: TlsStream<TcpStream>,
    buffer: Vec<u8>,
}

impl Connection {
    /// Sends `request` and returns the body of the answer.
    pub async fn call(&mut self, request: &[u8]) -> anyhow::Result<&[u8]> {
        self.stream.write_all(request).await?;
        self.stream.flush().await?;
        let mut filled = 0;
        let mut whole = None;
        loop {
            let room = self.buffer.get_mut(filled..).filter(|room| !room.is_empty());
            let read = self.stream.read(room.context("an answer of more than 64 KiB")?).await?;
            ensure!(read > 0, "the connection was closed");
            filled += read;
            if whole.is_none() {
                whole = header(&self.buffer[..filled])?;
            }
            if let Some((start, end)) = whole
                && filled >= end
            {
                return Ok(&self.buffer[start..end]);
            }
        }
    }
}

/// Returns where the body begins and ends, once the header is there.
fn header(answer: &[u8]) -> anyhow::Result<Option<(usize, usize)>> {
    let Some(end) = answer.windows(4).position(|window| window == b"\r\n\r\n") else { return Ok(None) };
    let header = std::str::from_utf8(&answer[..end])?;
    let mut lines = header.split("\r\n");
    let status = lines.next().unwrap_or_default();
    if !status.starts_with("HTTP/1.1 200") {
        bail!("answered with {status}");
    }
    let length = lines
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .context("an answer without a length")?;
    Ok(Some((end + 4, end + 4 + length.1.trim().parse::<usize>()?)))
}

/// What `connections` got done in `time`.
pub struct Load {
    /// How long it took.
    pub elapsed: Duration,
    /// How long each request took, sorted.
    pub latencies: Vec<Duration>,
}

impl Load {
    /// Runs a closed loop on every connection for `time`.
    ///
    /// The client's core never sleeps meanwhile: to wake it is dear on a virtual machine, is counted as the server's
    /// time, and comes the more often the slower the server.
    pub async fn run(connections: &mut [Connection], request: &[u8], time: Duration) -> anyhow::Result<Self> {
        let awake = tokio::spawn(async {
            loop {
                tokio::task::yield_now().await;
            }
        });
        let started = Instant::now();
        let loops = connections.iter_mut().map(async |connection| {
            let mut latencies = Vec::with_capacity(16 * 1024);
            let mut begun = Instant::now();
            while begun.duration_since(started) < time {
                connection.call(request).await?;
                let ended = Instant::now();
                latencies.push(ended.duration_since(begun));
                begun = ended;
            }
            anyhow::Ok(latencies)
        });
        let latencies = try_join_all(loops).await;
        let elapsed = started.elapsed();
        awake.abort();
        let mut latencies = latencies?.concat();
        latencies.sort_unstable();
        ensure!(!latencies.is_empty(), "nothing was answered");
        Ok(Self { elapsed, latencies })
    }

    /// Returns the latency that `share` of the requests did not exceed, in microseconds.
    pub fn quantile(&self, share: f64) -> f64 {
        let last = self.latencies.len() - 1;
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "an index")]
        let index = (share * last as f64).round() as usize;
        self.latencies[index.min(last)].as_secs_f64() * 1e6
    }
}
