//! What `kubectl apply` remembers of the template, corrected for what the way back does.
//!
//! Client-side apply merges three ways (`strategicpatch.CreateThreeWayMergePatch`): what the new manifest says is set,
//! and what is in the text of last time but not in the new manifest is removed. Of that text only matters which fields
//! are there. So:
//!
//! | good template | bad template | in the text | what is done |
//! | --- | --- | --- | --- |
//! | there | not there | either | put in: a fix that leaves it out removes it, as the bad push had |
//! | differs | | there | gets the good value, so that a move to server-side apply finds the text true |
//! | differs | | not there | put in if the applier owns it: the bad push left it out, and a default was filled in. Else it is not the applier's, and is left alone |
//! | not there | there | either | left alone |
//!
//! Lists whose items have a merge key are taken item by item, all others as a whole.
//!
//! A map, a list or an item that is not in the text at all is only put in where the bad template has nothing in it or
//! the applier owns all of it. For a fix that leaves it out as well removes it as a whole, and with it what others have
//! put there.
//!
//! What cannot be had, whatever is written into the text:
//! - What the bad template had from others than the applier (`kubectl set`, `kubectl rollout restart`) is gone after
//!   the way back: that is what was rolled back.
//! - A field that another writer removed, within a map that the applier never had, stays after the fix (last paragraph).
//! - Lists with the same merge key twice (a port by TCP and by UDP) are left alone: `kubectl apply` itself cannot
//!   merge them (kubernetes/kubernetes 39188). So are lists of more than 1000 items.

use serde_json::{Map, Value};

use super::{LAST_APPLIED, managed_fields};

/// How many items a list may have to be taken item by item: the work grows with the square.
const MOST_ITEMS: usize = 1000;

/// How long all annotations may be together, keys included (apimachinery, `TotalAnnotationSizeLimitB`).
const LIMIT: usize = 256 * 1024;

/// Returns the annotation's text after the way back from `bad` to `good`; none where it stays as it is.
pub(super) fn corrected(deployment: &Value, bad: &Value, good: &Value) -> Option<String> {
    let annotations = deployment.pointer("/metadata/annotations")?.as_object()?;
    let text = annotations.get(LAST_APPLIED)?.as_str()?;
    let mut last: Value = serde_json::from_str(text).ok()?;
    let template = last.pointer_mut("/spec/template")?.as_object_mut()?;
    let before = template.clone();
    let owned = managed_fields::of_client_side_applier(deployment);
    correct_map(template, bad.as_object()?, good.as_object()?, &owned, Kind::Template);
    if *template == before {
        return None;
    }
    let corrected = written_like(text, &last);
    let others = annotations.iter().filter(|(key, _)| *key != LAST_APPLIED);
    let others = others.map(|(key, value)| key.len() + value.as_str().map_or(0, str::len));
    (others.sum::<usize>() + LAST_APPLIED.len() + corrected.len() <= LIMIT).then_some(corrected)
}

/// Prints JSON the way `text` was: kubectl's encoder escapes what matters in HTML, and ends with a new line.
fn written_like(text: &str, value: &Value) -> String {
    let mut printed = value.to_string();
    if !text.contains(['<', '>', '&', '\u{2028}', '\u{2029}']) {
        // None of them is outside of a string.
        for (plain, escaped) in [
            ('<', "\\u003c"),
            ('>', "\\u003e"),
            ('&', "\\u0026"),
            ('\u{2028}', "\\u2028"),
            ('\u{2029}', "\\u2029"),
        ] {
            printed = printed.replace(plain, escaped);
        }
    }
    if text.ends_with('\n') {
        printed.push('\n');
    }
    printed
}

/// Where in the template a map is: some lists have merge keys in one place only.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Template,
    PodSpec,
    Container,
    Other,
}

impl Kind {
    /// What the member `field` is.
    fn member(self, field: &str) -> Self {
        match (self, field) {
            (Self::Template, "spec") => Self::PodSpec,
            _ => Self::Other,
        }
    }

    /// The merge key of the list `field` and what its items are (`patchMergeKey` in `core/v1/types.go`); none where
    /// the list is replaced as a whole.
    fn list(self, field: &str) -> Option<(&'static str, Self)> {
        let found = match (self, field) {
            (Self::PodSpec, "containers" | "initContainers" | "ephemeralContainers") => {
                ("name", Self::Container)
            }
            (
                Self::PodSpec,
                "volumes" | "imagePullSecrets" | "schedulingGates" | "resourceClaims" | "evictionResponders",
            ) => ("name", Self::Other),
            (Self::PodSpec, "hostAliases") => ("ip", Self::Other),
            (Self::PodSpec, "topologySpreadConstraints") => ("topologyKey", Self::Other),
            (Self::Container, "env") => ("name", Self::Other),
            (Self::Container, "ports") => ("containerPort", Self::Other),
            (Self::Container, "volumeMounts") => ("mountPath", Self::Other),
            (Self::Container, "volumeDevices") => ("devicePath", Self::Other),
            _ => return None,
        };
        Some(found)
    }
}

type Object = Map<String, Value>;

