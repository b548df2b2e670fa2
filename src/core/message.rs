//! A refusal in words: for people, for pipelines' logs and for machines.
//!
//! The first line stands alone within 120 characters: id, what is blocked, why, since when. The rest says what
//! to do. Everything is deterministic (no "now", no request id), so that retries can be deduplicated.

use std::fmt::Write as _;

use jiff::Timestamp;

use super::{
    admission::{Change, Reason, Refusal},
    rollout::Condition,
};

/// The most characters of the first line.
pub const FIRST_LINE: usize = 120;

/// The most characters quoted from Kubernetes or from a person.
const QUOTE: usize = 400;

/// Where the reason ids are explained, unless told otherwise.
pub const DOCS: &str = "docs/reasons.md";

/// A refusal in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// All lines.
    pub text: String,
    /// The same for machines: pairs of a word and its value.
    pub causes: Vec<(&'static str, String)>,
}

impl Message {
    /// Returns the first line.
    pub fn first_line(&self) -> &str {
        self.text.lines().next().unwrap_or_default()
    }
}

/// Puts `refusal` of `change` by `policy` into words. `docs` is where the reason ids are explained.
pub fn refusal(change: &Change<'_>, refusal: &Refusal<'_>, policy: &str, docs: &str) -> Message {
    let subject = format!("{}/{}", plain(change.namespace, 63), plain(change.name, 253));
    let why = why(change, refusal);
    let id = refusal.reason.id();
    // What is left of the 120 characters is the name's; it is cut in the middle, as both ends tell it.
    let room = FIRST_LINE.saturating_sub(id.len() + " ".len() + " is blocked: ".len() + why.chars().count());
    let mut text = format!("{id} {} is blocked: {why}", shorten(&subject, room));

    if let Some(quote) = quote(change, refusal) {
        let _ = write!(text, "\n{quote}");
    }
    let _ = write!(text, "\nFix: {}", fix(change, refusal));
    let _ = write!(
        text,
        "\nOverride: set the annotation {}: \"<why>\" in the same update; it takes the verb override on rolloutpolicies/{policy}.",
        crate::api::OVERRIDE_ANNOTATION,
    );
    let _ = write!(text, "\nDocs: {docs}#{}", id.to_ascii_lowercase());

    let causes = causes(change, refusal, policy).into_iter().map(|(k, v)| (k, harmless(&v))).collect();
    Message { text: harmless(&text), causes }
}

/// Says why an asked-for override did not count. `user` is as the API server names it.
pub fn override_refused(message: &mut Message, why: OverrideRefused<'_>) {
    let line = match why {
        OverrideRefused::NoReason => "Override refused: the annotation holds no reason.".to_owned(),
        OverrideRefused::NoRight { user, policy } => {
            format!("Override refused: user {} may not override rolloutpolicies/{policy}.", plain(user, 253))
        }
        OverrideRefused::NoAnswer => {
            "Override refused: the API server did not say in time whether it is permitted; try again."
                .to_owned()
        }
    };
    message.text = harmless(&format!("{}\n{line}", message.text));
}

/// Why an override does not count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OverrideRefused<'a> {
    /// The annotation is empty.
    NoReason,
    /// The user has not the right.
    NoRight {
        /// The user's name.
        user: &'a str,
        /// The policy's name.
        policy: &'a str,
    },
    /// The access review failed or took too long.
    NoAnswer,
}

fn why(change: &Change<'_>, refusal: &Refusal<'_>) -> String {
    let old = &change.old;
    let generation = old.generation;
    let since = |time: Option<Timestamp>| time.map(|t| format!(" since {t:.0}")).unwrap_or_default();
    let reason = |c: Option<&Condition<'_>>| {
        c.map(|c| format!(" ({})", shorten(&plain(&c.reason, 40), 24))).unwrap_or_default()
    };
    match (refusal.reason, &refusal.freeze) {
        (Reason::Unobserved, _) => {
            let create_error = old.progressing.as_ref().filter(|c| c.status == "False");
            let time = create_error.and_then(|c| c.updated_at).or(old.written_at);
            format!("generation {generation} is not observed{}{}", since(time), reason(create_error))
        }
        (Reason::Failed, _) => {
            let progressing = old.progressing.as_ref();
            let time = progressing.and_then(|c| c.updated_at);
            format!("generation {generation} failed{}{}", since(time), reason(progressing))
        }
        (Reason::Progressing, _) => {
            format!("generation {generation} is rolling out{}", since(old.written_at))
        }
        (Reason::Frozen, Some(freeze)) => {
            let name = shorten(&plain(freeze.name, 63), 16);
            format!("freeze {name} from {:.0} until {:.0}", freeze.since, freeze.until)
        }
        (Reason::Frozen, None) => "a freeze is open".to_owned(),
        (Reason::Quarantined, _) => {
            let bad = refusal.bad.unwrap_or_default();
            let at = bad.since.map(|t| format!(" at {t:.0}")).unwrap_or_default();
            let cause = bad.cause.map(|cause| format!(" ({})", cause.word())).unwrap_or_default();
            format!("this template was rolled back{at}{cause}")
        }
    }
}

