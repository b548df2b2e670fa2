//! The push after a rollback: it gives what it would have given without one, whoever applies it.

use std::{env, fs};

use serde_json::{Value, json};
use tempfile::TempDir;

use super::registry;
use crate::harness::{
    Run, Scenario, deployment,
    record::{is_announced, outcome, same_template},
    seconds,
    workload::image_of,
};

/// How manifests get into the cluster.
pub enum Applier {
    /// A release of a chart in this directory.
    Helm(TempDir),
    ServerSide,
    ClientSide,
}

impl Applier {
    pub fn helm() -> Self {
        let dir = TempDir::new().expect("temporary directory");
        fs::create_dir(dir.path().join("templates")).expect("templates");
        let chart = "apiVersion: v2\nname: web\nversion: 0.1.0\n";
        fs::write(dir.path().join("Chart.yaml"), chart).expect("chart");
        Self::Helm(dir)
    }

    /// Returns the command that applies a manifest, with more flags.
    pub fn run(&self, s: &Scenario, manifest: &Value, flags: &[&str]) -> Run {
        let run = match self {
            Self::Helm(dir) => {
                fs::write(dir.path().join("templates/web.yaml"), manifest.to_string()).expect("template");
                Run::new("helm")
                    .args(["upgrade", "--install", "web"])
                    .arg(dir.path())
                    .args(["-n", &s.namespace])
            }
            Self::ServerSide => s.kubectl(["apply", "--server-side", "-f", "-"]).input(manifest.to_string()),
            Self::ClientSide => s.kubectl(["apply", "-f", "-"]).input(manifest.to_string()),
        };
        run.args(flags)
    }

    /// Returns the history of Helm's release.
    pub fn history(s: &Scenario) -> String {
        Run::new("helm").args(["history", "web", "-n", &s.namespace]).succeeds()
    }
}

/// The image, and the environment where there is one.
fn manifest(image: &str, environment: Option<&str>) -> Value {
    deployment("web", |d| {
        let container = &mut d["spec"]["template"]["spec"]["containers"][0];
        container["image"] = json!(image);
        if let Some(name) = environment {
            container["env"] = json!([{"name": name, "value": "set"}]);
        }
    })
}

/// The good manifest has what the bad one removes and the fix leaves out.
fn leaves_no_trace(s: &Scenario, applier: &Applier) {
    let _policy = s.short_policy();
    applier.run(s, &manifest("localhost/sample:v1", Some("COLOUR")), &[]).succeeds();
    s.completes("web");
    s.becomes_good("web");
    let bad = manifest(&registry::image("missing"), None);
    let pushed = s.about_to_push("web");
    applier.run(s, &bad, &[]).succeeds();
    assert!(s.deployment("web")["spec"]["template"].to_string().find("COLOUR").is_none(), "not removed");
    pushed.is_safe("Image");
    assert!(s.deployment("web")["spec"]["template"].to_string().contains("COLOUR"), "not put back");
    // The same manifest gives the same template, which is known.
    let words = applier.run(s, &bad, &[]).done().fails();
    assert!(words.contains("RG004 "), "{words}");
    let fix = manifest("localhost/sample:v2", None);
    applier.run(s, &fix, &[]).succeeds();
    s.completes("web");
    let after = s.deployment("web");
    assert_eq!(image_of(&after), "localhost/sample:v2");
    // What the API server makes of the manifest where nothing was before.
    let mut fresh = fix;
    fresh["metadata"]["name"] = json!("fresh");
    let fresh = s.kubectl(["create", "--dry-run=server", "-o", "json", "-f", "-"]).input(fresh.to_string());
    let fresh: Value = serde_json::from_str(&fresh.succeeds()).expect("a Deployment");
    assert!(same_template(&after, &fresh), "{}\nand fresh: {}", after["spec"], fresh["spec"]);
}

