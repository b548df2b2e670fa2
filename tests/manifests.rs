//! The chart and the manifests: rendered with a real Helm and read as YAML, and compared with what the Rust types say.
//!
//! `UPDATE_MANIFESTS=1` writes the generated files anew instead of comparing them (`make manifests`). Helm is taken from
//! the environment variable `HELM`, else from the PATH; without it these tests fail, as there is nothing to test then.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "the whole file is a test")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde::Deserialize;
use serde_json::{Value, json};

const RELEASE: &str = "rollout-guard";
const NAMESPACE: &str = "rollout-guard";
const SECRET: &str = "rollout-guard-certificates";

/// The oldest version the chart is for; a Helm built without a version of its own would assume one older still.
const KUBE_VERSION: &str = "1.30.0";

/// Namespaces that no values may bring under the webhooks; the release's own comes on top.
const NEVER_GUARDED: [&str; 3] = ["kube-system", "kube-node-lease", "kube-public"];

/// What install.yaml has in front of the rendered chart.
const NAMESPACE_OBJECT: &str = "\
# Rendered from charts/rollout-guard. Do not edit: change the chart, then run `make manifests`.
---
apiVersion: v1
kind: Namespace
metadata:
  name: rollout-guard
  labels:
    pod-security.kubernetes.io/enforce: restricted
    pod-security.kubernetes.io/audit: restricted
    pod-security.kubernetes.io/warn: restricted
";

/// What is in front of everything else that the chart renders.
const GENERATED_FROM_THE_CHART: &str =
    "# Rendered from charts/rollout-guard. Do not edit: change the chart, then run `make manifests`.\n";

/// Files of the chart that stand in manifests/monitoring as they are.
const MONITORING_FILES: [&str; 2] = ["rules.yaml", "dashboard.json"];

/// What else stands there: the file, which is named after its template, and the value that puts it out.
const MONITORING_OBJECTS: [(&str, &str); 3] = [
    ("prometheusrule.yaml", "prometheusRule"),
    ("servicemonitor.yaml", "serviceMonitor"),
    ("grafanadashboard.yaml", "grafanaDashboard"),
];

/// Combinations of values, as for `--set`, for what must hold whatever the values are.
const COMBINATIONS: [&[&str]; 16] = [
    &[],
    &["certManager.enabled=true"],
    &[
        "certManager.enabled=true",
        "certManager.issuerRef.name=pki",
        "certManager.issuerRef.kind=ClusterIssuer",
    ],
    &["fallback.enabled=false"],
    &["watcher.enabled=false"],
    &["watcher.enabled=false", "certManager.enabled=true"],
    &["records.protect=false"],
    &["rbac.podLogs=true", "watcher.limits.rollbacksPerHour=100"],
    &["webhook.failurePolicy=Fail"],
    &["networkPolicy.enabled=true"],
    &["serviceMonitor.enabled=true", "prometheusRule.enabled=true", "grafanaDashboard.enabled=true"],
    &["replicas=1"],
    &["replicas=5", "podDisruptionBudget.minAvailable=3"],
    &["fullnameOverride=door", "webhook.clientCA.configMap=ca", "docsURL=https://docs.example.com/"],
    &[
        "webhook.excludedNamespaces={vendor}",
        "webhook.namespaceSelector.matchLabels.guard=yes",
        "runAsUser=null",
    ],
    // An attempt to bring the fixed namespaces back.
    &[
        "webhook.namespaceSelector.matchExpressions[0].key=kubernetes.io/metadata.name",
        "webhook.namespaceSelector.matchExpressions[0].operator=In",
        "webhook.namespaceSelector.matchExpressions[0].values={kube-system,kube-node-lease,rollout-guard,shop}",
    ],
];

// Generated files

#[test]
fn the_crds_in_manifests_and_chart_are_those_of_the_rust_types() {
    let crds = rollout_guard::api::crds();
    assert!(!crds.is_empty(), "no CRD at all");
    for (name, crd) in &crds {
        let text = format!(
            "# Generated from src/api. Do not edit: change the types, then run `make manifests`.\n{}",
            quote_booleans_of_yaml_1_1(&serde_yaml_ng::to_string(crd).unwrap())
        );
        for directory in ["manifests/crds", "charts/rollout-guard/crds"] {
            let path = root().join(directory).join(format!("{name}.yaml"));
            let same = fs::read_to_string(&path).is_ok_and(|stored| stored == text);
            update_or_require(&path, &text, same);
        }
    }
    for directory in ["manifests/crds", "charts/rollout-guard/crds"] {
        for entry in fs::read_dir(root().join(directory)).unwrap() {
            let file = entry.unwrap().file_name().into_string().unwrap();
            let known = crds.iter().any(|(name, _)| file == format!("{name}.yaml"));
            assert!(known || !file.ends_with(".yaml"), "{directory}/{file} is of no Rust type");
        }
    }
}

/// kubectl and Helm read YAML 1.1, in which a bare `Off` is false. serde_yaml writes 1.2 and leaves it bare.
fn quote_booleans_of_yaml_1_1(text: &str) -> String {
    const WORDS: [&str; 6] = ["on", "off", "yes", "no", "y", "n"];
    let quote = |line: &str| {
        let start = line.rfind(' ').map_or(0, |at| at + 1);
        let (head, word) = line.split_at(start);
        let bare = WORDS.iter().any(|boolean| boolean.eq_ignore_ascii_case(word));
        if bare && (head.ends_with("- ") || head.ends_with(": ")) {
            format!("{head}'{word}'\n")
        } else {
            format!("{line}\n")
        }
    };
    text.lines().map(quote).collect()
}

#[test]
fn words_that_are_booleans_in_yaml_1_1_are_quoted() {
    assert_eq!(
        quote_booleans_of_yaml_1_1("enum:\n- Audit\n- Off\ndefault: no\ndescription: or Off\n"),
        "enum:\n- Audit\n- 'Off'\ndefault: 'no'\ndescription: or Off\n"
    );
}

/// Compared object by object: Helm 3 and Helm 4 lay the text out differently and order objects of a kind differently.
#[test]
fn install_yaml_is_what_the_chart_renders() {
    let text = format!("{NAMESPACE_OBJECT}{}", render_text(&[]));
    let path = root().join("manifests/install.yaml");
    let same = fs::read_to_string(&path).is_ok_and(|stored| {
        let stored = documents(&stored);
        let first = stored.first().is_some_and(|object| object["kind"] == "Namespace");
        first && by_identity(stored) == by_identity(documents(&text))
    });
    update_or_require(&path, &text, same);
}

