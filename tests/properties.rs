//! What holds of the core whatever it is given.

#![allow(clippy::expect_used, clippy::panic, reason = "helpers of tests")]

use std::sync::Arc;

use jiff::Timestamp;
use proptest::{prelude::*, sample::select};
use rollout_guard::{
    api::policy::{CauseType, Mode},
    core::{
        admission::{Allowed, Change, Reason, Refused, Verdict, decide},
        ledger::{Bad, Recorded},
        mutation::{Subject, patch},
        policy::{Labels, Policy, PolicySet, compile},
        rollout::{Condition, Phase, Snapshot, classify},
        template,
    },
};
use serde_json::{Value, json};

// ---- what there is --------------------------------------------------------------------------------------------

fn text() -> impl Strategy<Value = String> {
    prop_oneof![
        select(vec!["True", "False", "Unknown", "", "ProgressDeadlineExceeded"]).prop_map(str::to_owned),
        ".{0,12}"
    ]
}

fn time() -> impl Strategy<Value = Timestamp> {
    prop_oneof![
        1_700_000_000_i64..1_900_000_000,
        Just(Timestamp::MIN.as_second()),
        Just(Timestamp::MAX.as_second()),
    ]
    .prop_map(|second| Timestamp::from_second(second).expect("in range"))
}

fn condition() -> impl Strategy<Value = Condition<'static>> {
    (text(), text(), text(), prop::option::of(time())).prop_map(|(status, reason, message, updated_at)| {
        Condition { status: status.into(), reason: reason.into(), message: message.into(), updated_at }
    })
}

/// Small numbers, so that they often agree, and the ends.
fn count() -> impl Strategy<Value = i32> {
    prop_oneof![8 => 0..4_i32, 1 => any::<i32>()]
}

fn generation() -> impl Strategy<Value = i64> {
    prop_oneof![8 => 0..5_i64, 1 => any::<i64>()]
}

prop_compose! {
    fn snapshot()(
        generations in (generation(), generation()),
        flags in (prop::bool::weighted(0.2), prop::bool::weighted(0.2)),
        counts in (count(), count(), count(), count()),
        progressing in prop::option::of(condition()),
        replica_failure in prop::option::of(condition()),
        written_at in prop::option::of(time()),
    ) -> Snapshot<'static> {
        let ((generation, observed_generation), (deleting, paused)) = (generations, flags);
        let (desired, replicas, updated, available) = counts;
        Snapshot {
            generation, observed_generation, deleting, paused, desired, replicas, updated, available,
            progressing, replica_failure, written_at,
        }
    }
}

prop_compose! {
    fn change()(
        old in snapshot(),
        new_generation in prop::option::of(generation()),
        template_changed in any::<bool>(),
        dry_run in any::<bool>(),
        by_guard in prop::bool::weighted(0.1),
    ) -> Change<'static> {
        // Mostly the next one, as the API server counts.
        let new_generation = new_generation.unwrap_or(old.generation.wrapping_add(1));
        Change { namespace: "shop", name: "web", old, new_generation, template_changed, dry_run, by_guard }
    }
}

fn nothing<'a>() -> Recorded<'a> {
    Recorded::Nothing
}

fn bad() -> impl Strategy<Value = Bad<'static>> {
    (prop::option::of(time()), prop::option::of(time()), select(vec!["", "not found"])).prop_map(
        |(since, until, message)| Bad {
            since,
            until,
            cause: Some(CauseType::Image),
            revision: None,
            message,
        },
    )
}

fn recorded() -> impl Strategy<Value = Recorded<'static>> {
    prop_oneof![
        Just(Recorded::Nothing),
        Just(Recorded::PutBack),
        Just(Recorded::Good),
        bad().prop_map(Recorded::Bad),
    ]
}

fn mode() -> impl Strategy<Value = &'static str> {
    select(vec!["Enforce", "Warn", "Audit", "Off"])
}

fn action() -> impl Strategy<Value = &'static str> {
    select(vec!["Allow", "Wait", "Deny"])
}

/// Closed, open by the minute, or open in some hours.
fn freezes() -> impl Strategy<Value = Value> {
    prop_oneof![
        3 => Just(json!([])),
        1 => Just(json!([{"name": "now", "schedule": "* * * * *", "duration": "1h"}])),
        1 => (0..24_u32, 1..48_u32).prop_map(|(hour, hours)| json!([
            {"name": "daily", "schedule": format!("0 {hour} * * *"), "duration": format!("{hours}h"), "timeZone": "Europe/Berlin"}
        ])),
    ]
}

