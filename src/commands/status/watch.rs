//! `status --watch`: redrawn in place on a terminal, a line for each change in a pipe.
//!
//! Two ways to know what has changed:
//!
//! - a list follows a watch of the Deployments and one of the records, and lists again where a watch breaks;
//! - by name a Deployment is looked at again when it changes, and every few seconds, as pods and records change without
//!   the Deployment saying so.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::Future,
    pin::pin,
    time::Duration,
};

use anyhow::bail;
use futures::{StreamExt, stream};
use jiff::Timestamp;
use serde_json::Value;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};

use super::{
    Rows, Shown,
    list::{Records, nothing, view},
    row, tree,
};
use crate::{
    cluster::{Cluster, ClusterError, policies::Event, reading::Scope, rollouts::Rollouts},
    commands::{
        look::{Depth, Look, look},
        output::{self, Out, OutputFormat, Screen, Tone, note},
    },
    core::{key::Key, message::plain, view::DeploymentView},
};

/// Between two drawings: ages go on.
const TICK: Duration = Duration::from_secs(1);

/// Changes that come together are shown together.
const TOGETHER: Duration = Duration::from_millis(200);

/// Between a change and the look that it gives rise to: a rollout changes many times a second, and a look takes several
/// calls.
const LOOK_AFTER: Duration = Duration::from_millis(500);

/// Between two looks at what is under way, and at what is settled.
const LOOKS: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(10));

/// The most characters of an error that is shown under a drawing.
const LONGEST_ERROR: usize = 300;

/// Shows Deployments until it is interrupted.
pub struct Watch<'a> {
    /// Where they are.
    pub cluster: &'a Cluster,
    /// How they are printed.
    pub output: OutputFormat,
    /// Whether only those are that are not settled.
    pub stuck: bool,
}

