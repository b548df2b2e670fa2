//! A review as the API server sends it for a Deployment of two containers that a pipeline applies: some 20 KB.

use serde_json::{Map, Value, json};

const WRITTEN: &str = "2026-11-23T11:58:00Z";

/// An update, and where the rollout before it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Case {
    /// A new image over a rollout that is complete: goes through. What a healthy pipeline sends.
    Settled,
    /// More replicas, the same template: goes through.
    Scaled,
    /// A new image over a rollout that has failed: refused with 403.
    Failed,
    /// A new image over a generation that is not observed: told to wait with 429.
    Unobserved,
}

impl Case {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Settled, Self::Scaled, Self::Failed, Self::Unobserved];

    /// Returns its name in tables.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Settled => "settled",
            Self::Scaled => "scaled",
            Self::Failed => "failed",
            Self::Unobserved => "unobserved",
        }
    }
}

/// Returns the body for `case`.
pub fn body(case: Case) -> Vec<u8> {
    let old = deployment(41, "2.17.3", 4, &status(case));
    let object = match case {
        Case::Scaled => deployment(42, "2.17.3", 6, &status(case)),
        Case::Settled | Case::Failed | Case::Unobserved => deployment(42, "2.18.0", 4, &status(case)),
    };
    let kind = json!({"group": "apps", "version": "v1", "kind": "Deployment"});
    let resource = json!({"group": "apps", "version": "v1", "resource": "deployments"});
    json!({
        "kind": "AdmissionReview",
        "apiVersion": "admission.k8s.io/v1",
        "request": {
            "uid": "5f0c6d0e-6a0f-4a53-9d5a-1f2f0f6c9a77",
            "kind": kind,
            "resource": resource,
            "requestKind": kind,
            "requestResource": resource,
            "name": "checkout",
            "namespace": "shop",
            "operation": "UPDATE",
            "userInfo": {
                "username": "system:serviceaccount:ci:deployer",
                "uid": "0d7f9a3b-9a5e-4a5f-8f0a-7a8d7f3f5f11",
                "groups": ["system:serviceaccounts", "system:serviceaccounts:ci", "system:authenticated"],
                "extra": {
                    "authentication.kubernetes.io/credential-id": ["JTI=2b1d7a58-0f5c-4bb4-8a3f-6f7c9b0d1e22"],
                    "authentication.kubernetes.io/pod-name": ["runner-7c9d5bd6f4-x2x8q"]
                }
            },
            "object": object,
            "oldObject": old,
            "dryRun": false,
            "options": {
                "kind": "PatchOptions",
                "apiVersion": "meta.k8s.io/v1",
                "fieldManager": "kubectl-client-side-apply",
                "fieldValidation": "Strict"
            }
        }
    })
    .to_string()
    .into_bytes()
}

fn status(case: Case) -> Value {
    let healthy = matches!(case, Case::Settled | Case::Scaled);
    let progressing = match case {
        Case::Failed => json!({
            "type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded",
            "message": "ReplicaSet \"checkout-6d8f9c7b5d\" has timed out progressing.",
            "lastUpdateTime": WRITTEN, "lastTransitionTime": WRITTEN
        }),
        Case::Settled | Case::Scaled | Case::Unobserved => json!({
            "type": "Progressing", "status": "True", "reason": "NewReplicaSetAvailable",
            "message": "ReplicaSet \"checkout-6d8f9c7b5d\" has successfully progressed.",
            "lastUpdateTime": WRITTEN, "lastTransitionTime": "2026-03-02T08:11:42Z"
        }),
    };
    json!({
        "observedGeneration": if case == Case::Unobserved { 40 } else { 41 },
        "replicas": if healthy { 4 } else { 5 },
        "updatedReplicas": if healthy { 4 } else { 2 },
        "readyReplicas": 4,
        "availableReplicas": 4,
        "conditions": [{
            "type": "Available", "status": "True", "reason": "MinimumReplicasAvailable",
            "message": "Deployment has minimum availability.",
            "lastUpdateTime": "2026-03-02T08:11:42Z", "lastTransitionTime": "2026-03-02T08:11:42Z"
        }, progressing]
    })
}