/// Object by object for the same reason; the rules and the dashboard themselves byte by byte.
#[test]
fn the_manifests_for_monitoring_are_those_of_the_chart() {
    for file in MONITORING_FILES {
        let text = read(&format!("charts/rollout-guard/files/{file}"));
        let path = root().join("manifests/monitoring").join(file);
        let same = fs::read_to_string(&path).is_ok_and(|stored| stored == text);
        update_or_require(&path, &text, same);
    }
    for (file, value) in MONITORING_OBJECTS {
        let template = format!("templates/{file}");
        let set = format!("{value}.enabled=true");
        let rendered = helm_template_with(&["--show-only", &template], &[&set]);
        assert!(rendered.status.success(), "{}", String::from_utf8_lossy(&rendered.stderr));
        let text = String::from_utf8(rendered.stdout).unwrap();
        let text = format!("{GENERATED_FROM_THE_CHART}{text}");
        let path = root().join("manifests/monitoring").join(file);
        let same = fs::read_to_string(&path).is_ok_and(|stored| documents(&stored) == documents(&text));
        update_or_require(&path, &text, same);
    }
    let kustomization = &documents(&read("manifests/monitoring/kustomization.yaml"))[0];
    let files = MONITORING_OBJECTS.map(|(file, _)| file);
    assert_eq!(strings(&kustomization["resources"]), files);
}

#[test]
fn the_kustomization_holds_every_manifest() {
    let kustomization = &documents(&read("manifests/kustomization.yaml"))[0];
    let mut expected: Vec<String> =
        rollout_guard::api::crds().iter().map(|(name, _)| format!("crds/{name}.yaml")).collect();
    expected.push("install.yaml".into());
    assert_eq!(strings(&kustomization["resources"]), expected);
}

// Monitoring

#[test]
fn the_prometheusrule_has_the_rules_of_the_file() {
    let object = only(&render(&["prometheusRule.enabled=true"]), "PrometheusRule").clone();
    assert_eq!(object["spec"], rules());
}

#[test]
fn an_alert_is_changed_or_left_out_by_its_name() {
    let objects = render(&[
        "prometheusRule.enabled=true",
        "prometheusRule.labels.release=prometheus",
        "monitoring.runbookURL=https://docs.example.com/runbook.html",
        "prometheusRule.alerts.KubernetesDeploymentGenerationMismatch.enabled=false",
        "prometheusRule.alerts.RolloutGuardStopped.for=8h",
        "prometheusRule.alerts.RolloutGuardStopped.severity=info",
    ]);
    let object = only(&objects, "PrometheusRule");
    assert_eq!(object["metadata"]["labels"]["release"], "prometheus");
    let (mut expected, mut changed) = (alerts_of(&rules()), alerts_of(&object["spec"]));
    assert!(expected.remove("KubernetesDeploymentGenerationMismatch").is_some());
    for (name, alert) in &mut expected {
        let anchor = name.to_lowercase();
        alert["annotations"]["runbook_url"] =
            json!(format!("https://docs.example.com/runbook.html#{anchor}"));
    }
    let stopped = expected.get_mut("RolloutGuardStopped").unwrap();
    stopped["for"] = json!("8h");
    stopped["labels"]["severity"] = json!("info");
    assert_eq!(changed, expected);
    assert!(changed.remove("RolloutGuardNoLeader").is_some());
}

#[test]
fn an_alert_that_is_not_there_cannot_be_changed() {
    let output = helm_template(&[
        "prometheusRule.enabled=true",
        "prometheusRule.alerts.RolloutGuardLazy.enabled=false",
    ]);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success());
    assert!(
        error.contains("RolloutGuardLazy, which is no alert") && error.contains("RolloutGuardNoLeader"),
        "{error}"
    );
}

/// Nobody leads then, and no replica says that anything is stuck.
#[test]
fn without_the_watcher_there_are_no_alerts_about_it() {
    let objects = render(&["prometheusRule.enabled=true", "watcher.enabled=false"]);
    let left: Vec<String> = alerts_of(&only(&objects, "PrometheusRule")["spec"]).into_keys().collect();
    assert_eq!(
        left,
        [
            "KubernetesDeploymentGenerationMismatch",
            "RolloutGuardCertificateExpiring",
            "RolloutGuardPolicyInvalid",
            "RolloutGuardWebhookFailingClosed",
            "RolloutGuardWebhookFailingOpen",
        ]
    );
}

#[test]
fn the_alerts_about_the_webhook_go_by_its_name() {
    let objects = render(&[]);
    let name = text(&only_webhook(&objects, "ValidatingWebhookConfiguration")["name"]).to_owned();
    for (alert, rule) in alerts_of(&rules()) {
        let expression = text(&rule["expr"]);
        if expression.contains("apiserver_admission_webhook") {
            let all = expression.matches("apiserver_admission_webhook").count();
            let named = expression.matches(&format!("{{name=\"{name}\"")).count();
            assert_eq!(named, all, "{alert}: {expression}");
        }
    }
}

#[test]
fn the_dashboards_configmap_holds_the_file_and_is_found_by_the_sidecar() {
    let objects = render(&["grafanaDashboard.enabled=true", "grafanaDashboard.folder=Rollouts"]);
    let object = only(&objects, "ConfigMap");
    assert_eq!(object["metadata"]["labels"]["grafana_dashboard"], "1");
    assert_eq!(object["metadata"]["annotations"], json!({"grafana_folder": "Rollouts"}));
    let parse = |text: &str| serde_json::from_str::<Value>(text).unwrap();
    let stored = parse(text(&object["data"]["rollout-guard.json"]));
    assert_eq!(stored, parse(&read("charts/rollout-guard/files/dashboard.json")));
    // `kubectl apply` keeps a copy in an annotation, which has 256 KiB.
    assert!(object.to_string().len() < 200_000);
}

fn rules() -> Value {
    documents(&read("charts/rollout-guard/files/rules.yaml")).remove(0)
}

/// Returns the alerts by name.
fn alerts_of(rules: &Value) -> BTreeMap<String, Value> {
    let all = array(&rules["groups"]).iter().flat_map(|group| array(&group["rules"]));
    all.map(|rule| (text(&rule["alert"]).to_owned(), rule.clone())).collect()
}

// Values, schema and README in step

#[test]
fn the_readme_lists_every_value_with_its_true_default() {
    let readme = read("charts/rollout-guard/README.md");
    let mut listed = BTreeMap::new();
    for row in readme.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<&str> = row.trim_matches(['|', ' ']).splitn(3, " | ").collect();
        let [name, default, meaning] = cells[..] else { panic!("not a row of three cells: {row}") };
        let default = serde_json::from_str(default.trim_matches('`'))
            .unwrap_or_else(|error| panic!("the default of {name} is not JSON: {error}"));
        assert!(meaning.len() > 3, "{name} is not explained");
        assert!(listed.insert(name.trim_matches('`').to_owned(), default).is_none(), "{name} stands twice");
    }
    assert_eq!(listed, leaves(&values()));
}

