//! What is shown while it is waited, and at the end, in each format.

use std::{collections::BTreeMap, fmt::Write as _, fs::OpenOptions, io::Write as _, path::PathBuf};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use jiff::Timestamp;

use super::{
    Format,
    follow::{News, What},
    github, gitlab,
    lines::Line,
    show,
};
use crate::{
    commands::output::{Screen, Tone, age},
    core::{
        key::Key,
        waiting::{Decided, End, Position, worst},
    },
};

/// Tells what is waited for in one format. Everything is text, so that it can be looked at.
#[derive(Clone, Debug)]
pub struct Report {
    format: Format,
    screen: Screen,
    quiet: bool,
    started: Timestamp,
}

impl Report {
    /// Returns a report that begins at `started`. GitLab's log shows colour although it is no terminal.
    pub const fn new(format: Format, screen: Screen, quiet: bool, started: Timestamp) -> Self {
        Self { format, screen, quiet, started }
    }

    /// Returns the line for something that changed; empty where it is not told.
    pub fn news(&self, news: &News) -> String {
        if self.quiet {
            return String::new();
        }
        if self.format == Format::JsonLines {
            return Line::of_news(news).text();
        }
        let elapsed = age(news.at.duration_since(self.started));
        let (text, tone) = match &news.what {
            What::Changed(position) => (position.to_string(), tone_of(position)),
            What::Note(note) => (format!("note: {note}"), Tone::Dim),
        };
        let text = if self.format == Format::Github { github::harmless(&text) } else { text };
        format!("{elapsed:>6}  deployment/{}: {}\n", news.key.name, self.screen.paint(&text, tone))
    }

    /// Returns what is shown when a Deployment has come to its end.
    pub fn decided(&self, decided: &Decided, now: Timestamp) -> String {
        let name = &decided.key.name;
        match self.format {
            Format::JsonLines => Line::of_end(decided, now).text(),
            Format::Github => {
                let mut out = github::annotation(decided);
                if !decided.evidence.is_empty() {
                    out += &github::group(&format!("Evidence of deployment/{name}"), &decided.evidence);
                }
                out
            }
            Format::Gitlab => {
                let mut out = self.headline(decided);
                if !decided.evidence.is_empty() {
                    let (section, header) =
                        (format!("rollout_evidence_{name}"), format!("Evidence of deployment/{name}"));
                    out += &gitlab::section(&section, &header, &decided.evidence, now);
                }
                out + &next(decided)
            }
            Format::Text => {
                let mut out = self.headline(decided);
                for line in &decided.evidence {
                    let _ = writeln!(out, "  - {line}");
                }
                out + &next(decided)
            }
        }
    }

    /// Returns what is shown when all have.
    pub fn result(&self, ends: &[Decided], now: Timestamp) -> String {
        let worst = worst(ends.iter().map(|decided| decided.end)).unwrap_or(End::Complete);
        match self.format {
            Format::JsonLines => Line::of_all(worst, ends, self.started, now).text(),
            _ if ends.len() < 2 => String::new(),
            _ => {
                let complete = ends.iter().filter(|decided| decided.end == End::Complete).count();
                let took = age(now.duration_since(self.started));
                format!("{complete} of {} complete after {took}\n", ends.len())
            }
        }
    }

    fn headline(&self, decided: &Decided) -> String {
        let tone = match decided.end {
            End::Complete => Tone::Good,
            End::Superseded => Tone::Warn,
            End::Error | End::Failed | End::RolledBack | End::TimedOut => Tone::Bad,
        };
        format!("deployment/{}: {}\n", decided.key.name, self.screen.paint(&decided.message, tone))
    }
}

fn next(decided: &Decided) -> String {
    decided.next.as_ref().map(|next| format!("  next: {next}\n")).unwrap_or_default()
}

fn tone_of(position: &Position) -> Tone {
    match (&position.cause, &position.guard) {
        (None, None) => Tone::Plain,
        _ => Tone::Warn,
    }
}

/// Shows a [`Report`]: on a terminal with a bar for each Deployment, else line by line.
#[derive(Debug)]
pub struct Reporter {
    report: Report,
    bars: Option<MultiProgress>,
    by_key: BTreeMap<Key, ProgressBar>,
    summary: Option<PathBuf>,
}

impl Reporter {
    /// Returns what shows a report. `variables` are those of the environment.
    pub fn new<V: Iterator<Item = (String, String)>>(
        format: Format,
        mut screen: Screen,
        quiet: bool,
        started: Timestamp,
        variables: impl FnOnce() -> V,
    ) -> Self {
        let variables: BTreeMap<String, String> = variables()
            .filter(|(name, _)| matches!(name.as_str(), "GITHUB_STEP_SUMMARY" | "NO_COLOR"))
            .collect();
        let set = |name: &str| variables.get(name).filter(|value| !value.is_empty());
        match format {
            Format::Gitlab => screen.colour = set("NO_COLOR").is_none(),
            Format::Github | Format::JsonLines => screen.colour = false,
            Format::Text => {}
        }
        let summary = set("GITHUB_STEP_SUMMARY").filter(|_| format == Format::Github).map(PathBuf::from);
        let bars = (format == Format::Text && screen.terminal && !quiet)
            .then(|| MultiProgress::with_draw_target(ProgressDrawTarget::stdout()));
        Self { report: Report::new(format, screen, quiet, started), bars, by_key: BTreeMap::new(), summary }
    }

    /// Shows something that changed.
    pub fn news(&mut self, news: &News) {
        let Some(bars) = &self.bars else { return show(&self.report.news(news)) };
        let bar = self.by_key.entry(news.key.clone()).or_insert_with(|| bars.add(bar(&news.key)));
        match &news.what {
            What::Note(_) => {
                let line = self.report.news(news);
                bars.suspend(|| show(&line));
            }
            What::Changed(position) => {
                bar.set_length(u64::try_from(position.desired).unwrap_or_default());
                let ready = position.available.min(position.updated);
                bar.set_position(u64::try_from(ready).unwrap_or_default());
                bar.set_message(position.to_string());
            }
        }
    }

    /// Shows that a Deployment has come to its end.
    pub fn decided(&mut self, decided: &Decided, now: Timestamp) {
        if let Some(bar) = self.by_key.remove(&decided.key) {
            bar.finish_and_clear();
        }
        let text = self.report.decided(decided, now);
        match &self.bars {
            Some(bars) => bars.suspend(|| show(&text)),
            None => show(&text),
        }
    }

    /// Shows that all have, and writes the summary of the step where one is wanted.
    pub fn result(&mut self, ends: &[Decided], now: Timestamp) {
        show(&self.report.result(ends, now));
        let Some(path) = &self.summary else { return };
        let text = github::step_summary(ends, self.report.started, now);
        let file = OpenOptions::new().append(true).create(true).open(path);
        if let Err(error) = file.and_then(|mut file| file.write_all(text.as_bytes())) {
            eprintln!("rollout-guard: the step summary could not be written: {error}");
        }
    }
}

fn bar(key: &Key) -> ProgressBar {
    // A template that cannot be read would be a fault of this line: the plain one does as well.
    let style = ProgressStyle::with_template("{spinner} {prefix} {bar:16} {elapsed} {wide_msg}")
        .unwrap_or_else(|_| ProgressStyle::default_bar());
    let bar = ProgressBar::new(0).with_style(style).with_prefix(format!("deployment/{}", key.name));
    bar.enable_steady_tick(std::time::Duration::from_millis(120));
    bar
}
