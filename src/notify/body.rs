//! What is sent: the JSON of a webhook and its signature, the message for Slack.

use std::fmt::Write as _;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, header};
use jiff::Timestamp;
use ring::hmac;
use serde::Serialize;
use serde_json::{Value, json};

use super::config::{Receiver, Sort};
use crate::core::notification::{Notification, Severity};

/// The version of the JSON: another one when a field goes or means something else.
const VERSION: &str = "1";

/// Slack takes 3,000 characters in a text block.
const SLACK_TEXT: usize = 2900;

/// Evidence for Slack: the rest of the block is its frame.
const SLACK_LINES: usize = 12;

const ID: HeaderName = HeaderName::from_static("x-rollout-guard-id");
const TIMESTAMP: HeaderName = HeaderName::from_static("x-rollout-guard-timestamp");
const SIGNATURE: HeaderName = HeaderName::from_static("x-rollout-guard-signature");

/// The body of a webhook.
#[derive(Serialize)]
struct Webhook<'a> {
    version: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    cluster: Option<&'a str>,
    #[serde(flatten)]
    notification: &'a Notification,
}

/// Returns the body for a receiver that is told one thing at a time: JSON, of less than 20 KB.
///
/// # Errors
/// Never in practice: everything in it can be JSON.
pub fn body(receiver: &Receiver, notification: &Notification) -> Result<Bytes, serde_json::Error> {
    let cluster = receiver.cluster.as_deref();
    let json = match receiver.sort {
        Sort::Slack => serde_json::to_vec(&slack(notification, cluster, receiver.external_url.as_deref())),
        Sort::Webhook | Sort::Alertmanager => {
            serde_json::to_vec(&Webhook { version: VERSION, cluster, notification })
        }
    };
    json.map(Bytes::from)
}

/// Returns the headers of one attempt: `now` is signed too, so that a call cannot be repeated for ever.
pub fn headers(receiver: &Receiver, id: Option<&str>, body: &[u8], now: Timestamp) -> HeaderMap {
    const AGENT: &str = concat!("rollout-guard/", env!("CARGO_PKG_VERSION"));
    let mut headers = HeaderMap::new();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(header::USER_AGENT, HeaderValue::from_static(AGENT));
    headers.extend(receiver.headers.iter().cloned());
    if receiver.sort != Sort::Webhook {
        return headers;
    }
    let timestamp = now.as_second().to_string();
    let mut insert = |name, text: &str| {
        // What we write ourselves is ASCII.
        if let Ok(value) = HeaderValue::from_str(text) {
            headers.insert(name, value);
        }
    };
    insert(ID, id.unwrap_or_default());
    insert(TIMESTAMP, &timestamp);
    if let Some(secret) = &receiver.secret {
        insert(SIGNATURE, &signature(secret.reveal().as_bytes(), &timestamp, body));
    }
    headers
}

