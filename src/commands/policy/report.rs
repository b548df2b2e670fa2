//! A line for each update, and what they come to.

use std::{
    collections::{BTreeMap, HashMap},
    io::{self, Write},
};

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{
    Format, Only,
    log::Place,
    trial::{Judged, Row, Trial},
};
use crate::core::{
    message::plain,
    replay::{Event, History, Unknown},
};

/// How many namespaces and users are named.
const TOP: usize = 5;

/// The most namespaces and users that are counted one by one.
const MOST_COUNTED: usize = 10_000;

/// How many lines that cannot be read are named.
const NAMED: usize = 5;

/// The most characters of a text of one line.
const LONGEST: usize = 253;

/// What has been found so far.
pub(super) struct Report {
    format: Format,
    only: Only,
    lines: u64,
    first: Option<Timestamp>,
    last: Option<Timestamp>,
    updates: u64,
    verdicts: BTreeMap<&'static str, u64>,
    /// Why what is no new template of a guarded Deployment was let through.
    aside: BTreeMap<&'static str, u64>,
    unknown: BTreeMap<Unknown, u64>,
    reasons: BTreeMap<&'static str, u64>,
    namespaces: Counts,
    users: Counts,
    as_told: u64,
    not_as_told: u64,
    broken: u64,
    named: Vec<String>,
}

/// How often each of a bounded number of texts came.
#[derive(Default)]
struct Counts(HashMap<String, u64>);

impl Counts {
    fn count(&mut self, text: &str) {
        if let Some(count) = self.0.get_mut(text) {
            *count += 1;
        } else if self.0.len() < MOST_COUNTED {
            self.0.insert(text.to_owned(), 1);
        }
    }

    /// Returns the most frequent ones, equals by name.
    fn top(&self) -> Vec<(&str, u64)> {
        let mut all: Vec<_> = self.0.iter().map(|(text, count)| (text.as_str(), *count)).collect();
        all.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(b.0)));
        all.truncate(TOP);
        all
    }
}

/// One line of what is printed.
struct Said<'a> {
    verdict: &'static str,
    reason: &'static str,
    because: Option<&'static str>,
    policy: Option<&'a str>,
    message: String,
    /// Whether it changes the pod template of a guarded Deployment.
    judged: bool,
}

impl<'a> Said<'a> {
    fn of(row: &'a Row<'_>) -> Self {
        let aside = |verdict, because, message: &str| Self {
            verdict,
            reason: "none",
            because: Some(because),
            policy: None,
            message: message.to_owned(),
            judged: false,
        };
        match &row.judged {
            Judged::Own => aside("allow", "own-write", "written by the guard itself"),
            Judged::Unknown(why) => aside("unknown", why.label(), why.words()),
            Judged::Outcome(outcome) => {
                let because = outcome.allowed_because;
                let aside = ["not-guarded", "off", "same-generation", "same-template", "deleting"];
                Self {
                    verdict: outcome.verdict,
                    reason: outcome.reason,
                    because,
                    policy: outcome.policy.as_deref(),
                    message: match &outcome.message {
                        Some(message) => message.first_line().to_owned(),
                        None => because.unwrap_or_default().to_owned(),
                    },
                    judged: because.is_none_or(|because| !aside.contains(&because)),
                }
            }
        }
    }

    /// Says whether the table of decisions refuses it, whatever the policy's mode makes of that.
    fn is_refused(&self) -> bool {
        self.reason != "none"
    }
}

impl Report {
    pub fn new(format: Format, only: Only) -> Self {
        Self {
            format,
            only,
            lines: 0,
            first: None,
            last: None,
            updates: 0,
            verdicts: BTreeMap::new(),
            aside: BTreeMap::new(),
            unknown: BTreeMap::new(),
            reasons: BTreeMap::new(),
            namespaces: Counts::default(),
            users: Counts::default(),
            as_told: 0,
            not_as_told: 0,
            broken: 0,
            named: Vec::new(),
        }
    }

    /// Says whether an update would have been denied; `or_wait`: or told to wait.
    pub fn refused(&self, or_wait: bool) -> bool {
        self.verdicts.contains_key("deny") || or_wait && self.verdicts.contains_key("wait")
    }

    pub fn begin(&self, out: &mut impl Write) -> io::Result<()> {
        match self.format {
            Format::Table => {
                table_line(out, ["TIME", "VERDICT", "REASON", "CODE", "DEPLOYMENT", "USER", "WHY"])
            }
            Format::Json => Ok(()),
        }
    }

