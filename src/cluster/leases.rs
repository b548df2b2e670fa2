//! The Lease by which replicas agree on a leader.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use futures::{FutureExt, future::BoxFuture};
use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
};
use kube::{Api, api::PostParams};

use super::{Cluster, ClusterError, FIELD_MANAGER, call_within};
use crate::core::{
    lease::{BREAKER_ANNOTATION, Record, STOP_ANNOTATION},
    message::plain,
};

/// Two of these fit into the ten seconds for which a renewal counts.
const LIMIT: Duration = Duration::from_secs(4);

/// The most characters of the reason to stop, and of why the breaker is open.
const REASON: usize = 200;

/// Where the Lease is kept. Every call answers within 4 s.
pub trait LeaseStore: Send + Sync {
    /// Reads the Lease as it is now; `None` where there is none.
    ///
    /// # Errors
    /// When the store cannot be asked.
    fn read(&self) -> BoxFuture<'_, Result<Option<Record>, ClusterError>>;

    /// Creates the Lease and returns it as it is stored; `None` where there is one already.
    ///
    /// # Errors
    /// When the store refuses or does not answer. It may have been created.
    fn create(&self, record: Record) -> BoxFuture<'_, Result<Option<Record>, ClusterError>>;

    /// Replaces the Lease of the record's resourceVersion and returns it as it is stored; `None` where it is
    /// another one now, or gone. What is not in a record stays, the annotations of others among it.
    ///
    /// # Errors
    /// When the store refuses or does not answer. It may have been replaced.
    fn replace(&self, record: Record) -> BoxFuture<'_, Result<Option<Record>, ClusterError>>;
}

/// One Lease in the cluster.
pub struct ClusterLease {
    api: Api<Lease>,
    namespace: String,
    name: String,
    /// As it was last answered. A replacement is made from it, so that nothing of others is lost.
    last: Mutex<Option<Lease>>,
    /// How the breaker is, as far as this process knows.
    breaker: Box<dyn Fn() -> Option<String> + Send + Sync>,
}

impl Cluster {
    /// Returns the Lease `name`, which need not be there.
    pub fn lease(&self, namespace: &str, name: &str) -> ClusterLease {
        ClusterLease {
            api: Api::namespaced(self.client.clone(), namespace),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            last: Mutex::new(None),
            breaker: Box::new(|| None),
        }
    }
}

impl ClusterLease {
    /// Tells with each write how the breaker is, as `breaker` has it then: closed, or why it is open; none where this
    /// process does not know, and then what another one told is taken away.
    #[must_use]
    pub fn telling(mut self, breaker: impl Fn() -> Option<String> + Send + Sync + 'static) -> Self {
        self.breaker = Box::new(breaker);
        self
    }

    /// Puts how the breaker is on `lease`. Who gives the lead up knows nothing of it any more.
    fn tell(&self, lease: &mut Lease, record: &Record) {
        let told = if record.holder.is_empty() { None } else { (self.breaker)() };
        match told {
            Some(told) => {
                let annotations = lease.metadata.annotations.get_or_insert_default();
                annotations.insert(BREAKER_ANNOTATION.to_owned(), plain(&told, REASON));
            }
            None => {
                lease.metadata.annotations.as_mut().map(|all| all.remove(BREAKER_ANNOTATION));
            }
        }
    }

    fn what(&self, verb: &str) -> String {
        format!("{verb} Lease {}/{}", self.namespace, self.name)
    }