prop_compose! {
    fn spec()(
        mode in mode(),
        actions in (action(), action(), action()),
        most in 1..=60_u32,
        freezes in freezes(),
        deadline in prop::option::of(1..1000_i32),
        history in prop::option::of(0..20_i32),
    ) -> Value {
        json!({
            "mode": mode,
            "admission": {
                "unobserved": actions.0, "failed": actions.1, "progressing": actions.2, "maxWaitSeconds": most,
            },
            "freezes": freezes,
            "defaults": {"progressDeadlineSeconds": deadline, "minRevisionHistoryLimit": history},
        })
    }
}

fn compiled(name: &str, spec: &Value) -> Policy {
    compile(name, 1, &serde_json::from_value(spec.clone()).expect("a spec")).expect("a valid policy")
}

fn with_mode(spec: &Value, mode: &str) -> Policy {
    let mut spec = spec.clone();
    spec["mode"] = json!(mode);
    compiled("p", &spec)
}

/// A moment at which freezes can be computed.
fn now() -> impl Strategy<Value = Timestamp> {
    (1_700_000_000_i64..1_900_000_000).prop_map(|second| Timestamp::from_second(second).expect("in range"))
}

fn labels() -> impl Strategy<Value = Labels> {
    prop::collection::btree_map(select(vec!["a", "b", "c"]), select(vec!["1", "2", "3"]), 0..4)
        .prop_map(|map| map.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect())
}

fn selector() -> impl Strategy<Value = Value> {
    let key = || select(vec!["a", "b", "c"]);
    let values = || prop::collection::btree_set(select(vec!["1", "2", "3"]), 1..3);
    let expression = prop_oneof![
        (key(), select(vec!["In", "NotIn"]), values())
            .prop_map(|(key, operator, values)| json!({"key": key, "operator": operator, "values": values})),
        (key(), select(vec!["Exists", "DoesNotExist"]))
            .prop_map(|(key, operator)| json!({"key": key, "operator": operator})),
    ];
    let labels = prop::collection::btree_map(key(), select(vec!["1", "2", "3"]), 0..2);
    prop_oneof![
        1 => Just(Value::Null),
        4 => (labels, prop::collection::vec(expression, 0..3))
            .prop_map(|(labels, expressions)| json!({"matchLabels": labels, "matchExpressions": expressions})),
    ]
}

prop_compose! {
    fn selecting()(priority in -2..3_i32, namespaces in selector(), deployments in selector()) -> Value {
        json!({"priority": priority, "namespaceSelector": namespaces, "selector": deployments})
    }
}