/// `owned` is the tree of what the applier owns here, in the form of `fieldsV1`.
fn correct_map(last: &mut Object, bad: &Object, good: &Object, owned: &Value, kind: Kind) {
    for (field, wanted) in good.iter().filter(|(_, value)| !value.is_null()) {
        let bad = bad.get(field).unwrap_or(&Value::Null);
        if bad == wanted {
            continue;
        }
        let owned = owned.get(format!("f:{field}")).unwrap_or(&Value::Null);
        let remembered = last.get(field).filter(|value| !value.is_null());
        if let Some(value) = correct(remembered, bad, wanted, owned, kind.member(field), kind.list(field)) {
            last.insert(field.clone(), value);
        }
    }
}

/// Returns what is to be remembered of a field that the way back adds or changes; none where that does not change.
fn correct(
    last: Option<&Value>,
    bad: &Value,
    good: &Value,
    owned: &Value,
    kind: Kind,
    list: Option<(&str, Kind)>,
) -> Option<Value> {
    // What is not there is like what is empty, of the kind that the good one is.
    let or_empty = |value: &Value| match good {
        Value::Object(_) if value.is_null() => Value::Object(Object::new()),
        Value::Array(_) if value.is_null() => Value::Array(Vec::new()),
        _ => value.clone(),
    };
    let Some(remembered) = last else {
        if bad.is_null() {
            return Some(good.clone());
        }
        let parts = match (bad, good) {
            (Value::Object(_), Value::Object(_)) => true,
            (Value::Array(_), Value::Array(_)) => list.is_some(),
            _ => false,
        };
        if !parts {
            return is_all_of(owned, bad).then(|| good.clone());
        }
        let empty = or_empty(&Value::Null);
        let is_free = bad == &empty || is_all_of(owned, bad);
        return correct(Some(&empty), bad, good, owned, kind, list).filter(|_| is_free);
    };
    let corrected = match (remembered.clone(), or_empty(bad), good, list) {
        (Value::Object(mut last), Value::Object(bad), Value::Object(good), _) => {
            correct_map(&mut last, &bad, good, owned, kind);
            Value::Object(last)
        }
        (Value::Array(last), Value::Array(bad), Value::Array(good), Some((key, kind))) => {
            Value::Array(correct_list(last, &bad, good, owned, key, kind)?)
        }
        (Value::Object(_), ..) | (_, _, Value::Object(_), _) => return None,
        _ => good.clone(),
    };
    (&corrected != remembered).then_some(corrected)
}

/// None where the items cannot be told apart by their merge key.
fn correct_list(
    mut last: Vec<Value>,
    bad: &[Value],
    good: &[Value],
    owned: &Value,
    key: &str,
    kind: Kind,
) -> Option<Vec<Value>> {
    if ![&last, bad, good].into_iter().all(|list| is_keyed(list, key)) {
        return None;
    }
    for wanted in good {
        let id = wanted.get(key)?;
        let find = |list: &[Value]| list.iter().position(|item| item.get(key) == Some(id));
        let bad = find(bad).and_then(|at| bad.get(at)).unwrap_or(&Value::Null);
        if bad == wanted {
            continue;
        }
        let owned = owned_item(owned, bad);
        match find(&last).and_then(|at| last.get_mut(at)) {
            Some(remembered) => {
                if let Some(item) = correct(Some(remembered), bad, wanted, owned, kind, None) {
                    *remembered = item;
                }
            }
            None => {
                if let Some(mut item) = correct(None, bad, wanted, owned, kind, None) {
                    item[key] = id.clone();
                    last.push(item);
                }
            }
        }
    }
    Some(last)
}

/// Says whether all items are maps that have the key, each another, and are not too many.
fn is_keyed(list: &[Value], key: &str) -> bool {
    let is_own = |(at, item): (usize, &Value)| {
        item.get(key).is_some_and(|id| !list[..at].iter().any(|other| other.get(key) == Some(id)))
    };
    list.len() <= MOST_ITEMS && list.iter().enumerate().all(is_own)
}

/// What is owned of a list's item, which server-side apply names by all its keys:
/// `k:{"containerPort":80,"protocol":"TCP"}`.
fn owned_item<'a>(owned: &'a Value, item: &Value) -> &'a Value {
    let names = |path: &str| {
        let keys = path.strip_prefix("k:").and_then(|keys| serde_json::from_str::<Object>(keys).ok());
        keys.is_some_and(|keys| keys.iter().all(|(key, value)| item.get(key) == Some(value)))
    };
    let found = owned.as_object().and_then(|paths| paths.iter().find(|(path, _)| names(path)));
    found.map_or(&Value::Null, |(_, owned)| owned)
}

/// Says whether the applier owns a value with all that is in it.
fn is_all_of(owned: &Value, value: &Value) -> bool {
    let Some(paths) = owned.as_object() else { return false };
    match value {
        // A map that was empty when it was taken is `{}` too, whatever others have put there since.
        Value::Object(members) => {
            members.iter().filter(|(_, member)| !member.is_null()).all(|(field, member)| {
                paths.get(&format!("f:{field}")).is_some_and(|owned| is_all_of(owned, member))
            })
        }
        Value::Array(items) if !paths.is_empty() => {
            items.iter().all(|item| is_all_of(owned_item(owned, item), item))
        }
        _ => true,
    }
}