    /// Counts an event of any kind.
    pub fn event(&mut self, event: &Event<'_>) {
        self.lines += 1;
        let at = event.finished();
        self.first = Some(self.first.map_or(at, |first| first.min(at)));
        self.last = Some(self.last.map_or(at, |last| last.max(at)));
    }

    /// Counts a line that cannot be read.
    pub fn broken(&mut self, place: &Place, why: &str) {
        self.lines += 1;
        self.broken += 1;
        if self.named.len() < NAMED {
            self.named.push(format!("{}:{}: {}", place.file, place.line, plain(why, LONGEST)));
        }
    }

    /// Counts an update, and prints it where it is asked for.
    pub fn row(&mut self, out: &mut impl Write, row: &Row<'_>, place: &Place) -> io::Result<()> {
        let said = Said::of(row);
        self.count(row, &said);
        let wanted = match self.only {
            Only::Denied => said.is_refused(),
            Only::Judged => said.judged,
            Only::All => true,
        };
        match self.format {
            _ if !wanted => Ok(()),
            Format::Table => print_row(out, row, &said),
            Format::Json => writeln!(out, "{}", row_as_json(row, &said, place)),
        }
    }

    fn count(&mut self, row: &Row<'_>, said: &Said<'_>) {
        self.updates += 1;
        if let Judged::Unknown(why) = &row.judged {
            *self.unknown.entry(*why).or_default() += 1;
            return;
        }
        if !said.judged {
            *self.aside.entry(said.because.unwrap_or_default()).or_default() += 1;
            return;
        }
        *self.verdicts.entry(said.verdict).or_default() += 1;
        if said.is_refused() {
            *self.reasons.entry(said.reason).or_default() += 1;
            self.namespaces.count(&plain(&row.update.key.namespace, LONGEST));
            self.users.count(&plain(&row.update.user, LONGEST));
        }
        if let Some(told) = &row.update.told {
            if told.verdict == said.verdict && told.reason == said.reason {
                self.as_told += 1;
            } else {
                self.not_as_told += 1;
            }
        }
    }

    pub fn end(&self, out: &mut impl Write, history: &History, trial: &Trial) -> io::Result<()> {
        match self.format {
            Format::Table => self.print_summary(out, history, trial),
            Format::Json => writeln!(out, "{}", json!({"summary": self.summary(history, trial)})),
        }
    }

    fn judged(&self) -> u64 {
        self.verdicts.values().sum()
    }

    fn print_summary(&self, out: &mut impl Write, history: &History, trial: &Trial) -> io::Result<()> {
        let span = match (self.first, self.last) {
            (Some(first), Some(last)) => format!(", from {first:.0} to {last:.0}"),
            _ => String::new(),
        };
        writeln!(out, "\nlog          {} lines{span}", self.lines)?;
        let count = |because| self.aside.get(because).copied().unwrap_or_default();
        let unknown: u64 = self.unknown.values().sum();
        writeln!(
            out,
            "updates      {}: {} judged, {} with no new template, {} not guarded, {} by the guard itself, {unknown} could not be judged",
            self.updates,
            self.judged(),
            count("same-generation") + count("same-template") + count("deleting"),
            count("not-guarded") + count("off"),
            count("own-write"),
        )?;
        let of = |verdict| self.verdicts.get(verdict).copied().unwrap_or_default();
        if self.judged() > 0 {
            writeln!(
                out,
                "would be     {} denied, {} told to wait, {} allowed",
                of("deny"),
                of("wait"),
                of("allow")
            )?;
        }
        for (verdict, words) in [
            ("warn", "allowed with a warning (mode Warn)"),
            ("audit", "allowed and written down (mode Audit)"),
            ("override", "overridden, if the user may (verb override on the RolloutPolicy)"),
        ] {
            if of(verdict) > 0 {
                writeln!(out, "             {} {words}", of(verdict))?;
            }
        }
        let list = |counts: Vec<(&str, u64)>| {
            counts
                .iter()
                .map(|(text, count)| format!("{} {count}", plain(text, LONGEST)))
                .collect::<Vec<_>>()
                .join(", ")
        };
        if !self.reasons.is_empty() {
            let reasons = self.reasons.iter().map(|(reason, count)| (*reason, *count)).collect();
            writeln!(out, "reasons      {}", list(reasons))?;
            writeln!(out, "namespaces   {}", list(self.namespaces.top()))?;
            writeln!(out, "users        {}", list(self.users.top()))?;
        }
        for (at, (why, count)) in self.unknown.iter().enumerate() {
            let head = if at == 0 { "not judged" } else { "" };
            writeln!(out, "{head:<12} {count}: {}", why.words())?;
        }
        if self.broken > 0 {
            writeln!(out, "unreadable   {} lines, such as {}", self.broken, self.named.join("; "))?;
        }
        if self.as_told + self.not_as_told > 0 {
            writeln!(
                out,
                "the guard    was there: of {} verdicts in the log {} are the same here",
                self.as_told + self.not_as_told,
                self.as_told
            )?;
        }
        for note in self.notes(history, trial) {
            writeln!(out, "note         {note}")?;
        }
        Ok(())
    }

