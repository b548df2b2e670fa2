use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

const ROOM: usize = 1 << 20;

fn at(second: i64) -> String {
    Timestamp::from_second(1_764_000_000 + second).expect("a time").to_string()
}

fn deployment(generation: i64, image: &str, observed: i64) -> Value {
    json!({
        "kind": "Deployment", "apiVersion": "apps/v1",
        "metadata": {
            "name": "web", "namespace": "shop", "uid": "u", "generation": generation, "labels": {"app": "web"},
            "resourceVersion": (100 + 10 * generation + observed).to_string(),
        },
        "spec": {"replicas": 1, "template": {"spec": {"containers": [
            {"name": "app", "image": image, "env": [{"name": "A", "value": "1"}]},
        ]}}},
        "status": {"observedGeneration": observed, "replicas": 1, "updatedReplicas": 1, "availableReplicas": 1},
    })
}

/// An event of level RequestResponse at a second.
fn event(second: i64, verb: &str, subresource: &str, code: u16, request: Value, answer: Value) -> Value {
    json!({
        "kind": "Event", "apiVersion": "audit.k8s.io/v1", "level": "RequestResponse", "stage": "ResponseComplete",
        "requestURI": "/apis/apps/v1/namespaces/shop/deployments/web", "verb": verb,
        "user": {"username": "ann", "groups": ["dev"]},
        "objectRef": {"resource": "deployments", "namespace": "shop", "name": "web", "apiGroup": "apps",
            "apiVersion": "v1", "subresource": subresource},
        "responseStatus": {"code": code}, "requestObject": request, "responseObject": answer,
        "requestReceivedTimestamp": at(second), "stageTimestamp": at(second),
    })
}

fn written(second: i64, verb: &str, subresource: &str, object: Value) -> Value {
    event(second, verb, subresource, 200, json!({"spec": {}}), object)
}

fn status(second: i64, object: Value) -> Value {
    written(second, "update", "status", object)
}

fn patch_of(image: &str) -> Value {
    json!({"spec": {"template": {"spec": {"containers": [{"name": "app", "image": image}]}}}})
}

/// A patch that the guard refused.
fn refused(second: i64, patch: Value) -> Value {
    let mut refused = event(second, "patch", "", 403, patch, json!({"kind": "Status"}));
    refused["annotations"] =
        json!({"validate.rollout-guard.io/verdict": "deny", "validate.rollout-guard.io/reason": "RG001"});
    refused
}

fn take(history: &mut History, event: &Value) -> Taken {
    history.take(&Event::parse(event.to_string().as_bytes()).expect("an event"))
}

/// Takes in all events and returns the last one's update.
fn last(events: &[Value]) -> Update {
    let mut history = History::with_room(ROOM);
    let mut update = None;
    for event in events {
        if let Taken::Update(taken) = take(&mut history, event) {
            update = Some(*taken);
        }
    }
    update.expect("an update")
}

fn image(object: &Value) -> &str {
    object["spec"]["template"]["spec"]["containers"][0]["image"].as_str().expect("an image")
}

fn why(events: &[Value]) -> Unknown {
    last(events).objects.expect_err("not known")
}

#[test]
fn the_object_before_is_what_the_write_before_left_behind() {
    let update = last(&[
        written(0, "create", "", deployment(1, "v1", 0)),
        status(1, deployment(1, "v1", 1)),
        written(60, "patch", "", deployment(2, "v2", 1)),
    ]);
    let objects = update.objects.expect("known");
    assert_eq!((image(&objects.before), image(&objects.after)), ("v1", "v2"));
    assert_eq!(objects.before["metadata"]["generation"], 1);
    assert_eq!((update.user.as_str(), update.code, update.dry_run), ("ann", Some(200), false));
}

#[test]
fn the_status_before_is_that_of_the_answer_though_no_status_was_written_in_the_log() {
    let objects = last(&[
        written(0, "create", "", deployment(1, "v1", 0)),
        written(60, "patch", "", deployment(2, "v2", 1)),
    ])
    .objects
    .expect("known");
    assert_eq!(objects.before["status"]["observedGeneration"], 1);
}

