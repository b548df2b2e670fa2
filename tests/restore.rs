//! What holds after a rollback: the next push gives exactly what it would have given without it.
//!
//! A small model of the API server stands in for it: client-side apply's three-way merge
//! (`strategicpatch.CreateThreeWayMergePatch`), defaults, and the ownership of fields by Update and Apply
//! (structured-merge-diff, `merge/update.go`). Where the rule cannot hold, the heads of `core/restore/last_applied.rs`
//! and `managed_fields.rs` say so, and these properties do not go there.

#![allow(clippy::expect_used, clippy::panic, reason = "helpers of tests")]

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use json_patch::Patch;
use proptest::{option, prelude::*, sample::select};
use rollout_guard::core::{
    restore::{
        FIELD_MANAGER, LAST_APPLIED, RestoreError, announce, hand_back, hand_back_as_before, restore,
        retract, template_of,
    },
    template::TemplateHash,
};
use serde_json::{Map, Value, json};

type Object = Map<String, Value>;

// ---- fields -----------------------------------------------------------------------------------------------------

type Path = Vec<String>;
type Set = BTreeSet<Path>;

/// By which keys server-side apply tells the items of a list apart (`listMapKey` in `core/v1/types.go`).
fn list_keys(field: &str) -> Option<&'static [&'static str]> {
    match field {
        "containers" | "initContainers" | "volumes" | "env" => Some(&["name"]),
        "ports" => Some(&["containerPort", "protocol"]),
        "volumeMounts" => Some(&["mountPath"]),
        _ => None,
    }
}

/// By which key client-side apply does (`patchMergeKey`).
fn merge_key(field: &str) -> Option<&'static str> {
    list_keys(field).and_then(|keys| keys.first().copied())
}

fn item_step(item: &Value, keys: &[&str]) -> String {
    let value = |key: &str| match key {
        "protocol" => item.get(key).cloned().unwrap_or_else(|| json!("TCP")),
        _ => item[key].clone(),
    };
    let keys: Object = keys.iter().map(|key| ((*key).to_owned(), value(key))).collect();
    format!("k:{}", Value::Object(keys))
}

fn below(at: &Path, step: String) -> Path {
    at.iter().cloned().chain([step]).collect()
}

/// All fields of a value; with what stands there, where nothing is below.
fn fields(value: &Value) -> BTreeMap<Path, Option<Value>> {
    fn walk(value: &Value, field: &str, at: &Path, all: &mut BTreeMap<Path, Option<Value>>) {
        match (value, list_keys(field)) {
            (Value::Object(members), _) if !members.is_empty() => {
                all.insert(at.clone(), None);
                members
                    .iter()
                    .for_each(|(key, member)| walk(member, key, &below(at, format!("f:{key}")), all));
            }
            (Value::Array(items), Some(keys)) if !items.is_empty() => {
                all.insert(at.clone(), None);
                items.iter().for_each(|item| walk(item, "", &below(at, item_step(item, keys)), all));
            }
            _ => {
                all.insert(at.clone(), Some(value.clone()));
            }
        }
    }
    let mut all = BTreeMap::new();
    walk(value, "", &Vec::new(), &mut all);
    all.remove(&Vec::new());
    all
}

/// What an applier of `config` owns: what stands there, and the items of lists.
fn applied_set(config: &Value) -> Set {
    let is_item = |path: &Path| path.last().is_some_and(|step| step.starts_with("k:"));
    let all = fields(config).into_iter();
    all.filter(|(path, leaf)| leaf.is_some() || is_item(path)).map(|(path, _)| path).collect()
}

/// A set as it stands in `managedFields`: a member is an empty node, or one with ".".
fn fields_v1(set: &Set) -> Value {
    fn compact(tree: &mut Value) {
        let Value::Object(members) = tree else { return };
        members.values_mut().for_each(compact);
        if members.len() == 1 && members.contains_key(".") {
            members.clear();
        }
    }
    let mut tree = json!({});
    for path in set {
        let mut node = &mut tree;
        for step in path {
            if node.get(step).is_none() {
                node[step] = json!({});
            }
            node = &mut node[step];
        }
        node["."] = json!({});
    }
    compact(&mut tree);
    tree
}

fn set_of(tree: &Value) -> Set {
    fn walk(tree: &Value, at: &Path, set: &mut Set) {
        let members = tree.as_object().expect("a tree of fields");
        if members.is_empty() || members.contains_key(".") {
            set.insert(at.clone());
        }
        for (step, child) in members.iter().filter(|(step, _)| *step != ".") {
            walk(child, &below(at, step.clone()), set);
        }
    }
    let mut set = Set::new();
    walk(tree, &Vec::new(), &mut set);
    set.remove(&Vec::new());
    set
}

/// `EnsureNamedFieldsAreMembers`: what is around a member is a member, but for items of lists.
fn with_parents(set: &Set) -> Set {
    let prefixes = set.iter().flat_map(|path| (1..path.len()).map(|length| path[..length].to_vec()));
    let prefixes = prefixes.filter(|path| path.last().is_some_and(|step| step.starts_with("f:")));
    prefixes.chain(set.iter().cloned()).collect()
}

/// Removes the fields of a set with all that is below them.
fn remove(value: &mut Value, field: &str, at: &Path, set: &Set) {
    match (value, list_keys(field)) {
        (Value::Object(members), _) => {
            members.retain(|key, _| !set.contains(&below(at, format!("f:{key}"))));
            members
                .iter_mut()
                .for_each(|(key, member)| remove(member, key, &below(at, format!("f:{key}")), set));
        }
        (Value::Array(items), Some(keys)) => {
            items.retain(|item| !set.contains(&below(at, item_step(item, keys))));
            for item in items {
                let at = below(at, item_step(item, keys));
                remove(item, "", &at, set);
            }
        }
        _ => {}
    }
}

// ---- merging ----------------------------------------------------------------------------------------------------

fn object(value: Option<&Value>) -> Object {
    value.and_then(Value::as_object).cloned().unwrap_or_default()
}

fn array(value: Option<&Value>) -> Vec<Value> {
    value.and_then(Value::as_array).cloned().unwrap_or_default()
}

