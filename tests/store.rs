//! What the watcher keeps of Deployments, and the stream that it comes from.

#![allow(clippy::expect_used, clippy::panic, reason = "helpers of tests")]

use std::{
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures::StreamExt;
use http::{Request, Response};
use kube::client::Body;
use proptest::prelude::*;
use rollout_guard::{
    cluster::{Cluster, deployments::RawDeployment, policies::Event},
    core::{
        key::Key,
        rollout::{Phase, Snapshot, classify},
        template::TemplateHash,
    },
    watcher::store::{Change, Observed, Reason, Store},
};
use serde_json::{Value, json};

const UID: &str = "a3e0b2cf-2c5e-4c9f-b4c6-7f8a9b0c1d2e";

fn deployment(name: &str, tag: &str) -> Value {
    json!({
        "kind": "Deployment", "apiVersion": "apps/v1",
        "metadata": {
            "name": name, "namespace": "shop", "uid": UID, "generation": 3, "resourceVersion": "41",
            "labels": {"app": name, "team": "payments"},
            "managedFields": [
                {"manager": "helm", "operation": "Apply", "time": "2026-11-23T10:00:00Z",
                 "fieldsV1": {"f:spec": {"f:replicas": {}}}},
                {"manager": "kube-controller-manager", "operation": "Update", "subresource": "status",
                 "time": "2026-11-23T10:01:00Z"}
            ]
        },
        "spec": {
            "replicas": 2,
            "template": {"metadata": {"labels": {"app": name}}, "spec": {"containers": [{"image": tag}]}}
        },
        "status": {
            "observedGeneration": 3, "replicas": 2, "updatedReplicas": 2, "availableReplicas": 2,
            "conditions": [{
                "type": "Progressing", "status": "True", "reason": "NewReplicaSetAvailable",
                "lastUpdateTime": "2026-11-23T10:00:30Z", "message": "a \"quoted\" message"
            }]
        }
    })
}

fn with(mut object: Value, pointer: &str, value: Value) -> Value {
    *object.pointer_mut(pointer).expect("a field") = value;
    object
}

fn apply(store: &mut Store, object: &Value) -> Change {
    store.apply(&object.to_string()).expect("readable")
}

fn web() -> Key {
    Key::new("shop", "web")
}

// ---- what an event tells --------------------------------------------------------------------------------------

#[test]
fn the_facts_are_those_of_the_whole_object_in_every_captured_review() {
    let mut compared = 0;
    for file in std::fs::read_dir("tests/fixtures").expect("fixtures") {
        let path = file.expect("a file").path();
        if path.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        let text = std::fs::read_to_string(&path).expect("text");
        let review: Value = serde_json::from_str(&text).expect("JSON");
        for object in [&review["request"]["object"], &review["request"]["oldObject"]] {
            if object["kind"] != "Deployment" || object["metadata"]["name"].is_null() {
                continue;
            }
            let view = apply(&mut Store::new(), object).after;
            let whole = Snapshot::of(object);
            assert_eq!(view.phase, classify(&whole), "{path:?}");
            assert_eq!(
                (view.generation, view.observed_generation, view.desired, view.updated, view.available),
                (whole.generation, whole.observed_generation, whole.desired, whole.updated, whole.available),
                "{path:?}"
            );
            assert_eq!(view.written_at, whole.written_at, "{path:?}");
            assert_eq!(view.replica_failure, whole.replica_failure.is_some(), "{path:?}");
            assert_eq!(view.template, TemplateHash::of(&object["spec"]["template"]), "{path:?}");
            assert_eq!(view.uid, object["metadata"]["uid"].as_str().unwrap_or_default(), "{path:?}");
            let reason = whole.progressing.as_ref().map(|condition| &*condition.reason);
            assert_eq!(view.progressing.map(Reason::text), reason, "{path:?}");
            let labels: BTreeMap<String, String> =
                serde_json::from_value(object["metadata"]["labels"].clone()).unwrap_or_default();
            assert_eq!(*view.labels, labels, "{path:?}");
            compared += 1;
        }
    }
    assert!(compared > 40, "{compared} objects");
}

#[test]
fn before_and_after_are_told_and_a_repetition_changes_nothing() {
    let mut store = Store::new();
    let first = apply(&mut store, &deployment("web", "web:1"));
    assert_eq!((&first.key, &first.before), (&web(), &None));
    assert_eq!(first.after.phase, Phase::Complete);
    assert_eq!(first.after.complete_since, "2026-11-23T10:00:30Z".parse().ok());

    let again = apply(&mut store, &deployment("web", "web:1"));
    assert_eq!(again.before.as_ref(), Some(&again.after));
    assert_eq!(again.after, first.after);

    let pushed = with(deployment("web", "web:2"), "/metadata/generation", json!(4));
    let change = apply(&mut store, &pushed);
    let before = change.before.expect("known");
    assert_eq!((before.phase, change.after.phase), (Phase::Complete, Phase::Unobserved));
    assert_eq!(before.template, first.after.template);
    assert_eq!(change.after.template, TemplateHash::of(&pushed["spec"]["template"]));
    assert_ne!(before.template, change.after.template);
    assert_eq!(change.after.complete_since, None, "the condition is that of the generation before");
    assert_eq!(store.get(&web()), Some(change.after));
    assert_eq!(store.len(), 1);
}

#[test]
fn another_deployment_of_the_same_name_has_no_before() {
    let mut store = Store::new();
    let almost = "a3e0b2cf-2c5e-4c9f-b4c6-7f8a9b0c1d2f";
    let shifted = "a3e0b2cf2-c5e-4c9f-b4c6-7f8a9b0c1d2e";
    for uid in [UID, almost, shifted, "no uuid at all", "", &UID.to_uppercase()] {
        let change = apply(&mut store, &with(deployment("web", "web:1"), "/metadata/uid", json!(uid)));
        assert_eq!((change.before, change.after.uid.as_str()), (None, uid));
    }
    assert_eq!(store.len(), 1);
}

#[test]
fn a_template_told_in_another_order_is_the_same_template() {
    let mut store = Store::new();
    let told = |template: &str| {
        format!(r#"{{"metadata":{{"name":"web","namespace":"shop","uid":"u"}},"spec":{{{template}}}}}"#)
    };
    let first = store.apply(&told(r#""template":{"a":1,"b":2.0}"#)).expect("readable").after;
    assert_eq!(store.apply(&told(r#""template":{"b":2,"a":1}"#)).expect("readable").after, first);
    assert_eq!(store.apply(&told("")).expect("readable").after.template, TemplateHash::of(&Value::Null));
}

#[test]
fn what_the_guard_has_left_behind_is_seen() {
    let flags = |object: &Value| {
        let view = apply(&mut Store::new(), object).after;
        (view.announced, view.hand_back_due)
    };
    let web = deployment("web", "web:1");
    assert_eq!(flags(&web), (false, false));
    let announced = |kind: &str, reason: &str| {
        let conditions = json!([{"type": kind, "status": "True", "reason": reason}]);
        flags(&with(web.clone(), "/status/conditions", conditions)).0
    };
    assert!(announced("Stalled", "RolledBack"));
    assert!(!announced("Stalled", "Other"));
    assert!(!announced("Progressing", "RolledBack"));
    let due = |entry: Value| flags(&with(web.clone(), "/metadata/managedFields", json!([entry]))).1;
    assert!(due(json!({"manager": "rollout-guard", "operation": "Update"})));
    assert!(due(json!({"manager": "rollout-guard", "operation": "Update", "subresource": ""})));
    assert!(!due(json!({"manager": "rollout-guard", "operation": "Update", "subresource": "status"})));
    assert!(!due(json!({"manager": "rollout-guard", "operation": "Apply"})));
    assert!(!due(json!({"manager": "rollout-guard\"", "operation": "Update"})));
}

#[test]
fn nulls_absences_and_escapes_are_read() {
    let mut store = Store::new();
    let sparse = r#"{"metadata":{"name":"w\u0065b","namespace":"shop","uid":null,"labels":null,
        "managedFields":[{"manager":"a\"b","time":null},{"time":"never"}],"deletionTimestamp":null},
        "spec":null,"status":{"conditions":[{"type":"Progressing","status":"Perhaps","reason":"Tomorrow"}]}}"#;
    let change = store.apply(sparse).expect("readable");
    assert_eq!(change.key, web());
    let view = change.after;
    assert_eq!((view.desired, view.phase), (1, Phase::Progressing));
    assert_eq!((view.progressing, view.written_at), (Some(Reason::Other), None));
    assert!(view.labels.is_empty() && view.uid.is_empty());
    let deleting =
        r#"{"metadata":{"name":"web","namespace":"shop","deletionTimestamp":"2026-11-23T10:00:00Z"}}"#;
    assert_eq!(store.apply(deleting).expect("readable").after.phase, Phase::Deleting);
}

#[test]
fn one_that_cannot_be_read_is_kept_out_and_the_others_stay() {
    let mut store = Store::new();
    apply(&mut store, &deployment("web", "web:1"));
    apply(&mut store, &deployment("api", "api:1"));
    let deep = format!("{}{}", "[".repeat(200), "]".repeat(200));
    let deep = deployment("deep", "x").to_string().replace(r#"[{"image":"x"}]"#, &deep);
    for (raw, key) in [
        ("", None),
        ("[]", None),
        (r#"{"metadata":{}}"#, None),
        (r#"{"metadata":{"name":"web"}}"#, None),
        (r#"{"metadata":{"name":"x","namespace":"shop","labels":[1]}}"#, Some("x")),
        (r#"{"metadata":{"name":"x","namespace":"shop"},"spec":{"replicas":"many"}}"#, Some("x")),
        (deep.as_str(), Some("deep")),
    ] {
        let error = store.apply(raw).expect_err(raw);
        assert_eq!(error.key, key.map(|name| Key::new("shop", name)), "{error}");
    }
    assert_eq!((store.len(), store.unreadable()), (2, 7));

    // Nothing is decided by what is no longer so.
    let broken = with(deployment("web", "web:1"), "/metadata/generation", json!("four"));
    let error = store.apply(&broken.to_string()).expect_err("broken");
    assert!(error.to_string().starts_with("Deployment shop/web cannot be read: "), "{error}");
    assert_eq!((store.get(&web()), store.len()), (None, 1));
    assert_eq!(apply(&mut store, &deployment("web", "web:1")).before, None);
}

#[test]
fn labels_are_kept_whole_however_many_keys_there_are() {
    let mut store = Store::new();
    for n in 0..300_u32 {
        let labels: BTreeMap<String, String> =
            (0..50).map(|m| (format!("key-{n}-{m}"), format!("ä{m}"))).collect();
        let mut object = deployment(&format!("d{n}"), "x");
        object["metadata"]["labels"] = json!(labels);
        assert_eq!(*apply(&mut store, &object).after.labels, labels);
    }
    for n in [0_u32, 199, 200, 299] {
        let view = store.get(&Key::new("shop", format!("d{n}"))).expect("there");
        assert_eq!(view.labels.get(&format!("key-{n}-49")).map(String::as_str), Some("ä49"));
        assert_eq!(view.labels.len(), 50);
    }
    let mut moved = deployment("d0", "x");
    moved["metadata"]["labels"] = json!({"app": "d0"});
    let change = apply(&mut store, &moved);
    assert_eq!((change.before.expect("known").labels.len(), change.after.labels.len()), (50, 1));
    moved["metadata"]["labels"] = json!({"app": "x".repeat(70_000)});
    assert!(store.apply(&moved.to_string()).is_err());
}

#[test]
fn an_event_borrows_from_its_json() {
    let raw = deployment("web", "web:1").to_string();
    assert_eq!(Observed::parse(&raw).expect("readable").key(), web());
}

// ---- lists ----------------------------------------------------------------------------------------------------

#[test]
fn what_a_list_leaves_out_is_named_and_forgotten_by_the_caller_alone() {
    let mut store = Store::new();
    store.restart();
    for name in ["api", "web", "jobs"] {
        apply(&mut store, &deployment(name, "x"));
    }
    assert_eq!((store.synced().listed, store.synced().gone.len()), (3, 0));

    // A list that breaks off and begins anew.
    store.restart();
    apply(&mut store, &deployment("jobs", "x"));
    store.restart();
    assert!(apply(&mut store, &deployment("web", "y")).before.is_some(), "in place");
    assert!(store.apply(r#"{"metadata":{"name":"api","namespace":"shop"},"spec":7}"#).is_err());
    let synced = store.synced();
    assert_eq!(synced.gone, [Key::new("shop", "jobs")], "what cannot be read is not gone");
    assert_eq!((synced.listed, synced.is_suspicious(), store.len()), (2, false, 2));
    for key in &synced.gone {
        assert!(store.delete(key).is_some());
    }
    assert_eq!(store.iter().map(|(key, _)| key).collect::<Vec<_>>(), [web()]);
    assert!(store.synced().gone.is_empty());
}

#[test]
fn fault_36_an_empty_list_after_there_were_many_is_suspicious_and_forgets_nothing() {
    let mut store = Store::new();
    store.restart();
    assert!(!store.synced().is_suspicious(), "a new cluster is empty");
    for n in 0..100 {
        apply(&mut store, &deployment(&format!("d{n}"), "x"));
    }
    for _ in 0..2 {
        store.restart();
        let synced = store.synced();
        assert!(synced.is_suspicious());
        assert_eq!((synced.listed, synced.gone.len(), store.len()), (0, 100, 100), "told again, too");
    }
    assert!(!store.is_empty());
}

#[derive(Clone, Debug)]
enum Step {
    Apply(u8, u8),
    Delete(u8),
    Restart,
    Synced,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (0..8_u8, 0..3_u8).prop_map(|(name, tag)| Step::Apply(name, tag)),
        2 => (0..8_u8).prop_map(Step::Delete),
        1 => Just(Step::Restart),
        1 => Just(Step::Synced),
    ];
    proptest::collection::vec(step, 0..80)
}

proptest! {
    #[test]
    fn the_store_is_a_map_of_what_was_told_last(steps in steps()) {
        let (mut store, mut model) = (Store::new(), BTreeMap::<Key, (u8, u32)>::new());
        let mut round = 0;
        let key = |name: u8| Key::new(format!("ns-{}", name % 3), format!("d{name}"));
        let hash = |tag: u8| TemplateHash::of(&json!({"tag": tag}));
        for step in steps {
            match step {
                Step::Apply(name, tag) => {
                    let key = key(name);
                    let change = apply(&mut store, &json!({
                        "metadata": {"name": key.name, "namespace": key.namespace, "uid": UID},
                        "spec": {"template": {"tag": tag}}
                    }));
                    let before = model.insert(key.clone(), (tag, round)).map(|(tag, _)| hash(tag));
                    prop_assert_eq!(change.key, key);
                    prop_assert_eq!(change.before.map(|view| view.template), before);
                    prop_assert_eq!(change.after.template, hash(tag));
                }
                Step::Delete(name) => {
                    let gone = store.delete(&key(name)).is_some();
                    prop_assert_eq!(gone, model.remove(&key(name)).is_some());
                }
                Step::Restart => {
                    store.restart();
                    round += 1;
                }
                Step::Synced => {
                    let gone: BTreeSet<Key> = store.synced().gone.into_iter().collect();
                    let wanted = model.iter().filter(|(_, (_, seen))| *seen != round);
                    prop_assert_eq!(gone, wanted.map(|(key, _)| key.clone()).collect());
                }
            }
            prop_assert_eq!(store.len(), model.len());
            prop_assert!(store.iter().map(|(key, _)| key).eq(model.keys().cloned()));
        }
    }

    #[test]
    fn no_text_ends_the_process(raw in ".*") {
        let _ = Store::new().apply(&raw);
    }
}

// ---- the stream -----------------------------------------------------------------------------------------------

/// What an API server was asked.
#[derive(Clone, Default)]
struct Asked(Arc<Mutex<Vec<String>>>);

/// An API server that answers by how many times it was asked; 0 is no answer at all.
fn cluster(answer: impl Fn(usize) -> (u16, String) + Send + Sync + 'static) -> (Cluster, Asked) {
    let asked = Asked::default();
    let (here, answer) = (asked.clone(), Arc::new(answer));
    let service = tower::service_fn(move |request: Request<Body>| {
        let (here, answer) = (here.clone(), Arc::clone(&answer));
        async move {
            let count = {
                let mut asked = here.0.lock().expect("whole");
                asked.push(request.uri().to_string());
                asked.len()
            };
            let (code, body) = answer(count);
            if code == 0 {
                std::future::pending::<()>().await;
            }
            let body = Body::from(body.into_bytes());
            Ok::<_, Infallible>(Response::builder().status(code).body(body).expect("an answer"))
        }
    });
    (Cluster::with_client(kube::Client::new(service, "default")), asked)
}

fn page(next: &str, objects: &[Value]) -> (u16, String) {
    let list = json!({
        "kind": "DeploymentList", "apiVersion": "apps/v1",
        "metadata": {"resourceVersion": "50", "continue": next}, "items": objects
    });
    (200, list.to_string())
}

/// The first `count` events in short, with the raw JSON of what was applied.
async fn told(cluster: &Cluster, count: usize) -> Vec<String> {
    let short = |event: Event<RawDeployment>| match event {
        Event::Restarted => "restarted".to_owned(),
        Event::Applied(object) => format!("applied {} {}", object.key(), object.raw()),
        Event::Deleted(object) => format!("deleted {}", object.key()),
        Event::Synced => "synced".to_owned(),
        Event::Failed(why) => format!("failed {why}"),
    };
    cluster.watch_deployments_raw().map(short).take(count).collect().await
}

#[tokio::test(start_paused = true)]
async fn the_stream_lists_by_pages_and_gives_every_byte_as_it_was_sent() {
    let (one, two, three) = (deployment("a", "x"), deployment("b", "x"), deployment("c", "x"));
    // Not an object that any type knows, with a number that no float holds, and white space.
    let odd = r#"{ "metadata": {"name":"odd","namespace":"shop","resourceVersion":"51"},"x":[1e400, 0.10] }"#;
    let wanted = [
        "restarted".to_owned(),
        format!("applied shop/a {one}"),
        format!("applied shop/b {two}"),
        "synced".to_owned(),
        format!("applied shop/odd {odd}"),
        "deleted shop/c".to_owned(),
    ];
    let bookmark =
        json!({"kind": "Deployment", "apiVersion": "apps/v1", "metadata": {"resourceVersion": "52"}});
    let events =
        [("MODIFIED", odd.to_owned()), ("BOOKMARK", bookmark.to_string()), ("DELETED", three.to_string())]
            .map(|(kind, object)| format!("{{\"type\":\"{kind}\",\"object\":{object}}}\n"))
            .concat();
    let (cluster, asked) = cluster(move |count| match count {
        1 => page("next", std::slice::from_ref(&one)),
        2 => page("", std::slice::from_ref(&two)),
        3 => (200, events.clone()),
        _ => (0, String::new()),
    });
    assert_eq!(told(&cluster, 6).await, wanted);
    let asked = asked.0.lock().expect("whole").clone();
    assert_eq!(asked[0], "/apis/apps/v1/deployments?&limit=25");
    assert_eq!(asked[1], "/apis/apps/v1/deployments?&limit=25&continue=next");
    assert!(asked[2].starts_with("/apis/apps/v1/deployments?&watch=true&"), "{}", asked[2]);
    assert!(asked[2].ends_with("&resourceVersion=50"), "{}", asked[2]);
}

#[tokio::test(start_paused = true)]
async fn fault_32_a_watch_that_is_too_old_lists_again_and_a_refusal_is_told() {
    let status = |reason: &str, code: u16| {
        json!({
            "kind": "Status", "apiVersion": "v1", "status": "Failure", "message": "not you", "reason": reason,
            "code": code
        })
    };
    let gone = json!({"type": "ERROR", "object": status("Expired", 410)});
    let refused = status("Forbidden", 403);
    let one = deployment("a", "x");
    let (cluster, _) = cluster(move |count| match count {
        1 | 4 => page("", std::slice::from_ref(&one)),
        2 => (200, format!("{gone}\n")),
        3 => (403, refused.to_string()),
        _ => (0, String::new()),
    });
    let started = tokio::time::Instant::now();
    let told = told(&cluster, 9).await;
    let short: Vec<&str> = told.iter().map(|text| text.split(' ').next().expect("a word")).collect();
    let listed = ["restarted", "applied", "synced"];
    assert_eq!(short, [&listed[..], &["failed", "restarted", "failed"], &listed].concat());
    assert!(told[5].contains("not you"), "{}", told[5]);
    assert!(started.elapsed() >= Duration::from_secs(1), "with pauses: {:?}", started.elapsed());
}

#[tokio::test(start_paused = true)]
async fn one_object_that_cannot_be_read_ends_neither_list_nor_watch() {
    let odd = json!({"metadata": {"name": "odd", "namespace": "shop", "resourceVersion": "51", "labels": 7}});
    let good = deployment("web", "x");
    let objects = [odd.clone(), json!("no object"), good.clone()];
    // The API server writes the type first, and json! would not.
    let event = |object: &Value| format!(r#"{{"type":"MODIFIED","object":{object}}}"#);
    let events = format!("{}\n{}\n", event(&odd), event(&good));
    let (cluster, _) = cluster(move |count| match count {
        1 => page("", &objects),
        2 => (200, events.clone()),
        _ => (0, String::new()),
    });
    let mut store = Store::new();
    let mut stream = cluster.watch_deployments_raw();
    for _ in 0..7 {
        match stream.next().await.expect("for ever") {
            Event::Restarted => store.restart(),
            Event::Applied(object) => {
                let _ = store.apply(object.raw());
            }
            Event::Deleted(object) => {
                store.delete(&object.key());
            }
            Event::Synced => assert_eq!(store.synced().listed, 3),
            Event::Failed(why) => panic!("{why}"),
        }
    }
    assert_eq!((store.len(), store.unreadable()), (1, 3));
}