#[test]
fn what_cannot_be_known_is_said_and_never_guessed() {
    let created = || written(0, "create", "", deployment(1, "v1", 0));
    assert_eq!(why(&[written(60, "patch", "", deployment(2, "v2", 1))]), Unknown::FirstSeen);
    assert_eq!(why(&[created(), written(60, "patch", "", deployment(4, "v2", 1))]), Unknown::Gap);
    let mut other = deployment(2, "v2", 1);
    other["metadata"]["uid"] = json!("another");
    assert_eq!(why(&[created(), written(60, "patch", "", other)]), Unknown::Gap);
    let conflict = event(9, "update", "", 409, deployment(1, "v2", 1), json!({"kind": "Status"}));
    assert_eq!(why(&[created(), conflict]), Unknown::Failed);
    let mut bare = written(60, "patch", "", Value::Null);
    bare["requestObject"] = Value::Null;
    assert_eq!(why(&[created(), bare]), Unknown::NoObjects);
    assert_eq!(why(&[created(), refused(9, json!("odd"))]), Unknown::PatchAlone);
    let orders = json!({"spec": {"template": {"$patch": "replace"}}});
    assert_eq!(why(&[created(), refused(9, orders)]), Unknown::PatchAlone);
}

#[test]
fn a_deployment_that_was_deleted_and_made_again_is_another_one() {
    let mut again = deployment(1, "v3", 0);
    again["metadata"]["uid"] = json!("again");
    let deleted = written(5, "delete", "", json!({"kind": "Status"}));
    let before = [written(0, "create", "", deployment(1, "v1", 0)), deleted];
    let mut next = deployment(2, "v4", 1);
    next["metadata"]["uid"] = json!("again");
    let push = written(60, "patch", "", next);
    assert_eq!(why(&[&before[..], std::slice::from_ref(&push)].concat()), Unknown::FirstSeen);
    let applied = event(6, "patch", "", 201, json!({}), again);
    let objects = last(&[&before[..], &[applied, push]].concat()).objects.expect("known");
    assert_eq!(image(&objects.before), "v3");
}

#[test]
fn a_refused_update_is_known_by_its_request() {
    let before = [written(0, "create", "", deployment(1, "v1", 0)), status(1, deployment(1, "v1", 1))];
    let with = |last_one: Value| last(&[&before[..], &[last_one]].concat()).objects.expect("known");
    let json_patch = json!([
        {"op": "test", "path": "/metadata/resourceVersion", "value": "7"},
        {"op": "replace", "path": "/spec/template/spec/containers/0/image", "value": "v2"},
        {"op": "replace", "path": "/spec/strategy/type", "value": "Recreate"},
    ]);
    let mut apply = patch_of("v2");
    apply["apiVersion"] = json!("apps/v1");
    let client_side = json!({"metadata": {"annotations": {"rollout-guard.io/override": "INC-1"}}, "spec": {"template": {"spec": {
        "$setElementOrder/containers": [{"name": "app"}], "containers": [{"name": "app", "image": "v2"}]}}}});
    for patch in [patch_of("v2"), json_patch, apply, client_side.clone()] {
        let objects = with(refused(9, patch.clone()));
        assert_eq!(image(&objects.after), "v2", "{patch}");
        let env = &objects.after["spec"]["template"]["spec"]["containers"][0]["env"];
        assert_eq!(env, &json!([{"name": "A", "value": "1"}]), "what the patch leaves alone stays: {patch}");
        assert_eq!(objects.after["metadata"]["generation"], 2, "a new generation: {patch}");
        assert_eq!(objects.after["status"], objects.before["status"]);
    }
    let asked = with(refused(9, client_side));
    assert_eq!(asked.after["metadata"]["annotations"]["rollout-guard.io/override"], "INC-1");
    let mut put = refused(9, deployment(1, "v2", 1));
    put["verb"] = json!("update");
    assert_eq!(image(&with(put).after), "v2");
}