// ---- what holds -----------------------------------------------------------------------------------------------

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn classify_is_total_and_never_complete_while_unobserved(snapshot in snapshot()) {
        let phase = classify(&snapshot);
        let observed = snapshot.observed_generation >= snapshot.generation;
        match phase {
            Phase::Deleting => prop_assert!(snapshot.deleting),
            Phase::Unobserved => prop_assert!(!observed),
            Phase::Paused => prop_assert!(observed && snapshot.paused),
            Phase::Complete => {
                prop_assert!(observed && !snapshot.paused);
                prop_assert_eq!([snapshot.updated, snapshot.replicas, snapshot.available], [snapshot.desired; 3]);
            }
            Phase::Failed => {
                prop_assert!(observed && !snapshot.paused);
                prop_assert_eq!(snapshot.progressing.map(|c| c.status.into_owned()), Some("False".to_owned()));
            }
            Phase::Progressing => prop_assert!(observed && !snapshot.paused),
        }
        prop_assert!(snapshot.deleting || observed || phase == Phase::Unobserved);
    }

    #[test]
    fn a_condition_alone_never_makes_a_generation_complete_or_undoes_that_it_is(
        snapshot in snapshot(), other in prop::option::of(condition()),
    ) {
        let changed = Snapshot { progressing: other, ..snapshot.clone() };
        prop_assert_eq!(classify(&snapshot) == Phase::Complete, classify(&changed) == Phase::Complete);
    }

    #[test]
    fn a_no_op_is_always_allowed(
        change in change(), spec in spec(), recorded in recorded(), now in now(),
    ) {
        let no_op = Change { new_generation: change.old.generation, ..change };
        let policy = compiled("p", &spec);
        let verdict = decide(&no_op, Some(&policy), || recorded, now);
        prop_assert!(matches!(verdict, Verdict::Allow(Allowed::SameGeneration | Allowed::Off)), "{:?}", verdict);
    }

    #[test]
    fn what_leaves_the_template_alone_is_never_refused(
        change in change(), spec in spec(), recorded in recorded(), now in now(),
    ) {
        // Scale, pause, resume, strategy, labels, annotations, finalizers.
        let same = Change { template_changed: false, ..change };
        let policy = compiled("p", &spec);
        let verdict = decide(&same, Some(&policy), || recorded, now);
        prop_assert!(matches!(verdict, Verdict::Allow(_)), "{:?}", verdict);
    }

    #[test]
    fn what_is_being_deleted_is_never_refused(
        change in change(), spec in spec(), recorded in recorded(), now in now(),
    ) {
        let deleting = Change { old: Snapshot { deleting: true, ..change.old }, ..change };
        let policy = compiled("p", &spec);
        let verdict = decide(&deleting, Some(&policy), || recorded, now);
        prop_assert!(matches!(verdict, Verdict::Allow(_)), "{:?}", verdict);
    }

    #[test]
    fn a_paused_deployment_may_be_edited_unless_a_freeze_is_open(change in change(), spec in spec(), now in now()) {
        let paused = Change { old: Snapshot { paused: true, ..change.old }, ..change };
        let policy = compiled("p", &spec);
        match decide(&paused, Some(&policy), nothing, now) {
            Verdict::Allow(_) => {}
            Verdict::Refuse(refusal) => {
                prop_assert_eq!(refusal.reason, Reason::Frozen);
                prop_assert!(policy.open_freeze(now).is_some());
            }
        }
    }

    #[test]
    fn a_complete_generation_is_only_ever_refused_by_a_freeze(change in change(), spec in spec(), now in now(), n in 0..9_i32) {
        let old = Snapshot {
            observed_generation: change.old.generation, deleting: false, paused: false,
            desired: n, replicas: n, updated: n, available: n, ..change.old
        };
        let policy = compiled("p", &spec);
        let verdict = decide(&Change { old, ..change }, Some(&policy), nothing, now);
        if let Verdict::Refuse(refusal) = verdict {
            prop_assert_eq!((refusal.reason, refusal.refused), (Reason::Frozen, Refused::Deny));
            prop_assert!(policy.open_freeze(now).is_some());
        }
    }

    #[test]
    fn an_open_freeze_refuses_every_new_template(change in change(), spec in spec(), now in now()) {
        let mut spec = spec;
        if spec["freezes"] == json!([]) {
            spec["freezes"] = json!([{"name": "now", "schedule": "*/5 * * * *", "duration": "6m"}]);
        }
        let policy = with_mode(&spec, "Enforce");
        if policy.open_freeze(now).is_none() {
            return Ok(());
        }
        let new = Change {
            new_generation: change.old.generation.wrapping_add(1), template_changed: true,
            old: Snapshot { deleting: false, ..change.old }, ..change
        };
        match decide(&new, Some(&policy), nothing, now) {
            Verdict::Refuse(refusal) => {
                prop_assert_eq!(refusal.refused, Refused::Deny);
                let open = refusal.freeze.expect("says which");
                prop_assert!(open.since <= now && now < open.until);
            }
            Verdict::Allow(why) => prop_assert!(false, "allowed: {:?}", why),
        }
    }

    #[test]
    fn the_mode_changes_nothing_of_what_is_decided_but_off(
        change in change(), spec in spec(), recorded in recorded(), now in now(),
    ) {
        let [enforce, warn, audit, off] = ["Enforce", "Warn", "Audit", "Off"].map(|mode| with_mode(&spec, mode));
        let decided = decide(&change, Some(&enforce), || recorded, now);
        prop_assert_eq!(&decide(&change, Some(&warn), || recorded, now), &decided);
        prop_assert_eq!(&decide(&change, Some(&audit), || recorded, now), &decided);
        prop_assert_eq!(decide(&change, Some(&off), || recorded, now), Verdict::Allow(Allowed::Off));
        prop_assert_eq!(decide(&change, None, || recorded, now), Verdict::Allow(Allowed::NotGuarded));
    }

    #[test]
    fn a_way_back_to_what_was_good_is_always_admitted(change in change(), spec in spec(), now in now()) {
        // Over any phase, in any freeze, whoever writes it.
        let policy = compiled("p", &spec);
        let verdict = decide(&change, Some(&policy), || Recorded::Good, now);
        prop_assert!(matches!(verdict, Verdict::Allow(_)), "{:?}", verdict);
    }

    #[test]
    fn fault_42_what_was_rolled_back_from_is_never_admitted(
        change in change(), spec in spec(), quarantined in select(vec!["Wait", "Deny"]), bad in bad(), now in now(),
    ) {
        let mut spec = spec;
        spec["admission"]["quarantined"] = json!(quarantined);
        let policy = with_mode(&spec, "Enforce");
        let new = Change {
            new_generation: change.old.generation.wrapping_add(1), template_changed: true,
            old: Snapshot { deleting: false, ..change.old }, ..change
        };
        let expired = bad.until.is_some_and(|until| until <= now);
        match decide(&new, Some(&policy), || Recorded::Bad(bad), now) {
            Verdict::Allow(why) => prop_assert!(why == Allowed::OwnRollback && new.by_guard || expired, "{:?}", why),
            Verdict::Refuse(refusal) if expired => prop_assert_ne!(refusal.reason, Reason::Quarantined),
            Verdict::Refuse(refusal) => {
                prop_assert_eq!((refusal.reason, refusal.bad), (Reason::Quarantined, Some(bad)));
            }
        }
        // Once it has expired it is like any template.
        let after = Bad { until: Some(now), ..bad };
        let ordinary = Change { by_guard: false, ..new };
        prop_assert_eq!(
            decide(&ordinary, Some(&policy), || Recorded::Bad(after), now),
            decide(&ordinary, Some(&policy), nothing, now)
        );
    }

    #[test]
    fn fault_11_being_the_guard_helps_only_to_put_back_what_is_recorded(
        change in change(), spec in spec(), recorded in recorded(), now in now(),
    ) {
        let policy = compiled("p", &spec);
        let (guard, other) = (Change { by_guard: true, ..change.clone() }, Change { by_guard: false, ..change });
        prop_assert_eq!(
            decide(&guard, Some(&policy), nothing, now),
            decide(&other, Some(&policy), nothing, now)
        );
        if recorded != Recorded::Nothing {
            let verdict = decide(&guard, Some(&policy), || recorded, now);
            prop_assert!(matches!(verdict, Verdict::Allow(_)), "{:?}", verdict);
        }
    }

    #[test]
    fn a_wait_is_within_the_policys_limit_and_a_dry_run_never_waits(
        change in change(), spec in spec(), recorded in recorded(), now in time(),
    ) {
        let policy = compiled("p", &spec);
        let wait = |change: &Change<'_>| match decide(change, Some(&policy), || recorded, now) {
            Verdict::Refuse(refusal) => match refusal.refused {
                Refused::Wait { retry_after_seconds } => Some(retry_after_seconds),
                Refused::Deny => None,
            },
            Verdict::Allow(_) => None,
        };
        if let Some(seconds) = wait(&change) {
            prop_assert!((1..=policy.admission.max_wait_seconds).contains(&seconds), "{} s", seconds);
            prop_assert!(!change.dry_run);
        }
        let (real, dry) = (Change { dry_run: false, ..change.clone() }, Change { dry_run: true, ..change });
        prop_assert_eq!(wait(&dry), None);
        // But for that, a dry run says what the real thing would.
        let (real, dry) = (decide(&real, Some(&policy), || recorded, now), decide(&dry, Some(&policy), || recorded, now));
        match (real, dry) {
            (Verdict::Refuse(real), Verdict::Refuse(dry)) => {
                prop_assert_eq!((real.reason, real.freeze), (dry.reason, dry.freeze));
            }
            (real, dry) => prop_assert_eq!(real, dry),
        }
    }

    #[test]
    fn the_policy_in_effect_is_the_highest_that_matches_and_of_equals_the_first_by_name(
        specs in prop::collection::vec(selecting(), 0..6), namespace in labels(), deployment in labels(), rotate in 0..6_usize,
    ) {
        let mut policies: Vec<Arc<Policy>> =
            specs.iter().enumerate().map(|(i, spec)| Arc::new(compiled(&format!("p{i}"), spec))).collect();
        let best = policies
            .iter()
            .filter(|policy| policy.matches(&namespace, &deployment))
            .max_by(|a, b| a.priority.cmp(&b.priority).then_with(|| b.name.cmp(&a.name)))
            .map(|policy| policy.name.clone());
        let effective = |policies: &[Arc<Policy>]| {
            PolicySet::new(policies.iter().cloned()).effective(&namespace, &deployment).map(|policy| policy.name.clone())
        };
        prop_assert_eq!(&effective(&policies), &best);
        // Whatever order they came in.
        let by = rotate % policies.len().max(1);
        policies.rotate_left(by);
        prop_assert_eq!(effective(&policies), best);
    }

    #[test]
    fn a_selector_matches_as_kubernetes_matches(selector in selector(), deployment in labels()) {
        let policy = compiled("p", &json!({"selector": selector}));
        let labels = selector["matchLabels"].as_object().into_iter().flatten();
        let by_label = labels.into_iter().all(|(key, value)| deployment.get(key).map(String::as_str) == value.as_str());
        let by_expression = selector["matchExpressions"].as_array().into_iter().flatten().all(|expression| {
            let found = deployment.get(expression["key"].as_str().expect("a key"));
            let listed = found.is_some_and(|value| {
                expression["values"].as_array().is_some_and(|values| values.contains(&json!(value)))
            });
            match expression["operator"].as_str() {
                Some("In") => listed,
                // Also where the label is absent.
                Some("NotIn") => !listed,
                Some("Exists") => found.is_some(),
                _ => found.is_none(),
            }
        });
        prop_assert_eq!(policy.matches(&Labels::new(), &deployment), by_label && by_expression);
    }

    #[test]
    fn two_policies_that_match_one_deployment_may_overlap(
        a in selecting(), b in selecting(), namespace in labels(), deployment in labels(),
    ) {
        let (a, b) = (compiled("a", &a), compiled("b", &b));
        prop_assert_eq!(a.may_overlap(&b), b.may_overlap(&a));
        if a.matches(&namespace, &deployment) && b.matches(&namespace, &deployment) {
            prop_assert!(a.may_overlap(&b));
        }
    }

    #[test]
    fn the_policies_above_one_are_all_that_may_take_its_deployments(
        specs in prop::collection::vec(selecting(), 1..6), namespace in labels(), deployment in labels(),
    ) {
        let policies: Vec<Arc<Policy>> =
            specs.iter().enumerate().map(|(i, spec)| Arc::new(compiled(&format!("p{i}"), spec))).collect();
        let set = PolicySet::new(policies.iter().cloned());
        for one in policies.iter().filter(|policy| policy.matches(&namespace, &deployment)) {
            let effective = set.effective(&namespace, &deployment).expect("one matches");
            let mut above = set.above(one).map(|policy| policy.name.as_str());
            prop_assert!(effective.name == one.name || above.any(|name| name == effective.name));
        }
    }
}

