//! The policy that the chart installs, with its real times.

use serde_json::json;

use super::{appliers::Applier, missing_image};
use crate::harness::{
    Scenario, deployment,
    record::{is_complete, verdict},
    scenario::condition,
    seconds,
    workload::image_of,
};

/// Longer than the default policy's `goodAfter` of 30 s.
const GOOD: std::time::Duration = seconds(33);

#[test]
fn a_missing_image_is_rolled_back_in_about_a_minute_under_the_default_policy() {
    let s = Scenario::shared("default-image");
    s.create_complete(&deployment("web", |_| {}));
    s.is_complete_for("web", GOOD);
    let pushed = s.pushes("web", &missing_image()).within(seconds(150));
    pushed.is_safe("Image");
    assert_eq!(image_of(&s.deployment("web")), "localhost/sample:v1");
}

#[test]
fn healthy_pushes_by_helm_and_kubectl_become_good_under_the_default_policy() {
    let s = Scenario::shared("default-healthy");
    s.create_complete(&deployment("other", |_| {}));
    let helm = Applier::helm();
    let of = |tag: &str| {
        deployment("web", |d| {
            d["spec"]["template"]["spec"]["containers"][0]["image"] =
                json!(format!("localhost/sample:{tag}"));
        })
    };
    helm.run(&s, &of("v1"), &["--wait", "--timeout=60s"]).succeeds();
    s.is_complete_for("other", GOOD);
    s.is_complete_for("web", GOOD);
    helm.run(&s, &of("v2"), &["--wait", "--timeout=60s"]).succeeds();
    s.kubectl(["set", "image", "deployment/other", "app=localhost/sample:v2"]).succeeds();
    for name in ["web", "other"] {
        s.completes(name);
        let record = s.wait_for_record(&format!("{name} is good"), name, |record| verdict(record) == "Good");
        assert!(record["status"]["rollback"].is_null(), "{record}");
        assert_eq!(condition(&record, "Ready")["status"], "True", "{record}");
        let after = s.deployment(name);
        assert!(is_complete(&after), "{}", after["status"]);
        assert_eq!(image_of(&after), "localhost/sample:v2");
        for reason in ["RolloutStuck", "RolledBack", "RollbackHeld"] {
            assert!(s.events(name, reason).is_empty(), "told of {reason}");
        }
    }
}