#[test]
fn an_apply_that_seems_to_change_nothing_may_take_a_field_away() {
    let mut apply = patch_of("v1");
    apply["apiVersion"] = json!("apps/v1");
    assert_eq!(
        why(&[written(0, "create", "", deployment(1, "v1", 0)), refused(9, apply)]),
        Unknown::PatchAlone
    );
}

#[test]
fn what_is_not_stored_is_not_learned() {
    let created = written(0, "create", "", deployment(1, "v1", 0));
    let push = written(60, "patch", "", deployment(2, "v3", 1));
    let mut dry = written(30, "patch", "", deployment(2, "v2", 1));
    dry["requestURI"] = json!("/apis/apps/v1/namespaces/shop/deployments/web?dryRun=All&fieldManager=x");
    for not_stored in [dry, refused(30, patch_of("v2"))] {
        let objects = last(&[created.clone(), not_stored, push.clone()]).objects.expect("known");
        assert_eq!(image(&objects.before), "v1");
    }
}

#[test]
fn a_scale_by_its_subresource_counts_as_a_generation() {
    let scale = written(30, "patch", "scale", json!({"kind": "Scale", "spec": {"replicas": 3}}));
    let mut next = deployment(3, "v2", 1);
    next["spec"]["replicas"] = json!(3);
    let created = written(0, "create", "", deployment(1, "v1", 0));
    let objects = last(&[created, scale, written(60, "patch", "", next)]).objects.expect("known");
    assert_eq!(
        (&objects.before["spec"]["replicas"], &objects.before["metadata"]["generation"]),
        (&json!(3), &json!(2))
    );
}

#[test]
fn an_answer_that_was_written_down_late_is_passed_over() {
    let objects = last(&[
        written(0, "create", "", deployment(1, "v1", 0)),
        written(10, "patch", "", deployment(2, "v2", 1)),
        status(11, deployment(1, "v1", 1)),
        written(60, "patch", "", deployment(3, "v3", 2)),
    ])
    .objects
    .expect("known");
    assert_eq!(image(&objects.before), "v2");
}

#[test]
fn a_template_is_known_to_have_been_complete_for_as_long_as_the_log_tells() {
    let mut broken = deployment(1, "v1", 1);
    broken["status"]["availableReplicas"] = json!(0);
    broken["metadata"]["resourceVersion"] = json!("112");
    let hash = |image: &str| TemplateHash::of(&deployment(1, image, 1)["spec"]["template"]);
    let events = [
        status(0, deployment(1, "v1", 1)),
        status(45, broken),
        written(50, "patch", "", deployment(2, "v2", 1)),
        status(55, deployment(2, "v2", 2)),
        written(60, "patch", "", deployment(3, "v1", 2)),
    ];
    let spans = last(&events).objects.expect("known").complete;
    assert_eq!(
        spans,
        [(hash("v1"), SignedDuration::from_secs(45)), (hash("v2"), SignedDuration::from_secs(5))]
    );
}

#[test]
fn a_deployment_scaled_to_nothing_is_no_evidence() {
    let mut none = deployment(1, "v1", 1);
    none["spec"]["replicas"] = json!(0);
    for field in ["replicas", "updatedReplicas", "availableReplicas"] {
        none["status"][field] = json!(0);
    }
    let mut next = deployment(2, "v2", 1);
    next["spec"]["replicas"] = json!(0);
    let objects = last(&[status(0, none), written(90, "patch", "", next)]).objects.expect("known");
    assert_eq!(objects.complete, []);
}

#[test]
fn what_is_kept_is_bounded_and_the_oldest_goes_first() {
    let mut history = History::with_room(64 << 10);
    let of = |number: usize, mut event: Value| {
        event["objectRef"]["name"] = json!(format!("web-{number}"));
        event
    };
    for number in 0..1000 {
        take(&mut history, &of(number, written(0, "create", "", deployment(1, "v1", 0))));
    }
    assert!(history.forgotten() > 800, "{}", history.forgotten());
    let push = |number: usize| of(number, written(60, "patch", "", deployment(2, "v2", 1)));
    let Taken::Update(old) = take(&mut history, &push(0)) else { panic!("an update") };
    let Taken::Update(new) = take(&mut history, &push(999)) else { panic!("an update") };
    assert_eq!(old.objects.expect_err("forgotten"), Unknown::FirstSeen);
    assert!(new.objects.is_ok());
}