/// Few enough to go through all of them: every requirement on one label, against every other, for every value.
#[test]
fn an_overlap_of_two_requirements_on_one_label_is_never_missed() {
    let subsets: Vec<Vec<&str>> = (1..8_u32)
        .map(|bits| {
            ["1", "2", "3"]
                .into_iter()
                .enumerate()
                .filter(|(i, _)| bits >> i & 1 == 1)
                .map(|(_, v)| v)
                .collect()
        })
        .collect();
    let mut selectors = vec![Value::Null];
    for values in &subsets {
        for operator in ["In", "NotIn"] {
            selectors
                .push(json!({"matchExpressions": [{"key": "a", "operator": operator, "values": values}]}));
        }
    }
    for operator in ["Exists", "DoesNotExist"] {
        selectors.push(json!({"matchExpressions": [{"key": "a", "operator": operator}]}));
    }
    selectors.extend(["1", "2", "3"].map(|value| json!({"matchLabels": {"a": value}})));
    let values = [None, Some("1"), Some("2"), Some("3"), Some("4")];
    let deployments =
        values.map(|value| value.map(|value| ("a".to_owned(), value.to_owned())).into_iter().collect());
    let policies: Vec<Policy> =
        selectors.iter().map(|selector| compiled("p", &json!({"selector": selector}))).collect();
    let mut told_apart = 0;
    for (a, first) in policies.iter().zip(&selectors) {
        for (b, second) in policies.iter().zip(&selectors) {
            let both = deployments.iter().any(|labels: &Labels| {
                a.matches(&Labels::new(), labels) && b.matches(&Labels::new(), labels)
            });
            assert!(a.may_overlap(b) || !both, "{first} and {second}");
            told_apart += usize::from(!a.may_overlap(b));
        }
    }
    assert!(told_apart > 50, "{told_apart} pairs are told apart");
}