/// Client-side apply: what `new` says is set, what `last` said and `new` does not is removed from `live`.
fn three_way(last: &Object, new: &Object, live: &Object) -> Object {
    let mut merged = live.clone();
    merged.retain(|key, _| new.contains_key(key) || !last.contains_key(key));
    for (key, value) in new {
        let value = match (value, live.get(key), merge_key(key)) {
            (Value::Object(new), Some(Value::Object(live)), _) => {
                Value::Object(three_way(&object(last.get(key)), new, live))
            }
            (Value::Array(new), Some(Value::Array(live)), Some(id)) => {
                let last = array(last.get(key));
                Value::Array(three_way_list(&last, new, live, id, key == "volumes"))
            }
            _ => value.clone(),
        };
        merged.insert(key.clone(), value);
    }
    merged
}

/// `retain` is the patch strategy `retainKeys`: of an item that changes, only what is in the new one is kept.
fn three_way_list(last: &[Value], new: &[Value], live: &[Value], id: &str, retain: bool) -> Vec<Value> {
    let find = |list: &[Value], item: &Value| list.iter().find(|other| other[id] == item[id]).cloned();
    let of_new = new.iter().map(|item| {
        let Some(standing) = find(live, item) else { return item.clone() };
        let item = object(Some(item));
        let remembered = object(find(last, &standing).as_ref());
        let mut merged = three_way(&remembered, &item, &object(Some(&standing)));
        if retain && Value::Object(merged.clone()) != standing {
            merged.retain(|key, _| item.contains_key(key));
        }
        Value::Object(merged)
    });
    let of_others = live.iter().filter(|item| find(new, item).is_none() && find(last, item).is_none());
    of_new.chain(of_others.cloned()).collect()
}

/// Server-side apply: what `config` says is set, nothing is removed.
fn merge(live: &Value, config: &Value, field: &str) -> Value {
    match (live, config, list_keys(field)) {
        (Value::Object(live), Value::Object(config), _) => {
            let mut merged = live.clone();
            for (key, value) in config {
                let value = live.get(key).map_or_else(|| value.clone(), |live| merge(live, value, key));
                merged.insert(key.clone(), value);
            }
            Value::Object(merged)
        }
        (Value::Array(live), Value::Array(config), Some(keys)) => {
            let find = |list: &[Value], item: &Value| {
                list.iter().find(|other| item_step(other, keys) == item_step(item, keys)).cloned()
            };
            let of_config = config
                .iter()
                .map(|item| find(live, item).map_or_else(|| item.clone(), |live| merge(&live, item, "")));
            let of_others = live.iter().filter(|item| find(config, item).is_none()).cloned();
            Value::Array(of_config.chain(of_others).collect())
        }
        _ => config.clone(),
    }
}

/// What the API server makes of a template: empty lists and maps go, defaults come.
fn stored(mut template: Value) -> Value {
    fn default(object: &mut Value, field: &str, value: Value) {
        if object.get(field).is_none() {
            object[field] = value;
        }
    }
    fn drop_empty(object: Option<&mut Value>, names: &[&str]) {
        let Some(Value::Object(members)) = object else { return };
        members.retain(|name, value| {
            let is_empty = value == &json!([]) || value == &json!({});
            !(is_empty && names.contains(&name.as_str()))
        });
    }
    fn items<'a>(object: &'a mut Value, field: &str) -> impl Iterator<Item = &'a mut Value> {
        object.get_mut(field).and_then(Value::as_array_mut).into_iter().flatten()
    }
    drop_empty(template.get_mut("metadata"), &["annotations"]);
    let spec = &mut template["spec"];
    drop_empty(Some(spec), &["nodeSelector", "tolerations", "volumes", "initContainers"]);
    default(spec, "terminationGracePeriodSeconds", json!(30));
    default(spec, "restartPolicy", json!("Always"));
    default(spec, "securityContext", json!({}));
    for secret in items(spec, "volumes").filter_map(|volume| volume.get_mut("secret")) {
        default(secret, "defaultMode", json!(420));
    }
    for list in ["containers", "initContainers"] {
        for container in items(spec, list) {
            drop_empty(Some(container), &["env", "ports", "volumeMounts", "args"]);
            default(container, "resources", json!({}));
            default(container, "terminationMessagePath", json!("/dev/termination-log"));
            drop_empty(container.get_mut("resources"), &["limits", "requests"]);
            items(container, "ports").for_each(|port| default(port, "protocol", json!("TCP")));
            if let Some(probe) = container.get_mut("readinessProbe") {
                default(probe, "periodSeconds", json!(10));
                if let Some(http) = probe.get_mut("httpGet") {
                    default(http, "scheme", json!("HTTP"));
                }
            }
        }
    }
    template
}

/// Where among the others' items an applier's stand is not told.
fn sorted(mut template: Value) -> Value {
    fn sort(value: &mut Value, field: &str) {
        match value {
            Value::Object(members) => members.iter_mut().for_each(|(key, member)| sort(member, key)),
            Value::Array(items) => {
                items.iter_mut().for_each(|item| sort(item, ""));
                if let Some(keys) = list_keys(field) {
                    items.sort_by_key(|item| item_step(item, keys));
                }
            }
            _ => {}
        }
    }
    sort(&mut template, "");
    template
}

// ---- an API server with one Deployment ----------------------------------------------------------------------

#[derive(Clone, Debug)]
struct Entry {
    manager: String,
    operation: &'static str,
    set: Set,
}

/// `live` holds the annotations and the template alone.
#[derive(Clone, Debug)]
struct Server {
    live: Value,
    entries: Vec<Entry>,
    writes: usize,
}

const KUBECTL: &str = "kubectl-client-side-apply";

impl Server {
    fn new() -> Self {
        Self { live: json!({}), entries: Vec::new(), writes: 0 }
    }

    fn template(&self) -> Value {
        self.live["spec"]["template"].clone()
    }

    fn annotations(&self) -> Option<Value> {
        self.live.pointer("/metadata/annotations").cloned()
    }

    fn entry(&mut self, manager: &str, operation: &'static str) -> &mut Set {
        let is_it = |entry: &Entry| entry.manager == manager && entry.operation == operation;
        let at = self.entries.iter().position(is_it).unwrap_or_else(|| {
            self.entries.push(Entry { manager: manager.into(), operation, set: Set::new() });
            self.entries.len() - 1
        });
        &mut self.entries[at].set
    }