    fn params() -> PostParams {
        PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() }
    }

    fn keep(&self, lease: Option<Lease>) -> Option<Record> {
        let record = lease.as_ref().map(record_of);
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = lease;
        record
    }

    /// The Lease that was last answered, where it is the one that `record` was made from.
    fn last(&self, record: &Record) -> Option<Lease> {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner).clone()?;
        (last.metadata.resource_version.as_ref() == Some(&record.resource_version)).then_some(last)
    }

    /// Takes the answers `codes` for a race that was lost.
    fn or_lost(
        &self,
        answer: Result<Lease, ClusterError>,
        codes: &[u16],
    ) -> Result<Option<Record>, ClusterError> {
        match answer {
            Ok(lease) => Ok(self.keep(Some(lease))),
            Err(error) if error.code().is_some_and(|code| codes.contains(&code)) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl LeaseStore for ClusterLease {
    fn read(&self) -> BoxFuture<'_, Result<Option<Record>, ClusterError>> {
        async move {
            // Without a resourceVersion: from etcd, not from a cache.
            let lease = call_within(LIMIT, self.what("get"), self.api.get_opt(&self.name)).await?;
            Ok(self.keep(lease))
        }
        .boxed()
    }

    fn create(&self, record: Record) -> BoxFuture<'_, Result<Option<Record>, ClusterError>> {
        async move {
            let labels =
                ["app.kubernetes.io/name", "app.kubernetes.io/managed-by", "app.kubernetes.io/part-of"];
            let lease = Lease {
                metadata: ObjectMeta {
                    name: Some(self.name.clone()),
                    namespace: Some(self.namespace.clone()),
                    labels: Some(labels.map(|key| (key.to_owned(), "rollout-guard".to_owned())).into()),
                    annotations: record
                        .stop
                        .clone()
                        .map(|reason| BTreeMap::from([(STOP_ANNOTATION.to_owned(), reason)])),
                    ..ObjectMeta::default()
                },
                spec: Some(with(LeaseSpec::default(), &record)),
            };
            let params = Self::params();
            let created = call_within(LIMIT, self.what("create"), self.api.create(&params, &lease)).await;
            self.or_lost(created, &[409])
        }
        .boxed()
    }

    fn replace(&self, record: Record) -> BoxFuture<'_, Result<Option<Record>, ClusterError>> {
        async move {
            let Some(mut lease) = self.last(&record) else { return Ok(None) };
            lease.spec = Some(with(lease.spec.take().unwrap_or_default(), &record));
            self.tell(&mut lease, &record);
            let params = Self::params();
            // The resourceVersion that was read goes along: a Lease that changed since then is a conflict.
            let replaced =
                call_within(LIMIT, self.what("update"), self.api.replace(&self.name, &params, &lease)).await;
            self.or_lost(replaced, &[404, 409])
        }
        .boxed()
    }
}

fn record_of(lease: &Lease) -> Record {
    let spec = lease.spec.clone().unwrap_or_default();
    let annotation = |key: &str| {
        let told = lease.metadata.annotations.as_ref().and_then(|all| all.get(key));
        told.map(|told| plain(told, REASON))
    };
    Record {
        holder: spec.holder_identity.unwrap_or_default(),
        lease_duration_seconds: spec.lease_duration_seconds.unwrap_or_default(),
        acquire_time: spec.acquire_time.map(|time| time.0),
        renew_time: spec.renew_time.map(|time| time.0),
        lease_transitions: spec.lease_transitions.unwrap_or_default(),
        uid: lease.metadata.uid.clone().unwrap_or_default(),
        resource_version: lease.metadata.resource_version.clone().unwrap_or_default(),
        stop: annotation(STOP_ANNOTATION),
        breaker: annotation(BREAKER_ANNOTATION),
    }
}