#[test]
fn the_schema_describes_every_value_and_allows_no_other() {
    let schema: Value = serde_json::from_str(&read("charts/rollout-guard/values.schema.json")).unwrap();
    for path in leaves(&values()).keys() {
        let mut node = &schema;
        for (depth, key) in path.split('.').enumerate() {
            // Quantities and policies have schemas elsewhere.
            let above = path.split('.').take(depth).collect::<Vec<_>>().join(".");
            if !["defaultPolicy.spec", "resources.requests", "resources.limits"].contains(&&*above) {
                assert_eq!(node["additionalProperties"], false, "{above:?} lets unknown values through");
            }
            node = &node["properties"][key];
            assert!(node.is_object(), "{path} is not in the schema");
        }
        let typed = node.get("type").is_some() || node.get("enum").is_some();
        assert!(typed, "{path} may be of any type");
        if !path.starts_with("resources.") {
            assert!(node["description"].is_string(), "{path} has no description");
        }
    }
    let known = values();
    for name in schema["properties"].as_object().unwrap().keys() {
        let of_the_parent = ["enabled", "global"].contains(&name.as_str());
        assert!(of_the_parent || known.get(name).is_some(), "{name} is in the schema and not in values.yaml");
    }
}

#[test]
fn wrong_values_are_refused_in_words_that_name_them() {
    for (set, words) in [
        ("webhook.failurePolicy=Maybe", ["/webhook/failurePolicy", "'Ignore', 'Fail'"]),
        ("webhook.mutatingFailurePolicy=Fail", ["webhook", "mutatingFailurePolicy"]),
        ("webhook.timeoutSeconds=0", ["/webhook/timeoutSeconds", "want 1"]),
        ("webhook.excludedNamespaces={Shop}", ["/webhook/excludedNamespaces/0", "Shop"]),
        ("replica=3", ["additional properties", "replica"]),
        ("replicas=0", ["/replicas", "want 1"]),
        ("replicas=many", ["/replicas", "integer"]),
        ("runAsUser=0", ["/runAsUser", "want 1"]),
        ("image.digest=latest", ["/image/digest", "latest"]),
        ("log.format=xml", ["/log/format", "'json', 'text'"]),
        ("defaultPolicy.spec.mode=enforce", ["/defaultPolicy/spec/mode", "'Enforce'"]),
        ("certManager.issuer.name=pki", ["certManager", "issuer"]),
        ("podDisruptionBudget.minAvailable=2", ["podDisruptionBudget.minAvailable (2)", "replicas (2)"]),
        ("serviceAccount.create=false", ["serviceAccount.create is false", "serviceAccount.name"]),
        ("extraEnv[0].name=POD_NAME", ["extraEnv", "POD_NAME"]),
        ("extraEnv[0].name=POD_SERVICE_ACCOUNT", ["extraEnv", "POD_SERVICE_ACCOUNT"]),
        ("extraArgs={listen}", ["/extraArgs/0", "listen"]),
        ("watcher.enable=false", ["watcher", "enable"]),
        ("watcher.limits.rollbacksPerCluster=0", ["/watcher/limits/rollbacksPerCluster", "want 1"]),
        ("watcher.limits.stuckPercent=101", ["/watcher/limits/stuckPercent", "want 100"]),
        ("monitoring.runbookURL=runbook.md", ["/monitoring/runbookURL", "runbook.md"]),
        ("prometheusRule.alerts.RolloutGuardStopped.for=soon", ["RolloutGuardStopped/for", "soon"]),
        ("prometheusRule.alerts.RolloutGuardStopped.expr=1", ["RolloutGuardStopped", "expr"]),
    ] {
        let output = helm_template(&[set]);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{set} was accepted");
        for word in words {
            assert!(error.contains(word), "{set}: no {word:?} in: {error}");
        }
    }
}

