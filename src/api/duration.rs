//! Durations as Kubernetes writes them: `30s`, `10m`, `1h30m`.

use std::{borrow::Cow, fmt, str::FromStr, time::Duration as StdDuration};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

/// A length of time that is not negative, read and written as in Go: `1.5h`, `10m`, `1h30m`, `250ms`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Duration(StdDuration);

/// The text is not a duration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a duration such as 30s, 10m or 1h30m (units: h, m, s, ms)")]
pub struct DurationError(String);

/// What the schema and CEL accept; the same as [`Duration::from_str`].
const PATTERN: &str = r"^(0|([0-9]{1,9}(\\.[0-9]{1,9})?(ms|s|m|h))+)$";

/// The longest that is taken: longer ones are typing errors and would overflow a time.
const MAX: StdDuration = StdDuration::from_secs(10 * 366 * 24 * 3600);

impl Duration {
    /// Returns a duration of whole seconds.
    pub const fn from_secs(seconds: u64) -> Self {
        Self(StdDuration::from_secs(seconds))
    }

    /// Returns the standard library's form.
    pub const fn get(self) -> StdDuration {
        self.0
    }
}

impl FromStr for Duration {
    type Err = DurationError;

    fn from_str(text: &str) -> Result<Self, DurationError> {
        let fail = || DurationError(text.chars().take(40).collect());
        if text == "0" {
            return Ok(Self::default());
        }
        let mut rest = text;
        let mut seconds = 0.0_f64;
        while !rest.is_empty() {
            let end = rest.find(|c: char| !(c.is_ascii_digit() || c == '.')).ok_or_else(fail)?;
            let (number, tail) = rest.split_at(end);
            let unit_end = tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len());
            let (unit, tail) = tail.split_at(unit_end);
            let scale = match unit {
                "h" => 3600.0,
                "m" => 60.0,
                "s" => 1.0,
                "ms" => 0.001,
                _ => return Err(fail()),
            };
            let well_formed = number.starts_with(|c: char| c.is_ascii_digit())
                && number.ends_with(|c: char| c.is_ascii_digit());
            let value: f64 = number.parse().ok().filter(|_| well_formed).ok_or_else(fail)?;
            seconds += value * scale;
            rest = tail;
        }
        if text.is_empty() || seconds > MAX.as_secs_f64() {
            return Err(fail());
        }
        // Whole milliseconds: no unit below them is taken, and 0.1 + 0.2 is to be 0.3.
        Ok(Self(StdDuration::from_millis((seconds * 1000.0).round() as u64)))
    }
}

impl fmt::Display for Duration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let total = self.0.as_millis();
        if total == 0 {
            return f.write_str("0s");
        }
        let units = [(3_600_000, "h"), (60_000, "m"), (1000, "s"), (1, "ms")];
        let mut rest = total;
        for (size, unit) in units {
            if rest >= size {
                write!(f, "{}{unit}", rest / size)?;
                rest %= size;
            }
        }
        Ok(())
    }
}

impl Serialize for Duration {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Duration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Cow::<str>::deserialize(deserializer)?;
        text.parse().map_err(D::Error::custom)
    }
}

impl JsonSchema for Duration {
    fn schema_name() -> Cow<'static, str> {
        "Duration".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        // A rule instead of `pattern`, as the API server shows a rule's message and only a pattern's text.
        json_schema!({
            "type": "string",
            "maxLength": 32,
            "x-kubernetes-validations": [{
                "rule": format!("self.matches('{PATTERN}')"),
                "message": "must be a duration that is not negative, such as 30s, 10m or 1h30m (units: h, m, s, ms)",
            }],
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn kubernetes_durations_are_read_and_written() {
        for (text, millis, canonical) in [
            ("0", 0, "0s"),
            ("0s", 0, "0s"),
            ("10m", 600_000, "10m"),
            ("600s", 600_000, "10m"),
            ("1h30m", 5_400_000, "1h30m"),
            ("1.5h", 5_400_000, "1h30m"),
            ("62h", 223_200_000, "62h"),
            ("250ms", 250, "250ms"),
        ] {
            let parsed: Duration = text.parse().expect(text);
            assert_eq!(parsed.get().as_millis(), millis, "{text}");
            assert_eq!(parsed.to_string(), canonical, "{text}");
        }
    }

    #[test]
    fn what_is_no_duration_is_refused_and_quoted() {
        for text in ["", "10", "-5m", "5 m", "m", "1d", ".5h", "5.h", "1..5h", "999999999h", "5M", "1e3s"] {
            let error = text.parse::<Duration>().expect_err(text);
            assert!(error.to_string().contains(&format!("{text:?}")), "{error}");
        }
    }

    proptest! {
        #[test]
        fn writing_and_reading_gives_the_same(millis in 0_u64..1_000_000_000_000) {
            let duration = Duration(StdDuration::from_millis(millis.min(MAX.as_millis() as u64)));
            prop_assert_eq!(duration.to_string().parse::<Duration>(), Ok(duration));
        }

        #[test]
        fn no_text_panics(text in ".{0,40}") {
            let _ = text.parse::<Duration>();
        }
    }
}
