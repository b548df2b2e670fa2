//! Which Deployments are to be looked at, and when: each by one at a time, and so many at once.

use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};

use futures::future::poll_fn;
use tokio::time::Instant;
use tokio_util::time::{DelayQueue, delay_queue};

use super::reconcile::Memory;
use crate::core::{key::Key, record::Before};

/// The least time between two looks at one Deployment that nothing urgent calls for.
const SPACING: Duration = Duration::from_millis(500);

/// The longest time between two looks at what is followed; timers beyond two years are more than the queue can hold.
const LONGEST: Duration = Duration::from_hours(1);

/// Deployments that are followed at the moment.
#[derive(Debug, Default)]
pub struct Queue {
    timers: DelayQueue<Key>,
    ready: VecDeque<Key>,
    followed: HashMap<Key, Followed>,
}

#[derive(Debug, Default)]
struct Followed {
    /// None while it is looked at.
    memory: Option<Memory>,
    /// What was complete before a push that came while it was looked at.
    before: Option<Before>,
    timer: Option<delay_queue::Key>,
    is_ready: bool,
    /// Something happened while it was looked at.
    again: bool,
    last: Option<Instant>,
    failures: u32,
}

impl Followed {
    /// A look is over.
    fn remember(&mut self, mut memory: Memory) {
        if let Some(before) = self.before.take() {
            memory.before = Some(before);
        }
        self.memory = Some(memory);
    }
}

impl Queue {
    /// Has `key` looked at, at once where that is urgent.
    pub fn notice(&mut self, key: &Key, urgent: bool) {
        let followed = self
            .followed
            .entry(key.clone())
            .or_insert_with(|| Followed { memory: Some(Memory::default()), ..Followed::default() });
        if followed.memory.is_none() {
            followed.again = true;
            return;
        }
        let since = followed.last.map(|last| last.elapsed());
        let pause = since.map_or(Duration::ZERO, |since| SPACING.saturating_sub(since));
        self.set(key, if urgent { Duration::ZERO } else { pause });
    }

    /// Takes in what was complete right before the template of now; nothing where `key` is not followed.
    pub fn was_complete(&mut self, key: &Key, before: Before) {
        let Some(followed) = self.followed.get_mut(key) else { return };
        match &mut followed.memory {
            Some(memory) => memory.before = Some(before),
            None => followed.before = Some(before),
        }
    }

    /// Has `key` looked at after `pause`, or before that where it is due before.
    fn set(&mut self, key: &Key, pause: Duration) {
        let Some(followed) = self.followed.get_mut(key) else { return };
        if followed.is_ready {
            return;
        }
        let pause = pause.min(LONGEST);
        if let Some(timer) = followed.timer.take() {
            if self.timers.deadline(&timer) <= Instant::now() + pause {
                followed.timer = Some(timer);
                return;
            }
            self.timers.remove(&timer);
        }
        if pause.is_zero() {
            followed.is_ready = true;
            self.ready.push_back(key.clone());
        } else {
            followed.timer = Some(self.timers.insert(key.clone(), pause));
        }
    }

    /// Completes when the time of one has come, which is then [`Queue::take`]n. Never completes where none is waited for.
    pub async fn due(&mut self) {
        let timers = &mut self.timers;
        let next = poll_fn(|context| match timers.poll_expired(context) {
            std::task::Poll::Ready(Some(expired)) => std::task::Poll::Ready(expired.into_inner()),
            // Empty: what is put in later has this polled anew.
            std::task::Poll::Ready(None) | std::task::Poll::Pending => std::task::Poll::Pending,
        });
        let key = next.await;
        if let Some(followed) = self.followed.get_mut(&key) {
            followed.timer = None;
            followed.is_ready = true;
            self.ready.push_back(key);
        }
    }

    /// Takes the next one to be looked at, with what is remembered of it.
    pub fn take(&mut self) -> Option<(Key, Memory)> {
        while let Some(key) = self.ready.pop_front() {
            let Some(followed) = self.followed.get_mut(&key) else { continue };
            followed.is_ready = false;
            if let Some(memory) = followed.memory.take() {
                followed.last = Some(Instant::now());
                return Some((key, memory));
            }
        }
        None
    }