#[test]
fn helm_lint_finds_nothing_to_say() {
    let output = helm(&["lint", "--strict", "--kube-version", KUBE_VERSION, &chart()]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

// Webhook configurations

/// Fault 28: kube-system, kube-node-lease, nodes, CSRs, token reviews are provably never matched.
#[test]
fn fault_28_system_namespaces_and_everything_but_deployments_are_never_matched() {
    for set in COMBINATIONS {
        let objects = render(set);
        for (kind, operations) in [
            ("ValidatingWebhookConfiguration", vec!["UPDATE"]),
            ("MutatingWebhookConfiguration", vec!["CREATE", "UPDATE"]),
        ] {
            let webhook = only_webhook(&objects, kind);
            // One rule and no wildcard: whatever is not this resource is not matched in any namespace.
            assert_eq!(
                webhook["rules"],
                json!([{
                    "apiGroups": ["apps"], "apiVersions": ["v1"], "resources": ["deployments"],
                    "operations": operations, "scope": "Namespaced",
                }]),
                "{kind} {set:?}"
            );
            for (group, resource) in [
                ("", "nodes"),
                ("", "nodes/status"),
                ("", "pods"),
                ("", "secrets"),
                ("", "namespaces"),
                ("apps", "daemonsets"),
                ("apps", "deployments/scale"),
                ("apps", "deployments/status"),
                ("apps", "replicasets"),
                ("admissionregistration.k8s.io", "validatingwebhookconfigurations"),
                ("authentication.k8s.io", "tokenreviews"),
                ("authorization.k8s.io", "subjectaccessreviews"),
                ("certificates.k8s.io", "certificatesigningrequests"),
                ("coordination.k8s.io", "leases"),
                ("rollout-guard.io", "rolloutrecords"),
                ("rollout-guard.io", "rolloutrecords/status"),
            ] {
                for operation in ["CREATE", "UPDATE", "DELETE", "CONNECT"] {
                    assert!(
                        !rules_match(webhook, group, resource, operation),
                        "{kind} {set:?}: {operation} {resource}"
                    );
                }
            }
            for namespace in NEVER_GUARDED.into_iter().chain([NAMESPACE]) {
                // With every label that the combinations ask for.
                let labels = [("kubernetes.io/metadata.name", namespace), ("guard", "yes")];
                assert!(
                    !selector_matches(&webhook["namespaceSelector"], &labels),
                    "{kind} {set:?}: {namespace}"
                );
            }
            let shop = [("kubernetes.io/metadata.name", "shop"), ("guard", "yes")];
            assert!(
                selector_matches(&webhook["namespaceSelector"], &shop),
                "{kind} {set:?}: shop is not guarded"
            );
            assert!(rules_match(webhook, "apps", "deployments", "UPDATE"));
        }
    }
    let objects =
        render(&["webhook.excludedNamespaces={vendor}", "webhook.namespaceSelector.matchLabels.guard=yes"]);
    let selector = &only_webhook(&objects, "ValidatingWebhookConfiguration")["namespaceSelector"];
    assert!(!selector_matches(selector, &[("kubernetes.io/metadata.name", "vendor"), ("guard", "yes")]));
    assert!(!selector_matches(selector, &[("kubernetes.io/metadata.name", "shop")]));
}

#[test]
fn the_release_namespace_is_left_out_whatever_its_name() {
    let output =
        helm(&["template", RELEASE, &chart(), "--namespace", "platform", "--kube-version", KUBE_VERSION]);
    let objects = documents(&String::from_utf8(output.stdout).unwrap());
    for kind in ["ValidatingWebhookConfiguration", "MutatingWebhookConfiguration"] {
        let selector = &only_webhook(&objects, kind)["namespaceSelector"];
        assert!(!selector_matches(selector, &[("kubernetes.io/metadata.name", "platform")]));
    }
}

#[test]
fn the_mutating_webhook_never_fails_an_update() {
    for set in COMBINATIONS {
        let objects = render(set);
        let expected = if set.contains(&"webhook.failurePolicy=Fail") { "Fail" } else { "Ignore" };
        assert_eq!(
            only_webhook(&objects, "ValidatingWebhookConfiguration")["failurePolicy"],
            expected,
            "{set:?}"
        );
        assert_eq!(
            only_webhook(&objects, "MutatingWebhookConfiguration")["failurePolicy"],
            "Ignore",
            "{set:?}"
        );
    }
}

#[test]
fn webhooks_reach_the_service_of_the_release_and_are_asked_only_when_it_matters() {
    for set in COMBINATIONS {
        let objects = render(set);
        let service = names(&objects, "Service").into_iter().next().unwrap();
        for (kind, path, side_effects) in [
            // The announcement of a rollback comes off the Deployment's status.
            ("ValidatingWebhookConfiguration", "/validate", "NoneOnDryRun"),
            ("MutatingWebhookConfiguration", "/mutate", "None"),
        ] {
            let webhook = only_webhook(&objects, kind);
            let expected = json!({"name": service, "namespace": NAMESPACE, "path": path, "port": 443});
            assert_eq!(webhook["clientConfig"]["service"], expected, "{kind} {set:?}");
            assert_eq!(webhook["admissionReviewVersions"], json!(["v1"]));
            assert_eq!(webhook["matchPolicy"], "Equivalent");
            assert_eq!(webhook["sideEffects"], side_effects, "{kind} {set:?}");
        }
        let validating = only_webhook(&objects, "ValidatingWebhookConfiguration");
        let conditions: Vec<&str> =
            array(&validating["matchConditions"]).iter().map(|condition| text(&condition["name"])).collect();
        assert_eq!(conditions, ["not-being-deleted", "generation-changed", "pod-template-changed"]);
    }
}

#[test]
fn the_chart_says_nothing_about_the_ca_bundle() {
    for set in COMBINATIONS {
        for kind in ["ValidatingWebhookConfiguration", "MutatingWebhookConfiguration"] {
            let objects = render(set);
            let configuration = only(&objects, kind);
            let webhook = only_webhook(&objects, kind);
            assert!(webhook["clientConfig"].get("caBundle").is_none(), "{kind} {set:?}");
            let injected = &configuration["metadata"]["annotations"]["cert-manager.io/inject-ca-from"];
            if is_mounted(set) {
                let certificate = of_kind(&objects, "Certificate").last().copied().unwrap();
                let from = format!("{NAMESPACE}/{}", text(&certificate["metadata"]["name"]));
                assert_eq!(injected, &json!(from), "{kind} {set:?}");
            } else {
                assert!(injected.is_null(), "{kind} {set:?}");
            }
        }
    }
}

// Rights

#[test]
fn no_role_has_a_wildcard() {
    for set in COMBINATIONS {
        for role in roles(&render(set)) {
            for rule in array(&role["rules"]) {
                for field in ["apiGroups", "resources", "verbs", "resourceNames", "nonResourceURLs"] {
                    let wild = rule
                        .get(field)
                        .is_some_and(|list| strings(list).iter().any(|word| word.contains('*')));
                    assert!(!wild, "{set:?}: {rule}");
                }
                assert!(rule.get("nonResourceURLs").is_none(), "{set:?}: {rule}");
            }
        }
    }
}

#[test]
fn every_right_to_write_is_one_of_these() {
    let common = [
        "create authorization.k8s.io/subjectaccessreviews",
        // also without the fallback: what is left of one that was switched off
        "delete admissionregistration.k8s.io/validatingadmissionpolicies",
        "delete admissionregistration.k8s.io/validatingadmissionpolicybindings",
        "override rollout-guard.io/rolloutpolicies",
        // the announcement of a rollback, which the webhook takes away
        "patch apps/deployments/status",
        "patch rollout-guard.io/rolloutpolicies/status",
    ];
    let watcher = [
        "create /events",
        "create coordination.k8s.io/leases",
        "create rollout-guard.io/rolloutrecords",
        "delete rollout-guard.io/rolloutrecords",
        // the rollback
        "patch apps/deployments",
        "update coordination.k8s.io/leases named rollout-guard",
        "update rollout-guard.io/rolloutrecords/status",
    ];
    let fallback = [
        "create admissionregistration.k8s.io/validatingadmissionpolicies",
        "create admissionregistration.k8s.io/validatingadmissionpolicybindings",
        "patch admissionregistration.k8s.io/validatingadmissionpolicies",
        "patch admissionregistration.k8s.io/validatingadmissionpolicybindings",
    ];
    let own_certificates = [
        "create /secrets",
        "patch /secrets named rollout-guard-certificates",
        "patch admissionregistration.k8s.io/mutatingwebhookconfigurations named rollout-guard",
        "patch admissionregistration.k8s.io/validatingwebhookconfigurations named rollout-guard",
        "update /secrets named rollout-guard-certificates",
    ];
    let set_of =
        |lists: &[&[&str]]| lists.concat().iter().map(|right| (*right).to_owned()).collect::<BTreeSet<_>>();
    for (set, lists) in [
        (&[][..], &[&common[..], &watcher, &fallback, &own_certificates][..]),
        (&["rbac.podLogs=true"], &[&common, &watcher, &fallback, &own_certificates]),
        (&["watcher.enabled=false"], &[&common, &fallback, &own_certificates]),
        (&["fallback.enabled=false"], &[&common, &watcher, &own_certificates]),
        (&["certManager.enabled=true"], &[&common, &watcher, &fallback]),
        (&["certManager.enabled=true", "watcher.enabled=false"], &[&common, &fallback]),
    ] {
        assert_eq!(writes(&render(set)), set_of(lists), "{set:?}");
    }
}

#[test]
fn every_right_to_read_is_one_of_these() {
    let common = [
        "get admissionregistration.k8s.io/mutatingwebhookconfigurations named rollout-guard",
        "get admissionregistration.k8s.io/validatingwebhookconfigurations named rollout-guard",
        "list /namespaces",
        "list admissionregistration.k8s.io/mutatingwebhookconfigurations named rollout-guard",
        "list admissionregistration.k8s.io/validatingadmissionpolicies",
        "list admissionregistration.k8s.io/validatingadmissionpolicybindings",
        "list admissionregistration.k8s.io/validatingwebhookconfigurations named rollout-guard",
        "get apps/deployments",
        "list apps/deployments",
        "list rollout-guard.io/rolloutpolicies",
        "list rollout-guard.io/rolloutrecords",
        "watch /namespaces",
        "watch admissionregistration.k8s.io/mutatingwebhookconfigurations named rollout-guard",
        "watch admissionregistration.k8s.io/validatingwebhookconfigurations named rollout-guard",
        "watch apps/deployments",
        "watch rollout-guard.io/rolloutpolicies",
        "watch rollout-guard.io/rolloutrecords",
    ];
    let watcher = [
        "get coordination.k8s.io/leases named kube-controller-manager",
        "get coordination.k8s.io/leases named rollout-guard",
        "get rollout-guard.io/rolloutrecords",
        "list /events",
        "list /nodes",
        "list /pods",
        "list apps/replicasets",
    ];
    let own_certificates = [
        "get /secrets named rollout-guard-certificates",
        "list /secrets named rollout-guard-certificates",
        "watch /secrets named rollout-guard-certificates",
    ];
    // What is for people to be bound to is not the guard's.
    let reads = |set: &[&str]| {
        let mut objects = render(set);
        objects.retain(|object| !text(&object["metadata"]["name"]).ends_with("-view"));
        rights(&objects).into_iter().filter(|right| is_read(right)).collect::<BTreeSet<_>>()
    };
    let set_of =
        |lists: &[&[&str]]| lists.concat().iter().map(|right| (*right).to_owned()).collect::<BTreeSet<_>>();
    for (set, lists) in [
        (&[][..], &[&common[..], &watcher, &own_certificates][..]),
        (&["watcher.enabled=false"], &[&common, &own_certificates]),
        (&["certManager.enabled=true", "watcher.enabled=false"], &[&common]),
        (&["rbac.podLogs=true"], &[&common, &watcher, &own_certificates, &["get /pods/log"]]),
        // No watcher, nobody to read them.
        (&["rbac.podLogs=true", "watcher.enabled=false"], &[&common, &own_certificates]),
    ] {
        assert_eq!(reads(set), set_of(lists), "{set:?}");
    }
}

#[test]
fn in_kube_system_the_guard_reads_one_lease_and_nothing_else() {
    let objects = render(&[]);
    let there = |kind: &str| {
        let all = of_kind(&objects, kind);
        let there: Vec<&Value> =
            all.into_iter().filter(|object| object["metadata"]["namespace"] == "kube-system").collect();
        assert_eq!(there.len(), 1, "{kind}");
        there[0]
    };
    let rule = json!({
        "apiGroups": ["coordination.k8s.io"], "resources": ["leases"],
        "resourceNames": ["kube-controller-manager"], "verbs": ["get"],
    });
    assert_eq!(there("Role")["rules"], json!([rule]));
    assert_eq!(there("RoleBinding")["roleRef"]["name"], there("Role")["metadata"]["name"]);
}

#[test]
fn whoever_may_view_a_namespace_may_see_policies_and_records() {
    let objects = render(&[]);
    let role = of_kind(&objects, "ClusterRole")
        .into_iter()
        .find(|role| role["metadata"]["labels"]["rbac.authorization.k8s.io/aggregate-to-view"] == "true")
        .unwrap();
    let rule = json!({
        "apiGroups": ["rollout-guard.io"], "resources": ["rolloutpolicies", "rolloutrecords"],
        "verbs": ["get", "list", "watch"],
    });
    assert_eq!(role["rules"], json!([rule]));
}

/// Fault 11: a user forges records.
#[test]
fn fault_11_records_are_written_by_the_guards_account_alone_and_deleted_by_anybody() {
    for set in COMBINATIONS {
        let objects = render(set);
        if set.contains(&"records.protect=false") {
            assert!(names(&objects, "ValidatingAdmissionPolicy").is_empty());
            assert!(names(&objects, "ValidatingAdmissionPolicyBinding").is_empty());
            continue;
        }
        let policy = only(&objects, "ValidatingAdmissionPolicy");
        let spec = &policy["spec"];
        assert_eq!(spec["failurePolicy"], "Fail", "{set:?}");
        // No DELETE: garbage collection, namespaces that go, and people.
        assert_eq!(
            spec["matchConstraints"]["resourceRules"],
            json!([{
                "apiGroups": ["rollout-guard.io"], "apiVersions": ["v1alpha1"],
                "resources": ["rolloutrecords", "rolloutrecords/status"],
                "operations": ["CREATE", "UPDATE"], "scope": "Namespaced",
            }]),
            "{set:?}"
        );
        // In any namespace, whatever its labels.
        for selector in ["namespaceSelector", "objectSelector", "excludeResourceRules"] {
            assert!(spec["matchConstraints"].get(selector).is_none(), "{set:?}: {selector}");
        }
        let conditions = array(&spec["matchConditions"]);
        assert_eq!(conditions.len(), 1, "{set:?}");
        assert_eq!(
            conditions[0]["expression"],
            "request.operation == \"CREATE\" || request.?subResource.orValue(\"\") == \"status\" \
             || object.spec != oldObject.spec",
            "{set:?}"
        );
        let account = deployment(&objects)["spec"]["template"]["spec"]["serviceAccountName"].clone();
        let validations = array(&spec["validations"]);
        assert_eq!(validations.len(), 1, "{set:?}");
        assert_eq!(
            text(&validations[0]["expression"]),
            format!("request.userInfo.username == \"system:serviceaccount:{NAMESPACE}:{}\"", text(&account)),
            "{set:?}"
        );
        assert_eq!(validations[0]["reason"], "Forbidden");
        assert!(text(&validations[0]["message"]).starts_with("Only rollout-guard writes"), "{set:?}");
        let binding = only(&objects, "ValidatingAdmissionPolicyBinding");
        assert_eq!(
            binding["spec"],
            json!({"policyName": policy["metadata"]["name"], "validationActions": ["Deny"]}),
            "{set:?}"
        );
        // Else a RolloutPolicy of the right name would take it over for its fallback.
        let name = text(&policy["metadata"]["name"]);
        assert!(!name.starts_with(&rollout_guard::core::fallback::name("")), "{set:?}: {name}");
        // The guard removes fallbacks by this label.
        let labels = policy["metadata"]["labels"].as_object().unwrap();
        assert!(!labels.contains_key(rollout_guard::core::fallback::POLICY_LABEL), "{set:?}");
    }
}

#[test]
fn secrets_are_in_reach_only_by_name_and_in_the_release_namespace() {
    for set in COMBINATIONS {
        let objects = render(set);
        for role in roles(&objects) {
            for rule in array(&role["rules"])
                .iter()
                .filter(|rule| strings(&rule["resources"]).contains(&"secrets".into()))
            {
                assert!(!is_mounted(set), "{set:?}: cert-manager's mode needs no right to Secrets");
                assert_eq!(role["kind"], "Role", "{set:?}");
                assert_eq!(role["metadata"]["namespace"], NAMESPACE, "{set:?}");
                if strings(&rule["verbs"]) != ["create"] {
                    let argument = argument(&objects, "certificate-secret").unwrap();
                    assert_eq!(rule["resourceNames"], json!([argument]), "{set:?}");
                }
            }
        }
    }
    assert_eq!(argument(&render(&[]), "certificate-secret").as_deref(), Some(SECRET));
}

#[test]
fn the_guards_roles_are_bound_to_its_account_alone_and_the_override_to_nobody() {
    for set in COMBINATIONS {
        let objects = render(set);
        let account = names(&objects, "ServiceAccount")[0].clone();
        let bindings: Vec<&Value> =
            ["ClusterRoleBinding", "RoleBinding"].iter().flat_map(|kind| of_kind(&objects, kind)).collect();
        assert!(!bindings.is_empty());
        for binding in bindings {
            let subject = json!([{"kind": "ServiceAccount", "name": account, "namespace": NAMESPACE}]);
            assert_eq!(binding["subjects"], subject, "{set:?}");
            let role = text(&binding["roleRef"]["name"]);
            assert!(!role.ends_with("-override") && !role.ends_with("-view"), "{set:?}: {role} is bound");
        }
        assert_eq!(deployment(&objects)["spec"]["template"]["spec"]["serviceAccountName"], json!(account));
    }
}

// The pods

#[test]
fn pods_meet_the_restricted_pod_security_standard() {
    for set in COMBINATIONS {
        let objects = render(set);
        let pod = &deployment(&objects)["spec"]["template"]["spec"];
        assert_eq!(pod["securityContext"]["runAsNonRoot"], true, "{set:?}");
        assert_eq!(pod["securityContext"]["seccompProfile"]["type"], "RuntimeDefault", "{set:?}");
        let user = if set.contains(&"runAsUser=null") { Value::Null } else { json!(65532) };
        assert_eq!(pod["securityContext"]["runAsUser"], user, "{set:?}");
        for field in ["hostNetwork", "hostPID", "hostIPC"] {
            assert!(pod.get(field).is_none(), "{set:?}: {field}");
        }
        for volume in pod.get("volumes").map(array).unwrap_or_default() {
            assert!(volume.get("secret").is_some() || volume.get("configMap").is_some(), "{set:?}: {volume}");
        }
        let containers = array(&pod["containers"]);
        assert_eq!(containers.len(), 1);
        let expected = json!({
            "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": {"drop": ["ALL"]},
        });
        assert_eq!(containers[0]["securityContext"], expected, "{set:?}");
        assert!(containers[0]["resources"]["limits"].get("cpu").is_none(), "a CPU limit throttles admission");
    }
}

#[test]
fn every_flag_of_the_deployment_exists_and_none_can_be_given_twice() {
    let help_of = |subcommand: &str| {
        let output =
            Command::new(env!("CARGO_BIN_EXE_rollout-guard")).args([subcommand, "--help"]).output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "rollout-guard {subcommand} --help: {error}");
        String::from_utf8(output.stdout).unwrap()
    };
    let helps = ["run", "webhook"].map(|subcommand| (subcommand, help_of(subcommand)));
    // What is given by the environment may not be given by a flag either.
    let mut used: BTreeSet<String> = ["identity".to_owned(), "service-account".to_owned()].into();
    for set in COMBINATIONS {
        let objects = render(set);
        let arguments = strings(&container(&objects)["args"]);
        let subcommand = if set.contains(&"watcher.enabled=false") { "webhook" } else { "run" };
        assert_eq!(arguments[0], subcommand, "{set:?}");
        let help = &helps.iter().find(|(name, _)| *name == subcommand).unwrap().1;
        let known: BTreeSet<&str> = help
            .split(|c: char| !(c.is_ascii_alphanumeric() || c == '-'))
            .filter_map(|word| word.strip_prefix("--"))
            .collect();
        let flags: Vec<String> = arguments[1..]
            .iter()
            .map(|argument| argument.strip_prefix("--").unwrap().split('=').next().unwrap().to_owned())
            .collect();
        assert_eq!(flags.iter().collect::<BTreeSet<_>>().len(), flags.len(), "{set:?}: a flag stands twice");
        for flag in &flags {
            assert!(known.contains(flag.as_str()), "{set:?}: {subcommand} knows no --{flag}: {help}");
        }
        used.extend(flags);
    }
    for flag in used {
        let output = helm_template(&[&format!("extraArgs={{--{flag}=x}}")]);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(
            error.contains(&format!("--{flag}: the chart sets it")),
            "extraArgs may repeat --{flag}: {error}"
        );
    }
}

#[test]
fn the_watcher_gets_its_lease_its_identity_and_its_limits() {
    let objects = render(&["fullnameOverride=door", "watcher.limits.stuckPercent=25"]);
    for (flag, value) in [
        ("lease", "door"),
        ("rollbacks-per-namespace", "1"),
        ("rollbacks-per-cluster", "3"),
        ("rollbacks-per-hour", "10"),
        ("stuck-at-least", "3"),
        ("stuck-percent", "25"),
    ] {
        assert_eq!(argument(&objects, flag).as_deref(), Some(value), "{flag}");
    }
    let lease = rights(&objects).into_iter().find(|right| right.starts_with("update coordination")).unwrap();
    assert_eq!(lease, "update coordination.k8s.io/leases named door");
    for set in COMBINATIONS {
        let objects = render(set);
        let variables: BTreeMap<&str, &str> = array(&container(&objects)["env"])
            .iter()
            .map(|v| (text(&v["name"]), text(&v["valueFrom"]["fieldRef"]["fieldPath"])))
            .collect();
        let expected = BTreeMap::from([
            ("POD_NAME", "metadata.name"),
            ("POD_NAMESPACE", "metadata.namespace"),
            ("POD_SERVICE_ACCOUNT", "spec.serviceAccountName"),
        ]);
        assert_eq!(variables, expected, "{set:?}");
    }
}

#[test]
fn the_grace_period_is_longer_than_the_drain() {
    for set in [
        &[][..],
        &["shutdown.preStopSeconds=0"],
        &["shutdown.drainDelaySeconds=60", "shutdown.drainTimeoutSeconds=90"],
    ] {
        let objects = render(set);
        let seconds =
            |flag| argument(&objects, flag).unwrap().strip_suffix('s').unwrap().parse::<u64>().unwrap();
        let sleep = &container(&objects)["lifecycle"]["preStop"]["sleep"]["seconds"];
        let sum = sleep.as_u64().unwrap_or(0) + seconds("drain-delay") + seconds("drain-timeout");
        let grace = deployment(&objects)["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
            .as_u64()
            .unwrap();
        assert!(grace > sum, "{set:?}: {grace} s for {sum} s");
    }
}

#[test]
fn an_update_of_the_guard_never_takes_a_ready_pod_first() {
    for set in COMBINATIONS {
        let objects = render(set);
        let spec = &deployment(&objects)["spec"];
        let strategy =
            json!({"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}});
        assert_eq!(spec["strategy"], strategy);
        let selector = spec["selector"]["matchLabels"].as_object().unwrap();
        let labels = spec["template"]["metadata"]["labels"].as_object().unwrap();
        assert!(selector.iter().all(|(key, value)| labels.get(key) == Some(value)), "{set:?}");
        for service in of_kind(&objects, "Service") {
            assert_eq!(service["spec"]["selector"], spec["selector"]["matchLabels"], "{set:?}");
        }
        let ports: Vec<&str> =
            array(&container(&objects)["ports"]).iter().map(|port| text(&port["name"])).collect();
        assert_eq!(ports, ["https", "admin"]);
        for (probe, path) in
            [("startupProbe", "/livez"), ("livenessProbe", "/livez"), ("readinessProbe", "/readyz")]
        {
            assert_eq!(
                container(&objects)[probe]["httpGet"],
                json!({"path": path, "port": "admin"}),
                "{set:?}"
            );
        }
        let replicas = spec["replicas"].as_u64().unwrap();
        let budgets = of_kind(&objects, "PodDisruptionBudget");
        assert_eq!(budgets.len(), usize::from(replicas > 1), "{set:?}");
        for budget in budgets {
            assert!(budget["spec"]["minAvailable"].as_u64().unwrap() < replicas, "{set:?}");
        }
    }
}

// Parts by choice

#[test]
fn parts_by_choice_are_there_only_when_chosen() {
    let by_choice =
        ["Certificate", "Issuer", "NetworkPolicy", "ServiceMonitor", "PrometheusRule", "ConfigMap"];
    let kinds = |set: &[&str]| {
        let objects = render(set);
        by_choice.map(|kind| of_kind(&objects, kind).len())
    };
    assert_eq!(kinds(&[]), [0, 0, 0, 0, 0, 0]);
    assert_eq!(kinds(&["certManager.enabled=true"]), [2, 2, 0, 0, 0, 0]);
    assert_eq!(kinds(&["certManager.enabled=true", "certManager.issuerRef.name=pki"]), [1, 0, 0, 0, 0, 0]);
    assert_eq!(kinds(&["networkPolicy.enabled=true"]), [0, 0, 1, 0, 0, 0]);
    assert_eq!(kinds(&["serviceMonitor.enabled=true"]), [0, 0, 0, 1, 0, 0]);
    assert_eq!(kinds(&["prometheusRule.enabled=true"]), [0, 0, 0, 0, 1, 0]);
    assert_eq!(kinds(&["grafanaDashboard.enabled=true"]), [0, 0, 0, 0, 0, 1]);
    assert!(of_kind(&render(&["defaultPolicy.create=false"]), "RolloutPolicy").is_empty());
    assert!(roles(&render(&["rbac.create=false"])).is_empty());
}

#[test]
fn cert_managers_certificate_is_mounted_and_good_for_the_service() {
    let objects = render(&["certManager.enabled=true", "clusterDomain=corp.example"]);
    let certificate = of_kind(&objects, "Certificate")
        .into_iter()
        .find(|certificate| certificate["spec"].get("isCA").is_none())
        .unwrap();
    assert_eq!(
        certificate["spec"]["dnsNames"],
        json!(["rollout-guard.rollout-guard.svc", "rollout-guard.rollout-guard.svc.corp.example"])
    );
    assert_eq!(certificate["spec"]["privateKey"]["algorithm"], "ECDSA");
    assert_eq!(certificate["spec"]["privateKey"]["size"], 256);
    let pod = &deployment(&objects)["spec"]["template"]["spec"];
    assert_eq!(pod["volumes"][0]["secret"]["secretName"], certificate["spec"]["secretName"]);
    let mount = &container(&objects)["volumeMounts"][0];
    assert_eq!(mount["readOnly"], true);
    assert_eq!(argument(&objects, "certificates").as_deref(), Some("mounted"));
    assert_eq!(argument(&objects, "certificate-dir").as_deref(), mount["mountPath"].as_str());
    assert_ne!(
        certificate["spec"]["secretName"], SECRET,
        "the two modes must not overwrite each other's Secret"
    );
}

#[test]
fn the_default_policy_enforces_and_leaves_the_rest_to_the_crd() {
    let objects = render(&[]);
    let policy = only(&objects, "RolloutPolicy");
    assert_eq!(policy["metadata"]["name"], "default");
    assert_eq!(policy["spec"], json!({"mode": "Enforce", "priority": 0}));
}

#[test]
fn every_object_is_labelled_and_in_the_release_namespace_but_for_a_role_in_kube_system() {
    for set in COMBINATIONS {
        for object in render(set) {
            let kind = text(&object["kind"]);
            let labels = &object["metadata"]["labels"];
            assert_eq!(labels["app.kubernetes.io/name"], "rollout-guard", "{set:?}: {kind}");
            assert_eq!(labels["app.kubernetes.io/instance"], RELEASE, "{set:?}: {kind}");
            let cluster_scoped = kind.starts_with("Cluster")
                || kind.ends_with("WebhookConfiguration")
                || kind.starts_with("ValidatingAdmissionPolicy")
                || kind == "RolloutPolicy";
            let namespace = object["metadata"].get("namespace").map(text);
            if cluster_scoped {
                assert_eq!(namespace, None, "{set:?}: {kind}");
            } else if !(namespace == Some("kube-system") && kind.starts_with("Role")) {
                assert_eq!(namespace, Some(NAMESPACE), "{set:?}: {kind}");
            }
        }
    }
}

// Helm

fn helm(arguments: &[&str]) -> Output {
    let program = std::env::var_os("HELM").unwrap_or_else(|| "helm".into());
    Command::new(&program).args(arguments).output().unwrap_or_else(|error| {
        panic!(
            "cannot run {}: {error}. These tests need Helm 3 or 4: put it on the PATH or name it in HELM (`make test` does)",
            Path::new(&program).display()
        )
    })
}

fn helm_template(set: &[&str]) -> Output {
    helm_template_with(&[], set)
}

fn helm_template_with(flags: &[&str], set: &[&str]) -> Output {
    let chart = chart();
    let mut arguments =
        vec!["template", RELEASE, &chart, "--namespace", NAMESPACE, "--kube-version", KUBE_VERSION];
    arguments.extend(flags);
    for value in set {
        arguments.extend(["--set", value]);
    }
    helm(&arguments)
}

fn render_text(set: &[&str]) -> String {
    let output = helm_template(set);
    assert!(output.status.success(), "{set:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn render(set: &[&str]) -> Vec<Value> {
    documents(&render_text(set))
}

// Files

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn chart() -> String {
    root().join("charts/rollout-guard").into_os_string().into_string().unwrap()
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("cannot read {path}: {error}"))
}

fn update_or_require(path: &Path, text: &str, same: bool) {
    if std::env::var_os("UPDATE_MANIFESTS").is_some_and(|value| value == "1") {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    } else {
        let path = path.strip_prefix(root()).unwrap();
        assert!(
            same,
            "{} is missing or out of date: run `make manifests` and look at the difference",
            path.display()
        );
    }
}

fn values() -> Value {
    documents(&read("charts/rollout-guard/values.yaml")).remove(0)
}

/// Returns the documents of a YAML stream that are not empty.
fn documents(text: &str) -> Vec<Value> {
    serde_yaml_ng::Deserializer::from_str(text)
        .map(|document| Value::deserialize(document).unwrap())
        .filter(|value| !value.is_null())
        .collect()
}

/// Returns the values that hold no further ones, each by its dotted path.
fn leaves(value: &Value) -> BTreeMap<String, Value> {
    fn walk(path: &str, value: &Value, found: &mut BTreeMap<String, Value>) {
        match value.as_object() {
            Some(map) if !map.is_empty() => {
                for (key, value) in map {
                    let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                    walk(&path, value, found);
                }
            }
            _ => {
                found.insert(path.to_owned(), value.clone());
            }
        }
    }
    let mut found = BTreeMap::new();
    walk("", value, &mut found);
    found
}

// Objects

fn of_kind<'a>(objects: &'a [Value], kind: &str) -> Vec<&'a Value> {
    objects.iter().filter(|object| object["kind"] == kind).collect()
}

/// Returns the objects by kind, namespace and name, no two of which may be the same.
fn by_identity(objects: Vec<Value>) -> BTreeMap<String, Value> {
    let mut found = BTreeMap::new();
    for object in objects {
        let metadata = &object["metadata"];
        let identity = format!("{} {} {}", object["kind"], metadata["namespace"], metadata["name"]);
        assert!(found.insert(identity.clone(), object).is_none(), "{identity} stands twice");
    }
    found
}

fn only<'a>(objects: &'a [Value], kind: &str) -> &'a Value {
    let found = of_kind(objects, kind);
    assert_eq!(found.len(), 1, "{kind}");
    found[0]
}