    /// Takes what is added or modified, and what is removed, from all others; returns both, and whose it was.
    fn take(&mut self, manager: &str, operation: &'static str, new: &Value) -> (Set, Set, Vec<String>) {
        let (old, new) = (fields(&self.live), fields(new));
        let is_new = |(path, leaf): &(&Path, &Option<Value>)| match old.get(*path) {
            None => true,
            Some(old) => old.is_some() && leaf.is_some() && old != *leaf,
        };
        let taken: Set = new.iter().filter(is_new).map(|(path, _)| path.clone()).collect();
        let removed: Set = old.keys().filter(|path| !new.contains_key(*path)).cloned().collect();
        let mut conflicts = Vec::new();
        for entry in self.entries.iter_mut().filter(|e| e.manager != manager || e.operation != operation) {
            conflicts
                .extend(entry.set.intersection(&taken).map(|path| format!("{}: {path:?}", entry.manager)));
            entry.set.retain(|path| !taken.contains(path) && !removed.contains(path));
        }
        (taken, removed, conflicts)
    }

    fn finish(&mut self, live: Value) {
        self.entries.retain(|entry| !entry.set.is_empty());
        self.live = live;
        self.writes += 1;
    }

    fn update(&mut self, manager: &str, annotations: Option<Value>, template: Value) {
        let mut new = json!({"spec": {"template": stored(template)}});
        if let Some(annotations) = annotations {
            new["metadata"] = json!({ "annotations": annotations });
        }
        let (taken, removed, _) = self.take(manager, "Update", &new);
        let set = self.entry(manager, "Update");
        set.retain(|path| !removed.contains(path));
        set.extend(taken);
        self.finish(new);
    }

    /// The template in the annotation of `kubectl apply`.
    fn remembered(&self) -> Option<Value> {
        let text = self.annotations()?.get(LAST_APPLIED)?.as_str()?.to_owned();
        serde_json::from_str::<Value>(&text).expect("JSON").pointer("/spec/template").cloned()
    }

    /// `kubectl apply`.
    fn apply_client_side(&mut self, manifest: &Value) {
        let last = object(self.remembered().as_ref());
        let live = object(self.live.pointer("/spec/template"));
        let template = three_way(&last, &object(Some(manifest)), &live);
        let text = json!({"apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": {"annotations": {}, "name": "web"}, "spec": {"template": manifest}});
        self.update(KUBECTL, Some(json!({LAST_APPLIED: format!("{text}\n")})), Value::Object(template));
    }

    /// Server-side apply without force; the conflicts are returned.
    fn apply_server_side(&mut self, manager: &str, manifest: &Value) -> Vec<(String, Path)> {
        let config = json!({"spec": {"template": manifest}});
        let mut next = self.clone();
        let last = next.entry(manager, "Apply").clone();
        *next.entry(manager, "Apply") = applied_set(&config);
        let mut merged = merge(&self.live, &config, "");
        let managed: Set = next.entries.iter().flat_map(|entry| entry.set.iter().cloned()).collect();
        let managed = with_parents(&managed);
        let gone: Set = with_parents(&last).difference(&managed).cloned().collect();
        remove(&mut merged, "", &Vec::new(), &gone);
        let before = next.entries.clone();
        let (taken, ..) = next.take(manager, "Apply", &merged);
        let others = before.iter().filter(|entry| entry.manager != manager || entry.operation != "Apply");
        let conflicts: Vec<_> = others
            .flat_map(|entry| {
                entry.set.intersection(&taken).map(|path| (entry.manager.clone(), path.clone()))
            })
            .collect();
        if conflicts.is_empty() {
            merged["spec"]["template"] = stored(merged["spec"]["template"].clone());
            next.finish(merged);
            *self = next;
        }
        conflicts
    }

    /// What `kubectl apply --server-side` cannot take over from client-side apply: conflicts on what does not stand
    /// in the annotation as it stands in the object (managedfields, `lastappliedmanager.go`).
    fn conflicts_of_the_move_to_server_side(&self, manifest: &Value) -> Vec<(String, Path)> {
        let remembered = fields(&json!({"spec": {"template": self.remembered()}}));
        let live = fields(&self.live);
        let mut conflicts = self.clone().apply_server_side("kubectl", manifest);
        conflicts
            .retain(|(_, path)| !remembered.contains_key(path) || remembered.get(path) != live.get(path));
        conflicts
    }

    /// Another writer adds what is its own.
    fn others_write(&mut self, what: Others) {
        let mut template = self.template();
        if what.annotation {
            template["metadata"]["annotations"]["foreign"] = json!("1");
        }
        let containers = template["spec"]["containers"].as_array_mut().expect("a list");
        if what.container {
            containers.push(json!({"name": "injected", "image": "p", "env": [{"name": "A", "value": "9"}]}));
        }
        if what.variable {
            let mut env = array(containers[0].get("env"));
            env.push(json!({"name": "FOREIGN", "value": "1"}));
            containers[0]["env"] = json!(env);
        }
        self.update("injector", self.annotations(), template);
    }

    fn deployment(&self) -> Value {
        let entries = self.entries.iter().enumerate().map(|(at, of)| {
            let mut entry = entry(&of.manager, of.operation, 0, fields_v1(&of.set));
            entry["time"] = json!(format!("2026-11-23T20:00:{at:02}Z"));
            entry
        });
        let mut deployment = self.live.clone();
        deployment["metadata"]["uid"] = json!("d-1");
        deployment["metadata"]["resourceVersion"] = json!(self.writes.to_string());
        deployment["metadata"]["managedFields"] = entries.collect();
        deployment
    }

    fn set_owners(&mut self, deployment: &Value) {
        let entries = deployment["metadata"]["managedFields"].as_array().expect("a list").iter();
        let entries = entries.map(|entry| Entry {
            manager: entry["manager"].as_str().expect("a name").to_owned(),
            operation: if entry["operation"] == "Apply" { "Apply" } else { "Update" },
            set: set_of(&entry["fieldsV1"]),
        });
        self.entries = entries.collect();
    }

    /// The guard puts a template back, and hands the fields back.
    fn roll_back(&mut self, good: &Value) {
        let before = self.deployment();
        let patched = applied(&before, &restore(&before, &replica_set(good)).expect("a patch"));
        assert_eq!(&patched["spec"]["template"], good);
        let annotations = patched.pointer("/metadata/annotations").cloned();
        self.update(FIELD_MANAGER, annotations, patched["spec"]["template"].clone());
        let taken = self.deployment();
        let back = hand_back(&taken);
        // A way back that only removes makes the guard the owner of nothing.
        assert_eq!(back.is_some(), self.entries.iter().any(|entry| entry.manager == FIELD_MANAGER));
        assert_eq!(hand_back_as_before(&taken, &before), back, "with one applier nothing else is known");
        if let Some(back) = back {
            self.set_owners(&applied(&taken, &back));
        }
        assert_eq!(hand_back(&self.deployment()), None);
    }
}

