//! Standard output: whoever reads it may have seen enough.

use std::io::{self, Write};

use anyhow::Context;

/// Nobody reads standard output any more, as with `| head`: no error, the command ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("nobody reads standard output any more")]
pub struct Closed;

/// Says whether `error` is that nobody reads standard output any more.
pub fn is_closed(error: &anyhow::Error) -> bool {
    error.is::<Closed>()
}

/// A way to write to standard output.
#[derive(Clone, Copy, Debug, Default)]
pub struct Out;

impl Out {
    /// Writes `text` as it is, at once.
    ///
    /// # Errors
    /// [`Closed`] where nobody reads it; when it cannot be written.
    pub fn write(self, text: &str) -> anyhow::Result<()> {
        let mut stdout = io::stdout().lock();
        ended(stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()))
    }

    /// Writes `text` and a line break, at once.
    ///
    /// # Errors
    /// As [`Out::write`].
    pub fn line(self, text: &str) -> anyhow::Result<()> {
        self.write(&format!("{text}\n"))
    }

    /// Writes `value` as one line of JSON, at once.
    ///
    /// # Errors
    /// As [`Out::write`], and when it cannot be written as JSON.
    pub fn json_line(self, value: &impl serde::Serialize) -> anyhow::Result<()> {
        self.line(&serde_json::to_string(value)?)
    }
}

/// Writes `text` as a line to standard error, for people. One that cannot be written is in nobody's way.
pub fn note(text: &str) {
    let _ = writeln!(io::stderr().lock(), "rollout-guard: {text}");
}

fn ended(result: io::Result<()>) -> anyhow::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(Closed.into()),
        other => other.context("cannot write to standard output"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_that_left_is_told_from_a_disk_that_is_full() {
        let error = |kind: io::ErrorKind| ended(Err(kind.into())).expect_err("an error");
        assert!(is_closed(&error(io::ErrorKind::BrokenPipe)));
        assert!(is_closed(&error(io::ErrorKind::BrokenPipe).context("while listing")));
        assert!(!is_closed(&error(io::ErrorKind::StorageFull)));
    }
}
