//! No replica of the guard, failurePolicy Ignore: the fallback stands in.

use serde_json::{Value, json};

use crate::{
    harness::{Run, Scenario, deployment, installation},
    overrides::may_override,
};

#[test]
fn with_no_replica_the_fallback_refuses_the_unobserved_and_nothing_else() {
    let s = Scenario::alone("fallback");
    s.create_complete(&deployment("healthy", |_| {}));
    s.create_unobserved(&[deployment("web", |_| {})]);
    let (chief, clerk) = (s.editor("chief"), s.editor("clerk"));
    let _right = may_override(&chief);

    // It judges all policies, so it is asked here, where nobody is just making one.
    let sound = check().args(["-o", "json"]).done();
    let findings: Value = serde_json::from_str(&sound.succeeds()).expect("JSON");
    let ok = |step: &str| {
        let mut steps = findings.as_array().into_iter().flatten();
        steps.any(|finding| finding["step"] == step && finding["status"] == "ok")
    };
    for step in ["crd", "deployment", "ca-bundle", "certificate", "policies", "fallback", "probe"] {
        assert!(ok(step), "{step} is not ok: {findings}");
    }

    let down = installation::without_replicas();

    let refused = s.rejects("web", |push| push.image("v3")).at_once("RG001");
    assert!(refused.text.contains("rollout-guard does not answer, its fallback does"), "{}", refused.text);
    assert!(refused.text.contains("ValidatingAdmissionPolicy 'rollout-guard-default'"), "{}", refused.text);
    s.rejects("web", |push| push.image("v3").dry_run()).at_once("RG001");
    s.accepts("web", |change| change.spec("replicas", json!(2)));
    s.kubectl(["scale", "deployment/web", "--replicas=1"]).succeeds();
    s.accepts("web", |change| change.annotation("note", "seen"));
    // There is one ReplicaSet more to be had only after the quota is gone: healthy means observed here.
    s.accepts("healthy", |push| push.image("v2"));

    s.rejects("web", |p| p.image("v3").override_because("I want to").by(&clerk)).at_once("RG001");
    s.rejects("web", |p| p.image("v3").override_because(" ").by(&chief)).at_once("RG001");
    s.accepts("web", |p| p.image("v3").override_because("incident 42").by(&chief));
    s.rejects("web", |p| p.image("v1").override_because("incident 42").by(&chief)).at_once("RG001");

    let unsound = check().done();
    assert_eq!(unsound.code, Some(1), "{}", unsound.report());
    let words = unsound.words();
    assert!(words.contains("0 ready endpoints") && words.contains("Hint: "), "{words}");

    drop(down);
    s.rejects("web", |push| push.image("v1").dry_run()).at_once("RG001");
    s.lift_quota();
    s.accepts("web", |p| p.image("v2").override_because("incident 43").by(&chief));
    s.completes("web");
}

fn check() -> Run {
    Run::new(env!("CARGO_BIN_EXE_rollout-guard")).args(["check", "-n", installation::NAME])
}
