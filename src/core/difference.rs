//! What differs between two pod templates, as text: a unified diff of their canonical YAML.
//!
//! Canonical is what [`super::template::TemplateHash`] makes of a template: keys sorted, members that are null and the label
//! `pod-template-hash` left out. Two templates with one hash so have no difference.

use serde_json::{Map, Value};
use similar::{ChangeTag, TextDiff};

use super::{message::plain, template::POD_TEMPLATE_HASH};

/// Lines around a change that are shown with it, as `diff -u` does.
const CONTEXT: usize = 3;

/// The most lines of a template that are compared: the work grows with the product of both.
const MOST_LINES: usize = 5000;

/// The most lines of a difference.
const MOST_SHOWN: usize = 2000;

/// The most characters of a line.
const LONGEST_LINE: usize = 2000;

/// One line of a difference.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// What it is.
    pub kind: Kind,
    /// Its text without the sign at its start, on one line and without control characters.
    pub text: String,
}

/// What a line of a difference is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Where in the two texts the next lines are: `@@ -1,7 +1,7 @@`.
    Place,
    /// In both.
    Same,
    /// In the first alone.
    Removed,
    /// In the second alone.
    Added,
    /// About the difference itself, such as that there is more of it than is shown.
    Note,
}

impl Line {
    fn new(kind: Kind, text: &str) -> Self {
        Self { kind, text: plain(text, LONGEST_LINE) }
    }
}

impl std::fmt::Display for Line {
    /// The line as `diff -u` writes it.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let sign = match self.kind {
            Kind::Place => "",
            Kind::Same => " ",
            Kind::Removed => "-",
            Kind::Added => "+",
            Kind::Note => "# ",
        };
        write!(f, "{sign}{}", self.text)
    }
}

/// Returns what differs from the pod template `old` to `new`; empty where they are the same. At most about 2000 lines of
/// at most 2000 characters.
pub fn between(old: &Value, new: &Value) -> Vec<Line> {
    let (old, new) = (yaml(old), yaml(new));
    if old == new {
        return Vec::new();
    }
    let (before, after) = (old.lines().count(), new.lines().count());
    if before.max(after) > MOST_LINES {
        let note = format!("the templates have {before} and {after} lines, which is too long to be shown");
        return vec![Line::new(Kind::Note, &note)];
    }
    let diff = TextDiff::from_lines(&old, &new);
    let mut lines = Vec::new();
    for hunk in diff.unified_diff().context_radius(CONTEXT).iter_hunks() {
        lines.push(Line::new(Kind::Place, &hunk.header().to_string()));
        lines.extend(hunk.iter_changes().map(|change| {
            let kind = match change.tag() {
                ChangeTag::Equal => Kind::Same,
                ChangeTag::Delete => Kind::Removed,
                ChangeTag::Insert => Kind::Added,
            };
            Line::new(kind, change.value().trim_end_matches('\n'))
        }));
    }
    if lines.len() > MOST_SHOWN {
        let more = lines.len() - MOST_SHOWN;
        lines.truncate(MOST_SHOWN);
        lines.push(Line::new(Kind::Note, &format!("{more} more lines are not shown")));
    }
    lines
}

/// The template as YAML; as JSON where it cannot be written so, which no template of an API server is.
fn yaml(template: &Value) -> String {
    let canonical = canonical(template, &["metadata", "labels"]);
    serde_yaml_ng::to_string(&canonical).unwrap_or_else(|_| canonical.to_string())
}

/// `labels` is the way to the labels from here, where they are below.
fn canonical(value: &Value, labels: &[&str]) -> Value {
    match value {
        Value::Object(members) => {
            let left_out = |key: &str| labels.is_empty() && key == POD_TEMPLATE_HASH;
            let mut kept: Vec<_> =
                members.iter().filter(|(key, value)| !value.is_null() && !left_out(key)).collect();
            kept.sort_by_key(|(key, _)| *key);
            let members = kept.into_iter().map(|(key, value)| {
                let below = match labels {
                    [next, rest @ ..] if next == key => rest,
                    _ => ELSEWHERE,
                };
                (key.clone(), canonical(value, below))
            });
            Value::Object(members.collect::<Map<_, _>>())
        }
        Value::Array(items) => items.iter().map(|item| canonical(item, ELSEWHERE)).collect(),
        other => other.clone(),
    }
}

/// No way leads to the labels from here: no key of JSON that Kubernetes knows is this one.
const ELSEWHERE: &[&str] = &["\0"];

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::core::template::TemplateHash;

    fn text(old: &Value, new: &Value) -> String {
        between(old, new).iter().map(|line| format!("{line}\n")).collect()
    }

    fn template(image: &str) -> Value {
        json!({
            "metadata": {"labels": {"app": "web", "pod-template-hash": image}, "creationTimestamp": null},
            "spec": {
                "containers": [{"name": "app", "image": image, "ports": [{"containerPort": 8080}]}],
                "terminationGracePeriodSeconds": 30,
                "restartPolicy": "Always",
                "dnsPolicy": "ClusterFirst",
            },
        })
    }

    #[test]
    fn a_difference_is_shown_as_diff_u_shows_it() {
        insta::assert_snapshot!(text(&template("web:1.4.2"), &template("web:1.4.1")), @"
        @@ -3,7 +3,7 @@
             app: web
         spec:
           containers:
        -  - image: web:1.4.2
        +  - image: web:1.4.1
             name: app
             ports:
             - containerPort: 8080
        ");
    }

    #[test]
    fn the_label_of_replicasets_and_nulls_are_no_difference_but_elsewhere_the_label_is() {
        let mut other = template("web:1");
        other["metadata"]["labels"]["pod-template-hash"] = json!("other");
        other["metadata"]["creationTimestamp"].take();
        other["spec"]["nodeName"] = Value::Null;
        assert_eq!(between(&template("web:1"), &other), []);
        other["metadata"]["annotations"] = json!({"pod-template-hash": "x"});
        assert_eq!(between(&template("web:1"), &other).iter().filter(|l| l.kind == Kind::Added).count(), 2);
    }

    #[test]
    fn a_text_of_the_cluster_forges_no_line_and_steers_no_terminal() {
        let hostile = "a\u{1b}[2J\r\n+  image: forged\u{202e}";
        let lines = between(&json!({}), &json!({"spec": {"x": hostile}}));
        for line in &lines {
            assert!(!line.text.chars().any(|c| c.is_control() || c == '\u{202e}'), "{line:?}");
        }
    }

    #[test]
    fn what_is_too_long_is_said_and_not_shown() {
        let list = |from: usize, n: usize| json!({"x": (from..from + n).collect::<Vec<_>>()});
        let lines = between(&list(0, 4000), &list(10_000, 4000));
        assert_eq!(lines.len(), MOST_SHOWN + 1);
        assert!(lines.last().is_some_and(|line| line.to_string().ends_with("more lines are not shown")));
        let lines = between(&list(0, 40_000), &list(100_000, 40_000));
        assert_eq!(lines.len(), 1);
        assert_eq!(lines[0].kind, Kind::Note);
    }

    fn json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i32>().prop_map(Value::from),
            ".{0,6}".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 32, 5, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
                prop::collection::btree_map("metadata|labels|pod-template-hash|[a-z]{1,3}", inner, 0..5)
                    .prop_map(|m| Value::Object(m.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn templates_with_one_hash_have_no_difference_and_others_have_one(a in json(), b in json()) {
            prop_assert_eq!(between(&a, &b).is_empty(), TemplateHash::of(&a) == TemplateHash::of(&b));
            prop_assert!(between(&a, &a).is_empty());
        }
    }
}
