//! Whether two pod templates are the same, on raw JSON, and by which hash one is remembered.

use std::fmt::Write as _;

use ring::digest::{Context, SHA256};
use serde_json::{Number, Value};

/// The label that the deployment controller puts on the templates of ReplicaSets.
pub const POD_TEMPLATE_HASH: &str = "pod-template-hash";

/// What a pod template is remembered by: SHA-256 over its canonical JSON, without the label `pod-template-hash`.
///
/// Canonical are sorted keys, and members that are null left out: `creationTimestamp: null` comes and goes with the
/// version of the API server. Nothing else is left out: a `rollout restart` is another template.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TemplateHash([u8; 32]);

impl TemplateHash {
    /// Returns the hash of a pod template.
    pub fn of(template: &Value) -> Self {
        let mut context = Context::new(&SHA256);
        canonical(template, Path::Template, &mut |bytes| context.update(bytes));
        let mut hash = [0; 32];
        hash.copy_from_slice(context.finish().as_ref());
        Self(hash)
    }

    /// Like [`TemplateHash::of`], of a JSON text; none where it cannot be read.
    pub fn of_text(template: &str) -> Option<Self> {
        serde_json::from_str(template).ok().map(|template| Self::of(&template))
    }

    /// Reads what [`TemplateHash`] prints: 64 digits in lower case.
    pub fn parse(text: &str) -> Option<Self> {
        let mut hash = [0; 32];
        if text.len() != 64 || !text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)) {
            return None;
        }
        for (byte, digits) in hash.iter_mut().zip(text.as_bytes().chunks(2)) {
            *byte = u8::from_str_radix(str::from_utf8(digits).ok()?, 16).ok()?;
        }
        Some(Self(hash))
    }
}

impl std::fmt::Display for TemplateHash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Where in the template a value is: the one label that is left out has one place only.
#[derive(Clone, Copy)]
enum Path {
    Template,
    Metadata,
    Labels,
    Elsewhere,
}

fn canonical(value: &Value, path: Path, write: &mut impl FnMut(&[u8])) {
    match value {
        Value::Object(members) => {
            let left_out = |key: &str| matches!(path, Path::Labels) && key == POD_TEMPLATE_HASH;
            let mut members: Vec<_> =
                members.iter().filter(|(key, value)| !value.is_null() && !left_out(key)).collect();
            members.sort_by_key(|(key, _)| *key);
            write(b"{");
            for (i, (key, value)) in members.into_iter().enumerate() {
                let inner = match (path, key.as_str()) {
                    (Path::Template, "metadata") => Path::Metadata,
                    (Path::Metadata, "labels") => Path::Labels,
                    _ => Path::Elsewhere,
                };
                write(if i == 0 { b"" } else { b"," });
                write(Value::from(key.as_str()).to_string().as_bytes());
                write(b":");
                canonical(value, inner, write);
            }
            write(b"}");
        }
        Value::Array(items) => {
            write(b"[");
            for (i, item) in items.iter().enumerate() {
                write(if i == 0 { b"" } else { b"," });
                canonical(item, Path::Elsewhere, write);
            }
            write(b"]");
        }
        Value::Number(number) => {
            let mut text = String::new();
            let _ = match whole(number) {
                Some(whole) => write!(text, "{whole}"),
                // 2.0 and 2 are the same number.
                None => match number.as_f64() {
                    Some(float) if float.fract() == 0.0 && float.abs() < 1e15 => {
                        write!(text, "{float:.0}")
                    }
                    _ => write!(text, "{number}"),
                },
            };
            write(text.as_bytes());
        }
        Value::Null | Value::Bool(_) | Value::String(_) => write(value.to_string().as_bytes()),
    }
}

/// Says whether two JSON texts are the same value: at once where the bytes are equal, else with the order of
/// keys, white space, escapes and the way numbers are written left out of account.
///
/// A text that cannot be parsed (nested deeper than 128, say) is the same only as itself.
pub fn same(a: &str, b: &str) -> bool {
    if a == b {
        return true;
    }
    if differ_in_a_text(a.as_bytes(), b.as_bytes()) {
        return false;
    }
    match (serde_json::from_str::<Value>(a), serde_json::from_str::<Value>(b)) {
        (Ok(a), Ok(b)) => same_value(&a, &b),
        _ => false,
    }
}

/// Says whether the first difference lies in the middle of two texts that stand in the same place and hold no
/// escapes, such as the tag of an image. That is a change for certain (but for a key that is there twice, which the
/// API server never sends), and both need not be parsed to know it.
fn differ_in_a_text(a: &[u8], b: &[u8]) -> bool {
    let common = a.iter().zip(b).take_while(|(a, b)| a == b).count();
    // Where the text that the difference lies in begins, if it lies in one.
    let mut begun = None;
    let mut bytes = a[..common].iter().enumerate();
    while let Some((at, byte)) = bytes.next() {
        match byte {
            b'"' => begun = if begun.is_none() { Some(at + 1) } else { None },
            b'\\' => {
                bytes.next();
            }
            _ => {}
        }
    }
    let Some(begun) = begun else { return false };
    // A key is no such text: keys may come in another order.
    let is_value = |text: &[u8]| {
        let mut rest = text[begun..].iter().skip_while(|byte| !matches!(byte, b'"' | b'\\'));
        rest.next() == Some(&b'"') && matches!(rest.next(), Some(b',' | b'}' | b']'))
    };
    is_value(a) && is_value(b)
}

