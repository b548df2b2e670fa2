//! One review in, one answer out: what `/validate`, `/mutate` and `rollout-guard judge` share.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use jiff::Timestamp;

use super::review::{
    Deployment, Details, RefusalStatus, Request, Response, ReviewError, StatusCause, Subject,
};
use crate::{
    api::policy::Mode,
    cluster::{access::Access, announcements::Announcements},
    core::{
        admission::{Allowed, Change, Refusal, Refused, Verdict, decide},
        key::Key,
        ledger::Recorded,
        message::{self, Message, OverrideRefused, harmless, plain},
        mutation,
        policy::Policy,
    },
    telemetry::{
        DecisionLabels, Metrics, OverrideLabels,
        traces::{DecisionSpan, TraceParent},
    },
    world::World,
};

/// Decides on reviews.
#[derive(Clone)]
pub struct Judge {
    /// Policies, namespaces and records.
    pub world: World,
    /// Who may override.
    pub access: Arc<dyn Access>,
    /// What takes the announcement of a rollback away.
    pub announcements: Arc<dyn Announcements>,
    /// What is counted.
    pub metrics: Metrics,
    /// Where the reason ids are explained.
    pub docs: Arc<str>,
}

/// What became of one update, for the log line and `rollout-guard judge`.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// `allow`, `wait`, `deny`, `warn`, `audit` or `override`.
    pub verdict: &'static str,
    /// The reason id, or `none`.
    pub reason: &'static str,
    /// Why it was let through, where the table lets it through.
    pub allowed_because: Option<&'static str>,
    /// The policy that applied.
    pub policy: Option<String>,
    /// Its mode.
    pub mode: Option<Mode>,
    /// The words, where the table refuses.
    pub message: Option<Message>,
}

impl Outcome {
    fn allow(why: Allowed, policy: Option<&Policy>) -> Self {
        Self {
            verdict: "allow",
            reason: "none",
            allowed_because: Some(why.label()),
            policy: policy.map(|p| p.name.clone()),
            mode: policy.map(|p| p.mode),
            message: None,
        }
    }
}

impl Judge {
    /// Answers a request to `/validate`.
    ///
    /// # Errors
    /// When the request says that it is about a Deployment and is not.
    pub async fn validate(&self, request: &Request<'_>, now: Timestamp) -> Result<Response, ReviewError> {
        Ok(self.validate_with_outcome(request, now).await?.0)
    }

    /// Like [`Judge::validate`], and says what became of it. None: it was not the guard's business.
    ///
    /// # Errors
    /// When the request says that it is about a Deployment and is not.
    pub async fn validate_with_outcome(
        &self,
        request: &Request<'_>,
        now: Timestamp,
    ) -> Result<(Response, Option<Outcome>), ReviewError> {
        self.validate_from(request, None, now).await
    }

    /// Like [`Judge::validate_with_outcome`], for a call that is part of the trace of `caller`.
    ///
    /// # Errors
    /// When the request says that it is about a Deployment and is not.
    pub async fn validate_from(
        &self,
        request: &Request<'_>,
        caller: Option<TraceParent>,
        now: Timestamp,
    ) -> Result<(Response, Option<Outcome>), ReviewError> {
        let started = Instant::now();
        let mut response =
            Response { uid: request.uid.0.clone().into_owned(), allowed: true, ..Response::default() };
        // What is not an update of a Deployment need not have the shape of one.
        let objects = match request.subject() {
            Subject::Update => (request.object(), request.old_object()),
            Subject::Create | Subject::Other => (None, None),
        };
        let (Some(object), Some(old)) = objects else {
            self.metrics.ignored.inc();
            return Ok((response, None));
        };
        let policy = self.world.effective(&request.namespace.0, || old.labels());
        let same_generation = object.generation() == old.generation();
        let change = Change {
            namespace: &request.namespace.0,
            name: &request.name.0,
            old: old.snapshot(),
            new_generation: object.generation(),
            template_changed: !same_generation && !object.same_template(old),
            dry_run: request.dry_run(),
            by_guard: self.world.own_user() == Some(request.user_name()),
        };
        let ledger = match change.template_changed {
            true => self.world.ledger(change.namespace, change.name, old.uid()),
            false => None,
        };
        let recorded = || {
            let found = ledger.as_deref().and_then(|ledger| Some(ledger.recorded(object.template_hash()?)));
            found.unwrap_or(Recorded::Nothing)
        };
        let outcome = match (decide(&change, policy.as_deref(), recorded, now), policy.as_deref()) {
            (Verdict::Allow(why), policy) => Outcome::allow(why, policy),
            (Verdict::Refuse(refusal), Some(policy)) => {
                let asked = override_asked(object, old);
                self.refuse(request, &change, &refusal, policy, asked, &mut response).await
            }
            // The table refuses nothing without a policy.
            (Verdict::Refuse(_), None) => Outcome::allow(Allowed::NotGuarded, None),
        };
        // Also where no policy applies any more: what stands there is the guard's own, and fails a good push. A push of what was put
        // back changes nothing of the template, and maybe nothing at all: Helm's own rollback, a revert.
        let pushes = || change.template_changed || old.template_is_of(&request.field_manager());
        if response.allowed && old.announces_rollback() && pushes() {
            self.retract(&change, old.uid()).await;
        }
        self.record(request, &outcome, caller, started.elapsed());
        Ok((response, Some(outcome)))
    }

