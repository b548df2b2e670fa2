//! How commands speak: formats, colour, tables, times, and a standard output whose reader may leave.

mod line;
mod screen;
mod table;
mod words;
mod writer;

use clap::ValueEnum;
use jiff::{SignedDuration, Timestamp};
use serde::Serialize;

pub use line::{Line, wrapped};
pub use screen::{Screen, Tone, display_width};
pub use table::{Cell, Table};
pub use words::{cause_word, outcome_words, phase_tone, pod_tone, verdict_of, verdict_tone};
pub use writer::{Closed, Out, is_closed, note};

/// How a command prints what it found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum OutputFormat {
    /// For people.
    #[default]
    Table,
    /// For people, with more columns.
    Wide,
    /// For programs.
    Json,
    /// The same as YAML.
    Yaml,
    /// The names alone, as kubectl takes them.
    Name,
}

impl OutputFormat {
    /// Says whether it is for people.
    pub const fn is_for_people(self) -> bool {
        matches!(self, Self::Table | Self::Wide)
    }
}

/// Returns `value` as indented JSON, with a line break at its end.
///
/// # Errors
/// When it cannot be written as JSON.
pub fn json(value: &impl Serialize) -> anyhow::Result<String> {
    Ok(serde_json::to_string_pretty(value)? + "\n")
}

/// Returns `value` as YAML.
///
/// # Errors
/// When it cannot be written as YAML.
pub fn yaml(value: &impl Serialize) -> anyhow::Result<String> {
    Ok(serde_yaml_ng::to_string(value)?)
}

/// Returns a length of time as kubectl prints it: `5s`, `3m20s`, `2h`, `4d`, `3y10d`; nothing negative.
///
/// The steps are those of `HumanDuration` of k8s.io/apimachinery.
pub fn age(span: SignedDuration) -> String {
    let seconds = span.as_secs().max(0);
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    let and = |whole: i64, unit: char, rest: i64, smaller: char| match rest {
        0 => format!("{whole}{unit}"),
        rest => format!("{whole}{unit}{rest}{smaller}"),
    };
    match () {
        () if seconds < 120 => format!("{seconds}s"),
        () if minutes < 10 => and(minutes, 'm', seconds % 60, 's'),
        () if minutes < 180 => format!("{minutes}m"),
        () if hours < 8 => and(hours, 'h', minutes % 60, 'm'),
        () if hours < 48 => format!("{hours}h"),
        () if hours < 192 => and(days, 'd', hours % 24, 'h'),
        () if days < 730 => format!("{days}d"),
        () if days < 2920 => and(days / 365, 'y', days % 365, 'd'),
        () => format!("{}y", days / 365),
    }
}

/// Returns how long ago `time` was, as [`age`] prints it; `-` where it is not known.
pub fn ago(time: Option<Timestamp>, now: Timestamp) -> String {
    time.map_or_else(|| "-".to_owned(), |time| age(now.duration_since(time)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_age_is_as_kubectl_prints_it() {
        const MINUTE: i64 = 60;
        const HOUR: i64 = 60 * MINUTE;
        const DAY: i64 = 24 * HOUR;
        for (seconds, expected) in [
            (-3, "0s"),
            (0, "0s"),
            (5, "5s"),
            (119, "119s"),
            (120, "2m"),
            (200, "3m20s"),
            (10 * MINUTE + 5, "10m"),
            (179 * MINUTE, "179m"),
            (3 * HOUR, "3h"),
            (3 * HOUR + 5 * MINUTE, "3h5m"),
            (9 * HOUR + 5 * MINUTE, "9h"),
            (47 * HOUR, "47h"),
            (2 * DAY, "2d"),
            (2 * DAY + 3 * HOUR, "2d3h"),
            (8 * DAY + 3 * HOUR, "8d"),
            (729 * DAY, "729d"),
            (730 * DAY, "2y"),
            (3 * 365 * DAY + 10 * DAY, "3y10d"),
            (9 * 365 * DAY, "9y"),
        ] {
            assert_eq!(age(SignedDuration::from_secs(seconds)), expected, "{seconds}");
        }
    }
}
