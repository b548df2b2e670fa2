//! Follows one Deployment: reads, judges, tells what changed, until it is decided.
//!
//! A watch tells when the Deployment changes; pods and records change without it, so it is looked at every few seconds as
//! well. That also makes up for a watch that is lost, or that the user has no right to.

use std::{collections::BTreeSet, time::Duration};

use futures::{StreamExt, stream::BoxStream};
use jiff::Timestamp;
use tokio::{sync::mpsc::Sender, time::sleep};

use crate::{
    cluster::{ClusterError, rollouts::Rollouts},
    commands::look::{Depth, Look, look},
    core::{
        key::Key,
        message::plain,
        waiting::{Decided, Observed, Position, Step, Waiting},
    },
};

/// Changes that come at once are looked at at once.
const TOGETHER: Duration = Duration::from_millis(100);

/// The most characters of why the API server cannot be asked.
const WHY: usize = 600;

/// What is told while a Deployment is waited for.
#[derive(Clone, Debug, PartialEq)]
pub struct News {
    /// The Deployment.
    pub key: Key,
    /// When.
    pub at: Timestamp,
    /// What.
    pub what: What,
}

/// What is told.
#[derive(Clone, Debug, PartialEq)]
pub enum What {
    /// It stands elsewhere than before.
    Changed(Position),
    /// Something about the waiting itself, such as a right that is missing. On one line.
    Note(String),
}

/// Looks at the Deployment of `waiting` whenever `wakes` says so, and every `pace`, until it is decided. What changes
/// on the way is told.
pub async fn follow(
    cluster: &impl Rollouts,
    mut wakes: BoxStream<'static, ()>,
    mut waiting: Waiting,
    pace: Duration,
    tell: Sender<News>,
) -> Box<Decided> {
    let key = waiting.key().clone();
    let mut notes = Notes { key: key.clone(), tell, told: BTreeSet::new() };
    let mut watched = true;
    loop {
        let left = waiting.left(Timestamp::now());
        let seen = tokio::select! {
            seen = look(cluster, &key, Depth::Events, Timestamp::now()) => Some(seen),
            () = sleep(left) => None,
        };
        let now = Timestamp::now();
        let decided = match seen {
            None => waiting.late(now),
            Some(seen) => notes.take_in(&mut waiting, seen, now).await,
        };
        if let Some(decided) = decided {
            return decided;
        }
        let left = waiting.left(Timestamp::now());
        tokio::select! {
            woken = wakes.next(), if watched => {
                watched = woken.is_some();
                sleep(TOGETHER).await;
            }
            () = sleep(pace.min(left)) => {}
        }
    }
}

/// What was told, each thing once.
struct Notes {
    key: Key,
    tell: Sender<News>,
    told: BTreeSet<String>,
}

impl Notes {
    /// Takes in what was read. Returns how it ended, where it has.
    async fn take_in(
        &mut self,
        waiting: &mut Waiting,
        seen: Result<Look, ClusterError>,
        now: Timestamp,
    ) -> Option<Box<Decided>> {
        let step = match seen {
            Ok(look) => {
                for hidden in &look.hidden {
                    self.note(format!("{hidden}; less can be told"), now).await;
                }
                let record = look.record.as_ref().map(|record| &record.status);
                let seen = Observed { raw: &look.deployment, view: &look.view, record };
                waiting.observe(Some(&seen), now)
            }
            Err(ClusterError::NotFound { .. }) => waiting.observe(None, now),
            Err(error) => {
                let why = plain(&error.to_string(), WHY);
                if matches!(error.code(), Some(401 | 403)) {
                    return Some(waiting.refused(&why));
                }
                self.note(format!("{why}; tried again"), now).await;
                return waiting.fails(&why, now);
            }
        };
        match step {
            Step::Same => None,
            Step::Changed(position) => {
                self.send(What::Changed(position), now).await;
                None
            }
            Step::Done(decided) => Some(decided),
        }
    }

    async fn note(&mut self, text: String, at: Timestamp) {
        if self.told.len() < 100 && self.told.insert(text.clone()) {
            self.send(What::Note(text), at).await;
        }
    }

    async fn send(&self, what: What, at: Timestamp) {
        // Whoever listens may have gone: the end counts.
        let _ = self.tell.send(News { key: self.key.clone(), at, what }).await;
    }
}
