//! The plain port: `/livez`, `/readyz`, `/metrics`, `/certificate`, and the page [`/ui/`](page).

pub mod page;

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
};

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;

use self::page::Page;
use crate::{shutdown::Shutdown, telemetry, tls::ServedCertificate};

/// What must hold before the process may be called. Clones share the same state.
#[derive(Clone, Debug, Default)]
pub struct Readiness(Arc<Mutex<BTreeMap<&'static str, Option<String>>>>);

/// One thing that must hold; see [`Readiness::require`].
#[derive(Clone, Debug)]
pub struct Requirement {
    readiness: Readiness,
    name: &'static str,
}

impl Requirement {
    /// The requirement holds from now on.
    pub fn met(&self) {
        self.readiness.set(self.name, None);
    }

    /// The requirement does not hold, and why.
    pub fn unmet(&self, why: impl Into<String>) {
        self.readiness.set(self.name, Some(why.into()));
    }
}

impl Readiness {
    /// Adds something that must hold and does not yet.
    pub fn require(&self, name: &'static str) -> Requirement {
        self.set(name, Some("not yet".to_owned()));
        Requirement { readiness: self.clone(), name }
    }

    /// Returns what does not hold, one line each; empty when ready.
    pub fn missing(&self) -> Vec<String> {
        let state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.iter().filter_map(|(name, why)| why.as_ref().map(|why| format!("{name}: {why}"))).collect()
    }

    /// Completes when everything in `names` was met at one time.
    pub async fn met(&self, names: &[&str]) {
        let mut ticks = tokio::time::interval(std::time::Duration::from_millis(50));
        loop {
            ticks.tick().await;
            let state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            if names.iter().all(|name| matches!(state.get(name), Some(None))) {
                return;
            }
        }
    }

    fn set(&self, name: &'static str, why: Option<String>) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let before = state.insert(name, why.clone());
        if before != Some(why.clone()) {
            match why {
                None => tracing::info!(requirement = name, "ready"),
                Some(why) => tracing::info!(requirement = name, %why, "not ready"),
            }
        }
    }
}

/// What the plain port serves.
#[derive(Clone)]
pub struct Admin {
    readiness: Readiness,
    registry: Arc<Registry>,
    certificate: Option<ServedCertificate>,
    page: Option<Page>,
}

impl Admin {
    /// Returns what the plain port serves.
    pub fn new(readiness: Readiness, registry: Registry, certificate: Option<ServedCertificate>) -> Self {
        Self { readiness, registry: Arc::new(registry), certificate, page: None }
    }

    /// Serves `page` as well.
    #[must_use]
    pub fn with_page(self, page: Page) -> Self {
        Self { page: Some(page), ..self }
    }

    /// Returns the routes of the plain port.
    pub fn router(mut self) -> Router {
        let page = self.page.take().map_or_else(Router::new, Page::router);
        Router::new()
            .route("/livez", get(|| async { "ok\n" }))
            .route("/readyz", get(ready))
            .route("/metrics", get(metrics))
            .route("/certificate", get(certificate))
            .with_state(self)
            .merge(page)
    }
}

/// Serves the plain port until the shutdown ends the process.
///
/// # Errors
/// When the listener fails.
pub async fn serve(listener: TcpListener, admin: Admin, shutdown: Shutdown) -> std::io::Result<()> {
    let router = admin.router().into_make_service_with_connect_info::<SocketAddr>();
    axum::serve(listener, router).with_graceful_shutdown(async move { shutdown.started().await }).await
}

/// Opens the plain port.
///
/// # Errors
/// When `address` cannot be bound.
pub async fn bind(address: SocketAddr) -> std::io::Result<TcpListener> {
    TcpListener::bind(address).await
}

async fn ready(State(admin): State<Admin>) -> Response {
    let missing = admin.readiness.missing();
    if missing.is_empty() {
        "ok\n".into_response()
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, missing.join("\n") + "\n").into_response()
    }
}

async fn metrics(State(admin): State<Admin>) -> Response {
    let content_type = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    match telemetry::openmetrics(&admin.registry) {
        Ok(text) => ([(header::CONTENT_TYPE, content_type)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

/// The served certificate as PEM: public, and what `rollout-guard check` compares with the caBundle.
async fn certificate(State(admin): State<Admin>) -> Response {
    match admin.certificate.as_ref().and_then(ServedCertificate::pem) {
        Some(pem) => ([(header::CONTENT_TYPE, "application/x-pem-file")], pem).into_response(),
        None => (StatusCode::NOT_FOUND, "no certificate is loaded yet\n").into_response(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readiness_names_what_is_missing_until_all_is_met() {
        let readiness = Readiness::default();
        let policies = readiness.require("policies");
        let certificates = readiness.require("certificates");
        policies.met();
        assert_eq!(readiness.missing(), ["certificates: not yet"]);
        certificates.met();
        assert!(readiness.missing().is_empty());
        certificates.unmet("expired");
        assert_eq!(readiness.missing(), ["certificates: expired"]);
    }
}