impl Watch<'_> {
    /// Watches the Deployments of a scope.
    pub async fn list(&self, scope: &Scope) -> anyhow::Result<()> {
        until_interrupted(self.follow_list(scope)).await
    }

    /// Watches these Deployments.
    pub async fn named(&self, keys: &[Key]) -> anyhow::Result<()> {
        until_interrupted(self.follow_named(keys)).await
    }

    async fn follow_list(&self, scope: &Scope) -> anyhow::Result<()> {
        let namespace = scope.namespace.as_deref();
        // What cannot be read at all is an error now, and not a watch that fails for ever.
        let first = self.cluster.deployments_page(scope, None, |_| ()).await?;
        drop(first);
        let mut hidden = Vec::new();
        let mut listed = Listed {
            records: Records::read(self.cluster, namespace, &mut hidden).await?,
            ..Listed::default()
        };
        listed.notes = hidden.iter().map(ToString::to_string).collect();
        let mut deployments = self.cluster.watch_scope(scope);
        let mut records = match hidden.is_empty() {
            true => self.cluster.watch_records_of(namespace),
            false => stream::pending().boxed(),
        };
        let mut show = Show::new(self.output, namespace.is_none(), listed.notes.clone());
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                Some(event) = deployments.next() => {
                    listed.deployment(event, Timestamp::now());
                    // What comes together is shown together.
                    let until = Instant::now() + TOGETHER;
                    while let Ok(Some(event)) = tokio::time::timeout_at(until, deployments.next()).await {
                        listed.deployment(event, Timestamp::now());
                    }
                }
                Some(event) = records.next() => {
                    if let Some(key) = listed.record(event)
                        && let Ok(Some(deployment)) = self.cluster.deployment(&key).await
                    {
                        listed.put(key, view(&deployment, &listed.records, Timestamp::now()));
                    }
                }
                _ = tick.tick() => {}
            }
            if listed.synced {
                self.show_list(&mut show, &mut listed, scope)?;
            }
        }
    }

    fn show_list(&self, show: &mut Show, listed: &mut Listed, scope: &Scope) -> anyhow::Result<()> {
        let now = Timestamp::now();
        let wanted = |view: &&DeploymentView| !self.stuck || !view.is_settled();
        if show.in_place {
            listed.changed.clear();
            listed.gone.clear();
            let mut views: Vec<&DeploymentView> = listed.views.values().filter(wanted).collect();
            // A terminal may be shorter than the list: what is under way first.
            views.sort_by_key(|view| view.is_settled());
            let text = if views.is_empty() {
                nothing(scope, self.stuck) + "\n"
            } else {
                let mut rows = Rows::new(scope.namespace.is_none(), self.output == OutputFormat::Wide);
                // No terminal is longer.
                views.iter().take(1000).for_each(|view| rows.push(view, now));
                rows.take(&show.screen())
            };
            let left_out = views.len().saturating_sub(1000);
            return show.draw(&text, left_out, listed.error.as_deref());
        }
        show.tell_error(listed.error.as_deref());
        for key in std::mem::take(&mut listed.changed) {
            match listed.views.get(&key) {
                Some(view) => {
                    // One that has settled is told of once more.
                    let wanted = !self.stuck || !view.is_settled();
                    let before = if wanted { !listed.shown.insert(key) } else { listed.shown.remove(&key) };
                    if wanted || before {
                        show.append(view, &[], now)?;
                    }
                }
                None => {
                    if let (Some(view), true) = (listed.gone.remove(&key), listed.shown.remove(&key)) {
                        show.append_gone(&view, now)?;
                    }
                }
            }
        }
        listed.gone.clear();
        Ok(())
    }

    async fn follow_named(&self, keys: &[Key]) -> anyhow::Result<()> {
        let mut named: Vec<Named> = Vec::new();
        for key in keys {
            // One that is not there is an error now; later it is gone.
            let look = look(self.cluster, key, Depth::Events, Timestamp::now()).await?;
            named.push(Named { key: key.clone(), look: Some(look), error: None, told: None, last: None });
        }
        let scope = |key: &Key| Scope {
            namespace: Some(key.namespace.clone()),
            name: Some(key.name.clone()),
            labels: None,
        };
        let watches = keys.iter().map(|key| self.cluster.watch_scope(&scope(key)));
        let mut changes = stream::select_all(watches);
        let mut show = Show::new(self.output, false, Vec::new());
        let mut looked = Instant::now();
        loop {
            self.show_named(&mut show, &mut named)?;
            let settled = named.iter().all(|one| one.is_settled());
            let pause = if settled { LOOKS.1 } else { LOOKS.0 };
            let again = looked + pause;
            while Instant::now() < again {
                let wait = again.saturating_duration_since(Instant::now()).min(TICK);
                match timeout(wait, changes.next()).await {
                    Ok(Some(Event::Applied(_) | Event::Deleted(_))) => {
                        sleep(LOOK_AFTER).await;
                        break;
                    }
                    // A watch that breaks begins anew by itself, and there is the look every few seconds.
                    Ok(Some(_)) => {}
                    Ok(None) => sleep(wait).await,
                    Err(_) if show.in_place => self.show_named(&mut show, &mut named)?,
                    Err(_) => {}
                }
            }
            for one in &mut named {
                one.look_again(self.cluster).await?;
            }
            looked = Instant::now();
        }
    }

    fn show_named(&self, show: &mut Show, named: &mut [Named]) -> anyhow::Result<()> {
        let now = Timestamp::now();
        let error = named.iter().find_map(|one| one.error.clone());
        if show.in_place {
            let screen = show.screen();
            let wide = self.output == OutputFormat::Wide;
            let trees: Vec<String> = named
                .iter()
                .map(|one| match &one.look {
                    Some(look) => tree::tree(look, wide, &screen, now),
                    None => format!("Deployment {} is gone\n", one.key),
                })
                .collect();
            return show.draw(&trees.join("\n"), 0, error.as_deref());
        }
        show.tell_error(error.as_deref());
        for one in named {
            let state = one.state(self.output)?;
            if one.told.as_ref() == Some(&state) {
                continue;
            }
            one.told = Some(state);
            match &one.look {
                Some(look) => {
                    show.append(&look.view, &look.hidden, now)?;
                    one.last = Some(look.view.clone());
                }
                None => {
                    if let Some(view) = one.last.take() {
                        show.append_gone(&view, now)?;
                    }
                }
            }
        }
        Ok(())
    }
}

