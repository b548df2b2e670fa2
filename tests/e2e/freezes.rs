//! Times in which no template may change.

use serde_json::json;

use crate::harness::{Scenario, deployment};

#[test]
fn fault_52_while_a_freeze_is_open_a_push_is_refused_and_its_reason_quoted_harmlessly() {
    let s = Scenario::shared("freeze");
    s.create_complete(&deployment("web", |_| {}));
    let reason = "the moon is immutable, no immutable field may change";
    let freeze = json!({"name": "always", "schedule": "* * * * *", "duration": "1h", "reason": reason});
    let _policy = s.put_in_force("freeze", json!({"freezes": [freeze]}));
    let text = s.rejects("web", |push| push.image("v2")).at_once("RG005").text;
    assert!(text.contains("freeze always from ") && text.contains("Reason given: the moon is"), "{text}");
    // Flux deletes and recreates what is refused with such words.
    let lower = text.to_lowercase();
    assert!(!lower.contains("is immutable") && !lower.contains("immutable field"), "{text}");
    s.rejects("web", |push| push.image("v2").dry_run()).at_once("RG005");

    s.kubectl(["scale", "deployment/web", "--replicas=2"]).succeeds();
    s.accepts("web", |change| change.spec("replicas", json!(1)));
    s.accepts("web", |change| change.annotation("note", "seen"));
    s.create_complete(&deployment("other", |_| {}));
}

#[test]
fn a_freeze_that_is_not_open_refuses_nothing() {
    let s = Scenario::shared("no-freeze");
    s.create_complete(&deployment("web", |_| {}));
    // The leap days alone, and a minute of them.
    let freeze = json!({"name": "leap", "schedule": "0 0 29 2 *", "duration": "1m"});
    let _policy = s.put_in_force("freeze", json!({"freezes": [freeze]}));
    s.accepts("web", |push| push.image("v2"));
    s.completes("web");
}