fn applied(object: &Value, patch: &Patch) -> Value {
    let mut object = object.clone();
    json_patch::patch(&mut object, patch).expect("applies");
    object
}

fn replica_set(template: &Value) -> Value {
    let mut template = template.clone();
    template["metadata"]["labels"]["pod-template-hash"] = json!("6fff4b7674");
    json!({
        "metadata": {"ownerReferences": [{"kind": "Deployment", "uid": "d-1", "controller": true}]},
        "spec": {"template": template},
    })
}

fn entry(manager: &str, operation: &str, second: u8, fields: Value) -> Value {
    json!({"manager": manager, "operation": operation, "apiVersion": "apps/v1", "fieldsType": "FieldsV1",
        "time": format!("2026-11-23T20:00:{second:02}Z"), "fieldsV1": fields})
}

// ---- manifests ----------------------------------------------------------------------------------------------------

#[derive(Clone, Copy, Debug)]
struct Others {
    annotation: bool,
    container: bool,
    variable: bool,
}

fn others() -> impl Strategy<Value = Others> {
    any::<[bool; 3]>().prop_map(|[annotation, container, variable]| Others {
        annotation,
        container,
        variable,
    })
}

/// One of the values, or none.
fn maybe(values: Vec<Value>) -> impl Strategy<Value = Option<Value>> {
    option::weighted(0.6, select(values))
}