// ---- templates ------------------------------------------------------------------------------------------------

fn a_template() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        (-3..3_i64).prop_map(Value::from),
        "[ab\"\\\\,}<é]{0,3}".prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 16, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map("[ab\"]{1,2}", inner, 0..4)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

/// Writes `value` in one of the many ways, which `seed` chooses.
fn written(value: &Value, seed: &mut u32, out: &mut String) {
    let mut next = |below: u32| {
        *seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (*seed >> 16) % below
    };
    let space = ["", "", "", " ", "\n"][next(5) as usize];
    match value {
        Value::String(text) => {
            out.push('"');
            for c in text.chars() {
                match next(4) {
                    0 => out.push_str(&format!("\\u{:04x}", c as u32)),
                    _ if c == '"' || c == '\\' => out.extend(['\\', c]),
                    _ => out.push(c),
                }
            }
            out.push('"');
        }
        Value::Array(items) => {
            out.push('[');
            for (i, item) in items.iter().enumerate() {
                out.push_str(if i > 0 { "," } else { "" });
                written(item, seed, out);
            }
            out.push(']');
        }
        Value::Object(map) => {
            let mut entries: Vec<_> = map.iter().collect();
            let by = next(4) as usize % entries.len().max(1);
            entries.rotate_left(by);
            out.push('{');
            for (i, (key, item)) in entries.into_iter().enumerate() {
                out.push_str(if i > 0 { "," } else { "" });
                written(&Value::from(key.as_str()), seed, out);
                out.push(':');
                written(item, seed, out);
            }
            out.push('}');
        }
        other => out.push_str(&other.to_string()),
    }
    out.push_str(space);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn templates_are_the_same_exactly_if_their_values_are_however_they_are_written(
        a in a_template(), b in a_template(), replace in any::<bool>(), seeds in any::<(u32, u32)>(),
    ) {
        // Mostly far apart by chance, so often the same value.
        let b = if replace { a.clone() } else { b };
        let (mut first, mut second) = (String::new(), String::new());
        written(&a, &mut { seeds.0 }, &mut first);
        written(&b, &mut { seeds.1 }, &mut second);
        prop_assert_eq!(serde_json::from_str::<Value>(&first).expect("JSON"), a.clone());
        prop_assert_eq!(template::same(&first, &second), a == b, "{} {}", first, second);
    }
}