fn only_webhook<'a>(objects: &'a [Value], kind: &str) -> &'a Value {
    let webhooks = array(&only(objects, kind)["webhooks"]);
    assert_eq!(webhooks.len(), 1, "{kind}");
    &webhooks[0]
}

fn names(objects: &[Value], kind: &str) -> Vec<String> {
    of_kind(objects, kind).iter().map(|object| text(&object["metadata"]["name"]).to_owned()).collect()
}

fn deployment(objects: &[Value]) -> &Value {
    only(objects, "Deployment")
}

fn container(objects: &[Value]) -> &Value {
    &deployment(objects)["spec"]["template"]["spec"]["containers"][0]
}

/// Returns the value of `--<flag>=<value>` among the container's arguments.
fn argument(objects: &[Value], flag: &str) -> Option<String> {
    let prefix = format!("--{flag}=");
    strings(&container(objects)["args"])
        .iter()
        .find_map(|argument| argument.strip_prefix(&prefix).map(str::to_owned))
}

fn roles(objects: &[Value]) -> Vec<&Value> {
    ["ClusterRole", "Role"].iter().flat_map(|kind| of_kind(objects, kind)).collect()
}

/// Returns each right, as `<verb> <group>/<resource>[ named <name>]`.
fn rights(objects: &[Value]) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for rule in roles(objects).into_iter().flat_map(|role| array(&role["rules"])) {
        let names = rule.get("resourceNames").map(strings).unwrap_or_default();
        let suffix = if names.is_empty() { String::new() } else { format!(" named {}", names.join(" ")) };
        for verb in strings(&rule["verbs"]) {
            for group in strings(&rule["apiGroups"]) {
                for resource in strings(&rule["resources"]) {
                    found.insert(format!("{verb} {group}/{resource}{suffix}"));
                }
            }
        }
    }
    found
}

