//! The task of one receiver: sends what waits, in order, and tries again. A slow one holds up nobody else.

use std::{sync::Arc, time::Duration};

use backon::{BackoffBuilder, ExponentialBuilder};
use bytes::Bytes;
use http::StatusCode;
use jiff::{SignedDuration, Timestamp};
use tokio::time::{Instant, sleep, timeout};

use super::{
    Outlet, Pace,
    body::{body, headers},
    config::Receiver,
    mailbox::{Item, Mailbox},
};
use crate::{
    core::{message::plain, notification::Notification},
    post::{Answer, Client, PostError},
    telemetry::{Metrics, NotificationLabels, ReceiverLabels},
};

/// The most characters of an answer that are logged.
const LONGEST_ANSWER: usize = 200;

/// What became of an attempt that did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum Failed {
    /// It may succeed later.
    #[error("{why}")]
    ForNow {
        /// In words.
        why: String,
        /// After which time, where the receiver says so.
        retry_after: Option<Duration>,
    },
    /// It never will.
    #[error("{0}")]
    ForGood(String),
}

/// Sends to one receiver.
pub struct Sender {
    receiver: Receiver,
    client: Client,
    metrics: Metrics,
    pace: Pace,
    /// Whether the last attempt failed: one log line when it begins, one when it ends.
    failing: bool,
}

impl Sender {
    /// Returns a sender.
    ///
    /// # Errors
    /// When the receiver's CAs cannot be used.
    pub fn new(receiver: Receiver, metrics: Metrics, pace: Pace) -> Result<Self, PostError> {
        let client = Client::new(receiver.roots.as_deref())?;
        Ok(Self { receiver, client, metrics, pace, failing: false })
    }

    /// Sends what comes in, for as long as it is polled.
    pub async fn run(mut self, outlet: Arc<Outlet>) {
        match &*outlet {
            Outlet::Queue(mailbox) => self.run_queue(mailbox).await,
            Outlet::Board(board) => self.run_board(board).await,
        }
    }

    /// Sends one notification, once.
    ///
    /// # Errors
    /// When the receiver does not take it.
    pub async fn send_once(&self, notification: &Notification) -> Result<StatusCode, Failed> {
        let now = Timestamp::now();
        let body = match &self.receiver.sort {
            super::config::Sort::Alertmanager => {
                let ends = now.checked_add(SignedDuration::from_mins(1)).unwrap_or(now);
                let alert = super::board::json(notification, ends, &self.receiver);
                serde_json::to_vec(&[alert]).map(Bytes::from)
            }
            _ => body(&self.receiver, notification),
        };
        let body = body.map_err(|error| Failed::ForGood(error.to_string()))?;
        self.attempt(Some(&notification.id), body).await
    }

    async fn run_queue(&mut self, mailbox: &Mailbox) {
        mailbox.take_back();
        loop {
            let item = mailbox.next().await;
            let outcome = self.deliver(&item).await;
            mailbox.done();
            self.count(outcome, 1);
        }
    }

