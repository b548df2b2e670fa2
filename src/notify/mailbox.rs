//! What waits to be sent to one receiver: bounded, and never waited for by whoever hands something over.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::{sync::Notify, time::Instant};

use crate::core::notification::Notification;

/// One notification, and since when it is to be sent.
#[derive(Clone, Debug)]
pub struct Item {
    /// What is told.
    pub notification: Arc<Notification>,
    /// When it was handed over.
    pub since: Instant,
}

/// The queue of one receiver.
#[derive(Debug)]
pub struct Mailbox {
    inner: Mutex<Inner>,
    changed: Notify,
    most: usize,
}

#[derive(Debug, Default)]
struct Inner {
    waiting: VecDeque<Item>,
    /// What is being sent.
    under_way: Option<Item>,
}

impl Mailbox {
    /// Returns an empty one for `most` notifications.
    pub fn new(most: usize) -> Self {
        Self { inner: Mutex::default(), changed: Notify::new(), most }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes one in, at once. Where the mailbox is full the oldest of the least important is left out and returned:
    /// it may be this one.
    pub fn put(&self, notification: Arc<Notification>) -> Option<Arc<Notification>> {
        let mut inner = self.lock();
        inner.waiting.push_back(Item { notification, since: Instant::now() });
        let dropped = if inner.waiting.len() > self.most {
            // Of equals the first: the oldest.
            let severity = |(_, item): &(usize, &Item)| item.notification.severity;
            let least = inner.waiting.iter().enumerate().min_by_key(severity).map(|(place, _)| place);
            least.and_then(|place| inner.waiting.remove(place))
        } else {
            None
        };
        drop(inner);
        self.changed.notify_one();
        dropped.map(|item| item.notification)
    }

    /// Waits for the next one. It stays under way until [`Mailbox::done`].
    pub async fn next(&self) -> Item {
        loop {
            let changed = self.changed.notified();
            {
                let mut inner = self.lock();
                if let Some(item) = inner.waiting.pop_front() {
                    inner.under_way = Some(item.clone());
                    return item;
                }
            }
            changed.await;
        }
    }

    /// What is under way has come to its end.
    pub fn done(&self) {
        self.lock().under_way = None;
    }

    /// What was under way is the next again: whoever sent it is gone.
    pub fn take_back(&self) {
        let mut inner = self.lock();
        if let Some(item) = inner.under_way.take() {
            inner.waiting.push_front(item);
        }
        drop(inner);
        self.changed.notify_one();
    }

    /// Returns how many wait or are under way.
    pub fn len(&self) -> usize {
        let inner = self.lock();
        inner.waiting.len() + usize::from(inner.under_way.is_some())
    }

    /// Says whether nothing waits and nothing is under way.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;
    use crate::core::notification::Severity;

    fn told(severity: Severity, n: i64) -> Arc<Notification> {
        let now = Timestamp::from_second(n).expect("in range");
        Arc::new(Notification { severity, ..Notification::test(now) })
    }

    #[test]
    fn a_full_one_leaves_out_the_oldest_of_the_least_important() {
        let mailbox = Mailbox::new(3);
        let (info, old, new) =
            (told(Severity::Info, 1), told(Severity::Warning, 2), told(Severity::Warning, 3));
        for each in [&old, &info, &new] {
            assert_eq!(mailbox.put(Arc::clone(each)), None);
        }
        assert_eq!(mailbox.put(told(Severity::Critical, 4)), Some(info));
        assert_eq!(mailbox.put(told(Severity::Critical, 5)), Some(old));
        let late = told(Severity::Info, 6);
        assert_eq!(mailbox.put(Arc::clone(&late)), Some(late), "it is less important than all that wait");
        assert_eq!(mailbox.len(), 3);
    }

    #[tokio::test]
    async fn what_was_under_way_is_sent_again_by_whoever_comes_next() {
        let mailbox = Mailbox::new(3);
        mailbox.put(told(Severity::Info, 1));
        mailbox.put(told(Severity::Info, 2));
        let first = mailbox.next().await.notification;
        assert_eq!(mailbox.len(), 2);
        mailbox.take_back();
        assert_eq!(mailbox.next().await.notification, first);
        mailbox.done();
        assert_eq!(mailbox.len(), 1);
        mailbox.next().await;
        mailbox.done();
        assert!(mailbox.is_empty());
    }
}