fn is_read(right: &str) -> bool {
    ["get ", "list ", "watch "].iter().any(|verb| right.starts_with(verb))
}

/// Returns each right that is more than reading.
fn writes(objects: &[Value]) -> BTreeSet<String> {
    rights(objects).into_iter().filter(|right| !is_read(right)).collect()
}

fn is_mounted(set: &[&str]) -> bool {
    set.contains(&"certManager.enabled=true")
}

/// Returns whether a rule of the webhook takes the request, as the API server judges it.
fn rules_match(webhook: &Value, group: &str, resource: &str, operation: &str) -> bool {
    array(&webhook["rules"]).iter().any(|rule| {
        let has =
            |field: &str, word: &str| strings(&rule[field]).iter().any(|item| item == "*" || item == word);
        has("apiGroups", group) && has("resources", resource) && has("operations", operation)
    })
}

/// Returns whether a label selector takes an object with these labels. An operator it does not know is taken for a
/// match, so that a test that wants none fails.
fn selector_matches(selector: &Value, labels: &[(&str, &str)]) -> bool {
    let label = |key: &str| labels.iter().find(|(name, _)| *name == key).map(|(_, value)| *value);
    let by_labels = selector["matchLabels"]
        .as_object()
        .is_none_or(|map| map.iter().all(|(key, value)| label(key) == value.as_str()));
    let by_expressions =
        selector.get("matchExpressions").map(array).unwrap_or_default().iter().all(|expression| {
            let value = label(text(&expression["key"]));
            let among =
                || value.is_some_and(|value| strings(&expression["values"]).iter().any(|item| item == value));
            match text(&expression["operator"]) {
                "In" => among(),
                "NotIn" => !among(),
                "Exists" => value.is_some(),
                "DoesNotExist" => value.is_none(),
                _ => true,
            }
        });
    by_labels && by_expressions
}

fn array(value: &Value) -> &[Value] {
    value.as_array().map_or_else(|| panic!("not a list: {value}"), Vec::as_slice)
}

fn strings(value: &Value) -> Vec<String> {
    array(value).iter().map(|item| text(item).to_owned()).collect()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("not a string: {value}"))
}