#[test]
fn fault_49_the_fix_by_helm_leaves_no_trace_of_the_rollback() {
    let s = Scenario::shared("fix-helm");
    leaves_no_trace(&s, &Applier::helm());
}

#[test]
fn fault_49_the_fix_by_server_side_apply_leaves_no_trace_of_the_rollback() {
    let s = Scenario::shared("fix-server-side");
    leaves_no_trace(&s, &Applier::ServerSide);
}

#[test]
fn fault_49_the_fix_by_client_side_apply_leaves_no_trace_of_the_rollback() {
    let s = Scenario::shared("fix-client-side");
    leaves_no_trace(&s, &Applier::ClientSide);
}

/// A bad push that Helm waits for fails with the guard's words.
fn helm_hears_of_the_rollback(s: &Scenario, helm: &Applier, bad: &Value) {
    let pushed = s.about_to_push("web");
    let done = helm.run(s, bad, &["--wait", "--timeout=60s"]).done();
    s.say(&format!("helm failed after {:.1} s", done.took.as_secs_f64()));
    assert!(done.took < seconds(25), "not within seconds: {}", done.report());
    assert_eq!(done.code, Some(1), "{}", done.report());
    let words = done.words();
    assert!(words.contains("RolledBack") || words.to_lowercase().contains("rolled back"), "{words}");
    // At once: the fix must not have to wait for the end of the rollback.
    drop(pushed);
}

/// Default: ten times; the environment's LOOPS says otherwise.
#[test]
fn fault_51_helm_hears_of_each_rollback_and_never_of_one_when_the_fix_comes_at_once() {
    let s = Scenario::shared("helm-loop");
    let _policy = s.short_policy();
    let helm = Applier::helm();
    let loops = env::var("LOOPS").ok().and_then(|text| text.parse().ok()).unwrap_or(10);
    let image = registry::image("missing");
    helm.run(&s, &manifest("localhost/sample:v1", None), &["--wait"]).succeeds();
    let mut announced = 0;
    for turn in 0..loops {
        s.becomes_good("web");
        // Each bad template is a new one: the one before is known.
        helm_hears_of_the_rollback(&s, &helm, &manifest(&image, Some(&format!("BAD_{turn}"))));
        announced += usize::from(is_announced(&s.deployment("web")));
        let version = if turn % 2 == 0 { "v2" } else { "v3" };
        let fix = manifest(&format!("localhost/sample:{version}"), Some(&format!("FIX_{turn}")));
        let done = helm.run(&s, &fix, &["--wait", "--timeout=60s"]).done();
        s.say(&format!("fix {turn} took {:.1} s", done.took.as_secs_f64()));
        done.succeeds();
        let after = s.deployment("web");
        assert!(image_of(&after).ends_with(version), "{after}");
        assert!(!is_announced(&after), "{}", after["status"]);
    }
    s.say(&format!("helm: {loops} of {loops} fixes went through, {announced} over a standing announcement"));
    assert_eq!(announced, loops, "the fix did not meet the announcement");
}

#[test]
fn fault_51_helm_never_hears_of_a_rollback_when_the_fix_comes_after_its_announcement() {
    let s = Scenario::shared("helm-later");
    let _policy = s.short_policy();
    let helm = Applier::helm();
    helm.run(&s, &manifest("localhost/sample:v1", None), &["--wait"]).succeeds();
    s.becomes_good("web");
    helm_hears_of_the_rollback(&s, &helm, &manifest(&registry::image("missing"), None));
    s.wait_for_record("the rollback is verified", "web", |record| outcome(record) == "Succeeded");
    s.announcement_ends("web");
    let done = helm.run(&s, &manifest("localhost/sample:v2", None), &["--wait", "--timeout=60s"]).done();
    s.say(&format!("the fix took {:.1} s", done.took.as_secs_f64()));
    done.succeeds();
    assert_eq!(image_of(&s.deployment("web")), "localhost/sample:v2");
}