/// HMAC-SHA256 over `<timestamp>.<body>`.
fn signature(secret: &[u8], timestamp: &str, body: &[u8]) -> String {
    let mut context = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, secret));
    context.update(timestamp.as_bytes());
    context.update(b".");
    context.update(body);
    context.sign().as_ref().iter().fold("sha256=".to_owned(), |mut hex, byte| {
        // Writing to a String does not fail.
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

/// Returns the message for an incoming webhook of Slack.
fn slack(told: &Notification, cluster: Option<&str>, link: Option<&str>) -> Value {
    let about = told.deployment.as_ref().map(|about| format!("{}/{}", about.namespace, about.name));
    let title = match &about {
        Some(about) => format!("{}: {about}", told.kind.title()),
        None => told.kind.title().to_owned(),
    };
    let color = match told.severity {
        Severity::Info => "#2eb67d",
        Severity::Warning => "#ecb22e",
        Severity::Critical => "#e01e5a",
    };
    let mut blocks = vec![section(&format!("*{}*\n{}", escaped(&title, 600), escaped(&told.message, 2000)))];
    if let Some(cause) = &told.cause {
        let lines = cause.evidence.iter().take(SLACK_LINES).map(String::as_str);
        let evidence = lines.collect::<Vec<_>>().join("\n").replace('`', "'");
        if !evidence.is_empty() {
            blocks.push(section(&format!("```{}```", escaped(&evidence, SLACK_TEXT))));
        }
    }
    let mut context: Vec<String> = Vec::new();
    context.extend(cluster.map(|cluster| format!("cluster {}", escaped(cluster, 300))));
    if let (Some(about), Some(cause)) = (&told.deployment, &told.cause) {
        context.push(format!("generation {}, cause {}", about.generation, cause.kind.word()));
    }
    context.push(told.time.strftime("%Y-%m-%d %H:%M:%S UTC").to_string());
    // Signs that end an address in Slack's markup would be taken for markup.
    context.extend(link.filter(|link| !link.contains(['|', '>', '<'])).map(|link| format!("<{link}|more>")));
    blocks.push(json!({
        "type": "context",
        "elements": [{"type": "mrkdwn", "text": context.join("  ·  ")}],
    }));
    json!({
        "text": escaped(&title, SLACK_TEXT),
        "attachments": [{"color": color, "fallback": escaped(&title, SLACK_TEXT), "blocks": blocks}],
    })
}

fn section(text: &str) -> Value {
    json!({"type": "section", "text": {"type": "mrkdwn", "text": text}})
}

/// Text without Slack's control characters, so that nobody is called by `<!channel>`: at most `most` characters, and
/// never half of one that is written out.
fn escaped(text: &str, most: usize) -> String {
    let mut out = String::with_capacity(text.len().min(most));
    let mut count = 0;
    for c in text.chars() {
        let mut raw = [0; 4];
        let piece: &str = match c {
            '&' => "&amp;",
            '<' => "&lt;",
            '>' => "&gt;",
            _ => c.encode_utf8(&mut raw),
        };
        let width = piece.chars().count();
        if count + width > most.saturating_sub(1) {
            out.push('…');
            break;
        }
        count += width;
        out.push_str(piece);
    }
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        api::policy::CauseType,
        core::notification::{Kind, Reason, Subject},
    };

    fn stuck() -> Notification {
        let now = "2026-11-24T08:00:00Z".parse().expect("a time");
        Notification {
            kind: Kind::Stuck,
            severity: Severity::Warning,
            message: "generation 8 is stuck: Image: <!channel> & `web` is not found".to_owned(),
            deployment: Some(Subject {
                namespace: "shop".to_owned(),
                name: "web".to_owned(),
                uid: "uid-1".to_owned(),
                generation: 8,
            }),
            cause: Some(Reason {
                kind: CauseType::Image,
                message: "not found".to_owned(),
                evidence: vec!["pod web-1: ```ErrImagePull``` <!here>".to_owned()],
            }),
            ..Notification::test(now)
        }
    }

    #[test]
    fn a_message_for_slack_calls_nobody_and_keeps_its_limits() {
        let told = stuck();
        let message = slack(&told, Some("prod <eu>"), Some("https://grafana.example.com/d/1"));
        insta::assert_json_snapshot!(message);
        let nasty = "<&>`".repeat(5000);
        let long = Notification {
            message: nasty.clone(),
            cause: told.cause.map(|cause| Reason { evidence: vec![nasty.clone(); 30], ..cause }),
            ..told
        };
        let message = slack(&long, Some(&nasty), None);
        let blocks = message["attachments"][0]["blocks"].as_array().expect("blocks");
        let texts = blocks.iter().filter_map(|block| block["text"]["text"].as_str());
        assert!(texts.clone().count() == 2 && texts.clone().all(|text| text.chars().count() <= 3000));
    }

    #[test]
    fn the_signature_is_that_of_the_documentation() {
        let signed = signature(b"s3cret", "1795420800", br#"{"version":"1"}"#);
        assert_eq!(signed.len(), "sha256=".len() + 64);
        assert_eq!(signed, signature(b"s3cret", "1795420800", br#"{"version":"1"}"#));
        assert_ne!(signed, signature(b"s3cret", "1795420801", br#"{"version":"1"}"#));
        assert_ne!(signed, signature(b"other", "1795420800", br#"{"version":"1"}"#));
    }

    proptest! {
        #[test]
        fn escaped_text_is_bounded_and_holds_no_markup(text in any::<String>(), most in 1_usize..100) {
            let out = escaped(&text, most);
            prop_assert!(out.chars().count() <= most);
            prop_assert!(!out.contains('<') && !out.contains('>'));
            let whole = out.replace("&amp;", "").replace("&lt;", "").replace("&gt;", "");
            prop_assert!(!whole.contains('&'), "{}", out);
        }
    }
}
