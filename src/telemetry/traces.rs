//! Traces: one span for each decision and each rollback, sent by OTLP where the binary is built with the feature `otlp`
//! and an endpoint is given.
//!
//! Spans go into a bounded queue that drops what does not fit, and a thread of its own sends them: nobody waits for it.
//! The `traceparent` of a call is read in every build, so that log lines carry the trace's id.

use std::{fmt, time::Duration};

use jiff::Timestamp;

/// Where a call comes from, by the header `traceparent` of W3C Trace Context.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceParent {
    trace: u128,
    span: u64,
    flags: u8,
}

impl TraceParent {
    /// Reads `00-<32 hexadecimal digits>-<16>-<2>`. None where it is something else, or all zero; a later version may
    /// have more fields at its end.
    pub fn parse(text: &str) -> Option<Self> {
        const FIRST: usize = 55;
        let hex = |digits: &str| {
            let fits = digits.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
            fits.then(|| u128::from_str_radix(digits, 16).ok()).flatten()
        };
        let mut parts = text.get(..FIRST)?.split('-');
        let mut part = |length| parts.next().filter(|part| part.len() == length).and_then(hex);
        let version = part(2)?;
        let (trace, span, flags) = (part(32)?, part(16)?, part(2)?);
        let rest = &text[FIRST..];
        let fits = if version == 0 { rest.is_empty() } else { rest.is_empty() || rest.starts_with('-') };
        let valid = version != 0xff && trace != 0 && span != 0 && fits;
        let (span, flags) = (u64::try_from(span).ok()?, u8::try_from(flags).ok()?);
        valid.then_some(Self { trace, span, flags })
    }

    /// Returns the id of the trace.
    pub const fn trace_id(self) -> TraceId {
        TraceId(self.trace)
    }
}

/// The id of a trace; 32 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceId(u128);

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// A decision that was made.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs, reason = "the fields are those of the decision's log line")]
pub struct DecisionSpan<'a> {
    pub parent: Option<TraceParent>,
    pub took: Duration,
    pub uid: &'a str,
    pub namespace: &'a str,
    pub name: &'a str,
    pub verdict: &'static str,
    pub reason: &'static str,
    pub policy: &'a str,
    pub mode: &'static str,
    pub dry_run: bool,
}