    /// Says that a look is over, and after which pause the next is due; none: when something happens.
    pub fn looked(&mut self, key: &Key, memory: Memory, next: Option<Duration>) {
        let Some(followed) = self.followed.get_mut(key) else { return };
        followed.remember(memory);
        followed.failures = 0;
        let again = std::mem::take(&mut followed.again);
        match next {
            _ if again => self.set(key, SPACING),
            Some(pause) => self.set(key, pause.max(Duration::from_millis(1))),
            None => {
                self.followed.remove(key);
            }
        }
    }

    /// Says that a look came to no end. Returns after which pause it is tried again: half a second, doubled with each
    /// failure in a row, a minute at most.
    pub fn failed(&mut self, key: &Key, memory: Memory) -> Duration {
        let Some(followed) = self.followed.get_mut(key) else { return Duration::ZERO };
        followed.remember(memory);
        followed.again = false;
        followed.failures = followed.failures.saturating_add(1);
        let doubled = Duration::from_millis(500 << (followed.failures - 1).min(7));
        let pause = doubled.min(Duration::from_secs(60)).mul_f64(jitter(key, followed.failures));
        self.set(key, pause);
        pause
    }

    /// Returns how many are due and not looked at yet.
    pub fn depth(&self) -> usize {
        self.ready.len()
    }

    /// Says whether `key` is followed.
    pub fn follows(&self, key: &Key) -> bool {
        self.followed.contains_key(key)
    }
}

/// Between 0.75 and 1.25, so that what failed at one time is not tried again at one time.
fn jitter(key: &Key, failures: u32) -> f64 {
    use std::hash::{BuildHasher, Hasher, RandomState};
    let mut hasher = RandomState::new().build_hasher();
    hasher.write(key.name.as_bytes());
    hasher.write_u32(failures);
    0.75 + (hasher.finish() % 1000) as f64 / 2000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> Key {
        Key::new("shop", name)
    }

    #[tokio::test(start_paused = true)]
    async fn one_is_looked_at_once_at_a_time_and_again_for_what_happened_meanwhile() {
        let mut queue = Queue::default();
        queue.notice(&key("web"), true);
        queue.notice(&key("web"), true);
        let (taken, memory) = queue.take().expect("due");
        assert_eq!(taken, key("web"));
        assert!(queue.take().is_none());
        queue.notice(&taken, true);
        assert!(queue.take().is_none(), "while it is looked at");
        queue.looked(&taken, memory, None);
        queue.due().await;
        let (again, memory) = queue.take().expect("what happened meanwhile");
        queue.looked(&again, memory, None);
        assert!(!queue.follows(&again));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_due_sooner_wins_and_events_are_spaced() {
        let mut queue = Queue::default();
        queue.notice(&key("web"), false);
        let (web, memory) = queue.take().expect("the first look is at once");
        queue.looked(&web, memory, Some(Duration::from_secs(60)));
        let started = Instant::now();
        queue.notice(&web, false);
        queue.due().await;
        assert!(started.elapsed() >= SPACING - Duration::from_millis(1), "{:?}", started.elapsed());
        assert!(started.elapsed() < Duration::from_secs(1));
        let (web, memory) = queue.take().expect("due");
        queue.looked(&web, memory, Some(Duration::from_secs(60)));
        queue.notice(&web, true);
        assert!(queue.take().is_some(), "urgent");
    }

    #[tokio::test(start_paused = true)]
    async fn failures_in_a_row_are_tried_less_and_less_often() {
        let mut queue = Queue::default();
        queue.notice(&key("web"), true);
        let mut pauses = Vec::new();
        for _ in 0..12 {
            if queue.ready.is_empty() {
                queue.due().await;
            }
            let (web, memory) = queue.take().expect("due");
            pauses.push(queue.failed(&web, memory));
        }
        assert!(pauses[0] < Duration::from_secs(1) && pauses[11] >= Duration::from_secs(45), "{pauses:?}");
        assert!(pauses.iter().all(|pause| *pause <= Duration::from_secs(76)), "{pauses:?}");
    }
}
