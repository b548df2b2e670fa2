//! Logs and metrics: what the guard tells machines about itself.
//!
//! All metrics live in one [`Metrics`] struct that is registered once and handed to whoever counts; no
//! global registry. Names follow the Prometheus conventions and are listed in `docs/metrics.md`. With them goes the
//! handle by which [`traces`] are sent.

pub mod traces;

use std::{
    fmt,
    sync::atomic::{AtomicI64, AtomicU64},
    time::Duration,
};

use clap::ValueEnum;
use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeLabelValue, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram, info::Info},
    registry::{Registry, Unit},
};
use tracing_subscriber::{EnvFilter, fmt::time::SystemTime};

/// How log lines are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// One JSON object a line, for log collectors.
    #[default]
    Json,
    /// Text for people.
    Text,
}

/// The filter given for the log level cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("log level {given:?} is not a tracing filter such as info or rollout_guard=debug: {source}")]
pub struct LogLevelError {
    given: String,
    source: tracing_subscriber::filter::ParseError,
}

/// Starts writing log lines to standard error.
///
/// # Errors
/// When `level` is not a `tracing` filter.
pub fn start_logs(format: LogFormat, level: &str) -> Result<(), LogLevelError> {
    let filter =
        EnvFilter::try_new(level).map_err(|source| LogLevelError { given: level.to_owned(), source })?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .with_timer(SystemTime);
    // A second start in one process (tests) keeps the first subscriber.
    let _ = match format {
        LogFormat::Json => builder.json().flatten_event(true).with_current_span(false).try_init(),
        LogFormat::Text => builder.try_init(),
    };
    Ok(())
}

/// Makes a panic a log line like any other, with its place.
pub fn log_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        let what = panic.payload_as_str().unwrap_or("not text");
        tracing::error!(place, what, "panic");
    }));
}

/// Labels of [`Metrics::decisions`].
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct DecisionLabels {
    /// `allow`, `wait`, `deny`, `warn`, `audit` or `override`.
    pub verdict: &'static str,
    /// The reason id (`RG001`), or `none`.
    pub reason: &'static str,
    /// The policy's mode in lower case, or `none` where no policy applies.
    pub mode: &'static str,
}

/// The label of metrics about one RolloutPolicy.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct PolicyLabels {
    /// The name of the RolloutPolicy.
    pub policy: String,
}

/// The path that a webhook call came in on.
#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq, EncodeLabelValue)]
#[allow(missing_docs, reason = "the variants are the paths")]
pub enum Endpoint {
    Validate,
    Mutate,
}

/// Labels of metrics about a path.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct EndpointLabels {
    /// The path.
    pub endpoint: Endpoint,
}

/// Labels of [`Metrics::rejected`].
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct RejectedLabels {
    /// Why the call was not judged: `overload`, `too_large`, `malformed`, `content_type`, `panic`, `timeout`,
    /// `connections`, `handshake`.
    pub cause: &'static str,
}

/// Labels of [`Metrics::overrides`].
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct OverrideLabels {
    /// `granted`, `refused` (no right) or `failed` (the API server did not say in time).
    pub outcome: &'static str,
}

/// Labels of [`Metrics::rollbacks`].
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct RollbackLabels {
    /// `succeeded`, `failed` or `superseded`.
    pub outcome: &'static str,
    /// The type of cause.
    pub cause: &'static str,
}

/// Labels of [`Metrics::stuck`].
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct CauseLabels {
    /// The type of cause.
    pub cause: &'static str,
}

/// Labels of [`Metrics::breaker_open`].
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct BreakerLabels {
    /// `unknown`, `controller_manager`, `nodes` or `many_stuck`.
    pub reason: &'static str,
}

/// Labels of [`Metrics::reconciles`].
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct ReconcileLabels {
    /// `ok`, `conflict` or `error`.
    pub result: &'static str,
}

/// The label of metrics about one receiver of notifications.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct ReceiverLabels {
    /// The receiver's name.
    pub receiver: String,
}