    /// Takes the announcement of a rollback away before the push is stored, so that whoever waits for it never
    /// sees both. It denies nothing: at worst the push is told as failed, as the one before.
    ///
    /// A status that was written makes the API server run a PATCH again, admission included; then nothing stands there.
    async fn retract(&self, change: &Change<'_>, uid: &str) {
        // The guard's own restore comes right after the announcement.
        if change.dry_run || change.by_guard || change.old.deleting {
            return;
        }
        let key = Key::new(change.namespace, change.name);
        match self.announcements.retract(&key, uid).await {
            Ok(()) => tracing::debug!(deployment = %plain(&key.to_string(), 320), "announcement taken away"),
            Err(error) => tracing::warn!(%error, "announcement of a rollback not taken away"),
        }
    }

    /// Carries a refusal out as the policy's mode says, unless somebody who may overrides it.
    async fn refuse(
        &self,
        request: &Request<'_>,
        change: &Change<'_>,
        refusal: &Refusal<'_>,
        policy: &Policy,
        asked: Option<&str>,
        response: &mut Response,
    ) -> Outcome {
        let mut words = message::refusal(change, refusal, &policy.name, &self.docs);
        let audit = &mut response.audit_annotations;
        audit.insert("reason", refusal.reason.id().to_owned());
        audit.insert("policy", policy.name.clone());
        audit.insert("mode", policy.mode.label().to_owned());
        audit.insert("message", words.first_line().to_owned());

        let verdict = match policy.mode {
            Mode::Off => "allow",
            Mode::Audit => "audit",
            Mode::Warn => {
                response.warnings = words.text.lines().map(str::to_owned).collect();
                "warn"
            }
            Mode::Enforce => match self.overridden(request, policy, asked, &mut words, audit).await {
                true => "override",
                false => {
                    let status = status(change, refusal, &words);
                    let verdict = if status.code == 429 { "wait" } else { "deny" };
                    response.allowed = false;
                    response.status = Some(status);
                    verdict
                }
            },
        };
        audit.insert("verdict", verdict.to_owned());
        Outcome {
            verdict,
            reason: refusal.reason.id(),
            allowed_because: None,
            policy: Some(policy.name.clone()),
            mode: Some(policy.mode),
            message: Some(words),
        }
    }

    /// Says whether somebody who may asked for an override in this very update. Why it did not count is added
    /// to `words`.
    async fn overridden(
        &self,
        request: &Request<'_>,
        policy: &Policy,
        asked: Option<&str>,
        words: &mut Message,
        audit: &mut BTreeMap<&'static str, String>,
    ) -> bool {
        let Some(reason) = asked else { return false };
        let count = |outcome| self.metrics.overrides.get_or_create(&OverrideLabels { outcome }).inc();
        let user = plain(request.user_name(), 253);
        let quoted = harmless(&plain(reason, 256));
        if reason.trim().is_empty() {
            message::override_refused(words, OverrideRefused::NoReason);
            return false;
        }
        match self.access.may_override(&request.user(), &policy.name).await {
            Ok(true) => {
                count("granted");
                tracing::warn!(uid = %plain(&request.uid.0, 64), user, reason = quoted, policy = policy.name, "override granted");
                audit.insert("override", quoted);
                audit.insert("override-by", harmless(&user));
                true
            }
            Ok(false) => {
                count("refused");
                let why = OverrideRefused::NoRight { user: request.user_name(), policy: &policy.name };
                message::override_refused(words, why);
                audit.insert("override-refused", quoted);
                false
            }
            Err(error) => {
                count("failed");
                tracing::warn!(%error, "override denied for want of an answer");
                message::override_refused(words, OverrideRefused::NoAnswer);
                audit.insert("override-refused", quoted);
                false
            }
        }
    }

