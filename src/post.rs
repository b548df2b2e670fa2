//! One HTTP POST to somebody else's server: by rustls, bounded in time and in size, redirects not followed.
//!
//! The image holds no file at all, so the roots of trust are Mozilla's, compiled in, unless a file of CAs is given.

use std::{error::Error, fmt, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client as HyperClient, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use jiff::{Timestamp, fmt::rfc2822};
use rustls::{ClientConfig, RootCertStore, crypto::ring};
use rustls_pki_types::{CertificateDer, pem::PemObject};

use crate::core::message::plain;

/// The most bytes of an answer that are kept. The connection of a longer one is closed.
const ANSWER: usize = 4 * 1024;

/// The most characters of an error.
const LONGEST_ERROR: usize = 300;

/// How long a connection is kept for the next call.
const IDLE: Duration = Duration::from_secs(30);

/// Why a call came to no answer. Holds no part of the address but what is public: paths and queries may be secret.
#[derive(Debug, thiserror::Error)]
pub enum PostError {
    /// The file of CAs holds none, or one that cannot be used.
    #[error("the CA certificates cannot be used: {0}")]
    Roots(String),
    /// It is no address that can be called.
    #[error("{0}")]
    Address(&'static str),
    /// Nothing was answered in time.
    #[error("no answer within {} s", .0.as_secs_f32())]
    Timeout(Duration),
    /// No connection, no TLS, or the answer broke off.
    #[error("{0}")]
    Transport(String),
}

/// What was answered.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The status.
    pub status: StatusCode,
    /// After which time to call again, where the answer says so.
    pub retry_after: Option<Duration>,
    /// The beginning of the body: 4 KiB at the most.
    pub body: Bytes,
}

/// Calls servers. Clones share the connections.
#[derive(Clone)]
pub struct Client(HyperClient<HttpsConnector<HttpConnector>, Full<Bytes>>);

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Client")
    }
}

/// Returns an address that can be called.
///
/// # Errors
/// When it is none of http or https with a host, or holds a user, which would be sent to nobody.
pub fn address(text: &str) -> Result<Uri, PostError> {
    const LONGEST: usize = 2048;
    if text.len() > LONGEST {
        return Err(PostError::Address("the url is longer than 2048 bytes"));
    }
    // Before it is read: without a scheme it would be a path.
    if !text.starts_with("http://") && !text.starts_with("https://") {
        return Err(PostError::Address("the url must begin with http:// or https://"));
    }
    let uri: Uri = text.parse().map_err(|_| PostError::Address("the url cannot be read"))?;
    if uri.host().is_none_or(str::is_empty) {
        return Err(PostError::Address("the url names no host"));
    }
    if uri.authority().is_some_and(|authority| authority.as_str().contains('@')) {
        return Err(PostError::Address("the url holds a user; use a header for that"));
    }
    Ok(uri)
}

impl Client {
    /// Returns a client that trusts the CAs in `pem`, and them alone; without any, those of Mozilla.
    ///
    /// # Errors
    /// When `pem` holds no certificate, or one that cannot be used.
    pub fn new(pem: Option<&[u8]>) -> Result<Self, PostError> {
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| PostError::Roots(error.to_string()))?
            .with_root_certificates(roots(pem)?)
            .with_no_client_auth();
        let connector =
            HttpsConnectorBuilder::new().with_tls_config(config).https_or_http().enable_http1().build();
        let client = HyperClient::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE)
            .pool_max_idle_per_host(1)
            .build(connector);
        Ok(Self(client))
    }

    /// Sends `body` and returns what is answered, whatever its status, within `limit`.
    ///
    /// # Errors
    /// When there is no answer in time, or none at all.
    pub async fn post(
        &self,
        uri: Uri,
        headers: HeaderMap,
        body: Bytes,
        limit: Duration,
    ) -> Result<Answer, PostError> {
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = uri;
        *request.headers_mut() = headers;
        tokio::time::timeout(limit, self.send(request)).await.map_err(|_| PostError::Timeout(limit))?
    }

    async fn send(&self, request: Request<Full<Bytes>>) -> Result<Answer, PostError> {
        let response = self.0.request(request).await.map_err(|error| transport(&error))?;
        let (parts, mut incoming) = response.into_parts();
        let mut body = Vec::new();
        while let Some(frame) = incoming.frame().await {
            let Ok(data) = frame.map_err(|error| transport(&error))?.into_data() else { continue };
            let room = ANSWER - body.len();
            body.extend_from_slice(&data[..data.len().min(room)]);
            if data.len() > room {
                break;
            }
        }
        let retry_after = parts.headers.get(header::RETRY_AFTER).and_then(|value| value.to_str().ok());
        let retry_after = retry_after.and_then(|value| pause(value, Timestamp::now()));
        Ok(Answer { status: parts.status, retry_after, body: body.into() })
    }
}

fn roots(pem: Option<&[u8]>) -> Result<RootCertStore, PostError> {
    let mut roots = RootCertStore::empty();
    let Some(pem) = pem else {
        roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
        return Ok(roots);
    };
    for certificate in CertificateDer::pem_slice_iter(pem) {
        let certificate = certificate.map_err(|error| PostError::Roots(error.to_string()))?;
        roots.add(certificate).map_err(|error| PostError::Roots(error.to_string()))?;
    }
    if roots.is_empty() {
        return Err(PostError::Roots("there is no certificate in the file".to_owned()));
    }
    Ok(roots)
}

/// Reads `Retry-After`: seconds, or a date.
fn pause(value: &str, now: Timestamp) -> Option<Duration> {
    if let Ok(seconds) = value.trim().parse() {
        return Some(Duration::from_secs(seconds));
    }
    let at = rfc2822::parse(value.trim()).ok()?.timestamp();
    Some(Duration::try_from(at.duration_since(now)).unwrap_or_default())
}

/// The error and what caused it, on one line.
fn transport(error: &dyn Error) -> PostError {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    PostError::Transport(plain(&text, LONGEST_ERROR))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_cannot_be_called_is_named_without_its_text() {
        for (text, why) in [
            ("hooks.example.com/s3cret", "begin with http"),
            ("ftp://example.com/s3cret", "begin with http"),
            ("https:///s3cret", "cannot be read"),
            ("https://user:s3cret@example.com/", "holds a user"),
            ("https://exa mple.com/s3cret", "cannot be read"),
            ("", "begin with http"),
        ] {
            let error = address(text).expect_err(text).to_string();
            assert!(error.contains(why) && !error.contains("s3cret"), "{text}: {error}");
        }
        assert!(address(&format!("https://example.com/{}", "a".repeat(2048))).is_err());
        address("http://10.0.0.1:9093/prefix?a=b").expect("an address");
    }

    #[test]
    fn retry_after_is_read_as_seconds_and_as_a_date() {
        let now: Timestamp = "2026-11-24T08:00:00Z".parse().expect("a time");
        assert_eq!(pause(" 7 ", now), Some(Duration::from_secs(7)));
        assert_eq!(pause("Tue, 24 Nov 2026 08:01:00 GMT", now), Some(Duration::from_secs(60)));
        assert_eq!(pause("Tue, 24 Nov 2026 07:00:00 GMT", now), Some(Duration::ZERO));
        assert_eq!(pause("soon", now), None);
        assert_eq!(pause("-5", now), None);
    }

    #[test]
    fn a_file_without_a_certificate_is_refused() {
        let error = Client::new(Some(b"hello")).expect_err("no certificate").to_string();
        assert!(error.contains("no certificate in the file"), "{error}");
        Client::new(None).expect("Mozilla's");
    }
}
