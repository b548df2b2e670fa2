//! An API server that keeps one Secret and two webhook configurations: resourceVersions, conflicts,
//! server-side apply of a caBundle, lists and watches, over real HTTP.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::{Request, State},
    response::{IntoResponse, Response},
};
use http::StatusCode;
use k8s_openapi::ByteString;
use rollout_guard::cluster::Cluster;
use serde_json::{Value, json};
use tokio::{net::TcpListener, sync::watch};

pub const NAMESPACE: &str = "rollout-guard";
pub const SECRET: &str = "guard-certificates";
pub const SECRETS: &str = "/api/v1/namespaces/rollout-guard/secrets";
pub const VALIDATING: &str = "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations";
pub const MUTATING: &str = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations";

#[derive(Clone)]
pub struct Api {
    state: Arc<Mutex<Objects>>,
    changed: watch::Sender<u64>,
    held: watch::Sender<bool>,
    watches: Arc<AtomicUsize>,
    url: http::Uri,
}

#[derive(Default)]
struct Objects {
    version: u64,
    by_path: BTreeMap<String, Value>,
    /// Collection and watch event, in order of their versions.
    events: Vec<(u64, String, Value)>,
    /// Method and status of every call that is no watch.
    calls: Vec<(String, u16)>,
}

impl Objects {
    fn record(&mut self, collection: &str, kind: &str, object: &Value) {
        let metadata = json!({
            "type": kind,
            "object": {"apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata", "metadata": object["metadata"]},
        });
        self.events.push((self.version, collection.to_owned(), metadata));
    }

    fn write(&mut self, collection: &str, mut object: Value, create: bool) -> Value {
        self.version += 1;
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        if create {
            object["metadata"]["uid"] = json!(format!("uid-{}", self.version));
        }
        let name = object["metadata"]["name"].as_str().expect("a name").to_owned();
        self.record(collection, if create { "ADDED" } else { "MODIFIED" }, &object);
        self.by_path.insert(format!("{collection}/{name}"), object.clone());
        object
    }

    fn delete(&mut self, collection: &str, name: &str) -> Option<Value> {
        let mut object = self.by_path.remove(&format!("{collection}/{name}"))?;
        self.version += 1;
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        self.record(collection, "DELETED", &object);
        Some(object)
    }
}

fn configuration(kind: &str, webhook: &str) -> Value {
    json!({
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": kind,
        "metadata": {"name": "guard"},
        "webhooks": [{
            "name": webhook,
            "admissionReviewVersions": ["v1"],
            "sideEffects": "None",
            "clientConfig": {"service": {"name": "guard", "namespace": NAMESPACE, "path": "/validate"}},
        }],
    })
}

impl Api {
    /// Starts one with both configurations and no Secret.
    pub async fn start() -> Self {
        rollout_guard::tls::install_provider();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let url = format!("http://{}", listener.local_addr().expect("an address")).parse().expect("a URL");
        let api = Self {
            state: Arc::default(),
            changed: watch::channel(0).0,
            held: watch::channel(false).0,
            watches: Arc::default(),
            url,
        };
        api.put(VALIDATING, configuration("ValidatingWebhookConfiguration", "validate.rollout-guard.io"));
        api.put(MUTATING, configuration("MutatingWebhookConfiguration", "mutate.rollout-guard.io"));
        let router = Router::new().fallback(answer).with_state(api.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        api
    }

    pub fn connect(&self) -> Cluster {
        Cluster::new(kube::Config::new(self.url.clone())).expect("connects")
    }

    fn objects(&self) -> MutexGuard<'_, Objects> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self) {
        let version = self.objects().version;
        self.changed.send_replace(version);
    }

    /// How many watches are open.
    pub fn watches(&self) -> usize {
        self.watches.load(Ordering::SeqCst)
    }

    /// How many calls by `method` succeeded.
    pub fn successes(&self, method: &str) -> usize {
        self.objects().calls.iter().filter(|(m, status)| m == method && *status < 300).count()
    }

    /// Lets patches wait, as if they had never arrived, or lets them through again.
    pub fn hold_patches(&self, hold: bool) {
        self.held.send_replace(hold);
    }

    pub fn put(&self, collection: &str, object: Value) {
        self.objects().write(collection, object, true);
        self.tell();
    }

    pub fn remove(&self, collection: &str) -> Value {
        let object = self.objects().delete(collection, "guard").expect("is there");
        self.tell();
        object
    }

    pub fn exists(&self, collection: &str) -> bool {
        self.objects().by_path.contains_key(&format!("{collection}/guard"))
    }

    pub fn bundle(&self, collection: &str) -> String {
        let objects = self.objects();
        let bundle =
            &objects.by_path[&format!("{collection}/guard")]["webhooks"][0]["clientConfig"]["caBundle"];
        let bytes: ByteString = serde_json::from_value(bundle.clone()).unwrap_or_default();
        String::from_utf8(bytes.0).expect("text")
    }

    pub fn set_bundle(&self, collection: &str, pem: &str) {
        {
            let mut objects = self.objects();
            let mut object = objects.by_path[&format!("{collection}/guard")].clone();
            object["webhooks"][0]["clientConfig"]["caBundle"] = json!(ByteString(pem.as_bytes().to_vec()));
            objects.write(collection, object, false);
        }
        self.tell();
    }

    pub fn wipe(&self, collection: &str) {
        self.set_bundle(collection, "");
    }

    pub fn delete_secret(&self) {
        self.objects().delete(SECRETS, SECRET);
        self.tell();
    }

    pub fn secret_text(&self, key: &str) -> Option<String> {
        let objects = self.objects();
        let value = objects.by_path.get(&format!("{SECRETS}/{SECRET}"))?["data"].get(key)?.clone();
        String::from_utf8(serde_json::from_value::<ByteString>(value).ok()?.0).ok()
    }