    /// Answers a request to `/mutate`.
    ///
    /// # Errors
    /// When the request says that it is about a Deployment and is not.
    pub fn mutate(&self, request: &Request<'_>) -> Result<Response, ReviewError> {
        let mut response =
            Response { uid: request.uid.0.clone().into_owned(), allowed: true, ..Response::default() };
        let subject = request.subject();
        let object = if subject == Subject::Other { None } else { request.object() };
        let Some(object) = object else {
            self.metrics.ignored.inc();
            return Ok(response);
        };
        let old = if subject == Subject::Update { request.old_object() } else { None };
        let labels = || old.unwrap_or(object).labels();
        let policy = self.world.effective(&request.namespace.0, labels);
        let settings = object.settings();
        let spec_changed = old.is_none_or(|old| !object.same_spec(old));
        let template_changed = match old {
            Some(old) if spec_changed => !object.same_template(old),
            _ => false,
        };
        let patch = mutation::patch(
            &mutation::Subject {
                old_generation: old.map(Deployment::generation),
                old_admitted: old.and_then(Deployment::admitted),
                admitted: object.admitted(),
                has_annotations: object.has_annotations(),
                spec_changed,
                template_changed,
                progress_deadline_seconds: settings.progress_deadline_seconds,
                revision_history_limit: settings.revision_history_limit,
                min_ready_seconds: settings.min_ready_seconds,
            },
            policy.as_deref(),
        );
        if !patch.0.is_empty() {
            response.patch = Some(base64(&serde_json::to_vec(&patch)?));
            response.patch_type = Some("JSONPatch");
        }
        Ok(response)
    }

    /// Counts a decision, writes its log line and hands over its span. Nothing that users wrote goes in unescaped.
    fn record(&self, request: &Request<'_>, outcome: &Outcome, caller: Option<TraceParent>, took: Duration) {
        let mode = outcome.mode.map_or("none", Mode::label);
        let labels = DecisionLabels { verdict: outcome.verdict, reason: outcome.reason, mode };
        self.metrics.decisions.get_or_create(&labels).inc();
        let uid = plain(&request.uid.0, 64);
        let (namespace, name) = (plain(&request.namespace.0, 63), plain(&request.name.0, 253));
        let trace_id = self.metrics.traces.decision(&DecisionSpan {
            parent: caller,
            took,
            uid: &uid,
            namespace: &namespace,
            name: &name,
            verdict: outcome.verdict,
            reason: outcome.reason,
            policy: outcome.policy.as_deref().unwrap_or_default(),
            mode,
            dry_run: request.dry_run(),
        });
        tracing::info!(
            trace_id = trace_id.map(tracing::field::display),
            %uid,
            %namespace,
            %name,
            user = %plain(request.user_name(), 253),
            dry_run = request.dry_run(),
            verdict = outcome.verdict,
            reason = outcome.reason,
            because = outcome.allowed_because.unwrap_or_default(),
            policy = outcome.policy.as_deref().unwrap_or_default(),
            mode,
            latency_us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX),
            "decision"
        );
    }
}

/// Returns the reason of an override that this update sets or changes; one that stands there already is spent.
fn override_asked<'a>(object: &'a Deployment<'_>, old: &Deployment<'_>) -> Option<&'a str> {
    object.override_reason().filter(|reason| Some(*reason) != old.override_reason())
}

/// Both code and reason are set, or the API server would answer 400 without one. 409 and 422 are never used:
/// clients answer those by deleting and recreating the object.
fn status(change: &Change<'_>, refusal: &Refusal<'_>, words: &Message) -> RefusalStatus {
    let (code, reason, retry_after_seconds) = match refusal.refused {
        Refused::Deny => (403, "Forbidden", None),
        Refused::Wait { retry_after_seconds } => (429, "TooManyRequests", Some(retry_after_seconds)),
    };
    let cause = |(reason, message): &(&'static str, String)| StatusCause {
        reason,
        message: message.clone(),
        field: "spec.template",
    };
    RefusalStatus {
        status: "Failure",
        code,
        reason,
        message: words.text.clone(),
        details: Details {
            name: harmless(&plain(change.name, 253)),
            group: "apps",
            kind: "deployments",
            causes: words.causes.iter().map(cause).collect(),
            retry_after_seconds,
        },
    }
}

fn base64(bytes: &[u8]) -> String {
    // k8s-openapi's ByteString is base64 by its Serialize; a patch is small enough not to mind the detour.
    let encoded = serde_json::to_value(k8s_openapi::ByteString(bytes.to_vec())).unwrap_or_default();
    encoded.as_str().unwrap_or_default().to_owned()
}