/// The words of Kubernetes, of the record or of whoever wrote the freeze, on one line.
fn quote(change: &Change<'_>, refusal: &Refusal<'_>) -> Option<String> {
    if let Some(freeze) = &refusal.freeze {
        return (!freeze.reason.is_empty()).then(|| format!("Reason given: {}", plain(freeze.reason, 256)));
    }
    if let Some(bad) = &refusal.bad {
        // The Deployment itself is well again: what Kubernetes says of it is not about this template.
        return (!bad.message.is_empty()).then(|| format!("What was wrong: {}", plain(bad.message, QUOTE)));
    }
    let failing = |c: &&Condition<'_>| c.status == "False";
    let failure = change.old.replica_failure.as_ref().filter(|c| c.status == "True");
    let said = change.old.progressing.as_ref().filter(failing).or(failure)?;
    (!said.message.is_empty()).then(|| format!("Kubernetes says: {}", plain(&said.message, QUOTE)))
}

fn fix(change: &Change<'_>, refusal: &Refusal<'_>) -> String {
    let (namespace, name) = (plain(change.namespace, 63), plain(change.name, 253));
    let generation = change.old.generation;
    match refusal.reason {
        Reason::Unobserved => format!(
            "remove what keeps generation {generation} from being observed (kubectl -n {namespace} describe deployment {name}); if Kubernetes has stopped trying, a new annotation makes it look again. Then push again."
        ),
        Reason::Failed => format!(
            "make generation {generation} complete (kubectl -n {namespace} describe deployment {name}), then push again; or push the correction with an override."
        ),
        Reason::Progressing => format!(
            "wait until generation {generation} is complete (kubectl -n {namespace} rollout status deployment {name}), then push again."
        ),
        Reason::Quarantined => {
            let until = refusal.bad.and_then(|bad| bad.until);
            let until = until.map(|t| format!("; this one is refused until {t:.0}")).unwrap_or_default();
            format!("push a corrected template{until}. A template that was good always goes through.")
        }
        Reason::Frozen => match &refusal.freeze {
            Some(freeze) => format!("push again after {:.0}.", freeze.until),
            None => "push again after the freeze.".to_owned(),
        },
    }
}

fn causes(change: &Change<'_>, refusal: &Refusal<'_>, policy: &str) -> Vec<(&'static str, String)> {
    let old = &change.old;
    let mut causes = vec![
        ("Reason", format!("{} {}", refusal.reason.id(), refusal.reason.word())),
        ("Policy", policy.to_owned()),
        ("Generation", old.generation.to_string()),
        ("ObservedGeneration", old.observed_generation.to_string()),
    ];
    if let Some(bad) = &refusal.bad {
        let time = |t: Timestamp| format!("{t:.0}");
        causes.extend(bad.cause.map(|cause| ("Cause", cause.word().to_owned())));
        causes.extend((!bad.message.is_empty()).then(|| ("CauseMessage", plain(bad.message, QUOTE))));
        causes.extend(bad.revision.map(|revision| ("Revision", revision.to_string())));
        causes.extend(bad.since.map(|since| ("RolledBackAt", time(since))));
        causes.extend(bad.until.map(|until| ("Until", time(until))));
        return causes;
    }
    if let Some(condition) = old.progressing.as_ref().filter(|c| c.status == "False") {
        causes.push(("KubernetesReason", plain(&condition.reason, 128)));
        causes.push(("KubernetesMessage", plain(&condition.message, QUOTE)));
    }
    if let Some(freeze) = &refusal.freeze {
        causes.push(("Freeze", freeze.name.to_owned()));
        causes.push(("Until", format!("{:.0}", freeze.until)));
    }
    causes
}

/// Returns `text` on one line with at most `most` characters: control and direction characters are escaped,
/// as they could forge lines of a log or hide what is there.
pub fn plain(text: &str, most: usize) -> String {
    let mut out = String::with_capacity(text.len().min(most) + 8);
    let mut count = 0;
    for c in text.chars() {
        let steers = matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}');
        let width = if c.is_control() || steers { c.escape_default().len() } else { 1 };
        if count + width > most.saturating_sub(1) {
            out.push('…');
            return out;
        }
        if width == 1 {
            out.push(c);
        } else {
            out.extend(c.escape_default());
        }
        count += width;
    }
    out
}