// ---- mutation -------------------------------------------------------------------------------------------------

/// A Deployment as it is sent over one that is stored.
#[derive(Clone, Debug)]
struct Sent {
    object: Value,
    old: Option<Value>,
}

fn deployment() -> impl Strategy<Value = Value> {
    let mark = || prop_oneof![3 => Just(None), 2 => select(vec!["1", "2", "9", "", "x"]).prop_map(Some)];
    let others = prop::collection::btree_map("[a-z~/]{1,5}", "[a-z]{0,3}", 0..3);
    let limit = || prop::option::of(select(vec![0, 1, 2, 10]));
    let deadline = prop::option::of(select(vec![1, 600, 700]));
    (0..4_i64, 0..4_u32, prop::option::of((others, mark())), deadline, limit(), prop::option::of(0..900_i32))
        .prop_map(|(generation, template, annotations, deadline, limit, ready)| {
            let mut object = json!({
                "metadata": {"name": "web", "generation": generation},
                "spec": {"template": {"spec": {"n": template, "containers": [{"name": "web"}]}}},
                "status": {"observedGeneration": 1},
            });
            if let Some((others, mark)) = annotations {
                object["metadata"]["annotations"] = json!(others);
                if let Some(mark) = mark {
                    object["metadata"]["annotations"][ADMITTED] = json!(mark);
                }
            }
            let fields = [
                ("progressDeadlineSeconds", deadline),
                ("revisionHistoryLimit", limit),
                ("minReadySeconds", ready),
            ];
            for (field, value) in fields {
                if let Some(value) = value {
                    object["spec"][field] = json!(value);
                }
            }
            object
        })
}

