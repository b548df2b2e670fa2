//! The push after a rollback: it gives what it would have given without one, whoever applies it.

use std::{env, fs, thread};

use serde_json::{Value, json};
use tempfile::TempDir;

use super::registry;
use crate::harness::{
    Run, Scenario, deployment,
    record::{is_announced, same_template, short},
    seconds,
    workload::image_of,
};

/// How manifests get into the cluster.
pub enum Applier {
    /// A release of this name, of a chart in this directory.
    Helm(String, TempDir),
    ServerSide,
    ClientSide,
}

impl Applier {
    pub fn helm() -> Self {
        Self::helm_release("web")
    }

    pub fn helm_release(name: &str) -> Self {
        let dir = TempDir::new().expect("temporary directory");
        fs::create_dir(dir.path().join("templates")).expect("templates");
        let chart = "apiVersion: v2\nname: web\nversion: 0.1.0\n";
        fs::write(dir.path().join("Chart.yaml"), chart).expect("chart");
        Self::Helm(name.to_owned(), dir)
    }

    /// Returns the command that applies a manifest, with more flags.
    pub fn run(&self, s: &Scenario, manifest: &Value, flags: &[&str]) -> Run {
        let run = match self {
            Self::Helm(name, dir) => {
                fs::write(dir.path().join("templates/web.yaml"), manifest.to_string()).expect("template");
                Run::new("helm")
                    .args(["upgrade", "--install", name.as_str()])
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
    manifest_of("web", image, environment)
}

fn manifest_of(name: &str, image: &str, environment: Option<&str>) -> Value {
    deployment(name, |d| {
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
    let done = helm.run(s, bad, &["--wait", "--timeout=60s"]).done();
    s.say(&format!("helm failed after {:.1} s", done.took.as_secs_f64()));
    assert!(done.took < seconds(40), "not within seconds: {}", done.report());
    assert_eq!(done.code, Some(1), "{}", done.report());
    let words = done.words();
    assert!(words.contains("RolledBack") || words.to_lowercase().contains("rolled back"), "{words}");
}

/// Side by side: more of them keep two cores so busy that Helm itself comes too late to see anything.
const RELEASES: usize = 3;

/// Three releases side by side, three times each: the environment's LOOPS says otherwise. Each other time the fix comes when the
/// announcement has ended by itself.
#[test]
fn fault_51_helm_hears_of_each_rollback_and_never_of_one_when_the_fix_comes_at_once_or_later() {
    let s = Scenario::shared("helm-loop");
    let mut policy = short();
    policy["rollback"]["announceFor"] = json!("45s");
    let _policy = s.put_in_force("short", policy);
    let loops: usize = env::var("LOOPS").ok().and_then(|text| text.parse().ok()).unwrap_or(3);
    let at_once: usize = thread::scope(|scope| {
        let releases: Vec<_> = (0..RELEASES)
            .map(|i| {
                let s = &s;
                scope.spawn(move || bad_pushes_and_fixes(s, &format!("web-{i}"), loops))
            })
            .collect();
        releases.into_iter().map(|release| release.join().expect("a release")).sum()
    });
    s.say(&format!(
        "helm: {0} of {0} fixes went through, {at_once} over a standing announcement",
        RELEASES * loops
    ));
}

/// Returns over how many standing announcements a fix went.
fn bad_pushes_and_fixes(s: &Scenario, name: &str, loops: usize) -> usize {
    let helm = Applier::helm_release(name);
    let image = registry::image("missing");
    let manifest = |image: &str, environment: Option<&str>| manifest_of(name, image, environment);
    helm.run(s, &manifest("localhost/sample:v1", None), &["--wait"]).succeeds();
    let mut over_announcements = 0;
    for turn in 0..loops {
        s.becomes_good(name);
        // Each bad template is a new one: the one before is known.
        helm_hears_of_the_rollback(s, &helm, &manifest(&image, Some(&format!("BAD_{turn}"))));
        let at_once = turn % 2 == 0;
        if at_once {
            assert!(is_announced(&s.deployment(name)), "the fix does not meet the announcement");
            over_announcements += 1;
        } else {
            s.announcement_ends(name);
        }
        let version = if at_once { "v2" } else { "v3" };
        let fix = manifest(&format!("localhost/sample:{version}"), Some(&format!("FIX_{turn}")));
        let done = helm.run(s, &fix, &["--wait", "--timeout=60s"]).done();
        s.say(&format!("{name}: fix {turn} took {:.1} s", done.took.as_secs_f64()));
        done.succeeds();
        let after = s.deployment(name);
        assert!(image_of(&after).ends_with(version), "{after}");
        assert!(!is_announced(&after), "{}", after["status"]);
    }
    over_announcements
}

/// What was good is pushed again while the rollback is announced: it changes nothing, and is no failed push.
#[test]
fn fault_51_a_push_of_what_was_put_back_hears_of_no_rollback() {
    let s = Scenario::shared("revert");
    let mut policy = short();
    // Longer than all of it takes.
    policy["rollback"]["announceFor"] = json!("120s");
    let _policy = s.put_in_force("short", policy);
    let helm = Applier::helm();
    let good = manifest("localhost/sample:v1", None);
    helm.run(&s, &good, &["--wait"]).succeeds();
    s.becomes_good("web");
    helm_hears_of_the_rollback(&s, &helm, &manifest(&registry::image("missing"), None));
    let announced = s.deployment("web");
    assert!(is_announced(&announced), "{}", announced["status"]);
    // Somebody else's annotation is no push.
    s.kubectl(["annotate", "deployment/web", "note=seen"]).succeeds();
    s.kubectl(["apply", "--server-side", "--dry-run=server", "--field-manager=helm", "-f", "-"])
        .input(good.to_string())
        .succeeds();
    assert!(is_announced(&s.deployment("web")), "taken away by what was no push");
    let done = helm.run(&s, &good, &["--wait", "--timeout=60s"]).done();
    s.say(&format!("the push of what is there took {:.1} s", done.took.as_secs_f64()));
    done.succeeds();
    let after = s.deployment("web");
    assert!(!is_announced(&after), "{}", after["status"]);
    assert!(same_template(&after, &announced), "{after}");
}

#[test]
fn fault_51_helms_own_rollback_after_the_guards_succeeds() {
    let s = Scenario::shared("helm-both");
    let mut policy = short();
    policy["rollback"]["announceFor"] = json!("120s");
    let _policy = s.put_in_force("short", policy);
    let helm = Applier::helm();
    helm.run(&s, &manifest("localhost/sample:v1", None), &["--wait"]).succeeds();
    s.becomes_good("web");
    let good = s.deployment("web");
    let bad = manifest(&registry::image("missing"), None);
    let done = helm.run(&s, &bad, &["--wait", "--rollback-on-failure", "--timeout=60s"]).done();
    s.say(&format!("helm failed and rolled back after {:.1} s", done.took.as_secs_f64()));
    let words = done.fails();
    assert!(words.to_lowercase().contains("rolled back"), "{words}");
    assert!(!words.contains("an error occurred while rolling back"), "{words}");
    let history = Applier::history(&s);
    assert!(history.lines().any(|line| line.starts_with('3') && line.contains("deployed")), "{history}");
    s.recovers("web");
    let after = s.deployment("web");
    assert!(same_template(&after, &good) && !is_announced(&after), "{after}");
}