#[test]
fn namespaces_tell_their_labels() {
    let mut event =
        written(0, "patch", "", json!({"kind": "Namespace", "metadata": {"labels": {"env": "prod"}}}));
    event["objectRef"] = json!({"resource": "namespaces", "name": "shop", "apiVersion": "v1"});
    let Taken::Namespace { name, labels } = take(&mut History::with_room(ROOM), &event) else {
        panic!("none")
    };
    assert_eq!((name.as_str(), labels.expect("labels")["env"].as_str()), ("shop", "prod"));
}

#[test]
fn who_is_impersonated_is_who_sent_it() {
    let mut push = written(60, "patch", "", deployment(2, "v2", 1));
    push["impersonatedUser"] = json!({"username": "bob"});
    assert_eq!(last(&[push]).user, "bob");
}

#[test]
fn what_is_no_event_is_an_error_and_other_stages_do_not_count() {
    for line in
        ["", "{", "[]", "{}", r#"{"kind":"Event","apiVersion":"v1"}"#, r#"{"kind":"Event","apiVersion":5}"#]
    {
        assert!(Event::parse(line.as_bytes()).is_err(), "{line}");
    }
    let mut panicked = written(60, "patch", "", deployment(2, "v2", 1));
    panicked["stage"] = json!("Panic");
    assert!(matches!(take(&mut History::with_room(ROOM), &panicked), Taken::Other));
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        "[ -~]{0,8}".prop_map(Value::from),
        prop_oneof![Just("Deployment"), Just("Namespace"), Just("2026-11-24T00:00:00Z")]
            .prop_map(Value::from),
    ];
    let key = prop_oneof![
        Just("metadata"),
        Just("spec"),
        Just("status"),
        Just("template"),
        Just("generation"),
        Just("conditions"),
        Just("containers"),
        Just("name"),
        Just("$patch"),
        Just("kind"),
        Just("managedFields"),
        Just("replicas"),
        Just("path"),
        Just("op"),
    ];
    leaf.prop_recursive(5, 40, 5, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(key.clone().prop_map(str::to_owned), inner, 0..5)
                .prop_map(|members| Value::Object(members.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn no_objects_make_it_panic_and_what_is_judged_is_of_one_generation_step(
        steps in prop::collection::vec(
            (prop_oneof![Just("create"), Just("update"), Just("patch"), Just("delete")],
             prop_oneof![Just(""), Just("status"), Just("scale")],
             prop_oneof![Just(200_u16), Just(201), Just(403), Just(409)],
             prop::option::of(any_json()), prop::option::of(any_json()), any::<bool>(), 0..4_i64),
            0..12),
    ) {
        let mut history = History::with_room(4 << 10);
        for (i, (verb, subresource, code, request, answer, told, generation)) in steps.into_iter().enumerate() {
            // Half of them real objects, so that there is something to break.
            let request = request.unwrap_or_else(|| deployment(generation, "v2", 1));
            let answer = answer.unwrap_or_else(|| deployment(generation, "v1", generation));
            let second = i64::try_from(i).expect("small");
            let mut event = event(second, verb, subresource, code, request, answer);
            if told {
                event["annotations"] = json!({"validate.rollout-guard.io/verdict": "deny"});
            }
            if let Taken::Update(update) = take(&mut history, &event) && let Ok(objects) = update.objects {
                let step = super::generation(&objects.after) - super::generation(&objects.before);
                prop_assert!((0..=1).contains(&step), "{step}");
            }
        }
    }

    #[test]
    fn no_line_makes_it_panic(line in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = Event::parse(&line);
    }
}
