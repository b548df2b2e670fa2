//! The words of GitLab CI: sections of the log that can be opened and shut.
//!
//! `\e[0Ksection_start:UNIX_TIME:NAME[collapsed=true]\r\e[0KHEADER`, and `section_end` with the same name.

use std::fmt::Write as _;

use jiff::Timestamp;

/// Returns `lines` in a section that is shut at first. `name` is made of what GitLab takes: letters, digits, `_.-`.
pub(super) fn section(name: &str, header: &str, lines: &[String], now: Timestamp) -> String {
    let name: String = name
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-') { c } else { '_' })
        .collect();
    let time = now.as_second();
    let mut out = format!("\u{1b}[0Ksection_start:{time}:{name}[collapsed=true]\r\u{1b}[0K{header}\n");
    for line in lines {
        let _ = writeln!(out, "- {line}");
    }
    let _ = write!(out, "\u{1b}[0Ksection_end:{time}:{name}\r\u{1b}[0K\n");
    out
}