    /// Sends one until it is taken, refused, or too old; returns which.
    async fn deliver(&mut self, item: &Item) -> &'static str {
        let body = match body(&self.receiver, &item.notification) {
            Ok(body) => body,
            Err(error) => {
                tracing::error!(receiver = self.receiver.name, %error, "a notification cannot be written");
                return "refused";
            }
        };
        let id = item.notification.id.as_str();
        let mut pauses = self.pace.pauses().with_max_times(self.pace.attempts.saturating_sub(1)).build();
        loop {
            let pause = match self.attempt(Some(id), body.clone()).await {
                Ok(_) => {
                    self.succeeded();
                    return "delivered";
                }
                Err(Failed::ForGood(why)) => {
                    self.failed(&why);
                    tracing::error!(receiver = self.receiver.name, id, why, "a notification is refused");
                    return "refused";
                }
                Err(Failed::ForNow { why, retry_after }) => {
                    self.failed(&why);
                    pauses.next().map(|pause| pause.max(retry_after.unwrap_or_default()))
                }
            };
            let until = item.since + self.pace.lifetime;
            match pause.filter(|pause| Instant::now() + *pause < until) {
                Some(pause) => sleep(pause).await,
                None => {
                    tracing::error!(receiver = self.receiver.name, id, "a notification is given up");
                    return "gave_up";
                }
            }
        }
    }

    async fn run_board(&mut self, board: &super::board::Board) {
        let mut pauses = self.pace.pauses().without_max_times().build();
        let resend = SignedDuration::try_from(self.pace.resend).unwrap_or(SignedDuration::MAX);
        loop {
            let batch = board.due(&self.receiver, resend, Timestamp::now());
            if batch.alerts.is_empty() {
                // Now and then something is due although nothing has changed.
                let _ = timeout(self.pace.resend / 4, board.changed()).await;
                continue;
            }
            let (news, body) = (batch.news, serde_json::to_vec(&batch.alerts).unwrap_or_default());
            let pause = match self.attempt(None, body.into()).await {
                Ok(_) => {
                    self.succeeded();
                    self.count("delivered", news);
                    board.sent(batch, Timestamp::now());
                    pauses = self.pace.pauses().without_max_times().build();
                    continue;
                }
                Err(Failed::ForGood(why)) => {
                    self.failed(&why);
                    self.count("refused", news);
                    // Nothing is gained by the same again at once; the next time is that of the resend.
                    board.sent(batch, Timestamp::now());
                    continue;
                }
                Err(Failed::ForNow { why, retry_after }) => {
                    self.failed(&why);
                    pauses.next().unwrap_or(self.pace.most).max(retry_after.unwrap_or_default())
                }
            };
            sleep(pause.min(self.pace.lifetime)).await;
        }
    }

    async fn attempt(&self, id: Option<&str>, body: Bytes) -> Result<StatusCode, Failed> {
        let receiver = &self.receiver;
        let headers = headers(receiver, id, &body, Timestamp::now());
        match self.client.post(receiver.uri.clone(), headers, body, receiver.timeout).await {
            Ok(answer) => judge(&answer),
            Err(error) => Err(Failed::ForNow { why: error.to_string(), retry_after: None }),
        }
    }

    fn succeeded(&mut self) {
        if std::mem::take(&mut self.failing) {
            tracing::info!(receiver = self.receiver.name, "notifications are taken again");
        }
    }

    fn failed(&mut self, why: &str) {
        let labels = ReceiverLabels { receiver: self.receiver.name.clone() };
        self.metrics.notification_errors.get_or_create(&labels).inc();
        if !std::mem::replace(&mut self.failing, true) {
            tracing::warn!(receiver = self.receiver.name, why, "a notification is not taken, tried again");
        } else {
            tracing::debug!(receiver = self.receiver.name, why, "a notification is not taken");
        }
    }

    fn count(&self, outcome: &'static str, by: usize) {
        count(&self.metrics, &self.receiver.name, outcome, by);
    }
}

/// Counts what became of notifications.
pub fn count(metrics: &Metrics, receiver: &str, outcome: &'static str, by: usize) {
    let labels = NotificationLabels { receiver: receiver.to_owned(), outcome };
    metrics.notifications.get_or_create(&labels).inc_by(u64::try_from(by).unwrap_or(u64::MAX));
}

/// Whatever is not taken and may be later is tried again: overload, and trouble of the server's own. A redirect is
/// refused: whoever answers with one could have the message sent anywhere.
fn judge(answer: &Answer) -> Result<StatusCode, Failed> {
    let status = answer.status;
    if status.is_success() {
        return Ok(status);
    }
    let said = plain(String::from_utf8_lossy(&answer.body).trim(), LONGEST_ANSWER);
    let why =
        if said.is_empty() { format!("answered {status}") } else { format!("answered {status}: {said}") };
    let later = matches!(status, StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS)
        || status.is_server_error();
    Err(if later { Failed::ForNow { why, retry_after: answer.retry_after } } else { Failed::ForGood(why) })
}

impl Pace {
    /// Returns the pauses between attempts, each with a random part, so that not all come back at once.
    fn pauses(&self) -> ExponentialBuilder {
        ExponentialBuilder::default()
            .with_min_delay(self.first)
            .with_max_delay(self.most)
            .with_factor(2.0)
            .with_jitter()
    }
}