/// A map with some of the members; none where it has none.
fn some_of(members: Vec<(&'static str, Vec<Value>)>) -> impl Strategy<Value = Option<Value>> {
    let member = |(name, values)| maybe(values).prop_map(move |value| (name, value));
    let members: Vec<_> = members.into_iter().map(member).collect();
    members.prop_map(|members: Vec<(&str, Option<Value>)>| {
        let map = with(json!({}), members);
        (map != json!({})).then_some(map)
    })
}

/// A list with some of the items; none where it has none.
fn list_of(items: Vec<Vec<Value>>) -> impl Strategy<Value = Option<Value>> {
    let items: Vec<_> = items.into_iter().map(maybe).collect();
    items.prop_map(|items| {
        let items: Vec<Value> = items.into_iter().flatten().collect();
        (!items.is_empty()).then_some(Value::Array(items))
    })
}

fn with(mut object: Value, members: Vec<(&str, Option<Value>)>) -> Value {
    for (name, value) in members {
        if let Some(value) = value {
            object[name] = value;
        }
    }
    object
}

fn container(name: &'static str) -> impl Strategy<Value = Value> {
    let variable = |name: &str| {
        vec![
            json!({"name": name, "value": "1"}),
            json!({"name": name, "value": "2"}),
            json!({"name": name, "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}),
        ]
    };
    let probes = vec![
        json!({"httpGet": {"path": "/ready", "port": 80}}),
        json!({"httpGet": {"path": "/ready", "port": 80, "scheme": "HTTPS"}, "periodSeconds": 1}),
        json!({"tcpSocket": {"port": 80}, "periodSeconds": 3}),
        json!({"tcpSocket": {"port": 81}}),
    ];
    let ports = [80, 81].map(|port| {
        vec![
            json!({"containerPort": port}),
            json!({"containerPort": port, "name": "http"}),
            json!({"containerPort": port, "hostPort": 1}),
        ]
    });
    let mounts = ["v1", "v2"].map(|volume| {
        let path = format!("/{volume}");
        vec![
            json!({"mountPath": path, "name": volume}),
            json!({"mountPath": path, "name": volume, "readOnly": true}),
        ]
    });
    let resources = vec![
        json!({"limits": {"cpu": "1"}}),
        json!({"limits": {"memory": "2"}, "requests": {"cpu": "1"}}),
        json!({"requests": {"cpu": "2", "memory": "1"}}),
    ];
    (
        select(vec!["app:1", "app:2", "app:3"]),
        list_of(["A", "B", "C"].map(variable).into()),
        maybe(vec![json!(["a"]), json!(["b", "c"])]),
        maybe(probes),
        list_of(ports.into()),
        list_of(mounts.into()),
        maybe(resources),
    )
        .prop_map(move |(image, env, args, probe, ports, mounts, resources)| {
            let members = vec![
                ("env", env),
                ("args", args),
                ("readinessProbe", probe),
                ("ports", ports),
                ("volumeMounts", mounts),
                ("resources", resources),
            ];
            with(json!({"name": name, "image": image}), members)
        })
}

/// The template of a manifest, as a person writes it.
fn manifest() -> impl Strategy<Value = Value> {
    let volume = |name: &str| {
        vec![
            json!({"name": name, "emptyDir": {}}),
            json!({"name": name, "emptyDir": {"sizeLimit": "1Mi"}}),
            json!({"name": name, "secret": {"secretName": "a"}}),
            json!({"name": name, "secret": {"secretName": "a", "defaultMode": 256}}),
        ]
    };
    (
        some_of(vec![("a/b~c", vec![json!("1"), json!("<2>")]), ("b", vec![json!("1"), json!("2")])]),
        maybe(vec![json!(10), json!(30), json!(60)]),
        some_of(vec![("disk", vec![json!("ssd"), json!("hdd")]), ("zone", vec![json!("a")])]),
        some_of(vec![("runAsUser", vec![json!(1), json!(2)]), ("fsGroup", vec![json!(1)])]),
        maybe(vec![json!([{"key": "a"}]), json!([{"key": "a"}, {"key": "b"}])]),
        list_of(["v1", "v2"].map(volume).into()),
        container("app"),
        option::of(container("sidecar")),
        option::of(container("init")),
    )
        .prop_map(|(annotations, grace, nodes, security, tolerations, volumes, app, sidecar, init)| {
            let containers: Vec<Value> = [app].into_iter().chain(sidecar).collect();
            let members = vec![
                ("terminationGracePeriodSeconds", grace),
                ("nodeSelector", nodes),
                ("securityContext", security),
                ("tolerations", tolerations),
                ("volumes", volumes),
                ("initContainers", init.map(|init| json!([init]))),
            ];
            json!({
                "metadata": with(json!({"labels": {"app": "web"}}), vec![("annotations", annotations)]),
                "spec": with(json!({ "containers": containers }), members),
            })
        })
}

// ---- the rule -----------------------------------------------------------------------------------------------------

/// What makes no new rollout cannot be rolled back.
fn same(a: &Value, b: &Value) -> bool {
    TemplateHash::of(a) == TemplateHash::of(b)
}

/// A server on which `good` and then `bad` were applied client-side; and the template in between.
fn pushed(good: &Value, bad: &Value, others: Others) -> (Server, Value) {
    let mut server = Server::new();
    server.apply_client_side(good);
    server.others_write(others);
    let good = server.template();
    server.apply_client_side(bad);
    (server, good)
}

/// A map that the way back empties belongs to nobody (the head of `managed_fields.rs`).
fn with_volumes_that_are_never_empty(mut template: Value) -> Value {
    let volumes = template["spec"].get_mut("volumes").and_then(Value::as_array_mut);
    for volume in volumes.into_iter().flatten() {
        if volume["emptyDir"] == json!({}) {
            volume["emptyDir"] = json!({"medium": "Memory"});
        }
    }
    template
}

const NOTHING: Others = Others { annotation: false, container: false, variable: false };

proptest! {
    // As many as PROPTEST_CASES says, halved: each case is several pushes.
    #![proptest_config(ProptestConfig { cases: ProptestConfig::default().cases / 2, ..ProptestConfig::default() })]

    #[test]
    fn fault_49_the_next_pushes_by_client_side_apply_give_what_they_would_have_given(
        good in manifest(), bad in manifest(), next in prop::collection::vec(manifest(), 1..4), others in others(),
    ) {
        let (mut server, good) = pushed(&good, &bad, others);
        prop_assume!(!same(&server.template(), &good));
        let mut rolled_back = server.clone();
        rolled_back.roll_back(&good);
        for manifest in next {
            server.apply_client_side(&manifest);
            rolled_back.apply_client_side(&manifest);
            prop_assert_eq!(sorted(server.template()), sorted(rolled_back.template()));
        }
    }

    #[test]
    fn fault_49_the_bad_manifest_applied_again_by_client_side_apply_gives_the_bad_template(
        good in manifest(), bad in manifest(),
    ) {
        let (mut server, good) = pushed(&good, &bad, NOTHING);
        let refused = server.template();
        prop_assume!(!same(&refused, &good));
        server.roll_back(&good);
        server.apply_client_side(&bad);
        // To the byte: quarantine goes by the hash.
        prop_assert_eq!(server.template(), refused);
    }

    #[test]
    fn fault_49_a_second_rollback_leaves_no_more_behind_than_the_first(
        good in manifest(), bad in manifest(), worse in manifest(), fix in manifest(), others in others(),
    ) {
        let (mut server, good) = pushed(&good, &bad, others);
        prop_assume!(!same(&server.template(), &good));
        let mut rolled_back = server.clone();
        rolled_back.roll_back(&good);
        server.apply_client_side(&worse);
        rolled_back.apply_client_side(&worse);
        prop_assume!(!same(&rolled_back.template(), &good));
        rolled_back.roll_back(&good);
        server.apply_client_side(&fix);
        rolled_back.apply_client_side(&fix);
        prop_assert_eq!(sorted(server.template()), sorted(rolled_back.template()));
    }

    #[test]
    fn fault_49_a_move_from_client_side_to_server_side_apply_meets_no_conflict_because_of_a_rollback(
        good in manifest(), bad in manifest(), fix in manifest(),
    ) {
        let (server, good) = pushed(&good, &bad, NOTHING);
        prop_assume!(!same(&server.template(), &good));
        prop_assume!(server.conflicts_of_the_move_to_server_side(&fix).is_empty());
        let mut rolled_back = server;
        rolled_back.roll_back(&good);
        prop_assert_eq!(rolled_back.conflicts_of_the_move_to_server_side(&fix), vec![]);
    }

    #[test]
    fn fault_49_the_next_pushes_by_server_side_apply_give_what_they_would_have_given_without_a_conflict(
        good in manifest(), bad in manifest(), next in prop::collection::vec(manifest(), 1..4), others in others(),
    ) {
        let [good, bad] = [good, bad].map(with_volumes_that_are_never_empty);
        let next = next.into_iter().map(with_volumes_that_are_never_empty);
        let mut server = Server::new();
        prop_assert_eq!(server.apply_server_side("helm", &good), vec![]);
        server.others_write(others);
        let good = server.template();
        prop_assert_eq!(server.apply_server_side("helm", &bad), vec![]);
        prop_assume!(!same(&server.template(), &good));
        let mut rolled_back = server.clone();
        rolled_back.roll_back(&good);
        let mut again = rolled_back.clone();
        prop_assert_eq!(again.apply_server_side("helm", &bad), vec![]);
        prop_assert_eq!(sorted(again.template()), sorted(server.template()));
        for manifest in next {
            prop_assert_eq!(server.apply_server_side("helm", &manifest), vec![]);
            prop_assert_eq!(rolled_back.apply_server_side("helm", &manifest), vec![]);
            prop_assert_eq!(sorted(server.template()), sorted(rolled_back.template()));
        }
    }

    #[test]
    fn fault_6_the_patch_gives_the_template_of_the_replicaset_and_changes_nothing_else(
        good in manifest(), bad in manifest(), unknown in ".{0,8}",
    ) {
        let mut server = Server::new();
        server.apply_client_side(&bad);
        let mut deployment = server.deployment();
        deployment["spec"]["replicas"] = json!(7);
        deployment["metadata"]["labels"] = json!({"app": "web"});
        deployment["metadata"]["annotations"]["a/b~c"] = json!("kept");
        let mut good = stored(good);
        good["spec"]["fieldOfAnotherVersion"] = json!({ "of": [unknown, null] });
        let replica_set = replica_set(&good);
        let mut expected = deployment.clone();
        let patch = restore(&deployment, &replica_set).expect("a patch");
        json_patch::patch(&mut deployment, &patch).expect("applies");
        prop_assert_eq!(deployment["spec"]["template"].to_string(), good.to_string());
        prop_assert_eq!(
            TemplateHash::of(&deployment["spec"]["template"]),
            TemplateHash::of(&replica_set["spec"]["template"])
        );
        expected["spec"]["template"] = good;
        let text = deployment["metadata"]["annotations"][LAST_APPLIED].clone();
        let last: Value = serde_json::from_str(text.as_str().expect("a text")).expect("JSON");
        prop_assert_eq!(&last["metadata"], &json!({"annotations": {}, "name": "web"}));
        expected["metadata"]["annotations"][LAST_APPLIED] = text;
        prop_assert_eq!(deployment, expected);
    }
}

// ---- restore ------------------------------------------------------------------------------------------------------

/// A Deployment that was captured from a real API server, with the guards' fields of a stored object.
fn captured(name: &str, object: &str) -> Value {
    let path = format!("{}/tests/fixtures/{name}.validate.json", env!("CARGO_MANIFEST_DIR"));
    let review: Value =
        serde_json::from_str(&std::fs::read_to_string(path).expect("a fixture")).expect("JSON");
    let mut deployment = review["request"][object].clone();
    deployment["metadata"]["uid"] = json!("d-1");
    deployment["metadata"]["resourceVersion"] = json!("7");
    deployment
}

fn text(patch: &Patch) -> String {
    serde_json::to_string(patch).expect("prints")
}

fn last_applied(deployment: &Value) -> &str {
    deployment["metadata"]["annotations"][LAST_APPLIED].as_str().expect("a text")
}

#[test]
fn a_patch_is_guarded_by_uid_and_resource_version() {
    let bad = captured("update-server-side-apply", "object");
    let mut good = bad["spec"]["template"].clone();
    good["spec"]["containers"][0]["image"] = json!("good");
    let patch = restore(&bad, &replica_set(&good)).expect("a patch");
    assert_eq!(
        serde_json::to_value(&patch).expect("prints"),
        json!([
            {"op": "test", "path": "/metadata/uid", "value": "d-1"},
            {"op": "replace", "path": "/metadata/resourceVersion", "value": "7"},
            {"op": "replace", "path": "/spec/template", "value": good},
        ])
    );
}

#[test]
fn what_cannot_be_put_back_is_said() {
    let bad = captured("update-server-side-apply", "object");
    let mut good = bad["spec"]["template"].clone();
    good["spec"]["containers"][0]["image"] = json!("good");
    let owned = replica_set(&good);
    for field in ["uid", "resourceVersion"] {
        let mut bad = bad.clone();
        bad["metadata"][field] = json!("");
        let error = restore(&bad, &owned).expect_err("no guard");
        assert_eq!(error.to_string(), "the Deployment as read has no uid or resourceVersion");
    }
    let mut bare = bad.clone();
    bare["spec"] = json!({});
    assert!(matches!(restore(&bare, &owned), Err(RestoreError::Incomplete { kind: "Deployment", .. })));
    assert!(matches!(restore(&bad, &json!({})), Err(RestoreError::Incomplete { kind: "ReplicaSet", .. })));
    assert_eq!(restore(&bad, &replica_set(&bad["spec"]["template"])), Err(RestoreError::Unchanged));
}

#[test]
fn fault_45_a_planted_replicaset_is_refused() {
    let bad = captured("update-server-side-apply", "object");
    let mut planted = replica_set(&json!({"metadata": {"labels": {"app": "web"}}, "spec": {}}));
    for owners in [
        json!(null),
        json!([]),
        json!([{"kind": "Deployment", "uid": "d-2", "controller": true}]),
        json!([{"kind": "Deployment", "uid": "d-1", "controller": false}]),
        json!([{"kind": "Deployment", "uid": "d-1"}]),
    ] {
        planted["metadata"]["ownerReferences"] = owners;
        assert_eq!(restore(&bad, &planted), Err(RestoreError::NotOwned));
    }
}

#[test]
fn a_template_loses_the_one_label_alone() {
    let template =
        json!({"metadata": {"labels": {"app": "web"}, "creationTimestamp": null}, "spec": {"x": null}});
    assert_eq!(template_of(&replica_set(&template)), Some(template));
    assert_eq!(template_of(&json!({"spec": {"template": null}})), None);
}

// ---- what kubectl last applied --------------------------------------------------------------------------------

#[test]
fn last_applied_of_a_real_object_stays_in_kubectls_hand() {
    let bad = captured("update-last-applied", "object");
    let mut good = bad["spec"]["template"].clone();
    let container = &mut good["spec"]["containers"][0];
    container["env"].as_array_mut().expect("a list").push(json!({"name": "X", "value": "<&>"}));
    container["image"] = json!("localhost/sample:v1");
    let restored = applied(&bad, &restore(&bad, &replica_set(&good)).expect("a patch"));
    let expected = last_applied(&bad)
        .replace("localhost/sample:v2", "localhost/sample:v1")
        .replace(r#"}}],"image""#, r#"}},{"name":"X","value":"\u003c\u0026\u003e"}],"image""#);
    assert_eq!(
        expected.len(),
        last_applied(&bad).len() + r#",{"name":"X","value":"\u003c\u0026\u003e"}"#.len()
    );
    assert_eq!(last_applied(&restored), expected);
}

#[test]
fn what_the_bad_push_left_out_and_the_server_filled_in_is_put_in_and_what_others_changed_is_not() {
    let mut bad = captured("update-last-applied", "object");
    let mut good = bad["spec"]["template"].clone();
    good["spec"]["schedulerName"] = json!("mine");
    let restored = applied(&bad, &restore(&bad, &replica_set(&good)).expect("a patch"));
    assert!(last_applied(&restored).contains(r#""schedulerName":"mine""#), "filled in after a removal");

    let entries = bad["metadata"]["managedFields"].as_array_mut().expect("a list");
    let kubectl = entries.iter_mut().find(|entry| entry["manager"] == KUBECTL).expect("an entry");
    let spec = kubectl["fieldsV1"]["f:spec"]["f:template"]["f:spec"].as_object_mut().expect("a map");
    spec.remove("f:schedulerName").expect("owned");
    assert!(!text(&restore(&bad, &replica_set(&good)).expect("a patch")).contains("last-applied"));
}

#[test]
fn an_item_of_others_is_never_put_in_as_if_it_were_the_appliers() {
    let mut server = Server::new();
    let mine = json!({"metadata": {"labels": {"app": "web"}},
        "spec": {"containers": [{"name": "app", "image": "a"}]}});
    server.apply_client_side(&mine);
    server.others_write(Others { container: true, ..NOTHING });
    let good = server.template();
    let mut bad = good.clone();
    bad["spec"]["containers"][1].as_object_mut().expect("a map").remove("env").expect("was there");
    server.update("injector", server.annotations(), bad);
    server.roll_back(&good);
    server.apply_client_side(&mine);
    assert_eq!(server.template()["spec"]["containers"][1]["name"], "injected");
}

#[test]
fn a_text_that_cannot_be_read_is_left_alone() {
    let mut deployment = captured("update-last-applied", "object");
    let mut good = deployment["spec"]["template"].clone();
    good["spec"]["nodeSelector"] = json!({"disk": "ssd"});
    let deep = "[".repeat(100_000);
    for malformed in ["", "{", "[]", "null", r#"{"spec":{"template":[]}}"#, r#"{"spec":{}}"#, &deep] {
        deployment["metadata"]["annotations"][LAST_APPLIED] = json!(malformed);
        let patch = restore(&deployment, &replica_set(&good)).expect("a patch");
        assert!(!text(&patch).contains("last-applied"), "{malformed:.20}");
    }
}

#[test]
fn a_text_that_would_grow_beyond_what_annotations_may_hold_is_left_alone() {
    let mut deployment = captured("update-last-applied", "object");
    let mut good = deployment["spec"]["template"].clone();
    good["spec"]["nodeSelector"] = json!({"disk": "ssd"});
    let all = deployment["metadata"]["annotations"].as_object().expect("a map").iter();
    let now: usize = all.map(|(key, value)| key.len() + value.as_str().map_or(0, str::len)).sum();
    let room = 256 * 1024 - now - "big".len() - r#""nodeSelector":{"disk":"ssd"},"#.len();
    for (length, expected) in [(room, true), (room + 1, false)] {
        deployment["metadata"]["annotations"]["big"] = json!("x".repeat(length));
        let patch = restore(&deployment, &replica_set(&good)).expect("a patch");
        assert_eq!(text(&patch).contains("last-applied"), expected);
    }
}

#[test]
fn lists_that_kubectl_cannot_merge_are_left_alone() {
    let deployment = captured("update-last-applied", "object");
    let mut good = deployment["spec"]["template"].clone();
    let ports = good["spec"]["containers"][0]["ports"].as_array_mut().expect("a list");
    ports.push(json!({"containerPort": 8080, "protocol": "UDP"}));
    let patch = restore(&deployment, &replica_set(&good)).expect("a patch");
    assert!(!text(&patch).contains("last-applied"));
}

// ---- ownership ------------------------------------------------------------------------------------------------------

fn owning(entries: Value) -> Value {
    json!({"metadata": {"uid": "d-1", "resourceVersion": "7", "managedFields": entries}})
}

#[test]
fn a_real_applier_gets_its_fields_back_and_the_status_stays() {
    let mut expected = captured("update-server-side-apply", "object");
    let mut restored = expected.clone();
    let path = "/metadata/managedFields/0/fieldsV1/f:spec/f:template/f:spec/f:containers";
    let web = r#"k:{"name":"web"}"#;
    let probe = json!({".": {}, "f:periodSeconds": {}});
    let owned = restored.pointer_mut(path).expect("owned");
    owned[web].as_object_mut().expect("a map").remove("f:image").expect("owned");
    let ours = json!({"f:spec": {"f:template": {"f:spec": {
        "f:containers": {web: {"f:image": {}, "f:livenessProbe": probe}}}}}});
    let entries = restored["metadata"]["managedFields"].as_array_mut().expect("a list");
    entries.push(entry(FIELD_MANAGER, "Update", 50, ours));
    expected.pointer_mut(path).expect("owned")[web]["f:livenessProbe"] = probe;
    let back = applied(&restored, &hand_back(&restored).expect("a patch"));
    assert_eq!(back, expected);
    assert_eq!(hand_back(&back), None);
}

#[test]
fn fields_go_to_the_applier_of_most_of_the_template_and_the_annotation_never_to_a_server_side_one() {
    let template = |fields: Value| json!({"f:spec": {"f:template": {"f:spec": fields}}});
    let annotation = json!({"f:annotations": {format!("f:{LAST_APPLIED}"): {}}});
    let annotated = |mut fields: Value| {
        fields["f:metadata"] = annotation.clone();
        fields
    };
    let mut status =
        entry("kube-controller-manager", "Update", 59, template(json!({"f:x": {}, "f:y": {}, "f:z": {}})));
    status["subresource"] = json!("status");
    let guard = entry(FIELD_MANAGER, "Update", 58, annotated(template(json!({"f:b": {}}))));
    let result = |entries: Value| {
        let deployment = owning(entries);
        applied(&deployment, &hand_back(&deployment).expect("a patch"))["metadata"]["managedFields"].clone()
    };
    let big = |operation| entry("big", operation, 1, template(json!({"f:a": {}, "f:c": {}})));
    let small = |operation, second| entry("small", operation, second, template(json!({"f:a": {}})));
    let all = template(json!({"f:a": {}, "f:b": {}, "f:c": {}}));

    assert_eq!(
        result(json!([small("Apply", 9), big("Apply"), status, guard, big("Update")])),
        json!([small("Apply", 9), entry("big", "Apply", 1, all.clone()), status, big("Update")])
    );
    assert_eq!(
        result(json!([big("Update"), small("Update", 9), guard, status])),
        json!([entry("big", "Update", 1, annotated(all)), small("Update", 9), status])
    );
    let equals = result(json!([small("Apply", 9), small("Apply", 8), guard]));
    assert_eq!(equals[0]["fieldsV1"], template(json!({"f:a": {}, "f:b": {}})));
    assert_eq!(equals[1], small("Apply", 8));
    assert_eq!(result(json!([status, guard])), json!([status]), "nobody's");

    // Who applies an annotation of a template that somebody else writes is not its applier.
    let fields = |names: &str| -> Value {
        let each = names.chars().map(|name| (format!("f:{name}"), json!({})));
        template(Value::Object(each.collect()))
    };
    let writer = entry("kubectl", "Update", 1, fields("cdefgh"));
    let back = result(json!([small("Apply", 9), writer, guard]));
    assert_eq!(back[0], small("Apply", 9));
    assert_eq!(back[1], entry("kubectl", "Update", 1, annotated(fields("bcdefgh"))));
    // Unless it applies the whole Deployment, however much others have put into the template.
    let mut applier = small("Apply", 9);
    applier["fieldsV1"]["f:spec"]["f:selector"] = json!({});
    let back = result(json!([applier, writer, guard]));
    assert!(!back[0]["fieldsV1"]["f:spec"]["f:template"]["f:spec"]["f:b"].is_null(), "{back}");
    assert_eq!(back[1], writer);
}

#[test]
fn nothing_is_handed_back_where_there_is_nothing_or_nobody() {
    let guard = entry(FIELD_MANAGER, "Update", 1, json!({"f:spec": {"f:template": {"f:spec": {}}}}));
    let mut status = guard.clone();
    status["subresource"] = json!("status");
    let helm = entry("helm", "Apply", 1, json!({"f:spec": {"f:template": {"f:spec": {"f:a": {}}}}}));
    for deployment in [
        json!({}),
        owning(json!(null)),
        owning(json!([])),
        // An empty list resets all.
        owning(json!([guard])),
        owning(json!([helm])),
        // The condition on the status has an entry of its own.
        owning(json!([helm, status])),
    ] {
        assert_eq!(hand_back(&deployment), None, "{deployment}");
    }
}

#[test]
fn a_field_that_is_a_leaf_for_one_and_a_map_for_the_other_stays_a_member() {
    let volume = |fields: Value| json!({"f:spec": {"f:template": {"f:emptyDir": fields}}});
    let deployment = owning(json!([
        entry("helm", "Apply", 1, volume(json!({}))),
        entry(FIELD_MANAGER, "Update", 2, volume(json!({"f:sizeLimit": {}}))),
    ]));
    let back = applied(&deployment, &hand_back(&deployment).expect("a patch"));
    assert_eq!(back["metadata"]["managedFields"][0]["fieldsV1"], volume(json!({".": {}, "f:sizeLimit": {}})));
}

#[test]
fn two_appliers_that_share_a_template_get_each_its_own_even_if_it_was_all_it_had() {
    let template =
        |container: Value| json!({"f:spec": {"f:template": {"f:spec": {"f:containers": container}}}});
    let web = r#"k:{"name":"web"}"#;
    let helm = entry("helm", "Apply", 1, template(json!({web: {".": {}, "f:name": {}, "f:args": {}}})));
    let bot = entry("bot", "Apply", 2, template(json!({web: {"f:image": {}}})));
    let guard = entry(FIELD_MANAGER, "Update", 3, template(json!({web: {"f:image": {}, "f:env": {}}})));
    let before = owning(json!([helm, bot]));
    // The bot had the image alone, so its entry went with it.
    let taken = owning(json!([helm, guard]));
    let back = applied(&taken, &hand_back_as_before(&taken, &before).expect("a patch"));
    let with_env = template(json!({web: {".": {}, "f:name": {}, "f:args": {}, "f:env": {}}}));
    assert_eq!(back["metadata"]["managedFields"], json!([entry("helm", "Apply", 1, with_env), bot]));

    // What was read of an earlier Deployment of the same name is of no use.
    let mut other = before;
    other["metadata"]["uid"] = json!("d-2");
    assert_eq!(hand_back_as_before(&taken, &other), hand_back(&taken));
}

// ---- the announcement -------------------------------------------------------------------------------------------

fn at(text: &str) -> Timestamp {
    text.parse().expect("a time")
}

#[test]
fn fault_51_a_rollback_is_announced_once_and_retracted_without_a_trace() {
    let (now, later) = (at("2026-11-23T20:32:44Z"), at("2026-11-23T21:00:00Z"));
    let condition = json!({"type": "Stalled", "status": "True", "reason": "RolledBack", "message": "m",
        "lastUpdateTime": "2026-11-23T20:32:44Z", "lastTransitionTime": "2026-11-23T20:32:44Z"});
    let foreign = json!({"type": "Available", "status": "True"});
    let stalled = json!({"type": "Stalled", "status": "False", "reason": "X"});
    let with = |status: Value| json!({"metadata": {"uid": "d-1", "resourceVersion": "7"}, "status": status});
    for (status, expected) in [
        (json!(null), json!([condition])),
        (json!({}), json!([condition])),
        (json!({"conditions": null}), json!([condition])),
        (json!({"conditions": []}), json!([condition])),
        (json!({"conditions": [foreign]}), json!([foreign, condition])),
        (json!({"conditions": [stalled, foreign]}), json!([condition, foreign])),
    ] {
        let deployment = with(status);
        let announced = applied(&deployment, &announce(&deployment, "m", now).expect("a patch"));
        assert_eq!(announced["status"]["conditions"], expected);
        assert_eq!(announce(&announced, "m", later), None);

        let again = applied(&announced, &announce(&announced, "other", later).expect("a patch"));
        let all = again["status"]["conditions"].as_array().expect("a list").iter();
        let ours: Vec<_> = all.filter(|condition| condition["type"] == "Stalled").collect();
        assert_eq!(ours.len(), 1);
        assert_eq!(ours[0]["lastUpdateTime"], "2026-11-23T21:00:00Z");
        assert_eq!(ours[0]["lastTransitionTime"], "2026-11-23T20:32:44Z", "the status is as it was");

        let retracted = applied(&again, &retract(&again).expect("a patch"));
        let left = retracted["status"]["conditions"].as_array().expect("a list");
        assert!(left.iter().all(|condition| condition == &foreign));
        assert_eq!(retract(&retracted), None);
    }
    let mut absent = with(json!(null));
    absent.as_object_mut().expect("a map").remove("status");
    let announced = applied(&absent, &announce(&absent, "m", now).expect("a patch"));
    assert_eq!(announced["status"]["conditions"], json!([condition]));
}

#[test]
fn the_announcement_is_guarded_and_leaves_the_conditions_of_others() {
    let others = json!({
        "metadata": {"uid": "d-1", "resourceVersion": "7"},
        "status": {"conditions": [{"type": "Stalled", "status": "True", "reason": "Mine"}, {"type": "Other",
            "reason": "RolledBack"}]},
    });
    assert_eq!(retract(&others), None);
    let now = at("2026-11-23T20:32:44.7Z");
    let announced = announce(&others, "m", now).expect("a patch");
    let guards = concat!(
        r#"[{"op":"test","path":"/metadata/uid","value":"d-1"},"#,
        r#"{"op":"replace","path":"/metadata/resourceVersion","value":"7"},"#
    );
    assert!(text(&announced).starts_with(guards));
    let announced = applied(&others, &announced);
    assert!(text(&retract(&announced).expect("a patch")).starts_with(guards));
    assert_eq!(announce(&json!({}), "m", now), None);
    assert_eq!(retract(&json!({"status": announced["status"]})), None);
}