/// Puts `record` into `spec` and leaves what is not in a record.
fn with(spec: LeaseSpec, record: &Record) -> LeaseSpec {
    LeaseSpec {
        // As client-go writes one that is released.
        holder_identity: Some(record.holder.clone()).filter(|holder| !holder.is_empty()),
        lease_duration_seconds: Some(record.lease_duration_seconds),
        acquire_time: record.acquire_time.map(MicroTime),
        renew_time: record.renew_time.map(MicroTime),
        lease_transitions: Some(record.lease_transitions),
        ..spec
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use http::{Request, Response, StatusCode};
    use http_body_util::BodyExt;
    use kube::{Client, client::Body};
    use serde_json::{Value, json};

    use super::*;

    /// Asks a server that answers by `answer`, and keeps what was sent.
    fn lease(
        answer: impl Fn(&str, &Value) -> (StatusCode, Value) + Send + Sync + 'static,
    ) -> (ClusterLease, Arc<Mutex<Vec<Value>>>) {
        let sent = Arc::new(Mutex::new(Vec::new()));
        let (kept, answer) = (sent.clone(), Arc::new(answer));
        let service = tower::service_fn(move |request: Request<Body>| {
            let (kept, answer) = (kept.clone(), answer.clone());
            async move {
                let method = request.method().to_string();
                let bytes = request.into_body().collect().await?.to_bytes();
                let body = serde_json::from_slice(&bytes).unwrap_or_default();
                let (status, json) = answer(&method, &body);
                kept.lock().expect("no panic").push(body);
                let response =
                    Response::builder().status(status).body(Body::from(json.to_string().into_bytes()));
                Ok::<_, tower::BoxError>(response.expect("a response"))
            }
        });
        let cluster = Cluster { client: Client::new(service, "default") };
        (cluster.lease("rollout-guard", "rollout-guard"), sent)
    }

    fn stored(version: &str) -> Value {
        json!({
            "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
            "metadata": {
                "name": "rollout-guard", "namespace": "rollout-guard", "uid": "u", "resourceVersion": version,
                "annotations": {"rollout-guard.io/stop": "incident\n42", "example.org/mine": "x"},
                "finalizers": ["example.org/keep"],
            },
            "spec": {"holderIdentity": "a", "leaseDurationSeconds": 15, "leaseTransitions": 2,
                "renewTime": "2027-01-15T08:00:00.000001Z"},
        })
    }

    fn refusal(code: u16) -> (StatusCode, Value) {
        let reason = if code == 404 { "NotFound" } else { "Other" };
        let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason});
        (StatusCode::from_u16(code).expect("a status"), status)
    }

    #[tokio::test]
    async fn a_replacement_changes_the_spec_alone_and_carries_what_was_read() {
        let (lease, sent) = lease(|_, _| (StatusCode::OK, stored("7")));
        let record = lease.read().await.expect("answered").expect("there");
        assert_eq!((record.holder.as_str(), record.lease_transitions, record.uid.as_str()), ("a", 2, "u"));
        assert_eq!(record.stop.as_deref(), Some("incident\\n42"), "what people write is on one line");
        lease.replace(Record { holder: String::new(), ..record }).await.expect("answered").expect("stored");
        let body = sent.lock().expect("no panic")[1].clone();
        assert_eq!(body["metadata"], stored("7")["metadata"]);
        assert_eq!(body["spec"]["holderIdentity"], Value::Null);
        assert_eq!(body["spec"]["renewTime"], "2027-01-15T08:00:00.000001Z");
    }

    #[tokio::test]
    async fn who_leads_tells_how_the_breaker_is_and_who_gives_it_up_takes_that_away() {
        let open = Arc::new(Mutex::new(Some("only 1 of 9 nodes are\nready".to_owned())));
        let told = open.clone();
        let (lease, sent) =
            lease(|_, body| (StatusCode::OK, if body.is_null() { stored("7") } else { body.clone() }));
        let lease = lease.telling(move || told.lock().expect("no panic").clone());
        let record = lease.read().await.expect("answered").expect("there");
        assert_eq!(record.breaker, None, "nobody knows");
        let record = lease.replace(record).await.expect("answered").expect("stored");
        assert_eq!(record.breaker.as_deref(), Some("only 1 of 9 nodes are\\nready"), "on one line");
        *open.lock().expect("no panic") = Some("closed".to_owned());
        let record = lease.replace(record).await.expect("answered").expect("stored");
        assert_eq!(record.breaker.as_deref(), Some("closed"));
        // Given up, or not known any more.
        let given_up = Record { holder: String::new(), ..record.clone() };
        let given_up = lease.replace(given_up).await.expect("answered").expect("stored");
        assert_eq!(given_up.breaker, None);
        let record = lease.replace(Record { holder: "a".to_owned(), ..given_up }).await;
        let record = record.expect("answered").expect("stored");
        *open.lock().expect("no panic") = None;
        let record = lease.replace(record).await.expect("answered").expect("stored");
        assert_eq!(record.breaker, None);
        for body in sent.lock().expect("no panic").iter().skip(1) {
            let annotations = &body["metadata"]["annotations"];
            assert_eq!(annotations["rollout-guard.io/stop"], "incident\n42", "of others: {body}");
            assert_eq!(annotations["example.org/mine"], "x", "of others: {body}");
        }
        assert_eq!(record.stop.as_deref(), Some("incident\\n42"));
    }

    #[tokio::test]
    async fn a_replacement_of_what_was_not_read_last_is_a_race_that_is_lost() {
        let (lease, sent) = lease(|_, _| (StatusCode::OK, stored("7")));
        let record = lease.read().await.expect("answered").expect("there");
        let other = Record { resource_version: "6".to_owned(), ..record };
        assert_eq!(lease.replace(other).await.expect("no call"), None);
        assert_eq!(sent.lock().expect("no panic").len(), 1);
    }

    #[tokio::test]
    async fn conflicts_are_races_that_are_lost_and_refusals_are_errors() {
        for (code, lost) in [(409, true), (404, true), (403, false)] {
            let (lease, _) = lease(move |method, _| match method {
                "GET" => (StatusCode::OK, stored("7")),
                _ => refusal(code),
            });
            let record = lease.read().await.expect("answered").expect("there");
            let answer = lease.replace(record).await;
            assert_eq!(answer.as_ref().is_ok_and(Option::is_none), lost, "{code}: {answer:?}");
        }
        let (lease, _) = lease(|method, _| refusal(if method == "GET" { 404 } else { 409 }));
        assert_eq!(lease.read().await.expect("answered"), None);
        assert_eq!(lease.create(Record::default()).await.expect("answered"), None);
    }
}