    /// Says what the numbers do not.
    fn notes(&self, history: &History, trial: &Trial) -> Vec<String> {
        let mut notes = Vec::new();
        if self.judged() > 0 {
            notes.push(
                "each update is judged by what was before it in the log: what an earlier refusal or a rollback would have changed is not played through"
                    .to_owned(),
            );
            notes.push("what was rolled back from (RG004) is not in an audit log".to_owned());
            if history.status_writes() == 0 {
                notes.push(
                    "no write of deployments/status is in the log: what was good before is not known, so a way back may be shown as refused"
                        .to_owned(),
                );
            }
        }
        if trial.assumed_namespaces() > 0 {
            notes.push(format!(
                "of {} namespaces the labels are not known but kubernetes.io/metadata.name (--namespace-labels tells them)",
                trial.assumed_namespaces()
            ));
        }
        if history.forgotten() > 0 {
            notes.push(format!(
                "{} times a Deployment was forgotten for want of room, so that its next update could not be judged",
                history.forgotten()
            ));
        }
        notes
    }

    fn summary(&self, history: &History, trial: &Trial) -> Value {
        let time = |time: Option<Timestamp>| time.map(|time| format!("{time:.0}"));
        let unknown: BTreeMap<&str, u64> =
            self.unknown.iter().map(|(why, count)| (why.label(), *count)).collect();
        let top = |counts: &Counts| -> Vec<Value> {
            counts.top().iter().map(|(name, count)| json!({"name": name, "count": count})).collect()
        };
        json!({
            "lines": self.lines,
            "from": time(self.first),
            "to": time(self.last),
            "updates": self.updates,
            "judged": self.judged(),
            "verdicts": self.verdicts,
            "reasons": self.reasons,
            "notJudged": unknown,
            "letBy": self.aside,
            "namespaces": top(&self.namespaces),
            "users": top(&self.users),
            "unreadableLines": self.broken,
            "unreadable": self.named,
            "asTheGuardSaid": self.as_told,
            "notAsTheGuardSaid": self.not_as_told,
            "notes": self.notes(history, trial),
        })
    }
}

/// Columns as wide as what is common; what is longer pushes the rest to the right, as lines come one by one.
fn table_line(
    out: &mut impl Write,
    [time, verdict, reason, code, deployment, user, why]: [&str; 7],
) -> io::Result<()> {
    let line = format!("{time:<20} {verdict:<8} {reason:<6} {code:<4} {deployment:<28} {user:<28} {why}");
    writeln!(out, "{}", line.trim_end())
}

fn print_row(out: &mut impl Write, row: &Row<'_>, said: &Said<'_>) -> io::Result<()> {
    let update = row.update;
    let code = update.code.map_or("-".to_owned(), |code| code.to_string());
    let reason = if said.is_refused() { said.reason } else { "-" };
    let dry_run = if update.dry_run { " (dry run)" } else { "" };
    table_line(
        out,
        [
            &format!("{:.0}", update.at),
            said.verdict,
            reason,
            &code,
            &plain(&update.key.to_string(), 320),
            &plain(&update.user, LONGEST),
            &format!("{}{dry_run}", said.message),
        ],
    )
}

fn row_as_json(row: &Row<'_>, said: &Said<'_>, place: &Place) -> Value {
    let update = row.update;
    json!({
        "time": update.at.to_string(),
        "verdict": said.verdict,
        "reason": said.reason,
        "because": said.because,
        "policy": said.policy,
        "namespace": update.key.namespace,
        "name": update.key.name,
        "user": update.user,
        "dryRun": update.dry_run,
        "code": update.code,
        "message": said.message,
        "guard": update.told.as_ref().map(|told| json!({"verdict": told.verdict, "reason": told.reason})),
        "file": &*place.file,
        "line": place.line,
    })
}