/// Cuts the middle out of `text` where it is longer than `most` characters.
pub fn shorten(text: &str, most: usize) -> String {
    let count = text.chars().count();
    if count <= most {
        return text.to_owned();
    }
    let keep = most.saturating_sub(1);
    let head = keep / 2;
    let tail = keep - head;
    text.chars().take(head).chain(['…']).chain(text.chars().skip(count - tail)).collect()
}

/// Returns `text` without the words by which Flux's kustomize-controller tells an error that it answers by
/// deleting and recreating the object: `is\simmutable` and `immutable\sfield`, also where they are quoted.
pub fn harmless(text: &str) -> String {
    const PAIRS: [(&str, &str); 2] = [("is", "immutable"), ("immutable", "field")];
    let ends = |head: &str, word: &str| {
        head.len() >= word.len()
            && head.as_bytes()[head.len() - word.len()..].eq_ignore_ascii_case(word.as_bytes())
    };
    let starts = |tail: &str, word: &str| {
        tail.len() >= word.len() && tail.as_bytes()[..word.len()].eq_ignore_ascii_case(word.as_bytes())
    };
    let mut out = String::with_capacity(text.len());
    for (at, c) in text.char_indices() {
        let (head, tail) = (&text[..at], &text[at + c.len_utf8()..]);
        let harmful =
            c.is_whitespace() && PAIRS.iter().any(|(left, right)| ends(head, left) && starts(tail, right));
        out.push(if harmful { '-' } else { c });
    }
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        api::policy::CauseType,
        core::{
            admission::{Refused, Verdict, decide},
            ledger::{Bad, Recorded},
            policy::{OpenFreeze, compile},
            rollout::Snapshot,
        },
    };

    fn at(text: &str) -> Timestamp {
        text.parse().expect("time")
    }

    fn change<'a>(name: &'a str, message: &'a str) -> Change<'a> {
        Change {
            namespace: "shop",
            name,
            old: Snapshot {
                generation: 7,
                observed_generation: 6,
                desired: 2,
                replicas: 3,
                updated: 1,
                available: 2,
                progressing: Some(Condition {
                    status: "False".into(),
                    reason: "ReplicaSetCreateError".into(),
                    message: message.into(),
                    updated_at: Some(at("2026-11-23T17:16:39Z")),
                }),
                written_at: Some(at("2026-11-23T17:16:38Z")),
                ..Snapshot::default()
            },
            new_generation: 8,
            template_changed: true,
            dry_run: false,
            by_guard: false,
        }
    }

    const QUOTA: &str = r#"Failed to create new replica set "web-6fff4b7674": replicasets.apps "web-6fff4b7674" is forbidden: exceeded quota: one-replicaset"#;

    fn words(change: &Change<'_>, spec: serde_json::Value) -> Message {
        let policy = compile("default", 1, &serde_json::from_value(spec).expect("spec")).expect("valid");
        match decide(change, Some(&policy), || Recorded::Nothing, at("2026-11-23T18:00:00Z")) {
            Verdict::Refuse(r) => refusal(change, &r, &policy.name, DOCS),
            Verdict::Allow(why) => panic!("allowed: {why:?}"),
        }
    }

    #[test]
    fn unobserved_in_words() {
        insta::assert_snapshot!(words(&change("web", QUOTA), serde_json::json!({})).text);
    }

    #[test]
    fn failed_in_words() {
        let mut change = change("web", "ReplicaSet \"web-6fff4b7674\" has timed out progressing.");
        change.old.observed_generation = 7;
        if let Some(condition) = &mut change.old.progressing {
            condition.reason = "ProgressDeadlineExceeded".into();
        }
        let message = words(&change, serde_json::json!({}));
        insta::assert_snapshot!(message.text);
        insta::assert_debug_snapshot!(message.causes);
    }

    #[test]
    fn progressing_in_words() {
        let mut change = change("web", "");
        change.old = Snapshot { observed_generation: 7, progressing: None, ..change.old };
        let spec = serde_json::json!({"admission": {"progressing": "Wait"}});
        insta::assert_snapshot!(words(&change, spec).text);
    }

    #[test]
    fn frozen_in_words() {
        let spec = serde_json::json!({"freezes": [
            {"name": "weekend", "schedule": "0 18 * * MON", "duration": "62h", "reason": "no pushes at the weekend"}
        ]});
        insta::assert_snapshot!(words(&change("web", ""), spec).text);
    }

    fn quarantined(message: &str) -> Message {
        let bad = Bad {
            since: Some(at("2026-11-23T17:16:39Z")),
            until: Some(at("2026-12-23T17:16:39Z")),
            cause: Some(CauseType::Image),
            revision: Some(7),
            message,
        };
        let change = change("web", QUOTA);
        let policy = compile("default", 1, &serde_json::from_value(serde_json::json!({})).expect("spec"));
        let policy = policy.expect("valid");
        match decide(&change, Some(&policy), || Recorded::Bad(bad), at("2026-11-23T18:00:00Z")) {
            Verdict::Refuse(r) => refusal(&change, &r, &policy.name, DOCS),
            Verdict::Allow(why) => panic!("allowed: {why:?}"),
        }
    }

    #[test]
    fn quarantined_in_words() {
        let message = quarantined(r#"container web: image "localhost/web:1.4.2" is not found"#);
        insta::assert_snapshot!(message.text);
        insta::assert_debug_snapshot!(message.causes);
        assert_eq!(quarantined("").text.lines().count(), message.text.lines().count() - 1);
    }

    #[test]
    fn fault_10_what_the_record_says_is_bounded_and_escaped_and_fault_52_harmless() {
        let nasty = format!("field is immutable\nRG000 forged\u{1b}[31m{}", "x".repeat(64 * 1024));
        let message = quarantined(&nasty);
        assert!(message.text.len() < 2048, "{}", message.text.len());
        assert_eq!(message.text.lines().count(), 5, "{}", message.text);
        assert!(!message.text.contains('\u{1b}') && !message.text.contains("is immutable"));
        assert!(message.causes.iter().all(|(_, value)| !value.contains("is immutable")));
    }

    #[test]
    fn a_refused_override_says_why() {
        let mut message = words(&change("web", QUOTA), serde_json::json!({}));
        override_refused(&mut message, OverrideRefused::NoRight { user: "ci\nbot", policy: "default" });
        insta::assert_snapshot!(message.text);
    }

    #[test]
    fn fault_52_the_words_that_make_flux_recreate_are_broken_up() {
        for text in ["field is immutable", "an Immutable\tField", "IS\nIMMUTABLE FIELD", "is immutable field"]
        {
            let lower = harmless(text).to_lowercase();
            assert!(!lower.contains("is immutable") && !lower.contains("immutable field"), "{lower}");
            assert_eq!(
                lower.split_whitespace().count(),
                text.split_whitespace().count() - lower.matches('-').count()
            );
        }
        let text = words(&change("web", "spec.selector: field is immutable"), serde_json::json!({})).text;
        assert!(text.contains("field is-immutable"), "{text}");
    }

    #[test]
    fn fault_10_control_characters_are_escaped_and_length_is_bounded() {
        let nasty = format!("a\nRG000 forged\u{1b}[31m\u{202e}{}", "x".repeat(256 * 1024));
        let message = words(&change("web", &nasty), serde_json::json!({}));
        assert!(message.text.len() < 2048, "{}", message.text.len());
        assert_eq!(message.text.lines().count(), 5, "{}", message.text);
        assert!(!message.text.contains('\u{1b}') && !message.text.contains('\u{202e}'));
    }

    proptest! {
        #[test]
        fn the_first_line_keeps_its_bounds_whatever_the_names(
            namespace in ".{0,300}", name in ".{0,300}", reason in ".{0,80}", freeze in ".{0,80}",
            generation in 1_i64.., which in 0..5_usize,
        ) {
            let reasons =
                [Reason::Unobserved, Reason::Failed, Reason::Progressing, Reason::Quarantined, Reason::Frozen];
            let mut change = change(&name, "");
            change.namespace = &namespace;
            change.old.generation = generation;
            change.old.progressing =
                Some(Condition { status: "False".into(), reason: reason.as_str().into(), updated_at: Some(Timestamp::MAX), ..Condition::default() });
            let bad = Bad {
                since: Some(Timestamp::MAX), until: Some(Timestamp::MAX), cause: Some(CauseType::ReplicaSetCreate),
                revision: Some(generation), message: &reason,
            };
            let open = OpenFreeze { name: &freeze, reason: &reason, since: Timestamp::MIN, until: Timestamp::MAX };
            let refused = Refusal {
                reason: reasons[which], refused: Refused::Deny, freeze: Some(open), bad: Some(bad),
            };
            let message = refusal(&change, &refused, "default", DOCS);
            prop_assert!(message.first_line().chars().count() <= FIRST_LINE, "{}", message.first_line());
            prop_assert!(message.first_line().starts_with("RG00"));
        }

        #[test]
        fn plain_text_is_one_bounded_line(text in any::<String>(), most in 1_usize..200) {
            let plain = plain(&text, most);
            prop_assert!(plain.chars().count() <= most);
            prop_assert!(!plain.chars().any(char::is_control));
        }

        #[test]
        fn no_text_is_harmful(words in prop::collection::vec(prop_oneof![Just("is"), Just("immutable"), Just("field"), Just("a")], 0..20), gap in "[ \n\t]") {
            let text = harmless(&words.join(&gap)).to_lowercase();
            let (is, field) = (format!("is{gap}immutable"), format!("immutable{gap}field"));
            prop_assert!(!text.contains(&is) && !text.contains(&field), "{}", text);
        }
    }
}