const ADMITTED: &str = rollout_guard::api::ADMITTED_ANNOTATION;

fn sent() -> impl Strategy<Value = Sent> {
    (deployment(), prop::option::of(deployment())).prop_map(|(object, old)| Sent { object, old })
}

/// What the webhook reads of it.
fn mutated(sent: &Sent, policy: Option<&Policy>) -> (json_patch::Patch, Value) {
    let number = |field: &str| sent.object["spec"][field].as_i64().and_then(|n| i32::try_from(n).ok());
    let old = sent.old.as_ref();
    let subject = Subject {
        old_generation: old.and_then(|old| old["metadata"]["generation"].as_i64()),
        old_admitted: old.and_then(|old| old["metadata"]["annotations"][ADMITTED].as_str()),
        admitted: sent.object["metadata"]["annotations"][ADMITTED].as_str(),
        has_annotations: sent.object["metadata"]["annotations"].is_object(),
        spec_changed: old.is_none_or(|old| old["spec"] != sent.object["spec"]),
        template_changed: old.is_some_and(|old| old["spec"]["template"] != sent.object["spec"]["template"]),
        progress_deadline_seconds: number("progressDeadlineSeconds"),
        revision_history_limit: number("revisionHistoryLimit"),
        min_ready_seconds: number("minReadySeconds").unwrap_or_default(),
    };
    let patch = patch(&subject, policy);
    let mut out = sent.object.clone();
    json_patch::patch(&mut out, &patch).expect("applies");
    (patch, out)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_patch_is_empty_on_its_own_output(sent in sent(), spec in spec(), guarded in prop::bool::weighted(0.9)) {
        let policy = guarded.then(|| compiled("p", &spec));
        let (_, out) = mutated(&sent, policy.as_ref());
        let again = Sent { object: out.clone(), old: sent.old };
        let (patch, twice) = mutated(&again, policy.as_ref());
        prop_assert!(patch.0.is_empty(), "{}", patch);
        prop_assert_eq!(&twice, &out);
        // Nor on what is stored by then.
        let stored = Sent { object: out.clone(), old: Some(out) };
        prop_assert!(mutated(&stored, policy.as_ref()).0.0.is_empty());
    }

    #[test]
    fn the_patch_touches_the_mark_and_the_defaults_and_never_the_template(sent in sent(), spec in spec()) {
        let policy = compiled("p", &spec);
        let (_, out) = mutated(&sent, Some(&policy));
        let stripped = |value: &Value| {
            let mut value = value.clone();
            if let Some(annotations) = value["metadata"].get_mut("annotations").and_then(Value::as_object_mut) {
                annotations.remove(ADMITTED);
                if annotations.is_empty() {
                    value["metadata"].as_object_mut().expect("a map").remove("annotations");
                }
            }
            for field in ["progressDeadlineSeconds", "revisionHistoryLimit"] {
                value["spec"].as_object_mut().expect("a map").remove(field);
            }
            value
        };
        prop_assert_eq!(stripped(&out), stripped(&sent.object));
        if matches!(policy.mode, Mode::Off | Mode::Audit) || sent.old.as_ref().is_some_and(|old| old["spec"] == sent.object["spec"]) {
            prop_assert_eq!(&out["spec"], &sent.object["spec"]);
        }
    }

    #[test]
    fn nobody_can_forge_the_mark(sent in sent(), spec in spec()) {
        let policy = compiled("p", &spec);
        let (_, out) = mutated(&sent, Some(&policy));
        let mark = |value: &Value| value["metadata"]["annotations"][ADMITTED].as_str().map(str::to_owned);
        let expected = sent.old.as_ref().and_then(|old| {
            if matches!(policy.mode, Mode::Enforce | Mode::Warn) && old["spec"]["template"] != sent.object["spec"]["template"] {
                Some(old["metadata"]["generation"].to_string())
            } else {
                mark(old)
            }
        });
        prop_assert_eq!(mark(&out), expected);
    }
}