fn deployment(generation: i64, tag: &str, replicas: i32, status: &Value) -> Value {
    let labels = json!({
        "app.kubernetes.io/name": "checkout",
        "app.kubernetes.io/instance": "checkout",
        "app.kubernetes.io/part-of": "shop",
        "app.kubernetes.io/managed-by": "pipeline",
        "team": "payments"
    });
    let selector = json!({"matchLabels": {"app.kubernetes.io/name": "checkout"}});
    let applied = json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"annotations": {}, "labels": labels, "name": "checkout", "namespace": "shop"},
        "spec": {"replicas": replicas, "selector": selector, "template": template(tag, false)}
    });
    json!({
        "kind": "Deployment",
        "apiVersion": "apps/v1",
        "metadata": {
            "name": "checkout",
            "namespace": "shop",
            "uid": "a3e0b2cf-2c5e-4c9f-b4c6-7f8a9b0c1d2e",
            "resourceVersion": "918273645",
            "generation": generation,
            "creationTimestamp": "2026-03-02T08:10:55Z",
            "labels": labels,
            "annotations": {
                "deployment.kubernetes.io/revision": "37",
                "kubectl.kubernetes.io/last-applied-configuration": format!("{applied}\n")
            },
            "managedFields": managed_fields()
        },
        "spec": {
            "replicas": replicas,
            "selector": selector,
            "template": template(tag, true),
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": "25%", "maxSurge": "25%"}},
            "revisionHistoryLimit": 10,
            "progressDeadlineSeconds": 600
        },
        "status": status
    })
}

const ENV: [(&str, &str); 7] = [
    ("DATABASE_HOST", "orders-primary.databases.svc.cluster.local"),
    ("DATABASE_PORT", "5432"),
    ("DATABASE_POOL_SIZE", "24"),
    ("EVENTS_BROKERS", "kafka-0.kafka:9092,kafka-1.kafka:9092,kafka-2.kafka:9092"),
    ("PAYMENT_PROVIDER_URL", "https://payments.example.com/v3/charges?expand=customer&mode=live"),
    ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector.telemetry.svc.cluster.local:4317"),
    ("JAVA_TOOL_OPTIONS", "-XX:MaxRAMPercentage=70 -XX:+UseZGC -Dfile.encoding=UTF-8"),
];

/// The template as a manifest has it, or as it is stored with what Kubernetes fills in.
fn template(tag: &str, stored: bool) -> Value {
    let mut env: Vec<Value> = ENV.iter().map(|(name, value)| json!({"name": name, "value": value})).collect();
    env.push(json!({
        "name": "DATABASE_PASSWORD",
        "valueFrom": {"secretKeyRef": {"name": "checkout-database", "key": "password"}}
    }));
    let probe = |path: &str, period: i32| {
        let mut probe = json!({"httpGet": {"path": path, "port": "http"}, "periodSeconds": period});
        if stored {
            probe["httpGet"]["scheme"] = json!("HTTP");
            probe["timeoutSeconds"] = json!(1);
            probe["successThreshold"] = json!(1);
            probe["failureThreshold"] = json!(3);
        }
        probe
    };
    let mut app = json!({
        "name": "app",
        "image": format!("images.example.com/shop/checkout:{tag}"),
        "ports": [{"name": "http", "containerPort": 8080}, {"name": "metrics", "containerPort": 9090}],
        "env": env,
        "resources": {"requests": {"cpu": "250m", "memory": "512Mi"}, "limits": {"memory": "768Mi"}},
        "volumeMounts": [
            {"name": "config", "mountPath": "/etc/checkout", "readOnly": true},
            {"name": "tmp", "mountPath": "/tmp"}
        ],
        "livenessProbe": probe("/healthz", 10),
        "readinessProbe": probe("/readyz", 5),
        "securityContext": {
            "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": {"drop": ["ALL"]}
        }
    });
    let mut proxy = json!({
        "name": "proxy",
        "image": "images.example.com/platform/proxy:1.31.2",
        "args": ["--upstream=127.0.0.1:8080", "--listen=0.0.0.0:8443", "--drain-seconds=15"],
        "ports": [{"name": "https", "containerPort": 8443}],
        "resources": {"requests": {"cpu": "50m", "memory": "64Mi"}, "limits": {"memory": "128Mi"}}
    });
    let mut spec = json!({
        "serviceAccountName": "checkout",
        "volumes": [
            {"name": "config", "configMap": {"name": "checkout-config"}},
            {"name": "tmp", "emptyDir": {}}
        ]
    });
    if stored {
        for container in [&mut app, &mut proxy] {
            for port in container["ports"].as_array_mut().into_iter().flatten() {
                port["protocol"] = json!("TCP");
            }
            container["terminationMessagePath"] = json!("/dev/termination-log");
            container["terminationMessagePolicy"] = json!("File");
            container["imagePullPolicy"] = json!("IfNotPresent");
        }
        spec["volumes"][0]["configMap"]["defaultMode"] = json!(420);
        spec["restartPolicy"] = json!("Always");
        spec["terminationGracePeriodSeconds"] = json!(30);
        spec["dnsPolicy"] = json!("ClusterFirst");
        spec["serviceAccount"] = json!("checkout");
        spec["securityContext"] = json!({});
        spec["schedulerName"] = json!("default-scheduler");
    }
    spec["containers"] = json!([app, proxy]);
    let mut metadata = json!({
        "labels": {"app.kubernetes.io/name": "checkout", "team": "payments"},
        "annotations": {"prometheus.io/scrape": "true", "prometheus.io/port": "9090"}
    });
    if stored {
        metadata["creationTimestamp"] = Value::Null;
    }
    json!({"metadata": metadata, "spec": spec})
}