/// Runs until Ctrl-C.
async fn until_interrupted(follow: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    let follow = pin!(follow);
    tokio::select! {
        result = follow => result,
        interrupted = tokio::signal::ctrl_c() => Ok(interrupted?),
    }
}

/// The Deployments of a scope as they are known.
#[derive(Default)]
struct Listed {
    views: BTreeMap<Key, DeploymentView>,
    records: Records,
    /// Whether a list has come to its end once.
    synced: bool,
    /// What a list that has begun anew has not told of yet.
    untold: Option<BTreeSet<Key>>,
    /// What is to be told in a pipe.
    changed: BTreeSet<Key>,
    gone: BTreeMap<Key, DeploymentView>,
    shown: BTreeSet<Key>,
    error: Option<String>,
    notes: Vec<String>,
}

impl Listed {
    fn deployment(&mut self, event: Event<crate::cluster::deployments::RawDeployment>, now: Timestamp) {
        match event {
            Event::Restarted => self.untold = Some(self.views.keys().cloned().collect()),
            Event::Applied(raw) => {
                let deployment: Value = serde_json::from_str(raw.raw()).unwrap_or_default();
                let view = view(&deployment, &self.records, now);
                self.put(raw.key(), view);
            }
            Event::Deleted(raw) => self.remove(&raw.key()),
            Event::Synced => {
                for key in self.untold.take().into_iter().flatten() {
                    self.remove(&key);
                }
                self.synced = true;
                self.error = None;
            }
            Event::Failed(why) => self.error = Some(plain(&why, LONGEST_ERROR)),
        }
    }

    /// Takes in what a watch of records tells, and returns whose record has changed.
    fn record(&mut self, event: Event<crate::cluster::records::StoredRecord>) -> Option<Key> {
        let key = |namespace: &str, name: &str| Key::new(namespace, name);
        match event {
            Event::Applied(record) => {
                let key = key(&record.namespace, &record.target.name);
                (self.records.put(record) && self.views.contains_key(&key)).then_some(key)
            }
            Event::Deleted(record) => {
                self.records.remove(&record);
                Some(key(&record.namespace, &record.target.name)).filter(|key| self.views.contains_key(key))
            }
            Event::Restarted | Event::Synced | Event::Failed(_) => None,
        }
    }

    fn put(&mut self, key: Key, view: DeploymentView) {
        if let Some(untold) = &mut self.untold {
            untold.remove(&key);
        }
        let before = self.views.get(&key);
        if before.is_none_or(|before| row::state(before) != row::state(&view)) {
            self.changed.insert(key.clone());
        }
        self.views.insert(key, view);
    }

    fn remove(&mut self, key: &Key) {
        if let Some(view) = self.views.remove(key) {
            self.changed.insert(key.clone());
            self.gone.insert(key.clone(), view);
        }
    }
}

/// A Deployment that is watched by its name.
struct Named {
    key: Key,
    /// None where it is gone.
    look: Option<Look>,
    error: Option<String>,
    /// What was last told of it in a pipe.
    told: Option<String>,
    /// As it was when that was told.
    last: Option<DeploymentView>,
}

impl Named {
    fn is_settled(&self) -> bool {
        self.look.as_ref().is_none_or(|look| look.view.is_settled())
    }

    /// Looks again. A cluster that does not answer is tried again later; what was last seen stays.
    async fn look_again(&mut self, cluster: &Cluster) -> anyhow::Result<()> {
        self.error = None;
        match look(cluster, &self.key, Depth::Events, Timestamp::now()).await {
            Ok(found) => self.look = Some(found),
            Err(ClusterError::NotFound { .. }) => self.look = None,
            // No right, or no valid token any more: that does not come back.
            Err(error) if matches!(error.code(), Some(401 | 403)) => bail!(error),
            Err(error) => self.error = Some(plain(&error.to_string(), LONGEST_ERROR)),
        }
        Ok(())
    }

    /// What is told of it, as one text that changes when that does.
    fn state(&self, output: OutputFormat) -> anyhow::Result<String> {
        Ok(match &self.look {
            Some(look) if matches!(output, OutputFormat::Json | OutputFormat::Yaml) => {
                serde_json::to_string(&Shown::of(look))?
            }
            Some(look) => row::state(&look.view),
            None => String::new(),
        })
    }
}