/// Labels of [`Metrics::notifications`].
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct NotificationLabels {
    /// The receiver's name.
    pub receiver: String,
    /// `delivered`, `refused` (the receiver never takes it), `gave_up` (not taken in time) or `dropped` (too many).
    pub outcome: &'static str,
}

/// Everything the guard counts. Clones share the same counters.
#[derive(Clone, Debug)]
pub struct Metrics {
    /// Admission decisions by verdict, reason and mode.
    pub decisions: Family<DecisionLabels, Counter>,
    /// Seconds from the whole request read to the answer ready.
    pub duration: Family<EndpointLabels, Histogram, fn() -> Histogram>,
    /// Calls that are being answered.
    pub in_flight: Gauge,
    /// Calls that were not judged, by cause.
    pub rejected: Family<RejectedLabels, Counter>,
    /// Reviews of kinds, subresources or operations that are not the guard's.
    pub ignored: Counter,
    /// Override requests by outcome.
    pub overrides: Family<OverrideLabels, Counter>,
    /// 1 where the RolloutPolicy as stored is valid, 0 where the last valid one goes on.
    pub policy_valid: Family<PolicyLabels, Gauge>,
    /// Deployments that each RolloutPolicy guards.
    pub policy_guarded: Family<PolicyLabels, Gauge>,
    /// 1 where the fallback of a RolloutPolicy is in place.
    pub fallback_ready: Family<PolicyLabels, Gauge>,
    /// When the served certificate ends, in seconds since 1970.
    pub certificate_expiry: Gauge<f64, AtomicU64>,
    /// Served certificates that were replaced by another without a restart.
    pub certificate_reloads: Counter,
    /// Certificates that could not be loaded, renewed or published.
    pub certificate_errors: Counter,
    /// Writes of the caBundle.
    pub ca_bundle_writes: Counter,
    /// Open TLS connections.
    pub connections: Gauge<i64, AtomicI64>,
    /// 1 where this process leads.
    pub leader: Gauge,
    /// 1 where the kill switch of the whole guard is pulled.
    pub stopped: Gauge,
    /// Deployments that the leader watches.
    pub watched: Gauge,
    /// Stuck Deployments by cause.
    pub stuck: Family<CauseLabels, Gauge>,
    /// Stuck Deployments of each RolloutPolicy.
    pub policy_stuck: Family<PolicyLabels, Gauge>,
    /// Deployments that are stuck on the revision that was put back.
    pub latched: Gauge,
    /// Rollbacks by outcome and cause.
    pub rollbacks: Family<RollbackLabels, Counter>,
    /// Rollbacks of which the outcome is not known yet.
    pub rollbacks_in_progress: Gauge,
    /// Rollbacks that wait until others have come to an end.
    pub rollbacks_waiting: Gauge,
    /// Seconds from a push first seen to its failure known.
    pub time_to_detect: Histogram,
    /// Seconds from a push first seen to the earlier template complete again.
    pub time_to_safety: Histogram,
    /// 1 where no rollback may start, by reason.
    pub breaker_open: Family<BreakerLabels, Gauge>,
    /// Deployments that are due and not looked at yet.
    pub queue_depth: Gauge,
    /// Looks at Deployments by result.
    pub reconciles: Family<ReconcileLabels, Counter>,
    /// Writes of RolloutRecords.
    pub records_written: Counter,
    /// Notifications by receiver and outcome.
    pub notifications: Family<NotificationLabels, Counter>,
    /// Attempts to tell a receiver that failed.
    pub notification_errors: Family<ReceiverLabels, Counter>,
    /// Notifications that wait for a receiver; alerts that last.
    pub notification_queue: Family<ReceiverLabels, Gauge>,
    /// 0 where the file of the notifications cannot be used as it is; else 1.
    pub notifications_valid: Gauge,
    /// Where spans go.
    pub traces: traces::Traces,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            decisions: Family::default(),
            duration: Family::new_with_constructor(duration_histogram),
            in_flight: Gauge::default(),
            rejected: Family::default(),
            ignored: Counter::default(),
            overrides: Family::default(),
            policy_valid: Family::default(),
            policy_guarded: Family::default(),
            fallback_ready: Family::default(),
            certificate_expiry: Gauge::default(),
            certificate_reloads: Counter::default(),
            certificate_errors: Counter::default(),
            ca_bundle_writes: Counter::default(),
            connections: Gauge::default(),
            leader: Gauge::default(),
            stopped: Gauge::default(),
            watched: Gauge::default(),
            stuck: Family::default(),
            policy_stuck: Family::default(),
            latched: Gauge::default(),
            rollbacks: Family::default(),
            rollbacks_in_progress: Gauge::default(),
            rollbacks_waiting: Gauge::default(),
            time_to_detect: rollout_histogram(),
            time_to_safety: rollout_histogram(),
            breaker_open: Family::default(),
            queue_depth: Gauge::default(),
            reconciles: Family::default(),
            records_written: Counter::default(),
            notifications: Family::default(),
            notification_errors: Family::default(),
            notification_queue: Family::default(),
            notifications_valid: one(),
            traces: traces::Traces::default(),
        }
    }
}