fn managed_fields() -> Value {
    let fields = |names: &[&str]| {
        let mut map: Map<String, Value> = names.iter().map(|name| (format!("f:{name}"), json!({}))).collect();
        map.insert(".".to_owned(), json!({}));
        Value::Object(map)
    };
    let mut env = Map::from_iter([(".".to_owned(), json!({}))]);
    for name in ENV.iter().map(|(name, _)| *name).chain(["DATABASE_PASSWORD"]) {
        let value = if name == "DATABASE_PASSWORD" { "valueFrom" } else { "value" };
        env.insert(format!("k:{{\"name\":\"{name}\"}}"), fields(&["name", value]));
    }
    let container = |ports: &[i32]| {
        let names =
            ["image", "imagePullPolicy", "name", "terminationMessagePath", "terminationMessagePolicy"];
        let mut container = fields(&names);
        container["f:resources"] = json!({
            ".": {}, "f:limits": fields(&["memory"]), "f:requests": fields(&["cpu", "memory"])
        });
        container["f:ports"] = json!({".": {}});
        for port in ports {
            container["f:ports"][format!("k:{{\"containerPort\":{port},\"protocol\":\"TCP\"}}")] =
                fields(&["containerPort", "name", "protocol"]);
        }
        container
    };
    let probe = || {
        let mut probe = fields(&["failureThreshold", "periodSeconds", "successThreshold", "timeoutSeconds"]);
        probe["f:httpGet"] = fields(&["path", "port", "scheme"]);
        probe
    };
    let mut app = container(&[8080, 9090]);
    app["f:env"] = Value::Object(env);
    app["f:livenessProbe"] = probe();
    app["f:readinessProbe"] = probe();
    app["f:volumeMounts"] = json!({
        ".": {},
        "k:{\"mountPath\":\"/etc/checkout\"}": fields(&["mountPath", "name", "readOnly"]),
        "k:{\"mountPath\":\"/tmp\"}": fields(&["mountPath", "name"])
    });
    json!([{
        "manager": "kubectl-client-side-apply",
        "operation": "Update",
        "apiVersion": "apps/v1",
        "time": WRITTEN,
        "fieldsType": "FieldsV1",
        "fieldsV1": {
            "f:metadata": {
                "f:annotations": fields(&["kubectl.kubernetes.io/last-applied-configuration"]),
                "f:labels": fields(&[
                    "app.kubernetes.io/name", "app.kubernetes.io/instance", "app.kubernetes.io/part-of", "team"
                ])
            },
            "f:spec": {
                "f:progressDeadlineSeconds": {},
                "f:replicas": {},
                "f:revisionHistoryLimit": {},
                "f:selector": {},
                "f:strategy": {"f:rollingUpdate": fields(&["maxSurge", "maxUnavailable"]), "f:type": {}},
                "f:template": {
                    "f:metadata": {"f:labels": fields(&["app.kubernetes.io/name", "team"])},
                    "f:spec": {
                        "f:containers": {"k:{\"name\":\"app\"}": app, "k:{\"name\":\"proxy\"}": container(&[8443])},
                        "f:dnsPolicy": {},
                        "f:restartPolicy": {},
                        "f:schedulerName": {},
                        "f:serviceAccountName": {},
                        "f:terminationGracePeriodSeconds": {}
                    }
                }
            }
        }
    }, {
        "manager": "kube-controller-manager",
        "operation": "Update",
        "apiVersion": "apps/v1",
        "time": WRITTEN,
        "fieldsType": "FieldsV1",
        "subresource": "status",
        "fieldsV1": {
            "f:metadata": {"f:annotations": {"f:deployment.kubernetes.io/revision": {}}},
            "f:status": {
                "f:availableReplicas": {},
                "f:conditions": {
                    ".": {},
                    "k:{\"type\":\"Available\"}": fields(&[
                        "lastTransitionTime", "lastUpdateTime", "message", "reason", "status", "type"
                    ]),
                    "k:{\"type\":\"Progressing\"}": fields(&[
                        "lastTransitionTime", "lastUpdateTime", "message", "reason", "status", "type"
                    ])
                },
                "f:observedGeneration": {},
                "f:readyReplicas": {},
                "f:replicas": {},
                "f:updatedReplicas": {}
            }
        }
    }])
}