/// A rollback of which the outcome is known.
#[derive(Clone, Copy, Debug)]
pub struct RollbackSpan<'a> {
    /// The Deployment's namespace.
    pub namespace: &'a str,
    /// Its name.
    pub name: &'a str,
    /// Its uid.
    pub uid: &'a str,
    /// The type of cause.
    pub cause: &'static str,
    /// `succeeded`, `failed` or `superseded`.
    pub outcome: &'static str,
    /// The revision and the hash of the template that was rolled back from.
    pub from: (Option<i64>, &'a str),
    /// Those of the one that was put back.
    pub to: (Option<i64>, &'a str),
    /// When it was decided on.
    pub intended: Timestamp,
    /// When the earlier template was first seen back, where it was.
    pub restored: Option<Timestamp>,
    /// When its outcome was known.
    pub finished: Timestamp,
}

/// Where traces are sent to cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("traces cannot be sent: {0}")]
pub struct TracesError(String);

pub use sending::Traces;

/// Begins to send traces to the collector at `endpoint`, as [`Traces::start`] does; where that is not possible says so
/// in the log and sends none: nothing depends on it.
pub fn begin(endpoint: Option<&str>) -> Traces {
    Traces::start(endpoint.filter(|endpoint| !endpoint.is_empty())).unwrap_or_else(|error| {
        tracing::error!(%error, "no traces are sent");
        Traces::default()
    })
}

#[cfg(not(feature = "otlp"))]
mod sending {
    use super::{DecisionSpan, RollbackSpan, TraceId, TracesError};

    /// Sends nothing: this binary is built without the feature `otlp`.
    #[derive(Clone, Debug, Default)]
    pub struct Traces(());

    impl Traces {
        /// Sends nothing, wherever to.
        ///
        /// # Errors
        /// When somebody wants it to.
        pub fn start(endpoint: Option<&str>) -> Result<Self, TracesError> {
            match endpoint {
                None => Ok(Self::default()),
                Some(_) => Err(TracesError("this binary is built without the feature otlp".to_owned())),
            }
        }

        /// Returns the id of the trace that the decision belongs to, where it belongs to one.
        #[must_use]
        pub fn decision(&self, span: &DecisionSpan<'_>) -> Option<TraceId> {
            span.parent.map(super::TraceParent::trace_id)
        }

        /// Does nothing.
        pub fn rollback(&self, _: &RollbackSpan<'_>) {}

        /// Does nothing.
        pub async fn stop(&self) {}
    }
}

#[cfg(feature = "otlp")]
mod sending {
    use std::{
        sync::{
            Arc,
            atomic::{AtomicBool, Ordering},
        },
        time::{Duration, SystemTime},
    };

    use async_trait::async_trait;
    use bytes::Bytes;
    use http::{Request, Response};
    use opentelemetry::{
        Context, KeyValue, SpanId, TraceFlags, TraceId as OtelTraceId,
        trace::{
            Span as _, SpanContext, SpanKind, Status, TraceContextExt as _, TraceState, Tracer as _,
            TracerProvider as _,
        },
    };
    use opentelemetry_http::{HttpClient, HttpError};
    use opentelemetry_otlp::{SpanExporter, WithExportConfig as _, WithHttpConfig as _};
    use opentelemetry_sdk::{
        Resource,
        trace::{SdkTracer, SdkTracerProvider},
    };
    use tokio::runtime::Handle;

    use super::{DecisionSpan, RollbackSpan, TraceId, TraceParent, TracesError};
    use crate::post::{self, Client};

    /// The address for traces alone, which is taken as it is.
    const TRACES_ENDPOINT: &str = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT";

    /// Turns everything of OpenTelemetry off.
    const DISABLED: &str = "OTEL_SDK_DISABLED";

    /// The CAs that are trusted, as a file.
    const CERTIFICATES: [&str; 2] =
        ["OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE", "OTEL_EXPORTER_OTLP_CERTIFICATE"];

    /// How long one call may take, whatever the exporter's own timeout says.
    const LIMIT: Duration = Duration::from_secs(10);

    /// How long what waits may be sent at the end.
    const DRAIN: Duration = Duration::from_secs(5);

    /// Sends spans. Clones are the same one. The default sends nothing.
    #[derive(Clone, Debug, Default)]
    pub struct Traces(Option<Arc<Sending>>);

    #[derive(Debug)]
    struct Sending {
        provider: SdkTracerProvider,
        tracer: SdkTracer,
    }

    impl Traces {
        /// Begins to send to the collector at `endpoint`, an address without `/v1/traces`, by HTTP and protobuf; to that
        /// of `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT` where that is set. Without any of them nothing is sent. The other
        /// variables of OpenTelemetry (headers, sampler, batches, resource) hold too. To be called within a runtime.
        ///
        /// # Errors
        /// When the address, the CAs or one of the variables cannot be used.
        pub fn start(endpoint: Option<&str>) -> Result<Self, TracesError> {
            let fail = |why: String| TracesError(why);
            let set = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
            let of_traces = set(TRACES_ENDPOINT);
            let disabled = set(DISABLED).is_some_and(|value| value.eq_ignore_ascii_case("true"));
            let base = endpoint.map(|base| format!("{}/v1/traces", base.trim_end_matches('/')));
            let Some(target) = of_traces.or(base).filter(|_| !disabled) else { return Ok(Self::default()) };
            post::address(&target).map_err(|error| fail(error.to_string()))?;
            let pem = CERTIFICATES.iter().find_map(|name| set(name)).map(std::fs::read).transpose();
            let pem = pem.map_err(|error| fail(format!("the CA certificates cannot be read: {error}")))?;
            let client = Client::new(pem.as_deref()).map_err(|error| fail(error.to_string()))?;
            let http = Http { client, runtime: Handle::current(), failing: AtomicBool::new(false) };
            let exporter = SpanExporter::builder()
                .with_http()
                .with_http_client(http)
                .with_endpoint(target)
                .build()
                .map_err(|error| fail(error.to_string()))?;
            let resource = Resource::builder().with_attribute(version());
            let resource = match set("OTEL_SERVICE_NAME") {
                Some(_) => resource.build(),
                None => resource.with_service_name("rollout-guard").build(),
            };
            let provider =
                SdkTracerProvider::builder().with_resource(resource).with_batch_exporter(exporter).build();
            let tracer = provider.tracer("rollout-guard");
            Ok(Self(Some(Arc::new(Sending { provider, tracer }))))
        }

        /// Hands over the span of a decision and returns the id of its trace: that of the caller, or its own where
        /// the caller has none.
        #[must_use]
        pub fn decision(&self, span: &DecisionSpan<'_>) -> Option<TraceId> {
            let of_caller = span.parent.map(TraceParent::trace_id);
            let Some(sending) = &self.0 else { return of_caller };
            let now = SystemTime::now();
            let attributes = vec![
                KeyValue::new("k8s.namespace.name", span.namespace.to_owned()),
                KeyValue::new("k8s.deployment.name", span.name.to_owned()),
                KeyValue::new("rollout_guard.review.uid", span.uid.to_owned()),
                KeyValue::new("rollout_guard.verdict", span.verdict),
                KeyValue::new("rollout_guard.reason", span.reason),
                KeyValue::new("rollout_guard.policy", span.policy.to_owned()),
                KeyValue::new("rollout_guard.mode", span.mode),
                KeyValue::new("rollout_guard.dry_run", span.dry_run),
            ];
            let builder = sending
                .tracer
                .span_builder("decision")
                .with_kind(SpanKind::Server)
                .with_start_time(now.checked_sub(span.took).unwrap_or(now))
                .with_attributes(attributes);
            let mut made = builder.start_with_context(&sending.tracer, &context(span.parent));
            made.end_with_timestamp(now);
            let context = made.span_context();
            context.is_sampled().then(|| id(context.trace_id())).or(of_caller)
        }

        /// Hands over the span of a rollback: from its intent to its outcome, whoever led meanwhile.
        pub fn rollback(&self, span: &RollbackSpan<'_>) {
            let Some(sending) = &self.0 else { return };
            let mut attributes = vec![
                KeyValue::new("k8s.namespace.name", span.namespace.to_owned()),
                KeyValue::new("k8s.deployment.name", span.name.to_owned()),
                KeyValue::new("k8s.deployment.uid", span.uid.to_owned()),
                KeyValue::new("rollout_guard.cause", span.cause),
                KeyValue::new("rollout_guard.outcome", span.outcome),
                KeyValue::new("rollout_guard.from.template_hash", span.from.1.to_owned()),
                KeyValue::new("rollout_guard.to.template_hash", span.to.1.to_owned()),
            ];
            let revisions =
                [("rollout_guard.from.revision", span.from.0), ("rollout_guard.to.revision", span.to.0)];
            attributes.extend(revisions.into_iter().filter_map(|(key, n)| Some(KeyValue::new(key, n?))));
            let (begin, end) = (SystemTime::from(span.intended), SystemTime::from(span.finished));
            let builder = sending
                .tracer
                .span_builder("rollback")
                .with_kind(SpanKind::Internal)
                .with_start_time(begin)
                .with_attributes(attributes);
            let mut made = builder.start_with_context(&sending.tracer, &Context::new());
            made.add_event_with_timestamp("intend", begin, Vec::new());
            if let Some(restored) = span.restored {
                made.add_event_with_timestamp("restore", SystemTime::from(restored), Vec::new());
            }
            match span.outcome {
                "succeeded" => made.add_event_with_timestamp("verified", end, Vec::new()),
                "failed" => made.set_status(Status::error("the revision that was put back is stuck as well")),
                _ => {}
            }
            made.end_with_timestamp(end);
        }

        /// Sends what waits, for some seconds at the most.
        pub async fn stop(&self) {
            let Some(sending) = &self.0 else { return };
            let provider = sending.provider.clone();
            let stopped = tokio::task::spawn_blocking(move || provider.shutdown_with_timeout(DRAIN)).await;
            if let Ok(Err(error)) = stopped {
                tracing::warn!(%error, "traces are left behind");
            }
        }
    }

    fn version() -> KeyValue {
        KeyValue::new("service.version", env!("CARGO_PKG_VERSION"))
    }

    fn context(parent: Option<TraceParent>) -> Context {
        let Some(TraceParent { trace, span, flags }) = parent else { return Context::new() };
        let parent = SpanContext::new(
            OtelTraceId::from(trace),
            SpanId::from(span),
            TraceFlags::new(flags),
            true,
            TraceState::default(),
        );
        Context::new().with_remote_span_context(parent)
    }

    fn id(id: OtelTraceId) -> TraceId {
        TraceId(u128::from_be_bytes(id.to_bytes()))
    }

    /// Our own client for the exporter, which calls from a thread without a runtime.
    #[derive(Debug)]
    struct Http {
        client: Client,
        runtime: Handle,
        /// One log line when it begins to fail, one when it ends.
        failing: AtomicBool,
    }

    #[async_trait]
    impl HttpClient for Http {
        async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
            let (parts, body) = request.into_parts();
            let client = self.client.clone();
            let call = async move { client.post(parts.uri, parts.headers, body, LIMIT).await };
            let answer = self.runtime.spawn(call).await?;
            let failed = answer.as_ref().map_or_else(
                |error| Some(error.to_string()),
                |answer| (!answer.status.is_success()).then(|| format!("answered {}", answer.status)),
            );
            let before = self.failing.swap(failed.is_some(), Ordering::Relaxed);
            match failed {
                Some(why) if !before => tracing::warn!(why, "traces are not taken"),
                None if before => tracing::info!("traces are taken again"),
                _ => {}
            }
            let answer = answer?;
            let mut response = Response::new(answer.body);
            *response.status_mut() = answer.status;
            Ok(response)
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn a_traceparent_gives_the_id_of_its_trace() {
        let parent = TraceParent::parse(PARENT).expect("it is one");
        assert_eq!(parent.trace_id().to_string(), "4bf92f3577b34da6a3ce929d0e0e4736");
        assert!(TraceParent::parse(&format!("01{}-more", &PARENT[2..])).is_some(), "of a later version");
    }

    #[test]
    fn what_is_none_gives_nothing() {
        let zero_trace = format!("00-{}-00f067aa0ba902b7-01", "0".repeat(32));
        let zero_span = format!("00-4bf92f3577b34da6a3ce929d0e0e4736-{}-01", "0".repeat(16));
        let (upper, longer) = (PARENT.to_uppercase(), format!("{PARENT}-more"));
        let version = format!("ff{}", &PARENT[2..]);
        for text in ["", "00", &PARENT[..54], &upper, &longer, &zero_trace, &zero_span, &version, "é"] {
            assert_eq!(TraceParent::parse(text), None, "{text}");
        }
        let sign = PARENT.replace("4bf9", "+bf9");
        assert_eq!(TraceParent::parse(&sign), None);
    }

    proptest! {
        #[test]
        fn no_header_breaks_it(text in any::<String>()) {
            let _ = TraceParent::parse(&text);
        }

        #[test]
        fn every_id_comes_back_as_it_was(trace in 1_u128.., span in 1_u64.., flags in any::<u8>()) {
            let parent = TraceParent::parse(&format!("00-{trace:032x}-{span:016x}-{flags:02x}"));
            prop_assert_eq!(parent, Some(TraceParent { trace, span, flags }));
        }
    }
}