/// Nothing is wrong until something is found to be.
fn one() -> Gauge {
    let gauge = Gauge::default();
    gauge.set(1);
    gauge
}

/// 20 us to 1.3 s: what is judged takes tens of microseconds, what asks for an override up to a second.
fn duration_histogram() -> Histogram {
    Histogram::new([0.00002, 0.00005, 0.0001, 0.0002, 0.0005, 0.001, 0.005, 0.02, 0.1, 0.5, 1.3])
}

/// 1 s to an hour: from a missing image to a progress deadline.
fn rollout_histogram() -> Histogram {
    Histogram::new([1.0, 2.0, 5.0, 10.0, 20.0, 40.0, 60.0, 90.0, 120.0, 300.0, 600.0, 1200.0, 3600.0])
}

impl Metrics {
    /// Counts one call that was not judged.
    pub fn reject(&self, cause: &'static str) {
        self.rejected.get_or_create(&RejectedLabels { cause }).inc();
    }

    /// Counts the time that one call took.
    pub fn took(&self, endpoint: Endpoint, elapsed: Duration) {
        self.duration.get_or_create(&EndpointLabels { endpoint }).observe(elapsed.as_secs_f64());
    }

    /// Returns a registry with every metric under the prefix `rollout_guard`.
    pub fn registry(&self) -> Registry {
        let mut registry = Registry::with_prefix("rollout_guard");
        let r = &mut registry;
        r.register(
            "build",
            "Version of the running binary",
            Info::new(vec![("version", env!("CARGO_PKG_VERSION"))]),
        );
        r.register(
            "admission_decisions",
            "Admission decisions by verdict, reason and mode of the policy",
            self.decisions.clone(),
        );
        r.register_with_unit(
            "admission_duration",
            "Time from the whole request read to the answer ready",
            Unit::Seconds,
            self.duration.clone(),
        );
        r.register("admission_in_flight", "Admission calls being answered", self.in_flight.clone());
        r.register(
            "admission_rejected",
            "Calls and connections that were not judged, by cause",
            self.rejected.clone(),
        );
        r.register(
            "admission_ignored",
            "Reviews of kinds, subresources or operations that are not the guard's",
            self.ignored.clone(),
        );
        r.register("overrides", "Override requests by outcome", self.overrides.clone());
        r.register(
            "policy_valid",
            "1 where the RolloutPolicy as stored is valid, 0 where the last valid one goes on",
            self.policy_valid.clone(),
        );
        r.register(
            "policy_guarded_deployments",
            "Deployments that the RolloutPolicy guards",
            self.policy_guarded.clone(),
        );
        r.register(
            "policy_fallback_ready",
            "1 where the ValidatingAdmissionPolicy of the RolloutPolicy is in place",
            self.fallback_ready.clone(),
        );
        r.register(
            "certificate_expiry_timestamp_seconds",
            "When the served certificate ends, in seconds since 1970",
            self.certificate_expiry.clone(),
        );
        r.register(
            "certificate_reloads",
            "Served certificates that were replaced without a restart",
            self.certificate_reloads.clone(),
        );
        r.register(
            "certificate_errors",
            "Certificates that could not be loaded, renewed or published",
            self.certificate_errors.clone(),
        );
        r.register(
            "ca_bundle_writes",
            "Times the caBundle of a webhook configuration was written",
            self.ca_bundle_writes.clone(),
        );
        r.register("connections", "Open TLS connections", self.connections.clone());
        self.register_watcher(r);
        registry
    }
}

