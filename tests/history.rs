//! `rollout-guard history` from outside: the real binary against an API server on the loopback.

#![allow(clippy::expect_used, clippy::panic, reason = "helpers of tests")]

#[path = "diagnose/canned.rs"]
mod canned;

use canned::{Answer, failing, refused, serve, succeeds};
use serde_json::{Value, json};

/// The cells of a table that do not change from one day to the next.
fn without_ages(table: &str) -> Vec<Vec<String>> {
    let cells = |line: &str| {
        let cells = line.split("   ").map(str::trim).filter(|cell| !cell.is_empty());
        cells.enumerate().filter(|(place, _)| *place != 3).map(|(_, cell)| cell.to_owned()).collect()
    };
    table.lines().map(cells).collect()
}

#[test]
fn revisions_are_listed_newest_first_with_what_is_known_of_each() {
    let address = serve(failing);
    let table = succeeds(&address, &["history", "web"]);
    assert_eq!(
        without_ages(&table),
        [
            ["REVISION", "VERDICT", "IMAGES", "BY", "WHY"],
            ["3 (current)", "-", "localhost/web:3", "helm", "-"],
            ["2", "-", "localhost/web:2", "-", "release 2"],
            ["1", "-", "localhost/web:1", "-", "-"],
        ]
    );
    assert!(succeeds(&address, &["history", "web", "-o", "wide"]).contains("REPLICASET"));
    assert_eq!(
        succeeds(&address, &["history", "web", "-o", "name"]),
        "replicaset.apps/web-3\nreplicaset.apps/web-2\nreplicaset.apps/web-1\n"
    );
}

#[test]
fn the_keys_of_the_json_stay() {
    let address = serve(failing);
    let json: Value =
        serde_json::from_str(&succeeds(&address, &["history", "web", "-o", "json"])).expect("JSON");
    insta::assert_json_snapshot!("history", json);
    let yaml: Value =
        serde_yaml_ng::from_str(&succeeds(&address, &["history", "web", "-o", "yaml"])).expect("YAML");
    assert_eq!(json, yaml);
}

#[test]
fn a_difference_is_shown_between_two_revisions_or_up_to_the_current_one() {
    let address = serve(failing);
    let both = succeeds(&address, &["history", "web", "--diff", "2", "3"]);
    let lines: Vec<&str> = both.lines().filter(|line| line.starts_with(['-', '+'])).collect();
    assert_eq!(
        lines,
        [
            "--- revision 2 (localhost/web:2)",
            "+++ revision 3 (localhost/web:3)",
            "-  - image: localhost/web:2",
            "+  - image: localhost/web:3",
        ]
    );
    let current = succeeds(&address, &["history", "web", "--diff", "2"]);
    assert!(current.contains("+++ revision 3 (localhost/web:3), now"), "{current}");
    let json: Value =
        serde_json::from_str(&succeeds(&address, &["history", "web", "--diff", "1", "2", "-o", "json"]))
            .expect("JSON");
    assert_eq!((&json["kind"], &json["from"], &json["to"]), (&json!("Difference"), &json!(1), &json!(2)));
    assert!(succeeds(&address, &["history", "web", "--diff", "2", "2"]).contains("the same template"));
}

#[test]
fn a_revision_that_is_not_there_is_an_error_that_lists_those_that_are() {
    let address = serve(failing);
    refused(&address, &["history", "web", "--diff", "7"], &["there is no revision 7", "3, 2, 1"]);
}

#[test]
fn a_bad_template_is_listed_also_where_its_replica_set_is_gone() {
    let address = serve(|path, query| match path {
        "/apis/rollout-guard.io/v1alpha1/namespaces/shop/rolloutrecords/deployment-web" => {
            let owner = json!({"apiVersion": "apps/v1", "kind": "Deployment", "name": "web", "uid": "u"});
            let revisions = json!([{"templateHash": "0".repeat(64), "verdict": "Bad", "reason": "Image",
                "images": ["localhost/web:9"], "until": "2999-01-01T00:00:00Z"}]);
            Answer::Json(json!({"apiVersion": "rollout-guard.io/v1alpha1", "kind": "RolloutRecord",
                "metadata": {"name": "deployment-web", "namespace": "shop", "uid": "r", "resourceVersion": "1",
                    "ownerReferences": [owner]},
                "spec": {"targetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "web", "uid": "u"}},
                "status": {"templateHash": "1".repeat(64), "revisions": revisions}}))
        }
        _ => failing(path, query),
    });
    let table = succeeds(&address, &["history", "web"]);
    let bad = table.lines().find(|line| line.contains("localhost/web:9")).expect("it is listed");
    assert!(bad.contains("Bad (Image)") && bad.contains("refused until 2999"), "{table}");
}

#[test]
fn without_the_right_to_read_replica_sets_there_is_no_history() {
    let address =
        serve(
            |path, query| {
                if path.ends_with("/replicasets") { Answer::Refused(403) } else { failing(path, query) }
            },
        );
    refused(&address, &["history", "web"], &["may not list replicasets", "User \"dev\" cannot do this"]);
    refused("127.0.0.1:9", &["history", "web"], &["refused"]);
}