/// Where the drawings go.
struct Show {
    output: OutputFormat,
    in_place: bool,
    rows: Rows,
    notes: Vec<String>,
    /// How many lines the last drawing has, and on which screen it was.
    drawn: Option<(usize, Screen)>,
    told: Option<String>,
}

impl Show {
    fn new(output: OutputFormat, namespaces: bool, notes: Vec<String>) -> Self {
        let in_place = output.is_for_people() && Screen::stdout().terminal;
        if !in_place {
            notes.iter().for_each(|text| note(text));
        }
        let rows = Rows::new(namespaces, output == OutputFormat::Wide);
        Self { output, in_place, rows, notes, drawn: None, told: None }
    }

    fn screen(&self) -> Screen {
        Screen::stdout()
    }

    /// Draws over the last drawing, no more than the terminal is high.
    fn draw(&mut self, text: &str, left_out: usize, error: Option<&str>) -> anyhow::Result<()> {
        let screen = self.screen();
        let mut footer: Vec<String> = self.notes.clone();
        footer.extend(error.map(|error| format!("not up to date: {error}")));
        let footer: Vec<String> =
            footer.iter().map(|note| screen.paint(&screen.fit(note, 0), Tone::Warn)).collect();
        // The cursor takes a line.
        let height = screen.height.map_or(usize::MAX, |height| height.saturating_sub(1)).max(1);
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        let room = height.saturating_sub(footer.len()).max(1);
        if lines.len() > room || left_out > 0 {
            let more = (lines.len() + left_out).saturating_sub(room.saturating_sub(1));
            lines.truncate(room.saturating_sub(1));
            lines.push(screen.paint(&screen.fit(&format!("and {more} more"), 0), Tone::Dim));
        }
        lines.extend(footer);
        lines.truncate(height);
        let back = match self.drawn {
            Some((lines, before)) if before == screen => format!("\u{1b}[{lines}A\r"),
            // Another size: lines may have been broken anew, so there is no telling where they begin.
            Some(_) => "\u{1b}[2J\u{1b}[H".to_owned(),
            None => String::new(),
        };
        let mut out = back;
        for line in &lines {
            out.push_str(line);
            // What the last drawing left on this line.
            out.push_str("\u{1b}[K\n");
        }
        out.push_str("\u{1b}[J");
        self.drawn = Some((lines.len(), screen));
        Out.write(&out)
    }

    fn append(
        &mut self,
        view: &DeploymentView,
        hidden: &[crate::commands::look::Hidden],
        now: Timestamp,
    ) -> anyhow::Result<()> {
        match self.output {
            OutputFormat::Table | OutputFormat::Wide => {
                self.rows.push(view, now);
                Out.write(&self.rows.take(&self.screen()))
            }
            OutputFormat::Json => Out.json_line(&Shown { view, hidden }),
            OutputFormat::Yaml => Out.write(&format!("---\n{}", output::yaml(&Shown { view, hidden })?)),
            OutputFormat::Name => Out.line(&row::name(view)),
        }
    }

    fn append_gone(&mut self, view: &DeploymentView, now: Timestamp) -> anyhow::Result<()> {
        match self.output {
            OutputFormat::Table | OutputFormat::Wide => {
                self.rows.push_gone(view, now);
                Out.write(&self.rows.take(&self.screen()))
            }
            _ => {
                let gone = serde_json::json!({
                    "namespace": view.namespace, "name": view.name, "uid": view.uid, "deleted": true,
                });
                match self.output {
                    OutputFormat::Json => Out.json_line(&gone),
                    OutputFormat::Yaml => Out.write(&format!("---\n{}", output::yaml(&gone)?)),
                    _ => Ok(()),
                }
            }
        }
    }

    /// Says once on standard error that the watch is broken.
    fn tell_error(&mut self, error: Option<&str>) {
        if self.told.as_deref() != error {
            if let Some(error) = error {
                note(&format!("not up to date, trying again: {error}"));
            }
            self.told = error.map(str::to_owned);
        }
    }
}
