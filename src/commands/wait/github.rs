//! The words of GitHub Actions: annotations, groups and the step summary.
//!
//! Workflow commands are lines of the log that begin with `::`, and `##[` anywhere in one (`ActionCommand.cs` of the
//! runner). Texts from the cluster must make none.

use std::fmt::Write as _;

use jiff::Timestamp;

use crate::{
    commands::output::age,
    core::waiting::{Decided, End},
};

/// The most bytes of a step summary: GitHub takes 1 MiB of a step, and drops all of it where it is more.
const LONGEST_SUMMARY: usize = 900 * 1024;

/// Returns the annotation that tells how it ended: an error, a warning, or a notice.
pub fn annotation(decided: &Decided) -> String {
    let (level, title) = match decided.end {
        End::Complete => ("notice", "is complete"),
        End::Superseded => ("warning", "was superseded"),
        End::Failed => ("error", "failed"),
        End::RolledBack => ("error", "was rolled back"),
        End::Error => ("error", "cannot be judged"),
        End::TimedOut => ("error", "is not complete in time"),
    };
    let title = property(&format!("deployment/{} {title}", decided.key.name));
    let mut text = decided.message.clone();
    for line in &decided.evidence {
        let _ = write!(text, "\n- {line}");
    }
    if let Some(next) = &decided.next {
        let _ = write!(text, "\nNext: {next}");
    }
    format!("::{level} title={title}::{}\n", data(&text))
}

/// Returns lines that can be opened and shut under `title`.
pub(super) fn group(title: &str, lines: &[String]) -> String {
    let mut out = format!("::group::{}\n", data(title));
    for line in lines {
        let _ = writeln!(out, "- {}", harmless(line));
    }
    out + "::endgroup::\n"
}

/// Returns a text that makes no command: of a line that begins with something else.
pub(super) fn harmless(text: &str) -> String {
    text.replace("##[", "## [")
}

/// Returns the summary of a step, in Markdown.
pub fn step_summary(ends: &[Decided], started: Timestamp, now: Timestamp) -> String {
    let mut out = String::from("### Rollouts\n\n| Deployment | End | Revision | Generation | Why |\n");
    out += "| --- | --- | --- | --- | --- |\n";
    let number = |number: Option<i64>| number.map_or_else(|| "-".to_owned(), |n| n.to_string());
    for decided in ends {
        let sign = match decided.end {
            End::Complete => "✅",
            End::Superseded => "⏭️",
            End::RolledBack => "↩️",
            End::Failed | End::Error | End::TimedOut => "❌",
        };
        let _ = writeln!(
            out,
            "| {} | {sign} {} | {} | {} | {} |",
            markdown(&decided.key.to_string()),
            decided.end.word(),
            number(decided.revision),
            number(decided.generation),
            markdown(&decided.message),
        );
    }
    let _ = writeln!(out, "\nWaited {}.", age(now.duration_since(started)));
    for decided in ends.iter().filter(|decided| !decided.evidence.is_empty()) {
        let mut part =
            format!("\n<details><summary>Evidence of {}</summary>\n\n<pre>", html(&decided.key.to_string()));
        for line in &decided.evidence {
            let _ = writeln!(part, "{}", html(line));
        }
        if let Some(next) = &decided.next {
            let _ = writeln!(part, "\nNext: {}", html(next));
        }
        part += "</pre>\n</details>\n";
        if out.len() + part.len() > LONGEST_SUMMARY {
            out += "\nMore evidence is in the log.\n";
            break;
        }
        out += &part;
    }
    out
}

/// The value of a command (`escapeData` of `@actions/core`).
fn data(text: &str) -> String {
    harmless(text).replace('%', "%25").replace('\r', "%0D").replace('\n', "%0A")
}

/// A property of a command (`escapeProperty` of `@actions/core`).
fn property(text: &str) -> String {
    data(text).replace(':', "%3A").replace(',', "%2C")
}

/// Text that is neither HTML nor a link or a cell of a table.
fn markdown(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in html(text).chars() {
        if matches!(c, '\\' | '`' | '*' | '_' | '[' | ']' | '|' | '~' | '@' | '#') && !out.ends_with('&') {
            out.push('\\');
        }
        out.push(c);
    }
    out
}

fn html(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
