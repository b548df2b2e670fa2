//! Texts from outside, made fit to be shown: on one line, bounded, and the same while the same trouble goes on.

use crate::core::message::{harmless, plain, shorten};

/// The most lines of a log that are kept.
pub const LOG_LINES: usize = 10;

/// The most bytes of a log that are kept.
pub const LOG_BYTES: usize = 2048;

/// Returns the last lines of a container's log: at most [`LOG_LINES`], and [`LOG_BYTES`] with their line breaks.
///
/// Empty lines are left out, control characters are escaped, and a line that is too long loses its middle.
pub fn log_evidence(text: &str) -> Vec<String> {
    let mut left = LOG_BYTES;
    let mut lines = Vec::new();
    for line in text.lines().rev().map(str::trim_end).filter(|line| !line.is_empty()).take(LOG_LINES) {
        // A character takes four bytes at most.
        let line = one_line(line, LOG_BYTES / 4 - 1);
        if line.len() + 1 > left {
            break;
        }
        left -= line.len() + 1;
        lines.push(line);
    }
    lines.reverse();
    lines
}

/// Returns `text` on one line of at most `most` characters. What is too much is cut out of its middle, as the end of
/// an error says what went wrong.
pub(super) fn one_line(text: &str, most: usize) -> String {
    // A character that is escaped takes ten at most; then it is cut again.
    let text = plain(&shorten(text.trim(), most * 2), most * 20 + 1);
    harmless(&shorten(&text, most))
}

/// Returns `text` without what differs from pod to pod or from time to time: suffixes of pod names, UIDs, ids of
/// containers, and the port that a connection was made from. `replica_set` is the name that pods' names start with.
pub(super) fn steady(text: &str, replica_set: &str) -> String {
    let in_word = |c: char| c.is_ascii_alphanumeric() || c == '-';
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while !rest.is_empty() {
        let length = rest.find(|c| !in_word(c)).unwrap_or(rest.len());
        let (word, tail) = rest.split_at(length);
        if is_port(word, tail) {
            out.push_str("*-");
        } else if is_uid(word) || is_id(word) && !out.ends_with("sha256:") {
            out.push('*');
        } else if is_pod_of(word, replica_set) {
            out.push_str(replica_set);
            out.push_str("-*");
        } else {
            out.push_str(word);
        }
        let Some(c) = tail.chars().next() else { break };
        out.push(c);
        rest = &tail[c.len_utf8()..];
    }
    out
}

/// Returns the name of the ReplicaSet that a pod's name starts with.
pub(super) fn replica_set_of(pod: &str) -> &str {
    pod.rsplit_once('-').map_or("", |(head, _)| head)
}

/// `10.0.0.7:41234->10.0.0.1:443`: the arrow's dash is taken for a part of the word.
fn is_port(word: &str, tail: &str) -> bool {
    let port = word.strip_suffix('-').unwrap_or_default();
    tail.starts_with('>') && !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit())
}

fn is_uid(word: &str) -> bool {
    let word = word.strip_prefix("pvc-").unwrap_or(word);
    word.len() == 36
        && word.bytes().enumerate().all(|(i, b)| match i {
            8 | 13 | 18 | 23 => b == b'-',
            _ => b.is_ascii_hexdigit(),
        })
}

fn is_id(word: &str) -> bool {
    word.len() >= 32 && word.bytes().all(|b| b.is_ascii_hexdigit())
}

fn is_pod_of(word: &str, replica_set: &str) -> bool {
    let suffix = word.strip_prefix(replica_set).and_then(|rest| rest.strip_prefix('-'));
    !replica_set.is_empty()
        && suffix.is_some_and(|s| s.len() == 5 && s.bytes().all(|b| b.is_ascii_alphanumeric()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_differs_from_pod_to_pod_is_left_out() {
        let cases = [
            (
                r#"pods "web-6fff4b7674-x7k2p" is forbidden: exceeded quota: pods"#,
                r#"pods "web-6fff4b7674-*" is forbidden: exceeded quota: pods"#,
            ),
            (
                "(pod: \"web-6fff4b7674-x7k2p_shop(0a1b2c3d-1111-2222-3333-444455556666)\", container: app)",
                "(pod: \"web-6fff4b7674-*_shop(*)\", container: app)",
            ),
            ("read tcp 10.0.0.7:41234->10.0.0.1:443: reset", "read tcp 10.0.0.7:*->10.0.0.1:443: reset"),
            (
                "id 8d4c0f8fbd5e4f1fb9ad0f0d9f2f7d11 of sha256:8d4c0f8fbd5e4f1fb9ad0f0d9f2f7d11",
                "id * of sha256:8d4c0f8fbd5e4f1fb9ad0f0d9f2f7d11",
            ),
            ("web-6fff4b7674-config web-6fff4b7674", "web-6fff4b7674-config web-6fff4b7674"),
        ];
        for (text, expected) in cases {
            assert_eq!(steady(text, "web-6fff4b7674"), expected);
        }
    }

    #[test]
    fn a_log_is_kept_from_its_end() {
        let text: String = (0..20).map(|i| format!("line {i}\n\n")).collect();
        let lines = log_evidence(&text);
        assert_eq!(lines.len(), 10);
        assert_eq!((lines[0].as_str(), lines[9].as_str()), ("line 10", "line 19"));
        assert_eq!(log_evidence("\u{1b}[31mfatal: no\tdatabase\r\n"), ["\\u{1b}[31mfatal: no\\tdatabase"]);
        assert_eq!(log_evidence(""), Vec::<String>::new());
        let huge = log_evidence(&format!("{}the end", "🦀".repeat(100_000)));
        assert_eq!(huge.len(), 1);
        assert!(huge[0].ends_with("the end") && huge[0].len() < LOG_BYTES, "{huge:?}");
    }

    proptest! {
        #[test]
        fn one_line_is_one_bounded_line(text in any::<String>(), most in 1_usize..400) {
            let line = one_line(&text, most);
            prop_assert!(line.chars().count() <= most);
            prop_assert!(!line.chars().any(char::is_control));
        }

        #[test]
        fn a_log_is_bounded(lines in prop::collection::vec(any::<String>(), 0..30)) {
            let kept = log_evidence(&lines.join("\n"));
            prop_assert!(kept.len() <= LOG_LINES);
            prop_assert!(kept.iter().map(|line| line.len() + 1).sum::<usize>() <= LOG_BYTES);
            prop_assert!(!kept.iter().flat_map(|line| line.chars()).any(char::is_control));
        }

        #[test]
        fn steady_text_stays_as_it_is_when_done_again(
            text in "[a-z0-9\\->:. \"_()]{0,80}", name in "[a-z]{0,4}(-[a-z0-9]{1,4})?",
        ) {
            let once = steady(&text, &name);
            prop_assert_eq!(steady(&once, &name), once);
        }
    }
}