fn same_value(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => same_number(a, b),
        (Value::Array(a), Value::Array(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same_value(a, b))
        }
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len() && a.iter().all(|(k, v)| b.get(k).is_some_and(|w| same_value(v, w)))
        }
        _ => a == b,
    }
}

/// Whole numbers are compared as such, so that none above 2^53 is taken for its neighbour.
fn same_number(a: &Number, b: &Number) -> bool {
    match (whole(a), whole(b)) {
        (Some(a), Some(b)) => a == b,
        _ => a.as_f64() == b.as_f64(),
    }
}

fn whole(number: &Number) -> Option<i128> {
    number.as_i64().map(i128::from).or_else(|| number.as_u64().map(i128::from))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_hash_leaves_out_the_label_of_replicasets_and_what_is_null_and_nothing_else() {
        let hash = |text: &str| TemplateHash::of_text(text).expect("JSON");
        let one = hash(r#"{"metadata":{"labels":{"app":"web"},"creationTimestamp":null},"spec":{"x":2.0}}"#);
        let same =
            hash(r#"{"spec":{"x":2},"metadata":{"labels":{"pod-template-hash":"6fff4b7674","app":"web"}}}"#);
        assert_eq!(one, same);
        for other in [
            r#"{"metadata":{"labels":{"app":"web"},"annotations":{"restartedAt":"now"}},"spec":{"x":2}}"#,
            r#"{"metadata":{"labels":{"app":"web"}},"spec":{"x":2,"pod-template-hash":"a"}}"#,
            r#"{"metadata":{"labels":{"app":"web"}},"spec":{"x":2.5}}"#,
            r#"{"metadata":{"labels":{"app":"web"}},"spec":{"x":"2"}}"#,
        ] {
            assert_ne!(one, hash(other), "{other}");
        }
        assert_eq!(TemplateHash::parse(&one.to_string()), Some(one));
        assert_eq!(TemplateHash::parse("3f9c"), None);
        assert_eq!(TemplateHash::parse(&one.to_string().to_uppercase()), None);
    }

    #[test]
    fn order_space_escapes_and_the_writing_of_numbers_are_no_change() {
        let a = r#"{"spec":{"x":1,"y":[1,2.0]},"metadata":{"labels":{"a":"<b>"}}}"#;
        let b = r#"{ "metadata": {"labels":{"a":"\u003cb\u003e"}}, "spec":{"y":[1.0,2e0],"x":1} }"#;
        assert!(same(a, b));
    }

    #[test]
    fn values_orders_of_lists_and_absent_keys_are_changes() {
        for (a, b) in [
            (r#"{"a":1}"#, r#"{"a":2}"#),
            (r#"{"a":[1,2]}"#, r#"{"a":[2,1]}"#),
            (r#"{"a":null}"#, "{}"),
            (r#"{"a":"1"}"#, r#"{"a":1}"#),
            (r#"{"a":9007199254740993}"#, r#"{"a":9007199254740992}"#),
            (r#"{"a":18446744073709551615}"#, r#"{"a":-1}"#),
        ] {
            assert!(!same(a, b), "{a} {b}");
        }
    }

    #[test]
    fn a_difference_within_a_text_is_told_from_one_of_writing() {
        for (a, b, expected) in [
            (r#"{"image":"a:1","x":1}"#, r#"{"image":"a:2","x":1}"#, false),
            (r#"{"image":"a:1"}"#, r#"{"image":"a:12"}"#, false),
            (r#"{"x":["a","b"]}"#, r#"{"x":["a","c"]}"#, false),
            (r#"{"ka":"1","kb":"2"}"#, r#"{"kb":"2","ka":"1"}"#, true),
            (r#"{"ka" :"1","kb":"2"}"#, r#"{"kb":"2","ka":"1"}"#, true),
            (r#"{"x":"\u003c"}"#, r#"{"x":"\u003C"}"#, true),
            (r#"{"x":"a\u003c"}"#, r#"{"x":"a<"}"#, true),
            (r#"{"x":"a\n"}"#, r#"{"x":"a\u000a"}"#, true),
            (r#"{"x":"\\","y":"\"a"}"#, r#"{"x":"\\","y":"\u0022a"}"#, true),
            (r#"{"x":"\"a,"}"#, r#"{"x":"\"b,"}"#, false),
        ] {
            assert_eq!(same(a, b), expected, "{a} {b}");
            assert_eq!(same(b, a), expected, "{b} {a}");
        }
    }

    #[test]
    fn what_is_nested_too_deep_to_read_counts_as_changed_and_harms_nobody() {
        let deep = |n: usize, end: &str| "[".repeat(n) + end + &"]".repeat(n);
        assert!(!same(&deep(100_000, "1"), &deep(100_000, "2")));
        assert!(same(&deep(100_000, "1"), &deep(100_000, "1")));
    }

    fn json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            ".{0,6}".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 32, 5, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
                prop::collection::btree_map("[a-z]{1,3}", inner, 0..5)
                    .prop_map(|m| Value::Object(m.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn a_value_is_the_same_however_it_is_printed(value in json()) {
            let pretty = serde_json::to_string_pretty(&value).expect("prints");
            prop_assert!(same(&value.to_string(), &pretty));
        }

        #[test]
        fn two_values_are_the_same_only_if_they_are_equal(a in json(), b in json()) {
            prop_assert_eq!(same(&a.to_string(), &b.to_string()), a == b);
        }
    }
}