impl Metrics {
    fn register_watcher(&self, r: &mut Registry) {
        r.register("leader", "1 where this process leads", self.leader.clone());
        r.register("stopped", "1 where the kill switch of the whole guard is pulled", self.stopped.clone());
        r.register("watched_deployments", "Deployments that the leader watches", self.watched.clone());
        r.register("stuck_deployments", "Stuck Deployments by cause", self.stuck.clone());
        r.register(
            "policy_stuck_deployments",
            "Stuck Deployments of the RolloutPolicy",
            self.policy_stuck.clone(),
        );
        r.register(
            "latched_deployments",
            "Deployments that are stuck on the revision that was put back",
            self.latched.clone(),
        );
        r.register("rollbacks", "Rollbacks by outcome and cause", self.rollbacks.clone());
        r.register(
            "rollbacks_in_progress",
            "Rollbacks of which the outcome is not known yet",
            self.rollbacks_in_progress.clone(),
        );
        r.register(
            "rollbacks_waiting",
            "Rollbacks that wait for their turn: as many as allowed are in progress or were started",
            self.rollbacks_waiting.clone(),
        );
        r.register_with_unit(
            "time_to_detect",
            "From a push first seen to its failure known",
            Unit::Seconds,
            self.time_to_detect.clone(),
        );
        r.register_with_unit(
            "time_to_safety",
            "From a push first seen to the earlier template complete again",
            Unit::Seconds,
            self.time_to_safety.clone(),
        );
        r.register("breaker_open", "1 where no rollback may start, by reason", self.breaker_open.clone());
        r.register("queue_depth", "Deployments that are due and not looked at yet", self.queue_depth.clone());
        r.register("reconciles", "Looks at Deployments by result", self.reconciles.clone());
        r.register("records_written", "Writes of RolloutRecords", self.records_written.clone());
        self.register_notifications(r);
    }

    fn register_notifications(&self, r: &mut Registry) {
        r.register("notifications", "Notifications by receiver and outcome", self.notifications.clone());
        r.register(
            "notification_errors",
            "Attempts to tell a receiver that failed",
            self.notification_errors.clone(),
        );
        r.register(
            "notification_queue_depth",
            "Notifications that wait for a receiver, alerts that last",
            self.notification_queue.clone(),
        );
        r.register(
            "notifications_config_valid",
            "0 where the configuration of the notifications cannot be used as it is, else 1",
            self.notifications_valid.clone(),
        );
    }
}

/// Writes `registry` in the OpenMetrics text format.
///
/// # Errors
/// Never in practice; the encoder writes to a `String`.
pub fn openmetrics(registry: &Registry) -> Result<String, fmt::Error> {
    let mut text = String::with_capacity(8 * 1024);
    encode(&mut text, registry)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_carries_the_prefix_and_counters_end_in_total() {
        let metrics = Metrics::default();
        metrics.reject("overload");
        let text = openmetrics(&metrics.registry()).expect("encodes");
        for line in text.lines().filter(|l| l.starts_with("# TYPE")) {
            assert!(line.starts_with("# TYPE rollout_guard_"), "{line}");
        }
        assert!(text.contains("rollout_guard_admission_rejected_total{cause=\"overload\"} 1"), "{text}");
        assert!(text.contains("rollout_guard_build_info{version="), "{text}");
    }

    #[test]
    fn a_log_level_that_is_none_is_named_in_the_error() {
        let error = start_logs(LogFormat::Text, "rollout_guard=loud").expect_err("no such level");
        assert!(error.to_string().contains("rollout_guard=loud"), "{error}");
    }
}