    pub fn edit_secret(&self, edit: impl FnOnce(&mut BTreeMap<String, Vec<u8>>)) {
        {
            let mut objects = self.objects();
            let mut object = objects.by_path[&format!("{SECRETS}/{SECRET}")].clone();
            let data: BTreeMap<String, ByteString> =
                serde_json::from_value(object["data"].clone()).expect("data");
            let mut data = data.into_iter().map(|(key, value)| (key, value.0)).collect();
            edit(&mut data);
            let data: BTreeMap<_, _> =
                data.into_iter().map(|(key, value)| (key, ByteString(value))).collect();
            object["data"] = json!(data);
            objects.write(SECRETS, object, false);
        }
        self.tell();
    }

    fn watch_from(self, collection: String, version: u64) -> Response {
        struct Open(Arc<AtomicUsize>);
        impl Drop for Open {
            fn drop(&mut self) {
                self.0.fetch_sub(1, Ordering::SeqCst);
            }
        }
        self.watches.fetch_add(1, Ordering::SeqCst);
        let open = Open(Arc::clone(&self.watches));
        let changed = self.changed.subscribe();
        let start = (self, changed, version, open);
        let stream = futures::stream::unfold(start, move |(api, mut changed, version, open)| {
            let collection = collection.clone();
            async move {
                loop {
                    changed.borrow_and_update();
                    let next = api
                        .objects()
                        .events
                        .iter()
                        .find(|(at, of, _)| *at > version && *of == collection)
                        .map(|(at, _, event)| (*at, event.to_string() + "\n"));
                    if let Some((at, line)) = next {
                        return Some((Ok::<_, Infallible>(Bytes::from(line)), (api, changed, at, open)));
                    }
                    changed.changed().await.ok()?;
                }
            }
        });
        Body::from_stream(stream).into_response()
    }

    fn list(&self, collection: &str) -> Value {
        let objects = self.objects();
        let prefix = format!("{collection}/");
        let items: Vec<_> = objects
            .by_path
            .iter()
            .filter(|(path, _)| path.starts_with(&prefix))
            .map(|(_, object)| {
                json!({"apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata", "metadata": object["metadata"]})
            })
            .collect();
        json!({
            "apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadataList",
            "metadata": {"resourceVersion": objects.version.to_string()}, "items": items,
        })
    }

    fn change(&self, method: &str, path: &str, body: &Value) -> Result<Value, (u16, &'static str)> {
        let mut objects = self.objects();
        if method == "POST" {
            let name = body["metadata"]["name"].as_str().ok_or((422, "Invalid"))?;
            if objects.by_path.contains_key(&format!("{path}/{name}")) {
                return Err((409, "AlreadyExists"));
            }
            return Ok(objects.write(path, body.clone(), true));
        }
        let mut object = objects.by_path.get(path).cloned().ok_or((404, "NotFound"))?;
        if method == "GET" {
            return Ok(object);
        }
        for guard in ["resourceVersion", "uid"] {
            let given = &body["metadata"][guard];
            if !given.is_null() && *given != object["metadata"][guard] {
                return Err((409, "Conflict"));
            }
        }
        let (collection, _) = path.rsplit_once('/').ok_or((404, "NotFound"))?;
        if method == "PUT" {
            return Ok(objects.write(collection, body.clone(), false));
        }
        for webhook in body["webhooks"].as_array().into_iter().flatten() {
            let webhooks = object["webhooks"].as_array_mut().ok_or((422, "Invalid"))?;
            let there = webhooks.iter_mut().find(|w| w["name"] == webhook["name"]).ok_or((422, "Invalid"))?;
            there["clientConfig"]["caBundle"] = webhook["clientConfig"]["caBundle"].clone();
        }
        if objects.by_path.get(path) == Some(&object) {
            return Ok(object);
        }
        Ok(objects.write(collection, object, false))
    }
}

async fn answer(State(api): State<Api>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let (method, path) = (parts.method.as_str().to_owned(), parts.uri.path().to_owned());
    let query = parts.uri.query().unwrap_or_default().to_owned();
    if [SECRETS, VALIDATING, MUTATING].contains(&path.as_str()) && method == "GET" {
        assert!(query.contains("fieldSelector=metadata.name%3D"), "names what it may see: {query}");
        if !query.contains("watch=true") {
            return axum_json(StatusCode::OK, &api.list(&path));
        }
        let version = query.split('&').find_map(|p| p.strip_prefix("resourceVersion="));
        let version = version.and_then(|v| v.parse().ok()).unwrap_or(0);
        return api.watch_from(path, version);
    }
    // Replicas that do the same at once must have the time to get into each other's way.
    tokio::time::sleep(Duration::from_millis(2)).await;
    if method == "PATCH" {
        assert!(query.contains("fieldManager=rollout-guard-ca") && query.contains("force=true"), "{query}");
        let mut held = api.held.subscribe();
        let _ = held.wait_for(|held| !held).await;
    }
    let bytes = axum::body::to_bytes(body, 1 << 20).await.unwrap_or_default();
    let body = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
    let changed = api.change(&method, &path, &body);
    let status = changed.as_ref().map_or_else(|(code, _)| *code, |_| 200);
    api.objects().calls.push((method, status));
    api.tell();
    match changed {
        Ok(object) => axum_json(StatusCode::OK, &object),
        Err((code, reason)) => axum_json(
            StatusCode::from_u16(code).expect("a status"),
            &json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "code": code, "message": reason}),
        ),
    }
}

fn axum_json(status: StatusCode, value: &Value) -> Response {
    (status, [(http::header::CONTENT_TYPE, "application/json")], value.to_string()).into_response()
}
